"""`python -m tests.integration.attacks [--write] [--only WORDS]`: the attack table, all of it."""

import argparse
import sys

import trio

from tests.integration.attacks.page import write_page
from tests.integration.attacks.play import TOO_FEW, play
from tests.integration.attacks.rows import ROWS


def main() -> int:
    """Try the attacks; 1 when one was not refused, or the table is too short."""
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--write", action="store_true", help="write the table into docs/security.md"
    )
    parser.add_argument("--only", default="", help="only rows whose names or parts hold this")
    parser.add_argument("--row", action="append", default=[], help="this row only; repeat it")
    parser.add_argument("--plant", action="append", default=[], help="a fault (planted.py)")
    options = parser.parse_args()
    named = [row for row in ROWS if row.name in options.row] if options.row else ROWS
    rows = [row for row in named if options.only in f"{row.part}: {row.name}"]
    patience_s = 1.0 if options.plant else 20.0
    outcomes = trio.run(play, rows, True, tuple(options.plant), patience_s)
    refused = sum(not outcome.wrong for outcome in outcomes)
    for outcome in outcomes:
        if outcome.wrong:
            print(f"NOT REFUSED: {outcome.attack.name}: {'; '.join(outcome.wrong)}")
    whole = len(rows) == len(ROWS) and not options.plant
    if options.write and whole and refused == len(outcomes):
        write_page(ROWS)
    print(f"attacks: {len(outcomes)}, refused: {refused}")
    return 0 if refused == len(outcomes) and not (whole and len(outcomes) < TOO_FEW) else 1


sys.exit(main())
