"""Revocation, with real processes: who waits is told in words, and a lease goes to the next worker.

The time until ten nodes refuse is measured by `revocation.py`; here it must hold on three.
"""

import json
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import trio

from tests.integration.conftest import RunningNode, StartNode
from tests.integration.revocation import measure
from tests.integration.waiting import until

pytestmark = pytest.mark.integration
SLEEPER = Path(__file__).parent / "chaos" / "sleeper"


def _has_the_code(node: RunningNode) -> bool:
    return not node.get("status")["codeMissing"]


def _grant(admin: RunningNode, node: RunningNode, name: str, roles: str) -> None:
    made = admin.cli(
        "service", "grant", "lab", node.info["peerId"], "--name", name, "--roles", roles
    )
    assert made.returncode == 0, made.stderr
    until("it takes part", lambda: bool(node.get("services")["services"]))


def test_a_submit_that_waits_ends_at_once_with_who_and_when_and_why(start_node: StartNode) -> None:
    admin = start_node("admin", "--no-compute")
    bob = start_node("bob", "--no-compute", "--bootstrap", admin.info["addresses"][0])
    assert admin.cli("service", "create", "lab").returncode == 0
    assert admin.cli("app", "install", "lab", "hello_world").returncode == 0
    _grant(admin, bob, "bob", "submit")
    until("the app is known", lambda: bob.get("services")["services"][0]["apps"])
    submit = ("submit", "hello_world/hello_world_2", "--gpus", "1")
    waiting = subprocess.Popen(
        [sys.executable, "-c", "from pairio_cli.main import main; main()", *submit, "--wait"],
        env=bob.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    until("it waits", lambda: admin.get("jobs")["jobs"])
    revoked = admin.cli("service", "revoke", "lab", "bob")
    assert revoked.returncode == 0, revoked.stderr
    _, said = waiting.communicate(timeout=5)
    assert waiting.returncode == 1
    for words in ("revoked", "UTC", "signed by", admin.info["peerId"], "removes 'bob'"):
        assert words in said
    again = bob.cli(*submit)
    assert again.returncode == 1
    assert "may not submit to 'lab' any more: change" in again.stderr
    assert "hint: ask an admin" in again.stderr
    assert bob.stop() == 0
    back = start_node("bob", "--no-compute", "--bootstrap", admin.info["addresses"][0])
    until("it is back", lambda: admin.info["peerId"] in back.get("status")["peers"])
    assert "any more" in back.cli(*submit).stderr, "at once on rejoin"


def test_a_revoked_workers_run_goes_to_the_next_one_at_once(start_node: StartNode) -> None:
    admin = start_node("admin", "--no-compute")
    where = ("--bootstrap", admin.info["addresses"][0], "--allow-process", "sleeper")
    workers = {name: start_node(name, *where) for name in ("one", "two")}
    assert admin.cli("service", "create", "lab").returncode == 0
    made = admin.cli("app", "install", "lab", str(SLEEPER))
    assert made.returncode == 0, made.stderr
    for name, node in workers.items():
        _grant(admin, node, name, "compute")
        until("the code is there", partial(_has_the_code, node))
    spec = json.loads((SLEEPER / "spec.json").read_text())
    wish = f"{spec['name']}/{spec['processors'][0]['name']}"
    made = admin.cli("submit", wish, "-p", "seconds=60", "--json")
    assert made.returncode == 0, made.stderr
    job = json.loads(made.stdout)["jobId"]

    def attempts() -> list[dict[str, object]]:
        found: list[dict[str, object]] = admin.get(f"jobs/{job}")["attempts"]
        return found

    until("it runs", lambda: admin.get(f"jobs/{job}")["status"] == "running")
    by_id = {node.info["peerId"]: name for name, node in workers.items()}
    first = by_id[str(attempts()[0]["computeNodeId"])]
    began = time.monotonic()
    assert admin.cli("service", "revoke", "lab", first).returncode == 0
    until("it runs on the other one", lambda: len(attempts()) == 2)
    assert time.monotonic() - began < 8, "a lease is 10 s"
    assert by_id[str(attempts()[1]["computeNodeId"])] != first
    assert "may not compute" in str(attempts()[0]["reason"])
    until("the first one has ended it", lambda: workers[first].get("status")["running"] == 0)


def test_three_nodes_refuse_within_five_seconds() -> None:
    (took_s,) = trio.run(measure, 3, 1)
    assert took_s < 5
