"""`python -m tests.integration.cancel_lab [TIMES]`: how long a run goes on that nobody
wants any more.

Four node processes on libp2p over loopback: two that submit, two that compute. A job that would
run for an hour is submitted at the first; when it runs, it is canceled there. Measured from before
that call, by asking each node again and again: when its worker runs nothing any more, the
process reaped, and when the last of the four nodes says that the job is canceled.
"""

import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any

from pairio._http import Api
from pairio.errors import NotFound
from tests.integration.conftest import RunningNode, launch

WAIT_S = 120.0
_LOOK_S = 0.01
_SPEC = {
    "name": "sleeper",
    "processors": [
        {
            "name": "sleep",
            "executable": "main.py",
            "inputs": [],
            "outputs": [{"name": "output"}],
            "parameters": [{"name": "number", "type": "int"}],
        }
    ],
}
_MAIN = "import time\nprint('it runs', flush=True)\ntime.sleep(3600)\n"


class CancelLab:
    """Two nodes that submit (the first is the admin), two that compute."""

    def __init__(self, path: Path, stack: ExitStack) -> None:
        first = self._launch(stack, path / "first", "--no-compute")
        bootstrap = ("--bootstrap", first.info["addresses"][0])
        second = self._launch(stack, path / "second", *bootstrap, "--no-compute")
        self.submitters = (first, second)
        self.workers = [
            self._launch(stack, path / name, *bootstrap, "--allow-process", "sleeper")
            for name in ("third", "fourth")
        ]
        self.nodes = [*self.submitters, *self.workers]
        self.number = 0
        first.call("POST", "services", {"name": "lab"})
        for node, role in ((second, "submit"), *((w, "compute") for w in self.workers)):
            body = {"who": node.info["peerId"], "roles": [role]}
            first.call("POST", "services/lab/grant", body)
        app = path / "app"
        app.mkdir()
        (app / "main.py").write_text(_MAIN)
        (app / "spec.json").write_text(json.dumps(_SPEC))  # the newer one: it is taken as it is
        first.call("POST", "services/lab/apps", {"source": str(app)})
        for node in self.nodes:
            until("the app is known", partial(_knows_the_app, node))

    @staticmethod
    def _launch(stack: ExitStack, home: Path, *arguments: str) -> RunningNode:
        node = launch(home, *arguments)
        stack.callback(node.stop)
        return node

    def submit(self, node: RunningNode, number: int) -> str:
        """Submit a job that sleeps; return the id of its request."""
        definition = {
            "appName": "sleeper",
            "processorName": "sleep",
            "inputFiles": [],
            "outputFiles": [{"name": "output"}],
            "parameters": [{"name": "number", "value": number}],
        }
        return str(node.call("POST", "jobs", {"jobDefinition": definition})["requestId"])

    def runs(self, request: str) -> None:
        """Wait until a job runs, and every node knows of it."""
        first = self.submitters[0]
        until("it runs", lambda: "it runs" in _console(first, request))
        for node in self.nodes:
            until("it is known", partial(_is, "running", node, request))

    @property
    def running(self) -> int:
        """How many runs go on at the workers."""
        return sum(node.get("status")["running"] for node in self.workers)

    def canceled_ms(self) -> tuple[float, float]:
        """Let a job run and cancel it; return after how long nothing ran, and all said so."""
        self.number += 1
        request = self.submit(self.submitters[0], self.number)
        self.runs(request)
        began = time.monotonic()

        def ends() -> float:
            until("nothing runs", lambda: self.running == 0)
            return time.monotonic() - began

        def says(node: RunningNode) -> float:
            until("it is said", partial(_is, "canceled", node, request))
            return time.monotonic() - began

        with ThreadPoolExecutor(5) as pool:
            ended = pool.submit(ends)
            said = [pool.submit(says, node) for node in self.nodes]
            self.submitters[0].call("POST", f"jobs/{request}/cancel")
            return ended.result() * 1000, max(each.result() for each in said) * 1000


def until(what: str, is_so: Callable[[], Any]) -> None:
    """Ask again and again until something is so."""
    ends = time.monotonic() + WAIT_S
    while not is_so():
        assert time.monotonic() < ends, f"not in {WAIT_S} s: {what}"
        time.sleep(_LOOK_S)


def _knows_the_app(node: RunningNode) -> bool:
    names = [service["serviceName"] for service in node.get("services")["services"]]
    return names == ["lab"] and bool(node.get("services/lab/apps")["apps"])


def _is(status: str, node: RunningNode, request: str) -> bool:
    return _status(node, request) == status


def _status(node: RunningNode, request: str) -> str:
    try:
        return str(node.get(f"jobs/{request}")["status"])
    except NotFound:  # it has not come there yet
        return ""


def _console(node: RunningNode, request: str) -> str:
    found = json.loads((node.home / "api.json").read_text())
    with closing(Api(found["url"], found["token"])) as api:
        chunks = api.stream(f"/api/v1/jobs/{request}/console")
        return b"".join(chunks).decode(errors="replace")


def main() -> int:
    """Measure, and print p50 and the largest."""
    times = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    folder = Path(tempfile.mkdtemp(prefix="pairio-cancel-"))
    try:
        with ExitStack() as stack:
            lab = CancelLab(folder, stack)
            found = [lab.canceled_ms() for _ in range(times)]
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    for what, column in (
        ("nothing runs", [ended for ended, _ in found]),
        ("every node says so", [said for _, said in found]),
    ):
        p50, most = statistics.median(column), max(column)
        print(f"cancel, four nodes, n={times}: {what} after p50 {p50:.0f} ms, max {most:.0f} ms")
    return 0 if max(max(pair) for pair in found) < 1000 else 1


if __name__ == "__main__":
    sys.exit(main())
