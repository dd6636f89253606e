"""The console of a run while it goes on, over `/pairio/logs/1`: from the node that computes to any
member of the service that asks.

The reader sends one frame `[service, attempt, offset, follow]`; then pieces of the output come,
each with its place in all that the job wrote, until the job has ended there, the reader leaves or
loses its role. A reader that does not read is waited for, within bounds: nothing is queued for it.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, suppress
from pathlib import Path

import trio

from pairio_node.errors import UnavailableError
from pairio_node.places import Memberships, Places, each_its_own
from pairio_node.runner.supervisor.console import ConsoleReader
from pairio_node.transport.base import LOGS, ByteStream, StreamEnded, Transport, TransportError
from pairio_protocol.cid import CidError, parse_cid
from pairio_protocol.codec import pack, unpack
from pairio_protocol.errors import DecodeError
from pairio_protocol.limits import (
    LOG_PIECE_SIZE_BYTES_MAX,
    LOG_REQUEST_SIZE_BYTES_MAX,
    LOG_STREAMS_MAX,
    LOG_STREAMS_PER_MEMBER_MAX,
    LOG_STREAMS_PER_PEER_MAX,
)

__all__ = ["ConsoleStreams", "NoConsole"]

#: A job's file says nothing by itself: it is looked at so often, while somebody follows it.
_LOOK_S = 0.1
_ASK_S = 10.0
#: A reader that takes nothing for so long is let go.
_SEND_S = 60.0
_OFFSET_MAX = 2**62
_END, _OUTPUT, _REFUSED, _UNKNOWN = b"\x00", b"\x01", b"\x02", b"\x03"
_COUNTED = ("logs_sent", "logs_refused", "log_streams_refused", "log_workers_wrong")

Pieces = AsyncIterator[tuple[int, bytes]]


class NoConsole(UnavailableError):
    """A node gives no output of an attempt now, or not all of it; says why."""


class ConsoleStreams:
    """Serves consoles to those who `may_read(peer, service)`, and reads those of other nodes.
    `console_of(service, attempt)` says where a run that goes on here writes its console. Places go
    by `memberships`: who is in no service with this node has none."""

    def __init__(
        self,
        transport: Transport,
        console_of: Callable[[str, str], Path | None],
        may_read: Callable[[str, str], bool],
        memberships: Memberships = each_its_own,
    ) -> None:
        self._open_stream = transport.open_stream
        self._console_of = console_of
        self._may_read = may_read
        self._places = Places(
            memberships,
            peer=LOG_STREAMS_PER_PEER_MAX,
            member=LOG_STREAMS_PER_MEMBER_MAX,
            everybody=LOG_STREAMS_MAX,
        )
        self.counters = dict.fromkeys(_COUNTED, 0)
        transport.set_stream_handler(LOGS, self._serve)

    @property
    def streams_served(self) -> int:
        """How many streams of others are open."""
        return self._places.taken

    # -- here -----------------------------------------------------------------------------------

    async def tail(
        self,
        service: str,
        attempt: str,
        offset: int,
        *,
        follow: bool,
        may_go_on: Callable[[], bool] = lambda: True,
    ) -> Pieces:
        """Yield (place, bytes) of what a run here has written from `offset` on, and writes until it
        ends or `may_go_on` no more.

        Raises:
            NoConsole: no such run goes on here.
        """
        path = self._console_of(service, attempt)
        if path is None:
            raise NoConsole(f"attempt {attempt} does not run here (any more)")
        reader: ConsoleReader | None = None
        try:
            while may_go_on():
                goes_on = self._console_of(service, attempt) is not None  # before it is read: all
                reader = reader or _opened(path)
                while reader is not None and reader.total > offset and may_go_on():
                    piece = await trio.to_thread.run_sync(
                        reader.read, offset, LOG_PIECE_SIZE_BYTES_MAX
                    )
                    offset = piece.next_offset
                    yield offset - len(piece.data), piece.data
                if not (goes_on and follow):
                    return
                await trio.sleep(_LOOK_S)
        finally:
            if reader is not None:
                reader.close()

    # -- served to members ----------------------------------------------------------------------

    async def _serve(self, stream: ByteStream) -> None:
        with self._places.place(stream.peer) as is_free:
            if not is_free:
                is_stranger = self._places.is_stranger(stream.peer)
                self.counters["logs_refused" if is_stranger else "log_streams_refused"] += 1
                await stream.abort()
                return
            try:
                await self._serve_one(stream, *await _asked(stream))
                await stream.close()
            except (StreamEnded, TransportError):
                await stream.close()
            except (DecodeError, CidError, trio.TooSlowError):
                self.counters["logs_refused"] += 1
                await stream.abort()

    async def _serve_one(
        self, stream: ByteStream, service: str, attempt: str, offset: int, follow: bool
    ) -> None:
        def may_go_on() -> bool:
            return self._may_read(stream.peer, service)

        if not may_go_on():
            self.counters["logs_refused"] += 1
            await stream.send(_REFUSED)
            return
        pieces = self.tail(service, attempt, offset, follow=follow, may_go_on=may_go_on)
        last = _END
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_until_the_reader_leaves, stream, nursery.cancel_scope)
            last = await self._send(stream, pieces)
            nursery.cancel_scope.cancel()
        if last == _END and not may_go_on():
            self.counters["logs_refused"] += 1
            last = _REFUSED
        if last:
            await stream.send(last)

    async def _send(self, stream: ByteStream, pieces: Pieces) -> bytes:
        """Send what there is; return what to say at the end, nothing to a broken stream."""
        try:
            async with aclosing(pieces):  # type: ignore[type-var]
                async for at, data in pieces:
                    with trio.fail_after(_SEND_S):
                        head = _OUTPUT + at.to_bytes(8, "big") + len(data).to_bytes(4, "big")
                        await stream.send(head + data)
                    self.counters["logs_sent"] += 1
        except NoConsole:
            return _UNKNOWN
        except (TransportError, trio.TooSlowError):
            await stream.abort()
            return b""
        return _END

    # -- read from others -----------------------------------------------------------------------

    async def ask(
        self, worker: str, service: str, attempt: str, offset: int, *, follow: bool
    ) -> Pieces:
        """Yield the same of a run at another node, as it comes.

        Raises:
            NoConsole: that node gives none, is not connected, or was lost before the end.
        """
        try:
            stream = await self._open_stream(worker, LOGS)
        except TransportError as error:
            raise NoConsole(error.message) from None
        try:
            data = pack([service, attempt, offset, follow])
            await stream.send(len(data).to_bytes(4, "big") + data)
            while (kind := await stream.receive_exactly(1)) == _OUTPUT:
                at = int.from_bytes(await stream.receive_exactly(8), "big")
                size = int.from_bytes(await stream.receive_exactly(4), "big")
                if not (offset <= at < _OFFSET_MAX and 0 < size <= LOG_PIECE_SIZE_BYTES_MAX):
                    kind = b"wrong"
                    break
                data = await stream.receive_exactly(size)
                offset = at + size
                yield at, data
            if kind != _END:
                raise NoConsole(self._why(kind, worker))
        except (TransportError, StreamEnded) as error:
            raise NoConsole(f"the stream of its console broke: {error}") from None
        finally:
            with trio.CancelScope(shield=True), trio.move_on_after(1):
                await stream.abort()

    def _why(self, kind: bytes, worker: str) -> str:
        if kind == _REFUSED:
            return f"{worker} gives its console to members only"
        if kind == _UNKNOWN:
            return f"it does not run at {worker} (any more)"
        self.counters["log_workers_wrong"] += 1
        return f"{worker} sends what is no console"


def _opened(path: Path) -> ConsoleReader | None:
    """Return a reader of a console; None as long as its job has not begun."""
    try:
        return ConsoleReader(path)
    except OSError:
        return None


async def _asked(stream: ByteStream) -> tuple[str, str, int, bool]:
    """Return what a reader asks for: service, attempt, offset, whether it follows."""
    with trio.fail_after(_ASK_S):
        size = int.from_bytes(await stream.receive_exactly(4), "big")
        if size > LOG_REQUEST_SIZE_BYTES_MAX:
            raise DecodeError("a request that is too large")
        match unpack(await stream.receive_exactly(size)):
            case [str(service), str(attempt), int(offset), bool(follow)] if (
                0 <= offset < _OFFSET_MAX
            ):
                parse_cid(service)
                return service, attempt, offset, follow
    raise DecodeError("no request for a console")


async def _until_the_reader_leaves(stream: ByteStream, scope: trio.CancelScope) -> None:
    """Notice that a reader has gone while there is nothing to send; it has nothing more to say."""
    with suppress(StreamEnded, TransportError):
        await stream.receive_exactly(1)
    await stream.abort()
    scope.cancel()
