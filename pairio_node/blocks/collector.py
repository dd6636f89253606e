"""What may go from a block store, in which order; and the collection that lets it go.

    survey: blocks, sizes, last use, links --> plan: roots, least recently used first --> sweep

A *root* is a block that somebody names (a result's output, an app, a pin) or that nothing else here
links to. A root goes with all that lies under it alone; what another root needs stays. Under a root
that is *kept* nothing goes. Whatever happens meanwhile only makes less go: work under way keeps
what it counts on (`in_use`), and a crash leaves parts without a root, which are roots of their own
then and go like any other. Roots go before what lies under them, so that what is left of a file is
never taken for the whole.
"""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pairio_node.blocks.base import (
    BLOCK_SIZE_BYTES_MAX,
    BlockMissing,
    BlockUnreadable,
    LocalStore,
    StoreUnavailable,
)
from pairio_node.blocks.unixfs import UnixfsError, parse_node
from pairio_protocol.cid import DAG_CBOR, DAG_PB, parse_cid
from pairio_protocol.documents import Link, decode
from pairio_protocol.errors import DecodeError

__all__ = [
    "Block",
    "Gone",
    "Pace",
    "Stopped",
    "Survey",
    "links_in",
    "plan",
    "reasons_below",
    "survey",
]


#: How CIDs of raw blocks by sha2-256 begin; they link to nothing.
_RAW_PREFIX = "bafkrei"


class Stopped(Exception):
    """The node ends; the collection is left where it is."""


class Pace:
    """Lets the threads of the loop have their turn: works WORK_S, then rests REST_S.

    Python's threads take turns of 5 ms; without rests each wait of the loop would cost it one.
    """

    WORK_S = 0.004
    REST_S = 0.002

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._since_s = time.monotonic()

    def stop(self) -> None:
        """End whatever keeps this pace."""
        self._stop.set()

    def __call__(self) -> None:
        """Rest if it is time. Raises Stopped."""
        if time.monotonic() - self._since_s > self.WORK_S:
            self._stop.wait(self.REST_S)
            self._since_s = time.monotonic()
        if self._stop.is_set():
            raise Stopped


class Block(NamedTuple):
    """A block that is here: what it takes, when it was last used."""

    size_bytes: int
    used_unix_s: float


@dataclass
class Survey:
    """What lies in a store. `links` has the blocks that link to others which are here too."""

    blocks: dict[str, Block] = field(default_factory=dict)
    links: dict[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def used_bytes(self) -> int:
        """What all blocks take."""
        return sum(block.size_bytes for block in self.blocks.values())

    def below(self, roots: Iterable[str], pace: Callable[[], None] = lambda: None) -> set[str]:
        """Return the blocks here that lie under `roots`, these included."""
        found = {root for root in roots if root in self.blocks}
        left = list(found)
        while left:
            pace()
            for child in self.links.get(left.pop(), ()):
                if child not in found:
                    found.add(child)
                    left.append(child)
        return found

    def size_of(self, cids: Iterable[str]) -> int:
        """Return what blocks take together."""
        return sum(self.blocks[cid].size_bytes for cid in cids)


def links_in(cid: str, data: bytes) -> tuple[str, ...]:
    """Return what a block links to, each once; nothing when it is not of a kind that is read."""
    codec = parse_cid(cid).codec
    try:
        if codec == DAG_PB:
            return tuple(dict.fromkeys(entry.cid for entry in parse_node(cid, data).entries))
        if codec == DAG_CBOR:
            return tuple(dict.fromkeys(_links_of(decode(data, BLOCK_SIZE_BYTES_MAX))))
    except (UnixfsError, DecodeError):
        return ()
    return ()


def _links_of(value: Any) -> Iterator[str]:
    match value:
        case Link():
            yield value.cid
        case list():
            for item in value:
                yield from _links_of(item)
        case dict():
            for item in value.values():
                yield from _links_of(item)


def survey(store: LocalStore, pace: Callable[[], None] = lambda: None) -> Survey:
    """Look at a whole store, in a thread. What comes meanwhile may be seen or not.

    Raises:
        StoreUnavailable: it, or a block in it, cannot be read now, and so what links to what is not
            known: what a kept root needs would be taken for unneeded.
        OSError: it cannot be listed.
    """
    found = Survey()
    for cid, size_bytes, used_unix_s in store.stored_sync():
        pace()
        found.blocks[cid] = Block(size_bytes, used_unix_s)
    for cid in found.blocks:
        if not cid.startswith(_RAW_PREFIX) and parse_cid(cid).codec in (DAG_PB, DAG_CBOR):
            pace()
            try:
                links = links_in(cid, store.read_sync(cid))
            except BlockUnreadable as error:
                raise StoreUnavailable(str(error), hint=error.hint) from None
            except StoreUnavailable:
                raise
            except BlockMissing:  # gone meanwhile
                continue
            if here := tuple(child for child in links if child in found.blocks):
                found.links[cid] = here
    return found


class Gone(NamedTuple):
    """A root that may go: itself first, then the blocks that nobody else needs."""

    root: str
    cids: tuple[str, ...]


def plan(
    found: Survey,
    kept: Iterable[str],
    named: Iterable[str],
    free_bytes: int,
    pace: Callable[[], None] = lambda: None,
) -> list[Gone]:
    """Return what is to go so that at least `free_bytes` become free, or all that may.

    Nothing under the roots in `kept` goes; `named` are roots too although others may link to them.
    """
    stays = found.below(kept, pace)
    parents = _parents(found, pace)
    roots = {cid for cid in found.blocks if not parents.get(cid)}
    roots |= {cid for cid in named if cid in found.blocks}
    waiting = roots - stays
    order = sorted(waiting, key=lambda cid: (found.blocks[cid].used_unix_s, cid))
    gone: list[Gone] = []
    for root in order:
        if free_bytes <= 0:
            break
        pace()
        waiting.discard(root)
        cids = _release(found, root, parents, lambda cid: cid in stays or cid in waiting)
        if cids:
            gone.append(Gone(root, cids))
            free_bytes -= found.size_of(cids)
    return gone


def _parents(found: Survey, pace: Callable[[], None]) -> dict[str, int]:
    """Return how many blocks here link to each that is linked to."""
    parents: dict[str, int] = {}
    for children in found.links.values():
        pace()
        for child in children:
            parents[child] = parents.get(child, 0) + 1
    return parents


def _release(
    found: Survey, root: str, parents: dict[str, int], is_needed: Callable[[str], bool]
) -> tuple[str, ...]:
    """Return the blocks that go when `root` is no root any more, and count them as gone."""
    if parents.get(root):
        return ()  # others that are here link to it: it goes with the last of them
    gone, left = [], [root]
    while left:
        cid = left.pop()
        gone.append(cid)
        for child in found.links.get(cid, ()):
            parents[child] -= 1
            if not parents[child] and not is_needed(child):
                left.append(child)
    return tuple(gone)


def reasons_below(
    found: Survey, reasons: Mapping[str, Iterable[str]], pace: Callable[[], None] = lambda: None
) -> dict[str, int]:
    """Return the bytes under the roots of each reason; what several need is counted at the first,
    the rest under "cache"."""
    counted: set[str] = set()
    sizes: dict[str, int] = {}
    for reason, roots in reasons.items():
        under = found.below(roots, pace) - counted
        counted |= under
        sizes[reason] = found.size_of(under)
    sizes["cache"] = found.used_bytes - sum(sizes.values())
    return sizes
