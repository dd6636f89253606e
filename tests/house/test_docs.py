"""What the documentation names is there: commands with their options; decisions with numbers."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import typer.main

from pairio_cli.main import app
from pairio_cli.node_main import app as node_app

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").rglob("*.md"))]
PROGRAMS = {"pairio": typer.main.get_command(app), "pairio-node": typer.main.get_command(node_app)}
_BLOCK = re.compile(r"^```.*?\n(.*?)^```", re.MULTILINE | re.DOTALL)
_LINE = re.compile(r"^(?:\$ )?(pairio(?:-node)? [a-z-].*)", re.MULTILINE)
_INLINE = re.compile(r"`(pairio(?:-node)? [^`\n]+)`")


def named_commands(text: str) -> Iterator[str]:
    """Yield what is written as a command: on a line of its own in a block, or between backticks."""
    in_blocks = [line for block in _BLOCK.findall(text) for line in _LINE.findall(block)]
    for found in [*in_blocks, *_INLINE.findall(_BLOCK.sub("", text))]:
        yield re.split(r"\s+#|\s&(?:\s|$)|,", found)[0].strip()


def problem(written: str) -> str | None:
    """Return what is wrong with a command as written; words in capitals stand for anything."""
    words = shlex.split(written)
    command: click.Command = PROGRAMS[words[0]]
    for word in words[1:]:
        if isinstance(command, click.Group) and not word.startswith("-"):
            if word not in command.commands:
                return f"no command {word!r}"
            command = command.commands[word]
        elif word.startswith("--"):
            known = {o for p in command.params for o in [*p.opts, *p.secondary_opts]}
            if word.split("=")[0] not in {*known, "--help"}:
                return f"no option {word!r}"
    return None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_command_in_the_documentation_exists(page: Path) -> None:
    wrong = {c: problem(c) for c in named_commands(page.read_text()) if problem(c) is not None}
    assert wrong == {}


def test_a_wrong_command_would_be_noticed() -> None:
    text = "```sh\n$ pairio service eject lab  # x\npairio-node run &\n```\n`pairio join --to L`"
    assert [problem(c) for c in named_commands(text)] == [
        "no command 'eject'",
        None,
        "no option '--to'",
    ]


def test_decisions_are_numbered_in_order() -> None:
    text = (ROOT / "docs/decisions/README.md").read_text()
    headings = re.findall(r"^## (.*)", text, re.MULTILINE)
    assert [h.split(". ")[0] for h in headings] == [str(n) for n in range(1, len(headings) + 1)]
