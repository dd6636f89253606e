"""A job's secrets on their way: from the node through a pipe to the job's supervisor and no other
process, from there to the sandbox through memory, masked in the console.

Standard library only, and nothing here is written to a disk.
"""

import contextlib
import ctypes
import fcntl
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

__all__ = ["SECRETS_FILE", "Mask", "handed", "secret_fds", "secret_word", "taken"]

#: The pipe in a job's folder; it is gone when the supervisor has read it.
SECRETS_FILE = "secrets"
_SIZE_BYTES_MAX = 256 * 1024
_SET_PIPE_SIZE = 1031

_PR_SET_DUMPABLE = 4
#: A line of a secret that is shorter is masked only together with the others.
_LINE_BYTES_MIN = 8


def secret_word(name: str) -> str:
    """Return what stands in a plan's `argv` for the descriptor of a secret."""
    return f"{{secret:{name}}}"


@contextlib.contextmanager
def handed(folder: Path, secrets: Mapping[str, str]) -> Iterator[None]:
    """Have secrets lie ready for the supervisor of the job in `folder`, in a pipe: in memory, and
    gone with this process.

    Raises:
        OSError: there can be no pipe, or it does not take them.
    """
    if not secrets:
        yield
        return
    path = folder / SECRETS_FILE
    path.unlink(missing_ok=True)
    os.mkfifo(path, 0o600)
    fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        # A line: whatever a value holds, JSON has no newline in it.
        data = json.dumps(dict(secrets), ensure_ascii=False).encode() + b"\n"
        with contextlib.suppress(OSError):  # what a pipe has by itself may do
            fcntl.fcntl(fd, _SET_PIPE_SIZE, _SIZE_BYTES_MAX)
        if os.write(fd, data) < len(data):
            raise OSError("a pipe does not take the job's secrets")
        yield
    finally:
        os.close(fd)
        path.unlink(missing_ok=True)


def taken(folder: Path) -> dict[str, str]:
    """Return what was handed to this process, which leaves no memory behind from now on, should it
    crash.

    Raises:
        OSError: nothing was, or not all of it.
    """
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    path = folder / SECRETS_FILE
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    data = b""
    try:
        while not data.endswith(b"\n"):
            if not (piece := os.read(fd, _SIZE_BYTES_MAX)):
                raise OSError("the node that has the job's secrets is gone")
            data += piece
    finally:
        os.close(fd)
    path.unlink(missing_ok=True)
    return {str(name): str(value) for name, value in json.loads(data).items()}


def secret_fds(secrets: Mapping[str, str]) -> dict[str, int]:
    """Return descriptors that give secrets, by the words that stand for them in a plan's `argv`.
    The caller closes them."""
    fds = {}
    for name, value in secrets.items():
        fd = fds[secret_word(name)] = os.memfd_create("secret", os.MFD_CLOEXEC)
        os.pwrite(fd, value.encode(), 0)
    return fds


class Mask:
    """Replaces secrets in what a job writes, also where one comes in several pieces. What may be
    the beginning of one is held back until more comes, or `end`."""

    def __init__(self, secrets: Mapping[str, str]) -> None:
        patterns: dict[bytes, bytes] = {}
        for name, value in secrets.items():
            told = f"[secret {name}]".encode()
            whole = value.encode()
            for part in (whole, whole.strip(), *whole.splitlines()):
                if len(part.strip()) >= _LINE_BYTES_MIN:
                    patterns.setdefault(part.strip(b"\r\n"), told)
        self._told = patterns
        longest_first = sorted(patterns, key=len, reverse=True)
        self._any = re.compile(b"|".join(map(re.escape, longest_first))) if patterns else None
        self._held = b""

    def add(self, data: bytes) -> bytes:
        """Return what may be written of all that came so far."""
        if self._any is None:
            return data
        data = self._held + data
        cut = len(data) - self._beginning(data)
        parts, at = [], 0
        for match in self._any.finditer(data):
            if match.start() >= cut:
                break
            parts += [data[at : match.start()], self._told[match[0]]]
            at = match.end()
        cut = max(cut, at)
        self._held = data[cut:]
        return b"".join((*parts, data[at:cut]))

    def end(self) -> bytes:
        """Return what was held back."""
        held, self._held = self._held, b""
        return self._any.sub(lambda match: self._told[match[0]], held) if self._any else held

    def _beginning(self, data: bytes) -> int:
        """Return how many bytes at the end may be the beginning of a secret."""
        found = 0
        for pattern in self._told:
            at = data.find(pattern[:1], max(0, len(data) - len(pattern) + 1))
            while at >= 0 and not pattern.startswith(data[at:]):
                at = data.find(pattern[:1], at + 1)
            if at >= 0:
                found = max(found, len(data) - at)
        return found
