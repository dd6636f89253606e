"""A node's store together with the files that are content by reference: a store itself."""

from collections.abc import Callable, Iterator

import trio

from pairio_node.blocks.base import BlockMissing, LocalStore, StoredBlock
from pairio_node.blocks.in_use import InUse
from pairio_node.blocks.references import References

__all__ = ["ReferencingStore"]


class ReferencingStore:
    """What is not in `store` is looked for in referenced files. Blocks in those take no room, are
    not listed, and cannot be deleted here."""

    def __init__(self, store: LocalStore, references: References) -> None:
        self._store = store
        self._references = references
        self.in_use: InUse = store.in_use
        self.db = store.db
        self.limiter = store.limiter
        self.quota_bytes = store.quota_bytes

    @property
    def make_room(self) -> Callable[[int], bool]:
        """What is called when a block does not fit."""
        return self._store.make_room

    @make_room.setter
    def make_room(self, make_room: Callable[[int], bool]) -> None:
        self._store.make_room = make_room

    @property
    def used_bytes(self) -> int:
        """How much the blocks take."""
        return self._store.used_bytes

    def has(self, cid: str) -> bool:
        """Say whether the block is here."""
        return self._store.has(cid) or self._references.has(cid)

    async def get(self, cid: str) -> bytes:
        """Return a block, or raise BlockMissing."""
        try:
            return await self._store.get(cid)
        except BlockMissing as missing:
            try:
                return await trio.to_thread.run_sync(self._references.read_sync, cid)
            except BlockMissing:
                raise missing from None  # it may say more: the store cannot be asked

    def read_sync(self, cid: str) -> bytes:
        """`get` for code that runs in a thread."""
        try:
            return self._store.read_sync(cid)
        except BlockMissing as missing:
            try:
                return self._references.read_sync(cid)
            except BlockMissing:
                raise missing from None  # it may say more: the store cannot be asked

    async def put(self, cid: str, data: bytes) -> None:
        """Store a block after checking it. Raises BlockCorrupt or StorageFullError."""
        await self._store.put(cid, data)

    def put_sync(self, cid: str, data: bytes) -> None:
        """`put` for code that runs in a thread."""
        self._store.put_sync(cid, data)

    def put_at_once(self, cid: str, data: bytes) -> bool:
        """`put` of a few bytes that never waits; False when that cannot be."""
        return self._store.put_at_once(cid, data)

    def put_checked(self, cid: str, data: bytes) -> None:
        """`put_sync` of a block that was found right."""
        self._store.put_checked(cid, data)

    def settle_sync(self) -> None:
        """Return when all that was put is kept for good, in a thread."""
        self._store.settle_sync()

    def touch_sync(self, cid: str) -> None:
        """Note that a block was used now."""
        self._store.touch_sync(cid)

    def delete_sync(self, cid: str) -> bool:
        """Delete a block, unless work counts on it; say whether that was done."""
        return self._store.delete_sync(cid)

    def stored_sync(self) -> Iterator[StoredBlock]:
        """List the blocks that may be deleted."""
        return self._store.stored_sync()
