"""`pairio demo`: three nodes on this machine, a service, an app, three jobs, the cache.

Each node is a process of its own with a home of its own; they talk libp2p over loopback. Nothing
is left behind unless `--keep` is given.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pairio._http import Api
from pairio_cli.output import fail, note

__all__ = ["run_demo"]

_READY_S = 60.0
_MEMBER_S = 20.0
_JOB_S = 60.0
_SERVICE = "hello_world_service"


@dataclass
class DemoNode:
    """A node process of the demo."""

    name: str
    home: Path
    process: "subprocess.Popen[str]"
    info: dict[str, Any]

    def api(self) -> Api:
        """Return a client of this node."""
        api = json.loads((self.home / "api.json").read_text())
        return Api(api["url"], api["token"])


class _Clock:
    def __init__(self) -> None:
        self.began = self.last = time.monotonic()

    def step(self, text: str) -> None:
        now = time.monotonic()
        print(f"[{now - self.began:5.1f}s] {text}", flush=True)
        self.last = now


def run_demo(keep: bool) -> int:
    """Run the demo; returns the exit code."""
    folder = Path(tempfile.mkdtemp(prefix="pairio-demo-"))
    nodes: list[DemoNode] = []
    kept = False
    try:
        with _as_interrupt():
            _play(folder, nodes)
        if keep:
            kept = True
            _say_kept(folder, nodes)
        return 0
    except KeyboardInterrupt:
        note("interrupted")
        return 130
    finally:
        if not kept:
            _stop(nodes)
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _as_interrupt() -> Iterator[None]:
    """Let SIGTERM clean up as Ctrl-C does."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _play(folder: Path, nodes: list[DemoNode]) -> None:
    clock = _Clock()
    clock.step("starting three nodes, each a process with a home of its own")
    first = _start(folder, "node1", "--no-compute")
    nodes.append(first)
    bootstrap = first.info["addresses"][0]
    starting = [_spawn(folder, name, "--bootstrap", bootstrap) for name in ("node2", "node3")]
    nodes += [_ready(*args) for args in starting]
    names = {node.info["peerId"]: node.name for node in nodes}
    for node in nodes:
        clock.step(f"{node.name} is {node.info['peerId']} at {node.info['addresses'][0]}")
    api = first.api()
    api.call("POST", "/api/v1/services", {"name": _SERVICE})
    for node in nodes[1:]:
        body = {"who": node.info["peerId"], "roles": ["submit", "compute"], "name": node.name}
        api.call("POST", f"/api/v1/services/{_SERVICE}/grant", body)
    app = api.call("POST", f"/api/v1/services/{_SERVICE}/apps", {"source": "hello_world"})
    processors = ", ".join(p["name"] for p in app["appSpecification"]["processors"])
    clock.step(f"node1 created {_SERVICE}, added node2 and node3, installed hello_world")
    clock.step(f"its processors: {processors}")
    for node in nodes[1:]:
        _until_member(node)
    runners = nodes[1].api().call("GET", "/api/v1/status")["runners"]
    clock.step(f"node2 and node3 took the service up; they run jobs with {', '.join(runners)}")
    if "process" in runners:
        clock.step(
            "no sandbox here, so the demo's own app runs without a sandbox;"
            " to have one: apt install bubblewrap"
        )
    jobs = _run_examples(first, names, clock)
    _show_outputs(api, jobs, clock)
    _run_again(nodes[2], jobs, clock)
    clock.step(f"done: 3 jobs computed, 3 answered from the cache, {len(nodes)} nodes")


def _start(folder: Path, name: str, *arguments: str) -> DemoNode:
    return _ready(*_spawn(folder, name, *arguments))


def _spawn(folder: Path, name: str, *arguments: str) -> "tuple[str, Path, subprocess.Popen[str]]":
    home = folder / name
    log = (folder / f"{name}.log").open("w")
    # The demo's owner installs the demo's app himself, so it may run without a sandbox if need be.
    argv = [sys.executable, "-m", "pairio_cli.node_entry", "run", "--json"]
    argv += ["--no-watchdog", "--yield-jobs"]  # nothing is left behind
    argv += ["--listen", "/ip4/127.0.0.1/tcp/0", "--cpus", "2", "--memory-gb", "4"]
    argv += ["--allow-process", "hello_world", *arguments]
    with log:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={**os.environ, "PAIRIO_HOME": str(home)},
            start_new_session=True,
        )
    return name, home, process


def _ready(name: str, home: Path, process: "subprocess.Popen[str]") -> DemoNode:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        process.wait(_READY_S)
        said = home.with_name(f"{name}.log").read_text().strip()
        fail(f"{name} did not start:\n{said}", "see above; pairio-node run says the same", 3)
    return DemoNode(name, home, process, json.loads(line))


def _until_member(node: DemoNode) -> None:
    """Wait until a node has taken the service up and lists the app."""
    api = node.api()
    ends = time.monotonic() + _MEMBER_S
    while time.monotonic() < ends:
        services = api.call("GET", "/api/v1/services")["services"]
        if any(s["apps"] and len(s["members"]) == 3 for s in services):
            return
        time.sleep(0.05)
    fail(f"{node.name} was not told of the service in {_MEMBER_S:g} s", "a bug: report it", 3)


def _example_definitions() -> list[dict[str, Any]]:
    return [
        {"appName": "hello_world", "processorName": "hello_world_1"},
        {
            "appName": "hello_world",
            "processorName": "hello_world_2",
            "outputFiles": [{"name": "output", "fileBaseName": "output.txt"}],
            "parameters": [{"name": "name", "value": "world"}],
        },
    ]


def _count_definition(job_id: str) -> dict[str, Any]:
    return {
        "appName": "hello_world",
        "processorName": "count_characters",
        "inputFiles": [
            {"name": "input", "fileBaseName": "input.txt", "url": f"job:{job_id}/output"}
        ],
        "outputFiles": [{"name": "output", "fileBaseName": "output.json"}],
        "parameters": [{"name": "include_whitespace", "value": True}],
    }


def _submit(api: Api, definition: dict[str, Any], wait_s: float = 0) -> dict[str, Any]:
    body = {
        "jobDefinition": definition,
        "requiredResources": {"numCpus": 1, "memoryGb": 1, "timeSec": 60},
        "tags": ["demo"],
    }
    return dict(api.call("POST", "/api/v1/jobs", body, {"waitSec": wait_s} if wait_s else None))


def _finish(api: Api, job: dict[str, Any]) -> dict[str, Any]:
    ends = time.monotonic() + _JOB_S
    while not job["isSettled"] and time.monotonic() < ends:
        job = api.call("GET", f"/api/v1/jobs/{job['requestId']}/wait", None, {"timeoutSec": 30})
    if job["status"] != "completed":
        said = b"".join(api.stream(f"/api/v1/jobs/{job['requestId']}/console")).decode()
        fail(f"a job is {job['status']}: {job['error']}\n{said}", "a bug: report it", 3)
    return job


def _run_examples(node: DemoNode, names: dict[str, str], clock: _Clock) -> list[dict[str, Any]]:
    """Submit the three examples at node1, which does not compute."""
    api = node.api()
    jobs = [_run_one(api, definition, names, clock) for definition in _example_definitions()]
    jobs.append(_run_one(api, _count_definition(jobs[1]["jobId"]), names, clock))
    return jobs


def _run_one(
    api: Api, definition: dict[str, Any], names: dict[str, str], clock: _Clock
) -> dict[str, Any]:
    began = time.monotonic()
    job = _finish(api, _submit(api, definition))
    took_ms = (time.monotonic() - began) * 1000
    where = names[job["computeNodeId"]]
    if job["cached"] or where == "node1":
        fail("the job was not computed by another node", "a bug: report it", 3)
    safe = "safe" if job["safe"] else "not safe"
    name = definition["processorName"]
    clock.step(f"{name}: submitted at node1, computed by {where}, {took_ms:.0f} ms, {safe}")
    return job


def _show_outputs(api: Api, jobs: list[dict[str, Any]], clock: _Clock) -> None:
    console = b"".join(api.stream(f"/api/v1/jobs/{jobs[0]['requestId']}/console")).decode().strip()
    clock.step(f"hello_world_1 printed {console!r}")
    for job in jobs[1:]:
        path = f"/api/v1/jobs/{job['requestId']}/outputs/output"
        output = b"".join(api.stream(path)).decode()
        clock.step(f"{job['jobDefinition']['processorName']} gave {output!r}")


def _run_again(node: DemoNode, jobs: list[dict[str, Any]], clock: _Clock) -> None:
    """Submit the same at another node: the answers come from the cache."""
    api = node.api()
    for definition in (*_example_definitions(), _count_definition(jobs[1]["jobId"])):
        began = time.monotonic()
        job = _finish(api, _submit(api, definition))
        took_ms = (time.monotonic() - began) * 1000
        if not job["cached"]:
            fail("the second time a job ran again", "a bug: report it", 3)
        name = definition["processorName"]
        clock.step(f"{name}: again, at {node.name}: from the cache, nothing ran, {took_ms:.0f} ms")


def _say_kept(folder: Path, nodes: list[DemoNode]) -> None:
    print("\nThe network goes on. Talk to a node with:")
    for node in nodes:
        print(f"  export PAIRIO_HOME={node.home}    # {node.name}, {node.info['apiUrl']}")
    pids = " ".join(str(node.process.pid) for node in nodes)
    print(f"End it with:\n  kill {pids}; rm -r {folder}", flush=True)


def _stop(nodes: list[DemoNode]) -> None:
    for node in nodes:
        node.process.terminate()
    for node in nodes:
        try:
            node.process.wait(10)
        except subprocess.TimeoutExpired:
            node.process.kill()
            node.process.wait()
        if node.process.stdout is not None:
            node.process.stdout.close()
