"""Watches a job in a container: the engine starts it, its end and its use are seen from here.

The container's first process is looked at through /proc and its control group, where the engine
runs on this machine and lets it be seen; else the engine is asked. Only the engine may end it.
"""

import contextlib
import os
import re
import select
import signal
import socket
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

from .cgroups import JobCgroup, groups_of
from .engine import Engine, EngineError
from .job import Supervisor
from .memory import MemoryFiles
from .processes import descendants, send, tree_use
from .watch import Bounds, Passed, Watch

__all__ = ["ContainerSupervisor"]

_ANSWER_S = 10.0
_REMOVE_S = 10.0
_LOST = "the container is gone, removed by somebody else"
#: What engines say when the image has not what the job is to run.
_NOT_THERE = re.compile(
    "executable file not found|exec format error|no such file or directory|permission denied", re.I
)
_KILLED = 128 + signal.SIGKILL
_HEADER_BYTES = 8
#: What the container beside a job says when it listens, and how long that may take.
_READY = b"ready"
_READY_S = 30.0


class Frames:
    """Takes apart what an engine sends of a container: pieces of output, each behind a header."""

    def __init__(self) -> None:
        self._head = b""
        self._left = 0

    def feed(self, data: bytes) -> bytes:
        """Return the output in `data`, both streams as they came."""
        said = b""
        while data:
            if self._left:
                piece, data = data[: self._left], data[self._left :]
                self._left -= len(piece)
                said += piece
                continue
            need = _HEADER_BYTES - len(self._head)
            self._head, data = self._head + data[:need], data[need:]
            if len(self._head) == _HEADER_BYTES:
                self._left = int.from_bytes(self._head[4:], "big")
                self._head = b""
        return said


class ContainerSupervisor(Supervisor):
    """One job in a container. The plan has in addition `container`: socket, name, body (what the
    engine is to make), `bounded`: whether the engine bounds the memory, `memory`: how files in
    memory begin, `owner`: whose they are, `secrets`: the folder inside for them; and `beside`, if
    the job needs another container that passes on its streams: name, body."""

    def __init__(self, plan: dict[str, Any], die_with_parent: Any, run_fd: int) -> None:
        super().__init__(plan, die_with_parent, run_fd)
        self._container = plan["container"]
        self._name = quote(self._container["name"], safe="")
        self._engine = Engine(self._container["socket"])
        self._frames = Frames()
        self._pid = 0
        #: The engine's groups, to look at. Where it bounds no memory in them, they say too little.
        self._seen: JobCgroup | None = None
        self._bounds = Bounds(**plan["bounds"])
        self._cpu_ms = 0
        self._was_killed = False
        self._started = False
        self._secret_files: MemoryFiles | None = None
        self._beside: socket.socket | None = None
        self._said_beside = b""

    # -- the engine -----------------------------------------------------------------------

    def _start(self) -> None:
        self._watch_with(None)
        try:
            self._start_beside()
            self._mount_secrets()
            self._create(self._container)
            connection, came = self._engine.attach(self._container["name"])
            connection.setblocking(True)
            self._console_fd = connection.detach()
            self._add(came)
            self._wait_beside()
            self._started = True
            self._engine.ask("POST", f"/containers/{self._name}/start")
            self._see(self._inspect())
        except EngineError as error:
            if not (error.status and self._console_fd >= 0 and _NOT_THERE.search(str(error))):
                raise OSError(str(error)) from None
            self._console.add(f"{error}\n".encode())  # the app's own fault, as in any sandbox
            self._status = 127 << 8
        finally:
            if self._secret_files is not None:
                self._secret_files.remove()
            if self._beside is not None:
                self._beside.close()

    def _create(self, container: dict[str, Any]) -> None:
        body, query = container["body"], {"name": container["name"]}
        try:
            self._engine.ask("POST", "/containers/create", query, body)
        except EngineError as error:
            if error.status != 409:
                raise
            self._engine.remove(container["name"])  # of a node that crashed
            self._engine.ask("POST", "/containers/create", query, body)

    def _mount_secrets(self) -> None:
        """Put the job's secrets where the engine finds them."""
        secrets = self._secrets()
        if not secrets:
            return
        container = self._container
        self._secret_files = MemoryFiles(container["memory"], secrets, container["owner"])
        container["body"]["HostConfig"]["Mounts"] += [
            {
                "Type": "bind",
                "Source": str(path),
                "Target": f"{container['secrets']}/{name}",
                "ReadOnly": True,
            }
            for name, path in self._secret_files.paths.items()
        ]

    def _start_beside(self) -> None:
        """Start the container whose network the job is to have."""
        beside = self._container["beside"]
        if beside is not None:
            self._create(beside)
            self._beside, self._said_beside = self._engine.attach(beside["name"])
            self._engine.ask("POST", f"/containers/{quote(beside['name'], safe='')}/start")

    def _wait_beside(self) -> None:
        """Wait until it listens."""
        if self._beside is None:
            return
        self._beside.settimeout(_READY_S)
        frames = Frames()
        said = frames.feed(self._said_beside)
        while _READY not in said:
            data = self._beside.recv(4096)
            said += frames.feed(data)
            if not data:
                raise OSError(f"what passes on the job's streams has ended: {said[-500:]!r}")

    def _inspect(self) -> dict[str, Any]:
        answer = self._engine.ask("GET", f"/containers/{self._name}/json", timeout_s=_ANSWER_S)
        return dict(answer)

    def _see(self, container: dict[str, Any]) -> None:
        """Find the container's first process and its group from here."""
        pid = int(container["State"].get("Pid") or 0)
        if not pid or not _is_of(pid, container["Id"]):
            return
        with contextlib.suppress(OSError):
            self._end_fds = (os.pidfd_open(pid),)
            self._pid = pid
            own = container["Id"] in Path(f"/proc/{pid}/cgroup").read_text()
            if own and self._container["bounded"]:
                self._seen = groups_of(pid)
                self._watch_with(self._seen)

    def _watch_with(self, group: JobCgroup | None) -> None:
        self._watcher = Watch(self._bounds, self._folder / "tmp", self._tree, group)

    # -- its end --------------------------------------------------------------------------

    def _reap(self) -> None:
        if self._status is not None:
            return
        if self._end_fds and not select.select(self._end_fds, [], [], 0)[0]:
            return
        self._last_look()
        try:
            state = self._inspect()["State"]
        except EngineError as error:
            if error.status == 404:
                raise OSError(_LOST) from None
            return  # it is asked again
        if state.get("Running") or state.get("Status") in ("running", "stopping", "paused"):
            return
        code = int(state.get("ExitCode") or 0)
        self._status = (code & 0xFF) << 8
        unseen = self._seen is None and code == _KILLED and not self._was_killed
        if state.get("OOMKilled") or (unseen and self._container["bounded"]):
            most = self._bounds.memory_bytes
            self._pass(Passed("memory", most, most))

    def _last_look(self) -> None:
        """See what the groups say that go a moment after the last process, or are going."""
        assert self._watcher is not None
        self._count_cpu()
        if self._passed is None and not self._why:
            self._pass(self._watcher.ended())

    def _look(self, now_s: float) -> None:
        self._count_cpu()
        super()._look(now_s)
        if not self._end_fds:
            self._reap()

    def _tree(self) -> list[int]:
        if not self._pid or select.select(self._end_fds, [], [], 0)[0]:
            return []
        return [self._pid, *descendants(self._pid)]

    def _ask(self) -> None:
        self._signal(signal.SIGTERM)

    def _kill(self) -> None:
        self._was_killed = True
        send(self._tree()[:1], signal.SIGKILL)  # the rest goes with it; perhaps not ours to end
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(EngineError):  # it has ended, or is asked again
            query = {"signal": number.name}
            path = f"/containers/{self._name}/kill"
            self._engine.ask("POST", path, query, timeout_s=_ANSWER_S)

    def _end_all(self) -> None:
        try:
            self._remove_job()
        finally:
            self._remove_beside()

    def _remove_job(self) -> None:
        if self._console_fd >= 0 and self._status is not None:
            self._drain()  # what it wrote last may not have come yet
        gives_up_s = time.monotonic() + _REMOVE_S
        while True:
            try:
                self._engine.remove(self._container["name"], _ANSWER_S)
                return
            except EngineError as error:
                if not self._tree() and (self._status is not None or not self._started):
                    return  # nothing runs; what is left of it is removed by the node's next start
                if time.monotonic() > gives_up_s:
                    raise TimeoutError(f"the container cannot be removed: {error}") from None
            send(self._tree()[:1], signal.SIGKILL)
            time.sleep(0.1)

    def _remove_beside(self) -> None:
        beside = self._container["beside"]
        if beside is not None:
            with contextlib.suppress(EngineError):  # the node's next start removes it
                self._engine.remove(beside["name"], _ANSWER_S)

    # -- what it writes and uses ----------------------------------------------------------

    def _read_console(self) -> bool:
        try:
            data = os.read(self._console_fd, 65536)
        except ConnectionResetError:
            data = b""
        self._add(data)
        return data != b""

    def _add(self, data: bytes) -> None:
        """Keep what came; nothing is the end."""
        said = self._mask.add(self._frames.feed(data)) if data else self._mask.end()
        if said:
            self._console.add(said)

    def _count_cpu(self) -> None:
        """Keep what was used so far: when the container has ended, nothing can be asked."""
        used_ms = self._seen.usage().cpu_ms if self._seen else tree_use(self._tree()).cpu_ms
        self._cpu_ms = max(self._cpu_ms, used_ms or 0)

    def _usage(self) -> dict[str, int]:
        return {} if self._watcher is None else self._watcher.usage(self._cpu_ms, 0)


def _is_of(pid: int, container: str) -> bool:
    """Say whether a process number, which may be counted elsewhere, is the container's: its group
    or the program that started it names the container."""
    try:
        if container in Path(f"/proc/{pid}/cgroup").read_text():
            return True
        parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]
        return container.encode() in Path(f"/proc/{parent}/cmdline").read_bytes()
    except (OSError, IndexError):
        return False
