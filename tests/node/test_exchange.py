"""Blocks from several holders: each block is checked, the bad cost time within a bound, the slow
are not waited for, what came is kept, and whoever asks is bounded."""

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio
import trio.testing

from pairio_node.blocks import DiskBlockStore, Exchange, FetchFailed, ScopedContent
from pairio_node.blocks.exchange import Patience
from pairio_node.blocks.unixfs import CHUNK_SIZE_BYTES, Entry, directory_block
from pairio_node.errors import StorageFullError
from pairio_node.transport import MemoryNetwork, MemoryTransport
from pairio_node.transport.base import BLOCKS, ByteStream, TransportEvent
from pairio_protocol.cid import DAG_PB, RAW, cid_of
from pairio_protocol.codec import pack, unpack
from pairio_protocol.limits import (
    BLOCK_REQUEST_SIZE_BYTES_MAX,
    BLOCK_STREAMS_PER_PEER_MAX,
    BLOCKS_PER_REQUEST_MAX,
)
from tests.block_files import block_data
from tests.node.node_lab import until

SERVICE = cid_of(RAW, b"a service")
CHUNKS = 12
Answer = Callable[[ByteStream, bytes], Awaitable[None]]


@dataclass
class Side:
    """A node reduced to content and exchange."""

    transport: MemoryTransport
    contents: ScopedContent
    exchange: Exchange

    @property
    def id(self) -> str:
        return self.transport.peer_id

    @property
    def sent(self) -> int:
        return self.exchange.counters["blocks_sent"]

    async def fetch(self, cid: str, *holders: "Side", limit_bytes: int = 2**40) -> int:
        ids = [holder.id for holder in holders]
        with trio.fail_after(60):
            return await self.exchange.fetch(SERVICE, cid, ids, limit_bytes=limit_bytes)

    async def read(self, cid: str, start: int = 0, stop: int | None = None) -> bytes:
        content = self.contents.of(SERVICE)
        return b"".join([chunk async for chunk in content.read(cid, start, stop)])

    def answers(self, answer: Answer) -> None:
        """Let this side answer each want by `answer(stream, right block)`."""
        store = self.contents.of(SERVICE).store

        async def serve(stream: ByteStream) -> None:
            await _frame(stream)
            while True:
                wants = await _frame(stream)
                assert isinstance(wants, list)
                for cid in wants:
                    await answer(stream, await store.get(cid))

        self.transport.set_stream_handler(BLOCKS, serve)


async def _frame(stream: ByteStream) -> object:
    return unpack(await stream.receive_exactly(int.from_bytes(await stream.receive_exactly(4))))


async def _sink(event: TransportEvent) -> None:
    return None


@asynccontextmanager
async def sides(
    path: Path, names: str, patience: Patience | None = None, quota_bytes: int = 2**30
) -> AsyncIterator[tuple[MemoryNetwork, list[Side]]]:
    """Run sides; the first, who asks, is connected with each of the others."""
    network, made = MemoryNetwork(), []
    patience = patience or Patience(late_s=0.05)
    async with AsyncExitStack() as stack:
        for name in names.split():
            transport = MemoryTransport(network, name.encode().ljust(32, b"."))
            store = DiskBlockStore(path / name / "blocks", quota_bytes)
            contents = ScopedContent(store, path / name / "held")
            exchange = Exchange(contents, transport, lambda peer, service: True, patience=patience)
            await stack.enter_async_context(transport.running(_sink))
            made.append(Side(transport, contents, exchange))
        for side in made[1:]:
            made[0].transport.keep_connected(side.id, side.transport.addresses())
        await until(lambda: len(made[0].transport.connected()) == len(made) - 1, "connected")
        yield network, made


async def _give(data: bytes, *holders: Side) -> str:
    for holder in holders:
        cid = (await holder.contents.of(SERVICE).add_bytes(data)).cid
    return cid


def _file(chunks: int = CHUNKS) -> bytes:
    return os.urandom(chunks * CHUNK_SIZE_BYTES - 5)


async def _right(stream: ByteStream, block: bytes) -> None:
    await stream.send(b"\x01" + len(block).to_bytes(4, "big") + block)


async def _wrong(stream: ByteStream, block: bytes) -> None:
    await _right(stream, block[:-1] + bytes([block[-1] ^ 1]))


async def _too_large(stream: ByteStream, block: bytes) -> None:
    await stream.send(b"\x01" + (2**31).to_bytes(4, "big") + block)


async def _garbage(stream: ByteStream, block: bytes) -> None:
    await stream.send(b"\xff" * 1000)


async def _stall(stream: ByteStream, block: bytes) -> None:
    await trio.sleep_forever()


async def _half(stream: ByteStream, block: bytes) -> None:
    await stream.send(b"\x01" + len(block).to_bytes(4, "big") + block[: len(block) // 2])
    await trio.sleep_forever()


async def _has_nothing(stream: ByteStream, block: bytes) -> None:
    await stream.send(b"\0")


async def _break_off(stream: ByteStream, block: bytes) -> None:
    await stream.abort()


# -- several at once ----------------------------------------------------------------------------


async def test_a_file_comes_from_several_holders_at_once(tmp_path: Path) -> None:
    async with sides(tmp_path, "asker a b c") as (_, (asker, *holders)):
        data = _file()
        cid = await _give(data, *holders)
        received = await asker.fetch(cid, *holders)
        assert await asker.read(cid) == data
        assert received >= len(data)
        assert all(holder.sent > 0 for holder in holders)


async def test_what_is_here_is_not_asked_for(tmp_path: Path) -> None:
    async with sides(tmp_path, "asker a") as (_, (asker, holder)):
        data = _file()
        cid = await _give(data, holder)
        await _give(data[: 5 * CHUNK_SIZE_BYTES], asker)
        await asker.fetch(cid, holder)
        assert holder.sent == CHUNKS + 1 - 5
        assert await asker.fetch(cid, holder) == 0
        assert await asker.fetch(cid) == 0


async def test_a_block_that_a_file_repeats_comes_once(tmp_path: Path) -> None:
    async with sides(tmp_path, "asker a") as (_, (asker, holder)):
        cid = await _give(bytes(CHUNKS * CHUNK_SIZE_BYTES), holder)
        await asker.fetch(cid, holder)
        assert holder.sent == 2


async def test_a_small_block_is_asked_of_one_holder(tmp_path: Path) -> None:
    async with sides(tmp_path, "asker a b c", Patience(late_s=3600)) as (_, (asker, *holders)):
        cid = await _give(b"small", *holders)
        await asker.fetch(cid, *holders)
        assert [holder.sent for holder in holders] == [1, 0, 0]


async def test_a_fetch_that_is_over_keeps_no_place_at_its_holder(tmp_path: Path) -> None:
    """However many come one after the other: each stream is ended, and the holder hears of it."""
    async with sides(tmp_path, "me one") as (_, (me, one)):
        for number in range(3 * BLOCK_STREAMS_PER_PEER_MAX):
            await me.fetch(await _give(b"block %d" % number, one), one)
        assert one.exchange.counters["block_streams_refused"] == 0
        await until(lambda: not one.exchange.streams_served, "all streams are ended")


async def test_what_several_need_at_once_comes_once(tmp_path: Path) -> None:
    async with sides(tmp_path, "asker a b") as (_, (asker, first, second)):
        cid = await _give(_file(), first, second)
        async with trio.open_nursery() as nursery:
            for _number in range(10):
                nursery.start_soon(asker.fetch, cid, first)
        assert first.sent == CHUNKS + 1
        assert asker.exchange._fetching == {}


async def test_a_fetch_that_is_given_up_keeps_no_other_from_going_on(tmp_path: Path) -> None:
    async with sides(tmp_path, "asker slow a") as (_, (asker, slow, honest)):
        cid = await _give(_file(), slow, honest)
        slow.answers(_stall)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(asker.fetch, cid, slow)
            await trio.testing.wait_all_tasks_blocked(0.01)
            nursery.cancel_scope.cancel()
        await asker.fetch(cid, honest)
        assert asker.exchange._fetching == {}


async def test_each_holder_may_have_a_part_only(tmp_path: Path) -> None:
    async with sides(tmp_path, "asker a b c") as (_, (asker, *holders)):
        data = _file()
        cid = await _give(data, *holders)
        for index, holder in enumerate(holders):
            here, _ = await holder.contents.of(SERVICE).walk(cid)
            for block in (block for i, block in enumerate(here[1:]) if i % 3 != index):
                holder.contents.everything.store._file(block).unlink()  # type: ignore[attr-defined]
        await asker.fetch(cid, *holders)
        assert await asker.read(cid) == data


async def test_a_folder_of_many_files_comes_whole(tmp_path: Path) -> None:
    async with sides(tmp_path, "asker a b") as (_, (asker, *holders)):
        (tmp_path / "in").mkdir()
        for number in range(150):
            (tmp_path / "in" / f"{number}").write_bytes(b"%d" % number)
        for holder in holders:
            cid = (await holder.contents.of(SERVICE).add_directory(tmp_path / "in")).cid
        await asker.fetch(cid, *holders)
        await asker.contents.of(SERVICE).export(cid, tmp_path / "out")
        assert len(list((tmp_path / "out").iterdir())) == 150


# -- the bad ------------------------------------------------------------------------------------


@pytest.mark.parametrize("lie", [_wrong, _too_large, _garbage])
async def test_a_holder_that_lies_is_out_and_counted_and_others_go_on(
    lie: Answer, tmp_path: Path
) -> None:
    async with sides(tmp_path, "asker liar honest") as (_, (asker, liar, honest)):
        data = _file()
        cid = await _give(data, liar, honest)
        liar.answers(lie)
        await asker.fetch(cid, liar, honest)
        assert await asker.read(cid) == data
        assert asker.exchange.counters["block_holders_wrong"] == 1


@pytest.mark.parametrize("lie", [_wrong, _too_large, _garbage])
async def test_a_lie_leaves_nothing_here(lie: Answer, tmp_path: Path) -> None:
    async with sides(tmp_path, "asker liar") as (_, (asker, liar)):
        cid = await _give(b"content", liar)
        liar.answers(lie)
        with pytest.raises(FetchFailed, match=liar.id[-6:]):
            await asker.fetch(cid, liar)
        assert not any(p.is_file() for p in (tmp_path / "asker").glob("**/baf*"))
        assert block_data(tmp_path / "asker") == [] and not asker.contents.store.db.waits


async def test_one_wrong_block_among_right_ones_is_found(tmp_path: Path) -> None:
    async with sides(tmp_path, "asker liar honest") as (_, (asker, liar, honest)):
        data = _file()
        cid = await _give(data, liar, honest)
        answered = 0

        async def mostly_right(stream: ByteStream, block: bytes) -> None:
            nonlocal answered
            answered += 1
            await (_wrong if answered == 4 else _right)(stream, block)

        liar.answers(mostly_right)
        await asker.fetch(cid, liar, honest)
        assert await asker.read(cid) == data
        assert asker.exchange.counters["block_holders_wrong"] == 1


@pytest.mark.parametrize("hold_up", [_stall, _half])
async def test_a_holder_that_stalls_holds_nobody_up(hold_up: Answer, tmp_path: Path) -> None:
    patience = Patience(stall_s=3600, block_s=3600, late_s=0.05)
    async with sides(tmp_path, "asker slow honest", patience) as (_, (asker, slow, honest)):
        data = _file()
        cid = await _give(data, slow, honest)
        slow.answers(hold_up)
        await asker.fetch(cid, slow, honest)
        assert await asker.read(cid) == data


@pytest.mark.parametrize("hold_up", [_stall, _half])
async def test_who_stalls_alone_is_left_in_time(hold_up: Answer, tmp_path: Path) -> None:
    patience = Patience(stall_s=0.2, late_s=0.05)
    async with sides(tmp_path, "asker slow", patience) as (_, (asker, slow)):
        cid = await _give(b"content", slow)
        slow.answers(hold_up)
        with pytest.raises(FetchFailed, match="nothing in time"):
            await asker.fetch(cid, slow)
        assert asker.exchange.counters["block_holders_stalled"] == 1


async def test_a_trickle_is_no_way_to_hold_a_fetch_for_ever(tmp_path: Path) -> None:
    async with sides(tmp_path, "asker slow", Patience(block_s=0.5)) as (_, (asker, slow)):

        async def trickle(stream: ByteStream, block: bytes) -> None:
            await stream.send(b"\x01" + len(block).to_bytes(4, "big"))
            for byte in block:
                await stream.send(bytes([byte]))
                with trio.move_on_after(0.05):
                    await trio.sleep_forever()

        cid = await _give(b"x" * 1000, slow)
        slow.answers(trickle)
        with pytest.raises(FetchFailed, match="nothing in time"):
            await asker.fetch(cid, slow)


async def test_who_has_nothing_or_breaks_off_is_passed_over(tmp_path: Path) -> None:
    async with sides(tmp_path, "asker a b c") as (_, (asker, empty, broken, honest)):
        data = _file()
        cid = await _give(data, empty, broken, honest)
        empty.answers(_has_nothing)
        broken.answers(_break_off)
        await asker.fetch(cid, empty, broken, honest)
        assert await asker.read(cid) == data


async def test_more_holders_than_are_asked_at_once_do_not_hide_the_one_that_has_it(
    tmp_path: Path,
) -> None:
    names = " ".join(f"h{number}" for number in range(20))
    async with sides(tmp_path, f"asker {names}") as (_, (asker, *holders)):
        cid = await _give(_file(3), holders[-1])
        await asker.fetch(cid, *holders)


async def test_content_that_cannot_be_is_refused_and_not_blamed_on_its_holder(
    tmp_path: Path,
) -> None:
    async with sides(tmp_path, "asker a") as (_, (asker, holder)):
        block = b"no dag-pb at all"
        cid = cid_of(DAG_PB, block)
        await holder.contents.of(SERVICE).store.put(cid, block)
        with pytest.raises(FetchFailed, match="cannot be"):
            await asker.fetch(cid, holder)
        assert asker.exchange.counters["block_holders_wrong"] == 0
        with pytest.raises(FetchFailed, match="cannot be"):
            await asker.fetch("../../etc/passwd", holder)


async def test_folders_that_repeat_without_end_end(tmp_path: Path) -> None:
    """64 folders, each with the next one twice: 2^64 paths, 65 blocks."""
    async with sides(tmp_path, "asker a") as (_, (asker, holder)):
        store = holder.contents.of(SERVICE).store
        block = b"leaf"
        cid = cid_of(RAW, block)
        await store.put(cid, block)
        for _level in range(64):
            block = directory_block([Entry(cid, 0, 0, "a"), Entry(cid, 0, 0, "b")])
            cid = cid_of(DAG_PB, block)
            await store.put(cid, block)
        await asker.fetch(cid, holder)
        assert holder.sent == 65


async def test_limit_and_quota_end_a_fetch(tmp_path: Path) -> None:
    async with sides(tmp_path, "asker a") as (_, (asker, holder)):
        cid = await _give(_file(), holder)
        with pytest.raises(FetchFailed, match="more than 2000000 bytes"):
            await asker.fetch(cid, holder, limit_bytes=2_000_000)
    async with sides(tmp_path / "small", "asker a", quota_bytes=2**22) as (_, (asker, holder)):
        holder.contents.everything.store.quota_bytes = 2**30  # type: ignore[attr-defined]
        cid = await _give(_file(), holder)
        with pytest.raises(StorageFullError):
            await asker.fetch(cid, holder)


# -- a cut --------------------------------------------------------------------------------------


async def test_after_a_cut_the_same_holder_goes_on_and_nothing_comes_twice(tmp_path: Path) -> None:
    async with sides(tmp_path, "asker a") as (network, (asker, holder)):
        data = _file()
        cid = await _give(data, holder)
        sent: list[bytes] = []

        async def cut_after_four(stream: ByteStream, block: bytes) -> None:
            await _right(stream, block)
            sent.append(block)
            if len(sent) == 4:
                await until(lambda: asker.exchange.counters["blocks_received"] == 4, "they came")
                network.lose(asker.id, holder.id)

        holder.answers(cut_after_four)
        await asker.fetch(cid, holder)
        assert await asker.read(cid) == data
        assert len(sent) == len(set(sent)) == CHUNKS + 1


async def test_after_a_cut_another_holder_goes_on_with_the_rest(tmp_path: Path) -> None:
    async with sides(tmp_path, "asker a b") as (_, (asker, first, second)):
        data = _file()
        cid = await _give(data, first, second)

        given = 0

        async def break_off_after_four(stream: ByteStream, block: bytes) -> None:
            nonlocal given
            given += 1
            if given <= 4:
                await _right(stream, block)
                return
            await until(lambda: asker.exchange.counters["blocks_received"] >= 4, "four came")
            await stream.abort()

        first.answers(break_off_after_four)
        with pytest.raises(FetchFailed):
            await asker.fetch(cid, first)
        here = asker.exchange.counters["blocks_received"]
        assert 4 <= here <= CHUNKS
        await asker.fetch(cid, second)
        assert await asker.read(cid) == data
        assert second.sent == CHUNKS + 1 - here


# -- ranges -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "stop", "chunks"),
    [
        (0, 1, 1),
        (CHUNK_SIZE_BYTES - 1, CHUNK_SIZE_BYTES + 1, 2),
        (3 * CHUNK_SIZE_BYTES, 5 * CHUNK_SIZE_BYTES, 2),
        ((CHUNKS - 1) * CHUNK_SIZE_BYTES, 10**12, 1),
        (10**12, 10**12 + 1, 0),
        (5, 5, 0),
    ],
)
async def test_a_range_brings_the_blocks_that_hold_it_alone(
    start: int, stop: int, chunks: int, tmp_path: Path
) -> None:
    async with sides(tmp_path, "asker a") as (_, (asker, holder)):
        data = _file()
        cid = await _give(data, holder)
        await asker.exchange.fetch_range(SERVICE, cid, start, stop, [holder.id])
        assert await asker.read(cid, start, stop) == data[start:stop]
        assert holder.sent == 1 + chunks


async def test_a_folder_has_no_ranges(tmp_path: Path) -> None:
    async with sides(tmp_path, "asker a") as (_, (asker, holder)):
        (tmp_path / "in").mkdir()
        cid = (await holder.contents.of(SERVICE).add_directory(tmp_path / "in")).cid
        with pytest.raises(FetchFailed, match="no ranges"):
            await asker.exchange.fetch_range(SERVICE, cid, 0, 1, [holder.id])


# -- who asks is bounded ------------------------------------------------------------------------


async def _ask(stream: ByteStream, value: object) -> None:
    data = pack(value)
    await stream.send(len(data).to_bytes(4, "big") + data)


@pytest.mark.parametrize(
    "request_",
    [
        [SERVICE] * (BLOCKS_PER_REQUEST_MAX + 1),
        "x" * BLOCK_REQUEST_SIZE_BYTES_MAX,
        [7],
        ["../../node.key"],
        {"a": 1},
    ],
)
async def test_a_request_beyond_its_bounds_resets_the_stream(
    request_: object, tmp_path: Path
) -> None:
    async with sides(tmp_path, "asker a") as (_, (asker, holder)):
        stream = await asker.transport.open_stream(holder.id, BLOCKS)
        await _ask(stream, SERVICE)
        await _ask(stream, request_)
        with pytest.raises(Exception, match=r"reset|broken|ended"), trio.fail_after(20):
            await stream.receive_exactly(1)


async def test_who_reads_nothing_costs_two_blocks_of_memory_and_holds_nobody_else_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with sides(tmp_path, "holder greedy honest") as (_, (holder, greedy, honest)):
        data = _file(4)
        cid = await _give(data, holder)
        here, _ = await holder.contents.of(SERVICE).walk(cid)
        reading: list[str] = []
        store = holder.contents.of(SERVICE).store
        get = store.get

        async def counted(block: str) -> bytes:
            reading.append(block)
            return await get(block)

        monkeypatch.setattr(store, "get", counted)
        for _stream in range(10):
            stream = await greedy.transport.open_stream(holder.id, BLOCKS)
            await _ask(stream, SERVICE)
            await _ask(stream, here[1:])
        await until(lambda: len(reading) == 2, "two are read")
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert len(reading) == 2
        assert await honest.fetch(cid, holder) >= len(data)
