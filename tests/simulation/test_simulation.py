"""A few seeds in every test run; `make simulate` and `make defects` do the many."""

import inspect
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from defects import DEFECTS, Defect, caught
from laws import LAWS
from scenario import FAULTS, run_seed


@pytest.mark.parametrize("seed", range(6))
def test_no_law_is_broken(seed: int) -> None:
    life = run_seed(seed, 3 + seed % 4)
    assert life.laws.accepted
    assert set(life.laws.looks) <= set(LAWS)


def test_the_same_seed_is_the_same_run() -> None:
    one, other = run_seed(7, 4), run_seed(7, 4)
    assert one.world.counts == other.world.counts
    assert one.world.story == other.world.story
    assert one.laws.transitions == other.laws.transitions
    assert sorted(one.laws.accepted) == sorted(other.laws.accepted)


@pytest.mark.parametrize("name", ["ack before commit", "sync off by one", "capacity ignored"])
def test_a_planted_defect_is_noticed(name: str) -> None:
    defect = next(d for d in DEFECTS if d.name == name)
    found = caught(defect)
    assert found is not None
    assert found[1] in defect.laws


def test_every_planted_defect_names_laws_that_exist() -> None:
    assert len(DEFECTS) >= 24
    assert len({d.name for d in DEFECTS}) == len(DEFECTS)
    assert all(d.laws and d.laws <= set(LAWS) for d in DEFECTS)
    assert len(set(FAULTS)) > 10


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.name)
def test_a_planted_defect_takes_what_the_right_code_takes(defect: Defect) -> None:
    """A patch of a function that changed breaks every life for the wrong reason."""
    for owner, name, wrong in defect.patches:
        right = owner.__dict__[name]
        if isinstance(right, property):
            assert isinstance(wrong, property)
            continue
        parameters = inspect.signature(_bare(right)).parameters.values()
        plain = [p for p in parameters if p.kind is not p.KEYWORD_ONLY]
        named = {p.name: None for p in parameters if p.kind is p.KEYWORD_ONLY}
        inspect.signature(_bare(wrong)).bind(*plain, **named)


def _bare(function: Any) -> Any:
    is_wrapped = isinstance(function, staticmethod | classmethod)
    return function.__func__ if is_wrapped else function
