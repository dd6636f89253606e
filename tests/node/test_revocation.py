"""Revocation, in whole nodes: who waits is told, leases go elsewhere, later results are no hits."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from pairio_node.errors import UserError
from pairio_node.runner import RunOutcome, RunSpec
from pairio_node.transport import MemoryNetwork
from tests.node.node_lab import SERVICE, LabNode, running, three, until


def _has_code(node: LabNode) -> bool:
    return not node.code.missing


async def _revoked(admin: LabNode, peer: LabNode) -> None:
    await admin.admins.revoke(SERVICE, peer.peer_id, None, None)


async def test_who_waits_is_told_at_once_who_and_when_and_why(tmp_path: Path) -> None:
    async with three(MemoryNetwork(), tmp_path) as (admin, _, guest):
        job = await guest.greet("Ada", requiredResources={"numGpus": 1})  # nobody has one
        assert job["status"] == "pending"
        seen: list[dict[str, Any]] = []

        async def wait() -> None:
            seen.append(await guest.jobs.wait(job["requestId"], None, 60))

        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait)
                await _revoked(admin, guest)
        (view,) = seen
        assert (view["status"], view["isSettled"]) == ("failed", True)
        for words in ("revoked", "UTC", f"signed by node-{admin.peer_id[-6:]}", "removes 'guest'"):
            assert words in view["error"]
        with pytest.raises(UserError, match=r"may not submit to .* any more: change") as caught:
            await guest.greet("Bob")
        assert "pairio service log" in (caught.value.hint or "")
        await until(
            lambda: admin.jobs.one(job["jobId"], None)["status"] == "failed", "others see it too"
        )


async def test_the_leases_of_a_revoked_worker_are_given_away_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with three(MemoryNetwork(), tmp_path) as (admin, worker, guest):
        cancelled = trio.Event()

        async def run(spec: RunSpec, cancel: trio.Event) -> RunOutcome:
            await cancel.wait()
            cancelled.set()
            return RunOutcome("canceled", "", {}, b"", {})

        monkeypatch.setattr(worker.runner, "run", run)
        job = await guest.greet("Ada")
        await until(lambda: guest.jobs.one(job["jobId"], None)["status"] == "running", "it runs")
        await _revoked(admin, worker)
        with trio.fail_after(5):  # a lease is 10 s
            await cancelled.wait()
        attempts = guest.jobs.one(job["jobId"], None)["attempts"]
        assert [(a["ended"], "may not compute" in a["reason"]) for a in attempts] == [
            ("infra", True)
        ]
        assert guest.jobs.one(job["jobId"], None)["status"] == "pending", "for the next worker"


async def test_results_after_the_cut_are_no_hits_and_are_computed_again(tmp_path: Path) -> None:
    network = MemoryNetwork()
    async with (
        three(network, tmp_path) as (admin, worker, guest),
        running(network, tmp_path / "second", admin) as second,
    ):
        await admin.admins.grant(SERVICE, second.peer_id, ["compute"], "second")
        await admin.admins.grant(SERVICE, worker.peer_id, ["compute", "submit"], "worker")
        await until(lambda: second.services.all(), "it takes part")
        await until(lambda: "submit" in worker.services.one(SERVICE)["roles"], "it may submit")
        for node in (worker, second):
            await until(partial(_has_code, node), "the code is here")
        others = (admin, guest, second)
        for other in others:
            network.cut(worker.peer_id, other.peer_id)
        await _revoked(admin, worker)
        alone = await worker.done(await worker.greet("Zoe"))
        assert (alone["status"], worker.runner.ran) == ("completed", ["Zoe"])
        for other in others:
            network.mend(worker.peer_id, other.peer_id)
        await until(lambda: not worker.services.one(SERVICE)["roles"], "it is told")
        job = await guest.done(await guest.greet("Zoe"))
        assert (job["status"], job["cached"]) == ("completed", False)
        assert second.runner.ran == ["Zoe"]
