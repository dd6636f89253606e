"""A job that reads parts of a large file that lies with another member: those parts come, checked,
and no others."""

import os
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio

from pairio_node.blocks import FetchFailed
from pairio_node.streams import JobStreams
from pairio_node.streams.content import ContentSource, StreamedContent
from pairio_node.urls import UrlError, UrlRules
from pairio_protocol.cid import RAW, cid_of
from tests.node.node_lab import LabNode
from tests.node.streams_lab import Job
from tests.node.test_gateway import two

MIB = 2**20
DATA = b"".join(bytes([number]) * MIB for number in range(14))


@pytest.fixture(autouse=True)
def files_are_large_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pairio_node.preparation.STREAMED_SIZE_BYTES_MIN", 10 * MIB)


async def _shared(holder: LabNode, service: str, path: Path) -> str:
    added = await holder.references.add(path, lambda _: None)
    assert await holder.contents.share(service, added.cid)
    return added.cid


async def _streamed(
    node: LabNode, service: str, cid: str, *holders: LabNode
) -> StreamedContent | None:
    effect: Any = SimpleNamespace(service=service, holders=tuple(h.peer_id for h in holders))
    return await node.preparation._streamed(effect, "data", cid, may_bind=True)


async def test_only_the_parts_that_a_job_reads_are_fetched(tmp_path: Path) -> None:
    path = tmp_path / "rec.nwb"
    path.write_bytes(DATA)
    async with two(tmp_path) as (holder, worker, service):
        cid = await _shared(holder, service, path)
        content = await _streamed(worker, service, cid, holder)
        assert content is not None and content.size_bytes == len(DATA)
        assert worker.exchange.counters["blocks_received"] == 2, "the root, and how it begins"
        streams = JobStreams(tmp_path / "s", UrlRules(), own_network=True)
        streams.add_content(0, content, worker.preparation._reader(service))
        with trio.fail_after(60):
            async with streams.serving():
                job = Job(streams)
                assert (await job.get(method="HEAD")).headers["content-length"] == str(len(DATA))
                answer = await job.get(range_=f"{7 * MIB - 1}-{7 * MIB}")
                assert (answer.status, answer.body) == (206, b"\x06\x07")
                assert worker.exchange.counters["blocks_received"] == 4
                assert (await job.get(range_="-1")).body == b"\x0d"
                assert worker.exchange.counters["blocks_received"] == 5
            found = JobStreams.found(
                tmp_path / "s", UrlRules(), None, worker.preparation._reader(service)
            )
            assert found is not None  # the node was started again meanwhile
            async with found.serving():
                again = Job(found)
                assert again.path() == job.path()
                assert (await again.get(range_=f"{9 * MIB}-{9 * MIB}")).body == b"\x09"
                got = await again.get()
                assert got.body == DATA, found.trouble


async def test_a_file_that_changed_meanwhile_gives_nothing_and_is_said(tmp_path: Path) -> None:
    path = tmp_path / "rec.nwb"
    path.write_bytes(DATA)
    async with two(tmp_path) as (holder, worker, service):
        cid = await _shared(holder, service, path)
        content = await _streamed(worker, service, cid, holder)
        assert content is not None
        streams = JobStreams(tmp_path / "s", UrlRules(), own_network=True)
        streams.add_content(0, content, worker.preparation._reader(service))
        before = path.stat()
        with path.open("r+b") as file:
            file.seek(7 * MIB)
            file.write(b"other")
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        with trio.fail_after(60):
            async with streams.serving():
                answer = await Job(streams).get(range_=f"{7 * MIB}-{7 * MIB + 4}")
                assert answer.status == 502 and b"other" not in answer.body
        assert streams.trouble.startswith("input 'data'") and "does not have it" in streams.trouble


async def test_small_files_folders_and_what_is_the_owners_are_not_streamed(tmp_path: Path) -> None:
    (tmp_path / "small").write_bytes(bytes(3 * MIB))
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "large").write_bytes(DATA)
    async with two(tmp_path) as (holder, worker, service):
        for name in ("small", "folder"):
            cid = await _shared(holder, service, tmp_path / name)
            assert await _streamed(worker, service, cid, holder) is None
        cid = await _shared(worker, service, tmp_path / "folder" / "large")
        assert await _streamed(worker, service, cid, holder) is None, "it is shown where it lies"
        assert await _streamed(worker, service, cid_of(RAW, b"x"), holder) is None
        lost = StreamedContent("data", cid, 1, ())
        assert StreamedContent.of(lost.kept()) == lost


async def test_holders_that_are_away_are_trouble_until_they_are_back() -> None:
    is_away = True

    async def read(cid: str, holders: Sequence[str], start: int, stop: int) -> AsyncIterator[bytes]:
        if is_away:
            raise FetchFailed("nobody who might have it is connected")
        yield DATA[start:stop]

    source = ContentSource(StreamedContent("data", cid_of(RAW, b"x"), len(DATA), ("a",)), read)
    with pytest.raises(UrlError, match="nobody who might have it"):
        [piece async for piece in source.read(0, 10)]
    assert "nobody" in source.trouble
    is_away = False
    assert b"".join([piece async for piece in source.read(5, len(DATA))]) == DATA[5:]
    assert source.trouble == ""
