"""A node whose block store has no room takes no job, says why, and takes jobs again with room."""

from pairio_protocol import events as ev
from pairio_protocol.core import NodeCore
from tests.protocol.test_core_sim import RESOURCES, World, definition

FULL = ev.StorageRoom("5 MB free", "1 MB free; 99 MB of 100 MB are protected")


def _open(world: World) -> tuple[NodeCore, str]:
    """Submit a job that no node takes; return its submitter's core and the request."""
    for peer in world.peers[1:]:
        world.do(peer, FULL)
    core = world.cores[world.peers[0]]
    said = world.call(world.peers[0], ev.Submit(10, "lab", definition("write"), RESOURCES))
    world.settle()
    return core, said["request"]


def test_a_full_node_declines_with_what_it_needs_and_has() -> None:
    world = World(2).with_service()
    core, request = _open(world)
    assert world.executed == []
    errand = core.coordinator.errand_of(request)
    assert errand is not None
    (_, decline) = errand.declined[world.peers[1]]
    assert (decline.reason, decline.needs, decline.has) == ("block store", FULL.need, FULL.have)


def test_the_job_goes_to_a_node_with_room() -> None:
    world = World(3).with_service()
    world.do(world.peers[1], FULL)
    world.call(world.peers[0], ev.Submit(10, "lab", definition("write"), RESOURCES))
    world.pass_time(1500)
    assert [peer for peer, _ in world.executed] == [world.peers[2]]


def test_with_room_again_the_job_is_taken() -> None:
    world = World(2).with_service()
    _open(world)
    world.do(world.peers[1], ev.StorageRoom())
    for _ in range(6):
        world.pass_time(1500)
    assert [peer for peer, _ in world.executed] == [world.peers[1]]
