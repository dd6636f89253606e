"""The API's routes about services: the list, consent, apps."""

from fastapi import FastAPI
from fastapi.responses import JSONResponse

from pairio_node.api.facade import ServicesFacade
from pairio_node.api.models import AppBody, NameBody

__all__ = ["service_routes"]


def service_routes(app: FastAPI, services: ServicesFacade) -> None:
    """Add the routes."""

    @app.get("/api/v1/services")
    async def all_services() -> JSONResponse:
        """The services of this node."""
        return JSONResponse({"services": services.all()})

    @app.post("/api/v1/services")
    async def create(body: NameBody) -> JSONResponse:
        """Create a service; this node becomes its admin and may submit and compute."""
        return JSONResponse(await services.create(body.name))

    @app.get("/api/v1/services/{name}")
    async def service(name: str) -> JSONResponse:
        """One service: members, roles, apps, who is there."""
        return JSONResponse(services.one(name))

    @app.post("/api/v1/services/{name}/accept")
    async def accept(name: str) -> JSONResponse:
        """Take up a service that this node was put on the list of."""
        return JSONResponse(await services.accept(name))

    @app.get("/api/v1/offers")
    async def offers() -> JSONResponse:
        """Services that name this node and wait for its owner's consent."""
        return JSONResponse({"offers": services.offers()})

    @app.get("/api/v1/services/{name}/apps")
    async def apps(name: str) -> JSONResponse:
        """The apps of a service with their processors."""
        return JSONResponse({"apps": services.apps(name)})

    @app.post("/api/v1/services/{name}/apps")
    async def install(name: str, body: AppBody) -> JSONResponse:
        """Install or update an app: a directory of this machine, or a shipped app's name."""
        return JSONResponse(await services.install_app(name, body.source, body.image))
