"""The API's routes about becoming and ceasing to be a member."""

from typing import Annotated, Any, Protocol

from fastapi import FastAPI, Query
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from pairio_protocol.limits import LINK_LENGTH_MAX, NAME_LENGTH_MAX

__all__ = ["JoinsFacade", "join_routes"]

_YEAR_S = 366 * 86400
_WAIT_S_MAX = 60.0
_Roles = Annotated[list[Annotated[str, Field(max_length=NAME_LENGTH_MAX)]], Field(max_length=16)]
_Seconds = Annotated[int, Field(gt=0, le=_YEAR_S)]
Json = dict[str, Any]


class JoinsFacade(Protocol):
    """Implemented by `pairio_node.joins.Joins`; every method may raise `UserError`."""

    async def invite(
        self, service: str, roles: list[str], uses: int, expires_s: int, approve: bool
    ) -> Json:
        """Make a link."""

    def link_device(self, service: str, expires_s: int) -> Json:
        """Make a link for a further device of this node's member."""

    def invitations(self, service: str) -> list[Json]:
        """Return the invitations of a service."""

    async def uninvite(self, service: str, which: str) -> Json:
        """Withdraw an invitation."""

    async def join(
        self, text: str, name: str | None, roles: list[str] | None, wait_s: float
    ) -> Json:
        """Join with a link."""

    async def joined(self, service: str, wait_s: float) -> Json:
        """Return how far joining has come."""

    def all(self) -> list[Json]:
        """Return this node's open wishes."""

    async def leave(self, service: str) -> Json:
        """Take part no more."""

    async def decline(self, name: str) -> Json:
        """Want no part in an offered service."""

    def requests(self, service: str) -> list[Json]:
        """Return what waits for an admin's word."""

    async def approve(self, service: str, request: str, roles: list[str] | None) -> Json:
        """Grant a request."""

    async def deny(self, service: str, request: str) -> Json:
        """Refuse a request."""


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class InviteBody(_Body):
    """A link to make."""

    roles: _Roles = Field(default_factory=lambda: ["submit", "compute"])
    uses: int = 1
    expiresSec: _Seconds = 3600  # noqa: N815
    approve: bool = False


class UninviteBody(_Body):
    """An invitation to withdraw: its link or key. In a body, since paths get into logs and the
    link holds a secret."""

    invitation: Annotated[str, Field(max_length=LINK_LENGTH_MAX)]


class DeviceBody(_Body):
    """A link for a further device."""

    expiresSec: _Seconds = 3600  # noqa: N815


class JoinBody(_Body):
    """A link to join with."""

    link: Annotated[str, Field(max_length=LINK_LENGTH_MAX)]
    name: Annotated[str, Field(max_length=NAME_LENGTH_MAX)] | None = None
    roles: _Roles | None = None
    waitSec: float = Field(default=0, ge=0, le=_WAIT_S_MAX)  # noqa: N815


class ApproveBody(_Body):
    """Roles for who asks; none: those that he asks for."""

    roles: _Roles | None = None


def join_routes(app: FastAPI, joins: JoinsFacade) -> None:
    """Add the routes."""
    _link_routes(app, joins)

    @app.post("/api/v1/joins")
    async def join(body: JoinBody) -> JSONResponse:
        """Join by link. Goes on in the background when `waitSec` is over."""
        return JSONResponse(await joins.join(body.link, body.name, body.roles, body.waitSec))

    @app.get("/api/v1/joins")
    async def all_joins() -> JSONResponse:
        """Joins that are under way, and how those before ended."""
        return JSONResponse({"joins": joins.all()})

    @app.get("/api/v1/joins/{service}")
    async def joined(
        service: str,
        waitSec: Annotated[float, Query(ge=0, le=_WAIT_S_MAX)] = 0,  # noqa: N803
    ) -> JSONResponse:
        """How far a join is; waits for its end at most `waitSec`."""
        return JSONResponse(await joins.joined(service, waitSec))

    @app.post("/api/v1/services/{name}/leave")
    async def leave(name: str) -> JSONResponse:
        """Leave a service: requests are withdrawn, runs given back, admins asked to take this node
        off."""
        return JSONResponse(await joins.leave(name))

    @app.post("/api/v1/services/{name}/decline")
    async def decline(name: str) -> JSONResponse:
        """Keep a service that names this node away for good."""
        return JSONResponse(await joins.decline(name))

    @app.get("/api/v1/services/{name}/requests")
    async def requests(name: str) -> JSONResponse:
        """Who asks to be let in without an invitation's token."""
        return JSONResponse({"requests": joins.requests(name)})

    @app.post("/api/v1/services/{name}/requests/{request}/approve")
    async def approve(name: str, request: str, body: ApproveBody) -> JSONResponse:
        """Let somebody in who asked."""
        return JSONResponse(await joins.approve(name, request, body.roles))

    @app.post("/api/v1/services/{name}/requests/{request}/deny")
    async def deny(name: str, request: str) -> JSONResponse:
        """Refuse somebody who asked."""
        return JSONResponse(await joins.deny(name, request))


def _link_routes(app: FastAPI, joins: JoinsFacade) -> None:
    @app.post("/api/v1/services/{name}/invitations")
    async def invite(name: str, body: InviteBody) -> JSONResponse:
        """Make a link that somebody joins with."""
        made = await joins.invite(name, body.roles, body.uses, body.expiresSec, body.approve)
        return JSONResponse(made)

    @app.get("/api/v1/services/{name}/invitations")
    async def invitations(name: str) -> JSONResponse:
        """Invitations that are open."""
        return JSONResponse({"invitations": joins.invitations(name)})

    @app.post("/api/v1/services/{name}/uninvite")
    async def uninvite(name: str, body: UninviteBody) -> JSONResponse:
        """Withdraw an invitation."""
        return JSONResponse(await joins.uninvite(name, body.invitation))

    @app.post("/api/v1/services/{name}/devices")
    async def link_device(name: str, body: DeviceBody) -> JSONResponse:
        """Make a link for a further device of this member."""
        return JSONResponse(joins.link_device(name, body.expiresSec))
