"""Wishes: what a peer asks the admins of a service for, signed by itself.

kinds: `join` (an invitation's signature), `device` (a member's grant), `leave` (the member's own),
`request` (nothing: an admin decides). A wish goes to whoever is connected; a member who is no admin
passes it on and keeps it until it meets one.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from pairio_protocol.allowlist import ROLES, Folded, apply_ops
from pairio_protocol.codec import pack, unpack
from pairio_protocol.errors import DecodeError
from pairio_protocol.ids import LogId, public_key_of
from pairio_protocol.limits import (
    ADDRESSES_MAX,
    CUTS_PER_CHANGE_MAX,
    DECODED_MAX,
    NAME_LENGTH_MAX,
    SIGNATURE_SIZE_BYTES,
    WISH_EXPIRY_MS,
    WISH_SIZE_BYTES_MAX,
)
from pairio_protocol.links import Link
from pairio_protocol.names import free_name
from pairio_protocol.proofs import (
    DeviceGrant,
    Place,
    proof_of_device,
    proof_of_invitation,
    proof_of_leave,
    why_not,
)
from pairio_protocol.service import Cut
from pairio_protocol.signing import SigningKey, sha256, signing_input, verify
from pairio_protocol.wire import Registry

__all__ = [
    "SOFT",
    "Head",
    "Wish",
    "asked_for",
    "is_granted",
    "is_proven",
    "leaving",
    "op_for",
    "why_refused",
]

KINDS = ("join", "device", "leave", "request")
#: Reasons that may pass, since who answers may be behind; such a wish is kept and looked at again.
SOFT = ("unknown_invitation", "unknown_member")

WISHES = Registry()


@dataclass(frozen=True, slots=True)
class Head:
    """The last segment of one of the wisher's own logs that is to count after it has left."""

    boot: bytes
    seq: int
    hash: bytes


@WISHES.wire("wish")
@dataclass(frozen=True, slots=True)
class Wish:
    """One wish of `peer`. `token` and `proof` belong to an invitation or a device's link, `by`,
    `expires_unix_ms` and `grant` to the latter; `proof`, `epoch` and `heads` to a leave."""

    service: str
    kind: str
    peer: str
    name: str
    roles: tuple[str, ...]
    token: str
    proof: bytes
    by: str
    expires_unix_ms: int
    grant: bytes
    epoch: int
    heads: tuple[Head, ...]
    addresses: tuple[str, ...]
    issued_unix_ms: int

    def sign(self, key: SigningKey) -> bytes:
        """Return the wish as it travels."""
        body = WISHES.encode(self)
        message = signing_input("wish", self.service, self.peer, sha256(body))
        return pack([body, key.sign(message)])

    @staticmethod
    @lru_cache(maxsize=DECODED_MAX)
    def decode(data: bytes) -> "Wish":
        """Return a signed wish; DecodeError when its peer did not sign it or it is none."""
        match unpack(data, WISH_SIZE_BYTES_MAX):
            case [bytes(body), bytes(signature)] if len(signature) == SIGNATURE_SIZE_BYTES:
                wish: Wish = WISHES.decode(body)
                _check_bounds(wish)
                message = signing_input("wish", wish.service, wish.peer, sha256(body))
                if not verify(wish.peer, message, signature):
                    raise DecodeError("a wish that its peer did not sign")
                return wish
        raise DecodeError("not a wish")

    def cuts(self) -> tuple[Cut, ...]:
        """Return the cuts that a leaving peer names."""
        return tuple(Cut(LogId(self.peer, h.boot, 0), h.seq, h.hash) for h in self.heads)


def _check_bounds(wish: Wish) -> None:
    public_key_of(wish.peer)
    texts = (wish.service, wish.name, wish.token, wish.by, *wish.roles)
    if wish.kind not in KINDS or any(len(text) > NAME_LENGTH_MAX for text in texts):
        raise DecodeError("a wish of no known kind, or with long names")
    if len(wish.roles) > len(ROLES) or not set(wish.roles) <= set(ROLES):
        raise DecodeError("a wish for roles that there are not")
    if len(wish.heads) > CUTS_PER_CHANGE_MAX or len(wish.addresses) > ADDRESSES_MAX:
        raise DecodeError("a wish with too many heads or addresses")
    if not {len(wish.proof), len(wish.grant)} <= {0, SIGNATURE_SIZE_BYTES}:
        raise DecodeError("a wish with signatures that are none")
    if any(len(h.boot) != 16 or len(h.hash) != 32 for h in wish.heads):
        raise DecodeError("a wish with heads that are none")


# -- making one ---------------------------------------------------------------------------


def asked_for(
    link: Link, key: SigningKey, name: str, roles: tuple[str, ...], addresses: tuple[str, ...],
    unix_ms: int,
) -> Wish:  # fmt: skip
    """Return the wish that a link lets `key` say; without roles it asks for what the link gives."""
    token = SigningKey(link.seed) if link.seed else None
    proof = b""
    if token is not None:
        sign = proof_of_device if link.kind == "device" else proof_of_invitation
        proof = sign(token, link.service, key.peer)
    return Wish(
        service=link.service,
        kind=link.kind,
        peer=key.peer,
        name=name,
        roles=() if link.kind == "device" else roles or link.roles,
        token=token.peer if token is not None else "",
        proof=proof,
        by=link.by,
        expires_unix_ms=link.expires_unix_ms if link.kind == "device" else 0,
        grant=link.grant,
        epoch=0,
        heads=(),
        addresses=addresses[:ADDRESSES_MAX],
        issued_unix_ms=unix_ms,
    )


def leaving(service: str, key: SigningKey, epoch: int, cuts: tuple[Cut, ...], unix_ms: int) -> Wish:
    """Return the wish of a member's key to be taken off the list, its logs cut where they end."""
    proof = proof_of_leave(key, service, epoch, [cut.plain() for cut in cuts])
    return Wish(
        service=service,
        kind="leave",
        peer=key.peer,
        name="",
        roles=(),
        token="",
        proof=bytes.fromhex(proof["signature"]),
        by="",
        expires_unix_ms=0,
        grant=b"",
        epoch=epoch,
        heads=tuple(Head(cut.log.boot, cut.seq, cut.hash) for cut in cuts),
        addresses=(),
        issued_unix_ms=unix_ms,
    )


# -- what an admin's node makes of it -----------------------------------------------------


def is_granted(wish: Wish, folded: Folded) -> bool:
    """Say whether the list is as the wish wants it."""
    name = folded.member_of(wish.peer)
    if wish.kind == "leave":
        return name is None
    return name is not None and set(wish.roles) <= set(folded.members[name][0])


def why_refused(wish: Wish, folded: Folded, unix_ms: int) -> str:
    """Return why a wish's proof is not good, as a code; empty when it is, or has none."""
    if folded.ended:
        return "ended"
    if wish.kind == "request" and unix_ms - wish.issued_unix_ms > WISH_EXPIRY_MS:
        return "stale"  # somebody may have kept it since
    if wish.kind == "join":
        entry = folded.invitations.get(wish.token)
        if entry is None:
            return "unknown_invitation"
        if reason := why_not(entry, unix_ms):
            return reason
        if folded.past.removed.get(wish.peer, -1) >= entry["since"]:
            return "removed"
        name = folded.member_of(wish.peer)
        keys = folded.members[name][1] if name is not None else ()
        if folded.past.lessened_since((wish.peer, *keys), entry["since"]):
            return "lessened"
        if name is None and (wish.token, wish.peer) in folded.past.came:
            return "used_before"
        if not set(wish.roles) <= {*entry["roles"], *folded.roles_of(wish.peer)}:
            return "roles"
    if wish.kind == "device":
        if not folded.roles_of(wish.by):
            return "unknown_member"
        if unix_ms > wish.expires_unix_ms:
            return "expired"
        if wish.token in folded.past.spent:
            return "used_up"
        if wish.peer in folded.past.removed:
            return "removed"
        if folded.member_of(wish.peer) not in (None, folded.member_of(wish.by)):
            return "other_member"
    return ""


def is_proven(wish: Wish, folded: Folded, epoch: int, unix_ms: int) -> bool:
    """Say whether an admin would append the wish now because of its proof."""
    if wish.kind == "request" or is_granted(wish, folded) or why_refused(wish, folded, unix_ms):
        return False
    cuts = tuple(cut.plain() for cut in wish.cuts())
    try:
        apply_ops(folded, [op_for(wish, folded)], Place(wish.service, epoch + 1, unix_ms, cuts))
    except DecodeError:
        return False
    return True


def op_for(wish: Wish, folded: Folded) -> dict[str, Any]:
    """Return the op that grants a wish, with its proof if it has one."""
    had = folded.member_of(wish.peer)
    if wish.kind == "leave":
        proof = {"epoch": wish.epoch, "signature": wish.proof.hex()}
        return {"op": "remove", "member": had, "key": wish.peer, "leave": proof}
    if wish.kind == "device":
        owner = folded.member_of(wish.by)
        roles = folded.members[owner][0] if owner is not None else ()
        grant = DeviceGrant(wish.by, wish.token, wish.expires_unix_ms, wish.grant)
        proof = grant.plain(wish.proof)
        found = {"op": "add", "member": owner, "key": wish.peer, "roles": list(roles)}
        return {**found, "device": proof}
    roles = tuple(sorted({*wish.roles, *(folded.members[had][0] if had else ())}))
    name = had or free_name(wish.name, wish.peer, folded.members)
    op: dict[str, Any] = {"op": "add", "member": name, "key": wish.peer, "roles": list(roles)}
    if wish.kind == "join":
        op["invitation"] = {"key": wish.token, "signature": wish.proof.hex()}
    return op
