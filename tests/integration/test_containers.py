"""Containers with real engines: what holds, what is limited, what is said, what is left."""

import json
import os
import shutil
import signal
import stat
import tarfile
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import trio

from pairio_node.runner import Launcher, RunInput, RunOutcome, RunOutput, RunSpec
from pairio_node.runner.container.archive import ImageError, tag_of
from pairio_node.runner.container.body import HOME_LABEL, container_body
from pairio_node.runner.container.runner import ContainerRunner
from pairio_node.runner.container.settings import ContainerSettings
from pairio_node.runner.supervise import is_supervised
from pairio_node.runner.supervisor.engine import EngineError
from tests.integration.bombs import FORK_BOMB
from tests.integration.engines import RunningEngine, engine
from tests.integration.runner_lab import script_spec, supervisor_of
from tests.integration.waiting import until_so
from tests.node.image_lab import layer, save

pytestmark = pytest.mark.integration
#: What jobs of tests call: one program, and a name for each of its tools.
TOOLS = ("sh", "cat", "echo", "sleep", "touch", "ls", "printf", "mkdir", "id", "grep", "seq")


@pytest.fixture(scope="session", params=["podman", "docker"])
def running(request: pytest.FixtureRequest) -> Iterator[RunningEngine]:
    with engine(request.param) as found:
        yield found


@pytest.fixture(scope="session")
def probed() -> dict[str, ContainerRunner]:
    return {}


@pytest.fixture
def launcher(tmp_path: Path) -> Iterator[Launcher]:
    with Launcher(tmp_path / "alive") as made:
        yield made


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def _runner(running: RunningEngine, launcher: Launcher, home: Path) -> ContainerRunner:
    return ContainerRunner(launcher, ContainerSettings(socket=running.socket), home)


@pytest.fixture
async def runner(
    running: RunningEngine,
    probed: dict[str, ContainerRunner],
    launcher: Launcher,
    home: Path,
) -> ContainerRunner:
    """A runner whose engine was probed, by this test or one before it."""
    made = _runner(running, launcher, home)
    if running.name not in probed:
        probe = await made.probe()
        assert probe.ok, probe
        probed[running.name] = made
    made.trust(probed[running.name])
    return made


def busybox_archive(path: Path, **config: Any) -> str:
    """Write an archive of a small system; returns the image's id."""
    program = shutil.which("busybox")
    if program is None:
        assert not os.environ.get("CI"), "CI installs busybox-static"
        pytest.skip("busybox-static is not installed")
    data = Path(program).read_bytes()
    script = b"#!/bin/busybox sh\nexec /bin/busybox cat /etc/made-of\n"
    files = {"bin/busybox": data, "opt/tool": script, "etc/made-of": b"an image\n"}
    return save(path, [layer(files, *map(_link, TOOLS))], **config)


def _link(name: str) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(f"bin/{name}")
    entry.type, entry.linkname = tarfile.SYMTYPE, "busybox"
    return entry


@pytest.fixture
async def image(runner: ContainerRunner, tmp_path: Path) -> str:
    archive = tmp_path / "image.tar"
    image_id = busybox_archive(archive)
    if not await runner.has_image(image_id):
        await runner.load_image(image_id, archive)
    return image_id


def _spec(tmp_path: Path, script: str, **changes: object) -> RunSpec:
    work = tmp_path / "home" / "jobs" / "work"
    shutil.rmtree(work, ignore_errors=True)
    program = "main.py" if script.startswith("import ") else "main.sh"
    mine: dict[str, object] = {"memory_mib": 256, "time_ms": 60_000, "work_dir": work}
    return script_spec(tmp_path, script, program=program, **mine | changes)


async def _run(runner: ContainerRunner, spec: RunSpec) -> RunOutcome:
    with trio.fail_after(90):
        return await runner.run(spec, trio.Event())


def _runs(argument: str) -> bool:
    """Say whether a process with this argument runs."""
    return any(argument in (p.info["cmdline"] or ()) for p in psutil.process_iter(["cmdline"]))


async def _until_in(path: Path, text: bytes) -> None:
    await until_so(lambda: path.is_file() and text in path.read_bytes())


# -- files in, files out -----------------------------------------------------------------------


async def test_a_job_reads_its_input_and_writes_its_output(
    runner: ContainerRunner, running: RunningEngine, image: str, tmp_path: Path
) -> None:
    odd = tmp_path / 'in, with "words": ü\n.txt'
    odd.write_text("text")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "x").write_text("of a folder")
    script = (
        'cat /etc/made-of; ls /app; cat /in/0/*; cat /in/1/folder/x; cd "$PAIRIO_JOB_WORKING_DIR";'
        " echo; echo $PWD; printf done > ../out/0; mkdir ../out/1; printf x > ../out/1/f"
    )
    spec = _spec(
        tmp_path,
        script,
        image=image,
        inputs=(RunInput("a", odd.name, odd), RunInput("b", "folder", tmp_path / "folder")),
        outputs=(RunOutput("output", "out.txt"), RunOutput("all", "all")),
    )
    outcome = await _run(runner, spec)
    assert outcome.status == "completed", outcome
    assert outcome.outputs["output"].read_text() == "done"
    assert (outcome.outputs["all"] / "f").read_text() == "x"
    said = b"an image\nmain.sh\ntextof a folder\n/tmp/working\n"
    assert outcome.console == said, outcome.console
    assert running.containers() == []


async def test_an_app_may_lie_in_its_image(
    runner: ContainerRunner, image: str, tmp_path: Path
) -> None:
    outcome = await _run(runner, _spec(tmp_path, "", executable="/opt/tool", image=image))
    assert (outcome.status, outcome.console) == ("completed", b"an image\n")
    outcome = await _run(runner, _spec(tmp_path, "", executable="/opt/none", image=image))
    assert outcome.status == "failed"
    assert "127" in outcome.error
    outcome = await _run(runner, _spec(tmp_path, "", executable="../../opt/tool", image=image))
    assert (outcome.status, outcome.error[:28]) == ("failed", "the app has no executable '.")


async def test_a_python_app_has_the_sdk(runner: ContainerRunner, tmp_path: Path) -> None:
    script = "import pairio.sdk, sys\nprint(pairio.sdk.__name__, file=sys.stderr)\n"
    outcome = await _run(runner, _spec(tmp_path, script))
    assert (outcome.status, outcome.console) == ("completed", b"pairio.sdk\n")


async def test_an_exit_code_is_a_failure_with_the_last_line(
    runner: ContainerRunner, image: str, tmp_path: Path
) -> None:
    spec = _spec(tmp_path, "echo first; echo it broke; exit 3", image=image)
    outcome = await _run(runner, spec)
    assert (outcome.status, outcome.error) == ("failed", "the job exited with code 3: it broke")


async def test_a_long_console_keeps_head_and_tail(
    runner: ContainerRunner, image: str, tmp_path: Path
) -> None:
    script = "echo first; seq 1 400000; echo last"
    outcome = await _run(runner, _spec(tmp_path, script, image=image))
    assert outcome.console.startswith(b"first\n1\n2\n")
    assert outcome.console.endswith(b"399999\n400000\nlast\n")
    assert b"bytes left out" in outcome.console
    assert len(outcome.console) < 1_100_000


# -- what holds --------------------------------------------------------------------------------


async def test_a_job_sees_its_own_and_nothing_else(
    runner: ContainerRunner, image: str, home: Path, tmp_path: Path
) -> None:
    secret = home / "node.key"
    secret.write_text("secret")
    secret.chmod(stat.S_IRUSR)
    other = home / "jobs" / "other" / "tmp"
    other.mkdir(parents=True)
    (other / "job.json").write_text("of another job")
    script = (
        f"cat {secret} && echo LEAK; ls {other} && echo LEAK; ls /home/* /root/* && echo LEAK;"
        " for f in /x /etc/x /app/x /in/x /bin/x /opt/pairio/x; do touch $f && echo LEAK $f; done;"
        " grep -v '^Iface' /proc/net/route && echo LEAK route; ls /sys/class/net;"
        " ls -d /proc/[0-9]*; id"
    )
    outcome = await _run(runner, _spec(tmp_path, f"({script}) 2>/dev/null", image=image))
    assert b"LEAK" not in outcome.console, outcome.console
    lines = outcome.console.decode().split("\n")
    assert lines[0] == "lo"
    assert len([line for line in lines if line.startswith("/proc/")]) <= 5
    assert "uid=65534" in outcome.console.decode()


async def test_a_probe_names_what_gets_out(
    running: RunningEngine, launcher: Launcher, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pairio_node.runner.container import runner as module

    made = _runner(running, launcher, home)

    def weak(*arguments: Any) -> dict[str, Any]:
        found = container_body(*arguments)
        found["HostConfig"] |= {"ReadonlyRootfs": False, "NetworkMode": "host", "CapDrop": []}
        del found["NetworkDisabled"]
        return {**found, "User": "0:0"}

    monkeypatch.setattr(module, "container_body", weak)
    probe = await made.probe()
    assert not probe.ok
    assert "does not hold" in probe.why


async def test_an_engine_that_bounds_no_processes_is_not_used(
    running: RunningEngine, launcher: Launcher, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As rootless Podman on control groups version 1: it takes the bound and enforces nothing.
    from pairio_node.runner.container import runner as module

    def unbounded(*arguments: Any) -> dict[str, Any]:
        found = container_body(*arguments)
        return {**found, "HostConfig": {**found["HostConfig"], "PidsLimit": 0}}

    monkeypatch.setattr(module, "container_body", unbounded)
    probe = await _runner(running, launcher, home).probe()
    assert not probe.ok
    assert "bounds no processes" in probe.why


# -- limits ------------------------------------------------------------------------------------


async def test_the_time_limit_ends_a_job_that_ignores_signals(
    runner: ContainerRunner, image: str, tmp_path: Path
) -> None:
    script = "trap '' TERM; while :; do sleep 0.1; done"
    outcome = await _run(runner, _spec(tmp_path, script, time_ms=2500, image=image))
    assert (outcome.status, outcome.limit) == ("failed", "time_ms=2500")


async def test_memory_is_bounded_for_all_children_together(
    runner: ContainerRunner, tmp_path: Path
) -> None:
    script = (
        "import os, time\n"
        "for _ in range(4):\n"
        "    if not os.fork():\n"
        "        data = b'x' * 90_000_000\n"
        "        time.sleep(600)\n"
        "time.sleep(600)\n"
    )
    outcome = await _run(runner, _spec(tmp_path, script, memory_mib=200))
    assert (outcome.status, outcome.limit) == ("failed", "memory_mib=200"), outcome
    assert outcome.error == "memory: used 200 MiB of at most 200 MiB"


async def test_one_process_over_its_memory_is_named_too(
    runner: ContainerRunner, tmp_path: Path
) -> None:
    script = "import time\ndata = b'x' * 900_000_000\ntime.sleep(60)\n"
    outcome = await _run(runner, _spec(tmp_path, script, memory_mib=200))
    assert (outcome.status, outcome.limit) == ("failed", "memory_mib=200"), outcome


async def test_a_fork_bomb_meets_its_bound(runner: ContainerRunner, tmp_path: Path) -> None:
    outcome = await _run(runner, _spec(tmp_path, FORK_BOMB.lstrip()))
    assert outcome.status == "failed", outcome
    assert outcome.error.startswith("processes: "), outcome


async def test_cpu_time_is_counted(runner: ContainerRunner, tmp_path: Path) -> None:
    script = "import time\nwhile time.process_time() < 0.5: pass\n"
    outcome = await _run(runner, _spec(tmp_path, script))
    assert outcome.status == "completed"
    assert 400 <= outcome.usage["cpu_ms"] <= 5000


# -- ends --------------------------------------------------------------------------------------


async def _cancelled(
    runner: ContainerRunner, spec: RunSpec, meanwhile: Callable[[], Awaitable[None]] | None = None
) -> tuple[RunOutcome, float]:
    """Cancel a job once it has said `started`; returns the outcome and how long it took."""
    cancel, outcomes = trio.Event(), []

    async def run() -> None:
        outcomes.append(await runner.run(spec, cancel))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await _until_in(spec.work_dir / "console", b"started")
        if meanwhile is not None:
            await meanwhile()
        cancel.set()
        began = trio.current_time()
    return outcomes[0], trio.current_time() - began


async def test_a_job_that_ignores_signals_is_killed_after_the_grace(
    runner: ContainerRunner, running: RunningEngine, image: str, tmp_path: Path
) -> None:
    script = "trap '' TERM; echo started; while :; do sleep 0.1; done"
    outcome, took_s = await _cancelled(runner, _spec(tmp_path, script, image=image))
    assert outcome.status == "canceled"
    assert took_s < 5  # 0.7 s of grace; the engine of a busy machine takes its time
    assert running.containers() == []


async def test_a_job_may_clean_up_when_it_is_canceled(
    runner: ContainerRunner, image: str, tmp_path: Path
) -> None:
    script = "trap 'echo cleaned; exit 0' TERM; echo started; while :; do :; done"
    outcome, _ = await _cancelled(runner, _spec(tmp_path, script, image=image))
    assert outcome.console == b"started\ncleaned\n"


async def test_a_daemon_ends_with_its_job(runner: ContainerRunner, tmp_path: Path) -> None:
    script = "(setsid sh -c 'sleep 71.7 &' &); sleep 0.1; echo over"
    outcome = await _run(runner, _spec(tmp_path, script))
    assert (outcome.status, outcome.console) == ("completed", b"over\n")
    assert not _runs("71.7")


async def test_a_job_goes_on_without_its_node_and_is_taken_up_again(
    running: RunningEngine, image: str, home: Path, tmp_path: Path
) -> None:
    script = (
        "echo started; while [ ! -e ../go ]; do sleep 0.1; done; echo went on; printf 1 >../out/0"
    )
    spec = _spec(tmp_path, script, image=image, outputs=(RunOutput("o", "o"),), restart_grace_s=60)
    with Launcher(home / "alive") as first:
        before = _runner(running, first, home)
        assert (await before.probe()).ok
        async with trio.open_nursery() as nursery:
            nursery.start_soon(before.run, spec, trio.Event())
            await _until_in(spec.work_dir / "console", b"started")
            nursery.cancel_scope.cancel()
    assert is_supervised(spec.work_dir)
    with Launcher(home / "alive") as second:
        after = _runner(running, second, home)
        assert (await after.probe()).ok  # it removes what is left over, and not this one
        assert len(running.containers()) == 1
        (spec.work_dir / "tmp" / "go").touch()
        with trio.fail_after(60):
            outcome = await after.resume(spec, trio.Event())
    assert (outcome.status, outcome.console) == ("completed", b"started\nwent on\n")
    assert outcome.outputs["o"].read_text() == "1"
    assert running.containers() == []


async def test_a_container_whose_supervisor_was_killed_is_removed_by_the_next_start(
    runner: ContainerRunner, running: RunningEngine, image: str, home: Path, tmp_path: Path
) -> None:
    spec = _spec(tmp_path, "echo started; sleep 72.7", image=image)
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(runner.run, spec, trio.Event())
            await _until_in(spec.work_dir / "console", b"started")
            os.kill(supervisor_of(spec.work_dir), signal.SIGKILL)
            nursery.cancel_scope.cancel()
    (name,) = running.containers() or [""]
    if name:  # the node was gone before it saw to it
        with Launcher(home / "alive") as next_launcher:
            assert (await _runner(running, next_launcher, home).probe()).ok
    await until_so(lambda: not _runs("72.7"))
    assert running.containers() == []


async def test_a_killed_supervisor_is_nobodys_failure(
    runner: ContainerRunner, running: RunningEngine, image: str, tmp_path: Path
) -> None:
    spec = _spec(tmp_path, "echo started; sleep 73.7", image=image)

    async def kill() -> None:
        await _until_in(spec.work_dir / "console", b"started")
        os.kill(supervisor_of(spec.work_dir), signal.SIGKILL)

    outcomes = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(kill)
        outcomes.append(await _run(runner, spec))
    assert outcomes[0].status == "infra"
    assert running.containers() == []
    assert not _runs("73.7")


async def test_containers_of_others_are_left_alone(
    runner: ContainerRunner, running: RunningEngine, image: str
) -> None:
    for name, labels in (("mine", {}), ("of-another-home", {HOME_LABEL: "0" * 16})):
        body = {"Image": image, "Cmd": ["/bin/sh"], "Labels": labels}
        running.api.ask("POST", "/containers/create", {"name": name}, body)
    try:
        assert (await runner.probe()).ok
        assert sorted(running.containers()) == ["mine", "of-another-home"]
    finally:
        running.api.remove("mine")
        running.api.remove("of-another-home")


# -- images ------------------------------------------------------------------------------------


async def test_an_archive_of_another_image_is_refused(
    runner: ContainerRunner, running: RunningEngine, image: str, tmp_path: Path
) -> None:
    other = busybox_archive(tmp_path / "other.tar", author="another")
    with pytest.raises(ImageError, match=f"its archive holds image {other}"):
        await runner.load_image(image, tmp_path / "other.tar")
    assert not await runner.has_image(other)


async def test_a_damaged_archive_never_reaches_the_engine(
    runner: ContainerRunner, running: RunningEngine, tmp_path: Path
) -> None:
    archive = tmp_path / "damaged.tar"
    wanted = busybox_archive(archive, author="damaged")
    data = bytearray(archive.read_bytes())
    data[data.find(b"an image")] ^= 1
    archive.write_bytes(data)
    with pytest.raises(ImageError, match="damaged"):
        await runner.load_image(wanted, archive)
    assert not await runner.has_image(wanted)


async def test_what_the_owner_tagged_stays_his(
    runner: ContainerRunner, running: RunningEngine, tmp_path: Path
) -> None:
    mine, theirs = tmp_path / "mine.tar", tmp_path / "theirs.tar"
    own = busybox_archive(mine, author="mine")
    await runner.load_image(own, mine)
    tag = {"repo": "me/app", "tag": "1"}
    running.api.ask("POST", f"/images/{tag_of(own)}/tag", tag)
    hijack = busybox_archive(theirs, author="theirs")  # its archive says that it is me/app:1
    await runner.load_image(hijack, theirs)
    assert running.api.ask("GET", "/images/me/app:1/json")["Id"] in (own, own[7:])


async def test_images_are_kept_within_their_bound_and_only_this_nodes_go(
    running: RunningEngine, launcher: Launcher, home: Path, tmp_path: Path
) -> None:
    archives = [tmp_path / f"{n}.tar" for n in range(3)]
    ids = [busybox_archive(path, author=f"bound {n}") for n, path in enumerate(archives)]
    size = archives[0].stat().st_size
    settings = ContainerSettings(socket=running.socket, images_bytes_max=size * 5 // 2)
    made = ContainerRunner(launcher, settings, home)
    assert (await made.probe()).ok
    await made.load_image(ids[0], archives[0])
    await made.load_image(ids[1], archives[1])
    with pytest.raises(ImageError, match="in use"):
        await made.load_image(ids[2], archives[2])
    long_ago = time.time() - 10_000
    for image_id in ids[:2]:
        os.utime(home / "images" / image_id[7:], (long_ago, long_ago))
    assert await made.has_image(ids[0])  # used just now
    await made.load_image(ids[2], archives[2])
    assert [await made.has_image(image_id) for image_id in ids] == [True, False, True]


async def test_a_run_whose_image_is_gone_is_nobodys_failure(
    runner: ContainerRunner, image: str, tmp_path: Path
) -> None:
    missing = image[:-1] + ("0" if image[-1] != "0" else "1")
    outcome = await _run(runner, _spec(tmp_path, "true", image=missing))
    assert outcome.status == "infra"


async def test_an_engine_that_is_gone_is_said(
    launcher: Launcher, home: Path, tmp_path: Path
) -> None:
    made = ContainerRunner(launcher, ContainerSettings(socket=str(tmp_path / "none.sock")), home)
    probe = await made.probe()
    assert not probe.ok
    assert "not there" in probe.why
    assert "podman.socket" in probe.hint
    outcome = await _run(made, _spec(tmp_path, "true"))
    assert outcome.status == "infra"


def test_both_engines_know_an_image_by_the_same_id(tmp_path: Path) -> None:
    archive = tmp_path / "image.tar"
    image_id = busybox_archive(archive)
    size, seen = archive.stat().st_size, []
    for name in ("podman", "docker"):
        with engine(name) as found:
            data = archive.read_bytes()
            found.api.send("POST", "/images/load", {}, "application/x-tar", size, [data])
            with pytest.raises(EngineError):
                found.api.ask("GET", f"/images/sha256:{'0' * 64}/json")
            answer = found.api.ask("GET", f"/images/{image_id}/json")
            seen.append(json.dumps([answer["Id"], answer["RootFS"]["Layers"]]))
    assert seen[0] == seen[1]
    assert image_id in seen[0]
