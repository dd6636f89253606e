"""What was tried, and how a finding reads in the table."""

import platform
from collections.abc import Callable
from typing import Any

__all__ = ["ROWS", "table"]


def _time(name: str) -> Callable[[dict[str, Any]], str]:
    return lambda found: f"{found[name]:.1f} s"


def _round_trip(found: dict[str, Any]) -> str:
    return f"{found['p50_ms']:.1f} / {found['p99_ms']:.0f} ms"


def _again(found: dict[str, Any]) -> str:
    took = f", {found['again_s']:.2f} s" if "again_s" in found else ""
    return f"{found['again_ran']} run{took}"


def _killed(found: dict[str, Any]) -> str:
    killed = found["killed"]
    return f"{killed['done']} of 60, {killed['s']:.1f} s"


def _cancel(found: dict[str, Any]) -> str:
    went_on_s = found["cancel_s"]
    return "goes on to its end" if went_on_s > 1.5 else f"ended after {went_on_s:.2f} s"


#: What was tried, with {jobs} filled in, and how a side's finding reads.
ROWS: tuple[tuple[str, Callable[[dict[str, Any]], str]], ...] = (
    ("from nothing to a first result", _time("start_s")),
    ("one job, submit to result, p50 / p99 (n=200)", _round_trip),
    ("{jobs} jobs in one call, to the last result", _time("map_s")),
    ("the same jobs again, from a new program", _again),
    ("60 jobs of 50 ms on two workers, one killed (-9) after 12: done, in all", _killed),
    (
        "the process killed that they were submitted to: had afterwards",
        lambda f: f"{f['centre_had']} of 60",
    ),
    ("a job that is canceled while it runs", _cancel),
    ("somebody who has the address alone", lambda f: f"gets: {f['stranger']}"),
)


def table(dask: dict[str, Any], ours: dict[str, Any], jobs: int, load: float) -> str:
    """Return the rows of both, and on what they were tried."""
    lines = [f"| tried | {dask['version']} | {ours['version']} |", "|---|---|---|"]
    lines += [f"| {what.format(jobs=jobs)} | {said(dask)} | {said(ours)} |" for what, said in ROWS]
    return "\n".join(lines) + (
        f"\n\n{platform.system()}, Python {platform.python_version()}, 2 CPUs,"
        f" load average {load:.1f} before.\n"
    )
