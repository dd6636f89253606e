"""What one fetch still wants, and which holder was asked for what. Decides; does no I/O.

A want is open, or claimed by one holder, or by two when the first is late: nobody is waited for
while somebody else could give the block.
"""

from collections.abc import Iterable
from itertools import islice
from typing import Final

__all__ = ["LATE_S", "Wants"]

#: A holder that has not given a block for so long is late: who is idle asks for it, too.
LATE_S: Final = 0.5
_CLAIMS_MAX = 2
_NOTHING: frozenset[str] = frozenset()


class Wants:
    """Blocks that are wanted, in the order in which they are asked for."""

    def __init__(self, late_s: float = LATE_S) -> None:
        self._late_s = late_s
        self._open: dict[str, None] = {}
        self._claims: dict[str, dict[str, float]] = {}  # by block: who was asked, and when
        self._lacking: dict[str, set[str]] = {}  # by holder: what it said it has not

    @property
    def open_count(self) -> int:
        """How many blocks nobody was asked for."""
        return len(self._open)

    @property
    def claimed_count(self) -> int:
        """How many blocks somebody was asked for."""
        return len(self._claims)

    def add(self, cids: Iterable[str]) -> None:
        """Want blocks; those that are wanted already are not asked for twice."""
        for cid in cids:
            if cid not in self._claims:
                self._open[cid] = None

    def is_wanted(self, cid: str) -> bool:
        """Say whether a block has not come yet."""
        return cid in self._open or cid in self._claims

    def claim(self, holder: str, count: int, now_s: float) -> list[str]:
        """Return up to `count` blocks to ask a holder for: open ones first, then one that another
        holder is late with, the last that it was asked for."""
        chosen = self._for(holder, count, now_s)
        for cid in chosen:
            self._open.pop(cid, None)
            self._claims.setdefault(cid, {})[holder] = now_s
        return chosen

    def can_claim(self, holder: str, now_s: float) -> bool:
        """Say whether there is something to ask a holder for."""
        return bool(self._for(holder, 1, now_s))

    def _for(self, holder: str, count: int, now_s: float) -> list[str]:
        lacking = self._lacking.get(holder, _NOTHING)
        offered = (cid for cid in self._open if cid not in lacking)
        return list(islice(offered, count)) or self._late(holder, now_s)

    def _late(self, holder: str, now_s: float) -> list[str]:
        lacking = self._lacking.get(holder, _NOTHING)
        for cid, claims in reversed(self._claims.items()):
            is_late = min(claims.values()) <= now_s - self._late_s
            is_free = len(claims) < _CLAIMS_MAX and holder not in claims
            if is_late and is_free and cid not in lacking:
                return [cid]
        return []

    def is_lacking_all(self, holder: str) -> bool:
        """Say whether blocks are open, and the holder said of each that it has it not."""
        lacking = self._lacking.get(holder, _NOTHING)
        return bool(self._open) and all(cid in lacking for cid in self._open)

    def lacks(self, holder: str, cid: str) -> None:
        """A holder said that it has no such block."""
        if self.is_wanted(cid):
            self._lacking.setdefault(holder, set()).add(cid)
            self._give_up(holder, cid)

    def release(self, holder: str) -> None:
        """A holder is asked no more: what it was asked for is open again."""
        for cid in [cid for cid, claims in self._claims.items() if holder in claims]:
            self._give_up(holder, cid)

    def _give_up(self, holder: str, cid: str) -> None:
        claims = self._claims.get(cid, {})
        claims.pop(holder, None)
        if cid in self._claims and not claims:
            del self._claims[cid]
            self._open[cid] = None

    def arrived(self, cid: str) -> None:
        """A block is here."""
        self._open.pop(cid, None)
        self._claims.pop(cid, None)
        for lacking in self._lacking.values():
            lacking.discard(cid)
