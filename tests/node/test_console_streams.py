"""Consoles between nodes: whole and in order from any place on, also while the job writes; to
members only; bounded for each peer and in all; nothing piles up for who does not read."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import trio

from pairio_node.console_streams import ConsoleStreams, NoConsole
from pairio_node.runner.supervisor.console import (
    HEAD_BYTES,
    PIECE_BYTES,
    TAIL_BYTES,
    ConsoleReader,
    ConsoleWriter,
)
from pairio_node.transport import MemoryNetwork, MemoryTransport
from pairio_node.transport.base import LOGS, ByteStream, StreamEnded, TransportError, TransportEvent
from pairio_protocol.cid import RAW, cid_of
from pairio_protocol.codec import pack
from pairio_protocol.limits import (
    LOG_PIECE_SIZE_BYTES_MAX,
    LOG_REQUEST_SIZE_BYTES_MAX,
    LOG_STREAMS_MAX,
    LOG_STREAMS_PER_PEER_MAX,
)
from tests.node.node_lab import until

SERVICE, OTHER = cid_of(RAW, b"a service"), cid_of(RAW, b"another")
ATTEMPT = "12D3KooWcoordinator/boot/1"


class Worker:
    """A node on which one attempt runs, and what it writes."""

    def __init__(self, transport: MemoryTransport, path: Path) -> None:
        self.transport = transport
        self.path = path
        self.runs = True
        self.members = True
        self.strangers = False
        self.streams = ConsoleStreams(
            transport, self._console_of, lambda *_: self.members, self._memberships
        )

    def _memberships(self, peer: str) -> list[tuple[str, str]]:
        return [] if self.strangers else [(SERVICE, peer)]

    def _console_of(self, service: str, attempt: str) -> Path | None:
        return self.path if self.runs and (service, attempt) == (SERVICE, ATTEMPT) else None


@asynccontextmanager
async def two(path: Path) -> AsyncIterator[tuple[Worker, ConsoleStreams, MemoryTransport]]:
    """A worker and a reader, connected."""
    network = MemoryNetwork()
    there = MemoryTransport(network, b"worker".ljust(32, b"."))
    here = MemoryTransport(network, b"reader".ljust(32, b"."))

    async def sink(event: TransportEvent) -> None:
        return None

    async with AsyncExitStack() as stack:
        for transport in (there, here):
            await stack.enter_async_context(transport.running(sink))
        here.keep_connected(there.peer_id, there.addresses())
        await until(here.connected, "connected")
        with trio.fail_after(20):
            yield Worker(there, path / "console"), ConsoleStreams(here, _none, _nobody), here


def _none(service: str, attempt: str) -> None:
    return None


def _nobody(peer: str, service: str) -> bool:
    return False


async def _read(
    streams: ConsoleStreams, worker: Worker, offset: int = 0, **given: Any
) -> list[tuple[int, bytes]]:
    asked = {"service": SERVICE, "attempt": ATTEMPT, "follow": True, **given}
    peer = worker.transport.peer_id
    pieces = streams.ask(peer, asked["service"], asked["attempt"], offset, follow=asked["follow"])
    async with aclosing(pieces):  # type: ignore[type-var]
        return [piece async for piece in pieces]


async def test_what_a_job_writes_comes_as_it_writes_and_ends_with_it(tmp_path: Path) -> None:
    async with two(tmp_path) as (worker, reader, _):
        pieces = reader.ask(worker.transport.peer_id, SERVICE, ATTEMPT, 0, follow=True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep, 0)  # the file is not there yet
            writer = ConsoleWriter(worker.path)
            writer.add(b"one\n")
            assert await anext(pieces) == (0, b"one\n")
            writer.add(b"two\n")
            assert await anext(pieces) == (4, b"two\n")
        writer.add(b"last\n")
        worker.path.unlink()  # its folder goes as soon as the result is stored
        worker.runs = False
        assert [piece async for piece in pieces] == [(8, b"last\n")]


async def test_one_begins_at_an_offset_and_follows_or_takes_what_there_is(tmp_path: Path) -> None:
    async with two(tmp_path) as (worker, reader, _):
        ConsoleWriter(worker.path).add(b"0123456789")
        assert await _read(reader, worker, follow=False) == [(0, b"0123456789")]
        assert await _read(reader, worker, 7, follow=False) == [(7, b"789")]
        assert await _read(reader, worker, 99, follow=False) == []


async def test_of_a_long_console_head_and_tail_come_with_their_places(tmp_path: Path) -> None:
    said = bytes(i % 251 for i in range(HEAD_BYTES + TAIL_BYTES + 100_000))
    async with two(tmp_path) as (worker, reader, _):
        ConsoleWriter(worker.path).add(said)
        pieces = await _read(reader, worker, follow=False)
    assert max(len(data) for _, data in pieces) <= LOG_PIECE_SIZE_BYTES_MAX
    assert all(said[at : at + len(data)] == data for at, data in pieces)
    places = [(at, at + len(data)) for at, data in pieces]
    gaps = [(end, start) for (_, end), (start, _) in pairwise(places)]
    lost = 100_000 + PIECE_BYTES  # what a writer might be overwriting is not given
    assert [gap for gap in gaps if gap[0] != gap[1]] == [(HEAD_BYTES, HEAD_BYTES + lost)]
    assert places[-1][1] == len(said)


def test_a_reader_that_lags_behind_the_ring_is_told_what_is_there(tmp_path: Path) -> None:
    writer = ConsoleWriter(tmp_path / "console")
    writer.add(bytes(HEAD_BYTES + TAIL_BYTES))
    reader = ConsoleReader(tmp_path / "console")
    writer.add(b"x" * 1000)
    lagged = reader.read(HEAD_BYTES, 10)
    assert (lagged.data, lagged.skipped_bytes) == (bytes(10), PIECE_BYTES + 1000)
    assert reader.read(reader.total - 4, 10).data == b"xxxx"
    assert reader.read(reader.total, 10).data == b""


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"attempt": "another"}, "does not run at"),
        ({"service": OTHER}, "does not run at"),
    ],
)
async def test_an_attempt_that_is_not_there_is_said(
    given: dict[str, Any], says: str, tmp_path: Path
) -> None:
    async with two(tmp_path) as (worker, reader, _):
        ConsoleWriter(worker.path).add(b"secret")
        with pytest.raises(NoConsole, match=says):
            await _read(reader, worker, **given)


async def test_only_members_read_and_only_as_long_as_they_are(tmp_path: Path) -> None:
    async with two(tmp_path) as (worker, reader, _):
        ConsoleWriter(worker.path).add(b"said")
        pieces = reader.ask(worker.transport.peer_id, SERVICE, ATTEMPT, 0, follow=True)
        assert await anext(pieces) == (0, b"said")
        worker.members = False
        with pytest.raises(NoConsole, match="to members only"):
            await anext(pieces)
        with pytest.raises(NoConsole, match="to members only"):
            await _read(reader, worker)
        assert worker.streams.counters["logs_refused"] == 2


@pytest.mark.parametrize(
    "asked",
    [
        b"\x00\x00\x00\x01\xff",
        (LOG_REQUEST_SIZE_BYTES_MAX + 1).to_bytes(4, "big") + bytes(2000),
        [SERVICE, ATTEMPT, -1, True],
        [SERVICE, ATTEMPT, 2**62, True],
        [SERVICE, ATTEMPT, 0, 1],
        ["../..", ATTEMPT, 0, True],
        [SERVICE, ["x"], 0, True],
        {"service": SERVICE},
    ],
    ids=str,
)
async def test_what_is_no_request_is_counted_and_reset(asked: Any, tmp_path: Path) -> None:
    async with two(tmp_path) as (worker, reader, transport):
        ConsoleWriter(worker.path).add(b"said")
        stream = await transport.open_stream(worker.transport.peer_id, LOGS)
        data = asked if isinstance(asked, bytes) else pack(asked)
        if not isinstance(asked, bytes):
            data = len(data).to_bytes(4, "big") + data
        await stream.send(data)
        with pytest.raises((StreamEnded, TransportError)):
            await stream.receive_exactly(1)
        assert worker.streams.counters["logs_refused"] == 1
        assert await _read(reader, worker, follow=False) == [(0, b"said")]


async def test_a_peer_has_so_many_streams_and_they_are_free_again(tmp_path: Path) -> None:
    assert LOG_STREAMS_PER_PEER_MAX < LOG_STREAMS_MAX
    async with two(tmp_path) as (worker, reader, transport):
        ConsoleWriter(worker.path).add(b"said")
        opened: list[ByteStream] = []
        for _ in range(LOG_STREAMS_PER_PEER_MAX):
            opened.append(await transport.open_stream(worker.transport.peer_id, LOGS))
            data = pack([SERVICE, ATTEMPT, 0, True])
            await opened[-1].send(len(data).to_bytes(4, "big") + data)
            assert await opened[-1].receive_exactly(1) == b"\x01"
        with pytest.raises(NoConsole):
            await _read(reader, worker, follow=False)
        assert worker.streams.counters["log_streams_refused"] == 1
        for stream in opened:
            await stream.close()  # the job is silent: its leaving is noticed all the same
        await until(lambda: not worker.streams.streams_served, "the readers have left")
        assert await _read(reader, worker, follow=False) == [(0, b"said")]


async def test_a_stranger_takes_no_place(tmp_path: Path) -> None:
    async with two(tmp_path) as (worker, _, transport):
        worker.strangers = True
        for _ in range(LOG_STREAMS_PER_PEER_MAX + 1):
            stream = await transport.open_stream(worker.transport.peer_id, LOGS)
            with pytest.raises((StreamEnded, TransportError)):
                await stream.receive_exactly(1)
        assert worker.streams.streams_served == 0
        assert worker.streams.counters["log_streams_refused"] == 0
        assert worker.streams.counters["logs_refused"] == LOG_STREAMS_PER_PEER_MAX + 1


async def test_nothing_piles_up_for_a_reader_that_does_not_read(tmp_path: Path) -> None:
    async with two(tmp_path) as (worker, _, transport):
        writer = ConsoleWriter(worker.path)
        stream = await transport.open_stream(worker.transport.peer_id, LOGS)
        data = pack([SERVICE, ATTEMPT, 0, True])
        await stream.send(len(data).to_bytes(4, "big") + data)
        for _ in range(100):
            writer.add(bytes(100_000))
        with trio.move_on_after(0.5):
            await trio.sleep_forever()
        sent = worker.streams.counters["logs_sent"] * LOG_PIECE_SIZE_BYTES_MAX
        assert sent < 4 * 2**20, "more is on its way than a window"
        await stream.abort()


@pytest.mark.parametrize(
    "answer",
    [
        b"\x01" + (0).to_bytes(8, "big") + (2**31).to_bytes(4, "big"),
        b"\x01" + (2**63).to_bytes(8, "big") + (1).to_bytes(4, "big") + b"x",
        b"\x01" + (3).to_bytes(8, "big") + (1).to_bytes(4, "big") + b"x",  # before what was asked
        b"\x01" + (7).to_bytes(8, "big") + (0).to_bytes(4, "big"),
        b"\x99",
    ],
)
async def test_a_worker_that_sends_nonsense_is_given_up(answer: bytes, tmp_path: Path) -> None:
    async with two(tmp_path) as (worker, reader, _):

        async def serve(stream: ByteStream) -> None:
            await stream.send(answer)
            await trio.sleep_forever()

        worker.transport.set_stream_handler(LOGS, serve)
        with pytest.raises(NoConsole, match="no console"):
            await _read(reader, worker, 7)
        assert reader.counters["log_workers_wrong"] == 1
