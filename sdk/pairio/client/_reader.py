"""Content of a node as a file that is open: read by ranges as it is needed, a little of it kept."""

import io
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from pairio._http import Api
from pairio.errors import NodeNotRunning, PairioError

__all__ = ["CHUNKS_MAX", "CHUNK_BYTES", "open_content"]

#: What is asked for at once: a block of a file.
CHUNK_BYTES = 1024 * 1024
#: So many are kept in memory, those used last.
CHUNKS_MAX = 16
_BUFFER_BYTES = 64 * 1024
_PAUSE_S = 0.2


def open_content(
    api: Api, path: str, query: dict[str, Any], reconnect_s: float
) -> io.BufferedReader:
    """Return a file at `path` of a node's API, open for reading; `api` is closed with it.

    Raises:
        RequestRefused, NodeNotRunning: it cannot be read.
    """
    raw = _Content(lambda start, stop, tag: api.span(path, query, start, stop, tag), api)
    raw.reconnect_s = reconnect_s
    try:
        raw.begin()
    except BaseException:
        raw.close()
        raise
    return io.BufferedReader(raw, _BUFFER_BYTES)


class _Content(io.RawIOBase):
    """The bytes of a file at a node."""

    reconnect_s = 0.0

    def __init__(self, span: Callable[[int, int, str], tuple[bytes, int, str]], api: Api) -> None:
        super().__init__()
        self._span = span
        self._api = api
        self._size = 0
        self._tag = ""
        self._at = 0
        self._chunks: OrderedDict[int, bytes] = OrderedDict()

    def begin(self) -> None:
        """Learn how large it is, and its beginning."""
        self._chunks[0], self._size, self._tag = self._asked(0, CHUNK_BYTES)

    def _asked(self, start: int, stop: int) -> tuple[bytes, int, str]:
        """Ask the node; again while it is away."""
        ends = 0.0
        while True:
            try:
                return self._span(start, stop, self._tag)
            except NodeNotRunning:
                now = time.monotonic()
                ends = ends or now + self.reconnect_s
                if now >= ends:
                    raise
                time.sleep(_PAUSE_S)
                if self._api.is_elsewhere():
                    self._api.close()

    def _chunk(self, number: int) -> bytes:
        if number not in self._chunks:
            start = number * CHUNK_BYTES
            stop = min(start + CHUNK_BYTES, self._size)
            data, size, tag = self._asked(start, stop)
            if (len(data), size, tag) != (stop - start, self._size, self._tag):
                raise PairioError("the content is another one than when it was opened")
            while len(self._chunks) >= CHUNKS_MAX:
                self._chunks.popitem(last=False)
            self._chunks[number] = data
        self._chunks.move_to_end(number)
        return self._chunks[number]

    def readable(self) -> bool:
        """Say that it can be read."""
        return True

    def seekable(self) -> bool:
        """Say that it can be sought in."""
        return True

    def tell(self) -> int:
        """Return the place that is read next."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Read on from another place."""
        begin = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}
        if whence not in begin or begin[whence] + offset < 0:
            raise ValueError(f"there is no place {offset} from {whence}")
        self._at = begin[whence] + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Read some bytes, at most as many as there is room for."""
        if self.closed:
            raise ValueError("the file is closed")
        if self._at >= self._size:
            return 0
        number, begin = divmod(self._at, CHUNK_BYTES)
        view = memoryview(buffer).cast("B")
        data = memoryview(self._chunk(number))[begin : begin + len(view)]
        view[: len(data)] = data
        self._at += len(data)
        return len(data)

    def close(self) -> None:
        """Let go of what is kept, and of the connection."""
        if not self.closed:
            self._chunks.clear()
            self._api.close()
        super().close()
