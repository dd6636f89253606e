"""Single things that once ended a node: each is taken, refused or counted now, and it goes on."""

import inspect
import sys
from collections.abc import Sequence
from dataclasses import replace

import pytest

from pairio_protocol import events as ev
from pairio_protocol.cid import RAW, cid_of
from pairio_protocol.core import NodeCore
from pairio_protocol.documents import decode
from pairio_protocol.effects import Effect, Execute, Fail, FetchBlocks, Send
from pairio_protocol.ids import request_id, run_id
from pairio_protocol.limits import (
    DEPENDENCY_DEPTH_MAX,
    FRAME_SIZE_BYTES_MAX,
    HOLDS_SERVED_MAX,
    LEASE_MS,
)
from pairio_protocol.machines.errands import Attempt
from pairio_protocol.messages import (
    MESSAGES,
    Award,
    Beat,
    Decline,
    Have,
    Hold,
    Presence,
    PresenceUpdate,
    Push,
)
from pairio_protocol.normalise import job_id_of
from pairio_protocol.records import Request, Resources, Result, ResultDocument
from pairio_protocol.segment import GENESIS, Segment
from pairio_protocol.signing import SigningKey
from tests.protocol.test_core_sim import RESOURCES, World, definition

ADMIN, VICTIM, MEMBER = (SigningKey(bytes([n]) * 32) for n in (1, 2, 3))


def _world() -> tuple[World, NodeCore, str]:
    world = World(3).with_service()
    core = world.cores[VICTIM.peer]
    return world, core, next(iter(core.membership.taken_up))


def _push(world: World, segment: Segment) -> None:
    data = MESSAGES.encode(Push(segment.encode(), False))
    world.do(VICTIM.peer, ev.FrameReceived(MEMBER.peer, data))


def _own(core: NodeCore, service: str, *records: Request | Result) -> Segment:
    epoch = core.membership.chains[service].epoch
    return Segment.seal(MEMBER, service, bytes(16), 0, epoch, GENESIS, list(records))


def _wish(world: World, resources: Resources = RESOURCES) -> tuple[str, Request]:
    """Return the job id and record of a request that the victim has made."""
    core = world.cores[VICTIM.peer]
    wish = {**definition("write"), "cacheBust": "x"}
    made = world.call(VICTIM.peer, ev.Submit(10, "lab", wish, resources))
    state = next(iter(core.folds.values())).requests[made["request"]]
    return made["job"], state.record


@pytest.mark.parametrize(
    "limit", ["time_ms=x", "time_ms=" + "9" * 5000, "memory_mib=-", "time_ms=²"]
)
def test_a_failure_by_a_limit_that_is_no_number(limit: str) -> None:
    world, core, service = _world()
    job, _ = _wish(world, replace(RESOURCES, gpus=1))  # stays open
    document = ResultDocument(
        service=service, job=job, run=run_id(job, ""), salt="", attempt="a", status="failed",
        error="", outputs={}, console=job, usage={}, code=job, isolation="none", upstream=(),
        worker=MEMBER.peer, started_unix_ms=1, finished_unix_ms=2, limit=limit,
    )  # fmt: skip
    _push(world, _own(core, service, Result(document.sign(MEMBER))))
    world.pass_time(1000)


def test_an_award_whose_attempt_has_a_very_long_name() -> None:
    world, core, service = _world()
    _, record = _wish(world)
    wish = replace(record, mode="skip_cache", definition=record.definition)
    _push(world, _own(core, service, wish))
    name = request_id(service, MEMBER.peer, bytes(16), 0)
    state = core.fold(service).requests[name]
    attempt = f"{MEMBER.peer}/" + "\U0001f4a5" * 14_000
    award = Award(service, name, run_id(state.job, name), attempt, (), 10_000)
    world.do(VICTIM.peer, ev.FrameReceived(MEMBER.peer, MESSAGES.encode(award)))
    world.pass_time(1000)


class Slow(World):
    """Nothing that is executed ends."""

    def _carry_out(self, peer: str, effects: list[Effect]) -> None:
        super()._carry_out(peer, [e for e in effects if not isinstance(e, Execute)])

    def held(self, peer: str, run: str, attempt: str, state: str = "executing") -> None:
        """A worker says to the first node how it holds a run."""
        service = next(iter(self.cores[self.peers[0]].membership.taken_up))
        frame = MESSAGES.encode(Have(service, run, attempt, state))
        self.do(self.peers[0], ev.FrameReceived(peer, frame))
        self.settle()

    def submitted(self, number: int) -> Attempt:
        """Let the first node submit; return the attempt that it gave away."""
        core = self.cores[self.peers[0]]
        wish = {**definition("write"), "cacheBust": str(number)}
        made = self.call(self.peers[0], ev.Submit(100 + number, "lab", wish, RESOURCES))
        errand = core.coordinator.errand_of(made["request"])
        assert errand is not None and errand.attempt is not None
        return errand.attempt


def test_a_run_that_is_held_under_a_very_long_name() -> None:
    world = Slow(2)
    world.with_service()
    coordinator, worker = world.peers
    attempt = world.submitted(1)
    core = world.cores[coordinator]
    run = next(iter(core.coordinator.errands))[1]
    name = attempt.id
    for held in (f"{coordinator}/" + "\U0001f4a5" * 14_000, "", f"{coordinator}/{'0' * 16}/x"):
        world.held(worker, run, held)
    world.held(worker, run, name, "\U0001f4a5" * 14_000)
    assert attempt.id == name
    assert attempt.state == "executing"
    assert core.ctx.counters["refused: a run that is held in no way that there is"] == 4
    world.do(coordinator, ev.PeerDown(worker))
    world.pass_time(LEASE_MS + 1)  # it is written down as lost
    assert core.ctx.counters["leases lost"] == 1


def test_a_worker_that_claims_the_next_attempts_name_takes_nobodys_lease() -> None:
    world = Slow(3)
    world.with_service()
    coordinator = world.peers[0]
    core = world.cores[coordinator]
    first = world.submitted(1)
    run = next(iter(core.coordinator.errands))[1]
    prefix, _, count = first.id.rpartition("/")
    world.held(first.worker, run, f"{prefix}/{int(count) + 1}")
    second = world.submitted(2)
    assert second.id == f"{prefix}/{int(count) + 1}"
    world.held(first.worker, run, f"{prefix}/{int(count) + 100}")
    beat = MESSAGES.encode(Beat(next(iter(core.membership.taken_up)), (second.id,)))
    before = second.deadline_ms
    world.now_ms += 1000
    world.do(coordinator, ev.FrameReceived(second.worker, beat))
    assert second.deadline_ms == before + 1000


def test_of_a_decline_only_words_are_kept() -> None:
    world = Slow(2)
    world.with_service()
    coordinator, worker = world.peers
    attempt = world.submitted(1)
    core = world.cores[coordinator]
    (key,) = core.coordinator.errands
    decline = Decline(key[0], key[1], attempt.id, *("x" * 16_000,) * 3)
    world.do(coordinator, ev.FrameReceived(worker, MESSAGES.encode(decline)))
    _, kept = core.coordinator.errands[key].declined[worker]
    assert (len(kept.reason), len(kept.needs), len(kept.has)) == (500, 500, 500)


def test_holds_are_bounded_for_one_member_and_name_members_only() -> None:
    world, core, service = _world()
    fetches: list[FetchBlocks] = []
    for number in range(HOLDS_SERVED_MAX // 2 + 10):
        hold = Hold(
            service, f"{number}", (service,), (ADMIN.peer, "x", SigningKey(bytes(32)).peer), b""
        )
        frame = ev.FrameReceived(MEMBER.peer, MESSAGES.encode(hold))
        effects = core.handle(frame, world.now_ms, world.now_ms)
        fetches += [effect for effect in effects if isinstance(effect, FetchBlocks)]
    assert len(fetches) == HOLDS_SERVED_MAX // 2
    assert {fetch.holders for fetch in fetches} == {(MEMBER.peer, ADMIN.peer)}
    assert core.ctx.counters["holds beyond what is served at once"] == 10
    long = Hold(service, "x" * 1000, (service,), (), b"")
    core.handle(ev.FrameReceived(ADMIN.peer, MESSAGES.encode(long)), world.now_ms, world.now_ms)
    assert core.ctx.counters["refused: a hold with a long name"] == 1


class Writing(World):
    """Jobs leave further outputs."""

    others: Sequence[str] = ()
    says = ""

    def _executed(self, effect: Execute) -> ev.Executed:  # type: ignore[override]
        done = World._executed(effect)
        more = {f"other/{name}": (cid_of(RAW, b"x"), 1, name) for name in self.others}
        return replace(done, outputs={**done.outputs, **more}, error=self.says)


@pytest.mark.parametrize(
    ("others", "status", "error"),
    [
        ([f"{n}" for n in range(100)], "completed", ""),
        ([f"{n}" + "x" * 180 for n in range(300)], "failed", "make fewer, or a folder of them"),
        (["\udcff"], "failed", "a lone surrogate"),
    ],
)
def test_a_job_whose_outputs_no_record_could_name(
    others: list[str], status: str, error: str
) -> None:
    world = Writing(2)
    world.with_service()
    world.others, world.says = others, "" if status == "completed" else "\udcff"
    wish = {**definition("write"), "cacheBust": "x"}
    made = world.call(world.peers[0], ev.Submit(100, "lab", wish, RESOURCES))
    (fold,) = world.cores[world.peers[0]].folds.values()
    result = fold.result_of(fold.requests[made["request"]])
    assert result is not None
    assert result.document.status == status
    assert error in result.document.error


def test_presence_as_large_as_a_frame_is_not_passed_on_in_a_larger_one() -> None:
    world, core, service = _world()
    entry = Presence(
        service, MEMBER.peer, b"b" * 16, 2**50, 1, True, 1000, 1, 0, 1, 0, "none",
        ("/dns4/" + "x" * 15_000,) * 3 + ("y" * 14_000,),
    )  # fmt: skip
    frame = MESSAGES.encode(PresenceUpdate((entry.sign(MEMBER),)))
    assert len(frame) <= FRAME_SIZE_BYTES_MAX
    world.do(VICTIM.peer, ev.FrameReceived(MEMBER.peer, frame))
    core.handle(ev.PeerDown(ADMIN.peer), world.now_ms)
    sent = core.handle(ev.PeerUp(ADMIN.peer), world.now_ms)
    sizes = [len(e.data) for e in sent if isinstance(e, Send)]
    assert sizes
    assert max(sizes) <= FRAME_SIZE_BYTES_MAX


def test_a_chain_of_jobs_as_long_as_is_allowed_and_longer() -> None:
    world, core, service = _world()
    _, record = _wish(world, replace(RESOURCES, gpus=1))
    fold = core.fold(service)
    document = decode(record.definition, 2**20)
    jobs = [job_id_of(document)]
    for _ in range(DEPENDENCY_DEPTH_MAX + 50):
        source = {"job": jobs[-1], "output": "output"}
        inputs = [{"name": "input", "base_name": "x", "source": source}]
        document = {**document, "processor": "count", "inputs": inputs}
        jobs.append(job_id_of(document))
        fold.define(jobs[-1], document)
    assert fold.resolve(jobs[DEPENDENCY_DEPTH_MAX]).waits_for == (jobs[DEPENDENCY_DEPTH_MAX - 1],)
    assert fold.resolve(jobs[-1]).blocked_by == jobs[-2]


def test_a_long_chain_whose_results_are_known_already_is_answered() -> None:
    """One result lets the next job go on, whose result is known too, and so on."""
    world = World(1).with_service()
    me = world.peers[0]
    core = world.cores[me]
    service = next(iter(core.membership.taken_up))
    core.coordinator.award_open = lambda: None  # type: ignore[method-assign]
    job = world.call(me, ev.Submit(10, "lab", definition("write"), RESOURCES))["job"]
    jobs, output = [job], cid_of(RAW, b"output")
    for number in range(150):
        wish = definition("count", {"input": f"job:{jobs[-1]}/output"})
        jobs.append(world.call(me, ev.Submit(11 + number, "lab", wish, RESOURCES))["job"])
    fold = core.fold(service)
    for job in reversed(jobs):
        document = fold.definitions[job]
        inputs = [{**entry, "source": {"cid": output}} for entry in document["inputs"]]
        resolved = job_id_of({**document, "inputs": inputs})
        result = ResultDocument(
            service=service, job=resolved, run=run_id(resolved, ""), salt="", attempt="a",
            status="completed", error="", outputs={"output": (output, 6, "output")},
            console=output, usage={}, code=output, isolation="none", upstream=(), worker=me,
            started_unix_ms=1, finished_unix_ms=2,
        )  # fmt: skip
        core.append(service, Result(result.sign(ADMIN)))
    usual = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack(0)) + 100)
    try:
        world.do(me, ev.TimePassed())
    finally:
        sys.setrecursionlimit(usual)
    assert all(fold.requests[fold.by_job[job][0]].answer for job in jobs)


def test_a_request_that_no_segment_could_hold_is_answered_in_words() -> None:
    world, _, service = _world()
    wish = ev.Submit(10, service, definition("write"), RESOURCES, tags=("x" * 16_000,) * 4)
    world.do(VICTIM.peer, wish)
    world.settle()
    answer = world.answers[10]
    assert isinstance(answer, Fail)
    assert "bytes; at most" in answer.message


def test_a_request_that_asks_for_anothers_job_leaves_out_what_makes_it_too_large() -> None:
    world, core, service = _world()
    _, record = _wish(world, replace(RESOURCES, gpus=1))
    state = next(iter(core.fold(service).requests.values()))
    document = {**state.document, "cache_bust": "y"}
    parameters = [{"name": "name", "value": "x" * 30_000}]
    document = {**document, "parameters": parameters}
    core.fold(service).define(job_id_of(document), document)
    large = replace(state, record=replace(record, tags=("x" * 10_000,) * 3))
    core.want(service, (job_id_of(document),), large, False)
    assert core.seal(world.now_ms) is not None
