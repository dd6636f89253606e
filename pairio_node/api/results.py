"""Routes about results: found, verified, exported, imported; and content by CID."""

import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Literal

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from pairio_node.api.content import content_response
from pairio_node.errors import UserError

if TYPE_CHECKING:
    from pairio_node.api.facade import NodeFacade

__all__ = ["result_routes"]

Json = dict[str, Any]
_LINES = "application/x-ndjson"
_CAR = "application/vnd.ipld.car"
_FORMS = {"json": "application/json", "dot": "text/vnd.graphviz", "in-toto": _LINES}


def _lines(found: AsyncIterator[Json]) -> Response:
    """Return JSON, a document a line, as it comes."""

    async def body() -> AsyncIterator[bytes]:
        async for line in found:
            yield json.dumps(line).encode() + b"\n"

    return StreamingResponse(body(), media_type=_LINES)


def result_routes(app: FastAPI, node: "NodeFacade") -> None:
    """Add the routes."""
    results, cars = node.results, node.cars

    @app.get("/api/v1/results/{name}")
    async def result(name: str, serviceName: str | None = None) -> JSONResponse:  # noqa: N803
        """A result by job id, request id or its own CID; unknown here, it is looked for at members
        and in the DHT."""
        return JSONResponse(await results.one(name, serviceName))

    @app.get("/api/v1/results/{name}/verify")
    async def verify(
        name: str,
        serviceName: str | None = None,  # noqa: N803
        offline: bool = False,
    ) -> Response:
        """Check a result and all that it rests on: a JSON document a line, the last says whether it
        holds."""
        rests = await results.rests(name, serviceName, ask=not offline)
        return _lines(results.verify(rests, offline=offline))

    @app.get("/api/v1/results/{name}/provenance")
    async def provenance(
        name: str,
        serviceName: str | None = None,  # noqa: N803
        format: Literal["json", "dot", "in-toto"] = "json",
    ) -> Response:
        """Where a result comes from, through every upstream job: `json`, `dot` or `in-toto`."""
        rests = await results.rests(name, serviceName, ask=True)
        return Response(results.provenance(rests, format), media_type=_FORMS[format])

    @app.get("/api/v1/results/{name}/bring")
    async def bring(name: str, serviceName: str | None = None) -> Response:  # noqa: N803
        """Fetch what a result's content lacks here: progress, a JSON document a line."""
        return _lines(results.bring(await results.rests(name, serviceName, ask=True)))

    @app.get("/api/v1/results/{name}/export")
    async def export(name: str, serviceName: str | None = None) -> Response:  # noqa: N803
        """The result and all that it rests on as a CAR file."""
        rests = await results.rests(name, serviceName, ask=False)
        return StreamingResponse(await cars.export(rests), media_type=_CAR)

    @app.post("/api/v1/import")
    async def import_(request: Request) -> JSONResponse:
        """Take in a CAR file (the raw body, a stream); says what of it counts."""
        async with aclosing(request.stream()) as chunks:
            return JSONResponse(await cars.import_(chunks))

    @app.get("/api/v1/content/{cid}")
    async def content(request: Request, cid: str) -> Response:
        """The bytes of a file by CID (Range is understood)."""
        found = await node.files.look(cid, ())
        if found.is_folder:
            raise UserError(f"{cid} is a folder", hint="pairio get takes folders too")
        return content_response(node, request, cid, cid, found.size_bytes)

    @app.get("/api/v1/blocks/{cid}")
    async def block(cid: str) -> Response:
        """One block of a file or folder."""
        return Response(await node.files.block(cid), media_type="application/vnd.ipld.raw")
