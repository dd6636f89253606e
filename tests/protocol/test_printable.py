"""Text of others on a terminal: what it looks like, and that it does nothing."""

import random

import pytest

from pairio_protocol.printable import PrintableStream, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain\n\ttext ünïcode\n", "plain\n\ttext ünïcode\n"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;your window\x07title", "title"),
        ("\x1b]52;c;cm0gLXJm\x1b\\clipboard", "clipboard"),
        ("\x1bP1$r0m\x1b\\device", "device"),
        ("\x9b2Jc1 \x9d0;x\x9cend", "c1 end"),
        ("\x1b]unended\nnext line", "\nnext line"),
        ("bell\x07 null\x00 del\x7f esc\x1b", "bell? null? del? esc?"),
        ("right\u202eto left", "right?to left"),
        ("lone \udcff surrogate", "lone ? surrogate"),
        ("10 %\r50 %\r100 %\n", "100 %\n"),
        ("a long line\rshort", "shortg line"),
        ("a long line\r\x1b[Kshort", "short"),
        ("50 %\r", "50 %"),
        ("windows\r\nlines\r\n", "windows\nlines\n"),
        ("typo\b\b\bry", "tryo"),
        ("\x1b\x1b[2J[2J", "?[2J"),
    ],
)
def test_text_of_others_is_shown_as_a_terminal_would_leave_it(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_nothing_but_lines_and_tabs_comes_through_and_twice_is_as_once() -> None:
    pick = random.Random(1)
    pieces = "\x1b[]()0;?m\x07\x9b\x9c\r\b\n\tK\\P^_ab\x0b\x7f\x00"
    for _ in range(3000):
        shown = printable("".join(pick.choices(pieces, k=pick.randint(0, 40))))
        assert all(c.isprintable() or c in "\n\t" for c in shown)
        assert printable(shown) == shown


def test_long_lines_of_carriage_returns_take_time_by_their_length_only() -> None:
    # Copying the line at each return would take minutes; the suite's timeout would tell.
    assert printable("x" * 400_000 + "\r" * 400_000) == "x" * 400_000


def test_a_stream_gives_the_same_wherever_it_is_cut() -> None:
    data = "a\x1b[31mb\x1b]0;t\x07\x1b]0;t\x1b\\ä€\r\nover\rwritten\x1b[0m\xff".encode() + b"\xff\n"
    whole = PrintableStream().feed(data, final=True)
    assert whole == "abä€\nover\rwrittenÿ\ufffd\n"
    for size in range(1, len(data)):
        stream = PrintableStream()
        parts = [stream.feed(data[at : at + size]) for at in range(0, len(data), size)]
        assert "".join([*parts, stream.feed(b"", final=True)]) == whole


def test_a_sequence_that_never_ends_holds_back_a_bounded_amount() -> None:
    stream = PrintableStream()
    given = sum(len(stream.feed(b"\x1b]" + b"x" * 1000)) for _ in range(100))
    given += sum(len(stream.feed(b"x" * 1000)) for _ in range(100))
    assert given > 50_000
