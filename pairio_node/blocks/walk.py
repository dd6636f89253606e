"""What lies below a CID and is not here, a little at a time: a file of a terabyte has a million
blocks. With a range only what its bytes lie in.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import trio

from pairio_node.blocks.base import BlockStore
from pairio_node.blocks.unixfs import UnixfsError, parse_node
from pairio_protocol.cid import DAG_PB, parse_cid

__all__ = ["Some", "Walk"]

#: Blocks below one CID.
BLOCKS_MAX: Final = 1_000_000
_END: Final = 2**63


class _Part(NamedTuple):
    """A block, and which bytes of the file below it are wanted."""

    cid: str
    start: int
    stop: int


class Some:
    """Some blocks that are not here, and nothing below them; walked as a `Walk` is."""

    def __init__(self, cids: Sequence[str]) -> None:
        self.root = cids[0] if cids else ""
        self._pending = list(cids)

    @property
    def is_over(self) -> bool:
        """Say whether all were handed out."""
        return not self._pending

    async def missing(self, enough: int) -> list[str]:
        """Hand them out."""
        handed, self._pending = self._pending, []
        return handed

    def arrived(self, cid: str) -> None:
        """A block has come."""


class Walk:
    """Walks what is here; what is not is handed out, and walked on once it has come."""

    def __init__(
        self, store: BlockStore, cid: str, start: int = 0, stop: int | None = None
    ) -> None:
        self.root = cid
        self._store = store
        self._is_range = stop is not None or start > 0
        self._pending = [_Part(cid, start, _END if stop is None else stop)]
        self._awaited: dict[str, list[_Part]] = {}  # nodes that are not here yet
        self._seen: set[_Part] = set()  # nodes alone: they may repeat without end, and are few
        self._count = 0
        self._lock = trio.Lock()
        self._is_looking = False

    @property
    def is_over(self) -> bool:
        """Say whether all that is here was looked at."""
        return not self._pending and not self._is_looking

    async def missing(self, enough: int) -> list[str]:
        """Walk until `enough` blocks were found that are not here, or all was looked at.

        Raises:
            UnixfsError, CidError: what lies there is no file or folder. BlockMissing: it went away.
        """
        found: list[str] = []
        async with self._lock:
            try:
                while self._pending and len(found) < enough:
                    self._is_looking = True
                    found += await self._look(self._pending.pop())
            finally:
                self._is_looking = False
        return found

    async def _look(self, part: _Part) -> list[str]:
        is_node = parse_cid(part.cid).codec == DAG_PB
        if part in self._seen:
            return []
        looked = await trio.to_thread.run_sync(
            self._look_sync, part, is_node, limiter=self._store.limiter
        )
        if looked is None:
            return self._await(part)
        found: list[str] = []
        for child, is_here in looked:
            if not is_here:
                found += self._await(child)
            elif parse_cid(child.cid).codec == DAG_PB:
                self._pending.append(child)
        return found

    def _await(self, part: _Part) -> list[str]:
        if parse_cid(part.cid).codec == DAG_PB:
            self._awaited.setdefault(part.cid, []).append(part)
        return [part.cid]

    def arrived(self, cid: str) -> None:
        """A block has come; what lies below it is walked."""
        self._pending += self._awaited.pop(cid, [])

    def _look_sync(self, part: _Part, is_node: bool) -> list[tuple[_Part, bool]] | None:
        """Return the wanted blocks below one, and whether each is here; None if itself is not."""
        if not self._store.has(part.cid):
            return None
        if not is_node:
            return []
        self._seen.add(part)
        node = parse_node(part.cid, self._store.read_sync(part.cid))
        if self._is_range and node.is_directory:
            raise UnixfsError("a folder has no ranges")
        self._count += len(node.entries)
        if self._count > BLOCKS_MAX:
            raise UnixfsError(f"more than {BLOCKS_MAX} blocks")
        below, begin = [], 0
        for entry in node.entries:
            if not self._is_range:
                below.append(_Part(entry.cid, 0, _END))
                continue
            end = begin + entry.size_bytes
            start, stop = max(part.start, begin) - begin, min(part.stop, end) - begin
            if start < stop:
                below.append(_Part(entry.cid, start, stop))
            begin = end
        return [(child, self._store.has(child.cid)) for child in below]
