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
from pairio_protocol.commands import Commands
from pairio_protocol.context import Context, CoreConfig
from pairio_protocol.documents import encode
from pairio_protocol.effects import (
    Commit,
    Effect,
    Fail,
    JobChanged,
    JoinTopic,
)
from pairio_protocol.errors import DecodeError
from pairio_protocol.fold import RequestState, ResultInfo, ServiceFold
from pairio_protocol.ids import LogId, request_id
from pairio_protocol.limits import (
    ASKED_MS,
    CONNECTIONS_MAX,
    LOOKUP_JOBS_MAX,
    NEWS_FANOUT,
    NEWS_SYNC_MS,
    REQUEST_EXPIRY_MS,
    SYNC_INTERVAL_MS,
    UPSTREAM_SENT_MAX,
)
from pairio_protocol.machines import bidder, coordinator, replication, retention, worker
from pairio_protocol.machines.bidder import Bidder
from pairio_protocol.machines.coordinator import Coordinator
from pairio_protocol.machines.log import Log
from pairio_protocol.machines.logs import Logs
from pairio_protocol.machines.membership import Membership
from pairio_protocol.machines.presence import PresenceBook
from pairio_protocol.machines.replication import Replication
from pairio_protocol.machines.retention import Retention, Tombstone
from pairio_protocol.machines.worker import Worker
from pairio_protocol.messages import (
    MESSAGES,
    Ack,
    Award,
    Beat,
    Bid,
    CancelNow,
    Changes,
    Decline,
    Digest,
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
    Push,
    SyncSegments,
    WantChanges,
)
from pairio_protocol.records import (
    Cancel,
    End,
    Record,
    Request,
    Result,
    ResultDocument,
    Start,
    Unknown,
)
from pairio_protocol.segment import Segment
from pairio_protocol.service import Chain
from pairio_protocol.signing import SigningKey
from pairio_protocol.wire import UnknownKind

__all__ = ["NodeCore", "Sealed"]

_ROLE_FOR: dict[type[Any], str] = {
    Request: "submit",
    Cancel: "submit",
    Start: "compute",
    End: "read",
    Result: "compute",
}


class Sealed:
    """What `seal` gives: a commit to write, and effects to carry out at once."""

    def __init__(self, commit: Commit, effects: list[Effect]) -> None:
        self.commit = commit
        self.effects = effects


class NodeCore(coordinator.Hooks, worker.Hooks, bidder.Hooks, replication.Hooks, retention.Hooks):
    """The whole of a node but for I/O. See the module for how it is driven."""

    def __init__(self, key: SigningKey, config: CoreConfig) -> None:
        self.ctx = Context(key, config)
        self.membership = Membership(self.ctx)
        self.retention = Retention(self.ctx, self)
        self.logs = Logs(self.ctx, self.retention)
        self.book = PresenceBook(self.ctx, self.membership)
        self.replication = Replication(self.ctx, self.membership, self)
        self.coordinator = Coordinator(self.ctx, self.membership, self)
        self.worker = Worker(self.ctx, self.membership, self)
        self.bidder = Bidder(self.ctx, self.membership, self)
        self.folds: dict[str, ServiceFold] = {}
        self.commands = Commands(self)
        self._boots: dict[str, bytes] = {}
        self._ticket = 0
        self._after_commit: dict[int, list[Effect]] = {}
        self._waiting_effects: list[Effect] = []
        self._acks: dict[str, list[bytes]] = {}
        self._in_flight: dict[int, Commit] = {}
        self._storing: dict[bytes, int] = {}  # hash of a segment -> ticket of its commit
        self._ack_sent: dict[int, dict[str, list[bytes]]] = {}
        self._sync_ms = 0
        self._answers: list[tuple[str, str, str]] = []
        self._sync_turn = 0
        self._asked_until_ms: dict[str, int] = {}
        self._rewrites: dict[str, int] = {}
        self._asking: set[tuple[str, str]] = set()  # jobs asked for since the last seal
        self._synced_ms: dict[str, int] = {}
        self._to_self: list[Award | Have | Decline | Beat | CancelNow] = []

    # -- the four calls of the driver -----------------------------------------------------

    def handle(self, event: ev.Event, now_ms: int, unix_ms: int = 0) -> list[Effect]:
        """Let time pass, then take one event. Returns what the shell is to do, in order."""
        self.ctx.now_ms = max(self.ctx.now_ms, now_ms)
        self.ctx.unix_ms = unix_ms
        if isinstance(event, ev.Woke):  # before time passes: nothing was heard while it did
            self.coordinator.on_wake()
            self.bidder.on_wake()
        self._pass_time()
        self._route(event)
        self._settle()
        return self._take_effects()

    def has_pending(self) -> bool:
        """Say whether `seal` would give a commit."""
        return bool(
            self.logs.has_pending()
            or self._answers
            or self.retention.unsaved
            or self.retention.unsaved_kept
            or self.membership.unsaved_changes
            or self.membership.unsaved_services
        )

    def pending_count(self) -> int:
        """Return how many records wait; the driver seals at SEGMENT_RECORDS_MAX."""
        return self.logs.pending_count()

    def seal(self, now_ms: int, unix_ms: int = 0) -> Sealed | None:
        """Sign and hand out what has to be stored. None when there is nothing."""
        self.ctx.now_ms = max(self.ctx.now_ms, now_ms)
        self.ctx.unix_ms = unix_ms
        if not self.has_pending():
            return None
        self._ticket += 1
        while segments := self.logs.seal(self.membership.chains):  # a record may call for another
            for segment in segments:
                self._fold_segment(segment, own=True)
        self._asking.clear()
        commit = self._commit()
        self.worker.on_sealed()
        self._settle()
        self._in_flight[self._ticket] = commit
        self._after_commit[self._ticket] = self._waiting_effects
        self._ack_sent[self._ticket] = self._acks
        self._storing.update((h, self._ticket) for h in map(_hash_of, _segments_of(commit)))
        self._waiting_effects, self._acks = [], {}
        return Sealed(commit, self._take_effects())

    def next_deadline_ms(self) -> int | None:
        """When `TimePassed` is due at the latest."""
        deadlines = [
            self.book.deadline_ms() if self.membership.taken_up else None,
            self.coordinator.deadline_ms(),
            self.worker.deadline_ms(),
            self.bidder.deadline_ms(),
            self.replication.deadline_ms(),
            self.retention.deadline_ms(),
            self.commands.deadline_ms(),
            self._news_deadline_ms(),
            self._sync_ms if self.ctx.connected and self.membership.taken_up else None,
        ]
        return min((d for d in deadlines if d is not None), default=None)

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
        self.retention.tick()
        if self.membership.taken_up:
            self.book.tick()
        self.commands.tick()
        if self.ctx.now_ms >= self._sync_ms:
            self._sync_ms = self.ctx.now_ms + SYNC_INTERVAL_MS
            self._sync_one()
        for service, at_ms in list(self.logs.news.items()):
            if self.ctx.now_ms >= at_ms + NEWS_SYNC_MS:
                del self.logs.news[service]
                # Its author tells everybody: a rumour that each passes on to a few misses some.
                own = service in self.logs.own_news
                self.logs.own_news.discard(service)
                self._sync_some(service, CONNECTIONS_MAX if own else NEWS_FANOUT)

    def _news_deadline_ms(self) -> int | None:
        if not self.logs.news or not self.ctx.connected:
            return None
        return min(self.logs.news.values()) + NEWS_SYNC_MS

    def _sync_one(self) -> None:
        """Begin a round of sync with the next neighbour of every service."""
        for service in sorted(self.membership.taken_up):
            self._sync_some(service, 1)

    def _sync_some(self, service: str, count: int) -> None:
        """Compare digests with the next few neighbours in turn."""
        peers = self.membership.connected_members(service)
        for _ in range(min(count, len(peers))):
            self._sync_turn += 1
            self._send_digest(peers[self._sync_turn % len(peers)], service)

    def _send_digest(self, peer: str, service: str) -> None:
        self.logs.send_digest(peer, service, self.membership.chains[service].digest)

    def _on_digest(self, peer: str, message: Digest) -> None:
        """Changes first, then segments; equal ones are noted: this neighbour knows nothing else."""
        service = message.service
        if message.changes != self.membership.chains[service].digest:
            self.membership.hello(peer)
        if message.digest == self.logs.digest(service):
            if self.ctx.now_ms - self._synced_ms.get(service, -1) > NEWS_SYNC_MS:
                self._synced_ms[service] = self.ctx.now_ms
                self._send_digest(peer, service)  # so that it knows as well
        else:
            self.logs.send_frontier(peer, service, reply=False)

    def _route(self, event: ev.Event) -> None:
        match event:
            case ev.FrameReceived():
                self._on_frame(event)
            case ev.GossipReceived():
                self._take_segment(event.forwarder, event.data)
            case ev.PeerUp():
                self.ctx.connected[event.peer] = event.addresses
                self._greet(event.peer)
                self.worker.on_peer_up()
                self.replication.on_peer_up()
                self.coordinator.look()
            case ev.PeerDown():
                self._on_peer_down(event.peer)
            case ev.Executed():
                self.worker.on_executed(event)
            case ev.Fetched():
                self.replication.on_fetched(event.ticket, event.ok)
            case ev.Committed():
                self._on_committed(event.ticket)
            case ev.CommitFailed():
                self._on_commit_failed(event)
            case ev.Restored():
                self._on_restored(event)
            case ev.Draining():
                self.worker.drain()
            case ev.Woke():
                for peer in list(self.ctx.connected):
                    self._greet(peer)
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

    def _take_effects(self) -> list[Effect]:
        effects, self.ctx.effects = self.ctx.effects, []
        return effects

    # -- peers ----------------------------------------------------------------------------

    def _greet(self, peer: str) -> None:
        self.membership.hello(peer)
        self.book.greet(peer)
        for service in self.membership.shared_with(peer):
            self._send_digest(peer, service)

    def _on_peer_down(self, peer: str) -> None:
        self.ctx.connected.pop(peer, None)
        self._asked_until_ms.pop(peer, None)
        self.logs.forget_sent(peer)
        self.coordinator.look()
        self.coordinator.on_peer_gone(peer)
        self.replication.on_peer_down(peer)
        self.commands.on_peers_changed()

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
                self.membership.on_want_changes(peer, message)
            case Changes():
                if self.membership.on_changes(peer, message):
                    self.on_service_changed(message.service)
            case PresenceUpdate():
                if self.book.on_update(peer, message):
                    self.coordinator.look()
            case Held():
                self.replication.on_held(peer, message)
            case Hold():
                self.replication.on_hold(peer, message)
            case Push():
                self._on_push(peer, message)
            case Kept():
                self._on_kept(peer, message)
            case Ack():
                self.commands.on_ack(peer, message)
            case Digest() if self.membership.active(message.service) is None:
                pass  # we were just added, or wait for our owner's consent
            case _ if message.service not in self.membership.shared_with(peer):
                self.ctx.refuse(peer, f"{MESSAGES.kind_of(message)} of a stranger")
            case Digest():
                self._on_digest(peer, message)
            case Frontier():
                self.logs.on_frontier(peer, message)
            case Forks():
                chain = self.membership.chains[message.service]
                if self.logs.on_forks(peer, message, chain):
                    self.refold(message.service)
            case SyncSegments():
                for data in message.segments:
                    self._take_segment(peer, data)
                if message.more:
                    self.logs.send_frontier(peer, message.service, reply=True)
            case _:
                self._on_job_message(peer, message)

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
            case Bid():
                self.coordinator.on_bid(peer, message)
            case CancelNow():
                self.worker.cancel(message.attempt, peer)
            case Lookup():
                self._on_lookup(peer, message)
            case LookedUp():
                self.commands.on_looked_up(peer, message.ticket)

    def _on_lookup(self, peer: str, message: Lookup) -> None:
        """Send the results that there are, and of jobs on which they rest what is needed to see
        that they do: requests for the definitions, results for the resolution."""
        fold = self.fold(message.service)
        for job in message.jobs[:LOOKUP_JOBS_MAX]:
            for name in fold.upstream_of(job, UPSTREAM_SENT_MAX):
                found = fold.results_for(name)
                requests = fold.by_job.get(name)
                if found and requests and found[0].document.job != name:
                    self.push(peer, fold.requests[requests[0]].segment)
                for result in found:
                    self.push(peer, result.segment)
        self.ctx.send(peer, LookedUp(message.service, message.ticket))

    def _on_hello(self, peer: str, hello: Hello) -> None:
        if self._boots.get(peer, hello.boot) != hello.boot:
            self.coordinator.on_new_boot(peer)
        self._boots[peer] = hello.boot
        self.membership.on_hello(peer, hello)

    def _on_push(self, peer: str, push: Push) -> None:
        taken = self._take_segment(peer, push.segment)
        if not push.ack or taken is None:
            return
        if taken not in self.logs.unstored:
            self.ctx.send(peer, Ack((taken,)))
        elif taken in self._storing:  # its commit is under way
            waiting = self._ack_sent[self._storing[taken]]
            waiting.setdefault(peer, []).append(taken)
        else:
            self._acks.setdefault(peer, []).append(taken)

    def _on_kept(self, peer: str, message: Kept) -> None:
        """A member has a result in a segment of a log that it holds no more as a whole."""
        try:
            segment = Segment.decode(message.segment)
            chain = self.membership.active(segment.service)
            segment = self.logs.check(message.segment, chain)
        except (DecodeError, LookupError):
            self.ctx.refuse(peer, "an invalid kept segment")
            return
        assert chain is not None
        if not self._wants_kept(segment, peer):
            self.ctx.refuse(peer, "a kept segment that was not asked for")
        elif self.logs.get(segment.hash) is None and self.retention.take(segment, chain):
            self.logs.unstored.add(segment.hash)
            self._fold_segment(segment)

    def _wants_kept(self, segment: Segment, peer: str) -> bool:
        """What a member sends whom this node has asked for jobs or who asked it to hold something,
        and results of what is open here."""
        if self.commands.is_asking(segment.service, peer) or self.replication.awaits(segment.hash):
            return True
        if self.ctx.now_ms < self._asked_until_ms.get(peer, 0):
            return True
        fold = self.fold(segment.service)
        try:
            results = [r for r in segment.records() if isinstance(r, Result)]
            jobs = [ResultDocument.decode(record.document).job for record in results]
        except DecodeError:
            return False
        return any(fold.is_awaited(job, self.ctx.unix_ms) for job in jobs)

    def ask_for(self, service: str, jobs: list[str]) -> None:
        """Look jobs up at a connected member, the next in turn; results come as they are found."""
        peers = self.membership.connected_members(service)
        if jobs and peers:
            self._sync_turn += 1
            peer = peers[self._sync_turn % len(peers)]
            self._asked_until_ms[peer] = self.ctx.now_ms + ASKED_MS
            self.ctx.send(peer, Lookup(service, 0, tuple(jobs[:LOOKUP_JOBS_MAX])))

    # -- segments -------------------------------------------------------------------------

    def _take_segment(self, peer: str, data: bytes) -> bytes | None:
        """Take one segment; returns its hash when it is held here now."""
        try:
            segment = Segment.decode(data)
        except DecodeError as error:
            self.ctx.refuse(peer, str(error)[:80])
            return None
        chain = self.membership.active(segment.service)
        if self.retention.is_dropped(segment.service, segment.log):
            self._take_late(peer, data, chain)
        else:
            taken = self.logs.take(peer, data, chain)
            if taken.refold:
                self.refold(segment.service)
            else:
                for accepted in taken.accepted:
                    self._fold_segment(accepted)
        return segment.hash if self._holds(segment.hash) else None

    def _take_late(self, peer: str, data: bytes, chain: Chain | None) -> None:
        try:
            segment = self.logs.check(data, chain)
        except (DecodeError, LookupError) as error:
            self.ctx.refuse(peer, str(error)[:80])
            return
        if chain is not None and self.retention.take_late(segment, chain):
            self.logs.unstored.add(segment.hash)
            self._fold_segment(segment)

    def _holds(self, segment_hash: bytes) -> bool:
        held = self.logs.get(segment_hash) or self.retention.get(segment_hash)
        return held is not None

    def refold(self, service: str) -> None:
        """Something that counted counts no more: derive the state again from what does."""
        before = self.folds.pop(service, None)
        fold = self.fold(service)
        for segment in self.retention.counting(service, self.membership.chains[service]):
            self._fold_segment(segment, quiet=True)
        for segment in sorted(self.logs.all_segments(service), key=lambda s: s.log):
            self._fold_segment(segment, quiet=True)
        if before is not None:
            fold.adopt(before)
        self._see_to_all(service)
        self.coordinator.review_all()
        self.worker.review(service)
        self.ctx.counters["folded again"] += 1

    def _see_to_all(self, service: str) -> None:
        """Also those that were dropped while their submitter was off the list."""
        for state in list(self.fold(service).requests.values()):
            self._see_to(service, state)

    def _see_to(self, service: str, state: RequestState) -> None:
        """A request is known: coordinate it if it is ours, else watch whether it is started."""
        if state.cached or state.answer is not None:
            return
        if state.author == self.ctx.me:
            self.coordinator.add(service, state.id)
        else:
            self.bidder.note(service, state.id)

    def _fold_segment(self, segment: Segment, own: bool = False, quiet: bool = False) -> None:
        chain = self.membership.chains[segment.service]
        folded = chain.at(segment.epoch)
        assert folded is not None
        roles = folded.roles_of(segment.log.author)
        try:
            records = segment.records()
        except DecodeError:
            self.ctx.refuse(segment.log.author, "malformed records in a signed segment")
            return
        for index, record in enumerate(records):
            if not isinstance(record, Unknown) and not self._may(roles, record):
                self.ctx.refuse(segment.log.author, "a record that its author's role forbids")
                continue
            issued_unix_ms = getattr(record, "issued_unix_ms", 0)
            if issued_unix_ms and self.logs.get(segment.hash) is not None:
                self.logs.note_time(segment, issued_unix_ms)
            self._fold_record(segment, segment.first_seq + index, record, own, quiet)

    @staticmethod
    def _may(roles: tuple[str, ...], record: Record) -> bool:
        needed = _ROLE_FOR[type(record)]
        return needed in roles or (needed == "read" and bool(roles))

    def _fold_record(
        self, segment: Segment, seq: int, record: Record | Unknown, own: bool, quiet: bool
    ) -> None:
        service, log = segment.service, segment.log
        fold = self.fold(service)
        try:
            touched = fold.add(log, seq, segment.epoch, record, segment.hash)
        except DecodeError:
            self.ctx.refuse(log.author, "a record that contradicts itself")
            return
        if quiet or touched is None:
            return
        match record:
            case Request():
                self._on_request(service, fold.requests[touched], own)
            case Result():
                self._on_result(service, fold.results[touched])
            case End():
                self.coordinator.on_end(service, record.run, log.author, record.attempt)
            case Cancel():
                self.coordinator.review_all()
                self.worker.review(service)
                for name in record.requests:
                    if name in fold.requests:
                        self.ctx.emit(JobChanged(service, fold.requests[name].job))
            case Start():
                self.worker.on_start(service, record, log.author)
                if record.request in fold.requests:
                    self.ctx.emit(JobChanged(service, fold.requests[record.request].job))

    def _on_request(self, service: str, state: RequestState, own: bool) -> None:
        if own:
            self.commands.on_own_request(service, state)
        self._see_to(service, state)
        self.coordinator.review_waiting_for(service, state.job)
        self.ctx.emit(JobChanged(service, state.job))

    def _on_result(self, service: str, result: ResultInfo) -> None:
        self.coordinator.on_result(service, result)
        self.worker.on_result(service, result)
        self.ctx.emit(JobChanged(service, result.document.job))

    # -- the disk -------------------------------------------------------------------------

    def _commit(self) -> Commit:
        membership = self.membership
        services = tuple(
            (s, membership.petnames.get(s, s), s in membership.taken_up, chain.epoch)
            for s, chain in sorted(membership.chains.items())
            if s in membership.unsaved_services
        )
        commit = Commit(
            self._ticket,
            tuple(membership.unsaved_changes),
            tuple(self.logs.unsaved),
            services,
            tuple(self._answers),
            tuple(self.retention.unsaved_kept),
            tuple(self.retention.unsaved),
        )
        self._answers = []
        self.retention.unsaved, self.retention.unsaved_kept = [], []
        membership.unsaved_changes, membership.unsaved_services = [], set()
        self.logs.unsaved = []
        return commit

    def after_commit(self, effect: Effect) -> None:
        """Hold an effect back until what this turn writes is on disk."""
        self._waiting_effects.append(effect)

    def _on_committed(self, ticket: int) -> None:
        commit = self._in_flight.pop(ticket, None)
        stored = list(map(_hash_of, _segments_of(commit))) if commit is not None else []
        for segment_hash in stored:
            self._storing.pop(segment_hash, None)
            self.logs.unstored.discard(segment_hash)
        self.replication.on_stored(stored)
        for effect in self._after_commit.pop(ticket, []):
            self.ctx.emit(effect)
        for peer, hashes in sorted(self._ack_sent.pop(ticket, {}).items()):
            self.ctx.send(peer, Ack(tuple(hashes)))
        self.commands.on_committed(ticket)

    def _on_commit_failed(self, event: ev.CommitFailed) -> None:
        """Tell whoever waits that it is not stored, and try again with the next commit."""
        commit = self._in_flight.pop(event.ticket, None)
        self._ack_sent.pop(event.ticket, None)
        for effect in self._after_commit.pop(event.ticket, []):
            call = getattr(effect, "call", None)
            if call is not None:
                self.ctx.emit(Fail(call, f"not stored: {event.reason}", "free disk space", "disk"))
        self.commands.on_commit_failed(event.ticket, event.reason)
        if commit is not None:
            for segment_hash in map(_hash_of, _segments_of(commit)):
                self._storing.pop(segment_hash, None)
            self.membership.unsaved_changes[:0] = commit.changes
            self.membership.unsaved_services |= {row[0] for row in commit.services}
            self.logs.unsaved[:0] = commit.segments
            self._answers[:0] = commit.answers
            self.retention.unsaved[:0] = commit.dropped
            self.retention.unsaved_kept[:0] = commit.kept

    def _on_restored(self, event: ev.Restored) -> None:
        for service, petname, taken_up in event.services:
            self.membership.restore(service, petname, taken_up)
        for service, data in event.changes:
            self.membership.restore_change(service, data)
        for row in event.dropped:
            stone = Tombstone(row.height, row.forked, row.dropped_unix_ms)
            self.retention.restore(row.service, LogId(row.author, row.boot, 0), stone)
        for data in event.kept:
            self.retention.keep(Segment.decode(data))
        for data in event.segments:
            chain = self.membership.chains.get(Segment.decode(data).service)
            if chain is not None:
                self.logs.restore(data, chain)
        for service, request, cid in event.answers:
            self.fold(service).pin(request, cid)
        for service in sorted(self.membership.taken_up):
            self.ctx.emit(JoinTopic(service))
            self.refold(service)
        for adopted in event.adopted:
            self.worker.adopt(adopted)
        for service in sorted(self.membership.taken_up):
            self.worker.end_lost(service)

    def on_service_changed(self, service: str) -> None:
        """The list has changed: try what was parked, greet who is new, look at everything again."""
        chain = self.membership.active(service)
        if chain is None:
            return
        shrunk, more = self.logs.recount(service, chain)
        rewritten = self._rewrites.get(service, 1) != chain.rewrites
        self._rewrites[service] = chain.rewrites
        if shrunk or rewritten or self.retention.has_kept(service):
            self.refold(service)
        else:
            for segment in more:
                self._fold_segment(segment)
        for segment in self.logs.unpark(service):
            self._take_segment(segment.log.author, segment.encode())
        self.book.changed()
        for peer in self.membership.connected_members(service):
            self._greet(peer)
        self.coordinator.on_removed(service)
        self._see_to_all(service)
        self.coordinator.review_all()
        self.worker.review(service)

    # -- what machines ask of each other (coordinator.Hooks, worker.Hooks) -------------------

    def fold(self, service: str) -> ServiceFold:
        """Return the fold of a service."""
        if service not in self.folds:
            chain = self.membership.chains[service]
            self.folds[service] = ServiceFold(
                chain.at, lambda peer: "submit" in chain.now.roles_of(peer)
            )
        return self.folds[service]

    def presence(self, service: str) -> list[Presence]:
        """Return the live presence entries of a service, own one included."""
        if self.ctx.me not in self.book.heard.get(service, {}):
            self.book.send_own()
        return self.book.everybody(service)

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
        self.logs.push(peer, state.segment)
        self.ctx.send(peer, award)

    def cancel_now(self, peer: str, message: CancelNow) -> None:
        """Tell a worker, which may be this node itself, that an attempt is not wanted."""
        if peer == self.ctx.me:
            self._to_self.append(message)
        else:
            self.ctx.send(peer, message)

    def to_coordinator(self, peer: str, message: Have | Decline | Beat) -> None:
        """Send to a coordinator, which may be this node itself."""
        if peer == self.ctx.me:
            self._to_self.append(message)
        else:
            self.ctx.send(peer, message)

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
            expires = self.ctx.unix_ms + REQUEST_EXPIRY_MS
            record = replace(
                asked[-1].record if asked else state.record,
                definition=encode(document),
                mode="use",
                salt_of="",
                expires_unix_ms=expires,
                issued_unix_ms=self.ctx.unix_ms,
            )
            self.append(service, record)

    def own_presence(self, service: str) -> Presence | None:
        """Return what this node says of itself."""
        self.presence(service)
        return self.book.get(service, self.ctx.me)

    def addresses_of(self, service: str, peer: str) -> tuple[str, ...]:
        """Return where a member was last said to be."""
        heard = self.book.heard.get(service, {}).get(peer)
        return heard.entry.addresses if heard is not None else ()

    def is_idle(self) -> bool:
        """Say whether a slot is free here."""
        return len(self.worker.tasks) < self.worker.slots

    def synced_ms(self, service: str) -> int | None:
        """Return when a neighbour was last found to know nothing else; None without neighbours."""
        if not self.membership.connected_members(service):
            return None
        return self._synced_ms.get(service, -1)

    def take(self, service: str, request: str) -> None:
        """Become the coordinator of somebody else's request."""
        self.coordinator.add(service, request, taken=True)

    def load_changed(self, load: int) -> None:
        """The number of queued and executing runs is another."""
        self.book.set_load(load)

    def answered(self, state: RequestState, result: ResultInfo, service: str) -> None:
        """One of this node's requests has its answer: make it safe."""
        if not state.cached:  # a local handle is gone with this start of the node
            self._answers.append((service, state.id, result.cid))
        self._copy(service, result)

    def _copy(self, service: str, result: ResultInfo) -> None:
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
        )

    def is_stored(self, segment: bytes) -> bool:
        """Say whether a segment is on this node's disk."""
        return self._holds(segment) and segment not in self.logs.unstored

    def quiet_logs(self, service: str, before_unix_ms: int) -> list[tuple[LogId, Log]]:
        """Return the logs in which nothing is newer than that, but the one being written."""
        return self.logs.quiet(service, before_unix_ms)

    def drop_log(self, service: str, log_id: LogId) -> None:
        """Forget a log's segments."""
        self.logs.drop(service, log_id)

    def services(self) -> list[str]:
        """Return the services that are taken up, sorted."""
        return sorted(self.membership.taken_up)

    def results_after(self, service: str, cid: str, count: int) -> list[str]:
        """Return the CIDs of up to `count` results that count, in order, after `cid`."""
        return sorted(c for c in self.fold(service).results if c > cid)[:count]

    def copy_again(self, service: str, cid: str) -> None:
        """Track a result's copies anew."""
        self._copy(service, self.fold(service).results[cid])

    @property
    def current_ticket(self) -> int:
        """The ticket of the commit that is being sealed."""
        return self._ticket

    def own_request_id(self, boot: bytes, seq: int) -> str:
        """Return the id of a request at `seq` of one of this node's logs."""
        return request_id(self.ctx.me, boot, seq)


def _segments_of(commit: Commit) -> tuple[bytes, ...]:
    return (*commit.segments, *commit.kept)


def _hash_of(data: bytes) -> bytes:
    return Segment.decode(data).hash
