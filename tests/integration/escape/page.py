"""`docs/sandbox.md`: its head is written by hand, the table of attempts by this module."""

import re
from pathlib import Path

from tests.integration.escape.lab import Found, all_names

__all__ = ["PAGE", "names_in_page", "write_page"]

PAGE = Path(__file__).parents[3] / "docs" / "sandbox.md"
_BEGIN, _END = "<!-- table: escape -->", "<!-- end of escape -->"


def write_page(outside: Found, columns: dict[str, Found]) -> None:
    """Write what was found into the page."""
    worked = sum(how == "worked" for how, _ in outside.values())
    lines = [
        f"{len(outside)} attempts; {worked} of them work outside, on the machine where this table"
        " was made.",
        "",
        f"| attempt | outside | {' | '.join(columns)} |",
        f"|---|---|{'---|' * len(columns)}",
    ]
    for name in all_names():
        cells = [_outside(outside[name]), *(_inside(found[name]) for found in columns.values())]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    head, _, rest = PAGE.read_text().partition(_BEGIN)
    _, _, tail = rest.partition(_END)
    table = "\n".join(lines)
    PAGE.write_text(f"{head}{_BEGIN}\n\n{table}\n\n{_END}{tail}")


def names_in_page() -> list[str]:
    """Return the attempts that the page has."""
    table = PAGE.read_text().partition(_BEGIN)[2].partition(_END)[0]
    rows = [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("| ")]
    return rows[1:]


def _outside(found: tuple[str, str]) -> str:
    how, seen = found
    return "works" if how == "worked" else f"not here: {_short(seen)}"


def _inside(found: tuple[str, str]) -> str:
    how, seen = found
    return f"{how}: {_short(seen)}"


def _short(seen: str) -> str:
    """Return a cause without what differs from run to run."""
    words = re.sub(r"^\w*(Error|timeout|timed out)\b: ", "", seen)
    words = re.sub(r"\[Errno \d+\] ", "", words)
    words = re.sub(r": ['\"]?/.*", "", words)
    return words.replace("|", "/")
