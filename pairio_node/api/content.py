"""Content over HTTP: ranges, conditional requests, types; and the gateway's ASGI app."""

import logging
import re
import secrets
from collections.abc import AsyncIterator
from urllib.parse import unquote

import trio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Send

from pairio_node.api.facade import NodeFacade
from pairio_node.api.folders import folder_json, folder_response
from pairio_node.api.links import Links
from pairio_node.api.ranges import Unsatisfiable, parse_ranges
from pairio_node.api.types import CONTENT_HEADERS, disposition_of, is_known, type_of
from pairio_node.errors import UserError

__all__ = ["content_response", "make_gateway", "output_response"]

log = logging.getLogger("pairio.api")

_PATH_LENGTH_MAX = 8 * 1024


async def _empty() -> AsyncIterator[bytes]:
    return
    yield b""


class _Stream(StreamingResponse):
    """Bytes whose rest may turn out not to be had: then the answer is not finished, so that the
    server closes the connection short of the length it told, and the log has a line."""

    async def stream_response(self, send: Send) -> None:
        """Send what there is."""
        try:
            await super().stream_response(send)
        except UserError as error:
            log.warning("content ended early: %s", error.message)


def content_response(
    node: NodeFacade, request: Request, cid: str, name: str, size: int, root: str | None = None
) -> Response:
    """Return a file by CID: 200, 206, 304 or 416; never run as a page of ours. `root` is what the
    reader named and the file lies below, where Bitswap peers may be asked, too."""
    kind, tag = type_of(name), f'"{cid}"'
    headers = {
        **CONTENT_HEADERS,
        "ETag": tag,
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, max-age=31536000, immutable",
        "Content-Disposition": disposition_of(name, kind),
    }
    if is_known(request, tag):
        return Response(status_code=304, headers=headers)
    is_same = request.headers.get("if-range") in (None, tag)
    try:
        parts = parse_ranges(request.headers.get("range") if is_same else None, size)
    except Unsatisfiable as error:
        return Response(status_code=416, headers={**headers, "Content-Range": str(error)})
    if parts is not None and len(parts) > 1:
        return _several(node, request, (cid, root), kind, size, parts, headers)
    start, stop = parts[0] if parts else (0, size)
    headers["Content-Length"] = str(stop - start)
    if parts:
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
    body = _empty() if request.method == "HEAD" else node.files.read(cid, start, stop, root)
    return _Stream(body, 206 if parts else 200, headers, media_type=kind)


def _several(
    node: NodeFacade,
    request: Request,
    named: tuple[str, str | None],
    kind: str,
    size: int,
    parts: list[tuple[int, int]],
    headers: dict[str, str],
) -> Response:
    """Return several ranges of a file as one answer (RFC 9110, 15.3.7.2)."""
    boundary = secrets.token_hex(16)
    heads = [
        f"\r\n--{boundary}\r\nContent-Type: {kind}\r\n"
        f"Content-Range: bytes {start}-{stop - 1}/{size}\r\n\r\n".encode()
        for start, stop in parts
    ]
    end = f"\r\n--{boundary}--\r\n".encode()

    async def body() -> AsyncIterator[bytes]:
        for head, (start, stop) in zip(heads, parts, strict=True):
            yield head
            async for chunk in node.files.read(named[0], start, stop, named[1]):
                yield chunk
        yield end

    length = sum(map(len, heads)) + sum(stop - start for start, stop in parts) + len(end)
    headers["Content-Length"] = str(length)
    content = _empty() if request.method == "HEAD" else body()
    several = f"multipart/byteranges; boundary={boundary}"
    return _Stream(content, 206, headers, media_type=several)


async def output_response(
    node: NodeFacade, request: Request, cid: str, name: str, path: str | None, as_json: bool
) -> Response:
    """Return an output, or what lies at `path` in one that is a folder; a folder as JSON.

    Raises:
        UserError: a folder without `as_json`, or a file with it; nothing at that path.
    """
    names = [part for part in (path or "").split("/") if part]
    found = await node.files.look(cid, names, cid)
    last = names[-1] if names else name
    if found.is_folder and as_json:
        items = await node.files.entries(found.cid, cid)
        return await trio.to_thread.run_sync(lambda: JSONResponse(folder_json(found, items, last)))
    if found.is_folder or as_json:
        raise UserError(
            f"{last!r} is a {'folder' if found.is_folder else 'file'}",
            hint="a folder is listed with format=json; path=A/B names what lies in it",
            code="folder" if found.is_folder else "file",
            http_status=409,
        )
    return content_response(node, request, found.cid, last, found.size_bytes, cid)


def _refusal(message: str, status: int) -> Response:
    return PlainTextResponse(
        f"{message}\n", status, headers={**CONTENT_HEADERS, "Cache-Control": "no-store"}
    )


def _names(request: Request) -> list[str]:
    """Return the parts of the path after `/ipfs/`: a slash in a name comes encoded."""
    raw = request.scope.get("raw_path") or request.scope["path"].encode()
    if len(raw) > _PATH_LENGTH_MAX:
        return []
    parts = raw.partition(b"?")[0].decode("latin-1").split("/")[2:]
    return [unquote(part) for part in parts]


def make_gateway(node: NodeFacade, links: Links, port: int) -> Starlette:
    """Return the app of the content origin, which has nothing but

    `/ipfs/CID/NAME?k=...`: a file or folder under a name, and `/ipfs/CID/NAME/A/B?k=...`: what
    lies at A/B in that folder, by the folder's capability.
    """
    hosts = [f"{h}:{port}" for h in ("127.0.0.1", "localhost", "[::1]")]

    async def content(request: Request) -> Response:
        if request.headers.get("host") not in hosts:
            return _refusal("wrong Host", 403)
        names = _names(request)
        if len(names) < 2:
            return _refusal("there is nothing here", 404)
        (cid, name), path = names[:2], names[2:]
        if path and path[-1] == "":
            path.pop()
        key = request.query_params.get("k", "")
        if not links.is_valid(cid, name, key):
            return _refusal("this link is not one of this node's", 403)
        try:
            found = await node.files.look(cid, path, cid)
            if not found.is_folder:
                last = path[-1] if path else name
                return content_response(node, request, found.cid, last, found.size_bytes, cid)
            items = await node.files.entries(found.cid, cid)
        except UserError as error:
            return _refusal(error.message, error.http_status)
        base = links.below(cid, name, path)
        return await trio.to_thread.run_sync(  # it may have 100,000 entries
            folder_response, request, found, items, [name, *path], base, key
        )

    route = Route("/ipfs/{rest:path}", content, methods=["GET", "HEAD"])
    route.path_regex = re.compile(route.path_regex.pattern, re.DOTALL)  # names may have line ends
    app = Starlette(routes=[route])
    app.router.redirect_slashes = False
    return app
