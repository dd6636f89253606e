"""One fetch: what is missing below a CID, from several holders at once, checked block by block.

Each holder has one stream, on which some blocks are always asked for ahead; how many grows as it
gives them. A block that came is stored while the next one is read. A holder that sends a wrong
block or garbage is out; one that stalls or breaks off gives back what it was asked for, and is
asked again only if it had given something. Nobody waits for the slow: who is idle asks for what
is late, too.
"""

from collections import deque
from collections.abc import Iterable
from typing import Final, Protocol

import trio

from pairio_node.blocks.base import BLOCK_SIZE_BYTES_MAX, BlockCorrupt, BlockMissing, BlockStore
from pairio_node.blocks.unixfs import UnixfsError
from pairio_node.blocks.walk import Some, Walk
from pairio_node.blocks.wants import Wants
from pairio_node.errors import UserError
from pairio_node.transport.base import BLOCKS, ByteStream, StreamEnded, TransportError
from pairio_protocol.cid import CidError
from pairio_protocol.codec import pack
from pairio_protocol.errors import DecodeError
from pairio_protocol.limits import BLOCKS_PER_REQUEST_MAX

__all__ = ["Fetch", "FetchFailed", "Patience", "Resources", "send_frame"]

FOUND, MISSING, REFUSED = b"\x01", b"\x00", b"\x02"
#: Holders that one fetch asks at the same time.
HOLDERS_AT_ONCE: Final = 8
_PIECE_BYTES = 256 * 1024
#: What one holder is asked for ahead, about.
_AHEAD_BYTES = 8 * 1024 * 1024
#: Wants that are known ahead of being asked for.
_AHEAD = 64
_FAILURES_MAX = 3


class FetchFailed(Exception):
    """No holder gave all blocks. What came is kept: the next try goes on from there."""


class _Refused(Exception):
    """The holder says that this node may not read there."""


class Patience:
    """How long is waited: for the next bytes of a holder, and for one whole block."""

    def __init__(self, stall_s: float = 15.0, block_s: float = 120.0, late_s: float = 0.5) -> None:
        self.stall_s, self.block_s, self.late_s = stall_s, block_s, late_s


class Resources(Protocol):
    """What all fetches of a node share."""

    counters: dict[str, int]
    patience: Patience
    #: Blocks in memory that are being checked and written.
    storing: trio.Semaphore
    #: Threads that check and write them.
    threads: trio.CapacityLimiter
    #: Streams that this node has open, of all fetches.
    streams: trio.Semaphore

    def turn(self, holder: str) -> trio.Semaphore:
        """Streams that this node has open to one holder."""

    async def open_stream(self, peer: str, protocol: str) -> ByteStream:
        """Open a stream; raises TransportError."""


class _Holder:
    """Somebody who may have blocks."""

    def __init__(self, peer: str) -> None:
        self.peer = peer
        self.scope = trio.CancelScope()
        self.is_wrong = False
        self.given = 0
        self.given_bytes = 0
        self.failures = 0  # since it last gave something

    def ahead(self, given_before: int) -> int:
        """Return how many blocks to ask for ahead: more as more come, few if they are large."""
        mean_bytes = self.given_bytes // max(1, self.given) + 1
        large = max(4, _AHEAD_BYTES // mean_bytes)
        return min(BLOCKS_PER_REQUEST_MAX, large, 2 + 2 * (self.given - given_before))


class Fetch:
    """Fetches once; `run` returns the bytes that came."""

    def __init__(
        self,
        resources: Resources,
        store: BlockStore,
        service: str,
        walk: Walk | Some,
        holders: Iterable[str],
        limit_bytes: int,
    ) -> None:
        self._shared = resources
        self._patience = resources.patience
        self._store = store
        self._service = service
        self._walk = walk
        self._wants = Wants(resources.patience.late_s)
        self._waiting = deque(_Holder(peer) for peer in dict.fromkeys(holders))
        self._limit_bytes = limit_bytes
        self.received = 0
        self._storing = 0
        self._failure: Exception | None = None
        self._reasons: list[str] = []
        self._changed = trio.Event()
        self._nursery: trio.Nursery | None = None

    async def run(self) -> int:
        """Fetch what is missing.

        Raises:
            FetchFailed: says who was asked, and what each did. StorageFullError.
        """
        await self._look_ahead()
        if self._failure is None and not self._is_done():
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                for number in range(min(HOLDERS_AT_ONCE, len(self._waiting))):
                    nursery.start_soon(self._ask_holders, number == 0)
            await self._look_ahead()  # what came last may have had nothing missing below it
        if self._failure is not None:
            raise self._failure
        if not self._is_done():
            asked = "; ".join(self._reasons) or "nobody who might have it is connected"
            raise FetchFailed(f"content {self._walk.root} could not be fetched ({asked})")
        return self.received

    # -- what is wanted -------------------------------------------------------------------------

    def _is_done(self) -> bool:
        wants = self._wants
        return not (wants.open_count or wants.claimed_count or self._storing) and self._walk.is_over

    async def _look_ahead(self) -> None:
        """Know some more of what is wanted, if little is."""
        try:
            while self._wants.open_count < _AHEAD and not self._walk.is_over:
                self._wants.add(await self._walk.missing(_AHEAD))
                self._tell()
        except UserError as error:  # what keeps the blocks does not answer
            self._fail(error)
        except (UnixfsError, CidError, BlockCorrupt, BlockMissing) as error:
            self._fail(FetchFailed(f"content {self._walk.root[:80]!r} cannot be: {error}"))

    def _tell(self) -> None:
        """Wake those who wait for something to do."""
        self._changed.set()
        self._changed = trio.Event()
        if self._is_done():
            self._stop()

    def _fail(self, error: Exception) -> None:
        self._failure = self._failure or error
        self._stop()

    def _stop(self) -> None:
        if self._nursery is not None:
            self._nursery.cancel_scope.cancel()

    # -- holders --------------------------------------------------------------------------------

    async def _ask_holders(self, begins: bool) -> None:
        """Ask one holder after the other, until none is left to ask. One task `begins` with the
        first holder; the rest look when it has given something, failed, or is late."""
        if not begins:
            await self._wait()
        while self._waiting:
            holder = self._waiting.popleft()
            if holder.is_wrong or not await self._has_work(holder):
                continue
            try:
                async with self._shared.turn(holder.peer), self._shared.streams:
                    await self._ask(holder)
            finally:
                self._wants.release(holder.peer)
                self._tell()
            if holder.given and not holder.is_wrong and 0 < holder.failures <= _FAILURES_MAX:
                if not self._waiting:
                    await trio.sleep(self._patience.late_s * 2**holder.failures)
                self._waiting.append(holder)

    def _note(self, holder: _Holder, why: object) -> None:
        if len(self._reasons) < 32:
            self._reasons.append(f"{holder.peer[-6:]}: {why}")

    async def _has_work(self, holder: _Holder) -> bool:
        """Wait until there is something to ask a holder for; False when there will be nothing."""
        while True:
            await self._look_ahead()
            if self._wants.can_claim(holder.peer, trio.current_time()):
                return True
            if not (self._wants.claimed_count or self._storing) and self._walk.is_over:
                return False
            if self._waiting and self._wants.is_lacking_all(holder.peer):
                return False  # its place is somebody else's
            await self._wait()

    async def _wait(self) -> None:
        with trio.move_on_after(self._patience.late_s):
            await self._changed.wait()

    async def _ask(self, holder: _Holder) -> None:
        """Ask a holder for blocks, until it has no more or fails."""
        holder.scope = trio.CancelScope()
        try:
            with holder.scope:
                await self._talk(holder)
        except (TransportError, StreamEnded) as error:
            holder.failures += 1
            self._note(holder, error)
        except trio.TooSlowError:
            holder.failures += 1
            self._shared.counters["block_holders_stalled"] += 1
            self._note(holder, "gave nothing in time")
        except _Refused as error:
            self._note(holder, error)
        except DecodeError as error:
            self._is_wrong(holder, error)
        else:
            if not holder.is_wrong:
                self._note(holder, "does not have it")

    def _is_wrong(self, holder: _Holder, why: object) -> None:
        """A holder gave what is no answer: it is out of this fetch, and counted."""
        if not holder.is_wrong:
            holder.is_wrong = True
            self._shared.counters["block_holders_wrong"] += 1
            self._note(holder, why)
        holder.scope.cancel()

    async def _talk(self, holder: _Holder) -> None:
        asked: deque[str] = deque()
        before = holder.given
        with trio.fail_after(self._patience.stall_s):
            stream = await self._shared.open_stream(holder.peer, BLOCKS)
        try:
            await self._send(stream, self._service)
            while asked or await self._has_work(holder):
                ahead = holder.ahead(before)
                if len(asked) <= ahead // 2:
                    await self._look_ahead()
                    count = ahead - len(asked)
                    if wants := self._wants.claim(holder.peer, count, trio.current_time()):
                        await self._send(stream, wants)
                        asked += wants
                if asked:
                    await self._take(stream, holder, asked.popleft())
        except BaseException:
            with trio.CancelScope(shield=True), trio.move_on_after(1):
                await stream.abort()
            raise
        # The last block cancels this: a stream whose end is not said keeps its place at the holder.
        with trio.CancelScope(shield=True), trio.move_on_after(1):
            await stream.close()

    async def _send(self, stream: ByteStream, value: object) -> None:
        with trio.fail_after(self._patience.stall_s):
            await send_frame(stream, value)

    async def _receive(self, stream: ByteStream, size: int) -> bytes:
        with trio.fail_after(self._patience.stall_s):
            return await stream.receive_exactly(size)

    async def _take(self, stream: ByteStream, holder: _Holder, cid: str) -> None:
        """Read the answer to one want."""
        with trio.fail_after(self._patience.block_s):
            answer = await self._receive(stream, 1)
            if answer == REFUSED:
                raise _Refused("refuses: this node is no member there")
            if answer == MISSING:
                self._wants.lacks(holder.peer, cid)
                self._tell()
                return
            if answer != FOUND:
                raise DecodeError("an answer that is none")
            size = int.from_bytes(await self._receive(stream, 4), "big")
            if size > BLOCK_SIZE_BYTES_MAX:
                raise DecodeError("a block that is too large")
            pieces = [
                await self._receive(stream, min(_PIECE_BYTES, size - start))
                for start in range(0, size, _PIECE_BYTES)
            ]
        if self._wants.is_wanted(cid):  # else another holder was faster
            await self._shared.storing.acquire()
            self._storing += 1
            assert self._nursery is not None
            self._nursery.start_soon(self._keep, holder, cid, b"".join(pieces))

    async def _keep(self, holder: _Holder, cid: str, data: bytes) -> None:
        """Check and store a block."""
        try:
            limiter = self._store.limiter or self._shared.threads
            await trio.to_thread.run_sync(self._store.put_sync, cid, data, limiter=limiter)
        except BlockCorrupt as error:
            self._is_wrong(holder, error)
        except UserError as error:
            self._fail(error)
        else:
            holder.given += 1
            holder.given_bytes += len(data)
            holder.failures = 0
            self._on_stored(cid, len(data))
        finally:
            self._storing -= 1
            self._shared.storing.release()
        self._tell()

    def _on_stored(self, cid: str, size_bytes: int) -> None:
        if not self._wants.is_wanted(cid):
            return  # two holders gave it at once
        self._shared.counters["blocks_received"] += 1
        self.received += size_bytes
        self._wants.arrived(cid)
        self._walk.arrived(cid)
        if self.received > self._limit_bytes:
            self._fail(FetchFailed(f"more than {self._limit_bytes} bytes"))


async def send_frame(stream: ByteStream, value: object) -> None:
    """Send a msgpack value with its length."""
    data = pack(value)
    await stream.send(len(data).to_bytes(4, "big") + data)
