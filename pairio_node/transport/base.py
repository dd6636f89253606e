"""What a transport is: the contract between the node and whatever moves bytes.

Peers are authenticated by the transport: `peer` is always the id that proved its key. Frames on a
channel arrive in order or the connection is gone; nothing is promised across connections.
"""

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Final, Protocol

from pairio_node.errors import UserError
from pairio_node.places import Memberships, each_its_own

__all__ = [
    "BLOCKS",
    "CHANNEL_CONTROL",
    "CHANNEL_SYNC",
    "LOGS",
    "SECRETS",
    "ByteStream",
    "Frame",
    "Gossip",
    "PeerDown",
    "PeerUp",
    "StreamEnded",
    "Transport",
    "TransportError",
    "TransportEvent",
    "everybody",
]

CHANNEL_CONTROL: Final = "/pairio/control/1"
CHANNEL_SYNC: Final = "/pairio/sync/1"
BLOCKS: Final = "/pairio/blocks/1"
LOGS: Final = "/pairio/logs/1"
SECRETS: Final = "/pairio/secrets/1"


class TransportError(UserError):
    """A connection or stream that cannot be used, or an address that cannot be had."""

    default_code, default_status = "transport", 503


class StreamEnded(Exception):
    """The other side closed the stream cleanly."""


@dataclass(frozen=True)
class PeerUp:
    """Control works in both directions."""

    peer: str
    addresses: tuple[str, ...] = ()


@dataclass(frozen=True)
class PeerDown:
    """The connection is gone."""

    peer: str
    reason: str = ""


@dataclass(frozen=True)
class Frame:
    """A frame of a peer on control or sync."""

    peer: str
    channel: str
    data: bytes


@dataclass(frozen=True)
class Gossip:
    """A frame of a topic, accepted by its validator."""

    topic: str
    forwarder: str
    data: bytes


TransportEvent = PeerUp | PeerDown | Frame | Gossip
Sink = Callable[[TransportEvent], Awaitable[None]]


def everybody(peer: str) -> bool:
    """Say that any peer may hear a topic."""
    return True


class ByteStream(Protocol):
    """A stream to one peer, for blocks and consoles."""

    peer: str

    async def send(self, data: bytes) -> None:
        """Write all of `data`; raises TransportError when the stream is broken."""

    async def receive_exactly(self, size: int) -> bytes:
        """Read `size` bytes; raises StreamEnded at a clean end, TransportError when broken."""

    async def close(self) -> None:
        """End cleanly; never raises."""

    async def abort(self) -> None:
        """Reset; never raises."""


class Transport(Protocol):
    """Connections to peers. `running` serves; the rest may be called inside of its block.

    `tests/node/test_transport_contract.py` holds every transport to what is said here.
    """

    peer_id: str

    def running(self, sink: Sink) -> AbstractAsyncContextManager[None]:
        """Serve while the block runs; events go to `sink`, which may wait: a peer's frames are
        not read meanwhile. `PeerUp` comes before a peer's frames, `PeerDown` after them."""

    def addresses(self) -> tuple[str, ...]:
        """Return full multiaddrs with /p2p/, the ones other machines can dial first."""

    def keep_connected(self, peer: str, addresses: tuple[str, ...]) -> None:
        """Dial, and dial again after every loss, until `forget`."""

    def forget(self, peer: str) -> None:
        """Do not dial a peer any more."""

    def send(self, peer: str, channel: str, frame: bytes) -> bool:
        """Queue a frame; False when the queue is full or there is no such connection.

        Raises:
            ValueError: an empty frame, or one above FRAME_SIZE_BYTES_MAX.
        """

    def prefer(
        self, is_known: Callable[[str], bool], memberships: Memberships = each_its_own
    ) -> None:
        """Say whose connections count: strangers get half of the places. Who is known is relayed
        for, if this node is a relay, as one of `memberships`."""

    def connected(self) -> frozenset[str]:
        """Return the peers that are up."""

    async def reach(self, peer: str, addresses: tuple[str, ...], *, keep: bool = True) -> None:
        """Connect, once, to a peer that need not be a pairio node: streams to it may be opened
        then, and it never is up. One that is not to be kept gives its place to others, the one
        used longest ago first. Raises TransportError."""

    def speakers(self, protocol: str) -> list[str]:
        """Return the peers that a stream of `protocol` may be opened to, up or not, as far as
        they have said what they speak."""

    def join_topic(
        self,
        topic: str,
        accept: Callable[[str, bytes], bool],
        may_hear: Callable[[str], bool] = everybody,
    ) -> None:
        """Take part in a topic; `accept(forwarder, data)` says what is passed on, `may_hear(peer)`
        to whom."""

    def leave_topic(self, topic: str) -> None:
        """Take part in a topic no more; what waits to be published is dropped."""

    def announce(self, topic: str, data: bytes) -> None:
        """Publish, paced; may lose anything."""

    async def open_stream(self, peer: str, protocol: str) -> ByteStream:
        """Open a stream; raises TransportError."""

    def set_stream_handler(
        self, protocol: str, handler: Callable[[ByteStream], Awaitable[None]]
    ) -> None:
        """Serve a protocol; an exception of the handler resets its stream and is counted."""

    def relays(self) -> dict[str, Any]:
        """Return for the status which `relays` hold a place for this node, and what it does as a
        `relay` (None: it is none)."""

    def counters(self) -> dict[str, int]:
        """Return what was sent, received, refused."""
