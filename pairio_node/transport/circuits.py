"""Circuits: connections that a relay passes on; the messages of libp2p's circuit relay v2.

    /ip4/203.0.113.1/tcp/4001/p2p/RELAY/p2p-circuit/p2p/PEER     where PEER is reached through RELAY

A relay moves bytes that it cannot read: Noise and Yamux run from end to end over a circuit, as they
do over TCP, so it is the peer's own key that answers at its other end, or nobody.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import trio
from libp2p.connection_types import ConnectionType
from libp2p.custom_types import TProtocol
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.id import ID
from libp2p.relay.circuit_v2.pb import circuit_pb2 as pb
from libp2p.utils import encode_varint_prefixed
from multiaddr import Multiaddr

from pairio_node.transport.base import TransportError
from pairio_node.transport.prefixed import receive_prefixed

__all__ = [
    "CIRCUIT",
    "HOP",
    "STOP",
    "Circuit",
    "is_circuit",
    "is_linked_directly",
    "is_relayed",
    "peer_in",
    "read_hop",
    "read_stop",
    "split_circuit",
    "write_message",
]

#: To a relay: reserve, connect. From a relay: somebody comes.
HOP = TProtocol("/libp2p/circuit/relay/0.2.0/hop")
STOP = TProtocol("/libp2p/circuit/relay/0.2.0/stop")
CIRCUIT = "/p2p-circuit"

_MESSAGE_BYTES_MAX = 4096
_READ_BYTES = 256 * 1024
_CLOSE_S = 1.0


def is_circuit(address: str) -> bool:
    """Say whether an address leads through a relay."""
    return f"{CIRCUIT}/" in f"{address}/"


def split_circuit(address: str) -> tuple[str, str]:
    """Return where the relay of a circuit's address is, and its peer id; TransportError if the
    address is none, or leads through more than one relay."""
    through, found, rest = address.partition(CIRCUIT)
    at, named, relay = through.rpartition("/p2p/")
    if not (found and named and at and relay) or "/" in relay or "/p2p/" in at or CIRCUIT in rest:
        raise TransportError(f"not the address of a circuit: {address[:200]!r}")
    return at, relay


def is_linked_directly(host: Any, peer: str) -> bool:
    """Say whether a peer is connected by itself, not over a circuit."""
    found = host.get_network().get_connections(ID.from_base58(peer))
    return any(not is_relayed(connection) for connection in found)


def is_relayed(connection: object) -> bool:
    """Say whether a connection of libp2p runs over a circuit."""
    kind = getattr(connection, "get_connection_type", None)
    return kind is not None and kind() == ConnectionType.RELAYED


class Circuit(RawConnection):
    """What TCP is to other connections: the stream by way of a relay. `over` is set at its end, and
    `on_over` called."""

    def __init__(
        self,
        stream: object,
        is_initiator: bool,
        relay: str,
        on_over: Callable[[], None] = lambda: None,
    ) -> None:
        address = Multiaddr(f"/p2p/{relay}{CIRCUIT}")
        super().__init__(stream, is_initiator, ConnectionType.RELAYED, [address])  # type: ignore[arg-type]
        self.over = trio.Event()
        self._on_over = on_over
        self._ahead = b""

    def _end(self) -> None:
        if not self.over.is_set():
            self.over.set()
            self._on_over()

    async def read(self, n: int | None = None) -> bytes:
        """Read up to `n` bytes; empty at the end, as a socket does. Reads ahead: those above ask
        for two bytes at a time."""
        if not self._ahead:
            try:
                self._ahead = bytes(await self.stream.read(_READ_BYTES))
            except Exception:  # closed, reset, relay gone: for those above it is the end
                self._ahead = b""
            if not self._ahead:
                self._end()
        taken, self._ahead = self._ahead[:n], self._ahead[n:] if n is not None else b""
        return taken

    async def close(self) -> None:
        """End it; the relay tells the other side."""
        self._end()
        with trio.CancelScope(shield=True), trio.move_on_after(_CLOSE_S):
            await self.stream.close()

    def get_remote_address(self) -> tuple[str, int] | None:
        """None: where the other side is only the relay knows."""
        return None


async def write_message(stream: object, message: pb.HopMessage | pb.StopMessage) -> None:
    """Write one message, with its length before it."""
    await stream.write(encode_varint_prefixed(message.SerializeToString()))  # type: ignore[attr-defined]


async def read_hop(stream: object) -> pb.HopMessage:
    """Read a message to a relay, or its answer; raises DecodeError, ValueError, TransportError."""
    return pb.HopMessage.FromString(await _read(stream))


async def read_stop(stream: object) -> pb.StopMessage:
    """Read what a relay says to the peer that somebody wants, or the answer."""
    return pb.StopMessage.FromString(await _read(stream))


async def _read(stream: object) -> bytes:
    return await receive_prefixed(partial(_exactly, stream), lambda: _MESSAGE_BYTES_MAX)


async def _exactly(stream: object, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = await stream.read(size - len(data))  # type: ignore[attr-defined]
        if not part:
            raise TransportError("the stream ended within a relay message")
        data += part
    return data


def peer_in(message: pb.HopMessage | pb.StopMessage) -> str:
    """Return the peer that a message names; ValueError if that cannot be one."""
    if not 0 < len(message.peer.id) <= 64:
        raise ValueError("a relay message that names nobody")
    return str(ID(message.peer.id))
