"""What a block store is. Blocks are at most BLOCK_SIZE_BYTES_MAX and named by their CID."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

import trio

from pairio_node.blocks.in_use import InUse
from pairio_node.errors import UnavailableError

if TYPE_CHECKING:
    from pairio_node.blocks.block_db import BlockDb

__all__ = [
    "BLOCK_SIZE_BYTES_MAX",
    "Added",
    "BlockCorrupt",
    "BlockMissing",
    "BlockStore",
    "BlockUnreadable",
    "LocalStore",
    "StoreUnavailable",
    "StoredBlock",
]

#: Kubo 0.40 and later take blocks of 2 MiB; our chunks are 1 MiB.
BLOCK_SIZE_BYTES_MAX: Final = 2 * 1024 * 1024


class BlockMissing(LookupError):
    """The block is not in this store."""


class BlockUnreadable(BlockMissing):
    """The block is in this store, or may be, and cannot be read now: a disk that fails, too many
    open files. Whoever reads takes it for missing; whoever deletes must not. `hint` says what its
    owner can do."""

    def __init__(self, message: str, *, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


class StoreUnavailable(BlockMissing, UnavailableError):
    """What keeps the blocks does not answer: whether the block is there is not known. Whoever
    reads takes it for missing; the words and the hint are for people."""

    def __init__(
        self, message: str, *, hint: str = "start it again; the node goes on by itself"
    ) -> None:
        UnavailableError.__init__(self, message, hint=hint, code="store_down")


class BlockCorrupt(ValueError):
    """The bytes are not the block that the CID names. Nothing was stored."""


class Added(NamedTuple):
    """Content that is in the store now; `size_bytes` is that of the file or folder."""

    cid: str
    size_bytes: int


class StoredBlock(NamedTuple):
    """A block in a listing: what it takes, and when it was last used."""

    cid: str
    size_bytes: int
    used_unix_s: float


class BlockStore(Protocol):
    """Blocks by CID. Whole blocks only; a block that is there is right.

    Every call may raise StoreUnavailable where blocks are kept by another program.
    """

    #: The threads that may work for the store at once; None: those of everybody.
    limiter: trio.CapacityLimiter | None

    def has(self, cid: str) -> bool:
        """Say whether the block is here. For code that runs in a thread: it may wait."""

    async def get(self, cid: str) -> bytes:
        """Return a block, or raise BlockMissing; of one that is here BlockUnreadable."""

    def read_sync(self, cid: str) -> bytes:
        """`get` for code that runs in a thread."""

    async def put(self, cid: str, data: bytes) -> None:
        """Store a block after checking it. Raises BlockCorrupt or StorageFullError."""

    def put_sync(self, cid: str, data: bytes) -> None:
        """`put` for code that runs in a thread."""

    def put_at_once(self, cid: str, data: bytes) -> bool:
        """`put` of a few bytes that never waits, for the loop; False, and nothing done, when that
        cannot be: then a thread is to do it. Raises BlockCorrupt."""

    def settle_sync(self) -> None:
        """Return when all that was put is kept for good, in a thread: the end of an add."""


class LocalStore(BlockStore, Protocol):
    """This node's own store, which services see parts of (`scoped`) and the cache collects from.

    Blocks are put or found for work under way (`in_use.working()`): `has`, and every `put`, also of
    a block that is there already, do `in_use.note(cid)` under `in_use.lock`, together with looking.
    All methods that end in `_sync` are called in threads.
    """

    in_use: InUse
    #: What is held for whom; `settle_sync` settles it, too.
    db: "BlockDb"
    #: What the blocks may take.
    quota_bytes: int
    #: Called in a thread when a block does not fit: makes room for it, or says False.
    make_room: Callable[[int], bool]

    @property
    def used_bytes(self) -> int:
        """How much the blocks take."""

    def put_checked(self, cid: str, data: bytes) -> None:
        """`put_sync` of a block that was found right."""

    def touch_sync(self, cid: str) -> None:
        """Note that a block was used now; nothing when it is not here. Of a file or folder its root
        is enough: what lies under a root is as fresh as the root."""

    def delete_sync(self, cid: str) -> bool:
        """Delete a block, unless work counts on it; say whether that was done."""

    def stored_sync(self) -> Iterator[StoredBlock]:
        """List the blocks that may be deleted: of a store that others use too, only those that this
        node put there. One that comes or goes meanwhile may be listed or not."""
