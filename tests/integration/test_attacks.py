"""A part of the attack table in every test run (`make attacks` tries all of it), and that the table
finds a check that is switched off."""

import pytest

from tests.integration.attacks.page import is_fresh
from tests.integration.attacks.planted import FAULTS
from tests.integration.attacks.play import TOO_FEW, play
from tests.integration.attacks.rows import ROWS

#: One or two of each part, quick ones.
_QUICK = (
    "digest of a stranger",
    "blocks asked for by a stranger",
    "a trusted peer named as a second admin",
    "a result without the role compute",
    "an award of another's request",
    "a segment with a forged signature",
    "a forked log",
    "segments parked beyond gaps, to exhaust memory",
    "a signature of an older admin set",
    "a removed admin's longer branch",
    "a segment of a removed member, of today",
    "an invitation used twice",
    "frames that are no messages",
    "API from another origin",
)


@pytest.mark.integration
async def test_attacks_are_refused_and_counted_and_move_nothing() -> None:
    rows = [row for row in ROWS if row.name in _QUICK]
    assert len(rows) == len(_QUICK)
    outcomes = await play(rows, say=False)
    assert [(o.attack.name, o.wrong) for o in outcomes if o.wrong] == []


@pytest.mark.integration
async def test_a_check_that_is_switched_off_is_found() -> None:
    names = {row for _, _, _, row in FAULTS.values()}
    rows = [row for row in ROWS if row.name in names]
    outcomes = await play(rows, say=False, plants=tuple(FAULTS), patience_s=1.0)
    assert {o.attack.name for o in outcomes if o.wrong} == names


def test_the_page_tells_of_every_attack() -> None:
    names = [row.name for row in ROWS]
    assert len(set(names)) == len(names) >= TOO_FEW
    assert is_fresh(ROWS), "make attacks WRITE=1"
