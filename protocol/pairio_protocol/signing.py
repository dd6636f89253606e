"""Ed25519 with domain separation: the only importer of cryptography.

What is signed is `"pairio/1/" kind`, then every field with its length before it, so that no two
different inputs have equal bytes. Ed25519 is deterministic (RFC 8032): signing is a pure function.
"""

import hashlib
from collections import OrderedDict
from contextlib import suppress

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from pairio_protocol.errors import DecodeError
from pairio_protocol.ids import peer_of, public_key_of

__all__ = ["SigningKey", "asked", "sha256", "signing_input", "verify"]


_EIGHT = (8).to_bytes(4, "big")
_KNOWN_MAX = 4096
#: Which signatures are right, of those that were made here or looked at, oldest first: who signed,
#: the hash of what, and the signature.
_known: OrderedDict[tuple[str, bytes, bytes], bool] = OrderedDict()
_asked = 0


class SigningKey:
    """A node's private key. Its peer id is the public half."""

    def __init__(self, seed: bytes) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        public = self._key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        self.peer = peer_of(public)

    def sign(self, message: bytes) -> bytes:
        """Return the 64-byte signature of what `signing_input` made."""
        signature = self._key.sign(message)
        _know((self.peer, sha256(message), signature), True)
        return signature


def _know(signed: tuple[str, bytes, bytes], is_right: bool) -> None:
    """Remember, and forget the oldest beyond so many; other threads may do the same."""
    _known[signed] = is_right
    while len(_known) > _KNOWN_MAX:
        with suppress(KeyError):
            _known.popitem(last=False)


def signing_input(kind: str, *fields: bytes | str | int) -> bytes:
    """Return the bytes to sign: `pairio/1/kind`, then the length and bytes of every field.

    Integers are 8 bytes big-endian; text is UTF-8.
    """
    parts = [b"pairio/1/" + kind.encode()]
    for field in fields:
        if isinstance(field, int):
            parts.append(_EIGHT + field.to_bytes(8, "big"))
        else:
            raw = field.encode() if isinstance(field, str) else field
            parts += (len(raw).to_bytes(4, "big"), raw)
    return b"".join(parts)


def verify(peer: str, message: bytes, signature: bytes) -> bool:
    """Say whether `peer` signed `message`. False as well for a peer id that is no key.

    Pure, and remembered by hash: the same presence or segment comes from several neighbours, and
    what was signed here is right.
    """
    global _asked
    _asked += 1
    signed = (peer, sha256(message), signature)
    known = _known.get(signed)
    if known is None:
        known = _verify(peer, message, signature)
        _know(signed, known)
    return known


def asked() -> int:
    """Return how often `verify` was called, for who measures."""
    return _asked


def _verify(peer: str, message: bytes, signature: bytes) -> bool:
    try:
        key = Ed25519PublicKey.from_public_bytes(public_key_of(peer))
        key.verify(signature, message)
    except (InvalidSignature, DecodeError, ValueError):
        return False
    return True


def sha256(data: bytes) -> bytes:
    """Return the 32-byte sha2-256 of `data`."""
    return hashlib.sha256(data).digest()
