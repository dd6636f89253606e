"""The node's side of Bitswap: streams in, to the server and the client; who is asked; dialling."""

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence

import trio

from pairio_node.bitswap.client import Client
from pairio_node.bitswap.server import Library, Server
from pairio_node.bitswap.wire import BITSWAP, read_message
from pairio_node.blocks.base import BlockStore
from pairio_node.strangers import Pace
from pairio_node.transport.base import ByteStream, StreamEnded, Transport, TransportError
from pairio_protocol.errors import DecodeError
from pairio_protocol.limits import (
    BITSWAP_MESSAGE_SIZE_BYTES_MAX,
    BITSWAP_STREAMS_MAX,
    BITSWAP_STREAMS_PER_HOLDER_MAX,
    BITSWAP_STREAMS_PER_PEER_MAX,
    BITSWAP_WANTS_SIZE_BYTES_MAX,
)

__all__ = ["Bitswap"]

#: A stream on which nothing comes is closed after this time; its peer opens another.
_IDLE_S = 600.0
#: How often it is looked whether named peers are connected.
_DIAL_S = 10.0
#: Messages of one peer that may come at once, and how many a second after that.
_BURST, _PER_S = 400, 200
_REFUSALS = {
    "bitswap_messages_refused": "a Bitswap message that is none, or too large",
    "bitswap_blocks_unasked": "a block that nobody asked for",
    "bitswap_wants_refused": "a Bitswap want beyond the bound",
    "bitswap_streams_refused": "a Bitswap stream beyond the bound",
}


class Bitswap:
    """See the module. `peers` are multiaddrs, with /p2p/ID, of nodes to stay connected with."""

    def __init__(self, library: Library, transport: Transport, peers: Sequence[str] = ()) -> None:
        self.counters: Counter[str] = Counter()
        self._transport = transport
        self._named = {address.rpartition("/p2p/")[2]: address for address in peers}
        self._client = Client(transport, self.counters)
        self._server = Server(library, transport, self.counters, self._start)
        self._streams: Counter[str] = Counter()
        self._pace = Pace(_BURST, _PER_S)
        self._nursery: trio.Nursery | None = None
        transport.set_stream_handler(BITSWAP, self._on_stream)

    async def run(self) -> None:
        """Serve until cancelled, and stay connected with the named peers."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                for peer, address in self._named.items():
                    nursery.start_soon(self._keep, peer, address)
                await trio.sleep_forever()
            finally:
                self._nursery = None

    def peers(self) -> list[str]:
        """Return whom content may be asked of: those that the owner named come first, then others
        that are no pairio nodes."""
        here, nodes = self._transport.speakers(BITSWAP), self._transport.connected()
        return sorted(here, key=lambda peer: (peer not in self._named, peer in nodes))

    def refusals(self) -> dict[str, int]:
        """Return what peers tried in vain, by what it was."""
        found = {f"refused: {words}": self.counters[name] for name, words in _REFUSALS.items()}
        return {words: count for words, count in found.items() if count}

    def on_more_public(self) -> None:
        """More is public than before: whoever waits for it gets it."""
        self._server.recheck()

    async def fetch(
        self,
        store: BlockStore,
        cid: str,
        *,
        peers: Sequence[str] | None = None,
        limit_bytes: int = 2**42,
    ) -> int:
        """Make sure that all blocks below `cid` are in `store`, from Bitswap peers (all that are
        connected); return the bytes that came.

        Raises:
            FetchFailed: says who was asked. StorageFullError when the quota is reached.
        """
        found = self.peers() if peers is None else peers
        return await self._client.fetch(store, cid, found, limit_bytes=limit_bytes)

    async def fetch_blocks(self, store: BlockStore, cids: Sequence[str], limit_bytes: int) -> int:
        """Make sure that these blocks are in `store`, whatever lies below them, from Bitswap peers
        that have the first one; return the bytes that came. Raises as `fetch` does."""
        return await self._client.fetch(
            store, cids[0], self.peers(), limit_bytes=limit_bytes, blocks=cids
        )

    def _start(self, work: Callable[[], Awaitable[None]]) -> None:
        if self._nursery is not None:
            self._nursery.start_soon(work)

    async def _keep(self, peer: str, address: str) -> None:
        """Stay connected with a peer that the owner named."""
        while True:
            if peer not in self._transport.speakers(BITSWAP):
                try:
                    await self._transport.reach(peer, (address,))
                except TransportError:
                    self.counters["bitswap_dial_failures"] += 1
            await trio.sleep(_DIAL_S)

    # -- streams --------------------------------------------------------------------------

    async def _on_stream(self, stream: ByteStream) -> None:
        peer = stream.peer
        if self._nursery is None or not self._has_room(peer):
            self.counters["bitswap_streams_refused"] += 1
            await stream.abort()
            return
        self._streams[peer] += 1
        try:
            await self._read(stream)
        except (StreamEnded, TransportError):
            await stream.close()
        except (DecodeError, trio.TooSlowError) as error:
            if isinstance(error, DecodeError):
                self.counters["bitswap_messages_refused"] += 1
            await stream.abort()
        finally:
            self._streams[peer] -= 1
            if not self._streams[peer]:
                del self._streams[peer]
                self._pace.forget(peer)

    def _has_room(self, peer: str) -> bool:
        """Say whether a peer may have one stream more."""
        if self._client.is_asked(peer):
            return self._streams[peer] < BITSWAP_STREAMS_PER_HOLDER_MAX
        all_streams = sum(self._streams.values())
        mine = self._streams.get(peer, 0)
        return mine < BITSWAP_STREAMS_PER_PEER_MAX and all_streams < BITSWAP_STREAMS_MAX

    async def _read(self, stream: ByteStream) -> None:
        """Take messages until the stream ends."""
        peer = stream.peer
        while True:
            with trio.fail_after(_IDLE_S):
                message = await read_message(stream, lambda: self._size_max(peer))
            if not self._client.is_asked(peer):
                await self._pace.wait(peer)
            if message.wants or message.is_full:
                self._server.on_message(peer, message)
            if not await self._client.on_message(peer, message):
                raise DecodeError("blocks that nobody asked for")

    def _size_max(self, peer: str) -> int:
        """Return how large a message of a peer may be: only who was asked has blocks to bring."""
        if self._client.is_asked(peer):
            return BITSWAP_MESSAGE_SIZE_BYTES_MAX
        return BITSWAP_WANTS_SIZE_BYTES_MAX
