"""What the local owner asks for about services: create, consent, names; acts of an admin are in
`admin_commands.py`."""

from typing import TYPE_CHECKING, Any

from pairio_protocol import events as ev
from pairio_protocol.admin_commands import AdminCommands
from pairio_protocol.effects import Fail, Reply
from pairio_protocol.errors import DefinitionError
from pairio_protocol.names import is_alike, name_flaw, normal_name
from pairio_protocol.service import Chain

if TYPE_CHECKING:
    from pairio_protocol.core import NodeCore

__all__ = ["ServiceCommands"]


class ServiceCommands:
    """Local calls that change a service, or what this node thinks of one."""

    def __init__(self, core: "NodeCore") -> None:
        self._core = core
        self._ctx = core.ctx
        self._admin = AdminCommands(core)

    def on_command(self, event: Any) -> None:
        """Do what a local call asks; DefinitionError with the reason."""
        match event:
            case ev.CreateService():
                self._create(event)
            case ev.AcceptService():
                self._accept(event)
            case ev.RenameService():
                self._rename(event)
            case _:
                service, chain = self.find(event.service)
                answer = self._admin.on_command(event, service, chain)
                if answer is not None:
                    self.reply(event.call, answer)

    def tick(self) -> None:
        """Go on with what has waited long enough for other members."""
        for event in self._admin.tick():
            try:
                service, chain = self.find(event.service)
                self.reply(event.call, self._admin.finish(event, service, chain))
            except DefinitionError as error:
                self._ctx.emit(Fail(event.call, str(error), error.hint))

    def deadline_ms(self) -> int | None:
        """When something has waited long enough."""
        return self._admin.deadline_ms()

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
                f"this node takes no part in service {membership.petnames.get(service, name)!r}",
                "join it with a link: pairio join LINK",
            )
        if chain is None:
            raise DefinitionError(
                f"service {membership.petnames.get(service, name)!r} waits for your consent",
                f"pairio service accept {membership.petnames.get(service, name)}",
            )
        return service, chain

    def reply(self, call: int, value: dict[str, Any]) -> None:
        """Answer a call once what it changed is on disk."""
        if self._core.has_pending():
            self._core.disk.after_commit(Reply(call, value))
        else:
            self._ctx.emit(Reply(call, value))

    def _create(self, event: ev.CreateService) -> None:
        name = normal_name(event.name)
        if not name:
            raise DefinitionError("a service needs a name", "pairio service create NAME")
        self._check_free(name)
        service = self._core.membership.create(name, event.nonce)
        self._core.book.changed()
        self.reply(event.call, {"service": service})

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

    def _rename(self, event: ev.RenameService) -> None:
        """Another name for a service on this node; the list has its own."""
        service, _ = self.find(event.service)
        name = normal_name(event.name)
        if flaw := name_flaw(name):
            raise DefinitionError(f"service name {name!r} {flaw}", "use another name")
        self._check_free(name, service)
        self._core.membership.rename(service, name)
        self.reply(event.call, {"service": service})

    def _check_free(self, name: str, service: str = "") -> None:
        """Refuse a name that a service here has, or looks like it. One that has ended gives its
        name up."""
        membership = self._core.membership
        for other, known in list(membership.petnames.items()):
            if other == service or not is_alike(name, known):
                continue
            if other in membership.chains and membership.chains[other].now.ended:
                membership.rename(other, f"{known}~{other[-4:]}")
                continue
            raise DefinitionError(
                f"there is a service {known!r} on this node already", "use another name"
            )
