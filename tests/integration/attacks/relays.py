"""The node is a relay, and names one: strangers and members who want more than they get, and relays
that lie."""

import hashlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import trio
from libp2p.peer.id import ID
from libp2p.relay.circuit_v2.pb import circuit_pb2 as pb
from multiaddr import Multiaddr

from pairio_node.transport.circuits import (
    CIRCUIT,
    HOP,
    STOP,
    Circuit,
    read_hop,
    read_stop,
    write_message,
)
from pairio_protocol.limits import (
    RELAY_CIRCUITS_OF_PAIR_MAX,
    RELAY_STRANGER_AT_ONCE_MAX,
    RELAY_TAKEN_MAX,
)
from pairio_protocol.messages import PresenceUpdate
from pairio_protocol.signing import SigningKey
from tests.integration.attacks.doors import presence
from tests.integration.attacks.lab import Lab, until
from tests.integration.attacks.peers import Peer, connected
from tests.integration.attacks.table import attack

PART = "Relays"
HAS = "a key of his own"
RESERVE = pb.HopMessage(type=pb.HopMessage.RESERVE)
ANOTHER = "refused: a circuit that ends at another peer"
BEYOND = "refused: a circuit beyond the bound"
SILENT = "relays that did not answer"
_ANSWER_S = 15.0
#: More than half of the places, which are one member's at most.
_KEYS = 17


def _host(peer: Peer) -> Any:
    return peer.transport._host


def _connect_to(target: str) -> pb.HopMessage:
    message = pb.HopMessage(type=pb.HopMessage.CONNECT)
    message.peer.id = ID.from_base58(target).to_bytes()
    return message


@asynccontextmanager
async def _strangers(lab: Lab, count: int = 1) -> AsyncIterator[list[Peer]]:
    """Connect keys that nobody has seen yet: other rows let theirs join services of their own."""
    peers = [Peer(f"stranger {n}", os.urandom(32)) for n in range(count)]
    async with connected(peers, lambda: lab.node):
        yield peers


async def _ask(peer: Peer, message: pb.HopMessage) -> Any:
    """Say something to the node as a relay; return its answer's status, None if there is none."""
    with suppress(Exception), trio.move_on_after(_ANSWER_S):
        stream = await _host(peer).new_stream(ID.from_base58(peer.node), [HOP])
        await write_message(stream, message)
        return (await read_hop(stream)).status
    return None


@asynccontextmanager
async def _held(peer: Peer) -> AsyncIterator[str]:
    """Let a member hold a place at the node, and take whoever comes; yields his peer id."""

    async def take(stream: Any) -> None:
        await read_stop(stream)
        await write_message(stream, pb.StopMessage(type=pb.StopMessage.STATUS, status=pb.OK))
        await stream.read(1)

    _host(peer).set_stream_handler(STOP, take)
    assert await _ask(peer, RESERVE) == pb.OK
    yield peer.key.peer
    _host(peer).remove_stream_handler(STOP)


@attack(PART, "a place at a relay, for a stranger", has=HAS, does="asks for a reservation",
        counted="refused: a relay reservation of a stranger")  # fmt: skip
async def _stranger(lab: Lab) -> None:
    async with _strangers(lab) as (stranger,):
        assert await _ask(stranger, RESERVE) == pb.PERMISSION_DENIED


@attack(PART, "all places at a relay, for many keys of one member", has="17 keys of one member",
        does="asks for a reservation with each",
        counted="refused: a relay reservation beyond the bound")  # fmt: skip
async def _crowd(lab: Lab) -> None:
    async with _strangers(lab, _KEYS) as peers:
        adds = [
            {"op": "add", "member": "crowd", "key": peer.key.peer, "roles": ["read"]}
            for peer in peers
        ]
        await lab.found("places", lab.add("node", "submit"), *adds)
        said = [await _ask(peer, RESERVE) for peer in peers]
        assert said.count(pb.OK) == _KEYS - 1, "not half of the places"
        assert said.count(pb.RESERVATION_REFUSED) == 1, "more than half of the places"
        assert await _ask(lab.mallory, RESERVE) == pb.OK, "another member has no place"


@attack(PART, "a way by a relay to somebody who holds no place there", has=HAS,
        does="asks for a circuit to a member",
        refused_by="the relay's answer: no reservation")  # fmt: skip
async def _unheld(lab: Lab) -> bool:
    async with _strangers(lab) as (stranger,):
        return bool(await _ask(stranger, _connect_to(lab.root.key.peer)) == pb.NO_RESERVATION)


@attack(PART, "more circuits of a member than two can use", has="the role `submit`",
        does="opens one after the other to a member", counted=BEYOND)  # fmt: skip
async def _pair(lab: Lab) -> None:
    async with _held(lab.reader) as target:
        said = [
            await _ask(lab.mallory, _connect_to(target))
            for _ in range(RELAY_CIRCUITS_OF_PAIR_MAX + 1)
        ]
    assert said == [*[pb.OK] * RELAY_CIRCUITS_OF_PAIR_MAX, pb.RESOURCE_LIMIT_EXCEEDED]


@attack(PART, "a flood of circuits of strangers", has=HAS,
        does="opens circuits to a member as fast as he can",
        counted="refused: circuits of strangers, too fast")  # fmt: skip
async def _flood(lab: Lab) -> None:
    async with (
        _held(lab.reader) as target,
        _strangers(lab) as (stranger,),
        trio.open_nursery() as nursery,
    ):
        for _ in range(RELAY_STRANGER_AT_ONCE_MAX * 6):
            nursery.start_soon(_ask, stranger, _connect_to(target))


@attack(PART, "what is no relay message", has=HAS,
        does="sends garbage, an answer, a message without end, one that names nobody",
        counted="refused: a relay message that is none")  # fmt: skip
async def _garbage(lab: Lab) -> None:
    for data in (
        b"\x05\xff\xff\xff\xff\xff",
        b"\xff\xff\xff\xff\x0f",
        b"\x02\x08\x02",
        b"\x02\x08\x01",
    ):
        with suppress(Exception), trio.move_on_after(_ANSWER_S):
            stream = await _host(lab.stranger).new_stream(ID.from_base58(lab.stranger.node), [HOP])
            await stream.write(data)
            await stream.read(1)


# -- relays that lie ----------------------------------------------------------------------------


async def _by_way_of(
    lab: Lab, relay: Peer, does: Callable[[Any], Awaitable[None]], counted: str
) -> None:
    """Let the node hear that a member is reached by way of a relay that does this to who asks."""
    ghost = SigningKey(hashlib.sha256(os.urandom(8)).digest())
    add = {"op": "add", "member": "ghost", "key": ghost.peer, "roles": ["submit"]}
    chain = await lab.found("ghost", lab.add("node", "submit"), lab.add("honest", "submit"), add)
    (at, *_) = relay.transport.addresses()
    entry = presence(
        lab, ghost, service=chain.service, addresses=(f"{at}{CIRCUIT}/p2p/{ghost.peer}",)
    )
    before = lab.counters().get(counted, 0)
    _host(relay).set_stream_handler(HOP, does)
    try:
        lab.honest.say(PresenceUpdate((entry,)))
        assert await until(lambda: lab.counters().get(counted, 0) > before, 60), "it did not dial"
    finally:
        _host(relay).remove_stream_handler(HOP)
    assert ghost.peer not in lab.get("status")["peers"]


@attack(PART, "a relay that gives himself for a member", has="the role `submit`, and is a relay",
        does="answers a circuit to a member with his own key", counted=ANOTHER)  # fmt: skip
async def _himself(lab: Lab) -> None:
    async def be_him(stream: Any) -> None:
        await read_hop(stream)
        await write_message(stream, pb.HopMessage(type=pb.HopMessage.STATUS, status=pb.OK))
        circuit = Circuit(stream, False, lab.mallory.key.peer)
        with suppress(Exception):
            at = Multiaddr(f"/p2p/{lab.mallory.key.peer}{CIRCUIT}")
            await _host(lab.mallory).upgrade_inbound_connection(circuit, at)

    await _by_way_of(lab, lab.mallory, be_him, ANOTHER)


@attack(PART, "a relay that says nothing", has="the role `submit`, and is a relay",
        does="leaves a circuit to a member without an answer", counted=SILENT)  # fmt: skip
async def _silent(lab: Lab) -> None:
    async def say_nothing(stream: Any) -> None:
        await trio.sleep(60)

    await _by_way_of(lab, lab.mallory, say_nothing, SILENT)


@attack(PART, "somebody brought by a peer that is no relay of the node", has=HAS,
        does="brings a member, he says",
        counted="refused: a circuit of a peer that is none of our relays")  # fmt: skip
async def _unnamed(lab: Lab) -> None:
    async with _strangers(lab) as (stranger,):
        await _bring(stranger, lab.honest.key.peer)


@attack(PART, "another than the node's relay says", has="the node's owner named him as its relay",
        does="brings a member, he says, and comes himself", counted=ANOTHER)  # fmt: skip
async def _another(lab: Lab) -> None:
    await _bring(lab.visitor, lab.honest.key.peer)


async def _bring(relay: Peer, claimed: str) -> None:
    with suppress(Exception), trio.move_on_after(_ANSWER_S):
        stream = await _knock(relay, claimed)
        await read_stop(stream)
        circuit = Circuit(stream, True, relay.key.peer)
        await _host(relay).upgrade_outbound_connection(circuit, ID.from_base58(relay.node))


async def _knock(relay: Peer, claimed: str) -> Any:
    stream = await _host(relay).new_stream(ID.from_base58(relay.node), [STOP])
    message = pb.StopMessage(type=pb.StopMessage.CONNECT)
    message.peer.id = ID.from_base58(claimed).to_bytes()
    await write_message(stream, message)
    return stream


@attack(PART, "more circuits than a node takes from its relay",
        has="the node's owner named him as its relay",
        does="brings somebody again and again, who says nothing", counted=BEYOND)  # fmt: skip
async def _too_many(lab: Lab) -> None:
    streams = []
    for _ in range(RELAY_TAKEN_MAX + 8):
        with suppress(Exception):
            streams.append(await _knock(lab.visitor, lab.honest.key.peer))
    for stream in streams:
        await stream.reset()
