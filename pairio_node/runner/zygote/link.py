"""The node's side of a host of warm workers: starts it, asks it for supervisors, lets it go."""

import os
import select
import socket
import sys
from pathlib import Path
from typing import Any

import trio

from pairio_node.runner.launch import Launcher
from pairio_node.runner.lines import ask_in_lines

__all__ = ["HostGone", "HostLink", "HostSilent"]

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


class HostSilent(HostGone):
    """The host has not answered in time: what it was asked may be done, or be done yet."""


class HostLink:
    """One host. `pid`: its process id."""

    def __init__(self, launcher: Launcher) -> None:
        self._launcher = launcher
        self._channel: socket.socket | None = None
        self.pid = 0
        self._fd: int | None = None
        self._lock = trio.Lock()

    async def begin(self, config: dict[str, Any], within_s: float) -> dict[str, Any]:
        """Start it; returns what it keeps. That takes as long as an import, so whoever is
        cancelled meanwhile does not wait for it: the host is let go.

        Raises:
            HostGone: it does not work here.
        """
        try:
            await self._start()
            return await self._asked(config, within_s, shield=False)
        except trio.Cancelled:
            self.close()
            raise

    async def _start(self) -> None:
        """Have the launcher start it: what a host leaves when it is killed is the launcher's."""
        self._channel, theirs = socket.socketpair()
        self._channel.setblocking(False)
        argv = [sys.executable, "-I", "-S", "-c", _MAIN, str(Path(__file__).parents[2])]
        try:
            with theirs:
                self.pid = await self._launcher.start_host(argv, theirs)
            self._fd = os.pidfd_open(self.pid)
        except OSError as error:
            self.close()
            raise HostGone(f"there is no host of warm workers: {error}") from None

    async def start(self, plan: dict[str, Any]) -> int:
        """Start a supervisor; returns a socket to it, the caller's, for `supervise.attend`; -1 when
        this process may open no more: it is found by the job's folder (`supervise.attach`).

        Raises:
            HostSilent: it may have started one. HostGone: nothing was started.
        """
        answer = await self._asked(plan, _ANSWER_S)
        return int(answer["fds"][0]) if answer.get("fds") else -1

    async def _asked(
        self, message: dict[str, Any], within_s: float, *, shield: bool = True
    ) -> dict[str, Any]:
        try:
            self._lock.acquire_nowait()  # nearly always: then the loop need not be gone through
        except trio.WouldBlock:
            await self._lock.acquire()
        try:
            if self._channel is None:
                raise HostGone("it was let go")
            with trio.CancelScope(shield=shield):
                found = dict(await ask_in_lines(self._channel, message, within_s))
        except trio.TooSlowError:
            self.close()
            raise HostSilent("the host of warm workers does not answer in time") from None
        except OSError as error:
            self.close()
            raise HostGone(f"the host of warm workers does not answer: {error}") from None
        finally:
            self._lock.release()
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
        if self._fd is not None:
            poll = select.poll()
            poll.register(self._fd, select.POLLIN)
            if poll.poll(0):
                self.leave()
        return self._fd is None

    def leave(self) -> None:
        """Its end is nobody's any more: this process ends before it."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
