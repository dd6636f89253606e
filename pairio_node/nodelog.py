"""The node's own log, HOME/node.log: what it did and what went wrong, bounded by rotation.

A thread writes the file, so the loop never waits for the disk. What somebody else wrote is made
printable, and a line is a line.
"""

import logging
import logging.handlers
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pairio_protocol.printable import printable

__all__ = ["FILES", "FILE_SIZE_BYTES_MAX", "LOG_FILE", "node_log"]

LOG_FILE = "node.log"
#: The newest file and those before it (node.log.1, ...), and the size of each.
FILES = 3
FILE_SIZE_BYTES_MAX = 2 * 1024 * 1024
#: Lines that wait for the disk; with more, lines are lost, and the node goes on.
_LINES_MAX = 10_000
#: So long a line waits for others.
_WAIT_S = 0.2
_LINE_LENGTH_MAX = 2000


class _Line(logging.Formatter):
    """`2026-01-31T14:00:00.123Z INFO words`, a traceback below it."""

    def format(self, record: logging.LogRecord) -> str:
        words = printable(record.getMessage())[:_LINE_LENGTH_MAX].replace("\n", " | ")
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = f"{at}.{int(record.msecs):03}Z {record.levelname} {words}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class _Beside(logging.Handler):
    """Hands records to a thread that writes them; what is too much is let go: a disk that hangs
    must not hold the node. Lines wait a moment for others, since waking a thread costs more than
    a line; a warning does not."""

    def __init__(self, file: logging.Handler) -> None:
        super().__init__()
        self._file = file
        self._waiting: deque[logging.LogRecord] = deque()
        self._some, self._now = threading.Event(), threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="pairio-log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        if len(self._waiting) >= _LINES_MAX:
            return
        self._waiting.append(record)
        if not self._some.is_set():
            self._some.set()
        if record.levelno >= logging.WARNING:
            self._now.set()

    def _run(self) -> None:
        while not self._stopping:
            self._some.wait()
            self._now.wait(_WAIT_S)
            self._now.clear()
            self._some.clear()  # before it is looked: what comes from now on wakes this again
            self._write()

    def _write(self) -> None:
        while self._waiting:
            self._file.handle(self._waiting.popleft())

    def close(self) -> None:
        """Write what waits, and end."""
        self._stopping = True
        self._now.set()
        self._some.set()
        self._thread.join()
        self._write()
        super().close()


@contextmanager
def node_log(home: Path) -> Iterator[logging.Logger]:
    """Write what `pairio` logs to the home's file while the block runs; warnings go to stderr as
    well."""
    log = logging.getLogger("pairio")
    file = logging.handlers.RotatingFileHandler(
        home / LOG_FILE, maxBytes=FILE_SIZE_BYTES_MAX, backupCount=FILES - 1, encoding="utf-8",
        errors="backslashreplace",
    )  # fmt: skip
    file.setFormatter(_Line())
    stderr = logging.StreamHandler(sys.stderr)
    stderr.setLevel(logging.WARNING)
    beside = _Beside(file)
    handlers = [beside, stderr]
    level, propagates = log.level, log.propagate
    log.setLevel(logging.INFO)
    log.propagate = False  # a library gives the root logger a handler: all would be said twice
    for handler in handlers:
        log.addHandler(handler)
    try:
        yield log
    finally:
        for handler in handlers:
            log.removeHandler(handler)
        log.setLevel(level)
        log.propagate = propagates
        beside.close()
        file.close()
