"""The node's own log: a line is a line, bounded, written beside the loop, read by a command."""

import logging
import threading
from pathlib import Path

import pytest

from pairio_node import nodelog
from pairio_node.nodelog import FILES, LOG_FILE, node_log


def test_lines_say_when_and_what_and_nothing_does_things_to_a_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with node_log(tmp_path):
        logging.getLogger("pairio.runs").info("run ends: %s", "bad\nnext \x1b[2Jline")
        logging.getLogger("pairio.api").warning("a warning")
        logging.getLogger("elsewhere").info("not ours")
    logging.getLogger("pairio.runs").info("after the end")
    first, second = (tmp_path / LOG_FILE).read_text().splitlines()
    assert first.endswith("Z INFO run ends: bad | next line")
    assert second.endswith("Z WARNING a warning")
    assert capsys.readouterr().err == "a warning\n", "warnings are on stderr, too"


def test_a_traceback_is_kept(tmp_path: Path) -> None:
    with node_log(tmp_path):
        try:
            raise KeyError("x")
        except KeyError:
            logging.getLogger("pairio.api").exception("a request failed")
    text = (tmp_path / LOG_FILE).read_text()
    assert "ERROR a request failed\nTraceback" in text
    assert "KeyError: 'x'" in text


class _Written(logging.Handler):
    """What a thread was given to write."""

    def __init__(self) -> None:
        super().__init__()
        self.words: list[str] = []
        self.both = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.words.append(record.getMessage())
        if len(self.words) == 2:
            self.both.set()


def _record(level: int, words: str) -> logging.LogRecord:
    return logging.LogRecord("pairio.x", level, "", 0, words, (), None)


def test_a_line_waits_for_others_and_a_warning_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodelog, "_WAIT_S", 60.0)
    file = _Written()
    beside = nodelog._Beside(file)
    beside.emit(_record(logging.INFO, "a line"))
    assert not file.both.wait(0.05)
    assert file.words == []
    beside.emit(_record(logging.WARNING, "a warning"))
    assert file.both.wait(30)
    beside.emit(_record(logging.INFO, "the last"))
    beside.close()
    assert file.words == ["a line", "a warning", "the last"]


def test_a_line_comes_by_itself_a_moment_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodelog, "_WAIT_S", 0.01)
    file = _Written()
    beside = nodelog._Beside(file)
    for words in ("one", "two"):
        beside.emit(_record(logging.INFO, words))
    assert file.both.wait(30)
    beside.close()


def test_what_a_disk_that_hangs_cannot_take_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodelog, "_WAIT_S", 60.0)
    monkeypatch.setattr(nodelog, "_LINES_MAX", 3)
    file = _Written()
    beside = nodelog._Beside(file)
    for number in range(5):
        beside.emit(_record(logging.INFO, str(number)))
    beside.close()
    assert file.words == ["0", "1", "2"]


def test_files_are_rotated_and_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodelog, "FILE_SIZE_BYTES_MAX", 1000)
    with node_log(tmp_path):
        for number in range(200):
            logging.getLogger("pairio.runs").info("run %d", number)
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == [LOG_FILE, *(f"{LOG_FILE}.{n}" for n in range(1, FILES))]
    assert all((tmp_path / name).stat().st_size <= 1000 for name in files)
    assert "run 199" in (tmp_path / LOG_FILE).read_text()
