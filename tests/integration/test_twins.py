"""A copied home: two processes with one key notice each other, and both jobs end."""

import json
import shutil
from functools import partial
from typing import Any

import pytest

from tests.integration.conftest import RunningNode, StartNode
from tests.integration.waiting import until

pytestmark = pytest.mark.integration


def _twins(node: RunningNode) -> Any:
    return node.get("status")["twins"]


def _is_completed(node: RunningNode, path: str) -> bool:
    return bool(node.get(path)["status"] == "completed")


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
    until("A is a member", lambda: any(s["apps"] for s in first.get("services")["services"]))
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
        until(f"{node.home.name} notices", partial(_twins, node))
        boots = json.loads((other.home / "boots.json").read_text())["boots"]
        assert [twin["boot"] for twin in node.get("status")["twins"]] == [boots[-1]]
        log = node.home.with_name(f"{node.home.name}.log").read_text()
        assert log.count("another node uses this key: boot") == 1
        shown = node.cli("status", program="node_main").stdout
        assert "another node uses this key: boot" in shown
    for node, job in jobs:
        path = f"jobs/{job['requestId']}"
        until("its job ends", partial(_is_completed, node, path))
