"""Streams of the in-memory transport: two pipes, one for each direction."""

from typing import Literal

import trio

from pairio_node.transport.base import StreamEnded, TransportError

__all__ = ["MemoryStream", "Pipe"]

_WINDOW_BYTES = 256 * 1024


class Pipe:
    """One direction of a stream: bounded bytes, then a clean end or a break."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._state: Literal["open", "ended", "broken"] = "open"
        self._discards = False
        self._changed = trio.Event()

    def _change(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    def end(self) -> None:
        """Nothing more is written."""
        if self._state == "open":
            self._state = "ended"
        self._change()

    def break_off(self) -> None:
        """Reset: what was not read yet is lost."""
        self._state = "broken"
        self._data.clear()
        self._change()

    def discard(self) -> None:
        """Nobody reads any more: what comes is thrown away, so that the writer is not held up."""
        self._discards = True
        self._data.clear()
        self._change()

    async def write(self, data: bytes) -> None:
        """Write all of `data`, waiting for room; raises TransportError when it is not open."""
        await trio.lowlevel.checkpoint()
        rest = memoryview(data)
        while rest:
            if self._state != "open":
                raise TransportError(f"the stream is {self._state}")
            room = len(rest) if self._discards else _WINDOW_BYTES - len(self._data)
            if room <= 0:
                await self._changed.wait()
                continue
            if not self._discards:
                self._data += rest[:room]
            rest = rest[room:]
            self._change()

    async def read_exactly(self, size: int) -> bytes:
        """Return `size` bytes; raises StreamEnded at the end, TransportError when reset."""
        await trio.lowlevel.checkpoint()
        parts = bytearray()
        while True:
            if self._state == "broken":
                raise TransportError("the stream was reset")
            taken = size - len(parts)
            parts += self._data[:taken]
            del self._data[:taken]
            self._change()
            if len(parts) == size:
                return bytes(parts)
            if self._state == "ended":
                raise StreamEnded("the other side closed the stream")
            await self._changed.wait()


class MemoryStream:
    """One side of a stream between two peers; a ByteStream."""

    def __init__(self, peer: str, incoming: Pipe, outgoing: Pipe) -> None:
        self.peer = peer
        self._incoming = incoming
        self._outgoing = outgoing

    async def send(self, data: bytes) -> None:
        """Write all of `data`, waiting for room; raises TransportError when broken."""
        await self._outgoing.write(data)

    async def receive_exactly(self, size: int) -> bytes:
        """Read `size` bytes; raises StreamEnded at a clean end, TransportError when broken."""
        return await self._incoming.read_exactly(size)

    async def close(self) -> None:
        """End cleanly: what was sent is still read there, nothing is read here any more."""
        await trio.lowlevel.checkpoint()  # canceled here, nothing is ended, as in libp2p
        self._outgoing.end()
        self._incoming.discard()

    async def abort(self) -> None:
        """Reset both directions."""
        await trio.lowlevel.checkpoint()
        self._outgoing.break_off()
        self._incoming.break_off()
