"""What anybody may read of a node: what its owner published, results of services that say so."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trio

from pairio_node.bitswap import BITSWAP
from pairio_node.bitswap.wire import encode_message, want
from pairio_node.blocks import FetchFailed
from pairio_node.errors import NotFoundError, StorageFullError, UserError
from pairio_node.transport import MemoryNetwork, StreamEnded
from pairio_protocol.cid import RAW, cid_of
from pairio_protocol.documents import Link, decode
from pairio_protocol.records import ResultDocument
from tests.node.node_lab import LabNode, running, three, until

SERVICE = "lab"


@dataclass
class Lab:
    """An admin, a worker and a member who submits; `stranger` is connected with the worker, and a
    member of nothing. `job` is done, `other` is another job that is done."""

    admin: LabNode
    worker: LabNode
    member: LabNode
    stranger: LabNode
    job: dict[str, Any]
    other: dict[str, Any]

    @property
    def result(self) -> str:
        """The CID of the job's result."""
        _, state = self.worker.jobs.find(self.job["jobId"], None)
        fold = self.worker.core.fold(self.job["serviceId"])
        info = fold.answer_for(state, fold.resolve(state.job))
        assert info is not None
        return info.cid

    @property
    def output(self) -> str:
        return str(self.job["outputFileResults"][0]["cid"])

    async def read(self, cid: str, source: LabNode | None = None) -> bytes:
        """Have the stranger read something from the worker over Bitswap."""
        holder = source or self.worker
        assert self.stranger.bitswap is not None
        await self.stranger.transport.reach(holder.peer_id, holder.transport.addresses())
        with trio.fail_after(20):
            await self.stranger.bitswap.fetch(
                self.stranger.blocks, cid, peers=[holder.peer_id], limit_bytes=2**30
            )
        return await self.stranger.blocks.get(cid)

    async def is_hidden(self, cid: str) -> bool:
        try:
            await self.read(cid)
        except FetchFailed as error:
            assert "does not have it" in str(error)
            return True
        return False


@asynccontextmanager
async def lab(path: Path) -> AsyncIterator[Lab]:
    network = MemoryNetwork()
    async with (
        three(network, path) as (admin, worker, member),
        running(network, path / "stranger", compute=False) as stranger,
    ):
        jobs = [await member.done(await member.greet(name)) for name in ("Ada", "Bob")]
        for job in jobs:
            job["serviceId"] = admin.services.id_of(SERVICE)
            assert job["status"] == "completed", job
        yield Lab(admin, worker, member, stranger, *jobs)


async def test_of_a_service_like_any_other_strangers_have_nothing(tmp_path: Path) -> None:
    async with lab(tmp_path) as here:
        for cid in (here.job["jobId"], here.result, here.output):
            assert await here.is_hidden(cid)
        assert here.worker.publishing.published() == {"published": [], "services": []}


async def test_a_published_result_is_read_whole_and_nothing_else(tmp_path: Path) -> None:
    async with lab(tmp_path) as here:
        made = await here.worker.publishing.publish(here.job["jobId"], None)
        assert (made["changed"], made["kind"], made["result"]) == (True, "result", here.result)
        assert await here.read(here.output) == b"hello Ada"
        document = ResultDocument.decode(await here.read(here.result))
        assert document.outputs["output"][0] == here.output
        raw = decode(await here.stranger.blocks.get(here.result), 2**20)
        assert raw["job"] == Link(here.job["jobId"])
        job = decode(await here.read(here.job["jobId"]), 2**20)
        assert job["parameters"] == [{"name": "name", "value": "Ada"}]
        assert await here.read(document.console) == b"greeting\n"
        for cid in (here.other["jobId"], here.other["outputFileResults"][0]["cid"]):
            assert await here.is_hidden(cid)
        bundle = here.worker.services.apps(SERVICE)[0]["bundle"]
        assert await here.is_hidden(bundle)


async def test_a_member_publishes_what_he_has_to_fetch_first(tmp_path: Path) -> None:
    async with lab(tmp_path) as here:
        await here.admin.publishing.publish(here.other["jobId"], None)
        cid = here.other["outputFileResults"][0]["cid"]
        assert await here.read(cid, here.admin) == b"hello Bob"


async def test_unpublished_is_hidden_again_but_for_what_is_published_besides(
    tmp_path: Path,
) -> None:
    async with lab(tmp_path) as here:
        publishing = here.worker.publishing
        await publishing.publish(here.job["jobId"], None)
        await publishing.publish(here.output, None)  # the same output, as content
        assert (await publishing.publish(here.output, None))["changed"] is False
        await publishing.unpublish(here.job["jobId"])
        assert await here.is_hidden(here.result)
        assert await here.read(here.output) == b"hello Ada"
        await publishing.unpublish(here.output[-10:])
        await here.stranger.blocks.get(here.output)  # what it has read stays the stranger's
        other = here.other["outputFileResults"][0]["cid"]
        with pytest.raises(NotFoundError, match="not published"):
            await publishing.unpublish(other)
        assert publishing.published()["published"] == []


async def test_what_could_not_be_hidden_is_still_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise StorageFullError("cannot publish: No space left on device")

    async with lab(tmp_path) as here:
        publishing = here.worker.publishing
        await publishing.publish(here.job["jobId"], None)
        with monkeypatch.context() as patch, pytest.raises(StorageFullError):
            patch.setattr(publishing.blocks, "replace_sync", full)
            await publishing.unpublish(here.job["jobId"])
        assert [e["id"] for e in publishing.published()["published"]] == [here.job["jobId"]]
        await publishing.unpublish(here.job["jobId"])
        assert await here.is_hidden(here.output)


async def test_what_was_published_by_half_is_so_when_it_is_asked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise StorageFullError("cannot publish: No space left on device")

    async with lab(tmp_path) as here:
        publishing = here.worker.publishing
        with monkeypatch.context() as patch, pytest.raises(StorageFullError):
            patch.setattr(publishing.blocks, "mark_sync", full)
            await publishing.publish(here.output, None)
        assert publishing.roots() == {here.output}  # it may be public in part, and is listed
        await publishing.publish(here.output, None)
        assert await here.read(here.output) == b"hello Ada"


async def test_what_is_published_is_so_after_a_restart(tmp_path: Path) -> None:
    network = MemoryNetwork()

    async def add(data: bytes) -> AsyncIterator[bytes]:
        yield data

    async with running(network, tmp_path / "node") as node:
        cid, _ = await node.files.add(add(b"x" * 3_000_000))
        await node.publishing.publish(cid, None)
    async with (
        running(network, tmp_path / "node") as node,
        running(network, tmp_path / "stranger", node) as stranger,
    ):
        assert node.publishing.roots() == {cid}
        assert stranger.bitswap is not None
        await stranger.bitswap.fetch(stranger.blocks, cid, peers=[node.peer_id])
        assert await stranger.content.size(cid) == 3_000_000


async def test_what_is_published_does_not_go_when_the_store_is_emptied(tmp_path: Path) -> None:
    async with running(MemoryNetwork(), tmp_path / "node") as node:
        kept = await node.content.add_bytes(b"published" * 300_000)
        other = await node.content.add_bytes(b"not published")
        await node.publishing.publish(kept.cid, None)
        await until(lambda: not node.blocks.in_use.all(), "nothing works with them any more")
        await node.cache.gc(everything=True, dry=False)
        assert not await node.content.missing(kept.cid)
        assert await node.content.missing(other.cid)


async def test_what_is_not_here_or_has_no_result_is_not_published(tmp_path: Path) -> None:
    async with lab(tmp_path) as here:
        with pytest.raises(NotFoundError, match="not here whole"):
            await here.admin.publishing.publish(cid_of(RAW, b"nowhere"), None)
        with pytest.raises(NotFoundError, match="no job"):
            await here.admin.publishing.publish("bafyrei-nothing-like-that", None)
        assert here.admin.publishing.published()["published"] == []


async def test_a_service_may_let_anybody_read_its_results_and_no_inputs(tmp_path: Path) -> None:
    async with lab(tmp_path) as here:
        secret = await here.worker.contents.of(here.job["serviceId"]).add_bytes(b"an input")
        made = await here.admin.publishing.set_results(SERVICE, True)
        assert (made["changed"], made["results"], made["proposal"]) == (True, "public", None)
        await until(lambda: here.worker.publishing.policy(SERVICE)["results"] == "public", "news")
        await until(lambda: len(here.worker.publishing._shown) == 2, "both are shown")
        for job, name in ((here.job, b"Ada"), (here.other, b"Bob")):
            assert await here.read(job["outputFileResults"][0]["cid"]) == b"hello " + name
            await here.read(job["jobId"])
        await here.read(here.result)
        assert await here.is_hidden(secret.cid)
        later = await here.member.done(await here.member.greet("Cleo"))
        await until(lambda: len(here.worker.publishing._shown) == 3, "the new one is shown")
        assert await here.read(later["outputFileResults"][0]["cid"]) == b"hello Cleo"


async def test_a_service_that_takes_it_back_shows_nothing_more(tmp_path: Path) -> None:
    async with lab(tmp_path) as here:
        await here.admin.publishing.set_results(SERVICE, True)
        await until(lambda: len(here.worker.publishing._shown) == 2, "both are shown")
        await here.read(here.output)
        await here.admin.publishing.set_results(SERVICE, False)
        await until(lambda: here.worker.publishing.policy(SERVICE)["results"] == "members", "news")
        for cid in (here.job["jobId"], here.result):
            assert await here.is_hidden(cid)


async def test_a_stranger_who_waits_is_given_a_result_when_it_is_public(tmp_path: Path) -> None:
    async with lab(tmp_path) as here:
        heard = trio.Event()

        async def listen(stream: Any) -> None:
            data = b""
            while b"hello Ada" not in data:
                try:
                    data += await stream.receive_exactly(1)
                except StreamEnded:
                    return
            heard.set()

        here.stranger.transport.set_stream_handler(BITSWAP, listen)
        await here.stranger.transport.reach(here.worker.peer_id, here.worker.transport.addresses())
        stream = await here.stranger.transport.open_stream(here.worker.peer_id, BITSWAP)
        await stream.send(encode_message([want(here.output)]))
        bitswap = here.worker.bitswap
        assert bitswap is not None
        await until(lambda: bitswap._server.wants_of(here.stranger.peer_id) == 1, "it is noted")
        await here.worker.publishing.publish(here.job["jobId"], None)
        with trio.fail_after(10):
            await heard.wait()


async def test_an_input_that_no_member_has_comes_over_bitswap(tmp_path: Path) -> None:
    async with lab(tmp_path) as here:

        async def upload() -> AsyncIterator[bytes]:
            yield b"from outside" * 200_000

        cid, _ = await here.stranger.files.add(upload())
        await here.stranger.publishing.publish(cid, None)
        service = here.job["serviceId"]
        with pytest.raises(FetchFailed):  # nobody is connected with it
            await here.worker.outside.fetch(service, cid, [])
        await here.worker.transport.reach(
            here.stranger.peer_id, here.stranger.transport.addresses()
        )
        with pytest.raises(FetchFailed):  # what is not named as an input is asked of nobody
            await here.worker.exchange.fetch(service, cid, [])
        assert await here.worker.outside.fetch(service, cid, []) > 2_000_000
        assert not await here.worker.contents.of(service).missing(cid)


async def test_a_submitter_fetches_the_input_that_it_names(tmp_path: Path) -> None:
    async with lab(tmp_path) as here:

        async def upload() -> AsyncIterator[bytes]:
            yield b"from outside"

        cid, _ = await here.stranger.files.add(upload())
        await here.stranger.publishing.publish(cid, None)
        await here.member.transport.reach(
            here.stranger.peer_id, here.stranger.transport.addresses()
        )
        inputs = {"inputFiles": [{"name": "input", "url": f"ipfs://{cid}"}]}
        assert (await here.member.inputs.look(here.job["serviceId"], inputs)).local == [cid]


async def test_a_node_without_bitswap_neither_serves_nor_asks(tmp_path: Path) -> None:
    network = MemoryNetwork()
    async with (
        running(network, tmp_path / "a", bitswap=False) as a,
        running(network, tmp_path / "b", a) as b,
    ):
        await until(lambda: a.peer_id in b.transport.connected(), "connected")
        added = await a.content.add_bytes(b"public, and not served")
        await a.publishing.publish(added.cid, None)
        assert b.bitswap is not None and b.bitswap.peers() == []
        assert a.status()["bitswap"] is None
        with pytest.raises(UserError):
            await a.publishing.publish("no such thing", None)
