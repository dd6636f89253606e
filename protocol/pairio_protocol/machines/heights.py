"""Heights: how far the logs of one service are known, in ranges of keys.

    key of a log = sha2-256 of its name; its first byte is its range
    summary = digest over all ranges, then hashes of some ranges, as many as the logs are worth
    two summaries differ --> in which ranges --> only heights of logs in those are sent

Without ranges two busy nodes would send each other the heights of all logs, several times a second:
with a thousand members, a thousand of them.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from pairio_protocol.codec import pack
from pairio_protocol.errors import DecodeError
from pairio_protocol.ids import LogId
from pairio_protocol.machines.log import Log
from pairio_protocol.signing import sha256

__all__ = ["RANGES", "Bounds", "Heights", "News", "bounds_of", "key_of", "range_of", "ranges_in"]

RANGES = 256
_DIGEST_BYTES = 32
#: Of a range's hash; a collision only means that all heights are sent.
_HASH_BYTES = 8
_LOGS_PER_RANGE = 4
#: As many are always sent with a digest: it is not worth asking for them.
_FEW_RANGES = 16
_EMPTY = bytes(_DIGEST_BYTES)

#: Keys from the first (inclusive) to the second (exclusive, empty = no end).
Bounds = tuple[bytes, bytes]


@dataclass
class News:
    """Ranges in which something came that others may lack: this node's own, or somebody's that
    gossip did not bring."""

    at_ms: int
    own: set[int] = field(default_factory=set)
    others: set[int] = field(default_factory=set)


def key_of(log_id: LogId) -> bytes:
    """Return what logs are ordered by, evenly spread."""
    return sha256(log_id.author.encode() + log_id.boot + bytes([log_id.shard]))


def range_of(log_id: LogId) -> int:
    """Return the range in which a log lies."""
    return key_of(log_id)[0]


def ranges_in(bounds: Bounds) -> range:
    """Return the ranges that have a key within the bounds."""
    low, high = bounds
    return range(low[0] if low else 0, (high[0] if high else RANGES - 1) + 1)


def bounds_of(ranges: Iterable[int], count: int = RANGES) -> list[Bounds]:
    """Return the bounds of ranges, of `count` that all keys are cut into; neighbours as one."""
    width = RANGES // count
    merged: list[list[int]] = []
    for index in sorted(ranges):
        if merged and merged[-1][1] == index * width:
            merged[-1][1] += width
        else:
            merged.append([index * width, (index + 1) * width])
    return [(_bound(start), _bound(end)) for start, end in merged]


def _bound(index: int) -> bytes:
    return bytes([index]) if 0 < index < RANGES else b""


class Heights:
    """The logs of a service by range, with hashes that are kept until a log in them changes."""

    def __init__(self) -> None:
        self._ranges: dict[int, dict[LogId, tuple[bytes, Log]]] = {}
        self._hashes = [_EMPTY] * RANGES
        self._stale: set[int] = set()  # ranges whose hash is to be made anew
        self._digest: bytes | None = None
        self._coarse: dict[int, list[bytes]] = {}  # hashes by the number of ranges asked for
        self._count = 0

    def add(self, log_id: LogId, log: Log) -> None:
        """A new log."""
        key = key_of(log_id)
        self._ranges.setdefault(key[0], {})[log_id] = (key, log)
        self._count += 1
        self._forget(key[0])

    def drop(self, log_id: LogId) -> None:
        """A log is forgotten."""
        index = range_of(log_id)
        if self._ranges.get(index, {}).pop(log_id, None) is not None:
            self._count -= 1
        self._forget(index)

    def changed(self, log_id: LogId) -> None:
        """The height of a log is another."""
        self._forget(range_of(log_id))

    def _forget(self, index: int) -> None:
        self._stale.add(index)
        self._digest = None
        self._coarse.clear()

    def changed_all(self) -> None:
        """The height of any log may be another."""
        self._stale.update(self._ranges)
        self._digest = None
        self._coarse.clear()

    def within(self, bounds: Bounds = (b"", b"")) -> list[tuple[bytes, LogId, Log]]:
        """Return (key, id, log) of what is to be told, by key."""
        low, high = bounds
        found = [
            (key, log_id, log)
            for index in ranges_in(bounds)
            for log_id, (key, log) in self._ranges.get(index, {}).items()
            if (log.accepted or log.forked) and key >= low and (not high or key < high)
        ]
        return sorted(found, key=lambda row: row[0])

    def _fresh(self) -> list[bytes]:
        """Return the hashes of all ranges."""
        for index in self._stale:
            bounds = (_bound(index), _bound(index + 1))
            rows = [[key, log.height, log.forked] for key, _, log in self.within(bounds)]
            self._hashes[index] = sha256(pack(rows)) if rows else _EMPTY
        self._stale.clear()
        return self._hashes

    def digest(self) -> bytes:
        """Return a hash over the heights of all logs."""
        if self._digest is None:
            self._digest = sha256(b"".join(self._fresh()))
        return self._digest

    def hashes(self, count: int) -> list[bytes]:
        """Return a short hash of each of `count` ranges (a power of two, at most RANGES)."""
        if count not in self._coarse:
            width, all_ranges = RANGES // count, self._fresh()
            self._coarse[count] = [
                sha256(b"".join(all_ranges[i * width : (i + 1) * width]))[:_HASH_BYTES]
                for i in range(count)
            ]
        return self._coarse[count]

    @property
    def worth(self) -> int:
        """How many ranges the logs are worth: a few logs in each."""
        count = 1
        while count < RANGES and count * _LOGS_PER_RANGE < self._count:
            count *= 2
        return count

    def summary(self, ranges: bool) -> bytes:
        """Return the digest; with `ranges`, or if they are few, with the hashes of ranges."""
        count = self.worth
        if not ranges and count > _FEW_RANGES:
            return self.digest()
        return self.digest() + b"".join(self.hashes(count))

    def asks_for_ranges(self, summary: bytes) -> bool:
        """Say whether another's digest comes without ranges, and they would be of use."""
        return len(summary) == _DIGEST_BYTES and self.worth > 1

    def is_same(self, summary: bytes) -> bool:
        """Say whether another's heights are these."""
        return summary[:_DIGEST_BYTES] == self.digest()

    def differing(self, summary: bytes) -> list[Bounds]:
        """Return where another's heights differ; everywhere if its ranges do not say.

        Raises:
            DecodeError: not a digest and the hashes of 0, 1, 2, 4 ... RANGES ranges.
        """
        theirs = summary[_DIGEST_BYTES:]
        count = len(theirs) // _HASH_BYTES
        powers = [0, *(2**n for n in range(RANGES.bit_length()))]
        if len(summary) < _DIGEST_BYTES or len(theirs) % _HASH_BYTES or count not in powers:
            raise DecodeError("not the digest of heights")
        if not count:
            return [(b"", b"")]
        others = [theirs[i * _HASH_BYTES : (i + 1) * _HASH_BYTES] for i in range(count)]
        differ = [i for i, mine in enumerate(self.hashes(count)) if mine != others[i]]
        return bounds_of(differ, count) or [(b"", b"")]
