"""The embedded block store: small blocks in a database (`block_db`), each larger one a file, in
folders by the end of its CID.

A file is written beside, synced, renamed: a block is there whole or not at all. Its folder is
synced before anybody is told that it is kept (`settle_sync`). A file's time of change says when the
block was last used. Earlier versions kept small blocks in files, too: those are found there.
"""

import os
import re
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import trio

from pairio_node.blocks.base import (
    BLOCK_SIZE_BYTES_MAX,
    BlockCorrupt,
    BlockMissing,
    BlockUnreadable,
    StoredBlock,
)
from pairio_node.blocks.block_db import SMALL_SIZE_BYTES_MAX, BlockDb
from pairio_node.blocks.in_use import InUse
from pairio_node.blocks.synced import SyncedFolders
from pairio_node.errors import StorageFullError
from pairio_protocol.cid import CidError, matches, parse_cid

__all__ = ["DiskBlockStore", "check_block"]


#: CIDs of raw, dag-pb and dag-cbor blocks by sha2-256, exactly: parsing costs 20 microseconds each.
_COMMON_CID = re.compile("baf(?:kre|ybe|yre)i[a-h][a-z2-7]{50}[aeimquy4]")


def check_block(cid: str, data: bytes) -> None:
    """Raise BlockCorrupt when the bytes are not the block that the CID names."""
    if len(data) > BLOCK_SIZE_BYTES_MAX or not matches(cid, data):
        raise BlockCorrupt(f"{len(data)} bytes are not the block {cid}")


class DiskBlockStore:
    """Blocks below `path`, at most `quota_bytes` of them."""

    limiter: trio.CapacityLimiter | None = None

    def __init__(self, path: Path, quota_bytes: int) -> None:
        self._path = path
        self.quota_bytes = quota_bytes
        self.in_use = InUse()
        #: Called in a thread when a block does not fit: makes room for it, or says False.
        self.make_room: Callable[[int], bool] = lambda _: False
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.db = BlockDb(path / "small.db")
        self._folders = SyncedFolders()
        self._files_bytes = self._measure()

    def _measure(self) -> int:
        used = 0
        for folder in list(os.scandir(self._path)):
            if folder.is_dir(follow_symlinks=False):
                for entry in list(os.scandir(folder.path)):
                    if entry.name.endswith(".tmp"):
                        os.unlink(entry.path)  # left behind by a crash
                    else:
                        used += entry.stat(follow_symlinks=False).st_size
        return used

    @property
    def used_bytes(self) -> int:
        """How much the blocks take."""
        return self._files_bytes + self.db.used_bytes

    def _file(self, cid: str) -> Path:
        parse_cid(cid)  # never a path of a peer's choosing
        return self._path / cid[-2:] / cid

    def has(self, cid: str) -> bool:
        """Say whether the block is here."""
        file = self._file(cid)
        with self.in_use.lock:
            is_here = self.db.has(cid) or file.exists()
            if is_here:
                self.in_use.note(cid)
        return is_here

    async def get(self, cid: str) -> bytes:
        """Return a block, or raise BlockMissing."""
        return await trio.to_thread.run_sync(self.read_sync, cid)

    def read_sync(self, cid: str) -> bytes:
        """`get` for code that runs in a thread."""
        file = self._file(cid)
        try:
            small = self.db.read(cid)
            return file.read_bytes() if small is None else small
        except FileNotFoundError:
            raise BlockMissing(cid) from None
        except OSError as error:  # a disk that fails: nobody who looks for it is to fail with it
            raise BlockUnreadable(
                f"block {cid} cannot be read: {error.strerror or error}",
                hint="it is tried again; if it stays so, look at the disk of the node's home, or"
                f" move {file if file.exists() else self.db.path} away while the node is stopped:"
                " members send what they still have",
            ) from None

    async def put(self, cid: str, data: bytes) -> None:
        """Store a block after checking it. Raises BlockCorrupt or StorageFullError."""
        await trio.to_thread.run_sync(self.put_sync, cid, data)

    def put_sync(self, cid: str, data: bytes) -> None:
        """`put` for code that runs in a thread."""
        if not self._is_put(cid):
            check_block(cid, data)
            self.put_checked(cid, data)

    def put_at_once(self, cid: str, data: bytes) -> bool:
        """`put` of a few bytes that never waits; False when that cannot be: for want of room, or
        because much waits already."""
        check_block(cid, data)
        if self._is_put(cid):
            return True
        fits = self.used_bytes + len(data) <= self.quota_bytes
        if not fits or len(data) > SMALL_SIZE_BYTES_MAX or self.db.is_due:
            return False
        self._put_small(cid, data)
        return True

    def _is_put(self, cid: str) -> bool:
        """Say whether the block is here; then it is used now, as if it had just come."""
        is_here = self.has(cid)
        if is_here:
            self.touch_sync(cid)
        return is_here

    def put_checked(self, cid: str, data: bytes) -> None:
        """Store a block that `check_block` found right, in a thread."""
        if self._is_put(cid):
            return
        self._check_room(len(data))
        if len(data) > SMALL_SIZE_BYTES_MAX:
            self._put_file(cid, data)
            return
        self.db.relieve_sync()  # before: a disk that fails takes no more
        self._put_small(cid, data)

    def _put_small(self, cid: str, data: bytes) -> None:
        with self.in_use.lock:
            self.db.put(cid, data)
            self.in_use.note(cid)

    def _put_file(self, cid: str, data: bytes) -> None:
        file = self._file(cid)
        temporary = file.with_name(f"{cid}.{secrets.token_hex(4)}.tmp")
        try:
            if _write(temporary, data):
                self._folders.note(self._path)
            with self.in_use.lock:
                is_new = not file.exists()  # another thread may have brought the same
                temporary.rename(file)
                self._files_bytes += len(data) if is_new else 0
                self.in_use.note(cid)
                self._folders.note(file.parent)  # under the lock: who finds it here can settle it
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise StorageFullError(f"cannot store a block: {error.strerror}") from None

    def settle_sync(self) -> None:
        """Return when all that was put is kept for good, in a thread. Each block is on the disk
        when it is put; this is for their names."""
        self._folders.settle_sync()
        self.db.settle_sync()  # last: it has the marks on what lies in files, too

    def _check_room(self, size_bytes: int) -> None:
        """Raise StorageFullError when a block does not fit, also after what may go has gone."""
        if self.used_bytes + size_bytes <= self.quota_bytes or self.make_room(size_bytes):
            return
        raise StorageFullError(
            f"the block store holds {self.used_bytes} of {self.quota_bytes} bytes;"
            f" {size_bytes} more do not fit, and nothing that is left may go",
            hint="see what is kept and why: `pairio cache stats`, `pairio cache ls`; unpin what is"
            " not needed, or raise quota_bytes in node.toml",
        )

    # -- what goes ------------------------------------------------------------------------

    def touch_sync(self, cid: str) -> None:
        """Note that a block was used now; nothing when it is not here."""
        file = self._file(cid)
        if not self.db.touch(cid):
            with suppress(OSError):  # gone, or a disk that is read only: its time tells too little
                os.utime(file)

    def delete_sync(self, cid: str) -> bool:
        """Delete a block, unless work counts on it; say whether that was done."""
        file = self._file(cid)
        with self.in_use.lock:
            if self.in_use.covers(cid):
                return False
            if self.db.delete(cid):
                return True
            try:
                size_bytes = file.stat().st_size
                file.unlink()
            except OSError:  # gone already, or it cannot be: the store stays as large as it is
                return False
            self._files_bytes -= size_bytes
        return True

    def stored_sync(self) -> Iterator[StoredBlock]:
        """List the blocks; one that comes or goes meanwhile may be listed or not."""
        yield from self.db.listed()
        for folder in sorted(os.scandir(self._path), key=lambda entry: entry.name):
            if not folder.is_dir(follow_symlinks=False):
                continue
            for entry in list(os.scandir(folder.path)):
                try:
                    if _COMMON_CID.fullmatch(entry.name) is None:
                        parse_cid(entry.name)
                    found = entry.stat(follow_symlinks=False)
                except (CidError, FileNotFoundError):  # being written, or gone
                    continue
                yield StoredBlock(entry.name, found.st_size, min(found.st_mtime, time.time()))


def _write(path: Path, data: bytes) -> bool:
    """Write a new file, synced; say whether its folder is new. Few calls: while the loop is busy
    each may wait for the GIL."""
    is_new = False
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        fd = os.open(path, flags, 0o600)
    except FileNotFoundError:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        is_new = True
        fd = os.open(path, flags, 0o600)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(fd, rest) :]
        os.fsync(fd)
    finally:
        os.close(fd)
    return is_new
