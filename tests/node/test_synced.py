"""What survives a power cut: a block's name too, before anybody is told that the block is kept.

Small blocks and marks are SQLite's, with `synchronous = full`: what it has committed stays.
"""

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from pairio_node.blocks import DiskBlockStore, LocalStore, ScopedContent, changes, synced
from pairio_node.blocks.changes import Carried
from pairio_node.errors import StorageFullError
from pairio_node.runner import RunOutcome, RunSpec
from pairio_node.store import CommitRows
from pairio_node.transport.memory import MemoryNetwork
from pairio_protocol import events as ev
from pairio_protocol.cid import RAW, cid_of
from tests.block_files import block_data, services_with_marks
from tests.node.node_lab import LabNode, three, until

SCOPE = cid_of(RAW, b"a service")


class Disk:
    """Notes in which order files and folders are synced and named; knows what a cut would leave."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.unsafe: dict[Path, int] = {}  # since which change
        self.changes = 0
        self.last_change: dict[Path, int] = {}  # of each folder
        self.syncs: list[Path] = []
        self.is_broken, self.kind = False, "btrfs"
        sync_folder, rename, mkdir = synced.sync_folder, Path.rename, Path.mkdir
        touch, change_folder = Path.touch, synced.change_folder

        def noting_sync(folder: Path) -> None:
            if self.is_broken:
                raise OSError(5, "the disk is broken")
            sync_folder(folder)
            self.syncs.append(folder)
            until = self.last_change.get(folder, 0) if self.kind == "ext4" else 0
            self.unsafe = {
                p: at for p, at in self.unsafe.items() if p.parent != folder and at > until
            }

        def noting_rename(path: Path, target: Path) -> Path:
            self.note(target)
            return rename(path, target)

        def noting_touch(path: Path, *args: Any, **more: Any) -> None:
            touch(path, *args, **more)
            self.note(path)

        def noting_mkdir(path: Path, *args: Any, **more: Any) -> None:
            if not path.exists():
                self.note(path)
            mkdir(path, *args, **more)

        def noting_change(folder: Path) -> None:
            change_folder(folder)
            self.changes += 1
            self.last_change[folder] = self.changes

        monkeypatch.setattr(changes, "_WAITING_S_MAX", 3600.0)
        monkeypatch.setattr(synced, "sync_folder", noting_sync)
        monkeypatch.setattr(synced, "change_folder", noting_change)
        monkeypatch.setattr(synced, "file_system", lambda _: self.kind)
        monkeypatch.setattr(Path, "rename", noting_rename)
        monkeypatch.setattr(Path, "touch", noting_touch)
        monkeypatch.setattr(Path, "mkdir", noting_mkdir)

    def note(self, path: Path) -> None:
        """A name was made, and its folder is changed by that."""
        self.changes += 1
        self.unsafe[path] = self.last_change[path.parent] = self.changes

    def cut(self, home: Path, store: LocalStore) -> set[str]:
        """What a power cut could take now: files and folders of blocks, small blocks and marks."""
        lost = {path for path in self.unsafe if not path.name.endswith(".tmp")}
        files = {str(p) for p in lost if (home / "blocks") in p.parents}
        with closing(sqlite3.connect(home / "blocks" / "small.db")) as db:
            kept = {cid for (cid,) in db.execute("select cid from blocks")}
            marked = set(db.execute("select cid, service from marks"))
        if (home / "node.db").exists():
            with closing(sqlite3.connect(home / "node.db")) as db:
                carried = set(db.execute("select cid, service from carried"))
            kept |= {cid for cid, service in carried if not service}
            marked |= carried
        with store.db._lock:
            waits = store.db._waiting
            marks = {(cid, service) for cid, held in waits.marks.items() for service in held}
            blocks = set(waits.blocks)
        return files | (blocks - kept) | {cid for cid, _ in marks - marked}


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    yield Disk(monkeypatch)
    monkeypatch.undo()


def contents_at(path: Path) -> ScopedContent:
    return ScopedContent(DiskBlockStore(path / "blocks", 2**26), path / "held")


def large(number: int) -> bytes:
    """Return what is a file of its own."""
    return number.to_bytes(2, "big") * 33_000


async def test_what_was_added_is_kept_with_its_names_and_marks(tmp_path: Path, disk: Disk) -> None:
    contents = contents_at(tmp_path)
    await contents.of(SCOPE).add_bytes(os.urandom(5_000_000))
    await contents.of(SCOPE).add_bytes(b"a few bytes")
    assert not disk.cut(tmp_path, contents.store)
    assert services_with_marks(tmp_path) == {SCOPE}


async def test_a_folder_is_synced_once_for_all_that_came_since(tmp_path: Path, disk: Disk) -> None:
    contents = contents_at(tmp_path)
    store = contents.of(SCOPE).store
    blocks = [large(i) for i in range(600)]  # more than there are folders
    for data in blocks:
        store.put_sync(cid_of(RAW, data), data)
    assert disk.syncs == [], "nobody was told anything yet"
    assert len(disk.cut(tmp_path, contents.store)) > 2 * 600
    store.settle_sync()
    assert not disk.cut(tmp_path, contents.store)
    assert len(disk.syncs) == len(set(disk.syncs)) <= 257 + 1 < 600
    for data in blocks:
        store.put_sync(cid_of(RAW, data), data)  # all of it is there
    disk.syncs.clear()
    store.settle_sync()
    assert disk.syncs == []


async def test_one_sync_is_enough_where_one_journal_has_it_all(tmp_path: Path, disk: Disk) -> None:
    disk.kind = "ext4"
    contents = contents_at(tmp_path)
    await contents.of(SCOPE).add_bytes(os.urandom(5_000_000))
    assert not disk.cut(tmp_path, contents.store)
    assert len(disk.syncs) == 1


async def test_small_blocks_and_their_marks_are_one_transaction_and_no_files(
    tmp_path: Path, disk: Disk
) -> None:
    contents = contents_at(tmp_path)
    store = contents.of(SCOPE).store
    blocks = [b"%d" % i for i in range(600)]
    for data in blocks:
        store.put_sync(cid_of(RAW, data), data)
    assert len(disk.cut(tmp_path, contents.store)) == 600
    assert all(store.has(cid_of(RAW, d)) and store.read_sync(cid_of(RAW, d)) == d for d in blocks)
    writes: list[str] = []
    contents.store.db._writer.set_trace_callback(writes.append)
    store.settle_sync()
    store.settle_sync()
    assert [w for w in writes if w in ("begin immediate", "commit")] == [
        "begin immediate",
        "commit",
    ]
    assert not disk.cut(tmp_path, contents.store)
    assert disk.syncs == [] and not [p for p in (tmp_path / "blocks").iterdir() if p.is_dir()]


def test_the_file_system_of_a_folder_is_known() -> None:
    assert synced.file_system(os.stat("/proc").st_dev) == "proc"
    assert synced.file_system(2**40) == ""


async def test_sharing_what_is_here_is_kept_too(tmp_path: Path, disk: Disk) -> None:
    contents = contents_at(tmp_path)
    added = await contents.everything.add_bytes(b"an input")
    assert await contents.share(SCOPE, added.cid)
    assert not disk.cut(tmp_path, contents.store)


def test_a_disk_that_fails_is_told_and_tried_again(tmp_path: Path, disk: Disk) -> None:
    contents = contents_at(tmp_path)
    store = contents.of(SCOPE).store
    store.put_sync(cid_of(RAW, large(1)), large(1))
    disk.is_broken = True
    with pytest.raises(StorageFullError, match="the disk is broken"):
        store.settle_sync()
    disk.is_broken = False
    store.settle_sync()
    assert not disk.cut(tmp_path, contents.store)


def test_a_database_that_fails_is_told_and_loses_nothing_that_came_before_or_meanwhile(
    tmp_path: Path, disk: Disk
) -> None:
    contents = contents_at(tmp_path)
    store, db = contents.of(SCOPE).store, contents.store.db
    first, then, gone = b"first", b"then", b"gone"
    for data in (first, gone):
        store.put_sync(cid_of(RAW, data), data)
    write = db._write

    def failing(changes: Any) -> None:
        store.put_sync(cid_of(RAW, then), then)
        assert contents.delete_sync(cid_of(RAW, gone))
        db._writer.execute("pragma query_only = on")
        write(changes)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(db, "_write", failing)
        with pytest.raises(StorageFullError, match=r"small\.db: attempt to write"):
            store.settle_sync()
    for data in (first, then):
        assert store.read_sync(cid_of(RAW, data)) == data
    assert not store.has(cid_of(RAW, gone)) and len(disk.cut(tmp_path, contents.store)) == 2
    db._writer.execute("pragma query_only = off")
    store.settle_sync()
    assert not disk.cut(tmp_path, contents.store)
    assert sorted(block_data(tmp_path)) == [first, then]


@pytest.mark.parametrize("has_outputs", [True, False])
async def test_a_node_says_that_it_holds_or_made_something_only_after_the_sync(
    has_outputs: bool, tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it made is on the disk before the transaction that has the result, or with it."""
    said: dict[str, list[set[str]]] = {"held": [], "made": []}
    made: set[str] = set()

    def listen(node: LabNode) -> None:
        post, commit = node.driver.post, node._store.commit

        def noting(event: ev.Event) -> bool:
            if isinstance(event, ev.Fetched):
                said["held"].append(disk.cut(node.home.path, node.blocks))
            if isinstance(event, ev.Executed):
                made.update({event.console, *(cid for cid, _, _ in event.outputs.values())})
            return post(event)

        def committing(rows: CommitRows, carried: Sequence[Carried] = ()) -> None:
            lost = disk.cut(node.home.path, node.blocks)
            commit(rows, carried)
            if rows.segments and made:
                lost &= disk.cut(node.home.path, node.blocks)  # what it carried is kept with it
                said["made"].append({one for one in lost if one.rpartition("/")[2] in made})

        monkeypatch.setattr(node.driver, "post", noting)
        monkeypatch.setattr(node._store, "commit", committing)

    async with three(MemoryNetwork(), tmp_path) as (admin, worker, guest):
        for node in (admin, worker, guest):
            listen(node)
        run = worker.runner.run

        async def mute(spec: RunSpec, cancel: trio.Event) -> RunOutcome:
            outcome = await run(spec, cancel)
            return outcome if has_outputs else replace(outcome, outputs={})

        monkeypatch.setattr(worker.runner, "run", mute)
        await guest.done(await guest.greet("Ada"))
        await until(lambda: said["held"], "somebody holds a copy")
    assert made and said["made"] and all(not cut for cuts in said.values() for cut in cuts), said
