"""For the contract tests: transports of either kind, and what they told their sinks."""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import pairwise
from typing import Any, Protocol

import trio

from pairio_node.transport import (
    Frame,
    Gossip,
    MemoryNetwork,
    MemoryTransport,
    PeerDown,
    PeerUp,
    Transport,
    TransportEvent,
)
from pairio_node.transport.libp2p_transport import Libp2pTransport

PATIENCE_S = 20.0


class Side:
    """A running transport and everything it said, in order."""

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self.events: list[TransportEvent] = []
        #: Called with every event before it is noted; may wait, and so hold the transport back.
        self.on_event: Callable[[TransportEvent], Any] | None = None
        self._changed = trio.Event()

    @property
    def id(self) -> str:
        return self.transport.peer_id

    async def sink(self, event: TransportEvent) -> None:
        if self.on_event is not None:
            await self.on_event(event)
        self.events.append(event)
        self._changed.set()
        self._changed = trio.Event()

    async def until(self, is_so: Callable[[], bool]) -> None:
        """Wait until what this side heard makes it so."""
        with trio.fail_after(PATIENCE_S):
            while not is_so():
                await self._changed.wait()

    async def until_up(self, peer: "Side", times: int = 1) -> None:
        await self.until(lambda: len(self.ups(peer)) >= times)

    async def until_down(self, peer: "Side", times: int = 1) -> None:
        await self.until(lambda: len(self.downs(peer)) >= times)

    async def until_counted(self, name: str) -> None:
        with trio.fail_after(PATIENCE_S):
            while not self.transport.counters().get(name):
                await a_moment(0.05)

    def ups(self, peer: "Side") -> list[PeerUp]:
        return [e for e in self.events if isinstance(e, PeerUp) and e.peer == peer.id]

    def downs(self, peer: "Side") -> list[PeerDown]:
        return [e for e in self.events if isinstance(e, PeerDown) and e.peer == peer.id]

    def frames(self, channel: str) -> list[bytes]:
        return [e.data for e in self.events if isinstance(e, Frame) and e.channel == channel]

    def gossip(self) -> list[Gossip]:
        return [e for e in self.events if isinstance(e, Gossip)]

    def keep(self, peer: "Side") -> None:
        self.transport.keep_connected(peer.id, peer.transport.addresses())


class Lab(Protocol):
    """Makes transports of one kind and breaks their connections."""

    def make(self, name: str, address: str = "") -> Transport:
        """Return a transport whose key follows from its name; at an address of before."""

    async def lose(self, one: Side, other: Side) -> None:
        """Break a connection without a word to either side."""


class MemoryLab:
    def __init__(self, seed: int = 1) -> None:
        self.network = MemoryNetwork(seed)

    def make(self, name: str, address: str = "") -> Transport:
        return MemoryTransport(self.network, _seed(name), address)

    async def lose(self, one: Side, other: Side) -> None:
        self.network.lose(one.id, other.id)


class Libp2pLab:
    def make(self, name: str, address: str = "") -> Transport:
        listen = address.partition("/p2p/")[0] or "/ip4/127.0.0.1/tcp/0"
        return Libp2pTransport(_seed(name), (listen,))

    async def lose(self, one: Side, other: Side) -> None:
        from libp2p.peer.id import ID

        assert isinstance(one.transport, Libp2pTransport)
        network: Any = one.transport._host.get_network()
        for connection in network.get_connections(ID.from_base58(other.id)):
            await connection.close()


def _seed(name: str) -> bytes:
    return name.encode().ljust(32, b".")


@asynccontextmanager
async def sides(lab: Lab, *names: str) -> AsyncIterator[list[Side]]:
    """Run a transport per name, unconnected."""
    async with AsyncExitStack() as stack:
        made = [Side(lab.make(name)) for name in names]
        for side in made:
            await stack.enter_async_context(side.transport.running(side.sink))
        yield made


@asynccontextmanager
async def line(lab: Lab, *names: str) -> AsyncIterator[list[Side]]:
    """Run transports of which each is connected with the next."""
    async with sides(lab, *names) as made:
        for one, other in pairwise(made):
            one.keep(other)
            await one.until_up(other)
            await other.until_up(one)
        yield made


async def a_moment(seconds: float = 0.3) -> None:
    """Let something happen that must not."""
    with trio.move_on_after(seconds):
        await trio.sleep_forever()
