"""What waits in memory to be written to `block_db`."""

import time
from dataclasses import dataclass, field
from typing import Final

__all__ = ["WAITING_BYTES_MAX", "Carried", "Changes", "joined"]

#: So much may wait in memory for a transaction, in bytes and in rows, and so long while more
#: comes: it is what a killed node has to fetch again.
WAITING_BYTES_MAX: Final = 8 * 2**20
_WAITING_ROWS_MAX: Final = 10_000
_WAITING_S_MAX: Final = 0.1
#: More than this is not carried along in another transaction, but settles before it.
_CARRIED_BYTES_MAX: Final = 256 * 1024
_CARRIED_ROWS_MAX: Final = 200

#: CID, service, bytes: of a block without a service, of the mark of one without bytes.
Carried = tuple[str, str, bytes]


@dataclass
class Changes:
    """Changes that are not on the disk yet. Of a block: first it goes, then it comes. `carried` are
    those that another database has, by CID and service."""

    gone: set[str] = field(default_factory=set)
    blocks: dict[str, tuple[bytes, float]] = field(default_factory=dict)
    used: dict[str, float] = field(default_factory=dict)
    unmarked: set[str] = field(default_factory=set)
    marks: dict[str, set[str]] = field(default_factory=dict)  # services
    carried: set[tuple[str, str]] = field(default_factory=set)
    size_bytes: int = 0
    since_s: float = 0.0

    def matters(self) -> bool:
        """Say whether anything is lost without it but times of use."""
        return bool(self.gone or self.blocks or self.unmarked or self.marks)

    def is_much(self) -> bool:
        """Say whether it is to be written before more comes."""
        counted = (self.gone, self.blocks, self.used, self.unmarked, self.marks)
        rows = sum(map(len, counted))
        return self.size_bytes > WAITING_BYTES_MAX or rows > _WAITING_ROWS_MAX

    def is_late(self) -> bool:
        """Say whether something that matters has waited for long."""
        return self.matters() and time.monotonic() - self.since_s > _WAITING_S_MAX

    def to_carry(self) -> list[Carried] | None:
        """Return what is not carried yet; None when this is not only a few new blocks with their
        marks. (A mark on a block that is elsewhere must not come back without it, and one that was
        taken off not at all.)"""
        if self.gone or self.unmarked or not self.marks.keys() <= self.blocks.keys():
            return None
        rows = len(self.blocks) + len(self.marks)
        if rows > _CARRIED_ROWS_MAX or self.size_bytes > _CARRIED_BYTES_MAX:
            return None
        found = [(cid, "", data) for cid, (data, _) in self.blocks.items()]
        found += [(cid, service, b"") for cid, held in self.marks.items() for service in held]
        return [row for row in found if row[:2] not in self.carried]


def joined(first: Changes, then: Changes) -> Changes:
    """Return changes and those after them as one."""
    blocks = {c: b for c, b in first.blocks.items() if c not in then.gone} | then.blocks
    marks = {c: set(held) for c, held in first.marks.items() if c not in then.unmarked}
    for cid, held in then.marks.items():
        marks.setdefault(cid, set()).update(held)
    return Changes(
        gone=first.gone | then.gone,
        blocks=blocks,
        used={c: u for c, u in first.used.items() if c not in then.gone} | then.used,
        unmarked=first.unmarked | then.unmarked,
        marks=marks,
        carried=first.carried | then.carried,
        size_bytes=sum(len(data) for data, _ in blocks.values()),
        since_s=first.since_s,
    )
