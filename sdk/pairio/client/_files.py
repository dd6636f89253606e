"""Files that are written here: beside their place until they are whole. Standard library."""

import os
import secrets
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from pairio.errors import PairioError

__all__ = ["Part", "plain_name"]


def plain_name(name: str) -> str:
    """Return a name that others gave if it is one of a file in a folder.

    Raises:
        PairioError: it leads elsewhere.
    """
    if name in ("", ".", "..") or any(c in name for c in "/\0\\"):
        raise PairioError(
            f"{name[:100]!r} is no name for a file here", "give download() a path of your own"
        )
    return name


class Part:
    """A file that comes to stand in its place when `keep` is called, else is gone."""

    def __init__(self, target: Path) -> None:
        self._target = target
        self._path = target.with_name(f".{target.name[:200]}.{secrets.token_hex(4)}.part")
        self._file: BinaryIO | None = None
        self._is_kept = False

    def __enter__(self) -> "Part":
        fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        self._file = os.fdopen(fd, "wb")
        return self

    def write(self, data: bytes) -> None:
        """Write more."""
        assert self._file is not None
        self._file.write(data)

    def keep(self) -> None:
        """It is whole."""
        self._is_kept = True

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._file is not None
        self._file.close()
        if self._is_kept:
            self._path.replace(self._target)
        else:
            self._path.unlink(missing_ok=True)
