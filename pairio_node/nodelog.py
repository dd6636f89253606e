"""The node's own log, HOME/node.log: what it did and what went wrong, bounded by rotation.

A thread writes the file, so the loop never waits for the disk. What somebody else wrote is made
printable, and a line is a line.
"""

import logging
import logging.handlers
import queue
import sys
import time
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
_LINE_LENGTH_MAX = 2000


class _Line(logging.Formatter):
    """`2026-01-31T14:00:00.123Z INFO words`, a traceback below it."""

    def format(self, record: logging.LogRecord) -> str:
        words = printable(record.getMessage())[:_LINE_LENGTH_MAX].replace("\n", " | ")
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = f"{at}.{int(record.msecs):03}Z {record.levelname} {words}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class _Queue(logging.handlers.QueueHandler):
    """Hands records on as they are: there is one process. What is too much is let go."""

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        return record

    def enqueue(self, record: logging.LogRecord) -> None:
        try:
            self.queue.put_nowait(record)
        except queue.Full:
            return  # a disk that hangs must not hold the node


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
    lines: queue.Queue[logging.LogRecord] = queue.Queue(_LINES_MAX)
    listener = logging.handlers.QueueListener(lines, file)
    handlers = [_Queue(lines), stderr]
    level, propagates = log.level, log.propagate
    log.setLevel(logging.INFO)
    log.propagate = False  # a library gives the root logger a handler: all would be said twice
    for handler in handlers:
        log.addHandler(handler)
    listener.start()
    try:
        yield log
    finally:
        for handler in handlers:
            log.removeHandler(handler)
        log.setLevel(level)
        log.propagate = propagates
        listener.stop()
        file.close()
