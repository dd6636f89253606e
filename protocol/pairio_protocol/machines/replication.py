"""Replication: copies of what this node's requests rest on and gave, until a result is safe.

    answered --fetch here--> held here --hold, to the next members--> held there --> safe
       ^                                                                               |
       +------------------- every REPAIR_INTERVAL_MS, in batches: still there? --------+

*safe* means: the result's document, its outputs and its console lie on 1 + replicas members, as
they said themselves. Inputs that only this node holds are copied the same way. With no other member
connected the result is settled without being safe, and said so: nobody hangs.

Repair: for every result one connected member, first by rendezvous(result, peer), and its worker,
who surely knows of it, make sure from time to time that enough of those connected hold it. Clock:
SAFE_WAIT_MS for callers; HOLD_RETRY_MS for an answer, doubled each time that it did not help, up to
REPAIR_INTERVAL_MS.
"""

from collections import OrderedDict
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from pairio_protocol.context import Context
from pairio_protocol.effects import FetchBlocks, JobChanged
from pairio_protocol.ids import rendezvous
from pairio_protocol.limits import (
    COPIES_MAX,
    FILES_PER_JOB_MAX,
    HOLD_RETRY_MS,
    HOLDS_SERVED_MAX,
    NAME_LENGTH_MAX,
    REPAIR_BATCH,
    SAFE_KNOWN_MAX,
    SAFE_WAIT_MS,
)
from pairio_protocol.machines.deadlines import Deadlines, earliest_ms
from pairio_protocol.machines.membership_view import MembershipView
from pairio_protocol.messages import Held, Hold

__all__ = ["Copies", "Hooks", "Replication"]


class Hooks:
    """What replication needs of its surroundings; given by the core."""

    def push(self, peer: str, segment: bytes) -> None:
        """Make sure that a peer has a segment."""
        raise NotImplementedError

    def is_stored(self, segment: bytes) -> bool:
        """Say whether a segment is on this node's disk."""
        raise NotImplementedError

    def results_after(self, service: str, cid: str, count: int) -> list[tuple[str, str]]:
        """Return (CID, worker) of up to `count` results that count, in order, after `cid`."""
        raise NotImplementedError

    def not_fetched(self, service: str, cid: str, is_answer: bool) -> None:
        """Nobody gave this node the content of a result, whatever they said; `is_answer` says that
        it was given to a request here."""
        raise NotImplementedError

    def copy_again(self, service: str, cid: str) -> None:
        """Track a result's copies anew."""
        raise NotImplementedError


@dataclass
class Copies:
    """Content that should lie on `wanted` members, with the `segment` (a hash) that tells of it.

    `key` is a result's CID, or a request's id with `/inputs`.
    """

    key: str
    service: str
    job: str
    cids: tuple[str, ...]
    wanted: int
    began_ms: int
    segment: bytes = b""
    prefer: tuple[str, ...] = ()
    holders: set[str] = field(default_factory=set)
    asked: dict[str, int] = field(default_factory=dict)
    failed: set[str] = field(default_factory=set)
    fetching: bool = False
    have_blocks: bool = False
    is_answer: bool = False  # just given to a request of this node
    pause_ms: int = HOLD_RETRY_MS

    @property
    def safe(self) -> bool:
        """Enough members hold it."""
        return len(self.holders) >= self.wanted


class Replication:
    """Everything that is being copied, by key; and what was safe when it was last looked at."""

    def __init__(self, ctx: Context, membership: MembershipView, hooks: Hooks) -> None:
        self._ctx = ctx
        self._membership = membership
        self._hooks = hooks
        self.copies: dict[str, Copies] = {}
        self._safe: OrderedDict[str, None] = OrderedDict()
        self._due: Deadlines[str] = Deadlines()  # of keys, and of tickets that wait for a document
        self._serving: dict[str, tuple[str, bytes]] = {}  # ticket of a fetch -> for whom, segment
        self._unstored: dict[bytes, set[str]] = {}  # segment -> tickets fetched, and keys of ours
        self._repair_ms: int | None = None
        self._cursors: dict[str, str] = {}

    # -- copies that this node sees to ------------------------------------------------------

    def track(
        self,
        key: str,
        service: str,
        job: str,
        cids: tuple[str, ...],
        *,
        segment: bytes = b"",
        prefer: tuple[str, ...] = (),
        here: bool = False,
        is_answer: bool = False,
    ) -> None:
        """Begin to copy what lies under `cids`: `prefer` are asked first; `here` it lies here;
        `is_answer` says that somebody was just given it."""
        if key in self.copies:
            self.copies[key].is_answer |= is_answer
            return
        wanted = 1 + self._ctx.config.replicas
        copies = Copies(key, service, job, cids, wanted, self._ctx.now_ms, segment, prefer)
        self.copies[key] = copies
        if len(self.copies) > COPIES_MAX:
            self._forget(next(iter(self.copies)))
        self._due.set(key, self._ctx.now_ms + HOLD_RETRY_MS)
        copies.have_blocks, copies.is_answer = here, is_answer
        if not here:
            copies.fetching = True
            others = self._membership.connected_members(service)
            sources = tuple(p for p in dict.fromkeys([*prefer, *others]) if p != self._ctx.me)
            self._ctx.emit(FetchBlocks(service, f"copy:{key}", cids, sources))
        self._count_me(copies)
        self._advance(copies)

    def is_copying(self, key: str) -> bool:
        """Say whether copies of it are still wanted."""
        return key in self.copies

    def is_safe(self, key: str) -> bool:
        """Say whether enough members held it when it was last looked at."""
        return key in self._safe

    def is_settled(self, key: str) -> bool:
        """Say whether a waiting caller should be told now: safe, or nothing more to hope for."""
        copies = self.copies.get(key)
        if copies is None or key in self._safe:
            return True
        if copies.fetching:
            return False
        late = self._ctx.now_ms - copies.began_ms >= SAFE_WAIT_MS
        return late or not (self._candidates(copies) or copies.asked)

    def _forget(self, key: str) -> None:
        copies = self.copies.pop(key)
        self._due.drop(key)
        if copies.segment in self._unstored:
            self._unstored[copies.segment].discard(key)

    def _count_me(self, copies: Copies) -> None:
        """This node is a holder once blocks and document are on its disk."""
        if not copies.have_blocks:
            return
        if copies.segment and not self._hooks.is_stored(copies.segment):
            self._unstored.setdefault(copies.segment, set()).add(copies.key)
        else:
            copies.holders.add(self._ctx.me)

    def _candidates(self, copies: Copies) -> list[str]:
        """Return the connected members that may be asked, best first."""
        peers = [
            p
            for p in self._membership.connected_members(copies.service)
            if p not in copies.holders and p not in copies.failed
        ]
        peers.sort(key=lambda p: rendezvous(copies.key, p), reverse=True)
        return sorted(peers, key=lambda p: p not in copies.prefer)

    def _advance(self, copies: Copies) -> None:
        """Ask as many further members as are lacking; note when it is safe."""
        if copies.safe:
            self._safe[copies.key] = None
            self._safe.move_to_end(copies.key)
            if len(self._safe) > SAFE_KNOWN_MAX:
                self._safe.popitem(last=False)
            self._forget(copies.key)
            self._ctx.emit(JobChanged(copies.service, copies.job))
            return
        # Before this node has it, whoever made it is asked all the same: it has it.
        lacking = copies.wanted - max(1, len(copies.holders))
        if copies.fetching:
            lacking = min(lacking, len(copies.prefer))
        waiting_ms = self._ctx.now_ms - HOLD_RETRY_MS
        waiting = {p for p, at_ms in copies.asked.items() if at_ms > waiting_ms}
        waiting -= copies.holders | copies.failed
        for peer in self._candidates(copies):
            if len(waiting) >= lacking or (copies.fetching and peer not in copies.prefer):
                break
            if peer not in waiting:
                waiting.add(peer)
                self._ask(copies, peer)

    def _ask(self, copies: Copies, peer: str) -> None:
        copies.asked[peer] = self._ctx.now_ms
        known = sorted(copies.holders | ({self._ctx.me} if copies.have_blocks else set()))
        holders = tuple(dict.fromkeys([*known, *copies.prefer]))[:8]
        self._ctx.send(peer, Hold(copies.service, copies.key, copies.cids, holders, copies.segment))
        if copies.segment:  # after it: a segment of a dropped log is taken only when it is awaited
            self._hooks.push(peer, copies.segment)

    def on_held(self, peer: str, message: Held) -> None:
        """A member holds a copy now, or cannot."""
        copies = self.copies.get(message.ticket)
        if copies is None or peer not in copies.asked:
            return
        (copies.holders if message.ok else copies.failed).add(peer)
        self._advance(copies)

    # -- copies that others see to ------------------------------------------------------------

    def on_hold(self, peer: str, message: Hold) -> None:
        """A member asks this node to keep copies."""
        if message.service not in self._membership.shared_with(peer):
            self._ctx.refuse(peer, "hold of a stranger")
            return
        if len(message.ticket) > NAME_LENGTH_MAX:
            self._ctx.refuse(peer, "a hold with a long name")
            return
        ticket = f"{peer}|{message.ticket}"
        if ticket in self._serving:
            return  # it is being fetched, and answered then
        mine = sum(asked_by == peer for asked_by, _ in self._serving.values())
        if len(self._serving) >= HOLDS_SERVED_MAX or mine >= HOLDS_SERVED_MAX // 2:
            self._ctx.counters["holds beyond what is served at once"] += 1
            self._ctx.send(peer, Held(message.ticket, False))
            return
        self._serving[ticket] = (peer, message.segment)
        roles_of = self._membership.folded(message.service).roles_of
        named = (p for p in message.holders if roles_of(p))  # others have nothing, and learn of it
        holders = tuple(p for p in dict.fromkeys([peer, *named]) if p != self._ctx.me)
        cids = message.cids[: FILES_PER_JOB_MAX + 1]
        self._ctx.emit(FetchBlocks(message.service, ticket, cids, holders))

    def awaits(self, segment: bytes) -> bool:
        """Say whether somebody asked this node to hold a segment."""
        return any(segment == wanted for _, wanted in self._serving.values())

    def on_fetched(self, ticket: str, ok: bool, no_room: bool = False) -> None:
        """A fetch to this node's disk is over: ours, or one that we were asked to hold."""
        if ticket in self._serving:
            self._answer_hold(ticket, ok)
            return
        copies = self.copies.get(ticket.removeprefix("copy:"))
        if copies is None:
            return
        copies.fetching, copies.have_blocks = False, ok
        if not (ok or no_room):
            self._hooks.not_fetched(copies.service, copies.key, copies.is_answer)
        self._count_me(copies)
        self._ctx.emit(JobChanged(copies.service, copies.job))
        self._advance(copies)

    def on_dropped(self, keys: Collection[str]) -> None:
        """This node no longer holds what lies under these keys, and that is no loss to be mended:
        copies are to be elsewhere, if anybody is known to have it. Who asked this node to hold it,
        and waits for the document to be on the disk, is told no."""
        fetched = sorted(ticket for tickets in self._unstored.values() for ticket in tickets)
        for ticket in fetched:
            if ticket in self._serving and ticket.partition("|")[2] in keys:
                self._answer_hold(ticket, False)
        for key in keys:
            self._safe.pop(key, None)
            copies = self.copies.get(key)
            if copies is None:
                continue
            copies.have_blocks = copies.is_answer = False
            copies.holders.discard(self._ctx.me)
            if copies.holders:
                self._advance(copies)
            else:
                self._forget(key)

    def _answer_hold(self, ticket: str, ok: bool) -> None:
        peer, segment = self._serving[ticket]
        if ok and segment and not self._hooks.is_stored(segment):
            self._unstored.setdefault(segment, set()).add(ticket)
            self._due.set(ticket, self._ctx.now_ms + HOLD_RETRY_MS)
            return  # answered when the document is on the disk too
        del self._serving[ticket]
        self._due.drop(ticket)
        self._ctx.send(peer, Held(ticket.partition("|")[2], ok))

    def _give_up_hold(self, ticket: str) -> None:
        """The document did not come. Whoever asked asks again, if he means it."""
        _, segment = self._serving.pop(ticket)
        tickets = self._unstored[segment]
        tickets.discard(ticket)
        if not tickets:
            del self._unstored[segment]
        self._ctx.counters["holds whose document did not come"] += 1

    def on_stored(self, segments: Iterable[bytes]) -> None:
        """These segments are on this node's disk now."""
        for segment in segments:
            for name in sorted(self._unstored.pop(segment, ())):
                if name in self._serving:
                    self._answer_hold(name, True)
                elif name in self.copies:
                    self._count_me(self.copies[name])
                    self._advance(self.copies[name])

    def on_peer_down(self, peer: str) -> None:
        """Nobody waits there for an answer any more."""
        gone = {ticket for ticket, (whom, _) in self._serving.items() if whom == peer}
        for ticket in gone:
            del self._serving[ticket]
            self._due.drop(ticket)
        left = ((segment, tickets - gone) for segment, tickets in self._unstored.items())
        self._unstored = {segment: tickets for segment, tickets in left if tickets}
        for copies in self.copies.values():
            copies.asked.pop(peer, None)

    def on_peer_up(self) -> None:
        """Somebody new may hold what could not be made safe: look soon, some at a time."""
        for number, key in enumerate(self.copies):
            self._due.set(key, self._ctx.now_ms + 100 * (number // REPAIR_BATCH))
        if self._repair_ms is None:
            self._repair_ms = self._ctx.now_ms + HOLD_RETRY_MS

    # -- time -----------------------------------------------------------------------------------

    def tick(self) -> None:
        """Ask again, let waiting callers go when it has taken too long, and repair."""
        for key in self._due.due(self._ctx.now_ms):
            if key in self._serving:
                self._give_up_hold(key)
            else:
                self._retry(self.copies[key])
        if self._repair_ms is not None and self._ctx.now_ms >= self._repair_ms:
            self._repair_ms = self._ctx.now_ms + self._ctx.config.repair_interval_ms
            for service in sorted(self._membership.taken_up):
                self._repair(service)

    def _retry(self, copies: Copies) -> None:
        self._due.set(copies.key, self._ctx.now_ms + copies.pause_ms)
        copies.pause_ms = min(copies.pause_ms * 2, self._ctx.config.repair_interval_ms)
        late = self._ctx.now_ms - copies.began_ms >= SAFE_WAIT_MS
        if late:
            self._safe.pop(copies.key, None)  # it was safe once, and is not any more
            copies.failed.clear()
            self._ctx.emit(JobChanged(copies.service, copies.job))
        if not copies.have_blocks and not copies.fetching:
            copies.fetching = True
            sources = tuple(self._membership.connected_members(copies.service))
            ticket = f"copy:{copies.key}"
            self._ctx.emit(FetchBlocks(copies.service, ticket, copies.cids, sources))
        self._advance(copies)

    def _repair(self, service: str) -> None:
        """Look after the next results for which this node is the first of those connected."""
        peers = [*self._membership.connected_members(service), self._ctx.me]
        if len(peers) < 2:
            return
        count = REPAIR_BATCH * len(peers)
        batch = self._hooks.results_after(service, self._cursors.get(service, ""), count)
        self._cursors[service] = batch[-1][0] if len(batch) == count else ""  # round and round
        for cid, worker in batch:
            first = max(peers, key=lambda p: rendezvous(cid, p))
            if self._ctx.me in (first, worker):
                self._ctx.counters["results looked after"] += 1
                self._hooks.copy_again(service, cid)

    def deadline_ms(self) -> int | None:
        """When something is to be asked again."""
        return earliest_ms(self._due.next_ms(), self._repair_ms)
