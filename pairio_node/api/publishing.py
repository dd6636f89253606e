"""The API's routes about what anybody may read."""

from typing import Annotated, Any, Literal, Protocol

from fastapi import FastAPI
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from pairio_protocol.limits import NAME_LENGTH_MAX

__all__ = ["PublishingFacade", "publishing_routes"]

_Text = Annotated[str, Field(min_length=1, max_length=NAME_LENGTH_MAX)]
Json = dict[str, Any]


class PublishingFacade(Protocol):
    """Implemented by `pairio_node.publishing.Publishing`; methods may raise `UserError`."""

    async def publish(self, what: str, service: str | None) -> Json:
        """Let anybody read a job's result, or content."""

    async def unpublish(self, what: str) -> Json:
        """Let nobody else read it any more."""

    def published(self) -> Json:
        """Return what is public."""

    async def set_results(self, service: str, is_public: bool) -> Json:
        """Let anybody read the results of a service, or members only."""

    def policy(self, service: str) -> Json:
        """Return what a service's policy says of its results."""


class PublishBody(BaseModel):
    """A job by its id, or content by its CID."""

    model_config = ConfigDict(extra="forbid")

    id: _Text
    serviceName: _Text | None = None  # noqa: N815


class PolicyBody(BaseModel):
    """Who may read the results of a service."""

    model_config = ConfigDict(extra="forbid")

    results: Literal["public", "members"]


def publishing_routes(app: FastAPI, publishing: PublishingFacade) -> None:
    """Add the routes."""

    @app.get("/api/v1/published")
    async def published() -> JSONResponse:
        """What anybody may read of this node."""
        return JSONResponse(publishing.published())

    @app.post("/api/v1/published")
    async def publish(body: PublishBody) -> JSONResponse:
        """Let anybody read a result or content of this node."""
        return JSONResponse(await publishing.publish(body.id, body.serviceName))

    @app.delete("/api/v1/published/{what}")
    async def unpublish(what: str) -> JSONResponse:
        """Let nobody but members read it any more. Copies of others stay."""
        return JSONResponse(await publishing.unpublish(what))

    @app.get("/api/v1/services/{name}/policy")
    async def policy(name: str) -> JSONResponse:
        """Whether anybody may read what the service's jobs made."""
        return JSONResponse(publishing.policy(name))

    @app.post("/api/v1/services/{name}/policy")
    async def set_policy(name: str, body: PolicyBody) -> JSONResponse:
        """Decide, as an admin, whether anybody may read what the service's jobs made."""
        return JSONResponse(await publishing.set_results(name, body.results == "public"))
