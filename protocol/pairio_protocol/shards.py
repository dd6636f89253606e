"""Folders as large as they may be: in one block, or sharded as Kubo does it (HAMT).

    shard:  bit i is set  <=>  it has a link named by i in hex, then  a name: an entry of the folder
                                                                      nothing: a shard below it
    i at depth d = bits d*8 .. d*8+7 of murmur3-x64-64(name), for a fanout of 256

A folder is in one block up to DIRECTORY_SIZE_BYTES_MAX, and in shards from there on, which makes
its CID depend on its entries alone. Source: https://specs.ipfs.tech/unixfs/ (HAMTShard); vectors
in `protocol/vectors/unixfs.json`. Pure; whoever reads gives the blocks.
"""

from collections.abc import Callable, Sequence
from typing import Final

import mmh3

from pairio_protocol import protobuf
from pairio_protocol.cid import DAG_PB, cid_of, parse_cid
from pairio_protocol.limits import FOLDER_ENTRIES_MAX
from pairio_protocol.unixfs import (
    DIRECTORY_SIZE_BYTES_MAX,
    HASH_MURMUR3,
    SHARD,
    Entry,
    FolderTooLarge,
    Node,
    UnixfsError,
    directory_block,
    node_block,
)

__all__ = ["Listing", "find", "folder_of"]

_HASH_BITS: Final = 64
#: What shards are made with here; others are read.
_FANOUT: Final = 256
#: A link has at least this besides its name.
_LINK_BYTES_MIN: Final = 40
_NO_SHARD: Final = "a sharded folder with a part that is no shard of it"


def _hash(name: str) -> int:
    low, _ = mmh3.hash64(name.encode(), signed=False)
    return int(low)


def _place(hashed: int, fanout: int, depth: int) -> int:
    """Return the place of a name in a shard; UnixfsError where its hash has no more bits."""
    width = fanout.bit_length() - 1
    left = _HASH_BITS - width * (depth + 1)
    if left < 0:
        raise UnixfsError("a sharded folder that is too deep")
    return hashed >> left & fanout - 1


def _digits(fanout: int) -> int:
    return len(f"{fanout - 1:X}")


# -- reading --------------------------------------------------------------------------------


def find(node: Node, name: str, depth: int = 0) -> tuple[Entry | None, bool]:
    """Return what a folder has under a name, and whether that is the shard to look on in, one
    deeper; None when there is nothing of that name. `depth` is that of the shard `node`."""
    if not node.fanout:
        return next((e for e in node.entries if e.name == name), None), False
    digits = _digits(node.fanout)
    place = f"{_place(_hash(name), node.fanout, depth):0{digits}X}"
    for entry in node.entries:
        if entry.name[:digits] == place:
            rest = entry.name[digits:]
            if not rest:
                return entry, True
            return (_named(entry, rest) if rest == name else None), False
    return None, False


def _named(entry: Entry, name: str) -> Entry:
    return Entry(entry.cid, entry.size_bytes, entry.total_bytes, name)


class Listing:
    """Lists a folder shard by shard: `wanted` names blocks that are to be given to `take`, next
    one last; when there are none, `entries` has all of the folder.

    Raises (also its making) UnixfsError: names at places where they do not belong, shards without
    anything in them, more than FOLDER_ENTRIES_MAX entries or as many shards.
    """

    def __init__(self, root: Node) -> None:
        self.entries: list[Entry] = []
        self._fanout = root.fanout
        self._wanted: list[tuple[str, tuple[int, ...]]] = []
        self._shards = 0
        self._add(root, ())

    @property
    def wanted(self) -> list[str]:
        """The shards that are to come; the last one is next."""
        return [cid for cid, _ in self._wanted]

    @property
    def next(self) -> str | None:
        """The shard that is to come next."""
        return self._wanted[-1][0] if self._wanted else None

    def take(self, shard: Node) -> None:
        """Go on with the block `next`."""
        _, path = self._wanted.pop()
        if shard.fanout != self._fanout or not shard.entries:
            raise UnixfsError(_NO_SHARD)
        self._shards += 1
        self._add(shard, path)
        if self._shards + len(self._wanted) > FOLDER_ENTRIES_MAX:
            raise UnixfsError(f"a folder in more than {FOLDER_ENTRIES_MAX} shards")

    def _add(self, node: Node, path: tuple[int, ...]) -> None:
        if not node.is_directory:
            raise UnixfsError("a file where a folder was to be")
        if len(self.entries) + len(node.entries) > FOLDER_ENTRIES_MAX:
            raise UnixfsError(f"a folder with more than {FOLDER_ENTRIES_MAX} entries")
        if not node.fanout:
            self.entries += node.entries
            return
        digits = _digits(node.fanout)
        below = []
        for entry in node.entries:
            place, name = int(entry.name[:digits], 16), entry.name[digits:]
            if name:
                hashed = _hash(name)
                for depth, expected in enumerate((*path, place)):
                    if _place(hashed, node.fanout, depth) != expected:
                        raise UnixfsError("a sharded folder with a name at the wrong place")
                self.entries.append(_named(entry, name))
            else:
                _place(0, node.fanout, len(path) + 1)  # is there a hash so long?
                if parse_cid(entry.cid).codec != DAG_PB:
                    raise UnixfsError(_NO_SHARD)
                below.append((entry.cid, (*path, place)))
        self._wanted += reversed(below)


# -- writing --------------------------------------------------------------------------------


def folder_of(entries: Sequence[Entry], store: Callable[[str, bytes], None]) -> Entry:
    """Store a folder with these entries; return its root, without a name.

    Raises:
        UnixfsError: more than FOLDER_ENTRIES_MAX entries, or names that no shards can hold.
        UnicodeEncodeError: a name that is not UTF-8. What `store` raises.
    """
    if len(entries) > FOLDER_ENTRIES_MAX:
        raise UnixfsError(f"a folder with {len(entries)} entries; at most {FOLDER_ENTRIES_MAX}")
    if sum(_LINK_BYTES_MIN + len(e.name) for e in entries) <= DIRECTORY_SIZE_BYTES_MAX:
        try:
            return _stored(list(entries), directory_block(list(entries)), store)
        except FolderTooLarge:
            pass  # by little
    return _shard_of([(_hash(e.name), e) for e in entries], 0, store)


def _shard_of(
    entries: list[tuple[int, Entry]], depth: int, store: Callable[[str, bytes], None]
) -> Entry:
    """Store the shard of entries whose hashes begin alike."""
    groups: dict[int, list[tuple[int, Entry]]] = {}
    for hashed, entry in entries:
        groups.setdefault(_place(hashed, _FANOUT, depth), []).append((hashed, entry))
    links, bits = [], 0
    for place in sorted(groups):
        group, prefix = groups[place], f"{place:0{_digits(_FANOUT)}X}"
        bits |= 1 << place
        if len(group) == 1:
            links.append(_named(group[0][1], prefix + group[0][1].name))
        else:
            links.append(_named(_shard_of(group, depth + 1, store), prefix))
    unixfs = protobuf.number(1, SHARD)
    unixfs += protobuf.field(2, bits.to_bytes((bits.bit_length() + 7) // 8, "big"))
    unixfs += protobuf.number(5, HASH_MURMUR3) + protobuf.number(6, _FANOUT)
    return _stored(links, node_block(links, unixfs), store)


def _stored(links: list[Entry], block: bytes, store: Callable[[str, bytes], None]) -> Entry:
    cid = cid_of(DAG_PB, block)
    store(cid, block)
    total_bytes = len(block) + sum(e.total_bytes for e in links)
    return Entry(cid, sum(e.size_bytes for e in links), total_bytes)
