"""Blocks go to members of the service for which they are here, whoever knows their CIDs."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from pairio_node.blocks import (
    BlockCorrupt,
    BlockMissing,
    DiskBlockStore,
    FetchFailed,
    ScopedContent,
)
from pairio_node.transport import CHANNEL_CONTROL, MemoryNetwork
from pairio_node.transport.base import BLOCKS, ByteStream, StreamEnded, TransportError
from pairio_protocol.cid import RAW, cid_of
from pairio_protocol.codec import pack
from pairio_protocol.limits import BLOCK_STREAMS_PER_PEER_MAX, BLOCKS_PER_REQUEST_MAX
from pairio_protocol.messages import MESSAGES, Hold
from tests.block_files import services_with_marks
from tests.node.node_lab import LabNode, running, until

SECRET = b"what only the members of B may read"
SERVICE = cid_of(RAW, b"a service")
OTHER = cid_of(RAW, b"another service")


@dataclass
class Lab:
    """`holder` and `mallory` are members of A; of B, whose secret lies here, `holder` alone.
    `stranger` is connected, and a member of nothing."""

    holder: LabNode
    mallory: LabNode
    stranger: LabNode
    a: str
    b: str
    secret: str

    async def ask(self, asker: LabNode, service: str) -> None:
        await asker.exchange.fetch(service, self.secret, [self.holder.peer_id])

    @property
    def refused(self) -> int:
        return self.holder.exchange.counters["blocks_refused"]


@asynccontextmanager
async def lab(path: Path) -> AsyncIterator[Lab]:
    network = MemoryNetwork()
    async with (
        running(network, path / "holder", compute=False) as holder,
        running(network, path / "mallory", holder, compute=False) as mallory,
        running(network, path / "stranger", holder, compute=False) as stranger,
    ):
        services = [(await holder.services.create(name))["serviceId"] for name in ("A", "B")]
        await holder.admins.grant("A", mallory.peer_id, ["submit", "compute"], "mallory")
        await until(mallory.services.all, "Mallory is a member")
        await until(lambda: len(holder.transport.connected()) == 2, "all are connected")
        added = await holder.contents.of(services[1]).add_bytes(SECRET)
        yield Lab(holder, mallory, stranger, services[0], services[1], added.cid)


async def test_a_stranger_who_knows_a_cid_gets_nothing(tmp_path: Path) -> None:
    async with lab(tmp_path) as here:
        for service in (here.a, here.b):
            with pytest.raises(FetchFailed, match="refuses"):
                await here.ask(here.stranger, service)
        assert here.refused == 2
        assert here.holder.status()["blocks"]["blocks_refused"] == 2


async def test_a_member_of_another_service_gets_nothing_under_either_name(tmp_path: Path) -> None:
    async with lab(tmp_path) as here:
        with pytest.raises(FetchFailed, match="refuses"):
            await here.ask(here.mallory, here.b)
        with pytest.raises(FetchFailed, match="does not have it"):
            await here.ask(here.mallory, here.a)
        with pytest.raises(FetchFailed, match="refuses"):
            await here.ask(here.mallory, OTHER)
        added = await here.holder.contents.of(here.a).add_bytes(b"for all of A")
        await here.mallory.exchange.fetch(here.a, added.cid, [here.holder.peer_id])


async def test_to_be_asked_to_hold_what_is_here_for_others_gives_it_to_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with lab(tmp_path) as here:
        answers: list[bool] = []
        monkeypatch.setattr(
            here.mallory.core.replication, "on_held", lambda _, held: answers.append(held.ok)
        )
        hold = Hold(here.a, "t", (here.secret,), (here.mallory.peer_id,), b"")
        here.mallory.transport.send(here.holder.peer_id, CHANNEL_CONTROL, MESSAGES.encode(hold))
        await until(lambda: answers, "it answers")
        assert answers == [False]
        with pytest.raises(FetchFailed, match="does not have it"):
            await here.ask(here.mallory, here.a)


async def test_a_run_reads_no_input_that_is_here_for_another_service(tmp_path: Path) -> None:
    async with lab(tmp_path) as here:
        with pytest.raises(FetchFailed, match="nobody who might have it"):
            await here.holder.exchange.fetch(here.a, here.secret, [])
        with pytest.raises(BlockMissing):
            await here.holder.contents.of(here.a).export(here.secret, tmp_path / "out")


async def test_an_owner_who_names_content_in_a_job_shares_it(tmp_path: Path) -> None:
    async with lab(tmp_path) as here:

        async def upload() -> AsyncIterator[bytes]:
            yield b"x" * 3_000_000

        cid, _ = await here.holder.files.add(upload())
        with pytest.raises(FetchFailed):
            await here.mallory.exchange.fetch(here.a, cid, [here.holder.peer_id])
        inputs = {"inputFiles": [{"name": "input", "url": f"ipfs://{cid}"}]}
        assert (await here.holder.inputs.look(here.a, inputs)).local == [cid]
        await here.mallory.exchange.fetch(here.a, cid, [here.holder.peer_id])
        assert await here.mallory.content.size(cid) == 3_000_000
        with pytest.raises(FetchFailed):
            await here.mallory.exchange.fetch(here.b, cid, [here.holder.peer_id])


async def _frame(stream: ByteStream, value: object) -> None:
    data = pack(value)
    await stream.send(len(data).to_bytes(4, "big") + data)


async def test_a_stream_that_is_open_when_its_peer_is_removed_gives_no_more(
    tmp_path: Path,
) -> None:
    async with lab(tmp_path) as here:
        added = await here.holder.contents.of(here.a).add_bytes(b"for all of A")
        stream = await here.mallory.transport.open_stream(here.holder.peer_id, BLOCKS)
        await _frame(stream, here.a)
        await _frame(stream, [added.cid])
        assert await stream.receive_exactly(1 + 4 + 12) == b"\x01\0\0\0\x0cfor all of A"
        await here.holder.admins.revoke("A", "mallory", None, None)
        await _frame(stream, [added.cid])
        assert await stream.receive_exactly(1) == b"\x02"
        with pytest.raises(StreamEnded):
            await stream.receive_exactly(1)


@pytest.mark.parametrize(
    "first", [None, 7, "", "../../node.key", ["x"], "x" * 9000, [SERVICE, SERVICE]]
)
async def test_a_stream_that_names_no_service_is_reset(first: object, tmp_path: Path) -> None:
    async with lab(tmp_path) as here:
        stream = await here.mallory.transport.open_stream(here.holder.peer_id, BLOCKS)
        await _frame(stream, first)
        with pytest.raises(Exception, match=r"reset|closed|broke"), trio.fail_after(5):
            await stream.receive_exactly(1)
        here.holder.blocks.settle_sync()
        assert services_with_marks(tmp_path / "holder") == {here.b}


def test_who_brings_a_block_proves_to_have_it(tmp_path: Path) -> None:
    contents = ScopedContent(DiskBlockStore(tmp_path / "blocks", 2**20), tmp_path / "held")
    cid = cid_of(RAW, SECRET)
    contents.of(OTHER).store.put_sync(cid, SECRET)
    view = contents.of(SERVICE).store
    with pytest.raises(BlockCorrupt):
        view.put_sync(cid, b"I only know its name")
    assert not view.has(cid)
    view.put_sync(cid, SECRET)
    assert view.has(cid)


async def test_content_that_is_not_here_whole_is_not_shared(tmp_path: Path) -> None:
    store = DiskBlockStore(tmp_path / "blocks", 2**24)
    contents = ScopedContent(store, tmp_path / "held")
    added = await contents.everything.add_bytes(b"y" * 2_500_000)
    here, _ = await contents.everything.walk(added.cid)
    store._file(here[-1]).unlink()
    assert not await contents.share(SERVICE, added.cid)
    assert not contents.of(SERVICE).store.has(added.cid)


async def test_the_bounds_of_a_request_hold(tmp_path: Path) -> None:
    async with lab(tmp_path) as here:
        stream = await here.mallory.transport.open_stream(here.holder.peer_id, BLOCKS)
        await _frame(stream, here.a)
        await _frame(stream, [here.secret] * (BLOCKS_PER_REQUEST_MAX + 1))
        with pytest.raises(Exception, match=r"reset|closed|broke"), trio.fail_after(5):
            await stream.receive_exactly(1)


async def test_a_peer_has_so_many_streams_and_others_theirs(tmp_path: Path) -> None:
    async with lab(tmp_path) as here:
        added = await here.holder.contents.of(here.a).add_bytes(b"for all of A")
        streams = []
        for _ in range(BLOCK_STREAMS_PER_PEER_MAX):
            stream = await here.stranger.transport.open_stream(here.holder.peer_id, BLOCKS)
            await _frame(stream, here.a)
            streams.append(stream)
        await until(
            lambda: here.holder.exchange._streams[here.stranger.peer_id] == len(streams), "open"
        )
        more = await here.stranger.transport.open_stream(here.holder.peer_id, BLOCKS)
        with pytest.raises(TransportError), trio.fail_after(5):
            await more.receive_exactly(1)
        assert here.holder.status()["blocks"]["block_streams_refused"] == 1
        await here.mallory.exchange.fetch(here.a, added.cid, [here.holder.peer_id])
        for stream in streams:
            await stream.close()
        await until(lambda: not here.holder.exchange._streams, "all are closed")


async def test_a_node_that_fetches_much_at_once_is_not_refused(tmp_path: Path) -> None:
    async with lab(tmp_path) as here:
        view = here.holder.contents.of(here.a)
        cids = [(await view.add_bytes(f"file {i}".encode())).cid for i in range(100)]
        async with trio.open_nursery() as nursery:
            for cid in cids:
                nursery.start_soon(here.mallory.exchange.fetch, here.a, cid, [here.holder.peer_id])
        assert here.holder.exchange.counters["block_streams_refused"] == 0
        assert here.mallory.exchange.counters["blocks_received"] == 100
