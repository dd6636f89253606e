"""Looking results up by id at members, for whoever never heard of the job."""

from typing import Any

from pairio_protocol import effects as ef
from pairio_protocol import events as ev
from pairio_protocol.documents import encode
from pairio_protocol.fold import ServiceFold
from pairio_protocol.ids import request_id
from pairio_protocol.normalise import normalise
from pairio_protocol.records import Cancel, Request
from pairio_protocol.segment import Segment
from pairio_protocol.signing import SigningKey
from tests.protocol.test_core_sim import RESOURCES, World, definition

WORKER = SigningKey(bytes([2]) * 32)  # the second node of every world


class WithoutSync(World):
    """Nodes that never compare their logs, as if there were no time for it yet."""

    is_silent = False

    def _carry_out(self, peer: str, effects: list[ef.Effect]) -> None:
        def is_heard(effect: ef.Effect) -> bool:
            return not (self.is_silent and isinstance(effect, ef.Send) and effect.channel == "sync")

        super()._carry_out(peer, [effect for effect in effects if is_heard(effect)])


def _apart() -> tuple[WithoutSync, str, str]:
    """A job was done while the third node was away; it is back, and has not compared."""
    world = WithoutSync(3)
    world.with_service()
    first, second, third = world.peers
    world.is_silent = True
    for peer in (first, second):
        world.do(peer, ev.PeerDown(third))
        world.do(third, ev.PeerDown(peer))
    world.settle()
    made = world.call(first, ev.Submit(5, "lab", definition("write"), RESOURCES))
    world.settle()
    for peer in (first, second):
        world.connect(peer, third)
    return world, third, made["job"]


def _fold(world: World, peer: str) -> ServiceFold:
    core = world.cores[peer]
    [service] = core.membership.taken_up
    return core.fold(service)


def test_a_job_that_is_not_known_is_found_by_its_id_and_its_request_by_the_result() -> None:
    world, third, job = _apart()
    fold = _fold(world, third)
    assert not fold.has_results(job)
    world.call(third, ev.LookFor(6, "lab", job))
    [result] = fold.results_for(job)
    assert job not in fold.by_job
    world.call(third, ev.LookFor(7, "lab", result.cid))
    [request] = fold.by_job[job]
    assert fold.requests[request].segment
    assert world.refused == []


def test_what_nobody_has_is_answered_all_the_same() -> None:
    world, third, job = _apart()
    unknown = job[:-4] + "aaaa"
    assert world.call(third, ev.LookFor(6, "lab", unknown))
    assert not _fold(world, third).has_results(unknown)


def test_a_service_that_is_not_here_is_said() -> None:
    world, third, job = _apart()
    world.do(third, ev.LookFor(6, "nix", job))
    answer = world.answers[6]
    assert isinstance(answer, ef.Fail)
    assert "no service 'nix'" in answer.message


def test_with_nobody_connected_it_is_answered_at_once() -> None:
    world = World(1).with_service()
    assert world.call(world.peers[0], ev.LookFor(6, "lab", "bafyx"))


def _forked(world: World) -> tuple[Segment, Segment]:
    """Two first segments that the second node signed for one log."""
    first = world.peers[0]
    core = world.cores[first]
    [service] = core.membership.taken_up
    epoch, boot = core.membership.chains[service].epoch, b"\7" * 16
    return tuple(  # type: ignore[return-value]
        Segment.seal(WORKER, service, boot, 0, epoch, bytes(32), [Cancel((name,), 1)])
        for name in ("a", "b")
    )


def _import(world: World, **what: Any) -> Any:
    return world.call(world.peers[0], ev.ImportEvidence(6, "lab", **what))["refused"]


def test_what_came_in_a_file_counts_until_its_log_is_known_to_be_forked() -> None:
    world = World(3).with_service()
    one, other = _forked(world)
    data, rival = one.encode(), other.encode()
    core = world.cores[world.peers[0]]
    assert _import(world, segments=(data,)) == {}
    assert core.intake.holds(one.hash)
    _import(world, forks=((data, rival),))
    assert not core.logs.logs_of(one.service)[one.log].counting()
    for segment in (data, rival):
        assert "two different segments" in _import(world, segments=(segment,))["0"]


def test_a_segment_that_contradicts_a_log_that_is_held_is_a_fork_and_does_not_count() -> None:
    world = World(3).with_service()
    one, other = _forked(world)
    core = world.cores[world.peers[0]]
    assert _import(world, segments=(one.encode(),)) == {}
    assert "two different segments" in _import(world, segments=(other.encode(),))["0"]
    assert not core.intake.holds(other.hash)
    assert not core.logs.logs_of(one.service)[one.log].counting()


def test_a_segment_that_stands_alone_is_void_too_once_its_log_is_known_to_be_forked() -> None:
    world = World(3).with_service()
    one, other = _forked(world)
    core, service = world.cores[world.peers[0]], one.service
    app = core.membership.folded(service).apps["hello"]
    job = encode(normalise(definition("write"), app))
    request = Request(job, "use", "", RESOURCES, "", (), "", 0, (), 1, 2**40, 1)
    later = Segment.seal(WORKER, service, one.log.boot, 1, one.epoch, one.hash, [request])
    assert _import(world, segments=(later.encode(),)) == {}
    name = request_id(service, later.log.author, later.log.boot, 1)
    assert name in core.fold(service).requests
    _import(world, forks=((one.encode(), other.encode()),))
    assert name not in core.fold(service).requests
    assert "two different segments" in _import(world, segments=(later.encode(),))["0"]


def test_what_is_no_segment_of_a_member_is_refused_in_words() -> None:
    world = World(2).with_service()
    first = world.peers[0]
    [service] = world.cores[first].membership.taken_up
    epoch = world.cores[first].membership.chains[service].epoch
    log = (b"\7" * 16, 0)
    stranger = SigningKey(b"\x99" * 32)
    made = [
        Segment.seal(stranger, service, *log, epoch, bytes(32), [Cancel(("a",), 1)]).encode(),
        Segment.seal(WORKER, service, *log, epoch + 9, bytes(32), [Cancel(("a",), 1)]).encode(),
        Segment.seal(WORKER, "bafyx", *log, epoch, bytes(32), [Cancel(("a",), 1)]).encode(),
        b"garbage",
    ]
    refused = _import(world, segments=tuple(made))
    words = [refused[str(n)] for n in range(4)]
    for found, said in zip(
        words, ("no member", "not here", "not taken up", "msgpack"), strict=True
    ):
        assert said in found
