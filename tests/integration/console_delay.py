"""`python -m tests.integration.console_delay [LINES]`: how late a line of a job is at another node.

Two node processes, connected over libp2p; one submits and follows, the other computes a job that
prints the time, a line at a moment drawn at random. The delay of a line is the time between its
print and its coming out of the HTTP API of the first node, both by the clock of this machine.
"""

import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from pairio._http import Api
from tests.integration.conftest import RunningNode, launch

APP = {
    "name": "talker",
    "processors": [
        {
            "name": "talk",
            "executable": "main.py",
            "inputs": [],
            "outputs": [],
            "parameters": [{"name": "lines", "type": "int"}, {"name": "mean_ms", "type": "int"}],
        }
    ],
}
MAIN = """\
import json, os, random, sys, time
given = json.load(open(os.environ["PAIRIO_JOB_FILE"]))["parameters"]
given = {p["name"]: p["value"] for p in given} if isinstance(given, list) else given
for number in range(given["lines"]):
    time.sleep(random.expovariate(1000 / given["mean_ms"]) if given["mean_ms"] else 0)
    print(f"line {number} {time.time()}", file=random.choice([sys.stdout, sys.stderr]), flush=True)
"""


def talker(folder: Path) -> Path:
    """Write the app into a folder."""
    folder.mkdir()
    (folder / "main.py").write_text(MAIN)
    (folder / "spec.json").write_text(json.dumps(APP))
    return folder


def job_of(lines: int, mean_ms: int) -> dict[str, Any]:
    """Return a definition of a job that prints so many lines."""
    values = {"lines": lines, "mean_ms": mean_ms}
    return {
        "appName": "talker",
        "processorName": "talk",
        "inputFiles": [],
        "outputFiles": [],
        "parameters": [{"name": name, "value": value} for name, value in values.items()],
    }


def events(node: RunningNode, job_id: str, **query: Any) -> Iterator[dict[str, Any]]:
    """Yield what a node tells of a job's console, to its end."""
    found = json.loads((node.home / "api.json").read_text())
    path = f"/api/v1/jobs/{job_id}/console"
    with closing(Api(found["url"], found["token"])) as api:
        yield from api.lines(path, {"follow": "1", "format": "json", **query})


def pair(path: Path, stack: ExitStack) -> tuple[RunningNode, RunningNode]:
    """Return two nodes with a service and the app: one that submits, one that computes."""
    first = launch(path / "first", "--no-compute")
    stack.callback(first.stop)
    bootstrap = ("--bootstrap", first.info["addresses"][0])
    second = launch(path / "second", *bootstrap, "--allow-process", "talker")
    stack.callback(second.stop)
    first.call("POST", "services", {"name": "lab"})
    first.call("POST", "services/lab/grant", {"who": second.info["peerId"], "roles": ["compute"]})
    first.call("POST", "services/lab/apps", {"source": str(talker(path / "talker"))})
    return first, second


def delays_ms(node: RunningNode, lines: int, mean_ms: int) -> list[float]:
    """Submit a job and return how late each of its lines was."""
    job = node.call("POST", "jobs", {"jobDefinition": job_of(lines, mean_ms), "skipCache": True})
    found, left = [], ""
    for event in events(node, job["requestId"]):
        now = time.time()
        if event["type"] == "output":
            *whole, left = (left + event["text"]).split("\n")
            found += [(now - float(line.split()[2])) * 1000 for line in whole]
    assert event["status"] == "completed", event
    assert len(found) == lines, "lines are missing"
    return found


def main() -> int:
    """Measure, and print p50, p99 and the largest."""
    lines = int(sys.argv[1]) if len(sys.argv) > 1 else 500
    folder = Path(tempfile.mkdtemp(prefix="pairio-console-"))
    try:
        with ExitStack() as stack:
            first, _ = pair(folder, stack)
            found = sorted(delays_ms(first, lines, 50))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    p99 = found[int(len(found) * 0.99)]
    print(
        f"console: {lines} lines over two nodes, p50 {statistics.median(found):.0f} ms,"
        f" p99 {p99:.0f} ms, largest {found[-1]:.0f} ms"
    )
    return 0 if p99 <= 500 else 1


if __name__ == "__main__":
    sys.exit(main())
