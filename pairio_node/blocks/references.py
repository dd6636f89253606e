"""Content by reference: files of this machine that are hashed and served, and not copied.

    add --> good --a file's size, time or inode differs, or its bytes do not hash--> changed
              ^                                                                        |
              +------------------------- added again: hashed again --------------------+

The store keeps the inner nodes of a file or folder; a block of bytes is read from its file each
time, and is right or not there: its hash is looked at. Nothing of a changed root is served any
more. Paths come from the owner of the node alone, never from a peer.
"""

import hashlib
import logging
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import trio

from pairio_node.blocks.base import BlockMissing, LocalStore, StoreUnavailable
from pairio_node.blocks.content import DEPTH_MAX, FILES_MAX
from pairio_node.blocks.reference_db import (
    CHANGED,
    GOOD,
    FileRow,
    LeafRow,
    ListDamagedError,
    ReferenceDb,
    RootRow,
    Stat,
)
from pairio_node.blocks.unixfs import (
    CHUNK_SIZE_BYTES,
    Entry,
    FileBuilder,
    UnixfsError,
    folder_of,
    parse_node,
)
from pairio_node.errors import StorageFullError, UserError
from pairio_protocol.cid import DAG_PB, RAW, matches, parse_cid

__all__ = ["Referenced", "References"]

log = logging.getLogger("pairio.references")

#: Chunks that are hashed in one go in a thread.
_CHUNKS_PER_TURN: Final = 16
#: For so long a file that was found as it was is not looked at again when somebody asks whether
#: a block is here. Reading looks each time.
_LOOKED_S: Final = 1.0


@dataclass(frozen=True)
class Referenced:
    """A file or folder that counts as content now. `before` is the CID that its path had when it
    was added last, if that was another one."""

    cid: str
    size_bytes: int
    was_hashed: bool
    before: str = ""


class _Item(NamedTuple):
    """Something below a path; `name` is relative to it, "" for itself."""

    name: str
    path: Path
    stat: Stat | None  # None: a folder


class References:
    """Files and folders that were added by path. `on_changed` is told, in any thread, of a root of
    which a file was found changed."""

    def __init__(self, db_path: Path, store: LocalStore, refused: Path) -> None:
        self._db = ReferenceDb(db_path)
        self._store = store
        self._refused = refused.resolve()
        self._roots: frozenset[str] = frozenset()
        self._is_damaged = False  # and it was said
        self._look_up()
        self._looked: dict[int, float] = {}  # file -> when it was last found as it was
        self.on_changed: Callable[[RootRow], None] = lambda _: None

    def close(self) -> None:
        """Close the list."""
        self._db.close()

    # -- adding ---------------------------------------------------------------------------

    async def add(self, path: Path, on_bytes: Callable[[int], None]) -> Referenced:
        """Make a file or folder content without copying it; `on_bytes` is told of the progress.

        One that is as it was when it was added before is not read again.

        Raises:
            UserError: there is none, it holds what is neither file nor folder, or it changes.
        """
        items = await trio.to_thread.run_sync(self._items, path)
        before, is_same = await trio.to_thread.run_sync(self._before, items)
        if before is not None and is_same:
            return Referenced(before.cid, before.size, was_hashed=False)
        is_folder = items[0].stat is None
        now_ms, real = int(time.time() * 1000), str(items[0].path)
        root = await trio.to_thread.run_sync(self._db.begin, real, is_folder, now_ms)
        try:
            with self._store.in_use.working():
                entry = await self._hash(root, items, on_bytes)
                await trio.to_thread.run_sync(self._finish, root, entry, items)
        except BaseException:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(self._db.remove, root)
            raise
        other = before.cid if before is not None and before.cid != entry.cid else ""
        return Referenced(entry.cid, entry.size_bytes, was_hashed=True, before=other)

    def _before(self, items: list[_Item]) -> tuple[RootRow | None, bool]:
        """Return what was added under a path before, and whether it is as it was."""
        before = next(iter(self._db.roots(path=str(items[0].path))), None)
        return before, before is not None and self._is_as_it_was(before, items)

    def _finish(self, root: int, entry: Entry, items: list[_Item]) -> None:
        self._store.settle_sync()
        self._db.finish(root, entry.cid, entry.size_bytes, _digest(items))
        self._look_up()

    def _look_up(self) -> None:
        """Keep in memory what is asked for often, from the loop."""
        self._roots = frozenset(r.cid for r in self._db.roots() if r.state == GOOD)

    def _items(self, path: Path) -> list[_Item]:
        """List a file, or a folder with all that lies in it; links in it are refused."""
        try:
            real = path.resolve(strict=True)
        except (OSError, RuntimeError) as error:
            raise UserError(f"cannot read {path}: {getattr(error, 'strerror', error)}") from None
        if real.is_relative_to(self._refused) or self._refused.is_relative_to(real):
            raise UserError(f"{real} is, or holds, this node's own home")
        items: list[_Item] = []
        _list(real, "", items, 0)
        return items

    def _is_as_it_was(self, root: RootRow, items: list[_Item]) -> bool:
        if root.state != GOOD or root.names != _digest(items) or not self._has_nodes(root.cid):
            return False
        stats = {item.path: item.stat for item in items}
        return all(stats.get(Path(file.path)) == file.stat for file in self._db.files(root.id))

    def _has_nodes(self, cid: str) -> bool:
        """Say whether the store has all inner nodes; a store may have been emptied."""
        waiting = [cid]
        while waiting:
            current = waiting.pop()
            if parse_cid(current).codec == DAG_PB:
                try:
                    node = parse_node(current, self._store.read_sync(current))
                except StoreUnavailable:
                    raise
                except BlockMissing:
                    return False
                waiting += [entry.cid for entry in node.entries]
        return True

    async def _hash(self, root: int, items: list[_Item], on_bytes: Callable[[int], None]) -> Entry:
        entries: dict[str, list[Entry]] = {}
        made: Entry | None = None
        for item in sorted(
            items, key=lambda i: i.name, reverse=True
        ):  # folders after what is in them
            if item.stat is None:
                made = await trio.to_thread.run_sync(self._folder, item, entries.pop(item.name, []))
            else:
                made = await self._file(root, item, on_bytes)
            parent, _, name = item.name.rpartition("/")
            if item.name:
                entry = Entry(made.cid, made.size_bytes, made.total_bytes, name)
                entries.setdefault(parent, []).append(entry)
        assert made is not None
        return made

    def _folder(self, item: _Item, entries: list[Entry]) -> Entry:
        try:
            return folder_of(entries, self._store.put_sync)
        except (UnixfsError, UnicodeEncodeError) as error:
            raise UserError(f"{item.path}: {error}") from None

    async def _file(self, root: int, item: _Item, on_bytes: Callable[[int], None]) -> Entry:
        hashing = _Hashing(self._db, self._store, root, item)
        while hashing.entry is None:  # the next turn sees to it that the loop is never waited for
            on_bytes(await trio.to_thread.run_sync(hashing.turn))
        return hashing.entry

    # -- blocks ---------------------------------------------------------------------------

    def has(self, cid: str) -> bool:
        """Say whether a block lies in a file that is as it was."""
        return any(self._is_there(leaf.file) for leaf in self._leaves(cid))

    def read_sync(self, cid: str) -> bytes:
        """Read a block from a file, in a thread; raises BlockMissing when no file has it (now)."""
        for leaf in self._leaves(cid):
            try:
                fd = _open(Path(leaf.file.path))
            except (UserError, OSError):
                continue  # a disk that is not there, for now
            try:
                is_same = Stat.of(os.fstat(fd)) == leaf.file.stat
                data = _read_fully(fd, leaf.start, leaf.size) if is_same else b""
            except OSError:
                continue
            finally:
                os.close(fd)
            if is_same and matches(cid, data):
                return data
            self._changed(leaf.file)
        raise BlockMissing(cid)

    def _leaves(self, cid: str) -> list[LeafRow]:
        """Return where a block lies, nowhere when the list is damaged: it says what is elsewhere,
        too, and a node can do without."""
        try:
            return self._db.leaves(cid)
        except ListDamagedError as error:
            self._say_damaged(error)
            return []

    def _say_damaged(self, error: ListDamagedError) -> None:
        if not self._is_damaged:
            log.error("%s; %s", error.message, error.hint)
        self._is_damaged = True

    def _is_there(self, file: FileRow) -> bool:
        now_s = time.monotonic()
        if self._looked.get(file.id, -_LOOKED_S) > now_s - _LOOKED_S:
            return True
        try:
            stat = Stat.of(os.lstat(file.path))
        except OSError:
            return False
        if stat != file.stat:
            self._changed(file)
            return False
        if len(self._looked) > FILES_MAX:
            self._looked.clear()
        self._looked[file.id] = now_s
        return True

    def _changed(self, file: FileRow) -> None:
        self._looked.pop(file.id, None)
        try:
            roots = [r for r in self._db.roots() if r.id == file.root and r.state == GOOD]
            self._db.set_state(file.root, CHANGED)
        except (StorageFullError, ListDamagedError):
            return  # noted and told when there is room: it is looked at each time
        with suppress(ListDamagedError):  # more is kept meanwhile than need be
            self._look_up()
        for root in roots:
            self.on_changed(root)

    # -- roots ----------------------------------------------------------------------------

    def unchanged_path(self, cid: str) -> Path | None:
        """Return where a file or folder with this CID lies, every file in it with the size, time
        and inode that it was hashed with, in a thread; None when there is none, or it cannot be
        told."""
        try:
            roots = self._db.roots(cid=cid)
            return next((Path(r.path) for r in roots if self._lies_as_it_was(r)), None)
        except ListDamagedError as error:
            self._say_damaged(error)
            return None

    def _lies_as_it_was(self, root: RootRow) -> bool:
        try:
            items = self._items(Path(root.path))
        except UserError:
            return False
        return str(items[0].path) == root.path and self._is_as_it_was(root, items)

    def all(self) -> list[RootRow]:
        """Return everything that was added, each looked at now, in a thread."""
        self._looked.clear()
        for root in self._db.roots():
            if root.state == GOOD:
                for file in self._db.files(root.id):
                    self._is_there(file)
        return self._db.roots()

    def roots(self) -> frozenset[str]:
        """Return the roots that are as they were as far as is known: the store has to keep their
        inner nodes."""
        return self._roots

    def remove(self, path: str) -> list[str]:
        """Forget what was added under a path, in a thread; returns its CIDs. The file stays."""
        found = self._db.roots(path=path)
        for root in found:
            self._db.remove(root.id)
        self._look_up()
        return [root.cid for root in found]


class _Hashing:
    """One file on its way to be content; `turn` is called in a thread until `entry` is there."""

    def __init__(self, db: ReferenceDb, store: LocalStore, root: int, item: _Item) -> None:
        assert item.stat is not None
        self._db = db
        self._store = store
        self._root = root
        self._path, self._stat = item.path, item.stat
        self._builder = FileBuilder(self._keep)
        self._file = 0
        self._start = 0
        self._leaves: list[tuple[str, int, int]] = []
        self.entry: Entry | None = None

    def _keep(self, cid: str, block: bytes) -> None:
        if parse_cid(cid).codec == RAW:
            self._leaves.append((cid, self._start, len(block)))
        else:
            self._store.put_sync(cid, block)

    def turn(self) -> int:
        """Hash some more; return how much."""
        before = self._start
        self._file = self._file or self._db.add_file(self._root, str(self._path), self._stat)
        fd = _open(self._path)
        try:
            for _ in range(_CHUNKS_PER_TURN):
                left = self._stat.size - self._start  # one that grows is not followed for ever
                chunk = _read_fully(fd, self._start, min(CHUNK_SIZE_BYTES, left))
                if not chunk:
                    self._finish(fd)
                    break
                self._builder.add_chunk(chunk)
                self._start += len(chunk)
        except OSError as error:
            raise UserError(f"cannot read {self._path}: {error.strerror}") from None
        finally:
            os.close(fd)
        self._db.add_leaves(self._file, self._leaves)
        self._leaves = []
        return self._start - before

    def _finish(self, fd: int) -> None:
        if Stat.of(os.fstat(fd)) != self._stat or self._start != self._stat.size:
            raise UserError(
                f"{self._path} changed while it was read",
                hint="add it when nobody writes to it any more",
                code="changed",
            )
        self.entry = self._builder.finish()


def _list(path: Path, name: str, items: list[_Item], depth: int) -> None:
    if len(items) > FILES_MAX or depth > DEPTH_MAX:
        raise UserError(f"{path}: more than {FILES_MAX} files, or deeper than {DEPTH_MAX} folders")
    if not _is_utf8(str(path)):
        raise UserError(f"{str(path)!r} is not named in UTF-8", hint="rename it")
    try:
        if path.is_symlink():
            raise UserError(f"{path} is a symbolic link", hint="copy what it points to")
        if path.is_dir():
            items.append(_Item(name, path, None))
            for entry in list(os.scandir(path)):
                inner = f"{name}/{entry.name}" if name else entry.name
                _list(Path(entry.path), inner, items, depth + 1)
        elif path.is_file():
            items.append(_Item(name, path, Stat.of(path.lstat())))
        else:
            raise UserError(f"{path} is neither file nor folder")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _digest(items: list[_Item]) -> str:
    """Return a digest of which files and folders there are."""
    names = sorted(f"{len(i.name)}:{i.name}:{i.stat is None}" for i in items)
    return hashlib.sha256("\0".join(names).encode()).hexdigest()


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None


def _read_fully(fd: int, start: int, size: int) -> bytes:
    parts = []
    while size > 0 and (part := os.pread(fd, size, start)):
        parts.append(part)
        start, size = start + len(part), size - len(part)
    return b"".join(parts)
