"""A node's HTTP API with canned answers, which remembers what it was asked."""

import json
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

__all__ = ["JOB_ID", "REQUEST_ID", "Asked", "FakeNode", "Raw", "events", "job", "ranged"]

JOB_ID = "bafyreifdbt5da5hbtbhcdnnmpmaabhmlchg57ixm4opiicf7jxhfiej6ua"
REQUEST_ID = "ab" * 32


@dataclass(frozen=True)
class Asked:
    """One request as it came."""

    method: str
    path: str
    query: dict[str, str]
    token: str
    body: Any
    range: str = ""
    key: str = ""


@dataclass(frozen=True)
class Raw:
    """An answer that is not 200 with JSON. `cut` closes the connection after so many bytes."""

    body: bytes
    status: int = 200
    cut: int | None = None
    headers: dict[str, str] = field(default_factory=dict)


def events(*told: tuple[str, dict[str, Any]], cut: bool = False) -> Raw:
    """Return a stream of events; `cut`: it breaks off in the middle of what comes next."""
    text = "".join(f"event: {kind}\ndata: {json.dumps(data)}\n\n" for kind, data in told)
    body = text.encode()
    return Raw(body + b": alive\n\n" * 1000, cut=len(body)) if cut else Raw(body)


def ranged(asked: Asked, data: bytes, tag: str = '"cid"') -> Raw:
    """Return what a node answers for a file: the range that was asked for, or all of it."""
    if not asked.range:
        return Raw(data, headers={"ETag": tag})
    first, _, last = asked.range.removeprefix("bytes=").partition("-")
    start, stop = int(first), min(int(last or len(data)) + 1, len(data))
    told = {"ETag": tag, "Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"}
    if start >= len(data):
        return Raw(b"", 416, headers={**told, "Content-Range": f"bytes */{len(data)}"})
    return Raw(data[start:stop], 206, headers=told)


Answer = Any | Callable[[Asked], Any]


def job(**changed: Any) -> dict[str, Any]:
    """Return a job as a node shows it."""
    return {
        "jobId": JOB_ID,
        "requestId": REQUEST_ID,
        "runId": "cd" * 32,
        "replicated": 1,
        "inputsReplicated": True,
        "canceled": False,
        "jobUrl": f"http://127.0.0.1:1/job/{JOB_ID}",
        "serviceName": "lab",
        "status": "completed",
        "isRunnable": True,
        "isSettled": True,
        "error": None,
        "cached": False,
        "safe": True,
        "computeNodeId": "12D3KooWnode",
        "computeClientId": "12D3KooWnode",
        "attempts": [],
        "jobDefinition": {
            "appName": "hello",
            "processorName": "greet",
            "inputFiles": [],
            "outputFiles": [{"name": "output", "fileBaseName": "output.txt"}],
            "parameters": [{"name": "name", "value": "Ada"}],
        },
        "jobDefinitionHash": JOB_ID,
        "requiredResources": {"numCpus": 1, "numGpus": 0, "memoryGb": 1, "timeSec": 3600},
        "tags": ["t"],
        "consoleOutputUrl": None,
        "outputFileResults": [
            {
                "name": "output",
                "fileBaseName": "output.txt",
                "url": "http://127.0.0.1:2/ipfs/x",
                "cid": "bafkx",
                "size": 5,
            }
        ],
        **changed,
    }


@dataclass
class FakeNode:
    """Serves `answers` by (method, path); what has none is 404. Use as a context manager."""

    answers: dict[tuple[str, str], Answer] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    token: str = "secret"
    url: str = ""
    _server: ThreadingHTTPServer | None = None

    def on(self, method: str, path: str, answer: Answer) -> None:
        """Answer a request; a list of answers is given one after the other, the last for ever."""
        self.answers[method, f"/api/v1{path}"] = answer

    def calls(self, method: str, path: str) -> list[Asked]:
        """Return what was asked of one path."""
        return [a for a in self.asked if (a.method, a.path) == (method, f"/api/v1{path}")]

    def answer(self, asked: Asked) -> Raw:
        """Return what is sent for a request."""
        found = self.answers.get((asked.method, asked.path))
        if asked.token != self.token:
            return _refusal(401, "no token that allows this", "use the token", "unauthorized")
        if found is None:
            return _refusal(404, f"no {asked.path}", "look elsewhere", "not_found")
        if callable(found):
            found = found(asked)
        elif isinstance(found, list):
            found = found.pop(0) if len(found) > 1 else found[0]
        return found if isinstance(found, Raw) else Raw(json.dumps(found).encode())

    def refuse(self, method: str, path: str, status: int, message: str, hint: str) -> None:
        """Answer a request with an error."""
        self.on(method, path, _refusal(status, message, hint, "code"))

    def __enter__(self) -> "FakeNode":
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()

    def leave(self) -> None:
        """Listen no more; the same again does nothing."""
        assert self._server is not None
        self._server.shutdown()
        self._server.server_close()


def _refusal(status: int, message: str, hint: str | None, code: str) -> Raw:
    error = {"message": message, "hint": hint, "code": code}
    return Raw(json.dumps({"error": error}).encode(), status)


def _handler(node: FakeNode) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle(self) -> None:
            with suppress(BrokenPipeError, ConnectionResetError):  # a client may have gone away
                super().handle()

        def _serve(self) -> None:
            size = int(self.headers.get("Content-Length") or 0)
            data = self.rfile.read(size)
            parts = urlsplit(self.path)
            kind = self.headers.get("Content-Type", "")
            asked = Asked(
                self.command,
                unquote(parts.path),
                {key: ",".join(values) for key, values in parse_qs(parts.query).items()},
                self.headers.get("Authorization", "").removeprefix("Bearer "),
                json.loads(data) if data and kind == "application/json" else data or None,
                self.headers.get("Range", ""),
                self.headers.get("Idempotency-Key", ""),
            )
            node.asked.append(asked)
            raw = node.answer(asked)
            self.send_response(raw.status)
            self.send_header("Content-Length", str(len(raw.body)))
            for name, value in raw.headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(raw.body[: raw.cut])
            self.close_connection = raw.cut is not None

        do_GET = do_POST = do_DELETE = _serve  # noqa: N815

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    return Handler
