"""Samples of a running job: few, evenly spread however long it runs. Standard library only.

A sample has the fields of the original's `resource_utilization_log` (the machine, as psutil names
them) and `job` (this job alone). What the machine moved over disk and network counts from the
start of the job.
"""

import contextlib
import time
from typing import Any

__all__ = ["SAMPLES_MAX", "Samples"]

SAMPLES_MAX = 60
_EVERY_S = 1.0
_MEMORY = {
    "total": "MemTotal",
    "available": "MemAvailable",
    "free": "MemFree",
    "active": "Active",
    "inactive": "Inactive",
    "buffers": "Buffers",
    "cached": "Cached",
    "shared": "Shmem",
    "slab": "Slab",
}
_SECTOR_BYTES = 512


class Samples:
    """At most SAMPLES_MAX; when there are more, every second goes and the interval doubles."""

    def __init__(self) -> None:
        self.taken: list[dict[str, Any]] = []
        self._every_s = _EVERY_S
        self._next_s = _EVERY_S
        self._cpu = (0, 0)
        self._began: dict[str, dict[str, int]] = {}

    def is_due(self, age_s: float) -> bool:
        """Say whether it is time for one, so many seconds after the start of the job. What the
        machine moves is counted from the first time on: a job that has ended by then needs none."""
        if not self._began:
            self._cpu = _cpu_times()
            self._began = {"disk_io_counters": _disk(), "net_io_counters": _net()}
        return age_s >= self._next_s

    def take(self, age_s: float, job: dict[str, int]) -> None:
        """Take a sample; `job` is what the job uses."""
        if len(self.taken) >= SAMPLES_MAX:
            self.taken = self.taken[1::2]
            self._every_s *= 2
        self._next_s = max(self._next_s + self._every_s, age_s)
        busy, total = self._cpu
        self._cpu = _cpu_times()
        passed = max(1, self._cpu[1] - total)
        counters = {"disk_io_counters": _disk(), "net_io_counters": _net()}
        self.taken.append(
            {
                "timestamp": round(time.time(), 3),
                "cpu": {"percent": round(100 * (self._cpu[0] - busy) / passed, 1)},
                "virtual_memory": _memory(),
                **{
                    name: {key: value - self._began[name].get(key, 0) for key, value in now.items()}
                    for name, now in counters.items()
                },
                "gpu": {"loads": []},
                "job": {"wall_ms": int(age_s * 1000), **job},
            }
        )


def _lines(name: str) -> list[str]:
    with contextlib.suppress(OSError), open(name) as file:
        return file.read().splitlines()
    return []


def _cpu_times() -> tuple[int, int]:
    """Return busy and all ticks of all processors."""
    for line in _lines("/proc/stat")[:1]:
        ticks = [int(value) for value in line.split()[1:9]]
        return sum(ticks) - ticks[3] - ticks[4], sum(ticks)
    return 0, 0


def _memory() -> dict[str, Any]:
    found: dict[str, int] = {}
    for line in _lines("/proc/meminfo"):
        name, _, value = line.partition(":")
        found[name] = int(value.split()[0]) * 1024
    memory: dict[str, Any] = {ours: found.get(theirs, 0) for ours, theirs in _MEMORY.items()}
    used = memory["total"] - memory["available"]
    return {**memory, "used": used, "percent": round(100 * used / max(1, memory["total"]), 1)}


def _disk() -> dict[str, int]:
    """Return what went over all disks, partitions and what lies on other disks not counted."""
    names = ("read_count", "read_bytes", "write_count", "write_bytes")
    found = dict.fromkeys(names, 0)
    for line in _lines("/proc/diskstats"):
        fields = line.split()
        if _is_disk(fields[2]):
            found["read_count"] += int(fields[3])
            found["read_bytes"] += int(fields[5]) * _SECTOR_BYTES
            found["write_count"] += int(fields[7])
            found["write_bytes"] += int(fields[9]) * _SECTOR_BYTES
    return found


def _is_disk(name: str) -> bool:
    if name.startswith(("loop", "ram", "dm-", "md", "zram", "sr")):
        return False
    if name.startswith(("nvme", "mmcblk")):
        return "p" not in name.removeprefix("mmcblk").lstrip("nvme")
    return not name[-1].isdigit()


def _net() -> dict[str, int]:
    """Return what went over all interfaces but loopback."""
    names = ("bytes_recv", "packets_recv", "bytes_sent", "packets_sent")
    found = dict.fromkeys(names, 0)
    for line in _lines("/proc/net/dev")[2:]:
        name, _, values = line.partition(":")
        if name.strip() != "lo":
            fields = [int(value) for value in values.split()]
            for key, at in zip(names, (0, 1, 8, 9), strict=True):
                found[key] += fields[at]
    return found
