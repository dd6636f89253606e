"""A rich stranger with many keys takes no member's place."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.integration


def test_strangers_get_half_of_the_places_and_the_first_gives_up_his() -> None:
    program = [sys.executable, "-m", "tests.integration.crowd_lab"]
    run = subprocess.run(program, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
