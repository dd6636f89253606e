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

__all__ = [
    "BLOCKS",
    "CHANNEL_CONTROL",
    "CHANNEL_SYNC",
    "ByteStream",
    "Frame",
    "Gossip",
    "PeerDown",
    "PeerUp",
    "StreamEnded",
    "Transport",
    "TransportError",
    "TransportEvent",
]
