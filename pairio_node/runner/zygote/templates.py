"""What has an app imported before a job is there, in a sandbox: a zygote, or workers for one job
each. The program in it is `inside`; who starts it is the host of the app.
"""

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

from pairio_node.runner.supervisor.disk import remove_tree
from pairio_node.runner.supervisor.processes import descendants, send
from pairio_node.runner.supervisor.sandbox import FILTER, become, filter_fd
from pairio_node.runner.zygote.check import Namespaces, import_tricks
from pairio_node.runner.zygote.warm_job import Warm, make_tmp

__all__ = [
    "CHANNEL_FD",
    "NodeGone",
    "Refused",
    "Sandbox",
    "Single",
    "Zygote",
    "last_line",
    "readable",
]

#: The host's channel to its node.
CHANNEL_FD = 0
_ERRORS_BYTES = 4096


class Refused(Exception):
    """This kind of worker does not work here, or not for this app; says why."""


class NodeGone(Exception):
    """The node has let go while the app was still being imported."""


class Sandbox:
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

    def end(self) -> None:
        """The same, and close what it is looked at through."""
        self.kill()
        os.close(self.fd)


class Zygote:
    """The process that every job of an app is forked from, with `namespaces` of its own. Who
    listens to `control` hears of its children, until it has ended (None)."""

    def __init__(self, config: dict[str, Any]) -> None:
        """Start it, and wait for the import. Raises Refused, NodeGone, OSError; has ended then."""
        self._sandbox: Sandbox | None = None
        self.control: socket.socket | None = None
        try:
            self.namespaces = self._start(config)
        except BaseException:
            self.end()
            raise

    def _start(self, config: dict[str, Any]) -> Namespaces:
        self.control, control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        errors_fd, out_fd = os.pipe()
        with ours, open(errors_fd, "rb", buffering=0):
            try:
                fds = [control.fileno(), theirs.fileno()]
                self._sandbox = Sandbox(config["zygote"], {}, out_fd, fds)
            finally:
                os.close(out_fd)
                control.close()
                theirs.close()
            _configure(ours, config, single=False)
            ready, said = _hear(ours, errors_fd, config["import_s"])
            if not ready:
                raise Refused(said)
            if ready["asks"]:
                raise Refused(f"the app asks for it ({ready['asks']})")
            pid, found = import_tricks(self._sandbox.pid, {0, 1, 2, *fds})
            if found:
                raise Refused(f"the app has from its import: {found}")
            namespaces = Namespaces.of(pid)
            ours.send(b"go")
        return namespaces

    def forked(self, outside: Namespaces, folder: str) -> Warm:
        """Return a child that `control` tells of, as what a job can be run in. Raises Refused: it
        makes no more of them."""
        assert self.control is not None
        said, fds, _, _ = socket.recv_fds(self.control, 65536, 4)
        if len(fds) < 4:
            for fd in fds:
                os.close(fd)
            if b"lost" in said:  # the jobs that run go on
                raise Refused("what the zygote makes dies before it gets a job")
            self.end()
            raise Refused("the zygote has ended")
        link, job_link = (socket.socket(fileno=fd) for fd in fds[:2])
        return Warm(outside, link, fds[2], fds[3], self.namespaces, job_link, folder=folder)

    def end(self) -> None:
        """End it."""
        if self._sandbox is not None:
            self._sandbox.end()
        if self.control is not None:
            self.control.close()
        self.control, self._sandbox = None, None


class Single:
    """A worker that was started ahead for one job."""

    def __init__(self, config: dict[str, Any], folder: Path) -> None:
        """Start it; `folder` is made and its own. Raises OSError, and nothing is left then."""
        self._asks: str | None = None
        self._job_fd = -1
        self.folder = folder
        with contextlib.ExitStack() as undo:
            undo.callback(remove_tree, folder)
            (folder / "in").mkdir(parents=True)
            make_tmp(f"{folder}/tmp", config["single"]["user"])
            self.link, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            undo.enter_context(self.link)
            self.console_fd, out_fd = os.pipe()
            undo.callback(os.close, self.console_fd)
            try:
                fill = {"{in}": f"{folder}/in", "{tmp}": f"{folder}/tmp"}
                self.sandbox = Sandbox(config["single"], fill, out_fd, [-1, theirs.fileno()])
            finally:
                os.close(out_fd)
                theirs.close()
            undo.callback(self.sandbox.end)
            _configure(self.link, config, single=True)
            undo.pop_all()

    def look(self) -> bool:
        """Take what it says; False when it is of no use any more."""
        try:
            data, fds, _, _ = socket.recv_fds(self.link, 65536, 4)
        except ConnectionError:
            data, fds = b"", []
        message = json.loads(data) if data else {}
        if "held" in message:
            if not fds:  # this process may open no more
                return False
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


def _configure(link: socket.socket, config: dict[str, Any], *, single: bool) -> None:
    """Say to a program in a sandbox what it is."""
    names = ("script", "middle", "strict", "shm_bytes", "pydantic")
    link.send(json.dumps({name: config[name] for name in names} | {"single": single}).encode())


def _hear(link: socket.socket, errors_fd: int, within_s: float) -> tuple[dict[str, Any], str]:
    """Return what the program says first ({} when it ends, or not in time), and the last line of
    what the app wrote meanwhile."""
    ends_s = time.monotonic() + within_s
    said, fds = b"", [link.fileno(), errors_fd]
    while found := readable(fds, ends_s):
        if errors_fd in found:
            data = os.read(errors_fd, 65536)
            said = (said + data)[-_ERRORS_BYTES:]
            if not data:
                fds.remove(errors_fd)
        else:
            data = link.recv(65536)
            return (json.loads(data) if data else {}), _line_of(said) or "it has ended"
    return {}, "its import did not end in time"


def readable(fds: list[int], ends_s: float) -> list[int]:
    """Return which of `fds` can be read, none when the time is up. The node says nothing meanwhile,
    so that its channel is readable means its end (NodeGone)."""
    left_s = max(0.0, ends_s - time.monotonic())
    found = select.select([*fds, CHANNEL_FD], [], [], left_s)[0]
    if CHANNEL_FD in found:
        raise NodeGone
    return found


def last_line(fd: int) -> str:
    """Return the last of what a program wrote, "" if it wrote nothing."""
    os.set_blocking(fd, False)
    try:
        return _line_of(os.read(fd, _ERRORS_BYTES * 16))
    except BlockingIOError:
        return ""


def _line_of(said: bytes) -> str:
    return said.decode(errors="replace").strip().rpartition("\n")[2][:300]
