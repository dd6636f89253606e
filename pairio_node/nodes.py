"""The nodes of a service's members, as far as known here: alive, free, running."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pairio_node.node import Node

__all__ = ["Nodes"]

Json = dict[str, Any]


class Nodes:
    """Nodes for clients; may raise `UserError`."""

    def __init__(self, node: "Node") -> None:
        self._node = node

    def all(self, service: str | None) -> list[Json]:
        """Return the nodes of one service, or of all, those of one service together."""
        known = self._node.core.membership.chains
        names = [name for name in self._node.services.named_or_all(service) if name in known]
        return [view for name in names for view in self._of(name)]

    def _of(self, service: str) -> list[Json]:
        core, me = self._node.core, self._node.peer_id
        alive = {entry.peer: entry for entry in core.presence(service)}
        found = []
        folded = core.membership.folded(service)
        for name, (roles, keys) in sorted(folded.members.items()):
            for peer in keys:
                entry = alive.get(peer)
                found.append(
                    {
                        "name": name,
                        "peerId": peer,
                        "serviceName": core.membership.petnames.get(service, service),
                        "roles": list(roles),
                        "isThis": peer == me,
                        "isConnected": peer == me or peer in core.ctx.connected,
                        "isAlive": entry is not None,
                        "computes": entry is not None and entry.compute,
                        "slots": entry.slots if entry else 0,
                        "free": max(0, entry.slots - entry.load) if entry else 0,
                        "running": entry.load if entry else 0,
                        "numCpus": entry.cpu_millicores / 1000 if entry else 0,
                        "memoryGb": entry.memory_mib / 1024 if entry else 0,
                        "numGpus": entry.gpus if entry else 0,
                        "isolation": entry.isolation if entry else None,
                    }
                )
        return found
