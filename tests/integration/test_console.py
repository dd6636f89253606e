"""A job's console at another node, with real processes: live, whole, bounded."""

from contextlib import ExitStack
from pathlib import Path

import pytest

from pairio_node.runner.supervisor.console import HEAD_BYTES, TAIL_BYTES
from tests.integration.conftest import RunningNode
from tests.integration.console_delay import delays_ms, events, job_of, pair

pytestmark = pytest.mark.integration


def test_lines_come_while_the_job_runs_and_none_is_missing(tmp_path: Path) -> None:
    with ExitStack() as stack:
        first, _ = pair(tmp_path, stack)
        delays = delays_ms(first, lines=40, mean_ms=50)
        assert min(delays) < 500  # 60 ms by day (console_delay); machines of tests are busy
        _long(first)


def _long(node: RunningNode) -> None:
    """Of more than is kept, head and tail come; what is left out is counted."""
    job = node.call("POST", "jobs", {"jobDefinition": job_of(lines=60_000, mean_ms=0)})
    told = [e for e in events(node, job["requestId"]) if e["type"] in ("output", "gap")]
    text = "".join(e["text"] for e in told if e["type"] == "output")
    left_out = sum(e["bytes"] for e in told if e["type"] == "gap")
    assert text.startswith("line 0 ")
    assert "line 59999 " in text[-100:]
    wrote = len(text.encode()) + left_out
    assert wrote > HEAD_BYTES + TAIL_BYTES
    # The same again, from what was stored.
    again = [e for e in events(node, job["requestId"]) if e["type"] == "output"]
    assert "".join(e["text"] for e in again).startswith(text[:1000])
