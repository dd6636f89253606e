"""A run that a worker has accepted, and what it answers when it accepts none."""

from dataclasses import dataclass, field
from typing import Any

from pairio_protocol.fold import RequestState, Resolution
from pairio_protocol.machines.leases import Lease
from pairio_protocol.messages import Award
from pairio_protocol.records import Resources

__all__ = ["Refusal", "Task", "fits", "less", "more"]

#: Millicores, MiB and GPUs.
_Needs = tuple[int, int, int] | list[int]


@dataclass
class Task:
    """A run that this node has accepted."""

    award: Award
    state: RequestState
    resolution: Resolution
    processor: dict[str, Any]
    bundle: str
    isolation_min: str
    submitter: str
    coordinators: set[str] = field(default_factory=set)
    at_ms: int = 0
    executing: bool = False
    canceled: bool = False
    gives_way: bool = False
    started_unix_ms: int = 0
    salt: str = ""
    #: how far it is, by its own word, in thousandths
    permille: int = 0
    #: of an exclusive run
    lease: Lease | None = None

    @property
    def resources(self) -> Resources:
        """What the run may use."""
        return self.state.record.resources

    @property
    def needs(self) -> tuple[int, int, int]:
        """Millicores, MiB and GPUs."""
        return (self.resources.cpu_millicores, self.resources.memory_mib, self.resources.gpus)


@dataclass
class Refusal:
    """Why an award is declined: what it needs, what there is."""

    reason: str
    needs: str = ""
    has: str = ""


def less(free: _Needs, needs: _Needs) -> list[int]:
    """Return what is left of the free when needs are taken from it."""
    return [left - need for left, need in zip(free, needs, strict=True)]


def more(free: _Needs, needs: _Needs) -> list[int]:
    """Return the free with what was needed given back."""
    return [left + need for left, need in zip(free, needs, strict=True)]


def fits(needs: _Needs, free: _Needs) -> bool:
    """Say whether there is as much as is needed of each."""
    return all(need <= left for need, left in zip(needs, free, strict=True))
