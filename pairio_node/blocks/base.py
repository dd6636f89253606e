"""What a block store is. Blocks are at most BLOCK_SIZE_BYTES_MAX and named by their CID."""

from typing import Final, NamedTuple, Protocol

__all__ = ["BLOCK_SIZE_BYTES_MAX", "Added", "BlockCorrupt", "BlockMissing", "BlockStore"]

#: Kubo 0.40 and later take blocks of 2 MiB; our chunks are 1 MiB.
BLOCK_SIZE_BYTES_MAX: Final = 2 * 1024 * 1024


class BlockMissing(LookupError):
    """The block is not in this store."""


class BlockCorrupt(ValueError):
    """The bytes are not the block that the CID names. Nothing was stored."""


class Added(NamedTuple):
    """Content that is in the store now; `size_bytes` is that of the file or folder."""

    cid: str
    size_bytes: int


class BlockStore(Protocol):
    """Blocks by CID. Whole blocks only; a block that is there is right."""

    def has(self, cid: str) -> bool:
        """Say whether the block is here."""

    async def get(self, cid: str) -> bytes:
        """Return a block, or raise BlockMissing."""

    async def put(self, cid: str, data: bytes) -> None:
        """Store a block after checking it. Raises BlockCorrupt or StorageFullError."""

    def put_sync(self, cid: str, data: bytes) -> None:
        """`put` for code that runs in a thread."""
