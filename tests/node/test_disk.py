"""What a job may make of its folder, and that the folder is measured and removed all the same."""

import os
from pathlib import Path

import pytest

from pairio_node.runner.folders import FolderError, measure_folder, plain_files
from pairio_node.runner.supervisor.disk import DEPTH_MAX, measure, remove_tree, unlinked_bytes


def test_bytes_on_the_disk_count_not_the_sizes_that_files_claim(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "full").write_bytes(b"x" * 1_000_000)
    with open(tmp_path / "sparse", "wb") as file:
        file.truncate(10**12)
    os.link(tmp_path / "a" / "full", tmp_path / "again")
    (tmp_path / "link").symlink_to("/usr")
    found = measure(tmp_path, 1000)
    assert 1_000_000 <= found.size_bytes < 1_100_000
    assert (found.files, found.depth) == (5, 1)


def test_a_walk_ends_with_one_file_too_many(tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / str(number)).touch()
    assert measure(tmp_path, 10).files == 11


def test_a_folder_without_rights_hides_nothing(tmp_path: Path) -> None:
    (tmp_path / "dark").mkdir()
    (tmp_path / "dark" / "file").write_bytes(b"x" * 100_000)
    (tmp_path / "dark").chmod(0o300)
    assert measure(tmp_path, 100).size_bytes >= 100_000


def test_folders_deeper_than_any_path_are_seen_and_removed(tmp_path: Path) -> None:
    top = tmp_path / "job"
    _deep(top, 300)
    assert measure(top, 10_000).depth == DEPTH_MAX
    remove_tree(top)
    assert not top.exists()


def test_outputs_deeper_than_python_can_follow_are_looked_for_and_left_out(tmp_path: Path) -> None:
    # A walk that calls itself for each level ends with a RecursionError, and with it the node.
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("kept")
    _deep(tmp_path / "other" / "deep", 1500, name="d")
    found = plain_files(tmp_path / "other")
    assert tmp_path / "other" / "file" in found
    assert 2 <= len(found) <= 100
    with pytest.raises(FolderError, match="deeper than"):
        measure_folder(tmp_path / "other")
    remove_tree(tmp_path / "other")  # for pytest, which cannot


def _deep(top: Path, levels: int, name: str = "a-name-of-20-letters") -> None:
    top.mkdir()
    fd = os.open(top, os.O_RDONLY)
    for _ in range(levels):
        os.mkdir(name, dir_fd=fd)
        os.close(os.open("f", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
        inner = os.open(name, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
    os.close(fd)


def test_links_are_removed_and_what_they_lead_to_stays(tmp_path: Path) -> None:
    others = tmp_path / "others"
    others.mkdir()
    (others / "file").write_text("stays")
    job = tmp_path / "job"
    (job / "a" / "b").mkdir(parents=True)
    (job / "a" / "link").symlink_to(others)
    (job / "file").symlink_to(others / "file")
    os.mkfifo(job / "a" / "b" / "pipe")
    (job / "a" / "b" / "\n\udcff").touch()
    (job / "a" / "b").chmod(0)
    (job / "a").chmod(0o500)
    job.chmod(0)
    remove_tree(job)
    assert not job.exists()
    assert (others / "file").read_text() == "stays"
    (tmp_path / "instead").symlink_to(others)
    remove_tree(tmp_path / "instead")
    assert (others / "file").read_text() == "stays"
    remove_tree(tmp_path / "nothing")


def test_files_that_are_open_and_have_no_name_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with open(path, "wb") as file:
        file.write(b"x" * 300_000)
        file.flush()
        path.unlink()
        device = tmp_path.stat().st_dev
        assert 300_000 <= unlinked_bytes([os.getpid()], device) < 400_000
        assert unlinked_bytes([os.getpid()], device + 1) == 0
