"""The process tree below one process, from /proc: who is in it, what it holds, how it is ended."""

import os
import signal
from pathlib import Path

__all__ = ["descendants", "remove_tree", "resident_bytes", "send"]

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def descendants(pid: int) -> list[int]:
    """Return all processes below `pid`, parents first."""
    found: list[int] = []
    queue = [pid]
    for parent in queue:
        children = _children(parent)
        found += children
        queue += children
    return found


def _children(pid: int) -> list[int]:
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


def resident_bytes(pids: list[int]) -> int:
    """Return the memory that processes hold, shared pages counted for each."""
    pages = 0
    for pid in pids:
        try:
            with open(f"/proc/{pid}/statm") as file:
                pages += int(file.read().split()[1])
        except (FileNotFoundError, ProcessLookupError, IndexError):
            continue  # it has gone
    return pages * _PAGE_BYTES


def send(pids: list[int], number: signal.Signals) -> None:
    """Send a signal to processes that may have gone, or that are not ours to end."""
    for pid in pids:
        try:
            os.kill(pid, number)
        except (ProcessLookupError, PermissionError):
            continue


def remove_tree(path: Path) -> None:
    """Remove a job's folder, also where the job took away the right to do so."""
    import shutil

    for folder, names, _ in os.walk(path):
        for name in names:
            inner = os.path.join(folder, name)
            if not os.path.islink(inner):
                os.chmod(inner, 0o700)
    shutil.rmtree(path, ignore_errors=True)
