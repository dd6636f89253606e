"""The Range header: every answer is what a slow reading of RFC 9110 gives, and never raises."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pairio_node.api.ranges import RANGES_MAX, Unsatisfiable, parse_ranges

_number = st.integers(0, 40)
_part = st.one_of(
    st.builds("{}-{}".format, _number, _number),
    st.builds("{}-".format, _number),
    st.builds("-{}".format, _number),
)


def _bytes_of(part: str, size: int) -> list[int] | None:
    """The positions that one part names, by looking at every one; None: it is no range."""
    first, _, last = part.partition("-")
    if first and last and int(last) < int(first):
        return None
    if not first:
        return list(range(size))[max(0, size - int(last)) :] if int(last) else []
    return [at for at in range(size) if at >= int(first) and (not last or at <= int(last))]


@given(st.lists(_part, min_size=1, max_size=5), st.integers(0, 30))
@example(["0-0", "-1"], 1)
@example(["5-9", "0-4"], 10)
def test_a_valid_header_gives_the_bytes_that_it_names(parts: list[str], size: int) -> None:
    named = [_bytes_of(part, size) for part in parts]
    met = [positions for positions in named if positions]
    every = [at for positions in met for at in positions]
    try:
        found = parse_ranges(f"bytes={','.join(parts)}", size)
    except Unsatisfiable as error:
        assert None not in named
        assert (met, str(error)) == ([], f"bytes */{size}")
        return
    if None in named or len(set(every)) != len(every):
        assert found is None, "no range, or overlapping ones: the whole"
    else:
        assert found is not None
        assert [list(range(*pair)) for pair in found] == met


@given(st.text(max_size=40), st.integers(0, 2**63))
def test_no_text_is_an_error_other_than_unsatisfiable(text: str, size: int) -> None:
    for header in (text, f"bytes={text}"):
        try:
            found = parse_ranges(header, size)
        except Unsatisfiable:
            continue
        for start, stop in found or []:
            assert 0 <= start < stop <= size


@pytest.mark.parametrize(
    ("header", "found"),
    [
        (None, None),
        ("", None),
        ("bytes", None),
        ("bytes=", None),
        ("bytes=,", None),
        ("BYTES=0-1", [(0, 2)]),
        ("bytes= 0-1 ,\t4-4,", [(0, 2), (4, 5)]),
        ("bytes=0-1;4-4", None),
        ("bytes=--1", None),
        ("bytes=1_0-2_0", None),
        ("bytes=\u0660-\u0661", None),  # digits elsewhere
        (f"bytes={','.join(f'{2 * n}-{2 * n}' for n in range(RANGES_MAX))}", RANGES_MAX),
        (f"bytes={','.join(f'{2 * n}-{2 * n}' for n in range(RANGES_MAX + 1))}", None),
    ],
)
def test_what_is_no_range_is_the_whole(header: str | None, found: object) -> None:
    got = parse_ranges(header, 100)
    assert (len(got) if isinstance(found, int) and got else got) == found
