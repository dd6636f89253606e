"""Runners with real processes: what holds, what is limited, what is said."""

import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from pairio_node.runner import (
    BwrapRunner,
    Launcher,
    ProcessRunner,
    RunInput,
    RunOutcome,
    RunOutput,
    RunSpec,
)

pytestmark = pytest.mark.integration
RUNNERS = [ProcessRunner, BwrapRunner]


@pytest.fixture
def launcher(tmp_path: Path) -> Iterator[Launcher]:
    with Launcher(tmp_path / "alive") as made:
        yield made


@pytest.fixture(params=RUNNERS, ids=lambda kind: kind.name)
def runner(request: pytest.FixtureRequest, launcher: Launcher) -> ProcessRunner:
    made = request.param(launcher)
    assert isinstance(made, ProcessRunner)
    return made


def _spec(tmp_path: Path, script: str, **changes: object) -> RunSpec:
    bundle = tmp_path / "bundle"
    bundle.mkdir(exist_ok=True)
    (bundle / "main.sh").write_text(f"#!/bin/sh\n{script}\n")
    (bundle / "main.sh").chmod(0o755)
    work = tmp_path / "work"
    shutil.rmtree(work, ignore_errors=True)
    fields = {
        "attempt": "a-1",
        "job_id": "job",
        "service": "s",
        "app": "app",
        "processor": "p",
        "executable": "/app/main.sh",
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


async def _run(runner: ProcessRunner, spec: RunSpec) -> RunOutcome:
    if runner.name == "bwrap" and shutil.which("bwrap") is None:
        assert not os.environ.get("CI"), "CI installs bubblewrap"
        pytest.skip("bubblewrap is not installed")
    return await runner.run(spec, trio.Event())


async def test_a_job_reads_its_input_and_writes_its_output(
    runner: ProcessRunner, tmp_path: Path
) -> None:
    (tmp_path / "in.txt").write_text("text")
    script = "pwd; ls /app"
    spec = _spec(
        tmp_path,
        script + '\nprintf done > "$PAIRIO_JOB_WORKING_DIR/../out/0"',
        inputs=(RunInput("input", "in.txt", tmp_path / "in.txt"),),
        outputs=(RunOutput("output", "out.txt"),),
    )
    outcome = await _run(runner, spec)
    assert outcome.status == "completed", outcome
    assert outcome.outputs["output"].read_text() == "done"
    if runner.name == "bwrap":  # without a sandbox there is neither /app nor a /tmp of one's own
        assert outcome.console.split() == [b"/tmp/working", b"main.sh"]


async def test_an_exit_code_is_a_failure_with_the_last_line(
    runner: ProcessRunner, tmp_path: Path
) -> None:
    outcome = await _run(runner, _spec(tmp_path, "echo first; echo it broke; exit 3"))
    assert (outcome.status, outcome.error) == ("failed", "the job exited with code 3: it broke")


async def test_a_missing_output_is_a_failure_by_name(runner: ProcessRunner, tmp_path: Path) -> None:
    spec = _spec(tmp_path, "true", outputs=(RunOutput("report", "r.txt"),))
    outcome = await _run(runner, spec)
    assert "output 'report' was not made" in outcome.error


async def test_a_link_as_output_is_refused(runner: ProcessRunner, tmp_path: Path) -> None:
    script = 'ln -s /etc/passwd "$PAIRIO_JOB_WORKING_DIR/../out/0"'
    outcome = await _run(runner, _spec(tmp_path, script, outputs=(RunOutput("o", "o"),)))
    assert outcome.status == "failed"
    assert "no regular file" in outcome.error


async def test_the_time_limit_ends_a_job_that_ignores_signals(
    runner: ProcessRunner, tmp_path: Path
) -> None:
    script = "trap '' TERM; while :; do sleep 0.1; done"
    outcome = await _run(runner, _spec(tmp_path, script, time_ms=500))
    assert (outcome.status, outcome.limit) == ("failed", "time_ms=500")
    assert "time limit of 0.5 s" in outcome.error


async def test_the_memory_limit_is_named_with_its_value(
    runner: ProcessRunner, tmp_path: Path
) -> None:
    script = "exec /usr/bin/perl -e '$x = \"a\" x (300*1024*1024); sleep 20'"
    outcome = await _run(runner, _spec(tmp_path, script, memory_mib=100))
    assert outcome.status == "failed"
    assert "memory limit of 100 MiB" in outcome.error


async def test_a_child_that_holds_the_console_open_is_not_waited_for(
    runner: ProcessRunner, tmp_path: Path
) -> None:
    with trio.fail_after(10):
        outcome = await _run(runner, _spec(tmp_path, "setsid sleep 60 & echo over"))
    assert outcome.status == "completed"
    assert b"over" in outcome.console


async def test_a_long_console_keeps_head_and_tail(runner: ProcessRunner, tmp_path: Path) -> None:
    outcome = await _run(runner, _spec(tmp_path, "echo first; seq 1 400000; echo last"))
    assert outcome.console.startswith(b"first")
    assert outcome.console.endswith(b"last\n")
    assert b"bytes left out" in outcome.console
    assert len(outcome.console) < 1_100_000


async def test_cancel_ends_a_job(runner: ProcessRunner, tmp_path: Path) -> None:
    cancel = trio.Event()
    cancel.set()
    with trio.fail_after(10):
        outcome = await runner.run(_spec(tmp_path, "sleep 60"), cancel)
    assert outcome.status == "canceled"


async def test_an_executable_outside_the_bundle_is_refused(
    runner: ProcessRunner, tmp_path: Path
) -> None:
    outcome = await _run(runner, _spec(tmp_path, "true", executable="../../bin/sh"))
    assert (outcome.status, "no executable" in outcome.error) == ("failed", True)


@pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")
async def test_the_sandbox_keeps_a_job_from_the_host(launcher: Launcher, tmp_path: Path) -> None:
    secret = tmp_path / "node.key"
    secret.write_text("secret")
    secret.chmod(stat.S_IRUSR)
    script = (
        f"cat {secret} && echo LEAK; ls /root /home 2>/dev/null && echo LEAK;"
        " touch /usr/x /app/x /in/x 2>/dev/null && echo LEAK;"
        " cat /proc/net/route | tail -n +2 | grep . && echo LEAK; ls /proc | grep -c '^[0-9]'"
    )
    outcome = await _run(BwrapRunner(launcher), _spec(tmp_path, script))
    assert b"LEAK" not in outcome.console, outcome.console
    assert (await BwrapRunner(launcher).probe()).ok


@pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")
async def test_a_job_outlives_the_idle_threads_of_trio(launcher: Launcher, tmp_path: Path) -> None:
    # The parent-death signal fires when the thread that forked ends: trio's do after 10 s.
    outcome = await _run(BwrapRunner(launcher), _spec(tmp_path, "sleep 12; echo alive"))
    assert outcome.console.strip() == b"alive"
