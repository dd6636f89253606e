"""The facade's part about becoming and ceasing to be a member: links, wishes, offers, leaving."""

import io
import secrets
from typing import TYPE_CHECKING, Any

import trio

from pairio_node.errors import NotFoundError, UserError, as_user_errors
from pairio_node.service_views import waiting_view
from pairio_protocol import events as ev
from pairio_protocol.allowlist import Folded, parse_roles
from pairio_protocol.errors import DecodeError
from pairio_protocol.joining import Held
from pairio_protocol.limits import INVITATION_USES_MAX, LINK_PEERS_MAX
from pairio_protocol.links import Link, LinkPeer
from pairio_protocol.own_wishes import OwnWish
from pairio_protocol.proofs import DeviceGrant, why_not
from pairio_protocol.signing import SigningKey

if TYPE_CHECKING:
    from pairio_node.node import Node

__all__ = ["Joins", "qr_text"]

#: Addresses in a link: of the inviter, and of each further member. Few, so that it stays short.
_OWN_ADDRESSES, _OTHER_ADDRESSES = 3, 2
#: A link that is expired for so long by this node's clock is not tried.
_CLOCKS_DIFFER_MS = 10 * 60 * 1000
#: Who leaves waits so long to say whether an admin's node has taken it off the list.
_LEAVE_S = 1.0

#: code -> (what is so, what to do). The codes are those of `wish_answer`.
_WORDS = {
    "": (
        "no member of the link has answered yet",
        "it goes on in the background: leave this node running, and see `pairio-node status`;"
        " whoever made the link can see with `pairio-node doctor` whether others reach that node",
    ),
    "waits_admin": (
        "a member has it and passes it on as soon as an admin is there",
        "it goes on in the background; or ask an admin to start his node",
    ),
    "waits_approval": (
        "an admin is to say yes",
        "it goes on in the background; he sees it with `pairio service requests`",
    ),
    "unknown_invitation": (
        "the members reached so far do not know this invitation yet",
        "it goes on in the background until the inviter is reached",
    ),
    "unknown_member": (
        "the members reached so far do not know who made the link",
        "it goes on in the background until they hear of him",
    ),
    "lost_in_a_fork": (
        "another admin changed the list at the same moment; it is asked for again",
        "nothing to do: it goes on in the background",
    ),
    "expired": ("the invitation has expired", "ask for a new one: pairio service invite"),
    "used_up": (
        "the invitation was used as often as it may be",
        "ask for a new one: pairio service invite",
    ),
    "used_before": (
        "this node was let in by this invitation before, and has left since",
        "ask for a new one: pairio service invite",
    ),
    "withdrawn": (
        "the invitation was withdrawn",
        "ask the one who sent it whether he meant it, and for a new one",
    ),
    "removed": (
        "the admins removed this node after the invitation was made",
        "ask an admin for a new invitation",
    ),
    "lessened": (
        "the admins took roles from this node after the invitation was made",
        "ask an admin for a new invitation",
    ),
    "roles": (
        "the invitation does not give the roles that were asked for",
        "join without --roles to get what it gives, or ask for another invitation",
    ),
    "other_member": (
        "this node belongs to another member of the service already",
        "leave the service first: pairio service leave",
    ),
    "bad_proof": (
        "the link's signature does not fit this service",
        "ask for a new link; this one was changed or made wrongly",
    ),
    "denied": ("an admin has said no", "ask him why"),
    "ended": ("the service was ended by its admins", "there is nothing left to join"),
    "stale": ("it was asked for too long ago", "join with the link again"),
    "full": ("too many wait there already", "try again later"),
    "unknown_service": (
        "the node that made the link is in no such service (any more)",
        "ask for a new link",
    ),
}


def words_for(code: str) -> tuple[str, str]:
    """Return what a code means, and what to do."""
    unknown = (f"refused: {code}", "ask the one who sent the link")
    return _WORDS.get(code, unknown)


class Joins:
    """What the API asks about joining and leaving; every method may raise `UserError`."""

    def __init__(self, node: "Node") -> None:
        self._node = node

    # -- making links ---------------------------------------------------------------------

    async def invite(
        self, service: str, roles: list[str], uses: int, expires_s: int, approve: bool
    ) -> dict[str, Any]:
        """Make a link. With `approve` it holds no token: whoever joins waits for an admin."""
        found = self._node.services.id_of(service)
        with as_user_errors():
            parsed = parse_roles(roles)
        expires = self._node.clock.unix_ms() + expires_s * 1000
        if approve:
            link = self._link("request", found, roles=parsed)
            return self._made(link, 0)
        if not 1 <= uses <= INVITATION_USES_MAX:
            raise UserError(f"uses is {uses}", hint=f"use 1 to {INVITATION_USES_MAX}")
        seed = secrets.token_bytes(32)
        key = SigningKey(seed).peer
        answer = await self._node.driver.call(
            lambda call: ev.Invite(call, found, key, parsed, uses, expires)
        )
        link = self._link("join", found, seed=seed, roles=parsed, expires_unix_ms=expires)
        return {**self._made(link, uses), **self._outcome(answer)}

    def link_device(self, service: str, expires_s: int) -> dict[str, Any]:
        """Make a link for one further device of this node's member."""
        found = self._node.services.id_of(service)
        folded = self._node.core.membership.folded(found)
        roles = folded.roles_of(self._node.peer_id)
        if not roles:
            raise UserError(
                f"this node is no member of {service!r}", hint="link a device on a member's node"
            )
        seed = secrets.token_bytes(32)
        expires = self._node.clock.unix_ms() + expires_s * 1000
        grant = DeviceGrant.sign(self._node.home.key(), found, SigningKey(seed).peer, expires)
        link = self._link(
            "device",
            found,
            seed=seed,
            roles=roles,
            expires_unix_ms=expires,
            by=self._node.peer_id,
            grant=grant.signature,
        )
        return self._made(link, 1)

    def _link(self, kind: str, service: str, **fields: Any) -> Link:
        """Return a link with this node's addresses and those of some connected members."""
        core = self._node.core
        peers = [LinkPeer(self._node.peer_id, self._node.transport.addresses()[:_OWN_ADDRESSES])]
        admins = core.membership.folded(service).admins
        members = core.membership.connected_members(service)
        for peer in sorted(members, key=lambda p: p not in admins):
            said = core.addresses_of(service, peer) or core.ctx.connected[peer]
            addresses = said[:_OTHER_ADDRESSES]
            if addresses and len(peers) < LINK_PEERS_MAX:
                peers.append(LinkPeer(peer, addresses))
        name = core.membership.folded(service).name
        return Link(kind, service, name, tuple(peers), **fields)

    def _made(self, link: Link, uses: int) -> dict[str, Any]:
        text = link.encode()
        return {
            "link": text,
            "words": link.phrase(),
            "qr": qr_text(text),
            "serviceName": self._node.core.membership.petnames[link.service],
            "serviceId": link.service,
            "roles": list(link.roles),
            "uses": uses,
            "expiresUnixMs": link.expires_unix_ms or None,
            "needsApproval": link.kind == "request",
            "proposal": None,
        }

    def _outcome(self, answer: dict[str, Any]) -> dict[str, Any]:
        """Return whether an act has changed the list, or what waits for further admins."""
        waiting = waiting_view(self._node.core, answer["service"], answer["proposal"])
        return {"changed": not answer["proposal"], "proposal": waiting}

    def invitations(self, service: str) -> list[dict[str, Any]]:
        """Return the invitations of a service, dead ones too."""
        folded = self._node.core.membership.folded(self._node.services.id_of(service))
        now = self._node.clock.unix_ms()
        return [
            {
                "key": key,
                "roles": entry["roles"],
                "uses": entry["uses"],
                "used": entry["used"],
                "expiresUnixMs": entry["expires_unix_ms"],
                "state": why_not(entry, now) or "open",
            }
            for key, entry in folded.invitations.items()
        ]

    async def uninvite(self, service: str, which: str) -> dict[str, Any]:
        """Withdraw an invitation, named by its link, its key, or the end of that."""
        found = self._node.services.id_of(service)
        folded = self._node.core.membership.folded(found)
        key = _named(which, folded)
        if key not in folded.invitations:
            known = ", ".join(k[-10:] for k in folded.invitations) or "none"
            raise NotFoundError(f"no invitation {which[:80]!r}", hint=f"invitations: {known}")
        answer = await self._node.driver.call(lambda call: ev.Uninvite(call, found, key))
        return {"key": key, **self._outcome(answer)}

    # -- joining --------------------------------------------------------------------------

    async def join(
        self, text: str, name: str | None, roles: list[str] | None, wait_s: float
    ) -> dict[str, Any]:
        """Join with a link; returns how far it came within `wait_s`. It goes on after that."""
        try:
            link = Link.decode(text)
        except DecodeError as error:
            raise UserError(
                str(error), hint="copy it whole: pairio service invite prints it"
            ) from None
        expired = link.expires_unix_ms and (
            self._node.clock.unix_ms() > link.expires_unix_ms + _CLOCKS_DIFFER_MS
        )
        if expired:
            raise UserError(*_WORDS["expired"][:1], hint=_WORDS["expired"][1], code="expired")
        with as_user_errors():
            parsed = parse_roles(roles) if roles else ()
        answer = await self._node.driver.call(
            lambda call: ev.JoinService(call, link, name or "", parsed)
        )
        found = await self.joined(answer["service"], wait_s)
        return {**found, "words": link.phrase(), "already": answer["already"]}

    async def joined(self, service: str, wait_s: float) -> dict[str, Any]:
        """Return how far joining a service has come, when that is decided or after `wait_s`.

        Raises:
            UserError: refused; nothing goes on in the background.
        """
        if service in self._node.core.guests.services:
            return await self._node.public.joined(service, wait_s)
        with trio.move_on_after(wait_s):
            while self._is_waiting(service):
                await self._node.changed()
        own = self._node.core.own_wishes.get(service)
        if own is not None and own.state == "refused":
            message, hint = words_for(own.code)
            where = own.service_name or service
            raise UserError(f"not joined {where!r}: {message}", hint=hint, code=own.code)
        if own is not None and own.state == "waiting":
            return self._waiting_view(own)
        return self._joined_view(service)

    def _is_waiting(self, service: str) -> bool:
        own = self._node.core.own_wishes.get(service)
        return own is not None and own.state == "waiting"

    def all(self) -> list[dict[str, Any]]:
        """Return what this node asked for and has no answer to yet, or a refusal."""
        return [
            {**self._waiting_view(own), "state": own.state}
            for own in self._node.core.own_wishes.all.values()
            if own.state != "done"
        ]

    @staticmethod
    def _waiting_view(own: OwnWish) -> dict[str, Any]:
        message, hint = words_for(own.code)
        return {
            "state": "waiting",
            "kind": own.wish.kind,
            "serviceId": own.wish.service,
            "serviceName": own.service_name,
            "code": own.code,
            "message": message,
            "hint": hint,
        }

    def _joined_view(self, service: str) -> dict[str, Any]:
        core = self._node.core
        folded = core.membership.folded(service)
        roles = folded.roles_of(self._node.peer_id)
        note = None
        if "compute" in roles and not self._node.config.compute:
            note = "it has the role compute, but was started with --no-compute: it runs no jobs"
        return {
            "state": "joined",
            "serviceId": service,
            "serviceName": core.membership.petnames[service],
            "member": folded.member_of(self._node.peer_id),
            "roles": list(roles),
            "note": note,
        }

    # -- leaving, declining ---------------------------------------------------------------

    async def leave(self, service: str) -> dict[str, Any]:
        """Take part no more; the admins are told now or when one is met."""
        found = self._node.services.id_of(service)
        await self._node.driver.call(lambda call: ev.LeaveService(call, found))
        with trio.move_on_after(_LEAVE_S):
            while self._node.core.own_wishes.get(found, "leave") is not None:
                await self._node.changed()
        told = self._node.core.own_wishes.get(found, "leave") is None
        return {"serviceId": found, "serviceName": service, "offTheList": told}

    async def decline(self, name: str) -> dict[str, Any]:
        """Want no part in an offered service; it is not offered again."""
        answer = await self._node.driver.call(lambda call: ev.DeclineService(call, name))
        return {"serviceId": answer["service"], "serviceName": name}

    # -- requests ---------------------------------------------------------------------------

    def requests(self, service: str) -> list[dict[str, Any]]:
        """Return what waits for an admin's word."""
        found = self._node.services.id_of(service)
        return [_held_view(held) for held in self._node.core.joining.waiting(found)]

    async def approve(self, service: str, request: str, roles: list[str] | None) -> dict[str, Any]:
        """Grant a request; without roles: those that it asks for."""
        found = self._node.services.id_of(service)
        with as_user_errors():
            parsed = parse_roles(roles) if roles else ()
        answer = await self._node.driver.call(
            lambda call: ev.ApproveWish(call, found, request, parsed)
        )
        said = {"member": answer["member"], "peerId": answer["peer"], "roles": answer["roles"]}
        return {**said, **self._outcome(answer)}

    async def deny(self, service: str, request: str) -> dict[str, Any]:
        """Refuse a request."""
        found = self._node.services.id_of(service)
        answer = await self._node.driver.call(lambda call: ev.DenyWish(call, found, request))
        return {"peerId": answer["peer"]}


def _held_view(held: Held) -> dict[str, Any]:
    wish = held.wish
    return {
        "id": held.id,
        "kind": wish.kind,
        "peerId": wish.peer,
        "name": wish.name if wish.name.isprintable() else "",
        "roles": list(wish.roles),
        "addresses": [a for a in wish.addresses if a.isprintable()],
        "sinceUnixMs": held.at_unix_ms,
    }


def _named(which: str, folded: Folded) -> str:
    """Return the key of the invitation that a person names."""
    if which.startswith("pairio:"):
        try:
            return SigningKey(Link.decode(which).seed).peer
        except (DecodeError, ValueError) as error:
            hint = "name it by its key: pairio service invitations"
            raise UserError(str(error), hint=hint) from None
    ends = [key for key in folded.invitations if which and key.endswith(which)]
    return ends[0] if len(ends) == 1 else which


def qr_text(text: str) -> str:
    """Return a QR code for a terminal, two rows of modules to a line."""
    import segno  # when one is asked for: nothing else needs it

    out = io.StringIO()
    segno.make(text, error="l", micro=False).terminal(out, compact=True, border=2)
    return out.getvalue()
