"""Which blocks anybody may read: what the owner published, and results of services that let anybody
read them. Members and strangers are the same here, and nobody gets anything else (Bitswap).

A mark is an empty file beside the store: those of the owner in `own`, those of a service under its
id. Marks of a service count as long as its policy says so.
"""

import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final

import trio

from pairio_node.blocks.base import BlockMissing, LocalStore
from pairio_node.errors import StorageFullError
from pairio_protocol.cid import parse_cid

__all__ = ["OWN", "PublicBlocks"]

#: The marks of what the owner published.
OWN: Final = "own"


class PublicBlocks:
    """The public part of a store. `services` gives the ids of those whose results are public now.

    A block that is not public and one that is not here are the same to whoever asks: marks are
    looked at first, and nothing else is then.
    """

    def __init__(
        self, store: LocalStore, marks: Path, services: Callable[[], Iterable[str]]
    ) -> None:
        self._store = store
        self._marks = marks
        self._services = services

    async def among(self, cids: Sequence[str]) -> set[str]:
        """Return those of `cids` that are public and here."""
        scopes = self._scopes()

        def look() -> set[str]:
            return {cid for cid in cids if self._is_marked(scopes, cid) and self._store.has(cid)}

        return await trio.to_thread.run_sync(look, limiter=self._store.limiter)

    async def get(self, cid: str) -> bytes:
        """Return a public block; BlockMissing for one that is not, or not here."""
        if not self._is_marked(self._scopes(), cid):
            raise BlockMissing(cid)
        return await self._store.get(cid)

    def _scopes(self) -> list[Path]:
        return [self._marks / name for name in (OWN, *self._services())]

    def _is_marked(self, scopes: Iterable[Path], cid: str) -> bool:
        parse_cid(cid)  # never a path of a peer's choosing
        return any((scope / cid[-2:] / cid).exists() for scope in scopes)

    # -- marking, in threads ----------------------------------------------------------------

    def mark_sync(self, scope: str, cids: Iterable[str]) -> int:
        """Let anybody read blocks; return how many anybody could not before."""
        new = 0
        try:
            for cid in cids:
                parse_cid(cid)
                mark = self._marks / scope / cid[-2:] / cid
                if not mark.exists():
                    mark.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                    mark.touch(mode=0o600)
                    new += 1
        except OSError as error:
            raise StorageFullError(f"cannot publish: {error.strerror}") from None
        return new

    def replace_sync(self, scope: str, cids: Iterable[str]) -> None:
        """Let anybody read these blocks for a scope, and no others."""
        made = self._marks / f"{scope}.new"
        shutil.rmtree(made, ignore_errors=True)
        self.mark_sync(made.name, cids)
        old = self._marks / f"{scope}.old"
        shutil.rmtree(old, ignore_errors=True)
        if (self._marks / scope).exists():
            os.rename(self._marks / scope, old)
        if made.exists():
            os.rename(made, self._marks / scope)
        shutil.rmtree(old, ignore_errors=True)
