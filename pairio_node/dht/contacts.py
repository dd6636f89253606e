"""Members whom this node has met in the DHT, in buckets by their distance from it, as Kademlia's.

Only who has answered is remembered, or who connected and said where it is: what others say of it is
used for one look-up and forgotten. Whoever is no member of a service that is looked in is nobody
there, so that no number of made-up peer ids fills a bucket.
"""

from collections import OrderedDict

from pairio_protocol.kad import distance
from pairio_protocol.limits import KAD_BUCKET_MAX, KAD_FAILED_MS

__all__ = ["Contacts"]

_FAILED_MAX = 4096


class Contacts:
    """Addresses by peer; times are seconds of the node's clock."""

    def __init__(self, me: str) -> None:
        self._me = me
        self._buckets: dict[int, OrderedDict[str, tuple[str, ...]]] = {}
        self._failed_s: dict[str, float] = {}

    def _bucket(self, peer: str) -> OrderedDict[str, tuple[str, ...]]:
        return self._buckets.setdefault(distance(self._me, peer).bit_length(), OrderedDict())

    def note(self, peer: str, addresses: tuple[str, ...]) -> None:
        """Remember a peer that has answered; of a full bucket who failed makes room, else whoever
        is known stays."""
        self._failed_s.pop(peer, None)
        bucket = self._bucket(peer)
        if peer == self._me or not addresses:
            return
        if peer not in bucket and len(bucket) >= KAD_BUCKET_MAX:
            gone = next((p for p in bucket if p in self._failed_s), None)
            if gone is None:
                return
            del bucket[gone]
        bucket[peer] = addresses

    def failed(self, peer: str, now_s: float) -> None:
        """A peer was not to be reached, or did not answer."""
        self._failed_s.pop(peer, None)
        self._failed_s[peer] = now_s
        if len(self._failed_s) > _FAILED_MAX:
            del self._failed_s[next(iter(self._failed_s))]

    def has_failed(self, peer: str, now_s: float) -> bool:
        """Say whether a peer failed a moment ago."""
        failed_s = self._failed_s.get(peer)
        return failed_s is not None and now_s - failed_s < KAD_FAILED_MS / 1000

    def addresses_of(self, peer: str) -> tuple[str, ...]:
        """Return where a peer was met."""
        return self._bucket(peer).get(peer, ())

    def count(self) -> int:
        """Return how many are remembered."""
        return sum(map(len, self._buckets.values()))
