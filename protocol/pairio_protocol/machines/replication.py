"""Replication: copies of what this node's requests rest on and gave, until a result is safe.

    answered --fetch here--> held here --hold, to the next member by rendezvous--> safe

*safe* means: the outputs and the console lie on 1 + replicas members, the worker counted. Inputs
that only this node holds are copied the same way. With no other member connected the result is
settled without being safe, and said so: nobody hangs. Clock: SAFE_WAIT_MS, HOLD_RETRY_MS.
"""

from dataclasses import dataclass, field

from pairio_protocol.context import Context
from pairio_protocol.effects import FetchBlocks, JobChanged
from pairio_protocol.ids import rendezvous
from pairio_protocol.limits import HOLD_RETRY_MS, SAFE_WAIT_MS
from pairio_protocol.machines.membership_view import MembershipView
from pairio_protocol.messages import Held, Hold

__all__ = ["Copies", "Replication"]


@dataclass
class Copies:
    """Content that should lie on `wanted` members. `key` is a request id, or it with `/inputs`."""

    key: str
    service: str
    job: str
    cids: tuple[str, ...]
    wanted: int
    began_ms: int
    holders: set[str] = field(default_factory=set)
    asked: dict[str, int] = field(default_factory=dict)
    failed: set[str] = field(default_factory=set)
    fetching: bool = False

    @property
    def safe(self) -> bool:
        """Enough members hold it."""
        return len(self.holders) >= self.wanted


class Replication:
    """Everything that is being copied, by key."""

    def __init__(self, ctx: Context, membership: MembershipView) -> None:
        self._ctx = ctx
        self._membership = membership
        self.copies: dict[str, Copies] = {}
        self._serving: dict[str, str] = {}  # ticket of a fetch for somebody -> that peer

    def track(
        self, key: str, service: str, job: str, cids: tuple[str, ...], holders: set[str]
    ) -> None:
        """Begin to copy. `holders` have it already."""
        if key in self.copies:
            return
        wanted = 1 + self._ctx.config.replicas
        copies = Copies(key, service, job, cids, wanted, self._ctx.now_ms, set(holders))
        self.copies[key] = copies
        if self._ctx.me not in copies.holders:
            copies.fetching = True
            others = self._membership.connected_members(service)
            sources = tuple(dict.fromkeys([*sorted(holders), *others]))
            self._ctx.emit(FetchBlocks(service, f"copy:{key}", cids, sources))
        self._advance(copies)

    def is_settled(self, key: str) -> bool:
        """Say whether a waiting caller should be told now: safe, or nothing more to hope for."""
        copies = self.copies.get(key)
        if copies is None or copies.safe:
            return True
        if copies.fetching:
            return False
        late = self._ctx.now_ms - copies.began_ms >= SAFE_WAIT_MS
        return late or not self._candidates(copies)

    def is_safe(self, key: str) -> bool:
        """Say whether enough members hold it."""
        return key in self.copies and self.copies[key].safe

    def _candidates(self, copies: Copies) -> list[str]:
        peers = [
            p
            for p in self._membership.connected_members(copies.service)
            if p not in copies.holders and p not in copies.failed
        ]
        return sorted(peers, key=lambda p: rendezvous(copies.job, p), reverse=True)

    def _advance(self, copies: Copies) -> None:
        """Ask as many further members as are lacking."""
        if copies.safe or copies.fetching:
            return
        lacking = copies.wanted - len(copies.holders)
        for peer in self._candidates(copies)[:lacking]:
            if self._ctx.now_ms - copies.asked.get(peer, -HOLD_RETRY_MS) >= HOLD_RETRY_MS:
                copies.asked[peer] = self._ctx.now_ms
                holders = tuple(sorted(copies.holders))[:8]
                self._ctx.send(peer, Hold(copies.service, copies.key, copies.cids, holders))

    def on_fetched(self, ticket: str, ok: bool) -> None:
        """A fetch to this node's disk is over: ours, or one that we were asked to hold."""
        if ticket in self._serving:
            peer = self._serving.pop(ticket)
            self._ctx.send(peer, Held(ticket.partition("|")[2], ok))
            return
        copies = self.copies.get(ticket.removeprefix("copy:"))
        if copies is None:
            return
        copies.fetching = False
        if ok:
            copies.holders.add(self._ctx.me)
        self._ctx.emit(JobChanged(copies.service, copies.job))
        self._advance(copies)

    def on_hold(self, peer: str, message: Hold) -> None:
        """A member asks this node to keep copies."""
        if message.service not in self._membership.shared_with(peer):
            self._ctx.refuse(peer, "hold of a stranger")
            return
        ticket = f"{peer}|{message.ticket}"
        self._serving[ticket] = peer
        holders = tuple(dict.fromkeys([peer, *message.holders]))
        self._ctx.emit(FetchBlocks(message.service, ticket, message.cids[:256], holders))

    def on_held(self, peer: str, message: Held) -> None:
        """A member holds a copy now, or cannot."""
        copies = self.copies.get(message.ticket)
        if copies is None or peer not in copies.asked:
            return
        (copies.holders if message.ok else copies.failed).add(peer)
        self._ctx.emit(JobChanged(copies.service, copies.job))
        self._advance(copies)

    def tick(self) -> None:
        """Ask again, and let waiting callers go when it has taken too long."""
        for copies in self.copies.values():
            if not copies.safe and not copies.fetching:
                self._advance(copies)
                if 0 <= self._ctx.now_ms - copies.began_ms - SAFE_WAIT_MS < HOLD_RETRY_MS:
                    self._ctx.emit(JobChanged(copies.service, copies.job))

    def deadline_ms(self) -> int | None:
        """When unsafe copies are looked at again."""
        waiting = [c for c in self.copies.values() if not c.safe and not c.fetching]
        if not waiting or not self._ctx.connected:
            return None
        return self._ctx.now_ms + HOLD_RETRY_MS // 2
