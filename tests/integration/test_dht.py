"""Results found by job id alone, by a node that has no record of the job."""

import json
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from itertools import count
from typing import Any

import pytest

from pairio_protocol.links import Link
from tests.integration.conftest import RunningNode, StartNode
from tests.integration.kubo import StartKubo
from tests.integration.waiting import until

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]
GREET = "hello_world/hello_world_2"
COUNT = "hello_world/count_characters"
NARROW = "tests.integration.narrow"


def _done(node: RunningNode, *arguments: str) -> str:
    ran = node.cli(*arguments)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def _greet(node: RunningNode, name: str) -> Any:
    return json.loads(_done(node, "submit", GREET, "-p", f"name={name}", "--wait", "--json"))


def _dht(node: RunningNode) -> Any:
    return node.get("status")["dht"]


def _logs(node: RunningNode) -> set[tuple[str, bytes]]:
    """Return the logs that a node has whole, by its database: author and boot."""
    database = f"file:{node.home / 'node.db'}?mode=ro"
    with closing(sqlite3.connect(database, uri=True, timeout=10)) as db:
        return {*db.execute("select distinct author, boot from segments where kept = 0")}


def _let_logs_be_dropped(*nodes: RunningNode) -> None:
    """Go on with other jobs, so that newer logs are written, until all that are there now are
    dropped by each of the nodes: who has one sends it to whoever joins."""
    old = set().union(*map(_logs, nodes))
    assert old
    numbers = count()

    def are_dropped() -> bool:
        _greet(nodes[0], f"somebody else, {next(numbers)}")
        return not any(old & _logs(node) for node in nodes)

    until("the logs are dropped", are_dropped)


def _knows(node: RunningNode, *jobs: Any) -> bool:
    known = {job["jobId"] for job in node.get("jobs")["jobs"]}
    return bool(known & {job["jobId"] for job in jobs})


def _narrow(start_node: StartNode, name: str, *arguments: str) -> RunningNode:
    return start_node(name, "--no-watchdog", *arguments, program=NARROW)


def _outputs(job: Any) -> list[tuple[str, str]]:
    return [(one["name"], one["cid"]) for one in job["outputFileResults"]]


def _join_by(inviter: RunningNode, new: RunningNode, *roles: str) -> None:
    """Let a node join by a link that names nobody but its maker."""
    said = _done(inviter, "service", "invite", "lab", "--roles", ",".join(roles))
    link = Link.decode(said.split()[0])
    name = new.home.name
    _done(new, "join", replace(link, peers=link.peers[:1]).encode(), "--name", name)


def _ids(*nodes: RunningNode) -> list[str]:
    return sorted(node.info["peerId"] for node in nodes)


def test_a_new_node_finds_results_whose_home_nodes_are_gone_by_way_of_one_that_has_them_not(
    start_node: StartNode, record_property: Callable[[str, object], None]
) -> None:
    home = _narrow(start_node, "home", "--no-compute")
    home.call("POST", "services", {"name": "lab"})
    home.call("POST", "services/lab/apps", {"source": "hello_world"})
    worker = _narrow(start_node, "worker")
    _join_by(home, worker, "compute")
    first, second, other = (_greet(home, name) for name in ("Ada", "Bob", "Cyd"))
    source = f"input=job:{second['jobId']}/output"
    third = json.loads(_done(home, "submit", COUNT, "-i", source, "--wait", "--json"))
    assert third["computeNodeId"] == worker.info["peerId"]
    jobs = (first, second, third, other)
    for job in jobs:
        _done(worker, "cache", "pin", job["jobId"])
    _let_logs_be_dropped(home, worker)

    # who joins now is sent nothing of it, and yet is told where it is; it could compute all that
    between = start_node("between")
    _join_by(home, between, "submit", "compute")
    roles = {"who": "between", "roles": ["admin", "submit", "compute"]}
    home.call("POST", "services/lab/grant", roles)
    until("told", lambda: _dht(between)["noted"] >= len(jobs))
    assert not _knows(between, *jobs)
    assert home.stop() == 0

    new = _narrow(start_node, "new", "--no-compute")
    _join_by(between, new, "submit")
    assert new.get("status")["peers"] == _ids(between)
    assert not _knows(new, *jobs)

    # A submit is answered by a result that no connected member knows. What is new here is told on
    # like any news, if it happens to be the beginning of a log: from now on between may know it.
    again = _greet(new, "Cyd")
    assert (again["jobId"], again["status"], again["cached"]) == (other["jobId"], "completed", True)
    assert again["computeNodeId"] == worker.info["peerId"]
    assert _outputs(again) == _outputs(other)
    assert _dht(new)["looks_found"] == 1

    # so is whoever asks for a job by its id
    began_s = time.monotonic()
    shown = json.loads(_done(new, "job", "show", first["jobId"], "--json"))
    record_property("found_and_shown_s", round(time.monotonic() - began_s, 2))
    assert (shown["status"], shown["computeNodeId"]) == ("completed", worker.info["peerId"])
    assert _done(new, "get", first["jobId"], "output") == "Hello, Ada!"
    assert json.loads(_done(new, "verify", first["jobId"], "--json"))["verified"]

    # an id with unresolved inputs: its definition, what it resolves to, and the result of that
    assert json.loads(_done(new, "get", third["jobId"], "output", "-o", "-")) == {"count": 11}
    assert json.loads(_done(new, "verify", third["jobId"], "--json"))["verified"]


def test_two_kubo_daemons_lead_a_node_that_knows_nobody_to_the_holder_of_a_result(
    start_kubo: StartKubo, start_node: StartNode, record_property: Callable[[str, object], None]
) -> None:
    near, far = start_kubo("near"), start_kubo("far")
    far.connect(near)
    holder = start_node("holder", "--ipfs", near.url)
    _done(holder, "service", "create", "lab")
    _done(holder, "app", "install", "lab", "hello_world")
    _done(holder, "service", "policy", "lab", "--results", "public")
    new = start_node("new", "--no-compute")
    _join_by(holder, new, "submit")
    until("the app is known", lambda: new.get("services/lab/apps")["apps"])
    assert new.stop() == 0
    jobs = [_greet(holder, name) for name in ("Ada", "Bob", "Cyd")]
    until("announced", lambda: holder.get("status")["ipfs"].get("announced", 0) >= 3)
    assert holder.stop() == 0
    holder = start_node("holder", "--ipfs", near.url)  # at another port than it had
    until("announced anew", lambda: holder.get("status")["ipfs"].get("announced", 0) >= 3)

    new = start_node("new", "--no-compute", "--ipfs", far.url)
    assert new.get("status")["peers"] == []
    assert not _knows(new, *jobs)
    began_s = time.monotonic()
    again = _greet(new, "Bob")
    record_property("submit_found_by_kubo_s", round(time.monotonic() - began_s, 2))
    assert (again["jobId"], again["cached"]) == (jobs[1]["jobId"], True)
    assert again["computeNodeId"] == holder.info["peerId"]
    assert _done(new, "get", jobs[1]["jobId"], "output") == "Hello, Bob!"
    assert json.loads(_done(new, "verify", jobs[1]["jobId"], "--json"))["verified"]
    assert _dht(new)["kubo_holders"] >= 1

    # what it knows by now, but not where to get it from, it finds in the same way
    assert new.stop() == 0
    assert holder.stop() == 0
    holder = start_node("holder", "--ipfs", near.url, "--no-compute")
    until("announced anew", lambda: holder.get("status")["ipfs"].get("announced", 0) >= 3)
    new = start_node("new", "--no-compute", "--ipfs", far.url)
    assert _done(new, "get", jobs[0]["jobId"], "output") == "Hello, Ada!"
