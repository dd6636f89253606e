"""Restarts with real nodes while a warm job runs: it goes on in its worker, the node that comes
back takes it up, and it ends once."""

import shutil
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from pairio_node.runner.supervisor.runfile import read
from tests.integration.runner_lab import supervisor_of
from tests.integration.test_restart import RestartNode
from tests.integration.waiting import until

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(400),
    pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is missing"),
]
LONG_S = 120

_APP = """
import os
import time

from pairio.sdk import App, BaseModel, Field, OutputFile, ProcessorBase


class Context(BaseModel):
    output: OutputFile = Field(description="A word")
    seconds: float = Field(description="How long")
    mark: str = Field(description="Nothing")


class Slow(ProcessorBase):
    name = "slow"

    @staticmethod
    def run(context: Context) -> None:
        print("it has started", flush=True)
        ends = time.monotonic() + context.seconds
        while time.monotonic() < ends and not os.path.exists("/tmp/go"):
            time.sleep(0.05)
        with open("word", "w") as file:
            file.write("done")
        context.output.upload("word")
        print("it has ended", flush=True)


app = App("slow")
app.add_processor(Slow)
app.run()
"""


@pytest.fixture(params=["zygote", "single"])
def node(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RestartNode]:
    """A node whose app is warm, by either kind of worker."""
    made = RestartNode(tmp_path, "bwrap", warm="on" if request.param == "zygote" else "single")
    (tmp_path / "app" / "job.py").write_text(_APP)
    made.begin()
    try:
        made.found_service()
        made.finished(made.submit(0))
        until("its app is warm", lambda: _warm(made)["workers"] == request.param, LONG_S)
        yield made
    finally:
        made.kill()


def _warm(node: RestartNode) -> dict[str, Any]:
    (app,) = node.call("GET", "status")["warm"]
    return dict(app)


def _let_end(node: RestartNode) -> None:
    (folder,) = node.folders()
    (folder / "tmp" / "go").touch()


def _begun(node: RestartNode) -> tuple[str, psutil.Process]:
    """Begin a job that goes on until it is let end; return its request and its supervisor."""
    before = _warm(node)["jobsWarm"]
    request = node.begin_job(600)
    assert _warm(node)["jobsWarm"] == before + 1, _warm(node)
    until("the job before has left nothing", lambda: len(node.folders()) == 1, LONG_S)
    (folder,) = node.folders()
    return request, psutil.Process(supervisor_of(folder))


def _goes_on(node: RestartNode, request: str, supervisor: psutil.Process) -> None:
    """The job that began before goes on, ends once, and leaves nothing."""
    assert node.job(request)["status"] == "running"
    assert supervisor.is_running()
    _let_end(node)
    job = node.finished(request)
    assert [attempt["ended"] for attempt in job["attempts"]] == ["completed"], job["attempts"]
    with urllib.request.urlopen(job["consoleOutputUrl"]) as console:
        assert console.read() == b"it has started\nit has ended\n"
    until("the job's folder is gone", lambda: node.folders() == [], LONG_S)
    until("so is its supervisor", lambda: _has_ended(supervisor), LONG_S)


def _has_ended(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def _host_of(supervisor: psutil.Process) -> psutil.Process:
    """Return the host of the worker: what the supervisor was forked from."""
    host = supervisor.parent()
    assert host is not None
    return host


def _is_warm_again(node: RestartNode, kind: str, host: psutil.Process) -> None:
    """A host that was left saw its job to the end and goes; the node that is back has another."""
    until("the host that was left is gone", lambda: _has_ended(host), LONG_S)
    node.finished(node.submit(0.01))
    until("its app is warm again", lambda: _warm(node)["workers"] == kind, LONG_S)


def test_a_killed_node_comes_back_and_takes_its_warm_job_up(node: RestartNode) -> None:
    kind = _warm(node)["workers"]
    request, supervisor = _begun(node)
    host = _host_of(supervisor)
    node.crash()  # SIGKILL; its watchdog starts it again
    until("the node is back", node.answers, LONG_S)
    assert node.call("GET", "status")["counters"]["runs adopted"] == 1
    _goes_on(node, request, supervisor)
    _is_warm_again(node, kind, host)


def test_a_stopped_node_takes_its_warm_job_up_when_it_comes_back(node: RestartNode) -> None:
    kind = _warm(node)["workers"]
    request, supervisor = _begun(node)
    host = _host_of(supervisor)
    assert node.stop() == 0  # SIGTERM
    assert supervisor.is_running()
    node.start()
    node.wait_ready()
    _goes_on(node, request, supervisor)
    _is_warm_again(node, kind, host)


def test_a_warm_job_that_ended_without_a_node_is_told_once(node: RestartNode) -> None:
    request, supervisor = _begun(node)
    assert node.stop() == 0
    _let_end(node)
    (folder,) = node.folders()
    until("the job has ended without a node", lambda: read(folder).outcome is not None, LONG_S)
    until("nothing of it is left", lambda: node.processes() == [], LONG_S)
    node.start()
    node.wait_ready()
    job = node.finished(request)
    assert [attempt["ended"] for attempt in job["attempts"]] == ["completed"], job["attempts"]
    assert _has_ended(supervisor)


def test_a_warm_job_whose_node_does_not_come_back_ends_with_the_grace(node: RestartNode) -> None:
    node.settings["restart_grace_s"] = 3
    assert node.stop() == 0
    node.begin()
    kind = "zygote" if node.settings["warm"] == "on" else "single"
    node.finished(node.submit(0.02))
    until("its app is warm", lambda: _warm(node)["workers"] == kind, LONG_S)
    request, supervisor = _begun(node)
    assert node.stop() == 0
    until("the grace is over", lambda: _has_ended(supervisor), LONG_S)
    until("no process is left", lambda: node.processes() == [], LONG_S)
    node.start()
    node.wait_ready()
    ended = lambda: [a["ended"] for a in node.job(request)["attempts"]][:1] == ["yield"]  # noqa: E731
    until("the run is given up", ended, LONG_S)
    node.call("POST", f"jobs/{request}/cancel")
