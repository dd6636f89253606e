"""Deadlines: keys that are due at some time, without ever walking through all of them."""

import heapq
from collections.abc import Hashable
from typing import Generic, TypeVar

__all__ = ["Deadlines", "earliest_ms"]

K = TypeVar("K", bound=Hashable)


def earliest_ms(*deadlines: int | None) -> int | None:
    """Return the earliest of some deadlines, as far as there are any."""
    found: int | None = None
    for at_ms in deadlines:
        if at_ms is not None and (found is None or at_ms < found):
            found = at_ms
    return found


class Deadlines(Generic[K]):
    """One deadline for each key. Setting, dropping and asking cost O(log n), amortised.

    A deadline that is put off stays in the heap at its old place, and moves when that comes up.
    """

    def __init__(self) -> None:
        self._at_ms: dict[K, int] = {}
        self._heap: list[tuple[int, int, K]] = []
        self._number = 0  # equal times come in the order in which they were set

    def __len__(self) -> int:
        return len(self._at_ms)

    def set(self, key: K, at_ms: int) -> None:
        """Let `key` be due at `at_ms`, whatever it was before."""
        known = self._at_ms.get(key)
        self._at_ms[key] = at_ms
        if known is None or at_ms < known:
            self._push(key, at_ms)

    def drop(self, key: K) -> None:
        """Forget `key`; fine when it is not here."""
        self._at_ms.pop(key, None)

    def due(self, now_ms: int) -> list[K]:
        """Return the keys that are due by now, earliest first, and forget them."""
        found: list[K] = []
        while (at_ms := self.next_ms()) is not None and at_ms <= now_ms:
            _, _, key = heapq.heappop(self._heap)
            del self._at_ms[key]
            found.append(key)
        return found

    def next_ms(self) -> int | None:
        """Return the earliest deadline; None when there is none."""
        while self._heap:
            at_ms, _, key = self._heap[0]
            real_ms = self._at_ms.get(key)
            if real_ms == at_ms:
                return at_ms
            heapq.heappop(self._heap)
            if real_ms is not None and real_ms > at_ms:
                self._push(key, real_ms)
        return None

    def _push(self, key: K, at_ms: int) -> None:
        self._number += 1
        heapq.heappush(self._heap, (at_ms, self._number, key))
        if len(self._heap) > 2 * len(self._at_ms) + 64:  # dropped ones have piled up
            self._heap = [(at, n, k) for n, (k, at) in enumerate(self._at_ms.items())]
            heapq.heapify(self._heap)
