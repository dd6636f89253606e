"""Starts a supervisor for a job, or finds the one that is there, and waits for its outcome."""

import contextlib
import errno
import fcntl
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import trio

from pairio_node.runner.bounds import JobBounds
from pairio_node.runner.cgroups import remove_named
from pairio_node.runner.launch import Launcher
from pairio_node.runner.supervisor.console import read_console
from pairio_node.runner.supervisor.job import CONSOLE_FILE, ERRORS_FILE, SAMPLES_FILE
from pairio_node.runner.supervisor.runfile import RUN_FILE, Told, read, told
from pairio_node.runner.supervisor.secret import handed
from pairio_node.runner.supervisor.watch import Bounds, Passed

__all__ = [
    "Ended",
    "Plan",
    "SupervisorLost",
    "ask_to_end",
    "attach",
    "attend",
    "is_supervised",
    "look",
    "remove_group",
    "request_of",
    "supervise",
]

#: Of versions that had no run file: a process id; its supervisor has the lock.
_OLD_LOCK_FILE = "supervisor.lock"
#: There is no process of this number. The last two: but a thread (by the kernel's version).
_NO_PROCESS = (errno.ESRCH, errno.EINVAL, errno.ENOENT)


class SupervisorLost(Exception):
    """The supervisor has gone without an outcome; says what it left."""


@dataclass(frozen=True)
class Plan:
    """What a supervisor is to run. `sandboxed`: the first process is the sandbox's own.
    `grace_s`: how long the job goes on without a node; 0: it ends with its caller. `nice`: how far
    behind other processes it comes for the CPU, 0 to 19. `filter` is one of system calls, handed
    over in the descriptor that FILTER stands for in `argv`. `user`: whom it runs as, 0: as the
    node; what it needs of `files` that user finds at STAGE. `container`: what an engine is to make
    and run in place of `argv` (see `ContainerSupervisor`)."""

    argv: Sequence[str]
    environment: dict[str, str]
    cwd: Path | None
    memory_mib: int
    time_ms: int
    work_dir: Path
    sandboxed: bool
    grace_s: int = 0
    nice: int = 0
    filter: bytes = b""
    user: int = 0
    files: tuple[str, ...] = ()
    #: By name; `supervisor.secret.secret_word` stands for each in `argv`. In memory only, and no
    #: part of the request: they lie ready for the supervisor (`supervisor.secret.handed`).
    secrets: dict[str, str] = field(default_factory=dict, repr=False)
    cpu_millicores: int = 0
    bounds: JobBounds = field(default_factory=JobBounds)
    container: dict[str, Any] | None = None


@dataclass
class Ended:
    """How a process tree ended. `why` is "", time, canceled, yield, start, or the name of a bound
    that was passed. `samples` are JSON lines."""

    exit_code: int
    why: str
    error: str
    console: bytes
    usage: dict[str, int]
    passed: Passed | None = None
    samples: bytes = b""


def request_of(plan: Plan) -> dict[str, Any]:
    """Return a plan as a supervisor reads it."""
    return {
        "folder": str(plan.work_dir),
        "argv": list(plan.argv),
        "environment": plan.environment,
        "cwd": None if plan.cwd is None else str(plan.cwd),
        "bounds": asdict(
            Bounds(
                memory_bytes=plan.memory_mib * 2**20,
                processes=plan.bounds.processes,
                disk_bytes=plan.bounds.disk_bytes,
                files=plan.bounds.files,
                reserve_bytes=plan.bounds.reserve_bytes,
            )
        ),
        "time_ms": plan.time_ms,
        "cpu_millicores": plan.cpu_millicores,
        "sandboxed": plan.sandboxed,
        "grace_s": plan.grace_s,
        "nice": plan.nice,
        "filter": plan.filter.hex(),
        "user": plan.user,
        "files": list(plan.files),
        "has_secrets": bool(plan.secrets),
        "container": plan.container,
    }


async def supervise(launcher: Launcher, plan: Plan, cancel: trio.Event) -> Ended:
    """Run a plan to its end.

    Raises:
        OSError: no supervisor can be started.
        SupervisorLost: it was killed.
    """
    with handed(plan.work_dir, plan.secrets):
        pid = await launcher.start(request_of(plan))
        return await attach(plan.work_dir, cancel, leave=plan.grace_s > 0, pid=pid)


async def attach(work_dir: Path, cancel: trio.Event, *, leave: bool, pid: int = 0) -> Ended:
    """Wait for the outcome of a job that was started before, until its supervisor has ended. When
    the waiting task is cancelled, the job goes on if `leave` says so, else it is told to end."""
    fd = _supervisor_fd(work_dir, pid)
    if fd is not None:
        try:
            await _until_readable(fd, cancel, partial(_send_end, fd), leave=leave)
        finally:
            os.close(fd)
    return await _found(work_dir)


async def attend(work_dir: Path, cancel: trio.Event, done_fd: int, *, leave: bool) -> Ended:
    """The same of a job whose supervisor may serve others afterwards: `done_fd`, a socket, can be
    read from when it has left the outcome, or has ended; a word on it tells the job to end. (A
    signal might meet the next one.)"""
    await _until_readable(done_fd, cancel, partial(_say_end, done_fd), leave=leave)
    return await _found(work_dir)


async def _found(work_dir: Path) -> Ended:
    found = read(work_dir)
    if found.outcome is None:
        await trio.to_thread.run_sync(remove_group, found.group)
        raise SupervisorLost(f"the job's supervisor has ended: {_last_words(work_dir)}")
    return _ended(work_dir, found.outcome)


def remove_group(group: dict[str, Any] | None) -> None:
    """Remove the control group that a killed supervisor left, and what runs in it."""
    try:
        if group is not None:
            folders = {str(c): str(f) for c, f in group["folders"].items()}
            remove_named(int(group["version"]), folders)
    except (OSError, ValueError, KeyError, AttributeError):
        return  # it had none


def look(work_dir: Path) -> tuple[Told, bool]:
    """Return what the run file of a folder says, and whether a supervisor lives for it."""
    found = read(work_dir)
    process_fd = _supervisor_fd(work_dir, found.supervisor)
    if process_fd is None:
        return read(work_dir), False  # its outcome may have come in between
    os.close(process_fd)
    return found, True


def is_supervised(work_dir: Path) -> bool:
    """Say whether a supervisor lives for this folder."""
    return look(work_dir)[1]


def ask_to_end(work_dir: Path) -> None:
    """End the job of this folder, if one runs, also one that an older version began."""
    for fd in (_supervisor_fd(work_dir, 0), _old_supervisor_fd(work_dir)):
        if fd is not None:
            _send_end(fd)
            os.close(fd)


def _supervisor_fd(work_dir: Path, pid: int) -> int | None:
    """Return a process descriptor of the folder's supervisor, `pid` if that is known; None when it
    has ended."""
    return _holder(work_dir / RUN_FILE, lambda fd: pid or told(fd).supervisor)


def _old_supervisor_fd(work_dir: Path) -> int | None:
    return _holder(work_dir / _OLD_LOCK_FILE, lambda fd: int(os.pread(fd, 20, 0) or b"0"))


def _holder(path: Path, named: Callable[[int], int]) -> int | None:
    """Return a process descriptor of who is `named` in a file and has its lock. A supervisor holds
    it until its outcome is there, so a process id that the system gave out again, and a process
    that has another job since, are not taken for it."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    process_fd = None
    try:
        with contextlib.suppress(ValueError, OverflowError):  # a power cut left something else
            pid = named(fd)
            process_fd = _process_fd(pid) if pid else None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return process_fd
        if process_fd is not None:
            os.close(process_fd)
        return None
    finally:
        os.close(fd)


def _process_fd(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except OSError as error:
        if error.errno not in _NO_PROCESS:
            raise
        return None


async def _until_readable(
    fd: int, cancel: trio.Event, end: Callable[[], None], *, leave: bool
) -> None:
    readable = False
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_end_when_asked, end, cancel)
            await trio.lowlevel.wait_readable(fd)
            readable = True
            nursery.cancel_scope.cancel()
    finally:
        if not readable and not leave:
            end()


async def _end_when_asked(end: Callable[[], None], cancel: trio.Event) -> None:
    await cancel.wait()
    end()


def _say_end(fd: int) -> None:
    with contextlib.suppress(ConnectionError):  # it has ended by itself
        os.write(fd, b"end")


def _send_end(fd: int) -> None:
    try:
        signal.pidfd_send_signal(fd, signal.SIGTERM)
    except ProcessLookupError:
        return  # it has ended by itself


def _ended(work_dir: Path, raw: dict[str, Any]) -> Ended:
    passed = None if raw.get("passed") is None else Passed(**raw["passed"])
    said = raw.get("console")  # else it is in a file: it was long, or the job was
    console = read_console(work_dir / CONSOLE_FILE) if said is None else said.encode("latin-1")
    if raw["console_lost_bytes"]:
        console += f"\n[{raw['console_lost_bytes']} bytes lost: the disk was full]\n".encode()
    samples = b""
    if raw.get("samples"):
        with contextlib.suppress(FileNotFoundError):  # removed, when the run was given up
            samples = (work_dir / SAMPLES_FILE).read_bytes()
    return Ended(raw["exit_code"], raw["why"], raw["error"], console, raw["usage"], passed, samples)


def _last_words(work_dir: Path) -> str:
    try:
        text = (work_dir / ERRORS_FILE).read_text(errors="replace").strip()
    except OSError:
        text = ""
    return text.rpartition("\n")[2] or "it was killed"
