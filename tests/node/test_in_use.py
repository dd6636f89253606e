"""Deleting blocks: with their marks, never under the hands of work that counts on them."""

import os
import threading
import time
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from pairio_node.blocks import BlockMissing, DiskBlockStore, InUse, ScopedContent
from pairio_node.blocks.disk import _COMMON_CID
from pairio_node.errors import StorageFullError
from pairio_protocol.cid import RAW, cid_of, parse_cid

SERVICE = cid_of(RAW, b"a service")
OTHER = cid_of(RAW, b"another service")
DATA = b"some bytes"
CID = cid_of(RAW, DATA)


@pytest.fixture
def contents(tmp_path: Path) -> ScopedContent:
    return ScopedContent(DiskBlockStore(tmp_path / "blocks", 2**20), tmp_path / "held")


def test_a_deleted_block_is_gone_with_its_bytes_and_the_marks_on_it(
    contents: ScopedContent,
) -> None:
    for service in (SERVICE, OTHER):
        contents.of(service).store.put_sync(CID, DATA)
    assert contents.store.used_bytes == len(DATA)
    assert contents.delete_sync(CID)
    assert contents.store.used_bytes == 0
    with pytest.raises(BlockMissing):
        contents.store.read_sync(CID)
    contents.of(OTHER).store.put_sync(CID, DATA)  # it comes again, for one of them only
    assert not contents.of(SERVICE).store.has(CID)
    assert contents.delete_sync(CID)
    assert not contents.delete_sync(CID)


def test_a_mark_that_a_crash_left_is_cleaned_and_lets_no_later_block_in(
    contents: ScopedContent,
) -> None:
    contents.of(SERVICE).store.put_sync(CID, DATA)
    contents.of(SERVICE).store.put_sync(cid_of(RAW, b"stays"), b"stays")
    contents.store.delete_sync(CID)  # and its marks were to follow
    stored = {block.cid for block in contents.store.stored_sync()}
    assert contents.clean_marks_sync(stored) == 1
    contents.store.put_sync(CID, DATA)
    assert not contents.of(SERVICE).store.has(CID)
    assert contents.of(SERVICE).store.has(cid_of(RAW, b"stays"))


@pytest.mark.parametrize("how", ["put", "put again", "asked for"])
def test_work_keeps_what_it_puts_or_finds_until_it_is_over(
    how: str, contents: ScopedContent
) -> None:
    store = contents.store
    if how != "put":
        store.put_sync(CID, DATA)
    with store.in_use.working(linger_s=0):
        if how == "asked for":
            assert store.has(CID)
        else:
            store.put_sync(CID, DATA)
        assert not contents.delete_sync(CID)
        assert store.has(CID)
    store.in_use.all()  # looked at again some time later
    assert contents.delete_sync(CID)


def test_what_other_work_or_nobody_asked_for_is_not_kept(contents: ScopedContent) -> None:
    contents.store.put_sync(CID, DATA)
    with contents.store.in_use.working(linger_s=0):
        pass
    with contents.store.in_use.working(linger_s=0):
        assert not contents.store.has(cid_of(RAW, b"x"))
        assert contents.delete_sync(CID)


def test_work_lingers_and_through_the_end_of_a_collection(contents: ScopedContent) -> None:
    in_use = contents.store.in_use
    with in_use.working(linger_s=1000):
        contents.store.put_sync(CID, DATA)
    assert in_use.all() == {CID}
    in_use = InUse()
    with in_use.collecting():
        with in_use.working(linger_s=0), in_use.lock:
            in_use.note(CID)
        assert in_use.all() == {CID}
    assert in_use.all() == set()


def test_work_that_lingers_long_does_not_keep_what_came_after_it(contents: ScopedContent) -> None:
    in_use = contents.store.in_use
    with in_use.working(linger_s=1000):
        contents.store.put_sync(CID, DATA)
    with in_use.working(linger_s=0):
        contents.store.put_sync(cid_of(RAW, b"later"), b"later")
    assert in_use.all() == {CID}


async def test_work_reaches_into_threads_and_tasks_and_inner_work_is_part_of_it(
    contents: ScopedContent,
) -> None:
    in_use = contents.store.in_use
    with in_use.working(linger_s=0):
        with in_use.working(linger_s=0):
            await contents.everything.add_bytes(DATA)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(contents.everything.add_bytes, b"in a task")
        assert in_use.all() == {CID, cid_of(RAW, b"in a task")}
    assert in_use.all() == set()


def test_the_listing_tells_sizes_and_when_blocks_were_used(tmp_path: Path) -> None:
    store = DiskBlockStore(tmp_path, 2**20)
    large = bytes(100_000)
    large_cid = cid_of(RAW, large)
    store.put_sync(CID, DATA)
    store.put_sync(large_cid, large)
    file = tmp_path / large_cid[-2:] / large_cid
    (file.parent / "no block").write_bytes(b"")
    (file.parent / f"{large_cid}.ab.tmp").write_bytes(b"")

    def long_ago() -> None:
        os.utime(file, (1000, 1000))
        assert store.db.touch(CID, 2000)

    long_ago()
    listed = {tuple(block) for block in store.stored_sync()}
    assert listed == {(large_cid, len(large), 1000), (CID, len(DATA), 2000)}
    for cid in (CID, large_cid, cid_of(RAW, b"not here")):
        store.touch_sync(cid)
    assert all(abs(b.used_unix_s - time.time()) < 60 for b in store.stored_sync())
    long_ago()
    store.put_sync(CID, DATA)  # they came again
    store.put_sync(large_cid, large)
    assert all(b.used_unix_s > 2000 for b in store.stored_sync())


@given(st.binary(max_size=40), st.sampled_from([0x55, 0x70, 0x71]))
def test_common_cids_are_known_without_being_parsed(data: bytes, codec: int) -> None:
    cid = cid_of(codec, data)
    assert _COMMON_CID.fullmatch(cid)
    assert cid.startswith("bafkrei") == (codec == RAW)


@given(st.from_regex(_COMMON_CID, fullmatch=True))
def test_what_looks_like_a_common_cid_is_one(text: str) -> None:
    parse_cid(text)


def test_a_block_that_does_not_fit_asks_for_room_and_is_refused_in_words_without(
    tmp_path: Path,
) -> None:
    store = DiskBlockStore(tmp_path, 20)
    store.put_sync(CID, DATA)
    asked: list[int] = []

    def make_room(size_bytes: int) -> bool:
        asked.append(size_bytes)
        return store.delete_sync(CID)

    store.make_room = make_room
    store.put_sync(cid_of(RAW, bytes(15)), bytes(15))
    assert asked == [15] and not store.has(CID)
    with pytest.raises(StorageFullError, match="holds 15 of 20 bytes; 16 more") as caught:
        store.put_sync(cid_of(RAW, bytes(16)), bytes(16))
    assert "pairio cache" in str(caught.value.hint)


def test_threads_that_bring_and_delete_the_same_blocks_leave_the_count_right(
    contents: ScopedContent,
) -> None:
    blocks = [bytes([i]) * 100 for i in range(8)]
    view = contents.of(SERVICE).store

    def bring() -> None:
        for _ in range(25):
            for data in blocks:
                view.put_sync(cid_of(RAW, data), data)
                contents.delete_sync(cid_of(RAW, data))

    threads = [threading.Thread(target=bring) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    left = sum(block.size_bytes for block in contents.store.stored_sync())
    assert contents.store.used_bytes == left
    for data in blocks:  # a mark without a block is not left either
        contents.delete_sync(cid_of(RAW, data))
    assert contents.clean_marks_sync(set()) == 0
