"""The worker: accepts awards, runs them within the owner's capacity, signs results.

    award --fits--> queued --resources free--> executing --Executed--> result | end(infra, canceled)
      |                                            |
      +--> decline                                 +--> cancel_now, cancel: killed

A run that is executed or has a result here is answered with `have`, whoever asks. A run that waits
here while another node executes it is given back. What guests of public services ask for runs only
where a slot is free, and gives way when a member's run needs its place. Clock: a beat to every
coordinator each third of the lease, and on a new connection. The worker does not die with its
lease, but for an *exclusive* run, which begins when it is confirmed and ends EXCLUSIVE_MARGIN_MS
before it (`leases`). A run that outlives a restart of its node is adopted, under its attempt id.
"""

from collections import Counter
from dataclasses import dataclass, field, replace

from pairio_protocol.context import Context
from pairio_protocol.effects import Execute, JobChanged, Kill
from pairio_protocol.errors import DefinitionError
from pairio_protocol.events import Adopted, Executed, Progressed
from pairio_protocol.fold import ResultInfo, ServiceFold
from pairio_protocol.ids import is_attempt_of
from pairio_protocol.limits import ATTEMPTS_REMEMBERED_MAX, RECORD_SIZE_BYTES_MAX
from pairio_protocol.machines.admission import Admission
from pairio_protocol.machines.deadlines import earliest_ms
from pairio_protocol.machines.fair_share import FairShare
from pairio_protocol.machines.membership_view import MembershipView
from pairio_protocol.machines.owner import Owner
from pairio_protocol.machines.tasks import Refusal, Task, fits, less, more
from pairio_protocol.messages import Award, Beat, Decline, Have, Renew, Renewed
from pairio_protocol.open_submit import GUESTS
from pairio_protocol.records import End, Record, Result, ResultDocument, Start
from pairio_protocol.segment import record_size

__all__ = ["Task", "Worker"]


class Hooks:
    """What the worker needs of its surroundings; given by the core."""

    def fold(self, service: str) -> ServiceFold:
        """Return the fold of a service."""
        raise NotImplementedError

    def append(self, service: str, record: Record) -> tuple[bytes, int]:
        """Add a record to this node's log; return its (boot, seq)."""
        raise NotImplementedError

    def push(self, peer: str, segment: bytes) -> None:
        """Make sure that a peer has a segment."""
        raise NotImplementedError

    def to_coordinator(self, peer: str, message: Have | Decline | Beat | Renew) -> None:
        """Send to a coordinator, which may be this node itself."""
        raise NotImplementedError

    def begun_elsewhere(self, service: str) -> set[str]:
        """Return the attempts of this key that another home began."""
        raise NotImplementedError

    def load_changed(self, load: int) -> None:
        """The number of queued and executing runs is another."""
        raise NotImplementedError


_GAVE_WAY = "a member's run needed its place"
_LEASE_OVER = "its lease ran out, and it must not run twice"


def _words(text: str, length_max: int) -> str:
    """Return what a run's end says as a record may hold it."""
    return text[:length_max].encode("utf-8", "replace").decode()


@dataclass
class Worker:
    """The runs of this node, by attempt id, oldest first."""

    ctx: Context
    membership: MembershipView
    hooks: Hooks
    owner: Owner
    tasks: dict[str, Task] = field(default_factory=dict)
    share: FairShare = field(default_factory=FairShare)
    #: The attempts that began here since the node started, oldest first: the last ones.
    begun: dict[str, None] = field(default_factory=dict)
    _results_to_push: list[tuple[str, str, set[str]]] = field(default_factory=list)
    admission: Admission = field(init=False)
    _beat_ms: int = 0

    def __post_init__(self) -> None:
        fold = self.hooks.fold
        self.admission = Admission(self.ctx, self.membership, self.owner, fold, self.tasks)

    # -- awards -------------------------------------------------------------------------

    def on_award(self, peer: str, award: Award) -> None:
        """Accept, or say why not."""
        fold = self.hooks.fold(award.service)
        state = fold.requests.get(award.request)
        if not is_attempt_of(award.attempt, peer):
            self.ctx.refuse(peer, "an award under somebody else's attempt id")
            return
        if state is None or peer not in (state.author, self.ctx.me):
            self._decline(peer, award, Refusal("the request is not known here"))
            return
        resolution = fold.resolve(state.job)
        answer = fold.answer_for(state, resolution)
        if answer is not None:
            self.hooks.push(peer, answer.segment)
            self._have(peer, award.service, award.run, award.attempt, "done")
            return
        for task in self.tasks.values():
            if task.award.run == award.run and not task.canceled:
                if task.lease is not None and peer not in task.coordinators:
                    task.lease.ends_ms[peer] = self.ctx.now_ms + award.lease_ms
                task.coordinators.add(peer)
                self._report(task, peer)
                return
        if self._is_used(award, fold):
            self._decline(peer, award, Refusal("this attempt id has been used here"))
            return
        hours = self.owner.closed(award.service)
        if hours is not None:
            self._decline(peer, award, Refusal("owner's hours", hours, "now is outside them"))
            return
        accepted = self.admission.check(award, state, resolution, fold)
        if isinstance(accepted, Refusal):
            self._decline(peer, award, accepted)
            return
        if not self.tasks:  # nothing to renew yet: it has just been said
            self._beat_ms = self.ctx.now_ms + self.ctx.config.lease_ms // 3
        self.tasks[award.attempt] = accepted
        accepted.coordinators.add(peer)
        self._report(accepted, peer)
        self._renew(accepted)
        self._pump()
        self.hooks.load_changed(self.load)

    def _is_used(self, award: Award, fold: ServiceFold) -> bool:
        """Say whether the attempt id stands for what this node has or had. The executor may be at
        it still when its task is gone, and would take what another run makes for its own."""
        if award.attempt in self.tasks or award.attempt in self.begun:
            return True
        run = fold.runs.get(award.run)  # of before a restart
        return run is not None and (award.attempt, self.ctx.me) in run.starts

    def _note_begun(self, attempt: str) -> None:
        self.begun[attempt] = None
        if len(self.begun) > ATTEMPTS_REMEMBERED_MAX:
            del self.begun[next(iter(self.begun))]

    @property
    def load(self) -> int:
        """How many runs are queued or executing for members: those of guests give way."""
        return sum(task.submitter != GUESTS for task in self.tasks.values())

    def takes_guests(self) -> bool:
        """Say whether a stranger's run would begin here now."""
        return self.ctx.config.guests and len(self.tasks) < self.slots

    @property
    def slots(self) -> int:
        """How many runs of one CPU go on at once."""
        return self.admission.slots

    def _decline(self, peer: str, award: Award, why: Refusal) -> None:
        self.ctx.counters["awards declined"] += 1
        self.hooks.to_coordinator(
            peer,
            Decline(award.service, award.run, award.attempt, why.reason, why.needs, why.has),
        )

    def _have(self, peer: str, service: str, run: str, attempt: str, state: str) -> None:
        self.hooks.to_coordinator(peer, Have(service, run, attempt, state))

    def _report(self, task: Task, peer: str) -> None:
        state = "executing" if task.executing else "queued"
        self._have(peer, task.award.service, task.award.run, task.award.attempt, state)

    # -- running ------------------------------------------------------------------------

    def _pump(self) -> None:
        """Start what fits into the free part of the capacity, by fair share."""
        config = self.ctx.config
        free = [config.cpu_millicores, config.memory_mib, config.gpus]
        for task in self.tasks.values():
            if task.submitter == GUESTS:  # a member may have asked for the same meanwhile
                task.submitter = self.admission.submitter(task.award.service, task.state)
            if task.executing:
                free = less(free, task.needs)
        while fitting := self._fitting(free):
            task = self.share.first(fitting, self.ctx.now_ms)
            fold = self.hooks.fold(task.award.service)
            if not fold.who_wants(task.award.run, task.state.job, self.ctx.unix_ms):
                self._give_back(task, Refusal("the request is not wanted"))
                continue
            free = less(free, task.needs)
            self.share.started(task.submitter)
            self._start(task)
        self._make_place(free)

    def _make_place(self, free: list[int]) -> None:
        """End as many runs of guests, the newest first, as members' runs that wait need."""
        guests = [t for t in self.tasks.values() if t.executing and t.submitter == GUESTS]
        if not guests:
            return
        staying = [t for t in guests if not (t.gives_way or t.canceled)]
        leaving = [t for t in guests if t not in staying]
        for task in leaving:
            free = more(free, task.needs)
        executing = Counter(
            t.award.service for t in self.tasks.values() if t.executing and t not in leaving
        )
        for waiting in [t for t in self.tasks.values() if not t.executing]:
            going: list[Task] = []
            room, left = free, executing.copy()
            while not self._could_begin(waiting, room, left) and len(going) < len(staying):
                going.append(staying[-1 - len(going)])
                room = more(room, going[-1].needs)
                left[going[-1].award.service] -= 1
            if waiting.submitter == GUESTS or not self._could_begin(waiting, room, left):
                continue
            free, executing = less(room, waiting.needs), left
            executing[waiting.award.service] += 1
            for task in going:
                staying.remove(task)
                task.gives_way = True
                self.ctx.counters["runs of guests that gave way"] += 1
                self.ctx.emit(Kill(task.award.attempt, _GAVE_WAY))

    def _could_begin(self, task: Task, free: list[int], executing: Counter[str]) -> bool:
        """Say whether a run fits into what is free, and may begin by the owner's rules."""
        if not fits(task.needs, free):
            return False
        return not self.ctx.config.owner_rules or self._may_begin(task.award.service, executing)

    def _fitting(self, free: list[int]) -> list[Task]:
        """Return what waits here, fits into what is free, and may begin by the owner's rules."""
        fitting = [
            task
            for task in self.tasks.values()
            if not task.executing
            and fits(task.needs, free)
            and (task.lease is None or task.lease.holds(task.coordinators, self.ctx.now_ms))
        ]
        if not self.ctx.config.owner_rules:
            return fitting
        executing = Counter(t.award.service for t in self.tasks.values() if t.executing)
        may_begin = {
            service: self._may_begin(service, executing)
            for service in {task.award.service for task in fitting}
        }
        return [task for task in fitting if may_begin[task.award.service]]

    def _may_begin(self, service: str, executing: Counter[str]) -> bool:
        """Say whether the owner lets one more job of a service begin now."""
        in_all, limit = self.owner.jobs_in_all_max, self.owner.jobs_max(service)
        full = (in_all is not None and executing.total() >= in_all) or (
            limit is not None and executing[service] >= limit
        )
        return not full and self.owner.closed(service) is None

    def on_hours(self) -> None:
        """The owner's hours are others: what only waits here, and may not begin, is given back."""
        for task in list(self.tasks.values()):
            hours = self.owner.closed(task.award.service)
            if not task.executing and hours is not None:
                self._give_back(task, Refusal("owner's hours", hours, "now is outside them"))
        self._pump()

    def _start(self, task: Task) -> None:
        task.executing = True
        self._note_begun(task.award.attempt)
        task.started_unix_ms = self.ctx.unix_ms
        award, resolution = task.award, task.resolution
        assert resolution.job is not None and resolution.document is not None
        self.hooks.append(
            award.service,
            Start(award.request, award.run, award.attempt, resolution.upstream, self.ctx.unix_ms),
        )
        fold = self.hooks.fold(award.service)
        workers = [fold.results[c].document.worker for c in resolution.upstream]
        holders = [*task.coordinators, *workers, *self.membership.connected_members(award.service)]
        self.ctx.emit(
            Execute(
                service=award.service,
                attempt=award.attempt,
                request=award.request,
                run=award.run,
                upstream=resolution.upstream,
                coordinators=tuple(sorted(task.coordinators)),
                lease_ms=award.lease_ms,
                started_unix_ms=task.started_unix_ms,
                job=resolution.job,
                document=resolution.document,
                processor=task.processor,
                bundle=task.bundle,
                resources=task.resources,
                isolation_min=task.isolation_min,
                holders=tuple(dict.fromkeys(p for p in holders if p != self.ctx.me)),
                for_guest=bool(task.state.record.sponsor_of),
            )
        )
        for peer in sorted(task.coordinators):
            self._report(task, peer)

    # -- after a restart ------------------------------------------------------------------

    def adopt(self, event: Adopted) -> None:
        """Go on with a run that outlived the last start of this node, if it is still wanted."""
        self._note_begun(event.attempt)
        award = Award(
            event.service, event.request, event.run, event.attempt, event.upstream, event.lease_ms
        )
        if event.service not in self.membership.taken_up:
            self.ctx.emit(Kill(event.attempt, "the service is not taken up any more"))
            return
        fold = self.hooks.fold(event.service)
        state = fold.requests.get(event.request)
        wanted = state is not None and fold.who_wants(event.run, state.job, self.ctx.unix_ms)
        if state is None or not wanted:
            self.ctx.emit(Kill(event.attempt, "nobody wants it any more"))
            return
        resolution = replace(fold.resolve(state.job), lacks=())  # it has begun, with what it needs
        checked = self.admission.check(award, state, resolution, fold)
        if isinstance(checked, Refusal):
            self.ctx.emit(Kill(event.attempt, checked.reason))
            return
        checked.executing = True
        if checked.lease is not None:  # its job has ended with the last start: it left an outcome
            end_ms = self.ctx.now_ms + event.lease_ms
            checked.lease.ends_ms = dict.fromkeys(event.coordinators, end_ms)
        checked.started_unix_ms = event.started_unix_ms
        checked.coordinators = set(event.coordinators)
        self.tasks[event.attempt] = checked
        self.ctx.counters["runs adopted"] += 1
        if (event.attempt, self.ctx.me) not in fold.run(event.run).starts:
            start = Start(
                event.request, event.run, event.attempt, event.upstream, event.started_unix_ms
            )
            self.hooks.append(event.service, start)
        self.hooks.load_changed(self.load)

    def end_lost(self, service: str) -> None:
        """End, on record, what an earlier start of this node began and what did not outlive it."""
        fold = self.hooks.fold(service)
        elsewhere = self.hooks.begun_elsewhere(service)
        for run in fold.runs:
            for attempt, worker in fold.live_attempts(run):
                if worker == self.ctx.me and attempt not in (self.tasks.keys() | elsewhere):
                    start = fold.runs[run].starts[attempt, worker]
                    why = "the node restarted"
                    self.hooks.append(
                        service,
                        End(start.request, run, attempt, "infra", why, self.ctx.unix_ms),
                    )

    def on_peer_up(self) -> None:
        """Whoever coordinates what runs here is to hear of it at once."""
        self._beat_ms = self.ctx.now_ms

    def on_executed(self, event: Executed) -> None:
        """Turn what the executor says into a signed result, or into an end."""
        task = self.tasks.pop(event.attempt, None)
        if task is None:
            return
        award = task.award
        self.share.used(task.submitter, event.usage.get("cpu_ms", 0), self.ctx.now_ms)
        if event.kind:
            kind, reason = "canceled" if task.canceled else event.kind, event.error
            if task.gives_way and not task.canceled:
                kind, reason = "yield", _GAVE_WAY
            if task.lease is not None and task.lease.lost:
                kind, reason = "infra", _LEASE_OVER
            self.hooks.append(
                award.service,
                End(
                    award.request,
                    award.run,
                    award.attempt,
                    kind,
                    _words(reason, 2000),
                    self.ctx.unix_ms,
                ),
            )
        else:
            self._sign(task, event)
        self._pump()
        self.hooks.load_changed(self.load)
        self.ctx.emit(JobChanged(award.service, task.state.job))

    def _sign(self, task: Task, event: Executed) -> None:
        award, resolution = task.award, task.resolution
        assert resolution.job is not None
        document = ResultDocument(
            service=award.service,
            job=resolution.job,
            run=award.run,
            salt=task.salt,
            attempt=award.attempt,
            status=event.status,
            error=_words(event.error, 4000),
            outputs=event.outputs,
            console=event.console,
            usage=event.usage,
            code=task.state.document["code"],
            isolation=event.isolation,
            upstream=resolution.upstream,
            worker=self.ctx.me,
            started_unix_ms=task.started_unix_ms,
            finished_unix_ms=self.ctx.unix_ms,
            limit=event.limit,
            sources=event.sources,
        )
        data = self._signed(document)
        self.hooks.append(award.service, Result(data))
        self._results_to_push.append((award.service, award.run, task.coordinators))

    def _signed(self, document: ResultDocument) -> bytes:
        """Sign a result; one whose outputs are more than a record can name has failed. What was
        read by URL is left out where there is no place for it."""
        try:
            data = document.sign(self.ctx.key)
            size = record_size(Result(data))
            why = f"the result takes {size} bytes; at most {RECORD_SIZE_BYTES_MAX}"
        except DefinitionError as error:
            size, why = RECORD_SIZE_BYTES_MAX + 1, str(error)
        if size <= RECORD_SIZE_BYTES_MAX:
            return data
        if document.sources:
            return self._signed(replace(document, sources={}))
        told = f"its outputs cannot be named ({why}): make fewer, or a folder of them"
        failed = replace(document, status="failed", outputs={}, error=_words(told, 4000), limit="")
        return failed.sign(self.ctx.key)

    def on_sealed(self) -> None:
        """Send the segments of new results to those who wait for them, and to the home nodes of
        their jobs, before any gossip."""
        pushes, self._results_to_push = self._results_to_push, []
        for service, run, coordinators in pushes:
            fold = self.hooks.fold(service)
            for cid in sorted(fold.run(run).results):
                info = fold.results[cid]
                if info.document.worker == self.ctx.me:
                    homes = self.membership.home_nodes(service, info.document.job)
                    for peer in sorted({*coordinators, *homes} - {self.ctx.me}):
                        self.hooks.push(peer, info.segment)

    def on_progress(self, event: Progressed) -> None:
        """Note how far a run is: its coordinators hear it with the next beat, this node now."""
        task = self.tasks.get(event.attempt)
        if task is None or task.permille == event.permille:
            return
        task.permille = event.permille
        if self.ctx.me in task.coordinators:
            beat = Beat(task.award.service, (event.attempt,), (event.permille,))
            self.hooks.to_coordinator(self.ctx.me, beat)

    # -- ending what is not wanted --------------------------------------------------------

    def cancel(self, attempt: str, peer: str) -> None:
        """A coordinator no longer wants the attempt; it is killed when nobody does."""
        task = self.tasks.get(attempt)
        if task is None:
            return
        task.coordinators.discard(peer)
        fold = self.hooks.fold(task.award.service)
        others = fold.who_wants(task.award.run, task.state.job, self.ctx.unix_ms)
        if not task.coordinators and all(state.author == peer for state in others):
            self._kill(task, "canceled")

    def review(self, service: str) -> None:
        """Kill what nobody wants any more: canceled, answered, or of a removed submitter."""
        fold = self.hooks.fold(service)
        roles_of = self.membership.folded(service).roles_of
        computes = "compute" in roles_of(self.ctx.me)
        for task in list(self.tasks.values()):
            if task.award.service != service or task.canceled:
                continue
            wanted = [
                state
                for state in fold.who_wants(task.award.run, task.state.job, self.ctx.unix_ms)
                if "submit" in roles_of(state.author)
            ]
            if not wanted or not computes:
                self._kill(task, "nobody wants it any more")

    def on_result(self, service: str, result: ResultInfo) -> None:
        """A result was accepted: what else runs for the same job, and nobody wants now, ends."""
        job = result.document.job
        if any(task.resolution.job == job for task in self.tasks.values()):
            self.review(service)

    def on_start(self, service: str, start: Start, author: str) -> None:
        """Another node executes a run that only waits here: it goes on there."""
        live = self.hooks.fold(service).live_attempts(start.run)
        if author == self.ctx.me or (start.attempt, author) not in live:
            return
        for task in list(self.tasks.values()):
            if task.award.run == start.run and not task.executing:
                self._give_back(task, Refusal("another node executes it", "", author))

    def drain(self) -> None:
        """Take no more runs, and give back what only waits here: the node is about to stop."""
        self.ctx.config = replace(self.ctx.config, compute=False)
        for task in list(self.tasks.values()):
            if not task.executing:
                self._give_back(task, Refusal("the node stops"))
        self.hooks.load_changed(self.load)

    def leave(self, service: str) -> None:
        """This node takes part in a service no more: what it has of it ends, and others take it."""
        for attempt, task in list(self.tasks.items()):
            if task.award.service != service:
                continue
            if not task.executing:
                self._give_back(task, Refusal("the node leaves the service"))
                continue
            del self.tasks[attempt]
            award, why = task.award, "the node left the service"
            end = End(award.request, award.run, attempt, "yield", why, self.ctx.unix_ms)
            self.hooks.append(service, end)
            self.ctx.emit(Kill(attempt, why))
        self.hooks.load_changed(self.load)

    def _give_back(self, task: Task, why: Refusal) -> None:
        """Drop a run that only waits here, and say so to those who awarded it."""
        del self.tasks[task.award.attempt]
        for peer in sorted(task.coordinators):
            self._decline(peer, task.award, why)
        self.hooks.load_changed(self.load)

    def _kill(self, task: Task, why: str) -> None:
        task.canceled = True
        if task.executing:
            self.ctx.emit(Kill(task.award.attempt, why))
        else:
            del self.tasks[task.award.attempt]
            self.hooks.load_changed(self.load)
            self._pump()

    # -- time ---------------------------------------------------------------------------

    def tick(self) -> None:
        """Renew leases."""
        self._end_leases()
        if self.tasks and self.ctx.now_ms >= self._beat_ms:
            self._beat_ms = self.ctx.now_ms + self.ctx.config.lease_ms // 3
            by_peer: dict[tuple[str, str], dict[str, int]] = {}
            for attempt, task in self.tasks.items():
                if task.lease is not None:
                    self._renew(task)
                    continue
                for peer in task.coordinators:
                    by_peer.setdefault((peer, task.award.service), {})[attempt] = task.permille
            for (peer, service), told in sorted(by_peer.items()):
                attempts, permille = tuple(told)[:512], tuple(told.values())[:512]
                beat = Beat(service, attempts, permille if any(permille) else None)
                self.hooks.to_coordinator(peer, beat)

    def deadline_ms(self) -> int | None:
        """When a beat is due, or an exclusive run is to end."""
        if not self.tasks:
            return None
        leased = [task for task in self.tasks.values() if task.lease is not None]
        ends = (task.lease.due_ms(task.coordinators) for task in leased if task.lease is not None)
        return earliest_ms(self._beat_ms, *ends)

    # -- leases of exclusive runs ---------------------------------------------------------

    def _renew(self, task: Task) -> None:
        """Ask the coordinators of an exclusive run for more time."""
        if task.lease is None:
            return
        number = task.lease.ask(self.ctx.now_ms)
        renew = Renew(task.award.service, task.award.attempt, number, task.permille)
        for peer in sorted(task.coordinators):
            self.hooks.to_coordinator(peer, renew)

    def on_renewed(self, peer: str, message: Renewed) -> None:
        """A coordinator has given an exclusive run more time; it may begin now."""
        task = self.tasks.get(message.attempt)
        if task is None or task.lease is None or peer not in task.coordinators:
            return
        if task.lease.on_renewed(peer, message.number, message.lease_ms):
            self._pump()
            self.hooks.load_changed(self.load)

    def _end_leases(self) -> None:
        """End exclusive runs before their leases do, by this node's clock."""
        for task in list(self.tasks.values()):
            if task.lease is None:
                continue
            due_ms = task.lease.due_ms(task.coordinators)
            if due_ms is None or self.ctx.now_ms < due_ms:
                continue
            if not task.executing:
                self._give_back(task, Refusal(_LEASE_OVER))
            else:
                task.lease.lost = True
                self.ctx.counters["exclusive runs ended with their lease"] += 1
                self.ctx.emit(Kill(task.award.attempt, _LEASE_OVER))
