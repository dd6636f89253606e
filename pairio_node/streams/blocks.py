"""What was read of a streamed file: blocks in a folder, a file each, within a bound.

The names of the files are what the run read; one whose content had to make room is empty. So both
outlive a restart of the node.
"""

import hashlib
import threading
from pathlib import Path
from typing import Final

__all__ = ["BLOCK_BYTES", "Blocks", "Room"]

BLOCK_BYTES: Final = 256 * 1024


class Room:
    """How many bytes all files of a run may keep; the oldest blocks go first."""

    def __init__(self, bytes_max: int) -> None:
        self._left = bytes_max
        self._kept: dict[tuple[Blocks, int], int] = {}
        self._lock = threading.Lock()  # each file is written in a thread of its own

    def take(self, blocks: "Blocks", number: int, size: int) -> None:
        """Note a block that was written."""
        with self._lock:
            self._kept[blocks, number] = size
            self._left -= size
            while self._left < 0 and len(self._kept) > 1:
                (other, oldest), freed = next(iter(self._kept.items()))
                del self._kept[other, oldest]
                other.empty(oldest)
                self._left += freed


class Blocks:
    """The blocks of one file. Its methods use the disk: call them in a thread, one at a time."""

    def __init__(self, folder: Path, size_bytes: int, room: Room) -> None:
        self._folder = folder
        self._size_bytes = size_bytes
        self._room = room
        folder.mkdir(exist_ok=True)
        self.read_ever: set[int] = set()
        self._here: set[int] = set()
        for path in folder.iterdir():
            if not path.name.isdecimal():
                path.unlink()  # half written
                continue
            number = int(path.name)
            self.read_ever.add(number)
            if path.stat().st_size == self.length(number):
                self._here.add(number)
                room.take(self, number, self.length(number))

    @property
    def count(self) -> int:
        """How many blocks the file has."""
        return -(-self._size_bytes // BLOCK_BYTES)

    def length(self, number: int) -> int:
        """Return the bytes of a block: the last one is shorter."""
        return min(BLOCK_BYTES, self._size_bytes - number * BLOCK_BYTES)

    def has(self, number: int) -> bool:
        """Say whether a block is here."""
        return number in self._here

    def get(self, number: int) -> bytes | None:
        """Return a block, None when it had to make room."""
        if number not in self._here:
            return None
        data = (self._folder / str(number)).read_bytes()
        return data if len(data) == self.length(number) else None

    def put(self, number: int, data: bytes) -> None:
        """Keep a block."""
        part = self._folder / f"{number}.part"
        part.write_bytes(data)
        part.rename(self._folder / str(number))
        self.read_ever.add(number)
        if number not in self._here:
            self._here.add(number)
            self._room.take(self, number, len(data))

    def empty(self, number: int) -> None:
        """Let a block make room; that it was read stays known."""
        self._here.discard(number)
        (self._folder / str(number)).write_bytes(b"")

    def sha256_hex(self) -> str:
        """Return the hash of the file, "" when not all of it is here."""
        if len(self._here) < self.count:
            return ""
        digest = hashlib.sha256()
        for number in range(self.count):
            digest.update((self._folder / str(number)).read_bytes())
        return digest.hexdigest()

    def ranges(self, count_max: int) -> tuple[tuple[int, int], ...]:
        """Return what was read, in order, as at most so many ranges: the smallest gaps are told as
        if they had been read."""
        ranges: list[list[int]] = []
        for number in sorted(self.read_ever):
            start = number * BLOCK_BYTES
            stop = start + self.length(number)
            if ranges and ranges[-1][1] == start:
                ranges[-1][1] = stop
            else:
                ranges.append([start, stop])
        gaps = sorted(range(1, len(ranges)), key=lambda i: ranges[i][0] - ranges[i - 1][1])
        closed = set(gaps[: max(0, len(ranges) - count_max)])
        told: list[list[int]] = []
        for number, (start, stop) in enumerate(ranges):
            if number in closed:
                told[-1][1] = stop
            else:
                told.append([start, stop])
        return tuple((start, stop) for start, stop in told)
