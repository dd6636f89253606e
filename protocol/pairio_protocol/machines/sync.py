"""Sync: what two members hold is compared, digest first.

every SYNC_INTERVAL_MS with the next neighbour
    digest equal --> noted: this neighbour knows nothing else (it is told, once)
    differs --> digest of ranges --> frontier of those that differ --> segments (logs.py)
    changes differ --> hello (membership.py)
NEWS_SYNC_MS after news that gossip did not bring with some, after its own with all: the frontier of
    the ranges in which it lies, or a digest if they are many
"""

from pairio_protocol.context import Context
from pairio_protocol.limits import (
    NEWS_FANOUT,
    NEWS_SYNC_MS,
    SYNC_INTERVAL_MS,
    SYNC_SETTLED_MS,
)
from pairio_protocol.machines.heights import News, bounds_of
from pairio_protocol.machines.logs import Logs
from pairio_protocol.machines.membership import Membership
from pairio_protocol.messages import Digest

__all__ = ["Sync"]

#: Ranges whose heights are sent for news; of more, a digest says which differ.
_NEWS_RANGES_MAX = 16


class Sync:
    """Whom this node compares itself with, and when it was last found equal."""

    def __init__(self, ctx: Context, membership: Membership, logs: Logs) -> None:
        self._ctx = ctx
        self._membership = membership
        self._logs = logs
        self._sync_ms = 0
        self._sync_turn = 0
        self._synced_ms: dict[str, int] = {}
        #: (service, peer) -> heights here and there that differ, and since when they are these
        self._differed: dict[tuple[str, str], tuple[bytes, bytes, int]] = {}

    def tick(self) -> None:
        """Compare what is due."""
        if self._ctx.now_ms >= self._sync_ms:
            self._sync_ms = self._ctx.now_ms + SYNC_INTERVAL_MS
            self._sync_one()
        for service, news in list(self._logs.news.items()):
            if self._ctx.now_ms >= news.at_ms + NEWS_SYNC_MS:
                del self._logs.news[service]
                self._tell(service, news)

    def deadline_ms(self) -> int | None:
        """When it compares next; None with nobody to compare with."""
        if not self._ctx.connected or not self._membership.taken_up:
            return None
        due_ms = self._sync_ms
        for news in self._logs.news.values():
            due_ms = min(due_ms, news.at_ms + NEWS_SYNC_MS)
        return due_ms

    def synced_ms(self, service: str) -> int | None:
        """Return when a neighbour was last found to know nothing else; None without neighbours."""
        if not self._membership.connected_members(service):
            return None
        return self._synced_ms.get(service, -1)

    def _have_settled(self, peer: str, message: Digest) -> bool:
        """Say whether heights here and there have not moved for a while."""
        now_ms, mine = self._ctx.now_ms, self._logs.digest(message.service)
        known = self._differed.get((message.service, peer))
        if known is None or known[:2] != (mine, message.digest):
            known = self._differed[message.service, peer] = (mine, message.digest, now_ms)
        return now_ms - known[2] >= SYNC_SETTLED_MS

    def on_peer_down(self, peer: str) -> None:
        """What was on its way is lost: compared with this neighbour is nothing."""
        for key in [k for k in self._differed if k[1] == peer]:
            del self._differed[key]

    def _sync_one(self) -> None:
        """Begin a round of sync with the next neighbour of every service."""
        for service in sorted(self._membership.taken_up):
            for peer in self._next(service, 1):
                self.send_digest(peer, service)

    def _next(self, service: str, count: int) -> list[str]:
        """Return the next few neighbours in turn."""
        peers = self._membership.connected_members(service)
        first = self._sync_turn + 1
        count = min(count, len(peers))
        self._sync_turn += count
        return [peers[turn % len(peers)] for turn in range(first, first + count)]

    def _tell(self, service: str, news: News) -> None:
        """Its author tells everybody: a rumour that each passes on to a few misses some."""
        if news.own:
            for peer in self._membership.connected_members(service):
                self._compare(peer, service, news.own)
        if news.others:
            for peer in self._next(service, NEWS_FANOUT):
                self._compare(peer, service, news.others)

    def _compare(self, peer: str, service: str, ranges: set[int]) -> None:
        if len(ranges) > _NEWS_RANGES_MAX:
            self.send_digest(peer, service)
            return
        for bounds in bounds_of(ranges):
            self._logs.send_frontier(peer, service, reply=False, bounds=bounds)

    def send_digest(self, peer: str, service: str) -> None:
        """Begin a round of sync with a member."""
        self._logs.send_digest(peer, service, self._membership.chains[service].digest)

    def on_digest(self, peer: str, message: Digest) -> None:
        """Changes first, then segments; equal ones are noted: this neighbour knows nothing else.

        Neither does one whose heights have differed from those here for a while and are the same,
        although each was told: what is left are logs that one of the two has dropped.
        """
        service = message.service
        if message.changes != self._membership.chains[service].digest:
            self._membership.hello(peer)
        elif self._have_settled(peer, message):
            self._synced_ms[service] = self._ctx.now_ms
        if self._logs.is_same(message):
            if self._ctx.now_ms - self._synced_ms.get(service, -1) > NEWS_SYNC_MS:
                self._synced_ms[service] = self._ctx.now_ms
                self.send_digest(peer, service)  # so that it knows as well
        else:
            changes = self._membership.chains[service].digest
            self._logs.answer_digest(peer, message, changes)
