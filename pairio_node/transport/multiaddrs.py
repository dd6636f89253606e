"""Peers and addresses in the binary form in which other IPFS programs write them."""

import base58
from multiaddr import Multiaddr

from pairio_protocol.errors import DecodeError
from pairio_protocol.limits import ADDRESS_LENGTH_MAX
from pairio_protocol.links import without_peer

__all__ = ["address_bytes", "address_text", "peer_bytes", "peer_text", "without_peer"]

_PEER_BYTES_MAX = 64


def address_bytes(address: str) -> bytes:
    """Return an address of this node, without the peer at its end."""
    return bytes(Multiaddr(without_peer(address)).to_bytes())


def address_text(raw: bytes) -> str:
    """Return an address that somebody else wrote; DecodeError when it is none."""
    try:
        text = str(Multiaddr(raw)) if len(raw) <= ADDRESS_LENGTH_MAX else ""
    except Exception as error:  # the library raises whatever its parsers do
        raise DecodeError(f"not an address: {type(error).__name__}") from None
    if not text.startswith("/") or len(text) > ADDRESS_LENGTH_MAX:
        raise DecodeError("not an address")
    return text


def peer_bytes(peer: str) -> bytes:
    """Return a peer id in binary form."""
    return base58.b58decode(peer)


def peer_text(raw: bytes) -> str:
    """Return a peer id of any kind of key, as libp2p writes it; DecodeError when it is too long."""
    if not 0 < len(raw) <= _PEER_BYTES_MAX:
        raise DecodeError(f"a peer id of {len(raw)} bytes")
    return base58.b58encode(raw).decode()
