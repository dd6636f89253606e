"""The node's side of the launcher: starts it, asks it for supervisors, gives the sign of life."""

import os
import socket
import stat
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

import trio

from pairio_node.runner.cgroups import Delegation, delegation
from pairio_node.runner.lines import ask_in_lines

__all__ = ["Launcher"]

_ANSWER_S = 20.0
#: It ends when its channel does.
_END_S = 1.0
_MAIN = "import sys; sys.path.append(sys.argv[1]); from supervisor.launcher import main; main()"


class Launcher:
    """The helper process. `alive` names a pipe in the node's home that this process holds open
    for writing: when it goes, whichever way, supervisors read the pipe's end. `groups` is where
    jobs get control groups; None: their memory is watched."""

    def __init__(self, alive: Path, *, with_groups: bool = True) -> None:
        """Raises OSError when there can be no pipe at `alive`."""
        self.alive = alive
        self.groups = _groups() if with_groups else None
        if not alive.exists() or not stat.S_ISFIFO(alive.lstat().st_mode):
            alive.unlink(missing_ok=True)
            os.mkfifo(alive, 0o600)
        self._alive_fd = os.open(alive, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self._helper: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None
        self._lock = trio.Lock()

    @property
    def memory_limit(self) -> str:
        """Return what holds the memory of jobs: `cgroup` (the kernel) or `watchdog`."""
        return "watchdog" if self.groups is None else "cgroup"

    def __enter__(self) -> "Launcher":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the helper. From now on supervisors count as left alone."""
        self._end_helper(_END_S)
        os.close(self._alive_fd)

    async def start(self, plan: dict[str, Any]) -> int:
        """Start a supervisor (see `supervisor.job.Supervisor`); returns its process id.

        Raises:
            OSError: no process can be started, the folder is not there.
        """
        groups = None if self.groups is None else asdict(self.groups)
        return await self._begun({**plan, "alive": str(self.alive), "groups": groups})

    async def start_host(self, argv: Sequence[str], channel: socket.socket) -> int:
        """Start a host of warm workers, whose standard input is `channel`; returns its process id.
        Raises OSError as `start` does."""
        return await self._begun({"host": list(argv)}, [channel.fileno()])

    async def _begun(self, message: dict[str, Any], fds: Sequence[int] = ()) -> int:
        async with self._lock:
            with trio.CancelScope(shield=True):  # half a request would garble the next one
                answer = await self._asked(message, fds) or await self._asked(message, fds)
        if answer is None:
            raise OSError("the launcher of jobs does not answer")
        if "error" in answer:
            raise OSError(answer["error"])
        return int(answer["pid"])

    async def _asked(self, message: dict[str, Any], fds: Sequence[int]) -> dict[str, Any] | None:
        """Return the helper's answer; None when it is gone, and the next one will be another."""
        channel = self._channel or self._start_helper()
        try:
            return dict(await ask_in_lines(channel, message, _ANSWER_S, fds))
        except (OSError, trio.TooSlowError):
            self._end_helper()
            return None

    def _start_helper(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with theirs:
            # Called in the loop's own thread: trio's helpers fork in a worker thread, and a
            # parent-death signal fires when that thread ends after 10 idle seconds.
            # The pipe's name is for people who look at the process list: whose is this?
            folder = str(Path(__file__).parent)
            self._helper = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _MAIN, folder, str(self.alive)],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                env={"LANG": "C.UTF-8"},
            )
        self._channel = ours
        return ours

    def _end_helper(self, within_s: float = 0.0) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        if self._helper is not None:
            try:
                self._helper.wait(within_s)
            except subprocess.TimeoutExpired:
                self._helper.kill()  # it keeps nothing: supervisors do not depend on it
                self._helper.wait()
            self._helper = None


def _groups() -> Delegation | None:
    try:
        return delegation()
    except OSError:
        return None  # `probe` says why; the status says what holds
