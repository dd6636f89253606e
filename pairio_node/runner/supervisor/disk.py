"""What a job's folder takes on the disk, and its removal, whatever the job made of it.

Folders are entered one name at a time and never through a link, so no depth of folders and no
trick with links leads out of the job's folder or ends the walk. Standard library only.
"""

import contextlib
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["DEPTH_MAX", "DiskUse", "measure", "remove_tree", "unlinked_bytes", "write_whole"]

#: No job needs folders this deep, and each level costs a descriptor while it is looked at.
DEPTH_MAX = 200
_BLOCK_BYTES = 512
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_ALL_RIGHTS = 0o700


@dataclass(frozen=True)
class DiskUse:
    """Bytes on the disk, not the sizes that files claim; files and folders; the deepest level.
    A walk that met more files or levels than it was to look at ends there."""

    size_bytes: int
    files: int
    depth: int


def measure(top: Path, files_max: int) -> DiskUse:
    """Look through a folder in which somebody may be writing."""
    size = files = deepest = 0
    try:
        levels = [_open(os.fspath(top), None)]
    except OSError:
        return DiskUse(0, 0, 0)
    waiting = [_names(levels[0])]
    try:
        while levels:
            name = next(waiting[-1], None)
            if name is None:
                os.close(levels.pop())
                waiting.pop()
                continue
            found = _stat(name, levels[-1])
            if found is None:
                continue
            files += 1
            size += found.st_blocks * _BLOCK_BYTES // max(1, _links(found))
            if files > files_max:
                return DiskUse(size, files, deepest)
            if stat.S_ISDIR(found.st_mode):
                deepest = max(deepest, len(levels))
                if len(levels) >= DEPTH_MAX:
                    return DiskUse(size, files, deepest)
                with contextlib.suppress(OSError):
                    levels.append(_open(name, levels[-1]))
                    waiting.append(_names(levels[-1]))
        return DiskUse(size, files, deepest)
    finally:
        for fd in levels:
            os.close(fd)


def _links(found: os.stat_result) -> int:
    """A file with several names is met as often; a folder's names are its own."""
    return 1 if stat.S_ISDIR(found.st_mode) else found.st_nlink


def _stat(name: str, folder: int) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=folder, follow_symlinks=False)
    except OSError:
        return None  # it has gone


def _names(folder: int) -> Iterator[str]:
    with os.scandir(folder) as entries:
        for entry in entries:
            yield entry.name


def _open(name: str, folder: int | None) -> int:
    """Open a folder, also one that its owner may not read: a job must not hide there."""
    try:
        return os.open(name, _FOLDER, dir_fd=folder)
    except PermissionError:
        _allow(name, folder)
        return os.open(name, _FOLDER, dir_fd=folder)


def _allow(name: str, folder: int | None) -> None:
    """Give the owner all rights to a folder; a link in its place is not followed."""
    fd = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    try:
        os.chmod(f"/proc/self/fd/{fd}", _ALL_RIGHTS)
    finally:
        os.close(fd)


def write_whole(path: str, text: str) -> None:
    """Write a file with as few calls as it takes. Raises OSError when not all of it can be."""
    data = text.encode()
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
    try:
        while data:
            data = data[os.write(fd, data) :]
    finally:
        os.close(fd)


def unlinked_bytes(pids: Iterable[int], device: int) -> int:
    """Return what files of a disk take that processes hold open and that have no name any more."""
    found: dict[int, int] = {}
    for pid in pids:
        with contextlib.suppress(OSError):
            for name in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    file = os.stat(f"/proc/{pid}/fd/{name}")
                    if file.st_dev == device and file.st_nlink == 0:
                        found[file.st_ino] = file.st_blocks * _BLOCK_BYTES
    return sum(found.values())


def remove_tree(path: Path) -> None:
    """Remove a job's folder, also where the job took away the right to do so, and however deep.

    Folders below DEPTH_MAX levels are moved up before they are emptied: no path gets long. What
    cannot be removed stays.
    """
    try:
        top = _open(os.fspath(path), None)
    except NotADirectoryError:
        with contextlib.suppress(OSError):
            path.unlink()  # a link or a file in the place of the folder
        return
    except OSError:
        return
    try:
        waiting = [""]
        while waiting:
            _empty(top, waiting.pop(), waiting)
    finally:
        os.close(top)
    with contextlib.suppress(OSError):
        path.rmdir()


def _empty(top: int, name: str, waiting: list[str]) -> None:
    """Empty and remove a folder in `top`, or empty `top` itself (no name); what lies too deep is
    moved to `top` and named in `waiting`."""
    try:
        levels = [(name, os.dup(top) if not name else _open(name, top))]
    except OSError:
        return
    names = [_removable(levels[-1][1])]
    while levels:
        folder = levels[-1][1]
        if not names[-1]:
            os.close(folder)
            done = levels.pop()[0]
            names.pop()
            with contextlib.suppress(OSError):
                if done:
                    os.rmdir(done, dir_fd=levels[-1][1] if levels else top)
            continue
        inner = names[-1].pop()
        if _removed(inner, folder):
            continue
        with contextlib.suppress(OSError):
            if len(levels) < DEPTH_MAX:
                levels.append((inner, _open(inner, folder)))
                names.append(_removable(levels[-1][1]))
            else:
                _allow(inner, folder)  # to move a folder one must be allowed to write in it
                above = f".{os.urandom(8).hex()}"  # nothing that a job could have put in the way
                os.rename(inner, above, src_dir_fd=folder, dst_dir_fd=top)
                waiting.append(above)


def _removable(folder: int) -> list[str]:
    """Return what lies in a folder, after taking the right to remove it."""
    with contextlib.suppress(OSError):
        os.fchmod(folder, _ALL_RIGHTS)
    return list(_names(folder))


def _removed(name: str, folder: int) -> bool:
    """Remove a file or an empty folder; say whether it is gone, or never will be."""
    try:
        os.unlink(name, dir_fd=folder)
    except IsADirectoryError:
        pass
    except FileNotFoundError:
        return True
    except PermissionError:
        if not _is_folder(name, folder):
            return True
    except OSError:
        return True
    else:
        return True
    try:
        os.rmdir(name, dir_fd=folder)
    except OSError:
        return False
    return True


def _is_folder(name: str, folder: int) -> bool:
    found = _stat(name, folder)
    return found is not None and stat.S_ISDIR(found.st_mode)
