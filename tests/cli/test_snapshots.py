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

from pairio_node.doctor import Facts
from pairio_node.home import Home
from pairio_node.runner.base import ProbeResult
from pairio_protocol.cid import RAW, cid_of
from tests.cli import test_admins as admins
from tests.cli import test_cache as cache
from tests.cli import test_commands as commands
from tests.cli import test_content as content
from tests.cli import test_jobs as jobs
from tests.cli import test_joins as joins
from tests.cli import test_public as public
from tests.cli import test_publish as publish
from tests.cli import test_results as results
from tests.cli.conftest import Run
from tests.cli.test_help import COMMANDS
from tests.sdk.fake_node import JOB_ID, REQUEST_ID, FakeNode, Raw, job

FOLDER = Path(__file__).parent / "snapshots"
CID = cid_of(RAW, b"hello")
OPEN_ID, BUSY_ID = "openopen", "busybusy"
BUSY = b'{"error": {"message": "the node is overloaded", "hint": "try again", "code": "busy"}}'
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


REFERENCE = {
    "path": "/data/a",
    "type": "file",
    "size": 12,
    "state": "changed",
    "cid": CID,
    "dependents": [JOB_ID],
}
IMPORTED: dict[str, Any] = {
    "roots": [CID],
    "blocks": 4,
    "size": 2345,
    "serviceId": "bafyservice",
    "serviceName": "lab",
    "results": [{"resultCid": "bafyresult", "counts": True, "why": ""}],
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
        ("GET", f"/jobs/{OPEN_ID}", job(status="running", isSettled=False, progress=0.42)),
        ("GET", f"/jobs/{BUSY_ID}", Raw(BUSY, 503)),
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
        ("POST", f"{at}/proposals/sign", admins.act(signed="bafyproposal", data="c2lnbmVk")),
        ("POST", f"{at}/proposals/x/renew", admins.act(proposal=admins.PROPOSAL, changed=False)),
        ("POST", "/content/references", content._done(before="bafyold", dependents=[JOB_ID])),
        ("GET", "/content/references", {"references": [REFERENCE]}),
        ("DELETE", "/content/references", {"cids": [CID]}),
        ("GET", f"/results/{JOB_ID}/bring", jobs.lines({"note": "bafyx: nobody has it"})),
        ("GET", f"/results/{JOB_ID}/export", Raw(b"x" * 2345)),
        ("POST", "/import", IMPORTED),
        ("GET", "/nodes", {"nodes": [jobs.NODE, {**jobs.NODE, "name": "Bob", "isAlive": False}]}),
    ):
        node.on(method, path, answer)


CASES = {
    "service": "create lab; ls; show lab; offers; accept lab; decline lab; leave lab; members lab;"
    " grant lab 12D3KooWbob --roles submit; add-member lab 12D3KooWbob --roles submit;"
    " revoke lab Bob; rename lab Bob Eve; rename lab other; admins lab; delete lab --yes;"
    " proposals lab; withdraw lab x; log lab; sign-over lab; invite lab; invitations lab;"
    " uninvite lab abc; link-device lab; requests lab; approve lab 3f; deny lab 3f; public lab;"
    " policy lab; propose lab; propose lab --file change.json; propose lab --renew x;"
    " sign lab x --yes; sign lab --file change.json; verify-log log.json; verify-log nothing.json",
    "content": "add file.txt; add file.txt --nocopy; add nothing; refs; forget file.txt",
    "get": f"{JOB_ID}; {JOB_ID} one; {JOB_ID} one -o one.txt --json; {JOB_ID} no; {JOB_ID} one -o"
    " - --json",
    "export": f"{JOB_ID} -o x.car; {JOB_ID} -o x.car; {JOB_ID} -o y.car --json",
    "import": "file.txt; nothing.car",
    "app": "ls lab; install lab hello_world; update lab hello_world; remove lab hello; history lab",
    "cache": f"stats; ls; pins; pin {cache.CID}; unpin {cache.CID}; gc --dry-run",
    "job": f"ls; show {JOB_ID}; why {JOB_ID}; logs {JOB_ID}; cancel {JOB_ID}; rerun {JOB_ID};"
    f" rm {JOB_ID}; wait {JOB_ID}; explain {JOB_ID}; graph {JOB_ID}; graph {JOB_ID} --format dot;"
    f" script {JOB_ID}; provenance {JOB_ID}; show nothing; wait {OPEN_ID} --timeout 0;"
    f" logs {JOB_ID} --json; script {JOB_ID} --json; show {OPEN_ID}; show {BUSY_ID}",
    "batch": "ls; show nightly; wait nightly; cancel nightly; retry nightly",
    "node": "ls",
    "token": "create notebook",
    "join": "pairio:abc",
    "publish": "bafyreijob",
    "unpublish": "bafyreijob",
    "published": "",
    "verify": JOB_ID,
    "open": f"{JOB_ID} --print",
    "watch": "--nonsense; --once --json",
    "submit": "hello/greet; hello/greet --wait; hello/greet --dry-run; hello/greet -p name=x"
    " --dry-run; hello/nothing; hello/greet -p name; hello/greet --timeout 3",
    "pairio-node status": "",
    "pairio-node init": "; --json",
    "pairio-node key": "show; export out.key --passphrase-file phrase; export out.key; export"
    " z.key; import out.key --passphrase-file phrase --json; import nothing --passphrase-file"
    " phrase",
    "pairio-node logs": "-n 1; -n 1 --json; --path; --home nowhere",
    "pairio-node doctor": "",
    "pairio-node drain": "; --json",
    "pairio-node run": "--no-watchdog --listen nonsense; --no-watchdog --cpus=-1",
}
#: It runs a network: tests/integration/test_network.py.
ELSEWHERE = {"pairio demo"}


def _cases() -> Iterator[tuple[str, list[str]]]:
    for command, all_arguments in CASES.items():
        yield command, [arguments.strip() for arguments in all_arguments.split(";")]


def _plain(text: str) -> str:
    """Return what is printed without what is another each time."""
    text = text.replace(os.getcwd(), "/here").replace(os.environ["PAIRIO_HOME"], "/home")
    text = re.sub(r"[0-9a-f]{64}", "<public key>", re.sub(r"\d+\.\d\ds", "0.00s", text))
    text = re.sub(r"12D3KooW\w{44}", "<peer>", text)
    return re.sub(r"\b(?:[a-z]{5}-){5}[a-z]{5}\b", "<fingerprint>", text)


@pytest.fixture(autouse=True)
def in_greenwich(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Print times of day the same everywhere."""
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, node: FakeNode) -> None:
    """Lay files out that the commands below name; a home with a key and a log."""
    folder, home = tmp_path / "here", Home.open(Path(os.environ["PAIRIO_HOME"]))
    folder.mkdir()
    monkeypatch.chdir(folder)
    Path("file.txt").write_text("abc")
    Path("phrase").write_text("correct horse\n")
    admins._log_file(Path("log.json"))
    (home.path / "node.log").write_text("one\ntwo\n")


def _prepare(command: str, node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the world be as a command needs it."""
    home = os.environ["PAIRIO_HOME"]
    if command == "get":
        given = results.Content(node)
        given.job(one=given.file(b"1"), two=given.file(b"two"))
    if command == "pairio-node drain":
        states = [{"home": home, "running": n} for n in (2, 1, 1)]
        node.on("GET", "/status", [*states, Raw(b"gone", cut=0)])
        node.on("POST", "/drain", {"running": 2})
        monkeypatch.setattr("pairio_cli.node_main._DRAIN_LOOK_S", 0)
    if command == "pairio-node doctor":
        denied = ProbeResult(False, "bubblewrap is not installed", "apt install bubblewrap")

        async def gather(_: Path) -> Facts:
            return Facts(home="/home", home_file_system="ext4", runners={"bwrap": denied})

        monkeypatch.setattr("pairio_node.doctor_facts.gather", gather)


@pytest.mark.parametrize(("command", "rows"), list(_cases()), ids=lambda v: str(v)[:30])
def test_what_a_command_prints_is_as_it_was(
    command: str,
    rows: list[str],
    node: FakeNode,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    program = "pairio-node" if command.startswith("pairio-node") else "pairio"
    words = command.removeprefix("pairio-node ")
    shown = []
    for row in rows:
        _answers(node)
        _prepare(command, node, monkeypatch)
        ran = run(*words.split(), *row.split(), program=program)
        shown.append(f"$ {program} {words} {row}".rstrip())
        shown += ["-- stdout", _plain(ran.out), "-- stderr", _plain(ran.err), f"-- {ran.code}\n\n"]
    file = FOLDER / f"{command.replace(' ', '-')}.txt"
    text = "\n".join(shown)
    if os.environ.get("PAIRIO_SNAPSHOTS") == "write":
        FOLDER.mkdir(exist_ok=True)
        file.write_text(text)
    assert text == file.read_text()


def test_every_command_has_a_snapshot() -> None:
    shown = "".join(file.read_text() for file in FOLDER.iterdir())
    lines = [line + " " for line in shown.splitlines() if line.startswith("$ ")]
    without = {
        name for name in COMMANDS if not any(line.startswith(f"$ {name} ") for line in lines)
    }
    assert without == ELSEWHERE


def _shown() -> Iterator[tuple[str, str, str, int]]:
    """Yield (command, stdout, stderr, code) of everything that is shown."""
    for file in sorted(FOLDER.iterdir()):
        for block in re.split(r"^\$ ", file.read_text(), flags=re.M)[1:]:
            command, out, err, code = re.split(r"\n-- (?:stdout|stderr|(?=\d))", block)
            yield command, out, err, int(code)


def test_every_error_says_what_to_do_and_nothing_else_says_error() -> None:
    reports = ("pairio-node doctor",)  # what is missing is its data
    codes = set()
    for command, _, err, code in _shown():
        codes.add(code)
        if command in reports:
            continue
        said = err.strip().splitlines() or [""]
        has_error = any(line.startswith("error: ") for line in said)
        assert has_error == (code != 0), command
        assert code == 0 or said[-1].startswith("hint: "), command
    assert codes == {0, 1, 2, 3, 4}


@pytest.mark.parametrize("name", COMMANDS)
def test_an_unknown_option_is_usage(name: str, node: FakeNode, run: Run) -> None:
    program, *words = name.split()
    wrong = run(*words, "--nonsense", program=program)
    assert (wrong.code, wrong.out) == (2, "")
    assert wrong.err.startswith("error: ")
    assert "--nonsense" in wrong.err
    assert wrong.err.endswith(f"\n\nhint: {name} --help\n")
    assert node.asked == []
