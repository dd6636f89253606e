"""The API's routes about public services."""

from typing import Any, Protocol

from fastapi import FastAPI
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from pairio_protocol.limits import GUEST_REQUESTS_OPEN_MAX, GUEST_REQUESTS_PER_HOUR_MAX

__all__ = ["PublicFacade", "public_routes"]


class PublicFacade(Protocol):
    """Implemented by `pairio_node.public.Public`; every method may raise `UserError`."""

    async def set(self, service: str, open_submit: dict[str, int] | None) -> dict[str, Any]:
        """Let strangers submit within limits, or (None) no more."""


class PublicBody(BaseModel):
    """What strangers may have; see `pairio service public`."""

    model_config = ConfigDict(extra="forbid")

    requestsPerHour: int = Field(default=20, ge=1, le=GUEST_REQUESTS_PER_HOUR_MAX)  # noqa: N815
    openMax: int = Field(default=4, ge=1, le=GUEST_REQUESTS_OPEN_MAX)  # noqa: N815
    allPerHour: int = Field(default=200, ge=1, le=GUEST_REQUESTS_PER_HOUR_MAX)  # noqa: N815
    allOpenMax: int = Field(default=16, ge=1, le=GUEST_REQUESTS_OPEN_MAX)  # noqa: N815
    numCpus: float = Field(default=1, gt=0, le=4096)  # noqa: N815
    memoryGb: float = Field(default=1, gt=0, le=65536)  # noqa: N815
    numGpus: int = Field(default=0, ge=0, le=1024)  # noqa: N815
    timeSec: float = Field(default=60, gt=0, le=86400)  # noqa: N815

    def open_submit(self) -> dict[str, int]:
        """Return the policy's form."""
        return {
            "requests_per_hour": self.requestsPerHour,
            "open_max": self.openMax,
            "all_per_hour": self.allPerHour,
            "all_open_max": self.allOpenMax,
            "cpu_millicores": max(1, round(self.numCpus * 1000)),
            "memory_mib": max(1, round(self.memoryGb * 1024)),
            "gpus": self.numGpus,
            "time_ms": max(1, round(self.timeSec * 1000)),
        }


def public_routes(app: FastAPI, public: PublicFacade) -> None:
    """Add the routes."""

    @app.post("/api/v1/services/{name}/public")
    async def make_public(name: str, body: PublicBody) -> JSONResponse:
        """Let strangers submit within limits; answers with a link for them."""
        return JSONResponse(await public.set(name, body.open_submit()))

    @app.delete("/api/v1/services/{name}/public")
    async def make_private(name: str) -> JSONResponse:
        """Let no stranger submit any more."""
        return JSONResponse(await public.set(name, None))
