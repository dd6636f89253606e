"""CARs: what is written is read again, however it comes; what is none is refused in words."""

import tracemalloc
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pairio_protocol.car import CarReader, car_header, car_section
from pairio_protocol.cid import DAG_CBOR, DAG_PB, RAW, cid_bytes, cid_of
from pairio_protocol.documents import Link, encode
from pairio_protocol.errors import DecodeError
from pairio_protocol.limits import CAR_HEADER_SIZE_BYTES_MAX, CONTENT_BLOCK_SIZE_BYTES_MAX

ROOT = cid_of(RAW, b"root")
BLOCKS = st.lists(st.tuples(st.sampled_from((RAW, DAG_PB, DAG_CBOR)), st.binary(max_size=300)))


def read(pieces: Iterable[bytes]) -> tuple[tuple[str, ...], list[tuple[str, bytes]]]:
    reader = CarReader()
    found = [(cid, block) for piece in pieces for cid, block, _ in reader.feed(piece)]
    return reader.finish(), found


def car(blocks: Iterable[tuple[str, bytes]] = ()) -> bytes:
    return car_header(ROOT) + b"".join(car_section(cid, data) for cid, data in blocks)


@given(blocks=BLOCKS, step=st.integers(1, 200))
def test_blocks_come_out_as_they_went_in(blocks: list[tuple[int, bytes]], step: int) -> None:
    named = [(cid_of(codec, data), data) for codec, data in blocks]
    whole = car(named)
    assert read([whole]) == ((ROOT,), named)
    assert read(whole[i : i + step] for i in range(0, len(whole), step)) == ((ROOT,), named)


@given(blocks=BLOCKS)
def test_the_place_of_a_block_in_the_file_is_told(blocks: list[tuple[int, bytes]]) -> None:
    whole = car((cid_of(codec, data), data) for codec, data in blocks)
    reader = CarReader()
    found = [place for i in range(0, len(whole), 7) for place in reader.feed(whole[i : i + 7])]
    assert [whole[at : at + len(data)] for _, data, at in found] == [data for _, data in blocks]


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=400))
@example(data=b"\x80" * 9)
@example(data=b"\x80\x00")
def test_garbage_is_refused_or_not_whole_and_never_more(data: bytes) -> None:
    with pytest.raises(DecodeError):
        read([data])


@settings(max_examples=200, deadline=None)
@given(at=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_a_flipped_bit_of_a_car_is_refused_or_changes_no_block(at: int, bit: int) -> None:
    blocks = [(cid_of(RAW, bytes([n]) * 40), bytes([n]) * 40) for n in range(5)]
    whole = bytearray(car(blocks))
    whole[at % len(whole)] ^= 1 << bit
    try:
        roots, found = read([bytes(whole)])
    except DecodeError:
        return
    for cid, data in found:  # a bit of the codec: another name for the same bytes
        assert cid == cid_of(cid_bytes(cid)[1], data)
    assert roots != (ROOT,) or [d for _, d in found] == [d for _, d in blocks]


@pytest.mark.parametrize("cut", [1, 20, 58, 60, 61, 80, 120])
def test_a_car_that_ends_in_the_middle_is_refused(cut: int) -> None:
    whole = car([(cid_of(RAW, b"x" * 50), b"x" * 50)])
    assert cut < len(whole)
    with pytest.raises(DecodeError, match="ends in the middle"):
        read([whole[:cut]])


def test_a_block_under_a_name_of_version_0_is_read_under_that_of_version_1() -> None:
    cid = cid_of(DAG_PB, b"data")
    section = car_section(cid, b"data")
    assert read([car() + bytes([section[0] - 2]) + section[3:]])[1] == [(cid, b"data")]


def _header(document: dict[str, Any]) -> bytes:
    data = encode(document)
    return bytes([len(data)]) + data


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (_header({"roots": [], "version": 1}), "without a root"),
        (_header({"roots": ["x"], "version": 1}), "without a root"),
        (_header({"roots": [Link(ROOT)], "version": 2}), "not a CAR of version 1"),
        (_header({"roots": [Link(ROOT)], "version": True}), "not a CAR of version 1"),
        (_header({"roots": [Link(ROOT)], "version": 1, "x": 1}), "not a CAR of version 1"),
        (b"\x00", "a section of 0 bytes"),
        (b"\xff" * 8 + b"\x7f", "at most"),
        (b"\x80" * 9, "does not end"),
        (b"\x81\x00", "longer than it has to be"),
        (car() + b"\x00", "a section of 0 bytes"),
        (car() + b"\x24" + bytes(36), "CID"),
        (car() + b"\x22\x12\x20" + bytes(32), "other bytes"),
        (car() + b"\x22\x12\x21" + bytes(32), "CID"),
        (car() + b"\x03\x01\x55\x12", "CID"),
        (car() + car_section(ROOT, b"other"), "other bytes"),
    ],
)
def test_what_is_no_car_is_refused_in_words(data: bytes, words: str) -> None:
    with pytest.raises(DecodeError, match=words):
        read([data])


@pytest.mark.parametrize("before", [b"", car()], ids=["header", "block"])
def test_nothing_is_allocated_by_a_length_that_is_only_claimed(before: bytes) -> None:
    bound = CONTENT_BLOCK_SIZE_BYTES_MAX if before else CAR_HEADER_SIZE_BYTES_MAX
    for claimed in (bound + 37, 2**40):
        length = bytearray()
        while claimed > 127:
            length.append(claimed & 127 | 128)
            claimed >>= 7
        length.append(claimed)
        tracemalloc.start()
        with pytest.raises(DecodeError, match="at most"):
            read([before + bytes(length)])
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
        tracemalloc.stop()
