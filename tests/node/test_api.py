"""The HTTP API over a facade that is none, called as ASGI: no network, no node."""

import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import trio
from fastapi import FastAPI
from fastapi.routing import APIRoute

from pairio_node.api import auth as auth_module
from pairio_node.api.app import make_app
from pairio_node.api.auth import COOKIE, Auth
from pairio_node.api.content import make_gateway
from pairio_node.api.links import Links
from pairio_node.errors import NotFoundError, StorageFullError
from pairio_node.search import JobQuery
from pairio_node.serving import Found, Item
from pairio_node.watching import WatchQuery

PORT, GATEWAY_PORT = 7777, 7778
CID = "bafkreibm6jg3ux5qumhcn2b3flc3tyu6dmlb4xa7u5bf44yegnrjhc4yeq"
CONTENT = b"0123456789"
JOB = {
    "jobId": "bafyjob",
    "status": "completed",
    "cached": False,
    "safe": True,
    "serviceName": "<lab>",
    "computeNodeId": "12D3KooW",
    "error": None,
    "jobDefinition": {"appName": "a", "processorName": "<script>alert(1)</script>"},
    "outputFileResults": [
        {
            "name": "o",
            "fileBaseName": "o.txt",
            "url": "http://127.0.0.1:1/'x",
            "cid": CID,
            "size": 3,
        }
    ],
}


class FakeInsight:
    """Plans, explanations and graphs, and what was asked of them."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.plans = self.explain = self.graphs = self
        self.batches: Any = FakeBatches(self.asked)
        self.nodes: Any = self.batches

    async def plan(self, body: dict[str, Any]) -> dict[str, Any]:
        self.asked.append(("plan", body["jobDefinition"]["appName"], body["skipCache"]))
        return {"isHit": False}

    async def job(self, job_id: str, service: str | None, other: str | None) -> dict[str, Any]:
        self.asked.append(("explain", job_id, service, other))
        return {"isHit": True}

    def of(self, job_id: str, service: str | None) -> dict[str, Any]:
        self.asked.append(("graph", job_id, service))
        return {"jobs": []}


class FakeBatches:
    """Batches, and nodes."""

    def __init__(self, asked: list[tuple[Any, ...]]) -> None:
        self.asked = asked

    def all(self, service: str | None, limit: int | None = None) -> Any:
        self.asked.append(("all", service, limit))
        return self._later() if limit is not None else []

    async def _later(self) -> list[Any]:
        return []

    async def one(self, batch: str, service: str | None) -> dict[str, Any]:
        self.asked.append(("batch", batch, service))
        return {"batchId": batch}

    async def cancel(self, batch: str, service: str | None) -> dict[str, Any]:
        self.asked.append(("cancel", batch, service))
        return {"batchId": batch}


class FakeConsoles:
    """A job whose second attempt says a word of several bytes in two pieces."""

    async def _events(self) -> AsyncIterator[dict[str, Any]]:
        yield {"type": "status", "status": "running", "error": None}
        yield {"type": "attempt", "attemptId": "a2", "number": 2, "computeNodeId": "12D3KooW"}
        yield {"type": "output", "attemptId": "a2", "offset": 0, "data": b"gr\xc3"}
        yield {"type": "alive"}
        yield {"type": "output", "attemptId": "a2", "offset": 3, "data": b"\xbcn"}
        yield {"type": "gap", "attemptId": "a2", "bytes": 9}
        yield {"type": "output", "attemptId": "a2", "offset": 14, "data": b"end\n"}
        yield {"type": "end", "status": "failed", "error": "it broke"}

    def follow(
        self, job_id: str, service: str | None, attempt: str | None, offset: int, *, follow: bool
    ) -> AsyncIterator[dict[str, Any]]:
        self.asked: tuple[Any, ...] = (job_id, service, attempt, offset, follow)
        return self._events()


class FakeJoins:
    """What may be read of joining; the rest is in tests/node/test_joins.py."""

    def all(self) -> list[dict[str, Any]]:
        return []

    def invitations(self, service: str) -> list[dict[str, Any]]:
        return []

    def requests(self, service: str) -> list[dict[str, Any]]:
        return []

    async def joined(self, service: str, wait_s: float) -> dict[str, Any]:
        return {"state": "joined"}


class FakeCache:
    """The cache of one node with one pin."""

    def __init__(self, asked: list[tuple[Any, ...]]) -> None:
        self.asked = asked

    async def stats(self) -> dict[str, Any]:
        return {"usedBytes": 1}

    async def ls(self, limit: int) -> dict[str, Any]:
        self.asked.append(("ls", limit))
        return {"roots": [], "count": 0}

    async def gc(self, *, everything: bool, dry: bool) -> dict[str, Any]:
        self.asked.append(("gc", everything, dry))
        return {"freedBytes": 0}

    async def pin(self, name: str, service: str | None) -> dict[str, Any]:
        self.asked.append(("pin", name, service))
        return {"name": name}

    def unpin(self, name: str) -> dict[str, Any]:
        if name != "bafyjob":
            raise NotFoundError(f"{name!r} is not pinned", hint="see the pins")
        return {"name": name}

    def all_pins(self) -> dict[str, Any]:
        return {"pins": [{"name": "bafyjob"}]}


class FakeResults:
    """Knows one result, and what is in a file."""

    async def one(self, name: str, service: str | None) -> dict[str, Any]:
        return {"jobId": name}

    async def rests(self, name: str, service: str | None, *, ask: bool) -> Any:
        if name == "bafygone":
            raise NotFoundError("no job or result 'bafygone'", hint="pairio job ls")
        return name

    def provenance(self, rests: Any, form: str) -> str:
        return f"{form} of {rests}"

    async def bring(self, rests: Any) -> AsyncIterator[dict[str, Any]]:
        yield {"progress": {"fetching": True}}

    async def verify(self, rests: Any, *, offline: bool) -> AsyncIterator[dict[str, Any]]:
        yield {"check": "verified", "ok": True, "offline": offline}

    async def export(self, rests: Any) -> AsyncIterator[bytes]:
        async def car() -> AsyncIterator[bytes]:
            yield b"car"

        return car()

    async def import_(self, chunks: AsyncIterator[bytes]) -> dict[str, Any]:
        return {"size": sum([len(chunk) async for chunk in chunks])}


class FakePublishing:
    """What may be read of public content; the rest is in tests/node/test_publishing.py."""

    def published(self) -> dict[str, Any]:
        return {"published": [], "services": []}

    def policy(self, service: str) -> dict[str, Any]:
        return {"results": "members"}


class FakeReferences:
    """What may be read of referenced files; the rest is in tests/node/test_references.py."""

    async def all(self) -> list[dict[str, Any]]:
        return []


class FakeDraining:
    """A node with two runs that is asked to drain."""

    def __init__(self) -> None:
        self.waits: list[float | None] = []

    def begin(self, wait_s: float | None) -> dict[str, Any]:
        self.waits.append(wait_s)
        return {"running": 2}


class FakeJobs:
    """Knows one job."""

    def __init__(self, asked: list[tuple[Any, ...]]) -> None:
        self._asked = asked

    async def find_or_look(self, job_id: str, service: str | None) -> dict[str, Any]:
        return self.one(job_id, service)

    def one(self, job_id: str, service: str | None) -> dict[str, Any]:
        if job_id != "bafyjob":
            raise NotFoundError(f"no job {job_id!r} on this node", hint="pairio job ls")
        return JOB

    def why(self, job_id: str, service: str | None) -> dict[str, Any]:
        return {"jobId": self.one(job_id, service)["jobId"]}

    async def cancel(self, job_id: str, service: str | None) -> dict[str, Any]:
        return self.one(job_id, service)

    async def wait(self, job_id: str, service: str | None, timeout_s: float) -> dict[str, Any]:
        self._asked.append(("wait", timeout_s))
        return self.one(job_id, service)

    async def console(self, job_id: str, service: str | None) -> AsyncIterator[bytes]:
        yield b"<b>line</b>\n"

    async def output_cid(
        self, job_id: str, service: str | None, output: str, *, some: bool = False
    ) -> tuple[str, str, int]:
        self.one(job_id, service)
        if output != "o":
            raise NotFoundError(f"job {job_id} has no output {output!r}", hint="outputs: o")
        return CID, "o.html", len(CONTENT)


class FakeFiles:
    """Knows one file."""

    def __init__(self, asked: list[tuple[Any, ...]]) -> None:
        self._asked = asked

    async def read(
        self, cid: str, start: int, stop: int, root: str | None = None
    ) -> AsyncIterator[bytes]:
        yield CONTENT[start:stop]

    async def look(self, cid: str, path: Sequence[str] = (), root: str | None = None) -> Found:
        if cid != CID or path:
            raise NotFoundError(f"nobody has {cid}")
        return Found(cid, len(CONTENT), False)

    async def entries(self, cid: str, root: str | None = None) -> list[Item]:
        return []

    async def add_folder(self, entries: Sequence[tuple[str, str | None]]) -> tuple[str, int]:
        self._asked.append(("add_folder", entries))
        return CID, 0

    async def block(self, cid: str) -> bytes:
        return CONTENT

    async def add(self, chunks: AsyncIterator[bytes]) -> tuple[str, int]:
        size = 0
        async for chunk in chunks:
            size += len(chunk)
            if size > 10 * 2**20:
                raise StorageFullError("the quota is full", hint="raise quota_bytes")
        return CID, size


class FakeFacade:
    """Answers as a node would, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.jobs, self.files = FakeJobs(self.asked), FakeFiles(self.asked)
        self.joins: Any = FakeJoins()
        self.consoles = FakeConsoles()
        self.draining = FakeDraining()
        self.insight = FakeInsight()
        self.public: Any = None
        self.cache: Any = FakeCache(self.asked)
        self.results: Any = FakeResults()
        self.cars: Any = self.results
        self.publishing: Any = FakePublishing()
        self.referenced: Any = FakeReferences()

    def status(self) -> dict[str, Any]:
        return {"peerId": "12D3KooWme", "services": ["lab"]}

    @property
    def submits(self) -> "FakeMany":
        return FakeMany(self)

    @property
    def search(self) -> "FakeMany":
        return FakeMany(self)

    @property
    def hiding(self) -> "FakeMany":
        return FakeMany(self)

    @property
    def watching(self) -> "FakeMany":
        return FakeMany(self)

    @property
    def url_pins(self) -> "FakeMany":
        return FakeMany(self)

    @property
    def services(self) -> "FakeFacade":
        return self

    def all(self) -> list[dict[str, Any]]:
        return [{"serviceName": "lab"}]

    def one(self, name: str) -> dict[str, Any]:
        if name != "lab":
            raise NotFoundError(f"no service {name!r} on this node", hint="services here: lab")
        return {"serviceName": name}

    def offers(self) -> list[dict[str, Any]]:
        return []

    async def create(self, name: str) -> dict[str, Any]:
        self.asked.append(("create", name))
        return {"serviceName": name}

    async def accept(self, name: str) -> dict[str, Any]:
        return self.one(name)

    def apps(self, service: str) -> list[dict[str, Any]]:
        return [self.one(service)]

    async def install_app(self, service: str, source: str, image: str | None) -> dict[str, Any]:
        return {"appName": source, **self.one(service)}

    @property
    def admins(self) -> "FakeAdmins":
        return FakeAdmins(self)


class FakeMany:
    """Submits, search, hiding, changes: of what `FakeFacade` knows."""

    def __init__(self, facade: FakeFacade) -> None:
        self._facade = facade

    async def submit(self, body: dict[str, Any], key: str = "") -> dict[str, Any]:
        self._facade.asked.append(("submit", body, key))
        return JOB

    def newest(self, query: JobQuery) -> list[dict[str, Any]]:
        self._facade.asked.append(("jobs", query))
        return [JOB]

    async def page(self, query: JobQuery) -> dict[str, Any]:
        self._facade.asked.append(("jobs", query))
        return {"jobs": [JOB], "nextCursor": None}

    async def by_definition(self, definition: Any, service: str | None) -> dict[str, Any]:
        return {"jobId": "bafyjob", "job": None}

    def hide_job(self, job_id: str, service: str | None) -> list[str]:
        return [self._facade.jobs.one(job_id, service)["jobId"]]

    def open(self, query: WatchQuery) -> AsyncIterator[bytes]:
        self._facade.asked.append(("watch", query))

        async def events() -> AsyncIterator[bytes]:
            yield b"event: ready\ndata: {}\n\n"

        return events()

    async def add(self, url: str) -> dict[str, Any]:
        return {"cid": CID, "size": len(url), "etag": None}


class FakeAdmins:
    """Answers every act with its name, the service and what it was given."""

    def __init__(self, facade: FakeFacade) -> None:
        self._facade = facade

    def _answer(self, name: str, service: str, *given: Any) -> dict[str, Any]:
        self._facade.asked.append((name, given))
        return {"act": name, **self._facade.one(service)}

    async def grant(self, service: str, who: str, roles: list[str], name: str | None) -> Any:
        return self._answer("grant", service, who, roles, name)

    async def revoke(
        self, service: str, who: str, roles: list[str] | None, since_unix_ms: int | None
    ) -> Any:
        return self._answer("revoke", service, who, roles, since_unix_ms)

    async def rename_member(self, service: str, member: str, name: str) -> Any:
        return self._answer("rename_member", service, member, name)

    async def rename_here(self, service: str, name: str) -> Any:
        return self._answer("rename_here", service, name)

    async def set_admins(self, service: str, admins: list[str], threshold: int) -> Any:
        return self._answer("set_admins", service, admins, threshold)

    async def end(self, service: str) -> Any:
        return self._answer("end", service)

    async def sign_over(self, service: str) -> Any:
        return self._answer("sign_over", service)

    async def remove_app(self, service: str, app: str) -> Any:
        return self._answer("remove_app", service, app)

    def proposals(self, service: str) -> list[Any]:
        return [self._answer("proposals", service)]

    def look(self, service: str, proposal: str, data: str | None) -> Any:
        return self._answer("look", service, proposal, data)

    async def sign(self, service: str, proposal: str, data: str | None) -> Any:
        return self._answer("sign", service, proposal, data)

    async def withdraw(self, service: str, proposal: str) -> Any:
        return self._answer("withdraw", service, proposal)

    async def renew(self, service: str, proposal: str) -> Any:
        return self._answer("renew", service, proposal)

    def log(self, service: str, *, with_changes: bool) -> Any:
        return self._answer("log", service, with_changes)

    def app_history(self, service: str, app: str | None) -> list[Any]:
        return [self._answer("app_history", service, app)]


@dataclass
class Answer:
    """What a call was answered with; `was_read` says whether its body was asked for."""

    status: int = 0
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""
    was_read: bool = False

    def header(self, name: str) -> str:
        return dict(self.headers).get(name, "")

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The error in the one form that errors have."""
        error = self.json["error"]
        assert set(self.json) == {"error"}
        assert set(error) == {"message", "hint", "code"}
        return error  # type: ignore[no-any-return]


async def call(
    app: Any,
    method: str,
    target: str,
    headers: dict[str, str],
    body: bytes = b"",
    answer: Answer | None = None,
) -> Answer:
    """Make one HTTP request of an ASGI app; `answer` is filled also when the app raises."""
    parts, answer = urlsplit(target), answer or Answer()
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": headers.pop(":version", "1.1"),
        "method": method,
        "scheme": "http",
        "path": unquote(parts.path),
        "raw_path": parts.path.encode(),
        "query_string": parts.query.encode(),
        "headers": [(k.lower().encode(), v.encode("latin-1")) for k, v in headers.items()],
        "server": ("127.0.0.1", PORT),
        "client": ("127.0.0.1", 50000),
    }

    async def receive() -> dict[str, Any]:
        if answer.was_read:
            await trio.sleep_forever()  # no more comes, and nobody goes away
        answer.was_read = True
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            answer.status = message["status"]
            answer.headers = [(k.decode(), v.decode("latin-1")) for k, v in message["headers"]]
        else:
            answer.body += message.get("body", b"")

    await app(scope, receive, send)
    return answer


class Client:
    """Calls the API as the node's owner would, unless told otherwise."""

    def __init__(self, tmp_path: Path) -> None:
        self.facade = FakeFacade()
        self.auth = Auth("main", tmp_path / "tokens.json", PORT)
        self.app: FastAPI = make_app(self.facade, self.auth)
        self.last = Answer()

    async def __call__(
        self, method: str, target: str, body: Any = None, **headers: str | None
    ) -> Answer:
        data = (
            body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        )
        given: dict[str, str | None] = {
            "host": f"127.0.0.1:{PORT}",
            "authorization": "Bearer main",
            "content-type": "application/json",
            "content-length": str(len(data)),
            **{key.replace("_", "-"): value for key, value in headers.items()},
        }
        if given.get("-version"):
            given[":version"] = given.pop("-version")
        sent = {key: value for key, value in given.items() if value is not None}
        self.last = Answer()
        return await call(self.app, method, target, sent, data, self.last)


@pytest.fixture
def api(tmp_path: Path) -> Client:
    return Client(tmp_path)


def _routes(app: FastAPI) -> list[tuple[str, str]]:
    return [
        (method, route.path)
        for route in app.routes
        if isinstance(route, APIRoute)
        for method in sorted(route.methods or ())
    ]


def _filled(path: str) -> str:
    filled = path.replace("{name:path}", "o").replace("{job_id}", "bafyjob").replace("{cid}", CID)
    filled = filled.replace("{app_name}", "a").replace("{proposal}", "x")
    return filled.replace("{name}", "lab")


# -- tokens ----------------------------------------------------------------------------------


async def test_a_call_needs_the_main_token_or_one_that_was_made(api: Client) -> None:
    assert (await api("GET", "/api/v1/status")).status == 200
    for wrong in (None, "", "Bearer", "Bearer wrong", "Basic main", "main", "Bearer Bearer main"):
        refused = await api("GET", "/api/v1/status", authorization=wrong)
        assert refused.status == 401
        assert "pairio token create" in refused.error["hint"]
    of_two = {"authorization": "Bearer wrong", "Authorization": "Bearer main"}
    assert (await api("GET", "/api/v1/status", **of_two)).status == 401  # the first one counts
    made = await api("POST", "/api/v1/tokens", {"name": "notebook"})
    token = made.json["token"]
    assert (await api("GET", "/api/v1/status", authorization=f"Bearer {token}")).status == 200
    assert (await api("GET", "/api/v1/status", authorization=f"Bearer: {token}")).status == 200


async def test_tokens_are_kept_as_hashes_that_only_the_owner_reads(
    api: Client, tmp_path: Path
) -> None:
    token = (await api("POST", "/api/v1/tokens", {"name": "n"})).json["token"]
    file = tmp_path / "tokens.json"
    assert token not in file.read_text()
    assert file.stat().st_mode & 0o777 == 0o600
    assert [p.name for p in tmp_path.iterdir()] == ["tokens.json"]


async def test_a_read_only_token_reads_and_does_nothing_else(api: Client) -> None:
    made = await api("POST", "/api/v1/tokens", {"name": "n", "readOnly": True})
    reader = f"Bearer {made.json['token']}"
    for method, path in _routes(api.app):
        if not path.startswith("/api/"):
            continue
        answer = await api(method, _filled(path), {}, authorization=reader)
        if method == "GET":
            assert answer.status == 200, path
        else:
            assert (answer.status, answer.error["code"]) == (403, "forbidden"), path
            assert "only reads" in answer.error["message"]
            assert not answer.was_read


async def test_a_node_is_drained_with_or_without_an_end_of_its_patience(api: Client) -> None:
    assert (await api("POST", "/api/v1/drain", {})).json == {"running": 2}
    await api("POST", "/api/v1/drain", {"waitSec": 0})
    assert (await api("POST", "/api/v1/drain", {"waitSec": -1})).status == 422
    assert api.facade.draining.waits == [None, 0]


async def test_results_are_lines_and_files(api: Client) -> None:
    checked = await api("GET", "/api/v1/results/bafyjob/verify?offline=true")
    assert (checked.status, json.loads(checked.body)["offline"]) == (200, True)
    assert checked.header("content-type") == "application/x-ndjson"
    gone = await api("GET", "/api/v1/results/bafygone/verify")
    assert (gone.status, gone.error["hint"]) == (404, "pairio job ls")
    assert (await api("GET", "/api/v1/results/bafyjob/export")).body == b"car"
    drawn = await api("GET", "/api/v1/results/bafyjob/provenance?format=dot")
    assert (drawn.body, drawn.header("content-type")[:17]) == (
        b"dot of bafyjob",
        "text/vnd.graphviz",
    )
    assert (await api("GET", "/api/v1/results/bafyjob/provenance?format=x")).status == 422


async def test_a_token_ends_when_it_expires(api: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    made = await api("POST", "/api/v1/tokens", {"name": "n", "expiresSec": 60})
    bearer = f"Bearer {made.json['token']}"
    assert (await api("GET", "/api/v1/status", authorization=bearer)).status == 200
    later = time.time() + 61
    monkeypatch.setattr(time, "time", lambda: later)
    expired = await api("GET", "/api/v1/status", authorization=bearer)
    assert (expired.status, "expired" in expired.error["message"]) == (401, True)


@pytest.mark.parametrize("text", ["garbage", "{}x", '[{"name": "n"}]', "[1]", "7"])
async def test_a_corrupt_file_of_tokens_is_said_and_the_owner_still_gets_in(
    text: str, api: Client, tmp_path: Path
) -> None:
    (tmp_path / "tokens.json").write_text(text)
    assert (await api("GET", "/api/v1/status")).status == 200
    other = await api("GET", "/api/v1/status", authorization="Bearer other")
    assert other.status == 400
    assert "tokens.json is corrupt" in other.error["message"]


# -- Host and Origin -------------------------------------------------------------------------


async def test_host_and_origin_are_checked_on_every_route_and_method(api: Client) -> None:
    routes = [*_routes(api.app), ("GET", "/openapi.json"), ("OPTIONS", "/api/v1/jobs")]
    routes += [("PUT", "/api/v1/status"), ("HEAD", "/"), ("GET", "/nowhere")]
    assert len(routes) > 20
    for method, path in routes:
        for wrong in (
            {"host": "evil.example"},
            {"host": f"evil.example:{PORT}"},
            {"host": "127.0.0.1:1"},
            {"host": None},
            {"origin": "http://evil.example"},
            {"origin": f"http://127.0.0.1:{GATEWAY_PORT}"},
            {"origin": "null"},
            {"origin": f"https://127.0.0.1:{PORT}"},
        ):
            refused = await api(method, _filled(path), {}, **wrong)
            assert (refused.status, refused.error["code"]) == (403, "forbidden"), (method, path)
            assert not refused.was_read
    assert api.facade.asked == []


async def test_this_machines_names_and_pages_are_taken(api: Client) -> None:
    for name in ("127.0.0.1", "localhost", "[::1]"):
        own = await api(
            "GET", "/api/v1/status", host=f"{name}:{PORT}", origin=f"http://{name}:{PORT}"
        )
        assert own.status == 200


# -- pages: one-time link, cookie --------------------------------------------------------------


async def _open(api: Client, path: str) -> tuple[str, Answer]:
    made = await api("POST", "/api/v1/links", {"path": path})
    target = urlsplit(made.json["url"]).path
    return target, await api("GET", target, authorization=None)


async def test_a_link_opens_once_and_leaves_a_cookie_that_scripts_and_sites_do_not_get(
    api: Client,
) -> None:
    target, opened = await _open(api, "/job/bafyjob")
    assert (opened.status, opened.header("location")) == (303, "/job/bafyjob")
    cookie = opened.header("set-cookie")
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    again = await api("GET", target, authorization=None)
    assert (again.status, again.header("set-cookie")) == (401, "")


async def test_a_link_is_good_for_a_minute(api: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    made = await api("POST", "/api/v1/links", {"path": "/"})
    later = time.monotonic() + 61
    monkeypatch.setattr(time, "monotonic", lambda: later)
    opened = await api("GET", urlsplit(made.json["url"]).path, authorization=None)
    assert (opened.status, opened.header("set-cookie")) == (401, "")


@pytest.mark.parametrize("path", ["http://evil.example", "//evil.example", "/\\evil", "job", ""])
async def test_a_link_leads_to_this_node_only(path: str, api: Client) -> None:
    refused = await api("POST", "/api/v1/links", {"path": path})
    assert (refused.status, "not of this node" in refused.error["message"]) == (400, True)


async def test_links_and_sessions_are_bounded(api: Client) -> None:
    _, first = await _open(api, "/")
    for _ in range(auth_module._SESSIONS_MAX):
        api.auth.use_link(api.auth.make_link("/"))
    cookie = first.header("set-cookie").split(";")[0]
    assert (await api("GET", "/", cookie=cookie)).status == 401
    for _ in range(auth_module._LINKS_MAX):
        api.auth.make_link("/")
    assert (await api("POST", "/api/v1/links", {"path": "/"})).status == 400


async def test_a_page_without_a_cookie_says_what_to_run(api: Client) -> None:
    for cookie in (None, f"{COOKIE}=wrong"):
        refused = await api("GET", "/job/<b>x", cookie=cookie)
        assert refused.status == 401
        assert b"pairio open &lt;b&gt;x" in refused.body
        assert "default-src 'none'" in refused.header("content-security-policy")


async def test_a_page_shows_the_job_with_everything_escaped(api: Client) -> None:
    _, opened = await _open(api, "/job/bafyjob")
    cookie = opened.header("set-cookie").split(";")[0]
    page = await api("GET", "/job/bafyjob", cookie=cookie, authorization=None)
    assert page.status == 200
    assert b"<script" not in page.body
    assert b"&lt;script&gt;" in page.body
    assert b"&lt;b&gt;line" in page.body
    assert b"&lt;lab&gt;" in page.body
    assert b"href='http://127.0.0.1:1/&#x27;x'" in page.body
    assert page.header("x-content-type-options") == "nosniff"


async def test_a_cookie_is_no_token_and_a_token_no_cookie(api: Client) -> None:
    _, opened = await _open(api, "/")
    cookie = opened.header("set-cookie").split(";")[0]
    assert (await api("GET", "/", cookie=cookie, authorization=None)).status == 200
    for method, path in _routes(api.app):
        if path.startswith("/api/"):
            refused = await api(method, _filled(path), cookie=cookie, authorization=None)
            assert refused.status == 401, path
    assert (await api("GET", "/")).status == 401


# -- bodies and errors -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        {"content_length": str(9 * 2**20)},
        {"content_length": "9" * 30},
        {"content_length": "-1"},
        {"content_length": "x"},
        {"content_length": None, "transfer_encoding": "chunked"},
        {"content_length": "0", "transfer_encoding": "chunked"},
        {"content_length": None, "_version": "2"},
    ],
    ids=str,
)
async def test_a_body_too_large_or_of_no_length_is_refused_before_it_is_read(
    headers: dict[str, str | None], api: Client
) -> None:
    for path in ("/api/v1/jobs", "/api/v1/services", "/api/v1/tokens", "/api/v1/links"):
        refused = await api("POST", path, b"{}", **headers)
        assert (refused.status, refused.error["code"]) == (413, "size")
        assert not refused.was_read
    assert api.facade.asked == []


async def test_content_is_read_as_it_comes_up_to_the_quota(api: Client) -> None:
    added = await api("POST", "/api/v1/content", b"x" * 9 * 2**20)
    assert added.json == {"cid": CID, "size": 9 * 2**20}
    full = await api("POST", "/api/v1/content", b"x" * 11 * 2**20)
    assert (full.status, full.error["code"]) == (507, "storage_full")


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "says"),
    [
        ("GET", "/api/v1/jobs/bafygone", None, 404, "no job 'bafygone'"),
        ("GET", "/api/v1/jobs/bafygone/wait", None, 404, "no job 'bafygone'"),
        ("GET", "/api/v1/jobs/bafygone/why", None, 404, "no job 'bafygone'"),
        ("GET", "/api/v1/jobs/bafygone/console", None, 404, "no job 'bafygone'"),
        ("GET", "/api/v1/jobs/bafygone/outputs/o", None, 404, "no job 'bafygone'"),
        ("GET", "/api/v1/jobs/bafyjob/outputs/nix", None, 404, "no output 'nix'"),
        ("POST", "/api/v1/jobs/bafygone/cancel", None, 404, "no job 'bafygone'"),
        ("GET", "/api/v1/services/nix", None, 404, "no service 'nix'"),
        ("GET", "/api/v1/services/nix/apps", None, 404, "no service 'nix'"),
        ("POST", "/api/v1/services/nix/accept", None, 404, "no service 'nix'"),
        ("GET", "/api/v1/nix", None, 404, "GET /api/v1/nix"),
        ("GET", "/api/v1/jobs/", None, 404, "GET /api/v1/jobs/"),
        ("PUT", "/api/v1/jobs", None, 405, "PUT /api/v1/jobs"),
        ("GET", "/api/v1/jobs?limit=x", None, 422, "limit"),
        ("GET", "/api/v1/jobs?limit=0", None, 422, "limit"),
        ("GET", "/api/v1/jobs?status=lost", None, 422, "status"),
        ("DELETE", "/api/v1/jobs/bafygone", None, 404, "no job 'bafygone'"),
        ("POST", "/api/v1/jobs/find", {"jobDefinition": 7}, 422, "jobDefinition"),
        ("POST", "/api/v1/content/urls", {"url": "x" * 10_000}, 422, "url"),
        ("POST", "/api/v1/services", {}, 422, "name"),
        ("POST", "/api/v1/services", {"name": 1}, 422, "name"),
        ("POST", "/api/v1/services", {"name": "a", "more": 1}, 422, "more"),
        ("POST", "/api/v1/services", b"{", 422, "JSON"),
        ("POST", "/api/v1/services", b"\xff", 400, "body"),
        ("POST", "/api/v1/services", b"[" * 100_000, 400, "body"),
        ("POST", "/api/v1/services", b"", 422, "body"),
        ("POST", "/api/v1/services", b'{"name": "\\ud800"}', 422, "name"),
        ("POST", "/api/v1/tokens", {"name": "n", "expiresSec": 10**20}, 422, "expiresSec"),
        ("POST", "/api/v1/jobs", {}, 422, "jobDefinition"),
    ],
)
async def test_what_cannot_be_done_is_said_in_one_form(
    method: str, path: str, body: Any, status: int, says: str, api: Client
) -> None:
    refused = await api(method, path, body)
    assert refused.status == status
    assert says in refused.error["message"]
    assert refused.error["hint"]


def _wish(**changed: Any) -> dict[str, Any]:
    return {"jobDefinition": {"appName": "a", "processorName": "p"}, **changed}


@pytest.mark.parametrize(
    "changed",
    [
        {"requiredResources": {"numCpus": 0}},
        {"requiredResources": {"numGpus": 1.5}},
        {"requiredResources": {"memoryGb": "much"}},
        {"requiredResources": {"timeSec": 1e300}},
        {"requiredResources": {"ram": 1}},
        {"tags": "t"},
        {"tags": ["t"] * 65},
        {"tags": ["t" * 201]},
        {"tags": ["\ud800"]},
        {"batchId": "b" * 201},
        {"targetComputeClientIds": ["p"] * 65},
        {"jobDefinition": {"appName": "a", "processorName": "p", "parameters": [{"value": 1}]}},
        {"jobDefinition": {"appName": "a", "processorName": "p", "inputFiles": [{"name": "i"}]}},
        {"skip_cache": True},
    ],
    ids=str,
)
async def test_a_wish_that_is_none_is_refused(changed: dict[str, Any], api: Client) -> None:
    assert (await api("POST", "/api/v1/jobs", _wish())).status == 200
    refused = await api("POST", "/api/v1/jobs", _wish(**changed))
    assert (refused.status, refused.error["code"]) == (422, "invalid")
    assert len(api.facade.asked) == 1


async def test_not_a_number_as_a_resource_is_refused(api: Client) -> None:
    body = b'{"jobDefinition": {"appName": "a", "processorName": "p"},'
    refused = await api("POST", "/api/v1/jobs", body + b'"requiredResources": {"numCpus": NaN}}')
    assert refused.status == 422


async def test_a_bug_is_said_without_its_insides(
    api: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> dict[str, Any]:
        raise RuntimeError("secret insides")

    monkeypatch.setattr(api.facade, "status", broken)
    with pytest.raises(RuntimeError):  # for the server's log; the caller has got an answer
        await api("GET", "/api/v1/status")
    assert (api.last.status, api.last.error["code"]) == (500, "bug")
    assert b"secret insides" not in api.last.body


async def test_waits_are_bounded(api: Client) -> None:
    for given, waited in (("5", 5.0), ("1e9", 60.0), ("-1", 0.0), ("nan", 0.0)):
        await api("GET", f"/api/v1/jobs/bafyjob/wait?timeoutSec={given}")
        assert api.facade.asked[-1] == ("wait", waited)
    await api("GET", "/api/v1/jobs?limit=100000")
    assert api.facade.asked[-1][1].limit == 1000


async def test_a_submit_waits_for_its_job_if_it_is_asked_to(
    api: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    submitted = {"jobId": "bafyjob", "requestId": "bafyjob", "serviceId": "s", "isSettled": False}

    async def submit(_: Any, body: dict[str, Any], key: str = "") -> dict[str, Any]:
        return dict(submitted)

    monkeypatch.setattr(FakeMany, "submit", submit)
    assert (await api("POST", "/api/v1/jobs", _wish())).json == submitted
    assert (await api("POST", "/api/v1/jobs?waitSec=5", _wish())).json == JOB
    assert api.facade.asked == [("wait", 5.0)]
    submitted["isSettled"] = True
    assert (await api("POST", "/api/v1/jobs?waitSec=5", _wish())).json == submitted
    for wrong in ("-1", "61", "nan", "x"):
        assert (await api("POST", f"/api/v1/jobs?waitSec={wrong}", _wish())).status == 422
    assert len(api.facade.asked) == 1


async def test_openapi_lists_every_route_and_needs_no_token(api: Client) -> None:
    listed = await api("GET", "/openapi.json", authorization=None)
    assert listed.status == 200
    paths = listed.json["paths"]
    for method, path in _routes(api.app):
        if path.startswith("/api/"):
            assert method.lower() in paths[path.replace(":path", "")], path
    assert all(path.startswith("/api/v1/") for path in paths)


# -- ranges and capabilities ---------------------------------------------------------------------

Range = tuple[str | None, int, bytes, str]
RANGES: list[Range] = [
    (None, 200, CONTENT, ""),
    ("bytes=0-3", 206, b"0123", "bytes 0-3/10"),
    ("bytes=4-", 206, b"456789", "bytes 4-9/10"),
    ("bytes=-3", 206, b"789", "bytes 7-9/10"),
    ("bytes=-99", 206, CONTENT, "bytes 0-9/10"),
    ("bytes=9-99", 206, b"9", "bytes 9-9/10"),
    ("bytes=10-", 416, b"", "bytes */10"),
    ("bytes=-0", 416, b"", "bytes */10"),
    ("bytes=999999999999999999-", 416, b"", "bytes */10"),
    ("bytes=5-3", 200, CONTENT, ""),
    ("bytes=0-3,3-4", 200, CONTENT, ""),
    ("bytes=" + "9" * 5000 + "-", 200, CONTENT, ""),
    ("bytes=x-y", 200, CONTENT, ""),
    ("lines=0-1", 200, CONTENT, ""),
]


@pytest.mark.parametrize(("asked", "status", "body", "said"), RANGES, ids=lambda v: str(v)[:20])
async def test_a_range_of_an_output(
    asked: str | None, status: int, body: bytes, said: str, api: Client
) -> None:
    got = await api("GET", "/api/v1/jobs/bafyjob/outputs/o", range=asked)
    assert (got.status, got.body, got.header("content-range")) == (status, body, said)
    if status != 416:
        assert got.header("content-length") == str(len(body))


async def test_an_output_is_known_by_its_cid(api: Client) -> None:
    path = "/api/v1/jobs/bafyjob/outputs/o"
    same = await api("GET", path, if_none_match=f'"{CID}"')
    assert (same.status, same.body) == (304, b"")
    part = await api("GET", path, range="bytes=0-1", if_range=f'"{CID}"')
    assert part.status == 206
    other = await api("GET", path, range="bytes=0-1", if_range='"other"')
    assert (other.status, other.body) == (200, CONTENT)


Gateway = Callable[..., Any]


@pytest.fixture
def gateway() -> Gateway:
    links = Links(PORT, GATEWAY_PORT, b"key")
    app = make_gateway(FakeFacade(), links, GATEWAY_PORT)

    async def get(target: str | None = None, method: str = "GET", **headers: str) -> Answer:
        parts = urlsplit(links.content(CID, "o.html"))
        given = {"host": f"127.0.0.1:{GATEWAY_PORT}", **headers}
        return await call(app, method, target or f"{parts.path}?{parts.query}", given)

    return get


async def test_a_capability_opens_its_content_and_nothing_else(gateway: Gateway) -> None:
    links = Links(PORT, GATEWAY_PORT, b"key")
    parts = urlsplit(links.content(CID, "o.html"))
    assert parts.netloc == f"127.0.0.1:{GATEWAY_PORT}"
    assert (await gateway()).body == CONTENT
    other_cid = CID[:-1] + "a"
    for target in (
        parts.path,
        f"{parts.path}?k=",
        f"{parts.path}?k={'0' * 32}",
        f"{parts.path}?k=%C3%A9",
        f"/ipfs/{CID}/other.html?{parts.query}",
        f"/ipfs/{other_cid}/o.html?{parts.query}",
    ):
        refused = await gateway(target)
        assert (refused.status, CONTENT in refused.body) == (403, False), target
    key = Links(PORT, GATEWAY_PORT, b"another node's key").content(CID, "o.html")
    assert (await gateway(key.removeprefix(f"http://127.0.0.1:{GATEWAY_PORT}"))).status == 403
    for target in ("/", "/api/v1/status", f"/ipfs/{CID}", "/openapi.json"):
        assert (await gateway(target)).status == 404


async def test_content_that_nobody_has_is_404(gateway: Gateway) -> None:
    links = Links(PORT, GATEWAY_PORT, b"key")
    parts = urlsplit(links.content("bafygone", "x"))
    assert (await gateway(f"{parts.path}?{parts.query}")).status == 404


async def test_content_cannot_act_as_a_page_of_the_node(gateway: Gateway) -> None:
    got = await gateway()
    assert got.header("content-type").startswith("text/html")
    assert got.header("content-security-policy").startswith("sandbox;")
    assert got.header("x-content-type-options") == "nosniff"


async def test_the_gateway_checks_host_and_only_reads(gateway: Gateway) -> None:
    for host in ("evil.example", f"127.0.0.1:{PORT}", ""):
        assert (await gateway(host=host)).status == 403
    for method in ("POST", "PUT", "DELETE"):
        assert (await gateway(method=method)).status == 405
    head = await gateway(method="HEAD")
    assert (head.status, head.body, head.header("content-length")) == (200, b"", "10")


async def test_the_gateway_serves_ranges(gateway: Gateway) -> None:
    got = await gateway(range="bytes=2-3")
    assert (got.status, got.body) == (206, b"23")


def test_a_name_with_odd_characters_has_a_working_link() -> None:
    links = Links(PORT, GATEWAY_PORT, b"key")
    for name in ("é ü.txt", "a/b?c#d&e", "%41", "x" * 255):
        parts = urlsplit(links.content(CID, name))
        assert parts.path.startswith(f"/ipfs/{CID}/")
        assert links.is_valid(CID, name, parts.query.removeprefix("k="))
        assert not links.is_valid(CID, name + "x", parts.query.removeprefix("k="))


# -- what admins do --------------------------------------------------------------------------

_LAB = "/api/v1/services/lab"
ACTS: list[tuple[str, str, Any, str, tuple[Any, ...]]] = [
    ("POST", "/grant", {"who": "p", "roles": ["read"]}, "grant", ("p", ["read"], None)),
    ("POST", "/revoke", {"who": "p"}, "revoke", ("p", None, None)),
    (
        *("POST", "/revoke", {"who": "p", "roles": ["read"], "sinceUnixMs": 5}),
        *("revoke", ("p", ["read"], 5)),
    ),
    ("POST", "/rename", {"member": "m", "name": "n"}, "rename_member", ("m", "n")),
    ("POST", "/rename", {"name": "n"}, "rename_here", ("n",)),
    ("POST", "/admins", {"admins": ["p"], "threshold": 1}, "set_admins", (["p"], 1)),
    ("DELETE", "", None, "end", ()),
    ("POST", "/sign-over", None, "sign_over", ()),
    ("DELETE", "/apps/a", None, "remove_app", ("a",)),
    ("GET", "/app-history?app=a", None, "app_history", ("a",)),
    ("GET", "/proposals", None, "proposals", ()),
    ("POST", "/proposals/look", {"id": "x"}, "look", ("x", None)),
    ("POST", "/proposals/sign", {"data": "eA=="}, "sign", ("", "eA==")),
    ("POST", "/proposals/x/renew", None, "renew", ("x",)),
    ("DELETE", "/proposals/x", None, "withdraw", ("x",)),
    ("GET", "/log", None, "log", (False,)),
    ("GET", "/log?changes=true", None, "log", (True,)),
]


@pytest.mark.parametrize(
    ("method", "path", "body", "act", "given"), ACTS, ids=lambda v: str(v)[:20]
)
async def test_an_act_of_an_admin_reaches_the_facade(
    method: str, path: str, body: Any, act: str, given: tuple[Any, ...], api: Client
) -> None:
    answer = await api(method, _LAB + path, body)
    assert answer.status == 200
    assert api.facade.asked == [(act, given)]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/grant", {"who": "p"}),
        ("/grant", {"who": "p", "roles": ["x" * 201]}),
        ("/revoke", {"who": "p", "sinceUnixMs": -1}),
        ("/revoke", {"who": "p", "since": 1}),
        ("/rename", {"member": "m"}),
        ("/admins", {"admins": ["p"], "threshold": 0}),
        ("/admins", {"admins": ["p"] * 65, "threshold": 1}),
        ("/proposals/sign", {"data": "x" * 200_000}),
    ],
)
async def test_an_act_that_is_no_act_is_refused_before_the_facade(
    path: str, body: Any, api: Client
) -> None:
    answer = await api("POST", _LAB + path, body)
    assert answer.status == 422
    assert api.facade.asked == []


# -- consoles ----------------------------------------------------------------------------------


async def test_a_console_is_text_with_what_else_there_is_to_say_in_brackets(api: Client) -> None:
    path = "/api/v1/jobs/bafyjob/console"
    text = await api("GET", path)
    assert text.body.decode() == "grün\n[9 bytes left out]\nend\n[failed: it broke]\n"
    assert list(api.facade.consoles.asked) == ["bafyjob", None, None, 0, False]
    followed = await api("GET", f"{path}?follow=1&serviceName=lab&attempt=a2&offset=7")
    assert followed.body.decode().startswith("[attempt 2 on 12D3KooW]\ngrün\n")
    assert list(api.facade.consoles.asked) == ["bafyjob", "lab", "a2", 7, True]


async def test_a_console_is_followed_as_events_whose_characters_are_whole(api: Client) -> None:
    path = "/api/v1/jobs/bafyjob/console?follow=1"
    lines = await api("GET", f"{path}&format=json")
    events = [json.loads(line) for line in lines.body.splitlines()]
    told = [(e["text"], e["offset"], e["nextOffset"]) for e in events if e["type"] == "output"]
    assert told == [("gr", 0, 2), ("ün", 3, 5), ("end\n", 14, 18)]
    assert [e["type"] for e in events if e["type"] != "output"] == [
        *("status", "attempt", "alive", "gap", "end"),
    ]
    stream = await api("GET", path, accept="text/event-stream")
    assert dict(stream.headers)["content-type"].startswith("text/event-stream")
    blocks = stream.body.decode().strip().split("\n\n")
    assert [json.loads(b.partition("\ndata: ")[2]) for b in blocks] == events
    assert blocks[0].startswith("event: status\n")


@pytest.mark.parametrize("query", ["offset=-1", "offset=9999999999999999999", "format=html"])
async def test_a_console_is_asked_for_within_bounds(query: str, api: Client) -> None:
    assert (await api("GET", f"/api/v1/jobs/bafyjob/console?{query}")).status == 422


# -- plans, explanations, graphs, batches, nodes -----------------------------------------------


async def test_what_is_asked_about_jobs_is_handed_on(api: Client) -> None:
    definition = {"appName": "a", "processorName": "p"}
    plan = await api("POST", "/api/v1/jobs/plan", {"jobDefinition": definition, "skipCache": True})
    assert plan.json == {"isHit": False}
    await api("GET", "/api/v1/jobs/bafyjob/explain?with=other&serviceName=lab")
    await api("GET", "/api/v1/jobs/bafyjob/graph")
    assert (await api("GET", "/api/v1/nodes?serviceName=lab")).json == {"nodes": []}
    assert (await api("GET", "/api/v1/batches?limit=3")).json == {"batches": []}
    assert (await api("GET", "/api/v1/batches/a%2Fb")).json == {"batchId": "a/b"}
    await api("DELETE", "/api/v1/batches/a%2Fb?serviceName=lab")
    assert api.facade.insight.asked == [
        *(("plan", "a", True), ("explain", "bafyjob", "lab", "other")),
        *(("graph", "bafyjob", None), ("all", "lab", None), ("all", None, 3)),
        *(("batch", "a/b", None), ("cancel", "a/b", "lab")),
    ]
    assert (await api("GET", "/api/v1/batches?limit=0")).status == 422
