"""What a node's owner lets run here, narrower than what a service allows. Never wider.

Rules are plain data. Those for all services and those for one apply together. The core has no
local time: the shell says which rules' hours are closed (`OwnerHours`).
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

from pairio_protocol.records import Resources

__all__ = ["OwnerRules", "allows_app", "jobs_max", "refusal", "rules_for"]


@dataclass(frozen=True)
class OwnerRules:
    """Rules for one service, by its name or id here, or for all (empty). What is empty or None
    narrows nothing. `apps` are names, or `app/processor`; `submitters` members' names or peer ids;
    resources are for each job; `hours` are words for people."""

    service: str = ""
    apps: tuple[str, ...] = ()
    submitters: tuple[str, ...] = ()
    cpu_millicores: int | None = None
    memory_mib: int | None = None
    gpus: int | None = None
    time_ms: int | None = None
    jobs_max: int | None = None
    hours: str = ""


def rules_for(rules: Iterable[OwnerRules], names: Collection[str]) -> list[OwnerRules]:
    """Return the rules that hold for a service of these names."""
    return [rule for rule in rules if not rule.service or rule.service in names]


def allows_app(rules: Iterable[OwnerRules], app: str) -> bool:
    """Say whether something of an app may run."""
    return all(not r.apps or app in {name.partition("/")[0] for name in r.apps} for r in rules)


def jobs_max(rules: Iterable[OwnerRules]) -> int | None:
    """Return how many jobs may run at once, None without a limit."""
    return min((r.jobs_max for r in rules if r.jobs_max is not None), default=None)


def refusal(
    rules: Iterable[OwnerRules],
    document: dict[str, Any],
    resources: Resources,
    submitters: Collection[str],
) -> tuple[str, str, str] | None:
    """Return (rule, need, have) of the first rule that keeps a job off, None if it may run.
    `submitters` are the names of whoever wants it."""
    processor = f"{document['app']}/{document['processor']}"
    for rule in rules:
        if rule.apps and not {document["app"], processor} & set(rule.apps):
            return ("owner allows apps " + ", ".join(rule.apps), processor, "")
        if rule.submitters and not set(submitters) & set(rule.submitters):
            return ("owner allows submitters " + _few(rule.submitters), min(submitters), "")
        for name, need, have, scale in (
            ("CPUs a job", resources.cpu_millicores, rule.cpu_millicores, 1000),
            ("memory MiB a job", resources.memory_mib, rule.memory_mib, 1),
            ("GPUs a job", resources.gpus, rule.gpus, 1),
            ("seconds a job", resources.time_ms, rule.time_ms, 1000),
        ):
            if have is not None and need > have:
                return (f"owner allows {name}", f"{need / scale:g}", f"{have / scale:g}")
    return None


def _few(names: tuple[str, ...]) -> str:
    """Return names short enough for a message: peer ids by their ends."""
    shown = [name if len(name) <= 40 else f"...{name[-8:]}" for name in names[:8]]
    return ", ".join(shown) + (", ..." if len(names) > 8 else "")
