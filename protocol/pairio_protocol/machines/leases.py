"""The lease of an exclusive run, as its worker knows it: never later than its coordinators have it.

    asked (renew, sent at t) --renewed--> confirmed until t + lease
                                              +--EXCLUSIVE_MARGIN_MS before--> over

Where several coordinators gave the run, each has a lease of its own, and the first to run out ends
it: that one may give the run to another node.
"""

from collections.abc import Collection
from dataclasses import dataclass, field

from pairio_protocol.limits import EXCLUSIVE_MARGIN_MS, RENEWALS_OPEN_MAX

__all__ = ["Lease"]


@dataclass
class Lease:
    """When each coordinator's lease ends, on this node's clock; `lost` once the run was ended."""

    ends_ms: dict[str, int] = field(default_factory=dict)
    lost: bool = False
    _asked_ms: dict[int, int] = field(default_factory=dict)
    _number: int = 0

    def ask(self, now_ms: int) -> int:
        """Return the number of a renewal that is asked for now."""
        self._number += 1
        self._asked_ms[self._number] = now_ms
        if len(self._asked_ms) > RENEWALS_OPEN_MAX:
            del self._asked_ms[next(iter(self._asked_ms))]
        return self._number

    def on_renewed(self, peer: str, number: int, lease_ms: int) -> bool:
        """A coordinator renewed it, counted from when it was asked; says whether that is news."""
        asked_ms = self._asked_ms.get(number)
        if asked_ms is None or asked_ms + lease_ms <= self.ends_ms.get(peer, 0):
            return False
        self.ends_ms[peer] = asked_ms + lease_ms
        return True

    def holds(self, coordinators: Collection[str], now_ms: int) -> bool:
        """Say whether all coordinators have confirmed it, and a run may begin."""
        due_ms = self.due_ms(coordinators)
        confirmed = all(peer in self.ends_ms for peer in coordinators)
        return due_ms is not None and confirmed and now_ms < due_ms

    def due_ms(self, coordinators: Collection[str]) -> int | None:
        """Return when the run is to end, None if that is not known or was done."""
        ends = [self.ends_ms[peer] for peer in coordinators if peer in self.ends_ms]
        return min(ends) - EXCLUSIVE_MARGIN_MS if ends and not self.lost else None
