"""`python -m tests.integration.lookups [--repeats N] [--write]`: see the package.

One real node is asked for jobs by id over its API. The others are members in this process: real
libp2p connections, and the shipped code of the DHT. The last line counts; it fails when a count is
zero or something was not found.
"""

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import trio

from tests.integration.attacks.lab import laboratory
from tests.integration.lookups.daemons import by_kubo
from tests.integration.lookups.measures import Row, at_node, hops, provides
from tests.integration.lookups.members import members

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "dht.md"
_BEGIN, _END = "<!-- measured -->\n", "<!-- /measured -->"
LOOKS = ["| who has it | look-ups | found | p50, ms | p99, ms | CPU of the asking node, ms | |",
         "|---|---|---|---|---|---|---|"]  # fmt: skip
COSTS = ["| to be found | on the wire | p50, ms | CPU here, ms | CPU there, ms |",
         "|---|---|---|---|---|"]  # fmt: skip


def _kubo() -> Path | None:
    run = subprocess.run(
        [ROOT / "scripts" / "kubo", "--cached"], capture_output=True, text=True, check=False
    )
    return Path(run.stdout.strip()) if run.returncode == 0 else None


async def _all(
    repeats: int, folder: Path, program: Path | None
) -> tuple[list[Row], list[str], int]:
    async with laboratory() as lab, members(lab) as them:
        noted, costs = await provides(lab, them, min(repeats, 60))
        rows = await at_node(lab, them, repeats)
        rows.append(await hops(lab, them, repeats))
    if program is not None:
        more, lines = await by_kubo(program, folder, max(5, repeats // 2))
        rows += more
        costs += lines
    return rows, costs, noted


def main() -> int:
    """Measure; 1 when nothing was looked for, or was not found."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--write", action="store_true", help=f"put the tables into {PAGE.name}")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="pairio-lookups-"))
    program = _kubo()
    try:
        rows, costs, noted = trio.run(_all, options.repeats, folder, program)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    *costs, version = costs if program is not None else (*costs, "No Kubo here.")
    load = ", ".join(f"{load:.1f}" for load in os.getloadavg())
    about = (
        f"{os.cpu_count()} CPUs, load average {load}, Python {platform.python_version()}, all on"
        f" loopback. {version}"
    )
    lines = [*LOOKS, *(row.line() for row in rows), "", *COSTS, *costs, "", about]
    print("\n".join(lines))
    if options.write:
        head, _, rest = PAGE.read_text().partition(_BEGIN)
        PAGE.write_text(head + _BEGIN + "\n".join(lines) + "\n" + _END + rest.partition(_END)[2])
    wanted = [row for row in rows if not row.in_vain]
    found, looked = sum(row.found for row in wanted), sum(row.tried for row in wanted)
    vain = sum(row.tried for row in rows if row.in_vain)
    kubo = sum(row.found for row in wanted if row.what.startswith("Kubo"))
    print(f"found: {found} of {looked}, in vain: {vain}, told: {noted}, by Kubo: {kubo}")
    needs_kubo = os.environ.get("CI") == "true" or program is not None
    whole = all(row.found for row in wanted) and vain and noted and found >= looked * 0.95
    return 0 if whole and (kubo or not needs_kubo) else 1


sys.exit(main())
