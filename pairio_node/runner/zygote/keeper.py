"""The process beside a warm worker: makes what its job will need, waits for it, and becomes its
supervisor. What takes long (control groups, the loopback interface) is done before a job is there.
"""

import contextlib
import json
import os
import select
import socket
import traceback
from pathlib import Path
from typing import Any

from pairio_node.runner.supervisor.cgroups import Delegation, JobCgroup
from pairio_node.runner.supervisor.disk import remove_tree
from pairio_node.runner.supervisor.launcher import become_supervisor, lock_folder
from pairio_node.runner.zygote import kernel
from pairio_node.runner.zygote.check import not_shut_in
from pairio_node.runner.zygote.warm_job import (
    Warm,
    WarmSupervisor,
    end_init,
    hear,
    make_tmp,
    pid_of,
)

__all__ = ["Keeper", "KeeperGone"]

_ANSWER_S = 10.0


class KeeperGone(Exception):
    """The keeper, or its worker, does not take the job; says why."""


class Keeper:
    """A keeper as its host sees it."""

    def __init__(
        self, warm: Warm, groups: dict[str, Any] | None, user: int, bounds: dict[str, int]
    ) -> None:
        """Fork it. `warm` is the keeper's from then on. `user` is whom jobs run as, `bounds` are
        most likely those of the next one (`group_bounds`)."""
        self.ready = False
        #: Why no job is to be run by what it keeps, nor by others of its kind.
        self.unsafe = ""
        self._lines = b""
        self.channel, theirs = socket.socketpair()
        #: Can be read from when the outcome of its job can; its taker's.
        self.done_fd, warm.done_fd = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            code = 70
            try:
                _keep(warm, theirs, groups, user, bounds)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        theirs.close()
        os.close(warm.done_fd)
        warm.link.close()
        if warm.job_link is not None:
            warm.job_link.close()
        for fd in (warm.init_fd, warm.job_fd, warm.console_fd):
            if fd >= 0:
                os.close(fd)

    def look(self) -> bool:
        """Take what it says; False when it has ended."""
        line = self._line()
        self.ready = "ready" in line
        self.unsafe = line.get("unsafe", "")
        return self.ready

    def close(self) -> None:
        """Let it go."""
        self.channel.close()
        os.close(self.done_fd)

    def run(self, plan: dict[str, Any]) -> int:
        """Hand it a job; returns its process id.

        Raises:
            KeeperGone: it did not take it.
        """
        try:
            self.channel.settimeout(_ANSWER_S)
            self.channel.sendall(json.dumps(plan).encode() + b"\n")
            answer = self._line()
        except OSError as error:
            answer = {"error": str(error)}
        self.channel.close()
        if "pid" not in answer:
            raise KeeperGone(answer.get("error", "the keeper of a warm worker has ended"))
        return self.pid

    def _line(self) -> dict[str, Any]:
        data = self.channel.recv(4096)
        return dict(json.loads(data)) if data.endswith(b"\n") else {}


def _keep(
    warm: Warm,
    channel: socket.socket,
    groups: dict[str, Any] | None,
    user: int,
    bounds: dict[str, int],
) -> None:
    os.setsid()
    null_fd = os.open(os.devnull, os.O_RDWR)
    for target in (0, 1, 2):
        os.dup2(null_fd, target)
    fds = [channel.fileno(), warm.link.fileno(), warm.init_fd, warm.job_fd, warm.console_fd]
    fds.append(warm.done_fd)
    fds += [warm.job_link.fileno()] if warm.job_link is not None else []
    kernel.close_except([fd for fd in fds if fd >= 0])
    group, taken = None, False
    try:
        if groups is not None:
            name = f"warm-{os.getpid()}-{os.urandom(6).hex()}"
            group = JobCgroup.create(Delegation(**groups), name, **bounds)
            warm.bounds = bounds
        unsafe = _prepare(warm, group, user)
        if unsafe:
            channel.sendall(json.dumps({"unsafe": unsafe}).encode() + b"\n")
            channel.close()
            return
        channel.sendall(b'{"ready": true}\n')
        plan = _plan_from(channel, warm.init_fd)
        if plan is not None:
            folder = Path(plan["folder"])
            lock_fd = lock_folder(folder)
            channel.sendall(json.dumps({"pid": os.getpid()}).encode() + b"\n")
            channel.close()
            taken = True
            become_supervisor(folder, lock_fd)
            WarmSupervisor(plan, warm, group).run()
    except OSError as error:
        if channel.fileno() < 0:
            raise  # the supervisor's own, for its file of errors
        with contextlib.suppress(OSError):  # the host has gone, too
            channel.sendall(json.dumps({"error": str(error)}).encode() + b"\n")
    finally:
        if not taken:
            _let_go(warm, group)


def _let_go(warm: Warm, group: JobCgroup | None) -> None:
    end_init(warm.init_fd)
    if group is not None:
        group.remove()
    if warm.folder:
        remove_tree(Path(warm.folder))


def _prepare(warm: Warm, group: JobCgroup | None, user: int) -> str:
    """Make what a job needs; return why none may be run by this worker, "" when it may."""
    for pid in (pid_of(warm.init_fd), job := pid_of(warm.job_fd)):
        if group is not None:
            group.enter(pid)
    if warm.namespaces is None:
        return ""
    kernel.enter_namespace(f"/proc/{job}/ns/net", kernel.NEW_NET)
    kernel.loopback_up()
    os.mkdir(warm.folder)
    tmp = make_tmp(Path(warm.folder), user)
    warm.tmp_fd = kernel.open_tree(str(tmp), read_only=False)
    assert warm.job_link is not None
    hear(warm.job_link, "shut_in")
    found = not_shut_in(job, warm.outside, warm.namespaces)
    return f"the warm worker is not shut in: {found}" if found else ""


def _plan_from(channel: socket.socket, init_fd: int) -> dict[str, Any] | None:
    """Return the job's plan; None when the host lets go, or the worker has ended."""
    data = b""
    while not data.endswith(b"\n"):
        readable = select.select([channel.fileno(), init_fd], [], [])[0]
        if channel.fileno() not in readable:
            return None
        data += (more := channel.recv(65536))
        if not more:
            return None
    return dict(json.loads(data))
