"""Text that somebody else wrote, made harmless for a terminal, a page or a log.

What jobs print and workers put into errors may hold sequences that move the cursor, rename the
window or answer in the user's name. Nothing of that comes through here: whoever shows such text
shows `printable(text)`, or what a `PrintableStream` gives.
"""

import codecs
import re
from typing import Final

__all__ = ["PrintableStream", "printable"]

_CSI: Final = r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"
_STRING: Final = r"(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c\n]*(?:\x07|\x9c|\x1b\\)?"
_OTHER: Final = r"\x1b[ -/]*[0-~]"
_SEQUENCE: Final = re.compile(f"{_CSI}|{_STRING}|{_OTHER}")
#: Erases from the cursor to the end of its line: progress bars use it.
_ERASE: Final = re.compile(r"(?:\x1b\[|\x9b)0?K")
_ERASE_MARK: Final = "\x0b"
#: An escape sequence that is cut off at the end of a piece: its rest may come with the next.
_BEGUN: Final = re.compile(
    r"(?:\x1b(?:\[[0-?]*[ -/]*|[ -/]*|[\]PX^_][^\x07\x1b\x9c\n]*\x1b?)|\r)\Z"
)
_BEGUN_LENGTH_MAX: Final = 4096
_MOVES: Final = re.compile("[\r\b\x0b]")


def printable(text: str) -> str:
    """Return text as a terminal would leave it: lines and tabs stay, colours and other sequences
    go, a carriage return overwrites its line, what cannot be shown becomes `?`."""
    marked = _SEQUENCE.sub("", _ERASE.sub(_ERASE_MARK, text.replace(_ERASE_MARK, "?")))
    lines = (_as_left(line.removesuffix("\r")) for line in marked.split("\n"))
    return "\n".join(_shown(line) for line in lines)


def _as_left(line: str) -> str:
    """Carry out what moves the cursor within a line."""
    if not _MOVES.search(line):
        return line
    left: list[str] = []
    at = 0
    for character in line:
        if character == "\r":
            at = 0
        elif character == "\b":
            at = max(0, at - 1)
        elif character == _ERASE_MARK:
            del left[at:]
        else:
            left[at : at + 1] = [character]
            at += 1
    return "".join(left)


def _shown(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\t\r\n" else "?" for c in text)


class PrintableStream:
    """The same for output that comes in pieces of bytes, to be written to a terminal as it comes:
    carriage returns stay, the terminal carries them out."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._begun = ""

    def feed(self, data: bytes, final: bool = False) -> str:
        """Return what can be shown of all that came; `final`: nothing more will come."""
        text = self._begun + self._decoder.decode(data, final)
        self._begun = ""
        cut = None if final else _BEGUN.search(text, max(0, len(text) - _BEGUN_LENGTH_MAX))
        if cut is not None:
            text, self._begun = text[: cut.start()], text[cut.start() :]
        return _shown(_SEQUENCE.sub("", text).replace("\r\n", "\n"))
