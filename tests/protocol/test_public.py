"""Public services: strangers ask, members sponsor, and members notice nothing."""

from dataclasses import replace
from typing import Any

import pytest

from pairio_protocol import effects as ef
from pairio_protocol import events as ev
from pairio_protocol.apps import validate_app
from pairio_protocol.documents import encode
from pairio_protocol.errors import DecodeError
from pairio_protocol.intake import Intake
from pairio_protocol.limits import (
    ASK_GIVE_UP_MS,
    ASKS_PER_SECOND_EACH,
    GUEST_EXPIRY_MS,
)
from pairio_protocol.links import Link, LinkPeer
from pairio_protocol.messages import MESSAGES, Ask, Asked, AskNoMore, Lookup, Push, WantChanges
from pairio_protocol.normalise import normalise
from pairio_protocol.open_submit import GUESTS, OpenSubmit, why_not_sponsored
from pairio_protocol.records import RECORDS, Request, Resources
from pairio_protocol.signing import SigningKey
from tests.protocol.test_core_sim import APP as RAW_APP
from tests.protocol.test_core_sim import definition
from tests.protocol.test_joining import Strangers

LIMITS = OpenSubmit(
    requests_per_hour=3,
    open_max=2,
    all_per_hour=6,
    all_open_max=4,
    cpu_millicores=1000,
    memory_mib=1024,
    gpus=0,
    time_ms=60_000,
)
APP = validate_app(RAW_APP)
SMALL = Resources(1000, 1024, 0, 60_000)


def named(name: str) -> dict[str, Any]:
    return {**definition("write"), "parameters": [{"name": "name", "value": name}]}


class Public(Strangers):
    """An admin that computes not, a worker; and strangers, of whom the first is connected to the
    admin. `slow` runs end when a test says so."""

    def __init__(self, strangers: int = 1, slow: bool = False) -> None:
        super().__init__(2 + strangers)
        self.admin, self.worker, *self.strangers = self.peers
        self.slow = slow
        self.running: dict[str, tuple[str, ef.Execute]] = {}
        self.killed: list[str] = []
        self.reads: list[ef.GuestReads] = []
        self.sent: list[tuple[str, str, Any]] = []
        core = self.cores[self.worker]
        core.ctx.config = replace(core.ctx.config, trust=(self.admin,), cpu_millicores=1000)
        core = self.cores[self.admin]
        core.ctx.config = replace(core.ctx.config, compute=False)
        self.connect(self.admin, self.worker)
        self.service = self.create(self.admin)
        self.ask(self.admin, ev.Grant, "lab", self.worker, ("compute",), "worker")
        self.pass_time(2500)

    def _carry_out(self, peer: str, effects: list[ef.Effect]) -> None:
        kept: list[ef.Effect] = []
        for effect in effects:
            match effect:
                case ef.Execute() if self.slow:
                    self.running[effect.attempt] = (peer, effect)
                    continue
                case ef.Kill():
                    self.killed.append(effect.attempt)
                    self.queue.append(
                        (peer, ev.Executed(effect.attempt, "canceled", "", "", {}, "", {}, ""))
                    )
                    self.running.pop(effect.attempt, None)
                case ef.GuestReads():
                    self.reads.append(effect)
                case ef.Send():
                    self.sent.append((peer, effect.peer, MESSAGES.decode(effect.data)))
            kept.append(effect)
        super()._carry_out(peer, kept)

    def finish(self, attempt: str) -> None:
        peer, effect = self.running.pop(attempt)
        self.do(peer, self._executed(effect))
        self.settle()

    def make_public(self, limits: OpenSubmit | None = LIMITS) -> "Public":
        plain = limits.document() if limits is not None else None
        self.ask(self.admin, ev.SetPublic, "lab", plain)
        self.settle()
        return self

    def follow(self, stranger: str, *by: str) -> None:
        peers = tuple(LinkPeer(p, (f"/ip4/192.0.2.1/tcp/1/p2p/{p}",)) for p in by or (self.admin,))
        link = Link("public", self.service, "lab", peers)
        for peer in by or (self.admin,):
            self.connect(peer, stranger)
        self.ask(stranger, ev.JoinService, link, "", ())

    def submit(self, peer: str, name: str, resources: Resources = SMALL, **more: Any) -> Any:
        self.number += 1
        self.do(peer, ev.Submit(self.number, self.service, named(name), resources, **more))
        self.settle()
        return self.answers.get(self.number)

    def raw_ask(self, stranger: str, name: str, number: str, **changes: Any) -> Asked:
        """What a stranger who keeps to no rule is answered."""
        document = encode(normalise(named(name), APP))
        fields = {"definition": document, "resources": SMALL, "tags": (), **changes}
        ask = Ask(self.service, number, **fields)
        before = len(self.sent)
        self.do(self.admin, ev.FrameReceived(stranger, MESSAGES.encode(ask)))
        self.settle()
        sent = self.sent[before:]
        return next(m for _, to, m in sent if to == stranger and isinstance(m, Asked))

    def state(self, stranger: str, answer: Any) -> Any:
        return self.cores[stranger].folds[self.service].requests[answer.value["request"]]

    def requests(self) -> list[Any]:
        return [s for s in self.cores[self.admin].fold(self.service).requests.values()
                if not s.cached]  # fmt: skip


def test_a_stranger_has_a_job_done_and_knows_nothing_else() -> None:
    world = Public().make_public()
    stranger = world.strangers[0]
    world.submit(world.admin, "secret of a member")
    world.follow(stranger)
    core = world.cores[stranger]
    assert core.guests.is_known(world.service)
    assert not core.membership.taken_up and not world.topics & {(stranger, world.service)}
    answer = world.submit(stranger, "Ada")
    assert isinstance(answer, ef.Reply), answer
    state = world.state(stranger, answer)
    result = core.fold(world.service).result_of(state)
    assert result is not None and result.document.worker == world.worker
    (sponsored,) = [s for s in world.requests() if s.record.sponsor_of]
    assert sponsored.record.sponsor_of == stranger and sponsored.author == world.admin
    outputs = tuple(cid for cid, _, _ in result.document.outputs.values())
    assert world.reads == [
        ef.GuestReads(stranger, world.service, (*outputs, result.document.console))
    ]
    kinds = {type(m).__name__ for _, to, m in world.sent if to == stranger}
    assert kinds == {"Hello", "Changes", "Asked"}  # no segment, no presence, no digest
    assert core.book.everybody(world.service) == []


def test_a_job_that_is_known_costs_a_stranger_nothing_and_runs_no_more() -> None:
    world = Public().make_public()
    stranger = world.strangers[0]
    world.submit(world.admin, "Ada")
    world.follow(stranger)
    for _ in range(5):  # more than its requests of an hour
        answer = world.submit(stranger, "Ada")
        assert world.state(stranger, answer).cached
    assert len(world.executed) == 1 and len(world.requests()) == 1


def test_a_service_that_is_not_public_shows_and_does_nothing() -> None:
    world = Public()
    stranger = world.strangers[0]
    world.follow(stranger)
    assert world.cores[stranger].guests.refused == {world.service: "not_public"}
    assert world.service not in world.cores[stranger].membership.chains
    world.do(world.admin, ev.FrameReceived(
        stranger, MESSAGES.encode(WantChanges(world.service, 0, ""))))  # fmt: skip
    assert world.raw_ask(stranger, "Ada", "1").code == "not_public"
    fail = world.submit(stranger, "Ada")
    assert isinstance(fail, ef.Fail)
    assert world.requests() == []
    assert not [m for _, to, m in world.sent if to == stranger and type(m).__name__ == "Changes"]


def test_made_private_again_it_withdraws_what_strangers_asked_for() -> None:
    world = Public(slow=True).make_public()
    stranger = world.strangers[0]
    world.follow(stranger)
    answer = world.submit(stranger, "Ada")
    (attempt,) = world.running
    world.make_public(None)
    assert world.killed == [attempt]
    assert [s.canceled for s in world.requests()] == [True]
    assert world.raw_ask(stranger, "Bea", "x").code == "not_public"
    world.pass_time(ASK_GIVE_UP_MS)
    assert not world.state(stranger, answer).answer


@pytest.mark.parametrize(
    ("code", "changes"),
    [
        ("limits", {"resources": replace(SMALL, cpu_millicores=1001)}),
        ("limits", {"resources": replace(SMALL, memory_mib=1025)}),
        ("limits", {"resources": replace(SMALL, gpus=1)}),
        ("limits", {"resources": replace(SMALL, time_ms=60_001)}),
        ("definition", {"definition": b"no document"}),
        ("definition", {"definition": encode({**normalise(named("x"), APP), "app": "other"})}),
        ("definition", {"definition": encode({**normalise(named("x"), APP), "parameters": []})}),
    ],
)
def test_what_goes_beyond_a_limit_is_refused_and_counted(code: str, changes: Any) -> None:
    world = Public().make_public()
    world.connect(world.admin, world.strangers[0])
    assert world.raw_ask(world.strangers[0], "Ada", "1", **changes).code == code
    counted = world.cores[world.admin].ctx.counters[f"refused: a stranger's ask: {code}"]
    assert counted == 1 and world.requests() == []


def test_what_guests_have_open_in_one_service_takes_no_place_in_another() -> None:
    world = Public(slow=True).make_public()
    stranger = world.strangers[0]
    world.connect(world.admin, stranger)
    for number in range(LIMITS.open_max):
        assert world.raw_ask(stranger, f"job {number}", f"{number}").state == "waits"
    assert world.raw_ask(stranger, "one more", "more").code == "open"
    world.service = world.ask(world.admin, ev.CreateService, "fair", "01")["service"]
    world.ask(world.admin, ev.InstallApp, "fair", RAW_APP)
    one = replace(LIMITS, open_max=1, all_open_max=1)
    world.ask(world.admin, ev.SetPublic, "fair", one.document())
    assert world.raw_ask(stranger, "there", "there").state == "waits"
    assert world.raw_ask(stranger, "there too", "too").code == "open"


def test_content_that_may_be_a_members_own_is_no_input_of_a_stranger() -> None:
    world = Public().make_public()
    stranger = world.strangers[0]
    world.follow(stranger)
    given = world.submit(world.admin, "Ada").value["job"]
    for url in (
        f"job:{given}/output",
        "bafkreifzjut3te7nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e",
    ):
        asked = {**definition("count", {"input": url}), "outputFiles": [{"name": "output"}]}
        world.number += 1
        world.do(stranger, ev.Submit(world.number, world.service, asked, SMALL))
        assert isinstance(world.answers[world.number], ef.Fail)
        document = encode(normalise(asked, APP))
        code = world.raw_ask(stranger, "x", url, definition=document).code
        assert code == "inputs"


def test_one_stranger_has_so_many_jobs_an_hour_and_at_once() -> None:
    world = Public(slow=True).make_public()
    stranger = world.strangers[0]
    world.connect(world.admin, stranger)
    codes = [world.raw_ask(stranger, str(n), str(n)).code for n in range(4)]
    assert codes == ["", "", "open", "open"]
    for _ in range(2):
        world.pass_time(2000)
        world.finish(next(iter(world.running)))
    world.pass_time(2000)
    assert len(world.requests()) == 2
    codes = [world.raw_ask(stranger, f"more {n}", f"m{n}").code for n in range(3)]
    assert codes == ["", "per_hour", "per_hour"]
    world.pass_time(3_600_000)
    assert world.raw_ask(stranger, "later", "later").code == ""


def test_many_keys_have_no_more_than_all_strangers_together() -> None:
    world = Public(strangers=8, slow=True).make_public()
    for stranger in world.strangers:
        world.connect(world.admin, stranger)
    codes = [world.raw_ask(s, s, "1").code for s in world.strangers]
    assert codes == ["", "", "", "", "all_open", "all_open", "all_open", "all_open"]


def test_more_asks_in_a_second_than_are_looked_at_are_refused() -> None:
    world = Public().make_public()
    stranger = world.strangers[0]
    world.connect(world.admin, stranger)
    codes = [world.raw_ask(stranger, "x", str(n), definition=b"?").code for n in range(1000)]
    assert codes.count("definition") == ASKS_PER_SECOND_EACH
    assert codes.count("busy") == 1000 - ASKS_PER_SECOND_EACH
    sponsors = world.cores[world.admin].sponsors
    assert not sponsors._waiting and not sponsors._open


def test_a_guests_run_gives_way_to_a_members_and_goes_on_after() -> None:
    world = Public(slow=True).make_public()
    stranger = world.strangers[0]
    world.follow(stranger)
    world.submit(stranger, "guest")
    (guest,) = world.running
    world.submit(world.admin, "member")
    assert world.killed == [guest]
    (member,) = world.running
    assert world.running[member][1].document["parameters"][0]["value"] == "member"
    world.finish(member)
    world.pass_time(60_000)
    (again,) = world.running
    assert world.running[again][1].document["parameters"][0]["value"] == "guest"
    world.finish(again)
    assert [bool(s.canceled) for s in world.requests()] == [False, False]
    assert world.cores[stranger].guests.jobs == {}


def test_a_guests_run_that_a_member_wants_too_is_a_members() -> None:
    world = Public(slow=True).make_public()
    world.follow(world.strangers[0])
    world.submit(world.strangers[0], "same")
    world.submit(world.admin, "same")
    world.submit(world.admin, "other")
    assert world.killed == []


def test_guests_share_one_place_and_are_no_load() -> None:
    world = Public(strangers=2, slow=True).make_public()
    for stranger in world.strangers:
        world.follow(stranger)
        world.submit(stranger, stranger)
    worker = world.cores[world.worker].worker
    assert [task.submitter for task in worker.tasks.values()] == [GUESTS]
    assert worker.load == 0 and world.cores[world.worker].is_idle()


def test_a_worker_whose_owner_wants_no_guests_runs_nothing_for_them() -> None:
    world = Public(slow=True).make_public()
    core = world.cores[world.worker]
    core.ctx.config = replace(core.ctx.config, guests=False)
    world.follow(world.strangers[0])
    world.submit(world.strangers[0], "guest")
    assert world.running == {}
    world.submit(world.admin, "member")
    assert len(world.running) == 1


def test_a_guest_withdraws_and_its_sponsor_cancels() -> None:
    world = Public(slow=True).make_public()
    stranger = world.strangers[0]
    world.follow(stranger)
    answer = world.submit(stranger, "Ada")
    name = answer.value["request"]
    assert world.ask(stranger, ev.CancelRequests, world.service, (name,))["canceled"] == [name]
    assert [s.canceled for s in world.requests()] == [True]
    assert len(world.killed) == 1


def test_what_two_strangers_want_is_not_withdrawn_by_one() -> None:
    world = Public(strangers=2, slow=True).make_public()
    answers = []
    for stranger in world.strangers:
        world.follow(stranger)
        answers.append(world.submit(stranger, "Ada"))
    assert len(world.requests()) == 1
    name = answers[0].value["request"]
    world.ask(world.strangers[0], ev.CancelRequests, world.service, (name,))
    world.finish(next(iter(world.running)))
    assert world.state(world.strangers[1], answers[1]).answer


def test_another_sponsor_finds_the_result_when_the_first_is_gone() -> None:
    world = Public(slow=True).make_public()
    stranger = world.strangers[0]
    world.ask(world.admin, ev.Grant, "lab", "worker", ("submit",), "")
    world.follow(stranger, world.admin, world.worker)
    answer = world.submit(stranger, "Ada")
    sponsor = world.cores[stranger].guests.jobs[answer.value["request"]].sponsor
    other = ({world.admin, world.worker} - {sponsor}).pop()
    world.cut(stranger, sponsor)
    assert world.cores[stranger].guests.jobs[answer.value["request"]].sponsor == other
    assert len(world.running) == 1
    world.finish(next(iter(world.running)))
    assert world.state(stranger, answer).answer
    world.pass_time(60_000)
    assert world.running == {}


def test_without_a_sponsor_a_guest_is_told_in_words() -> None:
    world = Public().make_public()
    stranger = world.strangers[0]
    world.follow(stranger)
    world.cut(stranger, world.admin)
    assert world.submit(stranger, "Ada") is None
    world.pass_time(ASK_GIVE_UP_MS)
    fail = world.answers[world.number]
    assert isinstance(fail, ef.Fail) and "none is connected" in fail.message


def test_a_sponsor_that_may_submit_no_more_hands_its_guests_on() -> None:
    world = Public(slow=True).make_public()
    stranger = world.strangers[0]
    world.ask(world.admin, ev.Grant, "lab", "worker", ("submit",), "")
    world.follow(stranger, world.admin, world.worker)
    world.cut(stranger, world.admin)
    answer = world.submit(stranger, "Ada")
    job = world.cores[stranger].guests.jobs[answer.value["request"]]
    assert job.sponsor == world.worker
    world.connect(stranger, world.admin)
    world.do(world.admin, ev.Revoke(500, "lab", "worker", ("submit",)))
    for _ in range(5):
        world.pass_time(1000)
    assert job.sponsor == world.admin and job.accepted


def test_who_waits_for_what_an_admin_cancels_is_told() -> None:
    world = Public(slow=True).make_public()
    stranger = world.strangers[0]
    world.follow(stranger)
    answer = world.submit(stranger, "Ada")
    (sponsored,) = world.requests()
    world.ask(world.admin, ev.CancelRequests, "lab", (sponsored.id,))
    assert world.cores[stranger].guests.over[answer.value["request"]] == "canceled"


def test_one_of_a_links_peers_who_shows_nothing_is_not_the_last_word() -> None:
    world = Public(strangers=2).make_public()
    stranger, other = world.strangers
    world.follow(stranger, world.admin, other)
    assert world.cores[stranger].guests.is_known(world.service)
    world.cores[stranger].guests.leave(world.service)
    world.cut(stranger, world.admin)
    peers = tuple(LinkPeer(p, ()) for p in (world.admin, other))
    link = Link("public", world.service, "lab", peers)
    world.ask(stranger, ev.JoinService, link, "", ())
    assert world.cores[stranger].guests.refused == {}
    world.connect(stranger, world.admin)
    assert world.cores[stranger].guests.is_known(world.service)


def test_a_forged_result_is_refused_and_another_sponsor_asked() -> None:
    world = Public(slow=True).make_public()
    stranger = world.strangers[0]
    world.follow(stranger)
    answer = world.submit(stranger, "Ada")
    name = answer.value["request"]
    peer, effect = next(iter(world.running.values()))
    core = world.cores[world.worker]
    liar = SigningKey(b"l" * 32)
    document = replace(
        result_of(world, effect), worker=liar.peer
    ).sign(liar)  # fmt: skip
    forged = Asked(world.service, name, "done", "", document)
    world.do(stranger, ev.FrameReceived(world.admin, MESSAGES.encode(forged)))
    assert world.state(stranger, answer).answer is None
    assert any("no worker" in refusal.reason for refusal in world.refused)
    assert core.ctx.me == peer


def result_of(world: Public, effect: ef.Execute) -> Any:
    from pairio_protocol.records import ResultDocument

    done = world._executed(effect)
    return ResultDocument(
        service=world.service,
        job=effect.job,
        run=effect.run,
        salt="",
        attempt=effect.attempt,
        status="completed",
        error="",
        outputs=done.outputs,
        console=done.console,
        usage={},
        code=effect.document["code"],
        isolation="medium",
        upstream=(),
        worker=world.worker,
        started_unix_ms=1,
        finished_unix_ms=2,
    )


def test_a_strangers_job_expires() -> None:
    world = Public(slow=True).make_public()
    stranger = world.strangers[0]
    core = world.cores[world.worker]
    core.ctx.config = replace(core.ctx.config, guests=False)
    world.follow(stranger)
    answer = world.submit(stranger, "Ada")
    world.pass_time(GUEST_EXPIRY_MS + 5000)
    assert world.cores[stranger].guests.over[answer.value["request"]] == "expired"


def test_a_guest_keeps_its_services_over_a_restart_and_may_leave() -> None:
    world = Public().make_public()
    stranger = world.strangers[0]
    world.follow(stranger)
    notes = tuple(world.cores[stranger].guests.services.items())
    core = world.cores[stranger]
    core.guests.unsaved.clear()
    core.guests.services.clear()
    from pairio_protocol.codec import pack

    peers = [[p.peer, list(p.addresses)] for p in notes[0][1]]
    core.guests.restore(world.service, pack(peers))
    assert tuple(core.guests.services.items()) == notes and core.guests.is_known(world.service)
    world.ask(stranger, ev.LeaveService, world.service)
    assert world.service not in core.membership.chains and not core.guests.services


# -- what every node checks -------------------------------------------------------------------


def sponsored(**changes: Any) -> Request:
    fields: dict[str, Any] = {
        "definition": encode(normalise(named("x"), APP)),
        "mode": "use",
        "salt_of": "",
        "resources": SMALL,
        "isolation_min": "",
        "tags": (),
        "batch": "",
        "priority": 0,
        "targets": (),
        "replicas": 1,
        "expires_unix_ms": 10**12,
        "issued_unix_ms": 1,
        "sponsor_of": SigningKey(b"s" * 32).peer,
    }
    return Request(**{**fields, **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {"resources": replace(SMALL, cpu_millicores=2000)},
        {"mode": "skip_cache"},
        {"isolation_min": "none"},
        {"targets": ("somebody",)},
        {"priority": 1},
        {"sponsor_of": "nobody"},
        {"definition": encode(normalise(definition("count", {"input": f"job:{'b' * 0}bafkreifzjut3te7nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e/output"}), APP))},  # noqa: E501
    ],
)  # fmt: skip
def test_a_sponsored_request_beyond_the_limits_is_void_on_every_node(changes: Any) -> None:
    world = Public().make_public()
    world.cores[world.admin].append(world.service, sponsored(**changes))
    world.do(world.admin, ev.TimePassed())
    world.settle()
    for peer in (world.admin, world.worker):
        assert not world.cores[peer].fold(world.service).requests


def test_a_sponsored_request_of_a_service_that_is_not_public_is_void() -> None:
    world = Public()
    world.cores[world.admin].append(world.service, sponsored())
    world.do(world.admin, ev.TimePassed())
    world.settle()
    assert not world.cores[world.worker].fold(world.service).requests
    folded = world.cores[world.admin].membership.folded(world.service)
    assert why_not_sponsored(sponsored(), normalise(named("x"), APP), folded)
    assert Intake is not None


def test_a_request_without_a_sponsored_stranger_has_the_bytes_it_always_had() -> None:
    plain = RECORDS.to_plain(sponsored(sponsor_of=""))
    assert len(plain) == 13 and RECORDS.from_plain(plain) == sponsored(sponsor_of="")
    with pytest.raises(DecodeError, match="default"):
        RECORDS.from_plain([*plain, ""])


def test_a_policy_with_other_limits_than_there_are_is_no_policy() -> None:
    for changes in ({"open_max": 0}, {"time_ms": True}, {"all_per_hour": 10**9}, {"more": 1}):
        with pytest.raises(DecodeError):
            OpenSubmit.parse({**LIMITS.document(), **changes})
    world = Public()
    fail = world.fails(world.admin, ev.SetPublic, "lab", {**LIMITS.document(), "gpus": -1})
    assert "gpus" in fail.message


def test_a_stranger_is_answered_none_of_the_messages_of_members() -> None:
    world = Public().make_public()
    stranger = world.strangers[0]
    world.follow(stranger)
    before = len(world.sent)
    for message in (
        Lookup(world.service, 1, ("x",)),
        Push(b"?", True),
        AskNoMore(world.service, "?"),
    ):
        world.do(world.admin, ev.FrameReceived(stranger, MESSAGES.encode(message)))
    assert not [m for _, to, m in world.sent[before:] if to == stranger]
