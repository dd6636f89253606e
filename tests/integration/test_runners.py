"""Runners with real processes: what holds, what is limited, what is said."""

import os
import re
import shutil
import signal
import stat
from collections.abc import Iterator
from pathlib import Path

import psutil
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
from pairio_node.runner.supervise import Plan, supervise
from pairio_node.runner.supervisor.console import (
    HEAD_BYTES,
    TAIL_BYTES,
    ConsoleWriter,
    follow,
    read_console,
)
from tests.integration.runner_lab import script_spec, supervisor_of
from tests.integration.waiting import until_so

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
    spec = script_spec(
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
    outcome = await _run(runner, script_spec(tmp_path, "echo first; echo it broke; exit 3"))
    assert (outcome.status, outcome.error) == ("failed", "the job exited with code 3: it broke")


async def test_a_missing_output_is_a_failure_by_name(runner: ProcessRunner, tmp_path: Path) -> None:
    spec = script_spec(tmp_path, "true", outputs=(RunOutput("report", "r.txt"),))
    outcome = await _run(runner, spec)
    assert "output 'report' was not made" in outcome.error


async def test_a_link_as_output_is_refused(runner: ProcessRunner, tmp_path: Path) -> None:
    script = 'ln -s /etc/passwd "$PAIRIO_JOB_WORKING_DIR/../out/0"'
    outcome = await _run(runner, script_spec(tmp_path, script, outputs=(RunOutput("o", "o"),)))
    assert outcome.status == "failed"
    assert "neither file nor folder" in outcome.error


@pytest.mark.parametrize("instead", ["out", "other"])
async def test_a_link_in_the_place_of_the_outputs_folder_leads_nowhere(
    instead: str, runner: ProcessRunner, tmp_path: Path
) -> None:
    others = tmp_path / "others"  # of this user, and none of the job's business
    (others / "0").mkdir(parents=True)
    (others / "node.key").write_text("secret")
    script = f'cd "$PAIRIO_JOB_WORKING_DIR/.."; mkdir -p out/0; rm -r {instead}'
    script += f"; ln -s {others} {instead}"
    outcome = await _run(runner, script_spec(tmp_path, script, outputs=(RunOutput("o", "o"),)))
    if instead == "out":
        assert outcome.status == "failed"
        assert "neither file nor folder" in outcome.error
    assert [name for name in outcome.outputs if name != "o"] == []
    assert not any(path.resolve().is_relative_to(others) for path in outcome.outputs.values())


async def test_further_outputs_are_plain_files_named_in_utf8(
    runner: ProcessRunner, tmp_path: Path
) -> None:
    script = 'cd "$PAIRIO_JOB_WORKING_DIR/../other"; mkdir sub; echo a > sub/a; ln -s /etc etc'
    outcome = await _run(runner, script_spec(tmp_path, script + "; ln -s /etc/passwd passwd"))
    assert list(outcome.outputs) == ["other/sub/a"]
    outcome = await _run(runner, script_spec(tmp_path, script + "; touch $(printf '\\377')"))
    assert outcome.status == "failed"
    assert "is not named in UTF-8" in outcome.error


async def test_an_output_may_be_a_folder(runner: ProcessRunner, tmp_path: Path) -> None:
    script = 'cd "$PAIRIO_JOB_WORKING_DIR/../out"; mkdir -p 0/sub/empty; printf abc > 0/sub/x'
    outcome = await _run(runner, script_spec(tmp_path, script, outputs=(RunOutput("o", "o"),)))
    assert outcome.status == "completed", outcome
    assert (outcome.outputs["o"] / "sub" / "x").read_text() == "abc"


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("ln -s /etc/passwd 0/sub/x", "'sub/x' is neither file nor folder"),
        ("ln -s /etc 0/sub/x", "'sub/x' is neither file nor folder"),
        ("mkfifo 0/pipe", "'pipe' is neither file nor folder"),
        ("touch 0/$(printf '\\377')", "is not named in UTF-8"),
        ("rm -r 0; ln -s /tmp/working 0", "is neither file nor folder"),
    ],
)
async def test_what_a_folder_may_not_hold_fails_the_job_in_words(
    script: str, said: str, runner: ProcessRunner, tmp_path: Path
) -> None:
    script = f'cd "$PAIRIO_JOB_WORKING_DIR/../out"; mkdir -p 0/sub; {script}'
    outcome = await _run(runner, script_spec(tmp_path, script, outputs=(RunOutput("o", "o"),)))
    assert outcome.status == "failed"
    assert said in outcome.error


async def test_the_time_limit_ends_a_job_that_ignores_signals(
    runner: ProcessRunner, tmp_path: Path
) -> None:
    script = "trap '' TERM; while :; do sleep 0.1; done"
    outcome = await _run(runner, script_spec(tmp_path, script, time_ms=500))
    assert (outcome.status, outcome.limit) == ("failed", "time_ms=500")
    assert outcome.error == "time: ran 0.5 s of at most 0.5 s"


async def test_the_memory_limit_is_named_with_its_value(
    runner: ProcessRunner, tmp_path: Path
) -> None:
    script = "exec /usr/bin/perl -e '$x = \"a\" x (300*1024*1024); sleep 20'"
    outcome = await _run(runner, script_spec(tmp_path, script, memory_mib=100))
    assert (outcome.status, outcome.limit) == ("failed", "memory_mib=100")
    assert re.fullmatch(r"memory: used \d+(\.\d)? MiB of at most 100 MiB", outcome.error)


async def test_a_child_that_holds_the_console_open_is_not_waited_for(
    runner: ProcessRunner, tmp_path: Path
) -> None:
    with trio.fail_after(10):
        outcome = await _run(runner, script_spec(tmp_path, "setsid sleep 60 & echo over"))
    assert outcome.status == "completed"
    assert b"over" in outcome.console


async def test_a_long_console_keeps_head_and_tail(runner: ProcessRunner, tmp_path: Path) -> None:
    outcome = await _run(runner, script_spec(tmp_path, "echo first; seq 1 400000; echo last"))
    assert outcome.console.startswith(b"first")
    assert outcome.console.endswith(b"last\n")
    assert b"bytes left out" in outcome.console
    assert len(outcome.console) < 1_100_000


async def test_cancel_ends_a_job(runner: ProcessRunner, tmp_path: Path) -> None:
    cancel = trio.Event()
    cancel.set()
    with trio.fail_after(10):
        outcome = await runner.run(script_spec(tmp_path, "sleep 60"), cancel)
    assert outcome.status == "canceled"


async def test_an_executable_outside_the_bundle_is_refused(
    runner: ProcessRunner, tmp_path: Path
) -> None:
    outcome = await _run(runner, script_spec(tmp_path, "true", executable="../../bin/sh"))
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
    outcome = await _run(BwrapRunner(launcher), script_spec(tmp_path, script))
    assert b"LEAK" not in outcome.console, outcome.console
    assert (await BwrapRunner(launcher).probe()).ok


@pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")
async def test_a_job_outlives_the_idle_threads_of_trio(launcher: Launcher, tmp_path: Path) -> None:
    # The parent-death signal fires when the thread that forked ends: trio's do after 10 s.
    outcome = await _run(BwrapRunner(launcher), script_spec(tmp_path, "sleep 12; echo alive"))
    assert outcome.console.strip() == b"alive"


async def test_what_a_job_leaves_behind_is_ended_and_its_use_is_counted(
    runner: ProcessRunner, tmp_path: Path
) -> None:
    # A daemon that left session and parent; under bwrap its process id is the sandbox's own.
    script = "perl -e 'for (1..5000000) {}'; (setsid sh -c 'sleep 77.7 &' &); sleep 0.1"
    outcome = await _run(runner, script_spec(tmp_path, script))
    assert outcome.status == "completed"
    assert not _runs("77.7")
    assert outcome.usage["cpu_ms"] >= 50
    assert outcome.usage["memory_peak_bytes"] > 2**20


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("true", b""),
        (r"printf 'caf\303\251 \377\001\n'", b"caf\xc3\xa9 \xff\x01\n"),
        ("printf one; sleep 0.3; echo two >&2", b"onetwo\n"),
        ("head -c 1025 /dev/zero", bytes(1025)),
        ("printf one; head -c 5000 /dev/zero", b"one" + bytes(5000)),
    ],
)
async def test_what_a_job_says_comes_whole_be_it_short_or_long(
    runner: ProcessRunner, tmp_path: Path, script: str, said: bytes
) -> None:
    """What a short one says little of comes with its outcome, the rest in a file."""
    outcome = await _run(runner, script_spec(tmp_path, script))
    assert (outcome.status, outcome.console) == ("completed", said)


async def test_a_killed_supervisor_takes_its_job_along_and_is_nobodys_failure(
    runner: ProcessRunner, tmp_path: Path
) -> None:
    spec = script_spec(tmp_path, "echo started; exec sleep 78.8")

    async def kill() -> None:
        await _until_in(spec.work_dir / "console", b"started")
        os.kill(supervisor_of(spec.work_dir), signal.SIGKILL)

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(kill)
            outcome = await _run(runner, spec)
        await until_so(lambda: not _runs("78.8"))
    assert (outcome.status, outcome.error) == (
        "infra",
        "cannot run the job: the job's supervisor has ended: it was killed",
    )


async def test_a_launcher_that_was_killed_is_replaced(launcher: Launcher, tmp_path: Path) -> None:
    runner = ProcessRunner(launcher)
    before = set(psutil.Process().children())  # other tests' engines
    assert (await runner.run(script_spec(tmp_path, "true"), trio.Event())).status == "completed"
    (helper,) = set(psutil.Process().children()) - before
    helper.kill()
    assert (await runner.run(script_spec(tmp_path, "true"), trio.Event())).status == "completed"


async def test_a_launcher_that_was_killed_is_missed_at_once_while_a_job_goes_on(
    launcher: Launcher, tmp_path: Path
) -> None:
    runner = ProcessRunner(launcher)
    (long := tmp_path / "long").mkdir()
    (short := tmp_path / "short").mkdir()
    before = set(psutil.Process().children())
    async with trio.open_nursery() as nursery:
        spec = script_spec(long, "echo started; exec sleep 81.1")
        nursery.start_soon(_run, runner, spec)
        await _until_in(spec.work_dir / "console", b"started")
        (helper,) = set(psutil.Process().children()) - before
        helper.kill()
        with trio.fail_after(10):  # the wait for an answer is 20 s
            assert (await _run(runner, script_spec(short, "true"))).status == "completed"
        nursery.cancel_scope.cancel()
    await until_so(lambda: not _runs("81.1"))


async def test_a_job_that_cannot_be_started_says_why(launcher: Launcher, tmp_path: Path) -> None:
    spec = script_spec(tmp_path, "true")
    (spec.work_dir / "tmp").mkdir(parents=True)
    plan = Plan(["/no/such/program"], {}, None, 100, 1000, spec.work_dir, sandboxed=False)
    ended = await supervise(launcher, plan, trio.Event())
    assert (ended.why, ended.error) == (
        "start",
        "[Errno 2] No such file or directory: '/no/such/program'",
    )


async def test_a_job_without_grace_ends_with_its_caller(
    runner: ProcessRunner, tmp_path: Path
) -> None:
    spec = script_spec(tmp_path, "echo started; exec sleep 79.9")
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_run, runner, spec)
            await _until_in(spec.work_dir / "console", b"started")
            nursery.cancel_scope.cancel()
        await until_so(lambda: not _runs("79.9"))


async def test_a_job_that_ignores_signals_is_gone_within_a_second_of_its_cancel(
    runner: ProcessRunner, tmp_path: Path
) -> None:
    spec = script_spec(tmp_path, "trap '' TERM; echo started; while :; do sleep 0.1; done")
    cancel = trio.Event()
    outcomes = []

    async def run() -> None:
        outcomes.append(await runner.run(spec, cancel))

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            await _until_in(spec.work_dir / "console", b"started")
            cancel.set()
            began = trio.current_time()
    assert trio.current_time() - began < 1
    assert outcomes[0].status == "canceled"


async def test_a_job_may_clean_up_when_it_is_canceled(
    runner: ProcessRunner, tmp_path: Path
) -> None:
    spec = script_spec(
        tmp_path, "trap 'sleep 0.2; echo cleaned; exit 0' TERM; echo started; while :; do :; done"
    )
    cancel = trio.Event()
    outcomes = []

    async def run() -> None:
        outcomes.append(await runner.run(spec, cancel))

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            await _until_in(spec.work_dir / "console", b"started")
            cancel.set()
    assert outcomes[0].console == b"started\ncleaned\n"


async def _until_in(path: Path, text: bytes) -> None:
    await until_so(lambda: path.is_file() and text in path.read_bytes())


def _runs(argument: str) -> bool:
    """Say whether a process with this argument runs."""
    return any(argument in (p.info["cmdline"] or ()) for p in psutil.process_iter(["cmdline"]))


@pytest.mark.parametrize("piece_bytes", [1, 1000, 65536, 700_000])
def test_the_console_file_keeps_what_came_first_and_last(tmp_path: Path, piece_bytes: int) -> None:
    path = tmp_path / "console"
    pieces = min(1_700_000 // piece_bytes, 3000)
    written = b""
    writer = ConsoleWriter(path)
    for number in range(pieces):
        piece = (str(number).encode() * piece_bytes)[:piece_bytes]
        writer.add(piece)
        written += piece
        if number % (1 + pieces // 7) == 0 or number == pieces - 1:
            assert read_console(path) == _bounded(written)
    assert path.stat().st_size <= 8 + HEAD_BYTES + TAIL_BYTES


def _bounded(written: bytes) -> bytes:
    left_out = len(written) - HEAD_BYTES - TAIL_BYTES
    if left_out <= 0:
        return written
    gap = f"\n[{left_out} bytes left out]\n".encode()
    return written[:HEAD_BYTES] + gap + written[-TAIL_BYTES:]


@pytest.mark.parametrize("step", [1000, 200_000, 3_000_000])
def test_a_growing_console_can_be_followed(step: int, tmp_path: Path) -> None:
    path = tmp_path / "console"
    assert follow(path, 0).next_offset == 0  # nothing was written yet
    writer = ConsoleWriter(path)
    written = bytes(range(251)) * 20_000
    offset = skipped = 0
    for at in range(0, len(written), step):
        writer.add(written[at : at + step])
        while (piece := follow(path, offset)).data:
            assert piece.next_offset == offset + piece.skipped_bytes + len(piece.data)
            assert piece.data == written[piece.next_offset - len(piece.data) : piece.next_offset]
            assert len(piece.data) <= 65536
            offset, skipped = piece.next_offset, skipped + piece.skipped_bytes
    assert offset == len(written)
    assert (skipped == 0) == (step < 400_000)
