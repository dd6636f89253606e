"""Which folders of jobs a node takes up when it starts, and which it removes."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pairio_node import runner
from pairio_node.adoption import JobCard, _machine_boot, find_jobs
from pairio_node.runner.supervisor.runfile import RUN_FILE, add, read, take

OUTCOME = {"exit_code": 0}
#: Who has a file's lock until a signal comes.
_SUPERVISOR = """
import os, signal, sys
sys.path.append(sys.argv[1])
from pathlib import Path
from supervisor.runfile import add, take
folder = Path(sys.argv[2])
add(take(folder), "supervisor", os.getpid())
print(flush=True)
signal.pause()
"""
_OLD_SUPERVISOR = """
import fcntl, os, signal, sys
fd = os.open(sys.argv[2] + "/supervisor.lock", os.O_RDWR | os.O_CREAT)
fcntl.flock(fd, fcntl.LOCK_EX)
os.pwrite(fd, b"%d" % os.getpid(), 0)
print(flush=True)
signal.pause()
"""


@contextmanager
def _supervised(folder: Path, program: str = _SUPERVISOR) -> Iterator[subprocess.Popen[bytes]]:
    argv = [sys.executable, "-I", "-S", "-c", program, str(Path(runner.__file__).parent)]
    with subprocess.Popen([*argv, str(folder)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == b"\n"
            yield process
        finally:
            process.kill()


def _folder(jobs: Path, boot: str = "", **said: dict[str, Any] | int) -> Path:
    """Make a job's folder with a card, and what else was said of its run."""
    (folder := jobs / "a-job").mkdir(parents=True)
    card = JobCard(
        service="s",
        attempt="a",
        request="r",
        run="run",
        upstream=("u",),
        coordinators=("c",),
        lease_ms=1000,
        started_unix_ms=5,
        outputs=(("o", "o.txt"),),
        memory_mib=64,
        time_ms=1000,
        runner="bwrap",
        machine_boot=boot or _machine_boot(),
    )
    card.write(folder)
    assert JobCard.of_plain(read(folder).card) == card
    fd = take(folder)
    for name, value in said.items():
        add(fd, name, value)
    os.close(fd)
    return folder


def _is_adopted(jobs: Path) -> bool:
    """Say whether the only folder is; else it is out of the way of new runs."""
    (folder,) = jobs.iterdir()
    adopted, removed = find_jobs(jobs)
    assert len(adopted) + len(removed) == 1
    if adopted:
        assert adopted[0][0] == folder
        return True
    assert list(jobs.iterdir()) == list(removed)
    assert removed[0].name.startswith(".gone-")
    return False


def test_a_run_with_an_outcome_is_taken_up(tmp_path: Path) -> None:
    _folder(tmp_path, supervisor=os.getpid(), outcome=OUTCOME)
    assert _is_adopted(tmp_path)


def test_so_is_one_whose_supervisor_lives(tmp_path: Path) -> None:
    with _supervised(_folder(tmp_path)) as process:
        assert _is_adopted(tmp_path)
        assert process.poll() is None


def test_one_whose_supervisor_was_killed_is_not(tmp_path: Path) -> None:
    with _supervised(_folder(tmp_path)):
        pass
    assert not _is_adopted(tmp_path)


def test_one_that_has_not_begun_is_not(tmp_path: Path) -> None:
    _folder(tmp_path)
    assert not _is_adopted(tmp_path)


def test_a_process_that_has_the_number_of_its_supervisor_is_not_taken_for_it(
    tmp_path: Path,
) -> None:
    """Nor is it told to end: here it would be this one."""
    _folder(tmp_path, supervisor=os.getpid())
    assert not _is_adopted(tmp_path)


def test_nor_is_a_thread_that_has(tmp_path: Path) -> None:
    ends, began = threading.Event(), threading.Event()

    def wait() -> None:
        began.set()
        ends.wait()

    thread = threading.Thread(target=wait)
    thread.start()
    began.wait()
    assert thread.native_id is not None
    _folder(tmp_path, supervisor=thread.native_id)
    try:
        assert not _is_adopted(tmp_path)
    finally:
        ends.set()
        thread.join()


def test_the_outcome_of_who_could_not_begin_is_void_when_another_has_tried(tmp_path: Path) -> None:
    folder = _folder(tmp_path, supervisor=1, outcome={"why": "start"})
    with _supervised(folder):
        pass
    assert not _is_adopted(tmp_path)


@pytest.mark.parametrize("missing", [1, 20])
@pytest.mark.parametrize("cut", ["card", "outcome"])
def test_half_a_card_is_none_and_half_an_outcome_is_none(
    tmp_path: Path, cut: str, missing: int
) -> None:
    """As a full disk, or a kill at the wrong moment, leaves it."""
    folder = _folder(tmp_path) if cut == "card" else _folder(tmp_path, outcome=OUTCOME)
    os.truncate(folder / RUN_FILE, (folder / RUN_FILE).stat().st_size - missing)
    assert (JobCard.of_plain(read(folder).card) is None) == (cut == "card")
    assert not _is_adopted(tmp_path)


def test_what_a_machine_that_has_started_anew_finds_does_not_count(tmp_path: Path) -> None:
    _folder(tmp_path, boot="of another start", outcome=OUTCOME)
    assert not _is_adopted(tmp_path)


def test_who_sees_a_job_that_nobody_takes_up_is_told_to_end_it(tmp_path: Path) -> None:
    with _supervised(_folder(tmp_path, boot="of another start")) as process:
        assert not _is_adopted(tmp_path)
        assert process.wait(60) == -signal.SIGTERM


def test_so_is_one_of_a_version_without_run_files(tmp_path: Path) -> None:
    (folder := tmp_path / "a-job").mkdir()
    for name in ("card.json", "outcome.json"):
        (folder / name).write_text("{}")
    with _supervised(folder, _OLD_SUPERVISOR) as process:
        assert not _is_adopted(tmp_path)
        assert process.wait(60) == -signal.SIGTERM


@pytest.mark.parametrize("said", [b"%d" % os.getpid(), bytes(4), b"x", b"9" * 20, b""])
def test_what_such_a_version_left_is_removed(tmp_path: Path, said: bytes) -> None:
    (folder := tmp_path / "a-job").mkdir()
    (folder / "supervisor.lock").write_bytes(said)
    assert not _is_adopted(tmp_path)
