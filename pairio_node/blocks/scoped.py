"""Which blocks are held for which service. A block is stored once; a service's view of the store
shows only what came there for it: outputs of its runs, its apps, inputs that its submitters gave,
and what other members sent for it. Marks in the store's database (`block_db`) say so.

A member of one service who names content of another gets nothing by it: neither the block, nor a
run that reads it here. So a view takes a block as its own only with the bytes in hand, or when the
owner shares it. A mark that is lost means fetching again. A block goes with its marks: should it
come again, it is for those for whom it came then.
"""

import shutil
from collections.abc import Container, Sequence
from contextlib import suppress
from pathlib import Path

import trio

from pairio_node.blocks.base import BlockMissing, LocalStore
from pairio_node.blocks.content import Content
from pairio_node.blocks.disk import check_block
from pairio_node.errors import StorageFullError
from pairio_protocol.cid import CidError, parse_cid

__all__ = ["ScopedContent", "ServiceBlocks"]


class ServiceBlocks:
    """A service's view of a store: a block store itself."""

    def __init__(self, store: LocalStore, service: str) -> None:
        self._store = store
        self._service = service
        self.limiter = store.limiter

    def _is_marked(self, cid: str) -> bool:
        parse_cid(cid)  # what is none is nobody's
        return self._store.db.is_marked(self._service, cid)

    def has(self, cid: str) -> bool:
        """Say whether the block is here for the service."""
        with self._store.in_use.lock:  # its mark is not taken off between the two looks
            return self._is_marked(cid) and self._store.has(cid)

    async def get(self, cid: str) -> bytes:
        """Return a block, or raise BlockMissing, also for one that is here for others only."""
        if not self._is_marked(cid):
            raise BlockMissing(cid)
        return await self._store.get(cid)

    def read_sync(self, cid: str) -> bytes:
        """`get` for code that runs in a thread."""
        if not self._is_marked(cid):
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

    def put_at_once(self, cid: str, data: bytes) -> bool:
        """`put` of a few bytes that never waits; False when that cannot be."""
        with self._store.in_use.working(0):
            is_put = self._store.put_at_once(cid, data)
            if is_put:
                self._store.db.mark(self._service, cid)
        return is_put

    def settle_sync(self) -> None:
        """Return when all that was put is kept for good, in a thread."""
        self._store.settle_sync()

    def share_sync(self, cid: str) -> None:
        """Let the service have a block that is here."""
        parse_cid(cid)
        self._store.db.relieve_sync()
        self._store.db.mark(self._service, cid)


class ScopedContent:
    """The content of every service on one store. `everything` is the owner's own view of it.
    `old_marks` is where earlier versions kept marks, as empty files: they are taken over."""

    def __init__(self, store: LocalStore, old_marks: Path) -> None:
        self.store = store
        if old_marks.exists():
            self._take_over(old_marks)
        self.everything = Content(store)
        self._views: dict[str, Content] = {}

    def of(self, service: str) -> Content:
        """Return the content that is here for a service."""
        parse_cid(service)
        if service not in self._views:
            self._views[service] = Content(self._view(service))
        return self._views[service]

    def _view(self, service: str) -> ServiceBlocks:
        return ServiceBlocks(self.store, service)

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
                self.store.settle_sync()

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
            self.store.db.unmark(cid)
            return self.store.delete_sync(cid)

    def unmark_sync(self, cids: Sequence[str]) -> None:
        """Before blocks are deleted, the first of which is what the others lie below, take the
        marks off all that no work counts on: with a block that is a file no mark goes by itself,
        and a mark that a crash left alone would let a later block in (`clean_marks_sync`)."""
        db, in_use = self.store.db, self.store.in_use
        for cid in cids:
            with in_use.lock:
                if in_use.covers(cids[0]):
                    return
                if not in_use.covers(cid):
                    db.unmark(cid)
        if not all(map(db.has, cids)):
            with suppress(StorageFullError):  # what goes makes room
                db.settle_sync()

    def clean_marks_sync(self, stored: Container[str]) -> int:
        """Remove marks on blocks that are not here, as a crash may leave; return how many blocks
        had some."""
        removed = 0
        for cid in self.store.db.marked():
            if cid not in stored:
                with self.store.in_use.lock:
                    if not self.store.has(cid):  # else it came while they were listed
                        self.store.db.unmark(cid)
                        removed += 1
        return removed

    def _take_over(self, old_marks: Path) -> None:
        for mark in old_marks.glob("*/*/*"):
            service = mark.parent.parent.name
            with suppress(CidError):  # somebody else's file
                parse_cid(service)
                parse_cid(mark.name)
                self.store.db.relieve_sync()
                self.store.db.mark(service, mark.name)
        self.store.db.settle_sync()
        shutil.rmtree(old_marks)
