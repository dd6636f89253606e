"""What commands print, to the letter: stdout, stderr and exit code, in tests/cli/snapshots.

`PAIRIO_SNAPSHOTS=write pytest tests/cli/test_snapshots.py` writes them anew; read the diff.
"""

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pairio_protocol.cid import RAW, cid_of
from tests.cli import test_admins as admins
from tests.cli import test_cache as cache
from tests.cli import test_commands as commands
from tests.cli import test_jobs as jobs
from tests.cli import test_joins as joins
from tests.cli import test_public as public
from tests.cli import test_publish as publish
from tests.cli.conftest import Run
from tests.cli.test_help import COMMANDS
from tests.sdk.fake_node import JOB_ID, REQUEST_ID, FakeNode, Raw, job

FOLDER = Path(__file__).parent / "snapshots"
CID = cid_of(RAW, b"hello")
HIT = {
    **jobs.PLAN,
    "isHit": True,
    "why": "a hit: a result is there; nothing would run",
    "nearest": None,
    "hitStatus": "completed",
    "computedBy": "Bob",
}
EXPLAINED: dict[str, Any] = {
    "jobId": JOB_ID,
    "requestId": REQUEST_ID,
    "isHit": True,
    "why": "a hit: Bob had computed it before it was asked for; nothing ran",
    "answer": {
        "resultCid": "bafyresult",
        "status": "completed",
        "computeNodeId": "12D3KooWbob",
        "computeNodeName": "Bob",
        "timestampFinishedSec": 1_700_000_000.0,
        "runId": "ab",
    },
    "nearest": None,
}
ROOT = {
    "cid": CID,
    "what": "output of job bafyjob",
    "sizeBytes": 1234,
    "keptBecause": ["pinned"],
    "timestampUsedSec": 1_700_000_000.0,
}
CHECK = {
    "check": "verified",
    "ok": True,
    "proved": True,
    "words": "the chain holds",
    "hint": None,
    "jobId": JOB_ID,
    "resultCid": "bafyresult",
    "by": [],
}


def _answers(node: FakeNode) -> None:
    """Let the node know everything that the commands below ask for."""
    at = "/services/lab"
    for method, path, answer in (
        ("GET", "/services", {"services": [commands.SERVICE]}),
        ("POST", "/services", commands.SERVICE),
        ("GET", at, commands.SERVICE),
        ("DELETE", at, admins.act()),
        ("POST", f"{at}/accept", commands.SERVICE),
        ("POST", f"{at}/decline", {"serviceId": "b", "serviceName": "lab"}),
        ("POST", f"{at}/leave", {"serviceId": "b", "serviceName": "lab", "offTheList": False}),
        ("GET", "/offers", {"offers": [commands.OFFER]}),
        ("GET", f"{at}/apps", {"apps": [commands.APP]}),
        ("POST", f"{at}/apps", {**commands.APP, **admins.act(updated=False)}),
        ("DELETE", f"{at}/apps/hello", admins.act(app="hello")),
        ("GET", f"{at}/app-history", {"history": admins.HISTORY}),
        *(("POST", f"{at}/{name}", admins.act(member="Eve")) for name in ("grant", "revoke")),
        ("POST", f"{at}/rename", admins.act(member="Eve")),
        ("POST", f"{at}/admins", admins.act()),
        ("POST", f"{at}/sign-over", admins.act(over=["bafyloser"])),
        ("GET", f"{at}/proposals", {"proposals": [admins.PROPOSAL]}),
        ("POST", f"{at}/proposals/look", admins.PROPOSAL),
        ("DELETE", f"{at}/proposals/x", admins.act(withdrawn="bafyproposal", changed=False)),
        ("GET", f"{at}/log", admins.LOG),
        ("GET", f"{at}/invitations", {"invitations": []}),
        ("POST", f"{at}/invitations", joins.MADE),
        ("POST", f"{at}/uninvite", {"key": "k"}),
        ("POST", f"{at}/devices", joins.MADE),
        ("GET", f"{at}/requests", {"requests": []}),
        ("POST", f"{at}/requests/3f/deny", {"peerId": "12D3KooWada"}),
        (
            "POST",
            f"{at}/requests/3f/approve",
            {"member": "Ada", "roles": ["submit"], "peerId": "12D3KooWada"},
        ),
        ("POST", f"{at}/public", public._answer("pairio-link", None)),
        ("GET", f"{at}/policy", {"serviceName": "lab", "serviceId": "s", "results": "members"}),
        ("POST", "/joins", joins.JOINED),
        ("GET", "/cache", cache.STATS),
        ("GET", "/cache/roots", {"roots": [ROOT], "count": 9}),
        ("POST", "/cache/gc", cache.GC),
        ("POST", "/cache/pins", cache.PIN),
        ("DELETE", f"/cache/pins/{cache.CID}", cache.PIN),
        ("GET", "/cache/pins", {"pins": [cache.PIN]}),
        ("POST", "/published", {**publish.ENTRY, "changed": True}),
        ("DELETE", "/published/bafyreijob", {**publish.ENTRY, "changed": True}),
        ("GET", "/published", {"published": [publish.ENTRY], "services": []}),
        ("POST", "/tokens", {"name": "notebook", "token": "token-once"}),
        ("POST", "/links", {"url": "http://127.0.0.1:1/open/code"}),
        ("POST", "/content", {"cid": "bafkadded", "size": 3}),
        ("GET", "/status", commands.STATUS),
        ("POST", "/jobs", job()),
        ("POST", "/jobs/plan", [jobs.PLAN, HIT]),
        ("GET", "/jobs", {"jobs": [job()], "nextCursor": None}),
        ("GET", f"/jobs/{JOB_ID}", job()),
        ("GET", f"/jobs/{JOB_ID}/why", commands.WHY),
        ("GET", f"/jobs/{JOB_ID}/explain", EXPLAINED),
        ("GET", f"/jobs/{JOB_ID}/graph", jobs.GRAPH),
        ("GET", f"/jobs/{JOB_ID}/console", Raw(b"one\ntwo\n")),
        ("POST", f"/jobs/{JOB_ID}/cancel", job(status="canceled")),
        ("DELETE", f"/jobs/{JOB_ID}", {"hidden": [REQUEST_ID]}),
        ("GET", f"/results/{JOB_ID}/provenance", Raw(b'{"nodes": []}')),
        ("GET", f"/results/{JOB_ID}/verify", jobs.lines(CHECK)),
        ("GET", "/batches", {"batches": [jobs.BATCH]}),
        ("GET", "/batches/nightly", jobs.BATCH),
        ("DELETE", "/batches/nightly", {**jobs.BATCH, "canceled": 2}),
        ("POST", "/jobs/batch", {"jobs": []}),
        ("GET", "/nodes", {"nodes": [jobs.NODE, {**jobs.NODE, "name": "Bob", "isAlive": False}]}),
    ):
        node.on(method, path, answer)


CASES = {
    "service": "create lab; ls; show lab; offers; accept lab; decline lab; leave lab; members lab;"
    " grant lab 12D3KooWbob --roles submit; add-member lab 12D3KooWbob --roles submit;"
    " revoke lab Bob; rename lab Bob Eve; rename lab other; admins lab; delete lab --yes;"
    " proposals lab; withdraw lab x; log lab; sign-over lab; invite lab; invitations lab;"
    " uninvite lab abc; link-device lab; requests lab; approve lab 3f; deny lab 3f; public lab;"
    " policy lab",
    "app": "ls lab; install lab hello_world; update lab hello_world; remove lab hello; history lab",
    "cache": f"stats; ls; pins; pin {cache.CID}; unpin {cache.CID}; gc --dry-run",
    "job": f"ls; show {JOB_ID}; why {JOB_ID}; logs {JOB_ID}; cancel {JOB_ID}; rerun {JOB_ID};"
    f" rm {JOB_ID}; wait {JOB_ID}; explain {JOB_ID}; graph {JOB_ID}; graph {JOB_ID} --format dot;"
    f" script {JOB_ID}; provenance {JOB_ID}; show nothing",
    "batch": "ls; show nightly; wait nightly; cancel nightly; retry nightly",
    "node": "ls",
    "token": "create notebook",
    "join": "pairio:abc",
    "publish": "bafyreijob",
    "unpublish": "bafyreijob",
    "published": "",
    "verify": JOB_ID,
    "open": f"{JOB_ID} --print",
    "watch": "--nonsense",
    "submit": "hello/greet; hello/greet --wait; hello/greet --dry-run; hello/greet -p name=x"
    " --dry-run; hello/nothing; hello/greet -p name; hello/greet --timeout 3",
    "pairio-node status": "",
}


def _cases() -> Iterator[tuple[str, list[str]]]:
    for command, all_arguments in CASES.items():
        yield command, [arguments.strip() for arguments in all_arguments.split(";")]


def _plain(text: str) -> str:
    """Return what is printed without what is another each time."""
    return re.sub(r"\d+\.\d\ds", "0.00s", text)


@pytest.fixture(autouse=True)
def in_greenwich(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Print times of day the same everywhere."""
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(("command", "rows"), list(_cases()), ids=lambda v: str(v)[:30])
def test_what_a_command_prints_is_as_it_was(
    command: str, rows: list[str], node: FakeNode, run: Run
) -> None:
    program = "pairio-node" if command.startswith("pairio-node") else "pairio"
    words = command.removeprefix("pairio-node ")
    shown = []
    for row in rows:
        _answers(node)
        ran = run(*words.split(), *row.split(), program=program)
        shown.append(f"$ {program} {words} {row}".rstrip())
        shown += ["-- stdout", _plain(ran.out), "-- stderr", _plain(ran.err), f"-- {ran.code}\n\n"]
    file = FOLDER / f"{command.replace(' ', '-')}.txt"
    text = "\n".join(shown)
    if os.environ.get("PAIRIO_SNAPSHOTS") == "write":
        FOLDER.mkdir(exist_ok=True)
        file.write_text(text)
    assert text == file.read_text()


@pytest.mark.parametrize("name", COMMANDS)
def test_an_unknown_option_is_usage(name: str, node: FakeNode, run: Run) -> None:
    program, *words = name.split()
    wrong = run(*words, "--nonsense", program=program)
    assert (wrong.code, wrong.out) == (2, "")
    assert wrong.err.startswith("error: ")
    assert "--nonsense" in wrong.err
    assert wrong.err.endswith(f"\n\nhint: {name} --help\n")
    assert node.asked == []
