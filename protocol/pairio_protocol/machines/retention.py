"""Retention: the log is news, the result index is memory.

    a log quiet for longer than retention, everything in it over --> dropped as a whole
        its segments with results, their requests, cancels of what stays --> kept, and served
        its name and height --> remembered: not taken again, and told to neighbours for a while

What is over: a request that is answered, canceled or expired, and on whose job no open request
rests; a run that no open request wants. A node begins a new log of its own after LOG_AGE_MAX_MS, so
that old ones become quiet. The age of a log goes by its author's clock, but never by more than this
node has known it: a clock that is ahead keeps its log longer, one that is behind loses only what is
over. Clock: a look every RETENTION_LOOK_MS.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from pairio_protocol.context import Context
from pairio_protocol.effects import Dropped
from pairio_protocol.errors import DecodeError
from pairio_protocol.fold import ServiceFold
from pairio_protocol.ids import LogId, request_id
from pairio_protocol.limits import (
    DROPPED_LOGS_MAX,
    KEPT_BYTES_PER_AUTHOR_MAX,
    KEPT_PUSHED_MAX,
    LOGS_DROPPED_PER_LOOK,
    RETENTION_SKEW_MS,
)
from pairio_protocol.machines.heights import Bounds, key_of, range_of, ranges_in
from pairio_protocol.machines.log import Log, why_not_alone
from pairio_protocol.messages import LogHeight
from pairio_protocol.records import Cancel, End, Record, Request, Result, Start, Unknown
from pairio_protocol.segment import Segment
from pairio_protocol.service import Chain

__all__ = ["Hooks", "Retention", "Tombstone"]


@dataclass(frozen=True)
class Tombstone:
    """What is remembered of a dropped log: height, lowest forked seq + 1 (or 0), since when."""

    height: int
    forked: int
    dropped_unix_ms: int


@dataclass
class _Service:
    kept: dict[bytes, Segment] = field(default_factory=dict)
    kept_bytes: Counter[str] = field(default_factory=Counter)  # by author
    dropped: dict[LogId, Tombstone] = field(default_factory=dict)
    dropped_in: dict[int, set[LogId]] = field(default_factory=dict)  # by range of keys

    def keep(self, segment: Segment) -> None:
        """Keep a segment, once."""
        if segment.hash not in self.kept:
            self.kept[segment.hash] = segment
            self.kept_bytes[segment.log.author] += len(segment.body)

    def note(self, log_id: LogId, stone: Tombstone) -> None:
        """Remember a dropped log; the oldest goes beyond the bound."""
        self.dropped[log_id] = stone
        self.dropped_in.setdefault(range_of(log_id), set()).add(log_id)
        if len(self.dropped) > DROPPED_LOGS_MAX:
            oldest = next(iter(self.dropped))
            del self.dropped[oldest]
            self.dropped_in[range_of(oldest)].discard(oldest)


class Hooks:
    """What retention needs of its surroundings; given by the core."""

    def fold(self, service: str) -> ServiceFold:
        """Return the fold of a service."""
        raise NotImplementedError

    def quiet_logs(self, service: str, before_unix_ms: int) -> list[tuple[LogId, Log]]:
        """Return the logs in which nothing is newer than that, but the one being written."""
        raise NotImplementedError

    def drop_log(self, service: str, log_id: LogId) -> None:
        """Forget a log's segments."""
        raise NotImplementedError

    def refold(self, service: str) -> None:
        """Derive the state again from what is still here."""
        raise NotImplementedError

    def ask_for(self, service: str, jobs: list[str]) -> None:
        """Look jobs up at a connected member."""
        raise NotImplementedError

    def services(self) -> list[str]:
        """Return the services that are taken up, sorted."""
        raise NotImplementedError


class Retention:
    """Kept segments and dropped logs, by service."""

    def __init__(self, ctx: Context, hooks: Hooks) -> None:
        self._ctx = ctx
        self._hooks = hooks
        self._services: dict[str, _Service] = {}
        self._look_ms: int | None = None
        self.unsaved: list[Dropped] = []
        self.unsaved_kept: list[Segment] = []

    def _of(self, service: str) -> _Service:
        if service not in self._services:
            self._services[service] = _Service()
        return self._services[service]

    # -- what was dropped -------------------------------------------------------------------

    def is_dropped(self, service: str, log_id: LogId) -> bool:
        """Say whether a log was dropped here and is not to be taken again."""
        return log_id in self._of(service).dropped

    def has_dropped(self, segment: Segment) -> bool:
        """Say whether a segment lies in what was dropped of its log."""
        stone = self._of(segment.service).dropped.get(segment.log)
        return stone is not None and segment.last_seq < stone.height

    def told_heights(self, service: str, bounds: Bounds = (b"", b"")) -> list[LogHeight]:
        """Return dropped logs that neighbours may still hold, so that they do not send them."""
        since, (low, high) = self._ctx.unix_ms - RETENTION_SKEW_MS, bounds
        held = self._of(service)
        told = []
        for log_id in (i for r in ranges_in(bounds) for i in held.dropped_in.get(r, ())):
            stone, key = held.dropped[log_id], key_of(log_id)
            if stone.dropped_unix_ms > since and key >= low and (not high or key < high):
                told.append(LogHeight(*log_id, stone.height, stone.forked))
        return told

    def restore(self, service: str, log_id: LogId, stone: Tombstone) -> None:
        """Take what the disk remembers of a dropped log."""
        self._of(service).note(log_id, stone)

    # -- what is kept -----------------------------------------------------------------------

    def keep(self, segment: Segment) -> None:
        """Take a kept segment from the disk."""
        self._of(segment.service).keep(segment)

    def take(self, segment: Segment, chain: Chain) -> bool:
        """Take a kept segment that a member sent on request; its signature was checked."""
        held = self._of(segment.service)
        if segment.hash in held.kept or not self._counts(segment, chain):
            return False
        size_bytes = held.kept_bytes[segment.log.author] + len(segment.body)
        if len(held.kept) >= KEPT_PUSHED_MAX or size_bytes > KEPT_BYTES_PER_AUTHOR_MAX:
            self._ctx.counters["kept segments beyond what is taken"] += 1
            return False
        held.keep(segment)
        self.unsaved_kept.append(segment)
        return True

    def take_late(self, segment: Segment, chain: Chain) -> bool:
        """Take what follows the dropped part of a log: its author was away for longer than that."""
        held = self._of(segment.service)
        stone = held.dropped[segment.log]
        if segment.first_seq != stone.height or not self.take(segment, chain):
            self._ctx.counters["segments of logs that were dropped"] += 1
            return False
        higher = replace(stone, height=segment.last_seq + 1, dropped_unix_ms=self._ctx.unix_ms)
        held.note(segment.log, higher)
        self.unsaved.append(_row(segment.service, segment.log, higher))
        return True

    def get(self, segment_hash: bytes) -> Segment | None:
        """Return a kept segment by its hash."""
        for held in self._services.values():
            if segment_hash in held.kept:
                return held.kept[segment_hash]
        return None

    def keeps(self, service: str, log_id: LogId) -> bool:
        """Say whether segments of a log are kept that stand alone."""
        return any(segment.log == log_id for segment in self._of(service).kept.values())

    def has_kept(self, service: str) -> bool:
        """Say whether segments of dropped logs are kept."""
        return bool(self._of(service).kept)

    def counting(self, service: str, chain: Chain) -> Iterator[Segment]:
        """Return the kept segments that count under these changes, by log and place."""
        kept = sorted(self._of(service).kept.values(), key=lambda s: (s.log, s.first_seq))
        return (segment for segment in kept if self._counts(segment, chain))

    def _counts(self, segment: Segment, chain: Chain) -> bool:
        stone = self._of(segment.service).dropped.get(segment.log)
        forked = stone.forked if stone is not None else 0
        return not why_not_alone(segment, chain, forked - 1 if forked else None)

    # -- dropping ---------------------------------------------------------------------------

    def tick(self) -> None:
        """Look from time to time for logs that are over."""
        if self._look_ms is None:
            self._look_ms = self._ctx.now_ms + self._ctx.config.retention_look_ms
        if self._ctx.now_ms < self._look_ms:
            return
        self._look_ms = self._ctx.now_ms + self._ctx.config.retention_look_ms
        for service in self._hooks.services():
            self._look(service)

    def deadline_ms(self) -> int | None:
        """When it looks next."""
        return self._look_ms

    def _look(self, service: str) -> None:
        fold = self._hooks.fold(service)
        before = self._ctx.unix_ms - self._ctx.config.retention_ms
        # What is open for so long may be over elsewhere, in a log that went before it came here.
        self._hooks.ask_for(service, fold.open_since(before, self._ctx.unix_ms))
        quiet = self._hooks.quiet_logs(service, before)
        needed = fold.needed_jobs(self._ctx.unix_ms) if quiet else set()
        old = [
            (log_id, log)
            for log_id, log in quiet
            if all(self._is_over(fold, needed, *row) for row in _records(log.segments))
        ][:LOGS_DROPPED_PER_LOOK]
        if not old:
            return
        kept = self._worth_keeping(fold, [log for _, log in old])
        for log_id, log in old:
            stone = Tombstone(log.held_height, log.forked, self._ctx.unix_ms)
            mine = [segment for segment in log.segments if segment.hash in kept]
            self._drop(service, log_id, stone, mine)
        self._ctx.counters["logs dropped"] += len(old)
        self._hooks.refold(service)

    def _drop(self, service: str, log_id: LogId, stone: Tombstone, kept: list[Segment]) -> None:
        held = self._of(service)
        held.note(log_id, stone)
        for segment in kept:
            held.keep(segment)
        self._hooks.drop_log(service, log_id)
        self.unsaved.append(_row(service, log_id, stone, tuple(segment.hash for segment in kept)))

    def _is_over(
        self,
        fold: ServiceFold,
        needed: set[str],
        segment: Segment,
        seq: int,
        record: Record | Unknown,
    ) -> bool:
        """Say whether nothing that is open rests on a record; open requests rest on the
        definitions of the jobs in `needed`."""
        match record:
            case Request():
                name = request_id(segment.service, segment.log.author, segment.log.boot, seq)
                state = fold.requests.get(name)
                needs = state is not None and state.job in needed
                return not needs and not fold.is_open(name, self._ctx.unix_ms)
            case Start() | End():
                return not fold.is_open(record.request, self._ctx.unix_ms)
            case _:
                return True

    def _worth_keeping(self, fold: ServiceFold, logs: Iterable[Log]) -> set[bytes]:
        """Return the hashes of segments that stay when these logs go: also of those that do not
        count now, and would if another branch of changes won."""
        kept: set[bytes] = set()
        left_out: set[str] = set()
        cancels: list[tuple[Segment, Cancel]] = []
        for log in logs:
            for segment in log.segments:
                names = set()
                for _, seq, record in _records([segment]):
                    if isinstance(record, Result):
                        kept.add(segment.hash)
                    elif isinstance(record, Cancel):
                        cancels.append((segment, record))
                    elif isinstance(record, Request):
                        name = request_id(
                            segment.service, segment.log.author, segment.log.boot, seq
                        )
                        names.add(name)
                        state = fold.requests.get(name)
                        if state is None or state.answer is not None or fold.has_answer(state):
                            kept.add(segment.hash)
                if segment.hash not in kept:
                    left_out |= names
        for segment, cancel in cancels:
            if any(name in fold.requests and name not in left_out for name in cancel.requests):
                kept.add(segment.hash)
        return kept


def _row(
    service: str, log_id: LogId, stone: Tombstone, kept: tuple[bytes, ...] | None = None
) -> Dropped:
    author, boot, _ = log_id
    since = stone.dropped_unix_ms
    return Dropped(service, author, boot, stone.height, stone.forked, since, kept)


def _records(segments: Iterable[Segment]) -> Iterator[tuple[Segment, int, Record | Unknown]]:
    for segment in segments:
        try:
            records = segment.records()
        except DecodeError:
            continue  # signed, and yet malformed: void
        for number, record in enumerate(records):
            yield segment, segment.first_seq + number, record
