"""Sees one job to its end: console, wall time, bounds, cancel, and whether a node is there.

SIGTERM to the supervisor is a cancel. The outcome's `why` is "", `time`, a bound that was passed
(see `watch.Passed`, in `passed`), `canceled`, `yield` (no node came for `grace_s`) or `start` (the
job could not be started; see `error`).
"""

import contextlib
import json
import os
import resource
import select
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from .cgroups import Delegation, JobCgroup
from .console import ConsoleWriter
from .disk import remove_tree
from .processes import descendants, sandboxes_below, send, stop_all
from .runfile import RUN_FILE, add
from .sandbox import FILTER, become, filter_fd
from .secret import Mask, secret_fds, taken
from .watch import Bounds, Passed, Watch, as_plain

__all__ = ["CONSOLE_FILE", "ERRORS_FILE", "SAMPLES_FILE", "Supervisor"]

CONSOLE_FILE = "console"
SAMPLES_FILE = "usage.jsonl"
ERRORS_FILE = "supervisor.err"

#: From the job's SIGTERM to its SIGKILL: a run that nobody wants is gone within a second.
_GRACE_S = 0.7
_WATCH_S = 0.2
#: Little can be seen of a job that has just begun, and many have ended by then: a look costs as
#: much as all else that is done for such a job.
_FIRST_LOOK_S = 0.05
#: What cannot be killed (it waits for a device) is not waited for longer than this.
_KILL_S = 5.0
#: A process outside the job's tree that holds the console open is not waited for longer.
_DRAIN_S = 0.5
#: A job that writes more than this to its console is read no faster.
_FLOOD_BYTES = 64 * 2**20
_FLOOD_BYTES_A_SECOND = 64 * 2**20
#: When the machine has no memory left, a job ends before the node and before other programs.
_OOM_SCORE = "500"


class Supervisor:
    """One job. `plan` has: folder, argv, environment, cwd, time_ms, cpu_millicores, bounds (see
    `watch.Bounds`), groups (a `Delegation`, or None), cpu_turn (a number that counts up by job),
    sandboxed (the job's first process is the sandbox's own), grace_s, nice (how far behind others
    it comes), alive (the node's sign of life); of the sandbox: filter (of system calls,
    hexadecimal), user (0: that of the node), files (for that user, see `sandbox.become`);
    has_secrets: whether they lie ready (see `secret`). `run_fd`: its run file, with the lock."""

    def __init__(self, plan: dict[str, Any], die_with_parent: Any, run_fd: int) -> None:
        self._plan = plan
        self._run_fd = run_fd
        self._folder = Path(plan["folder"])
        self._die_with_parent = die_with_parent
        self._alive_fd = -1
        self._console: ConsoleWriter
        self._console_fd = -1
        self._console_bytes = 0
        self._mask = Mask({})
        self._wake_fd = -1
        #: More descriptors that are readable when the end of the job is to be looked for.
        self._end_fds: tuple[int, ...] = ()
        #: Those by which it is told to end.
        self._ask_fds: tuple[int, ...] = ()
        self._poll = select.poll()
        self._process: subprocess.Popen[bytes] | None = None
        self._root = 0
        self._status: int | None = None
        self._why = ""
        self._group: JobCgroup | None = None
        self._watcher: Watch | None = None
        self._passed: Passed | None = None
        self._began_s = time.monotonic()
        self._kill_at_s: float | None = None
        self._alone_since_s: float | None = None

    def run(self) -> None:
        """Start the job, watch it, end what is left of it, leave the outcome."""
        error = ""
        self._open()
        try:
            self._start()
            self._watch()
        except (OSError, subprocess.SubprocessError) as failure:
            self._why, error = "start", str(failure)
        finally:
            self._end_all()
        self._drain()
        outcome = self._outcome(error)
        self._clean()
        if self._node_lives():
            add(self._run_fd, "outcome", outcome)
        elif not self._plan["grace_s"]:
            remove_tree(self._folder)
        else:
            if self._why == "yield":
                self._remove_work()
            add(self._run_fd, "outcome", outcome)

    def _open(self) -> None:
        """Open what the supervisor itself needs."""
        self._alive_fd = os.open(self._plan["alive"], os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        # Most jobs are over before anybody would read a file.
        self._console = ConsoleWriter(self._folder / CONSOLE_FILE, hold=True)
        self._wake_fd = _woken_by_signals()
        self._ask_fds = (self._wake_fd,)

    def _clean(self) -> None:
        """Remove what was made for the job beside its folder."""
        if self._group is not None:
            self._group.remove()

    def _bound(self) -> None:
        """Make what holds the job's bounds, and what watches them."""
        bounds = Bounds(**self._plan["bounds"])
        self._group = self._grouped(bounds)
        if self._group is not None:
            add(self._run_fd, "group", self._group.as_plain())
        self._watcher = Watch(bounds, self._folder / "tmp", self._tree, self._group)

    def _grouped(self, bounds: Bounds) -> JobCgroup | None:
        if self._plan["groups"] is None:
            return None
        return JobCgroup.create(
            Delegation(**self._plan["groups"]),
            f"{os.getpid()}-{os.urandom(6).hex()}",
            memory_bytes=bounds.memory_bytes,
            cpu_millicores=self._plan["cpu_millicores"],
            processes_max=bounds.processes,
        )

    def _secrets(self) -> dict[str, str]:
        """Take the job's secrets, by name; from now on they are masked in what it writes."""
        secrets = taken(self._folder) if self._plan["has_secrets"] else {}
        self._mask = Mask(secrets)
        return secrets

    def _start(self) -> None:
        self._bound()
        secrets = self._secrets()
        self._console_fd, write_fd = os.pipe()
        filter_ = filter_fd(self._plan)
        passed = ({} if filter_ is None else {FILTER: filter_}) | secret_fds(secrets)
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
        with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
            file.write(_OOM_SCORE)
        if self._group is not None:
            self._group.enter()
        if self._group is None or not self._group.bounds_cpu:
            self._keep_to_processors()
        if self._plan["nice"]:
            os.nice(self._plan["nice"])
        if self._plan["user"]:
            become(self._plan["user"], self._plan["files"])
        self._die_with_parent()  # last: it is forgotten when the user changes

    def _keep_to_processors(self, pid: int = 0) -> None:
        """Keep the job to as many processors as it asked for: other ones than the job before."""
        mine = sorted(os.sched_getaffinity(0))
        count = min(len(mine), -(-self._plan["cpu_millicores"] // 1000)) or len(mine)
        first = self._plan["cpu_turn"] * count
        os.sched_setaffinity(pid, {mine[(first + n) % len(mine)] for n in range(count)})

    def _watch(self) -> None:
        poll = self._poll
        for fd in (self._console_fd, *self._ask_fds, *self._end_fds):
            poll.register(fd, select.POLLIN)
        look_at_s = self._began_s + _FIRST_LOOK_S
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
                if fd in self._ask_fds and self._is_asked(fd):
                    self._end("canceled")
                if fd != self._console_fd:
                    self._reap()
                elif not self._read_console():
                    poll.unregister(fd)
        if not self._why and self._watcher is not None:
            self._pass(self._watcher.ended())

    def _is_asked(self, fd: int) -> bool:
        """Say whether what came there tells the job to end."""
        return signal.SIGTERM in os.read(fd, 512)

    def _look(self, now_s: float) -> None:
        """See what the job uses, and whether a node is there."""
        assert self._watcher is not None
        self._console.show()
        if self._passed is None:
            self._pass(self._watcher.look())
        if self._node_lives():
            self._alone_since_s = None
        elif self._alone_since_s is None:
            self._alone_since_s = now_s
        alone_s = 0.0 if self._alone_since_s is None else now_s - self._alone_since_s
        if self._alone_since_s is not None and alone_s >= self._plan["grace_s"]:
            self._end("yield")

    def _pass(self, passed: Passed | None) -> None:
        """End a job that has passed a bound, at once: what it does next may be worse."""
        if passed is not None:
            self._passed = passed
            self._why = self._why or passed.which
            self._kill()

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
        """Kill the job's processes: first those that take others with them."""
        if self._group is not None:
            self._group.kill_all()
        if self._plan["sandboxed"]:
            send(self._first(), signal.SIGKILL)
        send(stop_all(self._tree), signal.SIGKILL)

    def _first(self) -> list[int]:
        """Return those with which the whole sandbox ends."""
        return sandboxes_below(os.getpid())

    def _is_left(self) -> bool:
        """Say whether a process of the job is left, also one that got away from its parents."""
        return bool(self._tree()) or (self._group is not None and bool(self._group.processes()))

    def _tree(self) -> list[int]:
        """Return the processes of the job, parents first."""
        return descendants(os.getpid())

    def _reap(self) -> None:
        """Take the ends of the job's first process and of those that it has left behind."""
        while True:
            try:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                if self._root and self._status is None:
                    raise RuntimeError("the end of the job was lost") from None
                return
            if ended is None:
                return
            if self._watcher is not None:
                self._watcher.on_end_of(ended.si_pid)
            pid, status = os.waitpid(ended.si_pid, 0)
            if pid == self._root:
                self._status = status

    def _end_all(self) -> None:
        """Kill until nothing is left: all that the job ever started is below this process."""
        gives_up_s = time.monotonic() + _KILL_S
        while self._is_left():
            self._kill()
            self._reap()
            if time.monotonic() > gives_up_s:
                raise TimeoutError(f"processes {self._tree()} cannot be killed")
            select.select([self._wake_fd, *self._end_fds], [], [], 0.01)
            _emptied(self._wake_fd)
        self._reap()

    def _read_console(self) -> bool:
        data = os.read(self._console_fd, 65536)
        self._console.add(self._mask.add(data) if data else self._mask.end())
        self._console_bytes += len(data)
        if self._console_bytes > _FLOOD_BYTES:
            # Reading costs this process, which no bound holds: the job waits for it.
            time.sleep(len(data) / _FLOOD_BYTES_A_SECOND)
        return data != b""

    def _drain(self) -> None:
        ends_s = time.monotonic() + _DRAIN_S
        while self._console_fd >= 0 and (left_s := ends_s - time.monotonic()) > 0:
            ready, _, _ = select.select([self._console_fd], [], [], left_s)
            if not ready or not self._read_console():
                return

    def _outcome(self, error: str) -> dict[str, Any]:
        held = self._console.held
        return {
            "exit_code": 0 if self._status is None else os.waitstatus_to_exitcode(self._status),
            "why": self._why,
            "error": error,
            "passed": as_plain(self._passed),
            "console": None if held is None else held.decode("latin-1"),
            "console_lost_bytes": self._console.lost_bytes,
            "usage": self._usage(),
            "samples": self._sampled(),
        }

    def _sampled(self) -> bool:
        """Leave samples of what the job used; say whether there are any."""
        samples = self._watcher.samples() if self._watcher is not None else []
        if len(samples) < 2:  # one says no more than the figures of the whole run
            return False
        lines = "".join(f"{json.dumps(sample)}\n" for sample in samples)
        try:
            (self._folder / SAMPLES_FILE).write_text(lines)
        except OSError:
            return False  # the disk may be full; the outcome counts
        return True

    def _usage(self) -> dict[str, int]:
        """Return what the job used in all."""
        if self._watcher is None:
            return {}
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu_ms = int((used.ru_utime + used.ru_stime) * 1000)
        return self._watcher.usage(cpu_ms, used.ru_maxrss * 1024)

    def _remove_work(self) -> None:
        """Remove what the job needed and made. Its node, should it come back, is told that the run
        was given up, and finds nothing else."""
        for path in list(self._folder.iterdir()):
            if path.name not in (RUN_FILE, ERRORS_FILE):
                remove_tree(path)


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
