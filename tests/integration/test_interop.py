"""pairio and a real Kubo, both ways, small; `make interop` does the same with large files."""

from pathlib import Path

import pytest

from tests.integration.interop.lab import make_lab
from tests.integration.interop.rows import play
from tests.integration.kubo import StartKubo

pytestmark = pytest.mark.integration
SIZE = 6 * 2**20 + 7


def test_what_kubo_reads_from_pairio_and_pairio_from_kubo_is_right(
    start_kubo: StartKubo, tmp_path: Path
) -> None:
    with make_lab(tmp_path, start_kubo) as lab:
        rows = list(play(lab, [SIZE]))
        assert [f"{row.what}: {row.wrong}" for row in rows if row.wrong] == []
        assert len(rows) == 14
        for node in (lab.submitter, lab.worker):
            status = node.get("status")
            assert status["restarts"] == 0
            assert not [name for name in status["counters"] if name.startswith("contained")]
