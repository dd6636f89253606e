"""Restarts with real nodes: what a running job, its node and its watchdog do when one of them goes.

Each job writes a line when it starts: a line too many is a job that ran twice.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from pairio_cli.watchdog import last_words
from pairio_node.runner.supervisor.runfile import read
from tests.integration.chaos.nodes import Node
from tests.integration.waiting import until

pytestmark = pytest.mark.integration

#: Longer than a test waits for anything: such a job ends when it is let go.
_LONG_S = 110.0
_APP = {
    "name": "slow",
    "description": "Says that it starts, and takes its time",
    "processors": [
        {
            "name": "slow",
            "description": "Says that it starts, and takes its time",
            "label": "Slow",
            "image": "",
            "executable": "/app/job.py",
            "inputs": [],
            "outputs": [{"name": "output", "description": "A word"}],
            "parameters": [
                {"name": "seconds", "type": "float", "description": "How long"},
                {"name": "mark", "type": "str", "description": "Where to say so"},
            ],
            "attributes": [],
        }
    ],
}
_JOB = """
import json, os, time
job = json.load(open(os.environ["PAIRIO_JOB_FILE"]))
given = {p["name"]: p["value"] for p in job["parameters"]}
if os.path.isdir(os.path.dirname(given["mark"])):
    with open(given["mark"], "a") as file:
        file.write("started\\n")
print("it has started", flush=True)
ends = time.monotonic() + given["seconds"]
while time.monotonic() < ends and not os.path.exists(os.environ["TMPDIR"] + "/go"):
    time.sleep(0.02)
with open(job["outputs"][0]["path"], "w") as file:
    file.write("done")
"""


class RestartNode(Node):
    """A node with one service and the app; without bwrap on the PATH its jobs are processes."""

    def __init__(self, folder: Path, runner: str, name: str = "n", **settings: Any) -> None:
        super().__init__(name, folder)
        self.folder = folder
        self.runner = runner
        self.mark = folder / "mark"
        self.settings |= settings
        tools = folder / "bin"
        tools.mkdir(exist_ok=True)
        for tool in ("prlimit", "sh", "env"):
            if not (tools / tool).exists():
                (tools / tool).symlink_to(str(shutil.which(tool)))
        (folder / "app").mkdir(exist_ok=True)
        (folder / "app" / "spec.json").write_text(json.dumps(_APP))
        (folder / "app" / "job.py").write_text(_JOB)

    @property
    def environment(self) -> dict[str, str]:
        found = super().environment
        return {**found, "PATH": str(self.folder / "bin")} if self.runner == "process" else found

    def begin(self) -> None:
        self.start()
        self.wait_ready()
        assert self.call("GET", "status")["runners"] == [self.runner]

    def found_service(self) -> None:
        self.call("POST", "services", {"name": "lab"})
        self.call("POST", "services/lab/apps", {"source": str(self.folder / "app")})

    def begin_job(self, seconds: float, worker: "RestartNode | None" = None) -> str:
        """Submit a job and return its request when it runs, here or at another node."""
        request = self.submit(seconds)
        until("the job says that it has started", (worker or self).console_of_job)
        return request

    def submit(self, seconds: float) -> str:
        """Submit a job and return its request."""
        definition = {
            "appName": "slow",
            "processorName": "slow",
            "inputFiles": [],
            "outputFiles": [{"name": "output", "fileBaseName": "output.txt"}],
            "parameters": [
                {"name": "seconds", "value": seconds},
                {"name": "mark", "value": str(self.mark)},
            ],
        }
        return str(self.call("POST", "jobs", {"jobDefinition": definition})["requestId"])

    def job(self, request: str) -> dict[str, Any]:
        return dict(self.call("GET", f"jobs/{request}"))

    def let_go(self) -> None:
        """Let the job that runs here come to its end, however long it was to take."""
        (folder,) = self.folders()
        (folder / "tmp/working/tmp/go").touch()

    def finished(self, request: str) -> dict[str, Any]:
        until("the job has ended", lambda: self.job(request)["status"] == "completed")
        return self.job(request)

    def folders(self) -> list[Path]:
        return list((self.home / "jobs").iterdir())

    def console_of_job(self) -> bool:
        return any(b"it has started" in path.read_bytes() for path in self._consoles())

    def _consoles(self) -> list[Path]:
        return [path for path in (self.home / "jobs").glob("*/console") if path.is_file()]

    @property
    def watchdog(self) -> "subprocess.Popen[bytes]":
        assert self._process is not None
        return self._process

    def command(self, *words: str) -> "subprocess.CompletedProcess[str]":
        """Run `pairio-node` with these words for this home."""
        argv = [sys.executable, "-c", "from pairio_cli.node_main import main; main()", *words]
        return subprocess.run(argv, env=self.environment, capture_output=True, text=True)

    def status_text(self) -> str:
        return self.command("status").stdout

    def ran_once(self, job: dict[str, Any]) -> None:
        assert [a["ended"] for a in job["attempts"]] == ["completed"], job["attempts"]
        if self.runner == "process":
            assert self.mark.read_text() == "started\n"


MakeNode = Callable[..., RestartNode]


@pytest.fixture
def make_node(tmp_path: Path) -> Iterator[MakeNode]:
    """Make and begin a node; everything of it is killed with the test."""
    made: list[RestartNode] = []

    def make(runner: str = "process", **settings: Any) -> RestartNode:
        node = RestartNode(tmp_path, runner, **settings)
        made.append(node)
        node.begin()
        if "bootstrap" not in settings:
            node.found_service()
        return node

    yield make
    for node in made:
        node.kill()


each_runner = pytest.mark.parametrize(
    "runner",
    [
        "process",
        pytest.param(
            "bwrap",
            marks=pytest.mark.skipif(not shutil.which("bwrap"), reason="bubblewrap is missing"),
        ),
    ],
)


@each_runner
def test_a_killed_node_is_started_again_and_its_job_goes_on(
    make_node: MakeNode, runner: str
) -> None:
    node = make_node(runner, listen=["/ip4/127.0.0.1/tcp/0"])
    before = node.call("GET", "status")
    request = node.begin_job(_LONG_S)
    node.crash()
    until("the node is back", node.answers)
    after = node.call("GET", "status")
    assert (before["restarts"], before["lastCrash"]) == (0, None)
    assert (after["restarts"], after["lastCrash"]["reason"]) == (1, "killed by SIGKILL")
    assert (after["addresses"], after["apiUrl"]) == (before["addresses"], before["apiUrl"])
    assert after["counters"]["runs adopted"] == 1
    node.let_go()
    node.ran_once(node.finished(request))
    until("the job's folder is gone", lambda: node.folders() == [])
    shown = node.status_text()
    assert "restarts   1; the last crash was at 20" in shown
    assert "killed by SIGKILL" in (node.home / "crashes.log").read_text()
    assert len((node.home.parent / "n.out").read_text().splitlines()) == 1


@each_runner
def test_a_stopped_node_takes_its_job_up_when_it_comes_back(
    make_node: MakeNode, runner: str
) -> None:
    node = make_node(runner)
    request = node.begin_job(_LONG_S)
    assert node.stop() == 0
    assert [p for p in node.processes() if "job.py" in " ".join(p.cmdline())]
    node.start()
    node.wait_ready()
    assert node.job(request)["status"] == "running"
    node.let_go()
    node.ran_once(node.finished(request))


def test_a_submitter_elsewhere_sees_one_attempt_go_on(make_node: MakeNode) -> None:
    first = make_node(name="a", compute=False)
    worker = make_node(name="b", bootstrap=[first.address])
    member = {"who": worker.peer, "roles": ["compute"], "name": "b"}
    first.call("POST", "services/lab/grant", member)
    request = first.begin_job(_LONG_S, worker)
    worker.crash()
    until("the node is back", worker.answers)
    until("it is told to go on", lambda: first.job(request)["status"] == "running")
    assert worker.stop() == 0
    worker.start()
    worker.wait_ready()
    worker.let_go()
    first.ran_once(first.finished(request))


def test_two_restarts_in_a_row_and_a_job_that_ended_meanwhile(make_node: MakeNode) -> None:
    node = make_node()
    request = node.begin_job(_LONG_S)
    node.crash()
    until("the node is back", node.answers)
    assert node.stop() == 0
    (folder,) = node.folders()
    node.let_go()
    until("the job has ended without a node", lambda: read(folder).outcome is not None)
    until("so has its supervisor", lambda: node.processes() == [])
    node.start()
    node.wait_ready()
    node.ran_once(node.finished(request))
    until("the job's folder is gone", lambda: node.folders() == [])


@each_runner
def test_a_job_whose_node_does_not_come_back_ends_with_the_grace(
    make_node: MakeNode, runner: str
) -> None:
    node = make_node(runner, restart_grace_s=4)
    request = node.begin_job(60)
    began = time.monotonic()
    assert node.stop() == 0
    until("no process is left", lambda: node.processes() == [], 60)
    assert time.monotonic() - began >= 4
    (folder,) = node.folders()
    # What the run needed and made is gone; its end is there for the node to tell the service.
    assert {path.name for path in folder.iterdir()} == _END_OF_A_RUN
    node.start()
    node.wait_ready()
    until("the run is given up", lambda: _ends(node, request)[:1] == ["yield"], 60)
    assert node.job(request)["attempts"][0]["reason"] == "its node was away too long"
    until("the run goes on as another", lambda: len(_ends(node, request)) == 2, 60)
    node.call("POST", f"jobs/{request}/cancel")
    until("the folders are gone", lambda: node.folders() == [], 60)


#: Card and outcome of a run that was given up, and what its supervisor said.
_END_OF_A_RUN = {"run.jsonl", "supervisor.err"}


def _ends(node: RestartNode, request: str) -> list[str | None]:
    return [attempt["ended"] for attempt in node.job(request)["attempts"]]


def test_a_killed_watchdog_takes_everything_with_it(make_node: MakeNode) -> None:
    node = make_node(restart_grace_s=1)
    node.begin_job(60)
    pid = node.pid()
    os.kill(node.watchdog.pid, signal.SIGKILL)
    node.watchdog.wait(30)
    until("the node has ended", lambda: not psutil.pid_exists(pid))
    until("no process is left", lambda: node.processes() == [], 60)
    (folder,) = node.folders()
    assert {path.name for path in folder.iterdir()} == _END_OF_A_RUN


@each_runner
def test_an_adopted_job_is_canceled_within_a_second(make_node: MakeNode, runner: str) -> None:
    node = make_node(runner)
    request = node.begin_job(60)
    node.crash()
    until("the node is back", node.answers)
    (job,) = [p for p in node.processes() if p.cmdline()[-1].endswith("job.py")][-1:]
    began = time.monotonic()
    node.call("POST", f"jobs/{request}/cancel")
    until("the job has ended", lambda: not job.is_running(), 5)
    assert time.monotonic() - began < 1
    until("the folder is gone", lambda: node.folders() == [])
    assert node.job(request)["status"] == "canceled"


def test_jobs_that_are_to_yield_end_with_their_node_and_are_run_again(make_node: MakeNode) -> None:
    node = make_node(restart_grace_s=0)
    request = node.begin_job(_LONG_S)
    assert node.stop() == 0  # which waits less than the job would take
    assert (node.processes(), node.folders()) == ([], [])
    node.start()
    node.wait_ready()
    until("it runs again", node.console_of_job)
    node.let_go()
    job = node.finished(request)
    assert [a["ended"] for a in job["attempts"]] == ["yield", "completed"], job["attempts"]
    assert job["attempts"][0]["reason"] == "its node stops"


def test_a_node_that_drains_sees_its_job_to_the_end_and_stops(make_node: MakeNode) -> None:
    node = make_node()
    request = node.begin_job(6)
    drained = node.command("drain")
    assert drained.returncode == 0, drained.stderr
    assert "The node has stopped; no job of it is left (" in drained.stderr.splitlines()[-1]
    assert node.watchdog.wait(60) == 0
    assert (node.processes(), node.folders()) == ([], [])
    node.start()
    node.wait_ready()
    node.ran_once(node.job(request))


def test_a_node_that_drains_gives_up_what_takes_too_long_and_takes_no_more(
    make_node: MakeNode,
) -> None:
    first = make_node(name="a", compute=False)
    worker = make_node(name="b", bootstrap=[first.address])
    member = {"who": worker.peer, "roles": ["compute"], "name": "b"}
    first.call("POST", "services/lab/grant", member)
    long = first.begin_job(70, worker)
    assert worker.call("POST", "drain", {})["running"] == 1
    assert worker.call("GET", "status")["draining"] is True
    next_one = first.submit(71)
    time.sleep(2)  # nothing is to happen meanwhile
    assert worker.call("GET", "status")["running"] == 1
    assert worker.command("drain", "--wait-sec", "0").returncode == 0
    assert worker.watchdog.wait(60) == 0
    assert (worker.processes(), worker.folders()) == ([], [])
    until("its end is told", lambda: _ends(first, long) == ["yield"], 60)
    assert _ends(first, next_one) == []


def test_ctrl_c_for_the_group_ends_everything_once(make_node: MakeNode) -> None:
    node = make_node()
    os.killpg(node.watchdog.pid, signal.SIGINT)
    assert node.watchdog.wait(10) == 0
    assert node.processes() == []
    assert "Traceback" not in node.log_tail(200)
    assert not (node.home / "crashes.log").exists()


# -- the watchdog alone -----------------------------------------------------------------------


def _watch(home: Path, script: str) -> "subprocess.Popen[str]":
    """Start a watchdog whose node is a shell script; `$tries` counts its starts."""
    home.mkdir()
    node = home / "node.sh"
    node.write_text(f"#!/bin/sh\ncd {home}; echo x >> tries; tries=$(wc -l < tries)\n{script}\n")
    node.chmod(0o755)
    code = "import sys; from pathlib import Path; from pairio_cli.watchdog import watch\n"
    code += "sys.executable = sys.argv[2]; sys.exit(watch(Path(sys.argv[1]), ['run']))"
    return subprocess.Popen(
        [sys.executable, "-c", code, str(home), str(node)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _tries(home: Path) -> int:
    return len((home / "tries").read_text().splitlines()) if (home / "tries").exists() else 0


def _crashes(home: Path) -> int:
    log = home / "crashes.log"
    return log.read_text().count("it is started again") if log.exists() else 0


def test_a_node_that_always_crashes_is_given_up(tmp_path: Path) -> None:
    home = tmp_path / "home"
    dog = _watch(home, "echo ready $tries; kill -SEGV $$")
    out, err = dog.communicate(timeout=30)
    assert (dog.returncode, _tries(home)) == (3, 5)
    assert out == "ready 1\n"
    assert "error: the node crashed 5 times in 10 minutes" in err
    assert str(home / "crashes.log") in err
    assert (home / "crashes.log").read_text().count("killed by SIGSEGV") == 5


@pytest.mark.parametrize("code", [0, 1, 2])
def test_a_clean_end_and_a_mistake_are_not_tried_again(tmp_path: Path, code: int) -> None:
    dog = _watch(tmp_path / "home", f"exit {code}")
    dog.communicate(timeout=30)
    assert (dog.returncode, _tries(tmp_path / "home")) == (code, 1)


def test_a_signal_between_two_starts_ends_the_watchdog(tmp_path: Path) -> None:
    home = tmp_path / "home"
    dog = _watch(home, "exit 3")
    until("it waits before the fifth start", lambda: _crashes(home) == 4, 10)
    dog.terminate()
    dog.communicate(timeout=30)
    assert (dog.returncode, _tries(home)) == (128 + signal.SIGTERM, 4)


def test_the_log_of_crashes_is_bounded_and_names_the_error(tmp_path: Path) -> None:
    home = tmp_path / "home"
    script = "yes 'a long line of a stack' | head -c 100000 > crash.part;"
    script += " printf '\\nValueError: boom %s\\n' $tries >> crash.part; exit 3"
    dog = _watch(home, script)
    dog.communicate(timeout=30)
    log = (home / "crashes.log").read_text()
    assert "Z ValueError: boom 5; it is not started again" in log
    assert len(log) <= 64 * 1024


def test_last_words_are_the_traceback_of_what_nobody_expected(tmp_path: Path) -> None:
    with pytest.raises(ExceptionGroup), last_words(tmp_path):
        raise ExceptionGroup("tasks", [ValueError("boom")])
    lines = (tmp_path / "crash.part").read_text().splitlines()
    assert lines[-1] == "ValueError: boom"
    assert any("test_restart.py" in line for line in lines)
