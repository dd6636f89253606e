"""Content for people and programs on this machine: files and folders by CID and path, read as a
stream. What is not here is fetched as it is read, nothing but what was asked for: from members,
and from Bitswap peers where they may be asked (`outside`).
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import trio

from pairio_node.blocks import BlockMissing, Content, Exchange, FetchFailed, StoreUnavailable
from pairio_node.blocks.content import DEPTH_MAX
from pairio_node.blocks.unixfs import Entry, Listing, Node, UnixfsError, find, parse_node
from pairio_node.errors import NotFoundError, UnavailableError, UserError
from pairio_protocol.cid import RAW, CidError, parse_cid
from pairio_protocol.limits import BLOCKS_PER_REQUEST_MAX

__all__ = ["Found", "Item", "Serving"]

#: Blocks that are asked for ahead of the reader; each is at most 2 MiB, and goes to the store.
_AHEAD: Final = 8
#: Shards of a folder, which are small, are asked for ahead so many at once.
_SHARDS_AHEAD: Final = BLOCKS_PER_REQUEST_MAX - 1
_HOLDERS_ASKED_MAX: Final = 8
#: How long a reader waits for the next blocks from others.
_FETCH_S: Final = 30.0
#: Readers that fetch at once; others wait for their turn.
_FETCHING_MAX: Final = 4


@dataclass(frozen=True, slots=True)
class Found:
    """A file or folder; a folder's size is that of its blocks, about that of its files."""

    cid: str
    size_bytes: int
    is_folder: bool


@dataclass(frozen=True, slots=True)
class Item:
    """An entry of a folder. Of a file that is not here the size is that of its blocks."""

    name: str
    cid: str
    size_bytes: int
    is_folder: bool


class Serving:
    """Reads content. `sources` gives (service, members that may hold its content); `outside` has
    blocks fetched that none of them gives, the first one first."""

    def __init__(
        self,
        content: Content,
        exchange: Exchange,
        sources: Callable[[], Iterable[tuple[str, list[str]]]],
        outside: Callable[[list[str]], Awaitable[None]] | None = None,
    ) -> None:
        self._content = content
        self._exchange = exchange
        self._sources = sources
        self._outside = outside
        self._turns = trio.Semaphore(_FETCHING_MAX)
        self._last: tuple[str, str] | None = None  # service and holder that had something

    async def look(self, cid: str, path: Iterable[str] = ()) -> Found:
        """Return what lies at a path below `cid`.

        Raises:
            NotFoundError: no such entry. UnavailableError: nobody gives the blocks.
            UserError: it is neither file nor folder.
        """
        node, total = await self._node(cid), 0
        for depth, name in enumerate(path):
            entry = await self._find(node, name) if depth < DEPTH_MAX else None
            if entry is None:
                raise NotFoundError(f"there is no {name[:200]!r} in {cid}")
            cid, total = entry.cid, entry.total_bytes
            node = await self._node(cid)
        if node.is_directory:
            return Found(cid, total or sum(e.total_bytes for e in node.entries), True)
        return Found(cid, node.size_bytes, False)

    async def _find(self, node: Node, name: str) -> Entry | None:
        """Return what a folder has under a name; of a sharded one the shards on the way there are
        looked at, and no others."""
        depth, is_shard = 0, True
        entry: Entry | None = None
        with _as_user_errors("a folder"):
            while is_shard and node.is_directory:
                entry, is_shard = find(node, name, depth)
                if entry is not None and is_shard:
                    fanout, depth = node.fanout, depth + 1
                    node = await self._node(entry.cid)
                    if node.fanout != fanout:
                        raise UserError("a sharded folder with a part that is no shard of it")
        return entry

    async def entries(self, cid: str) -> list[Item]:
        """Return the entries of a folder, by name."""
        node = await self._node(cid)
        with _as_user_errors(cid):
            listing = Listing(node)
            while (shard := listing.next) is not None:
                listing.take(await self._node(shard, listing.wanted[-_SHARDS_AHEAD:]))
        items = await trio.to_thread.run_sync(
            self._items, listing.entries, limiter=self._content.store.limiter
        )
        return sorted(items, key=lambda item: item.name)

    def _items(self, entries: list[Entry]) -> list[Item]:
        items = []
        for entry in entries:
            trio.from_thread.check_cancelled()
            items.append(self._item(entry))
        return items

    def _item(self, entry: Entry) -> Item:
        """Look at an entry if it is here; a folder of many is not fetched to be listed."""
        plain = Item(entry.name, entry.cid, entry.total_bytes, False)
        if parse_cid(entry.cid).codec == RAW:
            return plain
        try:
            node = parse_node(entry.cid, self._content.store.read_sync(entry.cid))
        except (BlockMissing, UnixfsError):
            return plain
        size = entry.total_bytes if node.is_directory else node.size_bytes
        return Item(entry.name, entry.cid, size, node.is_directory)

    async def read(self, cid: str, start: int, stop: int) -> AsyncIterator[bytes]:
        """Yield the bytes of a file from `start` to before `stop`, a block at a time."""
        node = await self._node(cid)
        if node.is_directory:
            raise UserError(f"{cid} is a folder")
        async for chunk in self._read(node, start, min(stop, node.size_bytes), 0):
            yield chunk

    async def _read(self, node: Node, start: int, stop: int, depth: int) -> AsyncIterator[bytes]:
        if depth > DEPTH_MAX:
            raise UserError("a file that is too deep")
        if not node.entries:
            if start < stop:
                yield node.data[start:stop]
            return
        at, wanted = 0, []
        for entry in node.entries:
            if at < stop and at + entry.size_bytes > start:
                wanted.append((at, entry))
            at += entry.size_bytes
        for number, (begin, entry) in enumerate(wanted):
            ahead = [e.cid for _, e in wanted[number : number + _AHEAD]]
            child = await self._node(entry.cid, ahead)
            if child.is_directory or child.size_bytes != entry.size_bytes:
                raise UserError(f"{entry.cid} is not the part of a file that it is said to be")
            inner = self._read(
                child, max(0, start - begin), min(stop - begin, entry.size_bytes), depth + 1
            )
            async for chunk in inner:
                yield chunk

    async def _node(self, cid: str, ahead: Iterable[str] = ()) -> Node:
        try:
            try:
                return await self._content.node(cid)
            except StoreUnavailable:
                raise  # it says more than that nobody has it
            except BlockMissing:
                others = [c for c in ahead if c != cid and not await self._content.has(c)]
                await self._fetch(cid, [cid, *others])
                return await self._content.node(cid)
        except (UnixfsError, CidError) as error:
            raise _unreadable(cid, error) from None
        except StoreUnavailable:
            raise
        except BlockMissing:
            raise UnavailableError(f"block {cid} is not here any more") from None

    async def _fetch(self, cid: str, wanted: list[str]) -> None:
        """Fetch `cid`, and of the other blocks what the same holder has; within _FETCH_S."""
        reasons = []
        with trio.move_on_after(_FETCH_S):
            async with self._turns:
                for service, holder in self._askable():
                    try:
                        await self._exchange.fetch_blocks(service, wanted, holder)
                    except FetchFailed as error:
                        reasons.append(str(error))
                    if await self._content.has(cid):
                        self._last = (service, holder)
                        return
                if self._outside is not None:
                    try:
                        await self._outside(wanted)
                    except FetchFailed as error:
                        reasons.append(str(error))
                    if await self._content.has(cid):
                        return
        said = "; ".join(reasons[-3:]) or "no connected member has it"
        raise NotFoundError(f"content {cid} is not here ({said})")

    def _askable(self) -> list[tuple[str, str]]:
        pairs = [(service, h) for service, holders in self._sources() for h in holders]
        pairs.sort(key=lambda pair: pair != self._last)
        return pairs[:_HOLDERS_ASKED_MAX]


def _unreadable(what: str, error: Exception) -> UserError:
    return UserError(f"{what[:80]} cannot be shown: {error}")


@contextmanager
def _as_user_errors(what: str) -> Iterator[None]:
    """Say in words that something is no folder."""
    try:
        yield
    except UnixfsError as error:
        raise _unreadable(what, error) from None
