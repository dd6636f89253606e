"""Forks a supervisor for each request line (a plan as JSON); ends when the node is gone.

Started as `python -I -S -c ...` by `pairio_node.runner.launch`. One thread, no child that is waited
for: supervisors leave the node's process group and belong to nobody.
"""

import ctypes
import fcntl
import gc
import json
import os
import signal
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .job import ERRORS_FILE, LOCK_FILE, Supervisor

__all__ = ["become_supervisor", "launch", "lock_folder", "main"]

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_CHANNEL_FD = 0
_libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    """Answer each request with `{"pid": N}` or `{"error": "..."}`."""
    # Blocked, not ignored: what comes before the supervisor has its handlers is kept for it. And
    # a Ctrl-C for the node's group is not meant for this process, which ends after the node.
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT, signal.SIGHUP))
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the system reaps supervisors
    os.chdir("/")
    gc.freeze()
    with open(_CHANNEL_FD, "rb", closefd=False) as requests:
        for turn, line in enumerate(requests):
            try:
                plan = {**json.loads(line), "cpu_turn": turn}
                answer: dict[str, Any] = {"pid": launch(plan, _supervisor_for(plan))}
            except OSError as error:
                answer = {"error": str(error)}
            os.write(_CHANNEL_FD, json.dumps(answer).encode() + b"\n")


def _supervisor_for(plan: dict[str, Any]) -> Callable[[dict[str, Any]], None]:
    kind: type[Supervisor] = Supervisor
    if plan.get("container"):  # imported here, once, and only by nodes that have containers
        from .container import ContainerSupervisor

        kind = ContainerSupervisor
    return lambda plan: kind(plan, _die_with_parent).run()


def launch(plan: dict[str, Any], supervise: Callable[[dict[str, Any]], None]) -> int:
    """Fork a supervisor, which calls `supervise`; its lock is held before this returns."""
    folder = Path(plan["folder"])
    lock_fd = lock_folder(folder)
    try:
        pid = os.fork()
    except OSError:
        os.close(lock_fd)
        raise
    if pid == 0:
        code = 70
        try:
            os.setsid()
            become_supervisor(folder, lock_fd)
            supervise(plan)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(lock_fd)  # the supervisor has it
    return pid


def lock_folder(folder: Path) -> int:
    """Take a job's folder: no other supervisor can. Raises OSError when one has."""
    lock_fd = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock_fd)
        raise
    return lock_fd


def become_supervisor(folder: Path, lock_fd: int) -> None:
    """Make this process, which leads a session, the supervisor of the folder's job."""
    os.pwrite(lock_fd, str(os.getpid()).encode(), 0)
    null_fd = os.open(os.devnull, os.O_RDWR)
    errors_fd = os.open(folder / ERRORS_FILE, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for fd, target in ((null_fd, 0), (null_fd, 1), (errors_fd, 2)):
        os.dup2(fd, target)
    os.close(null_fd)
    os.close(errors_fd)
    # Whatever the job leaves behind becomes a child of the supervisor: nothing gets away.
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _die_with_parent() -> None:
    """In the job's first process: a supervisor that is killed takes the job with it."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
