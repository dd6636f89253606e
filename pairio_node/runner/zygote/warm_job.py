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
from pairio_node.runner.supervisor.disk import remove_tree, write_whole
from pairio_node.runner.supervisor.job import Supervisor
from pairio_node.runner.supervisor.processes import descendants
from pairio_node.runner.supervisor.watch import Bounds
from pairio_node.runner.zygote import kernel
from pairio_node.runner.zygote.check import Namespaces, not_shut_in, taken_since
from pairio_node.runner.zygote.forwarding import Forwarding

__all__ = [
    "Warm",
    "WarmSupervisor",
    "end_init",
    "group_bounds",
    "hear",
    "last_words",
    "make_tmp",
    "pid_of",
]

MESSAGE_BYTES_MAX = 128 * 1024
#: Forking and setting up takes milliseconds; on a machine that is overloaded, more.
_PREPARE_S = 20.0
#: What cannot be killed (it waits for a device) is not waited for longer than this.
_KILL_S = 5.0
_COUNTED = ("cpu_ms", "memory_peak_bytes")
_SECRETS_SIZE_BYTES = 2**20


@dataclass
class Warm:
    """What a job is to be run in: its init (J1) and first process (J2) by descriptor, the `link` to
    J1, and a `folder` with what becomes the job's /tmp. Of a zygote `namespaces`, the link to J2,
    and `tmp_fd`, a detached mount of that; `bounds` are those of its group. Of a worker for one job
    the `link` is that to both. `done_fd` comes with the job: a socket to the node, which says a
    word on it to have the job end, and at whose end it may read the outcome."""

    outside: Namespaces
    link: socket.socket
    init_fd: int
    job_fd: int
    namespaces: Namespaces | None = None
    job_link: socket.socket | None = None
    tmp_fd: int = -1
    done_fd: int = -1
    bounds: dict[str, int] | None = None
    console_fd: int = -1
    folder: str = ""
    init: int = 0  # their process ids
    job: int = 0

    @property
    def tmp(self) -> str:
        """What becomes the job's /tmp; a zygote's child has nothing else."""
        return f"{self.folder}/tmp" if self.namespaces is None else self.folder


class WarmSupervisor(Supervisor):
    """Has the job's processes elsewhere than below itself, in `group`. `plan` has besides:
    `targets` ([path, where the job sees it, whether it is read-only]), `limits` (RLIMIT by name),
    `job` (the text of its job file), `user` (whom the job runs as, 0: as the node), `secrets`
    (where it finds them), `streams` (see `Forwarding`; None: it has none)."""

    def __init__(
        self, plan: dict[str, Any], warm: Warm, group: JobCgroup | None, run_fd: int
    ) -> None:
        super().__init__(plan, None, run_fd)
        #: Set at the end: whether it left nothing in this process that another job must not meet.
        self.is_clean = False
        self._not_sent: OSError | None = None
        self._warm = warm
        self._group = group
        self._link, self._init_fd = warm.link, warm.init_fd
        self._root = warm.init
        self._end_fds = (self._link.fileno(), self._init_fd)
        self._used = dict.fromkeys(_COUNTED, 0)
        self._forwarding: Forwarding | None = None

    def _open(self) -> None:
        """Before all else a zygote's child gets the job's folders: it takes as long to attach them
        as it takes here to make what the supervisor needs."""
        if self._warm.job_link is not None:
            try:
                self._put_job_file()  # before the job's processes reach the folder
                self._send_folders()
            except OSError as error:
                self._not_sent = error
        super()._open()
        self._ask_fds = (self._wake_fd, self._warm.done_fd)
        os.set_blocking(self._warm.done_fd, False)

    def _start(self) -> None:
        if self._not_sent is not None:
            raise self._not_sent
        if self._warm.job_link is not None:
            self._start_forked(self._warm.job, self._warm.job_link)
        else:
            self._start_single(self._warm.job)

    def _bound_all(self, job: int) -> None:
        self._bound()
        if self._group is None or not self._group.bounds_cpu:
            for pid in (self._root, job):
                self._keep_to_processors(pid)

    def _grouped(self, bounds: Bounds) -> JobCgroup | None:
        wanted = group_bounds(self._plan)
        if self._group is not None and self._warm.bounds != wanted:
            self._group.bound(**wanted)
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

    def _start_forked(self, job: int, job_link: socket.socket) -> None:
        """Give a zygote's child its folders, and let it go. It was looked at before there was a
        job; meanwhile it can only have come to what is looked at again."""
        self._take_tmp()
        self._bound_all(job)
        if self._plan["streams"] is not None:
            self._forward(job)
        self._console_fd, write_fd = os.pipe()
        try:
            hear(self._link, "held")
            found = taken_since(job)
            if found:
                raise OSError(f"the warm worker is not shut in: {found}")
            self._began_s = time.monotonic()
            job_link.settimeout(_PREPARE_S)
            socket.send_fds(job_link, [json.dumps(self._job()).encode()], [write_fd])
        finally:
            os.close(write_fd)
        hear(job_link, "prepared")
        job_link.close()

    def _send_folders(self) -> None:
        """Let the job's init attach the folders."""
        passed, names = [self._warm.tmp_fd], ["/tmp"]
        try:
            for path, name, read_only in self._plan["targets"]:
                passed.append(kernel.open_tree(path, read_only=read_only))
                names.append(name)
            secrets_fd = self._secrets_fd()
            if secrets_fd >= 0:
                passed.append(secrets_fd)
                names.append(self._plan["secrets"])
            self._link.settimeout(_PREPARE_S)
            socket.send_fds(self._link, [os.fsencode("\0".join(names))], passed)
        finally:
            for fd in passed:
                os.close(fd)

    def _start_single(self, job: int) -> None:
        self._bound_all(job)
        self._take_folders(job)
        if self._plan["streams"] is not None:
            self._forward(job)
        self._link.send(json.dumps(self._job()).encode())
        hear(self._link, "prepared")
        found = not_shut_in(job, self._warm.outside, None)
        if found:
            raise OSError(f"the warm worker is not shut in: {found}")
        self._link.send(b"go")
        self._began_s = time.monotonic()

    def _take_folders(self, job: int) -> None:
        """Make a worker's folders those of the job."""
        self._console_fd = self._warm.console_fd
        own, theirs = self._folder / "in", os.path.join(self._warm.folder, "in")
        own.mkdir(exist_ok=True)
        for entry in os.listdir(own):
            os.rename(own / entry, os.path.join(theirs, entry))
        own.rmdir()
        os.rename(theirs, own)
        self._put_job_file()
        self._take_tmp()
        secrets_fd = self._secrets_fd()
        if secrets_fd >= 0:
            try:
                kernel.attach_in(job, secrets_fd, self._plan["secrets"])
            finally:
                os.close(secrets_fd)

    def _put_job_file(self) -> None:
        """Put the job's file into the worker's folder, whatever lies in its place."""
        part = f"{self._folder}/job.json.part"
        write_whole(part, self._plan["job"])
        if self._plan["user"]:
            os.chown(part, self._plan["user"], self._plan["user"])
        os.rename(part, f"{self._warm.tmp}/job.json")

    def _take_tmp(self) -> None:
        os.rename(self._warm.tmp, f"{self._folder}/tmp")

    def _job(self) -> dict[str, Any]:
        plan = self._plan
        names = ("environment", "cwd", "nice", "limits")
        return {name: plan[name] for name in names}

    # -- what differs from a child ----------------------------------------------------------

    def _tree(self) -> list[int]:
        if select.select([self._init_fd], [], [], 0)[0]:
            return []
        return [self._root, *descendants(self._root)]

    def _first(self) -> list[int]:
        return self._tree()[:1]

    def run(self) -> None:
        """See the job to its end. What a job that has ended by itself leaves to be done is done
        after the node was told: the system takes milliseconds to take namespaces apart."""
        super().run()
        needs = self._plan["has_secrets"] or self._plan["streams"] is not None
        by_itself = self._status is not None and not self._why
        # First the lock: a node that comes later and finds it held waits for this process' end, and
        # then the one that began the job is gone, which is seen here.
        os.close(self._run_fd)
        self.is_clean = self._node_waits() and by_itself and not needs
        os.close(self._warm.done_fd)
        remove_tree(Path(self._warm.folder))
        end_init(self._init_fd)
        super()._clean()

    def _node_waits(self) -> bool:
        """Say whether the node that began the job still waits for its outcome, and wants it."""
        try:
            os.read(self._warm.done_fd, 1)
        except BlockingIOError:
            return True
        except ConnectionError:
            pass
        return False

    def _is_asked(self, fd: int) -> bool:
        """A signal is for whoever leads the folder's lock: a node that came later. This one's word
        reaches this job and no other."""
        if fd != self._warm.done_fd:
            return super()._is_asked(fd)
        try:
            word = os.read(fd, 16)
        except (BlockingIOError, ConnectionError):
            word = b""
        if not word:
            self._poll.unregister(fd)  # the node is gone, and may come back
        return word != b""

    def _clean(self) -> None:
        """Done at the very end."""

    def _end_all(self) -> None:
        """Kill the job's init: the system ends all that is below it. When nothing is, and the init
        was about to end, its end is not waited for: it runs no more."""
        is_over = self._status is not None and not self._why
        _kill(self._init_fd)
        if not is_over or descendants(self._root):
            end_init(self._init_fd)
        if self._forwarding is not None:
            self._forwarding.end()
        self._reap()

    def _reap(self) -> None:
        if self._status is not None:
            return
        ended = last_words(self._link)
        if ended is None:
            return
        if ended:
            self._used = {name: ended[name] for name in _COUNTED}
            self._status = ended["status"]
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


def last_words(link: socket.socket) -> dict[str, int] | None:
    """Return what a job's init says of the job's end; None: nothing yet; empty: it ended without a
    word, or with none that makes sense."""
    link.setblocking(False)
    while True:
        try:
            data = link.recv(MESSAGE_BYTES_MAX)
            said: Any = json.loads(data)  # its end is no JSON
            if "status" in said:  # else said before: one that was stopped was not listened to
                return {name: int(said[name]) for name in ("status", *_COUNTED)}
        except BlockingIOError:
            return None
        except (ConnectionError, ValueError, TypeError, KeyError, RecursionError):
            return {}


def hear(link: socket.socket, word: str) -> None:
    """Wait until a worker's process has said `word`.

    Raises:
        OSError: it says that it cannot, or something else than such a process says, or ends.
    """
    link.settimeout(_PREPARE_S)
    message: dict[str, Any] = {}
    while word not in message:
        data = link.recv(MESSAGE_BYTES_MAX)
        try:
            message = dict(json.loads(data)) if data else {"error": "it has ended"}
        except (ValueError, TypeError, RecursionError):
            # The app's import may have changed it.
            message = {"error": "it says what is no message"}
        if "error" in message:
            raise OSError(f"the warm worker cannot take the job: {message['error']}")


def group_bounds(plan: dict[str, Any]) -> dict[str, int]:
    """Return what bounds the group of a plan's job."""
    return {
        "memory_bytes": plan["bounds"]["memory_bytes"],
        "cpu_millicores": plan["cpu_millicores"],
        "processes_max": plan["bounds"]["processes"],
    }


def make_tmp(tmp: str, user: int) -> None:
    """Make what will be a job's /tmp, for `user` (0: this process')."""
    for path in (tmp, *(f"{tmp}/{name}" for name in ("working", "working/tmp", "out", "other"))):
        os.mkdir(path)
        if user:
            os.chown(path, user, user)


def end_init(init_fd: int) -> None:
    """Kill a job's process 1, and so all that is below it, and wait until it has gone."""
    _kill(init_fd)
    if not select.select([init_fd], [], [], _KILL_S)[0]:
        raise TimeoutError("a warm worker cannot be killed")


def _kill(init_fd: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(init_fd, signal.SIGKILL)


def pid_of(pidfd: int) -> int:
    """Return the number of a process, as it is here. Raises ProcessLookupError when it is gone."""
    with open(f"/proc/self/fdinfo/{pidfd}") as file:
        for line in file:
            if line.startswith("Pid:"):
                pid = int(line.split()[1])
                if pid > 0:
                    return pid
    raise ProcessLookupError("the process has ended")
