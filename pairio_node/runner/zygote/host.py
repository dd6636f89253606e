"""The process that keeps the warm workers of one app, and a supervisor for each job.

The first line on its channel says what to keep; it answers with `{"kind": "zygote" | "single",
"why": ...}` or `{"error": ...}`. After that each line is a plan, answered with a socket to its
supervisor. It ends when the node is gone and no job of it runs: its workers end with it.
"""

import contextlib
import fcntl
import gc
import json
import os
import select
import signal
import socket
import time
from pathlib import Path
from typing import Any

from pairio_node.runner.supervisor.disk import remove_tree
from pairio_node.runner.zygote import kernel
from pairio_node.runner.zygote.check import Namespaces
from pairio_node.runner.zygote.keeper import Keeper, KeeperGone
from pairio_node.runner.zygote.templates import (
    CHANNEL_FD,
    NodeGone,
    Refused,
    Single,
    Zygote,
    last_line,
    readable,
)
from pairio_node.runner.zygote.warm_job import Warm, group_bounds

__all__ = ["main"]

_LINE_BYTES_MAX = 4 * 2**20
_LOCK_FILE = "lock"
_BROKEN_IN_A_ROW_MAX = 3
#: So many workers are offered a job: some may have ended while they waited.
_TRIES = 4
#: Keepers that wait for a worker.
_FREE_MAX = 4
#: A job waits so long for a worker.
_WORKER_S = 10.0


def main() -> None:
    """Keep workers until the channel ends."""
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT, signal.SIGHUP))
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    os.chdir("/")
    _be_owner_of_mounts()
    channel = _Channel()
    config = channel.line()
    if config is None:
        return
    host = _Host(config)
    try:
        channel.answer(host.begin())
        gc.collect()
        gc.freeze()
        while (plan := host.wait_for(channel)) is not None:
            try:
                channel.answer({}, host.run(plan))
            except (OSError, Refused, KeeperGone) as error:
                channel.answer({"error": str(error)})
    except NodeGone:
        pass  # whatever the import is at
    finally:
        host.end()


def _be_owner_of_mounts() -> None:
    """Be allowed to hand out mounts of folders: root is; others in a namespace of their own, in
    which they are who they are outside."""
    if os.geteuid() == 0:
        return
    user, group = os.geteuid(), os.getegid()
    try:
        kernel.unshare(kernel.NEW_USER | kernel.NEW_NS)
        for name, text in (
            ("uid_map", f"{user} {user} 1"),
            ("setgroups", "deny"),
            ("gid_map", f"{group} {group} 1"),
        ):
            Path("/proc/self", name).write_text(text)
        kernel.make_private()
    except OSError:
        return  # a zygote will say so when it gets no folder


class _Channel:
    """Lines of JSON from the node, and answers."""

    def __init__(self) -> None:
        self._pending = b""
        self._socket = socket.socket(fileno=CHANNEL_FD)

    def line(self) -> dict[str, Any] | None:
        """Return the next one; None at the end."""
        while b"\n" not in self._pending:
            data = os.read(CHANNEL_FD, 65536)
            if not data or len(self._pending) > _LINE_BYTES_MAX:
                return None
            self._pending += data
        line, _, self._pending = self._pending.partition(b"\n")
        return dict(json.loads(line))

    def answer(self, message: dict[str, Any], fd: int = -1) -> None:
        """Tell the node, and hand a descriptor over; one that is gone is noticed when it is read
        from."""
        line = json.dumps(message).encode() + b"\n"
        try:
            socket.send_fds(self._socket, [line], [fd] if fd >= 0 else [])
        except BrokenPipeError:
            return
        finally:
            if fd >= 0:
                os.close(fd)


class _Host:
    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self.folder = Path(config["folder"])
        self.folder.mkdir(parents=True)
        self.outside = Namespaces.of(os.getpid())
        self._lock_fd = os.open(self.folder / _LOCK_FILE, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC)
        fcntl.flock(self._lock_fd, fcntl.LOCK_EX)
        self._zygote: Zygote | None = None
        self._workers: list[Single] = []  # that still import the app
        self._keepers: list[Keeper] = []  # with a worker that waits for a job
        self._running: list[Keeper] = []
        self._free: list[Keeper] = []
        self._lost = ""
        self._numbers = iter(range(10**9))
        self._broken = 0
        self._turn = 0
        #: Of the job before: those of the next one are most likely the same.
        self._bounds: dict[str, int] = config["bounds"]

    def begin(self) -> dict[str, Any]:
        """Start what the configuration asks for."""
        why = self.config["single_because"]
        if not why:
            try:
                self._zygote = Zygote(self.config)
                return {"kind": "zygote", "why": ""}
            except (OSError, Refused) as error:
                why = str(error)
        try:
            self._start_first()
        except (OSError, Refused) as error:
            return {"error": f"{why}; {error}" if why != str(error) else why}
        return {"kind": "single", "why": why}

    def end(self) -> None:
        """Let running jobs end, then end everything."""
        for worker in self._workers:
            worker.sandbox.kill()
        keepers = [*self._keepers, *self._running, *self._free]
        for keeper in keepers:
            keeper.let_go()
        for keeper in keepers:
            keeper.wait()  # it removes what it made
        if self._zygote is not None:
            self._zygote.end()
        remove_tree(self.folder)

    # -- workers for one job each -----------------------------------------------------------

    def _start_first(self) -> None:
        worker = self._start_worker()
        ends_s = time.monotonic() + self.config["import_s"]
        while not worker.ready:
            if not readable([worker.link.fileno()], ends_s):
                worker.sandbox.kill()
                raise Refused("its import did not end in time")
            if not worker.look():
                raise Refused(last_line(worker.console_fd) or "the worker has ended")
        self._workers.remove(worker)
        self._keep(worker.warm(self.outside))
        self._refill()

    def _start_worker(self) -> Single:
        worker = Single(self.config, self.folder / str(next(self._numbers)))
        self._workers.append(worker)
        return worker

    def _refill(self) -> None:
        if self._zygote is None and self._broken < _BROKEN_IN_A_ROW_MAX:
            while len(self._workers) + len(self._keepers) < self.config["workers"]:
                self._start_worker()

    def _look_at(self, worker: Single) -> None:
        if not worker.look():
            self._broken += 1
            self._workers.remove(worker)
            worker.close()
        elif worker.ready:
            self._broken = 0
            self._workers.remove(worker)
            with contextlib.suppress(OSError):  # it has just ended
                self._keep(worker.warm(self.outside))

    # -- jobs -----------------------------------------------------------------------------

    def wait_for(self, channel: _Channel) -> dict[str, Any] | None:
        """Return the next plan; None when the node is gone. Meanwhile workers become ready."""
        while not self._look(None, [CHANNEL_FD]):
            pass
        return channel.line()

    def run(self, plan: dict[str, Any]) -> int:
        """Hand a job over; returns a socket to its supervisor (see `Warm.done_fd`)."""
        self._turn += 1
        ends_s = time.monotonic() + _WORKER_S
        for left in reversed(range(_TRIES)):
            keeper = self._ready_keeper()
            self._keepers.remove(keeper)
            try:
                done_fd = keeper.run({**plan, "cpu_turn": self._turn})
                break
            except KeeperGone:  # it, or its worker, ended while it waited: another one takes it
                keeper.close()
                if not left or time.monotonic() > ends_s:
                    raise
        self._bounds = group_bounds(plan)
        self._running.append(keeper)
        self._sort(keeper)
        with contextlib.suppress(OSError):  # the job goes on: nothing may say that it does not
            self._refill()
        return done_fd

    def _sort(self, keeper: Keeper) -> None:
        """Note that a keeper is free, if it is; more than a few are let go."""
        if keeper.free:
            self._running.remove(keeper)
            if len(self._free) < _FREE_MAX:
                self._free.append(keeper)
            else:
                keeper.close()

    def _ready_keeper(self) -> Keeper:
        """Return one; who is on his way is there sooner than a cold start."""
        ends_s = time.monotonic() + _WORKER_S
        self._look(0, [])
        while not self._lost:
            for keeper in self._keepers:
                if keeper.ready:
                    return keeper
            self._refill()
            left_s = ends_s - time.monotonic()
            if left_s <= 0 and self._zygote is not None:
                self._lost = "the zygote makes no more processes"
            elif left_s <= 0:
                raise Refused("no worker is ready")
            else:
                self._look(left_s, [])
        raise Refused(self._lost)

    def _look(self, within_s: float | None, more: list[int]) -> bool:
        """Wait for news of workers and keepers, and take them; say whether `more` has some."""
        workers = {worker.link.fileno(): worker for worker in self._workers}
        each = (*self._keepers, *self._running, *self._free)
        keepers = {keeper.channel.fileno(): keeper for keeper in each}
        control = self._zygote.control if self._zygote is not None else None
        forks = [] if control is None else [control.fileno()]
        found = select.select([*workers, *keepers, *forks, *more], [], [], within_s)[0]
        for fd in found:
            if fd in workers:
                self._look_at(workers[fd])
            elif fd in keepers:
                self._hear(keepers[fd])
            elif fd in forks:
                self._take_forked()
        return any(fd in more for fd in found)

    def _hear(self, keeper: Keeper) -> None:
        if keeper.channel.fileno() < 0:
            return  # what was looked at before it let it go
        said = keeper.hear()
        if keeper.ready:
            return
        if keeper.free:
            self._sort(keeper)
            return
        # Why no job is to be run by what it keeps, nor by others of its kind.
        self._lost = self._lost or said.get("unsafe", "")
        for those in (self._keepers, self._running, self._free):
            if keeper in those:
                those.remove(keeper)
        keeper.close()

    def _take_forked(self) -> None:
        """A child of the zygote is there for a job, or it makes no more of them."""
        assert self._zygote is not None
        try:
            warm = self._zygote.forked(self.outside, str(self.folder / str(next(self._numbers))))
        except Refused as error:
            self._lost = str(error)
        else:
            self._keep(warm)

    def _keep(self, warm: Warm) -> None:
        warm.bounds = self._bounds
        while warm.namespaces is not None and self._free:
            keeper = self._free.pop()  # the newest: its memory is at hand
            if keeper.take(warm):
                self._keepers.append(keeper)
                return
            keeper.close()
        self._keepers.append(Keeper(warm, self.config["groups"], self.config["zygote"]["user"]))
