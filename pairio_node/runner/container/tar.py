"""Reads the headers of a tar file from whoever made it: one pass, nothing unpacked, all bounded.

`tarfile` of the standard library takes a header of any length into memory, and is not meant for
files that were made to harm.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

__all__ = ["TarEntry", "TarError", "read_entries"]

BLOCK_BYTES: Final = 512
_EXTENSION_BYTES_MAX: Final = 1024 * 1024
_PIECE_BYTES: Final = 1024 * 1024
#: Regular file, hard link, symbolic link, character and block device, folder, pipe, contiguous.
_KINDS: Final = b"\0" + b"01234567"
_BIG: Final = 0x80


class TarError(Exception):
    """It is no tar file, or one that is not read; says why."""


@dataclass(frozen=True)
class TarEntry:
    """One file of an archive. `kind` is the type's character; `offset` is where its data begins."""

    name: str
    kind: str
    link: str
    size_bytes: int
    offset: int

    @property
    def is_file(self) -> bool:
        """Whether it is a regular file."""
        return self.kind in "07"


def read_entries(
    read: Callable[[int], bytes],
    skip: Callable[[int], None] | None = None,
    entries_max: int = 1_000_000,
) -> Iterator[TarEntry]:
    """Yield the entries of a tar file in their order. `read(n)` gives up to n bytes; `skip(n)`
    passes over data without reading them, where that is possible.

    Raises:
        TarError: cut off, a wrong checksum, a sparse file, a name that leads out, too many.
    """
    reader = _Reader(read, skip)
    said: dict[str, str] = {}
    count = 0
    while (head := reader.block()) is not None:
        kind = chr(head[156])
        size = _number(head[124:136])
        if kind in "xgLK":
            if size > _EXTENSION_BYTES_MAX:
                raise TarError(f"an extended header of {size} bytes")
            data = reader.data(size)
            if kind != "g":
                said |= _extended(kind, data)
            continue
        entry = _entry(head, kind, said, size, reader.offset)
        said = {}
        count += 1
        if count > entries_max:
            raise TarError(f"more than {entries_max} entries")
        yield entry
        reader.pass_over(entry.size_bytes)
    if said:
        raise TarError("it ends after an extended header")


class _Reader:
    def __init__(self, read: Callable[[int], bytes], skip: Callable[[int], None] | None) -> None:
        self._read = read
        self._skip = skip
        self.offset = 0

    def block(self) -> bytes | None:
        """Return the next header; None at the end: that of the file, or a block of zeros."""
        head = self._exactly(BLOCK_BYTES, may_end=True)
        if not head or head == bytes(BLOCK_BYTES):
            return None
        _check(head)
        return head

    def data(self, size: int) -> bytes:
        """Return what follows a header."""
        data = self._exactly(size)
        self._exactly(-size % BLOCK_BYTES)
        return data

    def pass_over(self, size: int) -> None:
        """Go to the next header."""
        left = size + -size % BLOCK_BYTES
        if self._skip is not None:
            self._skip(left)
            self.offset += left
            return
        while left:
            left -= len(self._exactly(min(left, _PIECE_BYTES)))

    def _exactly(self, size: int, may_end: bool = False) -> bytes:
        data = b""
        while len(data) < size:
            piece = self._read(size - len(data))
            if not piece:
                break
            data += piece
        self.offset += len(data)
        if len(data) < size and not (may_end and not data):
            raise TarError("it is cut off")
        return data


def _check(head: bytes) -> None:
    told = _number(head[148:156])
    if told != sum(head[:148]) + 8 * ord(" ") + sum(head[156:]):
        raise TarError("it is no tar file, or damaged: a header's checksum is wrong")


def _number(field: bytes) -> int:
    if field[0] & _BIG:  # base 256, for what does not fit into octal digits
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    text = field.rstrip(b"\0 ").lstrip(b" ")
    try:
        return int(text, 8) if text else 0
    except ValueError:
        raise TarError("it is no tar file, or damaged: a header lacks a number") from None


def _extended(kind: str, data: bytes) -> dict[str, str]:
    if kind in "LK":
        key = "path" if kind == "L" else "linkpath"
        return {key: data.rstrip(b"\0").decode(errors="surrogateescape")}
    found: dict[str, str] = {}
    at = 0
    while at < len(data):
        digits, space, _ = data[at : at + 20].partition(b" ")
        if not space or not digits.isdigit() or not len(digits) < int(digits) <= len(data) - at:
            raise TarError("an extended header that cannot be read")
        line = data[at + len(digits) + 1 : at + int(digits)]
        keyword, _, value = line.rstrip(b"\n").partition(b"=")
        found[keyword.decode(errors="replace")] = value.decode(errors="surrogateescape")
        at += int(digits)
    return found


def _entry(head: bytes, kind: str, said: dict[str, str], size: int, offset: int) -> TarEntry:
    if head[156] not in _KINDS or any(key.startswith("GNU.sparse") for key in said):
        raise TarError(f"an entry of a kind that is not taken ({kind!r}): sparse, or unknown")
    name = said.get("path") or _name(head)
    if ".." in name.split("/") or "\0" in name:
        raise TarError(f"a name that leads out of it: {name[:100]!r}")
    if "size" in said:
        if not said["size"].isdigit() or len(said["size"]) > 19:
            raise TarError("a size that is no number")
        size = int(said["size"])
    kind = "0" if kind == "\0" else kind
    size = size if kind in "07" else 0
    if size and name.endswith("/"):
        raise TarError(f"a folder with content: {name[:100]!r}")  # readers differ about these
    return TarEntry(name, kind, said.get("linkpath") or _text(head[157:257]), size, offset)


def _name(head: bytes) -> str:
    name = _text(head[:100])
    prefix = _text(head[345:500]) if head[257:263] == b"ustar\0" else ""
    return f"{prefix}/{name}" if prefix else name


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode(errors="surrogateescape")
