"""What is left of a supervisor or a host that is killed while its sandbox is being made: nothing.

Bubblewrap, killed between its fork and its word to its child, leaves the child waiting for ever. So
the kills here are aimed at that moment. `pytest -s` shows how many met it. No control groups: with
one the node ends what a killed supervisor left, too.
"""

import os
import secrets
import signal
import time
from pathlib import Path

import psutil
import pytest
import trio
import trio.testing

from pairio_node.runner import Launcher, RunSpec
from pairio_node.runner.bwrap import BwrapRunner
from pairio_node.runner.process import ProcessRunner
from pairio_node.runner.supervisor.processes import children, descendants, send
from pairio_node.runner.supervisor.runfile import read
from pairio_node.runner.zygote.link import HostGone, HostLink
from tests.integration.runner_lab import script_spec
from tests.integration.warm_lab import PATIENCE_S, lab, until

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]

KILLS = 30
#: So long a kill waits for its moment.
_MOMENT_S = 20.0


def _named(word: str) -> list[int]:
    """Return the processes with a word in their command line."""
    found = []
    for process in psutil.process_iter():
        try:
            if any(word in part for part in process.cmdline()) and process.pid != os.getpid():
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


def _lives(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def _kill_while_its_sandbox_is_made(pid: int) -> bool:
    """Kill a process as soon as the one that it began, bubblewrap, has a child itself, and with it
    bubblewrap, as its death signal does; say whether the child was left waiting. Bubblewrap is
    held meanwhile: the moment is short."""
    ends_s = time.monotonic() + _MOMENT_S
    outer: list[int] = []
    inner: list[int] = []
    while not inner and time.monotonic() < ends_s:
        outer = children(pid)
        inner = [child for one in outer for child in children(one)]
    assert pid > 1 and inner
    send(outer, signal.SIGSTOP)
    send([pid, *outer], signal.SIGKILL)
    time.sleep(0.02)
    return any(map(_lives, inner))


async def test_nothing_is_left_of_supervisors_that_are_killed(tmp_path: Path) -> None:
    word = f"left{secrets.token_hex(8)}"
    waiting = 0
    with Launcher(tmp_path / "alive", with_groups=False) as launcher:
        runner = BwrapRunner(launcher)
        for number in range(KILLS):
            folder = tmp_path / str(number)
            folder.mkdir()
            spec = script_spec(folder, "sleep 600", program=f"{word}.sh")
            spec.work_dir.mkdir()
            with trio.fail_after(PATIENCE_S):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_lost, runner, spec)
                    await until(lambda spec=spec: _supervisor(spec) > 0)  # type: ignore[misc]
                    waiting += _kill_while_its_sandbox_is_made(_supervisor(spec))
        await until(lambda: not _named(word))
    print(f"\n{KILLS} supervisors killed, {waiting} sandboxes left waiting at first, 0 at last")


def _supervisor(spec: RunSpec) -> int:
    """Return the process id of a run's supervisor; 0 when it has not said it yet."""
    return read(spec.work_dir).supervisor


async def _lost(runner: BwrapRunner, spec: RunSpec) -> None:
    outcome = await runner.run(spec, trio.Event())
    assert outcome.status == "infra"


async def test_nothing_is_left_of_hosts_that_are_killed(tmp_path: Path) -> None:
    waiting = 0
    async with lab(tmp_path, groups=False) as made:
        made.app("import time; time.sleep(600)")
        word = f"left{secrets.token_hex(8)}"
        for number in range(KILLS):
            config = made.runner.config(made.spec("pass")) | {
                "folder": str(tmp_path / "warm" / str(number)),
                "pydantic": False,
                "single_because": "it is tried" if number % 2 else "",
                "import_s": 60,
                "workers": 1,
            }
            for kind in ("zygote", "single"):
                config[kind]["argv"] += [word]  # of its program, which looks at the first two
            host = HostLink(made.runner._launcher)
            with trio.fail_after(PATIENCE_S):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_begun, host, config)
                    await until(lambda host=host: host.pid > 0)  # type: ignore[misc]
                    await trio.testing.wait_all_tasks_blocked()  # it has been told what to do
                    waiting += _kill_while_its_sandbox_is_made(host.pid)
            await until(host.has_ended)
        await until(lambda: not _named(word))
    assert waiting, "no kill met the moment"
    print(f"\n{KILLS} hosts killed, {waiting} sandboxes left waiting at first, 0 at last")


async def _begun(host: HostLink, config: dict[str, object]) -> None:
    with pytest.raises(HostGone):
        await host.begin(config, PATIENCE_S)


async def test_what_a_job_without_a_sandbox_started_ends_with_its_supervisor(
    tmp_path: Path,
) -> None:
    word = f"left{secrets.token_hex(8)}"
    script = f"setsid sh -c 'touch begun; sleep 600; : {word}' & sleep 600"
    with Launcher(tmp_path / "alive", with_groups=False) as launcher:
        spec = script_spec(tmp_path, script, program="main.sh")
        spec.work_dir.mkdir()

        async def kill() -> None:
            await until((spec.work_dir / "tmp/working/begun").exists)
            assert _named(word)
            os.kill(_supervisor(spec), signal.SIGKILL)

        with trio.fail_after(PATIENCE_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(kill)
                outcome = await ProcessRunner(launcher).run(spec, trio.Event())
        assert outcome.status == "infra"
        await until(lambda: not _named(word))


async def test_a_launcher_that_ends_leaves_supervisors_and_takes_what_was_left(
    tmp_path: Path,
) -> None:
    """Its node has gone: what a killed one left goes at once, jobs that go on are left alone."""
    word = f"left{secrets.token_hex(8)}"
    script = f"setsid sh -c 'touch begun; sleep 600; : {word}' & sleep 600"
    with Launcher(tmp_path / "alive", with_groups=False) as launcher:
        specs = []
        async with trio.open_nursery() as nursery:
            for name in ("killed", "goes-on"):
                (tmp_path / name).mkdir()
                spec = script_spec(tmp_path / name, script, restart_grace_s=60)
                spec.work_dir.mkdir()
                specs.append(spec)
                nursery.start_soon(ProcessRunner(launcher).run, spec, trio.Event())
                await until((spec.work_dir / "tmp/working/begun").exists)
            killed, goes_on = (_supervisor(s) for s in specs)
            nursery.cancel_scope.cancel()
        below = descendants(killed)
        assert len(below) > 2
        os.kill(killed, signal.SIGKILL)
        await until(lambda: not _lives(killed))
        launcher._end_helper(5.0)
        await until(lambda: not any(map(_lives, below)))
        try:
            assert descendants(goes_on)
        finally:
            os.kill(goes_on, signal.SIGTERM)
        await until(lambda: not _named(word))
