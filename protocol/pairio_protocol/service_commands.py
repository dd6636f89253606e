"""What the local owner asks for about services: create, members, roles, apps, consent."""

from typing import TYPE_CHECKING, Any

from pairio_protocol import events as ev
from pairio_protocol.apps import validate_app
from pairio_protocol.effects import Reply
from pairio_protocol.errors import DefinitionError
from pairio_protocol.limits import CUTS_PER_CHANGE_MAX
from pairio_protocol.service import Chain, Cut

if TYPE_CHECKING:
    from pairio_protocol.core import NodeCore

__all__ = ["ServiceCommands"]


class ServiceCommands:
    """Local calls that change a service, or what this node thinks of one."""

    def __init__(self, core: "NodeCore") -> None:
        self._core = core
        self._ctx = core.ctx

    def on_command(self, event: Any) -> None:
        """Do what a local call asks; DefinitionError with the reason."""
        match event:
            case ev.CreateService():
                self._create(event)
            case ev.AddMember():
                self._add_member(event)
            case ev.InstallApp():
                self._install(event)
            case ev.AcceptService():
                self._accept(event)
            case ev.RemoveMember():
                self._remove_member(event)
            case ev.SetRoles():
                self._set_roles(event)

    def find(self, name: str) -> tuple[str, Chain]:
        """Return a service that is taken up here, by name or id; DefinitionError if it is not."""
        membership = self._core.membership
        service = membership.find(name)
        if service is None:
            known = ", ".join(sorted(membership.petnames[s] for s in membership.taken_up)) or "none"
            raise DefinitionError(f"no service {name!r} on this node", f"services here: {known}")
        chain = membership.active(service)
        if chain is None and service not in membership.offers():
            raise DefinitionError(
                f"this node takes no part in service {name!r}",
                "join it with a link: pairio join LINK",
            )
        if chain is None:
            raise DefinitionError(
                f"service {name!r} waits for your consent",
                f"pairio service accept {name}",
            )
        return service, chain

    def reply(self, call: int, value: dict[str, Any]) -> None:
        """Answer a call once what it changed is on disk."""
        if self._core.has_pending():
            self._core.disk.after_commit(Reply(call, value))
        else:
            self._ctx.emit(Reply(call, value))

    def _create(self, event: ev.CreateService) -> None:
        membership = self._core.membership
        if event.name in membership.petnames.values():
            raise DefinitionError(
                f"there is a service {event.name!r} on this node already", "use another name"
            )
        service = membership.create(event.name, event.nonce)
        self._core.book.changed()
        self.reply(event.call, {"service": service})

    def _add_member(self, event: ev.AddMember) -> None:
        service, chain = self.find(event.service)
        name = event.member or chain.now.member_of(event.peer) or f"node-{event.peer[-6:]}"
        op = {"op": "add", "member": name, "key": event.peer, "roles": list(event.roles)}
        self._core.membership.change(service, [op])
        self._core.intake.on_service_changed(service)
        self._core.membership.hello(event.peer)
        self.reply(event.call, {"service": service, "member": name})

    def _install(self, event: ev.InstallApp) -> None:
        service, chain = self.find(event.service)
        app = validate_app(event.app)
        if chain.now.apps.get(app["name"]) != app:
            self._core.membership.change(service, [{"op": "app", "app": app}])
            self._core.intake.on_service_changed(service)
        self.reply(event.call, {"service": service, "app": app["name"]})

    def _accept(self, event: ev.AcceptService) -> None:
        membership = self._core.membership
        service = membership.find(event.service)
        if service is None or not membership.chains[service].now.member_of(self._ctx.me):
            offers = ", ".join(membership.petnames[s] for s in membership.offers()) or "none"
            raise DefinitionError(f"no offer {event.service!r}", f"offers here: {offers}")
        membership.choose(service, "")
        self._core.own_wishes.remove(f"{service} leave")
        membership.take_up(service)
        self._core.intake.on_service_changed(service)
        self.reply(event.call, {"service": service})

    def _remove_member(self, event: ev.RemoveMember) -> None:
        service, chain = self.find(event.service)
        _, keys = self._member(chain, event.member)
        op: dict[str, Any] = {"op": "remove", "member": event.member}
        if event.peer:
            op["key"], keys = event.peer, (event.peer,)
        cuts = self._core.logs.cuts(service, keys)[-CUTS_PER_CHANGE_MAX:]
        self._core.membership.change(service, [op], cuts)
        self._core.intake.on_service_changed(service)
        self.reply(event.call, {"service": service, "member": event.member})

    def _set_roles(self, event: ev.SetRoles) -> None:
        service, chain = self.find(event.service)
        roles, keys = self._member(chain, event.member)
        op = {"op": "role", "member": event.member, "roles": list(event.roles)}
        cuts: tuple[Cut, ...] = ()
        if set(roles) - set(event.roles):
            cuts = self._core.logs.cuts(service, keys)[-CUTS_PER_CHANGE_MAX:]
        self._core.membership.change(service, [op], cuts)
        self._core.intake.on_service_changed(service)
        self.reply(event.call, {"service": service, "member": event.member})

    @staticmethod
    def _member(chain: Chain, name: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        if name not in chain.now.members:
            known = ", ".join(sorted(chain.now.members))
            raise DefinitionError(f"no member {name!r} in the service", f"members: {known}")
        return chain.now.members[name]
