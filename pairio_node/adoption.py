"""What lies beside a running job, so that the next start of the node can take it up.

The card is written before the job starts. A folder is adopted when it has a card and a supervisor
that lives, or an outcome; whatever else lies among the jobs is removed.
"""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pairio_node.runner.supervise import ask_to_end, look, remove_group
from pairio_node.runner.supervisor.runfile import begin
from pairio_protocol.effects import Execute
from pairio_protocol.events import Adopted
from pairio_protocol.records import SourceRead

__all__ = ["JobCard", "find_jobs"]

_BOOT_ID_FILE = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class JobCard:
    """A run as its node began it. `outputs` are (name, base name); `runner` names the isolation
    that it got."""

    service: str
    attempt: str
    request: str
    run: str
    upstream: tuple[str, ...]
    coordinators: tuple[str, ...]
    lease_ms: int
    started_unix_ms: int
    outputs: tuple[tuple[str, str], ...]
    memory_mib: int
    time_ms: int
    runner: str
    #: After a crash of the machine an outcome may be there whose outputs never reached the disk.
    machine_boot: str
    #: CIDs of inputs that it reads from files of the owner, not from copies.
    bound: tuple[str, ...] = ()
    #: The GPUs that it has, by UUID.
    gpus: tuple[str, ...] = ()
    #: What was read of inputs by URL that were fetched whole, as in a result.
    sources: dict[str, dict[str, Any]] = field(default_factory=dict)

    @staticmethod
    def of(
        effect: Execute,
        runner: str,
        bound: tuple[str, ...] = (),
        gpus: tuple[str, ...] = (),
        sources: Mapping[str, SourceRead] = MappingProxyType({}),
    ) -> "JobCard":
        """Return the card of a run that is about to begin."""
        return JobCard(
            service=effect.service,
            attempt=effect.attempt,
            request=effect.request,
            run=effect.run,
            upstream=effect.upstream,
            coordinators=effect.coordinators,
            lease_ms=effect.lease_ms,
            started_unix_ms=effect.started_unix_ms,
            outputs=tuple((o["name"], o["base_name"]) for o in effect.document["outputs"]),
            memory_mib=effect.resources.memory_mib,
            time_ms=effect.resources.time_ms,
            runner=runner,
            machine_boot=_machine_boot(),
            bound=bound,
            gpus=gpus,
            sources={name: source.document() for name, source in sources.items()},
        )

    @property
    def sources_read(self) -> dict[str, SourceRead]:
        """What was read of inputs by URL that were fetched whole."""
        return {name: SourceRead.of(source) for name, source in self.sources.items()}

    @property
    def event(self) -> Adopted:
        """What the core is told."""
        return Adopted(
            self.service,
            self.attempt,
            self.request,
            self.run,
            self.upstream,
            self.coordinators,
            self.lease_ms,
            self.started_unix_ms,
        )

    def write(self, folder: Path) -> None:
        """Put the card into the job's folder. Raises OSError: half a card is none."""
        begin(folder, vars(self))

    @staticmethod
    def of_plain(plain: dict[str, Any] | None) -> "JobCard | None":
        """Return the card that a run file has; None when there is none, or it is no card."""
        try:
            raw = dict(plain or {})
            for name in ("upstream", "coordinators", "bound", "gpus"):
                raw[name] = tuple(raw.get(name, ()))
            raw["outputs"] = tuple((name, base) for name, base in raw["outputs"])
            return JobCard(**raw)
        except (ValueError, KeyError, TypeError):
            return None


def find_jobs(jobs: Path) -> tuple[list[tuple[Path, JobCard]], Sequence[Path]]:
    """Return the folders to adopt with their cards, and those to remove, which were renamed so
    that no new run meets them."""
    adopted: list[tuple[Path, JobCard]] = []
    removed: list[Path] = []
    for folder in sorted(jobs.iterdir()):
        found, lives = look(folder)
        card = JobCard.of_plain(found.card)
        same_boot = card is not None and card.machine_boot == _machine_boot()
        if card is not None and same_boot and (lives or found.outcome is not None):
            adopted.append((folder, card))
            continue
        ask_to_end(folder)
        if not lives:
            remove_group(found.group)
        if folder.name.startswith(".gone-"):
            removed.append(folder)
        else:
            removed.append(folder.rename(jobs / f".gone-{secrets.token_hex(8)}"))
    return adopted, removed


@cache
def _machine_boot() -> str:
    """Return what is another after each start of the machine."""
    return _BOOT_ID_FILE.read_text().strip()
