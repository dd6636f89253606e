"""Results that outlive their makers: got and verified by a node that was not there before, and
carried by file, through a real Kubo too."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import RunningNode, StartNode
from tests.integration.kubo import StartKubo

pytestmark = pytest.mark.integration
SERVICE = "lab"


def _until(what: str, is_so: Callable[[], Any], timeout_s: float = 60.0) -> None:
    ends = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < ends, what
        time.sleep(0.05)  # house: waiting for another process


def _done(node: RunningNode, *arguments: str) -> str:
    ran = node.cli(*arguments)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def _two_jobs(node: RunningNode) -> dict[str, Any]:
    """Run a job that rests on another; return it."""
    first = json.loads(_done(node, "submit", "hello_world/hello_world_2", "--wait", "--json"))
    source = f"input=job:{first['jobId']}/output"
    made = _done(node, "submit", "hello_world/count_characters", "-i", source, "--wait", "--json")
    job: dict[str, Any] = json.loads(made)
    assert job["status"] == "completed"
    return job


def _network(start_node: StartNode) -> tuple[RunningNode, RunningNode, dict[str, Any]]:
    """A node that submits, another that computes, and the second of two jobs."""
    first = start_node("first", "--no-compute")
    _done(first, "service", "create", SERVICE)
    _done(first, "app", "install", SERVICE, "hello_world")
    worker = start_node("worker")
    _done(worker, "join", _done(first, "service", "invite", SERVICE).split()[0], "--name", "bob")
    job = _two_jobs(first)
    assert job["computeNodeId"] == worker.info["peerId"]
    return first, worker, job


def test_a_result_outlives_the_node_that_computed_it(start_node: StartNode, tmp_path: Path) -> None:
    """The demo: the worker is killed after completion; a third node, which was not there before,
    gets the result by job id and verifies it."""
    first, worker, job = _network(start_node)
    assert job["safe"]
    worker.process.kill()
    worker.process.communicate(timeout=15)
    third = start_node("third", "--no-compute")
    link = _done(first, "service", "invite", SERVICE).split()[0]
    _done(third, "join", link, "--name", "carl")
    _until("the job is known", lambda: third.cli("get", job["jobId"], "output").returncode == 0)
    target = tmp_path / "count.json"
    assert _done(third, "get", job["jobId"], "output", "-o", str(target)) == f"{target}\n"
    assert json.loads(target.read_text()) == {"count": 13}
    told = json.loads(_done(third, "verify", job["jobId"], "--json"))
    assert told["verified"]
    by = [c["by"][0]["member"] for c in told["checks"] if c["check"] == "result"]
    assert by == ["bob", "bob"]
    lines = _done(third, "job", "provenance", job["jobId"], "--format", "in-toto").splitlines()
    statement, _ = lines
    assert json.loads(statement)["_type"] == "https://in-toto.io/Statement/v1"
    output = job["outputFileResults"][0]["cid"]
    [found] = json.loads(_done(third, "job", "ls", "--output", output, "--json"))
    assert found["jobId"] == job["jobId"]
    # All of it is here now: nobody is needed any more.
    assert first.stop() == 0
    assert json.loads(_done(third, "verify", job["jobId"], "--offline", "--json"))["verified"]


def test_a_file_carries_a_result_to_a_node_and_to_anybody_else(
    start_node: StartNode, tmp_path: Path
) -> None:
    first, worker, job = _network(start_node)
    car, block = tmp_path / "result.car", job["outputFileResults"][0]["cid"]
    assert _done(first, "export", job["jobId"], "-o", str(car)) == f"{car}\n"
    assert worker.stop() == 0
    assert first.stop() == 0
    stranger = start_node("stranger")  # of no service: it has the content, and may verify
    assert "is not in service" in stranger.cli("import", str(car)).stderr
    assert json.loads(_done(stranger, "get", block, "-o", "-")) == {"count": 13}
    assert "verified  completed: 2 results" in _done(stranger, "verify", str(car))
    assert stranger.stop() == 0
    assert "verified  completed: 2 results" in _done(stranger, "verify", str(car))  # no node at all
    data = bytearray(car.read_bytes())
    data[len(data) // 2] ^= 1
    car.write_bytes(data)
    broken = stranger.cli("verify", str(car))
    assert broken.returncode == 1
    assert "the chain breaks at" in broken.stderr


def test_a_tampered_block_on_a_nodes_disk_is_caught(start_node: StartNode) -> None:
    first, worker, job = _network(start_node)
    cid = job["outputFileResults"][0]["cid"]
    for node in (first, worker):
        for file in (node.home / "blocks").rglob(cid):
            file.write_bytes(b'{"count": 14}')
    broken = first.cli("verify", job["jobId"], "--offline")
    assert broken.returncode == 1
    assert f"the chain breaks at output: block {cid} holds other bytes" in broken.stderr


def test_kubo_reads_the_same_file(
    start_node: StartNode, start_kubo: StartKubo, tmp_path: Path
) -> None:
    first, _, job = _network(start_node)
    car = tmp_path / "result.car"
    _done(first, "export", job["jobId"], "-o", str(car))
    result = json.loads(_done(first, "verify", job["jobId"], "--json"))["resultCid"]
    kubo = start_kubo()
    imported = kubo.cli("dag", "import", "--stats", str(car)).stdout.decode()
    assert "Pinned root" in imported, imported
    root = next(word for word in imported.split() if word.startswith("bafyrei"))
    output = job["outputFileResults"][0]["cid"]
    found = json.loads(kubo.cli("dag", "get", f"{result}/outputs/output").stdout)
    assert found["cid"] == {"/": output}
    assert json.loads(kubo.cli("cat", output).stdout) == {"count": 13}
    assert json.loads(kubo.cli("dag", "get", f"{result}/job/processor").stdout) == (
        "count_characters"
    )
    # Kubo's own file of it is verified too: the blocks come in another order.
    again = tmp_path / "kubo.car"
    again.write_bytes(kubo.cli("dag", "export", root).stdout)
    assert "verified  completed: 2 results" in _done(first, "verify", str(again))
    assert "2 results count" in first.cli("import", str(again)).stderr
