"""What may go from a block store: never what is kept, the least recently used first, enough of it.

The graphs are random; the roots, what is kept and the uses too. `model` says what must stay and go
by the words of the module alone, block by block.
"""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pairio_node.blocks import Content, DiskBlockStore
from pairio_node.blocks.collector import (
    Block,
    Gone,
    Pace,
    Stopped,
    Survey,
    links_in,
    plan,
    reasons_below,
    survey,
)
from pairio_protocol.cid import RAW, cid_of
from pairio_protocol.documents import Link, document_cid, encode


@st.composite
def surveys(draw: st.DrawFn) -> Survey:
    """A store: block i links only to later ones, as hashes make it; used at some time each."""
    count = draw(st.integers(1, 12))
    names = [f"b{i:02}" for i in range(count)]
    found = Survey()
    for i, name in enumerate(names):
        found.blocks[name] = Block(draw(st.integers(0, 100)), draw(st.integers(0, 9)))
        below = names[i + 1 :]
        links = draw(st.lists(st.sampled_from(below), unique=True, max_size=4)) if below else []
        if links:
            found.links[name] = tuple(links)
    return found


@st.composite
def cases(draw: st.DrawFn) -> tuple[Survey, set[str], set[str], int]:
    found = draw(surveys())
    some = st.sets(st.sampled_from([*found.blocks, "not here"]), max_size=4)
    return found, draw(some), draw(some), draw(st.integers(-1, 1000))


def _under(found: Survey, roots: set[str]) -> set[str]:
    """What lies under roots, the slow and obvious way."""
    under = roots & set(found.blocks)
    while more := {c for cid in under for c in found.links.get(cid, ())} - under:
        under |= more
    return under


def _all(gone: list[Gone]) -> list[str]:
    return [cid for one in gone for cid in one.cids]


@given(cases())
def test_nothing_under_what_is_kept_goes_and_nothing_twice(
    case: tuple[Survey, set[str], set[str], int],
) -> None:
    found, kept, named, free_bytes = case
    cids = _all(plan(found, kept, named, free_bytes))
    assert not set(cids) & _under(found, kept)
    assert len(cids) == len(set(cids)) and set(cids) <= set(found.blocks)


@given(cases())
def test_enough_goes_or_all_that_may_and_not_a_root_more_than_needed(
    case: tuple[Survey, set[str], set[str], int],
) -> None:
    found, kept, named, free_bytes = case
    gone = plan(found, kept, named, free_bytes)
    freed = found.size_of(_all(gone))
    may_go = set(found.blocks) - _under(found, kept)
    assert freed >= free_bytes or set(_all(gone)) == may_go
    if gone:
        assert freed - found.size_of(gone[-1].cids) < free_bytes


@given(cases())
def test_the_least_recently_used_go_first_and_what_a_later_root_needs_stays(
    case: tuple[Survey, set[str], set[str], int],
) -> None:
    found, kept, named, free_bytes = case
    gone = plan(found, kept, named, free_bytes)
    linked = {child for children in found.links.values() for child in children}
    roots = (set(found.blocks) - linked) | (named & set(found.blocks))
    roots -= _under(found, kept)
    order = sorted(roots, key=lambda cid: (found.blocks[cid].used_unix_s, cid))
    assert [one.root for one in gone] == [r for r in order if r in {one.root for one in gone}]
    last = max((order.index(one.root) for one in gone), default=-1)
    younger = _under(found, set(order[last + 1 :]))
    assert not set(_all(gone)) & younger
    # and of the older ones nothing is left that no younger one needs
    older = _under(found, set(order[: last + 1]))
    assert older - younger - _under(found, kept) == set(_all(gone))


@given(cases())
def test_whatever_is_left_at_any_moment_has_no_root_above_parts_that_went_before_it(
    case: tuple[Survey, set[str], set[str], int],
) -> None:
    found, kept, named, free_bytes = case
    left = set(found.blocks)
    for cid in _all(plan(found, kept, named, free_bytes)):
        assert not any(cid in found.links.get(parent, ()) for parent in left)
        left.discard(cid)


@given(surveys(), st.data())
def test_every_byte_is_counted_under_one_reason(found: Survey, data: st.DataObject) -> None:
    some = st.sets(st.sampled_from(list(found.blocks)), max_size=3)
    pinned, live = data.draw(some), data.draw(some)
    sizes = reasons_below(found, {"pinned": pinned, "live": live})
    assert sum(sizes.values()) == found.used_bytes
    assert sizes["pinned"] == found.size_of(_under(found, pinned))
    assert sizes["live"] == found.size_of(_under(found, live) - _under(found, pinned))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20)
@given(st.lists(st.integers(0, 3_000_000), min_size=1, max_size=3))
async def test_a_survey_of_a_store_sees_all_blocks_and_what_links_to_what(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int]
) -> None:
    path: Path = tmp_path_factory.mktemp("survey")
    store = DiskBlockStore(path / "blocks", 2**30)
    content = Content(store)
    (path / "folder").mkdir()
    for i, size in enumerate(sizes):
        (path / "folder" / str(i)).write_bytes(bytes([i]) * size)
    root = (await content.add_directory(path / "folder")).cid
    found = survey(store)
    here, missing = await content.walk(root)
    assert not missing
    assert found.below([root]) == set(here) == set(found.blocks)
    assert found.used_bytes == store.used_bytes


def test_links_of_documents_are_seen_and_blocks_of_other_kinds_have_none() -> None:
    output, job = cid_of(RAW, b"output"), cid_of(RAW, b"job")
    data = encode({"outputs": {"o": {"cid": Link(output)}}, "more": [Link(job), Link(output)]})
    assert set(links_in(document_cid(data), data)) == {output, job}
    assert links_in(cid_of(RAW, data), data) == ()
    assert links_in(cid_of(0x71, b"\xff"), b"\xff") == ()
    assert links_in(cid_of(0x70, b"\xff"), b"\xff") == ()


def test_a_collection_ends_where_it_is_when_the_node_does() -> None:
    pace = Pace()
    pace()
    pace.stop()
    with pytest.raises(Stopped):
        plan(Survey({"a": Block(1, 0)}), (), (), 1, pace)
