"""The command line with real nodes: a job is planned, followed, explained, drawn, written down, and
submitted again by the program that it was written as."""

import json
import subprocess
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from pairio.errors import NotFound
from tests.integration.cancel_lab import until
from tests.integration.conftest import RunningNode
from tests.integration.console_delay import pair

pytestmark = pytest.mark.integration

STEPS = """\
- name: greet
  job: hello_world/hello_world_2
  parameters: {name: Ada}
- job: hello_world/count_characters
  inputs: {input: "step:greet/output"}
  batch: nightly
"""


def test_a_job_from_plan_to_program(tmp_path: Path) -> None:
    with ExitStack() as stack:
        node, other = pair(tmp_path, stack)
        assert node.cli("app", "install", "lab", "hello_world").returncode == 0
        talk = ("submit", "talker/talk", "-p", "lines=3", "-p", "mean_ms=20")
        planned = node.cli(*talk, "--dry-run")
        assert "a miss: no result" in planned.stderr
        followed = node.cli(*talk, "--follow", "--timeout", "50")
        assert (followed.returncode, followed.stdout) == (0, planned.stdout), followed.stderr
        assert [f"line {n} " in followed.stderr for n in range(3)] == [True] * 3
        job_id = followed.stdout.strip()
        assert "a hit" in node.cli(*talk, "--dry-run").stderr
        logs = [each.cli("job", "logs", "-f", job_id) for each in (node, other)]
        assert logs[0].stdout == logs[1].stdout
        assert logs[0].stdout.count("line ") == 3

        file = tmp_path / "steps.yaml"
        file.write_text(STEPS)
        made = node.cli("submit", "--file", str(file), "--wait")
        assert made.returncode == 0, made.stderr
        first, last = made.stdout.split()
        drawn = node.cli("job", "graph", last).stdout
        assert "└─ input <- output of hello_world/hello_world_2" in drawn
        assert first[-10:] in drawn
        program = node.cli("job", "script", last)
        again = subprocess.run(
            [sys.executable, "-c", program.stdout],
            env=node.environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert (again.returncode, again.stdout) == (0, f"{last}\n"), again.stderr
        assert "computes" in node.cli("node", "ls").stdout
        assert node.cli("batch", "wait", "nightly").stdout == "1 completed\n"
        assert node.cli("job", "rm", last).returncode == 0
        assert last[-10:] not in node.cli("job", "ls").stdout
        log = other.cli("logs", program="node_main")
        assert f"run begins: talker/talk, job {job_id}" in log.stdout


SLOW = """\
import time
print("[progress] 40.0% fitting", flush=True)
time.sleep(3600)
"""
SPEC = {
    "name": "slow",
    "processors": [{"name": "slow", "executable": "main.py", "inputs": [], "outputs": []}],
}


def test_how_far_a_job_is_comes_from_where_it_runs(tmp_path: Path) -> None:
    with ExitStack() as stack:
        node, other = pair(tmp_path, stack)
        app = tmp_path / "slow"
        app.mkdir()
        (app / "main.py").write_text(SLOW)
        (app / "spec.json").write_text(json.dumps(SPEC))  # the newer one: it is taken as it is
        assert node.cli("app", "install", "lab", str(app)).returncode == 0
        job_id = node.cli("submit", "slow/slow").stdout.strip()
        for each in (node, other):  # who submitted, and who runs it
            until("it is said", partial(_is_said, each, job_id))
            assert "status     running 40%" in each.cli("job", "show", job_id).stdout
        assert "running 40%" in node.cli("job", "ls").stdout
        assert "[progress] 40.0% fitting" in node.cli("job", "logs", job_id).stdout
        assert node.cli("job", "cancel", job_id).returncode == 0


def _is_said(node: RunningNode, job_id: str) -> bool:
    try:
        return bool(node.get(f"jobs/{job_id}")["progress"] == 0.4)
    except NotFound:  # it has not come there yet
        return False
