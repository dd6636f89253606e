"""Intake: segments and changes of the list come in, records have their effect.

bytes --logs.take--> segments that count --> records --role fits--> fold --> machines told
  |                                                                  ^
  +-- of a dropped log, or kept by a member --retention.take---------+
the list changes, a fork is proved --> what counts is counted again --> folded anew if less does
"""

from typing import TYPE_CHECKING, Any

from pairio_protocol.allowlist import Folded
from pairio_protocol.effects import JobChanged
from pairio_protocol.errors import DecodeError
from pairio_protocol.fold import RequestState, ResultInfo
from pairio_protocol.jobs import decode_job
from pairio_protocol.machines.log import why_not_alone
from pairio_protocol.messages import Forks, Kept
from pairio_protocol.open_submit import why_not_sponsored
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

if TYPE_CHECKING:
    from pairio_protocol.core import NodeCore

__all__ = ["Intake"]

_ROLE_FOR: dict[type[Any], str] = {
    Request: "submit",
    Cancel: "submit",
    Start: "compute",
    End: "read",
    Result: "compute",
}


class Intake:
    """Takes what counts into the state, and tells the machines."""

    def __init__(self, core: "NodeCore") -> None:
        self._core = core
        self._ctx = core.ctx
        self._rewrites: dict[str, int] = {}

    def on_kept(self, peer: str, message: Kept) -> None:
        """A member has a result, or its own request which is open again, in a segment of a log
        that it holds no more as a whole."""
        try:
            segment = Segment.decode(message.segment)
            chain = self._core.membership.active(segment.service)
            segment = self._core.logs.check(message.segment, chain)
        except (DecodeError, LookupError):
            self._ctx.refuse(peer, "an invalid kept segment")
            return
        assert chain is not None
        lookups, replication = self._core.lookups, self._core.replication
        own = segment.log.author == peer and self._core.retention.has_dropped(segment)
        if not (own or lookups.wants(segment, peer) or replication.awaits(segment.hash)):
            self._ctx.refuse(peer, "a kept segment that was not asked for")
        elif self._is_forked(segment):
            self._ctx.refuse(peer, "a kept segment of a forked log")
        elif self._notes_fork(segment, chain):
            self._ctx.refuse(peer, "a kept segment that contradicts a log")
        elif self._core.logs.get(segment.hash) is None and self._core.retention.take(
            segment, chain
        ):
            self._core.logs.unstored.add(segment.hash)
            self.fold_segment(segment)

    def import_segment(self, data: bytes) -> str:
        """Take a segment that came in a file, without those before it if they are not here. Returns
        why it does not count; empty if it does."""
        try:
            segment = Segment.decode(data)
            chain = self._core.membership.active(segment.service)
            segment = self._core.logs.check(data, chain)
        except DecodeError as error:
            return str(error)
        except LookupError as error:
            return f"it was written under change {error}, which is not here"
        assert chain is not None
        why_not = why_not_alone(segment, chain, self._core.logs.fork_at(segment))
        if why_not or self.holds(segment.hash):
            return why_not
        if self._notes_fork(segment, chain):
            return why_not_alone(segment, chain, self._core.logs.fork_at(segment))
        log = self._core.logs.logs_of(segment.service).get(segment.log)
        if segment.first_seq == (log.held_height if log is not None else 0):
            self.take(self._ctx.me, data)
        elif self._core.retention.take(segment, chain):
            self._core.logs.unstored.add(segment.hash)
            self.fold_segment(segment)
        return "" if self.holds(segment.hash) else "it contradicts what is here, or is not kept"

    def take(self, peer: str, data: bytes, by_gossip: bool = False) -> bytes | None:
        """Take one segment; returns its hash when it is held here now."""
        try:
            segment = Segment.decode(data)
        except DecodeError:
            self._ctx.refuse(peer, "a segment that is none")
            return None
        chain = self._core.membership.active(segment.service)
        if self._core.retention.is_dropped(segment.service, segment.log):
            self._take_late(peer, data, chain)
        else:
            taken = self._core.logs.take(peer, data, chain, by_gossip)
            if taken.refold:
                self.refold(segment.service)
            else:
                for accepted in taken.accepted:
                    self.fold_segment(accepted)
        return segment.hash if self.holds(segment.hash) else None

    def _take_late(self, peer: str, data: bytes, chain: Chain | None) -> None:
        try:
            segment = self._core.logs.check(data, chain)
        except LookupError:
            self._ctx.refuse(peer, "a late segment of an unknown epoch")
            return
        except DecodeError as error:
            self._ctx.refuse(peer, str(error)[:80])
            return
        if chain is not None and self._core.retention.take_late(segment, chain):
            self._core.logs.unstored.add(segment.hash)
            self.fold_segment(segment)

    def _notes_fork(self, segment: Segment, chain: Chain) -> bool:
        """Say whether a segment that is to stand alone contradicts the log that is held: then the
        log is void from there, as when it had come by sync."""
        log = self._core.logs.logs_of(segment.service).get(segment.log)
        rival = log.conflict(segment) if log is not None else None
        if rival is None:
            return False
        pair = (rival.encode(), segment.encode())
        if self._core.logs.on_forks(self._ctx.me, Forks(segment.service, (pair,)), chain):
            self.refold(segment.service)
        return True

    def _is_forked(self, segment: Segment) -> bool:
        """Say whether a segment that stands alone lies where its log is known to be forked."""
        at = self._core.logs.fork_at(segment)
        return at is not None and segment.last_seq >= at

    def holds(self, segment_hash: bytes) -> bool:
        """Say whether a segment that counts is held here, in its log or kept alone."""
        held = self._core.logs.get(segment_hash) or self._core.retention.get(segment_hash)
        return held is not None

    def refold(self, service: str) -> None:
        """Something that counted counts no more: derive the state again from what does."""
        before = self._core.folds.pop(service, None)
        fold = self._core.fold(service)
        for segment in self._core.retention.counting(
            service, self._core.membership.chains[service]
        ):
            if not self._is_forked(segment):
                self.fold_segment(segment, quiet=True)
        for segment in sorted(self._core.logs.all_segments(service), key=lambda s: s.log):
            self.fold_segment(segment, quiet=True)
        if before is not None:
            fold.adopt(before)
        self.see_to_all(service)
        self._core.coordinator.review_all()
        self._core.worker.review(service)
        self._ctx.counters["folded again"] += 1

    def see_to_all(self, service: str) -> None:
        """Also those that were dropped while their submitter was off the list."""
        for state in list(self._core.fold(service).requests.values()):
            self._see_to(service, state)

    def _see_to(self, service: str, state: RequestState) -> None:
        """A request is known: coordinate it if it is ours, else watch whether it is started."""
        if state.cached or self._core.fold(service).was_answered(state):
            return
        if self._core.is_twins(state):
            return
        if state.author == self._ctx.me:
            self._core.coordinator.add(service, state.id)
        else:
            self._core.bidder.note(service, state.id)

    def fold_segment(self, segment: Segment, own: bool = False, quiet: bool = False) -> None:
        """Let a segment's records have their effect: `own` ones are this node's new ones; `quiet`
        ones are only folded, since all is looked at afterwards."""
        chain = self._core.membership.chains[segment.service]
        folded = chain.at(segment.epoch)
        assert folded is not None
        roles = folded.roles_of(segment.log.author)
        try:
            records = segment.records()
        except DecodeError:
            self._ctx.refuse(segment.log.author, "malformed records in a signed segment")
            return
        if segment.log.author == self._ctx.me and not own and not quiet:
            issued = [getattr(record, "issued_unix_ms", 0) for record in records]
            self._core.twins.on_segment(segment.log.boot, max(issued, default=0))
        for index, record in enumerate(records):
            if not isinstance(record, Unknown) and not self._may(roles, record):
                self._ctx.refuse(segment.log.author, "a record that its author's role forbids")
                continue
            if isinstance(record, Request) and record.sponsor_of:
                why_not = self._why_not_sponsored(record, folded)
                if why_not:
                    self._ctx.refuse(segment.log.author, why_not)
                    continue
            issued_unix_ms = getattr(record, "issued_unix_ms", 0)
            if issued_unix_ms and self._core.logs.get(segment.hash) is not None:
                self._core.logs.note_time(segment, issued_unix_ms)
            self._fold_record(segment, segment.first_seq + index, record, own, quiet)

    @staticmethod
    def _may(roles: tuple[str, ...], record: Record) -> bool:
        needed = _ROLE_FOR[type(record)]
        return needed in roles or (needed == "read" and bool(roles))

    @staticmethod
    def _why_not_sponsored(record: Request, folded: Folded) -> str:
        try:
            document = decode_job(record.definition)
        except DecodeError:
            return "a record that contradicts itself"
        return why_not_sponsored(record, document, folded)

    def _fold_record(
        self, segment: Segment, seq: int, record: Record | Unknown, own: bool, quiet: bool
    ) -> None:
        service, log = segment.service, segment.log
        fold = self._core.fold(service)
        try:
            if isinstance(record, Result):
                _check_service(record, service)
            touched = fold.add(log, seq, segment.epoch, record, segment.hash)
        except DecodeError:
            self._ctx.refuse(log.author, "a record that contradicts itself")
            return
        if quiet or touched is None:
            return
        match record:
            case Request():
                self._on_request(service, fold.requests[touched], own)
            case Result():
                self._on_result(service, fold.results[touched])
            case End():
                self._core.coordinator.on_end(service, record.run, log.author, record.attempt)
            case Cancel():
                self._core.coordinator.review_all()
                self._core.worker.review(service)
                self._core.sponsors.on_canceled(service, record.requests)
                for name in record.requests:
                    if name in fold.requests:
                        self._ctx.emit(JobChanged(service, fold.requests[name].job))
            case Start():
                self._core.worker.on_start(service, record, log.author)
                if record.request in fold.requests:
                    self._ctx.emit(JobChanged(service, fold.requests[record.request].job))

    def _on_request(self, service: str, state: RequestState, own: bool) -> None:
        if own:
            self._core.commands.on_own_request(service, state)
        self._see_to(service, state)
        self._core.coordinator.review_waiting_for(service, state.job)
        if state.record.mode == "rerun_lost":  # what it would have answered is open again
            self.see_to_all(service)
            self._core.coordinator.review_all()
        self._ctx.emit(JobChanged(service, state.job))

    def _on_result(self, service: str, result: ResultInfo) -> None:
        self._core.coordinator.on_result(service, result)
        self._core.worker.on_result(service, result)
        self._core.sponsors.on_result(service, result)
        self._see_to_what_rests_on(service, result)
        self._ctx.emit(JobChanged(service, result.document.job))

    def _see_to_what_rests_on(self, service: str, result: ResultInfo) -> None:
        """A better result of an input may open requests that seemed to be over: they resolve to
        another job now, and their submitter may be gone."""
        fold = self._core.fold(service)
        given = {result.document.job, *fold.origins(result.document.job)}
        for job in fold.resting_on(given) - given:
            for name in fold.by_job.get(job, ()):
                if fold.is_open(name, self._ctx.unix_ms):
                    self._see_to(service, fold.requests[name])

    def on_service_changed(self, service: str) -> None:
        """The list has changed: try what was parked, greet who is new, look at everything again."""
        self._core.own_wishes.on_service_changed(service)
        self._core.guests.on_service_changed(service)
        chain = self._core.membership.active(service)
        if chain is None:
            return
        self._core.membership.proposals.on_service_changed(service)
        shrunk, more = self._core.logs.recount(service, chain)
        rewritten = self._rewrites.get(service, 1) != chain.rewrites
        self._rewrites[service] = chain.rewrites
        if shrunk or rewritten or self._core.retention.has_kept(service):
            self.refold(service)
        else:
            for segment in more:
                self.fold_segment(segment)
        for segment in self._core.logs.unpark(service, chain):
            self.take(segment.log.author, segment.encode())
        self._core.book.changed()
        for peer in self._core.membership.connected_members(service):
            self._core.greet(peer)
        self._core.coordinator.on_removed(service)
        self._core.commands.on_service_changed(service)
        self.see_to_all(service)
        self._core.coordinator.review_all()
        self._core.worker.review(service)
        self._core.joining.on_service_changed(service)
        self._core.sponsors.on_service_changed(service)


def _check_service(record: Result, service: str) -> None:
    """Results do not cross services (DecodeError)."""
    if ResultDocument.decode(record.document).service != service:
        raise DecodeError("a result of another service")
