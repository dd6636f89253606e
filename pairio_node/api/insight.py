"""Routes that say what is known: what would become of a job, why it was a hit or a miss, on what
it rests; batches; the nodes of members."""

from typing import TYPE_CHECKING, Annotated

from fastapi import FastAPI, Query
from fastapi.responses import JSONResponse

from pairio_node.api.models import SubmitBody

if TYPE_CHECKING:
    from pairio_node.api.facade import NodeFacade

__all__ = ["insight_routes"]

_BATCHES_MAX = 1000


def insight_routes(app: FastAPI, node: "NodeFacade") -> None:
    """Add the routes."""
    told = node.insight

    @app.post("/api/v1/jobs/plan")
    async def plan(body: SubmitBody) -> JSONResponse:
        """What a submit of this body would do, without doing it: the job id, hit or miss and why,
        who could run it."""
        return JSONResponse(await told.plans.plan(body.model_dump()))

    @app.get("/api/v1/jobs/{job_id}/explain")
    async def explain(
        job_id: str,
        serviceName: str | None = None,  # noqa: N803
        other: Annotated[str | None, Query(alias="with")] = None,
    ) -> JSONResponse:
        """Why a job was a hit or a miss: the nearest earlier job, and the difference field by
        field."""
        return JSONResponse(await told.explain.job(job_id, serviceName, other))

    @app.get("/api/v1/jobs/{job_id}/graph")
    async def graph(job_id: str, serviceName: str | None = None) -> JSONResponse:  # noqa: N803
        """The job with all that it rests on, as nodes and edges."""
        return JSONResponse(told.graphs.of(job_id, serviceName))

    @app.get("/api/v1/nodes")
    async def nodes(serviceName: str | None = None) -> JSONResponse:  # noqa: N803
        """Nodes of the members: alive, what they have free, what they run."""
        return JSONResponse({"nodes": told.nodes.all(serviceName)})

    @app.get("/api/v1/batches")
    async def batches(
        serviceName: str | None = None,  # noqa: N803
        limit: Annotated[int, Query(ge=1, le=_BATCHES_MAX)] = 100,
    ) -> JSONResponse:
        """Batches of this node, with how many of their jobs are where."""
        return JSONResponse({"batches": await told.batches.all(serviceName, limit)})

    @app.get("/api/v1/batches/{batch:path}")
    async def batch(batch: str, serviceName: str | None = None) -> JSONResponse:  # noqa: N803
        """One batch: its jobs, and how many of them are where."""
        return JSONResponse(await told.batches.one(batch, serviceName))

    @app.delete("/api/v1/batches/{batch:path}")
    async def cancel(batch: str, serviceName: str | None = None) -> JSONResponse:  # noqa: N803
        """Withdraw this member's requests for the jobs of a batch."""
        return JSONResponse(await told.batches.cancel(batch, serviceName))
