"""NodeCore: one node's decisions. `handle(event, now_ms)` -> effects; nothing else happens.

The core routes events to its machines and holds back what must wait for the disk:

    handle(event) ... handle(event) -> seal() -> Commit(ticket), effects that may go now
                                                     |
                                    Committed(ticket) -> effects that waited: replies, acks

`seal` signs what the turns since the last one wrote to this node's logs, folds it, and lets the
coordinator award: awards, results and gossip need not wait for the disk, since a log is never
continued after a restart. A peer's wrong move is a `Refuse`, never an exception.
"""

from dataclasses import replace
from typing import Any

from pairio_protocol import events as ev
from pairio_protocol.apps import needs_of
from pairio_protocol.commands import Commands
from pairio_protocol.context import Context, CoreConfig
from pairio_protocol.disk import Disk
from pairio_protocol.documents import document_cid, encode
from pairio_protocol.effects import Commit, Effect
from pairio_protocol.errors import DecodeError
from pairio_protocol.fold import RequestState, ResultInfo, ServiceFold
from pairio_protocol.guests import Guests
from pairio_protocol.ids import LogId, request_id
from pairio_protocol.intake import Intake
from pairio_protocol.jobs import decode_job
from pairio_protocol.joining import Joining
from pairio_protocol.limits import RECORD_SIZE_BYTES_MAX, REQUEST_EXPIRY_MS
from pairio_protocol.lookups import Lookups
from pairio_protocol.machines import (
    bidder,
    contents,
    errands,
    replication,
    retention,
    worker,
)
from pairio_protocol.machines.bidder import Bidder
from pairio_protocol.machines.contents import Contents
from pairio_protocol.machines.coordinator import Coordinator
from pairio_protocol.machines.log import Log
from pairio_protocol.machines.logs import Logs
from pairio_protocol.machines.membership import Membership
from pairio_protocol.machines.owner import Owner
from pairio_protocol.machines.presence import PresenceBook
from pairio_protocol.machines.replication import Replication
from pairio_protocol.machines.retention import Retention
from pairio_protocol.machines.sync import Sync
from pairio_protocol.machines.twins import Twins
from pairio_protocol.machines.worker import Worker
from pairio_protocol.messages import (
    MESSAGES,
    Ack,
    Ask,
    Asked,
    AskNoMore,
    Award,
    Beat,
    Bid,
    CancelNow,
    Changes,
    Decline,
    Digest,
    Follow,
    Forks,
    Frontier,
    Have,
    Held,
    Hello,
    Hold,
    Kept,
    LookedUp,
    Lookup,
    Presence,
    PresenceUpdate,
    Proposal,
    Push,
    Renew,
    Renewed,
    SyncSegments,
    WantChanges,
    Where,
    WishAnswer,
    WishMessage,
)
from pairio_protocol.own_wishes import OwnWishes
from pairio_protocol.records import Cancel, Record, Request, Start, Unknown
from pairio_protocol.segment import Segment, record_size
from pairio_protocol.signing import SigningKey
from pairio_protocol.sponsors import Sponsors
from pairio_protocol.wire import UnknownKind

__all__ = ["NodeCore", "Sealed"]


class Sealed:
    """What `seal` gives: a commit to write, and effects to carry out at once."""

    def __init__(self, commit: Commit, effects: list[Effect]) -> None:
        self.commit = commit
        self.effects = effects


class NodeCore(
    errands.Hooks,
    worker.Hooks,
    bidder.Hooks,
    replication.Hooks,
    retention.Hooks,
    contents.Hooks,
):
    """The whole of a node but for I/O. See the module for how it is driven."""

    def __init__(self, key: SigningKey, config: CoreConfig) -> None:
        self.ctx = Context(key, config)
        self.membership = Membership(self.ctx)
        self.retention = Retention(self.ctx, self)
        self.logs = Logs(self.ctx, self.retention)
        self.twins = Twins(self.ctx, self._on_twins_changed)
        self.owner = Owner(self.ctx, self.membership)
        self.book = PresenceBook(self.ctx, self.membership, self.twins, self.owner)
        self.replication = Replication(self.ctx, self.membership, self)
        self.contents = Contents(self.ctx, self.membership, self)
        self.coordinator = Coordinator(self.ctx, self.membership, self)
        self.worker = Worker(self.ctx, self.membership, self, self.owner)
        self.bidder = Bidder(self.ctx, self.membership, self, self.owner)
        self.sync = Sync(self.ctx, self.membership, self.logs)
        self.folds: dict[str, ServiceFold] = {}
        self.disk = Disk(self)
        self.intake = Intake(self)
        self.lookups = Lookups(self)
        self.joining = Joining(self)
        self.own_wishes = OwnWishes(self)
        self.sponsors = Sponsors(self)
        self.guests = Guests(self)
        self.commands = Commands(self)
        self._boots: dict[str, bytes] = {}
        self._asking: set[tuple[str, str]] = set()  # jobs asked for since the last seal
        #: when each machine is due; the book of presence only while a service is taken up
        self._deadlines = tuple(
            machine.deadline_ms
            for machine in (
                self.coordinator,
                self.worker,
                self.bidder,
                self.replication,
                self.contents,
                self.retention,
                self.commands,
                self.lookups,
                self.sync,
                self.twins,
                self.own_wishes,
                self.sponsors,
                self.guests,
            )
        )
        self._due_ms: int | None = None
        self._is_due_known = False
        self._to_self: list[Award | Have | Decline | Beat | CancelNow | Renew | Renewed] = []

    # -- the four calls of the driver -----------------------------------------------------

    def handle(self, event: ev.Event, now_ms: int, unix_ms: int = 0) -> list[Effect]:
        """Let time pass, then take one event. Returns what the shell is to do, in order."""
        self.ctx.now_ms = max(self.ctx.now_ms, now_ms)
        self.ctx.unix_ms = unix_ms
        if isinstance(event, ev.Woke):  # before time passes: nothing was heard while it did
            self.coordinator.on_wake()
            self.bidder.on_wake()
        due_ms = self.next_deadline_ms()
        self._is_due_known = False  # whatever happens now may change it
        if due_ms is not None and self.ctx.now_ms >= due_ms:
            self._pass_time()
        self._route(event)
        self._settle()
        return self._take_effects()

    def has_pending(self) -> bool:
        """Say whether `seal` would give a commit."""
        return self.disk.has_pending()

    def can_wait(self) -> bool:
        """Say whether nobody waits for what `seal` would give now."""
        return self.disk.can_wait()

    def pending_count(self) -> int:
        """Return how many records wait; the driver seals at SEGMENT_RECORDS_MAX."""
        return self.logs.pending_count()

    def seal(self, now_ms: int, unix_ms: int = 0) -> Sealed | None:
        """Sign and hand out what has to be stored. None when there is nothing."""
        self.ctx.now_ms = max(self.ctx.now_ms, now_ms)
        self.ctx.unix_ms = unix_ms
        if not self.has_pending():
            return None
        self._is_due_known = False
        self.disk.begin()
        while segments := self.logs.seal(self.membership.chains):  # a record may call for another
            for segment in segments:
                self.intake.fold_segment(segment, own=True)
        self._asking.clear()
        commit = self.disk.seal()
        self.worker.on_sealed()
        self._settle()
        return Sealed(commit, self._take_effects())

    def next_deadline_ms(self) -> int | None:
        """When `TimePassed` is due at the latest."""
        if not self._is_due_known:
            due_ms = self.book.deadline_ms() if self.membership.taken_up else None
            for deadline_ms in self._deadlines:
                at_ms = deadline_ms()
                if at_ms is not None and (due_ms is None or at_ms < due_ms):
                    due_ms = at_ms
            self._due_ms, self._is_due_known = due_ms, True
        return self._due_ms

    def accepts_gossip(self, service: str, data: bytes) -> bool:
        """Say whether a frame of a topic may be passed on: a member signed it. Pure."""
        chain = self.membership.active(service)
        try:
            segment = self.logs.check(data, chain)
        except (DecodeError, LookupError):
            self.ctx.counters["refused: gossip that no member signed"] += 1
            return False
        return self.logs.may_count(segment)

    # -- time and events ------------------------------------------------------------------

    def _pass_time(self) -> None:
        self.coordinator.tick()
        self.worker.tick()
        self.bidder.tick()
        self.replication.tick()
        self.contents.tick()
        self.retention.tick()
        if self.membership.taken_up:
            self.book.tick()
        self.commands.tick()
        self.lookups.tick()
        self.sync.tick()
        self.twins.tick()
        self.own_wishes.tick()
        self.sponsors.tick()
        self.guests.tick()

    def _route(self, event: ev.Event) -> None:
        match event:
            case ev.FrameReceived():
                self._on_frame(event)
            case ev.GossipReceived():
                self.intake.take(event.forwarder, event.data, by_gossip=True)
            case ev.PeerUp():
                self.ctx.connected[event.peer] = event.addresses
                self.greet(event.peer)
                self.joining.on_peer_up(event.peer)
                self.own_wishes.on_peer_up(event.peer)
                self.guests.on_peer_up(event.peer)
                self.worker.on_peer_up()
                self.replication.on_peer_up()
                self.contents.on_peer_up()
                self.coordinator.look()
            case ev.PeerDown():
                self._on_peer_down(event.peer)
            case ev.Executed():
                self.worker.on_executed(event)
            case ev.Progressed():
                self.worker.on_progress(event)
            case ev.Fetched():
                self.replication.on_fetched(event.ticket, event.ok, event.no_room)
            case ev.Located():
                self.contents.on_located(event.ticket, event.here)
            case ev.LookedFurther():
                self.lookups.on_looked_further(event.call)
            case ev.ContentDropped():
                self.replication.on_dropped(event.results)
            case ev.ContentUnavailable():
                self.not_fetched(event.service, event.result, is_answer=True)
            case ev.Committed():
                self.disk.on_committed(event.ticket)
            case ev.CommitFailed():
                self.disk.on_commit_failed(event)
            case ev.Restored():
                self.disk.on_restored(event)
            case ev.Draining():
                self.worker.drain()
            case ev.OwnerHours():
                self._on_owner_hours(event)
            case ev.StorageRoom():
                self.ctx.no_room = (event.need, event.have) if event.need else None
                self.coordinator.look()
            case ev.SecretsHeld():
                self.ctx.secrets_held = event.held
                self.coordinator.look()
            case ev.Woke():
                for peer in list(self.ctx.connected):
                    self.greet(peer)
            case ev.TimePassed():
                pass
            case _:
                self.commands.on_command(event)

    def _settle(self) -> None:
        """Award what is open; deliver what this node says to itself."""
        self.coordinator.award_open()
        while self._to_self:
            queue, self._to_self = self._to_self, []
            for message in queue:
                self._on_job_message(self.ctx.me, message)
            self.coordinator.award_open()
        self.sponsors.look()

    def _take_effects(self) -> list[Effect]:
        effects, self.ctx.effects = self.ctx.effects, []
        return effects

    def _on_owner_hours(self, event: ev.OwnerHours) -> None:
        """The owner's hours begin or are over: give back what waits, and say so."""
        self.ctx.closed = event.closed
        self.worker.on_hours()
        self.book.changed()
        self.coordinator.look()

    # -- peers ----------------------------------------------------------------------------

    def greet(self, peer: str) -> None:
        """Tell a connected peer what we know of the services that we share."""
        self.membership.hello(peer)
        self.book.greet(peer)
        for service in self.membership.shared_with(peer):
            self.sync.send_digest(peer, service)

    def _on_peer_down(self, peer: str) -> None:
        self.ctx.connected.pop(peer, None)
        self.logs.forget_sent(peer)
        self.sync.on_peer_down(peer)
        self.coordinator.look()
        self.coordinator.on_peer_gone(peer)
        self.replication.on_peer_down(peer)
        self.contents.on_peer_down(peer)
        self.lookups.on_peers_changed()
        self.commands.on_peers_changed()
        self.sponsors.on_peer_down(peer)
        self.guests.on_peer_down(peer)

    def _on_frame(self, event: ev.FrameReceived) -> None:
        try:
            message = MESSAGES.decode(event.data)
        except UnknownKind:
            self.ctx.counters["messages of unknown kinds"] += 1
            return
        except DecodeError:
            self.ctx.refuse(event.peer, "malformed message")
            return
        self._on_message(event.peer, message)

    def _on_message(self, peer: str, message: Any) -> None:
        match message:
            case Hello():
                self._on_hello(peer, message)
            case WantChanges():
                shown = self.sponsors.shows(peer, message.service)
                self.membership.on_want_changes(peer, message, shown)
            case Changes():
                if self.membership.on_changes(peer, message):
                    self.intake.on_service_changed(message.service)
            case PresenceUpdate():
                if self.book.on_update(peer, message):
                    self.coordinator.look()
            case WishMessage():
                self.joining.on_wish(peer, message)
            case WishAnswer():
                if not self.joining.on_answer(peer, message):
                    self.own_wishes.on_answer(peer, message)
            case Follow() | Ask() | AskNoMore() | Asked():
                self._on_public_message(peer, message)
            case Held() | Ack() if not self.membership.shared_with(peer):
                self.ctx.refuse(peer, f"{MESSAGES.kind_of(message)} of a stranger")
            case Held():
                if not self.contents.on_held(peer, message):
                    self.replication.on_held(peer, message)
            case Hold():
                self.replication.on_hold(peer, message)
            case Push():
                self.disk.on_push(peer, message)
            case Kept():
                self.intake.on_kept(peer, message)
            case Ack():
                self.commands.on_ack(peer, message)
            case Digest() if self.membership.active(message.service) is None:
                pass  # we were just added, or wait for our owner's consent
            case _ if message.service not in self.membership.shared_with(peer):
                self.ctx.refuse(peer, f"{MESSAGES.kind_of(message)} of a stranger")
            case Proposal():
                if self.membership.proposals.on_proposal(peer, message):
                    self.intake.on_service_changed(message.service)
            case Digest():
                self.sync.on_digest(peer, message)
            case Frontier():
                self.logs.on_frontier(peer, message)
            case Forks():
                chain = self.membership.chains[message.service]
                if self.logs.on_forks(peer, message, chain):
                    self.intake.refold(message.service)
            case SyncSegments():
                for data in message.segments:
                    self.intake.take(peer, data)
                if message.more:
                    self.logs.send_frontier(peer, message.service, reply=True)
            case _:
                self._on_job_message(peer, message)

    def _on_public_message(self, peer: str, message: Follow | Ask | AskNoMore | Asked) -> None:
        match message:
            case Follow():
                self.sponsors.on_follow(peer, message)
            case Ask():
                self.sponsors.on_ask(peer, message)
            case AskNoMore():
                self.sponsors.on_ask_no_more(peer, message)
            case Asked():
                self.guests.on_asked(peer, message)

    def _on_job_message(self, peer: str, message: Any) -> None:
        match message:
            case Award():
                self.worker.on_award(peer, message)
            case Have():
                self.coordinator.on_have(peer, message)
            case Decline():
                self.coordinator.on_decline(peer, message)
            case Beat():
                self.coordinator.on_beat(peer, message)
            case Renew():
                renewed = self.coordinator.on_renew(peer, message)
                if renewed is not None:
                    self._say(peer, renewed)
            case Renewed():
                self.worker.on_renewed(peer, message)
            case Bid():
                self.coordinator.on_bid(peer, message)
            case CancelNow():
                self.worker.cancel(message.attempt, peer)
            case Where():
                self.contents.on_where(peer, message)
            case Lookup():
                self.lookups.on_lookup(peer, message)
            case LookedUp():
                self.lookups.on_looked_up(peer, message.ticket)

    def _on_hello(self, peer: str, hello: Hello) -> None:
        if self._boots.get(peer, hello.boot) != hello.boot:
            self.coordinator.on_new_boot(peer)
        if self.membership.shared_with(peer):
            self._boots[peer] = hello.boot
        self.membership.on_hello(peer, hello)
        self.membership.proposals.on_hello(peer, hello)

    # -- what machines ask of each other (errands.Hooks, worker.Hooks) -------------------

    def fold(self, service: str) -> ServiceFold:
        """Return the fold of a service."""
        if service not in self.folds:
            chain = self.membership.chains[service]
            self.folds[service] = ServiceFold(
                service, chain.at, lambda peer: "submit" in chain.now.roles_of(peer)
            )
        return self.folds[service]

    def presence(self, service: str) -> list[Presence]:
        """Return the live presence entries of a service, own one included."""
        self._say_presence(service)
        return self.book.everybody(service)

    def presence_here(self, service: str) -> list[Presence]:
        """Return the presence entries of this node and of connected members."""
        self._say_presence(service)
        entries = (self.book.get(service, p) for p in (self.ctx.me, *self.ctx.connected))
        return [entry for entry in entries if entry is not None]

    def _say_presence(self, service: str) -> None:
        if self.ctx.me not in self.book.heard.get(service, {}):
            self.book.send_own()

    def push(self, peer: str, segment: bytes) -> None:
        """Make sure that a peer has a segment."""
        if peer == self.ctx.me:
            return
        kept = self.retention.get(segment)
        if kept is not None:
            self.ctx.send(peer, Kept(kept.encode()))
        else:
            self.logs.push(peer, segment)

    def deliver(self, peer: str, award: Award) -> None:
        """Send an award together with the request's segment."""
        if peer == self.ctx.me:
            self._to_self.append(award)
            return
        state = self.fold(award.service).requests[award.request]
        self.push(peer, state.segment)
        self.ctx.send(peer, award)

    def cancel_now(self, peer: str, message: CancelNow) -> None:
        """Tell a worker, which may be this node itself, that an attempt is not wanted."""
        self._say(peer, message)

    def _say(self, peer: str, message: Have | Decline | Beat | CancelNow | Renew | Renewed) -> None:
        """Send a message to a peer, which may be this node itself."""
        if peer == self.ctx.me:
            self._to_self.append(message)
        else:
            self.ctx.send(peer, message)

    def _on_twins_changed(self) -> None:
        """Leave alone what a live twin wants; look after what one that is gone has left."""
        for service in sorted(self.membership.taken_up):
            self.coordinator.leave_to_twins(service)
            self.intake.see_to_all(service)

    def is_twins(self, state: RequestState) -> bool:
        """Say whether a request of this key is another live node's."""
        if state.author != self.ctx.me or not self.twins.live:
            return False
        segment = self.logs.get(state.segment)
        return segment is not None and self.twins.is_live(segment.log.boot)

    def twin_wants(self, service: str, run: str) -> bool:
        """Say whether another live node of this key wants a run."""
        if not self.twins.live:
            return False
        fold = self.fold(service)
        return any(
            self.is_twins(state) and fold.run_of(state, fold.resolve(state.job)) == run
            for state in fold.requests.values()
            if not state.canceled
        )

    def begun_elsewhere(self, service: str) -> set[str]:
        """Return the attempts of this key that another home began."""
        return {
            record.attempt
            for log_id, log in self.logs.logs_of(service).items()
            if log_id.author == self.ctx.me and not self.twins.is_own(log_id.boot)
            for segment in log.counting()
            for record in _records_of(segment)
            if isinstance(record, Start)
        }

    def is_twins_attempt(self, attempt: str) -> bool:
        """Say whether another live node of this key gave out an attempt."""
        return self.twins.coordinates(attempt)

    def to_coordinator(self, peer: str, message: Have | Decline | Beat | Renew) -> None:
        """Send to a coordinator, which may be this node itself."""
        self._say(peer, message)

    def gives_secrets(self, peer: str, service: str, request: str, attempt: str) -> str | None:
        """Return the job whose secrets a peer may have for a request of this node: it is a member
        that computes, and holds the attempt under way. Else None, and it counts as a wrong move."""
        chain = self.membership.active(service)
        computes = chain is not None and "compute" in chain.now.roles_of(peer)
        if computes and self.coordinator.may_have_secrets(peer, service, request, attempt):
            return self.fold(service).requests[request].job
        self.ctx.counters["refused: secrets that it may not have"] += 1
        return None

    def append(self, service: str, record: Record) -> tuple[bytes, int]:
        """Add a record to this node's log of a service; return its (boot, seq)."""
        return self.logs.append(service, record, self.membership.chains[service])

    def want(self, service: str, jobs: tuple[str, ...], state: RequestState, in_vain: bool) -> None:
        """Ask anew for jobs that a request of this node waits for and that nobody wants any more:
        their result counts no more, or their submitter is gone. Not for what its own member
        canceled."""
        fold, folded = self.fold(service), self.membership.folded(service)
        mine = folded.member_of(self.ctx.me)
        for job in jobs:
            asked = [fold.requests[name] for name in fold.by_job.get(job, ())]
            wanted = any(
                fold.is_wanted(s, self.ctx.unix_ms)
                and (
                    not in_vain
                    or s.id in self.coordinator.wishes
                    or not self.bidder.is_free(service, s)
                )
                for s in asked
            )
            canceled = any(s.canceled and folded.member_of(s.author) == mine for s in asked)
            document = fold.definitions.get(job)
            if wanted or canceled or document is None or (service, job) in self._asking:
                continue
            resolved = fold.resolve(job).job
            if resolved is not None and fold.canonical(resolved, document) is not None:
                continue  # what it would be answered with at once
            self._asking.add((service, job))
            asking = asked[-1].record if asked else replace(state.record, tags=(), batch="")
            self._ask_anew(service, asking, encode(document))

    def _ask_anew(
        self, service: str, like: Request, definition: bytes, lost: str = ""
    ) -> str | None:
        """Ask for a job as somebody did before; `lost` is a result whose content is. Return the
        request's id; None when it has no place in a segment."""
        record = replace(
            like,
            definition=definition,
            mode="rerun_lost" if lost else "use",
            salt_of=lost,
            expires_unix_ms=self.ctx.unix_ms + REQUEST_EXPIRY_MS,
            issued_unix_ms=self.ctx.unix_ms,
            sponsor_of="",
        )
        if record_size(record) > RECORD_SIZE_BYTES_MAX:
            self.ctx.counters["requests too large to be asked anew"] += 1
            return None
        if self._lacks_secrets(service, definition):
            self.ctx.counters["requests that take their submitter's secrets"] += 1
            return None
        return self.own_request_id(service, *self.append(service, record))

    def _lacks_secrets(self, service: str, definition: bytes) -> bool:
        needs = needs_of(self.membership.folded(service).apps, decode_job(definition))
        return bool(needs.secrets) and (
            (service, document_cid(definition)) not in self.ctx.secrets_held
        )

    # -- content that may be gone (contents.Hooks) -------------------------------------------

    def doubt(self, service: str, cid: str) -> None:
        """The content of a result was not to be had: find out whether anybody holds it."""
        chain = self.membership.active(service)
        result = self.fold(service).results.get(cid) if chain is not None else None
        if result is not None and not self.fold(service).is_lost(cid):
            self.contents.doubt(service, result)

    def not_fetched(self, service: str, cid: str, is_answer: bool) -> None:
        """Nobody gave this node the content of a result, whatever they said; `is_answer` says that
        it was given to a request here."""
        self.contents.disbelieve(cid)
        if is_answer:
            self.doubt(service, cid)

    def is_there(self, service: str, result: ResultInfo) -> bool:
        """Say whether a result's content is to be had; else it is looked for."""
        return self.contents.is_there(service, result)

    def is_in_question(self, results: tuple[str, ...]) -> bool:
        """Say whether the content of one of these results is being looked for."""
        return self.contents.is_in_question(results)

    def on_found(
        self, service: str, result: ResultInfo, waiting: list[ev.Submit], bring: bool
    ) -> None:
        """The content is to be had: who waited for it goes on. Where a worker could not get it,
        this node brings it nearer."""
        if bring:
            self._copy(service, result)
        for event in waiting:
            self.commands.on_command(event)
        self.coordinator.on_result(service, result)
        self.coordinator.look()

    def on_doubted(self, waiting: list[ev.Submit]) -> None:
        """Nobody holds the content now: submits go on as if there were no result."""
        for event in waiting:
            self.commands.on_no_hit(event)

    def compute_again(self, service: str, result: ResultInfo) -> str | None:
        """Say that the content is lost, and ask for its job, as who asked for it last."""
        fold, chain = self.fold(service), self.membership.active(service)
        if chain is None or "submit" not in chain.now.roles_of(self.ctx.me):
            return ""
        if fold.is_lost(result.cid) or result.cid not in fold.results:
            return ""
        resolved = result.document.job
        jobs = [job for job in (resolved, *fold.origins(resolved)) if job in fold.definitions]
        jobs.sort(key=lambda job: not fold.by_job.get(job))
        asked = fold.by_job.get(jobs[0]) if jobs else None
        like = fold.requests[asked[-1]].record if asked else self._resting_on(service, result.cid)
        if like is None or not jobs:  # its definition was dropped here, or never came
            self.lookups.ask_for(service, [resolved])
            return None
        return self._ask_anew(service, like, encode(fold.definitions[jobs[0]]), result.cid)

    def _resting_on(self, service: str, cid: str) -> Request | None:
        """Return a request that this node sees to and that rests on a result."""
        fold = self.fold(service)
        for wish in self.coordinator.wishes.values():
            if wish.service == service and cid in wish.upstream and wish.request in fold.requests:
                return replace(fold.requests[wish.request].record, tags=(), batch="")
        return None

    def is_under_way(self, service: str, request: str) -> bool:
        """Say whether a request of this node still waits for its result."""
        return request in self.coordinator.wishes or self.logs.pending_of(service)

    def withdraw(self, service: str, request: str) -> None:
        """Cancel a request of this node."""
        self.append(service, Cancel((request,), self.ctx.unix_ms))

    def own_presence(self, service: str) -> Presence | None:
        """Return what this node says of itself."""
        self._say_presence(service)
        return self.book.get(service, self.ctx.me)

    def addresses_of(self, service: str, peer: str) -> tuple[str, ...]:
        """Return where a member was last said to be."""
        heard = self.book.heard.get(service, {}).get(peer)
        return heard.entry.addresses if heard is not None else ()

    def is_idle(self) -> bool:
        """Say whether a slot is free here."""
        return self.worker.load < self.worker.slots

    def takes_guests(self) -> bool:
        """Say whether a stranger's run would begin here now."""
        return self.worker.takes_guests()

    def synced_ms(self, service: str) -> int | None:
        """Return when a neighbour was last found to know nothing else; None without neighbours."""
        return self.sync.synced_ms(service)

    def take(self, service: str, request: str) -> None:
        """Become the coordinator of somebody else's request."""
        self.coordinator.add(service, request, taken=True)

    def load_changed(self, load: int) -> None:
        """The number of queued and executing runs is another."""
        self.book.set_load(load)

    def answered(self, state: RequestState, result: ResultInfo, service: str) -> None:
        """A request that this node sees to has its answer: make it safe. Only its own submitter
        was given an answer, which stays; a local handle is gone with this start of the node."""
        if state.author == self.ctx.me and not state.cached:
            self.disk.answers.append((service, state.id, result.cid))
        if not self.replication.is_safe(result.cid):
            self._copy(service, result, is_answer=True)

    def _copy(self, service: str, result: ResultInfo, is_answer: bool = False) -> None:
        """Make a result safe. Blocks that should be here are looked for too: disks lose things."""
        document = result.document
        cids = (*(cid for cid, _, _ in document.outputs.values()), document.console)
        self.replication.track(
            result.cid,
            service,
            document.job,
            tuple(dict.fromkeys(cids)),
            segment=result.segment,
            prefer=(document.worker,),
            is_answer=is_answer,
        )

    def is_stored(self, segment: bytes) -> bool:
        """Say whether a segment is on this node's disk."""
        return self.disk.is_stored(segment)

    def refold(self, service: str) -> None:
        """Derive a service's state again from what counts."""
        self.intake.refold(service)

    def ask_for(self, service: str, jobs: list[str]) -> None:
        """Look jobs up at a connected member."""
        self.lookups.ask_for(service, jobs)

    def quiet_logs(self, service: str, before_unix_ms: int) -> list[tuple[LogId, Log]]:
        """Return the logs in which nothing is newer than that, but the one being written."""
        return self.logs.quiet(service, before_unix_ms)

    def drop_log(self, service: str, log_id: LogId) -> None:
        """Forget a log's segments."""
        self.logs.drop(service, log_id)

    def services(self) -> list[str]:
        """Return the services that are taken up, sorted."""
        return sorted(self.membership.taken_up)

    def results_after(self, service: str, cid: str, count: int) -> list[tuple[str, str]]:
        """Return (CID, worker) of up to `count` results that count, in order, after `cid`."""
        results = self.fold(service).results
        return [
            (c, results[c].document.worker) for c in sorted(c for c in results if c > cid)[:count]
        ]

    def copy_again(self, service: str, cid: str) -> None:
        """Track a result's copies anew."""
        self._copy(service, self.fold(service).results[cid])

    def own_request_id(self, service: str, boot: bytes, seq: int) -> str:
        """Return the id of a request at `seq` of one of this node's logs."""
        return request_id(service, self.ctx.me, boot, seq)


def _records_of(segment: Segment) -> list[Record | Unknown]:
    try:
        return segment.records()
    except DecodeError:
        return []
