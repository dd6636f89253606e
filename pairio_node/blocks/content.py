"""Files and folders as content: import, export, read, on top of a block store."""

import os
import stat
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

import trio

from pairio_node.blocks.base import Added, BlockStore
from pairio_node.blocks.putting import FOLDER_THREADS, Putting
from pairio_node.blocks.unixfs import (
    CHUNK_SIZE_BYTES,
    Entry,
    FileBuilder,
    Listing,
    Node,
    UnixfsError,
    folder_of,
    parse_node,
)
from pairio_node.errors import UserError
from pairio_protocol.cid import DAG_CBOR, DAG_PB, RAW, parse_cid
from pairio_protocol.limits import FOLDER_ENTRIES_MAX

__all__ = ["DEPTH_MAX", "Content"]

DEPTH_MAX = 64
FILES_MAX = FOLDER_ENTRIES_MAX
#: Files and folders written at once: those of a folder that may be added, and itself.
EXPORTED_MAX = FILES_MAX + 1


#: Hashing as much takes no longer than having a thread do it.
_AT_ONCE_BYTES_MAX = 16 * 1024


class _InThread(Exception):
    """It takes too long for the loop."""


@dataclass
class _Adding:
    """A folder that is being added."""

    top: Path
    skip: Callable[[str], bool]
    put: Callable[[str, bytes], None]
    count: int = 0


class Content:
    """What is in the store, as files and folders. Bulk work runs in threads."""

    def __init__(self, store: BlockStore) -> None:
        self.store = store

    # -- adding -------------------------------------------------------------------------

    async def add_bytes(self, data: bytes) -> Added:
        """Add a small file from memory."""
        return await trio.to_thread.run_sync(
            self._add_chunks, _split(data), limiter=self.store.limiter
        )

    async def add_file(self, path: Path) -> Added:
        """Add a regular file; refused in words when it is anything else."""
        return await trio.to_thread.run_sync(self._add_file, path, limiter=self.store.limiter)

    async def add_directory(
        self, path: Path, skip: Callable[[str], bool] = lambda _: False
    ) -> Added:
        """Add a folder; `skip` is asked with the path relative to it, in posix form."""
        return await trio.to_thread.run_sync(
            self._add_directory, path, skip, limiter=self.store.limiter
        )

    async def add_all(
        self, paths: Mapping[str, Path], texts: Mapping[str, bytes], *, settle: bool = True
    ) -> dict[str, Added]:
        """Add files and folders, and small files from memory, by name; all are kept for good
        together. Without `settle` that may be left to the next who settles the store, when nothing
        but a few bytes from memory is added."""

        def add() -> dict[str, Added]:
            added = {name: self._add_path(path) for name, path in paths.items()}
            for name, data in texts.items():
                added[name] = self._add_chunks(_split(data), settle=False)
            self.store.settle_sync()
            return added

        if not settle and not paths:
            with suppress(_InThread):
                return {name: self._added_at_once(data) for name, data in texts.items()}
        return await trio.to_thread.run_sync(add, limiter=self.store.limiter)

    def _added_at_once(self, data: bytes) -> Added:
        """Add a few bytes on the loop, or raise _InThread."""

        def put(cid: str, block: bytes) -> None:
            if not self.store.put_at_once(cid, block):
                raise _InThread

        if len(data) > _AT_ONCE_BYTES_MAX:
            raise _InThread
        builder = FileBuilder(put)
        if data:
            builder.add_chunk(data)
        return self._added(builder.finish(), settle=False)

    def _add_path(self, path: Path) -> Added:
        if path.is_dir():
            return self._add_directory(path, lambda _: False, settle=False)
        return self._add_file(path, settle=False)

    async def add_stream(self, chunks: AsyncIterator[bytes]) -> Added:
        """Add what a stream brings, with one chunk in memory."""
        builder = FileBuilder(self.store.put_sync)
        buffer = bytearray()
        async for data in chunks:
            buffer += data
            while len(buffer) >= CHUNK_SIZE_BYTES:
                chunk = bytes(buffer[:CHUNK_SIZE_BYTES])
                del buffer[:CHUNK_SIZE_BYTES]
                await trio.to_thread.run_sync(builder.add_chunk, chunk, limiter=self.store.limiter)
        if buffer:
            await trio.to_thread.run_sync(
                builder.add_chunk, bytes(buffer), limiter=self.store.limiter
            )
        return await trio.to_thread.run_sync(
            lambda: self._added(builder.finish()), limiter=self.store.limiter
        )

    def _added(self, root: Entry, settle: bool = True) -> Added:
        if settle:
            self.store.settle_sync()
        return Added(root.cid, root.size_bytes)

    def _add_chunks(self, chunks: Iterator[bytes], settle: bool = True) -> Added:
        builder = FileBuilder(self.store.put_sync)
        for chunk in chunks:
            builder.add_chunk(chunk)
        return self._added(builder.finish(), settle)

    def _file_entry(self, path: Path, put: Callable[[str, bytes], None]) -> Entry:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from None
        with open(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise UserError(f"{path} is no regular file", hint="links and devices are refused")
            builder = FileBuilder(put)
            while chunk := file.read(CHUNK_SIZE_BYTES):
                builder.add_chunk(chunk)
            return builder.finish()

    def _add_file(self, path: Path, settle: bool = True) -> Added:
        with Putting(self.store) as putting:
            entry = self._file_entry(path, putting.put)
        return self._added(entry, settle)

    def _add_directory(self, top: Path, skip: Callable[[str], bool], settle: bool = True) -> Added:
        with Putting(self.store, FOLDER_THREADS) as putting:
            entry = self._directory_entry(_Adding(top, skip, putting.put), top, 0)
        return self._added(entry, settle)

    def _directory_entry(self, adding: "_Adding", path: Path, depth: int) -> Entry:
        if depth > DEPTH_MAX:
            raise UserError(f"{path} lies deeper than {DEPTH_MAX} folders")
        entries = []
        for item in sorted(os.scandir(path), key=lambda e: e.name):
            child = Path(item.path)
            if adding.skip(child.relative_to(adding.top).as_posix()):
                continue
            adding.count += 1
            if adding.count > FILES_MAX:
                raise UserError(f"{adding.top} holds more than {FILES_MAX} files")
            if item.is_symlink():
                raise UserError(f"{child} is a symbolic link", hint="copy what it points to")
            if item.is_dir():
                entry = self._directory_entry(adding, child, depth + 1)
            else:
                entry = self._file_entry(child, adding.put)
            entries.append(Entry(entry.cid, entry.size_bytes, entry.total_bytes, item.name))
        try:
            return folder_of(entries, adding.put)
        except (UnixfsError, UnicodeEncodeError) as error:
            raise UserError(f"{path}: {error}") from None

    # -- reading ------------------------------------------------------------------------

    async def has(self, cid: str) -> bool:
        """Say whether a block is here."""
        return await trio.to_thread.run_sync(self.store.has, cid, limiter=self.store.limiter)

    async def node(self, cid: str) -> Node:
        """Return a parsed block; raises BlockMissing or UnixfsError."""
        return parse_node(cid, await self.store.get(cid))

    async def entries(self, cid: str) -> list[Entry]:
        """Return what lies in a folder, however it is kept; BlockMissing or UnixfsError."""
        return await trio.to_thread.run_sync(self._entries_sync, cid, limiter=self.store.limiter)

    def _entries_sync(self, cid: str) -> list[Entry]:
        listing = Listing(parse_node(cid, self.store.read_sync(cid)))
        while (shard := listing.next) is not None:
            trio.from_thread.check_cancelled()
            listing.take(parse_node(shard, self.store.read_sync(shard)))
        return listing.entries

    async def size(self, cid: str) -> int:
        """Return the bytes of a file; raises BlockMissing or UnixfsError for a folder."""
        node = await self.node(cid)
        if node.is_directory:
            raise UnixfsError(f"{cid} is a folder")
        return node.size_bytes

    async def read(self, cid: str, start: int = 0, stop: int | None = None) -> AsyncIterator[bytes]:
        """Yield the bytes of a file from `start` to before `stop`, a block at a time."""
        node = await self.node(cid)
        if node.is_directory:
            raise UnixfsError(f"{cid} is a folder")
        end = node.size_bytes if stop is None else min(stop, node.size_bytes)
        if start >= end:
            return
        async for chunk in self._read(node, start, end, 0):
            yield chunk

    async def _read(self, node: Node, start: int, stop: int, depth: int) -> AsyncIterator[bytes]:
        if depth > DEPTH_MAX:
            raise UnixfsError("a file that is too deep")
        if not node.entries:
            if start < stop:
                yield node.data[start:stop]
            return
        at = 0
        for entry in node.entries:
            begin, end = at, at + entry.size_bytes
            at = end
            if end <= start or begin >= stop:
                continue
            child = await self.node(entry.cid)
            inner = self._read(child, max(0, start - begin), min(stop, end) - begin, depth + 1)
            async for chunk in inner:
                yield chunk

    async def missing(self, cid: str, *, blocks_max: int = 1_000_000) -> list[str]:
        """Return the blocks below `cid` that are not here, as far as is known without them."""
        return (await self.walk(cid, blocks_max=blocks_max))[1]

    async def walk(self, cid: str, *, blocks_max: int = 1_000_000) -> tuple[list[str], list[str]]:
        """Return (blocks that are here, blocks that are not) below `cid`, itself included."""
        return await trio.to_thread.run_sync(
            self._walk, cid, blocks_max, limiter=self.store.limiter
        )

    def _walk(self, cid: str, blocks_max: int) -> tuple[list[str], list[str]]:
        here: list[str] = []
        found: list[str] = []
        queue, seen = [cid], {cid}
        while queue:
            trio.from_thread.check_cancelled()
            current = queue.pop()
            if not self.store.has(current):
                found.append(current)
                continue
            here.append(current)
            for child in self._children(current):
                if child not in seen:
                    seen.add(child)
                    queue.append(child)
            if len(seen) > blocks_max:
                raise UnixfsError(f"more than {blocks_max} blocks")
        return here, found

    def _children(self, cid: str) -> list[str]:
        if parse_cid(cid).codec != DAG_PB:
            return []
        return [entry.cid for entry in parse_node(cid, self.store.read_sync(cid)).entries]

    # -- exporting ----------------------------------------------------------------------

    async def export(self, cid: str, destination: Path, *, limit_bytes: int = 2**62) -> int:
        """Write a file or folder to `destination` (which must not exist); return its bytes.

        Programs (ELF, `#!`) become executable, since UnixFS carries no mode. A folder's names
        are checked; nothing is ever written outside `destination`. A few blocks can name folders
        without end, one in the other twice: the count of what is written is bounded, too.

        Raises:
            BlockMissing, UnixfsError: what was written so far lies there still.
        """
        return await self._export(cid, destination, limit_bytes, 0, _Count(1))

    async def _export(
        self, cid: str, destination: Path, limit_bytes: int, depth: int, count: "_Count"
    ) -> int:
        if depth > DEPTH_MAX or parse_cid(cid).codec == DAG_CBOR:
            raise UnixfsError(f"{cid} is no file or folder")
        node = await self.node(cid)
        if not node.is_directory:
            if node.size_bytes > limit_bytes:
                raise UnixfsError(f"{cid} is larger than {limit_bytes} bytes")
            return await self._export_file(cid, destination)
        entries = await self.entries(cid) if node.fanout else node.entries
        _check_names(entries)
        count.add(len(entries))
        small = [entry for entry in entries if parse_cid(entry.cid).codec == RAW]
        written = await trio.to_thread.run_sync(
            self._export_folder, small, destination, limit_bytes, limiter=self.store.limiter
        )
        for entry in entries:
            if parse_cid(entry.cid).codec != RAW:
                path = destination / entry.name
                left = limit_bytes - written
                written += await self._export(entry.cid, path, left, depth + 1, count)
        return written

    def _export_folder(self, entries: Sequence[Entry], folder: Path, limit_bytes: int) -> int:
        """Make a folder with its files of one block each, in a thread."""
        folder.mkdir(mode=0o755)
        written = 0
        for entry in entries:
            trio.from_thread.check_cancelled()
            data = self.store.read_sync(entry.cid)
            written += len(data)
            if written > limit_bytes:
                raise UnixfsError(f"{entry.cid} is larger than {limit_bytes} bytes")
            with _new_file(folder / entry.name) as file:
                _begin(file, data)
        return written

    async def _export_file(self, cid: str, destination: Path) -> int:
        written = 0
        with _new_file(destination) as file:
            async for chunk in self.read(cid):
                write = file.write if written else partial(_begin, file)
                await trio.to_thread.run_sync(write, chunk)
                written += len(chunk)
        return written


class _Count:
    """How many files and folders were written."""

    def __init__(self, count: int) -> None:
        self._count = count

    def add(self, count: int) -> None:
        """So many more will be."""
        self._count += count
        if self._count > EXPORTED_MAX:
            raise UnixfsError(f"more than {EXPORTED_MAX} files and folders")


def _check_names(entries: Sequence[Entry]) -> None:
    names = set()
    for entry in entries:
        if entry.name in ("", ".", "..") or "/" in entry.name or "\0" in entry.name:
            raise UnixfsError(f"a folder with the name {entry.name!r}")
        if entry.name in names:
            raise UnixfsError(f"a folder with {entry.name!r} twice")
        names.add(entry.name)


def _new_file(path: Path) -> BinaryIO:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    return open(os.open(path, flags, 0o644), "wb")


def _begin(file: BinaryIO, data: bytes) -> None:
    """Write the beginning of a file; one that is a program becomes executable."""
    if data[:4] == b"\x7fELF" or data[:2] == b"#!":
        os.fchmod(file.fileno(), 0o755)
    file.write(data)


def _split(data: bytes) -> Iterator[bytes]:
    return (data[i : i + CHUNK_SIZE_BYTES] for i in range(0, len(data), CHUNK_SIZE_BYTES))
