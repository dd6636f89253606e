"""Where a secret may be found when its job is over: nowhere. Real nodes, a real sandbox."""

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import RunningNode, launch

pytestmark = pytest.mark.integration
VALUE = "correct horse battery 71"
APP = """
import json, os, sys, time
job = json.load(open(os.environ["PAIRIO_JOB_FILE"]))
token = open(os.environ["PAIRIO_SECRETS_DIR"] + "/TOKEN").read()
print("the token is", token, flush=True)
if job["processor"] == "fails":
    sys.exit("failed with " + token)
time.sleep(600 if job["processor"] == "lasts" else 3)
open(job["outputs"][0]["path"], "w").write(str(len(token)))
"""


def _ready(home: Path) -> RunningNode:
    app = home.with_name("app")
    app.mkdir()
    (app / "main.py").write_text(APP)
    processors = [
        {
            "name": name,
            "executable": "main.py",
            "inputs": [],
            "outputs": [{"name": "output"}],
            "secrets": ["TOKEN"],
        }
        for name in ("tells", "fails", "lasts")
    ]
    (app / "spec.json").write_text(json.dumps({"name": "teller", "processors": processors}))
    node = launch(home)
    assert node.cli("service", "create", "lab").returncode == 0
    installed = node.cli("app", "install", "lab", str(app))
    assert installed.returncode == 0, installed.stderr
    return node


def _submit(node: RunningNode, name: str) -> str:
    path = node.home.with_name("token")
    path.write_text(VALUE)
    done = node.cli("submit", f"teller/{name}", "--secret", f"TOKEN=@{path}")
    path.unlink()
    assert done.returncode == 0, done.stderr
    assert VALUE not in done.stdout + done.stderr
    return done.stdout.strip()


def _shown(node: RunningNode, job: str) -> Any:
    return json.loads(node.cli("job", "show", job, "--json").stdout)


def _wait_for(look: Callable[[], Any]) -> Any:
    ends = time.monotonic() + 120
    while not (found := look()):
        assert time.monotonic() < ends
        time.sleep(0.2)  # house: waiting for another process
    return found


def _said(node: RunningNode, job: str) -> str:
    """Return all that is told of a job."""
    told = [node.cli("job", *words, job) for words in (["show"], ["logs"], ["why"])]
    told.append(node.cli("job", "show", job, "--json"))
    return "".join(done.stdout + done.stderr for done in told) + json.dumps(node.get("status"))


def _holding(folder: Path) -> list[str]:
    """Return the files in which the value stands."""
    found = []
    for path in folder.rglob("*"):
        try:
            if path.is_file() and VALUE.encode() in path.read_bytes():
                found.append(path.relative_to(folder).as_posix())
        except FileNotFoundError:
            continue  # gone meanwhile
    return found


def _begun(node: RunningNode, job: str) -> bool:
    return "[secret TOKEN]" in node.cli("job", "logs", job).stdout


def _is_over(node: RunningNode, job: str, status: str) -> None:
    _wait_for(lambda: _shown(node, job)["status"] == status)
    assert VALUE not in _said(node, job)
    _wait_for(lambda: not _holding(node.home.parent))


def test_a_secret_is_nowhere_after_a_success_a_failure_and_a_cancel(tmp_path: Path) -> None:
    node = _ready(tmp_path / "a")
    try:
        job = _submit(node, "tells")
        _is_over(node, job, "completed")
        assert node.cli("get", job, "output").stdout == str(len(VALUE))
        assert "[secret TOKEN]" in node.cli("job", "logs", job).stdout
        _is_over(node, _submit(node, "fails"), "failed")
        job = _submit(node, "lasts")
        _wait_for(lambda: _begun(node, job))
        held = _holding(tmp_path)  # for a restart of the submitter, and there alone
        assert held
        assert all(path.startswith("a/secrets/") for path in held)
        assert node.cli("job", "cancel", job).returncode == 0
        _is_over(node, job, "canceled")
    finally:
        node.stop()
    assert _holding(tmp_path) == []


def test_a_secret_is_nowhere_after_its_node_was_killed_and_came_back(tmp_path: Path) -> None:
    node = _ready(tmp_path / "a")
    job = _submit(node, "lasts")
    _wait_for(lambda: _begun(node, job))
    node.process.send_signal(signal.SIGKILL)
    node.process.wait(20)
    assert node.process.stdout is not None
    node.process.stdout.close()
    assert all(path.startswith("a/secrets/") for path in _holding(tmp_path))
    again = launch(node.home)
    try:
        assert again.cli("job", "cancel", job).returncode == 0
        _is_over(again, job, "canceled")
    finally:
        again.stop()
    assert _holding(tmp_path) == []
