"""Content that is gone: who holds what, hits that are none, inputs that are computed again."""

from pairio_protocol import events as ev
from pairio_protocol.core import NodeCore
from tests.protocol.test_core_sim import RESOURCES, World, definition


def _core(world: World, index: int) -> NodeCore:
    return world.cores[world.peers[index]]


def _service(core: NodeCore) -> str:
    return core.membership.find("lab") or ""


def test_a_node_that_dropped_content_does_not_count_as_its_holder() -> None:
    world = World(2).with_service()
    world.call(world.peers[0], ev.Submit(10, "lab", definition("write"), RESOURCES))
    core = _core(world, 0)
    (result,) = core.fold(_service(core)).results
    assert core.replication.is_safe(result)
    world.do(world.peers[0], ev.ContentDropped(_service(core), (result, "unknown")))
    assert not core.replication.is_safe(result)


def test_copies_that_are_being_made_are_not_counted_here_any_more_once_they_are_dropped() -> None:
    world = World(1).with_service()
    world.call(world.peers[0], ev.Submit(10, "lab", definition("write"), RESOURCES))
    core = _core(world, 0)
    (copies,) = core.replication.copies.values()
    assert copies.holders == {core.ctx.me}
    world.do(world.peers[0], ev.ContentDropped(_service(core), (copies.key,)))
    assert not copies.holders and not copies.have_blocks
