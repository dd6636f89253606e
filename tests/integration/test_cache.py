"""The cache of real nodes: with a small quota jobs go on, old results go, pins stay."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import RunningNode, StartNode
from tests.integration.waiting import until

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]
SIZE_BYTES = 1_000_000
QUOTA_BYTES = 12 * SIZE_BYTES
SERVICE = "lab"
_APP = {
    "name": "bulky",
    "processors": [
        {
            "name": "write",
            "executable": "main.py",
            "inputs": [],
            "outputs": [{"name": "output"}],
            "parameters": [{"name": "number", "type": "int"}],
        }
    ],
}
_MAIN = f"""
import json, os, random
job = json.load(open(os.environ["PAIRIO_JOB_FILE"]))
number = job["parameters"][0]["value"]
with open(job["outputs"][0]["path"], "wb") as file:
    file.write(random.Random(number).randbytes({SIZE_BYTES}))
"""


class Lab:
    """Nodes of one service with an app whose outputs are a megabyte each, told by a number."""

    def __init__(self, start: StartNode, path: Path) -> None:
        self._start = start
        self._path = path
        self.app = path / "bulky"
        self.app.mkdir()
        (self.app / "main.py").write_text(_MAIN)
        (self.app / "spec.json").write_text(json.dumps(_APP))  # not older: it is taken as it is

    def node(self, name: str, *arguments: str, **settings: Any) -> RunningNode:
        """Start a node; `settings` go into its node.toml."""
        home = self._path / name
        home.mkdir(exist_ok=True)
        lines = [f"{key} = {json.dumps(value)}" for key, value in settings.items()]
        (home / "node.toml").write_text("\n".join([*lines, 'allow_process = ["*"]', ""]))
        return self._start(name, *arguments)

    def found(self, node: RunningNode) -> None:
        node.call("POST", "services", {"name": SERVICE})
        node.call("POST", f"services/{SERVICE}/apps", {"source": str(self.app)})

    def admit(self, admin: RunningNode, node: RunningNode) -> None:
        who = {"who": node.info["peerId"], "roles": ["submit", "compute"]}
        admin.call("POST", f"services/{SERVICE}/grant", who)
        until("it knows the app", lambda: any(s["apps"] for s in node.get("services")["services"]))


@pytest.fixture
def lab(start_node: StartNode, tmp_path: Path) -> Lab:
    return Lab(start_node, tmp_path)


def begin(node: RunningNode, number: int) -> dict[str, Any]:
    definition = {
        "appName": "bulky",
        "processorName": "write",
        "inputFiles": [],
        "outputFiles": [{"name": "output"}],
        "parameters": [{"name": "number", "value": number}],
    }
    body = {"jobDefinition": definition, "serviceName": SERVICE}
    return dict(node.call("POST", "jobs", body))


def done(node: RunningNode, job: dict[str, Any]) -> dict[str, Any]:
    """Wait for the end of a job, or that of others that it waits for."""
    name = job["requestId"]
    until(f"job {name} ends", lambda: node.get(f"jobs/{name}/wait?timeoutSec=20")["isSettled"])
    return dict(node.get(f"jobs/{name}"))


def ran(node: RunningNode, number: int) -> dict[str, Any]:
    job = done(node, begin(node, number))
    assert job["status"] == "completed", (number, job["error"], job["attempts"])
    return job


def cid_of(job: dict[str, Any]) -> str:
    return str(job["outputFileResults"][0]["cid"])


def here(node: RunningNode) -> set[str]:
    """The roots that lie on a node."""
    return {root["cid"] for root in node.get("cache/roots?limit=10000")["roots"]}


def test_a_node_alone_goes_on_for_ever_within_its_quota(lab: Lab) -> None:
    node = lab.node("alone", quota_bytes=QUOTA_BYTES)
    lab.found(node)
    first = ran(node, 0)
    pinned = node.cli("cache", "pin", first["jobId"])
    assert (pinned.returncode, pinned.stdout.strip()) == (0, first["jobId"]), pinned.stderr
    jobs = [first, *(ran(node, number) for number in range(1, 20))]
    until("it is below its mark", lambda: node.get("cache")["usedBytes"] <= QUOTA_BYTES * 0.9)
    stats = node.get("cache")
    assert stats["counters"]["evicted_bytes"] >= 8 * SIZE_BYTES
    left = [number for number, job in enumerate(jobs) if cid_of(job) in here(node)]
    assert left[0] == 0 and left[1:] == list(range(20 - len(left) + 1, 20)) and len(left) >= 5
    again = ran(node, 1)  # it has gone: it is no hit, and is computed again
    assert not again["cached"] and cid_of(again) == cid_of(jobs[1])
    hit = ran(node, 0)
    assert hit["cached"]
    bundle = node.get(f"services/{SERVICE}/apps")["apps"][0]["bundle"]
    assert bundle in here(node)
    assert node.stop() == 0
    node = lab.node("alone", quota_bytes=QUOTA_BYTES)
    until("it is there again", lambda: node.get("cache/pins")["pins"])
    assert node.cli("cache", "gc", "--all").returncode == 0
    assert cid_of(first) in here(node) and cid_of(jobs[19]) not in here(node)
    assert node.cli("cache", "unpin", first["jobId"]).returncode == 0
    assert node.cli("cache", "gc", "--all").returncode == 0
    assert cid_of(first) not in here(node)


def test_what_a_worker_let_go_comes_back_from_another_holder(lab: Lab) -> None:
    large = lab.node("large", "--no-compute")
    address = large.info["addresses"][0]
    small = lab.node(
        "small", "--bootstrap", address, quota_bytes=QUOTA_BYTES, promise_days=0.00001
    )  # fmt: skip
    lab.found(large)
    lab.admit(large, small)
    jobs = [ran(large, number) for number in range(20)]
    assert all(job["safe"] for job in jobs)
    until("it is below its mark", lambda: small.get("cache")["usedBytes"] <= QUOTA_BYTES * 0.9)
    gone = [number for number, job in enumerate(jobs) if cid_of(job) not in here(small)]
    # Giving a copy away is a use too, and a result on its way stays: neighbours may change places.
    assert 0 in gone and len(gone) >= 8
    assert all(number <= place + 4 for place, number in enumerate(gone)), gone
    assert {cid_of(job) for job in jobs} <= here(large)  # that node promised, and has room
    again = ran(small, 0)
    assert again["cached"] and again["attempts"] == jobs[0]["attempts"]
    until("it is here again", lambda: cid_of(again) in here(small))


def _ends_or(is_so: Callable[[], bool], node: RunningNode, path: str) -> bool:
    return is_so() or bool(node.get(path)["isSettled"])


def test_a_worker_full_of_promises_takes_no_job_until_there_is_room(lab: Lab) -> None:
    large = lab.node("large", "--no-compute")
    address = large.info["addresses"][0]
    small = lab.node("small", "--bootstrap", address, quota_bytes=QUOTA_BYTES)
    lab.found(large)
    lab.admit(large, small)
    jobs: list[dict[str, Any]] = []

    def is_full() -> bool:
        return bool(small.get("status")["blocks"]["full"])

    while not is_full():
        job = begin(large, len(jobs))
        jobs.append(job)
        path = f"jobs/{job['requestId']}"
        until("it ends, or the worker is full", partial(_ends_or, is_full, large, path))
        assert len(jobs) < 20, small.get("cache")
    assert len(jobs) >= 10
    last = begin(large, 99)
    why = f"jobs/{last['requestId']}/why"
    until("it is said why", lambda: "block store" in {n["rule"] for n in large.get(why)["nodes"]})
    said = large.cli("job", "why", last["requestId"])
    assert "block store: needs 1.0 MB free, has" in said.stdout
    assert large.get(f"jobs/{last['requestId']}")["status"] == "pending"
    assert small.stop() == 0
    lab.node("small", "--bootstrap", address, quota_bytes=2 * QUOTA_BYTES)
    for job in (*jobs, last):  # none is lost
        assert done(large, job)["status"] == "completed"
