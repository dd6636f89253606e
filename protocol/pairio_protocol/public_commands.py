"""What the local owner asks for about public services: to make one public, or as a guest of one."""

from typing import TYPE_CHECKING, Any

from pairio_protocol import events as ev
from pairio_protocol.errors import DecodeError, DefinitionError
from pairio_protocol.open_submit import OpenSubmit

if TYPE_CHECKING:
    from pairio_protocol.core import NodeCore
    from pairio_protocol.service_commands import ServiceCommands

__all__ = ["PublicCommands"]


class PublicCommands:
    """Local calls about what strangers may have, and what this node has as one."""

    def __init__(self, core: "NodeCore", services: "ServiceCommands") -> None:
        self._core = core
        self._services = services

    def on_command(self, event: Any) -> bool:
        """Do what a local call asks; False when it is about something else."""
        guests = self._core.guests
        match event:
            case ev.SetPublic():
                self._set_public(event)
            case ev.JoinService() if event.link.kind == "public":
                guests.join(event)
            case ev.Submit() if (service := guests.find(event.service)) is not None:
                guests.submit(event, service)
            case ev.CancelRequests() if guests.find(event.service) is not None:
                guests.cancel(event)
            case ev.LeaveService() if (service := guests.find(event.service)) is not None:
                guests.leave(service)
                self._services.reply(event.call, {"service": service})
            case _:
                return False
        return True

    def _set_public(self, event: ev.SetPublic) -> None:
        """Change that part of the policy; the rest stays."""
        service, chain = self._services.find(event.service)
        policy = {key: value for key, value in chain.now.policy.items() if key != "open_submit"}
        if event.open_submit is not None:
            try:
                policy["open_submit"] = OpenSubmit.parse(event.open_submit).document()
            except DecodeError as error:
                raise DefinitionError(str(error), "see pairio service public --help") from None
        proposal = ""
        if policy != chain.now.policy:
            proposal = self._core.membership.change(service, [{"op": "policy", "policy": policy}])
            self._core.intake.on_service_changed(service)
        self._services.reply(event.call, {"service": service, "proposal": proposal})
