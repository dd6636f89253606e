"""Supervisors of warm jobs that serve one job after another: nothing of one meets the next."""

import contextlib
import os
import signal
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import trio

from pairio_node.runner import RunSpec
from pairio_node.runner.supervise import is_supervised
from pairio_node.runner.supervisor.runfile import RUN_FILE
from pairio_node.runner.zygote.link import HostLink
from pairio_node.runner.zygote.pool import WarmLimits
from tests.integration.runner_lab import supervisor_of
from tests.integration.warm_lab import Lab, lab, until

pytestmark = pytest.mark.integration
#: Keepers with a worker that waits for a job, and with none.
WAITING_MAX, FREE_MAX = 2, 4
HOLDS = (
    "open('begun', 'w').close()\nimport time\nwhile not os.path.exists('/tmp/go'): time.sleep(.02)"
)


@pytest.fixture
async def warm(tmp_path: Path) -> AsyncIterator[Lab]:
    async with lab(tmp_path) as made:
        await made.warm()
        yield made


def _host(made: Lab) -> psutil.Process:
    (entry,) = made.runner.pool._entries.values()
    assert entry.warmed is not None
    return psutil.Process(entry.warmed.host.pid)


def _keepers(made: Lab) -> list[psutil.Process]:
    """The children of a host but for its zygote's sandbox."""
    found = []
    for child in _host(made).children():
        with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended
            if child.name() != "bwrap":
                found.append(child)
    return found


def _supervisor(spec: RunSpec) -> int:
    return supervisor_of(spec.work_dir)


async def _served(made: Lab, code: str = "pass", **changes: Any) -> int:
    """Run a job; return who saw it to its end."""
    spec = made.spec(code, **changes)
    warm_before = made.status["jobsWarm"]
    outcome = await made.run_spec(spec)
    assert outcome.status == "completed", outcome
    assert made.status["jobsWarm"] == warm_before + 1
    return _supervisor(spec)


async def _all_have_served(made: Lab) -> set[int]:
    """Run jobs until every keeper has seen one to its end; return them."""
    served = {await _served(made)}
    with trio.fail_after(90):
        while not {child.pid for child in _keepers(made)} <= served:
            served.add(await _served(made))
    return served


async def _begun(made: Lab, spec: RunSpec) -> None:
    await until((spec.work_dir / "tmp/working/begun").exists)
    assert made.status["workers"] == "zygote"


async def test_a_few_serve_many_jobs_and_hold_nothing_of_them(warm: Lab) -> None:
    served = [await _served(warm) for _ in range(60)]
    assert len({*served}) <= 20, served  # one for each job would be 60
    await until(lambda: all(map(_waits, _keepers(warm))))
    await until(lambda: len(_keepers(warm)) <= WAITING_MAX + FREE_MAX)
    assert {*served} & {child.pid for child in _keepers(warm)}


def _open(pid: int) -> list[str]:
    found = []
    with contextlib.suppress(FileNotFoundError):  # one that was one too many has ended
        for fd in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(FileNotFoundError):
                found.append(os.readlink(f"/proc/{pid}/fd/{fd}"))
    return found


def _waits(process: psutil.Process) -> bool:
    """Say whether a keeper waits with a worker, or for one: it has no file of a job open, and no
    more than the standard three, its host, and of a worker two sockets, two processes, a folder."""
    names = _open(process.pid)
    return len(names) <= 3 + 1 + 5 and not any("/jobs/" in name for name in names)


async def test_signals_that_come_before_a_job_are_not_for_it(warm: Lab) -> None:
    """Who sends one found an earlier job of that process."""
    for _ in range(5):
        await _served(warm)
    for _ in range(3):
        await until(lambda: len(_keepers(warm)) >= 2)  # those of the workers that wait
        for child in _keepers(warm):
            with contextlib.suppress(psutil.NoSuchProcess):
                child.send_signal(signal.SIGTERM)
        await _served(warm)


async def test_the_word_to_end_reaches_its_own_job_only(warm: Lab) -> None:
    """The node may say it when the job has ended, and its supervisor has the next one."""
    asked: list[int] = []
    start = HostLink.start

    async def started(link: HostLink, plan: dict[str, Any]) -> int:
        done_fd = await start(link, plan)
        asked.append(os.dup(done_fd))
        return done_fd

    HostLink.start = started  # type: ignore[method-assign, assignment]
    try:
        earlier = await _all_have_served(warm)
        spec = warm.spec(HOLDS)
        async with trio.open_nursery() as nursery:
            outcomes: list[Any] = []

            async def run() -> None:
                outcomes.append(await warm.run_spec(spec))

            nursery.start_soon(run)
            await _begun(warm, spec)
            assert _supervisor(spec) in earlier
            for fd in asked[:-1]:
                with pytest.raises(BrokenPipeError):
                    os.write(fd, b"end")
            await trio.sleep(0.5)
            (spec.work_dir / "tmp/go").touch()
        assert outcomes[0].status == "completed"
    finally:
        HostLink.start = start  # type: ignore[method-assign]
        for fd in asked:
            os.close(fd)


async def test_a_job_is_canceled_by_a_supervisor_that_served_before(warm: Lab) -> None:
    earlier = await _all_have_served(warm)
    spec, cancel = warm.spec(HOLDS), trio.Event()
    outcomes: list[Any] = []

    async def run() -> None:
        outcomes.append(await warm.run_spec(spec, cancel))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await _begun(warm, spec)
        assert _supervisor(spec) in earlier
        cancel.set()
    assert outcomes[0].status == "canceled"
    # What had to be ended is the end of its supervisor, too.
    await until(lambda: not psutil.pid_exists(_supervisor(spec)))
    assert (await _served(warm)) != _supervisor(spec)


@pytest.mark.parametrize("needs", ["a secret", "a signal", "a bound"])
async def test_one_that_saw_more_than_a_job_ends_with_it(warm: Lab, needs: str) -> None:
    changes: dict[str, Any] = {"secrets": {"TOKEN": "correct horse"}} if needs == "a secret" else {}
    code = "pass"
    if needs == "a bound":
        code, changes = "import time; time.sleep(60)", {"time_ms": 300}
    spec = warm.spec(HOLDS if needs == "a signal" else code, **changes)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(warm.run_spec, spec)
        if needs == "a signal":
            await _begun(warm, spec)
            os.kill(_supervisor(spec), signal.SIGTERM)
    await until(lambda: not psutil.pid_exists(_supervisor(spec)))
    assert not is_supervised(spec.work_dir)


async def test_one_whose_node_has_gone_ends_with_its_job(warm: Lab) -> None:
    """Else a node that comes back, and waits for the end of whom it finds, would wait for ever."""
    spec = warm.spec(HOLDS, restart_grace_s=60)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(warm.runner.run, spec, trio.Event())
        await _begun(warm, spec)
        nursery.cancel_scope.cancel()
    assert is_supervised(spec.work_dir)
    (spec.work_dir / "tmp/go").touch()
    with trio.fail_after(90):
        outcome = await warm.runner.resume(spec, trio.Event())
    assert outcome.status == "completed", outcome
    await until(lambda: not psutil.pid_exists(_supervisor(spec)))
    await _served(warm)


async def test_a_failed_job_leaves_its_supervisor_to_others(warm: Lab) -> None:
    spec = warm.spec("print('wrong', file=sys.stderr); sys.exit(3)")
    outcome = await warm.run_spec(spec)
    assert (outcome.status, outcome.console) == ("failed", b"wrong\n")
    served = [await _served(warm) for _ in range(8)]
    # It serves again, or waits behind those that came later.
    assert _supervisor(spec) in {*served, *(child.pid for child in _keepers(warm))}


async def test_the_usage_of_a_job_is_its_own(warm: Lab) -> None:
    busy = "import time\nends = time.process_time() + 0.6\nwhile time.process_time() < ends: pass"
    large = "x = bytearray(200 << 20)"
    for code in (busy, large):
        assert (await warm.run(code)).status == "completed"
    for _ in range(6):
        usage = (await warm.run("pass")).usage
        assert usage["cpu_ms"] < 500, usage
        assert usage["memory_peak_bytes"] < 150 << 20, usage


async def test_many_at_once_leave_few_behind(warm: Lab) -> None:
    async with trio.open_nursery() as nursery:
        for number in range(12):
            nursery.start_soon(warm.told, f"import time; time.sleep(0.5); print({number})")
    await until(lambda: len(_keepers(warm)) <= WAITING_MAX + FREE_MAX)
    await _served(warm)


async def test_a_keeper_that_is_killed_while_it_is_free_is_not_missed(warm: Lab) -> None:
    for _ in range(4):
        await _served(warm)
    for child in _keepers(warm):
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    with trio.fail_after(90):
        while warm.status["jobsWarm"] < 6:
            assert (await warm.run("pass")).status == "completed"
    await _served(warm)


async def test_one_that_fails_says_why_and_leaves_nothing(warm: Lab) -> None:
    spec, outcomes = warm.spec(HOLDS), []

    async def run() -> None:
        outcomes.append(await warm.run_spec(spec))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await _begun(warm, spec)
        pid = _supervisor(spec)
        os.truncate(spec.work_dir / RUN_FILE, 2**24)  # it takes no more
        (spec.work_dir / "tmp/go").touch()
    assert outcomes[0].status == "infra"
    assert "File too large" in outcomes[0].error
    await until(lambda: not psutil.pid_exists(pid))
    found = warm.runner._launcher.groups
    for parent in found.parents.values() if found is not None else ():
        assert not [*Path(parent).glob(f"pairio-job-warm-{pid}-*")]
    await _served(warm)


async def test_one_of_a_worker_for_one_job_ends_with_it(tmp_path: Path) -> None:
    """The next worker's keeper is made with it: nobody would ever ask for this one."""
    async with lab(tmp_path, WarmLimits(mode="single")) as made:
        await made.warm("single")
        for _ in range(4):
            await made.warm("single")
            supervisor = await _served(made)
            await until(partial(_is_gone, supervisor))


async def test_a_job_whose_worker_cannot_be_replaced_runs_once_and_is_told_of(
    tmp_path: Path,
) -> None:
    """When it has been handed over, nothing says that it has not: the host has no descriptor left
    for another worker."""
    async with lab(tmp_path, WarmLimits(mode="single")) as made:
        await made.warm("single")
        host = _host(made)
        await until(lambda: len(_keepers(made)) == WAITING_MAX)  # nothing is being started
        used = host.num_fds()
        host.rlimit(psutil.RLIMIT_NOFILE, (used + 2, used + 2))
        spec = made.spec("open('ran', 'a').write('once\\n')")
        outcome = await made.run_spec(spec)
        assert outcome.status == "completed", outcome
        assert made.status["jobsWarm"] == 1


async def test_workers_that_die_before_there_is_a_job_are_replaced(warm: Lab) -> None:
    """The system kills what waits first when it has no memory left."""
    for _ in range(3):
        await _served(warm)
    await until(lambda: len(_waiting_jobs(warm)) == WAITING_MAX)
    for process in _waiting_jobs(warm):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    with trio.fail_after(60):
        while warm.status["jobsWarm"] < 8:
            assert (await warm.run("pass")).status == "completed"


@pytest.mark.parametrize("killed", [1, WAITING_MAX])
async def test_what_would_see_jobs_to_their_end_is_replaced_when_it_dies_before(
    warm: Lab, killed: int
) -> None:
    """Before there is a job, which waits for nothing then, and runs once."""
    await _served(warm)
    await until(lambda: len(_waiting_jobs(warm)) == WAITING_MAX)
    dead = _waiting_jobs(warm)[:killed]
    for process in dead:
        process.parents()[0].kill()
    await until(lambda: len({*_waiting_jobs(warm)} - {*dead}) == WAITING_MAX)
    for _ in range(3):
        await _served(warm, "assert not os.path.exists('ran'); open('ran', 'w').close()")


@pytest.mark.parametrize("who", ["init", "job"])
async def test_what_dies_again_and_again_is_not_replaced_for_ever(warm: Lab, who: str) -> None:
    dead: set[psutil.Process] = set()
    with trio.move_on_after(60) as patience:
        while True:
            for process in {*_waiting_jobs(warm)} - dead:
                dead.add(process)
                with contextlib.suppress(psutil.NoSuchProcess, IndexError):
                    (process.parents()[0] if who == "init" else process).kill()
            with trio.move_on_after(5) as quiet:
                while not {*_waiting_jobs(warm)} - dead:  # noqa: ASYNC110
                    await trio.sleep(0.02)
            if quiet.cancelled_caught:
                break
    assert not patience.cancelled_caught
    assert len(dead) < 20
    assert (await warm.run("pass")).status == "completed"  # cold
    await warm.settled("zygote")
    await _served(warm)


def _is_gone(pid: int) -> bool:
    return not psutil.pid_exists(pid)


def _waiting_jobs(made: Lab) -> list[psutil.Process]:
    """The processes that wait to be jobs: children of children of the zygote."""
    found = []
    for process in _host(made).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            above = [parent.name() for parent in process.parents()[:3]]  # init, zygote, sandbox
            if above[2:] == ["bwrap"] and "bwrap" not in above[:2]:
                found.append(process)
    return found


FOLDERS = ("working", "working/tmp", "out", "other")
LOOKS = f"""
import os, stat
def seen(name):
    path = '/tmp/' + name
    names = sorted(set(os.listdir(path)) - {{'tmp'}})
    mode = stat.S_IMODE(os.stat(path).st_mode)
    return [names, os.listxattr(path), mode, os.stat(path).st_mtime > 1e9]
found = [seen(name) for name in {FOLDERS}]
print(__import__('json').dumps(found))
"""
LEAVES = """
for name, change in (
    ('working', lambda p: open(p + '/left', 'w').close()),
    ('working/tmp', lambda p: os.utime(p, (1, 1))),
    ('out', lambda p: os.setxattr(p, 'user.word', b'for the next one')),
    ('other', lambda p: os.chmod(p, 0o711)),
):
    change('/tmp/' + name)
"""


async def test_no_job_sees_what_the_one_before_did_to_its_folders(warm: Lab) -> None:
    clean = await warm.told(LOOKS)
    assert [entry[:2] + entry[3:] for entry in clean] == [[[], [], True]] * len(FOLDERS)
    for _ in range(8):
        assert await warm.told(LOOKS + LEAVES) == clean
    assert warm.status["jobsWarm"] == 9
