"""Large folders: the same shards as Kubo makes, read within bounds, and nothing else believed."""

import json
from pathlib import Path
from typing import Any

import mmh3
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pairio_protocol import protobuf, shards
from pairio_protocol.cid import DAG_PB, RAW, cid_of
from pairio_protocol.shards import Listing, find, folder_of
from pairio_protocol.unixfs import Entry, FileBuilder, Node, UnixfsError, node_block, parse_node

Blocks = dict[str, bytes]
VECTORS = json.loads(
    (Path(__file__).parents[2] / "protocol" / "vectors" / "unixfs.json").read_text()
)["folders"]
LEAF = cid_of(RAW, b"x")


def file(name: str, data: bytes = b"x") -> Entry:
    return Entry(cid_of(RAW, data), len(data), len(data), name)


def listed(blocks: Blocks, root: str) -> list[Entry]:
    listing = Listing(parse_node(root, blocks[root]))
    while (shard := listing.next) is not None:
        listing.take(parse_node(shard, blocks[shard]))
    return listing.entries


def looked_up(blocks: Blocks, root: str, name: str) -> tuple[Entry | None, int]:
    node, depth = parse_node(root, blocks[root]), 0
    entry, is_shard = find(node, name)
    while entry is not None and is_shard:
        depth += 1
        entry, is_shard = find(parse_node(entry.cid, blocks[entry.cid]), name, depth)
    return entry, depth


@pytest.mark.parametrize("vector", VECTORS, ids=[str(v["count"]) for v in VECTORS])
def test_a_folder_has_the_cid_that_kubo_gives_it(vector: dict[str, Any]) -> None:
    """`name` has the number of the file in it, which is also what is in the file."""
    entries = [file(vector["name"] % i, str(i).encode()) for i in range(vector["count"])]
    blocks: Blocks = {}
    root = folder_of(entries, blocks.__setitem__)
    assert root.cid == vector["cid"]
    assert root.size_bytes == sum(e.size_bytes for e in entries)
    assert root.total_bytes == root.size_bytes + sum(map(len, blocks.values()))
    assert (len(blocks) > 1) == (vector["count"] > 4946)
    assert {e.name: e.cid for e in listed(blocks, root.cid)} == {e.name: e.cid for e in entries}


def _is_utf8(name: str) -> bool:
    return not any(0xD800 <= ord(c) < 0xE000 for c in name)


NAMES = st.text(min_size=1, max_size=30).filter(_is_utf8)


@given(st.sets(NAMES, max_size=300), st.sets(NAMES, max_size=20))
@settings(deadline=None, max_examples=40)
def test_what_goes_in_comes_out_by_list_and_by_name(names: set[str], others: set[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "DIRECTORY_SIZE_BYTES_MAX", 0)  # small ones in shards, too
        blocks: Blocks = {}
        root = folder_of([file(name, name.encode()) for name in names], blocks.__setitem__)
    found = listed(blocks, root.cid)
    assert sorted(e.name for e in found) == sorted(names)
    assert all(e.cid == cid_of(RAW, e.name.encode()) for e in found)
    for name in names:
        entry, _ = looked_up(blocks, root.cid, name)
        assert entry is not None and entry.name == name
    for name in others - names:
        assert looked_up(blocks, root.cid, name)[0] is None


@given(st.lists(NAMES, min_size=1, max_size=50, unique=True), st.randoms())
@settings(deadline=None, max_examples=20)
def test_the_order_of_entries_does_not_matter(names: list[str], random: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "DIRECTORY_SIZE_BYTES_MAX", 0)
        one = folder_of([file(name) for name in names], lambda *_: None)
        random.shuffle(names)
        assert folder_of([file(name) for name in names], lambda *_: None) == one


def test_a_name_of_twenty_thousand_is_found_in_a_few_blocks() -> None:
    blocks: Blocks = {}
    root = folder_of([file(f"{i:05}") for i in range(20_000)], blocks.__setitem__)
    assert len(blocks) > 2000
    assert looked_up(blocks, root.cid, "12345")[1] <= 3


# -- bounds ---------------------------------------------------------------------------------


def test_more_entries_than_a_folder_may_have_are_neither_made_nor_listed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    blocks: Blocks = {}
    root = folder_of([file(f"{i:05}") for i in range(6000)], blocks.__setitem__)
    monkeypatch.setattr(shards, "FOLDER_ENTRIES_MAX", 5999)
    with pytest.raises(UnixfsError, match="6000 entries; at most 5999"):
        folder_of([file(f"{i:05}") for i in range(6000)], lambda *_: None)
    with pytest.raises(UnixfsError, match="more than 5999 entries"):
        listed(blocks, root.cid)


def test_names_that_share_all_of_their_hash_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "_hash", lambda _: 7)  # whoever wants can find such names
    monkeypatch.setattr(shards, "DIRECTORY_SIZE_BYTES_MAX", 0)
    with pytest.raises(UnixfsError, match="too deep"):
        folder_of([file("a"), file("b")], lambda *_: None)


# -- what others may send -------------------------------------------------------------------


def shard(links: list[Entry], places: int, *, hashed: int = 0x22, fanout: int = 256) -> bytes:
    unixfs = protobuf.number(1, 5)
    unixfs += protobuf.field(2, places.to_bytes((places.bit_length() + 7) // 8, "big"))
    return node_block(links, unixfs + protobuf.number(5, hashed) + protobuf.number(6, fanout))


def parsed(block: bytes) -> Node:
    return parse_node(cid_of(DAG_PB, block), block)


def place_of(name: str, depth: int = 0) -> int:
    return int(mmh3.hash64(name.encode(), signed=False)[0].to_bytes(8, "big")[depth])


@pytest.mark.parametrize(
    "block",
    [
        pytest.param(shard([file("00a")], 0b10), id="a link at another place than its bit"),
        pytest.param(shard([file("00a")], 0b11), id="a bit without a link"),
        pytest.param(shard([file("00a"), file("01b")], 0b1), id="a link without a bit"),
        pytest.param(shard([file("01b"), file("00a")], 0b11), id="links out of order"),
        pytest.param(shard([file("00a"), file("00b")], 0b11), id="two links at one place"),
        pytest.param(shard([file("0")], 0b1), id="a name that is too short"),
        pytest.param(shard([file("0Aa"), file("0bb")], 0b1100 << 8), id="small letters"),
        pytest.param(shard([file("00a")], 1, hashed=0x12), id="another hash"),
        pytest.param(shard([file("00a")], 1, fanout=0), id="no fanout"),
        pytest.param(shard([file("00a")], 1, fanout=2**60), id="a fanout without end"),
        pytest.param(shard([file("00a")], 1, fanout=255), id="a fanout that is no power of two"),
        pytest.param(shard([file("00a")], 1 << 300), id="more bits than the fanout"),
    ],
)
def test_a_shard_that_is_not_well_made_is_refused(block: bytes) -> None:
    with pytest.raises(UnixfsError, match="shard"):
        parsed(block)


def test_a_name_at_a_place_of_another_is_refused() -> None:
    wrong = (place_of("a") + 1) % 256
    root = parsed(shard([file(f"{wrong:02X}a")], 1 << wrong))
    with pytest.raises(UnixfsError, match="at the wrong place"):
        Listing(root)
    assert find(root, "a") == (None, False)


def chain(name: str, depth: int, below: Entry) -> tuple[str, Blocks]:
    """Return shards one in the other on the way to `name`, with `below` at the end."""
    blocks: Blocks = {}
    for level in range(depth - 1, -1, -1):
        place = place_of(name, level)
        link = Entry(below.cid, 0, below.total_bytes, f"{place:02X}{below.name}")
        block = shard([link], 1 << place)
        below = Entry(cid_of(DAG_PB, block), 0, len(block))
        blocks[below.cid] = block
    return below.cid, blocks


def test_shards_one_in_the_other_end_with_the_hash() -> None:
    root, blocks = chain("a", 8, file("a"))
    assert [e.name for e in listed(blocks, root)] == ["a"]
    assert looked_up(blocks, root, "a")[0] == listed(blocks, root)[0]
    last = next(iter(blocks))  # the deepest, which names a file
    place = place_of("a", 7)
    deeper = shard([Entry(last, 0, 0, f"{place:02X}")], 1 << place)
    blocks[cid_of(DAG_PB, deeper)] = deeper
    root, more = chain("a", 7, Entry(cid_of(DAG_PB, deeper), 0, 0))
    with pytest.raises(UnixfsError, match="too deep"):
        listed(blocks | more, root)
    with pytest.raises(UnixfsError, match="too deep"):
        looked_up(blocks | more, root, "a")


def test_the_same_shard_in_many_places_is_looked_at_once_and_refused() -> None:
    """A few blocks of 256 links to the next name a folder of 256 ** 7 shards."""
    below, blocks = chain("a", 1, file("a"))
    for _ in range(7):
        links = [Entry(below, 0, 0, f"{place:02X}") for place in range(256)]
        block = shard(links, 2**256 - 1)
        below = cid_of(DAG_PB, block)
        blocks[below] = block
    with pytest.raises(UnixfsError, match=r"wrong place|too deep"):
        listed(blocks, below)


@pytest.mark.parametrize("what", ["empty shard", "plain folder", "file", "raw", "other fanout"])
def test_a_part_that_is_no_shard_of_the_folder_is_refused(what: str) -> None:
    blocks: Blocks = {}
    if what == "empty shard":
        below = Entry(cid_of(DAG_PB, shard([], 0)), 0, 0)
        blocks[below.cid] = shard([], 0)
    elif what == "plain folder":
        below = folder_of([file("a")], blocks.__setitem__)
    elif what == "file":
        builder = FileBuilder(blocks.__setitem__)
        builder.add_chunk(b"x" * 2**20)
        builder.add_chunk(b"y")
        below = builder.finish()
    elif what == "raw":
        below = file("", b"x")
        blocks[below.cid] = b"x"
    else:
        odd = shard([file("0a")], 1, fanout=16)
        below = Entry(cid_of(DAG_PB, odd), 0, 0)
        blocks[below.cid] = odd
    root, more = chain("a", 1, Entry(below.cid, 0, 0))
    with pytest.raises(UnixfsError, match="no shard of it"):
        listed(blocks | more, root)


@given(st.binary(max_size=300), st.integers(0, 2**20), st.sampled_from([8, 16, 256, 1024, 3, 0]))
def test_garbage_is_a_shard_or_an_error(bits: bytes, hashed: int, fanout: int) -> None:
    unixfs = protobuf.number(1, 5) + protobuf.field(2, bits)
    unixfs += protobuf.number(5, hashed) + protobuf.number(6, fanout)
    try:
        node = parsed(node_block([file("00a"), file("0Ab")], unixfs))
        Listing(node)
    except UnixfsError:
        return
    assert node.fanout == fanout
