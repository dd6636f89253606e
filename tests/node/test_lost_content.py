"""Whole nodes whose block stores have lost what a job gave."""

from pathlib import Path

import pytest

from pairio_node.errors import UnavailableError
from pairio_node.transport import MemoryNetwork
from tests.block_files import lose_marks
from tests.node.node_lab import LabNode, three, until


def _lose_blocks(*nodes: LabNode) -> None:
    for node in nodes:
        lose_marks(node.home.path)


async def test_a_hit_whose_blocks_are_on_no_disk_is_computed_again(tmp_path: Path) -> None:
    async with three(MemoryNetwork(), tmp_path) as nodes:
        admin, worker, guest = nodes
        first = await admin.done(await admin.greet("Ada"))
        _lose_blocks(*nodes)
        again = await guest.done(await guest.greet("Ada"))
        assert (again["status"], again["cached"]) == ("completed", False)
        assert await guest.output(again) == "hello Ada"
        assert worker.runner.ran == ["Ada", "Ada"]
        said = "its outputs are held by no node that can be reached; computed again, by request"
        await until(
            lambda: said in (admin.jobs.one(first["requestId"], None)["lost"] or ""),
            "the first says so",
        )
        assert again["lost"] is None


async def test_a_hit_that_only_another_node_holds_is_fetched_from_there(tmp_path: Path) -> None:
    async with three(MemoryNetwork(), tmp_path) as (admin, worker, _):
        await admin.done(await admin.greet("Ada"))
        _lose_blocks(admin)
        again = await admin.done(await admin.greet("Ada"))
        assert again["cached"] and await admin.output(again) == "hello Ada"
        assert worker.runner.ran == ["Ada"]


async def test_content_that_was_asked_for_and_is_nowhere_is_computed_again(tmp_path: Path) -> None:
    async with three(MemoryNetwork(), tmp_path) as nodes:
        admin, worker, _ = nodes
        job = await admin.done(await admin.greet("Ada"))
        _lose_blocks(*nodes)
        with pytest.raises(UnavailableError) as caught:
            await admin.output(job)
        assert "computed again" in (caught.value.hint or "")
        await until(lambda: worker.runner.ran == ["Ada", "Ada"], "computed again")
        newest = await admin.done({"requestId": job["jobId"]})
        assert newest["requestId"] != job["requestId"]
        assert await admin.output(newest) == "hello Ada"
