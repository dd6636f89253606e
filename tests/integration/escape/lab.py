"""Runs the attempts: as plain processes, and as jobs of a runner."""

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil
import trio

from pairio_node.runner import RunInput, Runner, RunSpec, probe, selftest
from pairio_node.runner.bounds import JobBounds
from pairio_node.streams import JobStreams
from pairio_node.urls import UrlRules
from tests.integration.escape import job_traces
from tests.integration.runner_lab import script_spec

__all__ = ["DAEMON", "LIMITS", "Found", "Lab", "all_names", "open_lab"]

Found = dict[str, tuple[str, str]]
SpecOf = Callable[[RunSpec], RunSpec]
_HERE = Path(__file__).parent
DAEMON = "a daemon that outlives its job"
_MIB = 2**20
_LEAVE = ("leave", "stay")
_MEMORY, _SECRETS_PREFIX = "/dev/shm", f"pairio-escape-{os.getpid()}-"

#: name -> (mode, what it is told, changes of the run that are its limits)
LIMITS: dict[str, tuple[str, dict[str, int], dict[str, Any]]] = {
    "more memory than allowed": ("memory", {"mib": 1024}, {"memory_mib": 256}),
    "more memory than allowed, in 4 processes": ("children", {"mib": 300}, {"memory_mib": 256}),
    "more processes than allowed": (
        "processes",
        {"count": 300},
        {"bounds": JobBounds(processes=64)},
    ),
    "more disk than allowed": (
        "disk",
        {"mib": 300},
        {"bounds": JobBounds(disk_bytes=100 * _MIB, output_bytes=100 * _MIB)},
    ),
    "a larger file than allowed": (
        "file",
        {"mib": 300},
        {"bounds": JobBounds(disk_bytes=100 * _MIB, output_bytes=100 * _MIB)},
    ),
    "more time than allowed": ("late", {"seconds": 5}, {"time_ms": 1000}),
}


def all_names() -> list[str]:
    """Return what is tried, in the order of the table."""
    return [*probe.ATTEMPTS, *LIMITS, DAEMON, *job_traces.AFTER, *job_traces.LOOKS]


@dataclass
class Lab:
    """What there is to be reached, and the folder where jobs are made."""

    folder: Path
    world: dict[str, Any]
    inherited_fd: int
    names: tuple[str, ...]
    number: int = field(default=0)
    #: The URL of the stream of the job that was begun last.
    stream_url: str = ""
    forwards_inside: bool = False

    async def outside(self) -> Found:
        """Try everything as a process that nothing restricts."""
        return await self._tried(self._as_process)

    async def inside(
        self, runner: Runner, spec_of: SpecOf = lambda spec: spec, forwards_inside: bool = False
    ) -> Found:
        """Try everything as jobs of a runner. `spec_of` gives a run what this runner needs;
        `forwards_inside`: what passes on its streams is a process of the job's own."""
        self.forwards_inside = forwards_inside

        async def run(spec: RunSpec, cancel: trio.Event) -> bytes:
            async with self._with_needs(spec_of(spec), own_network=True) as ready:
                outcome = await runner.run(ready, cancel)
            return outcome.console + f"\n{outcome.error}".encode()

        return await self._tried(run)

    async def _tried(self, run: Callable[[RunSpec, trio.Event], Any]) -> Found:
        found: Found = {}
        for step in (self._probed, self._limited, self._after, self._beside):
            found |= await step(run)
        return {name: found[name] for name in all_names() if name in found}

    def _spec(self, world: dict[str, Any], **changes: Any) -> RunSpec:
        self.number += 1
        folder = self.folder / str(self.number)
        folder.mkdir()
        (folder / "input").mkdir()
        (folder / "input" / "in.txt").write_text("text")
        spec = script_spec(folder, "", program="main.py")
        shutil.copy(_HERE / "job_main.py", spec.bundle / "main.py")
        shutil.copy(_HERE / "job_traces.py", spec.bundle)
        shutil.copy(str(probe.__file__), spec.bundle / "probe.py")
        return replace(
            spec,
            inputs=(RunInput("input", "in.txt", folder / "input" / "in.txt"),),
            parameters=[{"name": "world", "value": {**self.world, **world}}],
            **{"memory_mib": 1024, "time_ms": 60_000, **changes},
        )

    @contextlib.asynccontextmanager
    async def _with_needs(self, spec: RunSpec, *, own_network: bool) -> AsyncIterator[RunSpec]:
        """Give a run what not every job has, so that all is tried with it: a secret, and (but for
        those who look for another's, or for processes beside them) an input by a stream."""
        world = spec.parameters[0]["value"]
        trace = world["trace"] if world["mode"] in _LEAVE else "nobody"
        spec = replace(spec, secrets={"TOKEN": job_traces.secret_of(trace)})
        with_stream = (*_LEAVE,) if self.forwards_inside else (*_LEAVE, "probe")
        if world["mode"] not in with_stream:
            yield spec
            return
        number = len(spec.inputs)
        place = spec.work_dir / "in" / str(number) / "stream.txt"
        place.parent.mkdir(parents=True)
        held = spec.work_dir.with_name(f"{spec.work_dir.name}-stream.txt")
        held.write_text(_stream_of(trace))
        streams = JobStreams(spec.work_dir / "streams", UrlRules(), own_network=own_network)
        streams.add_file(number, held)
        async with streams.serving():
            self.stream_url = streams.url(number, "stream.txt")
            file = RunInput("stream", "stream.txt", place, self.stream_url, is_here=False)
            yield replace(spec, inputs=(*spec.inputs, file), stream_folder=streams.shown)

    def _wanted(self, names: Any) -> list[str]:
        return [name for name in names if name in self.names]

    async def _probed(self, run: Any) -> Found:
        names = self._wanted(probe.ATTEMPTS)
        console = await run(self._spec({"mode": "probe", "names": names}), trio.Event())
        return _said(console, names)

    async def _limited(self, run: Any) -> Found:
        found: Found = {}
        for name in self._wanted(LIMITS):
            mode, told, changes = LIMITS[name]
            spec = self._spec({"mode": mode, "attempt": name, **told}, **changes)
            console = await run(spec, trio.Event())
            found |= selftest.said(console) or {name: ("denied", _limit(console))}
        return found

    async def _after(self, run: Any) -> Found:
        names = self._wanted((DAEMON, *job_traces.AFTER))
        if not names:
            return {}
        trace = self._trace()
        await run(self._spec({"mode": "leave", **trace}), trio.Event())
        lives = _daemon_of(trace["trace"])
        console = await run(self._spec({"mode": "after", **trace}), trio.Event())
        found = _said(console, job_traces.AFTER)
        found[DAEMON] = ("worked", "it lives") if lives else ("denied", "it was ended")
        _end(_daemon_of(trace["trace"]))
        job_traces.clear(trace["trace"])
        return {name: found[name] for name in names}

    async def _beside(self, run: Any) -> Found:
        names = self._wanted(job_traces.LOOKS)
        if not names:
            return {}
        trace, cancel = self._trace(), trio.Event()
        spec = self._spec({"mode": "stay", **trace})
        found: Found = {}
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run, spec, cancel)
            with trio.fail_after(60):
                while _daemon_of(trace["trace"]) is None:  # noqa: ASYNC110 - another process
                    await trio.sleep(0.05)
            await trio.sleep(0.2)
            holds = _stream_of(trace["trace"])
            told = {"stream_url": self.stream_url, "stream_holds": holds}
            console = await run(self._spec({"mode": "beside", **trace, **told}), trio.Event())
            found = _said(console, job_traces.LOOKS)
            cancel.set()
        _end(_daemon_of(trace["trace"]))
        job_traces.clear(trace["trace"])
        return {name: found[name] for name in names}

    def _trace(self) -> dict[str, Any]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            return {"trace": secrets.token_hex(6), "trace_port": free.getsockname()[1]}

    async def _as_process(self, spec: RunSpec, cancel: trio.Event) -> bytes:
        async with self._with_needs(spec, own_network=False) as ready:
            process = self._started(ready)
            assert process.stdout is not None
            console = await trio.to_thread.run_sync(_first_part, process.stdout)
            if spec.parameters[0]["value"]["mode"] == "stay":
                await cancel.wait()
            process.kill()
            process.wait()
            process.stdout.close()
        return console

    def _started(self, spec: RunSpec) -> "subprocess.Popen[bytes]":
        # As where a container's secrets lie while it starts.
        secrets_folder = Path(_MEMORY, f"{_SECRETS_PREFIX}{self.number}")
        secrets_folder.mkdir()
        (secrets_folder / "TOKEN").write_text(spec.secrets["TOKEN"])
        working = spec.work_dir / "working"
        working.mkdir(parents=True)
        job = {"inputs": [{"path": str(spec.inputs[0].path)}], "parameters": spec.parameters}
        (spec.work_dir / "job.json").write_text(json.dumps(job))
        return subprocess.Popen(
            [sys.executable, str(spec.bundle / "main.py")],
            env={
                **os.environ,
                "PAIRIO_JOB_FILE": str(spec.work_dir / "job.json"),
                "PAIRIO_SECRETS_DIR": str(secrets_folder),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=[self.inherited_fd],
            cwd=working,
        )


def _stream_of(trace: str) -> str:
    """Return what the streamed input of a job holds."""
    return f"stream of {trace}"


def _first_part(output: Any) -> bytes:
    """Read until the answer has come, or the end: a daemon may hold the other end open."""
    console = b""
    for line in output:
        console += line
        if line.startswith((probe.MARK.encode(), b"left")):
            break
    return console


def _said(console: bytes, names: Any) -> Found:
    found = selftest.said(console)
    if found is None:
        raise AssertionError(f"no word from the job: {console.decode(errors='replace')[-2000:]}")
    missing = {*names} - {*found}
    assert not missing, f"not tried: {sorted(missing)}"
    return found


def _limit(console: bytes) -> str:
    """Return which limit ended a job that was to run into one."""
    last = console.decode(errors="replace").strip().rpartition("\n")[2]
    for words in ("memory", "processes", "disk", "outputs", "time", "File too large"):
        if last.startswith(f"{words}:") or f"] {words}" in last:
            return f"ended by its limit: {words}"
    if last.endswith("processes and threads)"):  # refused, and it ended before it was looked at
        return "ended by its limit: processes"
    raise AssertionError(f"it ended otherwise: {last}")


def _daemon_of(trace: str) -> int | None:
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or [""]
        if words[0] == f"trace-daemon-{trace}":
            return int(process.pid)
    return None


def _end(pid: int | None) -> None:
    if pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def open_lab(names: tuple[str, ...]) -> Iterator[Lab]:
    """Make all that is to be reached. The secret is in this process' environment and in a
    descriptor that its children may have, so that what starts jobs has to see to it."""
    with contextlib.ExitStack() as stack:
        # Not below /tmp, where jobs have a folder of their own: a hole is a hole wherever it is.
        top = stack.enter_context(tempfile.TemporaryDirectory(prefix="p-", dir="/var/tmp"))
        os.chmod(top, 0o755)
        before, tempfile.tempdir = tempfile.tempdir, top
        stack.callback(setattr, tempfile, "tempdir", before)
        world = stack.enter_context(selftest.targets())
        os.environ["PAIRIO_ESCAPE_SECRET"] = world["word"]
        stack.callback(os.environ.pop, "PAIRIO_ESCAPE_SECRET")
        stack.callback(_clear_memory)
        fd = os.open(world["secret"], os.O_RDONLY)
        os.set_inheritable(fd, True)
        stack.callback(os.close, fd)
        world |= {"udp": _echo(stack), "shm_mib": 100}
        for address in psutil.net_if_addrs().values():
            for entry in address:
                if entry.family == socket.AF_INET and not entry.address.startswith("127."):
                    listener = stack.enter_context(socket.create_server((entry.address, 0)))
                    world["tcp"]["address"] = listener.getsockname()
        (Path(top) / "jobs").mkdir(mode=0o700)
        yield Lab(Path(top) / "jobs", world, fd, names)


def _clear_memory() -> None:
    for folder in Path(_MEMORY).glob(f"{_SECRETS_PREFIX}*"):
        shutil.rmtree(folder)


def _echo(stack: contextlib.ExitStack) -> int:
    """Answer datagrams on loopback; returns the port."""
    echo = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    echo.bind(("127.0.0.1", 0))

    def answer() -> None:
        with contextlib.suppress(OSError):
            while True:
                data, peer = echo.recvfrom(100)
                if data == b"end":
                    return
                echo.sendto(data, peer)

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    port = int(echo.getsockname()[1])
    stack.callback(thread.join, 5)
    stack.callback(echo.sendto, b"end", ("127.0.0.1", port))
    return port
