"""Fetches a DAG from Bitswap peers: a window of wants at each, every block checked, nothing kept
that was not asked for.

Blocks go into the store as they come, and what is there is not asked for: a fetch that broke off is
gone on with by the next one. Memory holds a window of blocks and the links still to be followed.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

import trio

from pairio_node.bitswap.fetch import Fetch
from pairio_node.bitswap.wire import Message
from pairio_node.blocks.base import BlockStore
from pairio_node.transport.base import Transport
from pairio_protocol.limits import BITSWAP_ASKED_MAX, BITSWAP_UNASKED_MAX

__all__ = ["Client"]


class Client:
    """The fetches that go on, and what peers bring for them."""

    def __init__(self, transport: Transport, counters: Counter[str]) -> None:
        self._transport = transport
        self._counters = counters
        self._fetches: list[Fetch] = []
        self._unasked: Counter[str] = Counter()

    async def fetch(
        self,
        store: BlockStore,
        cid: str,
        peers: Iterable[str],
        *,
        limit_bytes: int,
        blocks: Sequence[str] = (),
    ) -> int:
        """Make sure that all blocks below `cid` are in `store`, or `blocks` alone, of which `cid`
        is the first; return the bytes that came.

        Raises:
            FetchFailed: says who was asked. What came is kept.
            StorageFullError: the quota is reached.
        """
        asked: Sequence[str] = list(dict.fromkeys(peers))[:BITSWAP_ASKED_MAX]
        fetch = Fetch(self._transport, store, cid, asked, limit_bytes, blocks)
        self._fetches.append(fetch)
        try:
            return await fetch.run()
        finally:
            self._fetches.remove(fetch)
            for peer in asked:
                if not self.is_asked(peer):
                    self._unasked.pop(peer, None)
            with trio.CancelScope(shield=True), trio.move_on_after(2):
                await fetch.close(self._is_wanted)

    def _is_wanted(self, peer: str, cid: str) -> bool:
        return any(fetch.awaits(peer, cid) for fetch in self._fetches)

    def is_asked(self, peer: str) -> bool:
        """Say whether something is being asked of a peer."""
        return any(peer in fetch.asked for fetch in self._fetches)

    async def on_message(self, peer: str, message: Message) -> bool:
        """Take what a peer brings; False when it brings too much that nobody asked for."""
        for cid, is_here in message.presences:
            for fetch in self._fetches:
                fetch.on_presence(peer, cid, is_here)
        for block in message.blocks:
            takers = [f for f in self._fetches if block.cid and f.awaits(peer, block.cid)]
            for fetch in takers:
                await fetch.on_block(peer, block.cid, block.data)
            if takers:
                self._counters["bitswap_blocks_received"] += 1
                self._counters["bitswap_bytes_received"] += len(block.data)
                continue
            self._counters["bitswap_blocks_unasked"] += 1
            self._unasked[peer] += 1
            if not self.is_asked(peer) or self._unasked[peer] > BITSWAP_UNASKED_MAX:
                self._unasked.pop(peer, None)
                for fetch in self._fetches:
                    fetch.leave(peer, "sends what nobody asked for")
                return False
        return True
