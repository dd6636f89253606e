"""Content over HTTP: ranges, conditional requests, types; and the gateway's ASGI app."""

import mimetypes
import re
from collections.abc import AsyncIterator
from urllib.parse import quote

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from pairio_node.api.facade import NodeFacade
from pairio_node.api.links import Links
from pairio_node.errors import UserError

__all__ = ["content_response", "make_gateway"]

_RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})")


def _range(header: str | None, size: int) -> tuple[int, int] | None:
    """Return (start, stop) of one range, None for the whole; ValueError: it cannot be met.

    Several ranges, and what is no range, are answered with the whole, as RFC 9110 allows.
    """
    match = _RANGE.fullmatch((header or "").strip())
    if match is None or match.groups() == ("", ""):
        return None
    first, last = match.groups()
    if first == "":
        start, stop = max(0, size - int(last)), size
    elif last and int(last) < int(first):
        return None
    else:
        start, stop = int(first), min(size, int(last) + 1 if last else size)
    if start >= stop:
        raise ValueError(f"bytes */{size}")
    return start, stop


async def _empty() -> AsyncIterator[bytes]:
    return
    yield b""


def content_response(
    node: NodeFacade, request: Request, cid: str, name: str, size: int
) -> Response:
    """Return a file by CID: 200, 206, 304 or 416; never run as a page of ours."""
    kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
    headers = {
        "ETag": f'"{cid}"',
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, max-age=31536000, immutable",
        "Content-Security-Policy": "sandbox; default-src 'none'",
        "X-Content-Type-Options": "nosniff",
        "Content-Disposition": f"inline; filename*=UTF-8''{quote(name, safe='')}",
    }
    if request.headers.get("if-none-match") in (f'"{cid}"', "*"):
        return Response(status_code=304, headers=headers)
    try:
        is_same = request.headers.get("if-range") in (None, headers["ETag"])
        part = _range(request.headers.get("range") if is_same else None, size)
    except ValueError as error:
        return Response(status_code=416, headers={**headers, "Content-Range": str(error)})
    start, stop = part or (0, size)
    headers["Content-Length"] = str(stop - start)
    if part is not None:
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
    body = _empty() if request.method == "HEAD" else node.read_content(cid, start, stop)
    return StreamingResponse(body, 206 if part else 200, headers, media_type=kind)


def make_gateway(node: NodeFacade, links: Links, port: int) -> Starlette:
    """Return the app of the content origin: `/ipfs/CID/NAME?k=...` and nothing else."""
    hosts = [f"{h}:{port}" for h in ("127.0.0.1", "localhost", "[::1]")]

    async def content(request: Request) -> Response:
        cid, name = request.path_params["cid"], request.path_params["name"]
        if request.headers.get("host") not in hosts:
            return PlainTextResponse("wrong Host", 403)
        if not links.is_valid(cid, name, request.query_params.get("k", "")):
            return PlainTextResponse("this link is not one of this node's", 403)
        try:
            size = await node.content_size(cid)
        except UserError as error:
            return PlainTextResponse(error.message, error.http_status)
        return content_response(node, request, cid, name, size)

    app = Starlette(routes=[Route("/ipfs/{cid}/{name:path}", content, methods=["GET", "HEAD"])])
    app.router.redirect_slashes = False
    return app
