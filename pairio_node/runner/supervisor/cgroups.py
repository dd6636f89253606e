"""Control groups of jobs: memory, CPU and processes of all that a job starts, held by the kernel.

Version 2 where the node's own group is delegated to it (a service with `Delegate=yes`), version 1
where its groups can be written to (root). Standard library only. A job's group lies below the
node's, so that what holds for the node holds for its jobs, too.
"""

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "CgroupUsage",
    "Delegation",
    "JobCgroup",
    "delegation",
    "groups_of",
    "probe",
    "remove_named",
]

_PREFIX = "pairio-job-"
#: Where a node of version 2 sits itself: a group with processes of its own gives nothing on.
_NODE_LEAF = "pairio-node"
_CONTROLLERS = ("memory", "cpu", "cpuacct", "pids")
_PERIOD_US = 100_000
#: The kernel counts memory in larger pieces than it gives out.
_CHARGED_BYTES = 2**20
#: A group whose last process has just ended may be busy for a moment.
_REMOVE_S = 2.0
_READ_BYTES = 65536
_HINT = (
    "run the node as a service with `Delegate=cpu memory pids`, or by"
    " `systemd-run --user --scope -p Delegate=yes pairio-node run`"
)


@dataclass(frozen=True)
class Delegation:
    """Where groups of jobs can be made: the folder above them by controller. In version 2 all are
    one folder."""

    version: int
    parents: dict[str, str]


@dataclass(frozen=True)
class CgroupUsage:
    """What a group uses now, and used in all. None: the kernel does not say."""

    cpu_ms: int | None = None
    memory_bytes: int | None = None
    processes: int | None = None


def probe(proc: Path = Path("/proc")) -> tuple[str, str, str]:
    """Return what holds the memory of jobs, and if it is not a control group, why, and what to do:
    ("cgroup", "", "") or ("watchdog", why, hint). Leaves nothing behind."""
    try:
        found = delegation(proc, prepare=False)
        if found.version == 1:
            JobCgroup.create(found, f"probe-{os.getpid()}").remove()
    except OSError as error:
        return "watchdog", str(error), _HINT
    return "cgroup", "", ""


def delegation(proc: Path = Path("/proc"), *, prepare: bool = True) -> Delegation:
    """Find where this process may make groups. In version 2 `prepare` moves the node into a group
    of its own below its present one.

    Raises:
        OSError: nowhere; says why.
    """
    own = _own_groups(proc)
    mounts = _mounts(proc)
    parents = {c: str(mounts[c] / own[c]) for c in _CONTROLLERS if c in mounts and c in own}
    if "memory" in parents:
        for controller in list(parents):
            if not os.access(parents[controller], os.W_OK):
                del parents[controller]
        if "memory" not in parents:
            raise PermissionError("control groups (version 1) are not writable for this user")
        return Delegation(1, parents)
    if "" not in mounts or "" not in own:
        raise FileNotFoundError("this system has no control groups")
    return _version_2(mounts[""] / own[""], proc, prepare)


def groups_of(pid: int, proc: Path = Path("/proc")) -> "JobCgroup | None":
    """Return the groups that another process is in, to look at; None where they are not seen."""
    try:
        groups, mounts = _own_groups(proc, str(pid)), _mounts(proc)
    except OSError:
        return None
    found = {c: str(mounts[c] / groups[c]) for c in _CONTROLLERS if c in mounts and c in groups}
    if "memory" in found:
        return JobCgroup(1, found) if os.path.isdir(found["memory"]) else None
    if "" not in mounts or not (mounts[""] / groups.get("", "") / "memory.events").is_file():
        return None
    return JobCgroup(2, dict.fromkeys(("memory", "cpu", "pids"), str(mounts[""] / groups[""])))


def _own_groups(proc: Path, who: str = "self") -> dict[str, str]:
    """Return the group of a process by controller; "" is version 2."""
    found: dict[str, str] = {}
    for line in (proc / who / "cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            found[controller] = path.lstrip("/")
    return found


def _mounts(proc: Path) -> dict[str, Path]:
    """Return where control groups are mounted by controller; "" is version 2."""
    found: dict[str, Path] = {}
    for line in (proc / "self" / "mounts").read_text().splitlines():
        _, where, kind, options, *_ = line.split(" ")
        if kind == "cgroup2":
            found.setdefault("", Path(where))
        elif kind == "cgroup":
            for option in options.split(","):
                if option in _CONTROLLERS:
                    found.setdefault(option, Path(where))
    return found


def _version_2(own: Path, proc: Path, prepare: bool) -> Delegation:
    top = own.parent if own.name == _NODE_LEAF else own
    try:
        controllers = (top / "cgroup.controllers").read_text().split()
    except OSError as error:
        raise OSError(f"the node's control group cannot be read: {error.strerror}") from None
    if not {"memory", "pids"} <= set(controllers):
        raise OSError("the node's control group has no memory controller")
    files = [top, *(top / name for name in ("cgroup.procs", "cgroup.subtree_control"))]
    if not all(os.access(path, os.W_OK) for path in files):
        raise PermissionError("the node's control group is not delegated to this user")
    inside = [int(pid) for pid in (top / "cgroup.procs").read_text().split()]
    mine = _family(proc)
    if not set(inside) <= mine:
        raise OSError("the node's control group has processes that are not the node's")
    if prepare:
        leaf = top / _NODE_LEAF
        leaf.mkdir(exist_ok=True)
        for pid in inside:
            with contextlib.suppress(ProcessLookupError):
                _put(leaf / "cgroup.procs", str(pid))
        wanted = [c for c in ("memory", "cpu", "pids") if c in controllers]
        _put(top / "cgroup.subtree_control", " ".join(f"+{c}" for c in wanted))
    return Delegation(2, {c: str(top) for c in ("memory", "cpu", "pids") if c in controllers})


def _family(proc: Path) -> set[int]:
    """Return this process, those it descends from, and its children: what a node's group holds."""
    found = {os.getpid()}
    pid = os.getpid()
    while pid > 1:
        try:
            pid = int((proc / str(pid) / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            break
        found.add(pid)
    for entry in proc.iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                stat = (entry / "stat").read_text().rpartition(")")[2].split()
                if int(stat[1]) in (os.getpid(), os.getppid()) and int(stat[1]) > 1:
                    found.add(int(entry.name))
    return found


class JobCgroup:
    """The groups of one job. Whoever makes it removes it; the job's first process enters it before
    it runs the job's program, and all that it starts is in it."""

    def __init__(self, version: int, folders: dict[str, str]) -> None:
        self._version = version
        self.folders = {controller: Path(folder) for controller, folder in folders.items()}

    @staticmethod
    def create(
        found: Delegation,
        name: str,
        *,
        memory_bytes: int = 0,
        cpu_millicores: int = 0,
        processes_max: int = 0,
    ) -> "JobCgroup":
        """Make the groups; 0 means no bound.

        Raises:
            OSError: the kernel refuses; nothing is left behind.
        """
        folders = {c: f"{parent}/{_PREFIX}{name}" for c, parent in found.parents.items()}
        made = JobCgroup(found.version, folders)
        try:
            for folder in dict.fromkeys(made.folders.values()):
                folder.mkdir()
            made.bound(memory_bytes, cpu_millicores, processes_max)
        except OSError:
            made.remove()
            raise
        return made

    def bound(self, memory_bytes: int, cpu_millicores: int, processes_max: int) -> None:
        """Set the bounds; 0 means none."""
        if memory_bytes:
            self._bound_memory(memory_bytes)
        if cpu_millicores:
            self._bound_cpu(cpu_millicores)
        if processes_max and "pids" in self.folders:
            _put(self.folders["pids"] / "pids.max", str(processes_max))

    def _bound_memory(self, size_bytes: int) -> None:
        """Bound memory and swap together: what is swapped out is still the job's."""
        folder = self.folders["memory"]
        if self._version == 1:
            swap_too = folder / "memory.memsw.limit_in_bytes"
            # Never below memory: a bound that was lower is in the way.
            _put_if_there(swap_too, "-1")
            _put(folder / "memory.limit_in_bytes", str(size_bytes))
            _put_if_there(swap_too, str(size_bytes))
        else:
            _put(folder / "memory.max", str(size_bytes))
            _put_if_there(folder / "memory.swap.max", "0")
            _put_if_there(folder / "memory.oom.group", "1")

    def _bound_cpu(self, millicores: int) -> None:
        if not self.bounds_cpu:
            return
        folder = self.folders["cpu"]
        quota_us = max(1000, millicores * _PERIOD_US // 1000)
        if self._version == 1:
            _put(folder / "cpu.cfs_period_us", str(_PERIOD_US))
            _put(folder / "cpu.cfs_quota_us", str(quota_us))
        else:
            _put(folder / "cpu.max", f"{quota_us} {_PERIOD_US}")

    @property
    def bounds_cpu(self) -> bool:
        """Say whether the kernel can bound CPU time by group."""
        name = "cpu.cfs_quota_us" if self._version == 1 else "cpu.max"
        return "cpu" in self.folders and (self.folders["cpu"] / name).exists()

    def as_plain(self) -> dict[str, object]:
        """Return what `remove_named` takes."""
        return {"version": self._version, "folders": {c: str(f) for c, f in self.folders.items()}}

    @property
    def _each(self) -> Iterator[Path]:
        return iter(dict.fromkeys(self.folders.values()))

    def enter(self, *pids: int) -> None:
        """Put processes into the job's groups; none named: the calling one."""
        for folder in self._each:
            _put(folder / "cgroup.procs", *map(str, pids or (0,)))

    def processes(self) -> list[int]:
        """Return what is in the group. What this process cannot name (0) is left out: to the
        kernel 0 is whoever calls."""
        found = {int(n) for f in self._each for n in _read(f / "cgroup.procs").split()}
        return sorted(found - {0})

    def usage(self) -> CgroupUsage:
        """Return what the job uses. Memory is what cannot be had back by writing it to files: not
        the cache of files, but files in memory."""
        return CgroupUsage(self.cpu_ms(), self._memory_bytes(), self._processes())

    def cpu_ms(self) -> int | None:
        """Return what CPU time all that was ever in the group has used."""
        if self._version == 2:
            used_us = _field(_read(self.folders["memory"] / "cpu.stat"), "usage_usec")
            return None if used_us is None else used_us // 1000
        if "cpuacct" not in self.folders:
            return None
        used = _read(self.folders["cpuacct"] / "cpuacct.usage")
        return int(used) // 1_000_000 if used else None

    def _memory_bytes(self) -> int | None:
        folder, old = self.folders["memory"], self._version == 1
        used = _read(folder / ("memory.usage_in_bytes" if old else "memory.current"))
        stat = _read(folder / "memory.stat")
        cache = _field(stat, "total_cache" if old else "file")
        if not used or cache is None:
            return None
        shared = _field(stat, "total_shmem" if old else "shmem") or 0
        return max(0, int(used) - cache + shared)

    def _processes(self) -> int | None:
        count = _read(self.folders["pids"] / "pids.current") if "pids" in self.folders else ""
        return int(count) if count else None

    def oom_kills(self) -> int:
        """Return how many processes the kernel ended since the job was at its memory bound. One is
        the job's failure: what is left of it may go on as if nothing were."""
        name = "memory.oom_control" if self._version == 1 else "memory.events"
        return _field(_read(self.folders["memory"] / name), "oom_kill") or 0

    def met_its_memory(self) -> bool:
        """Say whether the job ever was at its own bound: else whoever ended its processes did so
        because the machine, or a group above, had no memory left."""
        folder = self.folders["memory"]
        if self._version == 2:
            return bool(_field(_read(folder / "memory.events"), "oom"))
        # Not `failcnt`: newer kernels leave it at 0.
        for name in ("memory", "memory.memsw"):
            peak = _read(folder / f"{name}.max_usage_in_bytes")
            most = _read(folder / f"{name}.limit_in_bytes")
            if peak.isdigit() and most.isdigit() and int(peak) + _CHARGED_BYTES >= int(most):
                return True
        return False

    def refused_processes(self) -> int:
        """Return how many starts of processes or threads were refused at the job's bound. A kernel
        may count here what a group above refused; the job had fewer then."""
        if "pids" not in self.folders:
            return 0
        folder = self.folders["pids"]
        refused = _field(_read(folder / "pids.events"), "max")
        if not refused:
            return 0
        peak, most = _read(folder / "pids.peak"), _read(folder / "pids.max")
        own = not (peak.isdigit() and most.isdigit() and int(peak) < int(most))
        return refused if own else 0

    def kill_all(self) -> bool:
        """Kill all that is in the group; nothing new starts in it. Says whether any was there."""
        if "pids" in self.folders:
            _put_if_there(self.folders["pids"] / "pids.max", "0")
        if self._version == 2:
            _put_if_there(self.folders["memory"] / "cgroup.kill", "1")
        found = self.processes()
        for pid in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        return bool(found)

    def remove(self) -> None:
        """Remove the groups. What is still in them is killed; what cannot be killed stays there."""
        gives_up_s = time.monotonic() + _REMOVE_S
        for folder in self._each:
            while True:
                try:
                    folder.rmdir()
                except FileNotFoundError:
                    break
                except OSError:
                    if time.monotonic() > gives_up_s:
                        break
                    self.kill_all()
                    time.sleep(0.005)
                else:
                    break


def remove_named(version: int, folders: dict[str, str]) -> None:
    """Remove groups that a supervisor left when it was killed, and what runs in them. Folders that
    are no job's group are left alone."""
    mine = {c: f for c, f in folders.items() if Path(f).name.startswith(_PREFIX)}
    mine = {c: f for c, f in mine.items() if Path(f, "cgroup.procs").is_file()}
    if "memory" in mine:
        group = JobCgroup(version, mine)
        group.kill_all()
        group.remove()


def _read(path: Path) -> str:
    """Return what the kernel says there, "" when it has no such file: it is read at the end of
    each job, so with as few calls as it takes."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        data = b""
        while more := os.read(fd, _READ_BYTES):
            data += more
        return data.decode().strip()
    except OSError:
        return ""
    finally:
        os.close(fd)


def _field(text: str, name: str) -> int | None:
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        if key == name:
            return int(value)
    return None


def _put(path: Path, *texts: str) -> None:
    """Write each in one call: each write is a command to the kernel."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        for text in texts:
            os.write(fd, text.encode())
    finally:
        os.close(fd)


def _put_if_there(path: Path, text: str) -> None:
    """Write where this kernel has the file; what it refuses is not needed."""
    with contextlib.suppress(OSError):
        _put(path, text)
