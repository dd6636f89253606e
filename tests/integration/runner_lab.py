"""A run by a real runner, for tests: a script as the app, in a folder of the test's own."""

import shutil
from pathlib import Path

import trio

from pairio_node.runner import RunOutcome, RunSpec
from pairio_node.runner.base import Runner
from pairio_node.runner.supervisor.runfile import read

__all__ = ["run_spec", "script_spec", "supervisor_of"]


def script_spec(
    folder: Path, script: str, *, program: str = "main.sh", **changes: object
) -> RunSpec:
    """Return the run of a script (shell; Python where `program` ends in .py) below `folder`."""
    bundle = folder / "bundle"
    bundle.mkdir(exist_ok=True)
    first = "" if program.endswith(".py") else "#!/bin/sh\n"
    (bundle / program).write_text(f"{first}{script}\n")
    (bundle / program).chmod(0o755)
    work = folder / "work"
    shutil.rmtree(work, ignore_errors=True)
    fields = {
        "attempt": "a-1",
        "job_id": "job",
        "service": "s",
        "app": "app",
        "processor": "p",
        "executable": f"/app/{program}",
        "bundle": bundle,
        "inputs": (),
        "list_inputs": (),
        "outputs": (),
        "parameters": [],
        "cpu_millicores": 1000,
        "memory_mib": 512,
        "gpus": 0,
        "time_ms": 30_000,
        "work_dir": work,
        **changes,
    }
    return RunSpec(**fields)  # type: ignore[arg-type]


async def run_spec(runner: Runner, spec: RunSpec) -> RunOutcome:
    """Run to the end."""
    return await runner.run(spec, trio.Event())


def supervisor_of(work_dir: Path) -> int:
    """Return the process id of who sees the job of a folder to its end."""
    pid = read(work_dir).supervisor
    assert pid > 0  # a signal to 0 would end the tests
    return pid
