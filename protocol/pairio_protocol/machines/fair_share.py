"""Fair share: which waiting run is next when a slot is free.

Submitters take turns by what they have used lately (CPU time, halved every HALF_LIFE_MS) plus what
they run now; within a submitter by priority, then age. One in OLDEST_EVERY starts is strictly the
oldest, so that nobody waits for ever. Guests of public services share one place, behind everybody.
Source: DESIGN section 7.
"""

import math
from typing import Any, Protocol

from pairio_protocol.open_submit import GUESTS

__all__ = ["FairShare"]

HALF_LIFE_MS = 600_000
OLDEST_EVERY = 8
#: What a started run counts before its use is known (CPU milliseconds).
_START_COST_MS = 100.0
_SUBMITTERS_MAX = 4096


class Waiting(Protocol):
    """A run that waits."""

    submitter: str
    at_ms: int
    state: Any


class FairShare:
    """What every submitter has used of this node."""

    def __init__(self) -> None:
        self._used: dict[str, tuple[float, int]] = {}  # submitter -> (CPU ms, when)
        self._starts = 0
        self._now_ms = 0

    def of(self, submitter: str) -> float:
        """Return the decayed use of a submitter in CPU milliseconds."""
        used, at_ms = self._used.get(submitter, (0.0, self._now_ms))
        return used * math.pow(0.5, (self._now_ms - at_ms) / HALF_LIFE_MS)

    def used(self, submitter: str, cpu_ms: int, now_ms: int) -> None:
        """Add what a run has used."""
        self._now_ms = max(self._now_ms, now_ms)
        self._used[submitter] = (self.of(submitter) + cpu_ms, self._now_ms)
        if len(self._used) > _SUBMITTERS_MAX:
            del self._used[min(self._used, key=self.of)]

    def started(self, submitter: str) -> None:
        """A run was started."""
        self._starts += submitter != GUESTS
        self.used(submitter, int(_START_COST_MS), self._now_ms)

    def first(self, waiting: list[Any], now_ms: int) -> Any:
        """Return which of the waiting runs (at least one) is next."""
        self._now_ms = max(self._now_ms, now_ms)
        waiting = [task for task in waiting if task.submitter != GUESTS] or waiting
        if self._starts % OLDEST_EVERY == OLDEST_EVERY - 1:
            return min(waiting, key=lambda t: t.at_ms)
        return min(waiting, key=self._rank)

    def _rank(self, task: Waiting) -> tuple[float, int, int]:
        return (self.of(task.submitter), -task.state.record.priority, task.at_ms)
