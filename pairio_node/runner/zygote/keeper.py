"""The process beside a warm worker: makes what its job will need, waits for it, and becomes its
supervisor. What takes long (control groups, the loopback interface) is done before a job is there.

One whose job came to a clean end keeps the next worker: to fork another costs more than all that it
does for a job. Nothing of the job before is left in it but memory that no job sees, and its network
namespace, where nothing runs, until the next one's; and never after a job with secrets.
"""

import contextlib
import json
import os
import select
import signal
import socket
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

from pairio_node.runner.supervisor.cgroups import Delegation, JobCgroup
from pairio_node.runner.supervisor.disk import remove_tree
from pairio_node.runner.supervisor.launcher import errors_to, take_orphans
from pairio_node.runner.supervisor.runfile import add, take
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
_OWN_END_S = 0.2
_FDS_MAX = 4
#: Whatever one has come to hold goes with it.
_JOBS_MAX = 200
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class KeeperGone(Exception):
    """The keeper, or its worker, does not take the job; says why."""


class Keeper:
    """A keeper as its host sees it."""

    def __init__(self, warm: Warm, groups: dict[str, Any] | None, user: int) -> None:
        """Fork it. `warm` is the keeper's from then on. `user` is whom jobs run as."""
        #: It waits with a worker for a job; it has neither.
        self.ready = self.free = False
        self.channel, theirs = socket.socketpair()
        self.pid = os.fork()
        if self.pid == 0:
            code = 70
            try:
                _serve(warm, theirs, groups, user)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        theirs.close()
        _close(warm)

    def take(self, warm: Warm) -> bool:
        """Hand the next worker to one that is free; False when it has ended."""
        assert warm.job_link is not None
        fds = [warm.link.fileno(), warm.job_link.fileno(), warm.init_fd, warm.job_fd]
        worker = {"folder": warm.folder, "bounds": warm.bounds}
        try:
            _send_line(self.channel, worker, fds)
        except OSError:
            return False
        _close(warm)
        self.free = False
        return True

    def hear(self) -> dict[str, Any]:
        """Return what it says, also when that is several things; nothing when it has ended."""
        try:
            data = self.channel.recv(4096)
        except ConnectionError:
            return {}
        said: dict[str, Any] = {}
        for line in data.splitlines(keepends=True):
            said.update(json.loads(line) if line.endswith(b"\n") else {})
        self.ready, self.free = "ready" in said, "free" in said
        return said

    def let_go(self) -> None:
        """Have it end, after the job that it runs."""
        with contextlib.suppress(OSError):  # it has ended
            self.channel.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Let it go without waiting for its end."""
        self.channel.close()

    def wait(self) -> None:
        """Wait until it has ended."""
        while self.hear():
            pass
        self.channel.close()

    def run(self, plan: dict[str, Any]) -> int:
        """Hand it a job; returns the node's end of the socket `Warm.done_fd`.

        Raises:
            KeeperGone: it did not take it.
        """
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                self.channel.settimeout(_ANSWER_S)
                _send_line(self.channel, plan, [theirs.fileno()])
            answer = self.hear()
            self.channel.settimeout(None)
        except OSError as error:
            answer = {"error": str(error)}
        if "pid" not in answer:
            ours.close()
            raise KeeperGone(answer.get("error", "the keeper of a warm worker has ended"))
        return ours.detach()


def _send_line(channel: socket.socket, message: dict[str, Any], fds: list[int]) -> None:
    line = json.dumps(message).encode() + b"\n"
    sent = socket.send_fds(channel, [line], fds)
    if sent < len(line):
        channel.sendall(line[sent:])


def _received_line(channel: socket.socket) -> tuple[dict[str, Any] | None, list[int]]:
    """Return a message with its descriptors; None when the host lets go."""
    data = b""
    fds: list[int] = []
    while not data.endswith(b"\n"):
        more, came, _, _ = socket.recv_fds(channel, 65536, _FDS_MAX)
        if not more:
            return None, fds
        data += more
        fds += came
    return dict(json.loads(data)), fds


def _close(warm: Warm) -> None:
    """Close what is a worker's in this process."""
    warm.link.close()
    if warm.job_link is not None:
        warm.job_link.close()
    for fd in (warm.init_fd, warm.job_fd, warm.console_fd):
        if fd >= 0:
            os.close(fd)


# -- in the keeper ------------------------------------------------------------------------------


def _serve(warm: Warm, channel: socket.socket, groups: dict[str, Any] | None, user: int) -> None:
    os.setsid()
    take_orphans()
    null_fd = os.open(os.devnull, os.O_RDWR)
    for target in (0, 1, 2):
        os.dup2(null_fd, target)
    fds = [channel.fileno(), warm.link.fileno(), warm.init_fd, warm.job_fd, warm.console_fd]
    fds += [warm.job_link.fileno()] if warm.job_link is not None else []
    kernel.close_except([fd for fd in fds if fd >= 0])
    jobs = 0
    while _keep(warm, channel, groups, user):
        jobs += 1
        _forget(warm, channel)
        if jobs == _JOBS_MAX or (following := _next(warm, channel)) is None:
            return
        warm = following


def _keep(warm: Warm, channel: socket.socket, groups: dict[str, Any] | None, user: int) -> bool:
    """See a worker to its end, and its job; say whether another may be kept by this process."""
    group, taken, ended = None, False, False
    try:
        if groups is not None:
            name = f"warm-{os.getpid()}-{os.urandom(6).hex()}"
            group = JobCgroup.create(Delegation(**groups), name, **(warm.bounds or {}))
        unsafe = _prepare(warm, group, user)
        if unsafe:
            channel.sendall(json.dumps({"unsafe": unsafe}).encode() + b"\n")
            return False
        channel.sendall(b'{"ready": true}\n')
        plan = _plan_from(channel, warm)
        if plan is None:
            return False
        folder = Path(plan["folder"])
        run_fd = take(folder)
        channel.sendall(b'{"pid": %d}\n' % os.getpid())
        taken = True
        add(run_fd, "supervisor", os.getpid())
        supervisor = WarmSupervisor(plan, warm, group, run_fd)
        supervisor.run()
        ended = True
        return supervisor.is_clean and warm.namespaces is not None
    except Exception as error:
        if taken:
            errors_to(folder)
        if taken or not isinstance(error, OSError):
            raise
        with contextlib.suppress(OSError):  # the host has gone, too
            channel.sendall(json.dumps({"error": str(error)}).encode() + b"\n")
        return False
    finally:
        if not ended:
            _let_go(warm, group)


def _forget(warm: Warm, channel: socket.socket) -> None:
    """Let all go that was of the job: signals are as before it, and all descriptors but the host's
    are closed, whoever opened them."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    signal.set_wakeup_fd(-1)
    warm.link.close()
    if warm.job_link is not None:
        warm.job_link.close()
    kernel.close_except([channel.fileno()])


def _next(before: Warm, channel: socket.socket) -> Warm | None:
    """Return the next worker; None when the host lets go."""
    try:
        channel.sendall(b'{"free": true}\n')
        worker, fds = _received_line(channel)
    except ConnectionError:
        return None
    if worker is None:
        return None
    link, job_link = (socket.socket(fileno=fd) for fd in fds[:2])
    return replace(
        before,
        link=link,
        job_link=job_link,
        init_fd=fds[2],
        job_fd=fds[3],
        folder=worker["folder"],
        bounds=worker["bounds"],
        tmp_fd=-1,
        done_fd=-1,
    )


def _let_go(warm: Warm, group: JobCgroup | None) -> None:
    warm.link.close()
    if warm.job_link is not None:
        warm.job_link.close()
    # At the end of its link it ends, which the zygote sees, and makes another one.
    select.select([warm.init_fd], [], [], _OWN_END_S)
    end_init(warm.init_fd)
    if group is not None:
        group.remove()
    if warm.folder:
        remove_tree(Path(warm.folder))


def _prepare(warm: Warm, group: JobCgroup | None, user: int) -> str:
    """Make what a job needs; return why none may be run by this worker, "" when it may."""
    warm.init, warm.job = pid_of(warm.init_fd), pid_of(warm.job_fd)
    if group is not None:
        group.enter(warm.init, warm.job)
    if warm.namespaces is None:
        return ""
    kernel.enter_namespace(f"/proc/{warm.job}/ns/net", kernel.NEW_NET)
    kernel.loopback_up()
    make_tmp(warm.tmp, user)
    warm.tmp_fd = kernel.open_tree(warm.tmp, read_only=False)
    assert warm.job_link is not None
    hear(warm.job_link, "shut_in")
    found = not_shut_in(warm.job, warm.outside, warm.namespaces)
    return f"the warm worker is not shut in: {found}" if found else ""


def _plan_from(channel: socket.socket, warm: Warm) -> dict[str, Any] | None:
    """Return the job's plan; None when the host lets go, or the worker has ended. What was said to
    this process before there was a job is not meant for it."""
    ends = [warm.init_fd, warm.job_fd]
    if channel.fileno() not in select.select([channel.fileno(), *ends], [], [])[0]:
        return None
    plan, fds = _received_line(channel)
    if plan is None:
        return None
    warm.done_fd = fds[0]
    while signal.sigtimedwait(_SIGNALS, 0) is not None:
        pass
    return plan
