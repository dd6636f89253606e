"""Results by file, in whole nodes: what is exported is verified, and counts where it is imported by
what it is; nothing counts for having been in a file."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
import trio

from pairio_node.errors import StorageFullError, UnavailableError, UserError
from pairio_node.transport import MemoryNetwork
from pairio_protocol.car import CarReader, car_header, car_section
from pairio_protocol.cid import RAW, cid_of
from pairio_protocol.evidence import Evidence
from pairio_protocol.export import pack_export, unpack_export
from tests.node.node_lab import SERVICE, LabNode, app_directory, running, three, until


async def exported(node: LabNode, job: str) -> bytes:
    rests = await node.results.rests(job, None, ask=True)
    async for _ in node.results.bring(rests):
        pass
    return b"".join([piece async for piece in await node.cars.export(rests)])


async def in_pieces(data: bytes, step: int = 10_000) -> AsyncGenerator[bytes, None]:
    for start in range(0, len(data), step):
        yield data[start : start + step]


async def imported(node: LabNode, data: bytes) -> dict[str, Any]:
    with trio.fail_after(20):
        async with aclosing(in_pieces(data)) as pieces:
            return await node.cars.import_(pieces)


async def verified(node: LabNode, job: str, *, offline: bool = False) -> list[dict[str, Any]]:
    rests = await node.results.rests(job, None, ask=not offline)
    found = [step async for step in node.results.verify(rests, offline=offline)]
    return [step for step in found if "check" in step]


def opened(car: bytes) -> tuple[str, Evidence, dict[str, bytes]]:
    reader = CarReader()
    blocks = {cid: data for cid, data, _ in reader.feed(car)}
    [root] = reader.finish()
    return root, unpack_export(root, blocks.get)[0], blocks


def cut_off(network: MemoryNetwork, node: LabNode, *others: LabNode) -> None:
    for other in others:
        network.cut(node.peer_id, other.peer_id)


async def test_a_result_that_comes_by_file_is_a_hit(tmp_path: Path) -> None:
    network = MemoryNetwork()
    async with three(network, tmp_path) as (admin, worker, guest):
        cut_off(network, guest, admin, worker)
        await until(lambda: not guest.transport.connected(), "cut off")
        job = await admin.done(await admin.greet("Ada"))
        with pytest.raises(UserError, match="nor at a connected member"):
            await guest.results.one(job["jobId"], None)
        car = await exported(admin, job["jobId"])
        told = await imported(guest, car)
        assert (told["serviceName"], [r["counts"] for r in told["results"]]) == (SERVICE, [True])
        assert all(step["ok"] for step in await verified(guest, job["jobId"], offline=True))
        hit = await guest.greet("Ada")
        assert (hit["jobId"], hit["cached"], hit["status"]) == (job["jobId"], True, "completed")
        assert await guest.output(hit) == "hello Ada"
        assert (await imported(guest, car))["results"] == told["results"]
        assert guest.runner.ran == []
    async with running(network, tmp_path / "guest", compute=False) as guest:
        await until(guest.services.all, "the disk was read")
        assert (await guest.greet("Ada"))["cached"]


async def test_a_file_opens_no_content_to_a_service_that_was_not_in_it(tmp_path: Path) -> None:
    """Somebody signs a result that names content which lies here for others, and sends a file."""
    network = MemoryNetwork()
    async with three(network, tmp_path) as (admin, worker, guest):
        cut_off(network, guest, admin, worker)
        await until(lambda: not guest.transport.connected(), "cut off")
        job = await admin.done(await admin.greet("Ada"))
        cid, service = job["outputFileResults"][0]["cid"], job["serviceId"]
        await guest.files.add(in_pieces(b"hello Ada"))
        car = await exported(admin, job["jobId"])
        _, evidence, _ = opened(car)
        made = pack_export(evidence, [], [])  # without the output
        data = car_header(made.root) + b"".join(car_section(*b) for b in made.blocks.items())
        assert [row["counts"] for row in (await imported(guest, data))["results"]] == [True]
        assert await guest.contents.of(service).missing(cid) == [cid]
        await imported(guest, car)
        assert await guest.contents.of(service).missing(cid) == []


async def test_what_came_by_file_and_then_from_members_is_whole_after_a_restart(
    tmp_path: Path,
) -> None:
    network = MemoryNetwork()
    async with three(network, tmp_path) as (admin, worker, guest):
        cut_off(network, guest, admin, worker)
        await until(lambda: not guest.transport.connected(), "cut off")
        for name in ("Ada", "Bob", "Eve"):
            job = await admin.done(await admin.greet(name))
        await imported(guest, await exported(admin, job["jobId"]))
        for other in (admin, worker):
            network.mend(guest.peer_id, other.peer_id)
        held = admin.core.logs.digest(job["serviceId"])
        await until(lambda: guest.core.logs.digest(job["serviceId"]) == held, "synced")
    async with running(network, tmp_path / "guest", compute=False) as guest:
        await until(guest.services.all, "the disk was read")
        assert guest.core.logs.digest(job["serviceId"]) == held


async def test_a_node_that_is_no_member_keeps_content_only(tmp_path: Path) -> None:
    network = MemoryNetwork()
    async with three(network, tmp_path) as (admin, _, _), running(network, tmp_path / "x") as other:
        job = await admin.done(await admin.greet("Ada"))
        told = await imported(other, await exported(admin, job["jobId"]))
        assert told["serviceName"] is None
        assert [r["counts"] for r in told["results"]] == [False]
        assert other.services.all() == []
        cid = job["outputFileResults"][0]["cid"]
        assert b"".join([c async for c in other.content.read(cid)]) == b"hello Ada"


async def test_what_a_file_claims_counts_only_if_it_would_from_a_peer(tmp_path: Path) -> None:
    """The worker is revoked, his log cut; the file from before says nothing of it."""
    network = MemoryNetwork()
    async with three(network, tmp_path) as (admin, worker, guest):
        cut_off(network, guest, admin, worker)
        await until(lambda: not guest.transport.connected(), "cut off")
        job = await admin.done(await admin.greet("Ada"))
        car = await exported(admin, job["jobId"])
        for other in (worker,):
            network.cut(admin.peer_id, other.peer_id)
        await until(lambda: not admin.transport.connected(), "cut off too")
        await admin.admins.revoke(SERVICE, worker.peer_id, None, 1)  # all of it counts no more
        await until(
            lambda: "compute" not in admin.core.membership.folded(job["serviceId"]).roles_of(
                worker.peer_id
            ),
            "revoked",
        )  # fmt: skip
        [broken] = [s for s in await verified(admin, job["requestId"]) if not s["ok"]]
        assert (broken["check"], "cut it away" in broken["words"]) == ("result", True)
        root, evidence, blocks = opened(car)
        assert root in blocks
        changes = tuple(
            c.encode() for c in admin.core.membership.chains[job["serviceId"]].changes()
        )
        newer = Evidence(
            evidence.service, evidence.asked, changes, evidence.segments, (), evidence.documents
        )
        made = pack_export(newer, [], [])
        data = car_header(made.root) + b"".join(car_section(*b) for b in made.blocks.items())
        told = await imported(guest, data)
        assert [(r["counts"], "cut it away" in r["why"]) for r in told["results"]] == [
            (False, True)
        ]
        assert guest.core.membership.chains[job["serviceId"]].epoch == len(changes) - 1
        assert not (await guest.greet("Ada"))["cached"]


async def test_a_tampered_segment_is_refused_and_said(tmp_path: Path) -> None:
    network = MemoryNetwork()
    async with three(network, tmp_path) as (admin, worker, guest):
        cut_off(network, guest, admin, worker)
        await until(lambda: not guest.transport.connected(), "cut off")
        job = await admin.done(await admin.greet("Ada"))
        _, evidence, _ = opened(await exported(admin, job["jobId"]))
        wrong = tuple(data[:-1] + bytes([data[-1] ^ 1]) for data in evidence.segments)
        made = pack_export(
            Evidence(
                evidence.service, evidence.asked, evidence.changes, wrong, (), evidence.documents
            ),
            [],
            [],
        )
        data = car_header(made.root) + b"".join(car_section(*b) for b in made.blocks.items())
        told = await imported(guest, data)
        assert [r["counts"] for r in told["results"]] == [False]
        assert "bad signature" in told["results"][0]["why"]


async def test_an_export_lacks_nothing_or_is_refused(tmp_path: Path) -> None:
    network = MemoryNetwork()
    async with three(network, tmp_path) as (admin, worker, guest):
        job = await admin.done(await admin.greet("Ada"))
        await until(lambda: guest.core.fold(job["serviceId"]).results, "known with its result")
        last = (await verified(guest, job["jobId"], offline=True))[-1]
        assert (last["check"], last["ok"]) == ("code", False)  # it computes nothing: no code here
        cut_off(network, guest, admin, worker)
        await until(lambda: not guest.transport.connected(), "cut off")
        with pytest.raises(UnavailableError, match="cannot be exported: 1 blocks"):
            await exported(guest, job["jobId"])
        for other in (admin, worker):
            network.mend(guest.peer_id, other.peer_id)
        await until(lambda: len(guest.transport.connected()) == 2, "connected again")
        assert all(step["ok"] for step in await verified(guest, job["jobId"]))
        assert opened(await exported(guest, job["jobId"]))[1].result


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"garbage", "cannot be imported"),
        (b"", "ends in the middle"),
        (car_header(cid_of(RAW, b"x"))[:-1], "ends in the middle"),
        (car_header(cid_of(RAW, b"x")) + car_section(cid_of(RAW, b"x"), b"y"), "other bytes"),
        (b"\xff\xff\xff\xff\x7f", "at most"),
    ],
)
async def test_a_hostile_file_is_an_error_in_words(data: bytes, words: str, tmp_path: Path) -> None:
    async with running(MemoryNetwork(), tmp_path / "a") as node:
        with pytest.raises(UserError, match=words) as caught:
            await imported(node, data)
        assert caught.value.hint


async def test_an_export_without_its_blocks_is_damaged(tmp_path: Path) -> None:
    network = MemoryNetwork()
    async with three(network, tmp_path) as (admin, _, _), running(network, tmp_path / "x") as other:
        job = await admin.done(await admin.greet("Ada"))
        root, _, blocks = opened(await exported(admin, job["jobId"]))
        alone = car_header(root) + car_section(root, blocks[root])
        with pytest.raises(UserError, match=r"the export is damaged: block .* is missing"):
            await imported(other, alone)


async def test_content_of_other_programs_is_taken_as_content(tmp_path: Path) -> None:
    async with running(MemoryNetwork(), tmp_path / "a") as node:
        cid = cid_of(RAW, b"data")
        told = await imported(node, car_header(cid) + car_section(cid, b"data"))
        assert (told["roots"], told["blocks"], told["results"]) == ([cid], 1, [])
        assert b"".join([c async for c in node.content.read(cid)]) == b"data"


async def test_more_than_the_quota_is_refused(tmp_path: Path) -> None:
    async with running(MemoryNetwork(), tmp_path / "a") as node:
        chunks = [bytes([n]) * 2**20 for n in range(20)]
        data = car_header(cid_of(RAW, chunks[0]))
        data += b"".join(car_section(cid_of(RAW, c), c) for c in chunks)
        with pytest.raises(StorageFullError):
            await imported(node, data)
        await node.services.create(SERVICE)
        assert app_directory(tmp_path / "app").is_dir()
