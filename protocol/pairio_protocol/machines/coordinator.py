"""The coordinator: awards the runs that this node's own requests want, one member at a time.

    waiting --inputs there--> open --award--> awarded --have--> held --result--> answered
       |                       ^                 |                |
       +-- blocked (derived)   +---- decline / no answer / lease lost (next node)

A run that somebody started already is awarded to that node first: it answers `have` and is
followed. Clock: AWARD_ANSWER_MS for an answer, the lease after that, DECLINE_PAUSE_MS before a
node that declined is asked again.
"""

from dataclasses import dataclass, field

from pairio_protocol.context import Context
from pairio_protocol.effects import JobChanged
from pairio_protocol.fold import RequestState, Resolution, ResultInfo, ServiceFold
from pairio_protocol.limits import (
    ATTEMPTS_MAX,
    AWARD_ANSWER_MS,
    BACKLOG_PER_SLOT_MAX,
    DECLINE_PAUSE_MS,
)
from pairio_protocol.machines.membership_view import MembershipView
from pairio_protocol.messages import Award, Beat, Bid, CancelNow, Decline, Have, Presence
from pairio_protocol.policy import isolation_needed, misfit, rank

__all__ = ["Attempt", "Coordinator", "Wish"]


@dataclass
class Attempt:
    """One try of a run on one node. `deadline_ms` is the answer's or the lease's."""

    id: str
    worker: str
    deadline_ms: int
    held: bool = False
    state: str = "awarded"


@dataclass
class Wish:
    """An unanswered request of this node."""

    service: str
    request: str
    run: str | None = None
    resolved: str | None = None
    upstream: tuple[str, ...] = ()
    waits_for: tuple[str, ...] = ()
    blocked_by: str | None = None
    attempt: Attempt | None = None
    attempts: int = 0
    failed_on: set[str] = field(default_factory=set)
    declined: dict[str, tuple[int, Decline]] = field(default_factory=dict)


class Hooks:
    """What the coordinator needs of its surroundings; given by the core."""

    def fold(self, service: str) -> ServiceFold:
        """Return the fold of a service."""
        raise NotImplementedError

    def presence(self, service: str) -> list[Presence]:
        """Return the live presence entries of a service."""
        raise NotImplementedError

    def push(self, peer: str, segment: bytes) -> None:
        """Make sure that a peer has a segment."""
        raise NotImplementedError

    def deliver(self, peer: str, award: Award) -> None:
        """Send an award, to this node itself if it is the one."""
        raise NotImplementedError

    def answered(self, state: RequestState, result: ResultInfo, service: str) -> None:
        """A request of this node has its answer."""
        raise NotImplementedError


class Coordinator:
    """All unanswered requests of this node, by request id."""

    def __init__(self, ctx: Context, membership: MembershipView, hooks: Hooks) -> None:
        self._ctx = ctx
        self._membership = membership
        self._hooks = hooks
        self.wishes: dict[str, Wish] = {}
        self._open: dict[str, None] = {}
        self._by_upstream: dict[str, set[str]] = {}
        self._by_resolved: dict[str, set[str]] = {}
        self._by_attempt: dict[str, str] = {}
        self._outstanding: dict[str, int] = {}
        self._counter = 0

    # -- wishes -------------------------------------------------------------------------

    def add(self, service: str, request: str) -> None:
        """Take up a request of this node (new, or found in the log after a restart)."""
        if request not in self.wishes:
            self.wishes[request] = Wish(service, request)
            self._review(self.wishes[request])

    def on_result(self, service: str, result: ResultInfo) -> None:
        """A result was accepted: it may answer requests, and let others begin."""
        fold = self._hooks.fold(service)
        names = set(self._by_resolved.get(result.document.job, ()))
        for job in {result.document.job, *self._jobs_resolving_to(fold, result.document.job)}:
            names |= self._by_upstream.get(job, set())
        for name in sorted(names):
            if name in self.wishes:
                self._review(self.wishes[name])

    def _jobs_resolving_to(self, fold: ServiceFold, resolved: str) -> list[str]:
        """Return unresolved job ids, waited for here, whose inputs give `resolved`."""
        return [
            job
            for job in self._by_upstream
            if job in fold.definitions and fold.resolve(fold.definitions[job]).job == resolved
        ]

    def review_all(self) -> None:
        """Look at every wish again (after a change of the service, a cancel, a wake)."""
        for wish in list(self.wishes.values()):
            self._review(wish)

    def _review(self, wish: Wish) -> None:
        fold = self._hooks.fold(wish.service)
        state = fold.requests[wish.request]
        if state.canceled or self._ctx.unix_ms > state.record.expires_unix_ms:
            self._drop(wish, state)
            return
        resolution = fold.resolve(state.document)
        self._note(wish, state, resolution, fold)
        answer = fold.answer_for(state, resolution)
        if answer is not None:
            state.answer = answer.cid
            self._drop(wish, state)
            self._hooks.answered(state, answer, wish.service)
            # Whoever waited for this job can go on.
            for name in sorted(self._by_upstream.get(state.job, set())):
                if name in self.wishes and name != wish.request:
                    self._review(self.wishes[name])
        elif wish.run is not None and wish.attempt is None:
            self._open[wish.request] = None

    def _note(
        self, wish: Wish, state: RequestState, resolution: Resolution, fold: ServiceFold
    ) -> None:
        for job in wish.waits_for:
            self._by_upstream.get(job, set()).discard(wish.request)
        before = (wish.run, wish.blocked_by)
        waits = resolution.waits_for
        if resolution.blocked_by is not None:
            waits = (resolution.blocked_by,)  # re-running that job releases this one
        wish.run = fold.run_of(state, resolution)
        wish.resolved = resolution.job
        wish.upstream = resolution.upstream
        wish.waits_for = waits
        wish.blocked_by = resolution.blocked_by
        for job in waits:
            self._by_upstream.setdefault(job, set()).add(wish.request)
        if resolution.job is not None:
            self._by_resolved.setdefault(resolution.job, set()).add(wish.request)
        if before != (wish.run, wish.blocked_by):
            self._ctx.emit(JobChanged(wish.service, state.job))

    def _drop(self, wish: Wish, state: RequestState) -> None:
        if wish.attempt is not None and state.canceled:
            self._ctx.send(wish.attempt.worker, CancelNow(wish.service, wish.attempt.id))
        self._end_attempt(wish)
        self._open.pop(wish.request, None)
        self.wishes.pop(wish.request, None)
        for job in wish.waits_for:
            self._by_upstream.get(job, set()).discard(wish.request)
        if wish.resolved is not None:
            self._by_resolved.get(wish.resolved, set()).discard(wish.request)
        self._ctx.emit(JobChanged(wish.service, state.job))

    # -- awards -------------------------------------------------------------------------

    def award_open(self) -> None:
        """Award what is open, as far as there is somebody to award it to."""
        views: dict[str, list[Presence]] = {}
        for name in list(self._open):
            wish = self.wishes[name]
            if wish.service not in views:
                views[wish.service] = self._candidates(wish.service)
            self._award(wish, views[wish.service])

    def _candidates(self, service: str) -> list[Presence]:
        folded = self._membership.folded(service)
        return [
            entry
            for entry in self._hooks.presence(service)
            if entry.compute
            and "compute" in folded.roles_of(entry.peer)
            and (entry.peer in self._ctx.connected or entry.peer == self._ctx.me)
        ]

    def _award(self, wish: Wish, candidates: list[Presence]) -> None:
        fold = self._hooks.fold(wish.service)
        state = fold.requests[wish.request]
        assert wish.run is not None
        if wish.attempts >= ATTEMPTS_MAX * max(1, len(candidates)):
            return
        needed = isolation_needed(state.record, self._membership.folded(wish.service))
        fitting = [
            entry
            for entry in candidates
            if misfit(entry, state.record.resources, needed, state.record.targets) is None
            and self._has_room(entry)
            and not self._is_resting(wish, entry.peer)
        ]
        chosen = self._first(wish, fold, fitting)
        if chosen is None:
            return
        self._counter += 1
        attempt = f"{self._ctx.me[-8:]}-{self._ctx.config.boot.hex()[:8]}-{self._counter}"
        wish.attempt = Attempt(attempt, chosen, self._ctx.now_ms + AWARD_ANSWER_MS)
        self._by_attempt[attempt] = wish.request
        self._outstanding[chosen] = self._outstanding.get(chosen, 0) + 1
        self._open.pop(wish.request, None)
        for cid in wish.upstream:
            self._hooks.push(chosen, fold.results[cid].segment)
        lease_ms = self._ctx.config.lease_ms
        self._hooks.deliver(
            chosen,
            Award(wish.service, wish.request, wish.run, attempt, wish.upstream, lease_ms),
        )

    def _has_room(self, entry: Presence) -> bool:
        mine = self._outstanding.get(entry.peer, 0)
        return max(mine, entry.load) < entry.slots * (1 + BACKLOG_PER_SLOT_MAX)

    def _is_resting(self, wish: Wish, peer: str) -> bool:
        at_ms = wish.declined.get(peer, (-DECLINE_PAUSE_MS, None))[0]
        return self._ctx.now_ms - at_ms < DECLINE_PAUSE_MS

    def _first(self, wish: Wish, fold: ServiceFold, fitting: list[Presence]) -> str | None:
        """Return whom to ask: who started the run already, else the best that has not failed it."""
        peers = {entry.peer for entry in fitting}
        run = fold.run(wish.run or "")
        for attempt, (worker, _) in sorted(run.starts.items()):
            if attempt not in run.ends and worker in peers and worker not in wish.failed_on:
                return worker
        weighted = [e for e in rank(wish.run or "", fitting) if e.peer not in wish.failed_on]
        weighted.sort(key=lambda e: self._outstanding.get(e.peer, 0) >= e.slots)
        if not weighted and fitting:
            weighted = rank(wish.run or "", fitting)  # all have failed it: once more
        return weighted[0].peer if weighted else None

    # -- answers ------------------------------------------------------------------------

    def on_have(self, peer: str, message: Have) -> None:
        """The worker holds the run, maybe under an older attempt: follow that."""
        for wish in self._wishes_of(peer, message.run, message.attempt):
            assert wish.attempt is not None
            self._by_attempt.pop(wish.attempt.id, None)
            wish.attempt.id = message.attempt
            self._by_attempt[message.attempt] = wish.request
            wish.attempt.held = True
            if wish.attempt.state != message.state:
                wish.attempt.state = message.state
                job = self._hooks.fold(wish.service).requests[wish.request].job
                self._ctx.emit(JobChanged(wish.service, job))
            wish.attempt.deadline_ms = self._ctx.now_ms + self._ctx.config.lease_ms

    def _wishes_of(self, peer: str, run: str, attempt: str) -> list[Wish]:
        name = self._by_attempt.get(attempt)
        if name is not None and name in self.wishes:
            wish = self.wishes[name]
            return [wish] if wish.attempt and wish.attempt.worker == peer else []
        return [
            w
            for w in self.wishes.values()
            if w.run == run and w.attempt is not None and w.attempt.worker == peer
        ]

    def on_decline(self, peer: str, message: Decline) -> None:
        """Ask the next node; remember why (for `why`)."""
        for wish in self._wishes_of(peer, message.run, message.attempt):
            wish.declined[peer] = (self._ctx.now_ms, message)
            self._end_attempt(wish)
            self._open[wish.request] = None

    def on_beat(self, peer: str, message: Beat) -> None:
        """Renew leases."""
        for attempt in message.attempts[:1024]:
            wish = self.wishes.get(self._by_attempt.get(attempt, ""))
            if wish and wish.attempt and wish.attempt.worker == peer:
                wish.attempt.deadline_ms = self._ctx.now_ms + self._ctx.config.lease_ms

    def on_bid(self, peer: str, message: Bid) -> None:
        """A free node asks for work: what it declined before may be offered again at once."""
        for name in message.requests[:64]:
            wish = self.wishes.get(name)
            if wish is not None:
                wish.declined.pop(peer, None)

    def on_end(self, service: str, run: str, worker: str, attempt: str) -> None:
        """An attempt ended without a result: the next node."""
        for wish in self._wishes_of(worker, run, attempt):
            self._lose(wish)

    def on_peer_gone(self, peer: str) -> None:
        """Awards without an answer go elsewhere at once; leases run on."""
        for wish in list(self.wishes.values()):
            if wish.attempt and wish.attempt.worker == peer and not wish.attempt.held:
                self._lose(wish)

    def on_new_boot(self, peer: str) -> None:
        """A worker has restarted: what it executed is lost."""
        for wish in list(self.wishes.values()):
            if wish.attempt and wish.attempt.worker == peer:
                self._lose(wish)

    def _lose(self, wish: Wish) -> None:
        assert wish.attempt is not None
        wish.failed_on.add(wish.attempt.worker)
        wish.attempts += 1
        self._end_attempt(wish)
        self._open[wish.request] = None
        self._ctx.counters["attempts lost"] += 1

    def _end_attempt(self, wish: Wish) -> None:
        if wish.attempt is None:
            return
        self._by_attempt.pop(wish.attempt.id, None)
        left = self._outstanding.get(wish.attempt.worker, 1) - 1
        self._outstanding[wish.attempt.worker] = left
        wish.attempt = None

    # -- time ---------------------------------------------------------------------------

    def tick(self) -> None:
        """Let answers and leases run out."""
        for wish in list(self.wishes.values()):
            if wish.attempt and self._ctx.now_ms >= wish.attempt.deadline_ms:
                if wish.attempt.held:
                    self._ctx.counters["leases lost"] += 1
                self._ctx.send(
                    wish.attempt.worker, CancelNow(wish.service, wish.attempt.id)
                ) if not wish.attempt.held else None
                self._lose(wish)

    def deadline_ms(self) -> int | None:
        """When something runs out, or a node that declined may be asked again."""
        deadlines = [w.attempt.deadline_ms for w in self.wishes.values() if w.attempt]
        for name in self._open:
            deadlines += [
                at_ms + DECLINE_PAUSE_MS for at_ms, _ in self.wishes[name].declined.values()
            ]
        late = [d for d in deadlines if d > self._ctx.now_ms]
        return min(late or deadlines, default=None)
