"""A run goes to the bytes of its inputs, if a node that holds them is free."""

from dataclasses import replace

import pytest

from pairio_protocol import effects as ef
from pairio_protocol import events as ev
from pairio_protocol.cid import RAW, cid_of
from pairio_protocol.limits import HELD_CONTENTS_MAX, HELD_SIZE_BYTES_MIN
from pairio_protocol.machines.holdings import Holdings
from tests.protocol.test_core_sim import RESOURCES, World, definition

DATA = cid_of(RAW, b"200 MB")
MB = 10**6


def _ran_on(world: World, processor: str = "count") -> list[str]:
    return [peer for peer, name in world.executed if name == processor]


def _submit(world: World, call: int, held: tuple[str, ...], size: int, data: str = DATA) -> None:
    job = definition("count", {"input": data})
    world.call(
        world.peers[0],
        ev.Submit(call, "lab", job, RESOURCES, held=((data, size, held),) if held else ()),
    )


@pytest.mark.parametrize("holder", [1, 2, 3])
def test_a_job_with_a_large_input_runs_where_the_input_is(holder: int) -> None:
    world = World(4).with_service()
    _submit(world, 10, (world.peers[holder],), 200 * MB)
    assert _ran_on(world) == [world.peers[holder]]


@pytest.mark.parametrize("holder", [1, 2, 3])
def test_a_small_one_changes_nothing(holder: int) -> None:
    world, other = World(4).with_service(), World(4).with_service()
    _submit(world, 10, (world.peers[holder],), HELD_SIZE_BYTES_MIN - 1)
    _submit(other, 10, (), 0)
    assert _ran_on(world) == _ran_on(other)


def test_of_several_inputs_the_bytes_count() -> None:
    world = World(4).with_service()
    holdings = Holdings()
    holdings.note([(DATA, 5 * MB, (world.peers[1], world.peers[2]))])
    holdings.note([(cid_of(RAW, b"other"), 3 * MB, (world.peers[2],))])
    holdings.note([(cid_of(RAW, b"third"), 7 * MB, (world.peers[3],))])
    fold = next(iter(world.cores[world.peers[0]].folds.values()))
    _submit(world, 10, (), 0)
    resolution = fold.resolve(next(iter(fold.requests.values())).job)
    assert resolution.document is not None
    resolution.document["inputs"].append({"source": {"cid": cid_of(RAW, b"other")}})
    resolution.document["inputs"].append({"source": {"url": "https://example.org/x"}})
    held = holdings.of(resolution, fold)
    assert held == {world.peers[1]: 5 * MB, world.peers[2]: 8 * MB}


def test_a_holder_that_is_busy_is_not_waited_for() -> None:
    world = World(4).with_service()
    holder, core = world.peers[2], world.cores[world.peers[0]]
    everybody = core.book.everybody(next(iter(core.folds)))
    entry = next(e for e in everybody if e.peer == holder)
    for call in range(10, 10 + 2 * entry.slots):  # they begin before any of them ends
        data = cid_of(RAW, str(call).encode())
        job = definition("count", {"input": data})
        held = ((data, 200 * MB, (holder,)),)
        world.do(world.peers[0], ev.Submit(call, "lab", job, RESOURCES, held=held))
    world.settle()
    ran = _ran_on(world)
    assert ran.count(holder) >= entry.slots
    assert ran.count(holder) < 2 * entry.slots, "others were free"


class Large(World):
    """Outputs are large, says whoever makes them."""

    @staticmethod
    def _executed(effect: ef.Execute) -> ev.Executed:
        done = World._executed(effect)
        outputs = {name: (cid, 200 * MB, base) for name, (cid, _, base) in done.outputs.items()}
        return replace(done, outputs=outputs)


def _steps_on_one_node(world: World, name: str) -> bool:
    first = {**definition("write"), "parameters": [{"name": "name", "value": name}]}
    answer = world.call(world.peers[0], ev.Submit(10, "lab", first, RESOURCES))
    second = definition("count", {"input": f"job:{answer['job']}/output"})
    world.call(world.peers[0], ev.Submit(11, "lab", second, RESOURCES))
    return _ran_on(world, "write") == _ran_on(world, "count")


def test_the_next_step_runs_where_the_one_before_made_its_output() -> None:
    names = ("a", "b", "c", "d", "e")
    assert all(_steps_on_one_node(Large(4).with_service(), name) for name in names)
    assert not all(_steps_on_one_node(World(4).with_service(), name) for name in names)


def test_what_is_remembered_is_bounded() -> None:
    holdings = Holdings()
    for n in range(HELD_CONTENTS_MAX + 10):
        holdings.note([(f"cid{n}", HELD_SIZE_BYTES_MIN, ("peer",))])
    assert len(holdings._known) == HELD_CONTENTS_MAX
    assert "cid0" not in holdings._known
