"""Places for streams of peers at one door: so many for one key, for one member, for one service,
and in all.

A bound for each key alone bounds nobody: a member may have 64 of them, and a stranger as many as he
makes. So a place is one of the peer's member in one of the services that it shares with this node,
and who shares none has no place. What members of one service may have together leaves room for
those of others, since its admins make as many members as they like.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

__all__ = ["Memberships", "Places", "each_its_own"]

#: (service, member) of a peer, for each service in which it has a role.
Memberships = Callable[[str], Sequence[tuple[str, str]]]
#: The part of all places that members of one service may have together.
_SERVICE_PERCENT = 75


def each_its_own(peer: str) -> Sequence[tuple[str, str]]:
    """Take every key for a member of its own."""
    return [("", peer)]


class Places:
    """The places of one door."""

    def __init__(self, memberships: Memberships, *, peer: int, member: int, everybody: int) -> None:
        self._memberships = memberships
        self._peer_max, self._member_max, self._max = peer, member, everybody
        self._service_max = max(1, everybody * _SERVICE_PERCENT // 100)
        self._peers: Counter[str] = Counter()
        self._members: Counter[tuple[str, str]] = Counter()
        self._services: Counter[str] = Counter()

    @property
    def taken(self) -> int:
        """How many are taken."""
        return self._peers.total()

    def of(self, peer: str) -> int:
        """How many a peer has."""
        return self._peers[peer]

    def is_stranger(self, peer: str) -> bool:
        """Say whether a peer shares no service with this node."""
        return not self._memberships(peer)

    @contextmanager
    def place(self, peer: str) -> Iterator[bool]:
        """Have a place for the block, if there is one for this peer; says whether."""
        member = self._free(peer)
        if member is None:
            yield False
            return
        self._count(peer, member, 1)
        try:
            yield True
        finally:
            self._count(peer, member, -1)

    def _count(self, peer: str, member: tuple[str, str], by: int) -> None:
        self._peers[peer] += by
        self._members[member] += by
        self._services[member[0]] += by
        if not self._peers[peer]:
            del self._peers[peer]
        if not self._members[member]:
            del self._members[member]
        if not self._services[member[0]]:
            del self._services[member[0]]

    def _free(self, peer: str) -> tuple[str, str] | None:
        """Return the membership whose place a peer takes."""
        if self._peers[peer] >= self._peer_max or self.taken >= self._max:
            return None
        for service, member in self._memberships(peer):
            of_member, of_service = self._members[service, member], self._services[service]
            if of_member < self._member_max and of_service < self._service_max:
                return service, member
        return None
