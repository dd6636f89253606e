"""Folders whose new entries are to outlast a power cut.

A file that is synced and then renamed is whole, but its name is only in memory: a power cut may
take it. Syncing the folder each time would double the cost of a block. So folders are noted, and
synced once for all that came since, before anybody is told that it is here.
"""

import os
import threading
from contextlib import suppress
from pathlib import Path
from typing import Final

from pairio_node.errors import StorageFullError

__all__ = ["SyncedFolders", "sync_tree"]

#: File systems with one journal: what commits a change commits all that were made before it.
_ONE_JOURNAL: Final = frozenset({"ext3", "ext4", "xfs"})


class SyncedFolders:
    """Folders that have new entries. Safe to use from any thread."""

    def __init__(self) -> None:
        self._noted: set[Path] = set()
        self._lock = threading.Lock()
        self._syncing = threading.Lock()
        self._has_one_journal: dict[int, bool] = {}  # by device

    def note(self, folder: Path) -> None:
        """A folder has a new entry."""
        with self._lock:
            self._noted.add(folder)

    def settle_sync(self) -> None:
        """Return when all entries that were noted before are on the disk, in a thread.

        Who comes while another is at it waits, and then mostly finds nothing left to do: many who
        end at once share one sync.

        Raises:
            StorageFullError: the disk fails. The folders are tried again by the next call.
        """
        with self._syncing:
            with self._lock:
                folders, self._noted = self._noted, set()
            try:
                self._sync(folders)
            except OSError as error:
                with self._lock:
                    self._noted |= folders
                raise StorageFullError(f"cannot sync a folder: {error.strerror}") from None

    def _sync(self, folders: set[Path]) -> None:
        done: set[int] = set()
        for folder in sorted(folders):
            with suppress(FileNotFoundError):  # one that is gone has no entries
                device = os.stat(folder).st_dev
                if device not in self._has_one_journal:
                    self._has_one_journal[device] = file_system(device) in _ONE_JOURNAL
                if device in done:
                    continue
                if self._has_one_journal[device]:
                    # Syncing a folder commits no later change than its own last one: so make one.
                    change_folder(folder)
                    done.add(device)
                sync_folder(folder)


def change_folder(folder: Path) -> None:
    """Make a change of a folder, after all those before."""
    os.utime(folder)


def sync_folder(folder: Path) -> None:
    """Sync the entries of a folder."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_tree(top: Path) -> None:
    """Sync all files and folders below and with `top`; links are names in their folder. Raises
    OSError: not all of it is on the disk."""
    for folder, _, names in os.walk(top, topdown=False):
        for name in names:
            fd = os.open(os.path.join(folder, name), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
        sync_folder(Path(folder))


def file_system(device: int) -> str:
    """Return the kind of a mounted file system; nothing where that is not known."""
    wanted = f"{os.major(device)}:{os.minor(device)}"
    with suppress(OSError):
        for line in Path("/proc/self/mountinfo").read_text(errors="replace").splitlines():
            fields = line.split(" ")
            if fields[2] == wanted and "-" in fields:
                return fields[fields.index("-") + 1]
    return ""
