"""What is sent to one peer: on a stream of our own, since others read answers on no other."""

import trio

from pairio_node.bitswap.wire import BITSWAP
from pairio_node.transport.base import ByteStream, Transport, TransportError

__all__ = ["Outbox"]

_OPEN_S = 10.0
_WRITE_S = 30.0
_PIECE_BYTES = 256 * 1024


class Outbox:
    """Messages to one peer, one after the other. The stream is opened with the first."""

    def __init__(self, transport: Transport, peer: str) -> None:
        self._transport = transport
        self._peer = peer
        self._stream: ByteStream | None = None
        self._lock = trio.Lock()

    async def send(self, message: bytes) -> None:
        """Send a message; on a new stream, once, when the old one is broken.

        Raises:
            TransportError: it does not get through, or not in time.
        """
        async with self._lock:
            if self._stream is None or not await self._is_written(self._stream, message):
                self._stream = await self._open()
                await self._write(self._stream, message)

    async def _open(self) -> ByteStream:
        try:
            with trio.fail_after(_OPEN_S):
                return await self._transport.open_stream(self._peer, BITSWAP)
        except trio.TooSlowError:
            raise TransportError(f"{self._peer[-6:]} opens no stream") from None

    async def _is_written(self, stream: ByteStream, message: bytes) -> bool:
        """Write on a stream that may have ended there meanwhile."""
        try:
            await self._write(stream, message)
        except TransportError:
            return False
        return True

    async def _write(self, stream: ByteStream, message: bytes) -> None:
        try:
            with trio.fail_after(_WRITE_S):
                for start in range(0, len(message), _PIECE_BYTES):
                    await stream.send(message[start : start + _PIECE_BYTES])
                    if len(message) > _PIECE_BYTES:
                        await trio.sleep(0.001)  # leave the loop to others
        except BaseException as error:
            self._stream = None
            with trio.CancelScope(shield=True), trio.move_on_after(1):
                await stream.abort()
            if isinstance(error, trio.TooSlowError):
                raise TransportError(f"{self._peer[-6:]} does not read") from None
            raise

    async def close(self) -> None:
        """End the stream, if there is one."""
        stream, self._stream = self._stream, None
        if stream is not None:
            with trio.CancelScope(shield=True), trio.move_on_after(1):
                await stream.close()
