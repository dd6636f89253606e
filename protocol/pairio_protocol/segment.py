"""Segments: what one commit wrote to a log; the unit of signature, storage, gossip and sync.

A log is (author, boot, shard). Its segments form a chain: `prev` is the hash of the one before,
`first_seq` follows its last record. The signature is checked before the body is decoded.
"""

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

from pairio_protocol.codec import pack, unpack
from pairio_protocol.errors import DecodeError
from pairio_protocol.ids import LogId
from pairio_protocol.limits import (
    DECODED_MAX,
    NAME_LENGTH_MAX,
    SEGMENT_RECORDS_MAX,
    SEGMENT_SIZE_BYTES_MAX,
    SIGNATURE_SIZE_BYTES,
)
from pairio_protocol.records import RECORDS, Record, Unknown, decode_record
from pairio_protocol.signing import SigningKey, sha256, signing_input, verify

__all__ = ["GENESIS", "Segment", "record_size"]

#: `prev` of the first segment of a log.
GENESIS = bytes(32)


@dataclass(frozen=True)
class Segment:
    """A signed piece of a log. `epoch` is the service's seq under which it was written."""

    service: str
    log: LogId
    first_seq: int
    epoch: int
    prev: bytes
    body: bytes
    count: int
    signature: bytes

    @property
    def last_seq(self) -> int:
        """The seq of its last record."""
        return self.first_seq + self.count - 1

    def _signed(self) -> bytes:
        log = self.log
        return signing_input(
            "segment",
            self.service,
            log.author,
            log.boot,
            log.shard,
            self.first_seq,
            self.count,
            self.epoch,
            self.prev,
            sha256(self.body),
        )

    @cached_property
    def hash(self) -> bytes:
        """The 32 bytes that name the segment: sha2-256 of what is signed."""
        return sha256(self._signed())

    def is_signed(self) -> bool:
        """Say whether its author signed it."""
        return verify(self.log.author, self._signed(), self.signature)

    def encode(self) -> bytes:
        """Return the bytes that are stored and sent."""
        return pack(
            [
                self.service,
                *self.log,
                self.first_seq,
                self.epoch,
                self.prev,
                self.count,
                self.body,
                self.signature,
            ]
        )

    @staticmethod
    @lru_cache(maxsize=DECODED_MAX)
    def decode(data: bytes) -> "Segment":
        """Return the segment in `data`: shape and bounds checked, signature not yet. Pure, and
        remembered: the same bytes come by gossip, by push and by sync.

        Raises:
            DecodeError: not the shape of a segment.
        """
        match unpack(data, SEGMENT_SIZE_BYTES_MAX):
            case [
                str(service),
                str(author),
                bytes(boot),
                int(shard),
                int(first_seq),
                int(epoch),
                bytes(prev),
                int(count),
                bytes(body),
                bytes(signature),
            ] if (
                len(boot) == 16
                and len(prev) == 32
                and len(signature) == SIGNATURE_SIZE_BYTES
                and max(len(service), len(author)) <= NAME_LENGTH_MAX
                and shard == 0
                and 0 <= first_seq < 2**62
                and 0 <= epoch < 2**31
                and 1 <= count <= SEGMENT_RECORDS_MAX
                and bool not in map(type, (shard, first_seq, epoch, count))
            ):
                log = LogId(author, boot, shard)
                return Segment(service, log, first_seq, epoch, prev, body, count, signature)
        raise DecodeError("not a segment")

    def records(self) -> list[Record | Unknown]:
        """Return its records. To be called after `is_signed` only.

        Raises:
            DecodeError: a malformed record, or another number of them than it says.
        """
        return list(_records(self.body, self.count))

    @staticmethod
    def seal(
        key: SigningKey,
        service: str,
        boot: bytes,
        first_seq: int,
        epoch: int,
        prev: bytes,
        records: list[Record],
    ) -> "Segment":
        """Return the signed segment of `records` (at most SEGMENT_RECORDS_MAX)."""
        body = pack([RECORDS.to_plain(record) for record in records])
        log = LogId(key.peer, boot, 0)
        unsigned = Segment(service, log, first_seq, epoch, prev, body, len(records), b"")
        signed = unsigned._signed()
        signature = key.sign(signed)
        segment = Segment(service, log, first_seq, epoch, prev, body, len(records), signature)
        segment.__dict__["hash"] = sha256(signed)  # the cached property, which would ask again
        return segment


def record_size(record: Record) -> int:
    """Return how many bytes a record takes in a segment's body."""
    plain: Any = RECORDS.to_plain(record)
    return len(pack(plain))


@lru_cache(maxsize=DECODED_MAX)
def _records(body: bytes, count: int) -> tuple[Record | Unknown, ...]:
    plain = unpack(body, SEGMENT_SIZE_BYTES_MAX)
    if not isinstance(plain, list) or len(plain) != count:
        raise DecodeError(f"a segment that says {count} records holds others")
    return tuple(decode_record(item) for item in plain)
