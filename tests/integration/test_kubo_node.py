"""A node whose blocks are in a real Kubo: jobs run, `ipfs` reads them, an absent daemon is said."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import RunningNode, StartNode
from tests.integration.kubo import StartKubo
from tests.integration.waiting import until

pytestmark = pytest.mark.integration
GREET = "hello_world/hello_world_2"


def _done(node: RunningNode, *arguments: str) -> str:
    ran = node.cli(*arguments)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def _job(node: RunningNode, name: str) -> Any:
    return json.loads(_done(node, "submit", GREET, "-p", f"name={name}", "--wait", "--json"))


def _with_service(node: RunningNode) -> RunningNode:
    _done(node, "service", "create", "lab")
    _done(node, "app", "install", "lab", "hello_world")
    return node


def _ipfs(node: RunningNode) -> Any:
    return node.get("status")["ipfs"]


def test_a_node_computes_with_its_blocks_in_kubo_and_outlives_the_daemon(
    start_kubo: StartKubo, start_node: StartNode
) -> None:
    kubo = start_kubo()
    node = _with_service(start_node("node", "--ipfs", kubo.url))
    job = _job(node, "Ada")
    assert (job["status"], job["safe"]) == ("completed", False)  # no other member is there
    cid = job["outputFileResults"][0]["cid"]
    assert kubo.cli("cat", cid).stdout == b"Hello, Ada!"
    assert not any((node.home / "blocks").iterdir())
    assert _ipfs(node)["reachable"]
    assert f"ipfs       Kubo 0.43.0 at {kubo.url}: answers" in _done_node_status(node)
    kubo.cli("repo", "gc")
    assert _done(node, "get", job["jobId"], "output") == "Hello, Ada!"

    kubo.kill()
    gone = node.cli("get", job["jobId"], "output")
    assert gone.returncode != 0
    assert "Traceback" not in gone.stderr
    assert f"the Kubo daemon at {kubo.url} cannot be reached" in gone.stderr
    until("status", lambda: not _ipfs(node)["reachable"])
    assert "cannot be reached" in _done_node_status(node)
    waits = node.cli("submit", GREET, "-p", "name=Bob", "--wait", "--timeout", "3", "--json")
    assert json.loads(waits.stdout)["status"] != "completed"
    assert "Traceback" not in node.home.with_name("node.log").read_text()

    kubo.start()
    until("back", lambda: _ipfs(node)["reachable"])
    assert _done(node, "get", job["jobId"], "output") == "Hello, Ada!"
    assert _job(node, "Eve")["status"] == "completed"
    assert "is back" in node.home.with_name("node.log").read_text()


def _done_node_status(node: RunningNode) -> str:
    ran = node.cli("status", program="node_main")
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_content_goes_between_a_node_with_kubo_and_one_without(
    start_kubo: StartKubo, start_node: StartNode, tmp_path: Path
) -> None:
    first = _with_service(start_node("first", "--no-compute", "--ipfs", start_kubo().url))
    second = start_node("second", "--bootstrap", first.info["addresses"][0])
    who = second.info["peerId"]
    _done(first, "service", "add-member", "lab", who, "--roles", "submit,compute")
    data = tmp_path / "data.txt"
    data.write_text("x" * 3_000_000)
    ran = _done(
        first, "submit", "hello_world/count_characters", "-i", f"input={data}", "--wait", "--json"
    )
    job = json.loads(ran)
    assert (job["status"], job["computeNodeId"], job["safe"]) == ("completed", who, True)
    assert json.loads(_done(first, "get", job["jobId"], "output")) == {"count": 3_000_000}


@pytest.mark.parametrize(
    ("address", "words", "hint"),
    [
        ("http://127.0.0.1:9", "cannot be reached (connection refused)", "ipfs daemon"),
        ("/unix/nowhere/api.sock", "cannot be reached (no such file)", "ipfs daemon"),
        ("127.0.0.1:5001", "is not the address of a Kubo daemon", "http://127.0.0.1:5001"),
        ("http://user:pass@127.0.0.1:5001", "holds a password", "token_file"),
    ],
)
def test_a_daemon_that_cannot_be_is_said_at_the_start(
    tmp_path: Path, address: str, words: str, hint: str
) -> None:
    code = "from pairio_cli.node_main import main; main()"
    ran = subprocess.run(
        [sys.executable, "-c", code, "run", "--listen", "/ip4/127.0.0.1/tcp/0", "--ipfs", address],
        env={**os.environ, "PAIRIO_HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (ran.returncode, ran.stdout) == (1, "")
    assert words in ran.stderr
    assert hint in ran.stderr.partition("hint:")[2]
    assert "Traceback" not in ran.stderr
