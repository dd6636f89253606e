"""Passes a job's connections on to its node: from a port of its own loopback to a Unix socket.

`python -I -S _forward.py SOCKET PORT PROGRAM...` listens, leaves a process behind that forwards,
and becomes PROGRAM: for apps in any language. Without PROGRAM it says `ready` and forwards itself.
`_forward.py SOCKET fd=N USER` forwards what the descriptor N listens for, as USER (0: as it is),
until its input ends. Standard library only, one file.
"""

import os
import selectors
import signal
import socket
import sys
import time

_CONNECTIONS_MAX = 128
_BUFFER_BYTES = 64 * 1024
#: How long a node that starts again is waited for, and how often it is looked for.
_NODE_S = 90.0
_AGAIN_S = 0.25


class Pipe:
    """What comes from one socket and goes to the other."""

    def __init__(self, source: socket.socket, sink: socket.socket) -> None:
        self.source, self.sink = source, sink
        self.data = b""
        self.ended = False
        self.done = False

    def move(self) -> None:
        """Move what can be moved now. OSError: one side is gone."""
        if not self.ended and len(self.data) < _BUFFER_BYTES:
            try:
                came = self.source.recv(_BUFFER_BYTES)
            except BlockingIOError:
                came = None
            if came == b"":
                self.ended = True
            elif came:
                self.data += came
        if self.data:
            try:
                self.data = self.data[self.sink.send(self.data) :]
            except BlockingIOError:
                return
        if self.ended and not self.data and not self.done:
            self.done = True
            self.sink.shutdown(socket.SHUT_WR)


class Pair:
    """A connection of the job, and the one to the node that stands for it."""

    def __init__(self, job: socket.socket) -> None:
        self.job = job
        self.node = socket.socket(socket.AF_UNIX)
        self.job.setblocking(False)
        self.node.setblocking(False)
        self.pipes = (Pipe(job, self.node), Pipe(self.node, job))
        self.connected = False
        self.gives_up_s = time.monotonic() + _NODE_S

    def connect(self, path: str) -> bool:
        """Try to reach the node; says whether it is worth going on."""
        try:
            self.node.connect(path)
            self.connected = True
        except OSError:  # it is starting again, or busy
            return time.monotonic() < self.gives_up_s
        return True

    def wants(self, side: socket.socket) -> int:
        """Return what to wait for on one of the two sockets."""
        out, back = self.pipes if side is self.job else self.pipes[::-1]
        reads = not out.ended and len(out.data) < _BUFFER_BYTES
        return (selectors.EVENT_READ if reads else 0) | (selectors.EVENT_WRITE if back.data else 0)

    def close(self) -> None:
        """Close both."""
        self.job.close()
        self.node.close()


class Forwarder:
    """All connections of a job."""

    def __init__(self, listener: socket.socket, path: str, lives_fd: int = -1) -> None:
        """`lives_fd`: what to end with, when it can be read from."""
        self.listener, self.path = listener, path
        self.selector = selectors.DefaultSelector()
        self.pairs: set[Pair] = set()
        self.waiting: set[Pair] = set()
        self.listens = False
        listener.setblocking(False)
        if lives_fd >= 0:
            self.selector.register(lives_fd, selectors.EVENT_READ, self)

    def run(self) -> None:
        """Forward for ever; the end of the sandbox, or of `lives_fd`, is the end of this."""
        while True:
            self._listen(len(self.pairs) < _CONNECTIONS_MAX)
            for key, _ in self.selector.select(_AGAIN_S if self.waiting else None):
                if key.data is self:
                    return
                if key.data is None:
                    self._accept()
                elif key.data in self.pairs:
                    self._move(key.data)
            for pair in list(self.waiting):
                self._reach(pair)

    def _listen(self, wanted: bool) -> None:
        if wanted != self.listens:
            self.listens = wanted
            if wanted:
                self.selector.register(self.listener, selectors.EVENT_READ)
            else:
                self.selector.unregister(self.listener)

    def _accept(self) -> None:
        try:
            job, _ = self.listener.accept()
        except OSError:
            return
        pair = Pair(job)
        self.pairs.add(pair)
        self.waiting.add(pair)

    def _reach(self, pair: Pair) -> None:
        if not pair.connect(self.path):
            self._drop(pair)
        elif pair.connected:
            self.waiting.discard(pair)
            self._watch(pair)

    def _move(self, pair: Pair) -> None:
        try:
            for pipe in pair.pipes:
                pipe.move()
        except OSError:
            self._drop(pair)
            return
        if all(pipe.done for pipe in pair.pipes):
            self._drop(pair)
        else:
            self._watch(pair)

    def _watch(self, pair: Pair) -> None:
        for side in (pair.job, pair.node):
            wanted = pair.wants(side)
            known = side.fileno() in self.selector.get_map()
            if wanted and known:
                self.selector.modify(side, wanted, pair)
            elif wanted:
                self.selector.register(side, wanted, pair)
            elif known:
                self.selector.unregister(side)

    def _drop(self, pair: Pair) -> None:
        for side in (pair.job, pair.node):
            if side.fileno() in self.selector.get_map():
                self.selector.unregister(side)
        self.waiting.discard(pair)
        self.pairs.discard(pair)
        pair.close()


def start(path: str, port: int) -> None:
    """Listen on `port` of this loopback, and leave a process behind that forwards to `path`."""
    listener = socket.create_server(("127.0.0.1", port), backlog=_CONNECTIONS_MAX)
    if child := os.fork():
        os.waitpid(child, 0)
        listener.close()
        return
    if os.fork():
        os._exit(0)
    try:
        os.setsid()
        # A job that is asked to end may still read what it needs for that.
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        Forwarder(listener, path).run()
    finally:
        os._exit(1)


def serve(path: str, port: int) -> None:
    """Listen on `port` of this loopback and forward to `path`, for ever."""
    listener = socket.create_server(("127.0.0.1", port), backlog=_CONNECTIONS_MAX)
    os.write(1, b"ready\n")
    Forwarder(listener, path).run()


def serve_outside(path: str, listener_fd: int, user: int) -> None:
    """Forward from outside of a job's sandbox, without the rights of who started this."""
    if user:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    Forwarder(socket.socket(fileno=listener_fd), path, lives_fd=0).run()


def main() -> None:
    """Start the forwarder and become the program, or forward if there is none."""
    path, port, *program = sys.argv[1:]
    if port.startswith("fd="):
        serve_outside(path, int(port.removeprefix("fd=")), int(program[0]))
        return
    if not program:
        serve(path, int(port))
    start(path, int(port))
    os.execv(program[0], program)


if __name__ == "__main__":
    main()
