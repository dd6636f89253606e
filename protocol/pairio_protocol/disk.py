"""The disk: what a turn wrote becomes a commit; acks and answers wait for it.

seal: changes, segments, answers --> Commit(ticket) --Committed--> answers, acks, copies go on
                                         |
                                         +--CommitFailed--> callers told, all goes with the next
"""

from typing import TYPE_CHECKING

from pairio_protocol import events as ev
from pairio_protocol import guests, joining, own_wishes
from pairio_protocol.effects import Commit, Effect, Fail, JoinTopic
from pairio_protocol.ids import LogId
from pairio_protocol.machines import proposals
from pairio_protocol.machines.retention import Tombstone
from pairio_protocol.messages import Ack, Push
from pairio_protocol.segment import Segment

if TYPE_CHECKING:
    from pairio_protocol.core import NodeCore

__all__ = ["Disk"]


class Disk:
    """Commits under way, and what waits for them."""

    def __init__(self, core: "NodeCore") -> None:
        self._core = core
        self._ctx = core.ctx
        self.ticket = 0  # of the commit that is being sealed, or was last
        self.answers: list[tuple[str, str, str]] = []
        self._waiting_effects: list[Effect] = []
        self._after_commit: dict[int, list[Effect]] = {}
        self._in_flight: dict[int, Commit] = {}
        self._storing: dict[bytes, int] = {}  # hash of a segment -> ticket of its commit
        self._acks: dict[str, list[bytes]] = {}
        self._ack_sent: dict[int, dict[str, list[bytes]]] = {}

    def has_pending(self) -> bool:
        """Say whether there is something to be written."""
        return self._core.logs.has_pending() or self._has_more()

    def can_wait(self) -> bool:
        """Say whether nobody waits for what is to be written: that runs have begun here. Whoever
        asked for them knows it from this node's word, and a run whose beginning was lost with the
        node is awarded anew, or taken up by its folder."""
        return self._core.logs.only_starts() and not self._has_more()

    def _has_more(self) -> bool:
        """Say whether there is something to be written beside this node's log and others'."""
        membership, retention = self._core.membership, self._core.retention
        return bool(
            self.answers
            or retention.unsaved
            or retention.unsaved_kept
            or membership.unsaved_changes
            or membership.unsaved_services
            or membership.forgotten
            or membership.unsaved_notes
            or self._core.joining.unsaved
            or self._core.own_wishes.unsaved
            or membership.proposals.unsaved
            or self._core.guests.unsaved
        )

    def begin(self) -> None:
        """A commit is being sealed."""
        self.ticket += 1

    def seal(self) -> Commit:
        """Return the commit; what was held back since the last one waits for it."""
        commit = self._commit()
        self._in_flight[self.ticket] = commit
        self._after_commit[self.ticket] = self._waiting_effects
        self._ack_sent[self.ticket] = self._acks
        self._storing.update(dict.fromkeys(_hashes_of(commit), self.ticket))
        self._waiting_effects, self._acks = [], {}
        return commit

    def _commit(self) -> Commit:
        membership = self._core.membership
        services = tuple(
            (s, membership.petnames.get(s, s), s in membership.taken_up, chain.epoch)
            for s, chain in sorted(membership.chains.items())
            if s in membership.unsaved_services
        )
        commit = Commit(
            self.ticket,
            tuple(membership.unsaved_changes),
            tuple(self._core.logs.unsaved),
            services,
            tuple(self.answers),
            tuple(self._core.retention.unsaved_kept),
            tuple(self._core.retention.unsaved),
            (
                *membership.unsaved_notes,
                *membership.proposals.unsaved,
                *self._core.joining.unsaved,
                *self._core.own_wishes.unsaved,
                *self._core.guests.unsaved,
            ),
            tuple(membership.forgotten),
        )
        self.answers = []
        membership.unsaved_notes, membership.forgotten = [], []
        self._core.joining.unsaved, self._core.own_wishes.unsaved = [], []
        self._core.guests.unsaved = []
        self._core.retention.unsaved, self._core.retention.unsaved_kept = [], []
        membership.unsaved_changes, membership.unsaved_services = [], set()
        membership.proposals.unsaved = []
        self._core.logs.unsaved = []
        return commit

    def after_commit(self, effect: Effect) -> None:
        """Hold an effect back until what this turn writes is on disk."""
        self._waiting_effects.append(effect)

    def on_committed(self, ticket: int) -> None:
        """Let go what waited for this commit."""
        commit = self._in_flight.pop(ticket, None)
        stored = _hashes_of(commit) if commit is not None else []
        for segment_hash in stored:
            self._storing.pop(segment_hash, None)
            self._core.logs.unstored.discard(segment_hash)
        self._core.replication.on_stored(stored)
        for effect in self._after_commit.pop(ticket, []):
            self._ctx.emit(effect)
        for peer, hashes in sorted(self._ack_sent.pop(ticket, {}).items()):
            self._ctx.send(peer, Ack(tuple(hashes)))
        self._core.commands.on_committed(ticket)

    def on_commit_failed(self, event: ev.CommitFailed) -> None:
        """Tell whoever waits that it is not stored, and try again with the next commit. Of several
        the newest comes first: what each held goes before what came later."""
        commit = self._in_flight.pop(event.ticket, None)
        self._ack_sent.pop(event.ticket, None)
        for effect in self._after_commit.pop(event.ticket, []):
            call = getattr(effect, "call", None)
            if call is not None:
                self._ctx.emit(Fail(call, f"not stored: {event.reason}", "free disk space", "disk"))
        self._core.commands.on_commit_failed(event.ticket, event.reason)
        if commit is not None:
            for segment_hash in _hashes_of(commit):
                self._storing.pop(segment_hash, None)
            self._core.membership.unsaved_changes[:0] = commit.changes
            self._core.membership.unsaved_services |= {row[0] for row in commit.services}
            self._core.logs.unsaved[:0] = commit.segments
            self.answers[:0] = commit.answers
            self._core.retention.unsaved[:0] = commit.dropped
            self._core.retention.unsaved_kept[:0] = commit.kept
            self._core.membership.unsaved_notes[:0] = commit.notes
            self._core.membership.forgotten[:0] = commit.forgotten

    def is_stored(self, segment: bytes) -> bool:
        """Say whether a segment is on this node's disk."""
        return self._core.intake.holds(segment) and segment not in self._core.logs.unstored

    def on_push(self, peer: str, push: Push) -> None:
        """A peer sends a segment; if it asks for it, it is told once that is on the disk."""
        taken = self._core.intake.take(peer, push.segment)
        if not push.ack or taken is None:
            return
        if taken not in self._core.logs.unstored:
            self._ctx.send(peer, Ack((taken,)))
        elif taken in self._storing:  # its commit is under way
            waiting = self._ack_sent[self._storing[taken]]
            waiting.setdefault(peer, []).append(taken)
        else:
            self._acks.setdefault(peer, []).append(taken)

    def on_restored(self, event: ev.Restored) -> None:
        """Take what the disk held; go on with what outlived the last start, and end the rest."""
        for service, petname, taken_up in event.services:
            self._core.membership.restore(service, petname, taken_up)
        for kind, name, data in event.notes:
            if kind == "choice":
                self._core.membership.choices[name] = data.decode()
        for service, data in event.changes:
            self._core.membership.restore_change(service, data)
        for row in event.dropped:
            stone = Tombstone(row.height, row.forked, row.dropped_unix_ms)
            self._core.retention.restore(row.service, LogId(row.author, row.boot, 0), stone)
        for data in event.kept:
            self._core.retention.keep(Segment.decode(data))
        for data in event.segments:
            chain = self._core.membership.chains.get(Segment.decode(data).service)
            if chain is not None:
                self._core.logs.restore(data, chain)
        for service, request, cid in event.answers:
            self._core.fold(service).pin(request, cid)
        for service in sorted(self._core.membership.taken_up):
            self._ctx.emit(JoinTopic(service))
            self._core.intake.refold(service)
        self._restore_notes(event)
        self._core.sponsors.on_restored()
        for adopted in event.adopted:
            self._core.worker.adopt(adopted)
        for service in sorted(self._core.membership.taken_up):
            self._core.worker.end_lost(service)

    def _restore_notes(self, event: ev.Restored) -> None:
        for kind, name, data in event.notes:
            if kind in (proposals.NOTE, proposals.WITHDRAWN_NOTE):
                self._core.membership.proposals.restore(kind, name, data)
            elif kind == own_wishes.NOTE:
                self._core.own_wishes.restore(data)
            elif kind in (joining.NOTE, joining.DENIED_NOTE):
                self._core.joining.restore(kind, name, data)
            elif kind == guests.NOTE:
                self._core.guests.restore(name, data)


def _hashes_of(commit: Commit) -> list[bytes]:
    return [segment.hash for segment in (*commit.segments, *commit.kept)]
