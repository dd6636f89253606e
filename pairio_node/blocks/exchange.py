"""Blocks between members over `/pairio/blocks/1`: serve those who may read, fetch from holders.

A requester says first for which service it asks, then sends frames `[cid, ...]`, the next before
the last is answered; the server answers each CID, in order, with one byte (found, missing,
refused), and for a found block its length and bytes. Blocks go to members of the service for which
they are held here, looked up anew for every frame; to guests of it only those of their results.
Both sides keep the content of services apart (`scoped`). How a fetch goes on is in `fetching`.
"""

from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import trio

from pairio_node.blocks.base import BlockMissing
from pairio_node.blocks.fetching import FOUND, MISSING, REFUSED, Fetch, FetchFailed, Patience
from pairio_node.blocks.guests import GuestBlocks
from pairio_node.blocks.scoped import ScopedContent
from pairio_node.blocks.walk import Some, Walk
from pairio_node.transport.base import BLOCKS, ByteStream, StreamEnded, Transport, TransportError
from pairio_protocol.cid import CidError, parse_cid
from pairio_protocol.codec import unpack
from pairio_protocol.errors import DecodeError
from pairio_protocol.limits import (
    BLOCK_REQUEST_SIZE_BYTES_MAX,
    BLOCK_STREAMS_PER_PEER_MAX,
    BLOCKS_PER_REQUEST_MAX,
    BLOCKS_SERVED_AT_ONCE_MAX,
)

__all__ = ["Exchange", "FetchFailed", "Patience"]

_IDLE_S = 120.0
_PIECE_BYTES = 256 * 1024
_COUNTED = (
    "blocks_sent",
    "blocks_received",
    "blocks_refused",
    "block_streams_refused",
    "block_holders_wrong",
    "block_holders_stalled",
)


class Exchange:
    """Serves blocks to those who `may_read(peer, service)`, and fetches what is missing here."""

    def __init__(
        self,
        contents: ScopedContent,
        transport: Transport,
        may_read: Callable[[str, str], bool],
        guests: GuestBlocks | None = None,
        patience: Patience | None = None,
    ) -> None:
        self._contents = contents
        self._may_read = may_read
        self._streams: Counter[str] = Counter()
        self._serving: dict[str, trio.Semaphore] = {}  # by peer: blocks in memory
        self._asking: dict[str, trio.Semaphore] = {}  # by holder
        self._fetching: dict[tuple[str, str], trio.Lock] = {}
        self._guests = guests or GuestBlocks()
        # What fetches share (`fetching.Resources`).
        self.counters = dict.fromkeys(_COUNTED, 0)
        self.patience = patience or Patience()
        self.storing = trio.Semaphore(8)
        self.threads = trio.CapacityLimiter(4)
        self.streams = trio.Semaphore(32)
        self.open_stream = transport.open_stream
        #: Told of each block that is given to somebody.
        self.on_served: Callable[[str], None] = lambda _: None
        transport.set_stream_handler(BLOCKS, self._serve)

    @property
    def streams_served(self) -> int:
        """Streams on which others ask this node now."""
        return self._streams.total()

    # -- serving --------------------------------------------------------------------------------

    async def _serve(self, stream: ByteStream) -> None:
        peer = stream.peer
        if self._streams[peer] >= BLOCK_STREAMS_PER_PEER_MAX:
            self.counters["block_streams_refused"] += 1
            await stream.abort()
            return
        self._streams[peer] += 1
        self._serving.setdefault(peer, trio.Semaphore(BLOCKS_SERVED_AT_ONCE_MAX))
        try:
            await self._serve_until_end(stream)
        finally:
            self._streams[peer] -= 1
            if not self._streams[peer]:
                del self._streams[peer], self._serving[peer]

    async def _serve_until_end(self, stream: ByteStream) -> None:
        try:
            service = await _receive(stream, self.patience.stall_s)
            if not isinstance(service, str):
                raise DecodeError("not a service")
            parse_cid(service)
            while True:
                wants = await _receive(stream, _IDLE_S)
                if not isinstance(wants, list) or len(wants) > BLOCKS_PER_REQUEST_MAX:
                    raise DecodeError("not a list of CIDs")
                is_member = self._may_read(stream.peer, service)
                for cid in wants:
                    async with self._serving[stream.peer]:
                        with trio.fail_after(_IDLE_S):
                            await self._answer(stream, service, cid, is_member)
                if not is_member and not self._is_a_guests(stream.peer, service, wants):
                    await stream.close()  # it has its answer; nothing is kept open for it
                    return
        except (StreamEnded, TransportError):
            await stream.close()
        except (DecodeError, CidError, trio.TooSlowError):
            await stream.abort()

    def _is_a_guests(self, peer: str, service: str, wants: list[object]) -> bool:
        """Say whether a guest may read some of this."""
        return any(isinstance(c, str) and self._guests.may_read(peer, service, c) for c in wants)

    async def _answer(self, stream: ByteStream, service: str, cid: object, is_member: bool) -> None:
        """Answer one want; others than members have what is theirs as guests, or are refused."""
        if not isinstance(cid, str):
            raise DecodeError("not a CID")
        parse_cid(cid)
        if not is_member and not self._guests.may_read(stream.peer, service, cid):
            self.counters["blocks_refused"] += 1
            await stream.send(REFUSED)
            return
        try:
            data = await self._contents.of(service).store.get(cid)
        except BlockMissing:
            await stream.send(MISSING)
            return
        self.on_served(cid)
        if not is_member:
            self._guests.on_read(stream.peer, service, cid, data)
        head = FOUND + len(data).to_bytes(4, "big")
        await stream.send(head + data[:_PIECE_BYTES])  # others have their turn between pieces
        for start in range(_PIECE_BYTES, len(data), _PIECE_BYTES):
            await stream.send(data[start : start + _PIECE_BYTES])
        self.counters["blocks_sent"] += 1

    # -- fetching -------------------------------------------------------------------------------

    def turn(self, holder: str) -> trio.Semaphore:
        """Streams that this node has open to one holder."""
        if holder not in self._asking:
            self._asking[holder] = trio.Semaphore(BLOCK_STREAMS_PER_PEER_MAX // 2)
        return self._asking[holder]

    async def fetch(
        self, service: str, cid: str, holders: Sequence[str], *, limit_bytes: int = 2**40
    ) -> int:
        """Make sure that all blocks below `cid` are here for a service; return the bytes that came.

        Raises:
            FetchFailed: says who was asked. StorageFullError when the quota is reached.
        """
        store = self._contents.of(service).store
        async with self._alone(service, cid):
            fetch = Fetch(self, store, service, Walk(store, cid), holders, limit_bytes)
            return await self._fetch(fetch)

    @asynccontextmanager
    async def _alone(self, service: str, cid: str) -> AsyncIterator[None]:
        """One fetch of the same content at a time: jobs that begin together and need the same input
        bring it here once."""
        lock = self._fetching.setdefault((service, cid), trio.Lock())
        try:
            async with lock:
                yield
        finally:
            if not lock.locked():
                self._fetching.pop((service, cid), None)

    async def fetch_range(
        self, service: str, cid: str, start: int, stop: int, holders: Sequence[str]
    ) -> int:
        """Make sure that the blocks of a file that hold the bytes from `start` to before `stop`
        are here for a service; return the bytes that came. Then `Content.read` reads them.

        Raises:
            FetchFailed: says who was asked; also for a folder. StorageFullError.
        """
        store = self._contents.of(service).store
        walk = Walk(store, cid, start, stop)
        return await self._fetch(Fetch(self, store, service, walk, holders, 2**40))

    async def fetch_blocks(self, service: str, cids: Sequence[str], holder: str) -> int:
        """Ask one holder for these blocks (at most BLOCKS_PER_REQUEST_MAX), not for what lies below
        them; return the bytes that came.

        Raises:
            FetchFailed: says why it gave none. StorageFullError when the quota is reached.
        """
        store, some = self._contents.of(service).store, Some(cids[:BLOCKS_PER_REQUEST_MAX])
        fetch = Fetch(self, store, service, some, [holder], 2**40)
        try:
            return await self._fetch(fetch)
        except FetchFailed:
            if fetch.received:
                return fetch.received
            raise

    async def _fetch(self, fetch: Fetch) -> int:
        with self._contents.store.in_use.working():
            return await fetch.run()


async def _receive(stream: ByteStream, limit_s: float) -> object:
    with trio.fail_after(limit_s):
        size = int.from_bytes(await stream.receive_exactly(4), "big")
        if size > BLOCK_REQUEST_SIZE_BYTES_MAX:
            raise DecodeError("a request that is too large")
        value: object = unpack(await stream.receive_exactly(size))
        return value
