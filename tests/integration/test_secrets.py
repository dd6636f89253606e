"""Where a secret may be found when its job is over: nowhere. Real nodes, a real sandbox."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pairio.client import Client
from pairio.errors import InvalidRequest, JobFailed
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


#: The same, of an app that waits for jobs.
WARM_APP = """
import sys, time
from pairio.sdk import App, BaseModel, Field, OutputFile, ProcessorBase, get_secret

class Context(BaseModel):
    output: OutputFile = Field(description="A number")

def run(name, context):
    token = get_secret("TOKEN")
    print("the token is", token, flush=True)
    if name == "fails":
        sys.exit("failed with " + token)
    time.sleep(600 if name == "lasts" else 1)
    open("made", "w").write(str(len(token)))
    context.output.upload("made")

app = App("teller")
for each in ("tells", "fails", "lasts"):
    class Teller(ProcessorBase):
        name = each
        secrets = ["TOKEN"]
        @staticmethod
        def run(context: Context, each=each):
            run(each, context)
    app.add_processor(Teller)
app.run()
"""


def _ready(home: Path, program: str = APP) -> RunningNode:
    app = home.with_name("app")
    app.mkdir()
    (app / "main.py").write_text(program)
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
    # `rglob` fails when a folder of a job goes meanwhile.
    for path in (Path(base, name) for base, _, names in os.walk(folder) for name in names):
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


def _warm(node: RunningNode) -> Any:
    found = node.get("status")["warm"]
    return found[0] if found else {"workers": "cold", "jobsWarm": 0}


def test_a_secret_of_a_warm_job_is_nowhere_either(tmp_path: Path) -> None:
    node = _ready(tmp_path / "a", WARM_APP)
    try:
        _is_over(node, _submit(node, "fails"), "failed")  # cold; its app is warm then
        _wait_for(lambda: _warm(node)["workers"] == "zygote")
        job = _submit(node, "tells")
        _is_over(node, job, "completed")
        assert node.cli("get", job, "output").stdout == str(len(VALUE))
        assert "[secret TOKEN]" in node.cli("job", "logs", job).stdout
        job = _submit(node, "lasts")
        _wait_for(lambda: _begun(node, job))
        assert _warm(node)["jobsWarm"] == 2
        held = _holding(tmp_path) + _holding(Path("/dev/shm"))
        assert held
        assert all(path.startswith("a/secrets/") for path in held)
    except BaseException:
        node.stop()
        raise
    # The job does not outlive its node, which takes the secret along.
    node.process.send_signal(signal.SIGKILL)
    node.process.wait(20)
    assert node.process.stdout is not None
    node.process.stdout.close()
    again = launch(node.home)
    try:
        _wait_for(lambda: [a["ended"] for a in _shown(again, job)["attempts"]][:1] == ["infra"])
        assert again.cli("job", "cancel", job).returncode == 0
        _is_over(again, job, "canceled")
    finally:
        again.stop()
    assert _holding(tmp_path) == []


def test_jobs_of_a_file_and_a_retried_batch_have_their_secrets(tmp_path: Path) -> None:
    node = _ready(tmp_path / "a")
    file = tmp_path / "jobs.yaml"
    file.write_text('job: teller/fails\nsecrets: {TOKEN: "@token"}\nbatch: nightly\n')
    (tmp_path / "token").write_text(VALUE)
    try:
        done = node.cli("submit", "--file", str(file))
        assert done.returncode == 0, done.stderr
        job = done.stdout.strip()
        _wait_for(lambda: _shown(node, job)["status"] == "failed")
        refused = node.cli("batch", "retry", "nightly")
        assert refused.returncode == 1
        assert "pairio batch retry nightly --secret TOKEN=@FILE" in refused.stderr
        given = f"TOKEN=@{tmp_path}/token"
        again = node.cli("batch", "retry", "nightly", "--secret", given)
        assert (again.returncode, again.stdout.strip()) == (0, job), again.stderr
        (tmp_path / "token").unlink()
        _wait_for(lambda: _shown(node, job)["status"] == "failed" and not _holding(tmp_path))
        assert "failed with [secret TOKEN]" in _shown(node, job)["error"]
        _retried_by_the_sdk(node)
        _wait_for(lambda: not _holding(tmp_path))
    finally:
        node.stop()
    assert _holding(tmp_path) == []


def _retried_by_the_sdk(node: RunningNode) -> None:
    info = json.loads((node.home / "api.json").read_text())
    with Client(info["url"], info["token"]) as client:
        batch = client.batch("nightly")
        with pytest.raises(InvalidRequest, match="TOKEN"):
            batch.retry_failed()
        assert batch.retry_failed(secrets={"TOKEN": VALUE}) > 0
        with pytest.raises(JobFailed, match=r"failed with \[secret TOKEN\]"):
            batch.results(120)
