"""Logs: this node's own, and every member's; sealing, taking, syncing.

    bytes -> decode -> signature -> epoch known? -no-> parked (bounded), changes are asked for
                                        |yes
                                author a member then? -no-> refused
                                        |yes
                                contradicts what is here? -yes-> fork: void from there
                                        |no
                                follows what is here? -no-> parked until the gap is filled
                                        |yes
                                counts (log.py)? -no-> dropped, counted
                                        |yes
                                    accepted: stored with the next commit, folded

Sync: heights of logs are compared (digests first, heights.py), what lies above is sent. It
converges with no gossip at all. Clock: sync.py's.
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import takewhile
from typing import Protocol

from pairio_protocol.context import Context
from pairio_protocol.effects import Announce
from pairio_protocol.errors import DecodeError
from pairio_protocol.ids import LogId
from pairio_protocol.limits import (
    CUTS_PER_CHANGE_MAX,
    FRAME_SIZE_BYTES_MAX,
    LOG_RECORDS_MAX,
    LOGS_PER_FRONTIER_MAX,
    NEWS_SYNC_MS,
    PARKED_SEGMENTS_PER_AUTHOR_MAX,
    PARKED_SEGMENTS_PER_SERVICE_MAX,
    SEGMENT_RECORDS_MAX,
    SEGMENT_SIZE_BYTES_MAX,
    SEGMENTS_PER_SYNC_MAX,
)
from pairio_protocol.machines.heights import Bounds, Heights, News, bounds_of, key_of, range_of
from pairio_protocol.machines.log import Log, forked_seq
from pairio_protocol.messages import (
    Digest,
    Forks,
    Frontier,
    LogHeight,
    Push,
    SyncSegments,
    WantChanges,
)
from pairio_protocol.records import Record, Start, issued_unix_ms
from pairio_protocol.segment import Segment, record_size
from pairio_protocol.service import Chain, Cut
from pairio_protocol.signing import sha256

__all__ = ["Logs", "Memory", "Taken"]

_VERIFIED_MAX = 4096
_SENT_MAX = 4096
_UNSENT_MAX = 16
_GAP_INTERVAL_MS = 100
#: After this time neighbours have a segment, by gossip or because its author told them.
_FRESH_MS = NEWS_SYNC_MS * 3
_FRAME_ROOM = FRAME_SIZE_BYTES_MAX - 1024


@dataclass
class Taken:
    """What taking a segment did: which segments count now, in order; `refold` when some that
    counted do not any more."""

    accepted: list[Segment] = field(default_factory=list)
    refold: bool = False


class Memory(Protocol):
    """What is remembered of logs that were dropped."""

    def is_dropped(self, service: str, log_id: LogId) -> bool:
        """Say whether a log was dropped here and is not to be taken again."""

    def told_heights(self, service: str, bounds: Bounds) -> list[LogHeight]:
        """Return dropped logs that neighbours may still hold."""

    def keeps(self, service: str, log_id: LogId) -> bool:
        """Say whether segments of a log are kept that stand alone."""


class Logs:
    """All logs of the services that are taken up."""

    def __init__(self, ctx: Context, memory: Memory) -> None:
        self._ctx = ctx
        self._memory = memory
        self._began_ms: dict[str, int] = {}
        self._logs: dict[str, dict[LogId, Log]] = {}
        self._turns: dict[str, int] = {}
        self.news: dict[str, News] = {}  # of each service, until it was told
        self._pending: dict[str, list[Record]] = {}
        self._pending_bytes: dict[str, int] = {}
        self._sealed: list[Segment] = []
        self.unsaved: list[Segment] = []
        self.unstored: set[bytes] = set()  # what no commit has brought to the disk yet
        self._verified: OrderedDict[bytes, bytes] = OrderedDict()  # signatures, by hash
        self._sent: OrderedDict[tuple[str, bytes], None] = OrderedDict()
        self._unknown_epoch: dict[str, dict[str, list[Segment]]] = {}  # service -> sender
        self._by_hash: dict[bytes, Segment] = {}
        #: (service, author) -> what was parked beyond gaps in his logs, oldest first
        self._gaps: dict[tuple[str, str], OrderedDict[tuple[LogId, int], Log]] = {}
        self._gap_asked_ms: dict[tuple[str, str, int], int] = {}
        self._heights: dict[str, Heights] = {}
        #: segments that came lately, which neighbours may still lack, and when they did
        self._fresh: OrderedDict[bytes, int] = OrderedDict()

    # -- this node's own log --------------------------------------------------------------

    def append(self, service: str, record: Record, chain: Chain) -> tuple[bytes, int]:
        """Add a record to this node's log of a service; return its (boot, seq). Sealed later."""
        size = record_size(record)
        pending = self._pending.setdefault(service, [])
        full = self._pending_bytes.get(service, 0) + size > SEGMENT_SIZE_BYTES_MAX - 2048
        if pending and (full or len(pending) >= SEGMENT_RECORDS_MAX):
            self._seal(service, chain)
            pending = self._pending[service]
        log_id = self._own_id(service, chain)
        pending.append(record)
        self._pending_bytes[service] = self._pending_bytes.get(service, 0) + size
        return log_id.boot, self._log(service, log_id).held_height + len(pending) - 1

    def _own_id(self, service: str, chain: Chain) -> LogId:
        """Return the log that this node writes to: a new one once the last does not count whole,
        or was written under a branch of changes that has lost."""
        turn = self._turns.get(service, 0)
        boot = self._ctx.config.boot
        while turn:
            boot = sha256(boot)[:16]
            turn -= 1
        log_id = LogId(self._ctx.me, boot, 0)
        log = self._log(service, log_id)
        ahead = bool(log.segments) and log.segments[-1].epoch > chain.epoch_of_new(self._ctx.me)
        began_ms = self._began_ms.setdefault(service, self._ctx.now_ms)
        old = bool(log.segments) and (
            self._ctx.now_ms - began_ms >= self._ctx.config.log_age_ms
            or log.held_height >= LOG_RECORDS_MAX
        )
        if not self._pending.get(service) and (ahead or old or not log.is_open):
            self._began_ms[service] = self._ctx.now_ms
            self._turns[service] = self._turns.get(service, 0) + 1
            return self._own_id(service, chain)
        return log_id

    def _log(self, service: str, log_id: LogId) -> Log:
        logs = self._logs.setdefault(service, {})
        if log_id not in logs:
            logs[log_id] = Log(seen_unix_ms=self._ctx.unix_ms)
            self._heights_of(service).add(log_id, logs[log_id])
        return logs[log_id]

    def has_pending(self) -> bool:
        """Say whether records wait to be sealed or segments to be stored."""
        return bool(self.unsaved or self._sealed or any(self._pending.values()))

    def pending_count(self) -> int:
        """Return how many records wait to be sealed."""
        return sum(map(len, self._pending.values()))

    def only_starts(self) -> bool:
        """Say whether all that waits, if anything, says that runs have begun here."""
        if self.unsaved or self._sealed:
            return False
        return all(isinstance(r, Start) for pending in self._pending.values() for r in pending)

    def pending_of(self, service: str) -> bool:
        """Say whether records of a service wait to be sealed."""
        return bool(self._pending.get(service))

    def seal(self, chains: Mapping[str, Chain]) -> list[Segment]:
        """Sign what is pending. The segments are to be committed and announced by the caller."""
        for service, pending in self._pending.items():
            if pending:
                self._seal(service, chains[service])
        sealed, self._sealed = self._sealed, []
        for segment in sealed:
            self._ctx.emit(Announce(segment.service, segment.encode()))
        return sealed

    def _seal(self, service: str, chain: Chain) -> None:
        log_id = self._own_id(service, chain)
        log = self._log(service, log_id)
        segment = Segment.seal(
            self._ctx.key,
            service,
            log_id.boot,
            log.held_height,
            chain.epoch_of_new(self._ctx.me),
            log.head,
            self._pending[service],
        )
        self._pending[service] = []
        self._pending_bytes[service] = 0
        known = log.accepted if log.is_open else 0
        log.segments.append(segment)
        self._heights_of(service).changed(log_id)
        log.accepted = log.count_accepted(chain, known)
        if log.accepted < len(log.segments):  # a role was lost since it was written
            log.segments.pop()
            self._ctx.counters["own segments that do not count"] += 1
            self._turns[service] = self._turns.get(service, 0) + 1  # its seqs were given out
            return
        self._remember(segment)
        self._news_of(service).own.add(range_of(log_id))
        self._sealed.append(segment)
        self._keep(segment)

    def _keep(self, segment: Segment) -> None:
        self._by_hash[segment.hash] = segment
        self._fresh[segment.hash] = self._ctx.now_ms
        while next(iter(self._fresh.values())) < self._ctx.now_ms - _FRESH_MS:
            self._fresh.popitem(last=False)
        self.unstored.add(segment.hash)
        self.unsaved.append(segment)

    # -- other nodes' logs ----------------------------------------------------------------

    def check(self, data: bytes, chain: Chain | None) -> Segment:
        """Return the segment in `data` if a member signed it under an epoch known here.

        Raises:
            DecodeError: malformed, not signed, or never from a member.
            LookupError: its epoch is not known here yet.
        """
        segment = Segment.decode(data)
        if chain is None or segment.service != chain.service:
            raise DecodeError("a segment of a service that is not taken up")
        # The hash is of what is signed: the same may come with another signature, which is none.
        if self._verified.get(segment.hash) != segment.signature:
            if not segment.is_signed():
                raise DecodeError("bad signature on a segment")
            self._remember(segment)
        folded = chain.at(segment.epoch)
        if folded is None:
            raise LookupError(segment.epoch)
        if not folded.roles_of(segment.log.author):
            raise DecodeError("a segment of somebody who is no member")
        return segment

    def _remember(self, segment: Segment) -> None:
        self._verified[segment.hash] = segment.signature
        if len(self._verified) > _VERIFIED_MAX:
            self._verified.popitem(last=False)

    def take(self, peer: str, data: bytes, chain: Chain | None, by_gossip: bool = False) -> Taken:
        """Take a segment from a peer. What gossip brings it brings to others too: no news."""
        try:
            segment = self.check(data, chain)
        except LookupError:
            assert chain is not None
            self._park_epoch(peer, Segment.decode(data), chain)
            return Taken()
        except DecodeError as error:
            self._ctx.refuse(peer, str(error)[:80])
            return Taken()
        assert chain is not None
        return self._link(segment, peer, chain, by_gossip)

    def _park_epoch(self, peer: str, segment: Segment, chain: Chain) -> None:
        """Keep a segment until its change is here. Only for members: others' come by sync, once it
        is known that they are some. Beyond the bound whoever has most of them gives one up."""
        self._ctx.send(peer, WantChanges(segment.service, 0, ""))
        if not chain.now.roles_of(peer):
            self._ctx.refuse(peer, "a segment of an unknown epoch, of a stranger")
            return
        parked = self._unknown_epoch.setdefault(segment.service, {})
        parked.setdefault(peer, []).append(segment)
        self._ctx.counters["segments parked for an epoch"] += 1
        if sum(map(len, parked.values())) > PARKED_SEGMENTS_PER_SERVICE_MAX:
            del max(parked.values(), key=len)[0]
            self._ctx.counters["segments beyond what is parked"] += 1

    def unpark(self, service: str, chain: Chain) -> list[Segment]:
        """Return what waited for a change that is known now, to be taken again. The rest goes on
        waiting: nobody is asked again for each of them with each change that is another one."""
        waiting = self._unknown_epoch.pop(service, {})
        ready = [s for parked in waiting.values() for s in parked if chain.at(s.epoch) is not None]
        for peer, parked in waiting.items():
            if left := [s for s in parked if chain.at(s.epoch) is None]:
                self._unknown_epoch.setdefault(service, {})[peer] = left
        return ready

    def _link(self, segment: Segment, peer: str, chain: Chain, by_gossip: bool = False) -> Taken:
        if self._memory.is_dropped(segment.service, segment.log):
            self._ctx.counters["segments of logs that were dropped"] += 1
            return Taken()
        if segment.hash in self._by_hash:
            return Taken()
        is_new = segment.log not in self._logs.get(segment.service, {})
        if is_new and _is_cut_away(segment, chain):
            self._ctx.counters["segments that do not count"] += 1
            return Taken()
        taken = self._link_to(self._log(segment.service, segment.log), segment, peer, chain)
        if is_new:
            self._forget_empty(segment.service, segment.log)
        if taken.accepted and not by_gossip:
            self._news_of(segment.service).others.add(range_of(segment.log))
        return taken

    def _forget_empty(self, service: str, log_id: LogId) -> None:
        """Keep nothing of a log of which nothing is held: there is no end of names for logs."""
        log = self._logs[service].get(log_id)
        if log is not None and not (log.segments or log.parked or log.forked):
            self.drop(service, log_id)

    def _link_to(self, log: Log, segment: Segment, peer: str, chain: Chain) -> Taken:
        rival = log.conflict(segment)
        if rival is not None:
            return self._fork(log, rival, segment, chain)
        if segment.first_seq > log.held_height:
            self._park_gap(log, segment)
            self._fill_gap(peer, segment)
            return Taken()
        if not log.is_open:
            self._ctx.counters["segments beyond the end of what counts"] += 1
            return Taken()
        if segment.prev != log.head:  # at 0, or it would contradict the last one
            self._ctx.refuse(peer, "a first segment that follows another")
            return Taken()
        return self._extend(log, segment, chain)

    def _park_gap(self, log: Log, segment: Segment) -> None:
        """Keep a segment beyond a gap; of one author only so many, in however many logs."""
        parked = self._gaps.setdefault((segment.service, segment.log.author), OrderedDict())
        parked[segment.log, segment.first_seq] = log
        log.parked[segment.first_seq] = segment
        self._ctx.counters["segments parked for a gap"] += 1
        if len(parked) > PARKED_SEGMENTS_PER_AUTHOR_MAX:
            (oldest_id, first_seq), oldest = parked.popitem(last=False)
            if oldest.parked.pop(first_seq, None) is not None:
                self._ctx.counters["segments beyond what is parked"] += 1
                self._forget_empty(segment.service, oldest_id)

    def _extend(self, log: Log, segment: Segment, chain: Chain) -> Taken:
        taken = Taken()
        following: Segment | None = segment
        while following is not None:
            log.segments.append(following)
            if log.count_accepted(chain, log.accepted) < len(log.segments):
                log.segments.pop()
                self._ctx.counters["segments that do not count"] += 1
                break
            log.accepted = len(log.segments)
            self._heights_of(segment.service).changed(segment.log)
            self._keep(following)
            taken.accepted.append(following)
            following = log.parked.pop(log.held_height, None)
            rival = log.conflict(following) if following is not None else None
            if following is not None and rival is not None:
                taken.refold |= self._fork(log, rival, following, chain).refold
                break
        return taken

    def _fork(self, log: Log, one: Segment, other: Segment, chain: Chain) -> Taken:
        """Two segments contradict each other: the log is void from there, on every node."""
        if not log.note_fork(one, other):
            return Taken()
        self._ctx.counters["forked logs"] += 1
        for segment in (one, other):
            if segment.hash not in self._by_hash:
                self.unsaved.append(segment)
        self._news_of(one.service).others.add(range_of(one.log))
        before = log.accepted
        self._heights_of(one.service).changed(one.log)
        log.accepted = log.count_accepted(chain)
        alone = self._memory.keeps(one.service, one.log)
        return Taken(refold=alone or log.accepted != before)

    def recount(self, service: str, chain: Chain) -> tuple[bool, list[Segment]]:
        """The service's changes are others: say whether something no longer counts, and return
        what counts now and did not before."""
        shrunk, more = False, []
        self._heights_of(service).changed_all()
        for log in self._logs.get(service, {}).values():
            before = log.accepted
            log.accepted = log.count_accepted(chain)
            shrunk = shrunk or log.accepted < before
            more.extend(log.segments[before : log.accepted])
        return shrunk, more

    def _fill_gap(self, peer: str, segment: Segment) -> None:
        """Ask whoever sent beyond a gap for what lies between (not for every such segment)."""
        where = range_of(segment.log)
        key = (peer, segment.service, where)
        last_ms = self._gap_asked_ms.get(key, -_GAP_INTERVAL_MS)
        if self._ctx.now_ms - last_ms >= _GAP_INTERVAL_MS:
            self._gap_asked_ms[key] = self._ctx.now_ms
            for bounds in bounds_of([where]):
                self.send_frontier(peer, segment.service, reply=True, bounds=bounds)

    def restore(self, data: bytes, chain: Chain) -> Taken:
        """Take a segment from this node's disk."""
        segment = Segment.decode(data)
        self._remember(segment)
        taken = self._link(segment, self._ctx.me, chain)
        self.unsaved, self.unstored = [], set()
        return taken

    def may_count(self, segment: Segment) -> bool:
        """Say whether a segment of a member could count, or prove a fork: worth passing on."""
        if self._memory.is_dropped(segment.service, segment.log):
            return False
        log = self._logs.get(segment.service, {}).get(segment.log)
        return log is None or log.is_open or segment.hash in self._by_hash

    # -- old logs -------------------------------------------------------------------------

    def note_time(self, segment: Segment, issued_unix_ms: int) -> None:
        """A record of the segment says when it was written; never later than now."""
        log = self._log(segment.service, segment.log)
        log.newest_unix_ms = max(log.newest_unix_ms, min(issued_unix_ms, self._ctx.unix_ms))

    def quiet(self, service: str, before_unix_ms: int) -> list[tuple[LogId, Log]]:
        """Return the logs in which nothing is newer than that, but the one being written."""
        boot = self._ctx.config.boot
        for _ in range(self._turns.get(service, 0)):
            boot = sha256(boot)[:16]
        mine = LogId(self._ctx.me, boot, 0)
        return [
            (log_id, log)
            for log_id, log in self._logs.get(service, {}).items()
            if log_id != mine and not log.parked and log.quiet_since_unix_ms < before_unix_ms
        ]

    def drop(self, service: str, log_id: LogId) -> None:
        """Forget a log's segments."""
        log = self._logs[service].pop(log_id)
        self._heights_of(service).drop(log_id)
        for segment in log.segments:
            self._by_hash.pop(segment.hash, None)

    def get(self, segment_hash: bytes) -> Segment | None:
        """Return an accepted segment by its hash."""
        return self._by_hash.get(segment_hash)

    def push(self, peer: str, segment_hash: bytes, ack: bool = False) -> None:
        """Send a segment to a peer unless that was done before on this connection."""
        segment = self._by_hash.get(segment_hash)
        if segment is None or (not ack and (peer, segment_hash) in self._sent):
            return
        for before in self._unsent_before(peer, segment):
            self._send_push(peer, before, ack=False)
        self._send_push(peer, segment, ack)

    def _unsent_before(self, peer: str, segment: Segment) -> list[Segment]:
        """Return the few segments of the log that the peer needs first, and may not have had from
        others yet; sync has the rest."""
        segments = self._logs[segment.service][segment.log].counting()
        unsent: list[Segment] = []
        for index in range(len(segments) - 1, -1, -1):
            before = segments[index]
            if before.first_seq >= segment.first_seq:
                continue
            known = (peer, before.hash) in self._sent or before.hash not in self._fresh
            if known or len(unsent) >= _UNSENT_MAX:
                break
            unsent.insert(0, before)
        return unsent

    def _send_push(self, peer: str, segment: Segment, ack: bool) -> None:
        self._note_sent(peer, segment)
        self._ctx.send(peer, Push(segment.encode(), ack))

    def _note_sent(self, peer: str, segment: Segment) -> None:
        self._sent[peer, segment.hash] = None
        self._sent.move_to_end((peer, segment.hash))
        if len(self._sent) > _SENT_MAX:
            self._sent.popitem(last=False)

    def forget_sent(self, peer: str) -> None:
        """The connection is gone: what was sent on it may be lost."""
        for key in [k for k in self._sent if k[0] == peer]:
            del self._sent[key]
        for asked in [k for k in self._gap_asked_ms if k[0] == peer]:
            del self._gap_asked_ms[asked]

    # -- sync -----------------------------------------------------------------------------

    def _news_of(self, service: str) -> News:
        if service not in self.news:
            self.news[service] = News(self._ctx.now_ms)
        return self.news[service]

    def _heights_of(self, service: str) -> Heights:
        if service not in self._heights:
            self._heights[service] = Heights()
        return self._heights[service]

    def digest(self, service: str) -> bytes:
        """Return a hash over the heights of all logs of a service."""
        return self._heights_of(service).digest()

    def is_same(self, message: Digest) -> bool:
        """Say whether a peer's logs are as high as those here."""
        return self._heights_of(message.service).is_same(message.digest)

    def send_digest(self, peer: str, service: str, changes: bytes, ranges: bool = False) -> None:
        """Begin a round of sync; with `ranges` it shows where heights differ."""
        summary = self._heights_of(service).summary(ranges)
        self._ctx.send(peer, Digest(service, summary, changes))

    def answer_digest(self, peer: str, message: Digest, changes: bytes) -> None:
        """Heights differ: send those of the ranges that do, or ask which ones do."""
        heights = self._heights_of(message.service)
        try:
            differing = heights.differing(message.digest)
        except DecodeError as error:
            self._ctx.refuse(peer, str(error))
            return
        if heights.asks_for_ranges(message.digest):
            self.send_digest(peer, message.service, changes, ranges=True)
            return
        for bounds in differing:
            self.send_frontier(peer, message.service, reply=False, bounds=bounds)

    def send_frontier(
        self, peer: str, service: str, reply: bool, bounds: Bounds = (b"", b"")
    ) -> None:
        """Send the heights of the logs within bounds, in as many frames as needed."""
        heights = [
            LogHeight(*log_id, log.height, log.forked)
            for _, log_id, log in self._heights_of(service).within(bounds)
        ]
        if told := self._memory.told_heights(service, bounds):
            heights = sorted([*heights, *told], key=_key_of)
        low, end = bounds
        for start in range(0, max(len(heights), 1), LOGS_PER_FRONTIER_MAX):
            page = heights[start : start + LOGS_PER_FRONTIER_MAX]
            rest = heights[start + LOGS_PER_FRONTIER_MAX :]
            high = _key_of(rest[0]) if rest else end
            self._ctx.send(peer, Frontier(service, low, high, tuple(page), reply))
            low = high

    def on_frontier(self, peer: str, message: Frontier) -> None:
        """Send what the peer lacks; send our own heights back if we lack something."""
        theirs = {LogId(h.author, h.boot, h.shard): h for h in message.logs}
        bounds = (message.low, message.high)
        mine = {i: log for _, i, log in self._heights_of(message.service).within(bounds)}
        behind = any(
            _lacks(mine.get(log_id), height)
            and not self._memory.is_dropped(message.service, log_id)
            for log_id, height in theirs.items()
        )
        above, pairs = [], []
        for log_id, log in mine.items():
            their = theirs.get(log_id)
            height, forked = (their.height, their.forked) if their else (0, 0)
            if height < log.height:
                above += [s for s in log.counting() if s.last_seq >= height]
            if log.evidence is not None and (not forked or log.forked < forked):
                pairs.append(log.evidence)
        for one, other in pairs[:SEGMENTS_PER_SYNC_MAX]:
            pair = (one.encode(), other.encode())
            if sum(map(len, pair)) <= _FRAME_ROOM:
                self._ctx.send(peer, Forks(message.service, (pair,)))
        self._send_segments(peer, message.service, above)
        if behind and not message.reply:
            self.send_frontier(peer, message.service, reply=True, bounds=bounds)

    def on_forks(self, peer: str, message: Forks, chain: Chain) -> bool:
        """Take proof of forked logs; True when something no longer counts."""
        refold = False
        for pair in message.pairs[:SEGMENTS_PER_SYNC_MAX]:
            try:
                one, other = (self.check(data, chain) for data in pair)
            except (DecodeError, LookupError, ValueError):
                self._ctx.refuse(peer, "a proof of a fork that is none")
                continue
            if forked_seq(one, other) is None:
                self._ctx.refuse(peer, "a proof of a fork that is none")
                continue
            if self._memory.is_dropped(one.service, one.log):
                continue
            log = self._log(one.service, one.log)
            refold |= self._fork(log, one, other, chain).refold
            for segment in (one, other):  # one of them may prove a lower fork with what is here
                rival = log.conflict(segment)
                if rival is not None:
                    refold |= self._fork(log, rival, segment, chain).refold
        return refold

    def _send_segments(self, peer: str, service: str, segments: list[Segment]) -> None:
        more = len(segments) > SEGMENTS_PER_SYNC_MAX
        batch: list[bytes] = []
        size = 0
        for segment in segments[:SEGMENTS_PER_SYNC_MAX]:
            data = segment.encode()
            self._note_sent(peer, segment)
            if batch and size + len(data) > _FRAME_ROOM:
                self._ctx.send(peer, SyncSegments(service, tuple(batch), False))
                batch, size = [], 0
            batch.append(data)
            size += len(data) + 8
        if batch:
            self._ctx.send(peer, SyncSegments(service, tuple(batch), more))

    def counts(self) -> dict[str, int]:
        """Return how many logs and segments are held."""
        logs = [log for by_id in self._logs.values() for log in by_id.values()]
        return {
            "logs": len(logs),
            "segments": sum(log.accepted for log in logs),
            "forked": sum(log.fork_at is not None for log in logs),
        }

    def height(self, log_id: LogId, service: str) -> int:
        """Return how far one log is known."""
        log = self._logs.get(service, {}).get(log_id)
        return log.height if log else 0

    def fork_at(self, segment: Segment) -> int | None:
        """Return the lowest forked seq that is known of a segment's log, None without a fork."""
        log = self._logs.get(segment.service, {}).get(segment.log)
        return log.fork_at if log is not None else None

    def logs_of(self, service: str) -> Mapping[LogId, Log]:
        """Return every log of a service."""
        return self._logs.get(service, {})

    def all_segments(self, service: str) -> Iterable[Segment]:
        """Return every segment of a service that counts."""
        return (s for log in self._logs.get(service, {}).values() for s in log.counting())

    def cuts(
        self, service: str, authors: Iterable[str], until_unix_ms: int | None = None
    ) -> tuple[Cut, ...]:
        """Return cuts after what is known here of the authors' logs, or after what was issued up
        to a time. Of more logs than a change may cut, the newest."""
        wanted = set(authors)
        found: list[tuple[int, Cut]] = []
        for _, log_id, log in self._heights_of(service).within():
            kept = log.counting() if log_id.author in wanted else []
            if until_unix_ms is not None:
                kept = list(takewhile(partial(_is_issued_by, until_unix_ms), kept))
            if kept:
                cut = Cut(log_id, kept[-1].last_seq, kept[-1].hash)
                found.append((log.newest_unix_ms or log.seen_unix_ms, cut))
        oldest_first = sorted(found, key=lambda pair: pair[0])
        newest = {cut.log for _, cut in oldest_first[-CUTS_PER_CHANGE_MAX:]}
        return tuple(cut for _, cut in found if cut.log in newest)


def _is_issued_by(unix_ms: int, segment: Segment) -> bool:
    """Say whether none of a segment's records was issued after a time, by their author's clock."""
    try:
        return all(issued_unix_ms(record) <= unix_ms for record in segment.records())
    except DecodeError:
        return False


def _lacks(mine: Log | None, theirs: LogHeight) -> bool:
    """Say whether a peer has something of a log that would count here."""
    if mine is None:
        return bool(theirs.height or theirs.forked)
    if theirs.forked and (not mine.forked or theirs.forked < mine.forked):
        return True
    return theirs.height > mine.height and mine.is_open


def _key_of(height: LogHeight) -> bytes:
    return key_of(LogId(height.author, height.boot, height.shard))


def _is_cut_away(segment: Segment, chain: Chain) -> bool:
    """Say whether a change cuts a segment's log at 0: its author lost a role and was not known to
    write it. Nothing of it counts, ever, so neither gaps nor forks in it are of interest."""
    return any(
        segment.epoch < cutting.epoch and segment.log not in cutting.cuts
        for cutting in chain.cuttings(segment.log.author)
    )
