"""UnixFS as Kubo's profile unixfs-v1-2025 makes it: the shape of files and folders in blocks.

CIDv1, raw leaves, chunks of 1 MiB, 1024 links a node, balanced; large folders in shards (`shards`).
Sources: https://specs.ipfs.tech/unixfs/ , https://ipld.io/specs/codecs/dag-pb/spec/ ; vectors in
`protocol/vectors/unixfs.json`. Pure: bytes in, bytes out.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from pairio_protocol import protobuf
from pairio_protocol.cid import DAG_PB, RAW, CidError, cid_bytes, cid_of, cid_text_of_any, parse_cid

__all__ = [
    "CHUNK_SIZE_BYTES",
    "DIRECTORY_SIZE_BYTES_MAX",
    "HASH_MURMUR3",
    "SHARD",
    "Entry",
    "FileBuilder",
    "FolderTooLarge",
    "Node",
    "UnixfsError",
    "dag_pb_links",
    "directory_block",
    "node_block",
    "parse_node",
]

CHUNK_SIZE_BYTES: Final = 1024 * 1024
LINKS_MAX: Final = 1024
#: A folder of a larger block is sharded.
DIRECTORY_SIZE_BYTES_MAX: Final = 256 * 1024
SHARD: Final = 5
_FILE, _DIRECTORY, _RAW_TYPE = 2, 1, 0
#: murmur3-x64-64, the one hash that shards are made with.
HASH_MURMUR3: Final = 0x22
_FANOUTS: Final = frozenset({8, 16, 32, 64, 128, 256, 512, 1024})


class UnixfsError(ValueError):
    """A block that is no UnixFS file or folder, or a folder that cannot be one."""


class FolderTooLarge(UnixfsError):
    """A folder that does not fit into one block."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A link of a node: what it points to, its bytes as a file, and the bytes of its blocks."""

    cid: str
    size_bytes: int
    total_bytes: int
    name: str = ""


@dataclass(frozen=True, slots=True)
class Node:
    """A parsed block: a folder, or (a part of) a file with `data` of its own.

    A block of a sharded folder has a `fanout`, and entries that are named by their place, with the
    name after it or, of a further shard, nothing: `shards` has what lies in such a folder.
    """

    is_directory: bool
    entries: tuple[Entry, ...]
    data: bytes
    size_bytes: int
    fanout: int = 0


def _links(entries: list[Entry]) -> bytes:
    return b"".join(
        protobuf.field(
            2,
            protobuf.field(1, cid_bytes(e.cid))
            + protobuf.field(2, e.name.encode())
            + protobuf.number(3, e.total_bytes),
        )
        for e in entries
    )


def node_block(entries: list[Entry], unixfs: bytes) -> bytes:
    """Return a block with links, in this order, and what UnixFS says of it."""
    return _links(entries) + protobuf.field(1, unixfs)


def directory_block(entries: list[Entry]) -> bytes:
    """Return the block of a folder; raises FolderTooLarge when it would need sharding."""
    ordered = sorted(entries, key=lambda e: e.name.encode())
    block = node_block(ordered, protobuf.number(1, _DIRECTORY))
    if len(block) > DIRECTORY_SIZE_BYTES_MAX:
        raise FolderTooLarge(f"a folder with {len(entries)} entries is too large for a block")
    return block


class FileBuilder:
    """Builds the balanced tree over chunks as they come; memory is bounded by its depth."""

    def __init__(self, store: Callable[[str, bytes], None]) -> None:
        self._store = store
        self._levels: list[list[Entry]] = [[]]

    def add_chunk(self, chunk: bytes) -> None:
        """Take the next chunk (all but the last have CHUNK_SIZE_BYTES)."""
        cid = cid_of(RAW, chunk)
        self._store(cid, chunk)
        self._push(0, Entry(cid, len(chunk), len(chunk)))

    def _push(self, level: int, entry: Entry) -> None:
        if level == len(self._levels):
            self._levels.append([])
        if len(self._levels[level]) == LINKS_MAX:
            full, self._levels[level] = self._levels[level], []
            self._push(level + 1, self._parent(full))
        self._levels[level].append(entry)

    def _parent(self, group: list[Entry]) -> Entry:
        size = sum(e.size_bytes for e in group)
        unixfs = protobuf.number(1, _FILE) + protobuf.number(3, size)
        unixfs += b"".join(protobuf.number(4, e.size_bytes) for e in group)
        block = node_block(group, unixfs)
        cid = cid_of(DAG_PB, block)
        self._store(cid, block)
        return Entry(cid, size, len(block) + sum(e.total_bytes for e in group))

    def finish(self) -> Entry:
        """Return the root."""
        if self._levels == [[]]:
            self.add_chunk(b"")
        level = 0
        while True:
            group = self._levels[level]
            if level == len(self._levels) - 1 and len(group) == 1:
                return group[0]
            if group:
                self._push(level + 1, self._parent(group))
            level += 1


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise UnixfsError("a number does not end")
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at


def _fields(data: bytes) -> list[tuple[int, int | bytes]]:
    found: list[tuple[int, int | bytes]] = []
    at = 0
    while at < len(data):
        key, at = _read_varint(data, at)
        if key & 7 == 0:
            value, at = _read_varint(data, at)
            found.append((key >> 3, value))
        elif key & 7 == 2:
            size, at = _read_varint(data, at)
            if size > len(data) - at:
                raise UnixfsError("a field is longer than its block")
            found.append((key >> 3, data[at : at + size]))
            at += size
        else:
            raise UnixfsError("a field of an unknown wire type")
    return found


def parse_node(cid: str, block: bytes) -> Node:
    """Return what a block (already checked against its CID) is.

    Raises:
        UnixfsError: not a file, a folder, or a well made block of a sharded one.
    """
    if parse_cid(cid).codec != DAG_PB:
        return Node(False, (), block, len(block))
    raw_links, unixfs = [], b""
    for tag, value in _fields(block):
        if tag == 2 and isinstance(value, bytes):
            raw_links.append(_parse_link(value))
        elif tag == 1 and isinstance(value, bytes):
            unixfs = value
    kind, size, data, sizes, hashed, fanout = -1, 0, b"", [], 0, 0
    for tag, value in _fields(unixfs):
        if tag == 1 and isinstance(value, int):
            kind = value
        elif tag == 2 and isinstance(value, bytes):
            data = value
        elif tag == 3 and isinstance(value, int):
            size = value
        elif tag == 4 and isinstance(value, int):
            sizes.append(value)
        elif tag == 5 and isinstance(value, int):
            hashed = value
        elif tag == 6 and isinstance(value, int):
            fanout = value
    if kind == SHARD:
        return _shard(cid, raw_links, data, hashed, fanout)
    if kind == _DIRECTORY:
        return Node(True, tuple(raw_links), b"", 0)
    if kind not in (_FILE, _RAW_TYPE) or (raw_links and len(sizes) != len(raw_links)):
        raise UnixfsError(f"{cid} is a UnixFS node of a kind that is not read")
    entries = tuple(
        Entry(link.cid, length, link.total_bytes)
        for link, length in zip(raw_links, sizes, strict=False)
    )
    return Node(False, entries, data, size)


def _shard(cid: str, links: list[Entry], bits: bytes, hashed: int, fanout: int) -> Node:
    """Return a block of a sharded folder: a link for every bit that is set, at its place."""
    if hashed != HASH_MURMUR3 or fanout not in _FANOUTS:
        raise UnixfsError(f"{cid} is a folder sharded in a way that is not read")
    places = int.from_bytes(bits, "big")
    if len(bits) > fanout // 8 or places.bit_count() != len(links):
        raise UnixfsError(f"{cid} is a shard with other links than it says")
    width = len(f"{fanout - 1:X}")
    for link in links:  # in the order of their bits
        place = (places & -places).bit_length() - 1
        places &= places - 1
        if link.name[:width] != f"{place:0{width}X}":
            raise UnixfsError(f"{cid} is a shard with a link at the wrong place")
    return Node(True, tuple(links), b"", 0, fanout)


def dag_pb_links(block: bytes) -> list[str]:
    """Return what any dag-pb block links to, in order; UnixfsError when it is none."""
    fields = _fields(block)
    return [_parse_link(v).cid for tag, v in fields if tag == 2 and isinstance(v, bytes)]


def _parse_link(data: bytes) -> Entry:
    cid, name, total = "", "", 0
    for tag, value in _fields(data):
        if tag == 1 and isinstance(value, bytes):
            try:
                cid = cid_text_of_any(value)
            except CidError as error:
                raise UnixfsError(str(error)) from None
        elif tag == 2 and isinstance(value, bytes):
            name = value.decode(errors="strict") if value.isascii() else _utf8(value)
        elif tag == 3 and isinstance(value, int):
            total = value
    if not cid:
        raise UnixfsError("a link without a CID")
    return Entry(cid, 0, total, name)


def _utf8(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise UnixfsError("a name that is not UTF-8") from None
