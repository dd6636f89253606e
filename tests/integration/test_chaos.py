"""The quickest scenarios of chaos in every test run, and that broken promises are found.

`make chaos ROUNDS=n` plays all of them.
"""

import pytest

from tests.integration.chaos.lab import COST_S_MAX
from tests.integration.chaos.promises import ENDS, SAFE, SAME
from tests.integration.chaos.rounds import play, scenario_of
from tests.integration.chaos.scenarios import QUIET, SCENARIOS

pytestmark = pytest.mark.integration


@pytest.mark.parametrize(
    ("name", "seed"),
    [
        ("kill the computing node", 11),
        ("kill the submitter after submit", 1),
        ("fill a disk", 6),
        ("gossip off", 5),
    ],
)
def test_promises_hold(name: str, seed: int) -> None:
    outcome = play(SCENARIOS[name], seed)
    assert outcome.passed, outcome.details
    assert outcome.jobs
    if name == "kill the computing node":
        assert 0 < outcome.measured["cost_s"] <= COST_S_MAX < 20


@pytest.mark.parametrize(
    ("plant", "promise"),
    [("nobody computes", ENDS), ("blocks are gone", SAFE), ("a node forgets", SAME)],
)
def test_a_planted_fault_is_found(plant: str, promise: str) -> None:
    outcome = play(QUIET, 3, ends_s=4.0, plant=plant)
    assert outcome.broken == promise, outcome.details


def test_as_many_seeds_in_a_row_as_there_are_scenarios_play_them_all() -> None:
    deck = list(SCENARIOS.values())
    assert {scenario_of(seed, deck).name for seed in range(100, 100 + len(deck))} == set(SCENARIOS)
    assert all(scenario.promise for scenario in deck)
