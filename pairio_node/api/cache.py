"""The API's routes about the cache."""

from typing import Annotated, Any, Protocol

from fastapi import FastAPI, Query
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

__all__ = ["CacheFacade", "cache_routes"]


class CacheFacade(Protocol):
    """Implemented by `pairio_node.cache.Cache`; every method may raise `UserError`."""

    async def stats(self) -> dict[str, Any]:
        """Return quota, use by reason, and what was counted."""

    async def ls(self, limit: int) -> dict[str, Any]:
        """Return what is here, most recently used first."""

    async def gc(self, *, everything: bool, dry: bool) -> dict[str, Any]:
        """Let go what may go."""

    async def pin(self, name: str, service: str | None) -> dict[str, Any]:
        """Keep a job's result or content by CID."""

    def unpin(self, name: str) -> dict[str, Any]:
        """Keep it no more."""

    def all_pins(self) -> dict[str, Any]:
        """Return the pins."""


class PinBody(BaseModel):
    """What is to be kept: a job by its id, or content by its CID."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(min_length=1, max_length=200)
    serviceName: str | None = None  # noqa: N815


class GcBody(BaseModel):
    """How much is to go, and whether only to say so."""

    model_config = ConfigDict(extra="forbid")

    everything: bool = False
    dryRun: bool = False  # noqa: N815


def cache_routes(app: FastAPI, cache: CacheFacade) -> None:
    """Add the routes."""

    @app.get("/api/v1/cache")
    async def stats() -> JSONResponse:
        """What content takes here, by why it is kept; the quota; what was let go."""
        return JSONResponse(await cache.stats())

    @app.get("/api/v1/cache/roots")
    async def roots(limit: Annotated[int, Query(ge=1, le=10_000)] = 100) -> JSONResponse:
        """What is here, largest first, and why it is kept."""
        return JSONResponse(await cache.ls(limit))

    @app.post("/api/v1/cache/gc")
    async def gc(body: GcBody) -> JSONResponse:
        """Let go of what may go: down to the mark, or all of it."""
        return JSONResponse(await cache.gc(everything=body.everything, dry=body.dryRun))

    @app.get("/api/v1/cache/pins")
    async def pins() -> JSONResponse:
        """What is pinned."""
        return JSONResponse(cache.all_pins())

    @app.post("/api/v1/cache/pins")
    async def pin(body: PinBody) -> JSONResponse:
        """Pin a job's result or content: it stays until it is unpinned."""
        return JSONResponse(await cache.pin(body.name, body.serviceName))

    @app.delete("/api/v1/cache/pins/{name}")
    async def unpin(name: str) -> JSONResponse:
        """Unpin."""
        return JSONResponse(cache.unpin(name))
