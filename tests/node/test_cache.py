"""The cache of whole nodes: what a pin, a live job or a promise needs stays, the rest goes; and
what has gone is known to be gone."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from pairio_node import cache, cache_needs, files, services
from pairio_node.blocks import in_use
from pairio_node.errors import NotFoundError, StorageFullError, UnavailableError, UserError
from pairio_node.transport import MemoryNetwork
from pairio_protocol import events as ev
from tests.node.node_lab import SERVICE, LabNode, app_directory, running, three, until


@pytest.fixture(autouse=True)
def _no_lingering(monkeypatch: pytest.MonkeyPatch) -> None:
    """Work is over when it is over: these tests do not wait for what stays a while after it."""
    monkeypatch.setattr(in_use, "LINGER_S", 0.0)
    monkeypatch.setattr(files, "_NAMED_S", 0.0)
    monkeypatch.setattr(services, "_LISTED_S", 0.0)
    monkeypatch.setattr(cache_needs, "_COPYING_MS", -1)


async def _alone(node: LabNode, path: Path) -> LabNode:
    await node.services.create(SERVICE)
    await node.services.install_app(SERVICE, str(app_directory(path / "app")), None)
    return node


async def _result(node: LabNode, name: str) -> dict[str, Any]:
    return await node.done(await node.greet(name))


def _cid(job: dict[str, Any]) -> str:
    cid = job["outputFileResults"][0]["cid"]
    assert isinstance(cid, str)
    return cid


def _is_here(node: LabNode, *jobs: dict[str, Any]) -> list[bool]:
    return [node.blocks.has(_cid(job)) for job in jobs]


async def _collect_all(node: LabNode) -> dict[str, Any]:
    await _idle(node)
    return await node.cache.gc(everything=True, dry=False)


async def _idle(node: LabNode) -> None:
    """Wait until no work is under way."""
    await until(lambda: not node.blocks.in_use.all(), "nothing is in use")


def _repair_now(*nodes: LabNode) -> None:
    """Let a round of repair begin: one of the nodes, by rendezvous, looks after a result."""
    for one in nodes:
        one.core.replication._safe.clear()
        one.core.replication._repair_ms = 0
        one.driver.post(ev.TimePassed())


# -- alone --------------------------------------------------------------------------------------


async def test_a_store_that_fails_has_nothing_and_the_node_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(_: str) -> bool:
        raise UserError("the Kubo daemon says: repo needs migration")

    async with running(MemoryNetwork(), tmp_path / "a") as alone:
        node = await _alone(alone, tmp_path)
        job = await _result(node, "Ada")
        service = node.services.id_of(SERVICE)
        assert await node.cache.is_here(service, [_cid(job)])
        with monkeypatch.context() as patch:
            patch.setattr(node.blocks, "has", refuses)
            assert not await node.cache.is_here(service, [_cid(job)])
        assert await node.cache.is_here(service, [_cid(job)])


async def test_alone_results_go_and_pinned_ones_and_apps_stay(tmp_path: Path) -> None:
    async with running(MemoryNetwork(), tmp_path / "a") as alone:
        node = await _alone(alone, tmp_path)
        pinned, other = await _result(node, "Ada"), await _result(node, "Bob")
        pin = await node.cache.pin(pinned["jobId"][-12:], None)
        assert (pin["name"], pin["kind"], len(pin["cids"])) == (pinned["jobId"], "job", 2)
        await _idle(node)
        said = await node.cache.gc(everything=True, dry=True)
        assert _is_here(node, pinned, other) == [True, True]
        done = await _collect_all(node)
        assert {**said, "dryRun": False} == done
        assert [root["cid"] for root in done["roots"]] == [_cid(other)]
        assert done["roots"][0]["what"] == f"output of job {other['jobId']}"
        assert _is_here(node, pinned, other) == [True, False]
        assert await node.output(pinned) == "hello Ada"
        bundle = node.services.apps(SERVICE)[0]["bundle"]
        assert not await node.content.missing(bundle)
        again = await _result(node, "Bob")  # what has gone is no answer any more
        assert (again["status"], again["cached"]) == ("completed", False)
        assert node.runner.ran == ["Ada", "Bob", "Bob"]
        assert await node.output(again) == "hello Bob"


async def test_pins_outlive_a_restart_until_they_are_taken_back(tmp_path: Path) -> None:
    async with running(MemoryNetwork(), tmp_path / "a") as alone:
        job = await _result(await _alone(alone, tmp_path), "Ada")
        await alone.cache.pin(job["jobId"], SERVICE)
        added = await alone.content.add_bytes(b"a file of mine")
        await alone.cache.pin(added.cid, None)
    async with running(MemoryNetwork(), tmp_path / "a") as again:
        await until(again.services.all, "the disk was read")
        pins = again.cache.all_pins()["pins"]
        assert {pin["name"]: pin["kind"] for pin in pins} == {
            job["jobId"]: "job",
            added.cid: "content",
        }
        await _collect_all(again)
        assert _is_here(again, job) == [True] and again.blocks.has(added.cid)
        again.cache.unpin(job["jobId"])
        again.cache.unpin(added.cid[-10:])
        await _collect_all(again)
        assert _is_here(again, job) == [False] and not again.blocks.has(added.cid)
    async with running(MemoryNetwork(), tmp_path / "a") as last:
        assert last.cache.all_pins() == {"pins": []}


async def test_what_cannot_be_pinned_is_refused_in_words(tmp_path: Path) -> None:
    async with running(MemoryNetwork(), tmp_path / "a", compute=False) as alone:
        node = await _alone(alone, tmp_path)
        job = await node.greet("Ada")
        with pytest.raises(UserError, match="has no result yet"):
            await node.cache.pin(job["jobId"], None)
        with pytest.raises(NotFoundError, match="'nonsense' is no job known here, and no CID"):
            await node.cache.pin("nonsense", None)
        elsewhere = "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku"
        with pytest.raises(NotFoundError, match="not here whole: 1 blocks are missing"):
            await node.cache.pin(elsewhere, None)
        with pytest.raises(NotFoundError, match="is not pinned"):
            node.cache.unpin(job["jobId"])


async def test_the_least_recently_used_result_goes_first_and_use_keeps_it(tmp_path: Path) -> None:
    async with running(MemoryNetwork(), tmp_path / "a") as alone:
        node = await _alone(alone, tmp_path)
        jobs = [await _result(node, name) for name in ("Ada", "Bob", "Eve")]
        for number, job in enumerate(jobs):
            cid = _cid(job)
            assert node.blocks.db.touch(cid, 1000 + number)
        assert (await node.greet("Ada"))["cached"]  # the oldest is used
        await until(lambda: not node.cache._touched, "uses were noted")
        for gone in ([1], [1, 2]):
            used = node.blocks.used_bytes
            node.cache.collection.quota_bytes = used * 100 // 80 - 1  # a little must go
            await node.cache.gc(everything=False, dry=False)
            assert _is_here(node, *jobs) == [n not in gone for n in range(3)]
        assert node.cache.counters["hits"] == 1


async def test_a_disk_that_fails_under_the_small_blocks_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "FIRST_LOOK_S", 0.0)
    monkeypatch.setattr(cache, "LOOK_S", 0.02)
    looks = 0
    async with running(MemoryNetwork(), tmp_path / "a") as alone:
        node = await _alone(alone, tmp_path)
        job = await _result(node, "Ada")
        look = node.cache._look

        async def counted() -> None:
            nonlocal looks
            await look()
            looks += 1

        monkeypatch.setattr(node.cache, "_look", counted)
        node.blocks.db._writer.execute("pragma query_only = on")
        with pytest.raises(StorageFullError, match=r"small\.db: attempt to write"):
            await node.content.add_bytes(b"refused")
        await until(lambda: looks > 2, "it goes on looking after its store")
        await node.cache.gc(everything=True, dry=False)
        assert _is_here(node, job) == [False], "what may go goes"
        node.blocks.db._writer.execute("pragma query_only = off")
        await node.content.add_bytes(b"taken again")
        assert (await _result(node, "Eve"))["status"] == "completed"


async def test_a_block_that_cannot_be_read_holds_off_collections_and_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cache, "LOOK_S", 0.02)
    monkeypatch.setattr(cache, "AGAIN_S", 0.01)

    def fail(cid: str) -> bytes:
        raise OSError(f"{cid}: disk I/O error")

    async with running(MemoryNetwork(), tmp_path / "a") as alone:
        node = await _alone(alone, tmp_path)
        job = await _result(node, "Ada")
        with monkeypatch.context() as patch:
            patch.setattr(node.blocks.db, "read", fail)
            patch.setattr(node.cache.collection, "quota_bytes", 1)
            node.cache._soon()
            await until(lambda: node.cache.counters["looks_failed"] > 2, "it is tried again")
            with pytest.raises(UnavailableError, match="disk I/O error"):
                await node.cache.gc(everything=True, dry=False)
        assert _is_here(node, job) == [True]
        told = [one.message for one in caplog.records if one.name == "pairio.cache"]
        assert len(told) == 1 and "cannot be read" in told[0] and "small.db" in told[0]


async def test_the_inputs_of_an_open_job_and_what_it_waits_for_stay(tmp_path: Path) -> None:
    async with running(MemoryNetwork(), tmp_path / "a", compute=False) as alone:
        node = await _alone(alone, tmp_path)
        reader = app_directory(tmp_path / "reader")
        (reader / "spec.json").write_text(json.dumps(READER))
        await node.services.install_app(SERVICE, str(reader), None)
        needed = (await node.content.add_bytes(b"an input")).cid
        other = (await node.content.add_bytes(b"nobody's")).cid
        job = await node.jobs.submit({"jobDefinition": _with_input(needed)})
        await _collect_all(node)
        assert (node.blocks.has(needed), node.blocks.has(other)) == (True, False)
        await node.jobs.cancel(job["requestId"], None)
        await _collect_all(node)
        assert not node.blocks.has(needed)


READER = {
    "name": "reader",
    "processors": [
        {
            "name": "read",
            "executable": "main.py",
            "inputs": [{"name": "in"}],
            "outputs": [{"name": "output"}],
            "parameters": [],
        }
    ],
}


def _with_input(cid: str) -> dict[str, Any]:
    return {
        "appName": "reader",
        "processorName": "read",
        "inputFiles": [{"name": "in", "url": f"ipfs://{cid}", "fileBaseName": "in"}],
        "outputFiles": [{"name": "output"}],
        "parameters": [],
    }


# -- among others ---------------------------------------------------------------------------------


async def test_copies_that_others_count_on_stay_and_a_reader_s_go(tmp_path: Path) -> None:
    async with three(MemoryNetwork(), tmp_path) as (admin, worker, guest):
        job = await _result(admin, "Ada")
        assert job["safe"]
        again = await guest.done(await guest.greet("Ada"))
        assert await guest.output(again) == "hello Ada"
        for node in (admin, worker, guest):
            await _collect_all(node)
        here = [n.blocks.has(_cid(job)) for n in (admin, worker, guest)]
        assert here[:2] == [True, True]
        assert (await admin.cache.stats())["byReason"]["promised"] > 0


async def test_promises_outlive_a_restart(tmp_path: Path) -> None:
    network = MemoryNetwork()
    async with three(network, tmp_path) as (admin, worker, _):
        job = await _result(admin, "Ada")
        assert job["safe"]
        await until(lambda: worker.cache.promises.kept, "the promise was noted")
    async with running(network, tmp_path / "worker") as worker:
        await until(worker.services.all, "the disk was read")
        await _collect_all(worker)
        assert _is_here(worker, job) == [True]


async def test_after_a_promise_has_lapsed_the_copy_goes_and_is_made_again_elsewhere(
    tmp_path: Path,
) -> None:
    async with three(MemoryNetwork(), tmp_path) as (admin, worker, guest):
        job = await _result(admin, "Ada")
        assert job["safe"] and _is_here(admin, job) == [True]
        await until(lambda: worker.cache.promises.kept, "the promise was noted")
        worker.config = replace(worker.config, promise_days=0)
        await _collect_all(worker)
        assert _is_here(worker, job) == [False]
        await until(lambda: not worker.cache.promises.kept, "it promises nothing any more")
        with trio.fail_after(60):  # who begins a round may first have to hear that a copy is gone
            while not guest.blocks.has(_cid(job)):
                _repair_now(admin, worker, guest)
                with trio.move_on_after(1):
                    await until(partial(guest.blocks.has, _cid(job)), "another one holds it")
        assert _is_here(worker, job) == [False]  # and it does not come back here
        key = next(iter(admin.core.fold(admin.services.id_of(SERVICE)).results))
        await until(
            lambda: any(n.core.replication.is_safe(key) for n in (admin, worker, guest)),
            "it is safe again",
        )


async def test_who_let_a_copy_go_knows_it_and_fetches_it_again_for_who_asks(tmp_path: Path) -> None:
    async with three(MemoryNetwork(), tmp_path) as (admin, worker, _):
        job = await _result(admin, "Ada")
        assert job["safe"]
        admin.config = replace(admin.config, promise_days=0)
        await _collect_all(admin)
        assert _is_here(admin, job) == [False]
        await until(lambda: not admin.jobs.one(job["jobId"], None)["safe"], "it is safe no more")
        again = await _result(admin, "Ada")
        assert again["cached"] and await admin.output(again) == "hello Ada"
        assert worker.runner.ran == ["Ada"]


async def test_a_copy_whose_blocks_were_taken_is_made_again(tmp_path: Path) -> None:
    async with three(MemoryNetwork(), tmp_path) as (admin, worker, guest):
        job = await _result(admin, "Ada")
        assert job["safe"]
        assert worker.contents.delete_sync(_cid(job))  # a disk that lost it
        _repair_now(admin, worker, guest)
        await until(partial(worker.blocks.has, _cid(job)), "it is there again")


# -- full ---------------------------------------------------------------------------------------


def _fill(node: LabNode) -> None:
    """Let what is protected leave no room."""
    node.cache.collection.quota_bytes = node.blocks.quota_bytes = node.blocks.used_bytes + 1


async def test_a_full_node_takes_no_job_and_says_why_until_there_is_room(tmp_path: Path) -> None:
    async with three(MemoryNetwork(), tmp_path) as (admin, worker, _):
        await _result(admin, "Ada")
        await until(lambda: worker.cache.promises.kept, "the promise was noted")
        await worker.cache.pin(worker.services.apps(SERVICE)[0]["bundle"], None)
        _fill(worker)
        await until(lambda: worker.core.ctx.no_room, "it is full")
        assert worker.status()["blocks"]["full"]
        job = await admin.greet("Bob")

        def rule() -> Any:
            nodes = admin.jobs.why(job["requestId"], None)["nodes"]
            return next((n for n in nodes if n["rule"] == "block store"), None)

        await until(rule, "it is said why")
        assert "free" in rule()["need"] and "must stay" in rule()["have"]
        assert worker.runner.ran == ["Ada"]
        worker.cache.collection.quota_bytes = worker.blocks.quota_bytes = 2**24
        assert (await admin.done(job))["status"] == "completed"


async def test_a_full_node_refuses_content_and_further_copies(tmp_path: Path) -> None:
    async with three(MemoryNetwork(), tmp_path) as (admin, worker, guest):
        await _result(admin, "Ada")
        await until(lambda: admin.cache.promises.kept, "the promise was noted")
        _fill(admin)
        await until(lambda: admin.core.ctx.no_room, "it is full")

        async def chunks() -> Any:
            yield bytes(1000)

        with pytest.raises(StorageFullError, match="1000 more do not fit") as caught:
            await admin.files.add(chunks())
        assert caught.value.http_status == 507 and "quota_bytes" in str(caught.value.hint)
        job = await _result(guest, "Bob")  # the admin would be asked to hold it
        assert job["status"] == "completed"
        await until(lambda: worker.cache.promises.kept, "others hold it")
        assert not admin.blocks.has(_cid(job))


# -- shown -----------------------------------------------------------------------------------------


async def test_what_is_here_is_listed_with_what_it_is_and_why_it_stays(tmp_path: Path) -> None:
    async with running(MemoryNetwork(), tmp_path / "a") as alone:
        node = await _alone(alone, tmp_path)
        job = await _result(node, "Ada")
        await node.cache.pin(job["jobId"], None)
        mine = (await node.content.add_bytes(b"a file of mine")).cid
        with trio.fail_after(30):  # what was just pinned may still be told to others
            while True:
                listed = await node.cache.ls(100)
                if not any("in use" in root["keptBecause"] for root in listed["roots"]):
                    break
                with trio.move_on_after(0.02):
                    await trio.sleep_forever()
        roots = {root["cid"]: root for root in listed["roots"]}
        assert listed["count"] == len(roots) == 4
        output = roots[_cid(job)]
        assert (output["sizeBytes"], output["keptBecause"]) == (len("hello Ada"), ["pinned"])
        assert output["what"] == f"output of job {job['jobId']}"
        assert (roots[mine]["what"], roots[mine]["keptBecause"]) == ("content", [])
        bundle = roots[node.services.apps(SERVICE)[0]["bundle"]]
        assert (bundle["what"], bundle["keptBecause"]) == ("app greeter", ["app"])
        assert len((await node.cache.ls(2))["roots"]) == 2
        stats = await node.cache.stats()
        assert sum(stats["byReason"].values()) == stats["usedBytes"] == node.blocks.used_bytes
        assert stats["byReason"]["cache"] == len(b"a file of mine")
        assert (stats["quotaBytes"], stats["full"], stats["pins"]) == (2**24, False, 1)
