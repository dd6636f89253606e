"""A disk without room: a small tmpfs where root may mount one, a limit on file sizes elsewhere."""

import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from tests.integration.chaos.nodes import Node

__all__ = ["mount_small", "no_room", "unmount"]

_SIZE = "48m"


def mount_small(path: Path) -> bool:
    """Mount a small disk at `path`; False when this user may not."""
    if os.geteuid() != 0:
        return False
    path.mkdir(parents=True, exist_ok=True)
    argv = ["mount", "-t", "tmpfs", "-o", f"size={_SIZE},mode=700", "pairio-chaos", str(path)]
    return subprocess.run(argv, capture_output=True, timeout=20).returncode == 0


def unmount(path: Path) -> None:
    """Take the disk away again, if one was mounted."""
    if path.is_mount():
        subprocess.run(["umount", "-l", str(path)], check=True, capture_output=True, timeout=20)


@contextmanager
def no_room(node: Node) -> Iterator[str]:
    """The node's disk is full in the block; gives a word for how that was done."""
    if node.home.is_mount():
        filler = node.home / "filler"
        try:
            _fill(filler)
            yield "tmpfs"
        finally:
            filler.unlink()
        return
    process = psutil.Process(node.pid())
    _, hard = process.rlimit(psutil.RLIMIT_FSIZE)
    process.rlimit(psutil.RLIMIT_FSIZE, (0, hard))
    try:
        yield "file size limit"
    finally:
        process.rlimit(psutil.RLIMIT_FSIZE, (hard, hard))


def _fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        for size in (1024 * 1024, 4096):  # to the last page
            try:
                while True:
                    file.write(bytes(size))
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
