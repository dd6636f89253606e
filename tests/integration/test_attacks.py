"""A part of the attack table in every test run (`make attacks` tries all of it), and that the table
finds a check that is switched off."""

import subprocess
import sys

import pytest

from tests.integration.attacks.page import is_fresh
from tests.integration.attacks.planted import FAULTS
from tests.integration.attacks.play import TOO_FEW
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
    "a proposal, replayed after it was overtaken",
    "a wish, replayed after its peer has left",
    "an answer from one who was not asked",
    "more open jobs of one guest",
    "a stranger's request beyond the limits",
    "another guest's result",
    "a result that its sponsor signed",
    "frames that are no messages",
    "wrong bytes for a CID",
    "a stranger who knows an attempt",
    "one member's flood of streams for consoles",
    "a reader who knows the attempt",
    "another URL than the job's inputs",
    "find of a stranger",
    "give of another service's member",
    "one job's holders, all of one member",
    "a forged result, given by a holder",
    "a place at a relay, for a stranger",
    "another than the node's relay says",
    "API from another origin",
)


def _played(names: list[str], *plants: str) -> list[str]:
    """Play these rows in a program of their own (libp2p leaves sockets to the garbage collector);
    return the names of those that were not refused."""
    options = [word for name in names for word in ("--row", name)]
    options += [word for plant in plants for word in ("--plant", plant)]
    run = subprocess.run(
        [sys.executable, "-m", "tests.integration.attacks", *options],
        capture_output=True,
        text=True,
        timeout=110,
    )
    *lines, last = run.stdout.splitlines()
    open_ = [line.split(": ")[1] for line in lines if line.startswith("NOT REFUSED: ")]
    assert last == f"attacks: {len(names)}, refused: {len(names) - len(open_)}", run.stderr
    assert run.returncode == (1 if open_ else 0)
    return open_


@pytest.mark.integration
def test_attacks_are_refused_and_counted_and_move_nothing() -> None:
    assert {row.name for row in ROWS} >= set(_QUICK)
    assert _played(list(_QUICK)) == []


@pytest.mark.integration
def test_a_check_that_is_switched_off_is_found() -> None:
    names = [row for _, _, _, row in FAULTS.values()]
    assert set(_played(names, *FAULTS)) == set(names)


def test_the_page_tells_of_every_attack() -> None:
    names = [row.name for row in ROWS]
    assert len(set(names)) == len(names) >= TOO_FEW
    assert is_fresh(ROWS), "make attacks WRITE=1"
