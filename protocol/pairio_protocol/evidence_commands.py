"""Local calls about results that others made: looking one up by its id, importing one from a file.

Nothing that comes in a file counts for having been in it: changes, proofs of forks and segments are
checked as if a peer had sent them.
"""

from typing import TYPE_CHECKING, Any

from pairio_protocol import events as ev
from pairio_protocol.messages import Changes, Forks
from pairio_protocol.service_commands import ServiceCommands

if TYPE_CHECKING:
    from pairio_protocol.core import NodeCore

__all__ = ["EvidenceCommands"]


class EvidenceCommands:
    """Answers `LookFor` and `ImportEvidence`."""

    def __init__(self, core: "NodeCore", services: ServiceCommands) -> None:
        self._core = core
        self._services = services

    def on_command(self, event: Any) -> bool:
        """Do what a local call asks, if it is one of these; DefinitionError with the reason."""
        match event:
            case ev.LookFor():
                service, _ = self._services.find(event.service)
                if not self._core.lookups.ask_first(event, service, event.job):
                    self._services.reply(event.call, {"service": service})
            case ev.ImportEvidence():
                self._import(event)
            case _:
                return False
        return True

    def _import(self, event: ev.ImportEvidence) -> None:
        """Take what counts; answer with why other segments do not, by their place in the event."""
        service, chain = self._services.find(event.service)
        me = self._core.ctx.me
        if event.changes and self._core.membership.on_changes(
            me, Changes(service, event.changes, more=False)
        ):
            self._core.intake.on_service_changed(service)
        if event.forks and self._core.logs.on_forks(me, Forks(service, event.forks), chain):
            self._core.intake.refold(service)
        refused = {}
        for number, data in enumerate(event.segments):
            why_not = self._core.intake.import_segment(data)
            if why_not:
                refused[str(number)] = why_not
        self._services.reply(event.call, {"service": service, "refused": refused})
