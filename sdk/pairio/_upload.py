"""Files and folders of this machine, made content of the node. Standard library only."""

import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from pairio._http import Api
from pairio.errors import PairioError

__all__ = ["add_bytes", "add_path", "add_reference"]

_FILES_MAX = 50_000
_HINT = "give a file or folder of this machine that you may read"


def add_path(api: Api, path: Path) -> dict[str, Any]:
    """Add a file or a folder to the node; returns `{cid, size}`.

    Raises:
        PairioError: there is none, or a folder holds what is neither file nor folder.
    """
    if path.is_dir():
        return _add_folder(api, path)
    with _opened(path) as file:
        added: dict[str, Any] = api.upload(file)
    return added


def add_bytes(api: Api, data: bytes) -> dict[str, Any]:
    """Add bytes to the node; returns `{cid, size}`."""
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.seek(0)
        added: dict[str, Any] = api.upload(file)
        return added


def add_reference(
    api: Api, path: Path, on_progress: Callable[[int, bool], None] | None = None
) -> dict[str, Any]:
    """Let the node hash a file or folder of its machine where it lies; returns `{cid, size, before,
    ...}`. `on_progress` is told the bytes read so far, and at the end that it is over.

    Raises:
        RequestRefused: it cannot be read, or changed meanwhile.
    """
    body = {"path": str(path.absolute()), "waitSec": 1 if on_progress else 30}
    was_told = False
    while True:
        answer: dict[str, Any] = api.call("POST", "/api/v1/content/references", body)
        if answer["state"] == "done":
            if on_progress and was_told:
                on_progress(answer["size"], True)
            return answer
        if on_progress:
            on_progress(answer["readBytes"], False)
            was_told = True


def _add_folder(api: Api, top: Path) -> dict[str, Any]:
    found = list(islice(_walk(top), _FILES_MAX + 1))  # nothing is sent before all may be
    if len(found) > _FILES_MAX:
        raise PairioError(f"{top} holds more than {_FILES_MAX} files", "put them into an archive")
    entries: list[dict[str, str | None]] = []
    for path, is_folder in found:
        name = path.relative_to(top).as_posix()
        cid = None if is_folder else add_path(api, path)["cid"]
        entries.append({"path": name, "cid": cid})
    added: dict[str, Any] = api.call("POST", "/api/v1/content/folders", {"entries": entries})
    return added


def _walk(folder: Path) -> Iterator[tuple[Path, bool]]:
    """Yield (path, whether it is an empty folder) of all files and empty folders, by name."""
    try:
        found = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise PairioError(f"cannot read {folder}: {error.strerror}", _HINT) from None
    for entry in found:
        path = Path(entry.path)
        try:
            entry.name.encode()
        except UnicodeEncodeError:
            raise PairioError(f"{str(path)!r} is not named in UTF-8", "rename it") from None
        if entry.is_symlink():
            raise PairioError(f"{path} is a symbolic link", "copy what it points to")
        if entry.is_file():
            yield path, False
        elif not entry.is_dir():
            raise PairioError(f"{path} is neither file nor folder", _HINT)
        elif os.listdir(path):
            yield from _walk(path)
        else:
            yield path, True


def _opened(path: Path) -> Any:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe would be waited for
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise PairioError(f"{path} is neither file nor folder", _HINT)
        return os.fdopen(fd, "rb")
    except OSError as error:
        raise PairioError(f"cannot read {path}: {error.strerror}", _HINT) from None
