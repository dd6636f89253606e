"""Forks a supervisor for each request line (a plan as JSON); ends when the node is gone.

Started as `python -I -S -c ...` by `pairio_node.runner.launch`. One thread. Supervisors leave the
node's process group, and live on when this process goes. As long as it lives, what a killed
supervisor left is its own, and ended (`family`). So is what the hosts of warm workers leave, which
it starts for the node: a line `{"host": ARGV}` with the descriptor that is to be their channel.
"""

import contextlib
import ctypes
import gc
import json
import os
import select
import signal
import socket
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .family import Family
from .job import ERRORS_FILE, Supervisor
from .runfile import add, take

__all__ = ["become_supervisor", "errors_to", "launch", "main", "take_orphans"]

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_CHANNEL_FD = 0
_READ_BYTES = 65536
_libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    """Answer each request with `{"pid": N}` or `{"error": "..."}`."""
    # Blocked, not ignored: what comes before the supervisor has its handlers is kept for it. And
    # a Ctrl-C for the node's group is not meant for this process, which ends after the node.
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT, signal.SIGHUP))
    wake_fd = _woken_by_ends()
    take_orphans()
    os.chdir("/")
    family, requests = Family(), _Requests()
    gc.freeze()
    poll = select.poll()
    for fd in (_CHANNEL_FD, wake_fd):
        poll.register(fd, select.POLLIN)
    while not requests.ended:
        ready = [fd for fd, _ in poll.poll(family.due_ms)]
        if ready != [_CHANNEL_FD]:
            _emptied(wake_fd)
            family.look()
        for turn, line, fds in requests.read() if _CHANNEL_FD in ready else ():
            try:
                pid = _started({**json.loads(line), "cpu_turn": turn}, fds)
                family.began(pid)
                answer: dict[str, Any] = {"pid": pid}
            except OSError as error:
                answer = {"error": str(error)}
            with contextlib.suppress(BrokenPipeError):  # the node's end is read next
                os.write(_CHANNEL_FD, json.dumps(answer).encode() + b"\n")
    family.end_left()
    os._exit(0)


def _woken_by_ends() -> int:
    """Return a descriptor that is readable when a child has ended."""
    read_fd, write_fd = os.pipe()
    os.set_blocking(read_fd, False)
    os.set_blocking(write_fd, False)
    signal.set_wakeup_fd(write_fd, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    return read_fd


def _emptied(fd: int) -> None:
    try:
        os.read(fd, 512)
    except BlockingIOError:
        return


class _Requests:
    """Lines from the node, numbered, each with the descriptors that came with it."""

    def __init__(self) -> None:
        self._channel = socket.socket(fileno=_CHANNEL_FD)  # no copy, which supervisors would keep
        self._pending = b""
        self._fds: list[int] = []
        self._count = 0
        self.ended = False

    def read(self) -> list[tuple[int, bytes, list[int]]]:
        """Return the lines that are there whole. The node waits for each answer, so there is one
        at the most, and all descriptors are its."""
        try:
            data, fds, _, _ = socket.recv_fds(self._channel, _READ_BYTES, 1)
        except ConnectionError:
            data, fds = b"", []
        self.ended = not data
        self._fds += fds
        *lines, self._pending = (self._pending + data).split(b"\n")
        found = []
        for line in lines:
            found.append((self._count, line, self._fds))
            self._fds, self._count = [], self._count + 1
        return found


def _started(plan: dict[str, Any], fds: list[int]) -> int:
    """Fork what is asked for; returns its process id."""
    try:
        if "host" not in plan:
            return launch(plan, _supervisor_for(plan))
        pid = os.fork()
        if pid == 0:
            try:
                os.dup2(fds[0], _CHANNEL_FD)
                os.close(fds[0])
                os.execv(plan["host"][0], plan["host"])
            finally:
                os._exit(70)
        return pid
    finally:
        for fd in fds:
            os.close(fd)


def _supervisor_for(plan: dict[str, Any]) -> Callable[[dict[str, Any], int], None]:
    kind: type[Supervisor] = Supervisor
    if plan.get("container"):  # imported here, once, and only by nodes that have containers
        from .container import ContainerSupervisor

        kind = ContainerSupervisor
    return lambda plan, run_fd: kind(plan, _die_with_parent, run_fd).run()


def launch(plan: dict[str, Any], supervise: Callable[[dict[str, Any], int], None]) -> int:
    """Fork a supervisor, which calls `supervise` with its run file, whose lock is held before this
    returns."""
    folder = Path(plan["folder"])
    run_fd = take(folder)
    try:
        pid = os.fork()
    except OSError:
        os.close(run_fd)
        raise
    if pid == 0:
        code = 70
        try:
            os.setsid()
            become_supervisor(folder, run_fd)
            supervise(plan, run_fd)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(run_fd)  # the supervisor has it
    return pid


def become_supervisor(folder: Path, run_fd: int) -> None:
    """Make this process, which leads a session, the supervisor of the folder's job."""
    add(run_fd, "supervisor", os.getpid())
    null_fd = os.open(os.devnull, os.O_RDWR)
    for target in (0, 1):
        os.dup2(null_fd, target)
    os.close(null_fd)
    errors_to(folder)
    take_orphans()


def errors_to(folder: Path) -> None:
    """Let what this process writes as errors be found in a job's folder."""
    errors_fd = os.open(folder / ERRORS_FILE, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(errors_fd, 2)
    os.close(errors_fd)


def take_orphans() -> None:
    """Whatever a job leaves behind becomes a child of this process: nothing gets away."""
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _die_with_parent() -> None:
    """In the job's first process: a supervisor that is killed takes the job with it."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
