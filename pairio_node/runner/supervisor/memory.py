"""Secrets of a job in a container: files in this machine's memory, which the engine mounts into it.

An engine takes files by their paths and in no other way. So they have names for as long as it takes
to start the container, in a folder that nobody else may enter; then the container's mounts alone
hold them, and they are gone with it, however that ends.
"""

import ctypes
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

__all__ = ["MemoryFiles", "remove_memory_files"]

_TMPFS = 0x01021994
_KIND_BYTES = 120


class MemoryFiles:
    """Files in memory, one a value. `paths` by name."""

    def __init__(self, prefix: str, values: Mapping[str, str], owner: int) -> None:
        """Make them for a user, who may read them; `owner` 0: this process' own.

        Raises:
            OSError: no folder of this machine lies in memory.
        """
        self._folder = _in_memory() / f"{prefix}{os.urandom(8).hex()}"
        self._folder.mkdir(mode=0o700)
        self.paths: dict[str, Path] = {}
        try:
            for number, (name, value) in enumerate(values.items()):
                path = self.paths[name] = self._folder / str(number)
                fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o400)
                with open(fd, "wb") as file:
                    file.write(value.encode())
                    if owner:
                        os.fchown(fd, owner, owner)
        except BaseException:
            self.remove()
            raise

    def remove(self) -> None:
        """Take their names away; what is mounted stays where it is."""
        shutil.rmtree(self._folder, ignore_errors=True)


def remove_memory_files(prefix: str) -> None:
    """Remove what a supervisor that was killed while it started a container has left."""
    for folder in _folders():
        for path in folder.glob(f"{prefix}*"):
            if path.lstat().st_uid == os.geteuid():
                shutil.rmtree(path, ignore_errors=True)


def _in_memory() -> Path:
    for folder in _folders():
        if _is_tmpfs(folder) and os.access(folder, os.W_OK):
            return folder
    raise OSError("this machine has no folder in memory (/dev/shm) for the job's secrets")


def _folders() -> list[Path]:
    places = (Path(f"/run/user/{os.geteuid()}"), Path("/dev/shm"))
    return [path for path in places if path.is_dir()]


def _is_tmpfs(folder: Path) -> bool:
    found = ctypes.create_string_buffer(_KIND_BYTES)  # a struct statfs; it begins with its kind
    if ctypes.CDLL(None).statfs(os.fsencode(folder), found) != 0:
        return False
    return int.from_bytes(found.raw[:8], "little", signed=False) == _TMPFS
