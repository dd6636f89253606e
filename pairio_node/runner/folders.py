"""A folder that a job left as an output: only what can be kept, within bounds."""

import os
from pathlib import Path

from pairio_node.blocks.content import DEPTH_MAX, FILES_MAX

__all__ = ["FolderError", "is_utf8", "measure_folder", "plain_files"]


class FolderError(Exception):
    """The folder holds what cannot be kept; says what, by its path in the folder."""


def measure_folder(top: Path) -> int:
    """Return the bytes of all files in a folder. No link is followed.

    Raises:
        FolderError: a link, device, pipe; a name that is not UTF-8; too many, too deep; unreadable.
    """
    size = count = 0
    waiting = [(top, 0)]
    while waiting:
        folder, depth = waiting.pop()
        where = folder.relative_to(top).as_posix()
        if depth > DEPTH_MAX:
            raise FolderError(f"it is deeper than {DEPTH_MAX} folders")
        try:
            entries = list(os.scandir(folder))
        except OSError as error:
            raise FolderError(f"{where!r} cannot be read: {error.strerror}") from None
        for entry in entries:
            inside = f"{where}/{entry.name}".removeprefix("./")
            count += 1
            if count > FILES_MAX:
                raise FolderError(f"it holds more than {FILES_MAX} files")
            if not is_utf8(entry.name):
                raise FolderError(f"{inside!r} is not named in UTF-8")
            if entry.is_dir(follow_symlinks=False):
                waiting.append((Path(entry.path), depth + 1))
            elif entry.is_file(follow_symlinks=False):
                size += entry.stat(follow_symlinks=False).st_size
                if not os.access(entry.path, os.R_OK):
                    raise FolderError(f"{inside!r} cannot be read")
            else:
                raise FolderError(f"{inside!r} is neither file nor folder")
    return size


def plain_files(top: Path) -> list[Path]:
    """Return the regular files in a folder, in order. No link is followed; what lies deeper than a
    folder may be, or comes after as many entries as one may have, is left out."""
    found: list[Path] = []
    waiting = [(top, 0)]
    count = 0
    while waiting and count < FILES_MAX:
        folder, depth = waiting.pop()
        try:
            entries = list(os.scandir(folder))
        except OSError:
            continue
        count += len(entries)
        for entry in entries:
            if entry.is_file(follow_symlinks=False):
                found.append(Path(entry.path))
            elif depth < DEPTH_MAX and entry.is_dir(follow_symlinks=False):
                waiting.append((Path(entry.path), depth + 1))
    return sorted(found)


def is_utf8(name: str) -> bool:
    """Say whether a name on disk can stand in a document."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
