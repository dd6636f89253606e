"""The node's side of a host of warm workers: starts it, asks it for supervisors, lets it go."""

import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import trio

from pairio_node.runner.lines import ask_in_lines

__all__ = ["HostGone", "HostLink"]

#: The packages are there without what their own files import: a host needs little.
_MAIN = """
import sys, types
for name, path in (("pairio_node", sys.argv[1]), ("pairio_node.runner", sys.argv[1] + "/runner")):
    module = sys.modules[name] = types.ModuleType(name)
    module.__path__ = [path]
from pairio_node.runner.zygote.host import main
main()
"""
_ANSWER_S = 20.0


class HostGone(Exception):
    """The host, or what it keeps, has gone, or does not take the job; says why."""


class HostLink:
    """One host."""

    def __init__(self) -> None:
        self._channel: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = trio.Lock()

    async def begin(self, config: dict[str, Any], within_s: float) -> dict[str, Any]:
        """Start it; returns what it keeps. That takes as long as an import, so whoever is
        cancelled meanwhile does not wait for it: the host is let go.

        Raises:
            HostGone: it does not work here.
        """
        self._channel = self._started()
        try:
            return await self._asked(config, within_s, shield=False)
        except trio.Cancelled:
            self.close()
            raise

    def _started(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with theirs:
            # In the loop's own thread, as the launcher, and for the same reason.
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _MAIN, str(Path(__file__).parents[2])],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                env={"LANG": "C.UTF-8"},
            )
        return ours

    @property
    def pid(self) -> int:
        """Process id of the host."""
        return 0 if self._process is None else self._process.pid

    async def start(self, plan: dict[str, Any]) -> tuple[int, int]:
        """Start a supervisor; returns its process id, and a descriptor, the caller's, that can be
        read from when its outcome can.

        Raises:
            HostGone: nothing was started.
        """
        answer = await self._asked(plan, _ANSWER_S)
        return int(answer["pid"]), int(answer["fds"][0])

    async def _asked(
        self, message: dict[str, Any], within_s: float, *, shield: bool = True
    ) -> dict[str, Any]:
        async with self._lock:
            if self._channel is None:
                raise HostGone("it was let go")
            try:
                with trio.CancelScope(shield=shield):
                    found = dict(await ask_in_lines(self._channel, message, within_s))
            except (OSError, trio.TooSlowError) as error:
                self.close()
                raise HostGone(f"the host of warm workers does not answer: {error}") from None
        if "error" in found:
            raise HostGone(found["error"])
        return found

    def close(self) -> None:
        """Let it go: it ends when the jobs that it has begun have ended."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    def has_ended(self) -> bool:
        """Say whether the process has ended; called until it has."""
        return self._process is None or self._process.poll() is not None

    def leave(self) -> None:
        """Its end is nobody's any more: this process ends before it."""
        if self._process is not None:
            self._process.returncode = self._process.poll() or 0
