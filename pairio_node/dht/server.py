"""Answers questions on /pairio/kad/1: of members of the service that they name, of nobody else."""

from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import trio

from pairio_node.dht.asker import read_frame, write_frame
from pairio_node.dht.contacts import Contacts
from pairio_node.dht.records import Records
from pairio_node.places import Memberships, Places, each_its_own
from pairio_node.strangers import Pace
from pairio_node.transport.base import ByteStream, StreamEnded, Transport, TransportError
from pairio_protocol.errors import DecodeError
from pairio_protocol.kad import KAD, Contact, Find, Found, Give, Given, Provide, Provided
from pairio_protocol.limits import (
    KAD_CONTACTS_MAX,
    KAD_GIVEN_AT_ONCE,
    KAD_GIVEN_SEGMENTS_MAX,
    KAD_GIVEN_SIZE_BYTES_MAX,
    KAD_QUESTION_SIZE_BYTES_MAX,
    KAD_STREAMS_MAX,
    KAD_STREAMS_PER_MEMBER_MAX,
    KAD_STREAMS_PER_PEER_MAX,
)

__all__ = ["Knowledge", "Server"]

#: A stream on which nothing comes, or on which an answer is not taken, ends after this time.
_IDLE_S = 10.0
#: Questions of one peer that may come at once, and how many a second after that.
_BURST, _PER_S = 64, 16
#: What is left of a frame for other things than segments.
_PART_SIZE_BYTES = 48 * 1024


@dataclass(frozen=True)
class Knowledge:
    """What the node knows, as functions: whether a peer is a member of a service, members near a
    job's id, whether a job's result is held here, what there is to give of one, and of which
    services a peer is which member."""

    is_member: Callable[[str, str], bool]
    near: Callable[[str, str, int], Sequence[Contact]]
    holds: Callable[[str, str], bool]
    give: Callable[[Give], Awaitable[Given]]
    memberships: Memberships = each_its_own


class Server:
    """One node's door. `counters` are the DHT's."""

    def __init__(
        self,
        transport: Transport,
        records: Records,
        contacts: Contacts,
        knowledge: Knowledge,
        counters: Counter[str],
    ) -> None:
        self._transport = transport
        self._records = records
        self._contacts = contacts
        self._knows = knowledge
        self._counters = counters
        self._places = Places(
            knowledge.memberships,
            peer=KAD_STREAMS_PER_PEER_MAX,
            member=KAD_STREAMS_PER_MEMBER_MAX,
            everybody=KAD_STREAMS_MAX,
        )
        self._pace = Pace(_BURST, _PER_S)
        self._giving = trio.Semaphore(KAD_GIVEN_AT_ONCE)

    async def serve(self, stream: ByteStream) -> None:
        """Answer the questions of one stream, until it ends."""
        with self._places.place(stream.peer) as is_free:
            if not is_free:
                is_stranger = self._places.is_stranger(stream.peer)
                self._counters["strangers_refused" if is_stranger else "streams_refused"] += 1
                await stream.abort()
                return
            try:
                await self._serve_until_end(stream)
            except (StreamEnded, TransportError):
                await stream.close()
            except (DecodeError, trio.TooSlowError) as error:
                name = "messages_refused" if isinstance(error, DecodeError) else "questions_late"
                self._counters[name] += 1
                await stream.abort()

    def forget(self, peer: str) -> None:
        """A connection is gone."""
        if not self._places.of(peer):
            self._pace.forget(peer)

    async def _serve_until_end(self, stream: ByteStream) -> None:
        while True:
            with trio.fail_after(_IDLE_S):
                question = KAD.decode(await read_frame(stream, KAD_QUESTION_SIZE_BYTES_MAX))
            await self._pace.wait(stream.peer)
            with trio.fail_after(_IDLE_S):
                await self._answer(stream, question)

    async def _answer(self, stream: ByteStream, question: Any) -> None:
        peer = stream.peer
        if not isinstance(question, Find | Provide | Give):
            raise DecodeError("an answer to nothing")
        if not self._knows.is_member(question.service, peer):
            kind = "provides" if isinstance(question, Provide) else "questions"
            self._counters[f"{kind}_refused"] += 1
            await write_frame(stream, _nothing(question))
            return
        match question:
            case Find():
                await write_frame(stream, self._find(peer, question))
            case Provide():
                await write_frame(stream, self._note(peer, question))
            case Give():
                async with self._giving:
                    for part in _parts(await self._knows.give(question)):
                        await write_frame(stream, part)
        self._counters["answered"] += 1

    def _find(self, peer: str, question: Find) -> Found:
        service, job = question.service, question.job
        me = Contact(self._transport.peer_id, self._transport.addresses()[:8])
        found = [me] if self._knows.holds(service, job) else []
        found += self._records.holders(
            service,
            job,
            lambda holder: self._knows.is_member(service, holder),
            trio.current_time(),
        )
        others = [contact for contact in found if contact.peer != peer]
        near = [c for c in self._knows.near(service, job, KAD_CONTACTS_MAX + 1) if c.peer != peer]
        return Found(tuple(others[:KAD_CONTACTS_MAX]), tuple(near[:KAD_CONTACTS_MAX]))

    def _note(self, peer: str, question: Provide) -> Provided:
        holder, now_s = Contact(peer, question.addresses), trio.current_time()
        self._contacts.note(peer, question.addresses)
        service = question.service
        member = dict(self._knows.memberships(peer)).get(service, peer)
        noted = sum(
            self._records.note(service, job, holder, member, now_s) for job in question.jobs
        )
        self._counters["provides_beyond"] += len(question.jobs) - noted
        return Provided(noted)


def _nothing(question: Find | Provide | Give) -> Found | Provided | Given:
    match question:
        case Find():
            return Found((), ())
        case Provide():
            return Provided(0)
        case Give():
            return Given((), ())


def _parts(given: Given) -> Iterator[Given]:
    """Yield what a holder gives, in frames, and the end of it; what is too much is left out."""
    part: tuple[list[bytes], list[bytes]] = ([], [])
    size_bytes = all_bytes = 0
    rows = [(0, data) for data in given.changes]
    rows += [(1, data) for data in given.segments[:KAD_GIVEN_SEGMENTS_MAX]]
    for kind, data in rows:
        all_bytes += len(data)
        if all_bytes > KAD_GIVEN_SIZE_BYTES_MAX:
            break
        if size_bytes and size_bytes + len(data) > _PART_SIZE_BYTES:
            yield Given(tuple(part[0]), tuple(part[1]))
            part, size_bytes = ([], []), 0
        part[kind].append(data)
        size_bytes += len(data)
    if size_bytes:
        yield Given(tuple(part[0]), tuple(part[1]))
    yield Given((), (), given.is_whole)
