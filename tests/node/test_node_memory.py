"""Whole nodes in one loop: what one submits another computes, and nobody computes it twice."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from pairio_node.blocks import FetchFailed
from pairio_node.errors import UserError
from pairio_node.store import CommitRows
from pairio_node.transport import MemoryNetwork
from tests.node.node_lab import SERVICE, LabNode, app_directory, running, three, until
from tests.node.transport_lab import a_moment


@pytest.mark.parametrize("gossip_loss", [0.0, 1.0])
async def test_a_job_is_computed_by_another_and_comes_from_the_cache_at_a_third(
    gossip_loss: float, tmp_path: Path
) -> None:
    network = MemoryNetwork()
    network.gossip_loss = gossip_loss
    async with three(network, tmp_path) as (admin, worker, guest):
        job = await admin.greet("Ada")
        assert job["replicated"] >= 1
        job = await admin.done(job)
        assert (job["status"], job["safe"], job["cached"]) == ("completed", True, False)
        assert job["computeNodeId"] == worker.peer_id
        assert await admin.output(job) == "hello Ada"

        again = await guest.done(await guest.greet("Ada"))
        assert (again["jobId"], again["cached"]) == (job["jobId"], True)
        assert await guest.output(again) == "hello Ada"
        assert (worker.runner.ran, admin.runner.ran, guest.runner.ran) == (["Ada"], [], [])


async def test_alone_a_result_is_told_when_it_is_on_the_disk_and_no_sooner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(MemoryNetwork(), tmp_path / "alone") as alone:
        await alone.services.create(SERVICE)
        await alone.services.install_app(SERVICE, str(app_directory(tmp_path / "app")), None)
        assert alone.writer is not None
        submit, held = alone.writer.submit, []

        def slow(rows: CommitRows, on_done: Callable[[Exception | None], None]) -> None:
            if rows.answers:
                held.append((rows, on_done))
            else:
                submit(rows, on_done)

        monkeypatch.setattr(alone.writer, "submit", slow)
        job = await alone.greet("Ada")
        await until(lambda: held, "the result is to be written")
        assert not (await alone.jobs.wait(job["requestId"], None, 0.3))["isSettled"]
        for rows, on_done in held:
            submit(rows, on_done)
        assert (await alone.done(job))["isSettled"]


async def test_what_a_node_knew_is_there_after_a_restart_without_anybody(tmp_path: Path) -> None:
    network = MemoryNetwork()
    async with three(network, tmp_path) as (admin, _, _):
        job = await admin.done(await admin.greet("Ada"))
    async with running(network, tmp_path / "admin", compute=False) as admin:
        await until(admin.services.all, "the disk was read")
        shown = admin.jobs.one(job["jobId"], None)
        assert (shown["status"], shown["requestId"]) == ("completed", job["requestId"])
        assert await admin.output(shown) == "hello Ada"
        assert (await admin.greet("Ada"))["cached"]


async def test_members_find_each_other_again_at_new_addresses(tmp_path: Path) -> None:
    network = MemoryNetwork()
    async with three(network, tmp_path) as (admin, worker, _):
        before = worker.transport.addresses()
    async with (
        running(network, tmp_path / "admin", compute=False) as admin,
        running(network, tmp_path / "worker", admin) as worker,
    ):
        assert worker.transport.addresses() != before
        await until(lambda: worker.peer_id in admin.transport.connected(), "connected")
        assert (await admin.done(await admin.greet("Bob")))["computeNodeId"] == worker.peer_id


async def test_a_full_disk_is_said_and_nothing_is_lost(tmp_path: Path) -> None:
    async with running(MemoryNetwork(), tmp_path / "a") as node:
        await node.services.create(SERVICE)
        await node.services.install_app(SERVICE, str(app_directory(tmp_path / "app")), None)
        before = await node.done(await node.greet("Ada"))
        node.store.is_full = True
        with pytest.raises(UserError, match="not stored: database or disk is full") as caught:
            await node.greet("Bob")
        assert (caught.value.code, caught.value.hint) == (
            "disk",
            "free disk space, then submit again: the same job is not computed twice",
        )
        assert node.jobs.one(before["requestId"], None)["status"] == "completed"
        node.store.is_full = False
        after = await node.done(await node.greet("Bob"))
        assert (after["status"], node.runner.ran) == ("completed", ["Ada", "Bob"])
    async with running(MemoryNetwork(), tmp_path / "a") as node:
        await until(node.services.all, "the disk was read")
        for job in (before, after):
            assert node.jobs.one(job["requestId"], None)["status"] == "completed"


async def test_a_removed_member_is_refused(tmp_path: Path) -> None:
    async with three(MemoryNetwork(), tmp_path) as (admin, worker, guest):
        job = await guest.done(await guest.greet("Ada"))
        assert job["status"] == "completed"
        done = await admin.done(await admin.greet("Eve"))
        cid = done["outputFileResults"][0]["cid"]
        await admin.admins.revoke(SERVICE, guest.peer_id, None, None)
        await until(lambda: "guest" not in str(worker.services.one(SERVICE)["members"]), "told")
        with pytest.raises(UserError, match="may not submit"):
            await guest.greet("Mallory")
        with pytest.raises(FetchFailed):
            await guest.exchange.fetch(job["serviceId"], cid, [worker.peer_id, admin.peer_id])
        assert worker.exchange.counters["blocks_refused"] >= 1
        assert worker.runner.ran == ["Ada", "Eve"]
        kept = admin.jobs.one(job["jobId"], None)
        assert kept["status"] == "completed", "what was asked for before counts"


async def test_what_a_member_asks_for_after_its_removal_is_not_run(tmp_path: Path) -> None:
    network = MemoryNetwork()
    async with three(network, tmp_path) as (admin, worker, guest):
        await guest.done(await guest.greet("Ada"))
        for other in (admin, worker):
            network.cut(guest.peer_id, other.peer_id)
        await admin.admins.revoke(SERVICE, guest.peer_id, None, None)
        job = await guest.greet("Mallory")  # it does not know yet
        assert (job["status"], job["replicated"]) == ("pending", 0)
        for other in (admin, worker):
            network.mend(guest.peer_id, other.peer_id)
        await until(lambda: not guest.services.one(SERVICE)["roles"], "it is told of its removal")
        await a_moment(0.1)
        assert worker.runner.ran == ["Ada"]
        for node in (admin, worker):
            with pytest.raises(UserError, match="no job"):
                node.jobs.one(job["jobId"], None)


def _is_past(node: LabNode, unix_ms: int) -> bool:
    return node.clock.unix_ms() > unix_ms


async def test_a_job_of_two_services_is_the_one_asked_for_last(tmp_path: Path) -> None:
    async with running(MemoryNetwork(), tmp_path / "a", compute=False) as node:
        source = str(app_directory(tmp_path / "app"))
        for service in ("first", "second"):
            await node.services.create(service)
            await node.services.install_app(service, source, None)
        for service in ("first", "second", "first"):
            job = await node.greet("Ada", serviceName=service)
            assert node.jobs.one(job["jobId"], None)["serviceName"] == service
            await until(partial(_is_past, node, node.clock.unix_ms()), "a millisecond passes")
        assert node.jobs.one(job["jobId"], "second")["serviceName"] == "second"


async def test_a_submit_without_a_service_or_an_app_is_answered_in_words(tmp_path: Path) -> None:
    async with running(MemoryNetwork(), tmp_path / "a") as node:
        with pytest.raises(UserError, match="this node is in no service"):
            await node.greet("Ada")
        await node.services.create(SERVICE)
        with pytest.raises(UserError, match="no app 'greeter' in service"):
            await node.greet("Ada")
