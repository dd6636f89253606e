"""Which blocks are held for which service. A block is stored once; a service's view of the store
shows only what came there for it: outputs of its runs, its apps, inputs that its submitters gave,
and what other members sent for it.

A member of one service who names content of another gets nothing by it: neither the block, nor a
run that reads it here. So a view takes a block as its own only with the bytes in hand, or when the
owner shares it. A mark is an empty file beside the store; one that is lost means fetching again. A
block goes with its marks: should it come again, it is for those for whom it came then.
"""

import os
from collections.abc import Container, Iterator
from pathlib import Path

import trio

from pairio_node.blocks.base import BlockMissing, LocalStore
from pairio_node.blocks.content import Content
from pairio_node.blocks.disk import check_block
from pairio_node.errors import StorageFullError
from pairio_protocol.cid import parse_cid

__all__ = ["ScopedContent", "ServiceBlocks"]


class ServiceBlocks:
    """A service's view of a store: a block store itself."""

    def __init__(self, store: LocalStore, marks: Path) -> None:
        self._store = store
        self._marks = marks
        self.limiter = store.limiter

    def _mark(self, cid: str) -> Path:
        parse_cid(cid)  # never a path of a peer's choosing
        return self._marks / cid[-2:] / cid

    def has(self, cid: str) -> bool:
        """Say whether the block is here for the service."""
        return self._mark(cid).exists() and self._store.has(cid)

    async def get(self, cid: str) -> bytes:
        """Return a block, or raise BlockMissing, also for one that is here for others only."""
        if not self._mark(cid).exists():
            raise BlockMissing(cid)
        return await self._store.get(cid)

    def read_sync(self, cid: str) -> bytes:
        """`get` for code that runs in a thread."""
        if not self._mark(cid).exists():
            raise BlockMissing(cid)
        return self._store.read_sync(cid)

    async def put(self, cid: str, data: bytes) -> None:
        """Store a block after checking it. Raises BlockCorrupt or StorageFullError."""
        await trio.to_thread.run_sync(self.put_sync, cid, data, limiter=self.limiter)

    def put_sync(self, cid: str, data: bytes) -> None:
        """`put` for code that runs in a thread. The bytes are checked even when others have the
        block here: who brings it proves to have it."""
        check_block(cid, data)
        with self._store.in_use.working(0):  # the block does not go before its mark is there
            self._store.put_checked(cid, data)
            self.share_sync(cid)

    def settle_sync(self) -> None:
        """Return when all that was put is kept for good, in a thread."""
        self._store.settle_sync()

    def share_sync(self, cid: str) -> None:
        """Let the service have a block that is here."""
        mark = self._mark(cid)
        try:
            with self._store.in_use.lock:  # who finds the mark here can settle it
                self._make(mark)
        except OSError as error:
            raise StorageFullError(f"cannot store a block: {error.strerror}") from None

    def _make(self, mark: Path) -> None:
        try:
            mark.touch(mode=0o600, exist_ok=False)
        except FileExistsError:
            return
        except FileNotFoundError:
            mark.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            for folder in (self._marks, self._marks.parent):
                self._store.folders.note(folder)
            mark.touch(mode=0o600)
        self._store.folders.note(mark.parent)


class ScopedContent:
    """The content of every service on one store. `everything` is the owner's own view of it."""

    def __init__(self, store: LocalStore, marks: Path) -> None:
        self.store = store
        self._marks = marks
        self.everything = Content(store)
        self._views: dict[str, Content] = {}

    def of(self, service: str) -> Content:
        """Return the content that is here for a service."""
        parse_cid(service)
        if service not in self._views:
            self._views[service] = Content(self._view(service))
        return self._views[service]

    def _view(self, service: str) -> ServiceBlocks:
        return ServiceBlocks(self.store, self._marks / service)

    async def share(self, service: str, cid: str) -> bool:
        """Let a service have what lies below `cid` here, as its owner wants; False, and nothing
        done, when it is not here whole."""
        view = self._view(service)
        with self.store.in_use.working():
            here, missing = await self.everything.walk(cid)
            if missing:
                return False

            def share_all() -> None:
                for block in here:
                    view.share_sync(block)
                self.store.folders.settle_sync()

            await trio.to_thread.run_sync(share_all)
        return True

    async def settle(self, service: str) -> None:
        """Return when all that is here for a service is kept for good: before anybody is told."""
        store = self.of(service).store
        await trio.to_thread.run_sync(store.settle_sync, limiter=store.limiter)

    def delete_sync(self, cid: str) -> bool:
        """Delete a block and the marks on it, in a thread, unless work counts on it; say whether
        that was done."""
        parse_cid(cid)
        with self.store.in_use.lock:
            if self.store.in_use.covers(cid):
                return False
            for service in self._services():  # first: a mark alone would let a later block in
                (service / cid[-2:] / cid).unlink(missing_ok=True)
            return self.store.delete_sync(cid)

    def clean_marks_sync(self, stored: Container[str]) -> int:
        """Remove marks on blocks that are not here, as a crash may leave; return how many."""
        removed = 0
        for service in self._services():
            for folder in list(os.scandir(service)):
                for mark in list(os.scandir(folder.path)):
                    removed += mark.name not in stored and self._remove_mark(Path(mark.path))
        return removed

    def _remove_mark(self, mark: Path) -> bool:
        with self.store.in_use.lock:
            if self.store.has(mark.name):  # it came while they were listed
                return False
            mark.unlink(missing_ok=True)
        return True

    def _services(self) -> Iterator[Path]:
        """Where the marks of each service lie."""
        if self._marks.exists():
            for entry in list(os.scandir(self._marks)):
                if entry.is_dir(follow_symlinks=False):
                    yield Path(entry.path)
