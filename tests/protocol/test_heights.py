"""Heights by ranges: two members find where they differ without naming every log."""

import pytest

from pairio_protocol.errors import DecodeError
from pairio_protocol.ids import LogId
from pairio_protocol.machines.heights import Heights, bounds_of, key_of, range_of, ranges_in
from pairio_protocol.machines.log import Log
from pairio_protocol.segment import GENESIS, Segment


def log_of(number: int, height: int = 3) -> tuple[LogId, Log]:
    log_id = LogId(f"author {number}", number.to_bytes(16, "big"), 0)
    segment = Segment("service", log_id, 0, 1, GENESIS, b"", height, b"")
    return log_id, Log([segment], accepted=1)


def heights_of(count: int) -> Heights:
    heights = Heights()
    for number in range(count):
        heights.add(*log_of(number))
    return heights


def test_equal_logs_have_equal_summaries_in_whatever_order_they_came() -> None:
    other = Heights()
    for number in reversed(range(300)):
        other.add(*log_of(number))
    assert heights_of(300).summary(ranges=True) == other.summary(ranges=True)


def test_one_log_that_is_higher_is_found_among_a_thousand() -> None:
    mine, theirs = heights_of(999), heights_of(999)
    log_id, log = log_of(999, height=1)
    mine.add(log_id, log)
    theirs.add(*log_of(999, height=2))
    (bounds,) = mine.differing(theirs.summary(ranges=True))
    named = [i for _, i, _ in mine.within(bounds)]
    assert log_id in named
    assert len(named) < 20


def test_a_log_that_grows_or_goes_changes_the_digest() -> None:
    heights = heights_of(10)
    seen = {heights.digest()}
    log_id, log = log_of(10)
    heights.add(log_id, log)
    heights.changed(log_id)
    seen.add(heights.digest())
    log.accepted = 0
    heights.changed_all()
    seen.add(heights.digest())
    assert len(seen) == 2  # one of which nothing counts is as good as none
    heights.drop(log_id)
    assert heights.digest() == heights_of(10).digest()


def test_ranges_come_with_a_digest_when_they_are_few_or_asked_for() -> None:
    few, many = heights_of(10), heights_of(500)
    assert len(few.summary(ranges=False)) > 32
    assert len(many.summary(ranges=False)) == 32
    assert many.asks_for_ranges(few.digest())
    assert not many.asks_for_ranges(many.summary(ranges=True))


def test_differing_ranges_cover_every_log_that_differs() -> None:
    mine, theirs = heights_of(400), heights_of(500)
    for summary in (theirs.summary(ranges=True), theirs.digest()):
        covered = {r for bounds in mine.differing(summary) for r in ranges_in(bounds)}
        assert {range_of(log_of(n)[0]) for n in range(400, 500)} <= covered


def test_bounds_of_neighbouring_ranges_are_one_and_the_ends_are_open() -> None:
    assert bounds_of([0, 1, 2, 7]) == [(b"", b"\x03"), (b"\x07", b"\x08")]
    assert bounds_of([255]) == [(b"\xff", b"")]
    assert bounds_of([0, 1, 2, 3], count=4) == [(b"", b"")]


def test_every_log_lies_within_the_bounds_of_its_range_and_of_no_other() -> None:
    heights = heights_of(300)
    log_id, _ = log_of(7)
    (bounds,) = bounds_of([range_of(log_id)])
    assert log_id in [i for _, i, _ in heights.within(bounds)]
    assert sum(len(heights.within(b)) for r in range(256) for b in bounds_of([r])) == 300
    keys = [key for key, _, _ in heights.within()]
    assert keys == sorted(keys)
    assert keys.count(key_of(log_id)) == 1


@pytest.mark.parametrize("size", [0, 31, 33, 32 + 3 * 8, 32 + 512 * 8])
def test_what_is_no_summary_is_refused(size: int) -> None:
    with pytest.raises(DecodeError):
        heights_of(3).differing(bytes(size))
