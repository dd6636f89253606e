"""Speaks HTTP/1.1 with one job: its own inputs, GET and HEAD, one range at a time; nothing else.

A job may be hostile: heads, connections and waits have bounds, and a path is either one of its
inputs' or not found.
"""

import hmac
import re
from collections import Counter
from collections.abc import Mapping
from contextlib import aclosing
from typing import Final

import h11
import trio

from pairio_node.api.ranges import Unsatisfiable, parse_ranges
from pairio_node.errors import ForbiddenError
from pairio_node.streams.sources import Source
from pairio_node.urls import UrlError

__all__ = ["CONNECTIONS_MAX", "serve_connections"]

#: Connections of one job at once; further ones wait.
CONNECTIONS_MAX: Final = 64
#: With more than so many a connection is closed after its answer, that others come to their turn.
_KEPT_MAX: Final = CONNECTIONS_MAX // 2
_HEAD_SIZE_BYTES_MAX: Final = 8 * 1024
_HEAD_S: Final = 30.0
#: How long a job may take to read 64 KiB.
_SEND_S: Final = 60.0
_CHUNK_BYTES: Final = 64 * 1024
_PATH = re.compile(rb"/([0-9a-f]{32})/([0-9]{1,4})/[^/?#\\]{1,1000}")
_ACCEPT_AGAIN_S: Final = 0.1
#: What a job asked for in vain, as it is counted.
NO_INPUT: Final = "refused: a job's read of what is no input of it"
NO_REQUEST: Final = "refused: a job's read that is no GET or HEAD"


async def serve_connections(
    listener: trio.SocketListener,
    sources: Mapping[int, Source],
    token: str,
    refused: Counter[str] | None = None,
) -> None:
    """Serve a job until cancelled; what it asked for in vain is counted in `refused`."""
    counts = refused if refused is not None else Counter()
    free = trio.CapacityLimiter(CONNECTIONS_MAX)

    async def serve(stream: trio.SocketStream, place: object) -> None:
        try:
            async with stream:
                await _Connection(stream, sources, token, free, counts).run()
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError):
            return  # the job has left, or does not read
        except h11.ProtocolError:
            counts[NO_REQUEST] += 1  # what it said leaves nothing to be answered
        finally:
            free.release_on_behalf_of(place)

    async with trio.open_nursery() as nursery:
        while True:
            place = object()
            await free.acquire_on_behalf_of(place)
            try:
                stream = await listener.accept()
            except OSError:  # no descriptors are left
                free.release_on_behalf_of(place)
                await trio.sleep(_ACCEPT_AGAIN_S)
                continue
            nursery.start_soon(serve, stream, place)


class _Connection:
    """One connection of a job."""

    def __init__(
        self,
        stream: trio.SocketStream,
        sources: Mapping[int, Source],
        token: str,
        free: trio.CapacityLimiter,
        refused: Counter[str],
    ) -> None:
        self._stream = stream
        self._sources = sources
        self._token = token.encode()
        self._free = free
        self._refused = refused
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=_HEAD_SIZE_BYTES_MAX)
        self._is_head = False

    async def run(self) -> None:
        """Answer requests until one of both sides has enough."""
        while True:
            try:
                with trio.fail_after(_HEAD_S):
                    request = await self._next()
                    if not isinstance(request, h11.Request):
                        return
                    has_body = not isinstance(await self._next(), h11.EndOfMessage)
            except h11.RemoteProtocolError:
                self._refused[NO_REQUEST] += 1
                await self._refuse(400, "this is no request of HTTP/1.1")
                return
            if has_body:
                self._refused[NO_REQUEST] += 1
                await self._refuse(400, "a request without a body is expected")
                return
            await self._answer(request)
            if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
                return
            self._http.start_next_cycle()

    async def _next(self) -> object:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            self._http.receive_data(await self._stream.receive_some(_CHUNK_BYTES))
        return event

    async def _answer(self, request: h11.Request) -> None:
        self._is_head = request.method == b"HEAD"
        if request.method not in (b"GET", b"HEAD"):
            self._refused[NO_REQUEST] += 1
            await self._refuse(405, "only GET and HEAD are answered", [("Allow", "GET, HEAD")])
            return
        source = self._source(request.target)
        if source is None:
            self._refused[NO_INPUT] += 1
            await self._refuse(404, "no input of this job has this path")
            return
        about = source.about
        headers = [("Accept-Ranges", "bytes"), ("Content-Type", "application/octet-stream")]
        headers += [("ETag", about.etag)] if about.etag else []
        headers += [("Last-Modified", about.modified)] if about.modified else []
        asked = dict(request.headers)
        # (`If-Range` with another tag asks for the whole.)
        is_same = asked.get(b"if-range", about.etag.encode()) == about.etag.encode()
        try:
            wanted = asked.get(b"range", b"").decode("latin-1") if is_same else None
            ranges = parse_ranges(wanted, about.size_bytes)
        except Unsatisfiable as error:
            await self._refuse(416, "no such bytes in it", [("Content-Range", str(error))])
            return
        start, stop, status = 0, about.size_bytes, 200
        if ranges is not None and len(ranges) == 1:
            [(start, stop)] = ranges
            status = 206
            headers.append(("Content-Range", f"bytes {start}-{stop - 1}/{about.size_bytes}"))
        headers.append(("Content-Length", str(stop - start)))
        if self._is_head or start == stop:
            await self._send(self._head(status, headers), h11.EndOfMessage())
            return
        await self._send_body(source, start, stop, self._head(status, headers))

    async def _send_body(self, source: Source, start: int, stop: int, head: h11.Response) -> None:
        """Send the head with the first bytes: whether there are any is known before."""
        said = False
        try:
            async with aclosing(source.read(start, stop)) as pieces:  # type: ignore[type-var]
                async for data in pieces:
                    if not said:
                        await self._send(head)
                        said = True
                    for at in range(0, len(data), _CHUNK_BYTES):
                        await self._send(h11.Data(data=data[at : at + _CHUNK_BYTES]))
        except UrlError as error:
            if said:  # all that can be said now is that it is cut
                await trio.aclose_forcefully(self._stream)
                return
            status = 403 if isinstance(error, ForbiddenError) else 502
            await self._refuse(status, error.message)
            return
        await self._send(h11.EndOfMessage())

    def _source(self, target: bytes) -> Source | None:
        match = _PATH.fullmatch(target)
        if match is None or not hmac.compare_digest(match[1], self._token):
            return None
        return self._sources.get(int(match[2]))

    def _head(self, status: int, headers: list[tuple[str, str]]) -> h11.Response:
        if self._free.borrowed_tokens > _KEPT_MAX:
            headers = [*headers, ("Connection", "close")]
        encoded = [(n.encode(), value.encode("latin-1", "replace")) for n, value in headers]
        return h11.Response(status_code=status, headers=encoded)

    async def _refuse(
        self, status: int, why: str, headers: list[tuple[str, str]] | None = None
    ) -> None:
        body = f"{why}\n".encode()
        told = [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body)))]
        head = self._head(status, [*told, *(headers or []), ("Connection", "close")])
        data = [] if self._is_head else [h11.Data(data=body)]
        await self._send(head, *data, h11.EndOfMessage())

    async def _send(self, *events: h11.Event) -> None:
        data = b"".join(self._http.send(event) or b"" for event in events)
        with trio.fail_after(_SEND_S):
            await self._stream.send_all(data)
