"""The allowlist of a service: who may do what, which apps it has; and the ops that change it.

`Folded` is the list after some change; `apply_ops` makes the next one. Pure data: who may sign a
change, and which branch of changes counts, is in `service.py`. Source: DESIGN section 5.
"""

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeGuard

from pairio_protocol.apps import validate_app
from pairio_protocol.errors import DecodeError, DefinitionError
from pairio_protocol.ids import public_key_of
from pairio_protocol.limits import ADMINS_MAX, MEMBERS_MAX, NAME_LENGTH_MAX
from pairio_protocol.names import Taken, name_flaw
from pairio_protocol.open_submit import OpenSubmit
from pairio_protocol.proofs import (
    Past,
    Place,
    check_leave,
    invited,
    linked,
    with_invitation,
    without_invitation,
)
from pairio_protocol.records import ISOLATIONS

__all__ = ["PUBLIC_RESULTS", "ROLES", "Folded", "apply_ops", "is_count", "parse_roles"]

#: The policy `results`: anybody may read what jobs made. Left out: members only.
PUBLIC_RESULTS = "public"
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
        what = f"role is {unknown[0]!r}" if unknown else "no role is named"
        raise DefinitionError(what, f"use {', '.join(ROLES)}")
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
    #: token key -> {roles, uses, used, expires_unix_ms, since, withdrawn?}
    invitations: dict[str, dict[str, Any]] = field(default_factory=dict)
    #: roles that losing branches took from keys; not part of the document
    barred: dict[str, frozenset[str]] = field(default_factory=dict)
    #: what the changes so far did to keys; not part of the document
    past: Past = field(default_factory=Past)

    def document(self) -> dict[str, Any]:
        """Return the folded document, whose CID every change states."""
        found = {
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
        if self.invitations:
            found["invitations"] = self.invitations
        return found

    @property
    def has_public_results(self) -> bool:
        """Say whether anybody may read what jobs made; nobody new once the service has ended."""
        return self.policy.get("results") == PUBLIC_RESULTS and not self.ended

    def member_of(self, peer: str) -> str | None:
        """Return the name of the member one of whose keys `peer` is."""
        return self._member_by_key.get(peer)

    @cached_property
    def _member_by_key(self) -> dict[str, str]:
        return {key: name for name, (_, keys) in self.members.items() for key in keys}

    def roles_of(self, peer: str) -> tuple[str, ...]:
        """Return the roles of a peer; empty for a stranger and after the service's end."""
        return self._roles_by_key.get(peer, ())

    @cached_property
    def _roles_by_key(self) -> dict[str, tuple[str, ...]]:
        if self.ended:
            return {}
        by_key = {key: roles for roles, keys in self.members.values() for key in keys}
        for peer, gone in self.barred.items():
            by_key[peer] = tuple(r for r in by_key.get(peer, ()) if r not in gone)
        if self.barred:  # nor may they let a device of theirs in that nobody has barred
            for peer in self.past.linked:
                gone = frozenset().union(
                    *(self.barred.get(by, frozenset()) for by in self.past.vouchers(peer))
                )
                by_key[peer] = tuple(r for r in by_key.get(peer, ()) if r not in gone)
        return by_key

    def peers(self) -> list[str]:
        """Return every key on the list, sorted."""
        return sorted(key for _, keys in self.members.values() for key in keys)


def is_count(value: Any) -> TypeGuard[int]:
    """Say whether a value is a whole number from 0 to 2**63 - 1, and no truth value."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def apply_ops(
    before: Folded | None, ops: Any, place: Place | None = None
) -> tuple[Folded, frozenset[str]]:
    """Return the document after `ops`, and the keys that they remove."""
    place = place or Place()
    if not isinstance(ops, list) or not 1 <= len(ops) <= 256:
        raise DecodeError("a change has 1 to 256 ops")
    folded, removed, index = before, set[str](), _Index(before)
    for op in ops:
        if not isinstance(op, dict):
            raise DecodeError("an op is not a map")
        if (folded is None) != (op.get("op") == "create"):
            raise DecodeError("`create` is the first op, and only the first")
        if folded is None:
            folded = _created(op)
            continue
        if folded.ended:
            raise DecodeError("the service has ended")
        before_op, folded = folded, _applied(folded, op, place, index)
        gone = _gone(before_op, folded, op, index)
        if gone:
            removed |= gone
            if op["op"] != "remove" or "leave" not in op:
                folded = replace(folded, past=folded.past.with_removal(gone, place.seq))
    assert folded is not None
    if len(folded.members) > MEMBERS_MAX:
        raise DecodeError(f"more than {MEMBERS_MAX} members")
    return folded, frozenset(removed)


class _Index:
    """Names and keys of a list while ops are done to it: with thousands of members it would cost
    dearly to gather them for every op."""

    def __init__(self, before: Folded | None) -> None:
        self._before = before

    @cached_property
    def names(self) -> Taken:
        """The members' names; asked for by the ops that bring or take one."""
        return Taken(self._before.members if self._before else ())

    @cached_property
    def owners(self) -> dict[str, str]:
        """Key -> member."""
        members = self._before.members if self._before else {}
        return {key: name for name, (_, keys) in members.items() for key in keys}

    def take(self, name: Any) -> str:
        """Take a name that no member has, nor one that people would take for it; return it."""
        new = _title(name, "member")
        other = self.names.add(new)
        if other is not None:
            raise DecodeError(f"member {new!r} looks like member {other!r}")
        return new


def _gone(before: Folded, after: Folded, op: dict[str, Any], index: _Index) -> set[str]:
    """Return the keys that an op took off the list."""
    if op["op"] == "admins":
        return {p for p in before.admins if p not in after.admins and p not in index.owners}
    if op["op"] != "remove":
        return set()
    name = op["member"]
    gone = set(before.members[name][1]) - set(after.members.get(name, ((), ()))[1])
    for key in gone:
        del index.owners[key]
    if name not in after.members:
        index.names.discard(name)
    return gone


def _remove(folded: Folded, name: str, key: Any) -> Folded:
    """Take a member off the list, or one of his keys; admins among the keys are none after it."""
    roles, keys = folded.members[name]
    gone = set(keys) if key is None else {k for k in keys if k == key}
    if not gone:
        raise DecodeError(f"member {name!r} has no key {str(key)[:80]!r}")
    left = tuple(k for k in keys if k not in gone)
    members = {n: m for n, m in folded.members.items() if n != name}
    if left:
        members[name] = (roles, left)
    admins = tuple(p for p in folded.admins if p not in gone)
    if len(admins) < folded.threshold:
        raise DecodeError("the service would have fewer admins than its threshold")
    return replace(folded, members=members, admins=admins)


def _created(op: dict[str, Any]) -> Folded:
    return Folded(_title(op.get("name"), "service name"), **_admins(op))


def _admins(op: dict[str, Any]) -> dict[str, Any]:
    admins = op.get("admins")
    if not isinstance(admins, list) or not 1 <= len(admins) <= ADMINS_MAX:
        raise DecodeError(f"a service has 1 to {ADMINS_MAX} admins")
    for peer in admins:
        public_key_of(_name(peer, "admin"))
    if len(set(admins)) < len(admins):
        raise DecodeError("an admin is named twice")
    threshold = op.get("threshold")
    if not is_count(threshold) or not 1 <= threshold <= len(admins):
        raise DecodeError(f"the threshold is {threshold!r}, not 1 to {len(admins)} (the admins)")
    return {"admins": tuple(admins), "threshold": threshold}


def _applied(folded: Folded, op: dict[str, Any], place: Place, index: _Index) -> Folded:
    match op.get("op"):
        case "add":
            return _add(folded, op, place, index)
        case "invite":
            public_key_of(_name(op.get("key"), "key"))
            made = with_invitation(folded.invitations, op, _roles(op), place)
            return replace(folded, invitations=made)
        case "uninvite":
            left = without_invitation(folded.invitations, op.get("key"))
            return replace(folded, invitations=left)
        case "role":
            name, roles = _member(folded, op), _roles(op)
            had, keys = folded.members[name]
            past = folded.past
            if not set(had) <= set(roles):
                past = past.with_reduction(keys, place.seq)
            members = {**folded.members, name: (roles, keys)}
            return replace(folded, members=members, past=past)
        case "remove":
            name = _member(folded, op)
            if "leave" in op:
                check_leave(op["leave"], op.get("key"), folded.past, place)
            return _remove(folded, name, op.get("key"))
        case "rename":
            return _rename(folded, op, index)
        case "admins":
            return replace(folded, **_admins(op))
        case "app":
            try:
                app = validate_app(op.get("app"))
            except DefinitionError as error:
                raise DecodeError(str(error)) from None
            return replace(folded, apps={**folded.apps, app["name"]: app})
        case "app_remove":
            name = _name(op.get("app"), "app")
            if name not in folded.apps:
                raise DecodeError(f"no app {name!r}")
            return replace(folded, apps={n: a for n, a in folded.apps.items() if n != name})
        case "policy":
            policy = op.get("policy")
            if not isinstance(policy, dict):
                raise DecodeError("policy is not a map")
            if policy.get("isolation_min", "medium") not in ISOLATIONS:
                raise DecodeError(f"isolation_min is not one of {', '.join(ISOLATIONS)}")
            if policy.get("results", PUBLIC_RESULTS) != PUBLIC_RESULTS:
                raise DecodeError(f"results is not {PUBLIC_RESULTS!r}; left out: members' only")
            if "open_submit" in policy:
                OpenSubmit.parse(policy["open_submit"])
            return replace(folded, policy=policy)
        case "end":
            return replace(folded, ended=True)
    raise DecodeError(f"unknown op {str(op.get('op'))[:40]!r}")


def _member(folded: Folded, op: dict[str, Any]) -> str:
    name = _name(op.get("member"), "member")
    if name not in folded.members:
        raise DecodeError(f"no member {name!r}")
    return name


def _rename(folded: Folded, op: dict[str, Any], index: _Index) -> Folded:
    """Call a member otherwise; his keys and roles stay."""
    name = _member(folded, op)
    index.names.discard(name)
    new = index.take(op.get("to"))
    others = {n: m for n, m in folded.members.items() if n != name}
    index.owners.update(dict.fromkeys(folded.members[name][1], new))
    return replace(folded, members={**others, new: folded.members[name]})


def _add(folded: Folded, op: dict[str, Any], place: Place, index: _Index) -> Folded:
    name, roles, key = _name(op.get("member"), "member"), _roles(op), _name(op.get("key"), "key")
    if name not in folded.members:
        index.take(name)
    public_key_of(key)
    owner = index.owners.setdefault(key, name)
    is_new = key not in folded.members.get(name, ((), ()))[1]
    if owner != name:
        raise DecodeError(f"{key} is a key of member {owner!r} already")
    had, keys = folded.members.get(name, ((), ()))
    if len(keys) >= 64:
        raise DecodeError("a member has at most 64 keys")
    if "device" in op:
        if roles != had:
            raise DecodeError("a further device has its member's roles")
        folded = replace(folded, past=linked(op["device"], keys, key, folded.past, place))
    if "invitation" in op:
        folded = _add_invited(folded, op, roles, place)
    past = folded.past.with_join(key, place.seq) if is_new else folded.past
    members = {**folded.members, name: (roles, tuple(sorted({*keys, key})))}
    return replace(folded, members=members, past=past)


def _add_invited(
    folded: Folded, op: dict[str, Any], roles: tuple[str, ...], place: Place
) -> Folded:
    """Check an invitation: it names somebody new, or gives the member whose key this is more."""
    name, key = op["member"], op["key"]
    roles_had, keys = folded.members.get(name, ((), ()))
    if name in folded.members and key not in keys:
        raise DecodeError(f"there is a member {name!r} already")
    invitations, allowed, past = invited(
        folded.invitations, op["invitation"], key, folded.past, place, keys
    )
    had = frozenset(roles_had)
    if not had <= set(roles) <= had | allowed:
        raise DecodeError("other roles than the invitation gives")
    return replace(folded, invitations=invitations, past=past)


def _title(value: Any, what: str) -> str:
    """Return a name that people read."""
    flaw = name_flaw(value) if isinstance(value, str) else "is not text"
    if flaw is not None:
        raise DecodeError(f"{what} {str(value)[:NAME_LENGTH_MAX]!r} {flaw}")
    return str(value)


def _name(value: Any, what: str) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= NAME_LENGTH_MAX:
        raise DecodeError(f"{what} is not text of 1 to {NAME_LENGTH_MAX} characters")
    if not value.isprintable() or "/" in value:
        raise DecodeError(f"{what} {value!r} holds a slash or characters that cannot be printed")
    return value


def _roles(op: dict[str, Any]) -> tuple[str, ...]:
    roles = op.get("roles")
    if not isinstance(roles, list) or not roles or not all(role in ROLES for role in roles):
        raise DecodeError(f"roles are not some of {', '.join(ROLES)}")
    return tuple(sorted(set(roles)))
