"""Logs: this node's own, and every member's; sealing, taking, syncing.

    bytes -> decode -> signature -> epoch known? -no-> parked (bounded), changes are asked for
                                        |yes
                                author a member then? -no-> refused
                                        |yes
                                follows what is here? -no-> parked until the gap is filled
                                        |yes
                                    accepted: stored with the next commit, folded

Sync: heights of logs are compared (digest first), what lies above is sent. It converges with no
gossip at all. Clock: a digest to one neighbour in turn every SYNC_INTERVAL_MS.
"""

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from pairio_protocol.codec import pack
from pairio_protocol.context import Context
from pairio_protocol.effects import Announce
from pairio_protocol.errors import DecodeError
from pairio_protocol.ids import LogId
from pairio_protocol.limits import (
    FRAME_SIZE_BYTES_MAX,
    LOGS_PER_FRONTIER_MAX,
    PARKED_SEGMENTS_PER_PEER_MAX,
    SEGMENT_RECORDS_MAX,
    SEGMENT_SIZE_BYTES_MAX,
    SEGMENTS_PER_SYNC_MAX,
)
from pairio_protocol.messages import Digest, Frontier, LogHeight, Push, SyncSegments, WantChanges
from pairio_protocol.records import Record
from pairio_protocol.segment import GENESIS, Segment, record_size
from pairio_protocol.service import Chain
from pairio_protocol.signing import sha256

__all__ = ["Logs"]

_VERIFIED_MAX = 4096
_SENT_MAX = 4096
_UNSENT_MAX = 16
_GAP_INTERVAL_MS = 100
_FRAME_ROOM = FRAME_SIZE_BYTES_MAX - 1024


@dataclass
class _Log:
    """The accepted segments of one log, without a gap, and those that wait for one to be filled."""

    segments: list[Segment] = field(default_factory=list)
    parked: dict[int, Segment] = field(default_factory=dict)

    @property
    def height(self) -> int:
        return self.segments[-1].last_seq + 1 if self.segments else 0

    @property
    def head(self) -> bytes:
        return self.segments[-1].hash if self.segments else GENESIS


class Logs:
    """All logs of the services that are taken up."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._logs: dict[str, dict[LogId, _Log]] = {}
        self._pending: dict[str, list[Record]] = {}
        self._pending_bytes: dict[str, int] = {}
        self._sealed: list[Segment] = []
        self.unsaved: list[bytes] = []
        self._verified: OrderedDict[bytes, None] = OrderedDict()
        self._sent: OrderedDict[tuple[str, bytes], None] = OrderedDict()
        self._unknown_epoch: dict[str, list[Segment]] = {}
        self._by_hash: dict[bytes, Segment] = {}
        self._gap_asked_ms: dict[tuple[str, str], int] = {}

    # -- this node's own log --------------------------------------------------------------

    def append(self, service: str, record: Record, epoch: int) -> int:
        """Add a record to this node's log of a service; return its seq. It is sealed later."""
        size = record_size(record)
        pending = self._pending.setdefault(service, [])
        full = self._pending_bytes.get(service, 0) + size > SEGMENT_SIZE_BYTES_MAX - 2048
        if pending and (full or len(pending) >= SEGMENT_RECORDS_MAX):
            self._seal(service, epoch)
            pending = self._pending[service]
        log = self._own(service)
        pending.append(record)
        self._pending_bytes[service] = self._pending_bytes.get(service, 0) + size
        return log.height + len(pending) - 1

    def _own(self, service: str) -> _Log:
        log_id = LogId(self._ctx.me, self._ctx.config.boot, 0)
        return self._logs.setdefault(service, {}).setdefault(log_id, _Log())

    def has_pending(self) -> bool:
        """Say whether records wait to be sealed or segments to be stored."""
        return bool(self.unsaved or self._sealed or any(self._pending.values()))

    def pending_count(self) -> int:
        """Return how many records wait to be sealed."""
        return sum(map(len, self._pending.values()))

    def seal(self, epochs: dict[str, int]) -> list[Segment]:
        """Sign what is pending. The segments are to be committed and announced by the caller."""
        for service, pending in self._pending.items():
            if pending:
                self._seal(service, epochs[service])
        sealed, self._sealed = self._sealed, []
        for segment in sealed:
            self._ctx.emit(Announce(segment.service, segment.encode()))
        return sealed

    def _seal(self, service: str, epoch: int) -> None:
        log = self._own(service)
        segment = Segment.seal(
            self._ctx.key,
            service,
            self._ctx.config.boot,
            log.height,
            epoch,
            log.head,
            self._pending[service],
        )
        self._pending[service] = []
        self._pending_bytes[service] = 0
        log.segments.append(segment)
        self._by_hash[segment.hash] = segment
        self._remember(segment.hash)
        self._sealed.append(segment)
        self.unsaved.append(segment.encode())

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
        if segment.hash not in self._verified:
            if not segment.is_signed():
                raise DecodeError("bad signature on a segment")
            self._remember(segment.hash)
        folded = chain.at(segment.epoch)
        if folded is None:
            raise LookupError(segment.epoch)
        if not folded.roles_of(segment.log.author):
            raise DecodeError("a segment of somebody who is no member")
        return segment

    def _remember(self, segment_hash: bytes) -> None:
        self._verified[segment_hash] = None
        if len(self._verified) > _VERIFIED_MAX:
            self._verified.popitem(last=False)

    def take(self, peer: str, data: bytes, chain: Chain | None) -> list[Segment]:
        """Take a segment from a peer; return those that became accepted, in the log's order."""
        try:
            segment = self.check(data, chain)
        except LookupError:
            self._park_epoch(peer, Segment.decode(data))
            return []
        except DecodeError as error:
            self._ctx.refuse(peer, str(error)[:80])
            return []
        return list(self._link(segment, peer))

    def _park_epoch(self, peer: str, segment: Segment) -> None:
        parked = self._unknown_epoch.setdefault(segment.service, [])
        if len(parked) < PARKED_SEGMENTS_PER_PEER_MAX:
            parked.append(segment)
        self._ctx.counters["segments parked for an epoch"] += 1
        self._ctx.send(peer, WantChanges(segment.service, 0))

    def unpark(self, service: str, chain: Chain) -> list[Segment]:
        """Try again what waited for a change of the service."""
        waiting = self._unknown_epoch.pop(service, [])
        accepted: list[Segment] = []
        for segment in waiting:
            accepted.extend(self.take(segment.log.author, segment.encode(), chain))
        return accepted

    def _link(self, segment: Segment, peer: str) -> Iterator[Segment]:
        log = self._logs.setdefault(segment.service, {}).setdefault(segment.log, _Log())
        if segment.first_seq < log.height:
            if segment.hash not in self._by_hash:
                self._ctx.refuse(peer, "another segment at a seq that is taken (fork)")
            return
        if segment.first_seq > log.height:
            if len(log.parked) < PARKED_SEGMENTS_PER_PEER_MAX:
                log.parked[segment.first_seq] = segment
            self._ctx.counters["segments parked for a gap"] += 1
            self._fill_gap(peer, segment.service)
            return
        following: Segment | None = segment
        while following is not None:
            if following.prev != log.head or (
                log.segments and following.epoch < log.segments[-1].epoch
            ):
                self._ctx.refuse(peer, "a segment that does not follow its log")
                return
            log.segments.append(following)
            self._by_hash[following.hash] = following
            self.unsaved.append(following.encode())
            yield following
            following = log.parked.pop(log.height, None)

    def _fill_gap(self, peer: str, service: str) -> None:
        """Ask whoever sent beyond a gap for what lies between (not for every such segment)."""
        last_ms = self._gap_asked_ms.get((peer, service), -_GAP_INTERVAL_MS)
        if self._ctx.now_ms - last_ms >= _GAP_INTERVAL_MS:
            self._gap_asked_ms[peer, service] = self._ctx.now_ms
            self.send_frontier(peer, service, reply=True)

    def restore(self, data: bytes) -> Segment | None:
        """Take a segment from this node's disk (it was accepted when it was written)."""
        segment = Segment.decode(data)
        log = self._logs.setdefault(segment.service, {}).setdefault(segment.log, _Log())
        if segment.first_seq != log.height or segment.prev != log.head:
            return None
        log.segments.append(segment)
        self._by_hash[segment.hash] = segment
        return segment

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
        """Return the few segments of the log that the peer needs first; sync has the others."""
        segments = self._logs[segment.service][segment.log].segments
        unsent: list[Segment] = []
        for index in range(len(segments) - 1, -1, -1):
            before = segments[index]
            if before.first_seq >= segment.first_seq:
                continue
            if (peer, before.hash) in self._sent or len(unsent) >= _UNSENT_MAX:
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
        for pair in [k for k in self._gap_asked_ms if k[0] == peer]:
            del self._gap_asked_ms[pair]

    # -- sync -----------------------------------------------------------------------------

    def _sorted(self, service: str) -> list[tuple[bytes, LogId, _Log]]:
        logs = self._logs.get(service, {})
        return sorted((_key(log_id), log_id, log) for log_id, log in logs.items() if log.height)

    def digest(self, service: str) -> bytes:
        """Return a hash over the heights of all logs of a service."""
        heights = [[key, log.height] for key, _, log in self._sorted(service)]
        return sha256(pack(heights))

    def send_digest(self, peer: str, service: str, epoch: int) -> None:
        """Begin a round of sync."""
        self._ctx.send(peer, Digest(service, self.digest(service), epoch))

    def on_digest(self, peer: str, message: Digest) -> None:
        """Answer another digest with a frontier."""
        if message.digest != self.digest(message.service):
            self.send_frontier(peer, message.service, reply=False)

    def send_frontier(self, peer: str, service: str, reply: bool) -> None:
        """Send the heights of all logs, in as many frames as needed."""
        logs = self._sorted(service)
        low = b""
        for start in range(0, max(len(logs), 1), LOGS_PER_FRONTIER_MAX):
            page = logs[start : start + LOGS_PER_FRONTIER_MAX]
            rest = logs[start + LOGS_PER_FRONTIER_MAX :]
            high = rest[0][0] if rest else b""
            heights = tuple(LogHeight(*log_id, log.height) for _, log_id, log in page)
            self._ctx.send(peer, Frontier(service, low, high, heights, reply))
            low = high

    def on_frontier(self, peer: str, message: Frontier) -> None:
        """Send what the peer lacks; send our own heights back if we lack something."""
        theirs = {LogId(h.author, h.boot, h.shard): h.height for h in message.logs}
        mine = {
            log_id: log
            for key, log_id, log in self._sorted(message.service)
            if key >= message.low and (not message.high or key < message.high)
        }
        behind = any(h > (mine[i].height if i in mine else 0) for i, h in theirs.items())
        above = [
            segment
            for log_id, log in mine.items()
            for segment in log.segments
            if segment.last_seq >= theirs.get(log_id, 0)
        ]
        self._send_segments(peer, message.service, above)
        if behind and not message.reply:
            self.send_frontier(peer, message.service, reply=True)

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
        return {"logs": len(logs), "segments": sum(len(log.segments) for log in logs)}

    def height(self, log_id: LogId, service: str) -> int:
        """Return how far one log is known."""
        log = self._logs.get(service, {}).get(log_id)
        return log.height if log else 0

    def all_segments(self, service: str) -> Iterable[Segment]:
        """Return every accepted segment of a service."""
        return (s for log in self._logs.get(service, {}).values() for s in log.segments)


def _key(log_id: LogId) -> bytes:
    return log_id.author.encode() + log_id.boot + bytes([log_id.shard])
