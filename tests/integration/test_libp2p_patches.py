"""Every patch of py-libp2p does something: with it the test passes, without it it fails.

When an upgrade makes a `stock` case pass, its patch is obsolete.
"""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration
LAB = Path(__file__).with_name("libp2p_lab.py")


def _lab(name: str, patched: bool, *arguments: str) -> "subprocess.CompletedProcess[str]":
    argv = [sys.executable, str(LAB), name, str(int(patched)), *arguments]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    "name",
    [
        "read_exactly",
        "connect_time",
        "window_updates",
        "sender_record",
        "read_ahead",
        "window_wait",
        "few_turns",
        "window_kept",
        "cancelled_write",
    ],
)
def test_a_patch_is_needed_and_works(name: str) -> None:
    patched = _lab(name, True)
    assert patched.returncode == 0, patched.stderr
    assert _lab(name, False).returncode != 0, "obsolete: stock passes too"


def _survives(kind: str, patched: bool) -> bool:
    victim = subprocess.Popen(
        [sys.executable, str(LAB), "victim", str(int(patched))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert victim.stdin is not None
    assert victim.stdout is not None
    port = victim.stdout.readline().strip()
    _lab(f"attack-{kind}", True, port)
    alive = victim.poll() is None
    victim.stdin.close()
    code = victim.wait(20)
    victim.stdout.close()
    return alive and code == 0


@pytest.mark.parametrize("kind", ["garbage", "bad_key", "boom"])
def test_a_frame_that_ends_a_stock_host_is_survived(kind: str) -> None:
    assert not _survives(kind, patched=False), "obsolete: stock survives too"
    assert _survives(kind, patched=True)


@pytest.mark.parametrize("kind", ["junk_control", "oversize"])
def test_other_hostile_frames_are_survived(kind: str) -> None:
    assert _survives(kind, patched=True)
