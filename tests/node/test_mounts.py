"""What a sandbox has of this machine's interpreter, when that was built to be a shared library."""

import sys
from pathlib import Path

import pytest

from pairio_node.runner import mounts

NAME = "libpython3.12.so.1.0"
MAPS = """\
5555d0000000-5555d0001000 r--p 00000000 08:01 1 /home/a b/bin/python3.12
7f0000000000-7f0000001000 r-xp 00000000 08:01 2 {library}
7f0000002000-7f0000003000 rw-p 00000000 00:00 0
7f0000004000-7f0000005000 r-xp 00000000 08:01 3 /usr/lib/libc.so.6
"""


@pytest.mark.parametrize(
    ("library", "inside"),
    [
        (f"/home/a b/lib/{NAME}", f"/opt/pairio/python/lib/{NAME}"),
        (f"/home/a b/lib64/{NAME}", f"/opt/pairio/python/lib64/{NAME}"),
        (f"/usr/lib/{NAME}", ""),
        (f"/home/another/lib/{NAME}", ""),
        ("/home/a b/lib/libpython3.so", ""),
        ("/usr/lib/libm.so.6", ""),
    ],
)
def test_the_library_is_found_among_what_the_interpreter_runs_by(library: str, inside: str) -> None:
    maps = MAPS.format(library=library)
    assert mounts._library_in(maps, NAME, Path("/home/a b")) == inside


def test_the_library_alone_is_in_a_folder_that_a_job_looks_into_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inside = f"/opt/pairio/python/lib/{NAME}"
    monkeypatch.setattr(sys, "base_prefix", "/home/a b")
    monkeypatch.setattr(mounts, "_library", lambda: inside)
    argv = mounts.Mounts(0).system()
    at = argv.index(inside)
    assert argv[at - 1 : at + 2] == ["--symlink", inside, f"/opt/pairio/lib/{NAME}"]
    assert mounts.library_variables() == {"LD_LIBRARY_PATH": "/opt/pairio/lib"}


def test_an_interpreter_that_is_no_library_has_no_such_folder(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mounts, "_library", lambda: "")
    assert not any("/opt/pairio/lib" in word for word in mounts.Mounts(0).system())
    assert mounts.library_variables() == {}


def test_an_interpreter_of_the_system_has_its_library_from_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "base_prefix", "/usr")
    assert mounts._library.__wrapped__() == ""
