"""Routes about many jobs: submit by key, search, changes as they happen."""

from typing import Annotated, Any

from fastapi import FastAPI, Header, Query, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from pairio_node.api.batch import BatchBody, submit_all
from pairio_node.api.console import Closing
from pairio_node.api.facade import NodeFacade
from pairio_node.api.models import JobDefinition, Status, SubmitBody
from pairio_node.search import JobQuery
from pairio_node.watching import ALIVE_S, ALIVE_S_MAX, ALIVE_S_MIN, REQUESTS_MAX, WatchQuery
from pairio_protocol.limits import NAME_LENGTH_MAX, TAGS_MAX, TEXT_LENGTH_MAX, URL_LENGTH_MAX

__all__ = ["WAIT_S_MAX", "many_job_routes"]

#: How long a call may wait for a job, in seconds.
WAIT_S_MAX = 60.0
_PAGE_MAX = 1000
_Key = Annotated[str, Header(alias="Idempotency-Key", max_length=NAME_LENGTH_MAX)]


class _FindBody(BaseModel):
    """A definition that is looked for, not submitted."""

    model_config = ConfigDict(extra="forbid")

    serviceName: Annotated[str, Field(max_length=TEXT_LENGTH_MAX)] | None = None  # noqa: N815
    jobDefinition: JobDefinition  # noqa: N815


class _UrlBody(BaseModel):
    """A URL whose content is wanted here."""

    model_config = ConfigDict(extra="forbid")

    url: Annotated[str, Field(max_length=URL_LENGTH_MAX)]


def many_job_routes(app: FastAPI, node: NodeFacade) -> None:
    """Add the routes."""

    @app.post("/api/v1/jobs")
    async def submit(
        body: SubmitBody,
        key: _Key = "",
        waitSec: Annotated[float, Query(ge=0, le=WAIT_S_MAX)] = 0,  # noqa: N803
    ) -> JSONResponse:
        """Submit a job, or find its result. Answers the job; with `waitSec` when it is final and
        safe, or that time is over. A second call with the same `Idempotency-Key` answers the
        same."""
        job = await node.submits.submit(body.model_dump(), key)
        if waitSec and not job["isSettled"]:
            job = await node.jobs.wait(job["requestId"], job["serviceId"], waitSec)
        return JSONResponse(job)

    @app.post("/api/v1/jobs/batch")
    async def submit_batch(body: BatchBody, key: _Key = "") -> JSONResponse:
        """Submit many jobs: `{"jobs": [...]}` in their order, `{"error": ...}` in the place of each
        that failed."""
        return JSONResponse({"jobs": await submit_all(node.submits.submit, body.jobs, key)})

    @app.post("/api/v1/jobs/find")
    async def find(body: _FindBody) -> JSONResponse:
        """The job of a definition if there is one, without submitting it."""
        definition = body.jobDefinition.model_dump()
        return JSONResponse(await node.search.by_definition(definition, body.serviceName))

    @app.delete("/api/v1/jobs/{job_id}")
    async def hide(job_id: str, serviceName: str | None = None) -> JSONResponse:  # noqa: N803
        """Hide a job here. Records, results and statistics stay."""
        return JSONResponse({"hidden": node.hiding.hide_job(job_id, serviceName)})

    @app.post("/api/v1/content/urls")
    async def pin_url(body: _UrlBody) -> JSONResponse:
        """Fetch what a URL gives and keep it as content; answers its CID and size."""
        return JSONResponse(await node.url_pins.add(body.url))

    _search_route(app, node)
    _event_route(app, node)


def _search_route(app: FastAPI, node: NodeFacade) -> None:
    @app.get("/api/v1/jobs")
    async def jobs(
        serviceName: str | None = None,  # noqa: N803
        userId: str | None = None,  # noqa: N803
        jobId: str | None = None,  # noqa: N803
        appName: str | None = None,  # noqa: N803
        processorName: str | None = None,  # noqa: N803
        computeClientId: str | None = None,  # noqa: N803
        batchId: str | None = None,  # noqa: N803
        status: Annotated[list[Status], Query()] = [],  # noqa: B006 - FastAPI copies it
        tag: Annotated[list[str], Query(max_length=TAGS_MAX)] = [],  # noqa: B006
        output: str | None = None,
        input_: Annotated[str | None, Query(alias="input")] = None,
        hidden: bool = False,
        limit: Annotated[int, Query(ge=1)] = 100,
        cursor: str | None = None,
    ) -> JSONResponse:
        """The jobs that match every filter, newest first; `nextCursor` leads to the next page."""
        query = JobQuery(
            service=serviceName,
            user=userId,
            job=jobId,
            app=appName,
            processor=processorName,
            node=computeClientId,
            batch=batchId,
            tags=tuple(tag),
            statuses=tuple(status),
            input_=input_,
            output=output,
            hidden=hidden,
            limit=min(limit, _PAGE_MAX),
            cursor=cursor,
        )
        page: dict[str, Any] = await node.search.page(query)
        return JSONResponse(page)


def _event_route(app: FastAPI, node: NodeFacade) -> None:
    @app.get("/api/v1/events")
    async def events(
        serviceName: str | None = None,  # noqa: N803
        batchId: str | None = None,  # noqa: N803
        jobId: str | None = None,  # noqa: N803
        requestId: Annotated[list[str], Query(max_length=REQUESTS_MAX)] = [],  # noqa: N803, B006
        aliveSec: float = ALIVE_S,  # noqa: N803
    ) -> Response:
        """Server-Sent Events: each job that changes, with its newest state. A reader too slow for
        them is cut off and reads the states anew."""
        alive_s = max(ALIVE_S_MIN, min(aliveSec, ALIVE_S_MAX))
        query = WatchQuery(serviceName, batchId, jobId, tuple(requestId), alive_s)
        return Closing(
            node.watching.open(query),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-store"},
        )
