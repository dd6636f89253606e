"""Many submits in one call: answers in order, an error object in place of each that failed."""

from collections.abc import Awaitable, Callable
from typing import Any

import trio
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pairio_node.api.models import SubmitBody
from pairio_node.errors import UserError

__all__ = ["BATCH_JOBS_MAX", "BatchBody", "submit_all"]

#: Jobs in one call. The body's own limit (8 MiB) is reached first by large definitions.
BATCH_JOBS_MAX = 5_000


#: Submits one job, by a key if it is not empty.
Submit = Callable[[dict[str, Any], str], Awaitable[dict[str, Any]]]


class BatchBody(BaseModel):
    """Jobs, each as for `POST /api/v1/jobs`; one that is malformed fails alone."""

    model_config = ConfigDict(extra="forbid")

    jobs: list[Any] = Field(max_length=BATCH_JOBS_MAX)


async def submit_all(submit: Submit, entries: list[Any], key: str = "") -> list[dict[str, Any]]:
    """Submit all at once; returns the job, or `{"error": {message, hint, code}}`, of each. With a
    key each has its own, so that the same call made again submits what is missing."""
    answers: list[dict[str, Any]] = [{} for _ in entries]

    async def submit_one(number: int, entry: Any) -> None:
        try:
            body = SubmitBody.model_validate(entry)
            answers[number] = await submit(body.model_dump(), f"{key}/{number}" if key else "")
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or "job"
            answers[number] = _error(f"{where}: {first['msg']}", "see /openapi.json", "invalid")
        except UserError as error:
            answers[number] = _error(error.message, error.hint, error.code)

    async with trio.open_nursery() as nursery:
        for number, entry in enumerate(entries):
            nursery.start_soon(submit_one, number, entry)
    return answers


def _error(message: str, hint: str | None, code: str) -> dict[str, Any]:
    return {"error": {"message": message, "hint": hint, "code": code}}
