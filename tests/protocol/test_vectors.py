"""The vectors hold: read back by the code, and DAG-CBOR by a second implementation."""

import json
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

import dag_cbor
import pytest
from multiformats import CID

from pairio_protocol.codec import pack, unpack
from pairio_protocol.documents import Link, decode, document_cid, encode
from pairio_protocol.ids import LogId, peer_of, public_key_of, rendezvous, request_id, run_id
from pairio_protocol.jobs import decode_job
from pairio_protocol.messages import MESSAGES, Presence
from pairio_protocol.records import RECORDS, ResultDocument
from pairio_protocol.segment import GENESIS, Segment
from pairio_protocol.service import Chain, SignedChange
from pairio_protocol.signing import SigningKey, signing_input, verify

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "protocol" / "vectors"


def _load(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"{name}.json").read_text())  # type: ignore[no-any-return]


DOCUMENTS, SEGMENTS, IDS = _load("documents"), _load("segments"), _load("ids")
SIGNING, MESSAGE_VECTORS = _load("signing"), _load("messages")
ALL_DOCUMENTS = [
    *DOCUMENTS["documents"],
    *DOCUMENTS["changes"],
    *(change["folded"] for change in DOCUMENTS["changes"]),
]
_names = [vector["name"] for vector in ALL_DOCUMENTS]


def _value(shown: Any, link: Any) -> Any:
    """Return what a vector shows: `{"/": CID}` is a link, `{"hex": ...}` are bytes."""
    if isinstance(shown, list):
        return [_value(item, link) for item in shown]
    if isinstance(shown, dict):
        if set(shown) == {"/"}:
            return link(shown["/"])
        if set(shown) == {"hex"}:
            return bytes.fromhex(shown["hex"])
        return {key: _value(item, link) for key, item in shown.items()}
    return shown


def test_the_vectors_are_what_the_code_makes() -> None:
    script = ROOT / "scripts" / "gen_vectors"
    run = subprocess.run([sys.executable, str(script), "--check"], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


# -- documents ----------------------------------------------------------------------------


@pytest.mark.parametrize("vector", ALL_DOCUMENTS, ids=_names)
def test_a_document_has_these_bytes_and_this_cid(vector: dict[str, Any]) -> None:
    data = bytes.fromhex(vector["hex"])
    document = _value(vector["document"], Link)
    assert encode(document) == data
    assert decode(data, len(data)) == document
    assert document_cid(data) == vector["cid"]


@pytest.mark.parametrize("vector", ALL_DOCUMENTS, ids=_names)
def test_another_implementation_agrees(vector: dict[str, Any]) -> None:
    data = bytes.fromhex(vector["hex"])
    document = _value(vector["document"], CID.decode)
    assert dag_cbor.encode(document) == data
    assert dag_cbor.decode(data) == document
    assert str(CID("base32", 1, "dag-cbor", ("sha2-256", sha256(data).digest()))) == vector["cid"]


@pytest.mark.parametrize("word", ["app", "processor", "job", "result", "change", "folded"])
def test_there_is_a_vector_of_every_kind_of_document(word: str) -> None:
    assert [name for name in _names if name.startswith(word)]


def test_job_documents_are_taken() -> None:
    jobs = [v for v in DOCUMENTS["documents"] if v["name"].startswith("job")]
    for vector in jobs:
        assert decode_job(bytes.fromhex(vector["hex"])) == vector["document"]


def test_results_are_signed_by_their_worker() -> None:
    results = [v for v in DOCUMENTS["documents"] if v["name"].startswith("result")]
    found = [ResultDocument.decode(bytes.fromhex(v["hex"])) for v in results]
    assert [r.status for r in found] == ["completed", "failed"]
    assert {r.worker for r in found} == {IDS["peers"][1]["peer"]}


def test_the_changes_make_the_service_and_its_folded_documents() -> None:
    chain = Chain()
    for seq, vector in enumerate(DOCUMENTS["changes"]):
        change = SignedChange.decode(bytes.fromhex(vector["travels"]))
        assert change.body.hex() == vector["hex"]
        assert [[p, s.hex()] for p, s in change.signatures] == vector["signatures"]
        assert chain.add(change)
        folded = chain.at(seq)
        assert folded is not None
        assert encode(folded.document()).hex() == vector["folded"]["hex"]
        assert vector["document"]["state"] == vector["folded"]["cid"]
    assert chain.service == DOCUMENTS["service"] == DOCUMENTS["changes"][0]["cid"]


# -- segments, names, signatures, messages ------------------------------------------------


@pytest.mark.parametrize("vector", SEGMENTS["segments"], ids=lambda v: str(v["first_seq"]))
def test_a_segment_has_these_bytes_this_hash_and_this_signature(vector: dict[str, Any]) -> None:
    segment = Segment.decode(bytes.fromhex(vector["hex"]))
    assert segment.encode().hex() == vector["hex"]
    assert segment.log == LogId(vector["author"], bytes.fromhex(vector["boot"]), vector["shard"])
    assert (segment.service, segment.first_seq, segment.epoch) == (
        vector["service"],
        vector["first_seq"],
        vector["epoch"],
    )
    assert segment.hash.hex() == vector["hash"]
    assert segment.hash == sha256(bytes.fromhex(vector["signed"])).digest()
    assert segment.is_signed()
    assert segment.signature.hex() == vector["signature"]
    records = [RECORDS.to_plain(record) for record in segment.records()]
    assert records == _value(vector["records"], Link)
    assert pack(_value(vector["records"], Link)).hex() == vector["body"]


def test_the_same_key_seals_the_same_segment_again() -> None:
    for vector in SEGMENTS["segments"]:
        sealed = Segment.seal(
            SigningKey(bytes.fromhex(vector["seed"])),
            vector["service"],
            bytes.fromhex(vector["boot"]),
            vector["first_seq"],
            vector["epoch"],
            bytes.fromhex(vector["prev"]),
            [RECORDS.from_plain(plain) for plain in _value(vector["records"], Link)],
        )
        assert sealed.encode().hex() == vector["hex"]


def test_the_segments_form_a_chain_with_every_kind_of_record() -> None:
    prev, seq, kinds = GENESIS.hex(), 0, set()
    for vector in SEGMENTS["segments"]:
        assert (vector["prev"], vector["first_seq"]) == (prev, seq)
        prev, seq = vector["hash"], seq + len(vector["records"])
        kinds |= {record[0] for record in vector["records"]}
    assert sorted(kinds) == RECORDS.kinds()


def test_names_are_made_like_this() -> None:
    for vector in IDS["peers"]:
        assert SigningKey(bytes.fromhex(vector["seed"])).peer == vector["peer"]
        assert peer_of(public_key_of(vector["peer"])) == vector["peer"]
    for vector in IDS["requests"]:
        boot = bytes.fromhex(vector["boot"])
        assert request_id(vector["service"], vector["author"], boot, vector["seq"]) == vector["id"]
    for vector in IDS["runs"]:
        assert run_id(vector["job"], vector["salt"]) == vector["id"]
    for vector in IDS["rendezvous"]:
        assert rendezvous(vector["key"], vector["peer"]).hex() == vector["weight"]
    for vector in IDS["orders"]:
        weights = [rendezvous(vector["key"], peer) for peer in vector["peers"]]
        assert weights == sorted(weights, reverse=True)


def test_every_name_is_another() -> None:
    names = [v["id"] for v in (*IDS["requests"], *IDS["runs"])]
    assert len(set(names)) == len(names)
    assert {v["mode"] for v in IDS["runs"]} == {"use", "skip_cache", "rerun_failing"}


def test_signing_inputs_are_these_bytes_and_no_two_are_equal() -> None:
    peer = SigningKey(bytes.fromhex(SIGNING["seed"])).peer
    made = []
    for vector in SIGNING["inputs"]:
        data = signing_input(vector["kind"], *_value(vector["fields"], Link))
        assert data.hex() == vector["hex"]
        assert verify(peer, data, bytes.fromhex(vector["signature"]))
        made.append(data)
    assert len(set(made)) == len(made)


def test_there_is_a_message_of_every_kind_with_these_bytes() -> None:
    for vector in MESSAGE_VECTORS["messages"]:
        data = bytes.fromhex(vector["hex"])
        assert unpack(data) == _value(vector["plain"], Link)
        assert MESSAGES.encode(MESSAGES.decode(data)) == data
    kinds = {vector["plain"][0] for vector in MESSAGE_VECTORS["messages"]}
    assert sorted(kinds) == MESSAGES.kinds()


def test_a_presence_entry_is_signed_like_this() -> None:
    vector = MESSAGE_VECTORS["presence"]
    entry = Presence.decode(bytes.fromhex(vector["hex"]))
    assert entry.sign(SigningKey(bytes.fromhex(vector["seed"]))).hex() == vector["hex"]
    body, _ = unpack(bytes.fromhex(vector["hex"]))
    assert unpack(body) == _value(vector["plain"], Link)
