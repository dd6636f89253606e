"""How fast the frames of strangers are read: whoever is no member shares the loop with members.

A stranger who sends more is not answered faster: its stream is read more slowly, and what it sends
waits on its side of the connection. Peers that this node asked for something are not slowed.
"""

from pairio_node.rate import Rate

__all__ = ["Pace"]

#: Frames that may come at once, and how many a second after that.
BURST = 100
PER_S = 50


class Pace:
    """When the next frame of each stranger is taken; forgotten with its connection."""

    def __init__(self, burst: int = BURST, per_s: int = PER_S) -> None:
        self._burst, self._per_s = burst, per_s
        self._rates: dict[str, Rate] = {}

    async def wait(self, peer: str) -> None:
        """Return when a frame of `peer` may be taken."""
        rate = self._rates.get(peer)
        if rate is None:
            rate = self._rates[peer] = Rate(self._per_s, self._burst)
        await rate.wait(1)

    def forget(self, peer: str) -> None:
        """The connection is gone."""
        self._rates.pop(peer, None)
