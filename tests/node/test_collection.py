"""Collecting from a real store: marks, quota, room for a block, and work that goes on meanwhile."""

import errno
import os
import random
from collections.abc import Sequence
from itertools import count
from pathlib import Path

import pytest
import trio

from pairio_node.blocks import DiskBlockStore, ScopedContent, StoreUnavailable
from pairio_node.blocks.collection import IN_USE, Collection, Needs
from pairio_node.blocks.collector import Stopped
from pairio_node.errors import StorageFullError
from pairio_protocol.cid import RAW, cid_of

SERVICE = cid_of(RAW, b"a service")
MIB = 2**20


class Lab:
    """A store with a collection; `kept` are the roots that somebody needs."""

    def __init__(self, path: Path, quota_bytes: int) -> None:
        self.path = path / "blocks"
        self.store = DiskBlockStore(self.path, quota_bytes)
        self.contents = ScopedContent(self.store, path / "held")
        self.kept: set[str] = set()
        self.gone: set[str] = set()
        self.collection = Collection(
            self.contents, quota_bytes, lambda: Needs({"pinned": set(self.kept)}), self.gone.update
        )
        self.store.make_room = self.collection.make_room

    def used(self, cid: str, unix_s: float) -> None:
        """Let a block have been used at a time."""
        if not self.store.db.touch(cid, unix_s):
            os.utime(self.path / cid[-2:] / cid, (unix_s, unix_s))

    async def add(self, data: bytes, unix_s: float = 0) -> str:
        """Add a file, used at a time."""
        cid = (await self.contents.of(SERVICE).add_bytes(data)).cid
        if unix_s:
            self.used(cid, unix_s)
        return cid

    async def here(self, cids: Sequence[str]) -> list[bool]:
        """Say which of these are here whole."""
        return [not await self.contents.of(SERVICE).missing(cid) for cid in cids]


async def test_the_least_recently_used_go_until_the_store_is_below_its_mark(
    tmp_path: Path,
) -> None:
    lab = Lab(tmp_path, 1000)
    cids = [await lab.add(bytes([i]) * 100, 1000 + (7 * i) % 10) for i in range(10)]
    lab.kept = {cids[0]}  # the oldest of all
    report = await trio.to_thread.run_sync(lab.collection.collect)
    by_age = sorted(range(1, 10), key=lambda i: (7 * i) % 10)
    assert [cids.index(root) for root in report.roots] == by_age[:2]  # 10 -> 8
    assert lab.store.used_bytes == 800 and not lab.collection.is_high
    assert lab.gone == set(report.roots)
    assert report.protected == {"pinned": 100, IN_USE: 0}
    report = await trio.to_thread.run_sync(lambda: lab.collection.collect(0))
    assert await lab.here(cids) == [i == 0 for i in range(10)]


async def test_a_dry_run_says_the_same_and_does_nothing(tmp_path: Path) -> None:
    lab = Lab(tmp_path, 1000)
    cids = [await lab.add(bytes([i]) * 100, 1000 + i) for i in range(10)]
    said = await trio.to_thread.run_sync(lambda: lab.collection.collect(dry=True))
    assert await lab.here(cids) == [True] * 10 and not lab.gone
    assert await trio.to_thread.run_sync(lab.collection.collect) == said


async def test_a_file_of_many_blocks_goes_whole_and_what_a_folder_shares_stays(
    tmp_path: Path,
) -> None:
    lab = Lab(tmp_path, 100 * MIB)
    big = await lab.add(random.Random(1).randbytes(3 * MIB))
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a").write_bytes(b"only here")
    shared = await lab.add(b"also a file of its own")
    (folder / "b").write_bytes(b"also a file of its own")
    root = (await lab.contents.of(SERVICE).add_directory(folder)).cid
    lab.kept = {shared}
    await trio.to_thread.run_sync(lambda: lab.collection.collect(0))
    assert await lab.here([big, root, shared]) == [False, False, True]
    assert [b.cid for b in lab.store.stored_sync()] == [shared]
    assert list(lab.store.db.marked()) == [shared]


async def test_a_put_that_does_not_fit_collects_and_one_that_is_held_off_by_what_is_kept_fails(
    tmp_path: Path,
) -> None:
    lab = Lab(tmp_path, 1000)
    old = await lab.add(bytes(500), 1000)
    new = await lab.add(b"x" * 400, 2000)
    more = await lab.add(b"y" * 300)
    assert await lab.here([old, new, more]) == [False, True, True]
    lab.kept = {new, more}
    with pytest.raises(StorageFullError, match="nothing that is left may go"):
        await lab.add(b"z" * 400)
    assert await lab.here([new, more]) == [True, True]
    assert lab.collection.is_short  # 300 are free, and 400 were asked for
    lab.kept = {new}
    await trio.to_thread.run_sync(lambda: lab.collection.collect(0))
    await lab.add(b"z" * 400)
    assert not lab.collection.is_short
    lab.kept |= {await lab.add(b"w" * 180)}
    assert lab.collection.is_short  # less than a twentieth is free


async def test_nothing_goes_while_a_block_that_is_here_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What lies below it, under a pin, would seem to be needed by nobody."""
    lab = Lab(tmp_path, 2 * MIB)
    folder = tmp_path / "folder"
    folder.mkdir()
    for number in range(1500):  # its block is large enough for a file of its own
        (folder / f"a file with a long name {number}").write_bytes(number.to_bytes(9))
    root = (await lab.contents.of(SERVICE).add_directory(folder)).cid
    file = lab.path / root[-2:] / root
    assert file.exists()
    lab.kept = {root}
    cached = await lab.add(b"of no use")
    read = Path.read_bytes

    def fail(path: Path) -> bytes:
        if path == file:
            raise OSError(errno.EMFILE, "Too many open files")
        return read(path)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", fail)
        with pytest.raises(StoreUnavailable, match=f"{root} cannot be read: Too many") as failed:
            await trio.to_thread.run_sync(lambda: lab.collection.collect(0))
        assert failed.value.hint is not None and str(file) in failed.value.hint
        with pytest.raises(StorageFullError):
            await lab.add(bytes(2 * MIB - 10))
    assert not lab.gone and await lab.here([root, cached]) == [True, True]
    await trio.to_thread.run_sync(lambda: lab.collection.collect(0))  # it went on by itself
    assert await lab.here([root, cached]) == [True, False]


async def test_nothing_goes_while_a_small_block_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = Lab(tmp_path, MIB)
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a").write_bytes(b"only here")
    root = (await lab.contents.of(SERVICE).add_directory(folder)).cid
    lab.kept = {root}

    def fail(cid: str) -> bytes:
        raise OSError(f"{cid}: disk I/O error")

    with monkeypatch.context() as patch:
        patch.setattr(lab.store.db, "read", fail)
        with pytest.raises(StoreUnavailable, match="disk I/O error"):
            await trio.to_thread.run_sync(lambda: lab.collection.collect(0))
    assert not lab.gone and await lab.here([root]) == [True]


async def test_a_crash_in_the_middle_leaves_no_file_that_seems_whole(tmp_path: Path) -> None:
    lab = Lab(tmp_path, 100 * MIB)
    cids = [await lab.add(random.Random(i).randbytes(2 * MIB + i)) for i in range(3)]
    delete, left = lab.store.delete_sync, 4

    def crash(cid: str) -> bool:
        nonlocal left
        left -= 1
        if left < 0:
            raise Stopped
        return delete(cid)

    lab.store.delete_sync = crash  # type: ignore[method-assign]
    with pytest.raises(Stopped):
        await trio.to_thread.run_sync(lambda: lab.collection.collect(0))
    assert len(lab.gone) == 4  # and that has been said
    lab.store.delete_sync = delete  # type: ignore[method-assign]
    here = await lab.here(cids)
    assert here.count(True) < 3
    for cid, is_here in zip(cids, here, strict=True):
        if not is_here:
            assert not lab.store.has(cid)
    again = Lab(tmp_path, 100 * MIB)  # the next start: what is left of them goes too
    again.kept = {cid for cid, is_here in zip(cids, here, strict=True) if is_here}
    await trio.to_thread.run_sync(lambda: again.collection.collect(0))
    assert await again.here(cids) == here
    stored = {b.cid for b in again.store.stored_sync()}
    walks = [await again.contents.everything.walk(cid) for cid in again.kept]
    assert stored == {cid for found, _ in walks for cid in found}


async def test_nothing_vanishes_under_adds_and_fetches_while_collections_go_on(
    tmp_path: Path,
) -> None:
    """Adds, fetches from another store and uses of both, against collections that let everything
    go: whatever work has put or found is there until it is over, and what is kept for ever."""
    lab, source = Lab(tmp_path / "here", 2**30), Lab(tmp_path / "there", 2**30)
    seed = random.Random(7)
    datas = [seed.randbytes(seed.choice([100, MIB + 1, 3 * MIB])) for _ in range(6)]
    kept = [await lab.add(b"kept" + datas[1]), await lab.add(b"also kept")]
    lab.kept = set(kept)
    cids = [await source.add(data) for data in datas]
    done = 0

    def is_enough() -> bool:
        return done >= 72 and lab.collection.counters["evicted_blocks"] > 20

    async def add(number: int) -> None:
        nonlocal done
        for turn in count():
            if is_enough():
                return
            data = datas[(number + turn) % len(datas)]
            with lab.store.in_use.working(linger_s=0):
                cid = await lab.add(data)
                await trio.to_thread.run_sync(int)  # others have their turn
                assert await lab.here([cid]) == [True]
                read = [chunk async for chunk in lab.contents.of(SERVICE).read(cid)]
                assert b"".join(read) == data
            done += 1

    async def fetch(number: int) -> None:
        nonlocal done
        view = lab.contents.of(SERVICE)
        for turn in count():
            if is_enough():
                return
            cid = cids[(number * 2 + turn) % len(cids)]
            with lab.store.in_use.working(linger_s=0):
                while missing := await view.missing(cid):
                    for block in missing:
                        await view.store.put(block, await source.store.get(block))
                await trio.to_thread.run_sync(int)  # others have their turn
                assert await lab.here([cid]) == [True]
            done += 1

    async def collect() -> None:
        while not is_enough():
            assert await lab.here(kept) == [True, True]
            await trio.to_thread.run_sync(lambda: lab.collection.collect(0))

    with trio.fail_after(120):
        async with trio.open_nursery() as nursery:
            for number in range(3):
                nursery.start_soon(add, number)
                nursery.start_soon(fetch, number)
            nursery.start_soon(collect)
    assert await lab.here(kept) == [True, True]
    assert lab.store.used_bytes == sum(b.size_bytes for b in lab.store.stored_sync())
