"""Provenance: the whole graph of a result, in three forms, from its evidence alone."""

import json
import re
import shutil
import subprocess
from typing import Any

import pytest

from pairio_protocol.provenance import as_dot, as_statements, trace
from tests.protocol.evidence_lab import ALICE, BOB, Lab, two_jobs


def traced() -> tuple[Lab, dict[str, Any]]:
    lab, _, evidence = two_jobs()
    return lab, trace(evidence, lab.chain)


def test_the_graph_names_jobs_results_workers_code_and_content() -> None:
    lab, graph = traced()
    second, first = graph["results"]
    assert (graph["resultCid"], graph["serviceName"]) == (second["resultCid"], "lab")
    assert (first["processor"], second["processor"]) == ("shout", "count")
    assert second["upstream"] == [first["resultCid"]]
    assert second["inputs"][0]["source"] == f"ipfs://{first['outputs'][0]['cid']}"
    assert [r["askedBy"] for r in graph["results"]] == [ALICE.peer] * 2
    assert graph["workers"] == [{"peerId": BOB.peer, "member": "bob"}]
    assert {c["bundle"] for c in graph["code"]} == {lab.app["bundle"]}
    assert len(graph["jobs"]) == 3  # the second as it was asked for, and resolved
    through = next(c for c in graph["content"] if c["madeBy"] and c["usedBy"])
    assert (through["madeBy"], through["usedBy"]) == (
        [first["resultCid"]],
        [second["resultCid"]],
    )
    json.dumps(graph)


_TEXT = r'"(?:\\.|[^"\\])*"'
_PAIR = rf"\w+=(?:\w+|{_TEXT})"
_LINE = re.compile(
    rf"  (?:rankdir=LR|node \[{_PAIR}\]|{_TEXT}(?: -> {_TEXT})? \[{_PAIR}(?:, {_PAIR})*\]);"
)


def test_graphviz_reads_the_graph_whatever_names_there_are() -> None:
    _, graph = traced()
    graph["workers"][0]["member"] = 'ev"il\\\n];\x00'
    graph["results"][0]["inputs"][0]["name"] = '"] -> x ['
    text = as_dot(graph)
    first, *lines, last = text.splitlines()
    assert (first, last) == ("digraph provenance {", "}")
    assert [line for line in lines if not _LINE.fullmatch(line)] == []
    assert sum(" -> " in line for line in lines) >= 6
    program = shutil.which("dot")
    if program is not None:
        subprocess.run([program, "-Tsvg"], input=text.encode(), capture_output=True, check=True)


def test_in_toto_has_a_statement_for_every_result_the_own_first() -> None:
    lab, graph = traced()
    lines = as_statements(graph, lambda ms: f"T{ms}").splitlines()
    second, first = map(json.loads, lines)
    for statement, result in ((second, graph["results"][0]), (first, graph["results"][1])):
        assert statement["_type"] == "https://in-toto.io/Statement/v1"
        assert statement["predicateType"] == "https://slsa.dev/provenance/v1"
        assert set(statement["predicate"]) == {"buildDefinition", "runDetails"}
        assert all(subject["digest"] for subject in statement["subject"])
        details = statement["predicate"]["runDetails"]
        assert details["builder"]["id"] == f"pairio:{result['worker']}"
        assert details["metadata"]["startedOn"] == f"T{result['startedUnixMs']}"
        assert details["metadata"]["invocationId"] == result["runId"]
    # One block: its CID has the hash of the file. Several: that of the block at the top.
    assert list(second["subject"][0]["digest"]) == ["sha256"]
    assert list(first["subject"][0]["digest"]) == ["ipfs-dag-pb-sha2-256"]
    names = [d["name"] for d in second["predicate"]["buildDefinition"]["resolvedDependencies"]]
    assert names == ["input text", "job", "code", "code bundle", "upstream result"]
    assert lab.app["name"] == second["predicate"]["buildDefinition"]["externalParameters"]["app"]


@pytest.mark.parametrize("missing", ["documents", "segments"])
def test_what_is_missing_is_left_out(missing: str) -> None:
    from dataclasses import replace

    lab, _, evidence = two_jobs()
    less: dict[str, Any] = {"documents": {}} if missing == "documents" else {}
    if missing == "segments":  # of the requests
        less = {"segments": evidence.segments[:1] + evidence.segments[2:]}
    graph = trace(replace(evidence, **less), lab.chain)
    assert graph["results"]
    assert as_dot(graph).endswith("}\n")
    assert as_statements(graph, str)
