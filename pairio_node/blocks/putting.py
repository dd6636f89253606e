"""Chunks of files put into a store by several threads: hashing the next chunk does not wait for
the disk to sync the last, and syncs that come together cost little more than one.
"""

import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from types import TracebackType
from typing import Final

from pairio_node.blocks.base import BlockStore

__all__ = ["FOLDER_THREADS", "Putting"]

#: Also about how many chunks are in memory at once.
_THREADS: Final = 3
#: Of a folder, whose files are mostly small: the disk syncs what comes together at once.
FOLDER_THREADS: Final = 8


class Putting:
    """`put` for FileBuilders, in a thread; all is stored when the block is left without error."""

    def __init__(self, store: BlockStore, threads: int = _THREADS) -> None:
        self._store = store
        self._threads = threads
        # A store that is another program bounds its threads itself.
        self._is_alone = store.limiter is not None
        self._count = 0
        self._pool: ThreadPoolExecutor | None = None
        self._pending: deque[Future[None]] = deque()

    def __enter__(self) -> "Putting":
        return self

    def put(self, cid: str, data: bytes) -> None:
        """Store a block, now or soon. Raises what an earlier one raised."""
        self._count += 1
        if self._is_alone or self._count == 1:  # most files have one chunk
            self._store.put_sync(cid, data)
            return
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._threads, threading.current_thread().name)
        if len(self._pending) >= self._threads:
            self._pending.popleft().result()
        # The work in which this is called counts on the block (`in_use`).
        self._pending.append(self._pool.submit(copy_context().run, self._store.put_sync, cid, data))

    def __exit__(
        self, kind: type[BaseException] | None, _: object, trace: TracebackType | None
    ) -> None:
        if self._pool is None:
            return
        self._pool.shutdown(wait=True, cancel_futures=kind is not None)
        if kind is None:
            for put in self._pending:
                put.result()
