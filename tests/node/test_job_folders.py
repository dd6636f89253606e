"""Folders of a warm job's /tmp: the next job gets those that the one before left alone."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pairio_node.runner.zygote.job_folders import JobFolders

ALL = {"working", "working/tmp", "out", "other"}


class Jobs:
    """Jobs one after the other, as a keeper has them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.folders = JobFolders(0, str(path / "spare"))
        self.number = 0

    def run(self, does: Callable[[Path], None] = lambda _: None) -> dict[str, int]:
        """Run a job; return its folders as it found them, by inode."""
        self.number += 1
        tmp = self.path / str(self.number)
        self.folders.make(str(tmp))
        assert (tmp / "job.json").read_bytes() == b""
        found = {str(p.relative_to(tmp)): p for p in tmp.rglob("*") if p.is_dir()}
        assert set(found) == ALL
        for folder in found.values():
            state = folder.stat()
            assert state.st_mode & 0o777 == 0o777 & ~self.umask() and not os.listxattr(folder)
        inodes = {name: folder.stat().st_ino for name, folder in found.items()}
        while not self.folders.begin():
            """The clock of the disk has not gone on."""
        does(tmp)
        self.folders.take_back(str(tmp))
        return inodes

    @staticmethod
    def umask() -> int:
        old = os.umask(0)
        os.umask(old)
        return old


@pytest.fixture
def jobs(tmp_path: Path) -> Jobs:
    return Jobs(tmp_path)


def writes(tmp: Path) -> None:
    (tmp / "out" / "0").write_bytes(b"an output")


def test_what_a_job_left_alone_the_next_one_gets(jobs: Jobs) -> None:
    first = jobs.run()
    assert jobs.run(writes) == first
    third = jobs.run()
    assert third["out"] != first["out"]
    assert {n: third[n] for n in ALL - {"out"}} == {n: first[n] for n in ALL - {"out"}}
    assert (jobs.path / "2" / "out" / "0").read_bytes() == b"an output", "it stays where it is"


def a_file_comes_and_goes(path: Path) -> None:
    (path / "file").touch()
    (path / "file").unlink()


def a_folder_comes(path: Path) -> None:
    (path / "more").mkdir()


def mode(path: Path) -> None:
    path.chmod(0o700)


def mode_and_back(path: Path) -> None:
    before = path.stat().st_mode
    path.chmod(0o700)
    path.chmod(before)


def times(path: Path) -> None:
    os.utime(path, ns=(1, 1))


def its_own_times(path: Path) -> None:
    os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))


def an_attribute(path: Path) -> None:
    os.setxattr(path, "user.word", b"for the next one")


def renamed_and_back(path: Path) -> None:
    path.rename(f"{path}-").rename(path)


def another_in_its_place(path: Path) -> None:
    path.rename(f"{path}-")
    path.mkdir()


def a_link_in_its_place(path: Path) -> None:
    path.symlink_to(path.rename(f"{path}-"))


def a_file_in_its_place(path: Path) -> None:
    path.rename(f"{path}-")
    path.touch()


def gone(path: Path) -> None:
    path.rename(f"{path}-")


CHANGES = [
    a_file_comes_and_goes,
    a_folder_comes,
    mode,
    mode_and_back,
    times,
    its_own_times,
    an_attribute,
    renamed_and_back,
    another_in_its_place,
    a_link_in_its_place,
    a_file_in_its_place,
    gone,
]


@pytest.mark.parametrize("name", sorted(ALL))
@pytest.mark.parametrize("change", CHANGES)
def test_whatever_was_done_to_a_folder_no_other_job_gets_it(
    jobs: Jobs, name: str, change: Callable[[Path], None]
) -> None:
    first = jobs.run(lambda tmp: change(tmp / name))
    second = jobs.run()
    changed = {name, "working"} if name == "working/tmp" else {name}
    changed |= {"working/tmp"} if name == "working" else set()
    for other in ALL:
        assert (second[other] == first[other]) == (other not in changed), other


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_nor_one_that_was_given_away(jobs: Jobs) -> None:
    def gives_away(tmp: Path) -> None:
        os.chown(tmp / "out", 1, 1)
        os.chown(tmp / "out", 0, 0)

    first = jobs.run(gives_away)
    assert jobs.run()["out"] != first["out"]


def test_a_change_in_the_tick_in_which_a_folder_was_made_is_not_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = JobFolders(0, str(tmp_path / "spare"))
    folders.make(str(tmp_path / "0"))
    newest = max(os.stat(tmp_path / "0" / name).st_ctime_ns for name in ALL)
    for now_ns, kept in ((newest, set()), (newest + 1, {"working", "out", "other"})):
        monkeypatch.setattr(time, "clock_gettime_ns", lambda _, now_ns=now_ns: now_ns)
        folders.begin()
        folders.take_back(str(tmp_path / "0"))
        assert {path.name for path in tmp_path.glob("spare/*")} == kept


def test_without_a_place_for_them_each_job_gets_new_ones(tmp_path: Path) -> None:
    for folders in (JobFolders(0), JobFolders(0, str(tmp_path / "gone" / "spare"))):
        folders.make(str(tmp_path / "one"))
        inode = (tmp_path / "one" / "out").stat().st_ino
        while not folders.begin():
            """The clock of the disk has not gone on."""
        folders.take_back(str(tmp_path / "one"))
        folders.make(str(tmp_path / "two"))
        assert (tmp_path / "two" / "out").stat().st_ino != inode
        for name in ("one", "two"):
            (tmp_path / name).rename(tmp_path / f"{id(folders)}-{name}")


def test_what_is_kept_goes_with_its_keeper(jobs: Jobs) -> None:
    jobs.run()
    assert (jobs.path / "spare").exists()
    jobs.folders.close()
    assert not (jobs.path / "spare").exists()
