"""The API's routes about data by reference. Paths are those of the node's machine; a token that
only reads cannot add any."""

from typing import Annotated, Any, Protocol

from fastapi import FastAPI
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

__all__ = ["ReferencesFacade", "reference_routes"]

_WAIT_S_MAX = 60.0
_Path = Annotated[str, Field(max_length=4096)]


class ReferencesFacade(Protocol):
    """Implemented by `pairio_node.referenced.ReferencedData`; methods may raise `UserError`."""

    async def add(self, path: str, wait_s: float) -> dict[str, Any]:
        """Add a file or folder, or see how far that is."""

    async def share(self, service: str, cid: str) -> dict[str, Any]:
        """Let a service have content that is here."""

    async def all(self) -> list[dict[str, Any]]:
        """Return what was added, looked at now."""

    async def remove(self, path: str) -> list[str]:
        """Forget a file or folder."""


class ReferenceBody(BaseModel):
    """A file or folder to hash where it lies. Asked again, it says how far that is."""

    model_config = ConfigDict(extra="forbid")

    path: _Path
    waitSec: float = Field(default=20, ge=0, le=_WAIT_S_MAX)  # noqa: N815


class ShareBody(BaseModel):
    """Content that is here."""

    model_config = ConfigDict(extra="forbid")

    cid: Annotated[str, Field(max_length=200)]


def reference_routes(app: FastAPI, references: ReferencesFacade) -> None:
    """Add the routes."""

    @app.post("/api/v1/content/references")
    async def add_reference(body: ReferenceBody) -> JSONResponse:
        """Hash a file or folder of this machine where it lies, without a copy. Asked again, says
        how far that is."""
        return JSONResponse(await references.add(body.path, body.waitSec))

    @app.post("/api/v1/services/{name}/content")
    async def share(name: str, body: ShareBody) -> JSONResponse:
        """Let a service have content that is here."""
        return JSONResponse(await references.share(name, body.cid))

    @app.get("/api/v1/content/references")
    async def all_references() -> JSONResponse:
        """Files and folders that are content without a copy."""
        return JSONResponse({"references": await references.all()})

    @app.delete("/api/v1/content/references")
    async def remove_reference(path: _Path) -> JSONResponse:
        """Forget a file or folder that is content without a copy. It stays where it lies."""
        return JSONResponse({"cids": await references.remove(path)})
