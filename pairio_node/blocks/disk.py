"""The embedded block store: a file per block, in folders by the end of its CID.

Written to a temporary file, synced, renamed: a block is there whole or not at all.
"""

import os
import secrets
from pathlib import Path

import trio

from pairio_node.blocks.base import BLOCK_SIZE_BYTES_MAX, BlockCorrupt, BlockMissing
from pairio_node.errors import StorageFullError
from pairio_protocol.cid import matches, parse_cid

__all__ = ["DiskBlockStore", "check_block"]


def check_block(cid: str, data: bytes) -> None:
    """Raise BlockCorrupt when the bytes are not the block that the CID names."""
    if len(data) > BLOCK_SIZE_BYTES_MAX or not matches(cid, data):
        raise BlockCorrupt(f"{len(data)} bytes are not the block {cid}")


class DiskBlockStore:
    """Blocks below `path`, at most `quota_bytes` of them."""

    def __init__(self, path: Path, quota_bytes: int) -> None:
        self._path = path
        self._quota_bytes = quota_bytes
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._used_bytes = self._measure()

    def _measure(self) -> int:
        used = 0
        for folder in os.scandir(self._path):
            if folder.is_dir(follow_symlinks=False):
                for entry in os.scandir(folder.path):
                    if entry.name.endswith(".tmp"):
                        os.unlink(entry.path)  # left behind by a crash
                    else:
                        used += entry.stat(follow_symlinks=False).st_size
        return used

    @property
    def used_bytes(self) -> int:
        """How much the blocks take."""
        return self._used_bytes

    def _file(self, cid: str) -> Path:
        parse_cid(cid)  # never a path of a peer's choosing
        return self._path / cid[-2:] / cid

    def has(self, cid: str) -> bool:
        """Say whether the block is here."""
        return self._file(cid).exists()

    async def get(self, cid: str) -> bytes:
        """Return a block, or raise BlockMissing."""
        return await trio.to_thread.run_sync(self.read_sync, cid)

    def read_sync(self, cid: str) -> bytes:
        """`get` for code that runs in a thread."""
        try:
            return self._file(cid).read_bytes()
        except FileNotFoundError:
            raise BlockMissing(cid) from None

    async def put(self, cid: str, data: bytes) -> None:
        """Store a block after checking it. Raises BlockCorrupt or StorageFullError."""
        await trio.to_thread.run_sync(self.put_sync, cid, data)

    def put_sync(self, cid: str, data: bytes) -> None:
        """`put` for code that runs in a thread."""
        if not self._file(cid).exists():
            check_block(cid, data)
            self.put_checked(cid, data)

    def put_checked(self, cid: str, data: bytes) -> None:
        """Store a block that `check_block` found right, in a thread."""
        file = self._file(cid)
        if file.exists():
            return
        if self._used_bytes + len(data) > self._quota_bytes:
            raise StorageFullError(
                f"the block store holds {self._used_bytes} of {self._quota_bytes} bytes;"
                f" {len(data)} more do not fit",
                hint="raise quota_bytes in node.toml or free content that is not needed",
            )
        file.parent.mkdir(mode=0o700, exist_ok=True)
        temporary = file.with_name(f"{cid}.{secrets.token_hex(4)}.tmp")
        try:
            with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as f:
                f.write(data)
                f.flush()
                os.fsync(f.fileno())
            temporary.rename(file)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise StorageFullError(f"cannot store a block: {error.strerror}") from None
        self._used_bytes += len(data)
