"""A stream of libp2p as the rest of pairio reads and writes one."""

from collections.abc import Callable
from typing import Any

import trio
from libp2p.network.stream.exceptions import StreamEOF

from pairio_node.transport.base import StreamEnded, TransportError

__all__ = ["Libp2pStream"]

_READ_BYTES = 256 * 1024
_STEPS_PER_TURN = 32
_NOTHING = memoryview(b"")


class Libp2pStream:
    """A libp2p stream as a ByteStream; `note_use(peer)` is called with whatever goes through it."""

    def __init__(
        self, stream: Any, peer: str, note_use: Callable[[str], None] = lambda _: None
    ) -> None:
        self._stream = stream
        self._note_use = note_use
        self.peer = peer
        self.connection = stream.muxed_conn
        self._ahead = _NOTHING  # read and not asked for yet
        self._steps = 0

    async def send(self, data: bytes) -> None:
        """Send; raises TransportError."""
        self._note_use(self.peer)
        try:
            await self._stream.write(data)
        except Exception as error:  # libp2p raises whatever its layers do
            raise TransportError(f"stream to {self.peer[-6:]} broke: {error!r}") from None

    async def receive_exactly(self, size: int) -> bytes:
        """Return the next bytes. Raises StreamEnded, TransportError."""
        ahead = self._ahead
        if size <= len(ahead):
            self._ahead = ahead[size:] or _NOTHING  # an empty part would keep the whole
            await self._maybe_a_turn()
            return bytes(ahead[:size])
        parts: list[bytes | memoryview] = [ahead]
        size -= len(ahead)
        self._ahead = _NOTHING
        while size > 0:
            try:
                chunk = await self._stream.read(_READ_BYTES)
            except StreamEOF:
                chunk = b""
            except Exception as error:
                raise TransportError(f"stream of {self.peer[-6:]} broke: {error!r}") from None
            if not chunk and self._stream.muxed_stream.reset_received:  # stock: read as an end
                raise TransportError(f"stream of {self.peer[-6:]} was reset")
            if not chunk:
                raise StreamEnded(f"{self.peer[-6:]} closed the stream")
            parts.append(memoryview(chunk)[:size])
            self._ahead = memoryview(chunk)[size:] or _NOTHING
            size -= len(parts[-1])
            self._note_use(self.peer)
        return b"".join(parts)

    async def _maybe_a_turn(self) -> None:
        """Leave the loop to others now and then: a peer may send a thousand frames in one piece."""
        self._steps += 1
        if self._steps % _STEPS_PER_TURN == 0:
            await trio.lowlevel.checkpoint()

    async def close(self) -> None:
        """End it; what was sent arrives."""
        try:
            await self._stream.close()
        except Exception:  # closed, reset, connection gone: all the same to us now
            return

    async def abort(self) -> None:
        """Reset it."""
        try:
            await self._stream.reset()
        except Exception:
            return
