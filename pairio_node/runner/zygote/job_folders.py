"""A job's /tmp. Its empty folders are the next job's when the one before left them alone.

To make and to delete a folder costs the disk more than all else that it does for a short job.
Whatever is done to a folder (an entry comes or goes; its mode, owner, attributes or times are set)
sets its time of change, which the kernel takes from its clock and nobody can choose. So one whose
time of change is that of before the job is as it was made. Only where the kernel keeps that time
itself (`REUSABLE_ON`). Standard library only.
"""

import contextlib
import os
import time
from pathlib import Path

from pairio_node.runner.supervisor.disk import remove_tree

__all__ = ["JOB_FILE", "REUSABLE_ON", "JobFolders", "make_tmp"]

#: What tells the job what it is to do.
JOB_FILE = "job.json"
#: File systems whose times of change are this kernel's.
REUSABLE_ON = frozenset({"btrfs", "ext2", "ext3", "ext4", "tmpfs", "xfs"})
#: Those in /tmp, with what lies in each.
_FOLDERS = {"working": ("working", "working/tmp"), "out": ("out",), "other": ("other",)}
#: The clock that times of change are taken from: it stands still for some milliseconds.
_CLOCK_REALTIME_COARSE = 5


class JobFolders:
    """The folders of one job after the other; `spare`, made here, is where they lie in between.
    Without `spare` each job gets new ones. `user`: whose they are, 0: this process'."""

    def __init__(self, user: int, spare: str = "") -> None:
        self._user = user
        self._spare = spare
        self._made: dict[str, tuple[int, int]] = {}
        self._is_told_apart = False

    def make(self, tmp: str) -> None:
        """Make what will be a job's /tmp, with an empty job file."""
        _make(tmp, self._user)
        fd = os.open(
            f"{tmp}/{JOB_FILE}", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644
        )
        try:
            if self._user:
                os.fchown(fd, self._user, self._user)
        finally:
            os.close(fd)
        for name, paths in _FOLDERS.items():
            if not self._takes(name, tmp):
                for path in paths:
                    _make(f"{tmp}/{path}", self._user)
        self._made = {
            path: _state(f"{tmp}/{path}") for paths in _FOLDERS.values() for path in paths
        }
        self._is_told_apart = False

    def _takes(self, name: str, tmp: str) -> bool:
        try:
            os.rename(f"{self._spare}/{name}", f"{tmp}/{name}")
        except OSError:
            return False
        return True

    def begin(self) -> bool:
        """A job is about to have them. Say whether a change will show: the clock has gone on."""
        newest = max(changed_ns for _, changed_ns in self._made.values())
        self._is_told_apart = time.clock_gettime_ns(_CLOCK_REALTIME_COARSE) > newest
        return self._is_told_apart

    def take_back(self, tmp: str) -> None:
        """Keep what the job has left alone, once nothing of it runs any more."""
        if not self._spare or not self._is_told_apart:
            return
        with contextlib.suppress(OSError):  # the host has gone, or the disk is full
            if not os.path.isdir(self._spare):
                os.mkdir(self._spare, 0o700)
            for name, paths in _FOLDERS.items():
                if all(self._is_as_made(tmp, path) for path in paths):
                    os.rename(f"{tmp}/{name}", f"{self._spare}/{name}")

    def _is_as_made(self, tmp: str, path: str) -> bool:
        try:
            return _state(f"{tmp}/{path}") == self._made[path]
        except OSError:
            return False  # the job put something else in its place, or in that of what it lies in

    def close(self) -> None:
        """Remove what is kept."""
        if self._spare:
            remove_tree(Path(self._spare))


def make_tmp(tmp: str, user: int) -> None:
    """Make what will be a job's /tmp, for `user` (0: this process')."""
    JobFolders(user).make(tmp)


def _make(path: str, user: int) -> None:
    os.mkdir(path)
    if user:
        os.chown(path, user, user)


def _state(path: str) -> tuple[int, int]:
    """Return what another folder, or a change of this one, would make another."""
    found = os.lstat(path)
    return (found.st_ino, found.st_ctime_ns)
