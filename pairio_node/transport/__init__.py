"""Frames and streams between authenticated peers. Nothing else imports libp2p."""

from pairio_node.transport.base import (
    BLOCKS,
    CHANNEL_CONTROL,
    CHANNEL_SYNC,
    ByteStream,
    Frame,
    Gossip,
    PeerDown,
    PeerUp,
    StreamEnded,
    Transport,
    TransportError,
    TransportEvent,
)
from pairio_node.transport.memory import MemoryNetwork, MemoryTransport

__all__ = [
    "BLOCKS",
    "CHANNEL_CONTROL",
    "CHANNEL_SYNC",
    "ByteStream",
    "Frame",
    "Gossip",
    "MemoryNetwork",
    "MemoryTransport",
    "PeerDown",
    "PeerUp",
    "StreamEnded",
    "Transport",
    "TransportError",
    "TransportEvent",
]
