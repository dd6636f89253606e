"""The API on loopback: a page in the owner's browser, another user, a wrong client."""

import http.client
import json
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import trio

from tests.integration.attacks.lab import Lab
from tests.integration.attacks.table import attack

API = "The API on loopback"
_PATHS = (
    "/api/v1/jobs/..%2f..%2fnode.key",
    "/api/v1/../../node.key",
    "/ipfs/../node.key",
    "/api/v1/jobs/%2e%2e%2f%2e%2e/outputs/..%2fnode.key",
    "/open/..%2f..%2fnode.key",
    "/job/%00",
)
_NO_REQUESTS = (b"[" * 100_000, b"{", b"\xff\xfe", b'{"jobDefinition": 1}', b"null")


@dataclass(frozen=True)
class Call:
    """One request; `token` None is the right one. `answers` are the statuses that refuse it; 0 is
    a connection that was closed."""

    path: str
    answers: tuple[int, ...]
    method: str = "GET"
    body: bytes = b""
    token: str | None = None
    headers: dict[str, str] = field(default_factory=dict)

    def status(self, lab: Lab) -> int:
        """Make it and return the status."""
        found = json.loads((lab.node.home / "api.json").read_text())
        parts = urlsplit(found["url"])
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=10)
        token = found["token"] if self.token is None else self.token
        given = {"Authorization": f"Bearer {token}", "Content-Length": str(len(self.body))}
        try:
            connection.putrequest(self.method, self.path, skip_host="Host" in self.headers)
            for name, value in (given | self.headers).items():
                connection.putheader(name, value)
            connection.endheaders(self.body or None)
            return connection.getresponse().status
        except (ConnectionError, http.client.HTTPException):
            return 0
        finally:
            connection.close()


def _api(name: str, has: str, does: str, refused_by: str, *calls: Call) -> None:
    """Add a row: each of the calls is answered as it says."""

    @attack(API, name, has=has, does=does, refused_by=refused_by)
    async def attempt(lab: Lab) -> bool:
        for call in calls:
            status = await trio.to_thread.run_sync(call.status, lab)
            assert status in call.answers, f"{call.path}: answered {status}"
        return True


_STATUS = "/api/v1/status"
_api(
    "API without a token",
    "the port",
    "asks for everything",
    "answered 401",
    *(Call(f"/api/v1/{door}", (401,), token="") for door in ("status", "jobs", "services")),
    Call("/api/v1/jobs", (401,), "POST", b"{}", token=""),
)
_api(
    "API with a wrong token",
    "the port",
    "tries tokens",
    "answered 401",
    Call(_STATUS, (401,), token="x" * 43),
    Call(_STATUS, (400, 401), token="\xff" * 40),
)
_api(
    "API under another host's name (DNS rebinding)",
    "a page in the owner's browser, the token",
    "asks with its own Host",
    "answered 403",
    Call(_STATUS, (403,), headers={"Host": "evil.example"}),
)
_api(
    "API from another origin",
    "a page in the owner's browser, the token",
    "asks with its own Origin",
    "answered 403",
    Call(_STATUS, (403,), headers={"Origin": "http://evil.example"}),
    Call("/api/v1/services", (403,), "POST", b'{"name": "x"}', headers={"Origin": "null"}),
)
_api(
    "traversal in paths of the API",
    "the token",
    "asks for files above the home",
    "answered 400 or 404: no path is opened",
    *(Call(path, (307, 400, 401, 403, 404, 405)) for path in _PATHS),
)
_api(
    "a body of 100 MB for the API",
    "the token",
    "submits it",
    "answered 413, or the connection is closed",
    Call("/api/v1/jobs/batch", (0, 413), "POST", b" " * 100_000_000),
)
_api(
    "bodies that are no requests",
    "the token",
    "submits nested and broken JSON",
    "answered 400 or 422",
    *(Call("/api/v1/jobs", (400, 422), "POST", body) for body in _NO_REQUESTS),
)
