"""Connections of Hypercorn that speak HTTP/1.1 alone, do less for each request, and have three
things that stock lacks.

Stock, a small answer is three writes, each with a scope and turns of the loop of its own, and for
every request a task is started and cancelled that watches whether the connection is idle. Here
the head of an answer goes out with what follows it, and one task a connection watches: a third of
the server's CPU less. Stock lacks a time limit for writes (a client that reads nothing would block
shutdown without bound), keeps a connection whose client has gone until its idle time is over, and
for ever when much of a request's body was left unread, or a further request.
"""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import h11
import hypercorn.protocol
import hypercorn.trio.run
import hypercorn.trio.tcp_server
import trio
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.events import StreamClosed
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.trio.task_group import TaskGroup, _handle
from hypercorn.trio.tcp_server import MAX_RECV, TCPServer

__all__ = ["use_own_connections"]

_WRITE_S = 30.0
#: Answers up to this length wait for their first bytes to go out with them.
_SMALL_SIZE_BYTES_MAX = 64 * 1024
_OTHER_VERSION = b"this server speaks HTTP/1.1 and no other version: ask again in HTTP/1.1\n"


def use_own_connections() -> None:
    """Let Hypercorn make these connections."""
    hypercorn.trio.run.TCPServer = _Connection  # type: ignore[attr-defined, assignment]
    hypercorn.trio.tcp_server.TaskGroup = _Tasks  # type: ignore[attr-defined]
    hypercorn.protocol.H11Protocol = _Http  # type: ignore[attr-defined]


class _Http(H11Protocol):
    """Holds back the head of a small answer until there is more to send. Other heads go out at
    once: what follows (events, content that is fetched) may be long in coming."""

    _head = b""

    async def _check_protocol(self, event: h11.Request) -> None:
        """Take no offer to go on with another protocol."""

    async def _create_stream(self, request: h11.Request) -> None:
        if not request.http_version.startswith(b"1."):
            await self._refuse_version(request)
            return
        headers = [(name, value) for name, value in request.headers if name != b"upgrade"]
        if len(headers) < len(request.headers):  # to WebSocket, say
            request = h11.Request(
                method=request.method,
                target=request.target,
                headers=headers,
                http_version=request.http_version,
            )
        await super()._create_stream(request)

    async def _refuse_version(self, request: h11.Request) -> None:
        headers = [
            (b"content-type", b"text/plain"),
            (b"content-length", b"%d" % len(_OTHER_VERSION)),
            (b"connection", b"close"),
        ]
        await self._send_h11_event(h11.Response(status_code=505, headers=headers))
        await self._send(b"" if request.method == b"HEAD" else _OTHER_VERSION)
        await self.send(Closed())

    async def stream_send(self, event: Any) -> None:
        """Send what the app says."""
        if self._head and isinstance(event, StreamClosed):  # nothing came: cut short
            await self._send(b"")
        await super().stream_send(event)

    async def _send_h11_event(self, event: Any) -> None:
        try:
            data = self.connection.send(event)
        except h11.LocalProtocolError:
            if self.connection.their_state != h11.ERROR:
                raise
            return
        if isinstance(event, h11.Response) and _is_small(event):
            self._head = data
        else:
            await self._send(data)

    async def _send(self, data: bytes) -> None:
        head, self._head = self._head, b""
        if head or data:  # the end of a body of known length is no bytes
            await self.send(RawData(data=head + data))


def _is_small(response: h11.Response) -> bool:
    lengths = [int(value) for name, value in response.headers if name == b"content-length"]
    return bool(lengths) and lengths[0] <= _SMALL_SIZE_BYTES_MAX


class _Tasks(TaskGroup):
    """Gives the app its messages without a turn of the loop for each, while its queue has room; the
    end of the queue is that the client has gone, or its request is over. Stock waits for room to
    say that, for ever when the app reads no more."""

    async def spawn_app(
        self, app: Any, config: Config, scope: Any, send: Any
    ) -> Callable[[Any], Awaitable[None]]:
        """Start the app for a request; return what takes messages for it."""
        put_end, get_end = trio.open_memory_channel[Any](config.max_app_queue_size)
        threads = trio.to_thread.run_sync, trio.from_thread.run

        async def receive() -> Any:
            try:
                return await get_end.receive()
            except trio.EndOfChannel:
                return {"type": "http.disconnect"}

        async def put(message: Any) -> None:
            if message["type"] == "http.disconnect":
                put_end.close()
                return
            with suppress(trio.ClosedResourceError):  # nobody reads it
                try:
                    put_end.send_nowait(message)
                except trio.WouldBlock:
                    await put_end.send(message)

        self.spawn(_handle, app, config, scope, receive, send, *threads)
        return put


class _Connection(TCPServer):
    """One client, in plain HTTP. `Config.read_timeout` is not looked at."""

    write_s = _WRITE_S

    _is_busy = False
    _idle_since = 0.0

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        #: Of what reads: it may wait for an answer's end before it takes the next request.
        self._reading = trio.CancelScope()

    async def protocol_send(self, event: Event) -> None:
        """Carry out what the protocol says."""
        if isinstance(event, RawData):
            await self._write(event.data)
        elif isinstance(event, Updated):
            self._is_busy, self._idle_since = not event.idle, trio.current_time()
        else:
            await super().protocol_send(event)  # its end
            self._reading.cancel()

    async def _write(self, data: bytes) -> None:
        try:
            self.send_lock.acquire_nowait()  # without a turn of the loop
        except trio.WouldBlock:
            await self.send_lock.acquire()
        try:
            try:
                with trio.move_on_after(self.write_s) as limit:
                    await self.stream.send_all(data)
                is_over = limit.cancelled_caught
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                is_over = True
            except trio.Cancelled:
                await trio.aclose_forcefully(self.stream)  # half a message is out
                raise
            if is_over:
                await trio.aclose_forcefully(self.stream)
                await self.protocol.handle(Closed())
                self._reading.cancel()
        finally:
            self.send_lock.release()

    async def _read_data(self) -> None:
        data: bytes | None = None
        with self._reading:
            while data != b"":
                try:
                    data = bytes(await self.stream.receive_some(MAX_RECV))
                except (trio.ClosedResourceError, trio.BrokenResourceError):
                    break
                await self.protocol.handle(RawData(data))
        await self.protocol.handle(Closed())
        await self.idle_task.stop()

    async def _idle_timeout(self) -> None:
        """Close the connection when it was idle for too long, or is when the node stops."""
        self._idle_since = trio.current_time()
        while not self.context.terminated.is_set():
            since = trio.current_time() if self._is_busy else self._idle_since
            left_s = since + self.config.keep_alive_timeout - trio.current_time()
            if left_s <= 0:
                break
            with trio.move_on_after(left_s):
                await self.context.terminated.wait()
        if not self._is_busy:  # else it ends with its answer
            with trio.CancelScope(shield=True):
                await self._initiate_server_close()
