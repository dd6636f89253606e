"""HTTP to the local node for async programs: the same calls as `_http.Api`, on anyio and h11."""

import json
from collections.abc import AsyncGenerator
from typing import Any

import anyio
import anyio.abc
import h11

from pairio._http import EVENT_STREAM, Address, Api, refused, target_of
from pairio._sse import Event, EventParser
from pairio.errors import NodeNotRunning, RequestRefused

__all__ = ["AsyncApi"]

#: A call that takes no answer for so long has none; streams show every 10 s that they are alive.
_TIMEOUT_S = 90.0
_IDLE_MAX = 8
_CALLS_MAX = 200
_CHUNK = 64 * 1024
_BROKEN = (OSError, anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError)
_RESET = (ConnectionError, anyio.BrokenResourceError)


class _Connection:
    """One connection, one call at a time."""

    def __init__(self, stream: anyio.abc.SocketStream) -> None:
        self._stream = stream
        self._http = h11.Connection(h11.CLIENT)

    async def ask(self, request: h11.Request, body: bytes) -> h11.Response:
        out = self._http.send(request) or b""
        out += (self._http.send(h11.Data(data=body)) or b"") if body else b""
        out += self._http.send(h11.EndOfMessage()) or b""
        await self._stream.send(out)
        while True:
            event = await self._next()
            if isinstance(event, h11.Response):
                return event

    async def chunk(self) -> bytes:
        """Return the next bytes of the answer, none at its end."""
        while True:
            event = await self._next()
            if isinstance(event, h11.Data) and event.data:
                return bytes(event.data)
            if isinstance(event, h11.EndOfMessage):
                return b""

    async def _next(self) -> Any:
        while True:
            event = self._http.next_event()
            if event is not h11.NEED_DATA:
                return event
            with anyio.fail_after(_TIMEOUT_S):
                try:
                    self._http.receive_data(await self._stream.receive(_CHUNK))
                except anyio.EndOfStream:
                    came = self._http.trailing_data[0]
                    if self._http.their_state is h11.SEND_RESPONSE and not came:
                        raise ConnectionResetError("it ended without a word") from None
                    self._http.receive_data(b"")

    def can_be_used_again(self) -> bool:
        if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
            return False
        self._http.start_next_cycle()
        return True

    async def close(self) -> None:
        await anyio.aclose_forcefully(self._stream)


class AsyncApi(Address):
    """Calls of one node from any number of tasks of one event loop."""

    def __init__(self, url: str | None = None, token: str | None = None) -> None:
        super().__init__(url, token)
        self._idle: list[_Connection] = []
        self._calls = anyio.CapacityLimiter(_CALLS_MAX)

    def apart(self) -> "AsyncApi":
        """Return itself: every call has a connection of its own."""
        return self

    def blocking(self) -> Api:
        """Return one for the same node that blocks; for threads."""
        return Api(*self._given)

    async def close(self) -> None:
        """Close the connections that are not in use."""
        while self._idle:
            await self._idle.pop().close()

    async def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        query: dict[str, Any] | None = None,
        key: str | None = None,
    ) -> Any:
        """Make a call and return the JSON of its answer. With a `key` it may be made again: what it
        does is done once.

        Raises:
            NodeNotRunning, RequestRefused.
        """
        data = b"" if body is None else json.dumps(body).encode()
        more = {"Content-Type": "application/json"} if data else {}
        more |= {"Idempotency-Key": key} if key else {}
        target = target_of(path, query)
        async with self._calls:
            connection, response = await self._send(method, target, data, more)
            try:
                answer = await self._rest(connection)
                if connection.can_be_used_again() and len(self._idle) < _IDLE_MAX:
                    self._idle.append(connection)
                    connection = None  # type: ignore[assignment]
            finally:
                if connection is not None:
                    with anyio.CancelScope(shield=True):
                        await connection.close()
        return self._document(response.status_code, answer)

    async def stream(
        self,
        path: str,
        query: dict[str, Any] | None = None,
        start: int = 0,
        accept: str | None = None,
    ) -> AsyncGenerator[bytes, None]:
        """Yield the bytes of an answer, of a file from `start` on."""
        more = {"Range": f"bytes={start}-"} if start else {}
        more |= {"Accept": accept} if accept else {}
        connection, response = await self._send("GET", target_of(path, query), b"", more)
        try:
            if start and response.status_code == 200:
                raise RequestRefused("the node sends no part of a file", None, "http", 200)
            if response.status_code >= 300:
                raise refused(response.status_code, await self._rest(connection))
            while chunk := await self._chunk(connection):
                yield chunk
        finally:
            with anyio.CancelScope(shield=True):
                await connection.close()

    async def events(
        self, path: str, query: dict[str, Any] | None = None
    ) -> AsyncGenerator[Event, None]:
        """Yield Server-Sent Events as they come, until the node ends the stream."""
        parser = EventParser()
        stream = self.stream(path, query, accept=EVENT_STREAM)
        try:
            async for chunk in stream:
                for event in parser.feed(chunk):
                    yield event
        finally:
            await stream.aclose()

    async def _rest(self, connection: _Connection) -> bytes:
        chunks = []
        while chunk := await self._chunk(connection):
            chunks.append(chunk)
        return b"".join(chunks)

    async def _chunk(self, connection: _Connection) -> bytes:
        try:
            return await connection.chunk()
        except (*_BROKEN, h11.RemoteProtocolError, TimeoutError) as error:
            raise self._broken(error) from None

    async def _send(
        self, method: str, target: str, body: bytes, more: dict[str, str]
    ) -> tuple[_Connection, h11.Response]:
        try:
            connection, response = await self._sent(method, target, body, more)
            if response.status_code != 401 or not self._has_moved():
                return connection, response
            await connection.close()
            was_there = True
        except NodeNotRunning as error:
            if not self._has_moved_since(error):
                raise
            was_there = error.was_there
        await self.close()
        return await self._sent(method, target, body, more, was_there)

    async def _sent(
        self,
        method: str,
        target: str,
        body: bytes,
        more: dict[str, str],
        was_there: bool = False,
    ) -> tuple[_Connection, h11.Response]:
        """Send once, or once more when a kept connection was closed while it was idle. Of a node
        that `was_there` for a try before, an error says so whatever the last try met."""
        headers = {"Host": f"{self._host}:{self._port}", **self._headers(), **more}
        if body or method == "POST":
            headers["Content-Length"] = str(len(body))
        request = h11.Request(method=method, target=target, headers=list(headers.items()))
        while True:
            kept = bool(self._idle)
            connection = None
            try:
                connection = self._idle.pop() if kept else await self._connected()
                return connection, await connection.ask(request, body)
            except (*_BROKEN, h11.RemoteProtocolError, TimeoutError) as error:
                was_there |= connection is not None and isinstance(error, _RESET)
                if connection is not None:
                    await connection.close()
                if not kept or isinstance(error, TimeoutError):
                    raise self._gone(error, was_there=was_there) from None
            except BaseException:
                if connection is not None:
                    with anyio.CancelScope(shield=True):
                        await connection.close()
                raise

    async def _connected(self) -> _Connection:
        with anyio.fail_after(_TIMEOUT_S):
            return _Connection(await anyio.connect_tcp(self._host, self._port))
