"""What the local owner asks for about becoming and ceasing to be a member."""

from typing import TYPE_CHECKING, Any

from pairio_protocol import events as ev
from pairio_protocol.errors import DefinitionError
from pairio_protocol.limits import CANCELS_PER_RECORD_MAX, CUTS_PER_CHANGE_MAX
from pairio_protocol.own_wishes import OwnWish
from pairio_protocol.records import Cancel
from pairio_protocol.service import Chain, Cut
from pairio_protocol.wishes import asked_for, leaving, op_for

if TYPE_CHECKING:
    from pairio_protocol.core import NodeCore
    from pairio_protocol.service_commands import ServiceCommands

__all__ = ["JoinCommands"]

_LOOK_MS = 50


class JoinCommands:
    """Local calls about invitations, joining, leaving, offers and requests."""

    def __init__(self, core: "NodeCore", services: "ServiceCommands") -> None:
        self._core = core
        self._ctx = core.ctx
        self._services = services
        self._leaving: dict[str, int] = {}  # service -> the call to be answered

    def on_command(self, event: Any) -> bool:
        """Do what a local call asks; False when it is about something else."""
        match event:
            case ev.Invite():
                self._invite(event)
            case ev.Uninvite():
                self._uninvite(event)
            case ev.JoinService():
                self._join(event)
            case ev.LeaveService():
                self._leave(event)
            case ev.DeclineService():
                self._decline(event)
            case ev.ApproveWish():
                self._approve(event)
            case ev.DenyWish():
                self._deny(event)
            case _:
                return False
        return True

    # -- admins ---------------------------------------------------------------------------

    def _change(self, service: str, op: dict[str, Any], cuts: tuple[Cut, ...] = ()) -> str:
        """Sign a change; returns the id of the proposal if further admins have to sign, else ""."""
        if self._core.membership.folded(service).ended:
            raise DefinitionError("the service has ended", "pairio service create NAME")
        proposal = self._core.membership.change(service, [op], cuts)
        if not proposal:
            self._core.intake.on_service_changed(service)
        return proposal

    def _invite(self, event: ev.Invite) -> None:
        service, _ = self._services.find(event.service)
        op = {
            "op": "invite",
            "key": event.key,
            "roles": list(event.roles),
            "uses": event.uses,
            "expires_unix_ms": event.expires_unix_ms,
        }
        proposal = self._change(service, op)
        self._services.reply(event.call, {"service": service, "proposal": proposal})

    def _uninvite(self, event: ev.Uninvite) -> None:
        service, _ = self._services.find(event.service)
        proposal = self._change(service, {"op": "uninvite", "key": event.key})
        self._services.reply(event.call, {"service": service, "proposal": proposal})

    def _approve(self, event: ev.ApproveWish) -> None:
        service, chain = self._services.find(event.service)
        held = self._core.joining.find(service, event.wish)
        op = op_for(held.wish, chain.now)
        if held.wish.kind == "leave":
            proposal = self._change(service, op, held.wish.cuts())
        else:
            if event.roles:
                had = chain.now.members.get(op["member"], ((), ()))[0]
                op["roles"] = sorted({*event.roles, *had})
            proposal = self._change(service, op)
        self._core.membership.hello(held.wish.peer)
        answer: dict[str, Any] = {"service": service, "member": op["member"]}
        answer |= {"peer": held.wish.peer, "proposal": proposal}
        self._services.reply(event.call, {**answer, "roles": op.get("roles", [])})

    def _deny(self, event: ev.DenyWish) -> None:
        service, _ = self._services.find(event.service)
        held = self._core.joining.find(service, event.wish)
        self._core.joining.deny(held)
        self._services.reply(event.call, {"service": service, "peer": held.wish.peer})

    # -- joining and declining ---------------------------------------------------------------

    def _join(self, event: ev.JoinService) -> None:
        link, membership = event.link, self._core.membership
        service = link.service
        wish = asked_for(
            link,
            self._ctx.key,
            event.name or f"node-{self._ctx.me[-6:]}",
            event.roles,
            self._ctx.config.addresses,
            self._ctx.unix_ms,
        )
        membership.choose(service, "")
        self._core.own_wishes.remove(f"{service} leave")
        chain = membership.chains.get(service)
        if chain is not None and chain.now.member_of(self._ctx.me):
            membership.take_up(service)  # it may have been an offer, or left a moment ago
            self._core.intake.on_service_changed(service)
            if set(wish.roles) <= set(chain.now.roles_of(self._ctx.me)):
                self._services.reply(event.call, {"service": service, "already": True})
                return
        own = OwnWish(wish, wish.sign(self._ctx.key), link.name, link.peers)
        self._core.own_wishes.add(own)
        self._services.reply(event.call, {"service": service, "already": False})

    def _decline(self, event: ev.DeclineService) -> None:
        membership = self._core.membership
        service = membership.find(event.service)
        if service is not None and service in membership.taken_up:
            raise DefinitionError(
                f"this node takes part in {event.service!r}",
                f"to take part no more: pairio service leave {event.service}",
            )
        if service is None or service not in membership.offers():
            offers = ", ".join(membership.petnames[s] for s in membership.offers()) or "none"
            raise DefinitionError(f"no offer {event.service!r}", f"offers here: {offers}")
        membership.decline(service)
        self._core.folds.pop(service, None)  # it goes by the list that is gone
        self._services.reply(event.call, {"service": service})

    # -- leaving --------------------------------------------------------------------------

    def _leave(self, event: ev.LeaveService) -> None:
        """Withdraw and end what this node has there; the rest follows when that is sealed."""
        service, chain = self._services.find(event.service)
        self._check_leave(self._core.membership.petnames.get(service, service), chain)
        fold = self._core.fold(service)
        mine = [
            state.id
            for state in fold.requests.values()
            if state.author == self._ctx.me and fold.is_wanted(state, self._ctx.unix_ms)
        ]
        if "submit" in chain.now.roles_of(self._ctx.me):
            for start in range(0, len(mine), CANCELS_PER_RECORD_MAX):
                page = tuple(mine[start : start + CANCELS_PER_RECORD_MAX])
                self._core.append(service, Cancel(page, self._ctx.unix_ms))
        self._core.worker.leave(service)
        self._core.coordinator.forget_service(service)
        self._leaving[service] = event.call
        self.tick()

    def _check_leave(self, name: str, chain: Chain) -> None:
        if chain.now.ended:
            return  # it needs nobody
        admins = [peer for peer in chain.now.admins if peer != self._ctx.me]
        if self._ctx.me in chain.now.admins and len(admins) < chain.now.threshold:
            raise DefinitionError(
                f"{name!r} would have fewer admins than the {chain.now.threshold} that it needs",
                f"make another node an admin first; or end it: pairio service delete {name}",
            )

    def tick(self) -> None:
        """Go once the last records are sealed: they are pushed to whoever is connected."""
        for service in sorted(self._leaving):
            self._core.worker.leave(service)  # what was awarded since
            if not self._core.logs.pending_of(service):
                self._go(service, self._leaving.pop(service))

    def deadline_ms(self) -> int | None:
        """When it is looked at again whether this node can go."""
        if not self._leaving:
            return None
        ready = any(not self._core.logs.pending_of(service) for service in self._leaving)
        return self._ctx.now_ms + (0 if ready else _LOOK_MS)

    def _go(self, service: str, call: int) -> None:
        core, chain = self._core, self._core.membership.chains[service]
        cuts = core.logs.cuts(service, [self._ctx.me])[-CUTS_PER_CHANGE_MAX:]
        for peer in core.membership.connected_members(service):
            for cut in cuts:
                core.logs.push(peer, cut.hash)
        if chain.now.member_of(self._ctx.me):
            core.membership.choose(service, "left")
        if chain.now.member_of(self._ctx.me) and not chain.now.ended:  # else its list stays
            wish = leaving(service, self._ctx.key, chain.epoch, cuts, self._ctx.unix_ms)
            name = core.membership.petnames[service]
            core.own_wishes.remove(f"{service} join")
            core.own_wishes.add(OwnWish(wish, wish.sign(self._ctx.key), name))
        core.joining.forget_service(service)
        core.membership.take_down(service)
        self._services.reply(call, {"service": service})
