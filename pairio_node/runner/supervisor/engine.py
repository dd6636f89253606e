"""A small client of the API that Docker and Podman both speak, over a unix socket.

HTTP/1.0: one request a connection, the answer ends with it. Paths carry no version, since engines
drop old ones; what is used here has been the same since 2016.
"""

import json
import socket
from collections.abc import Iterable, Iterator
from typing import Any
from urllib.parse import quote, urlencode

__all__ = ["Engine", "EngineError"]

_ANSWER_BYTES_MAX = 8 * 2**20
_HEAD_BYTES_MAX = 64 * 1024
_TIMEOUT_S = 60.0


class EngineError(Exception):
    """The engine refused, or is not there. `status` is 0 when it gave no answer."""

    def __init__(self, status: int, said: str) -> None:
        super().__init__(said)
        self.status = status


class Engine:
    """One engine. Calls block; `path` is the socket's."""

    def __init__(self, path: str) -> None:
        self.path = path

    def ask(
        self,
        method: str,
        path: str,
        query: dict[str, str] | None = None,
        body: Any = None,
        timeout_s: float = _TIMEOUT_S,
    ) -> Any:
        """Return what the engine answers, read as JSON where it is.

        Raises:
            EngineError: it refused, or gave no answer in time.
        """
        data = b"" if body is None else json.dumps(body).encode()
        kind = "application/json"
        return self.send(method, path, query, kind, len(data), [data], timeout_s)

    def send(
        self,
        method: str,
        path: str,
        query: dict[str, str] | None,
        kind: str,
        size_bytes: int,
        pieces: Iterable[bytes],
        timeout_s: float = _TIMEOUT_S,
    ) -> Any:
        """Send a body piece by piece. `timeout_s` bounds each wait for the engine.

        Raises:
            EngineError: it refused, or gave no answer in time.
        """
        try:
            with self._connected(timeout_s) as connection:
                _put(connection, method, path, query, kind, size_bytes)
                try:
                    for piece in pieces:
                        connection.sendall(piece)
                except (BrokenPipeError, ConnectionResetError):
                    pass  # it has heard enough; its answer says why
                status, rest = _head(connection)
                return _answer(status, _rest(connection, rest))
        except OSError as error:
            raise EngineError(0, f"the engine at {self.path} does not answer: {error}") from None

    def download(self, path: str, timeout_s: float = _TIMEOUT_S) -> Iterator[bytes]:
        """Yield a long answer piece by piece.

        Raises:
            EngineError: it refused, or gave no answer in time.
        """
        try:
            with self._connected(timeout_s) as connection:
                _put(connection, "GET", path, None, "text/plain", 0)
                status, data = _head(connection)
                if status != 200:
                    _answer(status, _rest(connection, data))
                while data or (data := connection.recv(1024 * 1024)):
                    yield data
                    data = b""
        except OSError as error:
            raise EngineError(0, f"the engine at {self.path} does not answer: {error}") from None

    def attach(self, name: str) -> tuple[socket.socket, bytes]:
        """Return a connection that carries what a container writes, and what came of it already.

        Raises:
            EngineError: it refused, or gave no answer in time.
        """
        connection: socket.socket | None = None
        try:
            connection = self._connected(_TIMEOUT_S)
            query = {"stream": "1", "stdout": "1", "stderr": "1"}
            _put(connection, "POST", f"/containers/{quote(name)}/attach", query, "text/plain", 0)
            status, rest = _head(connection)
            if status not in (101, 200):
                _answer(status, _rest(connection, rest))
        except OSError as error:
            if connection is not None:
                connection.close()
            raise EngineError(0, f"the engine at {self.path} does not answer: {error}") from None
        except EngineError:
            if connection is not None:
                connection.close()
            raise
        return connection, rest

    def remove(self, name: str, timeout_s: float = _TIMEOUT_S) -> None:
        """Kill and remove a container; fine when there is none.

        Raises:
            EngineError: it is still there.
        """
        try:
            query = {"force": "1", "v": "1"}
            self.ask("DELETE", f"/containers/{quote(name)}", query, timeout_s=timeout_s)
        except EngineError as error:
            if error.status != 404:
                raise

    def _connected(self, timeout_s: float) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(timeout_s)
        try:
            connection.connect(self.path)
        except OSError:
            connection.close()
            raise
        return connection


def _put(
    connection: socket.socket,
    method: str,
    path: str,
    query: dict[str, str] | None,
    kind: str,
    size_bytes: int,
) -> None:
    target = path + ("?" + urlencode(query) if query else "")
    lines = [f"{method} {target} HTTP/1.0", "Host: engine", f"Content-Type: {kind}"]
    lines.append(f"Content-Length: {size_bytes}")
    connection.sendall("\r\n".join([*lines, "", ""]).encode())


def _head(connection: socket.socket) -> tuple[int, bytes]:
    """Read status and headers; return the status and what follows them."""
    head = b""
    while b"\r\n\r\n" not in head:
        data = connection.recv(65536)
        if not data or len(head) > _HEAD_BYTES_MAX:
            raise EngineError(0, "the engine gave no answer that can be read")
        head += data
    head, _, rest = head.partition(b"\r\n\r\n")
    try:
        return int(head.split(None, 2)[1]), rest
    except (IndexError, ValueError):
        raise EngineError(0, "the engine gave no answer that can be read") from None


def _rest(connection: socket.socket, data: bytes) -> bytes:
    while piece := connection.recv(65536):
        data += piece
        if len(data) > _ANSWER_BYTES_MAX:
            raise EngineError(0, "the engine's answer is too long")
    return data


def _answer(status: int, data: bytes) -> Any:
    text = data.decode(errors="replace").strip()
    try:
        value = json.loads(text) if text else None
    except ValueError:
        value = text
    if status >= 400 or status < 200:
        said = value.get("message") if isinstance(value, dict) else text
        raise EngineError(status, str(said or f"status {status}")[:1000])
    return value
