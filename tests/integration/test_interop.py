"""pairio and a real Kubo, both ways, small; `make interop` does the same with large files."""

from pathlib import Path

import pytest

from tests.integration.interop.lab import make_lab
from tests.integration.interop.rows import _same, play
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


def test_a_sharded_folder_is_a_folder_both_ways(start_kubo: StartKubo, tmp_path: Path) -> None:
    with make_lab(tmp_path, start_kubo) as lab:
        folder = tmp_path / "many"
        folder.mkdir()
        for number in range(1200):  # more than 256 KiB of names
            (folder / f"{number}-{'n' * 200}").write_text(str(number))
        job = lab.copied(str(folder))
        cid = job["outputFileResults"][0]["cid"]
        assert job["jobDefinition"]["inputFiles"][0]["url"] == f"ipfs://{cid}", "as it went in"
        lab.pairio("publish", job["jobId"])
        lab.kubo.cli("get", "-o", str(tmp_path / "by-kubo"), cid)
        assert _same(folder, tmp_path / "by-kubo") == ""
        verified = lab.pairio("verify", job["jobId"])
        assert "verified" in verified

        (folder / f"1-{'n' * 200}").write_text("another one")
        added = lab.kubo.cli("add", "-r", "-Q", "--cid-version=1", str(folder)).stdout.decode()
        lab.until_it_asks(lab.submitter)
        again = lab.copied(added.strip())
        target = tmp_path / "by-pairio"
        lab.pairio("get", again["jobId"], "output", "-o", str(target))
        assert _same(folder, target) == ""
