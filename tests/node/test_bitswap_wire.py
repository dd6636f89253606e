"""Bitswap messages: the bytes of the specification, and bounds on what is read."""

import hashlib
from contextlib import suppress

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from libp2p.bitswap.pb.bitswap_pb2 import Message as Stock

from pairio_node.bitswap.wire import (
    Want,
    decode_message,
    encode_message,
    read_message,
    want,
)
from pairio_node.transport.base import StreamEnded
from pairio_protocol.cid import DAG_PB, RAW, cid_bytes, cid_of
from pairio_protocol.errors import DecodeError
from pairio_protocol.limits import BITSWAP_ENTRIES_MAX

DATA = b"some block"
CID = cid_of(RAW, DATA)
RAW_CID = cid_bytes(CID)
V0 = b"\x12\x20" + hashlib.sha256(DATA).digest()


def _body(message: bytes) -> bytes:
    """Return a message without its length."""
    at = next(i for i, byte in enumerate(message) if byte < 128) + 1
    return message[at:]


def test_what_is_written_is_read_by_the_protobuf_of_libp2p() -> None:
    entries = [Want(RAW_CID, True, False, True), Want(V0, False, True)]
    message = encode_message(entries, [(b"\x01\x55\x12\x20", DATA)], [(RAW_CID, False)])
    stock = Stock.FromString(_body(message))
    first, second = stock.wantlist.entries
    assert (first.block, first.wantType, first.sendDontHave, first.cancel) == (RAW_CID, 1, 1, 0)
    assert (second.block, second.wantType, second.sendDontHave, second.cancel) == (V0, 0, 0, 1)
    assert (stock.payload[0].prefix, stock.payload[0].data) == (b"\x01\x55\x12\x20", DATA)
    assert (stock.blockPresences[0].cid, stock.blockPresences[0].type) == (RAW_CID, 1)


def test_what_the_protobuf_of_libp2p_writes_is_read() -> None:
    stock = Stock()
    stock.wantlist.full = True
    stock.wantlist.entries.add(block=V0, priority=-5, wantType=1, sendDontHave=True)
    stock.payload.add(prefix=b"\x00\x70\x12\x20", data=DATA)
    stock.blockPresences.add(cid=RAW_CID, type=0)
    stock.pendingBytes = 77
    found = decode_message(stock.SerializeToString())
    assert found.is_full
    (entry,) = found.wants
    assert (entry.raw, entry.is_have, entry.send_dont_have) == (V0, True, True)
    assert entry.cid == cid_of(DAG_PB, DATA)
    assert entry.prefix == b"\x00\x70\x12\x20"
    assert [b.cid for b in found.blocks] == [cid_of(DAG_PB, DATA)]
    assert found.presences == [(CID, True)]


def test_a_block_is_named_by_its_bytes_whatever_its_sender_meant() -> None:
    found = decode_message(_body(encode_message(blocks=[(b"\x01\x55\x12\x20", b"other")])))
    assert found.blocks[0].cid == cid_of(RAW, b"other")


@pytest.mark.parametrize("prefix", [b"", b"\x01\x55\x11\x14", b"\x01\x99\x12\x20", b"\x12\x20"])
def test_a_block_of_a_kind_that_is_not_read_has_no_name(prefix: bytes) -> None:
    assert decode_message(_body(encode_message(blocks=[(prefix, DATA)]))).blocks[0].cid == ""


def test_a_want_of_a_kind_that_is_not_here_keeps_its_bytes_for_the_answer() -> None:
    sha1 = b"\x01\x55\x11\x14" + b"h" * 20
    (entry,) = decode_message(_body(encode_message([Want(sha1)]))).wants
    assert (entry.raw, entry.cid) == (sha1, "")


def test_entries_are_counted_before_they_are_kept() -> None:
    empty = b"\x0a\x00"  # an entry without a CID: refused as such at once
    full = _body(encode_message([want(CID)] * BITSWAP_ENTRIES_MAX))
    assert len(decode_message(full).wants) == BITSWAP_ENTRIES_MAX
    with pytest.raises(DecodeError, match="more than 4096 entries"):
        decode_message(full + full)
    with pytest.raises(DecodeError):
        decode_message(b"\x0a\xfe\xff\x7f" + empty * (0x1FFFFE // 2 // 2))
    with pytest.raises(DecodeError, match="more than 4096 entries"):
        decode_message(b"\x1a\x00" * 5000)


@given(st.binary(max_size=300))
def test_garbage_is_refused_or_read_and_nothing_else(data: bytes) -> None:
    with suppress(DecodeError):
        decode_message(data)


class _Drip:
    """A stream of some bytes that counts what is asked of it."""

    peer = "p"

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.asked = 0

    async def receive_exactly(self, size: int) -> bytes:
        self.asked += size
        if size > len(self._data):
            raise StreamEnded("over")
        data, self._data = self._data[:size], self._data[size:]
        return data

    async def send(self, data: bytes) -> None:
        raise AssertionError

    async def close(self) -> None:
        raise AssertionError

    async def abort(self) -> None:
        raise AssertionError


def test_a_length_is_held_against_the_bound_before_anything_is_read() -> None:
    for data, words in (
        (b"\xff\xff\xff\x7f" + b"x" * 100, "at most 1000"),
        (b"\xff\xff\xff\xff\xff\x01", "does not end"),
        (b"\xe9\x07", "1001 bytes"),
    ):
        drip = _Drip(data)
        with pytest.raises(DecodeError, match=words):
            trio.run(read_message, drip, lambda: 1000)
        assert drip.asked < 8


def test_messages_follow_one_another_and_an_empty_one_says_nothing() -> None:
    async def read() -> None:
        drip = _Drip(encode_message() + encode_message([want(CID)]))
        assert not (await read_message(drip, lambda: 1000)).wants
        assert (await read_message(drip, lambda: 1000)).wants[0].cid == CID
        with pytest.raises(StreamEnded):
            await read_message(drip, lambda: 1000)

    trio.run(read)
