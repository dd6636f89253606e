"""Sync: what two members hold is compared, digest first.

every SYNC_INTERVAL_MS with the next neighbour; NEWS_SYNC_MS after news with some, or with all
    digest equal --> noted: this neighbour knows nothing else (it is told, once)
    differs --> frontier --> segments (logs.py); changes differ --> hello (membership.py)
"""

from pairio_protocol.context import Context
from pairio_protocol.limits import CONNECTIONS_MAX, NEWS_FANOUT, NEWS_SYNC_MS, SYNC_INTERVAL_MS
from pairio_protocol.machines.logs import Logs
from pairio_protocol.machines.membership import Membership
from pairio_protocol.messages import Digest

__all__ = ["Sync"]


class Sync:
    """Whom this node compares itself with, and when it was last found equal."""

    def __init__(self, ctx: Context, membership: Membership, logs: Logs) -> None:
        self._ctx = ctx
        self._membership = membership
        self._logs = logs
        self._sync_ms = 0
        self._sync_turn = 0
        self._synced_ms: dict[str, int] = {}

    def tick(self) -> None:
        """Compare what is due."""
        if self._ctx.now_ms >= self._sync_ms:
            self._sync_ms = self._ctx.now_ms + SYNC_INTERVAL_MS
            self._sync_one()
        for service, at_ms in list(self._logs.news.items()):
            if self._ctx.now_ms >= at_ms + NEWS_SYNC_MS:
                del self._logs.news[service]
                # Its author tells everybody: a rumour that each passes on to a few misses some.
                own = service in self._logs.own_news
                self._logs.own_news.discard(service)
                self._sync_some(service, CONNECTIONS_MAX if own else NEWS_FANOUT)

    def deadline_ms(self) -> int | None:
        """When it compares next; None with nobody to compare with."""
        if not self._ctx.connected or not self._membership.taken_up:
            return None
        news_ms = [at_ms + NEWS_SYNC_MS for at_ms in self._logs.news.values()]
        return min([self._sync_ms, *news_ms])

    def synced_ms(self, service: str) -> int | None:
        """Return when a neighbour was last found to know nothing else; None without neighbours."""
        if not self._membership.connected_members(service):
            return None
        return self._synced_ms.get(service, -1)

    def _sync_one(self) -> None:
        """Begin a round of sync with the next neighbour of every service."""
        for service in sorted(self._membership.taken_up):
            self._sync_some(service, 1)

    def _sync_some(self, service: str, count: int) -> None:
        """Compare digests with the next few neighbours in turn."""
        peers = self._membership.connected_members(service)
        for _ in range(min(count, len(peers))):
            self._sync_turn += 1
            self.send_digest(peers[self._sync_turn % len(peers)], service)

    def send_digest(self, peer: str, service: str) -> None:
        """Begin a round of sync with a member."""
        self._logs.send_digest(peer, service, self._membership.chains[service].digest)

    def on_digest(self, peer: str, message: Digest) -> None:
        """Changes first, then segments; equal ones are noted: this neighbour knows nothing else."""
        service = message.service
        if message.changes != self._membership.chains[service].digest:
            self._membership.hello(peer)
        if message.digest == self._logs.digest(service):
            if self._ctx.now_ms - self._synced_ms.get(service, -1) > NEWS_SYNC_MS:
                self._synced_ms[service] = self._ctx.now_ms
                self.send_digest(peer, service)  # so that it knows as well
        else:
            self._logs.send_frontier(peer, service, reply=False)
