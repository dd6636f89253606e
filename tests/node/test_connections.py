"""Connections of the API: whole answers in one write, idleness, clients that go or read nothing."""

import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
import trio
from hypercorn.config import Config
from hypercorn.trio import serve
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from trio.testing import lockstep_stream_pair, wait_all_tasks_blocked

from pairio_node.api import connections

_SOON_S = 30.0
GET = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


@dataclass
class Server:
    """A server of one app; `writes` is what it sent, write by write, `begun` and `ended` count its
    connections."""

    app: Callable[[Request], Any]
    keep_alive_s: float = 60.0
    grace_s: float = 60.0
    port: int = 0
    stop: trio.Event = field(default_factory=trio.Event)
    stopped: trio.Event = field(default_factory=trio.Event)
    writes: list[bytes] = field(default_factory=list)
    begun: int = 0
    ended: int = 0

    async def client(self) -> trio.SocketStream:
        return await trio.open_tcp_stream("127.0.0.1", self.port)

    async def serve(self, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        route = Route("/{path:path}", self.app, methods=["GET", "HEAD", "POST"])
        app: Any = Starlette(routes=[route])
        config = Config()
        config.bind, config.loglevel = ["127.0.0.1:0"], "CRITICAL"
        config.keep_alive_timeout, config.graceful_timeout = self.keep_alive_s, self.grace_s
        await serve(
            app,
            config,
            mode="asgi",
            shutdown_trigger=self.stop.wait,
            task_status=task_status,
        )
        self.stopped.set()


@asynccontextmanager
async def served(
    monkeypatch: pytest.MonkeyPatch, app: Callable[[Request], Any], **times_s: float
) -> AsyncIterator[Server]:
    connections.use_own_connections()
    server = Server(app, **times_s)  # type: ignore[arg-type]
    stock_write, stock_run = connections._Connection._write, connections._Connection.run

    async def write(self: Any, data: bytes) -> None:
        server.writes.append(data)
        await stock_write(self, data)

    async def run(self: Any) -> None:
        server.begun += 1
        try:
            await stock_run(self)
        finally:
            server.ended += 1

    monkeypatch.setattr(connections._Connection, "run", run)
    monkeypatch.setattr(connections._Connection, "_write", write)
    with trio.fail_after(_SOON_S):
        async with trio.open_nursery() as nursery:
            urls = await nursery.start(server.serve)
            server.port = int(urls[0].rpartition(":")[2])
            yield server
            server.stop.set()
            await server.stopped.wait()


async def _until(is_so: Callable[[], bool]) -> None:
    while not is_so():
        await trio.lowlevel.checkpoint()


async def _answer(client: trio.SocketStream, end: bytes) -> bytes:
    data = b""
    while not data.endswith(end):
        chunk = await client.receive_some()
        assert chunk, data
        data += chunk
    return data


async def _hello(_: Request) -> Response:
    return Response(b"hello")


def _slow_until(going: trio.Event) -> Callable[[Request], Awaitable[Response]]:
    """Return an app that answers `/slow` when it is let go, all else at once."""

    async def app(request: Request) -> Response:
        if request.url.path == "/slow":
            await going.wait()
        return Response(b"hello")

    return app


async def test_a_small_answer_is_one_write_and_the_connection_is_used_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def app(request: Request) -> Response:
        return Response(await request.body() or b"nothing")

    async with served(monkeypatch, app) as server, await server.client() as client:
        for body in (b"one", b"two", b"x" * 30_000):
            head = f"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: {len(body)}\r\n\r\n"
            await client.send_all(head.encode() + body)
            assert (await _answer(client, body)).startswith(b"HTTP/1.1 200")
        await client.send_all(GET)
        await _answer(client, b"nothing")
        assert len(server.writes) == 4
        await client.send_all(GET + GET)  # both at once are answered one after the other
        await _until(lambda: len(server.writes) == 6)
        assert [write[:12] for write in server.writes] == [b"HTTP/1.1 200"] * 6


@pytest.mark.parametrize("length", (None, 10**9))
async def test_of_a_stream_the_head_goes_out_before_there_is_more(
    monkeypatch: pytest.MonkeyPatch, length: int | None
) -> None:
    more = trio.Event()

    async def body() -> AsyncIterator[bytes]:
        await more.wait()
        yield b"event"

    async def app(_: Request) -> Response:
        return StreamingResponse(body(), headers={"content-length": str(length)} if length else {})

    async with served(monkeypatch, app) as server, await server.client() as client:
        await client.send_all(GET)
        head = await _answer(client, b"\r\n\r\n")
        assert (b"content-length" in head) is bool(length)
        more.set()
        assert b"event" in await client.receive_some()


async def test_an_answer_that_is_cut_short_still_has_its_head(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def app(_: Request) -> Response:
        async def body() -> AsyncIterator[bytes]:
            raise ValueError("nothing is to be had")
            yield b""

        return StreamingResponse(body(), headers={"content-length": "5"})

    async with served(monkeypatch, app) as server, await server.client() as client:
        await client.send_all(GET)
        assert (await _answer(client, b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
        assert await client.receive_some() == b""


async def test_answers_without_a_body_end(monkeypatch: pytest.MonkeyPatch) -> None:
    async with served(monkeypatch, _hello) as server, await server.client() as client:
        await client.send_all(GET.replace(b"GET", b"HEAD"))
        head = await _answer(client, b"\r\n\r\n")
        assert b"content-length: 5" in head
        await client.send_all(b"no HTTP\r\n\r\n")
        assert (await _answer(client, b"\r\n\r\n")).startswith(b"HTTP/1.1 400")
        assert await client.receive_some() == b""


@pytest.mark.parametrize("sent", (_PREFACE, _PREFACE[:18], GET.replace(b"1.1", b"2.0")))
async def test_another_version_is_refused_in_words(
    monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    async with served(monkeypatch, _hello) as server, await server.client() as client:
        await client.send_all(sent)
        answer = await _answer(client, b"HTTP/1.1\n")
        assert answer.startswith(b"HTTP/1.1 505")
        assert b"speaks HTTP/1.1" in answer
        assert await client.receive_some() == b""
        await _until(lambda: server.ended == 1)


@pytest.mark.parametrize("method", (b"HEAD", b"POST", b"OPTIONS", b"CONNECT"))
async def test_a_refusal_of_another_version_ends_its_connection_and_no_other(
    monkeypatch: pytest.MonkeyPatch, method: bytes
) -> None:
    async with served(monkeypatch, _hello) as server:
        async with await server.client() as client:
            await client.send_all(GET.replace(b"GET", method).replace(b"1.1", b"2.0"))
            end = b"\r\n\r\n" if method == b"HEAD" else b"HTTP/1.1\n"
            assert (await _answer(client, end)).startswith(b"HTTP/1.1 505")
            assert await client.receive_some() == b""
        async with await server.client() as client:
            await client.send_all(GET)
            assert (await _answer(client, b"hello")).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("other", (b"h2c", b"websocket", b"H2C"))
async def test_an_offer_to_speak_another_protocol_is_not_taken(
    monkeypatch: pytest.MonkeyPatch, other: bytes
) -> None:
    offer = (
        b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: " + other + b"\r\n"
        b"HTTP2-Settings: AAMAAABkAAQAAP__\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    times_s = {"keep_alive_s": 0.5}
    async with served(monkeypatch, _hello, **times_s) as server, await server.client() as client:
        for _ in range(2):
            await client.send_all(GET[:-2] + offer)
            assert (await _answer(client, b"hello")).startswith(b"HTTP/1.1 200")
        assert await client.receive_some() == b""
        await _until(lambda: server.ended == 1)


async def test_a_connection_ends_when_it_is_idle_not_while_it_is_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    going = trio.Event()

    async def app(_: Request) -> Response:
        await going.wait()
        return Response(b"hello")

    async with served(monkeypatch, app, keep_alive_s=0.1) as server:
        async with await server.client() as client:
            await client.send_all(GET)
            async with await server.client() as silent, await server.client() as half:
                await half.send_all(GET[:-2])  # a head without its end
                assert (await silent.receive_some(), await half.receive_some()) == (b"", b"")
            going.set()
            await _answer(client, b"hello")
            await client.send_all(GET)
            await _answer(client, b"hello")
            assert await client.receive_some() == b""
        await _until(lambda: server.ended == 3)


async def test_nothing_stays_of_a_connection_whose_client_has_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    going = trio.Event()
    async with served(monkeypatch, _slow_until(going)) as server:
        async with await server.client():
            pass
        async with await server.client() as client:
            await client.send_all(GET)
            await _answer(client, b"hello")
        async with await server.client() as client:
            await client.send_all(GET.replace(b"/ ", b"/slow "))
        going.set()  # the app goes on, its answer reaches nobody
        await _until(lambda: server.begun == server.ended == 3)


@pytest.mark.parametrize("more", (GET, 3 * GET, b"x"))
async def test_nothing_stays_of_a_stream_whose_client_asked_for_more_and_broke_off(
    monkeypatch: pytest.MonkeyPatch, more: bytes
) -> None:
    over = trio.Event()

    async def body() -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"event\n"
                with trio.move_on_after(0.01):
                    await trio.sleep_forever()
        finally:
            over.set()

    async def app(_: Request) -> Response:
        return StreamingResponse(body())

    async with served(monkeypatch, app) as server:
        client = await server.client()
        await client.send_all(GET + more)
        await client.receive_some()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await client.aclose()  # a reset
        await _until(lambda: server.ended == 1)
        await over.wait()


async def test_an_answer_that_is_cut_short_ends_all_that_was_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def app(_: Request) -> Response:
        async def body() -> AsyncIterator[bytes]:
            yield b"event"
            raise ValueError("nothing more is to be had")

        return StreamingResponse(body())

    async with served(monkeypatch, app) as server, await server.client() as client:
        await client.send_all(GET + GET)
        await _until(lambda: server.ended == 1)


@pytest.mark.parametrize("stays", (True, False))
async def test_a_body_that_is_left_unread_holds_nothing(
    monkeypatch: pytest.MonkeyPatch, stays: bool
) -> None:
    going = trio.Event()

    async def app(_: Request) -> Response:
        await going.wait()
        return Response(b"no")

    async with served(monkeypatch, app) as server, await server.client() as client:
        await client.send_all(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000000\r\n\r\n")
        with trio.move_on_after(0.3):  # more than queues and sockets hold: it gets stuck
            await client.send_all(bytes(100 * 2**20))
        if not stays:
            await client.aclose()
        going.set()
        if stays:
            await _answer(client, b"no")
        await _until(lambda: server.ended == 1)


async def test_an_app_that_reads_hears_that_its_client_has_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    going, heard = trio.Event(), trio.Event()

    async def app(request: Request) -> Response:
        await going.wait()
        with pytest.raises(ClientDisconnect):
            await request.body()
        assert await request.is_disconnected()
        heard.set()
        return Response(b"no")

    async with served(monkeypatch, app) as server:
        for sent in (1, 100 * 2**20):
            async with await server.client() as client:
                head = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000000\r\n\r\n"
                with trio.move_on_after(0.3):
                    await client.send_all(head + bytes(sent))
            going.set()
            await heard.wait()
            going, heard = trio.Event(), trio.Event()
        await _until(lambda: server.ended == 2)


async def test_a_client_that_reads_nothing_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    async def app(_: Request) -> Response:
        return Response(bytes(50 * 2**20))

    monkeypatch.setattr(connections._Connection, "write_s", 0.2)
    async with served(monkeypatch, app) as server, await server.client() as client:
        await client.send_all(GET)
        await _until(lambda: len(server.writes) == 2)
        await _until(lambda: server.ended == 1)


async def test_a_write_that_is_cancelled_leaves_no_half_message_behind() -> None:
    here, there = lockstep_stream_pair()
    none: Any = None
    connection = connections._Connection(none, Config(), none, {}, cast(Any, here))
    with trio.move_on_after(0.05) as limit:
        await connection._write(b"half of it")
    assert limit.cancelled_caught
    with trio.fail_after(_SOON_S):
        assert b"".join([chunk async for chunk in there]) == b"half of it"  # and then its end


async def test_a_server_that_stops_closes_what_is_idle_and_answers_what_it_was_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    going = trio.Event()
    async with served(monkeypatch, _slow_until(going)) as server, await server.client() as idle:
        await idle.send_all(GET)
        await _answer(idle, b"hello")
        async with await server.client() as busy:
            await busy.send_all(GET.replace(b"/ ", b"/slow "))
            await _until(lambda: server.begun == 2)
            await wait_all_tasks_blocked(0.05)
            server.stop.set()
            assert await idle.receive_some() == b""
            going.set()
            await _answer(busy, b"hello")
            assert await busy.receive_some() == b""
            await server.stopped.wait()


async def test_a_server_stops_beside_a_client_that_reads_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def app(_: Request) -> Response:
        return Response(bytes(50 * 2**20))

    async with served(monkeypatch, app, grace_s=0.1) as server, await server.client() as client:
        await client.send_all(GET)
        await _until(lambda: len(server.writes) == 2)  # its head, and some of it
        server.stop.set()
        await server.stopped.wait()
