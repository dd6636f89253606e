"""What one job uses, beside what it may use. Standard library only.

`Watch.look` is called a few times a second and says which bound the job has passed, if one.
Whoever runs jobs in another way than the supervisor does can use it too: it needs a folder, the
processes, and a control group where there is one.
"""

import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .cgroups import JobCgroup
from .disk import DEPTH_MAX, DiskUse, measure, unlinked_bytes
from .processes import bytes_moved, shared_out_bytes, tree_use
from .samples import Samples

__all__ = ["Bounds", "Passed", "Watch"]

#: A look through the job's folder may take this part of the time.
_DISK_SHARE = 20
_DISK_EVERY_S = 1.0
#: So long, while the disk is nearly full, those who wrote much have to make room for the others.
_FULL_S = 3.0
_MUCH_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Bounds:
    """What a job may use; 0: no bound. `reserve_bytes` is what must stay free on the disk."""

    memory_bytes: int = 0
    processes: int = 0
    disk_bytes: int = 0
    files: int = 0
    reserve_bytes: int = 0


@dataclass(frozen=True)
class Passed:
    """A bound that was passed. `which`: memory, processes, disk, files, folders; room (of the
    machine's disk: what is left, and what has to be left); machine (its memory was used up, though
    the job had not used its own)."""

    which: str
    used: int
    most: int


class Watch:
    """Watches one job. `tree` gives its processes. `group` is its control group, or None: then its
    memory is looked at, and what it does between two looks goes unseen."""

    def __init__(
        self, bounds: Bounds, folder: Path, tree: Callable[[], list[int]], group: JobCgroup | None
    ) -> None:
        self._bounds = bounds
        self._folder = folder
        self._tree = tree
        self._group = group
        self._began_s = time.monotonic()
        self._memory_peak_bytes = 0
        self._processes_peak = 0
        self._moved = [0, 0]  # read, written: by processes whose ends were taken
        self._disk = DiskUse(0, 0, 0)
        self._disk_peak_bytes = 0
        self._disk_next_s = 0.0
        self._disk_free_bytes = 0
        self._full_since_s: float | None = None
        self._samples = Samples()

    def look(self) -> Passed | None:
        """Look what the job uses now."""
        now_s = time.monotonic()
        pids = self._tree()
        memory_bytes, processes, cpu_ms = self._use(pids)
        self._memory_peak_bytes = max(self._memory_peak_bytes, memory_bytes)
        self._processes_peak = max(self._processes_peak, processes)
        if self._samples.is_due(now_s - self._began_s):
            read, written = self._bytes_moved(pids)
            self._samples.take(
                now_s - self._began_s,
                {
                    "cpu_ms": cpu_ms,
                    "memory_bytes": memory_bytes,
                    "read_bytes": read,
                    "written_bytes": written,
                    "processes": processes,
                    "disk_bytes": self._disk.size_bytes,
                },
            )
        return (
            self._passed_memory(memory_bytes)
            or self._passed_processes(processes)
            or self._passed_disk(now_s, pids)
        )

    def ended(self) -> Passed | None:
        """Return what the kernel noted that the last look did not see; before the group goes."""
        return self._passed_memory(0) or self._passed_processes(0)

    def on_end_of(self, pid: int) -> None:
        """Count what a process moved that has ended, before its end is taken."""
        read, written = bytes_moved(pid)
        self._moved[0] += read
        self._moved[1] += written

    def usage(self, cpu_ms: int, largest_bytes: int) -> dict[str, int]:
        """Return the figures of the whole run; `cpu_ms` and the largest process as the system
        counted them."""
        by_group = self._group.cpu_ms() if self._group is not None else None
        return {
            "wall_ms": int((time.monotonic() - self._began_s) * 1000),
            "cpu_ms": max(cpu_ms, by_group or 0),
            "memory_peak_bytes": max(self._memory_peak_bytes, largest_bytes),
            "read_bytes": self._moved[0],
            "written_bytes": self._moved[1],
            "processes_peak": max(1, self._processes_peak),
            "disk_peak_bytes": self._disk_peak_bytes,
        }

    def samples(self) -> list[dict[str, Any]]:
        """Return what was sampled; too short a run has none."""
        return self._samples.taken

    def _use(self, pids: list[int]) -> tuple[int, int, int]:
        """Return memory, processes and threads, and CPU time."""
        seen = tree_use(pids)
        memory_bytes, threads, cpu_ms = seen.memory_bytes, seen.threads, seen.cpu_ms
        if self._group is not None:
            used = self._group.usage()
            memory_bytes = memory_bytes if used.memory_bytes is None else used.memory_bytes
            threads = threads if used.processes is None else used.processes
            cpu_ms = cpu_ms if used.cpu_ms is None else used.cpu_ms
        elif self._bounds.memory_bytes and memory_bytes > self._bounds.memory_bytes:
            memory_bytes = shared_out_bytes(pids) or memory_bytes
        return memory_bytes, threads, cpu_ms

    def _bytes_moved(self, pids: list[int]) -> tuple[int, int]:
        moved = [bytes_moved(pid) for pid in pids]
        return (
            self._moved[0] + sum(read for read, _ in moved),
            self._moved[1] + sum(written for _, written in moved),
        )

    def _passed_memory(self, used_bytes: int) -> Passed | None:
        most = self._bounds.memory_bytes
        if self._group is not None and self._group.oom_kills():
            if not self._group.met_its_memory():
                return Passed("machine", self._memory_peak_bytes, most)
            # The kernel lets nobody beyond the bound: it was needed, and a process was ended.
            self._memory_peak_bytes = max(self._memory_peak_bytes, most)
            return Passed("memory", most, most)
        if self._group is None and most and used_bytes > most:
            return Passed("memory", used_bytes, most)
        return None

    def _passed_processes(self, used: int) -> Passed | None:
        most = self._bounds.processes
        if self._group is not None and self._group.refused_processes():
            return Passed("processes", most + 1, most)
        if most and used > most:
            return Passed("processes", used, most)
        return None

    def _passed_disk(self, now_s: float, pids: list[int]) -> Passed | None:
        bounds = self._bounds
        with contextlib.suppress(OSError):
            disk = os.statvfs(self._folder)
            free_bytes = disk.f_bavail * disk.f_frsize
            if self._is_disk_due(now_s, free_bytes):
                self._look_at_disk(pids, free_bytes)
            nearly_full = self._passed_room(now_s, free_bytes)
            if nearly_full is not None:
                return nearly_full
        if bounds.disk_bytes and self._disk.size_bytes > bounds.disk_bytes:
            return Passed("disk", self._disk.size_bytes, bounds.disk_bytes)
        if bounds.files and self._disk.files > bounds.files:
            return Passed("files", self._disk.files, bounds.files)
        if self._disk.depth >= DEPTH_MAX:
            return Passed("folders", self._disk.depth, DEPTH_MAX - 1)
        return None

    def _is_disk_due(self, now_s: float, free_bytes: int) -> bool:
        if not self._bounds.disk_bytes:
            return False
        left = max(0, self._bounds.disk_bytes - self._disk.size_bytes)
        # Half of what is left went since: it may be this job, and the next look may be too late.
        return now_s >= self._disk_next_s or self._disk_free_bytes - free_bytes > left // 2

    def _look_at_disk(self, pids: list[int], free_bytes: int) -> None:
        began_s = time.monotonic()
        use = measure(self._folder, self._bounds.files or 2**62)
        with contextlib.suppress(OSError):
            nameless = unlinked_bytes(pids, os.stat(self._folder).st_dev)
            use = DiskUse(use.size_bytes + nameless, use.files, use.depth)
        self._disk = use
        self._disk_peak_bytes = max(self._disk_peak_bytes, use.size_bytes)
        self._disk_free_bytes = free_bytes
        took_s = time.monotonic() - began_s
        self._disk_next_s = time.monotonic() + max(_DISK_EVERY_S, took_s * _DISK_SHARE)

    def _passed_room(self, now_s: float, free_bytes: int) -> Passed | None:
        """Nearly full, the disk is the node's alone: who wrote much goes first, then all."""
        if free_bytes >= self._bounds.reserve_bytes:
            self._full_since_s = None
            return None
        if self._full_since_s is None:
            self._full_since_s = now_s
        if self._disk.size_bytes < _MUCH_BYTES and now_s - self._full_since_s < _FULL_S:
            return None
        return Passed("room", free_bytes, self._bounds.reserve_bytes)


def as_plain(passed: Passed | None) -> dict[str, Any] | None:
    """Return what stands in an outcome."""
    return None if passed is None else asdict(passed)
