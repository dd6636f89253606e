"""One member with many keys, each with a connection of its own: a bound for each key bounds nobody
who has them."""

import hashlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

import trio

from pairio_node.transport.base import ByteStream, TransportError
from pairio_protocol.service import Chain
from tests.integration.attacks.lab import Lab
from tests.integration.attacks.peers import Peer, connected

__all__ = ["KEYS", "crowd", "opened"]

#: Enough to fill every door if only keys were counted.
KEYS = 17
_OPEN_S = 5.0


@asynccontextmanager
async def crowd(lab: Lab) -> AsyncIterator[tuple[Chain, list[Peer]]]:
    """Connect the keys of one member; yields them, and the service in which he is one."""
    seeds = [hashlib.sha256(f"attacks crowd {n}".encode()).digest() for n in range(KEYS)]
    peers = [Peer(f"crowd {n}", seed) for n, seed in enumerate(seeds)]
    adds = [
        {"op": "add", "member": "crowd", "key": peer.key.peer, "roles": ["compute", "submit"]}
        for peer in peers
    ]
    chain = await lab.found("crowd", lab.add("node", "submit"), lab.add("honest", "submit"), *adds)
    async with connected(peers, lambda: lab.node):
        yield chain, peers


async def opened(peers: Sequence[Peer], protocol: str, each: int) -> list[ByteStream]:
    """Open so many streams of each peer and say next to nothing on them; return those that were
    not reset before."""
    streams: list[ByteStream] = []

    async def one(peer: Peer) -> None:
        with suppress(TransportError), trio.move_on_after(_OPEN_S):
            stream = await peer.transport.open_stream(peer.node, protocol)
            await stream.send(b"\0")
            streams.append(stream)

    for peer in peers:
        async with trio.open_nursery() as nursery:
            for _ in range(each):
                nursery.start_soon(one, peer)
    return streams
