"""For the tests of relays: transports that listen on nothing, relays good and bad."""

from collections.abc import Awaitable, Callable
from typing import Any

import trio
from libp2p.peer.id import ID
from libp2p.relay.circuit_v2.pb import circuit_pb2 as pb

from pairio_node.transport.circuits import HOP, STOP, Circuit, read_hop, write_message
from pairio_node.transport.libp2p_transport import Libp2pTransport
from pairio_node.transport.relay import RelayBounds
from tests.node.transport_lab import PATIENCE_S, Side, a_moment

__all__ = ["Net", "ask", "bad_relay", "connect_to", "held", "knock", "seed", "served", "until"]


def seed(name: str) -> bytes:
    return f"relay lab {name}".encode().ljust(32, b".")


class Net:
    """Makes sides, each in a task of its own; all end with the nursery."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._stops: dict[str, tuple[trio.Event, trio.Event]] = {}
        self._sides: dict[str, Side] = {}

    async def _run(self, transport: Libp2pTransport) -> Side:
        side = self._sides[transport.peer_id] = Side(transport)
        stop, stopped = self._stops[side.id] = trio.Event(), trio.Event()

        async def serve(task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
            async with transport.running(side.sink):
                task_status.started()
                await stop.wait()
            stopped.set()

        await self._nursery.start(serve)
        return side

    async def stop(self, side: Side) -> None:
        """End a side."""
        del self._sides[side.id]
        stop, stopped = self._stops.pop(side.id)
        stop.set()
        with trio.fail_after(PATIENCE_S):
            await stopped.wait()

    async def stop_all(self) -> None:
        """End all; none is cancelled, which leaves sockets to the garbage collector."""
        async with trio.open_nursery() as nursery:
            for side in list(self._sides.values()):
                nursery.start_soon(self.stop, side)

    async def relay(
        self, name: str, *members: str, at: str = "/ip4/127.0.0.1/tcp/0", **bounds: Any
    ) -> Side:
        """A relay that listens on loopback; `members` are names of those who may reserve."""
        named = frozenset(Libp2pTransport(seed(m), ()).peer_id for m in members)
        given = RelayBounds(named, **bounds)
        listen = (at.partition("/p2p/")[0],)
        return await self._run(Libp2pTransport(seed(name), listen, relay=given))

    async def relayed_relay(self, name: str, relay: Side) -> Side:
        """A relay that is reached by way of another one only."""
        relays = (relay.transport.addresses()[0],)
        return await self._run(Libp2pTransport(seed(name), (), relays=relays, relay=RelayBounds()))

    async def near(self, name: str, relays: tuple[str, ...]) -> Side:
        """A node that listens on loopback, and is reached by way of relays too."""
        listen = ("/ip4/127.0.0.1/tcp/0",)
        return await self._run(Libp2pTransport(seed(name), listen, relays=relays))

    async def hidden(self, name: str, *relays: Side) -> Side:
        """A node that listens on nothing, and is reached by way of relays."""
        at = tuple(relay.transport.addresses()[0] for relay in relays)
        return await self._run(Libp2pTransport(seed(name), (), relays=at))

    async def open(self, name: str) -> Side:
        """A node that anybody reaches."""
        return await self._run(Libp2pTransport(seed(name), ("/ip4/127.0.0.1/tcp/0",)))


async def until(is_so: Callable[[], object]) -> None:
    with trio.fail_after(PATIENCE_S):
        while not is_so():
            await a_moment(0.02)


def held(side: Side) -> list[bool]:
    """Say of each of a side's relays whether it holds a place."""
    return [relay["held"] for relay in side.transport.relays()["relays"]]


def served(side: Side) -> dict[str, int]:
    """What a relay does."""
    found: dict[str, int] = side.transport.relays()["relay"]
    return found


async def ask(side: Side, relay: Side, message: pb.HopMessage) -> tuple[int, Any]:
    """Say something to a relay on HOP; return the status it answers with, and the stream."""
    transport = side.transport
    await transport.reach(relay.id, relay.transport.addresses())
    assert isinstance(transport, Libp2pTransport)
    stream = await transport._host.new_stream(ID.from_base58(relay.id), [HOP])
    await write_message(stream, message)
    with trio.fail_after(PATIENCE_S):
        return (await read_hop(stream)).status, stream


def connect_to(peer: str) -> pb.HopMessage:
    message = pb.HopMessage(type=pb.HopMessage.CONNECT)
    message.peer.id = ID.from_base58(peer).to_bytes()
    return message


async def knock(relay: Side, target: Side, claimed: str) -> Circuit:
    """As a relay: say that `claimed` comes, and be the one who does."""
    assert isinstance(relay.transport, Libp2pTransport)
    host = relay.transport._host
    stream = await host.new_stream(ID.from_base58(target.id), [STOP])
    message = pb.StopMessage(type=pb.StopMessage.CONNECT)
    message.peer.id = ID.from_base58(claimed).to_bytes()
    await write_message(stream, message)
    await stream.read(64)
    circuit = Circuit(stream, True, relay.id)
    await host.upgrade_outbound_connection(circuit, ID.from_base58(target.id))
    return circuit


def bad_relay(relay: Side, does: Callable[[Any, Any], Awaitable[None]]) -> None:
    """Let a side answer on HOP with `does(host, stream)`."""
    assert isinstance(relay.transport, Libp2pTransport)
    host = relay.transport._host

    async def handle(stream: Any) -> None:
        await does(host, stream)

    host.set_stream_handler(HOP, handle)
