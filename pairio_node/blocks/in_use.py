"""What work under way counts on: blocks that a running add, fetch or run has put or found here.

    with in_use.working():          everything that a store is asked for or given in here, also in
        ...                         threads and tasks begun in here, stays until a while after

A store notes a block (`note`) whenever it puts one or says that it is here; the collector deletes
none that is noted (`covers`). Both do so under `lock`, so that no block goes between the moment
when work was told of it and the moment when it is noted. Clock: LINGER_S after the end of the work,
time enough for whoever asked for it to say what it is for (a result that counts, a promised copy).
"""

import heapq
import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

__all__ = ["LINGER_S", "InUse"]

#: What work counted on stays so long after it, and while a collection is under way.
LINGER_S = 0.5


class _Work:
    """One piece of work; `ends_s` is when what it noted may go, by time.monotonic."""

    def __init__(self, owner: "InUse") -> None:
        self.owner = owner
        self.cids: set[str] = set()
        self.ends_s = math.inf

    def __lt__(self, other: "_Work") -> bool:
        return self.ends_s < other.ends_s


_current: ContextVar[_Work | None] = ContextVar("pairio_work", default=None)


class InUse:
    """The work under way on one store. Safe to use from any thread."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._live: set[_Work] = set()
        self._ended: list[_Work] = []  # a heap: first whose time is over first
        self._collecting = 0

    @contextmanager
    def working(self, linger_s: float | None = None) -> Iterator[None]:
        """Count on what is put or found here in this block, and for `linger_s` (LINGER_S) after it;
        part of the work that it is in, if any."""
        around = _current.get()
        if around is not None and around.owner is self and around.ends_s == math.inf:
            yield
            return
        work = _Work(self)
        with self.lock:
            self._live.add(work)
        token = _current.set(work)
        try:
            yield
        finally:
            _current.reset(token)
            with self.lock:
                work.ends_s = time.monotonic() + (LINGER_S if linger_s is None else linger_s)
                self._live.discard(work)
                heapq.heappush(self._ended, work)
                self._forget_old()

    def note(self, cid: str) -> None:
        """The work in which this is called, if any, counts on a block. Call with `lock`."""
        work = _current.get()
        if work is not None and work.owner is self:
            work.cids.add(cid)

    def covers(self, cid: str) -> bool:
        """Say whether any work counts on a block. Call with `lock`."""
        return any(cid in work.cids for works in (self._live, self._ended) for work in works)

    def all(self) -> set[str]:
        """Return every block that work counts on."""
        with self.lock:
            self._forget_old()
            return set().union(*(work.cids for work in (*self._live, *self._ended)))

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """While this lasts, what work counted on stays, also after its end: the collection may
        have asked before that work who needs what."""
        with self.lock:
            self._collecting += 1
        try:
            yield
        finally:
            with self.lock:
                self._collecting -= 1
                self._forget_old()

    def _forget_old(self) -> None:
        now_s = time.monotonic()
        while not self._collecting and self._ended and self._ended[0].ends_s <= now_s:
            heapq.heappop(self._ended)
