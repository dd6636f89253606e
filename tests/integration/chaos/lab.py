"""A service of real nodes for chaos, and a book of what was accepted, safe and lost.

The book is the harness's own: what a submit answered is written down here, and held against what
the nodes say afterwards (`promises.py`).
"""

import json
import os
import random
import shutil
import tempfile
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tests.integration.chaos.disks import mount_small, unmount
from tests.integration.chaos.nodes import Node, Refused, Unreachable
from tests.integration.chaos.wires import Wires
from tests.integration.waiting import until

__all__ = ["COST_S_MAX", "ENDS_S", "LONG_LEASE", "PLANT", "Accepted", "Broken", "Lab"]

SERVICE = "chaos"
SLEEPER = Path(__file__).parent / "sleeper"
#: What losing the computing node may cost: lease, detection (three keepalives and a probe), 1 s.
LEASE_S, DETECTION_S = 10.0, 8.5
COST_S_MAX = LEASE_S + DETECTION_S + 1.0
#: How long anything accepted may take to end once the trouble is over.
ENDS_S = 45.0
#: A fault planted on purpose, to show that the harness notices it; read here and nowhere else.
PLANT = "PAIRIO_CHAOS_PLANT"
#: The planted fault that is a setting: losing a machine costs far too long.
LONG_LEASE = "long lease"


class Broken(AssertionError):
    """A promise that did not hold; says which."""

    def __init__(self, promise: str, detail: str) -> None:
        super().__init__(f"{promise}\n  {detail}")
        self.promise = promise


@dataclass
class Accepted:
    """A submit that was answered. `text` is what its output has to be."""

    node: Node
    job: str
    request: str
    replicated: int
    text: str
    #: A machine was lost while it ran there: its story must tell.
    lost: bool = False


@dataclass
class Lab:
    """Nodes 0..n-1. Node 0 is the admin; it submits and does not compute."""

    rng: random.Random
    count: int = 4
    loss_percent: int = 0
    wires: Wires | None = None
    small_disks: int = 0
    #: Whether nodes 1 and up compute.
    workers: bool = True
    nodes: list[Node] = field(default_factory=list)
    book: list[Accepted] = field(default_factory=list)
    #: What was measured: name -> seconds.
    measured: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    ends_s: float = ENDS_S
    plant: str = field(default_factory=lambda: os.environ.get(PLANT, ""))

    def __post_init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="pairio-chaos-"))

    # -- life -----------------------------------------------------------------------------

    def begin(self) -> None:
        """Make the homes, start all nodes, found the service, wait until all are in it with the
        code of its app: work has to go on wherever a cut falls."""
        for number in range(self.count):
            side = number * 2 // self.count
            where = (self.wires.sides[side], self.wires.hosts[side]) if self.wires else ()
            if number < self.small_disks:
                mount_small(self.folder / f"n{number}")
            self.nodes.append(Node(f"n{number}", self.folder, *where))
        for number, node in enumerate(self.nodes):
            node.settings["compute"] = self.workers and number > 0
            node.settings["gossip_loss_percent"] = self.loss_percent
            node.settings["bootstrap"] = [n.address for n in self.nodes if n is not node]
            if self.plant == LONG_LEASE:
                node.settings["lease_ms"] = 60_000
            node.start()
        for node in self.nodes:
            node.wait_ready()
        first = self.nodes[0]
        first.call("POST", "services", {"name": SERVICE})
        for node in self.nodes[1:]:
            member = {"who": node.peer, "roles": ["submit", "compute"], "name": node.name}
            first.call("POST", f"services/{SERVICE}/grant", member)
        first.call("POST", f"services/{SERVICE}/apps", {"source": str(SLEEPER)}, timeout_s=30)
        for node in self.nodes:
            until(f"{node} is in the service with all", partial(self._is_in, node), 20)

    def _is_in(self, node: Node) -> bool:
        services = node.call("GET", "services")["services"]
        status = node.call("GET", "status")
        ready = bool(services and services[0]["apps"]) and not status["codeMissing"]
        return ready and len(status["peers"]) == self.count - 1

    def end(self, keep: bool = False) -> None:
        """Kill everything and leave nothing behind, unless the folder is to be kept."""
        for node in self.nodes:
            node.kill()
            unmount(node.home)
        if self.wires is not None:
            self.wires.remove()
        if not keep:
            shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def alive(self) -> list[Node]:
        """The nodes that run."""
        return [node for node in self.nodes if node.started]

    def revive(self) -> None:
        """Start what was killed."""
        dead = [node for node in self.nodes if not node.started]
        for node in dead:
            node.start()
        for node in dead:
            node.wait_ready()

    # -- jobs -----------------------------------------------------------------------------

    def submit(self, node: Node, seconds: float, after: Accepted | None = None) -> Accepted:
        """Submit a job of its own, or one that waits for another's output; write it down.

        Raises:
            Refused: the node said no: nothing was accepted.
        """
        tag = f"{len(self.book)}-{self.rng.getrandbits(32):08x}"
        definition: dict[str, Any] = {
            "appName": "sleeper",
            "processorName": "after" if after else "sleep",
            "outputFiles": [{"name": "output", "fileBaseName": "output.txt"}],
            "parameters": [{"name": "seconds", "value": seconds}, {"name": "tag", "value": tag}],
        }
        if after is not None:
            definition["inputFiles"] = [{"name": "input", "url": f"job:{after.job}/output"}]
        text = f"{after.text if after else ''}slept {tag}\n"
        return self.submit_definition(node, definition, text)

    def submit_definition(self, node: Node, definition: dict[str, Any], text: str) -> Accepted:
        """Submit what is given; see `submit`."""
        body = {
            "serviceName": SERVICE,
            "jobDefinition": definition,
            "requiredResources": {"numCpus": 1, "memoryGb": 0.25, "timeSec": 300},
        }
        view = node.call("POST", "jobs", body)
        job = Accepted(node, view["jobId"], view["requestId"], view["replicated"], text)
        self.book.append(job)
        return job

    def view(self, node: Node, job: Accepted) -> dict[str, Any] | None:
        """Return the job as a node shows it; None while it does not know it or does not answer."""
        try:
            found: dict[str, Any] = node.call("GET", f"jobs/{job.request}?serviceName={SERVICE}")
        except (Refused, Unreachable):
            return None
        return found

    def show(self, node: Node, job: Accepted) -> dict[str, Any]:
        """Return what `pairio job show --json` prints on a node."""
        run = node.cli("job", "show", job.request, "--json")
        if run.returncode != 0:
            raise Broken("`pairio job show` tells the story", f"on {node}: {run.stderr.strip()}")
        shown: dict[str, Any] = json.loads(run.stdout)
        return shown

    def computing(self, job: Accepted, timeout_s: float = 15) -> Node:
        """Wait until a job runs; return the node on which."""

        def running() -> Node | None:
            view = self.view(job.node, job)
            live = [a for a in view["attempts"] if not a["ended"]] if view else []
            return self.named(live[-1]["computeNodeId"]) if live else None

        found = until(f"{job.job[-8:]} runs", running, timeout_s)
        assert found is not None
        return found

    def named(self, peer: str) -> Node:
        """Return the node with this peer id."""
        return next(node for node in self.nodes if node.peer == peer)

    def wait_end(self, job: Accepted, on: Node, timeout_s: float | None = None) -> dict[str, Any]:
        """Wait until a node shows that a job has completed.

        Raises:
            Broken: it failed, or did not end in time.
        """
        limit_s = self.ends_s if timeout_s is None else timeout_s
        last: dict[str, Any] = {}

        def ended() -> bool:
            last.update(self.view(on, job) or {})
            return last.get("status") in ("completed", "failed", "canceled")

        try:
            until("ended", ended, limit_s)
        except TimeoutError:
            detail = f"{job.job[-8:]} is {last.get('status', 'unknown')} on {on} after"
            raise Broken("every accepted job ends", f"{detail} {limit_s:.0f} s") from None
        if last["status"] != "completed":
            detail = f"{job.job[-8:]} is {last['status']} on {on}: {last['error']}"
            raise Broken("every accepted job ends well", detail)
        return last

    def next_start(self, job: Accepted, on: Node, after_unix_s: float) -> float:
        """Wait for an attempt that started after a time; return when, in Unix seconds.

        Raises:
            Broken: none did within what losing a node may cost.
        """
        begun: list[float] = []

        def another() -> bool:
            view = self.view(on, job)
            starts = [a["timestampStartedSec"] for a in view["attempts"]] if view else []
            begun[:] = [start for start in starts if start > after_unix_s]
            return bool(begun)

        promise = f"losing the computing node costs at most {COST_S_MAX:g} s"
        try:
            until("another attempt", another, COST_S_MAX + 1.0 - (time.time() - after_unix_s))
        except TimeoutError as error:
            raise Broken(promise, f"{job.job[-8:]}: {error}") from None
        cost_s = begun[0] - after_unix_s
        self.measured["cost_s"] = max(cost_s, self.measured.get("cost_s", 0.0))
        if cost_s > COST_S_MAX:
            raise Broken(promise, f"{job.job[-8:]}: {cost_s:.1f} s")
        return begun[0]
