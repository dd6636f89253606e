"""pairio: node processes of one lab, warm workers, the sandbox; what `dask_side` tries."""

import json
import os
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pairio._http import Api
from pairio.client import Client
from pairio.errors import PairioError
from tests.integration.conftest import RunningNode, launch

RUNS = 60
WAIT_S = 180.0
_APP = """
from pairio.sdk import App, BaseModel, Field, ProcessorBase
import pathlib, time

app = App("tried", description="What the comparison runs")


class Context(BaseModel):
    text: str = Field(description="What to do: hello, nap, busy, or read:PATH")
    number: int = Field(description="Makes it another job", default=0)


class Do(ProcessorBase):
    name = "do"
    description = label = "do"
    image = ""
    executable = "main.py"

    @staticmethod
    def run(context):
        if context.text == "nap":
            time.sleep(0.05)
        elif context.text == "busy":
            for _ in range(1200):
                print(time.time(), flush=True)
                time.sleep(0.05)
        elif context.text.startswith("read:"):
            print(pathlib.Path(context.text[5:]).read_text())
        else:
            print(f"Hello, {context.text}!")


Do.run.__annotations__["context"] = Context
app.add_processor(Do)
if __name__ == "__main__":
    app.run()
"""


class Lab:
    """A service of nodes; the first submits, those after it compute."""

    def __init__(self, folder: Path, workers: int) -> None:
        self.nodes = [launch(folder / "n0", *(["--no-compute"] if workers else []))]
        address = self.nodes[0].info["addresses"][0]
        for number in range(workers):
            self.nodes.append(launch(folder / f"n{number + 1}", "--bootstrap", address))
        first = self.nodes[0]
        first.call("POST", "services", {"name": "lab"})
        for node in self.nodes:
            body = {"who": node.info["peerId"], "roles": ["submit", "compute"]}
            first.call("POST", "services/lab/grant", body)
        (folder / "app").mkdir()
        (folder / "app" / "main.py").write_text(_APP)
        first.call("POST", "services/lab/apps", {"source": str(folder / "app")})
        self.use(first)

    def use(self, node: RunningNode) -> None:
        os.environ["PAIRIO_HOME"] = str(node.home)

    def until_warm(self) -> None:
        """Wait until those that compute have a warm worker of the app."""
        workers = self.nodes[1:] or self.nodes
        ends = time.monotonic() + WAIT_S
        while not all(
            any(e["workers"] == "zygote" for e in n.get("status")["warm"]) for n in workers
        ):
            assert time.monotonic() < ends, "no warm workers"
            time.sleep(0.1)

    def stop(self) -> None:
        for node in self.nodes:
            if node.process.poll() is None:
                node.stop()


@contextmanager
def lab(workers: int) -> Iterator[Lab]:
    """A lab in a folder of its own, gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="pairio-compare-"))
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        made = Lab(folder, workers)
        stack.callback(made.stop)
        yield made


def latency(client: Client, jobs: int) -> dict[str, Any]:
    """One after the other, then all at once, then the same from a new client."""
    took = []
    for number in range(200):
        began = time.perf_counter()
        client.submit("tried/do", parameters={"text": f"one {number}"}).wait(WAIT_S)
        took.append((time.perf_counter() - began) * 1000)
    took.sort()
    texts = [{"text": f"many {n}"} for n in range(jobs)]
    began = time.perf_counter()
    client.map("tried/do", texts).wait(WAIT_S * 3)
    map_s = time.perf_counter() - began
    with Client() as another:
        began = time.perf_counter()
        batch = another.map("tried/do", texts)
        batch.wait(WAIT_S)
        again_s = time.perf_counter() - began
        ran = sum(not job.cached for job in batch.jobs)
    return {
        "p50_ms": statistics.median(took),
        "p99_ms": took[197],
        "map_s": map_s,
        "again_s": again_s,
        "again_ran": ran,
    }


def worker_killed(tried: Lab) -> dict[str, Any]:
    """Kill one of two nodes that compute at a fifth of the work."""
    with Client() as client:
        began = time.perf_counter()
        batch = client.map("tried/do", [{"text": "nap", "number": n} for n in range(RUNS)])
        while batch.progress().done < RUNS // 5:
            time.sleep(0.005)
        tried.nodes[1].process.send_signal(signal.SIGKILL)
        tried.nodes[1].process.wait()
        batch.wait(WAIT_S)
        return {"s": time.perf_counter() - began, "done": batch.progress().completed}


def submitter_killed(tried: Lab) -> int:
    """Return how many of the jobs that were submitted can be had after the node that all of them
    were submitted to died and came back."""
    first = tried.nodes[0]
    with Client() as client:
        batch = client.map("tried/do", [{"text": "nap", "number": 1000 + n} for n in range(RUNS)])
        while batch.progress().done < RUNS // 5:
            time.sleep(0.005)
        first.process.send_signal(signal.SIGKILL)
        first.process.wait()
    assert first.process.stdout is not None
    first.process.stdout.close()
    bootstrap = tried.nodes[-1].info["addresses"][0]
    tried.nodes[0] = launch(first.home, "--no-compute", "--bootstrap", bootstrap)
    with Client() as client:
        again = client.batch(batch.batch_id)
        again.wait(WAIT_S)
        return again.progress().completed


def stranger(tried: Lab) -> str:
    """Somebody who was given nothing but the address; then a member's job that reads a key."""
    secret = Path(tempfile.mkdtemp()) / "key"
    secret.write_text("a private key")
    secret.chmod(0o600)
    found = json.loads((tried.nodes[1].home / "api.json").read_text())
    body = {"jobDefinition": {"appName": "tried", "processorName": "do"}}
    try:
        with closing(Api(found["url"], "guess")) as api:
            api.call("POST", "/api/v1/jobs", body)
        answer = "submitted"
    except PairioError as refusal:
        answer = f"refused: {refusal}"
    with Client() as client:
        job = client.submit("tried/do", parameters={"text": f"read:{secret}"})
        job.wait(WAIT_S)
        assert job.status == "failed", job.console()
    secret.unlink()
    return answer


def cancelled(tried: Lab) -> float:
    """Return for how many seconds a job goes on after its cancel, by what its node has running."""
    with Client() as client:
        job = client.submit("tried/do", parameters={"text": "busy"})
        next(iter(job.follow()))
        at = time.monotonic()
        job.cancel()
        while tried.nodes[0].get("status")["running"]:
            assert time.monotonic() - at < WAIT_S, "it goes on"
        return time.monotonic() - at


def main() -> None:
    """Try all of it."""
    found: dict[str, Any] = {"version": f"pairio {version('pairio')}"}
    began = time.perf_counter()
    with lab(0) as tried, Client() as client:
        client.submit("tried/do", parameters={"text": "first"}).wait(WAIT_S)
        found["start_s"] = time.perf_counter() - began
        tried.until_warm()
        found |= latency(client, int(sys.argv[1]))
        found["cancel_s"] = cancelled(tried)
    with lab(2) as tried:
        with Client() as client:
            client.map("tried/do", [{"text": f"warm {n}"} for n in range(8)]).wait(WAIT_S)
        tried.until_warm()
        found["stranger"] = stranger(tried)
        found["centre_had"] = submitter_killed(tried)
        found["killed"] = worker_killed(tried)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
