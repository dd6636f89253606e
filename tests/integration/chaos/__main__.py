"""`python -m tests.integration.chaos --rounds N [--seed S]`: rounds of chaos, and a table."""

import argparse
import os
import secrets
import sys

from tests.integration.chaos.lab import PLANT
from tests.integration.chaos.rounds import Outcome, play, scenario_of
from tests.integration.chaos.scenarios import SCENARIOS

_SEEDS = 1_000_000


def main() -> int:
    """Play the rounds; 1 when one failed, none was asked for, or a scenario was left out."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, help="play this one round again")
    parser.add_argument("--from", type=int, dest="first", help="the first seed; default: by chance")
    options = parser.parse_args()
    unable = {s.name: why for s in SCENARIOS.values() if (why := s.why_not())}
    for name, why in unable.items():
        print(f"not on this machine: {name}: {why}")
    deck = [s for s in SCENARIOS.values() if s.name not in unable]
    first = options.first if options.first is not None else secrets.randbelow(_SEEDS)
    seeds = list(range(first, first + options.rounds))
    if options.seed is not None:
        seeds = [options.seed]
    if os.environ.get(PLANT):
        print(f"planted: {os.environ[PLANT]}")
    outcomes: list[Outcome] = []
    for number, seed in enumerate(seeds, 1):
        scenario = scenario_of(seed, deck)
        print(f"round {number} of {len(seeds)}: seed {seed}, {scenario.name}", flush=True)
        outcome = play(scenario, seed)
        outcomes.append(outcome)
        print(f"  {_line(outcome)}", flush=True)
        if not outcome.passed:
            print(f"  {outcome.details}\n  again: make chaos SEED={seed}", flush=True)
    _table(outcomes)
    left_out = sorted({s.name for s in deck} - {o.scenario for o in outcomes})
    whole = options.seed is None and options.rounds >= len(deck)
    if whole and left_out:
        print(f"never played: {', '.join(left_out)}")
    passed = sum(outcome.passed for outcome in outcomes)
    print(f"rounds: {len(seeds)}, passed: {passed}")
    return 0 if outcomes and passed == len(seeds) and not (whole and left_out) else 1


def _line(outcome: Outcome) -> str:
    measured = ", ".join(f"{name[:-2]} {s:.1f} s" for name, s in outcome.measured.items())
    parts = (outcome.broken and f"BROKEN: {outcome.broken}", measured, *outcome.notes)
    word = "passed" if outcome.passed else "failed"
    return f"{word} in {outcome.took_s:.1f} s; {'; '.join(part for part in parts if part)}"


def _table(outcomes: list[Outcome]) -> None:
    print(f"\n{'seed':>8}  {'scenario':<34} {'loss':>5} {'jobs':>4} {'took':>7}  what happened")
    for o in outcomes:
        text = _line(o)
        print(
            f"{o.seed:>8}  {o.scenario:<34} {o.loss_percent:>3} % {o.jobs:>4} {o.took_s:>5.1f} s"
            f"  {text}"
        )
    costs = [o.measured["cost_s"] for o in outcomes if "cost_s" in o.measured]
    if costs:
        print(f"losing the computing node cost {min(costs):.1f} to {max(costs):.1f} s")


if __name__ == "__main__":
    sys.exit(main())
