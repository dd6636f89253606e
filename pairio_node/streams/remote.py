"""Ranges of a file behind a URL, under the rules of this node's owner (`urls.approve`).

A file is looked at once (`open`), and is that file from then on: what a server sends later with
another size, ETag or date is a change, and said so. Connections go to addresses that were looked
at, and are used again for a while.
"""

import functools
import re
import ssl
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

import h11
import trio

from pairio_node.urls import (
    ADDRESSES_TRIED_MAX,
    CONNECT_S,
    READ_S,
    REDIRECT_STATUS,
    REDIRECTS_MAX,
    STALL_BYTES,
    Resolve,
    Target,
    UrlError,
    UrlForbiddenError,
    UrlRules,
    approve,
    printable,
    redirected,
    resolve_host,
    short_url,
    split_url,
)

__all__ = ["About", "ChangedError", "NoRangesError", "Remote"]

_CONTENT_RANGE = re.compile(r"bytes (?:([0-9]{1,18})-([0-9]{1,18})|\*)/([0-9]{1,18})")
_CHUNK_BYTES: Final = 64 * 1024
_WORDS_MAX: Final = 200
_IDLE_MAX: Final = 4
_IDLE_S: Final = 10.0
#: How long it is remembered where redirects end: signed URLs are good for a few minutes.
_FINAL_S: Final = 240.0
#: Informational answers before the one that counts.
_INFORMATIONAL_MAX: Final = 8

Sink = Callable[[bytes], Awaitable[None]]
Connect = Callable[[str, int], Awaitable[trio.abc.Stream]]


class ChangedError(UrlError):
    """The file is another one than when it was looked at first."""


class NoRangesError(UrlError):
    """The server gives the file only whole."""


@dataclass(frozen=True)
class About:
    """What a server says of a file; texts are "" where it says nothing."""

    size_bytes: int
    etag: str
    modified: str

    def same_as(self, other: "About") -> bool:
        """Say whether both are the same file, as far as can be told."""
        if self.size_bytes != other.size_bytes:
            return False
        return self.etag == other.etag and (bool(self.etag) or self.modified == other.modified)


@dataclass
class _Answer:
    status: int
    headers: dict[str, str]
    connection: "_Connection"

    def about(self, size_bytes: int) -> About:
        """Return what it says of the file."""
        words = (self.headers.get(name, "") for name in ("etag", "last-modified"))
        return About(size_bytes, *(printable(text[:_WORDS_MAX]) for text in words))


class Remote:
    """One file. `about` is None until it was opened. `fetched_bytes` counts what came."""

    def __init__(
        self,
        url: str,
        rules: UrlRules,
        resolve: Resolve | None = None,
        connect: Connect | None = None,
    ) -> None:
        self.url = url
        self.about: About | None = None
        self.fetched_bytes = 0
        self._rules = rules
        self._resolve = resolve or resolve_host
        self._connect = connect or _connect
        self._final: tuple[Target, Sequence[str], float] | None = None
        self._idle: list[tuple[_Connection, float]] = []

    async def open(self, size_bytes: int, sink: Sink) -> About:
        """Look at the file, and give its first bytes to `sink`.

        Raises:
            NoRangesError: the server gives it only whole.
            UrlForbiddenError: the owner's rules are against it.
            UrlError: it cannot be had.
        """
        answer = await self._ask(0, size_bytes)
        try:
            if answer.status == 200:
                raise NoRangesError(f"{short_url(self.url)}: the server gives no ranges of it")
            start, stop, total = self._range_of(answer)
            if start != 0 or stop > min(size_bytes, total) or (stop == 0) != (total == 0):
                raise self._bad("it answers with other bytes than were asked for")
            about = answer.about(total)
            await self._receive(answer, stop, sink)
        except BaseException:
            await answer.connection.close()
            raise
        self._keep(answer.connection)
        self.about = about
        return about

    async def fetch(self, start: int, stop: int, sink: Sink) -> None:
        """Give the bytes [start, stop) to `sink`, as they come; none of another file.

        Raises:
            ChangedError: it is another file now.
            UrlForbiddenError: the owner's rules are against it; more bytes than they allow.
            UrlError: it cannot be had.
        """
        assert self.about is not None
        answer = await self._ask(start, stop)
        try:
            if answer.status == 200 and self._is_whole(answer):
                raise self._bad("it answers with the whole file where a part was asked for")
            if answer.status in (200, 416):
                raise self._changed()
            begins, ends, total = self._range_of(answer)
            if not answer.about(total).same_as(self.about):
                raise self._changed()
            if (begins, ends) != (start, stop):
                raise self._bad("it answers with other bytes than were asked for")
            await self._receive(answer, stop - start, sink)
        except BaseException:
            await answer.connection.close()
            raise
        self._keep(answer.connection)

    async def close(self) -> None:
        """Let connections go."""
        idle, self._idle = self._idle, []
        for connection, _ in idle:
            await connection.close()

    # -- asking ---------------------------------------------------------------------------

    async def _ask(self, start: int, stop: int) -> _Answer:
        """Ask for a range where the file was last, else from the beginning of all redirects."""
        final, self._final = self._final, None
        if final is not None and trio.current_time() < final[2]:
            answer = await self._request(final[0], final[1], start, stop)
            if answer.status in (200, 206, 416):
                self._final = final
                return answer
            await answer.connection.close()
        following = self.url
        for _ in range(REDIRECTS_MAX + 1):
            target = split_url(following)
            addresses = await approve(target, self._rules, self._resolve)
            answer = await self._request(target, addresses, start, stop)
            location = answer.headers.get("location")
            if answer.status in (200, 206, 416):
                self._final = (target, addresses, trio.current_time() + _FINAL_S)
                return answer
            await answer.connection.close()
            if answer.status not in REDIRECT_STATUS or not location:
                raise self._bad(f"the server answers {answer.status}")
            following = redirected(target, location)
        raise UrlError(
            f"{short_url(self.url)} is redirected more than {REDIRECTS_MAX} times",
            hint="give the URL at the end of the redirects",
        )

    async def _request(
        self, target: Target, addresses: Sequence[str], start: int, stop: int
    ) -> _Answer:
        headers = [("Host", target.authority), ("User-Agent", "pairio")]
        headers += [("Accept-Encoding", "identity"), ("Range", f"bytes={start}-{stop - 1}")]
        etag = self.about.etag if self.about is not None else ""
        if etag.startswith('"') and etag.isascii():
            headers.append(("If-Range", etag))
        while (connection := self._take(target)) is not None:
            try:
                return await connection.ask(target.path, headers)
            except (trio.BrokenResourceError, h11.RemoteProtocolError, trio.TooSlowError, OSError):
                await connection.close()  # it was closed while it was idle
            except BaseException:
                await connection.close()
                raise
        connection = await self._connected(target, addresses)
        try:
            return await connection.ask(target.path, headers)
        except BaseException as error:
            await connection.close()
            raise self._told(error) or error from None

    async def _connected(self, target: Target, addresses: Sequence[str]) -> "_Connection":
        why = ""
        for address in addresses[:ADDRESSES_TRIED_MAX]:
            try:
                with trio.fail_after(CONNECT_S):
                    stream = await self._connect(address, target.port)
                    if target.scheme == "https":
                        stream = await _encrypted(stream, target.host)
                return _Connection(stream, target, self._rules.stall_s)
            except trio.TooSlowError:
                why = f"no answer in {CONNECT_S:.0f} s"
            except (OSError, trio.BrokenResourceError) as error:
                cause = error.__cause__ if isinstance(error, trio.BrokenResourceError) else error
                if isinstance(cause, ssl.SSLCertVerificationError):
                    raise self._bad(f"its certificate is refused: {cause.verify_message}") from None
                why = getattr(cause, "strerror", None) or str(cause or error)
        raise UrlError(
            f"{short_url(self.url)}: cannot connect: {printable(why)}",
            hint="submit again when it can",
        )

    # -- answers --------------------------------------------------------------------------

    def _check_encoding(self, answer: _Answer) -> None:
        encoding = answer.headers.get("content-encoding", "identity").strip().lower()
        if answer.status == 206 and encoding not in ("", "identity"):
            raise self._bad(
                f"the server sends it encoded as {encoding[:20]!r}: ranges of that are none of"
                " the file"
            )

    def _is_whole(self, answer: _Answer) -> bool:
        length = answer.headers.get("content-length", "")
        said = answer.about(int(length)) if length.isdecimal() and len(length) < 19 else None
        return said is not None and self.about is not None and said.same_as(self.about)

    def _range_of(self, answer: _Answer) -> tuple[int, int, int]:
        """Return (start, stop, size of the file) of what was answered."""
        self._check_encoding(answer)
        match = _CONTENT_RANGE.fullmatch(answer.headers.get("content-range", "").strip())
        if match is None or (match[1] is None) != (answer.status == 416):
            raise self._bad("it says not which bytes it sends")
        total = int(match[3])
        if match[1] is None:
            if total:
                raise self._bad("it refuses a range that lies in the file")
            return 0, 0, 0
        start, stop = int(match[1]), int(match[2]) + 1
        if not start < stop <= total:
            raise self._bad("it says not which bytes it sends")
        return start, stop, total

    async def _receive(self, answer: _Answer, size_bytes: int, sink: Sink) -> None:
        length = answer.headers.get("content-length", str(size_bytes))
        if answer.status == 206 and length != str(size_bytes):
            raise self._bad(f"it says that {size_bytes} bytes are {length[:20]}")
        came = 0

        async def count(data: bytes) -> None:
            nonlocal came
            came += len(data)
            self.fetched_bytes += len(data)
            if came > size_bytes:
                raise self._bad("it sends more bytes than it said")
            if self.fetched_bytes > self._rules.bytes_max:
                raise UrlForbiddenError(
                    f"{short_url(self.url)}: more than {self._rules.bytes_max} bytes of it were"
                    " read; this node fetches no more",
                    hint="its owner may raise url_input_bytes_max in node.toml",
                )
            await sink(data)

        if answer.status == 416:
            return  # an empty file; what is said of it does not matter
        try:
            await answer.connection.receive(count)
        except BaseException as error:
            raise self._told(error) or error from None
        if came != size_bytes:
            raise self._bad(f"it ended after {came} of {size_bytes} bytes")

    def _told(self, error: BaseException) -> UrlError | None:
        """Return what broke a transfer off in words; None for what is no fault of the server."""
        match error:
            case UrlError():
                return error
            case trio.TooSlowError():
                return self._bad(f"the server sent next to nothing for {self._rules.stall_s:g} s")
            case h11.RemoteProtocolError() | trio.BrokenResourceError() | OSError():
                why = str(error)[:200] or type(error).__name__
                return self._bad(f"the transfer broke off: {why}")
        return None

    def _bad(self, why: str) -> UrlError:
        return UrlError(
            f"{short_url(self.url)}: {printable(why)}", hint="submit again when it can be had"
        )

    def _changed(self) -> ChangedError:
        return ChangedError(
            f"{short_url(self.url)} changed while the job read it",
            hint="submit again when it stays as it is, or add the file and give its CID",
        )

    # -- connections that are used again --------------------------------------------------

    def _keep(self, connection: "_Connection") -> None:
        if len(self._idle) < _IDLE_MAX and connection.renew():
            self._idle.append((connection, trio.current_time() + _IDLE_S))
        else:
            connection.abandon()

    def _take(self, target: Target) -> "_Connection | None":
        while self._idle:
            connection, until = self._idle.pop()
            goes_there = connection.target.scheme == target.scheme
            goes_there = goes_there and connection.target.authority == target.authority
            if goes_there and trio.current_time() < until:
                return connection
            connection.abandon()
        return None


class _Connection:
    """HTTP/1.1 on one connection, a request at a time."""

    def __init__(self, stream: trio.abc.Stream, target: Target, stall_s: float) -> None:
        self.target = target
        self._stream = stream
        self._stall_s = stall_s
        self._http = h11.Connection(h11.CLIENT)
        self._closed = False

    async def ask(self, path: str, headers: Sequence[tuple[str, str]]) -> _Answer:
        """Send a request; return its answer without the body."""
        with trio.fail_after(READ_S):
            head = self._http.send(h11.Request(method="GET", target=path, headers=list(headers)))
            await self._stream.send_all(
                (head or b"") + (self._http.send(h11.EndOfMessage()) or b"")
            )
            for _ in range(_INFORMATIONAL_MAX):
                event = await self._next()
                if isinstance(event, h11.Response):
                    found = {n.decode("latin-1"): v.decode("latin-1") for n, v in event.headers}
                    return _Answer(event.status_code, found, self)
        raise h11.RemoteProtocolError("it answers again and again without an answer")

    async def receive(self, sink: Sink) -> None:
        """Give the body to `sink`. A server that sends next to nothing is given up."""
        since, came = trio.current_time(), 0
        while True:
            with trio.fail_at(since + self._stall_s):
                event = await self._next()
            if isinstance(event, h11.EndOfMessage):
                return
            if isinstance(event, h11.Data):
                came += len(event.data)
                await sink(bytes(event.data))
                if came >= STALL_BYTES:
                    since, came = trio.current_time(), 0

    async def _next(self) -> h11.Event:
        while True:
            event = self._http.next_event()
            if event is h11.NEED_DATA:
                self._http.receive_data(await self._stream.receive_some(_CHUNK_BYTES))
            elif isinstance(event, h11.ConnectionClosed) or event is h11.PAUSED:
                raise h11.RemoteProtocolError("the connection was closed")
            else:
                assert not isinstance(event, type)
                return event

    def renew(self) -> bool:
        """Make ready for another request, if there may be one; says whether."""
        if self._closed:
            return False
        if self._http.our_state is h11.DONE and self._http.their_state is h11.DONE:
            self._http.start_next_cycle()
        return self._http.our_state is h11.IDLE

    async def close(self) -> None:
        """Close it at once."""
        self._closed = True
        await trio.aclose_forcefully(self._stream)

    def abandon(self) -> None:
        """The same, where nothing can be waited for."""
        self._closed = True
        stream = self._stream
        while isinstance(stream, trio.SSLStream):
            stream = stream.transport_stream
        if isinstance(stream, trio.SocketStream):
            stream.socket.close()


async def _connect(address: str, port: int) -> trio.abc.Stream:
    """Connect to an address, not a name."""
    family = trio.socket.AF_INET6 if ":" in address else trio.socket.AF_INET
    made = trio.socket.socket(family, trio.socket.SOCK_STREAM)
    try:
        await made.connect((address, port))
        return trio.SocketStream(made)
    except BaseException:
        made.close()
        raise


@functools.cache
def _tls() -> ssl.SSLContext:
    return ssl.create_default_context()


async def _encrypted(stream: trio.abc.Stream, host: str) -> trio.abc.Stream:
    # Certificates are read from files once, which takes a while.
    context = await trio.to_thread.run_sync(_tls)
    encrypted = trio.SSLStream(stream, context, server_hostname=host, https_compatible=True)
    try:
        await encrypted.do_handshake()
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise
    return encrypted
