"""Runs with secrets or the network: who may have them, and that none goes on without its lease."""

from dataclasses import replace
from typing import Any

import pytest

from pairio_protocol import effects as ef
from pairio_protocol import events as ev
from pairio_protocol.apps import Needs, code_of, validate_app
from pairio_protocol.context import CoreConfig
from pairio_protocol.errors import DefinitionError
from pairio_protocol.limits import EXCLUSIVE_MARGIN_MS, LEASE_MS, SECRETS_PER_JOB_MAX
from pairio_protocol.machines.leases import Lease
from pairio_protocol.messages import MESSAGES, Renewed
from pairio_protocol.records import Resources
from tests.protocol.test_core_sim import APP, BUNDLE, RESOURCES, World, definition


def processor(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "executable": "main.py", "outputs": [{"name": "output"}], **more}


IMAGE = {"archive": BUNDLE, "id": "sha256:" + "ab" * 32}
NEEDY = {
    "name": "needy",
    "bundle": BUNDLE,
    "processors": [
        processor("plain"),
        processor("online", network="full"),
        processor("secret", secrets=["TOKEN"]),
        processor("boxed", secrets=["TOKEN"], network="full", container=IMAGE),
    ],
}


class Lab(World):
    """Node 0 submits, nodes 1 and 2 compute; runs end when told."""

    def __init__(self, workers: int = 2, **config: Any) -> None:
        self.started: list[tuple[str, ef.Execute]] = []
        self.killed: list[str] = []
        self.cut: set[tuple[str, str]] = set()
        super().__init__(1 + workers)
        self.with_service()
        self.submitter = self.cores[self.peers[0]]
        self.service = next(iter(self.submitter.membership.taken_up))
        self.call(self.peers[0], ev.InstallApp(4, "lab", NEEDY))
        for peer in self.peers[1:]:
            core = self.cores[peer]
            core.ctx.config = replace(core.ctx.config, allow_network=("needy",), **config)
            core.book.changed()
        self.pass_time(3000)

    def _carry_out(self, peer: str, effects: list[ef.Effect]) -> None:
        kept: list[ef.Effect] = []
        for effect in effects:
            if isinstance(effect, ef.Kill):
                self.killed.append(effect.attempt)
            if isinstance(effect, ef.Execute):
                self.started.append((peer, effect))
            elif not (isinstance(effect, ef.Send) and (peer, effect.peer) in self.cut):
                kept.append(effect)
        super()._carry_out(peer, kept)

    def submit(
        self,
        name: str,
        *,
        call: int = 100,
        secrets: tuple[str, ...] = (),
        resources: Resources = RESOURCES,
    ) -> str:
        wish = {**definition(name), "appName": "needy", "cacheBust": str(call)}
        event = ev.Submit(call, "lab", wish, resources, secrets=secrets)
        self.hold(wish, secrets)
        return self.call(self.peers[0], event)["request"]

    def hold(self, wish: dict[str, Any], secrets: tuple[str, ...]) -> None:
        """The shell of node 0 has the secrets of a job before it is submitted."""
        if secrets:
            job = self.job_of(wish)
            self.do(self.peers[0], ev.SecretsHeld(frozenset({(self.service, job)})))

    def job_of(self, wish: dict[str, Any]) -> str:
        from pairio_protocol.normalise import job_id_of, normalise

        apps = self.submitter.membership.folded(self.service).apps
        return job_id_of(normalise(wish, apps[wish["appName"]]))

    def end(self, worker: str, effect: ef.Execute) -> None:
        self.queue.append((worker, self._executed(effect)))
        self.settle()

    def pass_slowly(self, ms: int, step_ms: int = 200) -> None:
        for _ in range(ms // step_ms):
            self.pass_time(step_ms)

    def is_done(self, request: str) -> bool:
        return self.submitter.fold(self.service).requests[request].answer is not None


# -- the spec ---------------------------------------------------------------------------------


def test_what_a_processor_needs_changes_its_code_and_nothing_else_does() -> None:
    plain = validate_app({**NEEDY, "processors": [processor("p")]})
    codes = {code_of(plain, plain["processors"][0])}
    for more in (
        {"network": "full"},
        {"secrets": ["TOKEN"]},
        {"inputs": [{"name": "i"}]},
        {"inputs": [{"name": "i", "stream": True}]},
    ):
        app = validate_app({**NEEDY, "processors": [processor("p", **more)]})
        codes.add(code_of(app, app["processors"][0]))
    assert len(codes) == 5
    said = validate_app(
        {**NEEDY, "processors": [processor("p", network="none", secrets=[], inputs=[])]}
    )
    assert said == plain


@pytest.mark.parametrize(
    "more",
    [
        {"network": "some"},
        {"network": True},
        {"secrets": ["a b"]},
        {"secrets": ["../TOKEN"]},
        {"secrets": ["1A"]},
        {"secrets": ["A" * 65]},
        {"secrets": ["A", "A"]},
        {"secrets": "TOKEN"},
        {"secrets": [7]},
        {"secrets": [f"A{i}" for i in range(SECRETS_PER_JOB_MAX + 1)]},
    ],
)
def test_needs_that_are_none_are_refused(more: dict[str, Any]) -> None:
    with pytest.raises(DefinitionError):
        validate_app({**NEEDY, "processors": [processor("p", **more)]})


def test_only_network_and_secrets_make_a_run_exclusive() -> None:
    assert not Needs.of(processor("p")).exclusive
    assert Needs.of(processor("p", network="full")).exclusive
    assert Needs.of(processor("p", secrets=["TOKEN"])).exclusive


# -- who runs it --------------------------------------------------------------------------------


def test_a_run_that_needs_the_network_goes_to_a_node_whose_owner_allows_it() -> None:
    lab = Lab()
    forbids = lab.cores[lab.peers[1]]
    forbids.ctx.config = replace(forbids.ctx.config, allow_network=("another app",))
    forbids.book.changed()
    lab.pass_time(3000)
    for call in range(100, 104):
        request = lab.submit("online", call=call)
        [(worker, effect)] = lab.started
        lab.started = []
        assert worker == lab.peers[2]
        lab.end(worker, effect)
        assert lab.is_done(request)


@pytest.mark.parametrize("allowed", [("*",), ("lab",), ("needy",)])
def test_the_owner_allows_the_network_by_app_by_service_or_to_all(allowed: tuple[str, ...]) -> None:
    lab = Lab(workers=1)
    lab.cores[lab.peers[1]].ctx.config = replace(
        lab.cores[lab.peers[1]].ctx.config, allow_network=allowed
    )
    lab.pass_time(3000)
    lab.submit("online")
    assert len(lab.started) == 1


def test_presence_names_no_app_of_another_service() -> None:
    lab = Lab(workers=1)
    worker = lab.cores[lab.peers[1]]
    worker.ctx.config = replace(worker.ctx.config, allow_network=("needy", "secret project"))
    worker.book.send_own()
    entry = worker.book.get(lab.service, worker.ctx.me)
    assert entry is not None
    assert entry.networks == ("needy",)


def test_a_worker_declines_what_its_presence_did_not_offer() -> None:
    """Presence is old: the award comes although the owner allows the network no more."""
    lab = Lab(workers=1)
    worker = lab.cores[lab.peers[1]]
    worker.ctx.config = replace(worker.ctx.config, allow_network=())
    request = lab.submit("online")
    errand = lab.submitter.coordinator.errand_of(request)
    assert errand is not None
    [(_, decline)] = errand.declined.values()
    assert (decline.reason, decline.needs, decline.has) == ("network", "full", "owner allows none")
    assert lab.started == []


def test_without_a_sandbox_no_run_with_secrets_is_taken() -> None:
    lab = Lab(workers=1, isolation="none", allow_process=("*",))
    request = lab.submit("secret", secrets=("TOKEN",))
    errand = lab.submitter.coordinator.errand_of(request)
    assert errand is not None
    [(_, decline)] = errand.declined.values()
    assert (decline.reason, decline.needs) == ("secrets", "a sandbox")


def test_a_container_is_sandbox_enough_where_there_is_no_other() -> None:
    lab = Lab(workers=1, isolation="none", executors=("container",))
    request = lab.submit("boxed", secrets=("TOKEN",))
    [(worker, effect)] = lab.started
    assert effect.processor["container"] == IMAGE
    lab.end(worker, effect)
    assert lab.is_done(request)


# -- secrets ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("given", "said"), [((), "'TOKEN'"), (("TOKEN", "OTHER"), "'OTHER'")])
def test_a_submit_gives_the_secrets_that_are_asked_for_and_no_others(
    given: tuple[str, ...], said: str
) -> None:
    lab = Lab(workers=1)
    wish = {**definition("secret"), "appName": "needy"}
    lab.do(lab.peers[0], ev.Submit(100, "lab", wish, RESOURCES, secrets=given))
    lab.settle()
    answer = lab.answers[100]
    assert isinstance(answer, ef.Fail)
    assert said in answer.message


def test_a_hit_takes_no_secrets() -> None:
    lab = Lab(workers=1)
    lab.submit("secret", secrets=("TOKEN",))
    lab.end(*lab.started[0])
    wish = {**definition("secret"), "appName": "needy", "cacheBust": "100"}
    for peer in lab.peers:
        answer = lab.call(peer, ev.Submit(200, "lab", wish, RESOURCES))
        assert lab.cores[peer].fold(lab.service).requests[answer["request"]].cached


def test_secrets_are_for_the_worker_of_the_attempt_under_way_alone() -> None:
    lab = Lab()
    request = lab.submit("secret", secrets=("TOKEN",))
    [(worker, effect)] = lab.started
    other = next(peer for peer in lab.peers[1:] if peer != worker)
    core, service = lab.submitter, lab.service
    job = core.fold(service).requests[request].job
    assert core.gives_secrets(worker, service, request, effect.attempt) == job
    refused = core.ctx.counters["refused: secrets that it may not have"]
    for asked in (
        (other, service, request, effect.attempt),
        ("12D3KooWstranger", service, request, effect.attempt),
        (worker, "another", request, effect.attempt),
        (worker, service, "0" * 64, effect.attempt),
        (worker, service, request, effect.attempt + "0"),
    ):
        assert core.gives_secrets(*asked) is None
    assert core.ctx.counters["refused: secrets that it may not have"] == refused + 5
    lab.end(worker, effect)
    assert core.gives_secrets(worker, service, request, effect.attempt) is None


def test_a_worker_gets_no_secrets_after_its_lease() -> None:
    lab = Lab()
    request = lab.submit("secret", secrets=("TOKEN",))
    [(worker, effect)] = lab.started
    lab.cut = {(worker, lab.peers[0])}
    lab.pass_slowly(LEASE_MS + 1000)
    assert lab.submitter.gives_secrets(worker, lab.service, request, effect.attempt) is None


def test_a_removed_worker_gets_no_secrets() -> None:
    lab = Lab()
    request = lab.submit("secret", secrets=("TOKEN",))
    [(worker, effect)] = lab.started
    lab.do(lab.peers[0], ev.Revoke(5, "lab", worker))
    lab.settle()
    lab.pass_slowly(2000)
    assert lab.submitter.gives_secrets(worker, lab.service, request, effect.attempt) is None


def test_secrets_are_given_as_long_as_any_request_wants_the_run() -> None:
    lab = Lab(workers=1)
    requests = []
    wish = {**definition("secret"), "appName": "needy", "cacheBust": "100"}
    lab.hold(wish, ("TOKEN",))
    for call in (100, 101):
        event = ev.Submit(call, "lab", wish, RESOURCES, secrets=("TOKEN",))
        requests.append(lab.call(lab.peers[0], event)["request"])
    [(worker, effect)] = lab.started
    requests.remove(effect.request)
    asked = (worker, lab.service, effect.request, effect.attempt)
    lab.call(lab.peers[0], ev.CancelRequests(200, "lab", (effect.request,)))
    assert lab.killed == []
    assert lab.submitter.gives_secrets(*asked) == lab.job_of(wish)
    lab.call(lab.peers[0], ev.CancelRequests(201, "lab", tuple(requests)))
    assert lab.submitter.gives_secrets(*asked) is None


@pytest.mark.parametrize(("name", "taken"), [("secret", 0), ("online", 1)])
def test_nobody_takes_a_run_whose_secrets_its_submitter_has(name: str, taken: int) -> None:
    lab = Lab()
    lab.submitter.coordinator.award_open = lambda: None  # type: ignore[method-assign]
    lab.submit(name, secrets=("TOKEN",) if name == "secret" else ())
    away = lab.peers[0]
    lab.cut = {edge for peer in lab.peers for edge in ((peer, away), (away, peer))}
    for peer in lab.peers[1:]:
        lab.do(peer, ev.PeerDown(lab.peers[0]))
        lab.do(lab.peers[0], ev.PeerDown(peer))
    lab.settle()
    assert lab.started == []
    lab.pass_slowly(60_000, 1000)
    assert len(lab.started) == taken


def test_a_run_waits_while_its_submitter_has_lost_the_secrets() -> None:
    lab = Lab(workers=1)
    lab.cores[lab.peers[1]].ctx.config = replace(lab.cores[lab.peers[1]].ctx.config, compute=False)
    lab.cores[lab.peers[1]].book.changed()
    lab.pass_time(3000)
    wish = {**definition("secret"), "appName": "needy", "cacheBust": "100"}
    lab.submit("secret", secrets=("TOKEN",))
    lab.do(lab.peers[0], ev.SecretsHeld(frozenset()))
    worker = lab.cores[lab.peers[1]]
    worker.ctx.config = replace(worker.ctx.config, compute=True)
    worker.book.changed()
    lab.pass_slowly(10_000, 500)
    assert lab.started == []
    lab.hold(wish, ("TOKEN",))
    lab.settle()
    assert len(lab.started) == 1


# -- exclusive ----------------------------------------------------------------------------------


def test_an_exclusive_run_goes_on_as_long_as_its_lease_is_renewed() -> None:
    lab = Lab()
    request = lab.submit("online")
    [(worker, effect)] = lab.started
    lab.pass_slowly(4 * LEASE_MS)
    assert lab.killed == []
    lab.end(worker, effect)
    assert lab.is_done(request)


@pytest.mark.parametrize("heard", [True, False])
def test_an_exclusive_run_is_ended_before_its_coordinator_gives_it_to_another(heard: bool) -> None:
    """Whichever direction of the connection is deaf."""
    lab = Lab()
    lab.submit("online")
    [(worker, effect)] = lab.started
    lab.pass_slowly(5000)
    lab.cut = {(worker, lab.peers[0])} if heard else {(lab.peers[0], worker)}
    cut_ms, ended_ms, again_ms = lab.now_ms, 0, 0
    while lab.now_ms < cut_ms + 3 * LEASE_MS and not (again_ms and ended_ms):
        lab.pass_time(100)
        if lab.killed and not ended_ms:
            ended_ms = lab.now_ms
        if len(lab.started) > 1 and not again_ms:
            again_ms = lab.now_ms
    assert lab.killed[:1] == [effect.attempt]
    assert ended_ms <= cut_ms + LEASE_MS
    if heard:
        assert again_ms >= ended_ms + EXCLUSIVE_MARGIN_MS - 100


def test_an_exclusive_run_whose_lease_is_over_ends_as_lost_not_as_a_failure() -> None:
    lab = Lab(workers=1)
    request = lab.submit("online")
    [(worker, effect)] = lab.started
    lab.cut = {(worker, lab.peers[0])}
    lab.pass_slowly(LEASE_MS)
    lab.cut = set()
    lab.do(worker, replace(lab._executed(effect), kind="canceled", status="canceled"))
    lab.settle()
    fold = lab.cores[worker].fold(lab.service)
    run = next(iter(fold.runs.values()))
    assert [end.kind for (_, author), end in run.ends.items() if author == worker] == ["infra"]
    assert not lab.is_done(request)


def test_an_exclusive_run_does_not_begin_before_its_lease_is_confirmed() -> None:
    lab = Lab(workers=1)
    deaf = (lab.peers[0], lab.peers[1])
    confirmations: list[ev.FrameReceived] = []
    carry_out = lab._carry_out

    def hold_back(peer: str, effects: list[ef.Effect]) -> None:
        kept = []
        for effect in effects:
            match effect:
                case ef.Send() if (peer, effect.peer) == deaf and _confirms(effect.data):
                    confirmations.append(ev.FrameReceived(peer, effect.data))
                case _:
                    kept.append(effect)
        carry_out(peer, kept)

    lab._carry_out = hold_back  # type: ignore[method-assign]
    lab.submit("online")
    assert lab.started == []
    assert confirmations
    lab.do(lab.peers[1], confirmations[0])
    assert len(lab.started) == 1


def _confirms(data: bytes) -> bool:
    return isinstance(MESSAGES.decode(data), Renewed)


def test_another_run_waits_for_no_confirmation_and_outlives_its_lease() -> None:
    lab = Lab(workers=1)
    lab.submit("plain")
    [(worker, _)] = lab.started
    lab.cut = {(worker, lab.peers[0]), (lab.peers[0], worker)}
    lab.pass_slowly(2 * LEASE_MS)
    assert lab.killed == []


def test_a_machine_that_slept_through_the_lease_ends_the_run_when_it_wakes() -> None:
    lab = Lab(workers=1)
    lab.submit("online")
    [(worker, effect)] = lab.started
    lab.now_ms += LEASE_MS
    lab.do(worker, ev.Woke(LEASE_MS))
    assert lab.killed == [effect.attempt]


def test_a_lease_counts_from_when_its_renewal_was_asked_for() -> None:
    lease = Lease()
    first, second = lease.ask(1000), lease.ask(4000)
    assert not lease.holds({"a"}, 1000)
    assert lease.on_renewed("a", first, 10_000)
    assert lease.due_ms({"a"}) == 11_000 - EXCLUSIVE_MARGIN_MS
    assert lease.on_renewed("a", second, 10_000)
    assert not lease.on_renewed("a", first, 10_000), "an older word shortens nothing"
    assert lease.due_ms({"a"}) == 14_000 - EXCLUSIVE_MARGIN_MS
    assert not lease.on_renewed("a", 99, 10_000), "nobody asked for that"


def test_of_several_coordinators_the_first_lease_that_ends_counts() -> None:
    lease = Lease()
    lease.on_renewed("a", lease.ask(1000), 10_000)
    assert not lease.holds({"a", "b"}, 1000)
    lease.on_renewed("b", lease.ask(3000), 5000)
    assert lease.due_ms({"a", "b"}) == 8000 - EXCLUSIVE_MARGIN_MS
    assert lease.due_ms({"a"}) == 11_000 - EXCLUSIVE_MARGIN_MS


def test_the_plain_app_is_as_it_was() -> None:
    """What is not used leaves no trace in a document: ids stay."""
    app = validate_app(APP)
    assert set(app["processors"][0]) == {
        *("name", "description", "label", "image", "executable"),
        *("inputs", "outputs", "parameters", "attributes"),
    }
    assert CoreConfig(boot=b"", started_unix_ms=0).allow_network == ()
