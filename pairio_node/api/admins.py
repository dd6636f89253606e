"""The API's routes about what admins do to a service."""

from fastapi import FastAPI
from fastapi.responses import JSONResponse

from pairio_node.api.facade import AdminsFacade
from pairio_node.api.models import AdminsBody, GrantBody, RenameBody, RevokeBody, SignBody

__all__ = ["admin_routes"]

_ONE = "/api/v1/services/{name}"


def admin_routes(app: FastAPI, admins: AdminsFacade) -> None:
    """Add the routes."""

    @app.post(f"{_ONE}/grant")
    async def grant(name: str, body: GrantBody) -> JSONResponse:
        """Give a peer or member roles. Answers the service with `changed` and `proposal`."""
        return JSONResponse(await admins.grant(name, body.who, body.roles, body.name))

    @app.post(f"{_ONE}/revoke")
    async def revoke(name: str, body: RevokeBody) -> JSONResponse:
        """Take roles, or membership, from a member or one of its keys."""
        done = await admins.revoke(name, body.who, body.roles, body.sinceUnixMs)
        return JSONResponse(done)

    @app.post(f"{_ONE}/rename")
    async def rename(name: str, body: RenameBody) -> JSONResponse:
        """Rename a member, or the service."""
        if body.member is None:
            return JSONResponse(await admins.rename_here(name, body.name))
        return JSONResponse(await admins.rename_member(name, body.member, body.name))

    @app.post(f"{_ONE}/admins")
    async def set_admins(name: str, body: AdminsBody) -> JSONResponse:
        """Replace the admins and how many of them must sign."""
        return JSONResponse(await admins.set_admins(name, body.admins, body.threshold))

    @app.delete(_ONE)
    async def end(name: str) -> JSONResponse:
        """End a service, as its admins. Nothing can be submitted to it any more."""
        return JSONResponse(await admins.end(name))

    @app.post(f"{_ONE}/sign-over")
    async def sign_over(name: str) -> JSONResponse:
        """Confirm which of two branches of the list holds."""
        return JSONResponse(await admins.sign_over(name))

    @app.delete(f"{_ONE}/apps/{{app_name}}")
    async def remove_app(name: str, app_name: str) -> JSONResponse:
        """Take an app off the list. Its results stay."""
        return JSONResponse(await admins.remove_app(name, app_name))

    @app.get(f"{_ONE}/app-history")
    async def app_history(name: str, app: str | None = None) -> JSONResponse:
        """Which versions of an app, or of all, were on the list, since when, by whom."""
        return JSONResponse({"history": admins.app_history(name, app)})

    _proposal_routes(app, admins)


def _proposal_routes(app: FastAPI, admins: AdminsFacade) -> None:
    @app.get(f"{_ONE}/proposals")
    async def proposals(name: str) -> JSONResponse:
        """Changes that wait for further admins' signatures."""
        return JSONResponse({"proposals": admins.proposals(name)})

    @app.post(f"{_ONE}/proposals/look")
    async def look(name: str, body: SignBody) -> JSONResponse:
        """What a proposal would change, in words."""
        return JSONResponse(admins.look(name, body.id, body.data))

    @app.post(f"{_ONE}/proposals/sign")
    async def sign(name: str, body: SignBody) -> JSONResponse:
        """Sign a proposal as an admin."""
        return JSONResponse(await admins.sign(name, body.id, body.data))

    @app.post(f"{_ONE}/proposals/{{proposal}}/renew")
    async def renew(name: str, proposal: str) -> JSONResponse:
        """Make the same proposal on top of the newest list."""
        return JSONResponse(await admins.renew(name, proposal))

    @app.delete(f"{_ONE}/proposals/{{proposal}}")
    async def withdraw(name: str, proposal: str) -> JSONResponse:
        """Withdraw a proposal here."""
        return JSONResponse(await admins.withdraw(name, proposal))

    @app.get(f"{_ONE}/log")
    async def log(name: str, changes: bool = False) -> JSONResponse:
        """Who changed what on the list, when, signed by whom; with `changes` also the bytes."""
        return JSONResponse(admins.log(name, with_changes=changes))
