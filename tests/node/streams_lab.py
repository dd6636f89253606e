"""A web server in the test's own loop that does exactly what a test says, and a job's client."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import trio

from pairio_node.runner.base import SOCKET
from pairio_node.streams import JobStreams
from pairio_node.urls import UrlRules

Handler = Callable[["Asked", trio.SocketStream], Awaitable[None]]


@dataclass
class Asked:
    """A request as it came."""

    path: str
    headers: dict[str, str]

    @property
    def range(self) -> tuple[int, int] | None:
        """[start, stop), if one was asked for."""
        if "range" not in self.headers:
            return None
        start, stop = self.headers["range"].removeprefix("bytes=").split("-")
        return int(start), int(stop) + 1


@dataclass
class Web:
    """Files with ranges, and what else `handlers` do by path."""

    files: dict[str, bytes] = field(default_factory=dict)
    handlers: dict[str, Handler] = field(default_factory=dict)
    etags: dict[str, str] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    connections: int = 0
    at_once: int = 0
    at_once_max: int = 0
    port: int = 0

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    @property
    def rules(self) -> UrlRules:
        return UrlRules(allow_hosts=(f"127.0.0.1:{self.port}",), stall_s=5.0)

    async def serve(self, stream: trio.SocketStream) -> None:
        self.connections += 1
        try:
            async with stream:
                while (asked := await _asked(stream)) is not None:
                    self.asked.append(asked)
                    self.at_once += 1
                    self.at_once_max = max(self.at_once, self.at_once_max)
                    try:
                        await self.handlers.get(asked.path, self.give)(asked, stream)
                    finally:
                        self.at_once -= 1
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return

    async def give(self, asked: Asked, stream: trio.SocketStream) -> None:
        """Answer with the file, or the range of it."""
        data = self.files.get(asked.path)
        if data is None:
            await say(stream, "404 Not Found", b"")
            return
        etag = self.etags.get(asked.path, '"one"')
        headers = [f"ETag: {etag}"] if etag else []
        if asked.range is None or asked.headers.get("if-range", etag) != etag:
            await say(stream, "200 OK", data, *headers)
            return
        start, stop = asked.range
        stop = min(stop, len(data))
        if start >= stop:
            await say(stream, "416 No", b"", f"Content-Range: bytes */{len(data)}")
            return
        headers.append(f"Content-Range: bytes {start}-{stop - 1}/{len(data)}")
        await say(stream, "206 Partial", data[start:stop], *headers)


async def say(stream: trio.SocketStream, status: str, body: bytes, *headers: str) -> None:
    """Send an answer with its length."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", ""]
    await stream.send_all("\r\n".join(lines).encode() + body)


async def _asked(stream: trio.SocketStream) -> Asked | None:
    head = b""
    while b"\r\n\r\n" not in head:
        data = await stream.receive_some(65536)
        if not data:
            return None
        head += data
    first, *lines = head.decode().split("\r\n\r\n")[0].split("\r\n")
    pairs = (line.split(": ", 1) for line in lines)
    return Asked(first.split(" ")[1], {name.lower(): value for name, value in pairs})


@asynccontextmanager
async def web() -> AsyncIterator[Web]:
    """Run a web server on loopback."""
    made = Web()
    async with trio.open_nursery() as nursery:
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        made.port = listener.socket.getsockname()[1]
        nursery.start_soon(trio.serve_listeners, made.serve, [listener])
        yield made
        nursery.cancel_scope.cancel()


@dataclass
class Answer:
    """What a job was answered."""

    status: int
    headers: dict[str, str]
    body: bytes
    is_whole: bool


class Job:
    """Reads by the streams of a run, as a job does: through the socket in its folder."""

    def __init__(self, streams: JobStreams) -> None:
        self._streams = streams

    def path(self, number: int = 0, name: str = "file.bin") -> str:
        return self._streams.url(number, name).split("/", 3)[3]

    async def connect(self) -> trio.SocketStream:
        path: Path = self._streams.socket_folder / SOCKET
        made = trio.socket.socket(trio.socket.AF_UNIX)
        await made.connect(str(path))
        return trio.SocketStream(made)

    async def get(
        self,
        number: int = 0,
        *,
        range_: str = "",
        method: str = "GET",
        target: str = "",
        more: str = "",
    ) -> Answer:
        lines = [f"{method} {target or '/' + self.path(number)} HTTP/1.1", "Host: x"]
        lines += [f"Range: bytes={range_}"] if range_ else []
        lines += [more] if more else []
        async with await self.connect() as stream:
            await stream.send_all(("\r\n".join(lines) + "\r\n\r\n").encode())
            return await read_answer(stream, has_body=method != "HEAD")


async def read_answer(stream: trio.SocketStream, *, has_body: bool = True) -> Answer:
    """Read one answer; it is cut where the connection ends too soon."""
    data = b""
    while b"\r\n\r\n" not in data:
        try:
            came = await stream.receive_some(65536)
        except trio.BrokenResourceError:
            came = b""
        if not came:
            return Answer(0, {}, data, is_whole=False)
        data += came
    head, body = data.split(b"\r\n\r\n", 1)
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {n.lower(): v for n, v in (line.split(": ", 1) for line in lines)}
    size = int(headers["content-length"]) if has_body else 0
    while len(body) < size:
        try:
            came = await stream.receive_some(1 << 20)
        except trio.BrokenResourceError:
            came = b""
        if not came:
            break
        body += came
    return Answer(int(first.split(" ")[1]), headers, body, is_whole=len(body) == size)


@asynccontextmanager
async def job(
    folder: Path, rules: UrlRules, *urls: str, files: tuple[Path, ...] = ()
) -> AsyncIterator[tuple[Job, JobStreams]]:
    """A run that may read these URLs and files, as its inputs 0, 1, ..."""
    streams = JobStreams(folder, rules, own_network=True)
    for number, url in enumerate(urls):
        await streams.add_url(number, f"input{number}", url)
    for number, path in enumerate(files, len(urls)):
        streams.add_file(number, path)
    async with streams.serving():
        yield Job(streams), streams
