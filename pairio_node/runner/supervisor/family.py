"""The children of the launcher: those that it began, and what such a one left when it was killed.

A supervisor ends all that its job has started before it ends itself; a host does the same with its
workers. Killed, it takes along the first process of a sandbox at most. Even that may leave one: of
a bubblewrap that is killed between its fork and its word to its child, the child waits for ever.
What is left becomes the launcher's own child (it is a subreaper), and is ended here.
"""

import os
import signal
import time
from functools import partial

from .processes import children, descendants, send, stop_all

__all__ = ["Family"]

#: What is left may be about to end, and to put its things in order: a supervisor of a warm worker
#: whose host was killed leaves an outcome.
_GRACE_S = 5.0


class Family:
    """Asked to `look` when a child has ended, and after `due_ms`."""

    def __init__(self) -> None:
        self._began: set[int] = set()
        self._left: dict[int, float] = {}  # and when it is to be gone

    def began(self, pid: int) -> None:
        """This one was started, and ends by itself."""
        self._began.add(pid)

    @property
    def due_ms(self) -> int | None:
        """In how long there is something to do; None: when a child ends."""
        if not self._left:
            return None
        return max(0, int((min(self._left.values()) - time.monotonic()) * 1000) + 1)

    def look(self) -> None:
        """Take the ends of children; end what was left long enough ago."""
        self._reap()
        now_s = time.monotonic()
        found = set(children(os.getpid())) - self._began
        self._left = {pid: self._left.get(pid, now_s + _GRACE_S) for pid in found}
        self._kill([pid for pid, ends_s in self._left.items() if ends_s <= now_s])

    def end_left(self) -> None:
        """End what is left now."""
        self._reap()
        self._kill(set(children(os.getpid())) - self._began)

    def _reap(self) -> None:
        while True:
            try:
                pid, _ = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self._began.discard(pid)

    def _kill(self, roots: list[int] | set[int]) -> None:
        """Kill processes and all below them. Each one's end is news, which has them looked at
        again: what got away is among the children then."""
        for root in roots:
            send(stop_all(partial(_tree, root)), signal.SIGKILL)
            self._left[root] = time.monotonic() + _GRACE_S


def _tree(root: int) -> list[int]:
    return [root, *descendants(root)]
