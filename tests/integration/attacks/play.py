"""Plays the table against one node."""

import time
from collections.abc import Sequence

from tests.integration.attacks.lab import laboratory
from tests.integration.attacks.table import Attack, Outcome, judge

__all__ = ["TOO_FEW", "play"]

#: A table of fewer rows is not the table.
TOO_FEW = 40


async def play(
    rows: Sequence[Attack],
    say: bool = True,
    plants: tuple[str, ...] = (),
    patience_s: float = 20.0,
) -> list[Outcome]:
    """Try these attacks, one after the other, on one node."""
    outcomes = []
    async with laboratory(plants) as lab:
        for row in rows:
            began = time.monotonic()
            outcome = await judge(lab, row, patience_s)
            outcome.took_s = time.monotonic() - began
            outcomes.append(outcome)
            if say:
                word = "refused" if not outcome.wrong else "NOT REFUSED"
                print(f"{outcome.took_s:6.2f} s  {word}  {row.name}", flush=True)
            if lab.node.process.poll() is not None:
                break
    return outcomes
