"""The console of a short job, which comes with its outcome and never is a file."""

import os
from pathlib import Path

import pytest

from pairio_node.runner.supervisor.console import HELD_BYTES, ConsoleWriter, read_console


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "console"


def test_a_little_that_is_held_is_in_no_file(path: Path) -> None:
    writer = ConsoleWriter(path, hold=True)
    writer.add(b"one\n")
    writer.add(b"\xff\x00")
    assert (writer.held, path.exists()) == (b"one\n\xff\x00", False)


def test_what_was_held_is_shown_and_what_follows_comes_after_it(path: Path) -> None:
    writer = ConsoleWriter(path, hold=True)
    writer.add(b"one\n")
    writer.show()
    assert (writer.held, read_console(path)) == (None, b"one\n")
    writer.add(b"two\n")
    writer.show()
    assert (writer.held, read_console(path)) == (None, b"one\ntwo\n")


def test_a_job_that_has_said_nothing_can_be_followed(path: Path) -> None:
    ConsoleWriter(path, hold=True).show()
    assert path.exists()
    assert read_console(path) == b""


@pytest.mark.parametrize(
    ("first", "more"),
    [
        (b"", b"y" * HELD_BYTES),
        (b"x", b"y" * 10 * HELD_BYTES),
        (b"x" * (HELD_BYTES - 2), b"y"),
        (b"\0" * (HELD_BYTES // 6), b"\0"),  # as JSON it takes six bytes
    ],
)
def test_much_is_not_held(path: Path, first: bytes, more: bytes) -> None:
    writer = ConsoleWriter(path, hold=True)
    writer.add(first)
    assert writer.held == first
    writer.add(more)
    assert writer.held is None
    assert read_console(path) == first + more


def test_a_disk_that_takes_half_of_it_is_not_passed_over(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer, pwrite = ConsoleWriter(path), os.pwrite
    with monkeypatch.context() as full:
        full.setattr(os, "pwrite", lambda fd, data, at: pwrite(fd, data[:5], at))
        writer.add(b"1234567")
    writer.add(b"8")
    assert (read_console(path), writer.lost_bytes) == (b"8", 7)


def test_a_disk_that_takes_no_file_loses_output_and_no_job(path: Path) -> None:
    path.mkdir()  # in the place of a file
    writer = ConsoleWriter(path, hold=True)
    writer.add(b"12345")
    writer.show()
    writer.add(b"678")
    assert (writer.held, writer.lost_bytes) == (None, 8)
    path.rmdir()
    writer.add(b"there is room again\n")
    assert (read_console(path), writer.lost_bytes) == (b"there is room again\n", 8)
