"""A console as a terminal shows it: nothing of it does things to the terminal, and the lines with
which a job says how far it is (`[progress] 42.0% words`) are one bar below the rest."""

import os
import shutil
import sys
from typing import Any

from pairio_cli.output import note
from pairio_protocol.printable import PrintableStream

__all__ = ["Shown", "on_stderr", "on_stdout", "status_words"]

_MARK = "[progress] "
_WIDTH = 25
_ERASE = "\r\x1b[K"


class Shown:
    """Writes a console to a stream: to a file or pipe as it is, unless it is `always` to be made
    printable."""

    def __init__(self, stream: Any, *, always: bool = False) -> None:
        self._stream = stream
        is_terminal = stream.isatty()
        self._filter = PrintableStream() if always or is_terminal else None
        self._has_bar = is_terminal and os.environ.get("TERM", "dumb") != "dumb"
        self._held = ""  # the beginning of a line that may say how far it is
        self._is_within_line = False
        self._bar = ""
        self._is_drawn = False

    def write(self, text: str) -> None:
        """Write what the job wrote."""
        shown = self._filter.feed(text.encode(errors="replace")) if self._filter else text
        if self._has_bar:
            self._feed(shown)
        else:
            self._stream.write(shown)
        self._stream.flush()

    def note(self, words: str) -> None:
        """Say something that is not the job's, on a line of its own."""
        self._erase()
        self._stream.flush()
        note(words)

    def end(self) -> None:
        """Nothing more comes: the bar goes."""
        self._erase()
        self._stream.write(self._held)
        self._held = ""
        self._stream.flush()

    def _feed(self, text: str) -> None:
        text, self._held = self._held + text, ""
        *lines, rest = text.split("\n")
        for line, is_whole in [*((line + "\n", True) for line in lines), (rest, False)]:
            if not line:
                continue
            if self._is_within_line or not self._may_say(line):
                self._put(line, is_whole)
            elif is_whole and (bar := _drawn(line[len(_MARK) :].strip())):
                self._bar = bar
            elif is_whole:
                self._put(line, is_whole)
            else:
                self._held = line
        if self._bar and not self._is_within_line:
            self._erase()
            self._stream.write(self._bar)
            self._is_drawn = True

    def _may_say(self, line: str) -> bool:
        return line.startswith(_MARK) or _MARK.startswith(line)

    def _put(self, line: str, is_whole: bool) -> None:
        self._erase()
        self._stream.write(line)
        self._is_within_line = not is_whole

    def _erase(self) -> None:
        if self._is_drawn:
            self._stream.write(_ERASE)
            self._is_drawn = False


def _drawn(words: str) -> str:
    """Return the bar of what a job says: `42.0% fitting`; empty: that is a line like any other."""
    number, sign, rest = words.partition("%")
    try:
        percent = min(100.0, max(0.0, float(number)))
    except ValueError:
        return ""
    if not sign:
        return ""
    full = "#" * int(_WIDTH * percent / 100)
    line = f"[{full:<{_WIDTH}}] {percent:3.0f}%{rest}"
    width: int = shutil.get_terminal_size().columns
    return line[: width - 1]


def status_words(job: dict[str, Any]) -> str:
    """Return how a job is, and how far by its own word."""
    progress = job.get("progress")
    return f"{job['status']}" + (f" {100 * progress:.0f}%" if progress is not None else "")


def on_stdout() -> Shown:
    """Return what writes a console as data."""
    return Shown(sys.stdout)


def on_stderr() -> Shown:
    """Return what writes a console beside the data."""
    return Shown(sys.stderr, always=True)
