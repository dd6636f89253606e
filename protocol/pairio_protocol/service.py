"""A service: the signed list of who may do what, as a chain of changes and its fold.

A change is `{type, v, seq, prev, ops, state, issued}` in DAG-CBOR with signatures beside it. The
service's id is the CID of the first one. `Chain` holds the winning changes and the folded document
after each, so that any epoch (the seq of a change) can be asked for its members.

Source: DESIGN section 5. The rule at a fork is applied at the first divergence, never by length.
"""

from dataclasses import dataclass, field, replace
from typing import Any

from pairio_protocol.apps import validate_app
from pairio_protocol.codec import pack, unpack
from pairio_protocol.documents import decode, document_cid, encode
from pairio_protocol.errors import DecodeError, DefinitionError
from pairio_protocol.ids import public_key_of
from pairio_protocol.limits import (
    CHANGE_SIZE_BYTES_MAX,
    CHANGES_MAX,
    FRAME_SIZE_BYTES_MAX,
    MEMBERS_MAX,
    NAME_LENGTH_MAX,
    SERVICE_SIZE_BYTES_MAX,
)
from pairio_protocol.signing import SigningKey, sha256, signing_input, verify

__all__ = ["ROLES", "Chain", "ChangeGap", "Folded", "SignedChange", "parse_roles"]

#: Any role implies read.
ROLES = ("admin", "submit", "compute", "read")
_ORIGINAL_ROLES = {"createJobs": "submit", "processJobs": "compute"}


def parse_roles(names: list[str]) -> tuple[str, ...]:
    """Return the roles that `names` mean, sorted; the original's createJobs, processJobs included.

    Raises:
        DefinitionError: none given, or one that does not exist.
    """
    roles = {_ORIGINAL_ROLES.get(name.strip(), name.strip()) for name in names if name.strip()}
    unknown = sorted(roles - set(ROLES))
    if unknown or not roles:
        shown = repr(unknown[0]) if unknown else "nothing"
        raise DefinitionError(f"role is {shown}", f"use {', '.join(ROLES)}")
    return tuple(sorted(roles))


@dataclass(frozen=True)
class Folded:
    """A service after some change: the allowlist, the apps, the policy."""

    name: str
    admins: tuple[str, ...]
    threshold: int = 1
    #: member name -> (roles, keys)
    members: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = field(default_factory=dict)
    apps: dict[str, dict[str, Any]] = field(default_factory=dict)
    policy: dict[str, Any] = field(default_factory=dict)
    ended: bool = False

    def document(self) -> dict[str, Any]:
        """Return the folded document, whose CID every change states."""
        return {
            "type": "pairio/service",
            "v": 1,
            "name": self.name,
            "admins": list(self.admins),
            "threshold": self.threshold,
            "members": {
                name: {"roles": list(roles), "keys": list(keys)}
                for name, (roles, keys) in self.members.items()
            },
            "apps": self.apps,
            "policy": self.policy,
            "ended": self.ended,
        }

    def member_of(self, peer: str) -> str | None:
        """Return the name of the member one of whose keys `peer` is."""
        for name, (_, keys) in self.members.items():
            if peer in keys:
                return name
        return None

    def roles_of(self, peer: str) -> tuple[str, ...]:
        """Return the roles of a peer; empty for a stranger and after the service's end."""
        name = self.member_of(peer)
        return () if name is None or self.ended else self.members[name][0]

    def peers(self) -> list[str]:
        """Return every key on the list, sorted."""
        return sorted(key for _, keys in self.members.values() for key in keys)


@dataclass(frozen=True)
class SignedChange:
    """One change as it travels: the document's bytes and the admins' signatures over them."""

    body: bytes
    signatures: tuple[tuple[str, bytes], ...]

    @property
    def cid(self) -> str:
        """The CID of the change; of the first one it is the service's id."""
        return document_cid(self.body)

    def encode(self) -> bytes:
        """Return the bytes that are stored and sent."""
        return pack([self.body, [[peer, signature] for peer, signature in self.signatures]])

    @staticmethod
    def decode(data: bytes) -> "SignedChange":
        """Return the change in `data`; DecodeError when it has not this shape."""
        plain = unpack(data, FRAME_SIZE_BYTES_MAX)
        match plain:
            case [bytes(body), list(signatures)] if len(body) <= CHANGE_SIZE_BYTES_MAX:
                pairs = []
                for item in signatures:
                    match item:
                        case [str(peer), bytes(signature)]:
                            pairs.append((peer, signature))
                        case _:
                            raise DecodeError("a signature is not [peer, bytes]")
                return SignedChange(body, tuple(pairs))
        raise DecodeError("not a signed change")


def _signed_bytes(body: bytes) -> bytes:
    return signing_input("change", sha256(body))


@dataclass(frozen=True)
class _Link:
    """One place of the chain."""

    change: SignedChange
    signers: tuple[str, ...]
    folded: Folded
    removes: frozenset[str]


class ChangeGap(DecodeError):
    """A change that may be valid but whose predecessors are not known here yet."""


class Chain:
    """The changes of one service that this node takes as valid, and their folds.

    Nothing is mutated by a refused change. `epoch` is the seq of the newest change.
    """

    def __init__(self) -> None:
        self._links: list[_Link] = []

    @property
    def service(self) -> str:
        """The service's id."""
        return self._links[0].change.cid

    @property
    def epoch(self) -> int:
        """The seq of the newest change."""
        return len(self._links) - 1

    @property
    def head(self) -> str:
        """The CID of the newest change."""
        return self._links[-1].change.cid

    @property
    def now(self) -> Folded:
        """The folded document after the newest change."""
        return self._links[-1].folded

    def at(self, epoch: int) -> Folded | None:
        """Return the fold after change `epoch`, None when that is not known here."""
        return self._links[epoch].folded if 0 <= epoch < len(self._links) else None

    def changes(self, start: int = 0) -> list[SignedChange]:
        """Return the changes from seq `start` on."""
        return [link.change for link in self._links[start:]]

    def add(self, change: SignedChange) -> bool:
        """Take a change. True when the chain has changed, False when it was known or lost a fork.

        Raises:
            DecodeError: invalid, or not following what is known here (then the ones before it
                must come first). The chain is as before.
        """
        document = decode(change.body, CHANGE_SIZE_BYTES_MAX)
        seq = document.get("seq")
        if document.get("type") != "pairio/change" or not isinstance(seq, int):
            raise DecodeError("not a service change")
        if len(self._links) < seq <= CHANGES_MAX:
            raise ChangeGap(f"change {seq} comes after change {self.epoch}")
        if not 0 <= seq <= CHANGES_MAX:
            raise DecodeError(f"change {seq} does not follow change {self.epoch}")
        if seq < len(self._links) and self._links[seq].change.cid == change.cid:
            return False
        if seq == 0 and self._links:
            raise DecodeError("another service's first change")
        link = self._validated(document, change, seq)
        if seq == len(self._links):
            self._links.append(link)
            return True
        if not self._wins(link, self._links[seq], self._links[seq - 1].folded):
            return False
        self._links[seq:] = [link]
        return True

    def _validated(self, document: dict[str, Any], change: SignedChange, seq: int) -> _Link:
        before = self._links[seq - 1].folded if seq else None
        prev = self._links[seq - 1].change.cid if seq else None
        if document.get("prev") != prev:
            raise DecodeError(f"change {seq} follows another change than ours")
        folded, removes = _fold(before, document.get("ops"))
        admins = (before or folded).admins
        threshold = (before or folded).threshold
        message = _signed_bytes(change.body)
        signers = tuple(
            sorted({p for p, s in change.signatures if p in admins and verify(p, message, s)})
        )
        if len(signers) < threshold:
            raise DecodeError(f"change {seq} has {len(signers)} signatures; it needs {threshold}")
        if before is not None and (folded.admins, folded.threshold) != (admins, before.threshold):
            new = {p for p, s in change.signatures if p in folded.admins and verify(p, message, s)}
            if len(new) < folded.threshold:
                raise DecodeError(f"change {seq} lacks the new admins' signatures")
        data = encode(folded.document())
        if len(data) > SERVICE_SIZE_BYTES_MAX or document.get("state") != document_cid(data):
            raise DecodeError(f"change {seq} states another document than it makes")
        return _Link(change, signers, folded, removes)

    @staticmethod
    def _wins(new: _Link, old: _Link, before: Folded) -> bool:
        """Fork choice at the first divergence (DESIGN section 5)."""
        new_disarms = len(set(old.signers) - new.removes) < before.threshold
        old_disarms = len(set(new.signers) - old.removes) < before.threshold
        if new_disarms != old_disarms:
            return new_disarms
        order = before.admins.index
        new_rank, old_rank = sorted(map(order, new.signers)), sorted(map(order, old.signers))
        if new_rank != old_rank:
            return new_rank < old_rank
        return new.change.cid < old.change.cid

    def propose(
        self, ops: list[dict[str, Any]], keys: list[SigningKey], unix_ms: int
    ) -> SignedChange:
        """Return the change that does `ops` after the newest one, signed by `keys`.

        Raises:
            DefinitionError: the ops do not fit, or the change would be too large.
        """
        before = self._links[-1].folded if self._links else None
        try:
            folded, _ = _fold(before, ops)
        except DecodeError as error:
            raise DefinitionError(str(error)) from None
        body = encode(
            {
                "type": "pairio/change",
                "v": 1,
                "seq": len(self._links),
                "prev": self._links[-1].change.cid if self._links else None,
                "ops": ops,
                "state": document_cid(encode(folded.document())),
                "issued": unix_ms,
            }
        )
        if len(body) > CHANGE_SIZE_BYTES_MAX:
            raise DefinitionError(
                f"the change has {len(body)} bytes; at most {CHANGE_SIZE_BYTES_MAX}"
            )
        message = _signed_bytes(body)
        return SignedChange(body, tuple((key.peer, key.sign(message)) for key in keys))


def _fold(before: Folded | None, ops: Any) -> tuple[Folded, frozenset[str]]:
    """Return the document after `ops`, and the keys that they remove."""
    if not isinstance(ops, list) or not 1 <= len(ops) <= 256:
        raise DecodeError("a change has 1 to 256 ops")
    folded, removed = before, set()
    for op in ops:
        if not isinstance(op, dict):
            raise DecodeError("an op is not a map")
        if (folded is None) != (op.get("op") == "create"):
            raise DecodeError("`create` is the first op, and only the first")
        if folded is None:
            folded = _created(op)
            continue
        keys_before = set(folded.peers())
        folded = _applied(folded, op)
        removed |= keys_before - set(folded.peers())
    assert folded is not None
    if len(folded.members) > MEMBERS_MAX:
        raise DecodeError(f"more than {MEMBERS_MAX} members")
    return folded, frozenset(removed)


def _created(op: dict[str, Any]) -> Folded:
    admins = op.get("admins")
    if not isinstance(admins, list) or not 1 <= len(admins) <= 64 or len(set(admins)) < len(admins):
        raise DecodeError("a service has 1 to 64 different admins")
    for peer in admins:
        public_key_of(_name(peer, "admin"))
    threshold = op.get("threshold")
    if not isinstance(threshold, int) or not 1 <= threshold <= len(admins):
        raise DecodeError("the threshold is not between 1 and the number of admins")
    return Folded(_name(op.get("name"), "service name"), tuple(admins), threshold)


def _applied(folded: Folded, op: dict[str, Any]) -> Folded:
    match op.get("op"):
        case "add":
            return _add(folded, op)
        case "role":
            name, roles = _name(op.get("member"), "member"), _roles(op)
            if name not in folded.members:
                raise DecodeError(f"no member {name!r}")
            return replace(
                folded, members={**folded.members, name: (roles, folded.members[name][1])}
            )
        case "remove":
            name = _name(op.get("member"), "member")
            if name not in folded.members:
                raise DecodeError(f"no member {name!r}")
            return replace(folded, members={n: m for n, m in folded.members.items() if n != name})
        case "app":
            try:
                app = validate_app(op.get("app"))
            except DefinitionError as error:
                raise DecodeError(str(error)) from None
            return replace(folded, apps={**folded.apps, app["name"]: app})
        case "policy":
            if not isinstance(op.get("policy"), dict):
                raise DecodeError("policy is not a map")
            return replace(folded, policy=op["policy"])
        case "end":
            return replace(folded, ended=True)
    raise DecodeError(f"unknown op {str(op.get('op'))[:40]!r}")


def _add(folded: Folded, op: dict[str, Any]) -> Folded:
    name, roles, key = _name(op.get("member"), "member"), _roles(op), _name(op.get("key"), "key")
    public_key_of(key)
    owner = folded.member_of(key)
    if owner is not None and owner != name:
        raise DecodeError(f"{key} is a key of member {owner!r} already")
    _, keys = folded.members.get(name, ((), ()))
    if len(keys) >= 64:
        raise DecodeError("a member has at most 64 keys")
    return replace(folded, members={**folded.members, name: (roles, tuple(sorted({*keys, key})))})


def _name(value: Any, what: str) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= NAME_LENGTH_MAX:
        raise DecodeError(f"{what} is not text of 1 to {NAME_LENGTH_MAX} characters")
    if not value.isprintable() or "/" in value:
        raise DecodeError(f"{what} {value!r} holds a slash or characters that cannot be printed")
    return value


def _roles(op: dict[str, Any]) -> tuple[str, ...]:
    roles = op.get("roles")
    if not isinstance(roles, list) or not roles or not set(roles) <= set(ROLES):
        raise DecodeError(f"roles are not some of {', '.join(ROLES)}")
    return tuple(sorted(set(roles)))
