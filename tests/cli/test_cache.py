"""`pairio cache`: what is here and why, pins, and what went or would."""

import json
from typing import Any

from tests.cli.conftest import Run
from tests.sdk.fake_node import FakeNode, Raw

CID = "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku"
STATS: dict[str, Any] = {
    "quotaBytes": 20_000_000_000,
    "usedBytes": 1_500_000,
    "roomBytes": 19_998_500_000,
    "full": False,
    "blocks": 12,
    "byReason": {"pinned": 1_000_000, "cache": 500_000},
    "pins": 1,
    "promises": 3,
    "counters": {"hits": 2, "evicted_blocks": 7},
}
PIN: dict[str, Any] = {
    "name": CID,
    "kind": "content",
    "serviceName": None,
    "resultCid": None,
    "cids": [CID],
    "timestampPinnedSec": 1_700_000_000.0,
}
GC: dict[str, Any] = {
    "dryRun": True,
    "usedBytesBefore": 2_000_000,
    "freedBytes": 1_500_000,
    "blocks": 3,
    "rootCount": 1,
    "roots": [{"cid": CID, "what": "output of job bafyjob"}],
    "protectedBytes": {"pinned": 500_000},
}


def test_stats_tell_use_by_reason_and_what_was_counted(node: FakeNode, run: Run) -> None:
    node.on("GET", "/cache", STATS)
    ran = run("cache", "stats")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.splitlines() == [
        "1.5 MB of 20.0 GB used, 20.0 GB free; 12 blocks",
        "WHY     SIZE",
        "pinned  1.0 MB",
        "cache   500.0 kB",
        "pins: 1, promised copies: 3",
        "evicted blocks 7, hits 2",
    ]
    assert json.loads(run("cache", "stats", "--json").out) == STATS


def test_a_full_node_says_so(node: FakeNode, run: Run) -> None:
    node.on("GET", "/cache", {**STATS, "full": True})
    assert "full: no job begins here" in run("cache", "stats").out


def test_the_list_shows_what_why_and_when(node: FakeNode, run: Run) -> None:
    root = {
        "cid": CID,
        "what": "output of job bafyjob",
        "sizeBytes": 1234,
        "keptBecause": ["pinned", "promised"],
        "timestampUsedSec": 1_700_000_000.0,
    }
    node.on("GET", "/cache/roots", {"roots": [root, {**root, "keptBecause": []}], "count": 9})
    ran = run("cache", "ls", "--limit", "2")
    assert ran.code == 0
    first, second = ran.out.splitlines()[1:]
    assert CID in first and "1.2 kB" in first and "pinned, promised  output of job" in first
    assert " -  " in second
    assert ran.err == "7 more: --limit\n"
    assert json.loads(run("cache", "ls", "--json").out)["count"] == 9
    assert run("cache", "ls", "--limit", "0").code == 2


def test_a_pin_is_named_on_stdout_and_so_is_what_is_unpinned(node: FakeNode, run: Run) -> None:
    node.on("POST", "/cache/pins", PIN)
    node.on("DELETE", f"/cache/pins/{CID}", PIN)
    node.on("GET", "/cache/pins", {"pins": [PIN]})
    assert (run("cache", "pin", CID).code, node.asked[-1].body) == (
        0,
        {"name": CID, "serviceName": None},
    )
    assert run("cache", "pin", CID).out == f"{CID}\n"
    assert run("cache", "unpin", CID).out == f"{CID}\n"
    assert CID in run("cache", "pins").out
    for command in (["pin", CID], ["unpin", CID]):
        assert json.loads(run("cache", *command, "--json").out) == PIN
    assert json.loads(run("cache", "pins", "--json").out) == {"pins": [PIN]}


def test_what_is_not_pinned_is_an_error_with_a_hint(node: FakeNode, run: Run) -> None:
    said = {"message": "'x' is not pinned", "hint": "see pairio cache pins", "code": "not_found"}
    node.on("DELETE", "/cache/pins/x", Raw(json.dumps({"error": said}).encode(), 404))
    ran = run("cache", "unpin", "x")
    assert (ran.code, ran.out) == (1, "")
    assert "error: 'x' is not pinned" in ran.err and "hint: see pairio cache pins" in ran.err


def test_gc_says_what_went_or_would_go(node: FakeNode, run: Run) -> None:
    node.on("POST", "/cache/gc", GC)
    ran = run("cache", "gc", "--dry-run")
    assert (ran.code, ran.out) == (0, f"{CID}  output of job bafyjob\n")
    assert ran.err.startswith("would free 1.5 MB of 2.0 MB (")
    assert node.asked[-1].body == {"dryRun": True, "everything": False}
    node.on("POST", "/cache/gc", {**GC, "freedBytes": 0, "roots": []})
    assert "below 80 %" in run("cache", "gc").err
    run("cache", "gc", "--all", "--json")
    assert node.asked[-1].body == {"dryRun": False, "everything": True}
