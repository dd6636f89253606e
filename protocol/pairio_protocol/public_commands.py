"""What the local owner asks for about public services: to let strangers submit, to let anybody
read results, or as a guest of one."""

from typing import TYPE_CHECKING, Any

from pairio_protocol import events as ev
from pairio_protocol.allowlist import PUBLIC_RESULTS
from pairio_protocol.errors import DecodeError, DefinitionError
from pairio_protocol.open_submit import OpenSubmit
from pairio_protocol.service import Chain

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
            case ev.SetResults():
                self._set_results(event)
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

    def _set_results(self, event: ev.SetResults) -> None:
        """Change that part of the policy; the rest stays."""
        service, chain = self._services.find(event.service)
        policy = {key: value for key, value in chain.now.policy.items() if key != "results"}
        if event.is_public:
            policy["results"] = PUBLIC_RESULTS
        self._set_policy(event.call, service, chain, policy)

    def _set_policy(self, call: int, service: str, chain: Chain, policy: dict[str, Any]) -> None:
        is_new = policy != chain.now.policy
        proposal = ""
        if is_new:
            proposal = self._core.membership.change(service, [{"op": "policy", "policy": policy}])
            self._core.intake.on_service_changed(service)
        else:
            self._core.membership.check_admin(service)
        changed = is_new and not proposal
        answer = {"service": service, "proposal": proposal, "changed": changed}
        self._services.reply(call, answer)

    def _set_public(self, event: ev.SetPublic) -> None:
        """Change that part of the policy; the rest stays."""
        service, chain = self._services.find(event.service)
        policy = {key: value for key, value in chain.now.policy.items() if key != "open_submit"}
        if event.open_submit is not None:
            try:
                policy["open_submit"] = OpenSubmit.parse(event.open_submit).document()
            except DecodeError as error:
                raise DefinitionError(str(error), "see pairio service public --help") from None
        self._set_policy(event.call, service, chain, policy)
