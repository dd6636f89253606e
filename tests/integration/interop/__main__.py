"""`python -m tests.integration.interop [--sizes 1,20,200] [--write]`: pairio and a real Kubo, both
ways. The last line counts; 1 when a row is wrong, or there is none."""

import argparse
import os
import sys
import tempfile
from pathlib import Path

import pytest

from tests.integration.interop.lab import make_lab
from tests.integration.interop.rows import Row, play
from tests.integration.kubo import StartKubo

PAGE = Path(__file__).parents[3] / "docs" / "interop.md"
_MIB = 2**20


def _size(row: Row) -> str:
    if not row.size_bytes:
        return ""
    mib = row.size_bytes / _MIB
    return f"{mib:.0f} MiB" if mib >= 0.5 else f"{row.size_bytes} B"


def _line(row: Row) -> str:
    is_large = row.size_bytes >= 4 * _MIB and "killed" not in row.what
    rate = f"{row.size_bytes / _MIB / row.seconds:.0f} MiB/s" if is_large else ""
    came = row.wrong or "yes"
    return (
        f"| {row.direction} | {row.what} | {_size(row)} | {row.seconds:.2f} s | {rate} | {came} |"
    )


def _page(version: str, rows: list[Row], notes: str) -> str:
    lines = [
        "# Interoperation with Kubo",
        "",
        "Made by `make interop WRITE=1` (`tests/integration/interop`): processes on loopback, a",
        "node that submits, one that computes, one that knows no Kubo, and the Kubo of",
        "`scripts/kubo`.",
        "[Public results and Bitswap](bitswap.md) says what is served and asked for.",
        "",
        f"{version}; {notes}",
        "",
        "| direction | what | size | time | rate | right |",
        "|---|---|---|---|---|---|",
        *map(_line, rows),
        "",
        "Every row compares what came. Times of `ipfs` hold the start of the command, about 0.1 s;",
        "those of inputs are of the `pairio submit` that fetches them, 0.4 s with nothing to do;",
        "that of the killed Kubo holds its start, and the 10 s after which a node looks for a peer",
        "that it lost. A stranger is given at most 32 MiB a second.",
        "",
    ]
    return "\n".join(lines)


def main() -> int:
    """Play all rows; print each, then the count."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--sizes", default="1,20,200", help="MiB of files and folders")
    parser.add_argument("--write", action="store_true", help="write docs/interop.md")
    options = parser.parse_args()
    sizes = [round(float(size) * _MIB) + 7 for size in options.sizes.split(",")]
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        try:
            start_kubo = StartKubo(Path(folder))
        except (pytest.skip.Exception, pytest.fail.Exception) as error:
            print(f"no Kubo: {error}")
            return 1
        try:
            with make_lab(Path(folder), start_kubo) as lab:
                for row in play(lab, sizes):
                    rows.append(row)
                    print(_line(row), flush=True)
                version = lab.kubo.version
                peak = f"the submitting node took at most {lab.peak_mb(lab.submitter):.0f} MB"
        finally:
            start_kubo.stop_all()
    right = sum(not row.wrong for row in rows)
    if options.write and rows and right == len(rows):
        cores = os.cpu_count()
        notes = f"{cores} cores, other work beside it; {peak} of memory."
        PAGE.write_text(_page(version, rows, notes))
    print(f"{version}: {peak}")
    print(f"interop: {len(rows)} rows, {right} right")
    return 0 if rows and right == len(rows) else 1


sys.exit(main())
