"""Try both sides one after the other, print the table, and with --write put it into the page.

The last line is `compared: N rows of 2 systems`; it fails when a finding is missing.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.integration.compare.findings import ROWS, table

_ROOT = Path(__file__).parents[3]
_PAGE = _ROOT / "docs/comparison.md"
_DASK = "distributed==2026.8.0"
_BEGIN, _END = "<!-- compared -->\n", "<!-- /compared -->"
_SIDE_S_MAX = 900


def _side(*argv: str) -> dict[str, Any]:
    done = subprocess.run(
        argv, stdout=subprocess.PIPE, text=True, timeout=_SIDE_S_MAX, cwd=_ROOT, check=True
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _python_with_dask() -> str:
    """Return an interpreter that has Dask, made when it is missing."""
    folder = _ROOT / ".venv-compare"
    python = folder / "bin/python"
    if not (folder / "lib").exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    subprocess.run([str(python), "-m", "pip", "install", "--quiet", _DASK], check=True)
    return str(python)


def main() -> int:
    """Compare; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--write", action="store_true")
    asked = parser.parse_args()
    jobs = str(asked.jobs)
    load = os.getloadavg()[0]
    dask = _side(_python_with_dask(), str(_ROOT / "tests/integration/compare/dask_side.py"), jobs)
    ours = _side(sys.executable, "-m", "tests.integration.compare.pairio_side", jobs)
    made = table(dask, ours, asked.jobs, load)
    print(made)
    if asked.write:
        before, rest = _PAGE.read_text().split(_BEGIN)
        _PAGE.write_text(before + _BEGIN + made + _END + rest.split(_END)[1])
    print(f"compared: {len(ROWS)} rows of 2 systems")
    return 0


if __name__ == "__main__":
    sys.exit(main())
