"""Content: the CIDs are Kubo's, what goes in comes out, nothing leaves its folder."""

import contextlib
import json
import os
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pairio_node.blocks import BlockCorrupt, BlockMissing, Content, DiskBlockStore
from pairio_node.blocks.unixfs import Entry, FileBuilder, UnixfsError, directory_block, parse_node
from pairio_node.errors import StorageFullError, UserError
from pairio_protocol.cid import DAG_PB, RAW, cid_of
from tests.block_files import block_data

VECTORS = json.loads(
    (Path(__file__).parents[2] / "protocol" / "vectors" / "unixfs.json").read_text()
)["files"]


def _content(path: Path, quota_bytes: int = 2**30) -> Content:
    return Content(DiskBlockStore(path / "blocks", quota_bytes))


def _made(make: list[object]) -> bytes:
    kind, value = make
    if kind == "text":
        return str(value).encode()
    assert isinstance(value, int)
    return bytes(value) if kind == "zero" else bytes((7 * i) % 251 for i in range(value))


@pytest.mark.parametrize("vector", VECTORS, ids=[v["name"] for v in VECTORS])
async def test_a_file_has_the_cid_that_kubo_gives_it(
    vector: dict[str, object], tmp_path: Path
) -> None:
    data = _made(vector["make"])  # type: ignore[arg-type]
    content = _content(tmp_path)
    added = await content.add_bytes(data)
    assert (added.cid, added.size_bytes) == (vector["cid"], len(data))
    read = b"".join([chunk async for chunk in content.read(added.cid)])
    assert read == data


def test_a_group_of_one_gets_a_node_of_its_own() -> None:
    stored: dict[str, bytes] = {}
    builder = FileBuilder(stored.__setitem__)
    for _ in range(1025):  # one more than a node has links
        builder.add_chunk(b"x")
    root = builder.finish()
    node = parse_node(root.cid, stored[root.cid])
    assert [e.size_bytes for e in node.entries] == [1024, 1]
    assert all(e.cid in stored for e in node.entries)
    assert parse_node(node.entries[1].cid, stored[node.entries[1].cid]).entries != ()


@given(st.binary(max_size=400))
def test_garbage_is_a_unixfs_error_or_a_node_and_never_anything_else(data: bytes) -> None:
    with contextlib.suppress(UnixfsError):
        parse_node(cid_of(DAG_PB, data), data)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(
    names=st.sets(
        st.text(min_size=1, max_size=20).filter(
            lambda n: n not in (".", "..") and "/" not in n and "\0" not in n
        ),
        max_size=5,
    )
)
def test_a_folder_is_the_same_whatever_the_order_of_its_names(names: set[str]) -> None:
    cid = cid_of(RAW, b"x")
    try:
        entries = [Entry(cid, 1, 1, name) for name in sorted(names) if name.encode()]
    except UnicodeEncodeError:
        return
    assert directory_block(entries) == directory_block(entries[::-1])


async def test_a_folder_comes_back_as_it_was(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "sub" / "é ü").mkdir(parents=True)
    (source / "a.txt").write_text("a")
    (source / "run.sh").write_text("#!/bin/sh\n")
    (source / "sub" / "é ü" / "b").write_bytes(os.urandom(3_000_000))
    content = _content(tmp_path)
    added = await content.add_directory(source)
    written = await content.export(added.cid, tmp_path / "copy")
    assert written == 3_000_011
    assert (tmp_path / "copy/sub/é ü/b").read_bytes() == (source / "sub/é ü/b").read_bytes()
    assert os.access(tmp_path / "copy/run.sh", os.X_OK)
    assert not os.access(tmp_path / "copy/a.txt", os.X_OK)


async def test_a_range_of_a_large_file_is_read_alone(tmp_path: Path) -> None:
    data = os.urandom(2_500_000)
    content = _content(tmp_path)
    added = await content.add_bytes(data)
    part = b"".join([c async for c in content.read(added.cid, 1_000_000, 2_200_000)])
    assert part == data[1_000_000:2_200_000]


async def test_links_are_refused_with_their_path(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "link").symlink_to("/etc/passwd")
    with pytest.raises(UserError, match="link is a symbolic link"):
        await _content(tmp_path).add_directory(tmp_path / "source")


@pytest.mark.parametrize("name", ["..", ".", "a/b", ""])
async def test_a_hostile_folder_writes_nothing_outside(name: str, tmp_path: Path) -> None:
    content = _content(tmp_path)
    leaf = await content.add_bytes(b"evil")
    block = directory_block([Entry(leaf.cid, 4, 4, name)])
    cid = cid_of(DAG_PB, block)
    await content.store.put(cid, block)
    with pytest.raises(UnixfsError):
        await content.export(cid, tmp_path / "out")
    assert not (tmp_path / "out").exists()


async def test_a_block_that_cannot_be_read_is_missing(tmp_path: Path) -> None:
    content = _content(tmp_path)
    cid = (await content.add_bytes(bytes(100_000))).cid
    file = tmp_path / "blocks" / cid[-2:] / cid
    file.unlink()
    file.mkdir()  # reading fails, as on a broken disk
    with pytest.raises(BlockMissing, match="cannot be read"):
        await content.node(cid)
    small = (await content.add_bytes(b"a few bytes")).cid
    assert isinstance(content.store, DiskBlockStore)
    content.store.db._reader.close()
    with pytest.raises(BlockMissing, match="cannot be read"):
        await content.node(small)
    assert await content.missing(small) == [small]  # so it is fetched again


async def test_folders_that_repeat_without_end_are_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pairio_node.blocks.content.EXPORTED_MAX", 100)
    content = _content(tmp_path)
    cid = (await content.add_bytes(b"x")).cid
    for _ in range(40):  # 41 blocks, two to the power of 40 files
        block = directory_block([Entry(cid, 0, 0, "a"), Entry(cid, 0, 0, "b")])
        cid = cid_of(DAG_PB, block)
        await content.store.put(cid, block)
    with pytest.raises(UnixfsError, match="more than 100 files and folders"):
        await content.export(cid, tmp_path / "out")
    assert sum(1 for _ in (tmp_path / "out").rglob("*")) <= 100


async def test_a_file_without_end_is_not_written(tmp_path: Path) -> None:
    content = _content(tmp_path)
    blocks: dict[str, bytes] = {}
    builder = FileBuilder(blocks.__setitem__)
    for _ in range(100):
        builder.add_chunk(bytes(2**20))  # one block on the disk
    below = builder.finish()
    for cid, block in blocks.items():
        await content.store.put(cid, block)
    assert len(blocks) == 2
    with pytest.raises(UnixfsError, match="larger than 1000000 bytes"):
        await content.export(below.cid, tmp_path / "out", limit_bytes=1_000_000)
    assert not (tmp_path / "out").exists()


async def test_wrong_bytes_and_bytes_beyond_the_quota_are_not_stored(tmp_path: Path) -> None:
    content = _content(tmp_path, quota_bytes=10)
    with pytest.raises(BlockCorrupt):
        await content.store.put(cid_of(RAW, b"right"), b"wrong")
    with pytest.raises(StorageFullError, match="11 more do not fit"):
        await content.add_bytes(b"eleven byte")
    assert block_data(tmp_path) == [] and await content.missing(cid_of(RAW, b"eleven byte"))


async def test_a_large_file_is_whole_or_an_error_and_its_chunks_are_few_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = os.urandom(12 * 2**20 + 7)
    (tmp_path / "file").write_bytes(data)
    content = _content(tmp_path)
    waiting, most = 0, 0
    put = content.store.put_sync
    lock = threading.Lock()

    def counted(cid: str, block: bytes) -> None:
        nonlocal waiting, most
        with lock:
            waiting += 1
            most = max(most, waiting)
        put(cid, block)
        with lock:
            waiting -= 1

    monkeypatch.setattr(content.store, "put_sync", counted)
    added = await content.add_file(tmp_path / "file")
    assert b"".join([c async for c in content.read(added.cid)]) == data
    assert 1 <= most <= 3
    small = _content(tmp_path / "small", quota_bytes=5 * 2**20)
    with pytest.raises(StorageFullError):
        await small.add_file(tmp_path / "file")


async def test_chunks_that_other_threads_put_belong_to_the_work_under_way(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(os.urandom(4 * 2**20))
    content = _content(tmp_path)
    in_use = content.store.in_use  # type: ignore[attr-defined]
    with in_use.working():
        added = await content.add_file(tmp_path / "file")
        noted = in_use.all()
    here, _ = await content.walk(added.cid)
    assert set(here) == noted
    assert len(here) == 5
