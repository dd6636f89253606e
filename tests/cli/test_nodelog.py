"""`pairio-node logs`: the newest lines over rotated files, and what comes."""

import os
from pathlib import Path

import pytest

from pairio_cli import nodelog
from tests.cli.conftest import Run


def test_the_newest_lines_come_from_all_files(run: Run, tmp_path: Path) -> None:
    (tmp_path / "node.log.1").write_text("one\ntwo\n")
    (tmp_path / "node.log").write_text("three \x1b[2Jred\n")
    shown = run("logs", "--home", str(tmp_path), "-n", "2", program="pairio-node")
    assert (shown.code, shown.out) == (0, "two\nthree red\n")
    assert shown.err == f"{tmp_path / 'node.log'}\n"
    path = run("logs", "--home", str(tmp_path), "--path", program="pairio-node")
    assert path.out == f"{tmp_path / 'node.log'}\n"


def test_without_a_log_it_is_said(run: Run, tmp_path: Path) -> None:
    none = run("logs", "--home", str(tmp_path), program="pairio-node")
    assert (none.code, none.out) == (1, "")
    assert "\n\nhint: no node has run on this home" in none.err


def test_what_comes_is_followed_over_a_rotation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "node.log"
    file.write_text("old\n")

    def add(text: str) -> None:
        with file.open("a") as opened:
            opened.write(text)

    def rotate() -> None:
        os.rename(file, tmp_path / "node.log.1")
        file.write_text("first\n")

    steps = iter([lambda: add("half "), lambda: add("line\nlast\n"), rotate])
    monkeypatch.setattr("pairio_cli.nodelog.time.sleep", lambda _: next(steps)())
    opened = nodelog._opened(file)
    opened.read()
    lines = nodelog._new_lines(file, opened)
    assert [next(lines) for _ in range(3)] == ["half line", "last", "first"]
