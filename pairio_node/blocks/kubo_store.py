"""The block store in a Kubo daemon, which others use too.

    put --> block/put, noted in the home --> linked: one folder of MFS, `/pairio/blocks/PEER.N`,
    delete --> noted no more              whose entries are all blocks that are noted

What is linked is left by the daemon's garbage collection, also a block that belongs to no whole
file yet, and nothing is pinned, hence nothing announced (`Provide.Strategy` pinned). Links are
written in batches: by whoever needs to know (`settle_sync`: the end of each add), and shortly after
by `watch`. If the daemon collects in between, what it took is noted no more, and who waits is told.
MFS is never left with changes that are not written: a collection followed by a crash would cost the
daemon its whole MFS.

What this node put there is noted in the home: an empty (sparse) file of the block's size each, with
the time of its last use. Kubo has no such times, and what it has besides is not this node's to
delete. A deleted block is the daemon's to collect when it collects.
"""

import math
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import trio

from pairio_node.blocks.base import BlockMissing, BlockUnreadable, StoredBlock, StoreUnavailable
from pairio_node.blocks.block_db import BlockDb
from pairio_node.blocks.disk import check_block
from pairio_node.blocks.in_use import InUse
from pairio_node.blocks.kubo import CLIENTS_MAX, KuboApi
from pairio_node.blocks.unixfs import Entry, UnixfsError, directory_block
from pairio_node.errors import StorageFullError, UserError
from pairio_protocol.cid import (
    DAG_PB,
    RAW,
    CidError,
    cid_bytes,
    cid_of,
    cid_text,
    matches,
    parse_cid,
)

__all__ = ["MFS_BLOCKS", "KuboBlockStore"]

MFS_BLOCKS: Final = "/pairio/blocks"
_LOOK_S: Final = 0.25
#: How often a daemon that answers is asked whether it is still there.
_PING_S: Final = 5.0
#: For so long whoever settles is told that blocks were lost: they may be his.
_LOST_S: Final = 10.0


class KuboBlockStore:
    """Blocks in the daemon that `api` speaks to, kept for the node `peer`, at most `quota_bytes`.

    `index` is a folder of the home. Asks the daemon at once; raises UserError when it cannot be.
    """

    def __init__(self, api: KuboApi, peer: str, index: Path, quota_bytes: int) -> None:
        self.api = api
        self.limiter: trio.CapacityLimiter | None = trio.CapacityLimiter(CLIENTS_MAX)
        self.quota_bytes = quota_bytes
        self.in_use = InUse()
        index.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.db = BlockDb(index / "held.db")
        #: Called in a thread when a block does not fit: makes room for it, or says False.
        self.make_room: Callable[[int], bool] = lambda _: False
        api.check()
        self.daemon = api.peer_id()
        self._mfs = f"{MFS_BLOCKS}/{peer}"
        self._index = index / self.daemon
        self._lock = threading.Lock()
        self._linking = threading.Lock()
        self._waiting: set[str] = set()  # put, but not linked
        self._changed: set[str] = set()  # folders of the index that are not linked as they are
        self._lost_s = -math.inf
        self._folders: dict[str, Entry] = {}  # as they are linked now
        self._number = self._find_tree()
        self._used_bytes = sum(block.size_bytes for block in self.stored_sync())

    def _find_tree(self) -> int:
        """Return the number of the folder of MFS; make home and folder agree if one is missing."""
        prefix = self._mfs.rpartition("/")[2] + "."
        names = [n for n, _ in self.api.list_files(MFS_BLOCKS) if n.startswith(prefix)]
        numbers = sorted(int(n[len(prefix) :]) for n in names if n[len(prefix) :].isdigit())
        for old in numbers[:-1]:  # left by a crash: the newest has all that they have
            self.api.unlink(f"{self._mfs}.{old}")
        if not self._index.exists():
            self._find_again(f"{self._mfs}.{numbers[-1]}" if numbers else "")
        # A start that crashed may have noted what it did not link; somebody may have removed links.
        self._changed = {entry.name for entry in os.scandir(self._index)}
        return numbers[-1] if numbers else 0

    def _find_again(self, tree: str) -> None:
        """Note what an earlier home of the same node put into the daemon: all of it or nothing, as
        what is not noted loses its link."""
        whole = self._index
        self._index = whole.with_name(f"{whole.name}.part")
        shutil.rmtree(self._index, ignore_errors=True)
        self._index.mkdir(mode=0o700, parents=True)
        for folder, _ in self.api.list_files(tree) if tree else []:
            for cid, size_bytes in self.api.list_files(f"{tree}/{folder}"):
                with suppress(CidError):
                    self._note_kept(cid, size_bytes)
        self._index.rename(whole)
        self._index = whole

    # -- what is noted in the home -------------------------------------------------------

    def _noted(self, cid: str) -> Path:
        parse_cid(cid)  # never a path of a peer's choosing
        return self._index / cid[-2:] / cid

    def _note_kept(self, cid: str, size_bytes: int) -> bool:
        """Note a block; False when it is noted already."""
        file = self._noted(cid)
        try:
            file.parent.mkdir(mode=0o700, exist_ok=True)
            try:
                fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            except FileExistsError:
                return False
            os.truncate(fd, size_bytes)
            os.close(fd)
        except OSError as error:
            raise StorageFullError(f"cannot note a block: {error.strerror}") from None
        return True

    @property
    def used_bytes(self) -> int:
        """How much the blocks take that this node put into the daemon."""
        return self._used_bytes

    def touch_sync(self, cid: str) -> None:
        """Note that a block was used now; nothing when it is not here."""
        with suppress(OSError):
            os.utime(self._noted(cid))

    def stored_sync(self) -> Iterator[StoredBlock]:
        """List the blocks that this node put into the daemon."""
        for folder in sorted(os.scandir(self._index), key=lambda entry: entry.name):
            for entry in list(os.scandir(folder.path)):
                try:
                    found = entry.stat(follow_symlinks=False)
                except FileNotFoundError:  # gone meanwhile
                    continue
                yield StoredBlock(entry.name, found.st_size, min(found.st_mtime, time.time()))

    def is_kept(self, cid: str) -> bool:
        """Say whether this node put a block there, and has not let it go; without asking."""
        return self._noted(cid).exists()

    # -- blocks --------------------------------------------------------------------------

    def has(self, cid: str) -> bool:
        """Say whether the daemon has the block, in a thread. One that it has by others is kept for
        this node from now on, where there is room: what was said to be here stays."""
        self._count_on(cid)
        size_bytes = self.api.block_size(cid)
        if size_bytes is None:
            return False
        if not self._noted(cid).exists() and self._has_room(size_bytes):
            self._keep(cid, size_bytes)
        return True

    def _count_on(self, cid: str) -> None:
        """Work counts on a block, from before the look: a deletion is over by then, or refused."""
        parse_cid(cid)
        with self.in_use.lock:
            self.in_use.note(cid)

    async def get(self, cid: str) -> bytes:
        """Return a block, or raise BlockMissing."""
        return await trio.to_thread.run_sync(
            self.read_sync,
            cid,
            limiter=self.limiter,
            abandon_on_cancel=True,  # type: ignore[call-arg]
        )

    def read_sync(self, cid: str) -> bytes:
        """`get` for code that runs in a thread."""
        parse_cid(cid)
        data = self.api.read_block(cid)
        if not matches(cid, data):
            raise BlockUnreadable(
                f"block {cid}: the Kubo daemon gave other bytes", hint="`ipfs repo verify` there"
            )
        return data

    async def put(self, cid: str, data: bytes) -> None:
        """Store a block after checking it. Raises BlockCorrupt or StorageFullError."""
        await trio.to_thread.run_sync(self.put_sync, cid, data, limiter=self.limiter)

    def put_sync(self, cid: str, data: bytes) -> None:
        """`put` for code that runs in a thread."""
        check_block(cid, data)
        self.put_checked(cid, data)

    def put_checked(self, cid: str, data: bytes) -> None:
        """Store a block that `check_block` found right, in a thread."""
        self._count_on(cid)
        if self._noted(cid).exists() and self.api.block_size(cid) is not None:
            self.touch_sync(cid)
            return
        if not self._has_room(len(data)) and not self.make_room(len(data)):
            raise StorageFullError(
                f"this node keeps {self._used_bytes} of {self.quota_bytes} bytes in the Kubo"
                f" daemon; {len(data)} more do not fit, and nothing that is left may go",
                hint="see what is kept and why: `pairio cache stats`, `pairio cache ls`; unpin what"
                " is not needed, or raise quota_bytes in node.toml",
            )
        self.api.put_block(cid, data)
        self._keep(cid, len(data))

    def _has_room(self, size_bytes: int) -> bool:
        return self._used_bytes + size_bytes <= self.quota_bytes

    def _keep(self, cid: str, size_bytes: int) -> None:
        """Note a block that the daemon has; it is linked with the next batch."""
        with self._lock:
            self._used_bytes += size_bytes if self._note_kept(cid, size_bytes) else 0
            self._waiting.add(cid)
            self._changed.add(cid[-2:])

    def _forget(self, cid: str) -> bool:
        """Note a block no more; False when it was not noted."""
        noted = self._noted(cid)
        with self._lock:
            try:
                size_bytes = noted.stat().st_size
                noted.unlink()
            except OSError:
                return False
            self._used_bytes -= size_bytes
            self._waiting.discard(cid)
            self._changed.add(cid[-2:])
        return True

    def delete_sync(self, cid: str) -> bool:
        """Let the daemon have a block back, unless work counts on it; say whether that was done."""
        with self.in_use.lock:
            return not self.in_use.covers(cid) and self._forget(cid)

    # -- links ---------------------------------------------------------------------------

    def put_at_once(self, cid: str, data: bytes) -> bool:
        """Another program is never asked on the loop."""
        return False

    def settle_sync(self) -> None:
        """Return when all that was put is safe from the daemon's collection, in a thread.

        Raises:
            StoreUnavailable: the daemon is gone, or its collection took some of it before.
        """
        self.db.settle_sync()
        self._link()
        if time.monotonic() - self._lost_s < _LOST_S:
            raise StoreUnavailable(
                f"the Kubo daemon at {self.api.address} collected blocks while they were put"
            )

    def _link(self) -> None:
        """Link what is noted, then look whether it is all there still."""
        with self._linking:
            with self._lock:
                batch, self._waiting = self._waiting, set()
                changed, self._changed = self._changed, set()
            if not changed:
                return
            try:
                self._write_tree(changed)
                lost = [cid for cid in batch if self.api.block_size(cid) is None]
            except BaseException:
                self._folders.clear()
                with self._lock:
                    self._waiting |= batch
                    self._changed |= changed
                raise
        for cid in lost:
            self._lost_s = time.monotonic()
            self._forget(cid)

    def _write_tree(self, changed: set[str]) -> None:
        """Make the folder of MFS anew, and remove the one before it."""
        for name in {entry.name for entry in os.scandir(self._index)}:
            if name in changed or name not in self._folders:
                self._folders[name] = self._put_folder(name, self._entries(name))
        root = self._put_folder("", list(self._folders.values()))
        self.api.link(root.cid, f"{self._mfs}.{self._number + 1}")
        self._number += 1
        self.api.unlink(f"{self._mfs}.{self._number - 1}")

    def _entries(self, folder: str) -> list[Entry]:
        """Return what is noted in a folder of the index, by hash: whatever its codec, a block is
        linked as bytes, so that nothing below it is asked for."""
        entries = []
        for noted in list(os.scandir(self._index / folder)):
            with suppress(FileNotFoundError):  # deleted meanwhile
                size_bytes = noted.stat(follow_symlinks=False).st_size
                raw = cid_text(bytes([1, RAW]) + cid_bytes(noted.name)[2:])
                entries.append(Entry(raw, size_bytes, size_bytes, noted.name))
        return entries

    def _put_folder(self, name: str, entries: list[Entry]) -> Entry:
        """Store the block of a folder."""
        try:
            block = directory_block(entries)
        except UnixfsError:
            raise StorageFullError("too many blocks for one Kubo daemon") from None
        cid, below = cid_of(DAG_PB, block), sum(entry.total_bytes for entry in entries)
        self.api.put_block(cid, block)
        return Entry(cid, below, len(block) + below, name)

    # -- the daemon ----------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """What the node's status says of the daemon."""
        why = self.api.why_down
        return {
            "api": self.api.address,
            "version": self.api.version,
            "peerId": self.daemon,
            "reachable": not why,
            "error": why or None,
        }

    async def watch(self, say: Callable[[str], None]) -> None:
        """Link what waits; look whether the daemon is there, and tell when that changes."""
        was_down, looked_s = "", trio.current_time()
        while True:
            await trio.sleep(_LOOK_S)
            is_due = bool(was_down) or trio.current_time() - looked_s >= _PING_S
            if self._changed or is_due or self.api.why_down:
                looked_s = trio.current_time()
                with suppress(UserError, BlockMissing):  # noted by the api, told below
                    await trio.to_thread.run_sync(self._look, abandon_on_cancel=True)  # type: ignore[call-arg]
            why = self.api.why_down
            if why and not was_down:
                say(f"warning: {why}. Content is missing here until it is back")
            if was_down and not why:
                say(f"the Kubo daemon at {self.api.address} is back")
            was_down = why

    def _look(self) -> None:
        self.api.expect(self.daemon)
        self._link()
