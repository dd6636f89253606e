"""What survives a power cut: a block's name too, before anybody is told that the block is kept."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pairio_node.blocks import DiskBlockStore, ScopedContent, synced
from pairio_node.errors import StorageFullError
from pairio_node.transport.memory import MemoryNetwork
from pairio_protocol import events as ev
from pairio_protocol.cid import RAW, cid_of
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

    def cut(self, home: Path) -> set[str]:
        """What lies below the folders of blocks and marks, and a power cut could take now."""
        kept = [home / "blocks", home / "held"]
        lost = {path for path in self.unsafe if not path.name.endswith(".tmp")} - {*kept}
        return {str(p) for p in lost if any(p.is_relative_to(one) for one in kept)}


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    yield Disk(monkeypatch)
    monkeypatch.undo()


def contents_at(path: Path) -> ScopedContent:
    return ScopedContent(DiskBlockStore(path / "blocks", 2**26), path / "held")


async def test_what_was_added_is_kept_with_its_names_and_marks(tmp_path: Path, disk: Disk) -> None:
    contents = contents_at(tmp_path)
    await contents.of(SCOPE).add_bytes(os.urandom(5_000_000))
    assert not disk.cut(tmp_path)


async def test_a_folder_is_synced_once_for_all_that_came_since(tmp_path: Path, disk: Disk) -> None:
    store = contents_at(tmp_path).of(SCOPE).store
    blocks = [str(i).encode() for i in range(600)]  # more than there are folders
    for data in blocks:
        store.put_sync(cid_of(RAW, data), data)
    assert disk.syncs == [], "nobody was told anything yet"
    assert len(disk.cut(tmp_path)) > 2 * 600
    store.settle_sync()
    assert not disk.cut(tmp_path)
    assert len(disk.syncs) == len(set(disk.syncs)) <= 2 * 257 + 2 < 2 * 600
    for data in blocks:
        store.put_sync(cid_of(RAW, data), data)  # all of it is there
    disk.syncs.clear()
    store.settle_sync()
    assert disk.syncs == []


async def test_one_sync_is_enough_where_one_journal_has_it_all(tmp_path: Path, disk: Disk) -> None:
    disk.kind = "ext4"
    contents = contents_at(tmp_path)
    await contents.of(SCOPE).add_bytes(os.urandom(5_000_000))
    assert not disk.cut(tmp_path)
    assert len(disk.syncs) == 1


def test_the_file_system_of_a_folder_is_known() -> None:
    assert synced.file_system(os.stat("/proc").st_dev) == "proc"
    assert synced.file_system(2**40) == ""


async def test_sharing_what_is_here_is_kept_too(tmp_path: Path, disk: Disk) -> None:
    contents = contents_at(tmp_path)
    added = await contents.everything.add_bytes(b"an input")
    assert await contents.share(SCOPE, added.cid)
    assert not disk.cut(tmp_path)


def test_a_disk_that_fails_is_told_and_tried_again(tmp_path: Path, disk: Disk) -> None:
    store = contents_at(tmp_path).of(SCOPE).store
    store.put_sync(cid_of(RAW, b"x"), b"x")
    disk.is_broken = True
    with pytest.raises(StorageFullError, match="the disk is broken"):
        store.settle_sync()
    disk.is_broken = False
    store.settle_sync()
    assert not disk.cut(tmp_path)


async def test_a_node_says_that_it_holds_or_made_something_only_after_the_sync(
    tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: dict[str, list[set[str]]] = {"Fetched": [], "Executed": []}

    def listen(node: LabNode) -> None:
        post = node.driver.post

        def noting(event: ev.Event) -> bool:
            if isinstance(event, ev.Fetched | ev.Executed):
                said[type(event).__name__].append(disk.cut(node.home.path))
            return post(event)

        monkeypatch.setattr(node.driver, "post", noting)

    async with three(MemoryNetwork(), tmp_path) as (admin, worker, guest):
        for node in (admin, worker, guest):
            listen(node)
        job = await guest.done(await guest.greet("Ada"))
        await until(lambda: said["Fetched"], "somebody holds a copy")
        assert await guest.output(job)
    assert said["Executed"] and all(not cut for cuts in said.values() for cut in cuts), said
