"""Exports: evidence survives the way through blocks; hostile ones are refused; a CAR of one is
verified without a node, and any flipped bit of it is a break or changes nothing."""

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pairio_protocol import export as export_module
from pairio_protocol.car import CarReader, car_header, car_section
from pairio_protocol.cid import DAG_CBOR, RAW, cid_of
from pairio_protocol.documents import Link, decode, encode
from pairio_protocol.errors import DecodeError
from pairio_protocol.export import Export, pack_export, unpack_export
from pairio_protocol.limits import CONTENT_BLOCK_SIZE_BYTES_MAX
from tests.protocol.evidence_lab import Lab, checks, two_jobs


def packed() -> tuple[Lab, Any, Export]:
    lab, _, evidence = two_jobs()
    made = pack_export(evidence, [encode({"type": "p"})], lab.blocks)
    return lab, evidence, made


def test_evidence_comes_back_as_it_was() -> None:
    lab, evidence, made = packed()
    again, contents = unpack_export(made.root, made.blocks.get)
    assert again == evidence
    assert contents == tuple(lab.blocks)


def test_many_links_are_spread_over_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_module, "EXPORT_PART_ENTRIES_MAX", 3)
    _, evidence, made = packed()
    assert unpack_export(made.root, made.blocks.get)[0] == evidence
    root = decode(made.blocks[made.root], CONTENT_BLOCK_SIZE_BYTES_MAX)
    assert len(root["parts"]) > 3


def test_every_link_of_an_export_is_in_it_so_that_it_can_be_pinned() -> None:
    lab, _, made = packed()
    everything = {**lab.blocks, **made.blocks}

    def links(value: Any) -> list[str]:
        if isinstance(value, Link):
            return [value.cid]
        items = value.values() if isinstance(value, dict) else value
        return [c for item in items for c in links(item)] if isinstance(value, dict | list) else []

    for cid, data in made.blocks.items():
        if cid_of(DAG_CBOR, data) == cid:
            for link in links(decode(data, CONTENT_BLOCK_SIZE_BYTES_MAX)):
                assert link in everything, (cid, link)


def test_a_missing_or_wrong_block_of_an_export_is_refused() -> None:
    _, _, made = packed()
    for cid in made.blocks:
        rest = {name: data for name, data in made.blocks.items() if name != cid}
        try:
            unpack_export(made.root, rest.get)
        except DecodeError as error:
            assert f"block {cid} of the export is missing" in str(error)
            wrong = {**made.blocks, cid: b"other"}
            with pytest.raises(DecodeError, match="holds other bytes"):
                unpack_export(made.root, wrong.get)
        else:  # segments carry the results themselves
            assert decode(made.blocks[cid], 2**20)["type"] == "pairio/result"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: {**d, "type": "pairio/other"}, "is no pairio/export"),
        (lambda d: {**d, "v": 2}, "version 1"),
        (lambda d: {**d, "v": True}, "version 1"),
        (lambda d: {**d, "more": 1}, "is no pairio/export"),
        (lambda d: {**d, "parts": 1}, "parts"),
        (lambda d: {**d, "parts": ["x"]}, "something else than a link"),
        (lambda d: {**d, "parts": [d["parts"][0]] * 2000}, "parts"),
        (lambda d: {**d, "result": "x"}, "something else than a link"),
        (lambda d: {**d, "service": 1}, "text"),
    ],
)
def test_a_root_that_is_none_is_refused(change: Callable[[Any], Any], words: str) -> None:
    _, _, made = packed()
    data = encode(change(decode(made.blocks[made.root], 2**20)))
    root = cid_of(DAG_CBOR, data)
    with pytest.raises(DecodeError, match=words):
        unpack_export(root, {**made.blocks, root: data}.get)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("asked", [1]),
        ("asked", [{"result": "x", "request": "y"}]),
        ("forks", [1]),
        ("forks", [["x", "y"]]),
        ("changes", {"a": 1}),
        ("segments", ["x"]),
        ("documents", ["x"]),
        ("contents", [1]),
    ],
)
def test_a_part_that_is_none_is_refused(name: str, value: Any) -> None:
    _, _, made = packed()
    root = decode(made.blocks[made.root], 2**20)
    part = {**decode(made.blocks[root["parts"][0].cid], 2**20), name: value}
    blocks = dict(made.blocks)
    data = encode(part)
    blocks[cid_of(DAG_CBOR, data)] = data
    data = encode({**root, "parts": [Link(cid_of(DAG_CBOR, data))]})
    blocks[cid_of(DAG_CBOR, data)] = data
    with pytest.raises(DecodeError):
        unpack_export(cid_of(DAG_CBOR, data), blocks.get)


def test_a_part_that_names_one_small_block_without_end_is_refused() -> None:
    _, _, made = packed()
    root = decode(made.blocks[made.root], 2**20)
    part = decode(made.blocks[root["parts"][0].cid], 2**20)
    blocks = {**made.blocks, cid_of(RAW, b"x"): b"x"}
    data = encode({**part, "changes": [Link(cid_of(RAW, b"x"))] * 40_000})
    blocks[cid_of(DAG_CBOR, data)] = data
    data = encode({**root, "parts": [Link(cid_of(DAG_CBOR, data))] * 200})
    blocks[cid_of(DAG_CBOR, data)] = data
    with pytest.raises(DecodeError, match="a part of an export of more than"):
        unpack_export(cid_of(DAG_CBOR, data), blocks.get)


def test_more_than_fits_into_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, made = packed()
    monkeypatch.setattr(export_module, "EVIDENCE_SIZE_BYTES_MAX", 3000)
    with pytest.raises(DecodeError, match="more than 3000 bytes"):
        unpack_export(made.root, made.blocks.get)


# -- a whole CAR ------------------------------------------------------------------------------


def _verified(car: bytes) -> list[dict[str, Any]]:
    """Verify a CAR as somebody does who has nothing else; DecodeError when it is none."""
    reader = CarReader()
    blocks = {cid: data for cid, data, _ in reader.feed(car)}
    [root] = reader.finish()
    evidence, _ = unpack_export(root, blocks.get)
    return [check.plain() for check in checks(evidence, blocks)]


@cache
def _car() -> bytes:
    lab, _, made = packed()
    # What is large is raw bytes: a flip anywhere in it is as good as any other.
    blocks = {**made.blocks, **lab.blocks}
    sections = (car_section(cid, data) for cid, data in blocks.items())
    return car_header(made.root) + b"".join(sections)


def test_a_car_is_verified_without_a_node() -> None:
    assert all(check["ok"] for check in _verified(_car()))


@settings(max_examples=300, deadline=None)
@given(at=st.integers(0, 10**8), bit=st.integers(0, 7), small=st.booleans())
def test_any_flipped_bit_of_a_car_is_a_break_or_changes_nothing(
    at: int, bit: int, small: bool
) -> None:
    car = bytearray(_car())
    at %= 20_000 if small else len(car)
    car[at] ^= 1 << bit
    try:
        after = _verified(bytes(car))
    except DecodeError:
        return
    assert not after[-1]["ok"] or after == _verified(_car())


def test_a_raw_block_is_no_root() -> None:
    with pytest.raises(DecodeError):
        unpack_export(cid_of(RAW, b"x"), {cid_of(RAW, b"x"): b"x"}.get)
