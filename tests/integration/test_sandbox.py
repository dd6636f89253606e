"""The sandbox of bubblewrap: what a job is kept from, seen from inside."""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pairio_node.runner import BwrapRunner, Launcher, RunInput, RunOutput, RunSpec
from pairio_node.runner.base import ProbeResult
from pairio_node.runner.gpus import Gpu
from pairio_node.runner.mounts import Mounts
from pairio_node.runner.probe import MARK
from pairio_node.runner.selftest import judge
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


async def test_a_job_has_the_nodes_interpreter_and_no_other(
    bwrap: BwrapRunner, tmp_path: Path
) -> None:
    """One that was built to be a library took the system's, or there was no sandbox at all."""
    script = """
import os, sys
with open("/proc/self/maps") as maps:
    used = {line.split()[-1] for line in maps if "/libpython" in line}
found = os.environ.get("LD_LIBRARY_PATH")
print(repr(sys.version))
print([path for path in used if not path.startswith(("/opt/pairio/python/", "/usr/"))])
print(len(used) - len(os.listdir(found) if found else ()))
"""
    outcome = await run_spec(bwrap, script_spec(tmp_path, script, program="main.py"))
    assert outcome.status == "completed", outcome
    version, elsewhere, more = outcome.console.decode().splitlines()
    assert (version, elsewhere) == (repr(sys.version), "[]")
    assert more == "0" or sys.base_prefix.startswith("/usr")


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


async def test_the_self_test_of_a_node_finds_that_the_sandbox_holds(bwrap: BwrapRunner) -> None:
    assert await bwrap.probe() == ProbeResult(True)


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """What is not to be reached is not below /tmp, where the job has a folder of its own."""
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="p-") as top:
        os.chmod(top, 0o755)
        monkeypatch.setattr(tempfile, "tempdir", top)
        yield top


HOLES = {
    "no filter of calls": ([], "NETLINK of audit"),
    "the host's network": (["--share-net"], "TCP to the node's API on loopback"),
    "the host's shared memory": (["--bind", "/dev/shm", "/dev/shm"], "another's file in /dev/shm"),
    "the host's files": (["--bind", "{top}", "{top}"], "a shared folder of the host"),
    "a /dev that can be written to": (["--dev", "/dev"], "write into /dev"),
}


@pytest.mark.parametrize("hole", HOLES)
async def test_a_sandbox_with_a_hole_is_not_used(
    hole: str, bwrap: BwrapRunner, elsewhere: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments, found = HOLES[hole]
    more = [word.format(top=elsewhere) for word in arguments]
    sandbox = bwrap._sandbox

    def with_a_hole(spec: RunSpec, mounts: Mounts) -> list[str]:
        argv = sandbox(spec, mounts)
        if not more:
            at = argv.index("--seccomp")
            return [*argv[:at], *argv[at + 2 :]]
        return [*argv[:-2], *more, *argv[-2:]]

    monkeypatch.setattr(bwrap, "_sandbox", with_a_hole)
    probe = await bwrap.probe()
    assert not probe.ok
    assert "does not hold" in probe.why
    assert found in probe.why, probe.why


def test_a_job_that_says_nothing_has_proved_nothing() -> None:
    assert not judge(b"").ok
    assert "bwrap: something" in judge(b"bwrap: something\n").why
    assert "was not tried" in judge(f"{MARK}{{}}".encode()).why
    assert not judge(f"{MARK}not JSON".encode()).ok


async def test_a_job_has_the_gpus_that_it_was_given_and_no_others(
    bwrap: BwrapRunner, tmp_path: Path, elsewhere: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A machine with two, as far as mounts go: the devices are files.
    root = Path(elsewhere)
    (root / "dev").mkdir(mode=0o755)
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        (root / "dev" / name).write_text(name)
    there = Mounts.gpus
    monkeypatch.setattr(Mounts, "gpus", lambda mounts, gpus: there(mounts, gpus, root))
    script = 'ls /dev | grep nvidia; echo "$CUDA_VISIBLE_DEVICES"'
    one = script_spec(tmp_path, script, gpus=1, gpu_devices=(Gpu("GPU-b", 1),))
    outcome = await run_spec(bwrap, one)
    assert outcome.console.decode().split() == ["nvidia-uvm", "nvidia1", "nvidiactl", "GPU-b"]
    outcome = await run_spec(bwrap, script_spec(tmp_path, script))
    assert (outcome.status, outcome.console) == ("completed", b"\n")
