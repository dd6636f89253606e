"""HTTP to the local node over one kept connection. Standard library; imported when needed."""

import json
import os
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote, urlencode, urlsplit

from pairio._sse import Event, EventParser
from pairio.errors import NodeNotRunning, RequestRefused, refusal_of

__all__ = ["Api", "find_api"]

_TIMEOUT_S = 90.0
EVENT_STREAM = "text/event-stream"


def default_home() -> Path:
    """Return PAIRIO_HOME, or where a user's data lies on this system."""
    named = os.environ.get("PAIRIO_HOME")
    if named:
        return Path(named).absolute()
    import platformdirs

    return Path(platformdirs.user_data_dir("pairio", False))


def find_api() -> tuple[str, str]:
    """Return (URL, token) of the node to talk to.

    `PAIRIO_API_URL` names another node; then `PAIRIO_API_KEY` is its token. Without it the node of
    this machine's home is used with its own token: a key left over from the original is ignored.

    Raises:
        NodeNotRunning: no node runs on the home.
    """
    url = os.environ.get("PAIRIO_API_URL")
    if url:
        return url, os.environ.get("PAIRIO_API_KEY", "")
    path = default_home() / "api.json"
    try:
        info = json.loads(path.read_text())
        return str(info["url"]), str(info["token"])
    except FileNotFoundError:
        raise NodeNotRunning(
            f"no node runs on {path.parent}",
            "start one: pairio-node run; wait for its line `ready`",
        ) from None
    except (OSError, ValueError, KeyError) as error:
        raise NodeNotRunning(f"cannot read {path}: {error}", "restart the node") from None


class Address:
    """Where the node is and how it is asked; shared by the drivers of blocking and async calls."""

    def __init__(self, url: str | None = None, token: str | None = None) -> None:
        self._given = (url, token)
        self._is_found = url is None
        self._point_at(*((url, token or "") if url else find_api()))

    @property
    def name(self) -> str:
        """The node's URL."""
        return f"http://{self._host}:{self._port}"

    def _point_at(self, found_url: str, found_token: str) -> None:
        self._host, self._port = _host_and_port(found_url)
        if not (found_token.isascii() and found_token.isprintable()):
            raise NodeNotRunning(
                "PAIRIO_API_KEY holds characters that no token has", "pairio token create NAME"
            )
        self._token = found_token

    def is_elsewhere(self) -> bool:
        """Look for a node that is away; say whether it is known to be somewhere else now."""
        try:
            return self._has_moved()
        except NodeNotRunning:
            return False

    def _has_moved(self) -> bool:
        """Look the node up again: after a restart it has another token, maybe another port."""
        before = (self._host, self._port, self._token)
        if self._is_found:
            self._point_at(*find_api())
        return before != (self._host, self._port, self._token)

    def _has_moved_since(self, error: NodeNotRunning) -> bool:
        """Look the node up after a call that it did not answer."""
        try:
            return self._has_moved()
        except NodeNotRunning as now:
            now.was_there = error.was_there
            raise

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._token}"} if self._token else {}

    def _gone(self, error: Exception, *, was_there: bool = False) -> NodeNotRunning:
        gone = NodeNotRunning(
            f"no node answers at {self.name} ({error})", "start it: pairio-node run"
        )
        gone.was_there = was_there
        return gone

    def _broken(self, error: Exception) -> NodeNotRunning:
        broken = NodeNotRunning(
            f"the node stopped in the middle of its answer ({error})",
            "look whether it runs: pairio-node status",
        )
        broken.was_there = True
        return broken

    def _document(self, status: int, data: bytes) -> Any:
        """Return the JSON of an answer, or raise what it says."""
        if status >= 300:
            raise refused(status, data)
        try:
            return json.loads(data)
        except ValueError:
            raise NodeNotRunning(
                f"what answers at {self.name} is no pairio node",
                "look at PAIRIO_API_URL, or unset it to use the node of this machine",
            ) from None


class Api(Address):
    """Calls of one node. Every thread has a connection of its own, and so has a forked child."""

    def __init__(self, url: str | None = None, token: str | None = None) -> None:
        import threading

        super().__init__(url, token)
        self._local: Any = threading.local()

    def apart(self) -> "Api":
        """Return another one for the same node, with connections of its own: while an answer is
        read as it comes, this one's is free for other calls."""
        return Api(*self._given)

    def alone(self) -> "Api":
        """Return another one for the same node, with one connection whichever thread asks: for one
        caller at a time."""
        from types import SimpleNamespace

        made = Api(*self._given)
        made._local = SimpleNamespace()
        return made

    @property
    def _connection(self) -> Any:
        pid, connection = getattr(self._local, "kept", (0, None))
        return connection if pid == os.getpid() else None

    def close(self) -> None:
        """Close this thread's connection; the next call opens another."""
        connection = self._connection
        if connection is not None:
            connection.close()
            self._local.kept = (0, None)

    def call(
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
        more = {"Idempotency-Key": key} if key else None
        return self._json(self._send(method, target_of(path, query), body, more))

    def submit(self, body: Any, *, many: bool = False) -> Any:
        """Submit a job, or `many`, under a key of its own: sent again, it is done once."""
        import secrets

        path = "/api/v1/jobs/batch" if many else "/api/v1/jobs"
        return self.call("POST", path, body, None, secrets.token_urlsafe(16))

    def stream(
        self, path: str, query: dict[str, Any] | None = None, start: int = 0
    ) -> Generator[bytes, None, None]:
        """Yield the bytes of an answer, of a file from `start` on."""
        headers = {"Range": f"bytes={start}-"} if start else {}
        response = self._send("GET", target_of(path, query), None, headers)
        if start and response.status == 200:
            self.close()
            raise RequestRefused("the node sends no part of a file", None, "http", 200)
        if response.status >= 300:
            raise refused(response.status, self._read(response))
        while chunk := self._read(response, 256 * 1024):
            yield chunk

    def span(
        self, path: str, query: dict[str, Any] | None, start: int, stop: int, tag: str = ""
    ) -> tuple[bytes, int, str]:
        """Return the bytes of a file from `start` to before `stop` or its end, how many it has, and
        the tag of what it is; with a `tag` only of that.

        Raises:
            NodeNotRunning, RequestRefused.
        """
        more = {"Range": f"bytes={start}-{stop - 1}", **({"If-Range": tag} if tag else {})}
        response = self._send("GET", target_of(path, query), None, more)
        if response.status == 200:
            self.close()  # all of it would come
            raise RequestRefused("the node sends no part of this file", None, "http", 200)
        data = self._read(response)
        said = str(response.getheader("Content-Range") or "").rpartition("/")[2]
        size = int(said) if said.isdigit() else 0
        if response.status == 416 and start >= size:
            return b"", size, str(response.getheader("ETag") or "")
        if response.status != 206:
            raise refused(response.status, data)
        return data, size, str(response.getheader("ETag") or "")

    def lines(self, path: str, query: dict[str, Any] | None = None) -> Iterable[Any]:
        """Yield the documents of an answer that has one a line, as they come."""
        response = self._send("GET", target_of(path, query), None)
        if response.status >= 300:
            raise refused(response.status, self._read(response))
        left = b""
        while chunk := self._read(response, 64 * 1024, soon=True):
            *whole, left = (left + chunk).split(b"\n")
            yield from map(json.loads, whole)
        response.close()  # read1 does not, and the connection is used again

    def events(
        self, path: str, query: dict[str, Any] | None = None
    ) -> Generator[Event, None, None]:
        """Yield Server-Sent Events as they come, until the node ends the stream."""
        response = self._send("GET", target_of(path, query), None, {"Accept": EVENT_STREAM})
        try:
            if response.status >= 300:
                raise refused(response.status, self._read(response))
            parser = EventParser()
            while chunk := self._read(response, 64 * 1024, soon=True):
                yield from parser.feed(chunk)
        finally:
            self.close()  # whoever stops reading leaves an answer on the connection

    def upload(self, file: BinaryIO, path: str = "/api/v1/content") -> Any:
        """Send a file's bytes; the answer to content is `{cid, size}`."""
        size = os.fstat(file.fileno()).st_size
        length = {"Content-Length": str(size)}
        return self._json(self._send("POST", path, file, length))

    def _json(self, response: Any) -> Any:
        return self._document(response.status, self._read(response))

    def _read(self, response: Any, size: int | None = None, soon: bool = False) -> bytes:
        """Return the next bytes of an answer; with `soon` as many as there are."""
        import http.client

        try:
            data: bytes = response.read1(size) if soon else response.read(size)
            if not data and response.length:  # read(size) does not say that something is missing
                raise http.client.IncompleteRead(data, response.length)
            return data
        except (http.client.HTTPException, OSError) as error:
            self.close()
            raise self._broken(error) from None

    def _send(self, method: str, target: str, body: Any, more: dict[str, str] | None = None) -> Any:
        headers = dict(more or {})
        if body is not None and not hasattr(body, "read"):
            body = json.dumps(body).encode()
            headers["Content-Type"] = "application/json"
        try:
            response = self._sent(method, target, body, headers)
            if response.status != 401 or not self._has_moved():
                return response
            was_there = True
        except NodeNotRunning as error:
            if not self._has_moved_since(error):
                raise
            was_there = error.was_there
        self.close()
        return self._sent(method, target, body, headers, was_there)

    def _sent(
        self,
        method: str,
        target: str,
        body: Any,
        headers: dict[str, str],
        was_there: bool = False,
    ) -> Any:
        """Send once, or once more when a kept connection was closed while it was idle. Of a node
        that `was_there` for a try before, an error says so whatever the last try met."""
        import http.client

        for kept in (self._connection is not None, False):
            if hasattr(body, "seek"):
                body.seek(0)
            try:
                return self._exchange(method, target, body, {**headers, **self._headers()})
            except (http.client.HTTPException, OSError) as error:
                was_there |= self._connection is not None and isinstance(error, ConnectionError)
                self.close()
                if not kept or isinstance(error, TimeoutError):
                    raise self._gone(error, was_there=was_there) from None
        raise AssertionError("unreachable")

    def _exchange(self, method: str, target: str, body: Any, headers: dict[str, str]) -> Any:
        import http.client

        connection = self._connection
        if connection is None:
            connection = http.client.HTTPConnection(self._host, self._port, timeout=_TIMEOUT_S)
            connection.connect()
            self._local.kept = (os.getpid(), connection)
        connection.request(method, target, body, headers)
        return connection.getresponse()


def _host_and_port(url: str) -> tuple[str, int]:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        parts, host, port = urlsplit(""), None, None
    if parts.scheme != "http" or not host:
        raise NodeNotRunning(
            f"PAIRIO_API_URL is {url!r}",
            "use one such as http://127.0.0.1:7777, or unset it to use the node of this machine",
        )
    return host, port or 80


def target_of(path: str, query: dict[str, Any] | None) -> str:
    """Return path and query as they are asked for; what is None is left out, lists are repeated."""
    given = {k: v for k, v in (query or {}).items() if v is not None and v != []}
    return f"{path}?{urlencode(given, True, errors='surrogateescape')}" if given else path


def part(text: str) -> str:
    """Return text as one part of a path."""
    return quote(text, safe="", errors="surrogateescape") or "%20"  # nothing is another path


def refused(status: int, data: bytes) -> RequestRefused:
    """Return the error that an answer is."""
    try:
        error = json.loads(data)["error"]
        hint = error.get("hint")
        if error["code"] == "http" and status in (404, 405):  # it has no such call
            hint = "the node may be older than this program: pairio-node status, pairio --version"
        return refusal_of(error["message"], hint, error["code"], status)
    except (ValueError, KeyError, TypeError):
        return refusal_of(f"the node answered {status}", None, "http", status)
