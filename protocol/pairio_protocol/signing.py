"""Ed25519 with domain separation: the only importer of cryptography.

What is signed is `"pairio/1/" kind`, then every field with its length before it, so that no two
different inputs have equal bytes. Ed25519 is deterministic (RFC 8032): signing is a pure function.
"""

import hashlib
from collections import OrderedDict
from functools import lru_cache

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from pairio_protocol.errors import DecodeError
from pairio_protocol.ids import peer_of, public_key_of

__all__ = ["SigningKey", "sha256", "signing_input", "verify"]


_EIGHT = (8).to_bytes(4, "big")
#: The newest signatures that were made here: what they are of is not worked out again.
_MADE_MAX = 256
_made: OrderedDict[bytes, tuple[str, bytes]] = OrderedDict()


class SigningKey:
    """A node's private key. Its peer id is the public half."""

    def __init__(self, seed: bytes) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        public = self._key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        self.peer = peer_of(public)

    def sign(self, message: bytes) -> bytes:
        """Return the 64-byte signature of what `signing_input` made."""
        signature = self._key.sign(message)
        _made[signature] = (self.peer, message)
        if len(_made) > _MADE_MAX:
            _made.popitem(last=False)
        return signature


def signing_input(kind: str, *fields: bytes | str | int) -> bytes:
    """Return the bytes to sign: `pairio/1/kind`, then the length and bytes of every field.

    Integers are 8 bytes big-endian; text is UTF-8. A large body goes in as its sha2-256.
    """
    parts = [b"pairio/1/" + kind.encode()]
    for field in fields:
        if isinstance(field, int):
            parts.append(_EIGHT + field.to_bytes(8, "big"))
        else:
            raw = field.encode() if isinstance(field, str) else field
            parts += (len(raw).to_bytes(4, "big"), raw)
    return b"".join(parts)


@lru_cache(maxsize=4096)
def verify(peer: str, message: bytes, signature: bytes) -> bool:
    """Say whether `peer` signed `message`. False as well for a peer id that is no key.

    Pure, and remembered: the same presence or segment comes from several neighbours, and what was
    signed here is right. It is short (bodies go in as hashes), so the memory is bounded by about
    2 MB.
    """
    if _made.get(signature) == (peer, message):
        return True
    try:
        key = Ed25519PublicKey.from_public_bytes(public_key_of(peer))
        key.verify(signature, message)
    except (InvalidSignature, DecodeError, ValueError):
        return False
    return True


def sha256(data: bytes) -> bytes:
    """Return the 32-byte sha2-256 of `data`."""
    return hashlib.sha256(data).digest()
