"""A part of the escape table in every test run (`make escape` tries all of it), and that it finds a
sandbox that has a hole."""

import shutil
import subprocess
import sys

import pytest

from tests.integration.escape.kinds import HOLES
from tests.integration.escape.lab import all_names
from tests.integration.escape.page import names_in_page

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed"),
]

_QUICK = (
    "read the node's key",
    "read a secret in its own environment",
    "read a descriptor of the node",
    "write into a shared folder of the host",
    "write into /dev",
    "TCP to the node's API on loopback",
    "UDP to loopback",
    "trace the node",
    "a new user namespace by clone",
    "type into a terminal",
    "keyctl",
    "a daemon that outlives its job",
    "a file of the job before",
    "shared memory of the job before",
    "a secret of the job before",
    "an abstract socket of a job beside it",
    "loopback of a job beside it",
    "a secret of a job beside it",
    "a streamed input of a job beside it",
)


def _played(*options: str) -> tuple[int, str, list[str]]:
    """Play some attempts; return the exit code, the last line, and what leaked."""
    words = [word for name in _QUICK for word in ("--attempt", name)]
    run = subprocess.run(
        [sys.executable, "-m", "tests.integration.escape", "--only", "bwrap", *words, *options],
        capture_output=True,
        text=True,
        timeout=200,
    )
    *lines, last = run.stdout.splitlines() or [run.stderr]
    leaked = [line.split(": ")[1] for line in lines if line.startswith("LEAKED in bwrap: ")]
    return run.returncode, f"{last} {run.stderr}", leaked


def test_what_works_outside_is_denied_inside() -> None:
    code, last, leaked = _played()
    assert leaked == []
    assert last.startswith(f"attempts: {len(_QUICK)}, worked outside: ")
    assert last.strip().endswith("leaked: 0")
    assert "worked outside: 0" not in last
    assert code == 0


@pytest.mark.parametrize(
    ("hole", "found"),
    [
        ("no filter of calls", "keyctl"),
        ("the host's network", "loopback of a job beside it"),
        ("the host's network", "a streamed input of a job beside it"),
        ("the host's files", "a file of the job before"),
        ("a /dev that can be written to", "write into /dev"),
    ],
)
def test_a_sandbox_with_a_hole_is_found(hole: str, found: str) -> None:
    assert hole in HOLES
    code, last, leaked = _played("--plant", hole)
    assert found in leaked, last
    assert code == 1


def test_the_page_tells_of_every_attempt() -> None:
    assert len(all_names()) == len({*all_names()}) >= 43
    assert names_in_page() == all_names(), "make escape WRITE=1"
