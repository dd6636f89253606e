"""What admins do to a service: members, roles, admins, apps, its end; and proposals of these.

an act --takes nothing away--> a change, or a proposal when further admins have to sign
   |
   +--takes something away--> connected members are asked what they know of the logs that will
      be cut, so that honest last results are not --at most CUT_WAIT_MS--> change or proposal
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pairio_protocol import events as ev
from pairio_protocol.allowlist import Folded, apply_ops
from pairio_protocol.apps import validate_app
from pairio_protocol.errors import DecodeError, DefinitionError
from pairio_protocol.ids import public_key_of
from pairio_protocol.limits import CUT_WAIT_MS
from pairio_protocol.names import free_name, name_flaw, normal_name
from pairio_protocol.proofs import Place
from pairio_protocol.service import Chain, Weighed

if TYPE_CHECKING:
    from pairio_protocol.core import NodeCore

__all__ = ["AdminCommands"]

_Op = dict[str, Any]


@dataclass(frozen=True)
class _Plan:
    """What an act comes to: ops (none: it is so already), keys that lose something by them, the
    peer to greet, and what the caller is told."""

    ops: tuple[_Op, ...]
    loses: tuple[str, ...] = ()
    greets: str = ""
    over: tuple[str, ...] = ()
    since_unix_ms: int | None = None
    renews: str = ""  # the stale proposal in whose place it comes
    says: tuple[tuple[str, Any], ...] = ()


class AdminCommands:
    """Local calls of an admin; those that wait for what members know."""

    def __init__(self, core: "NodeCore") -> None:
        self._core = core
        self._ctx = core.ctx
        self._waiting: list[tuple[int, Any]] = []  # (when it goes on, the event)

    def on_command(self, event: Any, service: str, chain: Chain) -> dict[str, Any] | None:
        """Do what an admin asks; returns the answer, None when it comes later.

        Raises:
            DefinitionError: the reason why it cannot be done.
        """
        match event:
            case ev.SignProposal():
                return self._sign(event, service)
            case ev.WithdrawProposal():
                found = self._core.membership.proposals.find(service, event.proposal)
                self._core.membership.proposals.withdraw(service, found.change.cid)
                cid = found.change.cid
                return {"service": service, "proposal": "", "changed": False, "withdrawn": cid}
        plan = self._plan(event, service, chain)
        if plan.loses and self._asks(service):
            self._waiting.append((self._ctx.now_ms + CUT_WAIT_MS, event))
            return None
        return self._carry_out(service, plan)

    def tick(self) -> list[Any]:
        """Return the events that have waited long enough; they are to be finished."""
        due = [event for at_ms, event in self._waiting if at_ms <= self._ctx.now_ms]
        self._waiting = [pair for pair in self._waiting if pair[0] > self._ctx.now_ms]
        return due

    def deadline_ms(self) -> int | None:
        """When the next act goes on."""
        return min((at_ms for at_ms, _ in self._waiting), default=None)

    def finish(self, event: Any, service: str, chain: Chain) -> dict[str, Any]:
        """Do what has waited, on the list as it is now."""
        return self._carry_out(service, self._plan(event, service, chain))

    def _asks(self, service: str) -> bool:
        """Begin sync with connected members; False when there is nobody to ask."""
        self._core.membership.check_admin(service)
        others = self._core.membership.connected_members(service)
        for peer in others:
            self._core.sync.send_digest(peer, service)
        return bool(others)

    def _carry_out(self, service: str, plan: _Plan) -> dict[str, Any]:
        answer = {"service": service, "proposal": "", **dict(plan.says)}
        membership = self._core.membership
        if not plan.ops:
            membership.check_admin(service)
            return {**answer, "changed": False}
        cuts = self._core.logs.cuts(service, plan.loses, plan.since_unix_ms) if plan.loses else ()
        proposal = membership.change(service, list(plan.ops), cuts, plan.over)
        if not proposal:
            self._core.intake.on_service_changed(service)
        if plan.renews:
            membership.proposals.drop(service, plan.renews)
        if plan.greets:
            membership.hello(plan.greets)
        return {**answer, "proposal": proposal, "changed": not proposal}

    # -- proposals ----------------------------------------------------------------------

    def _sign(self, event: ev.SignProposal, service: str) -> dict[str, Any]:
        proposals = self._core.membership.proposals
        change = proposals.look(service, event.proposal, event.data).change
        done = proposals.sign(service, change)
        if done:
            self._core.intake.on_service_changed(service)
        return {"service": service, "proposal": change.cid, "changed": done, "signed": change.cid}

    # -- plans --------------------------------------------------------------------------

    def _plan(self, event: Any, service: str, chain: Chain) -> _Plan:
        folded = chain.now
        if folded.ended:
            raise DefinitionError("the service has ended", "pairio service create NAME")
        match event:
            case ev.Grant():
                return self._grant(event, folded)
            case ev.Revoke():
                return self._revoke(event, folded)
            case ev.RenameMember():
                name = normal_name(event.name)
                op = {"op": "rename", "member": _member(folded, event.member), "to": name}
                return _Plan((op,), says=(("member", name),))
            case ev.SetAdmins():
                return self._set_admins(event, folded)
            case ev.InstallApp():
                return self._install(event, folded)
            case ev.RemoveApp():
                if event.app not in folded.apps:
                    known = ", ".join(sorted(folded.apps)) or "none"
                    raise DefinitionError(f"no app {event.app!r} in the service", f"apps: {known}")
                return _Plan(({"op": "app_remove", "app": event.app},), says=(("app", event.app),))
            case ev.EndService():
                return _Plan(({"op": "end"},))
            case ev.SignOver():
                return self._sign_over(chain)
            case ev.RenewProposal():
                return self._renew(event, service, chain)
        raise AssertionError(event)

    @staticmethod
    def _install(event: ev.InstallApp, folded: Folded) -> _Plan:
        app = validate_app(event.app)
        _check_names(app)
        before = folded.apps.get(app["name"])
        op = {"op": "app", "app": app}
        says = (("app", app["name"]), ("updated", before is not None))
        return _Plan((op,) if before != app else (), says=says)

    def _grant(self, event: ev.Grant, folded: Folded) -> _Plan:
        member = event.who if event.who in folded.members else folded.member_of(event.who)
        name = normal_name(event.name)
        if member is not None and name not in ("", member):
            raise DefinitionError(
                f"{event.who!r} is member {member!r} already",
                f"another name: pairio service rename SERVICE {member} {name}",
            )
        ops: list[_Op] = []
        greets = ""
        if member is None:
            _check_peer(folded, event.who)
            member, greets = name or free_name("", event.who, folded.members), event.who
            have = folded.members.get(member, ((), ()))[0]
            roles = list(event.roles) if not have else sorted({*have, *event.roles})
            ops.append({"op": "add", "member": member, "key": event.who, "roles": roles})
        else:
            have = folded.members[member][0]
            if set(event.roles) - set(have):
                roles = sorted({*have, *event.roles})
                ops.append({"op": "role", "member": member, "roles": roles})
        if "admin" in event.roles:
            key = event.who if event.who not in folded.members else _only_key(folded, member)
            if key not in folded.admins:
                ops.append(_admins_op((*folded.admins, key), folded.threshold))
        return _Plan(tuple(ops), greets=greets, says=(("member", member),))

    @staticmethod
    def _revoke(event: ev.Revoke, folded: Folded) -> _Plan:
        member = _member(folded, event.who)
        have, keys = folded.members[member]
        is_key = event.who != member and len(keys) > 1
        if event.roles and is_key:
            raise DefinitionError(
                f"roles are those of member {member!r}, who has {len(keys)} keys",
                f"name the member, or leave --roles out to remove the key {event.who}",
            )
        if event.roles and not set(event.roles) & set(have):
            raise DefinitionError(
                f"{member!r} has no role {', '.join(event.roles)}", f"roles: {', '.join(have)}"
            )
        left = [role for role in have if role not in event.roles]
        gone = (event.who,) if is_key else keys
        op: _Op = {"op": "remove", "member": member, **({"key": event.who} if is_key else {})}
        says = (("member", member),)
        if not event.roles or not left:
            _check_left(folded, gone)
            return _Plan((op,), gone, since_unix_ms=event.since_unix_ms, says=says)
        ops: list[_Op] = [{"op": "role", "member": member, "roles": left}]
        if "admin" in event.roles and set(keys) & set(folded.admins):
            _check_left(folded, keys)
            admins = tuple(p for p in folded.admins if p not in keys)
            ops.append(_admins_op(admins, folded.threshold))
        return _Plan(tuple(ops), keys, since_unix_ms=event.since_unix_ms, says=says)

    @staticmethod
    def _set_admins(event: ev.SetAdmins, folded: Folded) -> _Plan:
        """The admins who sign, and the role of the members whose keys they are."""
        admins = tuple(
            _only_key(folded, who) if who in folded.members else who for who in event.admins
        )
        for peer in admins:
            if folded.member_of(peer) is None:
                raise DefinitionError(
                    f"{peer!r} is no member, nor a member's key",
                    "first: pairio service grant SERVICE PEER --roles read",
                )
        ops = [_admins_op(admins, event.threshold)]
        loses: list[str] = []
        for member, (roles, keys) in sorted(folded.members.items()):
            signs = bool(set(keys) & set(admins))
            if signs and "admin" not in roles:
                ops.append({"op": "role", "member": member, "roles": sorted({*roles, "admin"})})
            elif not signs and "admin" in roles:
                left = [role for role in roles if role != "admin"] or ["read"]
                ops.append({"op": "role", "member": member, "roles": left})
                loses += keys
        if (admins, event.threshold) == (folded.admins, folded.threshold):
            ops = ops[1:]
        return _Plan(tuple(ops), tuple(loses))

    @staticmethod
    def _sign_over(chain: Chain) -> _Plan:
        heads = chain.losing_heads()
        if not heads:
            raise DefinitionError("no branch of changes has lost", "nothing is to be signed over")
        op = {"op": "policy", "policy": chain.now.policy}
        return _Plan((op,), over=tuple(heads), says=(("over", heads),))

    def _renew(self, event: ev.RenewProposal, service: str, chain: Chain) -> _Plan:
        """The same ops after the newest change; the old proposal is dropped here."""
        proposals = self._core.membership.proposals
        old: Weighed = proposals.find(service, event.proposal)
        if old.is_newest:
            raise DefinitionError(
                f"proposal {old.change.cid[-10:]} fits the list as it is",
                "sign it: pairio service sign SERVICE ID",
            )
        ops = tuple(old.document["ops"])
        before = replace(chain.now, barred={})
        try:
            place = Place(service, chain.epoch + 1, self._ctx.unix_ms)
            after, _ = apply_ops(before, list(ops), place)
        except DecodeError as error:
            raise DefinitionError(f"it fits the list no more: {error}", "withdraw it") from None
        return _Plan(ops, _losers(before, after), renews=old.change.cid)


def _losers(before: Folded, after: Folded) -> tuple[str, ...]:
    """Return the keys that lose a role."""
    if after.ended:
        return ()
    return tuple(
        key for key in before.peers() if set(before.roles_of(key)) - set(after.roles_of(key))
    )


def _member(folded: Folded, who: str) -> str:
    """Return the member with this name or key."""
    member = who if who in folded.members else folded.member_of(who)
    if member is None:
        known = ", ".join(sorted(folded.members))
        raise DefinitionError(f"no member {who!r} in the service", f"members: {known}")
    return member


def _check_names(app: dict[str, Any]) -> None:
    """Refuse names that jobs could not be submitted by: as in APP/PROCESSOR."""
    for name in (app["name"], *(p["name"] for p in app["processors"])):
        if flaw := name_flaw(name):
            raise DefinitionError(
                f"the name {name!r} {flaw}", "give the app, or its processor, another one"
            )


def _check_peer(folded: Folded, who: str) -> None:
    try:
        public_key_of(who)
    except DecodeError as error:
        known = ", ".join(sorted(folded.members))
        raise DefinitionError(
            f"{who!r} is no member and no peer id: {error}",
            f"members: {known}; another node prints its id: pairio-node status",
        ) from None


def _only_key(folded: Folded, member: str) -> str:
    """Return the one key with which a member may sign as an admin: one person is one admin."""
    keys = folded.members[member][1]
    if len(keys) != 1:
        raise DefinitionError(
            f"member {member!r} has {len(keys)} keys", f"name the one that signs: {', '.join(keys)}"
        )
    return keys[0]


def _admins_op(admins: Iterable[str], threshold: int) -> _Op:
    return {"op": "admins", "admins": list(admins), "threshold": threshold}


def _check_left(folded: Folded, keys: Iterable[str]) -> None:
    """Refuse to leave a service with fewer admins than have to sign."""
    left = [peer for peer in folded.admins if peer not in keys]
    if len(left) < folded.threshold:
        raise DefinitionError(
            f"{len(left)} admins would be left, and {folded.threshold} have to sign",
            "first name others, or a lower threshold: pairio service admins SERVICE --set PEER,..."
            " --threshold N",
        )
