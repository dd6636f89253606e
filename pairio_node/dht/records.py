"""Who said to hold results of which jobs: what a node of the DHT notes of others, in memory."""

from collections import Counter, OrderedDict
from collections.abc import Callable

from pairio_protocol.kad import Contact
from pairio_protocol.limits import (
    KAD_JOBS_PER_PROVIDER_MAX,
    KAD_PROVIDERS_PER_JOB_MAX,
    KAD_PROVIDERS_PER_MEMBER_MAX,
    KAD_RECORD_MS,
    KAD_RECORDS_MAX,
)

__all__ = ["Records"]

#: (service, job)
Key = tuple[str, str]
#: (service, member): whose key a holder is
Owner = tuple[str, str]


class Records:
    """Holders by (service, job). Times are seconds of any clock that does not go back. Places are
    shared out among members, however many keys one has."""

    def __init__(self, records_max: int = KAD_RECORDS_MAX) -> None:
        self._records_max = records_max
        #: by member: (holder, job) until when, oldest first
        self._of: dict[Owner, OrderedDict[tuple[str, str], float]] = {}
        self._holders: dict[Key, dict[str, Owner]] = {}
        self._jobs: Counter[str] = Counter()  # by holder
        self._addresses: dict[str, tuple[str, ...]] = {}

    @property
    def count(self) -> int:
        """How many are noted."""
        return self._jobs.total()

    def note(self, service: str, job: str, holder: Contact, member: str, now_s: float) -> bool:
        """Note that a peer, a key of a member, holds a result; False when there is no room."""
        key, peer, owner = (service, job), holder.peer, (service, member)
        known = self._holders.get(key, {})
        if peer in known and known[peer] != owner:  # it is another member's now
            self._drop(peer, key)
        if peer not in known:
            if not self._has_room(key, peer, owner, now_s):
                return False
            self._jobs[peer] += 1
            self._holders.setdefault(key, {})[peer] = owner
        self._addresses[peer] = holder.addresses
        mine = self._of.setdefault(owner, OrderedDict())
        mine[peer, job] = now_s + KAD_RECORD_MS / 1000
        mine.move_to_end((peer, job))
        return True

    def _has_room(self, key: Key, peer: str, owner: Owner, now_s: float) -> bool:
        owners = self._holders.get(key, {}).values()
        if sum(other == owner for other in owners) >= KAD_PROVIDERS_PER_MEMBER_MAX:
            return False
        if len(owners) >= KAD_PROVIDERS_PER_JOB_MAX:
            return False
        if self._jobs[peer] >= KAD_JOBS_PER_PROVIDER_MAX:
            return False
        if self.count >= self._records_max:
            self.expire(now_s)
        if self.count >= self._records_max:
            greedy = max(self._of, key=lambda other: len(self._of[other]))
            if len(self._of[greedy]) <= len(self._of.get(owner, ())) + 1:
                return False
            self._drop_oldest(greedy)
        return True

    def holders(
        self, service: str, job: str, may_hold: Callable[[str], bool], now_s: float
    ) -> list[Contact]:
        """Return who said to hold a result and still may: who lost his role meanwhile does not."""
        key = (service, job)
        for peer, owner in list(self._holders.get(key, {}).items()):
            if self._of[owner][peer, job] <= now_s or not may_hold(peer):
                self._drop(peer, key)
        return [Contact(p, self._addresses[p]) for p in self._holders.get(key, ())]

    def expire(self, now_s: float) -> None:
        """Forget what was not said again in time."""
        for owner in list(self._of):
            while owner in self._of and next(iter(self._of[owner].values())) <= now_s:
                self._drop_oldest(owner)

    def _drop_oldest(self, owner: Owner) -> None:
        peer, job = next(iter(self._of[owner]))
        self._drop(peer, (owner[0], job))

    def _drop(self, peer: str, key: Key) -> None:
        owner = self._holders[key].pop(peer)
        if not self._holders[key]:
            del self._holders[key]
        del self._of[owner][peer, key[1]]
        if not self._of[owner]:
            del self._of[owner]
        self._jobs[peer] -= 1
        if not self._jobs[peer]:
            del self._jobs[peer], self._addresses[peer]
