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
from libp2p.host.basic_host import BasicHost
from libp2p.io.exceptions import IncompleteReadError
from libp2p.pubsub.pubsub import Pubsub, RpcQueue
from libp2p.stream_muxer.yamux.yamux import YamuxStream

__all__ = ["apply", "contained"]

_WINDOW_BYTES = 1024 * 1024
_applied = False
#: Exceptions that were kept from ending the host, by where.
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
    _credit_window_by_halves()
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
        try:
            await handle(self, stream)
        except Exception:
            _note("stream handler")
            await _reset(stream)

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
        buffer = bytearray()
        while len(buffer) < n:
            chunk = await reader.read(n - len(buffer))
            if not chunk:
                raise IncompleteReadError("closed", expected_bytes=n, received_bytes=len(buffer))
            buffer += chunk
        return bytes(buffer)

    for module in list(sys.modules.values()):  # most callers imported the function by name
        if getattr(module, "read_exactly", None) is stock:
            module.read_exactly = read_exactly


def _credit_window_by_halves() -> None:
    """Stock sends a window update for every read: 3 extra encrypted frames per gossip RPC."""

    async def credit(self: Any, *, bytes_read: int = 0) -> None:
        if bytes_read <= 0:
            return
        self._pending_recv_release += bytes_read
        if self._pending_recv_release < self.target_recv_window // 2:
            return
        increment, self._pending_recv_release = self._pending_recv_release, 0
        if self.target_recv_window < _WINDOW_BYTES:  # grow once
            increment += _WINDOW_BYTES - self.target_recv_window
            self.target_recv_window = _WINDOW_BYTES
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
