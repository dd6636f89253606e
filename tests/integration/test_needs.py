"""Secrets and the machine's network with a real sandbox."""

import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from pairio_node.runner import BwrapRunner, Launcher, RunOutcome, RunSpec
from tests.integration.runner_lab import script_spec

pytestmark = pytest.mark.integration
VALUE = "correct horse battery"


@pytest.fixture
def runner(tmp_path: Path) -> Iterator[BwrapRunner]:
    if shutil.which("bwrap") is None:
        assert not os.environ.get("CI"), "CI installs bubblewrap"
        pytest.skip("bubblewrap is not installed")
    with Launcher(tmp_path / "alive") as launcher:
        yield BwrapRunner(launcher)


async def _run(runner: BwrapRunner, spec: RunSpec) -> RunOutcome:
    with trio.fail_after(60):
        return await runner.run(spec, trio.Event())


def _holding(path: Path) -> list[Path]:
    return [p for p in path.rglob("*") if p.is_file() and VALUE.encode() in p.read_bytes()]


async def test_a_job_reads_its_secrets_and_its_console_shows_none(
    runner: BwrapRunner, tmp_path: Path
) -> None:
    script = """
    [ "$(cat $PAIRIO_SECRETS_DIR/TOKEN | wc -c)" = 21 ] && echo it is whole
    cat $PAIRIO_SECRETS_DIR/TOKEN; echo
    dd if=$PAIRIO_SECRETS_DIR/TOKEN bs=5 count=2 2>/dev/null; sleep 0.3
    dd if=$PAIRIO_SECRETS_DIR/TOKEN bs=5 skip=2 2>/dev/null; echo
    cat $PAIRIO_SECRETS_DIR/TOKEN >&2; exit 3
    """
    outcome = await _run(runner, script_spec(tmp_path, script, secrets={"TOKEN": VALUE}))
    said = outcome.console.decode()
    assert "it is whole" in said
    assert said.count("[secret TOKEN]") == 3
    assert VALUE not in f"{said} {outcome.error}"
    assert "[secret TOKEN]" in outcome.error
    assert _holding(tmp_path) == []


async def test_secrets_are_in_no_variable_argument_or_file_of_the_machine(
    runner: BwrapRunner, tmp_path: Path
) -> None:
    script = "echo ready > /tmp/working/ready; sleep 2"
    spec = script_spec(tmp_path, script, secrets={"TOKEN": VALUE})
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_run, runner, spec)
        with trio.fail_after(30):
            while not (spec.work_dir / "tmp/working/ready").exists():  # noqa: ASYNC110 - another process
                await trio.sleep(0.05)
        for process in Path("/proc").glob("[0-9]*"):
            if int(process.name) == os.getpid():
                continue
            for name in ("environ", "cmdline"):
                try:
                    assert VALUE.encode() not in (process / name).read_bytes()
                except (PermissionError, FileNotFoundError, ProcessLookupError):
                    continue  # another's, or gone
        assert _holding(tmp_path) == []


async def test_a_job_cannot_change_its_secrets_and_the_next_one_sees_none(
    runner: BwrapRunner, tmp_path: Path
) -> None:
    script = "cd $PAIRIO_SECRETS_DIR; echo x > TOKEN; rm -f TOKEN; mv TOKEN T; touch y; ls"
    first = await _run(runner, script_spec(tmp_path, script, secrets={"TOKEN": VALUE}))
    assert first.console.decode().splitlines()[-1] == "TOKEN"
    script = "ls /run/secrets; echo [$PAIRIO_SECRETS_DIR]; ls /dev/shm"
    second = await _run(runner, script_spec(tmp_path, script))
    assert "TOKEN" not in second.console.decode()
    assert "[]" in second.console.decode()


@pytest.mark.parametrize(("network", "reached"), [("none", "no"), ("full", "yes")])
async def test_a_job_reaches_the_machines_network_if_it_may(
    runner: BwrapRunner, tmp_path: Path, network: str, reached: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        code = f"import socket; socket.create_connection(('127.0.0.1', {port}), 5)"
        script = f'python3 -c "{code}" 2>/dev/null && echo yes || echo no'
        outcome = await _run(runner, script_spec(tmp_path, script, network=network))
    assert outcome.console.decode().strip() == reached


async def test_with_the_network_a_job_still_sees_no_process_and_no_file_of_the_machine(
    runner: BwrapRunner, tmp_path: Path
) -> None:
    (tmp_path / "private").write_text("mine")
    script = f"cat {tmp_path}/private; ls /proc | grep -c '^[0-9]'; touch /usr/x; ls /root /home"
    outcome = await _run(runner, script_spec(tmp_path, script, network="full"))
    said = outcome.console.decode()
    assert "mine" not in said
    assert said.count("No such file") >= 3
    assert int(next(line for line in said.splitlines() if line.isdecimal())) < 8
