"""Bitswap messages: what they look like on a stream, read within bounds.

Protocol `/ipfs/bitswap/1.2.0`: a varint of length, then a protobuf `Message`. The bytes are read by
hand, since a protobuf library makes an object of every entry before anybody can count them: 4 MiB
of empty entries are two million. Source: https://specs.ipfs.tech/bitswap-protocol/
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

import trio

from pairio_node.transport.base import ByteStream
from pairio_node.transport.prefixed import receive_prefixed
from pairio_protocol import protobuf
from pairio_protocol.cid import CidError, cid_bytes, cid_text_of_any
from pairio_protocol.errors import DecodeError
from pairio_protocol.limits import BITSWAP_ENTRIES_MAX

__all__ = [
    "BITSWAP",
    "Block",
    "Message",
    "Want",
    "decode_message",
    "encode_message",
    "read_message",
    "want",
]

BITSWAP: Final = "/ipfs/bitswap/1.2.0"
#: A CID on the wire; longer ones name nothing that is here.
_CID_BYTES_MAX: Final = 128
_V0_PREFIX: Final = b"\x00\x70\x12\x20"
_SHA2_256: Final = b"\x12\x20"
_WANT_HAVE: Final = 1
_LARGE_BYTES: Final = 32 * 1024
_DONT_HAVE: Final = 1


@dataclass(frozen=True, slots=True)
class Want:
    """An entry of a wantlist. `raw` is the CID as it was written: the answer names it so."""

    raw: bytes
    is_have: bool = False
    is_cancel: bool = False
    send_dont_have: bool = False

    @property
    def cid(self) -> str:
        """The CID as pairio writes it; nothing for one of a kind that no block here has."""
        return _text(self.raw)

    @property
    def prefix(self) -> bytes:
        """What goes before the block in an answer: all of the CID but its digest."""
        return _V0_PREFIX if self.raw[:2] == _SHA2_256 else self.raw[:4]


@dataclass(frozen=True, slots=True)
class Block:
    """A block that came. `cid` follows from its bytes; nothing for a kind that is not read."""

    cid: str
    data: bytes


@dataclass(slots=True)
class Message:
    """What one message says. `is_full`: its wants replace those of before."""

    wants: list[Want] = field(default_factory=list)
    is_full: bool = False
    blocks: list[Block] = field(default_factory=list)
    #: (CID, whether the peer has it)
    presences: list[tuple[str, bool]] = field(default_factory=list)


def want(cid: str, *, is_have: bool = False, is_cancel: bool = False) -> Want:
    """Return the entry that asks for a block here named by `cid`, or takes that back."""
    return Want(cid_bytes(cid), is_have, is_cancel, not is_cancel)


def _text(raw: bytes) -> str:
    """Return a binary CID of version 0 or 1 as pairio writes it, or nothing."""
    try:
        return cid_text_of_any(raw)
    except CidError:
        return ""


# -- writing ------------------------------------------------------------------------------


def _entry(entry: Want) -> bytes:
    body = protobuf.field(1, entry.raw) + protobuf.number(2, 1)
    if entry.is_cancel:
        body += protobuf.number(3, 1)
    if entry.is_have:
        body += protobuf.number(4, _WANT_HAVE)
    if entry.send_dont_have:
        body += protobuf.number(5, 1)
    return protobuf.field(1, body)


def encode_message(
    wants: Iterable[Want] = (),
    blocks: Iterable[tuple[bytes, bytes]] = (),
    presences: Iterable[tuple[bytes, bool]] = (),
    *,
    is_full: bool = False,
) -> bytes:
    """Return a message with its length before it. `blocks` are (prefix, bytes), `presences`
    (CID as it was asked for, whether it is here)."""
    entries = b"".join(map(_entry, wants))
    body = []
    if entries or is_full:
        body.append(protobuf.field(1, entries + (protobuf.number(2, 1) if is_full else b"")))
    body += [
        protobuf.field(3, protobuf.field(1, prefix) + protobuf.field(2, data))
        for prefix, data in blocks
    ]
    body += [
        protobuf.field(4, protobuf.field(1, raw) + protobuf.number(2, int(not here)))
        for raw, here in presences
    ]
    size = sum(map(len, body))
    return b"".join([protobuf.varint(size), *body])


# -- reading ------------------------------------------------------------------------------


async def read_message(stream: ByteStream, size_max: Callable[[], int]) -> Message:
    """Read the next message; its length is held against `size_max()` before anything is kept.

    Raises:
        DecodeError: larger than that, or no message. StreamEnded and TransportError of the stream.
    """
    data = await receive_prefixed(stream.receive_exactly, size_max)
    if len(data) < _LARGE_BYTES:
        return decode_message(data)
    return await trio.to_thread.run_sync(decode_message, data)  # it hashes blocks


def decode_message(data: bytes) -> Message:
    """Return what a message says; DecodeError when it is none, or says more than is read."""
    message, count = Message(), 0
    for tag, value in read_fields(data):
        if isinstance(value, int):
            continue
        if tag == 1:
            count += _wantlist(message, value, BITSWAP_ENTRIES_MAX - count)
        elif tag == 2:
            message.blocks.append(Block("", b""))  # of version 1.0, which nobody asked for
            count += 1
        elif tag == 3:
            message.blocks.append(_block(value))
            count += 1
        elif tag == 4:
            message.presences.append(_presence(value))
            count += 1
        if count > BITSWAP_ENTRIES_MAX:
            raise DecodeError(f"a Bitswap message of more than {BITSWAP_ENTRIES_MAX} entries")
    return message


def _wantlist(message: Message, data: bytes, entries_max: int) -> int:
    count = 0
    for tag, value in read_fields(data):
        if tag == 1 and isinstance(value, bytes):
            count += 1
            if count > entries_max:
                raise DecodeError(f"a Bitswap message of more than {BITSWAP_ENTRIES_MAX} entries")
            message.wants.append(_want(value))
        elif tag == 2:
            message.is_full = bool(value)
    return count


def _want(data: bytes) -> Want:
    raw, flags = b"", {3: 0, 4: 0, 5: 0}
    for tag, value in read_fields(data):
        if tag == 1 and isinstance(value, bytes):
            raw = value
        elif tag in flags and isinstance(value, int):
            flags[tag] = value
    if not 0 < len(raw) <= _CID_BYTES_MAX:
        raise DecodeError(f"a want of a CID of {len(raw)} bytes")
    return Want(raw, flags[4] == _WANT_HAVE, bool(flags[3]), bool(flags[5]))


def _block(data: bytes) -> Block:
    prefix, block = b"", b""
    for tag, value in read_fields(data):
        if tag == 1 and isinstance(value, bytes):
            prefix = value
        elif tag == 2 and isinstance(value, bytes):
            block = value
    digest = hashlib.sha256(block).digest()
    if prefix == _V0_PREFIX:
        return Block(_text(_SHA2_256 + digest), block)
    return Block(_text(prefix + digest) if prefix[2:] == _SHA2_256 else "", block)


def _presence(data: bytes) -> tuple[str, bool]:
    raw, kind = b"", 0
    for tag, value in read_fields(data):
        if tag == 1 and isinstance(value, bytes):
            raw = value
        elif tag == 2 and isinstance(value, int):
            kind = value
    return _text(raw[:_CID_BYTES_MAX]), kind != _DONT_HAVE


def read_fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield (number, value) of a protobuf message, one by one; fields of fixed width are left
    out."""
    at, end = 0, len(data)
    while at < end:
        key, at = _read_varint(data, at)
        kind = key & 7
        if kind == 0:
            value, at = _read_varint(data, at)
            yield key >> 3, value
        elif kind == 2:
            size, at = _read_varint(data, at)
            if size > end - at:
                raise DecodeError("a field is longer than its message")
            yield key >> 3, data[at : at + size]
            at += size
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        else:
            raise DecodeError("a field of an unknown wire type")
    if at != end:
        raise DecodeError("a field is longer than its message")


def _read_varint(data: Sequence[int], at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise DecodeError("a number does not end")
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
