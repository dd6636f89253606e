"""One log as this node holds it: a chain of segments, how many of them count, proof of a fork.

    held:      s0 <- s1 <- s2 <- s3 <- s4        linked by `prev`, no gap
    accepted:  s0 <- s1 <- s2                    what counts: a prefix of it
    parked:                        s6, s7        beyond a gap

What counts is a function of the segments held and of the service's changes, never of the order in
which they came (DESIGN sections 5 and 11): below the lowest forked seq; epochs known and not
falling; the author a member at each; and, where a change took something from the author, on the
chain that ends in the cut or written under that change or a later one.
"""

from bisect import bisect_left
from dataclasses import dataclass, field

from pairio_protocol.segment import GENESIS, Segment
from pairio_protocol.service import Chain, Cutting

__all__ = ["Log", "forked_seq", "why_not_alone"]


def forked_seq(one: Segment, other: Segment) -> int | None:
    """Return the lowest seq at which two segments of a log contradict each other, None if not.

    They do when they hold the same seq, or when the second follows the first in number and yet
    names another segment before it: then one that is not here ends where the first does.
    """
    if one.log != other.log or one.service != other.service or one.hash == other.hash:
        return None
    first, second = sorted((one, other), key=lambda s: s.first_seq)
    if second.first_seq <= first.last_seq:
        return second.first_seq
    if second.first_seq == first.last_seq + 1 and second.prev != first.hash:
        return first.last_seq
    return None


def why_not_alone(segment: Segment, chain: Chain, fork_at: int | None) -> str:
    """Return why a segment whose neighbours are not held does not count; empty if it does. What
    lies below a cut is taken to lie on its chain. `fork_at` is the lowest forked seq of its log."""
    author, epoch = segment.log.author, segment.epoch
    folded = chain.at(epoch)
    if folded is None:
        return f"it was written under change {epoch}, which is not here"
    if not folded.roles_of(author):
        return f"its author had no role at change {epoch}"
    if fork_at is not None and segment.last_seq >= fork_at:
        return f"its author signed two different segments at seq {fork_at} of one log"
    for cutting in chain.cuttings(author):
        if epoch < cutting.epoch:
            cut = cutting.cuts.get(segment.log)
            if cut is None or segment.last_seq > cut.seq:
                return f"change {cutting.epoch} took something from its author and cut it away"
            if segment.last_seq == cut.seq and segment.hash != cut.hash:
                return f"change {cutting.epoch} cuts its log at another segment"
    return ""


@dataclass
class Log:
    """The segments of one log."""

    segments: list[Segment] = field(default_factory=list)
    accepted: int = 0
    parked: dict[int, Segment] = field(default_factory=dict)
    fork_at: int | None = None
    evidence: tuple[Segment, Segment] | None = None
    #: when it was first seen here, and the newest time that a record of it names
    seen_unix_ms: int = 0
    newest_unix_ms: int = 0

    @property
    def quiet_since_unix_ms(self) -> int:
        """Since when nothing came: by its author's clock, if all of it counts and says so."""
        noted = self.newest_unix_ms if self.accepted == len(self.segments) else 0
        return noted or self.seen_unix_ms

    @property
    def held_height(self) -> int:
        """How many records are held without a gap."""
        return self.segments[-1].last_seq + 1 if self.segments else 0

    @property
    def height(self) -> int:
        """How many records count."""
        return self.segments[self.accepted - 1].last_seq + 1 if self.accepted else 0

    @property
    def head(self) -> bytes:
        """The hash that the next segment has to name."""
        return self.segments[-1].hash if self.segments else GENESIS

    @property
    def forked(self) -> int:
        """1 + the lowest forked seq; 0 without a fork."""
        return 0 if self.fork_at is None else self.fork_at + 1

    @property
    def is_open(self) -> bool:
        """Whether more could count: all that is held does, and no fork lies at its end."""
        forked = self.fork_at is not None and self.fork_at <= self.held_height
        return self.accepted == len(self.segments) and not forked

    def counting(self) -> list[Segment]:
        """Return the segments that count."""
        return self.segments[: self.accepted]

    def note_fork(self, one: Segment, other: Segment) -> bool:
        """Keep the proof of a fork if it is lower than what is known; says whether it was."""
        at = forked_seq(one, other)
        if at is None or (self.fork_at is not None and self.fork_at <= at):
            return False
        self.fork_at, self.evidence = at, (one, other)
        return True

    def conflict(self, segment: Segment) -> Segment | None:
        """Return a held segment that contradicts `segment`, the lowest one."""
        if segment.first_seq > self.held_height:
            known = self.parked.get(segment.first_seq)
            return known if known is not None and known.hash != segment.hash else None
        first = bisect_left(self.segments, segment.first_seq - 1, key=lambda held: held.last_seq)
        for held in self.segments[first:]:
            if forked_seq(held, segment) is not None:
                return held
        return None

    def count_accepted(self, chain: Chain, known: int = 0) -> int:
        """Return how many of the held segments count under these changes; `known` are known to,
        which spares looking at a long log again for each segment that it gets."""
        if not self.segments:
            return 0
        author = self.segments[0].log.author
        kept = [(c.epoch, self._kept(c)) for c in chain.cuttings(author)]
        if kept:  # what was known may have been known before the cut
            known = 0
        epoch = self.segments[known - 1].epoch if known else 0
        for index in range(known, len(self.segments)):
            segment = self.segments[index]
            folded = chain.at(segment.epoch)
            forked = self.fork_at is not None and segment.last_seq >= self.fork_at
            if forked or segment.epoch < epoch or folded is None or not folded.roles_of(author):
                return index
            if any(segment.epoch < cut_epoch and index >= n for cut_epoch, n in kept):
                return index
            epoch = segment.epoch
        return len(self.segments)

    def _kept(self, cutting: Cutting) -> int:
        """Return how many segments lie on the chain that ends in the cut.

        Those below its seq are taken to lie on it: if they do not, the cut's own segment is the
        proof of a fork. What stands in its place here does not count, nor does it void what is
        below: whether it was held before the cut came must not matter.
        """
        cut = cutting.cuts.get(self.segments[0].log)
        if cut is None:
            return 0
        for index, segment in enumerate(self.segments):
            if segment.last_seq == cut.seq:
                return index + 1 if segment.hash == cut.hash else index
            if segment.last_seq > cut.seq:
                return index
        return len(self.segments)
