"""Links: one word that lets somebody join, or a member's further device.

    pairio:<base64url of body || first 4 bytes of sha2-256 of the body>

The body is msgpack. A link of kind `request` holds no token: whoever joins with it waits for an
admin's word; nor does one of kind `public`: whoever joins with it is a guest. The phrase is read
out to compare what was sent with what arrived.
"""

import base64
import binascii
from dataclasses import dataclass

from pairio_protocol.cid import CidError, cid_bytes, cid_text
from pairio_protocol.codec import pack, unpack
from pairio_protocol.errors import DecodeError
from pairio_protocol.ids import peer_of, public_key_of
from pairio_protocol.limits import (
    ADDRESSES_MAX,
    LINK_LENGTH_MAX,
    LINK_PEERS_MAX,
    NAME_LENGTH_MAX,
    SIGNATURE_SIZE_BYTES,
    URL_LENGTH_MAX,
)
from pairio_protocol.signing import sha256

__all__ = ["LINK_KINDS", "Link", "LinkPeer", "without_peer"]

LINK_KINDS = ("join", "device", "request", "public")
_PREFIX = "pairio:"
_CHECKSUM_BYTES = 4
#: 16 bits are a word of consonants and vowels in turn (proquints).
_CONSONANTS, _VOWELS = "bdfghjklmnprstvz", "aiou"


def without_peer(address: str) -> str:
    """Return a multiaddr without the peer at its end; that of a relay before it stays."""
    at, _, peer = address.rpartition("/p2p/")
    return at if at and "/" not in peer else address


@dataclass(frozen=True)
class LinkPeer:
    """A member who may be connected to, and where; multiaddrs end in /p2p/ID."""

    peer: str
    addresses: tuple[str, ...]


@dataclass(frozen=True)
class Link:
    """What a link holds. The inviter is the first of `peers`; `seed` is the token's private half
    (empty: none); `by` and `grant` are the member's leave for a device."""

    kind: str
    service: str
    name: str
    peers: tuple[LinkPeer, ...]
    seed: bytes = b""
    roles: tuple[str, ...] = ()
    expires_unix_ms: int = 0
    by: str = ""
    grant: bytes = b""

    def _body(self) -> bytes:
        peers = [
            [public_key_of(p.peer), [without_peer(a) for a in p.addresses]]
            for p in self.peers[:LINK_PEERS_MAX]
        ]
        by = public_key_of(self.by) if self.by else b""
        kind, service = LINK_KINDS.index(self.kind), cid_bytes(self.service)
        roles, expires = list(self.roles), self.expires_unix_ms
        return pack([1, kind, service, self.name, peers, self.seed, roles, expires, by, self.grant])

    def encode(self) -> str:
        """Return the link as one word."""
        body = self._body()
        raw = body + sha256(body)[:_CHECKSUM_BYTES]
        return _PREFIX + base64.urlsafe_b64encode(raw).decode().rstrip("=")

    def phrase(self) -> str:
        """Return four words, the same for the same link, that are easily read out."""
        digest = sha256(self._body())
        return "-".join(_word(digest[i : i + 2]) for i in range(0, 8, 2))

    @staticmethod
    def decode(text: str) -> "Link":
        """Return what a link holds.

        Raises:
            DecodeError: no link, cut short or mistyped, or of a newer pairio; says which.
        """
        text = text.strip()
        if not text.startswith(_PREFIX) or len(text) > LINK_LENGTH_MAX:
            raise DecodeError(f"{text[:40]!r} is not a link: one begins with {_PREFIX!r}")
        coded = text.removeprefix(_PREFIX)
        try:
            raw = base64.b64decode(coded + "=" * (-len(coded) % 4), b"-_", validate=True)
        except (binascii.Error, ValueError):
            raw = b""
        body, checksum = raw[:-_CHECKSUM_BYTES], raw[-_CHECKSUM_BYTES:]
        if not body or sha256(body)[:_CHECKSUM_BYTES] != checksum:
            raise DecodeError("the link is cut short or mistyped")
        return _parsed(unpack(body))


def _parsed(plain: object) -> Link:
    match plain:
        case [
            1,
            int(kind),
            bytes(service),
            str(name),
            list(peers),
            bytes(seed),
            list(roles),
            int(expires),
            bytes(by),
            bytes(grant),
        ]:
            pass
        case [int(version), *_] if version > 1:
            raise DecodeError("the link was made by a newer pairio: update this one")
        case _:
            raise DecodeError("the link is not well formed")
    sizes_fit = len(seed) in (0, 32) and len(grant) in (0, SIGNATURE_SIZE_BYTES)
    sizes_fit = sizes_fit and len(name) <= NAME_LENGTH_MAX and len(by) in (0, 32)
    if not (0 <= kind < len(LINK_KINDS) and sizes_fit and name.isprintable()):
        raise DecodeError("the link is not well formed")
    try:
        cid = cid_text(service)
        cid_bytes(cid)
    except CidError:
        raise DecodeError("the link names no service") from None
    found = Link(
        LINK_KINDS[kind],
        cid,
        name,
        tuple(_parsed_peer(peer) for peer in peers[:LINK_PEERS_MAX]),
        seed,
        tuple(str(role) for role in roles[:8]),
        expires,
        peer_of(by) if by else "",
        grant,
    )
    if not found.peers or (found.kind in ("request", "public")) == bool(seed):
        raise DecodeError("the link is not well formed")
    if (found.kind == "device") != bool(by and grant):
        raise DecodeError("the link is not well formed")
    return found


def _parsed_peer(plain: object) -> LinkPeer:
    match plain:
        case [bytes(key), list(addresses)] if len(key) == 32:
            peer = peer_of(key)
            texts = [a for a in addresses[:ADDRESSES_MAX] if isinstance(a, str)]
            return LinkPeer(
                peer, tuple(f"{a}/p2p/{peer}" for a in texts if len(a) <= URL_LENGTH_MAX)
            )
    raise DecodeError("the link is not well formed")


def _word(two: bytes) -> str:
    bits = int.from_bytes(two, "big")
    shifts = ((12, _CONSONANTS), (10, _VOWELS), (6, _CONSONANTS), (4, _VOWELS), (0, _CONSONANTS))
    return "".join(letters[bits >> shift & (len(letters) - 1)] for shift, letters in shifts)
