"""Who said to hold results of which jobs: what a node of the DHT notes of others, in memory."""

from collections import OrderedDict
from collections.abc import Callable

from pairio_protocol.kad import Contact
from pairio_protocol.limits import (
    KAD_JOBS_PER_PROVIDER_MAX,
    KAD_PROVIDERS_PER_JOB_MAX,
    KAD_RECORD_MS,
    KAD_RECORDS_MAX,
)

__all__ = ["Records"]

#: (service, job)
Key = tuple[str, str]


class Records:
    """Holders by (service, job). Times are seconds of any clock that does not go back."""

    def __init__(self, records_max: int = KAD_RECORDS_MAX) -> None:
        self._records_max = records_max
        self._of: dict[str, OrderedDict[Key, float]] = {}  # by holder: until when, oldest first
        self._holders: dict[Key, dict[str, None]] = {}
        self._addresses: dict[str, tuple[str, ...]] = {}
        self.count = 0

    def note(self, service: str, job: str, holder: Contact, now_s: float) -> bool:
        """Note that a peer holds a result; False when there is no room for it."""
        key, peer = (service, job), holder.peer
        mine = self._of.setdefault(peer, OrderedDict())
        self._addresses[peer] = holder.addresses
        if key not in mine and not self._has_room(key, peer, now_s):
            if not mine:
                self._forget_peer(peer)
            return False
        if key not in mine:
            self.count += 1
            self._holders.setdefault(key, {})[peer] = None
        mine[key] = now_s + KAD_RECORD_MS / 1000
        mine.move_to_end(key)
        return True

    def _has_room(self, key: Key, peer: str, now_s: float) -> bool:
        if len(self._of[peer]) >= KAD_JOBS_PER_PROVIDER_MAX:
            return False
        if len(self._holders.get(key, ())) >= KAD_PROVIDERS_PER_JOB_MAX:
            return False
        if self.count >= self._records_max:
            self.expire(now_s)
        if self.count >= self._records_max:
            greedy = max(self._of, key=lambda p: len(self._of[p]))
            if len(self._of[greedy]) <= len(self._of[peer]) + 1:
                return False
            self._drop(greedy, next(iter(self._of[greedy])))
        return True

    def holders(
        self, service: str, job: str, may_hold: Callable[[str], bool], now_s: float
    ) -> list[Contact]:
        """Return who said to hold a result and still may: who lost his role meanwhile does not."""
        key = (service, job)
        for peer in list(self._holders.get(key, ())):
            if self._of[peer][key] <= now_s or not may_hold(peer):
                self._drop(peer, key)
        return [Contact(p, self._addresses[p]) for p in self._holders.get(key, ())]

    def expire(self, now_s: float) -> None:
        """Forget what was not said again in time."""
        for peer in list(self._of):
            mine = self._of[peer]
            while mine and next(iter(mine.values())) <= now_s:
                self._drop(peer, next(iter(mine)))

    def _drop(self, peer: str, key: Key) -> None:
        del self._of[peer][key]
        del self._holders[key][peer]
        self.count -= 1
        if not self._holders[key]:
            del self._holders[key]
        if not self._of[peer]:
            self._forget_peer(peer)

    def _forget_peer(self, peer: str) -> None:
        self._of.pop(peer, None)
        self._addresses.pop(peer, None)
