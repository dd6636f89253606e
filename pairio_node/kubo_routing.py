"""How a pairio node is found through the network of Kubo daemons.

A daemon announces itself (`provide/once`), and cannot be asked for a signed result. So the node
tells its own daemon, over libp2p and as any peer may, that it holds results of the job too
(ADD_PROVIDER). Whoever finds the daemon asks it who else does (GET_PROVIDERS), and so learns of the
node: from the first answer where the daemons are near to each other, else by asking again.

The messages are those of https://github.com/libp2p/specs/tree/master/kad-dht
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Final

import trio

from pairio_node.bitswap.wire import read_fields
from pairio_node.errors import UserError
from pairio_node.transport.base import ByteStream, StreamEnded, Transport, TransportError
from pairio_node.transport.multiaddrs import address_bytes, address_text, peer_bytes, peer_text
from pairio_node.transport.prefixed import receive_prefixed
from pairio_protocol import protobuf
from pairio_protocol.cid import cid_bytes
from pairio_protocol.errors import DecodeError
from pairio_protocol.kad import Contact
from pairio_protocol.limits import (
    ADDRESS_LENGTH_MAX,
    ADDRESSES_MAX,
    KAD_ASK_MS,
    KAD_CONTACTS_MAX,
    KAD_RECORD_MS,
)

if TYPE_CHECKING:
    from pairio_node.blocks.kubo import Provider

__all__ = ["Announcer", "announce", "ask_holders", "holders_at"]

#: A daemon on private addresses speaks the first with everybody; a public server the second too.
PROTOCOLS: Final = ("/ipfs/lan/kad/1.0.0", "/ipfs/kad/1.0.0")
_ADD_PROVIDER, _GET_PROVIDERS = 2, 3
_TYPE, _KEY, _PROVIDERS = 1, 2, 9
_ID, _ADDRESS = 1, 2
_PEER: Final = re.compile("[1-9A-HJ-NP-Za-km-z]{1,128}")
_ANSWER_SIZE_BYTES_MAX: Final = 64 * 1024
_VERSION_AND_CODEC_BYTES = 2
#: Announcements made in one second, and what is waited for after one that failed.
_PER_S: Final = 10
_RETRY_S: Final = 10.0


class Announcer:
    """Keeps the daemon told of this node, for all jobs that are `published`: anew since its start,
    as its addresses may be others now, and again after a while. `counters` are given."""

    def __init__(
        self,
        transport: Transport,
        locate: Callable[[], tuple[str, tuple[str, ...]]],
        counters: Counter[str],
    ) -> None:
        self._transport = transport
        self._locate = locate
        self._counters = counters
        self._again_s: dict[str, float] = {}

    async def run(self, published: Callable[[], Iterable[str]]) -> None:
        """Announce until cancelled, some each second."""
        while True:
            now_s, jobs = trio.current_time(), set(published())
            self._again_s = {job: s for job, s in self._again_s.items() if job in jobs}
            due = [job for job in sorted(jobs) if self._again_s.get(job, 0.0) <= now_s][:_PER_S]
            if due:
                await self._announce(due)
            await trio.sleep(1)

    async def _announce(self, jobs: Sequence[str]) -> None:
        try:
            peer, addresses = await trio.to_thread.run_sync(self._locate)
            if not _PEER.fullmatch(peer):
                raise TransportError("the Kubo daemon does not say who it is")
            daemon = Contact(peer, _usable([a for a in addresses if _is_tcp(a)]))
            for job in jobs:
                with trio.fail_after(KAD_ASK_MS / 1000):
                    await announce(self._transport, daemon, job)
                self._again_s[job] = trio.current_time() + KAD_RECORD_MS / 2000
                self._counters["announced"] += 1
        except (TransportError, UserError, trio.TooSlowError):
            self._counters["announceFailures"] += 1
            await trio.sleep(_RETRY_S)


def _is_tcp(address: str) -> bool:
    return "/tcp/" in address and "/ws" not in address


async def announce(transport: Transport, daemon: Contact, job: str) -> None:
    """Tell a daemon that this node holds a result of a job. Raises TransportError."""
    addresses = transport.addresses()[:ADDRESSES_MAX]
    me = protobuf.field(_ID, peer_bytes(transport.peer_id))
    me += b"".join(protobuf.field(_ADDRESS, address_bytes(address)) for address in addresses)
    message = _question(_ADD_PROVIDER, job) + protobuf.field(_PROVIDERS, me)
    stream = await _open(transport, daemon)
    await stream.send(protobuf.varint(len(message)) + message)
    await stream.close()


async def ask_holders(transport: Transport, named: "Sequence[Provider]", job: str) -> list[Contact]:
    """Return those that are named as holders of a job, and those whom they name in turn. Nobody is
    waited for longer than KAD_ASK_MS; who is named is checked by nobody yet."""
    known = [one for one in named if _PEER.fullmatch(one.peer)]
    found = {one.peer: Contact(one.peer, _usable(one.addresses)) for one in known}
    answers: dict[str, list[Contact]] = {}

    async def ask(holder: Contact) -> None:
        with trio.move_on_after(KAD_ASK_MS / 1000):
            answers[holder.peer] = await holders_at(transport, holder, job)

    async with trio.open_nursery() as nursery:
        for holder in list(found.values())[:KAD_CONTACTS_MAX]:
            nursery.start_soon(ask, holder)
    for holder in chain.from_iterable(answers.values()):
        found.setdefault(holder.peer, holder)
    return list(found.values())


def _usable(addresses: Sequence[str]) -> tuple[str, ...]:
    fitting = [a for a in addresses if a.startswith("/") and len(a) <= ADDRESS_LENGTH_MAX]
    return tuple(fitting[:ADDRESSES_MAX])


async def holders_at(transport: Transport, daemon: Contact, job: str) -> list[Contact]:
    """Return whom one daemon names as holders; none when it does not answer as it should."""
    try:
        stream = await _open(transport, daemon)
    except TransportError:
        return []
    try:
        message = _question(_GET_PROVIDERS, job)
        await stream.send(protobuf.varint(len(message)) + message)
        return _holders(
            await receive_prefixed(stream.receive_exactly, lambda: _ANSWER_SIZE_BYTES_MAX)
        )
    except (TransportError, StreamEnded, DecodeError):
        return []
    finally:
        with trio.CancelScope(shield=True), trio.move_on_after(0.5):
            await stream.abort()


def _question(kind: int, job: str) -> bytes:
    """Return the fields of a message: of a CID, routing keeps the hash alone."""
    key = cid_bytes(job)[_VERSION_AND_CODEC_BYTES:]
    return protobuf.number(_TYPE, kind) + protobuf.field(_KEY, key)


async def _open(transport: Transport, daemon: Contact) -> ByteStream:
    await transport.reach(daemon.peer, daemon.addresses, keep=False)
    for protocol in PROTOCOLS[:-1]:
        try:
            return await transport.open_stream(daemon.peer, protocol)
        except TransportError:
            continue
    return await transport.open_stream(daemon.peer, PROTOCOLS[-1])


def _holders(answer: bytes) -> list[Contact]:
    found: dict[str, Contact] = {}
    for tag, value in read_fields(answer):
        if tag == _PROVIDERS and isinstance(value, bytes) and len(found) < KAD_CONTACTS_MAX:
            contact = _contact(value)
            found.setdefault(contact.peer, contact)
    return list(found.values())


def _contact(data: bytes) -> Contact:
    peer, addresses = b"", list[str]()
    for tag, value in read_fields(data):
        if tag == _ID and isinstance(value, bytes):
            peer = value
        elif tag == _ADDRESS and isinstance(value, bytes) and len(addresses) < ADDRESSES_MAX:
            addresses.append(address_text(value))
    return Contact(peer_text(peer), tuple(addresses))
