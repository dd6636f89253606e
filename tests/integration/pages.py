"""Runs what a page of the documentation shows, and compares what it prints with what the page says.

In a `console` block each line after `$ ` is a command, and what follows is what it prints: stdout,
then stderr with `# ` before each line. An HTML comment before a block, `<!-- on: NAME -->`, says on
which machine. A `python` block is run with the names of those before it; a `text` block after it is
what it prints; `...` alone on a line stands for lines left out. Ids, addresses, times differ each
time: those of the page stand for the real ones, in commands too.
"""

import contextlib
import io
import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any, Final

from pairio.client import Client

__all__ = ["Block", "Reader", "alike", "blocks"]

_BLOCK: Final = re.compile(
    r"(?:<!-- on: (?P<on>[\w ,]+) -->\n)?^```(?P<kind>\w+)\n(?P<text>.*?)^```$", re.M | re.S
)
#: What is another one each time. The first group is what later lines and commands may name again.
_VARYING: Final = re.compile(
    r"(?P<link>pairio:\S+)|(?P<cid>\bbaf\w{50,})|(?P<peer>\b12D3KooW\w+)|(?P<address>/ip4/\S+)"
    r"|(?P<url>http://127\.0\.0\.1:\d+)|(?P<words>\b[a-z]{5}(?:-[a-z]{5}){3}\b)"
    r"|(?P<date>\d{4}-\d\d-\d\d \d\d:\d\d(?::\d\d)?)|(?P<time>\b\d+(?:\.\d+)?s\b)"
    r"|(?P<ms>\b\d+ ms\b)|(?P<node>(?<= on )[A-Za-z0-9]{10}\b)|(?P<number>\b\d+\.\d+\b)"
)


@dataclass(frozen=True)
class Block:
    """One block of code: what kind, on which machines, its text."""

    kind: str
    on: tuple[str, ...]
    text: str


def blocks(page: Path) -> Iterator[Block]:
    """Yield the blocks of a page, in order."""
    for found in _BLOCK.finditer(page.read_text()):
        machines = tuple(name.strip() for name in (found["on"] or "").split(",") if name.strip())
        yield Block(found["kind"], machines, found["text"])


class Reader:
    """Somebody who follows a page to the letter. `run` runs a command on a machine."""

    def __init__(self, run: Callable[[str, list[str]], "CompletedProcess[str]"], home: str) -> None:
        self._run = run
        self._home = home
        self._real: dict[str, str] = {}
        self._names: dict[str, Any] = {"__name__": "__page__"}
        self.commands = 0

    def follow(self, page: Path) -> None:
        """Run all of it.

        Raises:
            AssertionError: something prints other than the page says.
        """
        printed: str | None = None
        for block in blocks(page):
            if block.kind == "console":
                for machine in block.on or (self._home,):
                    self._console(machine, block.text)
            elif block.kind == "python":
                printed = self._python(block.text)
            elif block.kind == "text" and printed is not None:
                self._compare(block.text, printed, "python")
                printed = None
        for left_open in self._names.values():
            if isinstance(left_open, Client):
                left_open.close()

    def _console(self, machine: str, text: str) -> None:
        for step in re.split(r"^\$ ", text, flags=re.M)[1:]:
            command, _, said = step.partition("\n")
            for shown, real in self._real.items():
                command = command.replace(shown, real)
            done = self._run(machine, shlex.split(command))
            assert done.returncode == 0, f"{command}: {done.returncode}: {done.stderr}"
            errors = "".join(f"# {line}\n" for line in done.stderr.splitlines())
            if said.strip():
                self._compare(said, done.stdout + errors, command)
            self.commands += 1

    def _python(self, text: str) -> str:
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(compile(text, "<page>", "exec"), self._names)
        self.commands += 1
        return out.getvalue()

    def _compare(self, shown: str, real: str, what: str) -> None:
        kept = [alike(line) for line in real.splitlines() if line.strip()]
        wanted = [alike(line) for line in shown.splitlines() if line.strip()]
        if "" in wanted:  # a line of dots: some lines that the page leaves out
            ends = len(wanted) - wanted.index("") - 1
            kept = [*kept[: wanted.index("")], "", *(kept[-ends:] if ends else [])]
        assert kept == wanted, f"{what} prints\n{real}\nand the page says\n{shown}"
        if "" not in wanted:
            tokens = (_VARYING.finditer(text) for text in (shown, real))
            self._real.update((here[0], there[0]) for here, there in zip(*tokens, strict=True))


def alike(line: str) -> str:
    """Return a line with all that varies, and the width of its columns, made equal."""
    marked = _VARYING.sub(lambda found: f"<{found.lastgroup}>", line)
    return " ".join(re.sub(r"\[ +", "[", marked.replace("...", "")).split())
