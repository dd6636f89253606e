"""Engines of containers for tests: Podman and Docker on sockets, images and folders of their own.

Nothing of the machine's own engines is touched. What is not installed is a failure in CI, and
elsewhere a skip with the reason.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from pairio_node.runner.supervisor.engine import Engine, EngineError

START_S = 60.0
_CONTAINERS_CONF = """
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=512:512"]
"""


@dataclass(frozen=True)
class RunningEngine:
    """An engine that answers at `socket`."""

    name: str
    socket: str

    @property
    def api(self) -> Engine:
        return Engine(self.socket)

    def containers(self) -> list[str]:
        """Return the names of all containers."""
        found = self.api.ask("GET", "/containers/json", {"all": "1"})
        return [container["Names"][0].lstrip("/") for container in found]


def missing(name: str) -> str:
    """Return why an engine cannot be started here; empty when it can."""
    program = {"podman": "podman", "docker": "dockerd"}[name]
    if shutil.which(program) is None:
        return f"{program} is not installed"
    return "" if os.geteuid() == 0 else f"tests start {program} as root"


@contextlib.contextmanager
def engine(name: str) -> Iterator[RunningEngine]:
    """Run an engine; `name` is podman or docker."""
    why = missing(name)
    if why:
        assert not os.environ.get("CI"), f"CI installs engines, and {why}"
        pytest.skip(why)
    # Not pytest's folder: the path of a socket has 107 bytes at most.
    folder = Path(tempfile.mkdtemp(prefix="pairio-engine-"))
    socket = folder / "engine.sock"
    start = _podman if name == "podman" else _docker
    with open(folder / "log", "wb") as log:
        process = start(folder, socket, log)
    try:
        found = RunningEngine(name, str(socket))
        _wait(found, process, folder / "log")
        yield found
        for container in found.api.ask("GET", "/containers/json", {"all": "1"}):
            found.api.remove(container["Id"])
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        _remove(folder)


def _podman(folder: Path, socket: Path, log: object) -> "subprocess.Popen[bytes]":
    (folder / "containers.conf").write_text(_CONTAINERS_CONF)
    storage = f'[storage]\ndriver = "overlay"\ngraphroot = "{folder}/g"\nrunroot = "{folder}/r"\n'
    (folder / "storage.conf").write_text(storage)
    environment = {
        **os.environ,
        "CONTAINERS_CONF": str(folder / "containers.conf"),
        "CONTAINERS_STORAGE_CONF": str(folder / "storage.conf"),
    }
    argv = ["podman", "system", "service", "--time=0", f"unix://{socket}"]
    return subprocess.Popen(argv, cwd=folder, env=environment, stdout=log, stderr=log)  # type: ignore[call-overload,no-any-return]


def _docker(folder: Path, socket: Path, log: object) -> "subprocess.Popen[bytes]":
    argv = ["dockerd", "--bridge=none", "--iptables=false", "--ip6tables=false"]
    argv += ["--ip-forward=false", "--storage-driver=overlay2", "-H", f"unix://{socket}"]
    argv += ["--data-root", f"{folder}/d", "--exec-root", f"{folder}/e"]
    argv += ["--pidfile", f"{folder}/pid"]
    return subprocess.Popen(argv, stdout=log, stderr=log)  # type: ignore[call-overload,no-any-return]


def _wait(found: RunningEngine, process: "subprocess.Popen[bytes]", log: Path) -> None:
    ends_s = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < ends_s:
        try:
            found.api.ask("GET", "/info")
            return
        except EngineError:
            time.sleep(0.1)
    pytest.fail(f"{found.name} did not start: {log.read_text(errors='replace')[-2000:]}")


def _remove(folder: Path) -> None:
    """Unmount what the engine left mounted, then remove its folder."""
    mounts = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    for mount in sorted((m for m in mounts if m.startswith(f"{folder}/")), reverse=True):
        subprocess.run(["umount", "-l", mount], check=False)
    shutil.rmtree(folder, ignore_errors=True)
