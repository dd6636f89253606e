"""The console of a job in one bounded file: what came first and what came last.

Layout: 8 bytes (how many bytes the job wrote in all, big-endian), the head, a ring with the tail.
Readable while the job runs; a reader may see the newest piece half written.
"""

import errno
import json
import os
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "HEAD_BYTES",
    "HELD_BYTES",
    "PIECE_BYTES",
    "TAIL_BYTES",
    "ConsoleReader",
    "ConsoleWriter",
    "Piece",
    "follow",
    "read_console",
]

HEAD_BYTES = 512 * 1024
TAIL_BYTES = 512 * 1024
#: What is added at once; while it is written, so much of the ring is neither old nor new.
PIECE_BYTES = 64 * 1024
#: More, as JSON, is not held: this much fits, beside most cards, into the first block of a run
#: file, and so onto a disk that has become full since.
HELD_BYTES = 1024
_COUNT_BYTES = 8


class ConsoleWriter:
    """Writes the file. A full disk loses output, never the job; `lost_bytes` says how much. With
    `hold` there is none before `show`, or before much was written: as long as `held` is not None,
    it is all that the job wrote."""

    def __init__(self, path: Path, *, hold: bool = False) -> None:
        self._path = path
        self._fd = -1
        self._total = 0
        self.lost_bytes = 0
        self.held: bytes | None = b"" if hold else None
        if not hold:
            self._open()

    def add(self, data: bytes) -> None:
        """Append what the job wrote, by at most PIECE_BYTES."""
        if self.held is not None and _json_bytes(self.held + data) <= HELD_BYTES:
            self.held += data
            return
        self.show()
        for at in range(0, len(data), PIECE_BYTES):
            self._add(data[at : at + PIECE_BYTES])

    def show(self) -> None:
        """Let others read it from now on."""
        if self.held is not None:
            held, self.held = self.held, None
            self._add(held)

    def _add(self, data: bytes) -> None:
        try:
            if self._fd < 0:
                self._open()
            self._put(data)
            total = self._total + len(data)
            os.pwrite(self._fd, total.to_bytes(_COUNT_BYTES, "big"), 0)
        except OSError:
            self.lost_bytes += len(data)
        else:
            self._total = total

    def _open(self) -> None:
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        os.pwrite(self._fd, bytes(_COUNT_BYTES), 0)

    def _put(self, data: bytes) -> None:
        at = self._total
        for piece, offset in _pieces(at, at + len(data)):
            part = data[piece.start - at : piece.stop - at]
            if os.pwrite(self._fd, part, _COUNT_BYTES + offset) < len(part):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _json_bytes(data: bytes) -> int:
    return len(json.dumps(data[: HELD_BYTES + 1].decode("latin-1")))


def _pieces(start: int, stop: int) -> list[tuple[range, int]]:
    """Return where the bytes [start, stop) of the output lie, without those that the ring has
    overwritten by `stop`: (range of the output, offset behind the count)."""
    found = []
    if start < HEAD_BYTES:
        found.append((range(start, min(stop, HEAD_BYTES)), start))
    at = max(start, HEAD_BYTES, stop - TAIL_BYTES)
    while at < stop:
        offset = (at - HEAD_BYTES) % TAIL_BYTES
        end = min(stop, at + TAIL_BYTES - offset)
        found.append((range(at, end), HEAD_BYTES + offset))
        at = end
    return found


def read_console(path: Path) -> bytes:
    """Return head and tail, with a line between them that says how much was left out."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return b""
    try:
        total = _total(fd)
        parts, known = [], 0
        for piece, offset in _pieces(0, total):
            if piece.start > known:
                parts.append(f"\n[{piece.start - known} bytes left out]\n".encode())
            parts.append(os.pread(fd, len(piece), _COUNT_BYTES + offset))
            known = piece.stop
        return b"".join(parts)
    finally:
        os.close(fd)


@dataclass(frozen=True)
class Piece:
    """What a job wrote from somewhere on: `next_offset` is where to go on, `skipped_bytes` how much
    before `data` is no longer there."""

    data: bytes
    next_offset: int
    skipped_bytes: int


class ConsoleReader:
    """Reads the file while it grows, and to its end when it is removed meanwhile.

    Raises:
        OSError: there is no file (yet).
    """

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    @property
    def total(self) -> int:
        """How many bytes the job has written."""
        return _total(self._fd)

    def read(self, offset: int, limit_bytes: int = PIECE_BYTES) -> Piece:
        """Return what a job wrote from `offset` of its output on, also while it writes; nothing
        when there is nothing new. No byte comes twice, none that was overwritten meanwhile."""
        while True:
            total = self.total
            start = offset if offset < HEAD_BYTES else max(offset, _oldest(total))
            end = HEAD_BYTES if start < HEAD_BYTES else total
            stop = min(total, end, start + limit_bytes)
            if stop <= start:
                return Piece(b"", offset, 0)
            parts = [
                os.pread(self._fd, len(piece), _COUNT_BYTES + at)
                for piece, at in _pieces(start, stop)
            ]
            if start < HEAD_BYTES or _oldest(self.total) <= start:
                return Piece(b"".join(parts), stop, start - offset)

    def close(self) -> None:
        """Let the file go."""
        os.close(self._fd)


def follow(path: Path, offset: int, limit_bytes: int = PIECE_BYTES) -> Piece:
    """Return the same of a file by its name; nothing when there is none."""
    try:
        reader = ConsoleReader(path)
    except FileNotFoundError:
        return Piece(b"", offset, 0)
    try:
        return reader.read(offset, limit_bytes)
    finally:
        reader.close()


def _total(fd: int) -> int:
    return int.from_bytes(os.pread(fd, _COUNT_BYTES, 0), "big")


def _oldest(total: int) -> int:
    """Return the first byte of the ring that nobody overwrites just now."""
    return max(HEAD_BYTES, total + PIECE_BYTES - TAIL_BYTES)
