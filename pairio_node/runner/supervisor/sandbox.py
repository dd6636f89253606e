"""What a sandbox needs of the process that starts it: a filter in a descriptor, another user.

A node that runs as root must not run jobs as root. The user that they get cannot go through the
node's home to a job's folder, so its files are mounted where that user may go, in a namespace of
the job's own: the file number N of the plan is /tmp/N there.
"""

import ctypes
import os
import stat
from collections.abc import Sequence
from typing import Any

__all__ = ["FILTER", "STAGE", "become", "filter_fd"]

#: Stands in a plan's `argv` for the descriptor that holds the filter.
FILTER = "{filter}"
#: Where a job's files are mounted for its user.
STAGE = "/tmp"
_CLONE_NEWNS = 0x00020000
_MS_NOSUID, _MS_NODEV, _MS_BIND, _MS_REC, _MS_PRIVATE = 2, 4, 4096, 16384, 1 << 18
_libc = ctypes.CDLL(None, use_errno=True)


def filter_fd(plan: dict[str, Any]) -> int | None:
    """Return a descriptor to read the plan's filter from (hexadecimal in `filter`), if it has one.
    The descriptor is closed by the caller."""
    if not plan.get("filter"):
        return None
    fd = os.memfd_create("filter", os.MFD_CLOEXEC)
    os.pwrite(fd, bytes.fromhex(plan["filter"]), 0)
    return fd


def become(user: int, files: Sequence[str]) -> None:
    """Mount `files` at STAGE and become `user`; called as root in a process with one thread, after
    the fork.

    Raises:
        OSError: a file is not there, the system does not allow it.
    """
    _check(_libc.unshare(_CLONE_NEWNS), "unshare")
    _mount(b"none", "/", b"", _MS_REC | _MS_PRIVATE, b"")
    opened = [os.open(path, os.O_PATH | os.O_CLOEXEC) for path in files]
    _mount(b"tmpfs", STAGE, b"tmpfs", _MS_NOSUID | _MS_NODEV, b"mode=0755,size=1m")
    for number, fd in enumerate(opened):
        target = f"{STAGE}/{number}"
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            os.mkdir(target)
        else:
            os.close(os.open(target, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC))
        _mount(b"/proc/self/fd/%d" % fd, target, b"", _MS_BIND | _MS_REC, b"")
        os.close(fd)
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)


def _mount(source: bytes, target: str, kind: bytes, flags: int, options: bytes) -> None:
    _check(_libc.mount(source, target.encode(), kind, ctypes.c_ulong(flags), options), target)


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)
