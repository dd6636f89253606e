"""The process tree below one process, from /proc: who is in it, what it uses, how it is ended."""

import contextlib
import os
import signal
from collections.abc import Callable, Iterable
from dataclasses import dataclass

__all__ = [
    "TreeUse",
    "bytes_moved",
    "children",
    "descendants",
    "sandboxes_below",
    "send",
    "shared_out_bytes",
    "stop_all",
    "tree_use",
]

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_TICK_MS = 1000 // os.sysconf("SC_CLK_TCK")
#: Rounds of stopping what forks faster than it is found.
_STOP_ROUNDS = 50


@dataclass(frozen=True)
class TreeUse:
    """What processes use together. Memory counts shared pages for each; CPU time has that of
    children whose ends were taken."""

    memory_bytes: int
    threads: int
    cpu_ms: int


def descendants(pid: int) -> list[int]:
    """Return all processes below `pid`, parents first."""
    found: list[int] = []
    queue = [pid]
    for parent in queue:
        below = children(parent)
        found += below
        queue += below
    return found


def sandboxes_below(pid: int) -> list[int]:
    """Return the sandboxes below `pid`: for each the first process inside, then its own outside.
    With the first inside the system ends all that is inside, also what forks faster than it can be
    found, and nothing new starts there."""
    own = children(pid)
    return [inner for one in own for inner in children(one)] + own


def children(pid: int) -> list[int]:
    """Return the processes whose parent `pid` is."""
    found: list[int] = []
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/children") as file:
                found += map(int, file.read().split())
    except FileNotFoundError:
        if os.path.exists(f"/proc/{pid}/task/{pid}/stat"):  # a kernel without `children`
            return [child for child, parent in _all_parents() if parent == pid]
    except (ProcessLookupError, PermissionError):
        pass  # it has gone
    return found


def _all_parents() -> list[tuple[int, int]]:
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat") as file:
                    found.append((int(name), int(file.read().rpartition(")")[2].split()[1])))
            except (FileNotFoundError, ProcessLookupError):
                continue
    return found


def tree_use(pids: Iterable[int]) -> TreeUse:
    """Return what processes use; those that have gone use nothing."""
    pages = threads = ticks = 0
    for pid in pids:
        with contextlib.suppress(OSError, IndexError):
            with open(f"/proc/{pid}/stat") as file:
                fields = file.read().rpartition(")")[2].split()
            pages += int(fields[21])
            threads += int(fields[17])
            ticks += sum(map(int, fields[11:15]))
    return TreeUse(pages * _PAGE_BYTES, threads, ticks * _TICK_MS)


def shared_out_bytes(pids: Iterable[int]) -> int:
    """Return the memory of processes with shared pages divided among those that share them. Slow
    beside `tree_use`, but four forks of one process are not taken for four times as much."""
    size = 0
    for pid in pids:
        with contextlib.suppress(OSError, ValueError), open(f"/proc/{pid}/smaps_rollup") as file:
            for line in file:
                if line.startswith(("Pss:", "SwapPss:")):
                    size += int(line.split()[1]) * 1024
    return size


def bytes_moved(pid: int) -> tuple[int, int]:
    """Return what a process and those whose ends it took read and wrote, as they asked the system
    for it. Also of one that has ended, until its end is taken."""
    read = written = 0
    with contextlib.suppress(OSError, ValueError), open(f"/proc/{pid}/io") as file:
        for line in file:
            name, _, value = line.partition(":")
            if name == "rchar":
                read = int(value)
            elif name == "wchar":
                written = int(value)
    return read, written


def send(pids: Iterable[int], number: signal.Signals) -> None:
    """Send a signal to processes that may have gone, or that are not ours to end."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def stop_all(tree: Callable[[], list[int]]) -> list[int]:
    """Stop all processes that `tree` gives, also while they start more, and return them: killed one
    by one, those that are left would go on forking."""
    stopped: set[int] = set()
    found = tree()
    for _ in range(_STOP_ROUNDS):
        new = [one for one in found if one not in stopped]
        if not new:
            break
        send(new, signal.SIGSTOP)
        stopped.update(new)
        found = tree()
    return found
