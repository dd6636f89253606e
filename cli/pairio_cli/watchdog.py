"""Starts the node, and starts it again after a crash; light, and without anything of the node.

The node is a child in the same process group. What it says on stdout (one ready line) is passed on
once. A clean end and a user's mistake (exit 1 or 2) end the watchdog too, with the same code. A
watchdog that is killed takes its node with it.
"""

import ctypes
import faulthandler
import json
import os
import select
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from pairio_cli.output import note

__all__ = ["last_words", "watch", "watched"]

#: More crashes than this within the window: something is wrong that a restart does not mend.
_CRASHES_MAX = 5
_WINDOW_S = 600.0
_BACKOFF_S_MIN, _BACKOFF_S_MAX = 0.25, 10.0
_LOG_BYTES_MAX = 64 * 1024
_WORDS_BYTES_MAX = 8 * 1024
_BUG_CODE = 3
#: How the node is told, once, that it is watched, by whom, and what happened before.
_VARIABLE = "PAIRIO_WATCHED"
_WORDS_FILE = "crash.part"
_LOG_FILE = "crashes.log"
_PR_SET_PDEATHSIG = 1


# -- in the watchdog ------------------------------------------------------------------------


@dataclass
class _Watchdog:
    """One life of a home. `said` is whether the ready line was passed on."""

    home: Path
    arguments: list[str]
    said: bool = False
    asked: int = 0  # the signal that asked for the end
    child: "subprocess.Popen[bytes] | None" = None
    crashes_s: list[float] = field(default_factory=list)
    last: dict[str, Any] | None = None

    def run(self, wake_fd: int) -> int:
        """Keep the node running; returns the exit code."""
        while True:
            code = self._run_once()
            if self.asked:
                return code if code >= 0 else 128 - code
            if code in (-signal.SIGTERM, -signal.SIGINT):  # asked for by somebody else
                return 128 - code
            if code >= 0 and code != _BUG_CODE:
                return code
            if not self._crashed(code):
                return _BUG_CODE
            backoff_s = min(_BACKOFF_S_MIN * 2 ** (len(self.crashes_s) - 1), _BACKOFF_S_MAX)
            select.select([wake_fd], [], [], backoff_s)
            if self.asked:
                return 128 + self.asked

    def on_signal(self, number: int, _: FrameType | None) -> None:
        """Pass a signal on."""
        self.asked = number
        if self.child is not None:
            self.child.send_signal(number)

    def _run_once(self) -> int:
        told = {"pid": os.getpid(), "restarts": len(self.crashes_s), "lastCrash": self.last}
        argv = [sys.executable, "-P", "-m", "pairio_cli.node_entry", *self.arguments]
        self.child = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            env={**os.environ, _VARIABLE: json.dumps(told)},
        )
        if self.asked:  # between the start and its name
            self.child.send_signal(self.asked)
        assert self.child.stdout is not None
        with self.child.stdout as lines:
            for line in lines:
                if not self.said:
                    self.said = True
                    _pass_on(line)
        return self.child.wait()

    def _crashed(self, code: int) -> bool:
        """Write down a crash; False when it was one too many."""
        now_s = time.monotonic()
        words = _words(self.home / _WORDS_FILE)
        reason = _reason(code, words)
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self.last = {"time": at, "reason": reason}
        self.crashes_s.append(now_s)
        recent = sum(now_s - crash_s <= _WINDOW_S for crash_s in self.crashes_s)
        again = recent < _CRASHES_MAX
        then = "it is started again" if again else "it is not started again"
        note(f"the node crashed: {reason}; {then}")
        if not again:
            note(
                f"error: the node crashed {recent} times in {_WINDOW_S / 60:g} minutes\n\n"
                f"hint: {self.home / _LOG_FILE} says what happened; please report it"
            )
        entry = f"{at} {reason}; {then}\n{words}"
        try:
            _append(self.home / _LOG_FILE, entry.rstrip() + "\n")
        except OSError as error:
            note(f"cannot write {self.home / _LOG_FILE}: {error.strerror}")
        return again


def watch(home: Path, arguments: list[str]) -> int:
    """Run `pairio-node ARGUMENTS` until it ends in a way that is not a crash, or crashes too
    often (3); returns the exit code."""
    dog = _Watchdog(home, arguments)
    wake_fd, write_fd = os.pipe()
    os.set_blocking(write_fd, False)
    signal.set_wakeup_fd(write_fd)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, dog.on_signal)
    return dog.run(wake_fd)


def _pass_on(line: bytes) -> None:
    try:
        sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()
    except BrokenPipeError:  # whoever started the node has gone; that is no reason to end it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _reason(code: int, words: str) -> str:
    last = words.rstrip().rpartition("\n")[2][:300]
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return last if last else f"it ended with code {code}"


def _words(path: Path) -> str:
    """Return what the node wrote last: the end of it, where the error is named."""
    try:
        return path.read_bytes()[-_WORDS_BYTES_MAX:].decode(errors="replace")
    except OSError:
        return ""


def _append(path: Path, entry: str) -> None:
    """Add an entry; of the old ones the newest are kept, up to the bound."""
    old = path.read_text(errors="replace") if path.exists() else ""
    text = (old + entry)[-_LOG_BYTES_MAX:]
    part = path.with_name(f"{path.name}.part")
    part.write_text(text)
    part.chmod(0o600)
    part.rename(path)


# -- in the node ----------------------------------------------------------------------------


def watched() -> dict[str, Any] | None:
    """In a node that is watched: bind its life to the watchdog's, and return what the status says
    of restarts; else None. What the node starts is not told."""
    told = os.environ.pop(_VARIABLE, None)
    if told is None:
        return None
    info: dict[str, Any] = json.loads(told)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != info.pop("pid"):  # it went before that
        sys.exit(0)
    return info


@contextmanager
def last_words(home: Path) -> Iterator[None]:
    """Keep, for the watchdog, what a crash says: Python's stacks at a fatal signal, or the
    traceback of an error that nobody expected."""
    path = home / _WORDS_FILE
    with path.open("w") as file:
        faulthandler.enable(file)
        try:
            yield
        except Exception as error:
            if not hasattr(error, "hint"):  # else a user's mistake
                traceback.print_exc(file=file)
                cause = _cause(error)
                file.write(f"{type(cause).__name__}: {cause}\n")
            raise
        finally:
            faulthandler.disable()


def _cause(error: BaseException) -> BaseException:
    """Return the first error in a group of groups."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
