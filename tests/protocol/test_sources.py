"""What a result tells of inputs by URL: kept when it is there, nothing changed when it is not."""

from dataclasses import replace
from typing import Any

import pytest

from pairio_protocol.cid import RAW, cid_of
from pairio_protocol.documents import Link, decode, encode
from pairio_protocol.errors import DecodeError
from pairio_protocol.ids import run_id
from pairio_protocol.limits import RANGES_TOLD_MAX
from pairio_protocol.records import ResultDocument, SourceRead
from pairio_protocol.signing import SigningKey, signing_input

KEY = SigningKey(bytes([1]) * 32)
JOB = cid_of(RAW, b"job")
PLAIN = ResultDocument(
    service=JOB,
    job=JOB,
    run=run_id(JOB),
    salt="",
    attempt=f"{KEY.peer}/00/1",
    status="completed",
    error="",
    outputs={},
    console=cid_of(RAW, b"console"),
    usage={},
    code=JOB,
    isolation="bwrap",
    upstream=(),
    worker=KEY.peer,
    started_unix_ms=1,
    finished_unix_ms=2,
)
WHOLE = SourceRead(10, '"e"', "Thu, 01 Jan 2026 00:00:00 GMT", 1_800_000_000_000, "ab" * 32)
PARTS = SourceRead(1000, "", "", 1, "", ((0, 10), (500, 1000)))


def signed(**changes: Any) -> bytes:
    """Return a result whose one source has these fields, signed by its worker."""
    body = replace(PLAIN, sources={"a": PARTS})._body()
    body["sources"]["a"].update(changes)
    signature = KEY.sign(signing_input("result", encode(body)))
    return encode({**body, "signature": signature.hex()})


def test_what_was_read_is_read_back() -> None:
    document = replace(PLAIN, sources={"whole": WHOLE, "parts": PARTS})
    assert ResultDocument.decode(document.sign(KEY)) == document
    assert ResultDocument.decode(signed()).sources == {"a": PARTS}


def test_a_result_without_urls_has_the_bytes_that_it_always_had() -> None:
    assert "sources" not in decode(PLAIN.sign(KEY), 2**20)
    assert PLAIN._body().keys() >= {"limit", "usage"}


def test_an_empty_list_of_sources_is_left_out() -> None:
    body = {**PLAIN._body(), "sources": {}}
    signature = KEY.sign(signing_input("result", encode(body)))
    with pytest.raises(DecodeError):
        ResultDocument.decode(encode({**body, "signature": signature.hex()}))


@pytest.mark.parametrize(
    "changes",
    [
        {"size": True},
        {"size": -1},
        {"size": "10"},
        {"read": 2**63},
        {"etag": "x" * 201},
        {"etag": 7},
        {"sha256": ""},
        {"sha256": 5},
        {"ranges": []},
        {"ranges": [[10, 0]]},
        {"ranges": [[0, 10], [10, 20]]},
        {"ranges": [[500, 600], [0, 10]]},
        {"ranges": [[0, 1001]]},
        {"ranges": [[-1, 5]]},
        {"ranges": [[0, True]]},
        {"ranges": [[0, 1, 2]]},
        {"ranges": [0, 10]},
        {"ranges": [[2 * i, 2 * i + 1] for i in range(RANGES_TOLD_MAX + 1)]},
        {"more": 1},
        {"etag": Link(JOB)},
    ],
)
def test_sources_that_are_none_make_no_result(changes: dict[str, Any]) -> None:
    with pytest.raises(DecodeError):
        ResultDocument.decode(signed(**changes))
