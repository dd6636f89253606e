"""What is mended in py-libp2p 0.8.1, each with the reason; applied once, before the first host.

`tests/integration/test_libp2p_patches.py` holds a test per patch that fails without it, so that an
upgrade shows which are obsolete. Everything here touches private names of that one version.
"""

import logging
import sys
from collections.abc import Callable
from typing import Any

import libp2p.io.utils as io_utils
import libp2p.network.swarm as swarm
import libp2p.pubsub.gossipsub as gossipsub
import trio
from libp2p.host.basic_host import BasicHost
from libp2p.io.exceptions import IncompleteReadError
from libp2p.io.trio import TrioTCPStream
from libp2p.pubsub.pubsub import Pubsub, RpcQueue
from libp2p.stream_muxer.exceptions import MuxedStreamError
from libp2p.stream_muxer.yamux.yamux import TYPE_DATA, YamuxStream

from pairio_node.transport import quick
from pairio_node.transport.quick import HEADER, WINDOW_BYTES_MAX, frame_bytes

__all__ = ["apply", "contained"]

#: How long a writer waits for a reader.
_WINDOW_S = 20.0
_READ_BYTES = 64 * 1024
_NOTHING = memoryview(b"")
_applied = False
#: Streams that a peer may have open here, of all protocols; about 50 are of use to it.
_STREAMS_PER_CONNECTION_MAX = 96
_streams: dict[Any, int] = {}
#: What was kept from ending the host, by where.
contained: dict[str, int] = {}


def apply() -> None:
    """Apply every patch; a second call does nothing."""
    global _applied
    if _applied:
        return
    _applied = True
    swarm._HAPPY_EYEBALLS_DELAY = 0.0  # stock: every connect takes 251 ms
    _contain_exceptions()
    _read_exactly_without_limit()
    _read_ahead()
    _wait_for_window_without_polling()
    _credit_window_by_halves()
    quick.apply(_note)
    _drop_sender_record()
    logging.getLogger("libp2p").setLevel(logging.CRITICAL)
    logging.getLogger("async_service").setLevel(logging.CRITICAL)


async def _reset(stream: Any) -> None:
    try:
        await stream.reset()
    except Exception:  # the stream may be in any state; there is nothing left to save
        contained["reset"] = contained.get("reset", 0) + 1


def _note(where: str) -> None:
    contained[where] = contained.get(where, 0) + 1


def _contain_exceptions() -> None:
    """A raising handler, or one malformed pubsub RPC of any peer, ends the stock host."""
    handle, push = BasicHost._swarm_stream_handler, Pubsub.push_msg
    read_loop = Pubsub.stream_handler

    async def safe_handle(self: Any, stream: Any) -> None:
        connection = stream.muxed_conn
        under_way = _streams.get(connection, 0)
        if under_way >= _STREAMS_PER_CONNECTION_MAX:  # stock: as many as a peer likes
            _note("streams beyond what is handled")
            await _reset(stream)
            return
        _streams[connection] = under_way + 1
        try:
            await handle(self, stream)
        except Exception:
            _note("stream handler")
            await _reset(stream)
        finally:
            _streams[connection] -= 1
            if not _streams[connection]:
                del _streams[connection]

    async def safe_push(self: Any, forwarder: Any, msg: Any) -> None:
        if forwarder == self.my_id:  # own publish: the caller gets the error
            await push(self, forwarder, msg)
            return
        try:
            await push(self, forwarder, msg)
        except Exception:
            _note("pubsub message")

    async def safe_read_loop(self: Any, stream: Any) -> None:
        try:
            await read_loop(self, stream)
        except Exception:
            _note("pubsub stream")
            await _reset(stream)
            self._handle_dead_peer(stream.muxed_conn.peer_id)

    BasicHost._swarm_stream_handler = safe_handle
    Pubsub.push_msg = safe_push
    Pubsub.stream_handler = safe_read_loop


def _read_exactly_without_limit() -> None:
    """Stock gives up after 100 partial reads, about 6.4 MB."""
    stock: Callable[..., Any] = io_utils.read_exactly

    async def read_exactly(reader: Any, n: int, retry_count: int | None = None) -> bytes:
        first = await reader.read(n)
        if len(first) == n:  # nearly always, with reading ahead: not copied
            return bytes(first)
        buffer = bytearray(first)
        while len(buffer) < n:
            chunk = await reader.read(n - len(buffer)) if buffer else b""
            if not chunk:
                raise IncompleteReadError("closed", expected_bytes=n, received_bytes=len(buffer))
            buffer += chunk
        return bytes(buffer)

    for module in list(sys.modules.values()):  # most callers imported the function by name
        if getattr(module, "read_exactly", None) is stock:
            module.read_exactly = read_exactly


def _read_ahead() -> None:
    """Stock asks the socket for the 2 bytes of a length, then for what is left of a message, in
    pieces: five calls of the kernel and as many steps of the loop for 64 KB."""
    stock = TrioTCPStream.read

    async def read(self: Any, n: int | None = None) -> bytes:
        ahead: memoryview = self.__dict__.get("_ahead", _NOTHING)
        if not ahead:
            data = await stock(self, _READ_BYTES)
            if n is None or len(data) <= n:
                return data
            ahead = memoryview(data)
        taken = ahead if n is None else ahead[:n]
        self._ahead = ahead[len(taken) :]
        return bytes(taken)

    TrioTCPStream.read = read


def _wait_for_window_without_polling() -> None:
    """Stock looks every 10 ms whether the reader has taken something, and resets the stream when he
    has not for 5 s, which a busy disk may need."""

    def get_window(self: Any) -> int:
        return int(self.__dict__["_send_window"])

    def set_window(self: Any, value: int) -> None:
        self.__dict__["_send_window"] = value
        waiting: trio.Event | None = self.__dict__.get("_window_opened")
        if waiting is not None and value > 0:
            waiting.set()

    async def wait_for_window(self: Any) -> None:
        with trio.move_on_after(_WINDOW_S):
            while self.send_window <= 0 and not (self.closed or self.send_closed):
                self._window_opened = trio.Event()
                with trio.move_on_after(0.5):  # closing sets no event
                    await self._window_opened.wait()
        if self.send_window <= 0 and not (self.closed or self.send_closed):
            raise MuxedStreamError(f"nothing was read there for {_WINDOW_S:.0f} s")

    async def write(self: Any, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            if self.send_window <= 0:
                await wait_for_window(self)
            if self.closed or self.send_closed:
                raise MuxedStreamError("the stream is closed for sending")
            size = min(self.send_window, frame_bytes(self.conn), len(rest))
            self.send_window -= size
            header = HEADER.pack(0, TYPE_DATA, 0, self.stream_id, size)
            await self.conn._write_frame(header, rest[:size])
            rest = rest[size:]

    YamuxStream.send_window = property(get_window, set_window)
    YamuxStream.write = write


def _credit_window_by_halves() -> None:
    """Stock sends a window update for every read: 3 extra encrypted frames per gossip RPC."""

    async def credit(self: Any, *, bytes_read: int = 0) -> None:
        if bytes_read <= 0:
            return
        self._pending_recv_release += bytes_read
        if self._pending_recv_release < self.target_recv_window // 2:
            return
        increment, self._pending_recv_release = self._pending_recv_release, 0
        if self.target_recv_window < WINDOW_BYTES_MAX:  # grow once
            increment += WINDOW_BYTES_MAX - self.target_recv_window
            self.target_recv_window = WINDOW_BYTES_MAX
        self.recv_window += increment
        await self.send_window_update(increment)

    YamuxStream._auto_tune_and_send_window_update = credit


def _drop_sender_record() -> None:
    """Stock puts a signed peer record into every RPC: a fifth of the CPU per delivery."""
    gossipsub.env_to_send_in_RPC = lambda host: (b"", False)
    push = RpcQueue.push

    def push_without_record(self: Any, rpc: Any, priority: bool = False) -> Any:
        if rpc.HasField("senderRecord") and not rpc.senderRecord:  # b"" counts as present
            rpc.ClearField("senderRecord")
        return push(self, rpc, priority)

    RpcQueue.push = push_without_record
