"""How fast the frames of strangers are read: whoever is no member shares the loop with members.

A stranger who sends more is not answered faster: its stream is read more slowly, and what it sends
waits on its side of the connection. Peers that this node asked for something are not slowed.
"""

import trio

__all__ = ["Pace"]

#: Frames that may come at once, and how many a second after that.
BURST = 100
PER_S = 50


class Pace:
    """When the next frame of each stranger is taken; forgotten with its connection."""

    def __init__(self, burst: int = BURST, per_s: int = PER_S) -> None:
        self._burst, self._per_s = burst, per_s
        self._due_s: dict[str, float] = {}

    async def wait(self, peer: str) -> None:
        """Return when a frame of `peer` may be taken."""
        now_s = trio.current_time()
        due_s = max(self._due_s.get(peer, 0.0), now_s - self._burst / self._per_s)
        due_s += 1 / self._per_s
        self._due_s[peer] = due_s
        if due_s > now_s:
            await trio.sleep(due_s - now_s)

    def forget(self, peer: str) -> None:
        """The connection is gone."""
        self._due_s.pop(peer, None)
