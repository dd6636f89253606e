"""The files of a job in a container: what is mounted where, and that its user may read it."""

import errno
import os
import shutil
import sys
import sysconfig
from pathlib import Path
from typing import Final

from pairio_node.runner.base import RunSpec
from pairio_node.runner.container.body import Mount, is_safe_path
from pairio_node.runner.mounts import let_read
from pairio_node.runner.process import sdk_root

__all__ = ["job_mounts", "system_mounts"]

_OWN_INPUTS: Final = "/data"
_DISK_PERCENT_MAX: Final = 90


def job_mounts(spec: RunSpec, user_ids: str) -> list[Mount]:
    """Return the mounts of the work folder, the inputs and the SDK, made readable for the
    job's user."""
    user = int(user_ids.partition(":")[0])
    is_other = user != os.geteuid()
    folder = spec.work_dir / "in"
    mounts = [Mount(spec.work_dir / "tmp", "/tmp", is_writable=True)]
    for number, file in enumerate(spec.inputs):
        place = folder / str(number) / file.base_name
        if file.path == place or not file.is_here:
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        if is_safe_path(file.path) and not (is_other and not _is_open(file.path)):
            place.symlink_to(f"{_OWN_INPUTS}/{number}")
            mounts.append(Mount(file.path, f"{_OWN_INPUTS}/{number}"))
        else:
            _copy(file.path, place)
    if folder.exists():
        mounts.append(Mount(folder, "/in"))
    mounts.append(Mount(sdk_root() / "pairio", "/opt/pairio/sdk/pairio"))
    if is_other:
        let_read(spec.bundle)
        if folder.exists():
            let_read(folder)
        _give(spec.work_dir / "tmp", user)
    return mounts


def system_mounts(*, with_packages: bool = True) -> list[Mount]:
    """Return this machine's own system, for what runs without an image."""
    mounts = [Mount(Path("/usr"), "/usr")]
    folders = (Path("/", name) for name in ("bin", "lib", "lib64", "sbin"))
    shown = [path for path in folders if path.exists() and not path.is_symlink()]
    shown += [
        path for path in (Path("/etc/ld.so.cache"), Path("/etc/alternatives")) if path.exists()
    ]
    mounts += [Mount(path, str(path)) for path in shown]
    if not sys.base_prefix.startswith("/usr"):
        mounts.append(Mount(Path(sys.base_prefix), "/opt/pairio/python"))
    if with_packages:
        mounts.append(Mount(Path(sysconfig.get_paths()["purelib"]), "/opt/pairio/site"))
    return mounts


def _is_open(path: Path) -> bool:
    """Say whether everybody may read a file, or a folder with all in it."""
    everything = [path, *path.rglob("*")] if path.is_dir() else [path]
    return all(
        entry.is_symlink() or entry.stat().st_mode & (0o005 if entry.is_dir() else 0o004)
        for entry in everything
    )


def _copy(source: Path, target: Path) -> None:
    """Copy an input that cannot be mounted.

    Raises:
        OSError: there is no room.
    """
    files = [source] if source.is_file() else [f for f in source.rglob("*") if f.is_file()]
    size = sum(file.stat().st_size for file in files)
    if size > shutil.disk_usage(target.parent).free * _DISK_PERCENT_MAX // 100:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
    if source.is_file():
        shutil.copyfile(source, target)
    else:
        shutil.copytree(source, target, symlinks=True)


def _give(top: Path, user: int) -> None:
    for folder, names, files in os.walk(top):
        for name in (*names, *files):
            os.lchown(os.path.join(folder, name), user, user)
    os.lchown(top, user, user)
