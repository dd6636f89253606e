"""The scale table: a small network in every test run; `make scale` does 10, 100 and 1,000 nodes."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from scale import Measured, measure, problems, started, table
from scale_world import MESH_CYCLES, ScaleWorld, folded_once

from pairio_protocol.limits import CONNECTIONS_MAX

NODES, JOBS = 10, 20


@pytest.fixture(scope="module")
def measured() -> Measured:
    return measure(NODES, JOBS, seed=1, idle_ms=20_000)


def test_every_job_starts_and_ends_and_everybody_knows(measured: Measured) -> None:
    assert problems(measured) == []
    assert started(measured) == JOBS
    assert measured.known_ms is not None


def test_the_same_seed_gives_the_same_traffic(measured: Measured) -> None:
    again = measure(NODES, JOBS, seed=1, idle_ms=20_000)
    assert again.busy.frames == measured.busy.frames
    assert again.busy.size == measured.busy.size
    assert [j.started_ms for j in again.jobs] == [j.started_ms for j in measured.jobs]


def test_what_a_job_costs_is_bounded(measured: Measured) -> None:
    """What the design says of growth, with room: a change that breaks it shows here first."""
    frames, size = measured.direct()
    assert 10 < frames < 80
    assert size < 40_000
    assert measured.busy.news / JOBS < 2_500
    assert measured.busy.bids / JOBS < 3


def test_a_job_that_did_not_end_and_a_silent_kind_are_problems(measured: Measured) -> None:
    assert problems(replace(measured, ended=JOBS - 1))
    assert problems(replace(measured, known_ms=None))
    frames = measured.busy.frames.copy()
    del frames["award"]
    assert problems(replace(measured, busy=replace(measured.busy, frames=frames)))


def test_the_table_has_a_column_for_each_network(measured: Measured) -> None:
    lines = table([measured, measured]).splitlines()
    assert all(line.count("|") == 4 for line in lines)
    assert "none" not in table([measured])


@pytest.fixture
def large() -> Iterator[ScaleWorld]:
    with folded_once():
        yield ScaleWorld(seed=2, count=60)


def test_gossip_goes_along_a_mesh_and_reaches_everybody(large: ScaleWorld) -> None:
    assert large.mesh is not None
    degrees = {len(others) for others in large.mesh.values()}
    assert max(degrees) <= 2 * MESH_CYCLES
    large.begin()
    large.submit(large.nodes[0], 200)
    large.run_for(3_000)
    sent = large.end()
    assert large.is_ended(large.jobs[0])
    assert large.is_known_everywhere()
    segments = sent.news / (sent.size["gossip"] / sent.frames["gossip"])
    assert sent.frames["gossip"] <= segments * 60 * 2 * MESH_CYCLES


def test_nobody_has_more_connections_than_a_node_keeps(large: ScaleWorld) -> None:
    counts = [len(large._core(node).ctx.connected) for node in large.nodes]
    assert max(counts) <= CONNECTIONS_MAX
    assert min(counts) > CONNECTIONS_MAX // 2
