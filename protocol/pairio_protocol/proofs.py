"""Proofs: signatures inside an op that stand in for those of all admins but one.

An `add` may carry an invitation's signature, or for a further device its member's; a `remove` that
of the key that leaves. Every node checks them from the change itself: uses and expiry are counted
along the chain, and an expiry is compared with the change's `issued`. Such a change needs one
admin's signature, whatever the threshold is.

    invitation: token key signs (service, joining key)
    device:     a member's key signs (service, token key, expiry); that token signs the new key
    leave:      the leaving key signs (service, itself, the epoch that it knew, its own cuts)
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from pairio_protocol.documents import encode
from pairio_protocol.errors import DecodeError
from pairio_protocol.limits import (
    DEVICE_LINKS_MAX,
    INVITATION_USES_MAX,
    INVITATIONS_MAX,
    SIGNATURE_SIZE_BYTES,
)
from pairio_protocol.signing import SigningKey, sha256, signing_input, verify

__all__ = [
    "DeviceGrant",
    "Past",
    "Place",
    "check_leave",
    "invited",
    "is_proven",
    "linked",
    "proof_of_device",
    "proof_of_invitation",
    "proof_of_leave",
    "why_not",
    "with_invitation",
    "without_invitation",
]

#: Ops whose fields may carry a proof, and the fields.
_PROOFS = {"add": ("invitation", "device"), "remove": ("leave",)}


@dataclass(frozen=True)
class Place:
    """Where ops stand: the service's id (empty in its first change), and the change's own seq,
    `issued` and cuts."""

    service: str = ""
    seq: int = 0
    issued_unix_ms: int = 0
    cuts: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Past:
    """What earlier changes did to keys. It follows from the ancestors and stands in no document.

    `joined` and `removed` are seqs: of the last `add` of a key, and of the last removal that was
    not its own leave. `reduced` are those of the last change that took roles from it. `linked`
    names the key that vouched for a device; `links` counts the devices that rest on a key; `spent`
    are the tokens of devices, which count once. `came` are (invitation, key): who has
    left since is not let in by it again, since its signature is no secret any more.
    """

    joined: dict[str, int] = field(default_factory=dict)
    removed: dict[str, int] = field(default_factory=dict)
    reduced: dict[str, int] = field(default_factory=dict)
    linked: dict[str, str] = field(default_factory=dict)
    links: dict[str, int] = field(default_factory=dict)
    spent: frozenset[str] = frozenset()
    came: frozenset[tuple[str, str]] = frozenset()

    def with_join(self, key: str, seq: int) -> "Past":
        """Return the past after an `add` of `key` at `seq`."""
        return replace(self, joined={**self.joined, key: seq})

    def with_removal(self, keys: set[str], seq: int) -> "Past":
        """Return the past after admins took `keys` off at `seq`."""
        return replace(self, removed={**self.removed, **dict.fromkeys(sorted(keys), seq)})

    def with_reduction(self, keys: Iterable[str], seq: int) -> "Past":
        """Return the past after admins took roles from `keys` at `seq`."""
        return replace(self, reduced={**self.reduced, **dict.fromkeys(keys, seq)})

    def lessened_since(self, keys: Iterable[str], seq: int) -> bool:
        """Say whether admins took roles at `seq` or later from one of `keys`, or from who vouched
        for it."""
        everybody = (one for key in keys for one in (key, *self.vouchers(key)))
        return any(self.reduced.get(one, -1) >= seq for one in everybody)

    def vouchers(self, key: str) -> list[str]:
        """Return the keys through which `key` came in as a device, nearest first."""
        found: list[str] = []
        while (key := self.linked.get(key, "")) and key not in found:
            found.append(key)
        return found


def is_proven(ops: Any) -> bool:
    """Say whether every op carries a proof (which `apply_ops` then checks)."""
    return isinstance(ops, list) and all(
        isinstance(op, dict) and any(name in op for name in _PROOFS.get(str(op.get("op")), ()))
        for op in ops
    )


# -- invitations --------------------------------------------------------------------------


def _invitation_bytes(service: str, peer: str) -> bytes:
    return signing_input("invitation", service, peer)


def proof_of_invitation(token: SigningKey, service: str, peer: str) -> bytes:
    """Return the invitation's signature over a joining key."""
    return token.sign(_invitation_bytes(service, peer))


def with_invitation(
    invitations: dict[str, dict[str, Any]], op: dict[str, Any], roles: tuple[str, ...], place: Place
) -> dict[str, dict[str, Any]]:
    """Return the invitations after the op `invite`; dead ones go when there is no place left."""
    key, uses, expires = op.get("key"), op.get("uses"), op.get("expires_unix_ms")
    if key in invitations:
        raise DecodeError("that invitation exists already")
    if type(uses) is not int or not 1 <= uses <= INVITATION_USES_MAX:
        raise DecodeError(f"an invitation has 1 to {INVITATION_USES_MAX} uses")
    if type(expires) is not int or not 0 <= expires < 2**63:
        raise DecodeError("an invitation's expiry is not a Unix time in ms")
    if len(invitations) >= INVITATIONS_MAX:
        invitations = {
            k: entry for k, entry in invitations.items() if not why_not(entry, place.issued_unix_ms)
        }
    if len(invitations) >= INVITATIONS_MAX:
        raise DecodeError(f"more than {INVITATIONS_MAX} open invitations: withdraw some")
    made = {
        "roles": list(roles),
        "uses": uses,
        "used": 0,
        "expires_unix_ms": expires,
        "since": place.seq,
    }
    return {**invitations, str(key): made}


def without_invitation(
    invitations: dict[str, dict[str, Any]], key: Any
) -> dict[str, dict[str, Any]]:
    """Return the invitations after one was withdrawn."""
    if not isinstance(key, str) or key not in invitations:
        raise DecodeError("no such invitation")
    return {**invitations, key: {**invitations[key], "withdrawn": True}}


def why_not(entry: dict[str, Any], unix_ms: int) -> str:
    """Return why an invitation lets nobody in at a time: withdrawn, used_up, expired; or empty."""
    if entry.get("withdrawn"):
        return "withdrawn"
    if entry["used"] >= entry["uses"]:
        return "used_up"
    return "expired" if unix_ms > entry["expires_unix_ms"] else ""


def invited(
    invitations: dict[str, dict[str, Any]],
    proof: Any,
    key: str,
    past: Past,
    place: Place,
    keys: tuple[str, ...] = (),
) -> tuple[dict[str, dict[str, Any]], frozenset[str], Past]:
    """Check an invitation's proof for `key`; return the invitations after it, its roles, and the
    past after. `keys` are those of the member who has it already.

    Raises:
        DecodeError: no live invitation's signature over this key in this service, or it let the key
            in before and that has left, or the admins have removed the key, or taken roles from
            it, after the invitation was made.
    """
    token, signature = _signed(proof, {"key", "signature"}, "invitation")
    entry = invitations.get(token)
    if entry is None:
        raise DecodeError("no such invitation")
    reason = why_not(entry, place.issued_unix_ms)
    if reason:
        raise DecodeError(f"the invitation is {reason}")
    if not place.service or not verify(token, _invitation_bytes(place.service, key), signature):
        raise DecodeError("not the invitation's signature over this key")
    if past.removed.get(key, -1) >= entry["since"]:
        raise DecodeError("the key was removed after the invitation was made")
    if past.lessened_since((key, *keys), entry["since"]):
        raise DecodeError("roles were taken from the key after the invitation was made")
    if key not in keys and (token, key) in past.came:
        raise DecodeError("the invitation let this key in before")
    used = {**entry, "used": entry["used"] + 1}
    after = replace(past, came=past.came | {(token, key)})
    return {**invitations, token: used}, frozenset(entry["roles"]), after


# -- devices ------------------------------------------------------------------------------


@dataclass(frozen=True)
class DeviceGrant:
    """A member's leave for one further device: whoever holds the token may name its key."""

    by: str
    token: str
    expires_unix_ms: int
    signature: bytes

    @staticmethod
    def sign(key: SigningKey, service: str, token: str, expires_unix_ms: int) -> "DeviceGrant":
        """Return a grant by the member's key."""
        message = signing_input("device_grant", service, token, expires_unix_ms)
        return DeviceGrant(key.peer, token, expires_unix_ms, key.sign(message))

    def is_signed(self, service: str) -> bool:
        """Say whether its member's key signed it."""
        message = signing_input("device_grant", service, self.token, self.expires_unix_ms)
        return verify(self.by, message, self.signature)

    def plain(self, proof: bytes) -> dict[str, Any]:
        """Return what stands in an `add`, with the token's signature over the new key."""
        return {
            "by": self.by,
            "key": self.token,
            "expires_unix_ms": self.expires_unix_ms,
            "grant": self.signature.hex(),
            "signature": proof.hex(),
        }


def proof_of_device(token: SigningKey, service: str, peer: str) -> bytes:
    """Return the signature of a device's token over its key."""
    return token.sign(signing_input("device", service, peer))


def linked(proof: Any, keys: tuple[str, ...], key: str, past: Past, place: Place) -> Past:
    """Check the proof of a further device `key` of the member with `keys`; return the past after.

    Raises:
        DecodeError: not vouched for by a key of the member, too late, a token that was used, or a
            key that the admins have removed before.
    """
    fields = {"by", "key", "expires_unix_ms", "grant", "signature"}
    token, signature = _signed(proof, fields, "device")
    by, expires = proof["by"], proof["expires_unix_ms"]
    if by not in keys:
        raise DecodeError("a device's link is not signed by a key of its member")
    if type(expires) is not int or not 0 <= expires < 2**63:
        raise DecodeError("a device's expiry is not a Unix time in ms")
    grant = DeviceGrant(by, token, expires, _hex(proof["grant"]))
    if not place.service or not grant.is_signed(place.service):
        raise DecodeError("not the member's signature over a device's token")
    if not verify(token, signing_input("device", place.service, key), signature):
        raise DecodeError("not the token's signature over this key")
    if place.issued_unix_ms > expires:
        raise DecodeError("the device's link is expired")
    if token in past.spent:
        raise DecodeError("the device's link is used_up")
    if key in past.removed:
        raise DecodeError("the key was removed before")
    line = [by, *past.vouchers(by)]
    count = past.links.get(line[-1], 0) + 1
    if count > DEVICE_LINKS_MAX:  # joining and leaving without end would use the changes up
        raise DecodeError(f"more than {DEVICE_LINKS_MAX} devices by the word of one key")
    links = {**past.links, line[-1]: count}
    # Nobody comes in by his own word: it is a tree, and devices have one root.
    known = past.linked if key in line else {**past.linked, key: by}
    return replace(past, linked=known, links=links, spent=past.spent | {token})


# -- leaving ------------------------------------------------------------------------------


def _leaving_bytes(service: str, peer: str, epoch: int, cuts: list[dict[str, Any]]) -> bytes:
    """Return what a leaving key signs: the epoch it knew, and its own cuts as in the change."""
    return signing_input("leave", service, peer, epoch, sha256(encode({"cuts": cuts})))


def proof_of_leave(
    key: SigningKey, service: str, epoch: int, cuts: list[dict[str, Any]]
) -> dict[str, Any]:
    """Return what stands in the `remove` of a key that leaves."""
    signature = key.sign(_leaving_bytes(service, key.peer, epoch, cuts))
    return {"epoch": epoch, "signature": signature.hex()}


def check_leave(proof: Any, key: Any, past: Past, place: Place) -> None:
    """Check that a key leaves by its own signature, with the cuts that the change names for it."""
    if not isinstance(proof, dict) or set(proof) != {"epoch", "signature"}:
        raise DecodeError("leave is not {epoch, signature}")
    epoch = proof["epoch"]
    if type(epoch) is not int or not 0 <= epoch < place.seq:
        raise DecodeError("a leave of a later epoch")
    if not isinstance(key, str) or past.joined.get(key, 0) > epoch:
        raise DecodeError("a leave from before the key was added")
    own = [cut for cut in place.cuts if isinstance(cut, dict) and cut.get("author") == key]
    message = _leaving_bytes(place.service, key, epoch, own)
    if not verify(key, message, _hex(proof["signature"])):
        raise DecodeError("not the leaving key's signature over its cuts")


def _signed(proof: Any, fields: set[str], what: str) -> tuple[str, bytes]:
    """Return (token key, its signature) of a proof with exactly these fields."""
    if not isinstance(proof, dict) or set(proof) != fields or not isinstance(proof["key"], str):
        raise DecodeError(f"{what} is not {{{', '.join(sorted(fields))}}}")
    return proof["key"], _hex(proof["signature"])


def _hex(value: Any) -> bytes:
    if isinstance(value, str) and len(value) == 2 * SIGNATURE_SIZE_BYTES and value == value.lower():
        try:
            return bytes.fromhex(value)
        except ValueError:
            pass
    raise DecodeError("a signature is not 128 lower-case hex digits")
