"""`python -m tests.integration.many_jobs [TIMES]`: what 1,000 jobs in one call cost, and a workflow
of 200 jobs the first and the second time.

One node process, the SDK in this one. The thousand go to a node that does not compute, so that
nothing else goes on; the workflow is four layers of 50 jobs, each resting on two of the layer
before, run by the `process` executor. Wall time, and the CPU time of client and node together,
which does not depend on what else the machine does.
"""

import os
import resource
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from pairio.client import Client
from tests.integration.test_sdk import STEP, Lab

_TICKS = os.sysconf("SC_CLK_TCK")


def _cpu_s(pid: int) -> float:
    """Return the CPU time of a process and of this one, without their children."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    own = resource.getrusage(resource.RUSAGE_SELF)
    return (int(fields[11]) + int(fields[12])) / _TICKS + own.ru_utime + own.ru_stime


def _node_pid(lab: Lab) -> int:
    """Return the process of the node, which its watchdog has started."""
    watchdog = lab.node.process.pid
    children = Path(f"/proc/{watchdog}/task/{watchdog}/children").read_text().split()
    return int(children[0]) if children else watchdog


def _costs(lab: Lab, run: Callable[[], object]) -> tuple[float, float]:
    pid = _node_pid(lab)
    began, before = time.monotonic(), _cpu_s(pid)
    run()
    return time.monotonic() - began, _cpu_s(pid) - before


def _workflow(client: Client) -> None:
    layer = list(client.map(STEP, [{"text": f"0-{n}"} for n in range(50)]))
    jobs = layer[:]
    for depth in range(1, 4):
        outputs = [job.outputs["output"] for job in layer]
        inputs = [{"inputs": [outputs[n], outputs[(n + 1) % 50]]} for n in range(50)]
        layer = list(client.map(STEP, [{"text": f"{depth}-{n}"} for n in range(50)], inputs=inputs))
        jobs += layer
    assert {job.status for job in client.as_completed(jobs)} == {"completed"}


def _said(what: str, found: list[tuple[float, float]]) -> None:
    for kind, column in (("wall", [w for w, _ in found]), ("CPU", [c for _, c in found])):
        low, high = min(column), max(column)
        middle = statistics.median(column)
        print(f"{what}: {kind} median {middle:.2f} s ({low:.2f} to {high:.2f}), n={len(found)}")


def measure(folder: Path, times: int) -> None:
    """Measure, and print."""
    lab = Lab(folder)
    os.environ |= {"PAIRIO_HOME": str(lab.home), "PATH": str(folder / "bin")}  # without a sandbox
    lab.start()
    lab.node.call("POST", "services", {"name": "lab"})
    lab.node.call("POST", "services/lab/apps", {"source": str(folder / "app")})
    try:
        with Client() as client:
            runs = [_costs(lab, lambda: _workflow(client)) for _ in range(1 + times)]
            _said("200 jobs, first", runs[:1])
            _said("200 jobs, again", runs[1:])
        lab.node.stop()
        lab.start("pairio_cli.node_entry", "--no-compute")
        with Client() as client:
            client.services()
            _said("1,000 jobs in one call", [_thousand(lab, client, n) for n in range(times)])
    finally:
        lab.node.stop()


def _thousand(lab: Lab, client: Client, number: int) -> tuple[float, float]:
    parameters = [{"text": f"many {number}-{n}"} for n in range(1000)]
    return _costs(lab, lambda: client.map(STEP, parameters, inputs={}))


def main() -> int:
    """Run the measurement."""
    folder = Path(tempfile.mkdtemp(prefix="pairio-many-"))
    try:
        measure(folder, int(sys.argv[1]) if len(sys.argv) > 1 else 5)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
