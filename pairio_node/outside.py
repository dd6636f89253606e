"""Content that no member gives is asked of Bitswap peers: for inputs that a job names by CID, for
results that anybody may read, and for what somebody reads here that is no private part of a
service. Nothing else is: whoever is asked learns the CID.
"""

from collections.abc import Callable, Sequence

from pairio_node.bitswap import Bitswap
from pairio_node.blocks import Exchange, FetchFailed, ScopedContent
from pairio_node.blocks.base import BLOCK_SIZE_BYTES_MAX

__all__ = ["Outside"]


class Outside:
    """Members first, then Bitswap peers, if there are any (`bitswap` None: never)."""

    def __init__(
        self,
        contents: ScopedContent,
        exchange: Exchange,
        bitswap: Callable[[], Bitswap | None],
    ) -> None:
        self._contents = contents
        self._exchange = exchange
        self._bitswap = bitswap

    async def fetch(
        self, service: str, cid: str, holders: Sequence[str], *, limit_bytes: int = 2**40
    ) -> int:
        """Make sure that all blocks below `cid` are here for a service; return the bytes that came.

        Raises:
            FetchFailed: says who was asked. StorageFullError when the quota is reached.
        """
        try:
            return await self._exchange.fetch(service, cid, holders, limit_bytes=limit_bytes)
        except FetchFailed as error:
            bitswap = self._bitswap()
            if bitswap is None or not bitswap.peers():
                raise
            try:
                return await self.fetch_outside(service, cid, limit_bytes=limit_bytes)
            except FetchFailed as also:
                raise FetchFailed(f"{error}; {also}") from None

    async def fetch_blocks(self, cids: Sequence[str]) -> None:
        """Fetch these blocks from Bitswap peers for the owner of this node; no service has them by
        that. Nothing without peers.

        Raises:
            FetchFailed: says who was asked. StorageFullError when the quota is reached.
        """
        bitswap = self._bitswap()
        if bitswap is not None and bitswap.peers():
            with self._contents.store.in_use.working():
                store = self._contents.everything.store
                await bitswap.fetch_blocks(store, cids, len(cids) * BLOCK_SIZE_BYTES_MAX)

    async def fetch_outside(self, service: str, cid: str, *, limit_bytes: int = 2**40) -> int:
        """The same, from Bitswap peers alone."""
        bitswap = self._bitswap()
        if bitswap is None:
            raise FetchFailed(f"content {cid} could not be fetched: bitswap is off here")
        with self._contents.store.in_use.working():
            store = self._contents.of(service).store
            return await bitswap.fetch(store, cid, limit_bytes=limit_bytes)
