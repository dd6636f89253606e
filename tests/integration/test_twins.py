"""A copied home: two processes with one key notice each other, and both jobs end."""

import json
import shutil
import time
from typing import Any

import pytest

from tests.integration.conftest import RunningNode, StartNode

pytestmark = pytest.mark.integration


def _until(what: str, is_so: Any, timeout_s: float = 60.0) -> None:
    ends = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < ends, what
        time.sleep(0.1)  # house: waiting for another process


def _submit(node: RunningNode, who: str) -> dict[str, Any]:
    ran = node.cli(
        "submit", "hello_world/hello_world_2", "-p", f"name={who}", "--json", "--skip-cache"
    )
    assert ran.returncode == 0, ran.stderr
    return dict(json.loads(ran.stdout))


def test_two_processes_on_copied_homes_notice_and_lose_no_job(start_node: StartNode) -> None:
    b = start_node("b")
    assert b.cli("service", "create", "lab").returncode == 0
    assert b.cli("app", "install", "lab", "hello_world").returncode == 0
    address = b.info["addresses"][0]
    first = start_node("a1", "--no-compute", "--bootstrap", address)
    added = b.cli("service", "grant", "lab", first.info["peerId"], "--roles", "submit")
    assert added.returncode == 0, added.stderr
    _until("A is a member", lambda: any(s["apps"] for s in first.get("services")["services"]))
    assert first.stop() == 0

    copy = first.home.with_name("a2")
    shutil.copytree(first.home, copy, ignore=shutil.ignore_patterns("node.alive"))
    (copy / "ports.json").unlink()
    a1, a2 = (
        start_node(name, "--no-compute", "--bootstrap", address, "--no-watchdog")
        for name in ("a1", "a2")
    )
    assert a1.info["peerId"] == a2.info["peerId"]
    jobs = [(a1, _submit(a1, "one")), (a2, _submit(a2, "two"))]
    for node, other in ((a1, a2), (a2, a1)):
        _until(f"{node.home.name} notices", lambda node=node: node.get("status")["twins"])
        boots = json.loads((other.home / "boots.json").read_text())["boots"]
        assert [twin["boot"] for twin in node.get("status")["twins"]] == [boots[-1]]
        log = node.home.with_name(f"{node.home.name}.log").read_text()
        assert log.count("another node uses this key: boot") == 1
        shown = node.cli("status", program="node_main").stdout
        assert "another node uses this key: boot" in shown
    for node, job in jobs:
        path = f"jobs/{job['requestId']}"
        _until("its job ends", lambda n=node, p=path: n.get(p)["status"] == "completed", 90)
