"""The supervisor of a job that a warm worker runs. What it leaves is as for any other job."""

import contextlib
import json
import os
import select
import signal
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pairio_node.runner.supervisor.disk import remove_tree
from pairio_node.runner.supervisor.job import Supervisor
from pairio_node.runner.supervisor.processes import descendants
from pairio_node.runner.zygote import kernel
from pairio_node.runner.zygote.check import Namespaces, not_shut_in

__all__ = ["Warm", "WarmSupervisor"]

MESSAGE_BYTES_MAX = 128 * 1024
#: Forking and setting up takes milliseconds; on a machine that is overloaded, more.
_PREPARE_S = 20.0
#: What cannot be killed (it waits for a device) is not waited for longer than this.
_KILL_S = 5.0
_COUNTED = ("cpu_ms", "memory_peak_bytes", "read_bytes", "written_bytes")


@dataclass
class Warm:
    """What a job is to be run in. A zygote has `control`, where its next child waits for a job. A
    worker for one job has `link`, `init` (its J1), `job` (its J2), `console_fd` and its `folder`,
    which becomes the job's."""

    outside: Namespaces
    control: socket.socket | None = None
    namespaces: Namespaces | None = None
    link: socket.socket | None = None
    init_fd: int = -1
    job_fd: int = -1
    console_fd: int = -1
    folder: str = ""


class WarmSupervisor(Supervisor):
    """Has the job's processes elsewhere than below itself. `plan` has besides: `targets` ([path,
    where the job sees it, whether it is read-only]), `limits` (RLIMIT by name)."""

    def __init__(self, plan: dict[str, Any], die_with_parent: Any, warm: Warm) -> None:
        super().__init__(plan, die_with_parent)
        self._warm = warm
        self._link: socket.socket | None = None
        self._init_fd = -1
        self._used = dict.fromkeys(_COUNTED, 0)
        self._heard: dict[str, list[int]] = {}

    def _start(self) -> None:
        self._bound()
        job_fd = self._take_one() if self._warm.control is None else self._take_forked()
        self._hear("prepared")
        found = not_shut_in(_pid_of(job_fd), self._warm.outside, self._warm.namespaces)
        os.close(job_fd)
        if found:
            raise OSError(f"the warm worker is not shut in: {found}")
        assert self._link is not None
        self._link.send(b"go")
        self._began_s = time.monotonic()

    # -- the two kinds --------------------------------------------------------------------

    def _take_forked(self) -> int:
        """Send the job to the zygote's next child; return a descriptor of the job's process."""
        plan, control = self._plan, self._warm.control
        assert control is not None
        self._console_fd, write_fd = os.pipe()
        self._link, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        passed = [theirs.detach(), write_fd]
        try:
            for path, _, read_only in plan["targets"]:
                passed.append(kernel.open_tree(path, read_only=read_only))
            job = self._job() | {"targets": [target for _, target, _ in plan["targets"]]}
            control.settimeout(_PREPARE_S)
            socket.send_fds(control, [json.dumps(job).encode()], passed)
        finally:
            for fd in passed:
                os.close(fd)
        self._init_fd, job_fd = self._hear("hello")
        self._entered(_pid_of(self._init_fd), _pid_of(job_fd))
        kernel.enter_namespace(f"/proc/{self._root}/ns/net", kernel.NEW_NET)
        kernel.loopback_up()
        self._link.send(b"enter")
        self._hear("held")
        return job_fd

    def _take_one(self) -> int:
        """Make a worker's folders those of the job; return a descriptor of the job's process."""
        warm = self._warm
        assert warm.link is not None
        self._link, self._init_fd, self._console_fd = warm.link, warm.init_fd, warm.console_fd
        for name in ("in", "tmp"):
            own, theirs = self._folder / name, os.path.join(warm.folder, name)
            if not own.is_dir():
                continue
            for entry in os.listdir(own) if name == "in" else ["job.json"]:
                os.rename(own / entry, os.path.join(theirs, entry))
            os.rename(own, os.path.join(warm.folder, f"unused-{name}"))
            os.rename(theirs, own)
        remove_tree(Path(warm.folder))
        self._entered(_pid_of(self._init_fd), _pid_of(warm.job_fd))
        self._link.send(json.dumps(self._job()).encode())
        return warm.job_fd

    def _job(self) -> dict[str, Any]:
        plan = self._plan
        names = ("environment", "cwd", "nice", "limits")
        return {name: plan[name] for name in names}

    def _entered(self, init: int, *more: int) -> None:
        """From now on the job's limits hold, and what is killed is below `init`."""
        self._root = init
        for pid in (init, *more):
            self._hold(pid)
        assert self._link is not None
        self._end_fds = (self._link.fileno(), self._init_fd)

    def _hear(self, word: str) -> list[int]:
        """Wait until one of the job's processes has said `word`; return what came with it."""
        assert self._link is not None
        self._link.settimeout(_PREPARE_S)
        while word not in self._heard:
            data, fds, _, _ = socket.recv_fds(self._link, MESSAGE_BYTES_MAX, 4)
            message = json.loads(data) if data else {"error": "it has ended"}
            if "error" in message:
                raise OSError(f"the warm worker cannot take the job: {message['error']}")
            self._heard |= dict.fromkeys(message, fds)
        return self._heard[word]

    # -- what differs from a child ----------------------------------------------------------

    def _tree(self) -> list[int]:
        if self._init_fd < 0 or select.select([self._init_fd], [], [], 0)[0]:
            return []
        return [self._root, *descendants(self._root)]

    def _end_all(self) -> None:
        """Kill the job's init: the system ends all that is below it."""
        if self._init_fd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._init_fd, signal.SIGKILL)
            if not select.select([self._init_fd], [], [], _KILL_S)[0]:
                raise TimeoutError(f"process {self._root} cannot be killed")
        self._reap()

    def _reap(self) -> None:
        if self._status is not None or self._link is None:
            return
        self._link.setblocking(False)
        try:
            data = self._link.recv(MESSAGE_BYTES_MAX)
        except BlockingIOError:
            return
        except ConnectionError:
            data = b""
        if data:
            ended = json.loads(data)
            self._used = {name: int(ended[name]) for name in self._used}
            self._status = int(ended["status"])
        else:  # it was killed: from here, or with its zygote
            self._status = signal.SIGKILL
            self._why = self._why or "lost"

    def _usage(self) -> dict[str, int]:
        """Its own count of what has ended was J1's; of a killed job it has none."""
        usage = super()._usage()
        return usage | {name: max(usage.get(name, 0), self._used[name]) for name in _COUNTED}

    def _outcome(self, error: str) -> dict[str, Any]:
        lost = "the warm worker of the job is gone" if self._why == "lost" else ""
        return super()._outcome(error or lost)


def _pid_of(pidfd: int) -> int:
    with open(f"/proc/self/fdinfo/{pidfd}") as file:
        for line in file:
            if line.startswith("Pid:"):
                pid = int(line.split()[1])
                if pid > 0:
                    return pid
    raise ProcessLookupError("the process has ended")
