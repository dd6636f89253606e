"""`docs/security.md`: its head is written by hand, the table of attacks below it by this module."""

from collections.abc import Sequence
from pathlib import Path

from tests.integration.attacks.table import Attack

__all__ = ["PAGE", "is_fresh", "rendered", "write_page"]

PAGE = Path(__file__).parents[3] / "docs" / "security.md"
_BEGIN, _END = "<!-- table: attacks -->", "<!-- end -->"


def rendered(rows: Sequence[Attack]) -> str:
    """Return the table as it stands in the page."""
    lines = [f"{len(rows)} attacks, in the order in which they are tried.", ""]
    for part in dict.fromkeys(row.part for row in rows):
        lines += [f"### {part}", "", "| attack | the attacker has | and | what refuses it |"]
        lines += ["|---|---|---|---|"]
        lines += [
            f"| {row.name} | {row.has} | {row.does} | {row.refused_by} |"
            for row in rows
            if row.part == part
        ]
        lines.append("")
    return "\n".join(lines)


def _with_table(rows: Sequence[Attack]) -> str:
    page = PAGE.read_text()
    head, _, rest = page.partition(_BEGIN)
    _, _, tail = rest.partition(_END)
    return f"{head}{_BEGIN}\n\n{rendered(rows)}\n{_END}{tail}"


def write_page(rows: Sequence[Attack]) -> None:
    """Write the table into the page."""
    PAGE.write_text(_with_table(rows))


def is_fresh(rows: Sequence[Attack]) -> bool:
    """Say whether the page holds these rows."""
    return PAGE.read_text() == _with_table(rows)
