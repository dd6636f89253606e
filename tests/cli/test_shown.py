"""A console on a terminal: one bar for how far the job is, the rest above it."""

import io

import pytest

from pairio_cli.shown import Shown, status_words


class Terminal(io.StringIO):
    """A terminal of one screen; `screen` is what can be seen."""

    def isatty(self) -> bool:
        return True

    @property
    def screen(self) -> list[str]:
        rows = self.getvalue().split("\n")
        return [row.rpartition("\r\x1b[K")[2] for row in rows]


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "60")
    return Terminal()


def _bar(percent: int, words: str = "") -> str:
    return f"[{'#' * (percent // 4):<25}] {percent:3}%{words}"


@pytest.mark.parametrize("size", [1, 3, 1000], ids=["by character", "in pieces", "at once"])
def test_the_lines_that_say_how_far_it_is_are_one_bar_below_the_rest(
    size: int, terminal: Terminal
) -> None:
    text = "begin\n[progress] 4.0% a\n[progress] 8.0% b\nword\n[prog] no\n[progress] 40.0% c\n"
    shown = Shown(terminal)
    for at in range(0, len(text), size):
        shown.write(text[at : at + size])
    assert terminal.screen == ["begin", "word", "[prog] no", _bar(40, " c")]
    shown.write("half")
    assert terminal.screen[-1] == "half"
    shown.write(" a line\n")
    assert terminal.screen[-2:] == ["half a line", _bar(40, " c")]
    shown.end()
    assert terminal.screen[-1] == ""


def test_what_stands_within_a_line_or_is_no_number_harms_nothing(terminal: Terminal) -> None:
    shown = Shown(terminal)
    shown.write("it says [progress] 3%\n[progress] \x1b[2Jmuch\n[progress] 400% " + "x" * 99 + "\n")
    assert terminal.screen[0] == "it says [progress] 3%"
    assert terminal.screen[-1] == (_bar(100, " " + "x" * 99))[:59]
    assert "\x1b[2J" not in terminal.getvalue()
    shown.write("[progress] 5")
    shown.end()
    assert terminal.screen[-1] == "[progress] 5"


def test_a_note_has_a_line_of_its_own(
    terminal: Terminal, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = Shown(terminal)
    shown.write("[progress] 40%\n")
    shown.note("[attempt 2]")
    assert terminal.screen[-1] == ""
    assert capsys.readouterr().err == "[attempt 2]\n"


def test_a_file_gets_every_line_as_it_is() -> None:
    text, file = "[progress] 4.0% a\n\x1b[1mword\n", io.StringIO()
    Shown(file).write(text)
    assert file.getvalue() == text


def test_a_dumb_terminal_has_no_bar(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    Shown(terminal).write("[progress] 4.0% a\n")
    assert terminal.getvalue() == "[progress] 4.0% a\n"


def test_how_far_a_job_is_stands_beside_its_status() -> None:
    assert status_words({"status": "running", "progress": 0.425}) == "running 42%"
    assert status_words({"status": "running", "progress": None}) == "running"
    assert status_words({"status": "running"}) == "running"  # an older node
