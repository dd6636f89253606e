"""What one job may use on this node besides what it asked for, and how passing it is told.

A bound that every node has (`limits.py`) is the job's own failure, and final. One that is tighter
here, by the owner's settings or by what the disk has left, is this node's: the run ends as `infra`,
and another node may have more room.
"""

import contextlib
import errno
import os
import re
import resource
from dataclasses import dataclass
from pathlib import Path

from pairio_node.runner.supervisor.watch import Passed
from pairio_protocol.limits import (
    JOB_DISK_BYTES_MAX,
    JOB_FILES_MAX,
    JOB_OPEN_FILES_MAX,
    JOB_PROCESSES_MAX,
)

__all__ = [
    "JobBounds",
    "explained",
    "is_nodes_own",
    "passed_words",
    "processes_rlimit",
    "processes_rlimit_shared",
    "rlimits",
    "size_words",
]

#: In a sandbox the kernel's bound on processes lies a little above the one that is watched.
_PROCESSES_SPARE = 64
#: The first Linux that counts the processes of a user in each sandbox (user namespace) apart.
_COUNTED_APART = [5, 14]
#: Before it, and without a sandbox, all that the jobs' user runs counts together: what a machine
#: bears.
_PROCESSES_TOGETHER = 8192


@dataclass(frozen=True)
class JobBounds:
    """Bounds of one job. `disk_bytes` is what its folder may take (and each file may claim),
    `output_bytes` what its outputs may have together, `reserve_bytes` what must stay free on the
    disk."""

    processes: int = JOB_PROCESSES_MAX
    open_files: int = JOB_OPEN_FILES_MAX
    disk_bytes: int = JOB_DISK_BYTES_MAX
    output_bytes: int = JOB_DISK_BYTES_MAX
    files: int = JOB_FILES_MAX
    reserve_bytes: int = 0


_STANDARD = {
    "processes": JOB_PROCESSES_MAX,
    "disk": JOB_DISK_BYTES_MAX,
    "outputs": JOB_DISK_BYTES_MAX,
    "files": JOB_FILES_MAX,
}


def is_nodes_own(passed: Passed) -> bool:
    """Say whether a bound is this node's alone, so that another one may do the job."""
    return passed.which in ("room", "machine") or passed.most < _STANDARD.get(passed.which, 0)


def passed_words(passed: Passed) -> str:
    """Return which bound was passed, the value, the bound."""
    used, most = size_words(passed.used), size_words(passed.most)
    match passed.which:
        case "memory" | "disk":
            return f"{passed.which}: used {used} of at most {most}"
        case "outputs":
            return f"outputs: they have {used} of at most {most}"
        case "time":
            return f"time: ran {passed.used / 1000:g} s of at most {passed.most / 1000:g} s"
        case "room":
            return f"disk: this node has {used} left, and jobs must leave {most}"
        case "machine":
            return f"memory: this node had none left, when the job used {used} of its {most}"
        case "folders":
            return f"folders: {passed.used} levels deep of at most {passed.most}"
        case which:
            return f"{which}: {passed.used} of at most {passed.most}"


def size_words(size_bytes: int) -> str:
    """Return a size as people read it: `1.1 GiB`."""
    size, units = float(size_bytes), ["bytes", "KiB", "MiB", "GiB", "TiB"]
    while size >= 1024 and len(units) > 1:
        size /= 1024
        units.pop(0)
    return f"{size:.1f}".removesuffix(".0") + f" {units[0]}"


def explained(last_words: str, bounds: JobBounds) -> str:
    """Return what a job said last; with the bound, where the system's words for one are in it."""
    for number, what in (
        (errno.EMFILE, f"a job may have {bounds.open_files} files open at a time"),
        (errno.EFBIG, f"a file of a job may have {size_words(bounds.disk_bytes)}"),
        (errno.EAGAIN, f"a job may have {bounds.processes} processes and threads"),
    ):
        if os.strerror(number) in last_words:
            return f"{last_words} ({what})"
    return last_words


def processes_rlimit(bounds: JobBounds, *, release: str = "") -> int:
    """Return RLIMIT_NPROC of a job in a sandbox of its own. All jobs of a node run as one user; an
    older Linux (`release`: "5.10.0-9-amd64") counts them together, and with them what else that
    user runs, so that a bound for one job would keep others from starting."""
    numbers = [int(number) for number in re.findall(r"\d+", release or os.uname().release)]
    if numbers[:2] < _COUNTED_APART:
        return _PROCESSES_TOGETHER
    return bounds.processes + _PROCESSES_SPARE


def processes_rlimit_shared(user: int, proc: Path = Path("/proc")) -> int | None:
    """Return RLIMIT_NPROC of a job that runs as the node's own `user`, which has other jobs, the
    node, and maybe a desktop: far above what there is now, so that no honest job meets it because
    of others. It holds what forks faster than it is looked at. None: the kernel bounds no root."""
    if user == 0:
        return None
    count = 0
    for path in proc.iterdir():
        # Processes that have gone since, and that this user may not see.
        with contextlib.suppress(OSError, ValueError):
            if path.name.isdigit() and path.stat().st_uid == user:
                count += len(list((path / "task").iterdir()))
    return count + _PROCESSES_TOGETHER


def rlimits(bounds: JobBounds, processes: int | None) -> list[str]:
    """Return the options of `prlimit` for a job. `processes` bounds how many the system lets its
    user have (see `processes_rlimit`); None: as many as before. Never more than this process may
    give, and never the address space: CUDA and others reserve far more than they use."""
    files = _allowed(resource.RLIMIT_NOFILE, bounds.open_files)
    found = [f"--nofile={files}:{files}", "--core=0:0"]
    found += [f"--fsize={bounds.disk_bytes}:{bounds.disk_bytes}"]
    if processes is not None:
        most = _allowed(resource.RLIMIT_NPROC, processes)
        found += [f"--nproc={most}:{most}"]
    return found


def _allowed(which: int, most: int) -> int:
    """Return a limit that any process may give itself: at most its hard one."""
    hard = resource.getrlimit(which)[1]
    return most if hard == resource.RLIM_INFINITY else min(most, hard)
