"""`python -m tests.integration.escape [--write] [--only RUNNER] [--plant HOLE]`: all of it."""

import argparse
import sys
import tempfile
from pathlib import Path

import trio

from pairio_node.runner import Launcher
from tests.integration.escape.kinds import KINDS, planted
from tests.integration.escape.lab import Found, all_names, open_lab
from tests.integration.escape.page import write_page


async def _play(kinds: list[str], names: tuple[str, ...], plant: str) -> dict[str, Found]:
    """Try everything outside, and in each kind of runner that this machine has."""
    with open_lab(names) as lab, tempfile.TemporaryDirectory() as folder:
        columns = {"outside": await lab.outside()}
        with Launcher(Path(folder) / "alive") as launcher:
            for name in kinds:
                async with KINDS[name](launcher, Path(folder)) as kind:
                    if isinstance(kind, str):
                        print(f"{name}: not on this machine: {kind}")
                        continue
                    runner = planted(kind.runner, plant) if plant else kind.runner
                    columns[name] = await lab.inside(runner, kind.spec_of, kind.forwards_inside)
                    for own in set(kind.is_own) & columns[name].keys():
                        columns[name][own] = ("denied", "of others: it is the job's own")
    return columns


def main() -> int:
    """Try to get out; 1 when something leaked, or nothing was tried."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--write", action="store_true", help="write the table into docs/sandbox.md")
    parser.add_argument("--only", action="append", default=[], help="this runner only; repeat it")
    parser.add_argument("--attempt", action="append", default=[], help="this one only; repeat it")
    parser.add_argument("--plant", default="", help="a hole in the sandbox, to see it found")
    options = parser.parse_args()
    names = tuple(options.attempt or all_names())
    columns = trio.run(_play, options.only or list(KINDS), names, options.plant)
    outside = columns.pop("outside")
    worked = {name for name, (how, _) in outside.items() if how == "worked"}
    leaked, skipped = 0, 0
    for kind, found in columns.items():
        for name, (how, seen) in found.items():
            if how == "worked":
                leaked += 1
                print(f"LEAKED in {kind}: {name}: {seen}")
            if how == "absent" and name in worked:
                skipped += 1
                print(f"SKIPPED in {kind}: {name}: {seen}")
    for name, (how, seen) in outside.items():
        if how != "worked":
            print(f"not possible outside: {name}: {seen}")
    whole = not (options.only or options.attempt or options.plant)
    if options.write and whole and not leaked and not skipped:
        write_page(outside, columns)
    print(f"tried in: {', '.join(columns)}")
    print(f"attempts: {len(outside)}, worked outside: {len(worked)}, leaked: {leaked}")
    return 0 if columns and outside and worked and not leaked and not skipped else 1


sys.exit(main())
