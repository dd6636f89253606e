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
import subprocess
import time
from pathlib import Path
from typing import Any

from pairio_node.runner.supervisor.disk import remove_tree, scatter
from pairio_node.runner.supervisor.processes import descendants, send
from pairio_node.runner.supervisor.sandbox import FILTER, become, filter_fd
from pairio_node.runner.zygote import kernel
from pairio_node.runner.zygote.check import Namespaces, import_tricks
from pairio_node.runner.zygote.job_folders import make_tmp
from pairio_node.runner.zygote.keeper import Keeper, KeeperGone
from pairio_node.runner.zygote.warm_job import Warm, group_bounds

__all__ = ["main"]

_CHANNEL_FD = 0
_LINE_BYTES_MAX = 4 * 2**20
_ERRORS_BYTES = 4096
_LOCK_FILE = "lock"
_BROKEN_IN_A_ROW_MAX = 3
#: So many workers are offered a job: some may have ended while they waited.
_TRIES = 4
#: Keepers that wait for a worker.
_FREE_MAX = 4
#: A job waits so long for a worker.
_WORKER_S = 10.0


class _Refused(Exception):
    """This kind of worker does not work here, or not for this app; says why."""


class _NodeGone(Exception):
    """The node has let go while the app was still being imported."""


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
            except (OSError, _Refused, KeeperGone) as error:
                channel.answer({"error": str(error)})
    except _NodeGone:
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
        self._socket = socket.socket(fileno=_CHANNEL_FD)

    def line(self) -> dict[str, Any] | None:
        """Return the next one; None at the end."""
        while b"\n" not in self._pending:
            data = os.read(_CHANNEL_FD, 65536)
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


class _Sandbox:
    """A bubblewrap process with the program `inside`. `fds`: numbers of the descriptors it gets."""

    def __init__(self, part: dict[str, Any], fill: dict[str, str], out_fd: int, fds: list[int]):
        filter_ = filter_fd(part)
        files = [fill.get(path, path) for path in part["files"]]
        fill = {**fill, FILTER: str(filter_)}

        def prepare() -> None:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # bubblewrap waits for it
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
            if part["user"]:
                become(part["user"], files)
            # No parent-death signal: bubblewrap sets its own, just before its word to its child.
            # One that comes between its fork and that word leaves the child waiting for ever. That
            # the host has ended before is seen by the program inside.

        try:
            self._process = subprocess.Popen(
                [*(fill.get(word, word) for word in part["argv"]), *map(str, fds)],
                stdin=subprocess.DEVNULL,
                stdout=out_fd,
                stderr=out_fd,
                env=part["environment"],
                start_new_session=True,
                pass_fds=[fd for fd in (*fds, filter_) if fd is not None and fd >= 0],
                preexec_fn=prepare,
            )
        except subprocess.SubprocessError as error:
            raise OSError(f"the sandbox cannot be started: {error}") from None
        finally:
            if filter_ is not None:
                os.close(filter_)
        self.pid = self._process.pid
        self.fd = os.pidfd_open(self.pid)

    def kill(self) -> None:
        """End it and what is below: a sandbox that is still being made does not end with it."""
        if not select.select([self.fd], [], [], 0)[0]:
            send([*descendants(self.pid), self.pid], signal.SIGKILL)


class _Single:
    """A worker that was started ahead for one job."""

    def __init__(self, host: "_Host", number: int) -> None:
        self._asks: str | None = None
        self.folder = host.folder / str(number)
        (self.folder / "in").mkdir(parents=True)
        make_tmp(f"{self.folder}/tmp", host.config["single"]["user"])
        self.link, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.console_fd, out_fd = os.pipe()
        try:
            fill = {"{in}": str(self.folder / "in"), "{tmp}": str(self.folder / "tmp")}
            part = host.config["single"]
            self.sandbox = _Sandbox(part, fill, out_fd, [-1, theirs.fileno()])
        finally:
            os.close(out_fd)
            theirs.close()
        host.configure(self.link, single=True)
        self._job_fd = -1

    def look(self) -> bool:
        """Take what it says; False when it has ended."""
        try:
            data, fds, _, _ = socket.recv_fds(self.link, 65536, 4)
        except ConnectionError:
            data, fds = b"", []
        message = json.loads(data) if data else {}
        if "held" in message:
            self._job_fd = fds[0]
        self._asks = message.get("asks", self._asks)
        return bool(message) and self._asks != "off"

    @property
    def ready(self) -> bool:
        """Say whether its app is imported and its init has shut itself off."""
        return self._asks is not None and self._job_fd >= 0

    def warm(self, outside: Namespaces) -> Warm:
        """Return it as what a job can be run in, once it is ready; its descriptors go along."""
        tree = descendants(self.sandbox.pid)
        if not tree:
            raise ProcessLookupError("the worker has ended")
        init_fd = os.pidfd_open(tree[0])
        os.close(self.sandbox.fd)
        folder, console_fd = str(self.folder), self.console_fd
        return Warm(outside, self.link, init_fd, self._job_fd, console_fd=console_fd, folder=folder)

    def close(self) -> None:
        """It has ended before it was ready."""
        self.link.close()
        for fd in (self.console_fd, self._job_fd, self.sandbox.fd):
            if fd >= 0:
                os.close(fd)
        remove_tree(self.folder)


class _Host:
    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self.folder = Path(config["folder"])
        self.folder.mkdir(parents=True)
        scatter(self.folder)
        self.outside = Namespaces.of(os.getpid())
        self._lock_fd = os.open(self.folder / _LOCK_FILE, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC)
        fcntl.flock(self._lock_fd, fcntl.LOCK_EX)
        self._zygote: _Sandbox | None = None
        self._control: socket.socket | None = None
        self._namespaces: Namespaces | None = None
        self._workers: list[_Single] = []  # that still import the app
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
                self._start_zygote()
                return {"kind": "zygote", "why": ""}
            except (OSError, _Refused) as error:
                why = str(error)
                self._end_zygote()
        try:
            self._start_first()
        except (OSError, _Refused) as error:
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
        self._end_zygote()
        remove_tree(self.folder)

    def configure(self, link: socket.socket, *, single: bool) -> None:
        """Say to a program in a sandbox what it is."""
        names = ("script", "middle", "strict", "shm_bytes", "pydantic")
        link.send(
            json.dumps({name: self.config[name] for name in names} | {"single": single}).encode()
        )

    # -- a zygote -------------------------------------------------------------------------

    def _start_zygote(self) -> None:
        part = self.config["zygote"]
        self._control, control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        errors_fd, out_fd = os.pipe()
        try:
            fds = [control.fileno(), theirs.fileno()]
            self._zygote = _Sandbox(part, {}, out_fd, fds)
        finally:
            os.close(out_fd)
            control.close()
            theirs.close()
        with ours:
            self.configure(ours, single=False)
            ready, said = _hear(ours, errors_fd, self.config["import_s"])
            if not ready:
                raise _Refused(said)
            if ready["asks"]:
                raise _Refused(f"the app asks for it ({ready['asks']})")
            zygote, found = import_tricks(self._zygote.pid, {0, 1, 2, *fds})
            if found:
                raise _Refused(f"the app has from its import: {found}")
            self._namespaces = Namespaces.of(zygote)
            ours.send(b"go")
        os.close(errors_fd)

    def _end_zygote(self) -> None:
        if self._zygote is not None:
            self._zygote.kill()
        if self._control is not None:
            self._control.close()
        self._control, self._zygote = None, None

    # -- workers for one job each -----------------------------------------------------------

    def _start_first(self) -> None:
        worker = self._start_worker()
        ends_s = time.monotonic() + self.config["import_s"]
        while not worker.ready:
            if not _readable([worker.link.fileno()], ends_s):
                worker.sandbox.kill()
                raise _Refused("its import did not end in time")
            if not worker.look():
                raise _Refused(_last_line(worker.console_fd) or "the worker has ended")
        self._workers.remove(worker)
        self._keep(worker.warm(self.outside))
        self._refill()

    def _start_worker(self) -> _Single:
        worker = _Single(self, next(self._numbers))
        self._workers.append(worker)
        return worker

    def _refill(self) -> None:
        if self._namespaces is None and self._broken < _BROKEN_IN_A_ROW_MAX:
            while len(self._workers) + len(self._keepers) < self.config["workers"]:
                self._start_worker()

    def _look_at(self, worker: _Single) -> None:
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
        while not self._look(None, [_CHANNEL_FD]):
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
            if left_s <= 0 and self._namespaces is not None:
                self._lost = "the zygote makes no more processes"
            elif left_s <= 0:
                raise _Refused("no worker is ready")
            else:
                self._look(left_s, [])
        raise _Refused(self._lost)

    def _look(self, within_s: float | None, more: list[int]) -> bool:
        """Wait for news of workers and keepers, and take them; say whether `more` has some."""
        workers = {worker.link.fileno(): worker for worker in self._workers}
        each = (*self._keepers, *self._running, *self._free)
        keepers = {keeper.channel.fileno(): keeper for keeper in each}
        control = [] if self._control is None else [self._control.fileno()]
        found = select.select([*workers, *keepers, *control, *more], [], [], within_s)[0]
        for fd in found:
            if fd in workers:
                self._look_at(workers[fd])
            elif fd in keepers:
                self._hear(keepers[fd])
            elif fd in control:
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
        assert self._control is not None
        said, fds, _, _ = socket.recv_fds(self._control, 65536, 4)
        if len(fds) < 4:
            for fd in fds:
                os.close(fd)
            if said and not fds:  # the jobs that run go on
                self._lost = "what the zygote makes dies before it gets a job"
                return
            self._lost = "the zygote has ended"
            self._end_zygote()
            return
        link, job_link = (socket.socket(fileno=fd) for fd in fds[:2])
        folder = str(self.folder / str(next(self._numbers)))
        found = self._namespaces
        self._keep(Warm(self.outside, link, fds[2], fds[3], found, job_link, folder=folder))

    def _keep(self, warm: Warm) -> None:
        warm.bounds = self._bounds
        while warm.namespaces is not None and self._free:
            keeper = self._free.pop()  # the newest: its memory is at hand
            if keeper.take(warm):
                self._keepers.append(keeper)
                return
            keeper.close()
        config = self.config
        user, reuses = config["zygote"]["user"], config["reuses_folders"]
        self._keepers.append(Keeper(warm, config["groups"], user, reuses_folders=reuses))


def _hear(link: socket.socket, errors_fd: int, within_s: float) -> tuple[dict[str, Any], str]:
    """Return what the program says first ({} when it ends, or not in time), and the last line of
    what the app wrote meanwhile."""
    ends_s = time.monotonic() + within_s
    said, fds = b"", [link.fileno(), errors_fd]
    while readable := _readable(fds, ends_s):
        if errors_fd in readable:
            data = os.read(errors_fd, 65536)
            said = (said + data)[-_ERRORS_BYTES:]
            if not data:
                fds.remove(errors_fd)
        else:
            data = link.recv(65536)
            return (json.loads(data) if data else {}), _line_of(said) or "it has ended"
    return {}, "its import did not end in time"


def _readable(fds: list[int], ends_s: float) -> list[int]:
    """Return which of `fds` can be read, none when the time is up. The node says nothing meanwhile,
    so that its channel is readable means its end (_NodeGone)."""
    left_s = max(0.0, ends_s - time.monotonic())
    found = select.select([*fds, _CHANNEL_FD], [], [], left_s)[0]
    if _CHANNEL_FD in found:
        raise _NodeGone
    return found


def _last_line(fd: int) -> str:
    os.set_blocking(fd, False)
    try:
        return _line_of(os.read(fd, _ERRORS_BYTES * 16))
    except BlockingIOError:
        return ""


def _line_of(said: bytes) -> str:
    return said.decode(errors="replace").strip().rpartition("\n")[2][:300]
