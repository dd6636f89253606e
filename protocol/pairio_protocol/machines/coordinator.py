"""The coordinator: awards the runs that requests want, one member at a time.

    waiting --inputs there--> open --award--> awarded --have--> held --result--> answered
       |                       ^                 |                |
       +-- blocked (derived)   +---- decline / no answer / lease lost (next node)

A wish is an unanswered request; wishes of one run share its errand, the attempt under way. A run
that somebody started already is awarded to that node first: it answers `have` and is followed. A
*taken* wish is another node's, whose coordinator cannot be reached: only this node is asked.

Clock: AWARD_ANSWER_MS for an answer, the lease after that, from when the run began its own time
limit and a lease at the utmost; DECLINE_PAUSE_MS before a node that declined is asked again,
doubled for each time that it bid or was free and yet did not take what it was awarded.
"""

from collections.abc import Mapping

from pairio_protocol.apps import needs_of
from pairio_protocol.context import Context
from pairio_protocol.effects import JobChanged
from pairio_protocol.fold import RequestState, Resolution, ResultInfo, ServiceFold
from pairio_protocol.ids import is_attempt
from pairio_protocol.limits import (
    ATTEMPTS_MAX,
    AWARD_ANSWER_MS,
    AWARDS_PER_LOOK,
    BACKLOG_PER_SLOT_MAX,
    BIDS_PER_SCAN,
    DECLINE_PAUSE_MS,
    LOOK_INTERVAL_MS,
    NAME_LENGTH_MAX,
    PROBE_MS,
    STRIKES_MAX,
    WANT_DELAY_MS,
)
from pairio_protocol.machines.deadlines import Deadlines, earliest_ms
from pairio_protocol.machines.errands import Attempt, Errand, Hooks, Wish
from pairio_protocol.machines.holdings import Holdings
from pairio_protocol.machines.membership_view import MembershipView
from pairio_protocol.messages import (
    Award,
    Beat,
    Bid,
    CancelNow,
    Decline,
    Have,
    Presence,
    Renew,
    Renewed,
)
from pairio_protocol.policy import isolation_needed, misfit, rank
from pairio_protocol.records import End

__all__ = ["Coordinator"]

_Key = tuple[str, str]  # (service, run)
_NESTED_MAX = 16
_HELD_STATES = ("queued", "executing", "done")
_WORDS_MAX = 500  # of each text of a decline that is kept


class Coordinator:
    """All unanswered requests that this node sees to, by request id."""

    def __init__(self, ctx: Context, membership: MembershipView, hooks: Hooks) -> None:
        self._ctx = ctx
        self._membership = membership
        self._hooks = hooks
        self.wishes: dict[str, Wish] = {}
        self.errands: dict[_Key, Errand] = {}
        self._open: dict[str, dict[str, None]] = {}  # service -> runs to be awarded, oldest first
        #: the same of guests' runs: only when all others were looked at, and on free slots
        self._open_guests: dict[str, dict[str, None]] = {}
        self._guests_out: dict[str, int] = {}  # worker -> guests' runs that it was awarded
        self._guests_rest_ms: dict[str, int] = {}  # worker -> until when it is not asked again
        self._due: Deadlines[_Key] = Deadlines()  # answers and leases of attempts
        self._by_upstream: dict[str, set[str]] = {}
        self._by_resolved: dict[str, set[str]] = {}
        self._by_attempt: dict[str, _Key] = {}
        self._outstanding: dict[str, int] = {}
        self._strikes: dict[str, int] = {}
        self.holdings = Holdings()
        self._counter = 0
        self._look = False
        self._look_ms = 0
        self._left: dict[str, int] = {}  # service -> open runs that the round has yet to look at
        self._go_on_ms = 0  # when the round goes on, if any are left
        self._review_ms = 0
        self._nested = 0  # answers given because of one another
        self._later: set[str] = set()

    # -- wishes -------------------------------------------------------------------------

    def add(self, service: str, request: str, taken: bool = False) -> None:
        """See to a request: an own one (new, or found after a restart), or a taken one."""
        if request not in self.wishes:
            fold = self._hooks.fold(service)
            state = fold.requests.get(request)
            known = state is not None and fold.has_answer(state)
            self.wishes[request] = Wish(service, request, taken, careful=known and not taken)
            self._review(self.wishes[request])

    def attempt_of(self, request: str) -> Attempt | None:
        """Return the attempt under way for a request."""
        errand = self._errand(self.wishes.get(request))
        return errand.attempt if errand is not None else None

    def is_held_back(self, request: str) -> bool:
        """Say whether a request waits because the content of its answer is nowhere to be had."""
        wish = self.wishes.get(request)
        return wish is not None and wish.held_back

    def errand_of(self, request: str) -> Errand | None:
        """Return the errand that a request shares."""
        return self._errand(self.wishes.get(request))

    def _errand(self, wish: Wish | None) -> Errand | None:
        if wish is None or wish.run is None:
            return None
        return self.errands.get((wish.service, wish.run))

    def on_result(self, service: str, result: ResultInfo) -> None:
        """A result was accepted: it may answer requests, and let others begin."""
        fold = self._hooks.fold(service)
        names = set(self._by_resolved.get(result.document.job, ()))
        given = {result.document.job, *self._jobs_resolving_to(fold, result.document.job)}
        for job in fold.resting_on(given):
            names |= self._by_upstream.get(job, set())
        self._review_names(names)

    def _review_names(self, names: set[str]) -> None:
        for name in sorted(names):
            if name in self.wishes:
                self._review(self.wishes[name])

    def _jobs_resolving_to(self, fold: ServiceFold, resolved: str) -> list[str]:
        """Return unresolved job ids, waited for here, whose inputs give `resolved`."""
        return [job for job in fold.origins(resolved) if job in self._by_upstream]

    def forget_service(self, service: str) -> None:
        """This node takes part in a service no more: it sees to nothing of it."""
        fold = self._hooks.fold(service)
        for wish in list(self.wishes.values()):
            if wish.service == service:
                self._drop(wish, fold.requests.get(wish.request))

    def review_all(self) -> None:
        """Look at every wish again (after a change of the service, a cancel, a wake)."""
        self._review_names(set(self.wishes))

    def review_waiting_for(self, service: str, job: str) -> None:
        """Look again at the wishes that wait for a job: somebody asked for it anew."""
        names: set[str] = set()
        for waited in self._hooks.fold(service).resting_on((job,)):
            names |= self._by_upstream.get(waited, set())
        self._review_names(names)

    def _review(self, wish: Wish) -> None:
        fold = self._hooks.fold(wish.service)
        state = fold.requests.get(wish.request)
        if state is None:  # its segment counts no more
            self._drop(wish, None)
            return
        late = self._ctx.unix_ms > state.record.expires_unix_ms
        roles_of = self._membership.folded(wish.service).roles_of
        submits = "submit" in roles_of(state.author)
        unable = wish.taken and "compute" not in roles_of(self._ctx.me)
        if state.canceled or late or not submits or unable:
            self._drop(wish, state)
            return
        resolution = fold.resolve(state.job)
        answer = fold.answer_for(state, resolution)
        wish.held_back = False
        self._note(wish, state, resolution, fold)
        if answer is not None:
            if wish.careful and not self._hooks.is_there(wish.service, answer):
                wish.held_back = True  # reviewed when it is found, or lost
                self._leave(wish)
            else:
                self._answer(wish, state, answer, fold)
            return
        if wish.run is not None:
            wish.exhausted = fold.lost_attempts(state, wish.run) >= ATTEMPTS_MAX
            errand = self._join(wish)
            if errand.attempt is None:
                self._reopen_run(errand)
        if wish.waits_for and wish.blocked_by is None and not wish.taken:
            self._want(wish, state)

    def _want(self, wish: Wish, state: RequestState) -> None:
        """Others may hold a request for answered that looks open here: after a while it is this
        node that asks for what it waits for."""
        waited_ms = self._ctx.now_ms - wish.waiting_since_ms
        self._hooks.want(wish.service, wish.waits_for, state, waited_ms >= WANT_DELAY_MS)

    def _answer(
        self, wish: Wish, state: RequestState, answer: ResultInfo, fold: ServiceFold
    ) -> None:
        if not wish.taken:
            fold.pin(state.id, answer.cid)
            self._hooks.answered(state, answer, wish.service)
        elif answer.document.worker == self._ctx.me:
            self._hooks.answered(state, answer, wish.service)
        self._drop(wish, state)
        # Whoever waited for this job can go on.
        self._go_on(self._by_upstream.get(state.job, set()) - {wish.request})

    def _go_on(self, names: set[str]) -> None:
        """Review wishes that an answer may let go on, and so on: in a long chain not nested."""
        if self._nested >= _NESTED_MAX:
            self._later |= names
            return
        self._nested += 1
        self._review_names(names)
        while self._nested == 1 and self._later:
            names, self._later = self._later, set()
            self._review_names(names)
        self._nested -= 1

    def _note(
        self, wish: Wish, state: RequestState, resolution: Resolution, fold: ServiceFold
    ) -> None:
        """Keep what the wish stands on now, and the indexes by which it is found again."""
        before = (wish.run, wish.blocked_by)
        run = fold.run_of(state, resolution)
        if run != wish.run:
            self._leave(wish)
        self._unindex(wish)
        waited_for = wish.waits_for
        wish.run, wish.resolved = run, resolution.job
        wish.upstream, wish.blocked_by = resolution.upstream, resolution.blocked_by
        wish.waits_for = resolution.waits_for or resolution.lacks
        if resolution.blocked_by is not None:
            wish.waits_for = (resolution.blocked_by,)  # re-running that job releases this one
        if wish.waits_for != waited_for:
            wish.waiting_since_ms = self._ctx.now_ms
        for job in wish.waits_for:
            self._by_upstream.setdefault(job, set()).add(wish.request)
        if resolution.job is not None:
            self._by_resolved.setdefault(resolution.job, set()).add(wish.request)
        if before != (wish.run, wish.blocked_by):
            self._ctx.emit(JobChanged(wish.service, state.job))

    def _unindex(self, wish: Wish) -> None:
        for job in wish.waits_for:
            _discard(self._by_upstream, job, wish.request)
        if wish.resolved is not None:
            _discard(self._by_resolved, wish.resolved, wish.request)

    def _join(self, wish: Wish) -> Errand:
        assert wish.run is not None
        key = (wish.service, wish.run)
        errand = self.errands.setdefault(key, Errand(*key))
        record = self._hooks.fold(wish.service).requests[wish.request].record
        first = not errand.wishes  # one that a member wants too comes with those of members
        errand.for_guests = bool(record.sponsor_of) and (first or errand.for_guests)
        errand.wishes[wish.request] = None
        return errand

    def _leave(self, wish: Wish) -> None:
        """Take a wish from its errand; an errand that nobody wants ends, and its attempt too."""
        errand = self._errand(wish)
        if errand is None or wish.request not in errand.wishes:
            return
        del errand.wishes[wish.request]
        if not errand.wishes:
            if errand.attempt is not None:
                self._cancel_now(errand, errand.attempt)
            self._end_attempt(errand)
            self._close(errand)
            del self.errands[errand.service, errand.run]

    def _cancel_now(self, errand: Errand, attempt: Attempt) -> None:
        """Let a worker kill an attempt, unless another node of this key wants the run too: its
        word and ours are one peer's there."""
        if not self._hooks.twin_wants(errand.service, errand.run):
            self._hooks.cancel_now(attempt.worker, CancelNow(errand.service, attempt.id))

    def leave_to_twins(self, service: str) -> None:
        """Let go of requests that another live node of this key sees to."""
        requests = self._hooks.fold(service).requests
        for wish in list(self.wishes.values()):
            state = requests.get(wish.request)
            if wish.service == service and state is not None and self._hooks.is_twins(state):
                self._drop(wish, state)

    def _drop(self, wish: Wish, state: RequestState | None) -> None:
        self._leave(wish)
        self._unindex(wish)
        self.wishes.pop(wish.request, None)
        if state is not None:
            self._ctx.emit(JobChanged(wish.service, state.job))

    # -- awards -------------------------------------------------------------------------

    def look(self) -> None:
        """Who might take a run has changed: go through what is open with the next `award_open`."""
        self._look = True

    def award_open(self) -> None:
        """Award what is open, as far as there is somebody to award it to."""
        if self._by_upstream and self._ctx.now_ms >= self._review_ms:
            self._review_ms = self._ctx.now_ms + LOOK_INTERVAL_MS
            self._review_names({name for names in self._by_upstream.values() for name in names})
        now_ms = self._ctx.now_ms
        if self._look or now_ms >= self._look_ms:  # a round begins
            self._look, self._look_ms = False, now_ms + LOOK_INTERVAL_MS
            self._left = {service: len(runs) for service, runs in self._open.items()}
        elif not self._left or now_ms < self._go_on_ms:
            return
        self._go_on_ms = now_ms + 1
        for service in sorted(self._left):
            self._award_open_of(service)
        for service in sorted(self._open_guests):
            self._award_guests(service)

    def _award_guests(self, service: str) -> None:
        """Award guests' runs to nodes with a free slot, one for each at a time."""
        now_ms = self._ctx.now_ms
        candidates = self._candidates(service)
        for run in list(self._open_guests[service])[:AWARDS_PER_LOOK]:
            candidates = [
                entry
                for entry in candidates
                if self._guests_out.get(entry.peer, 0) + entry.load < entry.slots
                and self._guests_rest_ms.get(entry.peer, 0) <= now_ms
            ]
            errand = self.errands.get((service, run))
            if not candidates:
                break
            if errand is None or run not in self._open_guests.get(service, ()):
                continue
            self._award(errand, candidates)
            if errand.attempt is None:
                self._note_rests(errand)
                self._to_the_end(errand)
        rests = {peer: ms for peer, ms in self._guests_rest_ms.items() if ms > now_ms}
        self._guests_rest_ms = rests
        self._look_ms = min((self._look_ms, *rests.values()))

    def _award_open_of(self, service: str) -> None:
        """Go through the open runs of a service, oldest first, while any node has room: each once
        in a round, and many in several goes, for others want the loop too."""
        left = self._left.pop(service)
        candidates = [entry for entry in self._candidates(service) if self._has_room(entry)]
        for run in list(self._open.get(service, ()))[: min(left, AWARDS_PER_LOOK)]:
            if not candidates:
                return
            errand = self.errands.get((service, run))
            if errand is None or run not in self._open.get(service, ()):
                continue
            self._award(errand, candidates)
            if errand.attempt is None:
                self._note_rests(errand)
                self._to_the_end(errand)
            else:
                candidates = [entry for entry in candidates if self._has_room(entry)]
        if left > AWARDS_PER_LOOK and candidates:
            self._left[service] = left - AWARDS_PER_LOOK

    def _to_the_end(self, errand: Errand) -> None:
        """What nobody could take lets others be looked at first next time."""
        by_service = self._open_guests if errand.for_guests else self._open
        runs = by_service.get(errand.service)
        if runs is not None and errand.run in runs:
            del runs[errand.run]
            runs[errand.run] = None

    def _reopen_run(self, errand: Errand) -> None:
        here, other = self._open, self._open_guests
        if errand.for_guests:
            here, other = other, here
        _take_out(other, errand)
        here.setdefault(errand.service, {})[errand.run] = None
        self._look = True

    def _close(self, errand: Errand) -> None:
        _take_out(self._open, errand)
        _take_out(self._open_guests, errand)

    def _note_rests(self, errand: Errand) -> None:
        """What is still open is looked at again when the first node has rested."""
        if errand.rest_until_ms > self._ctx.now_ms:
            self._look_ms = min(self._look_ms, errand.rest_until_ms)
        for peer, (at_ms, _) in errand.declined.items():
            due_ms = at_ms + self._rest_ms(peer)
            if due_ms > self._ctx.now_ms:
                self._look_ms = min(self._look_ms, due_ms)

    def _candidates(self, service: str) -> list[Presence]:
        folded = self._membership.folded(service)
        return [
            entry
            for entry in self._hooks.presence_here(service)
            if entry.compute and "compute" in folded.roles_of(entry.peer)
        ]

    def _award(self, errand: Errand, candidates: list[Presence]) -> None:
        fold, folded = self._hooks.fold(errand.service), self._membership.folded(errand.service)
        for name in errand.wishes:
            wish = self.wishes[name]
            state = fold.requests.get(name)
            if state is None or wish.exhausted or state.document["app"] not in folded.apps:
                continue
            if wish.waits_for or self._hooks.is_in_question(wish.upstream):
                continue  # it rests on content that is lost, or may be
            if self._ctx.unix_ms > state.record.expires_unix_ms:
                self._review(wish)  # it has expired while it was open
                return
            resolution = fold.resolve(state.job)
            if fold.run_of(state, resolution) != errand.run:
                self._review(wish)  # another result of an input has become canonical
                return
            needed = isolation_needed(state.record, folded)
            needs = needs_of(folded.apps, state.document)
            if needs.secrets and (errand.service, state.job) not in self._ctx.secrets_held:
                continue  # it waits for who has them
            network_for = state.document["app"] if needs.network else ""
            fitting = [
                entry
                for entry in candidates
                if (not wish.taken or entry.peer == self._ctx.me)
                and misfit(entry, state.record.resources, needed, state.record.targets, network_for)
                is None
                and not self._is_resting(errand, entry.peer)
            ]
            held = self.holdings.of(resolution, fold)
            chosen = self._first(errand, fold, fitting, held)
            if chosen is not None:
                self._give(errand, wish, state, chosen, fold)
                return

    def _give(
        self, errand: Errand, wish: Wish, state: RequestState, chosen: str, fold: ServiceFold
    ) -> None:
        self._counter += 1
        attempt = f"{self._ctx.me}/{self._ctx.config.boot.hex()[:16]}/{self._counter}"
        lease_ms = self._ctx.config.lease_ms
        now_ms = self._ctx.now_ms
        span_ms = state.record.resources.time_ms + lease_ms
        answer_ms, end_ms = now_ms + AWARD_ANSWER_MS, now_ms + span_ms
        errand.attempt = Attempt(attempt, chosen, state.id, answer_ms, end_ms, span_ms)
        key = (errand.service, errand.run)
        self._by_attempt[attempt] = key
        self._due.set(key, errand.attempt.deadline_ms)
        errand.attempt.for_guests = errand.for_guests
        self._count_out(errand.attempt, 1)
        self._close(errand)
        for cid in wish.upstream:
            self._hooks.push(chosen, fold.results[cid].segment)
        award = Award(errand.service, state.id, errand.run, attempt, wish.upstream, lease_ms)
        self._hooks.deliver(chosen, award)

    def _has_room(self, entry: Presence) -> bool:
        """Say whether more may be awarded ahead; the node shares its slots among submitters, so
        what it has of others is no reason to wait."""
        return self._outstanding.get(entry.peer, 0) < entry.slots * (1 + BACKLOG_PER_SLOT_MAX)

    def _rest_ms(self, peer: str) -> int:
        return DECLINE_PAUSE_MS << min(self._strikes.get(peer, 0), STRIKES_MAX)

    def _is_resting(self, errand: Errand, peer: str) -> bool:
        declined = errand.declined.get(peer)
        return declined is not None and self._ctx.now_ms - declined[0] < self._rest_ms(peer)

    def _first(
        self, errand: Errand, fold: ServiceFold, fitting: list[Presence], held: Mapping[str, int]
    ) -> str | None:
        """Return whom to ask: who started the run already, else the best that has not failed it:
        free, then with most bytes of its inputs, then by rendezvous."""
        peers = {entry.peer for entry in fitting}
        for _, worker in fold.live_attempts(errand.run):
            if worker in peers and worker not in errand.failed_on:
                return worker
        weighted = [e for e in rank(errand.run, fitting) if e.peer not in errand.failed_on]
        weighted.sort(key=lambda e: held.get(e.peer, 0), reverse=True)
        weighted.sort(key=lambda e: max(self._outstanding.get(e.peer, 0), e.load) >= e.slots)
        if not weighted and fitting:  # all have failed it: once more, after a while
            if self._ctx.now_ms < errand.rest_until_ms:
                return None
            weighted = rank(errand.run, fitting)
        return weighted[0].peer if weighted else None

    # -- answers ------------------------------------------------------------------------

    def on_have(self, peer: str, message: Have) -> None:
        """The worker holds the run, maybe under an older attempt: follow that."""
        errand = self._errand_at(peer, message.service, message.run, message.attempt)
        if errand is None or errand.attempt is None:
            return
        if not is_attempt(message.attempt) or message.state not in _HELD_STATES:
            self._ctx.refuse(peer, "a run that is held in no way that there is")
            return
        attempt = errand.attempt
        self._forget_attempt(errand)
        attempt.id = message.attempt
        self._by_attempt[message.attempt] = (errand.service, errand.run)
        attempt.held = True
        self._strikes.pop(peer, None)
        attempt.note_waiting(self._ctx.now_ms)
        if attempt.state != message.state:
            attempt.state = message.state
            self._tell(errand)
        self._renew(errand, attempt)

    def _tell(self, errand: Errand) -> None:
        fold = self._hooks.fold(errand.service)
        for name in errand.wishes:
            if name in fold.requests:
                self._ctx.emit(JobChanged(errand.service, fold.requests[name].job))

    def _renew(self, errand: Errand, attempt: Attempt) -> None:
        attempt.note_waiting(self._ctx.now_ms)
        lease_end_ms = self._ctx.now_ms + self._ctx.config.lease_ms
        self._put_deadline(errand, attempt, min(lease_end_ms, attempt.end_ms))

    def _put_deadline(self, errand: Errand, attempt: Attempt, at_ms: int) -> None:
        attempt.deadline_ms = at_ms
        self._due.set((errand.service, errand.run), at_ms)

    def _errand_at(self, peer: str, service: str, run: str, attempt: str) -> Errand | None:
        """Return the errand whose attempt is under way at `peer`."""
        key = self._by_attempt.get(attempt, (service, run))
        errand = self.errands.get(key)
        if errand is None or errand.attempt is None or errand.attempt.worker != peer:
            return None
        return errand

    def on_decline(self, peer: str, message: Decline) -> None:
        """Ask the next node; remember why (for `why`)."""
        errand = self._errand_at(peer, message.service, message.run, message.attempt)
        if errand is None:
            return
        errand.declined[peer] = (self._ctx.now_ms, _shortened(message))
        if errand.attempt is not None and errand.attempt.for_guests:
            self._guests_rest_ms[peer] = self._ctx.now_ms + DECLINE_PAUSE_MS
        else:
            self._strike(peer)
        self._reopen(errand)

    def _strike(self, peer: str) -> None:
        self._strikes[peer] = self._strikes.get(peer, 0) + 1

    def _reopen(self, errand: Errand) -> None:
        self._end_attempt(errand)
        self._reopen_run(errand)
        for name in errand.wishes:
            self._refresh_exhausted(self.wishes[name])

    def _refresh_exhausted(self, wish: Wish) -> None:
        fold = self._hooks.fold(wish.service)
        state = fold.requests.get(wish.request)
        if state is not None and wish.run is not None:
            wish.exhausted = fold.lost_attempts(state, wish.run) >= ATTEMPTS_MAX

    def on_beat(self, peer: str, message: Beat) -> None:
        """Renew leases, and note how far the attempts are."""
        told = (*(message.permille or ()), *(0,) * len(message.attempts))
        for name, permille in zip(message.attempts[:1024], told, strict=False):
            key = self._by_attempt.get(name)
            errand = self.errands.get(key) if key is not None else None
            if errand and errand.attempt and errand.attempt.worker == peer:
                self._renew(errand, errand.attempt)
                self._note_progress(errand, errand.attempt, permille)

    def _note_progress(self, errand: Errand, attempt: Attempt, permille: int) -> None:
        if permille and permille != attempt.permille:
            attempt.permille = permille
            self._tell(errand)

    def on_renew(self, peer: str, message: Renew) -> Renewed | None:
        """Give an exclusive attempt more time, if it is the one under way and has time left."""
        errand = self.errands.get(self._by_attempt.get(message.attempt, ("", "")))
        attempt = errand.attempt if errand is not None else None
        if errand is None or attempt is None or attempt.worker != peer or not attempt.held:
            return None
        self._note_progress(errand, attempt, message.permille)
        attempt.note_waiting(self._ctx.now_ms)
        lease_ms = self._ctx.config.lease_ms
        if self._ctx.now_ms + lease_ms > attempt.end_ms:
            return None
        self._renew(errand, attempt)
        return Renewed(message.service, message.attempt, message.number, lease_ms)

    def may_have_secrets(self, peer: str, service: str, request: str, attempt: str) -> bool:
        """Say whether a peer may have the secrets of a request of this node: it holds the attempt
        that is under way for it, and its lease has not run out. The request that the award named
        may be canceled meanwhile, while others want the run."""
        errand = self.errands.get(self._by_attempt.get(attempt, ("", "")))
        going = errand.attempt if errand is not None else None
        if errand is None or going is None or errand.service != service:
            return False
        known = request in self._hooks.fold(service).requests
        if not known or (request not in errand.wishes and request != going.request):
            return False
        in_time = self._ctx.now_ms < going.deadline_ms
        return (going.worker, going.id) == (peer, attempt) and going.held and in_time

    def on_bid(self, peer: str, message: Bid) -> None:
        """A free node asks for work: what it declined before may be offered again, unless it has
        bid before and then declined; what waits in another's queue is awarded to it as well."""
        if self._strikes.get(peer, 0) > 1:
            return
        entry = next((e for e in self._candidates(message.service) if e.peer == peer), None)
        moves_left = entry.slots - self._outstanding.get(peer, 0) if entry is not None else 0
        for name in message.requests[:BIDS_PER_SCAN]:
            errand = self.errand_of(name)
            if errand is None or errand.service != message.service:
                continue
            errand.declined.pop(peer, None)
            self._look = True
            if entry is not None and moves_left > 0 and self._is_queued_elsewhere(errand, peer):
                moves_left -= self._move(errand, entry)

    @staticmethod
    def _is_queued_elsewhere(errand: Errand, peer: str) -> bool:
        attempt = errand.attempt
        return attempt is not None and attempt.state == "queued" and attempt.worker != peer

    def _move(self, errand: Errand, entry: Presence) -> bool:
        """Award a run that waits in a queue to a free node; the queue gives it back when that node
        starts it. Says whether the node fits."""
        before = errand.attempt
        assert before is not None
        self._end_attempt(errand)
        self._award(errand, [entry])
        if self.errands.get((errand.service, errand.run)) is not errand:  # nobody wants it any more
            self._cancel_now(errand, before)
            return False
        if errand.attempt is None:  # it does not fit there: all stays as it was
            errand.attempt = before
            self._by_attempt[before.id] = (errand.service, errand.run)
            self._due.set((errand.service, errand.run), before.deadline_ms)
            self._count_out(before, 1)
            return False
        self._ctx.counters["queued runs moved"] += 1
        return True

    def on_end(self, service: str, run: str, worker: str, attempt: str) -> None:
        """An attempt ended without a result: the next node."""
        errand = self._errand_at(worker, service, run, attempt)
        if errand is not None and errand.attempt is not None and errand.attempt.id == attempt:
            self._note_loss(errand, worker)
            self._reopen(errand)
            self._tell(errand)

    def on_peer_gone(self, peer: str) -> None:
        """Awards without an answer go elsewhere at once; leases run on."""
        for errand in list(self.errands.values()):
            if errand.attempt and errand.attempt.worker == peer and not errand.attempt.held:
                self._lose(errand, "the connection broke before an answer")

    def on_new_boot(self, peer: str) -> None:
        """A worker has restarted: what it waited for an answer about is lost; what it executed
        may have outlived the restart, and then it beats at once."""
        for errand in list(self.errands.values()):
            attempt = errand.attempt
            if attempt is None or attempt.worker != peer:
                continue
            if attempt.held and attempt.state == "executing":
                probe_end_ms = self._ctx.now_ms + PROBE_MS
                self._put_deadline(errand, attempt, min(attempt.deadline_ms, probe_end_ms))
            else:
                self._lose(errand, "the node restarted")

    def on_removed(self, service: str) -> None:
        """Give away the leases of nodes that may not compute any more."""
        folded = self._membership.folded(service)
        for errand in list(self.errands.values()):
            attempt = errand.attempt
            if errand.service != service or attempt is None:
                continue
            if "compute" not in folded.roles_of(attempt.worker):
                self._lose(errand, "the node may not compute for the service any more")

    def _lose(self, errand: Errand, why: str) -> None:
        """The attempt is lost; one that was held goes on record, and counts."""
        attempt = errand.attempt
        assert attempt is not None
        self._note_loss(errand, attempt.worker)
        if not attempt.held:
            self._strike(attempt.worker)
            self._cancel_now(errand, attempt)
        elif not self._hooks.is_twins_attempt(attempt.id):
            self._hooks.append(
                errand.service,
                End(attempt.request, errand.run, attempt.id, "infra", why, self._ctx.unix_ms),
            )
        self._reopen(errand)
        self._tell(errand)

    def _note_loss(self, errand: Errand, worker: str) -> None:
        """A run that nobody can finish just now must not use up its attempts within a moment."""
        self._ctx.counters["attempts lost"] += 1
        errand.failed_on.add(worker)
        errand.losses += 1
        pause_ms = DECLINE_PAUSE_MS << min(errand.losses, STRIKES_MAX)
        errand.rest_until_ms = self._ctx.now_ms + pause_ms
        resting_on = {c for name in errand.wishes for c in self.wishes[name].upstream}
        for cid in sorted(resting_on):
            self._hooks.doubt(errand.service, cid)

    def _end_attempt(self, errand: Errand) -> None:
        attempt = errand.attempt
        if attempt is None:
            return
        self._forget_attempt(errand)
        self._due.drop((errand.service, errand.run))
        self._count_out(attempt, -1)
        errand.attempt = None
        self._look = True

    def _forget_attempt(self, errand: Errand) -> None:
        """The id of an errand's attempt names it no more; a worker may have said that it holds it
        under one that was given to somebody else since."""
        key = (errand.service, errand.run)
        if errand.attempt is not None and self._by_attempt.get(errand.attempt.id) == key:
            del self._by_attempt[errand.attempt.id]

    def _count_out(self, attempt: Attempt, more: int) -> None:
        """Count what a worker was awarded; guests' runs do not keep members' from it."""
        counts = self._guests_out if attempt.for_guests else self._outstanding
        counts[attempt.worker] = counts.get(attempt.worker, 0) + more
        if counts[attempt.worker] <= 0:
            del counts[attempt.worker]

    # -- time ---------------------------------------------------------------------------

    def on_wake(self) -> None:
        """The machine slept: one more round before leases run out."""
        for errand in self.errands.values():
            if errand.attempt is not None:
                deadline_ms = max(errand.attempt.deadline_ms, self._ctx.now_ms + PROBE_MS)
                self._put_deadline(errand, errand.attempt, deadline_ms)

    def tick(self) -> None:
        """Let answers and leases run out."""
        for key in self._due.due(self._ctx.now_ms):
            errand = self.errands[key]
            assert errand.attempt is not None
            held = errand.attempt.held
            self._ctx.counters["leases lost"] += held
            self._lose(errand, "its lease ran out" if held else "no answer")

    def deadline_ms(self) -> int | None:
        """When something runs out, or a node that declined may be asked again."""
        return earliest_ms(
            self._due.next_ms(),
            self._review_ms if self._by_upstream else None,
            self._look_ms if self._open or self._open_guests else None,
            self._go_on_ms if self._left else None,
        )


def _take_out(by_service: dict[str, dict[str, None]], errand: Errand) -> None:
    runs = by_service.get(errand.service)
    if runs is not None:
        runs.pop(errand.run, None)
        if not runs:
            del by_service[errand.service]


def _shortened(message: Decline) -> Decline:
    """Return what is kept of a decline: it is for people."""
    words = (text[:_WORDS_MAX] for text in (message.reason, message.needs, message.has))
    return Decline(message.service, message.run, message.attempt[:NAME_LENGTH_MAX], *words)


def _discard(index: dict[str, set[str]], key: str, name: str) -> None:
    """Take a name out of an index, and its empty set with it."""
    names = index.get(key)
    if names is not None:
        names.discard(name)
        if not names:
            del index[key]
