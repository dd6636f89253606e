"""What jobs in containers ask for beyond resources: secrets, streams, the network. Real engines,
and images that have no interpreter, or not even a shell."""

import json
import os
import shutil
import signal
import tarfile
from collections.abc import Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from pairio_node.runner import Launcher, RunInput, RunOutcome, RunSpec
from pairio_node.runner.container.beside import beside_body
from pairio_node.runner.container.runner import ContainerRunner
from pairio_node.runner.container.settings import ContainerSettings
from pairio_node.runner.supervisor.memory import MemoryFiles
from pairio_node.streams import JobStreams
from pairio_node.urls import UrlRules
from tests.integration.engines import RunningEngine, engine
from tests.integration.runner_lab import script_spec, supervisor_of
from tests.integration.test_containers import TOOLS
from tests.integration.waiting import until_so
from tests.node.image_lab import layer, save

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]
VALUE = "correct horse stapler"
TOKEN = {"TOKEN": VALUE}
MEMORY = (Path("/dev/shm"), Path(f"/run/user/{os.geteuid()}"))


@pytest.fixture(scope="module", params=["podman", "docker"])
def running(request: pytest.FixtureRequest) -> Iterator[RunningEngine]:
    with engine(request.param) as found:
        yield found


@pytest.fixture(scope="module")
def probed() -> dict[str, ContainerRunner]:
    return {}


@pytest.fixture
async def runner(running: RunningEngine, probed: dict[str, ContainerRunner], tmp_path: Path) -> Any:
    """A runner whose engine was probed, by this test or one before it."""
    home = tmp_path / "home"
    home.mkdir()
    with Launcher(tmp_path / "alive") as launcher:
        made = ContainerRunner(launcher, ContainerSettings(socket=running.socket), home)
        if running.name not in probed:
            probe = await made.probe()
            assert probe.ok, probe
            probed[running.name] = made
        made.trust(probed[running.name])
        yield made


def _archive(path: Path, *, has_shell: bool) -> str:
    """Write an image of one program under its own name, and maybe of a shell and what is usual."""
    program = shutil.which("busybox")
    if program is None:
        assert not os.environ.get("CI"), "CI installs busybox-static"
        pytest.skip("busybox-static is not installed")
    links = []
    for name in (*TOOLS, "wget", "sed", "wc", "dd", "rm", "mv") if has_shell else ():
        entry = tarfile.TarInfo(f"bin/{name}")
        entry.type, entry.linkname = tarfile.SYMTYPE, "/opt/busybox"
        links.append(entry)
    return save(path, [layer({"opt/busybox": Path(program).read_bytes()}, *links)])


@pytest.fixture(params=["a shell", "no shell"])
async def image(request: pytest.FixtureRequest, runner: ContainerRunner, tmp_path: Path) -> str:
    archive = tmp_path / "image.tar"
    image_id = _archive(archive, has_shell=request.param == "a shell")
    if not await runner.has_image(image_id):
        await runner.load_image(image_id, archive)
    return image_id


def _spec(tmp_path: Path, script: str, image: str, **changes: Any) -> RunSpec:
    """Return the run of a script of busybox's shell, which every image of these tests has."""
    work = tmp_path / "home" / "jobs" / "work"
    shutil.rmtree(work, ignore_errors=True)
    mine = {"memory_mib": 256, "time_ms": 60_000, "work_dir": work, "image": image}
    spec = script_spec(tmp_path, "", **{**mine, **changes})
    tools = " ".join(("cat", "wc", "dd", "sleep", "rm", "mv", "touch", "ls", "sed", "wget", "grep"))
    names = f'for t in {tools}; do alias $t="/opt/busybox $t"; done'
    (spec.bundle / "main.sh").write_text(f"#!/opt/busybox sh\n{names}\n{script}\n")
    return spec


async def _run(runner: ContainerRunner, spec: RunSpec) -> RunOutcome:
    with trio.fail_after(120):
        return await runner.run(spec, trio.Event())


def _holding(*folders: Path) -> list[Path]:
    """Return the files in which the secret stands."""
    found = []
    for folder in folders:
        for path in folder.rglob("*"):
            try:
                if path.is_file() and not path.is_symlink() and VALUE.encode() in path.read_bytes():
                    found.append(path)
            except OSError:
                continue  # gone meanwhile
    return found


# -- secrets -----------------------------------------------------------------------------------


async def test_a_job_reads_its_secrets_and_its_console_shows_none(
    runner: ContainerRunner, image: str, tmp_path: Path
) -> None:
    script = """
    [ "$(cat $PAIRIO_SECRETS_DIR/TOKEN | wc -c)" = 21 ] && echo it is whole
    cat $PAIRIO_SECRETS_DIR/TOKEN; echo
    dd if=$PAIRIO_SECRETS_DIR/TOKEN bs=5 count=2 2>/dev/null; sleep 0.3
    dd if=$PAIRIO_SECRETS_DIR/TOKEN bs=5 skip=2 2>/dev/null; echo
    cat $PAIRIO_SECRETS_DIR/TOKEN >&2; exit 3
    """
    outcome = await _run(runner, _spec(tmp_path, script, image, secrets=TOKEN))
    said = outcome.console.decode()
    assert "it is whole" in said
    assert said.count("[secret TOKEN]") == 3
    assert VALUE not in f"{said} {outcome.error}"
    assert "[secret TOKEN]" in outcome.error
    assert _holding(tmp_path, *MEMORY) == []


async def test_while_a_job_runs_its_secrets_are_in_its_own_memory_alone(
    runner: ContainerRunner, running: RunningEngine, image: str, tmp_path: Path
) -> None:
    script = "echo ready > /tmp/working/ready; while [ ! -e /tmp/go ]; do sleep 0.1; done"
    script += "; cat $PAIRIO_SECRETS_DIR/TOKEN > /dev/null && echo it is there"
    spec = _spec(tmp_path, script, image, secrets=TOKEN)
    outcomes: list[RunOutcome] = []

    async def run() -> None:
        outcomes.append(await _run(runner, spec))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await until_so((spec.work_dir / "tmp/working/ready").exists)
        (name,) = running.containers()
        told = json.dumps(running.api.ask("GET", f"/containers/{name}/json"))
        assert "/run/secrets/TOKEN" in told
        assert VALUE not in told
        # No file of the machine has it, the engine's own folders among them, and no process that
        # it runs in its variables or arguments.
        await until_so(lambda: _holding(*MEMORY) == [])
        assert _holding(tmp_path, Path(running.socket).parent) == []
        for process in Path("/proc").glob("[0-9]*"):
            if int(process.name) == os.getpid():
                continue
            for part in ("environ", "cmdline"):
                try:
                    assert VALUE.encode() not in (process / part).read_bytes()
                except (PermissionError, FileNotFoundError, ProcessLookupError):
                    continue  # another's, or gone
        (spec.work_dir / "tmp/go").touch()
    assert outcomes[0].console == b"it is there\n", outcomes


async def test_a_job_cannot_change_its_secrets_and_the_next_one_sees_none(
    runner: ContainerRunner, image: str, tmp_path: Path
) -> None:
    script = "cd $PAIRIO_SECRETS_DIR; echo x > TOKEN; rm -f TOKEN; mv TOKEN T; touch y; ls"
    first = await _run(runner, _spec(tmp_path, f"({script}) 2>/dev/null", image, secrets=TOKEN))
    assert first.console.decode().splitlines() == ["TOKEN"]
    script = "ls /run/secrets /run /dev/shm /var/tmp; echo [$PAIRIO_SECRETS_DIR]"
    second = await _run(runner, _spec(tmp_path, f"({script}) 2>/dev/null", image))
    assert "TOKEN" not in second.console.decode()
    assert "[]" in second.console.decode()


async def test_secrets_go_with_a_supervisor_that_was_killed(
    runner: ContainerRunner, running: RunningEngine, image: str, tmp_path: Path
) -> None:
    spec = _spec(tmp_path, "echo ready > /tmp/working/ready; sleep 71.3", image, secrets=TOKEN)
    outcomes: list[RunOutcome] = []

    async def run() -> None:
        outcomes.append(await _run(runner, spec))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await until_so((spec.work_dir / "tmp/working/ready").exists)
        os.kill(supervisor_of(spec.work_dir), signal.SIGKILL)
    assert outcomes[0].status == "infra"
    assert running.containers() == []
    assert _holding(tmp_path, *MEMORY) == []


async def test_what_a_start_that_was_killed_left_in_memory_goes_with_the_next_one(
    runner: ContainerRunner, tmp_path: Path
) -> None:
    prefix = runner._memory_prefix(tmp_path / "home" / "jobs" / "work")
    other = MemoryFiles("pairio-0000-", TOKEN, 0)
    try:
        MemoryFiles(prefix, TOKEN, 0)
        assert len(_holding(*MEMORY)) == 2
        assert (await runner.probe()).ok
        assert len(_holding(*MEMORY)) == 1  # that of another home
    finally:
        other.remove()


# -- streams -----------------------------------------------------------------------------------

DATA = b"".join(b"%07d\n" % n for n in range(100_000))
URL = """url=$(sed -n 's/.*"url": "\\([^"]*\\)".*/\\1/p' $PAIRIO_JOB_FILE)\n"""


@asynccontextmanager
async def _streaming(tmp_path: Path, spec: RunSpec) -> Any:
    """Give a run an input that it reads by a stream, and serve it."""
    file = tmp_path / "data.txt"
    file.write_bytes(DATA)
    spec.work_dir.mkdir(parents=True)
    own_network = spec.network == "none"
    streams = JobStreams(spec.work_dir / "streams", UrlRules(), own_network=own_network)
    streams.add_file(0, file)
    async with streams.serving():
        url = streams.url(0, "data.txt")
        place = spec.work_dir / "in" / "0" / "data.txt"
        inputs = (RunInput("data", "data.txt", place, url, is_here=False),)
        yield replace(spec, inputs=inputs, stream_folder=streams.shown)


async def test_a_job_reads_a_streamed_input_and_has_no_network(
    runner: ContainerRunner, running: RunningEngine, image: str, tmp_path: Path
) -> None:
    script = f"""{URL}wget -q -O - $url | wc -c
    echo $url | grep -c '^http://127.0.0.1:18741/'
    wget -q -O - ${{url%/*/*}}/7/data.txt || echo no other
    wget -q -O - http://127.0.0.1:18741/ || echo no root
    grep -v '^Iface' /proc/net/route; ls /sys/class/net
    ls /run/pairio || echo no socket
    """
    spec = _spec(tmp_path, f"({script}) 2>/dev/null", image)
    async with _streaming(tmp_path, spec) as ready:
        outcome = await _run(runner, ready)
    told = outcome.console.decode().split("\n")[:-1]
    assert told == [str(len(DATA)), "1", "no other", "no root", "lo", "no socket"], outcome
    assert running.containers() == []


async def test_a_stream_and_secrets_come_together_and_one_job_has_not_the_others(
    runner: ContainerRunner, running: RunningEngine, image: str, tmp_path: Path
) -> None:
    script = f"{URL}echo ready > /tmp/working/ready; while [ ! -e /tmp/go ]; do sleep 0.1; done"
    script += "; wget -q -O - $url | wc -c; cat $PAIRIO_SECRETS_DIR/TOKEN"
    spec = _spec(tmp_path, script, image, secrets=TOKEN)
    outcomes: list[RunOutcome] = []
    async with _streaming(tmp_path, spec) as ready, trio.open_nursery() as nursery:

        async def run() -> None:
            outcomes.append(await _run(runner, ready))

        nursery.start_soon(run)
        await until_so((spec.work_dir / "tmp/working/ready").exists)
        assert len(running.containers()) == 2
        url = ready.inputs[0].url
        (tmp_path / "beside").mkdir()
        code = f"wget -q -O - {url} && echo LEAK; cat /run/secrets/* && echo LEAK; echo over"
        beside = _spec(tmp_path / "beside", f"({code}) 2>/dev/null", image)
        work = tmp_path / "home" / "jobs" / "beside"
        other = await _run(runner, replace(beside, work_dir=work))
        assert other.console == b"over\n"
        (spec.work_dir / "tmp/go").touch()
    assert outcomes[0].console == f"{len(DATA)}\n[secret TOKEN]".encode(), outcomes
    assert running.containers() == []


async def test_a_job_whose_streams_cannot_be_passed_on_is_nobodys_failure(
    runner: ContainerRunner,
    running: RunningEngine,
    image: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from pairio_node.runner.container import runner as module

    def broken(*arguments: Any) -> dict[str, Any]:
        return {**beside_body(*arguments), "Cmd": ["/bin/sh", "-c", "echo it is broken"]}

    monkeypatch.setattr(module, "beside_body", broken)
    spec = _spec(tmp_path, "echo it began", image, secrets=TOKEN)
    async with _streaming(tmp_path, spec) as ready:
        outcome = await _run(runner, ready)
    assert (outcome.status, outcome.console) == ("infra", b"")
    # Podman notices by itself, when it is to make the other container.
    assert "it is broken" in outcome.error or "are not started" in outcome.error
    assert running.containers() == []
    assert _holding(tmp_path, *MEMORY) == []


async def test_a_killed_supervisor_leaves_no_container_beside_its_job(
    runner: ContainerRunner, running: RunningEngine, image: str, tmp_path: Path
) -> None:
    spec = _spec(tmp_path, "echo ready > /tmp/working/ready; sleep 71.4", image)
    async with _streaming(tmp_path, spec) as ready, trio.open_nursery() as nursery:
        nursery.start_soon(_run, runner, ready)
        await until_so((spec.work_dir / "tmp/working/ready").exists)
        os.kill(supervisor_of(spec.work_dir), signal.SIGKILL)
    assert running.containers() == []


async def test_a_job_goes_on_reading_when_it_is_taken_up_again(
    runner: ContainerRunner, running: RunningEngine, image: str, tmp_path: Path
) -> None:
    script = f"{URL}echo ready > /tmp/working/ready; while [ ! -e /tmp/go ]; do sleep 0.1; done"
    spec = _spec(tmp_path, f"{script}; wget -q -O - $url | wc -c", image, restart_grace_s=60)
    async with _streaming(tmp_path, spec) as ready, trio.open_nursery() as nursery:
        nursery.start_soon(runner.run, ready, trio.Event())
        await until_so((spec.work_dir / "tmp/working/ready").exists)
        nursery.cancel_scope.cancel()
    assert (await runner.probe()).ok  # it removes what is left over, and not these
    assert len(running.containers()) == 2
    streams = JobStreams.found(spec.work_dir / "streams", UrlRules())
    assert streams is not None
    async with streams.serving():
        (spec.work_dir / "tmp/go").touch()
        with trio.fail_after(90):
            outcome = await runner.resume(ready, trio.Event())
    assert outcome.console == f"{len(DATA)}\n".encode(), outcome
    assert running.containers() == []


# -- the network -------------------------------------------------------------------------------


async def _reached(runner: ContainerRunner, spec: RunSpec) -> bytes:
    return (await _run(runner, spec)).console


async def test_a_job_reaches_the_machines_network_if_it_may(
    runner: ContainerRunner, image: str, tmp_path: Path
) -> None:
    listener = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener[0].socket.getsockname()[1]

    async def answer(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(b"HTTP/1.0 200 OK\r\n\r\nreached")
        await stream.aclose()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, answer, listener)
        script = f"wget -q -O - http://127.0.0.1:{port}/ 2>/dev/null || echo no"
        assert await _reached(runner, _spec(tmp_path, script, image)) == b"no\n"
        assert await _reached(runner, _spec(tmp_path, script, image, network="full")) == b"reached"
        nursery.cancel_scope.cancel()


async def test_with_the_network_a_job_still_sees_no_process_and_no_file_of_the_machine(
    runner: ContainerRunner, image: str, tmp_path: Path
) -> None:
    (tmp_path / "private").write_text("mine")
    script = f"cat {tmp_path}/private; ls /proc | grep -c '^[0-9]'; touch /etc/x && echo LEAK"
    outcome = await _run(runner, _spec(tmp_path, f"({script}) 2>/dev/null", image, network="full"))
    (processes,) = outcome.console.decode().split()
    assert int(processes) < 8


async def test_streams_are_read_over_the_machines_network_too(
    runner: ContainerRunner, image: str, tmp_path: Path
) -> None:
    spec = _spec(tmp_path, f"{URL}wget -q -O - $url | wc -c", image, network="full")
    async with _streaming(tmp_path, spec) as ready:
        assert ready.stream_folder is None
        outcome = await _run(runner, ready)
    assert outcome.console == f"{len(DATA)}\n".encode(), outcome
