"""Single things that once ended a node: each is taken, refused or counted now, and it goes on."""

import inspect
import sys
from dataclasses import replace

import pytest

from pairio_protocol import events as ev
from pairio_protocol.cid import RAW, cid_of
from pairio_protocol.core import NodeCore
from pairio_protocol.documents import decode
from pairio_protocol.effects import Fail, Send
from pairio_protocol.ids import request_id, run_id
from pairio_protocol.limits import DEPENDENCY_DEPTH_MAX, FRAME_SIZE_BYTES_MAX
from pairio_protocol.messages import MESSAGES, Award, Presence, PresenceUpdate, Push
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
