"""Watches one process tree to its end: console, wall time, memory, cancel.

`subprocess.Popen` is called in the loop's own thread: trio's helpers fork in a worker thread, and
a parent-death signal fires when that thread ends after 10 idle seconds (executors reference, 1).
"""

import os
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import trio

__all__ = ["Ended", "supervise"]

_CONSOLE_HEAD_BYTES = 512 * 1024
_CONSOLE_TAIL_BYTES = 512 * 1024
_GRACE_S = 2.0
_WATCH_S = 0.2
#: A child that holds the console open after the job's end is not waited for longer than this.
_DRAIN_S = 0.5


@dataclass
class Ended:
    """How a process tree ended. `why` is "", time, memory, disk or canceled."""

    exit_code: int
    why: str
    console: bytes
    usage: dict[str, int]


class _Console:
    """Keeps the first and the last half MiB."""

    def __init__(self) -> None:
        self._head = bytearray()
        self._tail = bytearray()
        self._dropped = 0

    def add(self, data: bytes) -> None:
        room = _CONSOLE_HEAD_BYTES - len(self._head)
        self._head += data[:room]
        self._tail += data[room:] if room < len(data) else b""
        over = len(self._tail) - _CONSOLE_TAIL_BYTES
        if over > 0:
            del self._tail[:over]
            self._dropped += over

    def content(self) -> bytes:
        gap = f"\n[{self._dropped} bytes left out]\n".encode() if self._dropped else b""
        return bytes(self._head) + gap + bytes(self._tail)


class _Job:
    def __init__(self, process: "subprocess.Popen[bytes]", memory_mib: int, work_dir: Path) -> None:
        self.process = process
        self.memory_bytes = memory_mib * 2**20
        self.work_dir = work_dir
        self.console = _Console()
        self.peak_bytes = 0
        self.why = ""
        self.finished = trio.Event()
        self.seen: dict[int, psutil.Process] = {}

    def stop(self, why: str, number: signal.Signals) -> None:
        self.why = self.why or why
        for pid in self._tree():
            try:
                pid.send_signal(number)
            except psutil.NoSuchProcess:
                continue
        try:
            os.killpg(self.process.pid, number)
        except ProcessLookupError:
            return

    def _tree(self) -> list[psutil.Process]:
        """The processes of the job, those that left its session included once they were seen."""
        try:
            root = psutil.Process(self.process.pid)
            for child in [root, *root.children(recursive=True)]:
                self.seen.setdefault(child.pid, child)
        except psutil.NoSuchProcess:
            pass
        return [p for p in self.seen.values() if p.is_running()]

    def memory(self) -> int:
        used = 0
        for process in self._tree():
            try:
                used += process.memory_info().rss
            except psutil.NoSuchProcess:
                continue
        self.peak_bytes = max(self.peak_bytes, used)
        return used


async def supervise(
    argv: Sequence[str],
    *,
    environment: dict[str, str],
    cwd: Path | None,
    memory_mib: int,
    time_ms: int,
    work_dir: Path,
    cancel: trio.Event,
) -> Ended:
    """Run `argv` to its end. Raises OSError when it cannot be started."""
    read_fd, write_fd = os.pipe()
    try:
        process = subprocess.Popen(  # noqa: ASYNC220 - see the module
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=write_fd,
            stderr=write_fd,
            env=environment,
            cwd=cwd,
            start_new_session=True,
            close_fds=True,
        )
    except OSError:
        os.close(read_fd)
        raise
    finally:
        os.close(write_fd)
    job = _Job(process, memory_mib, work_dir)
    began_s = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_read_console, job, read_fd)
        nursery.start_soon(_watch_memory, job)
        nursery.start_soon(_watch_cancel, job, cancel)
        cpu_ms, status = await _wait(job, time_ms / 1000)
        job.stop(job.why, signal.SIGKILL)  # what is left of the tree
        with trio.move_on_after(_DRAIN_S):
            await job.finished.wait()
        nursery.cancel_scope.cancel()
    usage = {
        "wall_ms": int((trio.current_time() - began_s) * 1000),
        "cpu_ms": cpu_ms,
        "memory_peak_bytes": job.peak_bytes,
    }
    return Ended(os.waitstatus_to_exitcode(status), job.why, job.console.content(), usage)


async def _wait(job: _Job, time_s: float) -> tuple[int, int]:
    """Wait for the process; TERM at the limit, KILL after the grace. Always reaps it."""
    fd = os.pidfd_open(job.process.pid)
    try:
        with trio.move_on_after(time_s) as limit:
            await trio.lowlevel.wait_readable(fd)
        if limit.cancelled_caught:
            job.stop("time", signal.SIGTERM)
            with trio.move_on_after(_GRACE_S) as grace:
                await trio.lowlevel.wait_readable(fd)
            if grace.cancelled_caught:
                job.stop("time", signal.SIGKILL)
                await trio.lowlevel.wait_readable(fd)
    except trio.Cancelled:
        job.stop("canceled", signal.SIGKILL)
        raise
    finally:
        _, status, usage = os.wait4(job.process.pid, 0)
        job.process.returncode = os.waitstatus_to_exitcode(status)
        os.close(fd)
    return int((usage.ru_utime + usage.ru_stime) * 1000), status


async def _read_console(job: _Job, fd: int) -> None:
    stream = trio.lowlevel.FdStream(fd)
    async with stream:
        while data := await stream.receive_some(65536):
            job.console.add(data)
    job.finished.set()


async def _watch_memory(job: _Job) -> None:
    while True:
        if job.memory() > job.memory_bytes:
            job.stop("memory", signal.SIGKILL)
        await trio.sleep(_WATCH_S)


async def _watch_cancel(job: _Job, cancel: trio.Event) -> None:
    await cancel.wait()
    job.stop("canceled", signal.SIGTERM)
    await trio.sleep(_GRACE_S)
    job.stop("canceled", signal.SIGKILL)
