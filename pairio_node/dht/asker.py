"""Asks one peer of the DHT, in bounded time; whatever goes wrong is an answer of nothing."""

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import trio

from pairio_node.dht.contacts import Contacts
from pairio_node.transport.base import ByteStream, StreamEnded, Transport, TransportError
from pairio_protocol.errors import DecodeError
from pairio_protocol.kad import KAD, Contact, Give, Given
from pairio_protocol.limits import (
    FRAME_SIZE_BYTES_MAX,
    KAD_ASK_MS,
    KAD_GIVEN_SEGMENTS_MAX,
    KAD_GIVEN_SIZE_BYTES_MAX,
)

__all__ = ["KAD_PROTOCOL", "Asker", "read_frame", "write_frame"]

KAD_PROTOCOL = "/pairio/kad/1"
T = TypeVar("T")


async def read_frame(stream: ByteStream, size_bytes_max: int) -> bytes:
    """Return the next frame; DecodeError when it is empty or larger than that."""
    size = int.from_bytes(await stream.receive_exactly(4), "big")
    if not 0 < size <= size_bytes_max:
        raise DecodeError(f"a frame of {size} bytes; at most {size_bytes_max}")
    return await stream.receive_exactly(size)


async def write_frame(stream: ByteStream, message: Any) -> None:
    """Send a message."""
    data = KAD.encode(message)
    await stream.send(len(data).to_bytes(4, "big") + data)


class Asker:
    """Streams to members of the DHT."""

    def __init__(self, transport: Transport, contacts: Contacts, counters: Counter[str]) -> None:
        self._transport = transport
        self._contacts = contacts
        self._counters = counters

    async def ask(self, contact: Contact, question: Any, kind: type[T]) -> T | None:
        """Return a peer's answer; None when there is none in time, or another one."""
        answer = await self._within_bound(contact, question)
        if answer is None or isinstance(answer, kind):
            return answer
        self._counters["answers_refused"] += 1
        return None

    async def give(self, contact: Contact, question: Give) -> Given | None:
        """Return what a holder has of a job; None when it gives nothing in time, or too much."""
        found = await self._within_bound(contact, question)
        return found if isinstance(found, Given) and found.segments else None

    async def _within_bound(self, contact: Contact, question: Any) -> Any:
        self._counters["asked"] += 1
        answer = None
        with trio.move_on_after(KAD_ASK_MS / 1000):
            try:
                async with self._stream(contact) as stream:
                    await write_frame(stream, question)
                    reads = self._read_all if isinstance(question, Give) else self._read_one
                    answer = await reads(stream)
            except (TransportError, StreamEnded):
                self._counters["answers_broken"] += 1
            except DecodeError:
                self._counters["answers_refused"] += 1
        if answer is None:
            self._counters["asked_in_vain"] += 1
            self._contacts.failed(contact.peer, trio.current_time())
        else:
            self._contacts.note(contact.peer, contact.addresses)
        return answer

    @asynccontextmanager
    async def _stream(self, contact: Contact) -> AsyncIterator[ByteStream]:
        if contact.peer not in self._transport.connected():
            await self._transport.reach(contact.peer, contact.addresses, keep=False)
        stream = await self._transport.open_stream(contact.peer, KAD_PROTOCOL)
        try:
            yield stream
        finally:  # reset: whoever is asked has no more to say
            with trio.CancelScope(shield=True), trio.move_on_after(0.5):
                await stream.abort()

    async def _read_one(self, stream: ByteStream) -> Any:
        return KAD.decode(await read_frame(stream, FRAME_SIZE_BYTES_MAX))

    async def _read_all(self, stream: ByteStream) -> Given:
        """Return the parts of an answer as one."""
        changes: list[bytes] = []
        segments: list[bytes] = []
        size_bytes = 0
        while True:
            part = await self._read_one(stream)
            if not isinstance(part, Given):
                raise DecodeError("another answer than what was asked for")
            if not part.changes and not part.segments:
                return Given(tuple(changes), tuple(segments), part.is_whole)
            changes += part.changes
            segments += part.segments
            size_bytes += sum(map(len, (*part.changes, *part.segments)))
            if len(segments) > KAD_GIVEN_SEGMENTS_MAX or size_bytes > KAD_GIVEN_SIZE_BYTES_MAX:
                raise DecodeError("more than is taken of one holder")
