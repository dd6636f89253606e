"""Looking results up by id at members, for whoever never heard of the job."""

from pairio_protocol import effects as ef
from pairio_protocol import events as ev
from pairio_protocol.fold import ServiceFold
from tests.protocol.test_core_sim import RESOURCES, World, definition


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
