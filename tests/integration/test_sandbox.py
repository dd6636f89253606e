"""The sandbox of bubblewrap: what a job is kept from, seen from inside."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from pairio_node.runner import BwrapRunner, Launcher, RunInput, RunOutput
from tests.integration.runner_lab import run_spec, script_spec

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed"),
]


@pytest.fixture
def bwrap(tmp_path: Path) -> Iterator[BwrapRunner]:
    with Launcher(tmp_path / "alive") as launcher:
        yield BwrapRunner(launcher)


async def test_the_filter_of_calls_is_in_force_in_a_job(bwrap: BwrapRunner, tmp_path: Path) -> None:
    script = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
def call(*numbers):
    return 0 if libc.syscall(*numbers) >= 0 else ctypes.get_errno()
here = os.uname().machine
unshare, keyctl, clone3, newer = (272, 250, 435, 499) if here == "x86_64" else (97, 219, 435, 499)
print(call(unshare, 0x10000000), call(keyctl, 0, -3, 0), call(clone3, 0, 0), call(newer))
print([line.split()[1] for line in open("/proc/self/status") if line[:7] in ("Seccomp", "NoNewPr")])
print(sorted(os.listdir("/proc/self/fd")))
os.mkfifo("pipe")
"""
    outcome = await run_spec(bwrap, script_spec(tmp_path, script, program="main.py"))
    assert outcome.status == "completed", outcome
    lines = outcome.console.decode().splitlines()
    # 3 is the folder that is being listed: nothing else came through, not even the filter itself.
    assert lines == ["1 1 38 38", "['1', '2', '1']", "['0', '1', '2', '3']"]


@pytest.mark.skipif(os.geteuid() != 0, reason="another user is taken for a node of root only")
async def test_a_job_of_a_root_node_is_not_roots(bwrap: BwrapRunner, tmp_path: Path) -> None:
    home = tmp_path / "home"  # as a node's home is: nobody but its user enters
    home.mkdir(mode=0o700)
    (home / "in.txt").write_text("text")
    script = "cat /in/0/in.txt; printf done > /tmp/out/0; id -u"
    inputs = (RunInput("input", "in.txt", home / "in.txt"),)
    spec = script_spec(home, script, inputs=inputs, outputs=(RunOutput("output", "o"),))
    outcome = await run_spec(bwrap, spec)
    assert outcome.status == "completed", outcome
    made = outcome.outputs["output"]
    assert made.read_text() == "done"
    assert made.stat().st_uid not in (0, 65534)
    assert outcome.console == b"text65534\n"
