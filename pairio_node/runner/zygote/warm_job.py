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

from pairio_node.runner.supervisor.cgroups import JobCgroup
from pairio_node.runner.supervisor.disk import remove_tree
from pairio_node.runner.supervisor.job import Supervisor
from pairio_node.runner.supervisor.processes import descendants
from pairio_node.runner.supervisor.watch import Bounds
from pairio_node.runner.zygote import kernel
from pairio_node.runner.zygote.check import Namespaces, not_shut_in
from pairio_node.runner.zygote.forwarding import Forwarding

__all__ = ["Warm", "WarmSupervisor", "end_init", "pid_of"]

MESSAGE_BYTES_MAX = 128 * 1024
#: Forking and setting up takes milliseconds; on a machine that is overloaded, more.
_PREPARE_S = 20.0
#: What cannot be killed (it waits for a device) is not waited for longer than this.
_KILL_S = 5.0
_COUNTED = ("cpu_ms", "memory_peak_bytes")
_SECRETS_SIZE_BYTES = 2**20


@dataclass
class Warm:
    """What a job is to be run in: its init (J1) and its first process (J2) by descriptor, and the
    `link` to both. Of a zygote `namespaces`; of a worker for one job `console_fd` and its `folder`,
    which becomes the job's."""

    outside: Namespaces
    link: socket.socket
    init_fd: int
    job_fd: int
    namespaces: Namespaces | None = None
    console_fd: int = -1
    folder: str = ""


class WarmSupervisor(Supervisor):
    """Has the job's processes elsewhere than below itself, in `group`. `plan` has besides:
    `targets` ([path, where the job sees it, whether it is read-only]), `limits` (RLIMIT by name),
    `user` (whom the job runs as, 0: as the node), `secrets` (where it finds them), `streams` (see
    `Forwarding`; None: it has none)."""

    def __init__(self, plan: dict[str, Any], warm: Warm, group: JobCgroup | None) -> None:
        super().__init__(plan, None)
        self._warm = warm
        self._group = group
        self._link, self._init_fd = warm.link, warm.init_fd
        self._root = pid_of(warm.init_fd)
        self._end_fds = (self._link.fileno(), self._init_fd)
        self._used = dict.fromkeys(_COUNTED, 0)
        self._heard: set[str] = set()
        self._forwarding: Forwarding | None = None

    def _start(self) -> None:
        self._bound()
        job = pid_of(self._warm.job_fd)
        if self._group is None or not self._group.bounds_cpu:
            for pid in (self._root, job):
                self._keep_to_processors(pid)
        secrets_fd = self._secrets_fd()
        try:
            if self._warm.namespaces is not None:
                self._send_folders(secrets_fd)
            else:
                self._take_folders(job, secrets_fd)
        finally:
            if secrets_fd >= 0:
                os.close(secrets_fd)
        if self._plan["streams"] is not None:
            self._forward(job)
        found = not_shut_in(job, self._warm.outside, self._warm.namespaces)
        if found:
            raise OSError(f"the warm worker is not shut in: {found}")
        self._link.send(b"go")
        self._began_s = time.monotonic()

    def _grouped(self, bounds: Bounds) -> JobCgroup | None:
        if self._group is not None:
            cpu_millicores = self._plan["cpu_millicores"]
            self._group.bound(bounds.memory_bytes, cpu_millicores, bounds.processes)
        return self._group

    # -- what not every job has -----------------------------------------------------------

    def _secrets_fd(self) -> int:
        """Return a mount with the job's secrets; -1 when it has none. No process that serves
        another job ever sees one: they come from the node to this process, and go to this mount."""
        secrets = self._secrets()
        if not secrets:
            return -1
        files = {name: value.encode() for name, value in secrets.items()}
        return kernel.memory_folder(files, self._plan["user"], _SECRETS_SIZE_BYTES)

    def _forward(self, job: int) -> None:
        """Let the job read its streams on its own loopback."""
        if self._warm.namespaces is None:  # its keeper is not there yet
            kernel.enter_namespace(f"/proc/{job}/ns/net", kernel.NEW_NET)
        self._forwarding = Forwarding(self._plan["streams"], self._plan["user"])
        if self._group is not None:
            self._group.enter(self._forwarding.pid)

    # -- the two kinds --------------------------------------------------------------------

    def _send_folders(self, secrets_fd: int) -> None:
        """Send the job with its folders to a zygote's child."""
        self._console_fd, write_fd = os.pipe()
        passed = [write_fd]
        targets = self._plan["targets"]
        try:
            for path, _, read_only in targets:
                passed.append(kernel.open_tree(path, read_only=read_only))
            names = [target for _, target, _ in targets]
            more = [] if secrets_fd < 0 else [secrets_fd]
            job = self._job() | {"targets": names + [self._plan["secrets"]] * len(more)}
            self._link.settimeout(_PREPARE_S)
            socket.send_fds(self._link, [json.dumps(job).encode()], passed + more)
        finally:
            for fd in passed:
                os.close(fd)
        self._hear("held", "prepared")

    def _take_folders(self, job: int, secrets_fd: int) -> None:
        """Make a worker's folders those of the job."""
        worker = self._warm.folder
        self._console_fd = self._warm.console_fd
        for name in ("in", "tmp"):
            own, theirs = self._folder / name, os.path.join(worker, name)
            if not own.is_dir():
                continue
            for entry in os.listdir(own) if name == "in" else ["job.json"]:
                os.rename(own / entry, os.path.join(theirs, entry))
            os.rename(own, os.path.join(worker, f"unused-{name}"))
            os.rename(theirs, own)
        remove_tree(Path(worker))
        if secrets_fd >= 0:
            kernel.attach_in(job, secrets_fd, self._plan["secrets"])
        self._link.send(json.dumps(self._job()).encode())
        self._hear("prepared")

    def _job(self) -> dict[str, Any]:
        plan = self._plan
        names = ("environment", "cwd", "nice", "limits")
        return {name: plan[name] for name in names}

    def _hear(self, *words: str) -> None:
        """Wait until the job's processes have said all of `words`."""
        self._link.settimeout(_PREPARE_S)
        while not {*words} <= self._heard:
            data = self._link.recv(MESSAGE_BYTES_MAX)
            message = json.loads(data) if data else {"error": "it has ended"}
            if "error" in message:
                raise OSError(f"the warm worker cannot take the job: {message['error']}")
            self._heard |= message.keys()

    # -- what differs from a child ----------------------------------------------------------

    def _tree(self) -> list[int]:
        if select.select([self._init_fd], [], [], 0)[0]:
            return []
        return [self._root, *descendants(self._root)]

    def _first(self) -> list[int]:
        return self._tree()[:1]

    def _end_all(self) -> None:
        """Kill the job's init: the system ends all that is below it."""
        end_init(self._init_fd)
        if self._forwarding is not None:
            self._forwarding.end()
        self._reap()

    def _reap(self) -> None:
        if self._status is not None:
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


def end_init(init_fd: int) -> None:
    """Kill a job's process 1, and so all that is below it, and wait until it has gone."""
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(init_fd, signal.SIGKILL)
    if not select.select([init_fd], [], [], _KILL_S)[0]:
        raise TimeoutError("a warm worker cannot be killed")


def pid_of(pidfd: int) -> int:
    """Return the number of a process, as it is here. Raises ProcessLookupError when it is gone."""
    with open(f"/proc/self/fdinfo/{pidfd}") as file:
        for line in file:
            if line.startswith("Pid:"):
                pid = int(line.split()[1])
                if pid > 0:
                    return pid
    raise ProcessLookupError("the process has ended")
