"""Many submits in one call: answers in order, an error object in place of each that failed."""

from typing import Any

import trio
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pairio_node.api.facade import NodeFacade
from pairio_node.api.models import SubmitBody
from pairio_node.errors import UserError

__all__ = ["BATCH_JOBS_MAX", "BatchBody", "submit_all"]

#: Jobs in one call. The body's own limit (8 MiB) is reached first by large definitions.
BATCH_JOBS_MAX = 5_000


class BatchBody(BaseModel):
    """Jobs, each as for `POST /api/v1/jobs`; one that is malformed fails alone."""

    model_config = ConfigDict(extra="forbid")

    jobs: list[Any] = Field(max_length=BATCH_JOBS_MAX)


async def submit_all(node: NodeFacade, entries: list[Any]) -> list[dict[str, Any]]:
    """Submit all at once; returns the job, or `{"error": {message, hint, code}}`, of each."""
    answers: list[dict[str, Any]] = [{} for _ in entries]

    async def submit(number: int, entry: Any) -> None:
        try:
            body = SubmitBody.model_validate(entry)
            answers[number] = await node.submit(body.model_dump())
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or "job"
            answers[number] = _error(f"{where}: {first['msg']}", "see /openapi.json", "invalid")
        except UserError as error:
            answers[number] = _error(error.message, error.hint, error.code)

    async with trio.open_nursery() as nursery:
        for number, entry in enumerate(entries):
            nursery.start_soon(submit, number, entry)
    return answers


def _error(message: str, hint: str | None, code: str) -> dict[str, Any]:
    return {"error": {"message": message, "hint": hint, "code": code}}
