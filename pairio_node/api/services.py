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
        return JSONResponse({"services": services.all()})

    @app.post("/api/v1/services")
    async def create(body: NameBody) -> JSONResponse:
        return JSONResponse(await services.create(body.name))

    @app.get("/api/v1/services/{name}")
    async def service(name: str) -> JSONResponse:
        return JSONResponse(services.one(name))

    @app.post("/api/v1/services/{name}/accept")
    async def accept(name: str) -> JSONResponse:
        return JSONResponse(await services.accept(name))

    @app.get("/api/v1/offers")
    async def offers() -> JSONResponse:
        return JSONResponse({"offers": services.offers()})

    @app.get("/api/v1/services/{name}/apps")
    async def apps(name: str) -> JSONResponse:
        return JSONResponse({"apps": services.apps(name)})

    @app.post("/api/v1/services/{name}/apps")
    async def install(name: str, body: AppBody) -> JSONResponse:
        return JSONResponse(await services.install_app(name, body.source, body.image))
