"""Peers of the attack table: a key of the test's own, and a bare transport to the node."""

import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import trio

from pairio_node.transport import (
    CHANNEL_CONTROL,
    CHANNEL_SYNC,
    Frame,
    Gossip,
    PeerDown,
    PeerUp,
    TransportEvent,
)
from pairio_node.transport.libp2p_transport import Libp2pTransport
from pairio_protocol.messages import MESSAGES, SYNC_KINDS, Message, Push
from pairio_protocol.segment import GENESIS, Segment
from pairio_protocol.signing import SigningKey
from tests.integration.conftest import RunningNode

__all__ = ["Author", "Peer", "connected"]

_FRAMES_KEPT = 2000


class Author:
    """Writes segments of one key, with whatever records: `body` may be anything."""

    def __init__(self, key: SigningKey) -> None:
        self.key = key

    def segment(
        self,
        service: str,
        epoch: int,
        *records: Any,
        boot: bytes = b"",
        seq: int = 0,
        prev: bytes = GENESIS,
    ) -> Segment:
        """Return a segment, by itself the first of a new log."""
        boot = boot or os.urandom(16)
        return Segment.seal(self.key, service, boot, seq, epoch, prev, list(records))


class Peer(Author):
    """One attacker, or the honest member: says things to the node, and hears what it answers."""

    def __init__(self, name: str, seed: bytes) -> None:
        super().__init__(SigningKey(seed))
        self.name = name
        self._seed = seed
        self.again = trio.Event()
        self.begin()
        self.heard: list[Any] = []
        self.gossip: list[bytes] = []
        self.node = ""
        self.lost = ""

    def begin(self) -> None:
        """Begin with a new transport, that knows of no connection before."""
        self.transport = Libp2pTransport(self._seed, ("/ip4/127.0.0.1/tcp/0",))
        self.up, self.again = trio.Event(), trio.Event()

    async def sink(self, event: TransportEvent) -> None:
        """Take what the transport brings."""
        if isinstance(event, PeerUp):
            self.up.set()
        elif isinstance(event, PeerDown):
            self.lost = event.reason
        elif isinstance(event, Frame):
            self.heard.append(MESSAGES.decode(event.data))
            del self.heard[:-_FRAMES_KEPT]
        elif isinstance(event, Gossip):
            self.gossip.append(event.data)

    def say(self, *messages: Message) -> None:
        """Send messages, each on its channel."""
        for message in messages:
            self.say_raw(MESSAGES.encode(message), isinstance(message, SYNC_KINDS))

    def say_raw(self, data: bytes, sync: bool = False) -> None:
        """Send any bytes as a frame."""
        channel = CHANNEL_SYNC if sync else CHANNEL_CONTROL
        assert self.transport.send(self.node, channel, data), "the frame was not sent"

    def push(self, *segments: Segment | bytes, ack: bool = False) -> None:
        """Push segments."""
        for segment in segments:
            data = segment if isinstance(segment, bytes) else segment.encode()
            self.say(Push(data, ack))

    async def hears(self, is_it: Callable[[Any], Any], within_s: float = 20.0) -> Any:
        """Return the first thing heard that is it; None if it does not come in time."""
        with trio.move_on_after(within_s):
            while True:
                for message in self.heard:
                    if is_it(message):
                        return message
                await trio.sleep(0.01)  # house: waiting for another process
        return None


@asynccontextmanager
async def connected(peers: list[Peer], node: Callable[[], RunningNode]) -> AsyncIterator[None]:
    """Connect peers with a node while the block runs; a peer told `again` connects anew."""
    async with trio.open_nursery() as nursery:

        async def run(peer: Peer) -> None:
            while True:
                async with peer.transport.running(peer.sink):
                    peer.node = node().info["peerId"]
                    peer.transport.keep_connected(peer.node, tuple(node().info["addresses"]))
                    await peer.again.wait()
                peer.begin()

        for peer in peers:
            nursery.start_soon(run, peer)
        with trio.fail_after(30):
            for peer in peers:
                await peer.up.wait()
        yield
        nursery.cancel_scope.cancel()
