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
    parser.add_argument("--only", default="", help="only rows whose names hold this")
    options = parser.parse_args()
    rows = [row for row in ROWS if options.only in row.name]
    outcomes = trio.run(play, rows)
    refused = sum(not outcome.wrong for outcome in outcomes)
    for outcome in outcomes:
        if outcome.wrong:
            print(f"NOT REFUSED: {outcome.attack.name}: {'; '.join(outcome.wrong)}")
    whole = not options.only
    if options.write and whole and refused == len(outcomes):
        write_page(ROWS)
    print(f"attacks: {len(outcomes)}, refused: {refused}")
    return 0 if refused == len(outcomes) and not (whole and len(outcomes) < TOO_FEW) else 1


sys.exit(main())
