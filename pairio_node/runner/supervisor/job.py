"""Watches one job to its end: console, wall time, memory, cancel, and whether a node is there.

SIGTERM to the supervisor is a cancel. The outcome's `why` is "", `time`, `memory`, `canceled`,
`yield` (no node came for `grace_s`) or `start` (the job could not be started; see `error`).
"""

import json
import os
import resource
import select
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from .console import ConsoleWriter
from .processes import descendants, remove_tree, resident_bytes, send
from .sandbox import FILTER, become, filter_fd
from .secret import Mask, secret_fds

__all__ = ["CONSOLE_FILE", "ERRORS_FILE", "LOCK_FILE", "OUTCOME_FILE", "Supervisor"]

CONSOLE_FILE = "console"
ERRORS_FILE = "supervisor.err"
LOCK_FILE = "supervisor.lock"
OUTCOME_FILE = "outcome.json"

#: From the job's SIGTERM to its SIGKILL: a run that nobody wants is gone within a second.
_GRACE_S = 0.7
_WATCH_S = 0.2
#: What cannot be killed (it waits for a device) is not waited for longer than this.
_KILL_S = 5.0
#: A process outside the job's tree that holds the console open is not waited for longer.
_DRAIN_S = 0.5


class Supervisor:
    """One job. `plan` has: folder, argv, environment, cwd, memory_bytes, time_ms, sandboxed (the
    job's first process is the sandbox's own), grace_s, nice (how far behind others it comes), alive
    (the node's sign of life); of the sandbox: filter (of system calls, hexadecimal), user (0: that
    of the node), files (for that user, see `sandbox.become`); secrets (by name, see `secret`)."""

    def __init__(self, plan: dict[str, Any], die_with_parent: Any) -> None:
        self._plan = plan
        self._folder = Path(plan["folder"])
        self._die_with_parent = die_with_parent
        self._alive_fd = os.open(plan["alive"], os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        self._console = ConsoleWriter(self._folder / CONSOLE_FILE)
        self._console_fd = -1
        self._mask = Mask(plan.get("secrets") or {})
        self._wake_fd = _woken_by_signals()
        #: More descriptors that are readable when the end of the job is to be looked for.
        self._end_fds: tuple[int, ...] = ()
        self._process: subprocess.Popen[bytes] | None = None
        self._root = 0
        self._status: int | None = None
        self._why = ""
        self._peak_bytes = 0
        self._began_s = time.monotonic()
        self._kill_at_s: float | None = None
        self._alone_since_s: float | None = None

    def run(self) -> None:
        """Start the job, watch it, end what is left of it, leave the outcome."""
        error = ""
        try:
            self._start()
            self._watch()
        except (OSError, subprocess.SubprocessError) as failure:
            self._why, error = "start", str(failure)
        finally:
            self._end_all()
        self._drain()
        forsaken = self._why == "yield" or not self._plan["grace_s"]
        if forsaken and not self._node_lives():
            remove_tree(self._folder)
        else:
            self._leave_outcome(error)

    def _start(self) -> None:
        self._console_fd, write_fd = os.pipe()
        filter_ = filter_fd(self._plan)
        passed = ({} if filter_ is None else {FILTER: filter_}) | secret_fds(self._plan)
        self._plan.pop("secrets", None)  # the mask has them
        try:
            # Kept: a Popen that is collected takes the process' end for itself.
            self._process = subprocess.Popen(
                [str(passed.get(word, word)) for word in self._plan["argv"]],
                stdin=subprocess.DEVNULL,
                stdout=write_fd,
                stderr=write_fd,
                env=self._plan["environment"],
                cwd=self._plan["cwd"],
                start_new_session=True,
                pass_fds=tuple(passed.values()),
                # In the node this would cost 10 ms and go off with a thread; here is neither.
                preexec_fn=self._in_the_child,
            )
        finally:
            for fd in (write_fd, *passed.values()):
                os.close(fd)
        self._root = self._process.pid

    def _in_the_child(self) -> None:
        if self._plan["nice"]:
            os.nice(self._plan["nice"])
        if self._plan["user"]:
            become(self._plan["user"], self._plan["files"])
        self._die_with_parent()  # last: it is forgotten when the user changes

    def _watch(self) -> None:
        poll = select.poll()
        poll.register(self._console_fd, select.POLLIN)
        for fd in (self._wake_fd, *self._end_fds):
            poll.register(fd, select.POLLIN)
        look_at_s = 0.0
        while self._status is None:
            now_s = time.monotonic()
            if now_s >= look_at_s:
                self._look(now_s)
                look_at_s = now_s + _WATCH_S
            limit_s = self._began_s + self._plan["time_ms"] / 1000
            if not self._why and now_s >= limit_s:
                self._end("time")
            if self._kill_at_s is not None and now_s >= self._kill_at_s:
                self._kill()
                self._kill_at_s = now_s + _WATCH_S
            due_s = min(look_at_s, limit_s if not self._why else look_at_s)
            due_s = min(due_s, self._kill_at_s or due_s)
            for fd, _ in poll.poll(max(1.0, (due_s - now_s) * 1000)):
                if fd == self._wake_fd and signal.SIGTERM in os.read(fd, 512):
                    self._end("canceled")
                if fd != self._console_fd:
                    self._reap()
                elif not self._read_console():
                    poll.unregister(fd)

    def _look(self, now_s: float) -> None:
        """See what the job holds, and whether a node is there."""
        used = resident_bytes(self._tree())
        self._peak_bytes = max(self._peak_bytes, used)
        if used > self._plan["memory_bytes"] and self._why != "memory":
            self._why = self._why or "memory"
            self._kill()
        if self._node_lives():
            self._alone_since_s = None
        elif self._alone_since_s is None:
            self._alone_since_s = now_s
        alone_s = 0.0 if self._alone_since_s is None else now_s - self._alone_since_s
        if self._alone_since_s is not None and alone_s >= self._plan["grace_s"]:
            self._end("yield")

    def _node_lives(self) -> bool:
        """A pipe without a writer is at its end; a node holds it open for writing."""
        try:
            return os.read(self._alive_fd, 1) != b""
        except BlockingIOError:
            return True

    def _end(self, why: str) -> None:
        """Ask the job to end; it is killed after the grace. The sandbox's own process would take
        the job with it at once, so it is not asked."""
        if self._why:
            return
        self._why = why
        self._kill_at_s = time.monotonic() + _GRACE_S
        self._ask()

    def _ask(self) -> None:
        """Ask the job's processes to end."""
        tree = self._tree()
        inner = [pid for pid in tree if pid != self._root] if self._plan["sandboxed"] else []
        send(inner or tree, signal.SIGTERM)

    def _kill(self) -> None:
        """Kill the job's processes."""
        send(self._tree(), signal.SIGKILL)

    def _tree(self) -> list[int]:
        """Return the processes of the job, parents first."""
        return descendants(os.getpid())

    def _reap(self) -> None:
        """Take the ends of the job's first process and of those that it has left behind."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                if self._root and self._status is None:
                    raise RuntimeError("the end of the job was lost") from None
                return
            if pid == 0:
                return
            if pid == self._root:
                self._status = status

    def _end_all(self) -> None:
        """Kill until nothing is left: all that the job ever started is below this process."""
        gives_up_s = time.monotonic() + _KILL_S
        while tree := self._tree():
            send(tree, signal.SIGKILL)
            self._reap()
            if time.monotonic() > gives_up_s:
                raise TimeoutError(f"processes {tree} cannot be killed")
            select.select([self._wake_fd, *self._end_fds], [], [], 0.01)
            _emptied(self._wake_fd)
        self._reap()

    def _read_console(self) -> bool:
        data = os.read(self._console_fd, 65536)
        self._console.add(self._mask.add(data) if data else self._mask.end())
        return data != b""

    def _drain(self) -> None:
        ends_s = time.monotonic() + _DRAIN_S
        while self._console_fd >= 0 and (left_s := ends_s - time.monotonic()) > 0:
            ready, _, _ = select.select([self._console_fd], [], [], left_s)
            if not ready or not self._read_console():
                return

    def _leave_outcome(self, error: str) -> None:
        exit_code = 0 if self._status is None else os.waitstatus_to_exitcode(self._status)
        outcome = {
            "exit_code": exit_code,
            "why": self._why,
            "error": error,
            "console_lost_bytes": self._console.lost_bytes,
            "usage": self._usage(),
        }
        part = self._folder / f"{OUTCOME_FILE}.part"
        part.write_text(json.dumps(outcome))
        part.rename(self._folder / OUTCOME_FILE)

    def _usage(self) -> dict[str, int]:
        """Return what the job used in all."""
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return {
            "wall_ms": int((time.monotonic() - self._began_s) * 1000),
            "cpu_ms": int((used.ru_utime + used.ru_stime) * 1000),
            "memory_peak_bytes": max(self._peak_bytes, used.ru_maxrss * 1024),
        }


def _woken_by_signals() -> int:
    """Return a descriptor from which the numbers of signals can be read. The handlers do nothing,
    but unlike "ignore" they are not handed on to the job."""
    read_fd, write_fd = os.pipe()
    os.set_blocking(read_fd, False)
    os.set_blocking(write_fd, False)
    signal.set_wakeup_fd(write_fd, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    return read_fd


def _emptied(fd: int) -> None:
    try:
        os.read(fd, 512)
    except BlockingIOError:
        return
