"""The run file: what a job's folder says of its run, in one file that only grows.

Lines of JSON, each an object with one name: `card` (of the node, before the job begins),
`supervisor` (a process id), `group` (its control groups), `outcome`. The last one of a name counts,
and a supervisor voids the outcome of one before it. A line that does not end is not there: its
writer was killed, or the disk is full. Whoever has the lock of the file is the job's supervisor,
until its outcome is there. Standard library only.
"""

import errno
import fcntl
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["RUN_FILE", "Told", "add", "begin", "read", "take", "told"]

RUN_FILE = "run.jsonl"
#: More than any job's inputs and outputs take.
_SIZE_BYTES_MAX = 16 * 2**20
#: Ends half a line, which may lack nothing but its newline, so that it never counts.
_VOID = b"?\n"
_OPENED = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
_KINDS = {"card": dict, "supervisor": int, "group": dict, "outcome": dict}


@dataclass(frozen=True)
class Told:
    """What a run file says. `supervisor`: 0 when none has said its process id."""

    card: dict[str, Any] | None = None
    supervisor: int = 0
    group: dict[str, Any] | None = None
    outcome: dict[str, Any] | None = None


def begin(folder: Path, card: dict[str, Any]) -> None:
    """Make the run file of a new job. Raises OSError when it is not there whole."""
    fd = os.open(folder / RUN_FILE, _OPENED | os.O_EXCL, 0o600)
    try:
        add(fd, "card", card)
    finally:
        os.close(fd)


def take(folder: Path) -> int:
    """Take a job's folder: no other supervisor can. Returns the descriptor of its run file, which
    has the lock; made here for a job without a card. Raises OSError when another has it."""
    fd = os.open(folder / RUN_FILE, _OPENED, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise
    return fd


def add(fd: int, name: str, value: dict[str, Any] | int) -> None:
    """Add a line, by one call of the system. Raises OSError when it is not there whole, and then
    it never is, whatever comes after it."""
    line = json.dumps({name: value}).encode() + b"\n"
    end = os.lseek(fd, 0, os.SEEK_END)
    if end and os.pread(fd, 1, end - 1) != b"\n":
        line = _VOID + line
    if end + len(line) > _SIZE_BYTES_MAX:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
    if os.write(fd, line) < len(line):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def read(folder: Path) -> Told:
    """Return what the run file of a folder says; nothing when there is none that can be read."""
    try:
        fd = os.open(folder / RUN_FILE, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return told(fd)
        finally:
            os.close(fd)
    except OSError:
        return Told()


def told(fd: int) -> Told:
    """Return what a run file says so far, also while lines are added."""
    return _parsed(os.pread(fd, min(os.fstat(fd).st_size, _SIZE_BYTES_MAX), 0))


def _parsed(data: bytes) -> Told:
    found: dict[str, Any] = {}
    for line in data.split(b"\n")[:-1]:
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            continue
        for name, kind in _KINDS.items():
            if isinstance(entry, dict) and type(entry.get(name)) is kind:
                found[name] = entry[name]
                if name == "supervisor":
                    found.pop("outcome", None)
    return Told(**found)
