"""A part of an output is asked for: no more than that is fetched, and nothing else changes."""

from pathlib import Path

import pytest
import trio

from pairio_node.errors import UnavailableError
from pairio_node.runner import RunOutcome, RunSpec
from pairio_node.transport import MemoryNetwork
from tests.block_files import lose_blocks
from tests.node.node_lab import LabNode, three

MIB = 2**20


def _forget(node: LabNode) -> None:
    lose_blocks(node.home.path)


async def _large_output(worker: LabNode, guest: LabNode) -> str:
    """Have a job make 4 MiB; return its id."""
    run = worker.runner.run

    async def large(spec: RunSpec, cancel: trio.Event) -> RunOutcome:
        outcome = await run(spec, cancel)
        parts = b"".join(bytes([number]) * MIB for number in range(4))
        outcome.outputs["output"].write_bytes(parts)
        return outcome

    worker.runner.run = large  # type: ignore[method-assign]
    return str((await guest.done(await guest.greet("Ada")))["jobId"])


async def test_a_part_of_an_output_that_lies_elsewhere_is_all_that_comes(tmp_path: Path) -> None:
    async with three(MemoryNetwork(), tmp_path) as (admin, worker, guest):
        job = await _large_output(worker, guest)
        for node in (admin, guest):
            _forget(node)
        before = guest.exchange.counters["blocks_received"]
        with trio.fail_after(60):
            cid, _, size = await guest.jobs.output_cid(job, None, "output", some=True)
            assert size == 4 * MIB
            read = guest.files.read(cid, 2 * MIB - 1, 2 * MIB + 1, cid)
            assert b"".join([chunk async for chunk in read]) == b"\x01\x02"
            assert guest.exchange.counters["blocks_received"] - before == 3, "root, two parts"
            assert await guest.content.missing(cid)
            await guest.jobs.output_cid(job, None, "output")
            assert not await guest.content.missing(cid), "all of it, where all is asked for"


async def test_where_nobody_has_it_the_node_is_told_as_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pairio_node.serving._FETCH_S", 1.0)
    async with three(MemoryNetwork(), tmp_path) as (admin, worker, guest):
        job = await _large_output(worker, guest)
        for node in (admin, worker, guest):
            _forget(node)
        with trio.fail_after(60), pytest.raises(UnavailableError):
            await guest.jobs.output_cid(job, None, "output", some=True)
