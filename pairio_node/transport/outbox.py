"""Frames that wait to be written to one peer. Bounded in bytes too: a peer who asks for much and
reads nothing would else have a node keep 4,096 frames of 60 KiB for him."""

from collections import deque

__all__ = ["Outbox"]

FRAMES_MAX = 4096
SIZE_BYTES_MAX = 32 * 1024 * 1024


class Outbox:
    """A queue of frames; true when there are some."""

    def __init__(self) -> None:
        self._frames: deque[bytes] = deque()
        self._size_bytes = 0

    def __bool__(self) -> bool:
        """Say whether frames wait."""
        return bool(self._frames)

    def has_room(self, frame: bytes) -> bool:
        """Say whether one more frame may wait."""
        fits = self._size_bytes + len(frame) <= SIZE_BYTES_MAX
        return fits and len(self._frames) < FRAMES_MAX

    def put(self, frame: bytes) -> None:
        """Let a frame wait."""
        self._frames.append(frame)
        self._size_bytes += len(frame)

    def take(self) -> bytes:
        """Return the frame that waited longest, and forget it."""
        frame = self._frames.popleft()
        self._size_bytes -= len(frame)
        return frame
