"""`make bench-content` and `make bench-dht`, small: that all of it goes, and comes right."""

import re
import subprocess
import sys

import pytest

from tests.integration.kubo import kubo_program

pytestmark = pytest.mark.integration


def _last_line(module: str, *arguments: str) -> str:
    argv = [sys.executable, "-m", f"tests.integration.{module}", *arguments]
    run = subprocess.run(argv, capture_output=True, text=True, timeout=240, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout.splitlines()[-1]


@pytest.mark.timeout(300)
def test_a_file_goes_over_pairio_http_and_kubo() -> None:
    kubo_program()  # in CI a missing one is a failure
    said = _last_line("content", "--size", "16")
    assert re.fullmatch(r"transfers: 2, beside: 2, verified: (\d+) of \1, too large: 0", said), said


@pytest.mark.timeout(300)
def test_jobs_are_found_by_id_in_every_way() -> None:
    kubo_program()
    said = _last_line("lookups", "--repeats", "5")
    assert re.fullmatch(r"found: \d+ of 45, in vain: 10, told: 40, by Kubo: 5", said), said
