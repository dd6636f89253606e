"""Blocks between members over `/pairio/blocks/1`: ask a known holder, verify, store.

A requester says first for which service it asks, then sends frames `[cid, ...]` (at most
WANT_MAX); the server answers each CID, in order, with one byte (found, missing, refused), and for
a found block its length and bytes. Blocks go to members of the service for which they are held
here, looked up anew for every frame; to guests of it only those of their results. Both sides keep
the content of services apart (`scoped`).
"""

from collections import Counter
from collections.abc import Callable, Sequence

import trio

from pairio_node.blocks.base import BLOCK_SIZE_BYTES_MAX, BlockCorrupt, BlockMissing
from pairio_node.blocks.content import Content
from pairio_node.blocks.guests import GuestBlocks
from pairio_node.blocks.scoped import ScopedContent
from pairio_node.blocks.unixfs import UnixfsError
from pairio_node.transport.base import BLOCKS, ByteStream, StreamEnded, Transport, TransportError
from pairio_protocol.cid import CidError, parse_cid
from pairio_protocol.codec import pack, unpack
from pairio_protocol.errors import DecodeError

__all__ = ["Exchange", "FetchFailed"]

WANT_MAX = 32
#: Streams that one peer may have open here; a node opens half as many.
STREAMS_PER_PEER_MAX = 32
_REQUEST_BYTES_MAX = 8 * 1024
_FOUND, _MISSING, _REFUSED = b"\x01", b"\x00", b"\x02"
#: A holder that gives no block for so long is left.
_STALL_S = 15.0
_IDLE_S = 120.0
_PIECE_BYTES = 256 * 1024
#: What a holder can do wrong.
_FAULTS = (
    TransportError,
    StreamEnded,
    trio.TooSlowError,
    DecodeError,
    BlockCorrupt,
    UnixfsError,
    CidError,
)


class FetchFailed(Exception):
    """No holder gave all blocks. What came is kept: the next try goes on from there."""


class Exchange:
    """Serves blocks to those who `may_read(peer, service)`, and fetches what is missing here."""

    def __init__(
        self,
        contents: ScopedContent,
        transport: Transport,
        may_read: Callable[[str, str], bool],
        guests: GuestBlocks | None = None,
    ) -> None:
        self._contents = contents
        self._transport = transport
        self._may_read = may_read
        self._streams: Counter[str] = Counter()
        self._asking: dict[str, trio.Semaphore] = {}  # by holder
        names = ("blocks_sent", "blocks_received", "blocks_refused", "block_streams_refused")
        self.counters = dict.fromkeys(names, 0)
        self._guests = guests or GuestBlocks()
        transport.set_stream_handler(BLOCKS, self._serve)

    async def _serve(self, stream: ByteStream) -> None:
        if self._streams[stream.peer] >= STREAMS_PER_PEER_MAX:
            self.counters["block_streams_refused"] += 1
            await stream.abort()
            return
        self._streams[stream.peer] += 1
        try:
            await self._serve_until_end(stream)
        finally:
            self._streams[stream.peer] -= 1
            if not self._streams[stream.peer]:
                del self._streams[stream.peer]

    async def _serve_until_end(self, stream: ByteStream) -> None:
        try:
            service = await _receive(stream)
            if not isinstance(service, str):
                raise DecodeError("not a service")
            parse_cid(service)
            while True:
                wants = await _receive(stream)
                if not isinstance(wants, list) or len(wants) > WANT_MAX:
                    raise DecodeError("not a list of CIDs")
                is_member = self._may_read(stream.peer, service)
                for cid in wants:
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
            await stream.send(_REFUSED)
            return
        try:
            data = await self._contents.of(service).store.get(cid)
        except BlockMissing:
            await stream.send(_MISSING)
            return
        if not is_member:
            self._guests.on_read(stream.peer, service, cid, data)
        await stream.send(_FOUND + len(data).to_bytes(4, "big"))
        for start in range(0, len(data), _PIECE_BYTES):
            await stream.send(data[start : start + _PIECE_BYTES])
            if len(data) > _PIECE_BYTES:
                await trio.sleep(0.001)  # leave the loop to others (http-and-loop recipe)
        self.counters["blocks_sent"] += 1

    async def fetch(
        self, service: str, cid: str, holders: Sequence[str], *, limit_bytes: int = 2**40
    ) -> int:
        """Make sure that all blocks below `cid` are here for a service; return the bytes that came.

        Raises:
            FetchFailed: says who was asked. StorageFullError when the quota is reached.
        """
        received = 0
        reasons = []
        content = self._contents.of(service)
        for holder in [None, *holders]:
            if not await _missing(content, cid):
                return received
            if holder is None:
                continue
            try:
                turn = self._asking.setdefault(holder, trio.Semaphore(STREAMS_PER_PEER_MAX // 2))
                async with turn:
                    received += await self._fetch_from(holder, service, cid, limit_bytes - received)
            except (*_FAULTS, FetchFailed) as error:
                reasons.append(f"{holder[-6:]}: {error or type(error).__name__}")
        if not await _missing(content, cid):
            return received
        asked = "; ".join(reasons) or "nobody who might have it is connected"
        raise FetchFailed(f"content {cid} could not be fetched ({asked})")

    async def fetch_blocks(self, service: str, cids: Sequence[str], holder: str) -> int:
        """Ask one holder for these blocks (at most WANT_MAX), not for what lies below them;
        return the bytes that came.

        Raises:
            FetchFailed: says why it gave none. StorageFullError when the quota is reached.
        """
        content, wants = self._contents.of(service), list(cids[:WANT_MAX])
        try:
            with trio.fail_after(_STALL_S):
                stream = await self._transport.open_stream(holder, BLOCKS)
            try:
                await _send(stream, service)
                received = await self._ask(stream, content, wants)
            except BaseException:
                with trio.CancelScope(shield=True), trio.move_on_after(1):
                    await stream.abort()
                raise
            await stream.close()
        except (*_FAULTS, FetchFailed) as error:
            raise FetchFailed(f"{holder[-6:]}: {error or type(error).__name__}") from None
        if not received:
            raise FetchFailed(f"{holder[-6:]}: does not have it")
        return received

    async def _fetch_from(self, holder: str, service: str, cid: str, limit_bytes: int) -> int:
        """Fetch what is missing from one holder, level by level."""
        received = 0
        content = self._contents.of(service)
        with trio.fail_after(_STALL_S):
            stream = await self._transport.open_stream(holder, BLOCKS)
        try:
            await _send(stream, service)
            while missing := await content.missing(cid):
                before = received
                for start in range(0, len(missing), WANT_MAX):
                    wants = missing[start : start + WANT_MAX]
                    received += await self._ask(stream, content, wants)
                    if received > limit_bytes:
                        raise FetchFailed(f"more than {limit_bytes} bytes")
                if received == before and await content.missing(cid) == missing:
                    raise FetchFailed("does not have it")
        except BaseException:
            with trio.CancelScope(shield=True), trio.move_on_after(1):
                await stream.abort()
            raise
        await stream.close()
        return received

    async def _ask(self, stream: ByteStream, content: Content, wants: list[str]) -> int:
        received = 0
        await _send(stream, wants)
        for cid in wants:
            with trio.fail_after(_STALL_S):
                answer = await stream.receive_exactly(1)
                if answer == _REFUSED:
                    raise FetchFailed("refuses: this node is no member there")
                if answer != _FOUND:
                    continue
                size = int.from_bytes(await stream.receive_exactly(4), "big")
                if size > BLOCK_SIZE_BYTES_MAX:
                    raise DecodeError("a block that is too large")
                data = await stream.receive_exactly(size)
            await content.store.put(cid, data)
            self.counters["blocks_received"] += 1
            received += size
        return received


async def _missing(content: Content, cid: str) -> list[str]:
    """Return what is not here; members name content, so it may be none (FetchFailed)."""
    try:
        return await content.missing(cid)
    except (CidError, UnixfsError, BlockCorrupt) as error:
        raise FetchFailed(f"content {cid[:80]!r} cannot be: {error}") from None


async def _send(stream: ByteStream, value: object) -> None:
    data = pack(value)
    with trio.fail_after(_STALL_S):
        await stream.send(len(data).to_bytes(4, "big") + data)


async def _receive(stream: ByteStream) -> object:
    with trio.fail_after(_IDLE_S):
        size = int.from_bytes(await stream.receive_exactly(4), "big")
        if size > _REQUEST_BYTES_MAX:
            raise DecodeError("a request that is too large")
        value: object = unpack(await stream.receive_exactly(size))
        return value
