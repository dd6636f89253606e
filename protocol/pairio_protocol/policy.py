"""Pure choices: who fits, in what order, and why somebody does not."""

from typing import Any

from pairio_protocol.allowlist import Folded
from pairio_protocol.ids import rendezvous
from pairio_protocol.messages import Presence
from pairio_protocol.records import ISOLATIONS, Request, Resources

__all__ = [
    "CONTAINER_ISOLATION",
    "ISOLATIONS",
    "isolation_needed",
    "isolation_stated",
    "misfit",
    "needs_container",
    "rank",
]

#: What holds in a container of any node that says it has them.
CONTAINER_ISOLATION = "medium"


def isolation_stated(request: Request, folded: Folded) -> str:
    """Return the isolation that a request or else its service's policy asks for; empty: neither."""
    return request.isolation_min or str(folded.policy.get("isolation_min", ""))


def isolation_needed(request: Request, folded: Folded) -> str:
    """Return the isolation that a request asks for; else the service's policy, else medium."""
    return isolation_stated(request, folded) or "medium"


def needs_container(folded: Folded, document: dict[str, Any]) -> bool:
    """Say whether a job's processor, as the list has it now, runs in a container."""
    processors = folded.apps.get(document["app"], {}).get("processors", [])
    return any("container" in p for p in processors if p["name"] == document["processor"])


def misfit(
    entry: Presence,
    resources: Resources,
    isolation_min: str,
    targets: tuple[str, ...],
    network_for: str = "",
) -> tuple[str, str, str] | None:
    """Return (rule, need, have) of the first rule that keeps a run off a node, None if it fits.
    `network_for` is the app of a run that needs the machine's network.

    `isolation_min` of "none" is met by everybody; a node that may run an app without a sandbox
    says so by accepting the award.
    """
    if not entry.compute:
        return ("compute", "a node that computes", "one that does not, or not at this hour")
    if targets and entry.peer not in targets:
        return ("targets", ", ".join(t[-6:] for t in targets), entry.peer[-6:])
    if network_for and not {network_for, "*"} & set(entry.networks):
        return ("network", "full", "owner allows " + (", ".join(entry.networks) or "none"))
    for name, need, have in (
        ("CPUs", resources.cpu_millicores, entry.cpu_millicores),
        ("memory MiB", resources.memory_mib, entry.memory_mib),
        ("GPUs", resources.gpus, entry.gpus),
    ):
        if need > have:
            scale = 1000 if name == "CPUs" else 1
            return (name, f"{need / scale:g}", f"{have / scale:g}")
    return None


def rank(run: str, entries: list[Presence]) -> list[Presence]:
    """Return entries in the order in which they are awarded: free first, then rendezvous."""
    by_weight = sorted(entries, key=lambda e: rendezvous(run, e.peer), reverse=True)
    return sorted(by_weight, key=lambda e: e.load >= e.slots)
