"""The API's routes (FastAPI). Every answer of a failure is `{"error": {message, hint, code}}`."""

import json
import logging
from contextlib import aclosing
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from pairio_node.api.admins import admin_routes
from pairio_node.api.auth import COOKIE, Auth
from pairio_node.api.cache import cache_routes
from pairio_node.api.console import console_routes
from pairio_node.api.content import output_response
from pairio_node.api.facade import NodeFacade
from pairio_node.api.insight import insight_routes
from pairio_node.api.jobs import WAIT_S_MAX, many_job_routes
from pairio_node.api.joins import join_routes
from pairio_node.api.models import (
    DrainBody,
    FolderBody,
    LinkBody,
    TokenBody,
)
from pairio_node.api.pages import home_page, job_page, login_page
from pairio_node.api.public import public_routes
from pairio_node.api.publishing import publishing_routes
from pairio_node.api.references import reference_routes
from pairio_node.api.results import result_routes
from pairio_node.api.services import service_routes
from pairio_node.errors import UserError
from pairio_node.search import JobQuery

__all__ = ["make_app"]

log = logging.getLogger("pairio.api")

_JSON_SIZE_BYTES_MAX = 8 * 1024 * 1024
#: Bodies of any length, which are read as streams.
_STREAMED = ("/api/v1/content", "/api/v1/import")
_CONSOLE_ON_PAGE_BYTES = 64 * 1024


def _error(status: int, message: str, hint: str | None, code: str) -> JSONResponse:
    return JSONResponse(
        {"error": {"message": message, "hint": hint, "code": code}}, status_code=status
    )


def make_app(node: NodeFacade, auth: Auth) -> FastAPI:
    """Return the ASGI app of API and pages."""
    app = FastAPI(
        title="pairio node",
        version="1",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    _errors(app)
    app.add_middleware(_Guard, auth=auth)
    many_job_routes(app, node)
    _job_routes(app, node)
    console_routes(app, node)
    insight_routes(app, node)
    reference_routes(app, node.referenced)  # before what takes any name for a CID
    service_routes(app, node.services)
    join_routes(app, node.joins)
    admin_routes(app, node.admins)
    public_routes(app, node.public)
    cache_routes(app, node.cache)
    result_routes(app, node)
    publishing_routes(app, node.publishing)
    _other_routes(app, node, auth)
    _page_routes(app, node, auth)
    return app


def _errors(app: FastAPI) -> None:
    @app.exception_handler(UserError)
    async def user_error(_: Request, error: UserError) -> Response:
        return _error(error.http_status, error.message, error.hint, error.code)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:]) or "body"
        return _error(422, f"{where}: {first['msg']}", "see /openapi.json", "invalid")

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        message = f"{request.method} {request.url.path[:200]}: {error.detail}"
        return _error(error.status_code, message, "see /openapi.json", "http")

    @app.exception_handler(Exception)
    async def bug(_: Request, error: Exception) -> Response:
        log.exception("a request failed", exc_info=error)
        return _error(500, "the node failed to answer: a bug", "see its log", "bug")


class _Guard:
    """Checks Host, Origin, token or cookie, and the size of a body, before any route.

    Plain ASGI: starlette's `BaseHTTPMiddleware` costs three tasks and a channel per request.
    """

    def __init__(self, app: ASGIApp, auth: Auth) -> None:
        self._app = app
        self._auth = auth

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            refusal = self._refusal(scope)
        except UserError as error:
            refusal = _error(error.http_status, error.message, error.hint, error.code)
        await (refusal or self._app)(scope, receive, send)

    def _refusal(self, scope: Scope) -> Response | None:
        path: str = scope["path"]
        # Of several with one name the first counts, as for starlette.
        headers: dict[bytes, bytes] = dict(reversed(scope["headers"]))
        self._auth.check_origin(_text(headers.get(b"host")), _text(headers.get(b"origin")))
        if path.startswith("/api/"):
            self._auth.check_token(_text(headers.get(b"authorization")), scope["method"])
            if path not in _STREAMED:
                _check_size(scope, headers)
        elif (
            not path.startswith("/open/")
            and path != "/openapi.json"
            and not self._auth.has_session(Request(scope).cookies.get(COOKIE))
        ):
            return _html(login_page(path), 401)
        return None


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode("latin-1")


def _check_size(scope: Scope, headers: dict[bytes, bytes]) -> None:
    """Refuse a body that is too large, or of a length that is not said, before it is read."""
    said = headers.get(b"content-length", b"0").decode("latin-1")
    # HTTP/1.1 without a length has no body, or comes in chunks; later versions may send one.
    # In chunks it comes whatever length is said besides (RFC 9112, 6.3).
    unsaid = b"transfer-encoding" in headers or (
        b"content-length" not in headers and not scope.get("http_version", "1.1").startswith("1.")
    )
    if unsaid and scope["method"] not in ("GET", "HEAD"):
        said = "unknown"
    if not said.isdecimal() or len(said) > 12 or int(said) > _JSON_SIZE_BYTES_MAX:
        raise UserError(
            f"a body whose length is {said[:40]}",
            hint=f"say its length, at most {_JSON_SIZE_BYTES_MAX} bytes; files: /api/v1/content",
            code="size",
            http_status=413,
        )


def _job_routes(app: FastAPI, node: NodeFacade) -> None:
    @app.get("/api/v1/jobs/{job_id}")
    async def job(job_id: str, serviceName: str | None = None) -> JSONResponse:  # noqa: N803
        """One job, by job id, the end or beginning of it if unique, or request id."""
        return JSONResponse(await node.jobs.find_or_look(job_id, serviceName))

    @app.get("/api/v1/jobs/{job_id}/why")
    async def why(job_id: str, serviceName: str | None = None) -> JSONResponse:  # noqa: N803
        """Why the job is where it is, and what each node lacks for it: rule, need, have."""
        return JSONResponse(node.jobs.why(job_id, serviceName))

    @app.post("/api/v1/jobs/{job_id}/cancel")
    async def cancel(job_id: str, serviceName: str | None = None) -> JSONResponse:  # noqa: N803
        """Withdraw this member's requests for the job. A run that nobody else wants ends."""
        return JSONResponse(await node.jobs.cancel(job_id, serviceName))

    @app.get("/api/v1/jobs/{job_id}/wait")
    async def wait(
        job_id: str,
        serviceName: str | None = None,  # noqa: N803
        timeoutSec: float = 30.0,  # noqa: N803
    ) -> JSONResponse:
        """Answer when the job is final and safe, or with its state when the time is over."""
        timeout_s = max(0.0, min(timeoutSec, WAIT_S_MAX))
        return JSONResponse(await node.jobs.wait(job_id, serviceName, timeout_s))

    @app.get("/api/v1/jobs/{job_id}/outputs/{name:path}")
    async def output(
        request: Request,
        job_id: str,
        name: str,
        serviceName: str | None = None,  # noqa: N803
        path: str | None = None,
        format: str | None = None,
    ) -> Response:
        """The bytes of an output (Range is understood: no more than that is fetched); of a folder,
        what lies at `path`, or its entries."""
        some = "range" in request.headers
        cid, file_name, _ = await node.jobs.output_cid(job_id, serviceName, name, some=some)
        return await output_response(node, request, cid, file_name, path, format == "json")


def _other_routes(app: FastAPI, node: NodeFacade, auth: Auth) -> None:
    @app.get("/api/v1/status")
    async def status() -> JSONResponse:
        """The node: id, addresses, peers, services, capacity, what runs, counters."""
        return JSONResponse(node.status())

    @app.post("/api/v1/drain")
    async def drain(body: DrainBody) -> JSONResponse:
        """Take no more runs, hand back those that wait, and stop when those that run are over or
        their time is up; answers how many run."""
        return JSONResponse(node.draining.begin(body.waitSec))

    @app.post("/api/v1/content")
    async def add_content(request: Request) -> JSONResponse:
        """Add bytes (the raw body, a stream) as content; answers its CID and size."""
        async with aclosing(request.stream()) as chunks:
            cid, size = await node.files.add(chunks)
        return JSONResponse({"cid": cid, "size": size})

    @app.post("/api/v1/content/folders")
    async def add_folder(body: FolderBody) -> JSONResponse:
        """Make a folder of files that are here."""
        entries = [(entry.path, entry.cid) for entry in body.entries]
        cid, size = await node.files.add_folder(entries)
        return JSONResponse({"cid": cid, "size": size})

    @app.post("/api/v1/tokens")
    async def token(body: TokenBody) -> JSONResponse:
        """Make a token for this API. It is shown once."""
        made = auth.create_token(body.name, body.readOnly, body.expiresSec)
        return JSONResponse({"name": body.name, "token": made})

    @app.post("/api/v1/links")
    async def link(request: Request, body: LinkBody) -> JSONResponse:
        """Make a one-time link that opens a page in a browser."""
        code = auth.make_link(body.path)
        return JSONResponse({"url": f"http://{request.headers['host']}/open/{code}"})


def _page_routes(app: FastAPI, node: NodeFacade, auth: Auth) -> None:
    @app.get("/open/{code}", include_in_schema=False)
    async def open_link(code: str) -> Response:
        used = auth.use_link(code)
        if used is None:
            return _html(login_page("/"), 401)
        response = RedirectResponse(used[0], status_code=303)
        response.set_cookie(COOKIE, used[1], httponly=True, samesite="strict", path="/")
        return response

    @app.get("/", include_in_schema=False)
    async def home() -> Response:
        jobs = node.search.newest(JobQuery(limit=50))
        return _html(home_page(node.status(), jobs))

    @app.get("/job/{job_id}", include_in_schema=False)
    async def page(job_id: str) -> Response:
        job: dict[str, Any] = node.jobs.one(job_id, None)
        console = bytearray()
        async for chunk in node.jobs.console(job_id, None):
            console += chunk
            del console[:-_CONSOLE_ON_PAGE_BYTES]
        return _html(job_page(json.loads(json.dumps(job)), console.decode(errors="replace")))


def _html(text: str, status: int = 200) -> HTMLResponse:
    policy = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"
    return HTMLResponse(
        text,
        status,
        headers={"Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff"},
    )
