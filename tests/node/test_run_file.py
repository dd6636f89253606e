"""The run file: what is there is there whole, whoever was killed at whatever byte."""

import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pairio_node.runner.supervisor import runfile
from pairio_node.runner.supervisor.runfile import RUN_FILE, Told, add, begin, read, take, told

Entry = tuple[str, Any]

_VALUES = st.dictionaries(st.text(max_size=5), st.text(max_size=5) | st.integers(), max_size=3)
_ENTRIES = st.one_of(
    st.tuples(st.sampled_from(("card", "group", "outcome")), _VALUES),
    st.tuples(st.just("supervisor"), st.integers(1, 2**22)),
)
CARD, OUTCOME = {"attempt": "a"}, {"exit_code": 0}


def _said(entries: list[Entry]) -> Told:
    """What a file with these entries says, in the words of the specification."""
    found: dict[str, Any] = {}
    for name, value in entries:
        found[name] = value
        if name == "supervisor":
            found["outcome"] = None
    return Told(**found)


@contextmanager
def _file_in_memory() -> Iterator[int]:
    fd = os.memfd_create(RUN_FILE)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def _taken(folder: Path) -> Iterator[int]:
    fd = take(folder)
    try:
        yield fd
    finally:
        os.close(fd)


@given(st.lists(st.tuples(_ENTRIES, st.none() | st.integers(1, 100)), max_size=8))
@example([(("outcome", OUTCOME), 1), (("group", {}), None)])  # nothing but the newline is missing
@example([(("card", CARD), None), (("supervisor", 7), 1), (("outcome", OUTCOME), 1)])
def test_what_was_cut_at_any_byte_is_not_there_and_what_follows_is(
    steps: list[tuple[Entry, int | None]],
) -> None:
    """`steps`: entries, and how many bytes of each are missing at its end."""
    whole: list[Entry] = []
    with _file_in_memory() as fd:
        for entry, missing in steps:
            before = os.fstat(fd).st_size
            add(fd, *entry)
            if missing is None:
                whole.append(entry)
            else:
                os.ftruncate(fd, max(before, os.fstat(fd).st_size - missing))
            assert told(fd) == _said(whole)


@given(st.lists(_ENTRIES, max_size=5))
def test_a_reader_sees_an_entry_whole_or_not_at_all(entries: list[Entry]) -> None:
    ends = []
    with _file_in_memory() as fd:
        for entry in entries:
            add(fd, *entry)
            ends.append(os.fstat(fd).st_size)
        for length in reversed(range(ends[-1] if ends else 0)):
            os.ftruncate(fd, length)
            assert told(fd) == _said(entries[: sum(end <= length for end in ends)])


def test_a_supervisor_voids_the_outcome_of_one_before_it(tmp_path: Path) -> None:
    begin(tmp_path, CARD)
    with _taken(tmp_path) as fd:
        add(fd, "supervisor", 7)
        add(fd, "outcome", {"why": "start"})
    assert read(tmp_path) == Told(CARD, 7, None, {"why": "start"})
    with _taken(tmp_path) as fd:
        add(fd, "supervisor", 8)
        assert read(tmp_path) == Told(CARD, 8)
        add(fd, "outcome", OUTCOME)
    assert read(tmp_path) == Told(CARD, 8, None, OUTCOME)


def test_it_is_its_owners_alone_and_one_supervisors_at_a_time(tmp_path: Path) -> None:
    begin(tmp_path, CARD)
    assert stat.S_IMODE((tmp_path / RUN_FILE).stat().st_mode) == 0o600
    with _taken(tmp_path):
        with pytest.raises(BlockingIOError):
            take(tmp_path)
        assert read(tmp_path) == Told(CARD)
    with _taken(tmp_path):
        pass
    with pytest.raises(FileExistsError):
        begin(tmp_path, CARD)


def test_no_program_that_is_started_gets_it(tmp_path: Path) -> None:
    """Else a job that outlives its supervisor would hold the lock for it."""
    with _taken(tmp_path) as fd:
        assert not os.get_inheritable(fd)


@pytest.mark.parametrize("missing", [1, 2, 10])
def test_a_disk_that_takes_half_of_it_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: int
) -> None:
    write = os.write
    with _taken(tmp_path) as fd, monkeypatch.context() as full:
        full.setattr(os, "write", lambda fd, data: write(fd, data[:-missing]))
        for entry in (("card", CARD), ("outcome", OUTCOME)):
            with pytest.raises(OSError, match="No space left"):
                add(fd, *entry)
    assert read(tmp_path) == Told()
    with _taken(tmp_path) as fd:
        add(fd, "supervisor", 7)
    assert read(tmp_path) == Told(supervisor=7)


def test_what_would_be_too_long_to_be_read_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runfile, "_SIZE_BYTES_MAX", 200)
    begin(tmp_path, CARD)
    with _taken(tmp_path) as fd:
        with pytest.raises(OSError, match="too large"):
            add(fd, "outcome", {"error": "x" * 200})
        add(fd, "outcome", OUTCOME)
    (tmp_path / RUN_FILE).write_bytes((tmp_path / RUN_FILE).read_bytes() + b'{"card": {}}\n' * 99)
    assert read(tmp_path).outcome == OUTCOME


@pytest.mark.parametrize(
    "rubbish",
    [
        b"",
        b"12345",
        b"12345\n",
        b"[1]\nnull\n\n\xff\xff\n",
        b'{"card": 1, "supervisor": true, "group": [], "outcome": null}\n',
        b'{"supervisor": "7"}\n{"other": {}}\n',
        b"[" * 100_000 + b"\n",
    ],
)
def test_what_is_no_entry_says_nothing_and_hides_nothing(tmp_path: Path, rubbish: bytes) -> None:
    (tmp_path / RUN_FILE).write_bytes(rubbish)
    assert read(tmp_path) == Told()
    with _taken(tmp_path) as fd:
        add(fd, "outcome", OUTCOME)
    assert read(tmp_path) == Told(outcome=OUTCOME)


def test_a_folder_without_one_says_nothing(tmp_path: Path) -> None:
    assert read(tmp_path) == Told()
    assert read(tmp_path / "none") == Told()


def test_a_person_can_read_it(tmp_path: Path) -> None:
    begin(tmp_path, CARD)
    with _taken(tmp_path) as fd:
        add(fd, "supervisor", 7)
    lines = (tmp_path / RUN_FILE).read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"card": CARD}, {"supervisor": 7}]
