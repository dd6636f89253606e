"""What a job may read by its streams: a file of this machine, or one behind a URL, part by part."""

import hashlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import trio

from pairio_node.streams.blocks import BLOCK_BYTES, Blocks, Room
from pairio_node.streams.remote import About, ChangedError, NoRangesError, Remote
from pairio_node.urls import UrlError, UrlRules, fetch_url
from pairio_protocol.limits import RANGES_TOLD_MAX
from pairio_protocol.records import SourceRead

__all__ = ["LocalSource", "Source", "UrlSource"]

#: So many blocks are asked for at once by who reads on and on.
_RUN_BLOCKS_MAX: Final = 32
_PIECE_BYTES: Final = 256 * 1024
#: So many blocks that could not be had are remembered, for a job may ask for any.
_FAILED_MAX: Final = 1000
_T = TypeVar("_T")


class Source(Protocol):
    """A file that a job may read."""

    @property
    def about(self) -> About:
        """What is said of it."""

    def read(self, start: int, stop: int) -> AsyncIterator[bytes]:
        """Yield the bytes [start, stop), which lie in the file. UrlError: they cannot be had."""


class LocalSource:
    """A file of this machine: an input by CID."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.about = About(path.stat().st_size, "", "")

    async def read(self, start: int, stop: int) -> AsyncIterator[bytes]:
        """Yield the bytes [start, stop)."""
        while start < stop:
            data = await trio.to_thread.run_sync(
                self._piece, start, min(_PIECE_BYTES, stop - start)
            )
            start += len(data)
            yield data

    def _piece(self, start: int, size: int) -> bytes:
        try:
            with self._path.open("rb") as file:
                file.seek(start)
                data = file.read(size)
        except OSError as error:
            raise UrlError(f"{self._path.name}: {error.strerror}", hint="submit again") from None
        if not data:
            raise UrlError(f"{self._path.name} became shorter", hint="submit again")
        return data


class UrlSource:
    """A file behind a URL, kept in `folder` as far as it was read."""

    def __init__(
        self,
        remote: Remote,
        folder: Path,
        rules: UrlRules,
        room: Room,
        at_once: trio.CapacityLimiter,
        now_unix_ms: Callable[[], int],
    ) -> None:
        self._remote = remote
        self._folder = folder
        self._rules = rules
        self._room = room
        self._at_once = at_once
        self._now_unix_ms = now_unix_ms
        self._blocks: Blocks | None = None
        self._whole: LocalSource | None = None
        self._sha256_hex = ""
        self._read_unix_ms = 0
        self._coming: dict[int, trio.Event] = {}
        self._disk = trio.Lock()
        self._failed: dict[int, str] = {}  # blocks that were asked for in vain, and why
        self.changed = False

    @property
    def trouble(self) -> str:
        """Why the job was not given something that it asked for; "" when it was."""
        return next(reversed(self._failed.values()), "")

    @property
    def about(self) -> About:
        """What the server says of it."""
        assert self._remote.about is not None
        return self._remote.about

    async def open(self) -> None:
        """Look at the file, and keep its beginning; where its server gives no ranges, all of it.

        Raises:
            UrlError: it cannot be had.
        """
        self._folder.mkdir()
        self._read_unix_ms = self._now_unix_ms()
        first = bytearray()

        async def keep(data: bytes) -> None:
            first.extend(data)

        try:
            about = await self._remote.open(BLOCK_BYTES, keep)
        except NoRangesError:
            await self._open_whole()
            return
        self._blocks = await self._on_disk(
            lambda: Blocks(self._folder / "blocks", about.size_bytes, self._room)
        )
        if about.size_bytes and len(first) == self._blocks.length(0):
            await self._put(0, bytes(first))

    async def _open_whole(self) -> None:
        path = self._folder / "whole"
        fetched = await fetch_url(self._remote.url, path, self._rules)
        self._whole = LocalSource(path)
        self._remote.about = About(fetched.size_bytes, fetched.etag, fetched.modified)
        self._sha256_hex = fetched.sha256_hex

    def kept(self) -> dict[str, Any]:
        """Return what a later start of the node needs to go on with it."""
        about = self.about
        return {
            "about": [about.size_bytes, about.etag, about.modified],
            "read_unix_ms": self._read_unix_ms,
            "sha256": self._sha256_hex,
        }

    def take_up(self, kept: dict[str, Any]) -> None:
        """Go on with a file that an earlier start opened."""
        self._remote.about = about = About(*kept["about"])
        self._read_unix_ms, self._sha256_hex = kept["read_unix_ms"], kept["sha256"]
        if self._sha256_hex:
            self._whole = LocalSource(self._folder / "whole")
        else:
            self._blocks = Blocks(self._folder / "blocks", about.size_bytes, self._room)

    # -- reading --------------------------------------------------------------------------

    async def read(self, start: int, stop: int) -> AsyncIterator[bytes]:
        """Yield the bytes [start, stop), fetched as they are read."""
        if self._whole is not None:
            async for data in self._whole.read(start, stop):
                yield data
            return
        run = 1
        while start < stop:
            number = start // BLOCK_BYTES
            last = (stop - 1) // BLOCK_BYTES
            data = await self._block(number, min(run, last - number + 1))
            run = min(2 * run, _RUN_BLOCKS_MAX)
            begin = start - number * BLOCK_BYTES
            piece = data[begin : begin + stop - start]
            start += len(piece)
            yield piece

    async def _block(self, number: int, count: int) -> bytes:
        """Return a block; what is missing of the `count` from there on is fetched with it."""
        assert self._blocks is not None
        blocks = self._blocks
        while True:
            if self.changed:
                raise ChangedError(self.trouble, hint="submit again when it stays as it is")
            if blocks.has(number):
                data = await self._on_disk(lambda: blocks.get(number))
                if data is not None:
                    return data
            if number in self._coming:
                await self._coming[number].wait()  # another connection of the job fetches it
                continue
            data = await self._fetch(number, count)
            if data is not None:
                return data

    async def _fetch(self, number: int, count: int) -> bytes | None:
        """Fetch the blocks from `number` on that are neither here nor on their way."""
        assert self._blocks is not None
        blocks, end = self._blocks, number
        while end < number + count and not blocks.has(end) and end not in self._coming:
            self._coming[end] = trio.Event()
            end += 1
        left, came, first = list(range(number, end)), bytearray(), None

        async def keep(data: bytes) -> None:
            nonlocal first
            came.extend(data)
            while left and len(came) >= blocks.length(left[0]):
                block = bytes(came[: blocks.length(left[0])])
                del came[: len(block)]
                first = block if first is None else first
                await self._put(left[0], block)
                self._coming.pop(left.pop(0)).set()

        try:
            async with self._at_once:
                start = number * BLOCK_BYTES
                stop = (end - 1) * BLOCK_BYTES + blocks.length(end - 1)
                await self._remote.fetch(start, stop, keep)
            self._failed.pop(number, None)
        except UrlError as error:
            self._note_failure(number, error)
            raise
        finally:
            for block in left:  # who waits for them asks for them himself
                self._coming.pop(block).set()
        return first

    def _note_failure(self, number: int, error: UrlError) -> None:
        self._failed[number] = error.message
        if len(self._failed) > _FAILED_MAX:
            del self._failed[next(iter(self._failed))]
        self.changed = self.changed or isinstance(error, ChangedError)

    async def _put(self, number: int, data: bytes) -> None:
        assert self._blocks is not None
        blocks = self._blocks
        await self._on_disk(lambda: blocks.put(number, data))

    async def _on_disk(self, work: Callable[[], _T]) -> _T:
        try:
            async with self._disk:
                return await trio.to_thread.run_sync(work)
        except OSError as error:
            raise UrlError(
                f"what was read cannot be kept on this node's disk: {error.strerror}",
                hint="free disk space",
            ) from None

    # -- what was read --------------------------------------------------------------------

    async def told(self) -> SourceRead:
        """Return what a result tells of it."""
        about, sha256_hex = self.about, self._sha256_hex
        ranges: tuple[tuple[int, int], ...] = ()
        if not sha256_hex and not about.size_bytes:
            sha256_hex = hashlib.sha256(b"").hexdigest()
        elif not sha256_hex and self._blocks is not None:
            sha256_hex = await self._on_disk(self._blocks.sha256_hex)
            ranges = () if sha256_hex else self._blocks.ranges(RANGES_TOLD_MAX)
        return SourceRead(
            about.size_bytes, about.etag, about.modified, self._read_unix_ms, sha256_hex, ranges
        )

    async def close(self) -> None:
        """Let connections go."""
        await self._remote.close()
