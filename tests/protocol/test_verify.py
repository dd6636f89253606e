"""Verifying a result from bytes alone: what is right is shown, what is not is caught, and where."""

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pairio_protocol.changes import SignedChange
from pairio_protocol.cid import DAG_CBOR, DAG_PB, cid_of
from pairio_protocol.documents import decode, encode
from pairio_protocol.evidence import Evidence, resolved_with
from pairio_protocol.gather import Held, gather
from pairio_protocol.ids import request_id
from pairio_protocol.normalise import job_id_of
from pairio_protocol.records import Result, ResultDocument, result_cid
from pairio_protocol.segment import Segment
from pairio_protocol.service import Cut
from pairio_protocol.unixfs import Entry, directory_block
from pairio_protocol.verify import Progress, verify
from tests.protocol.evidence_lab import (
    ALICE,
    BIG,
    BOB,
    EVE,
    Lab,
    broken,
    checks,
    two_jobs,
)


def one_job(output: bytes = b"ABC", **changed: Any) -> tuple[Lab, dict[str, Any]]:
    lab = Lab()
    lab.begin()
    job = lab.job("shout", lab.file(b"abc")[0])
    lab.write(ALICE, [lab.request(job)])
    lab.write(BOB, [Result(lab.result(job, output, **changed))])
    return lab, job


def test_every_link_of_a_chain_is_shown_the_first_job_first() -> None:
    lab, _, evidence = two_jobs()
    found = checks(evidence, lab.blocks)
    assert [c.what for c in found] == [
        "changes",
        *("request", "result", "code", "input", "output", "console"),
        *("request", "result", "code", "input", "upstream", "output", "console"),
        "verified",
    ]
    assert all(c.is_right and c.is_proved for c in found)
    assert found[-1].result == evidence.result
    assert [c.by for c in found if c.what in ("request", "result")] == [
        ((ALICE.peer, "alice"),),
        ((BOB.peer, "bob"),),
    ] * 2


def test_bytes_hashed_are_told_while_it_goes_on() -> None:
    lab, job = one_job()
    evidence = lab.evidence(job)
    files = [lab.file(bytes([n])) for n in range(70)]
    folder = directory_block([Entry(c, s, s, f"{s}{n}") for n, (c, s, _) in enumerate(files)])
    cid = cid_of(DAG_PB, folder)
    lab.blocks[cid] = folder
    lab, job = lab, lab.job("shout", cid)
    lab.write(ALICE, [lab.request(job)])
    lab.write(BOB, [Result(lab.result(job, b"x"))])
    evidence = lab.evidence(job)
    told = [c for c in verify(evidence, lab.blocks.get) if isinstance(c, Progress)]
    assert [progress.blocks for progress in told] == [64]


# -- content -------------------------------------------------------------------------------


def _content(evidence: Evidence, lab: Lab) -> dict[str, str]:
    """Return a CID of every kind of content of the first job, and the check that looks at it."""
    first = evidence.asked[1][0]
    document = ResultDocument.decode(
        next(
            r.document
            for s in lab.segments
            for r in s.records()
            if isinstance(r, Result) and result_cid(r.document) == first
        )
    )
    text = lab.file(b"abc")[0]
    big = document.outputs["output"][0]
    leaf = lab.file(BIG[: 1024 * 1024])[0]
    return {
        lab.app["bundle"]: "code",
        lab.file(b"#!/bin/sh\n")[0]: "code",
        text: "input",
        big: "output",
        leaf: "output",
        document.console: "console",
    }


def test_a_block_with_other_bytes_or_none_is_a_break_where_it_is_needed() -> None:
    lab, _, evidence = two_jobs()
    content = _content(evidence, lab)
    for cid, what in content.items():
        other = {**lab.blocks, cid: lab.blocks[cid][:-1] + b"?"}
        assert broken(checks(evidence, other)) == (what, f"block {cid} holds other bytes")
        less = {name: data for name, data in lab.blocks.items() if name != cid}
        assert broken(checks(evidence, less)) == (what, f"block {cid} is not here")


def test_a_result_of_a_job_that_was_not_resolved_is_a_break() -> None:
    lab = Lab()
    lab.begin()
    first = lab.job("shout", lab.file(b"abc")[0])
    job = lab.job("count", f"job:{job_id_of(first)}/output")
    lab.write(ALICE, [lab.request(job)])
    document = lab.result(job, b"3")
    lab.write(BOB, [Result(document)])
    lab.blocks[job_id_of(job)] = encode(job)
    evidence = Evidence(
        lab.chain.service,
        ((result_cid(document), request_id(lab.chain.service, ALICE.peer, bytes([1] * 16), 0)),),
        tuple(change.encode() for change in lab.chain.changes()),
        tuple(segment.encode() for segment in lab.segments),
    )
    assert broken(checks(evidence, lab.blocks)) == (
        "result",
        "its job names outputs of jobs, not what they were",
    )


def test_an_output_of_another_size_than_the_result_says_is_a_break() -> None:
    lab = Lab()
    lab.begin()
    cid, size, base = lab.file(b"ABC")
    job = lab.job("shout", lab.file(b"abc")[0])
    lab.write(ALICE, [lab.request(job)])
    lab.write(BOB, [Result(lab.result(job, b"ABC", outputs={"output": (cid, size + 1, base)}))])
    what, words = broken(checks(lab.evidence(job), lab.blocks))
    assert (what, "3 bytes, and the result says 4" in words) == ("output", True)


def test_a_file_whose_parts_have_other_sizes_than_it_says_is_a_break() -> None:
    lab = Lab()
    lab.begin()
    cid, _, _ = lab.file(BIG)
    lying = lab.blocks[cid].replace(b"\x08\x02\x18\x80\x90\x4e", b"\x08\x02\x18\x81\x90\x4e")
    assert lying != lab.blocks[cid]
    name = cid_of(DAG_PB, lying)
    lab.blocks[name] = lying
    job = lab.job("shout", name)
    lab.write(ALICE, [lab.request(job)])
    lab.write(BOB, [Result(lab.result(job, b"x"))])
    assert broken(checks(lab.evidence(job), lab.blocks))[0] == "input"


# -- signatures, roles, places --------------------------------------------------------------


def _flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def _segment(lab: Lab, key: Any, n: int = 0) -> tuple[int, bytes]:
    mine = [i for i, s in enumerate(lab.segments) if s.log.author == key.peer]
    return mine[n], lab.segments[mine[n]].encode()


@pytest.mark.parametrize("part", ["signature", "body"])
@pytest.mark.parametrize("author", [ALICE, BOB], ids=["request", "result"])
def test_a_tampered_segment_is_a_break(part: str, author: Any) -> None:
    lab, _, evidence = two_jobs()
    _, data = _segment(lab, author)
    at = len(data) - 1 if part == "signature" else len(data) // 2
    segments = tuple(_flipped(s, at) if s == data else s for s in evidence.segments)
    assert segments != evidence.segments
    what, words = broken(checks(replace(evidence, segments=segments), lab.blocks))
    assert what == "segments"
    assert author.peer in words or "a segment" in words


def test_a_tampered_change_is_a_break() -> None:
    lab, _, evidence = two_jobs()
    for n, at in ((0, 60), (0, -1), (1, 60), (1, -1)):
        changes = list(evidence.changes)
        changes[n] = _flipped(changes[n], at % len(changes[n]))
        what, words = broken(checks(replace(evidence, changes=tuple(changes)), lab.blocks))
        assert what == "changes", words


@pytest.mark.parametrize("seq", [None, "1", True, -1, 1.0])
def test_a_change_that_is_none_is_a_break(seq: Any) -> None:
    lab, _, evidence = two_jobs()
    change = SignedChange.decode(evidence.changes[1])
    document = decode(change.body, 2**20)
    for odd in ({**document, "seq": seq}, {k: v for k, v in document.items() if k != "seq"}):
        changes = (*evidence.changes, SignedChange(encode(odd), change.signatures).encode())
        assert broken(checks(replace(evidence, changes=changes), lab.blocks))[0] == "changes"


def test_changes_of_another_service_or_none_are_a_break() -> None:
    lab, _, evidence = two_jobs()
    other = Lab()
    other.chain.add(
        other.chain.propose(
            [{"op": "create", "name": "b", "admins": [EVE.peer], "threshold": 1, "nonce": "n"}],
            [EVE],
            1,
        )
    )
    theirs = tuple(c.encode() for c in other.chain.changes())
    assert broken(checks(replace(evidence, changes=theirs), lab.blocks))[0] == "changes"
    assert broken(checks(replace(evidence, changes=()), lab.blocks))[0] == "changes"
    assert broken(checks(replace(evidence, changes=evidence.changes[1:]), lab.blocks))[0] == (
        "changes"
    )


def test_a_segment_under_a_change_that_is_not_there_is_a_break() -> None:
    lab, _, evidence = two_jobs()
    what, words = broken(checks(replace(evidence, changes=evidence.changes[:1]), lab.blocks))
    assert (what, "change 1, which is not here" in words) == ("request", True)


def test_a_result_signed_by_another_than_the_log_is_a_break() -> None:
    lab, job = one_job()
    forged = lab.result(job, b"evil", key=EVE)
    lab.write(BOB, [Result(forged)])
    evidence = lab.evidence(job)
    claim = replace(
        evidence,
        asked=((result_cid(forged), evidence.asked[0][1]),),
        segments=tuple(s.encode() for s in lab.segments),
    )
    what, words = broken(checks(claim, lab.blocks))
    assert (what, EVE.peer in words) == ("result", True)


def test_a_result_whose_signature_is_wrong_is_a_break() -> None:
    lab, job = one_job()
    right = lab.result(job, b"evil")
    at = right.index(b"signature") + 20
    wrong = right[:at] + (b"0" if right[at : at + 1] != b"0" else b"1") + right[at + 1 :]
    lab.write(BOB, [Result(wrong)])
    evidence = lab.evidence(job)
    claim = replace(
        evidence,
        asked=((result_cid(wrong), evidence.asked[0][1]),),
        segments=tuple(s.encode() for s in lab.segments),
    )
    assert broken(checks(claim, lab.blocks)) == ("result", "a result that its worker did not sign")


def test_a_result_for_another_service_is_a_break() -> None:
    lab, job = one_job(service="bafyreiaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa")
    what, words = broken(checks(lab.evidence(job), lab.blocks))
    assert (what, "a result of service" in words) == ("result", True)


def test_a_completed_result_without_an_output_is_a_break() -> None:
    lab, job = one_job()
    lacking = lab.result(job, b"x", outputs={})
    lab.write(BOB, [Result(lacking)])
    evidence = lab.evidence(job)
    claim = replace(
        evidence,
        asked=((result_cid(lacking), evidence.asked[0][1]),),
        segments=tuple(s.encode() for s in lab.segments),
    )
    what, words = broken(checks(claim, lab.blocks))
    assert (what, "has no output 'output'" in words) == ("result", True)


def test_a_request_for_a_guest_counts_in_a_public_service_only() -> None:
    lab = Lab()
    lab.begin()
    job = lab.job("shout", "https://example.org/data.txt")
    lab.write(ALICE, [lab.request(job, sponsor_of=EVE.peer)])
    lab.write(BOB, [Result(lab.result(job, b"x"))])
    what, words = broken(checks(lab.evidence(job), lab.blocks))
    assert (what, "not public" in words or "public" in words) == ("request", True)


def test_a_document_is_no_file_and_a_folder_is_an_output() -> None:
    lab = Lab()
    lab.begin()
    entries = [
        Entry(*lab.file(data)[:2], len(data), name) for name, data in (("a", b"1"), ("b", BIG))
    ]
    folder = directory_block(entries)
    cid, document = cid_of(DAG_PB, folder), encode({"type": "x"})
    lab.blocks |= {cid: folder, cid_of(DAG_CBOR, document): document}
    job = lab.job("shout", lab.file(b"abc")[0])
    lab.write(ALICE, [lab.request(job)])
    size = 1 + len(BIG)
    lab.write(BOB, [Result(lab.result(job, b"", outputs={"output": (cid, size, "output")}))])
    assert checks(lab.evidence(job), lab.blocks)[-1].is_right
    other = lab.job("count", lab.file(b"abc")[0])
    lab.write(ALICE, [lab.request(other)])
    made = {"output": (cid_of(DAG_CBOR, document), len(document), "output")}
    lab.write(BOB, [Result(lab.result(other, b"", outputs=made))])
    what, words = broken(checks(lab.evidence(other), lab.blocks))
    assert (what, "is no file or folder" in words) == ("output", True)


def test_who_has_not_the_role_is_no_witness() -> None:
    lab, job = one_job()
    asked_by_bob = lab.write(BOB, [lab.request(job)])
    fold = lab.fold
    state = next(s for s in fold.requests.values() if s.segment == asked_by_bob.hash)
    by_hash = {segment.hash: segment for segment in lab.segments}
    answer = fold.answer_for(state, fold.resolve(state.job))
    assert answer is not None
    held = Held(lab.chain, fold, by_hash.get, lambda _: None)
    what, words = broken(checks(gather(held, answer, state), lab.blocks))
    assert (what, "had no role 'submit'" in words) == ("request", True)


def test_a_worker_without_the_role_compute_is_a_break() -> None:
    lab = Lab()
    lab.begin()
    job = lab.job("shout", lab.file(b"abc")[0])
    lab.write(ALICE, [lab.request(job)])
    lab.write(ALICE, [Result(lab.result(job, b"x", key=ALICE))])
    what, words = broken(checks(lab.evidence(job), lab.blocks))
    assert (what, "had no role 'compute'" in words) == ("result", True)


@pytest.mark.parametrize("named", [False, True], ids=["cut at 0", "cut before the result"])
def test_a_result_that_was_cut_away_is_a_break(named: bool) -> None:
    lab, job = one_job()
    first = lab.segments[-1]
    other = lab.job("count", lab.file(b"abc")[0])
    lab.write(ALICE, [lab.request(other)])
    lab.write(BOB, [Result(lab.result(other, b"3"))])
    cut = Cut(first.log, first.last_seq, first.hash)
    kept = lab.evidence(job)
    lab.change({"op": "remove", "member": "bob"}, cuts=(cut,) if named else ())
    what, words = broken(checks(lab.evidence(other), lab.blocks))
    assert (what, "cut it away" in words) == ("result", True)
    changes = tuple(c.encode() for c in lab.chain.changes())
    found = checks(replace(kept, changes=changes), lab.blocks)
    assert found[-1].is_right is named, found[-1]


def test_a_forked_log_is_a_break_from_there() -> None:
    lab, job = one_job()
    one = lab.segments[-1]
    second = Lab(chain=lab.chain, blocks=lab.blocks, app=lab.app)
    other = second.write(BOB, [Result(lab.result(job, b"another"))])
    lab.forks.append((one, other))
    what, words = broken(checks(lab.evidence(job), lab.blocks))
    assert (what, "two different segments" in words) == ("result", True)


def test_a_fork_that_is_none_is_a_break() -> None:
    lab, _, evidence = two_jobs()
    _, one = _segment(lab, BOB, 0)
    _, two = _segment(lab, BOB, 1)
    what, _ = broken(checks(replace(evidence, forks=((one, two),)), lab.blocks))
    assert what == "segments"


# -- the job, its code, its inputs ------------------------------------------------------------


def test_a_missing_request_result_or_upstream_result_is_a_break() -> None:
    lab, _, evidence = two_jobs()
    requests, _, _ = (s.encode() for s in lab.segments)
    shouted, counted = (s.encode() for s in lab.segments[1:])
    for gone, what in ((requests, "request"), (shouted, "result"), (counted, "result")):
        left = tuple(s for s in evidence.segments if s != gone)
        found = broken(checks(replace(evidence, segments=left), lab.blocks))
        assert (found[0], "not here" in found[1]) == (what, True), found


def test_a_missing_or_wrong_definition_is_a_break() -> None:
    lab, _, evidence = two_jobs()
    for cid in evidence.documents:
        less = {name: data for name, data in evidence.documents.items() if name != cid}
        assert not checks(replace(evidence, documents=less), lab.blocks)[-1].is_right
        wrong = {**evidence.documents, cid: _flipped(evidence.documents[cid], 50)}
        assert (
            "holds other bytes" in broken(checks(replace(evidence, documents=wrong), lab.blocks))[1]
        )


def test_a_result_for_another_job_than_was_asked_for_is_a_break() -> None:
    lab, job = one_job()
    other = lab.job("count", lab.file(b"abc")[0])
    lab.write(ALICE, [lab.request(other)])
    evidence = lab.evidence(job)
    fold = lab.fold
    asked = fold.by_job[job_id_of(other)][0]
    claim = replace(
        evidence,
        asked=((evidence.result, asked),),
        segments=tuple(s.encode() for s in lab.segments),
    )
    what, words = broken(checks(claim, lab.blocks))
    assert (what, "is not one of job" in words) == ("request", True)


def test_an_upstream_result_that_gave_no_input_is_a_break() -> None:
    lab = Lab()
    lab.begin()
    job = lab.job("shout", lab.file(b"abc")[0])
    other = lab.job("count", lab.file(b"abc")[0])
    lab.write(ALICE, [lab.request(job), lab.request(other)])
    unused = lab.result(other, b"unused")
    lab.write(BOB, [Result(unused)])
    lab.write(BOB, [Result(lab.result(job, b"x", upstream=(result_cid(unused),)))])
    what, words = broken(checks(lab.evidence(job), lab.blocks))
    assert (what, "gave none of the inputs" in words) == ("upstream", True)


def test_code_that_was_not_on_the_list_then_is_a_break() -> None:
    lab = Lab()
    lab.begin()
    job = lab.job("shout", lab.file(b"abc")[0])
    lab.change({"op": "app_remove", "app": "text"})
    lab.write(ALICE, [lab.request(job)])
    lab.write(BOB, [Result(lab.result(job, b"x"))])
    what, words = broken(checks(lab.evidence(job), lab.blocks))
    assert (what, "was not on the list" in words) == ("code", True)


def test_code_of_an_older_version_of_the_app_is_a_break() -> None:
    lab = Lab()
    lab.begin()
    job = lab.job("shout", lab.file(b"abc")[0])
    lab.change({"op": "app", "app": {**lab.app, "bundle": lab.file(b"newer")[0]}})
    lab.write(ALICE, [lab.request(job)])
    lab.write(BOB, [Result(lab.result(job, b"x"))])
    what, words = broken(checks(lab.evidence(job), lab.blocks))
    assert (what, "was not on the list" in words) == ("code", True)


def test_a_result_of_other_code_than_its_job_is_a_break() -> None:
    text = Lab()
    text.begin()
    lab, job = one_job(code=text.file(b"other code")[0])
    what, words = broken(checks(lab.evidence(job), lab.blocks))
    assert (what, "the result is of code" in words) == ("code", True)


def test_a_definition_that_is_not_normal_is_a_break() -> None:
    lab = Lab()
    lab.begin()
    job = {**lab.job("shout", lab.file(b"abc")[0]), "parameters": [{"name": "x", "value": 1}]}
    lab.write(ALICE, [lab.request(job)])
    lab.write(BOB, [Result(lab.result(job, b"x"))])
    what, words = broken(checks(lab.evidence(job), lab.blocks))
    assert (what, "is not what app" in words) == ("code", True)


def test_a_url_is_named_and_not_proved() -> None:
    lab = Lab()
    lab.begin()
    job = lab.job("shout", "https://example.org/data.txt")
    lab.write(ALICE, [lab.request(job)])
    lab.write(BOB, [Result(lab.result(job, b"x"))])
    found = checks(lab.evidence(job), lab.blocks)
    assert found[-1].is_right
    assert [c.what for c in found if not c.is_proved] == ["input"]


def test_a_run_of_its_own_is_answered_by_that_run_only() -> None:
    lab, job = one_job()
    lab.write(ALICE, [lab.request(job, mode="skip_cache")])
    fold = lab.fold
    own = next(s for s in fold.requests.values() if s.record.mode == "skip_cache")
    claim = lab.evidence(job)
    claim = replace(
        claim,
        asked=((claim.result, own.id),),
        segments=tuple(s.encode() for s in lab.segments),
    )
    what, words = broken(checks(claim, lab.blocks))
    assert (what, "a run of its own" in words) == ("request", True)


def test_a_hit_by_the_same_bytes_is_explained_by_the_results_that_gave_them() -> None:
    """Two jobs give the same bytes, so what rests on the second is answered by what was computed
    from the first."""
    lab, _, _ = two_jobs()
    again = {**lab.job("shout", lab.file(b"abc")[0]), "cache_bust": "again"}
    count = lab.job("count", f"job:{job_id_of(again)}/output")
    lab.write(ALICE, [lab.request(again), lab.request(count)])
    lab.write(BOB, [Result(lab.result(again, BIG))])
    found = checks(lab.evidence(count), lab.blocks)
    assert found[-1].is_right, found[-1]
    assert [c.what for c in found].count("result") == 3


def test_a_chain_of_jobs_may_be_long() -> None:
    lab = Lab()
    lab.begin()
    job = lab.job("shout", lab.file(b"0")[0])
    lab.write(ALICE, [lab.request(job)])
    before = lab.result(job, b"0")
    lab.write(BOB, [Result(before)])
    for n in range(1, 300):
        job = lab.job("shout", f"job:{job_id_of(job)}/output")
        lab.write(ALICE, [lab.request(job)])
        made, _, _ = ResultDocument.decode(before).outputs["output"]
        _, resolved = resolved_with(job, [made])
        before = lab.result(resolved, str(n).encode(), upstream=(result_cid(before),))
        lab.write(BOB, [Result(before)])
    found = checks(lab.evidence(job), lab.blocks)
    assert found[-1].is_right, found[-1]
    assert [c.what for c in found].count("result") == 300


# -- any byte -------------------------------------------------------------------------------


@cache
def _parts() -> tuple[Lab, Evidence, list[tuple[str, Any, bytes]], list[dict[str, Any]]]:
    lab, _, evidence = two_jobs()
    needed = {cid: data for cid, data in lab.blocks.items() if cid not in evidence.documents}
    parts: list[tuple[str, Any, bytes]] = [("blocks", c, d) for c, d in needed.items()]
    parts += [("documents", c, d) for c, d in evidence.documents.items()]
    parts += [("changes", n, d) for n, d in enumerate(evidence.changes)]
    parts += [("segments", n, d) for n, d in enumerate(evidence.segments)]
    return lab, evidence, parts, [c.plain() for c in checks(evidence, lab.blocks)]


@settings(max_examples=400, deadline=None)
@given(part=st.integers(0, 10_000), at=st.integers(0, 10**7), bit=st.integers(0, 7))
def test_any_flipped_bit_is_a_break_or_changes_nothing(part: int, at: int, bit: int) -> None:
    lab, evidence, parts, before = _parts()
    kind, name, data = parts[part % len(parts)]
    at %= len(data)
    wrong = data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]
    blocks = lab.blocks
    if kind == "blocks":
        blocks = {**blocks, name: wrong}
    elif kind == "documents":
        evidence = replace(evidence, documents={**evidence.documents, name: wrong})
    else:
        items = list(getattr(evidence, kind))
        items[name] = wrong
        changed: dict[str, Any] = {kind: tuple(items)}
        evidence = replace(evidence, **changed)
    after = [c.plain() for c in checks(evidence, blocks)]
    assert not after[-1]["ok"] or after == before


def test_segments_of_two_services_do_not_mix() -> None:
    lab, _, evidence = two_jobs()
    records: list[Any] = lab.segments[1].records()
    moved = Segment.seal(
        BOB, "bafyreiaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", b"\1" * 16, 0, 1,
        bytes(32), records,
    )  # fmt: skip
    claim = replace(evidence, segments=(*evidence.segments, moved.encode()))
    what, words = broken(checks(claim, lab.blocks))
    assert (what, "of another service" in words) == ("segments", True)
