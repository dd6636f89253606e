"""`pairio batch ...`: many jobs under one name."""

import sys
import time
from contextlib import suppress
from typing import Annotated, Any, NoReturn

import typer

from pairio_cli import complete
from pairio_cli.follow import TimeOver, time_limit
from pairio_cli.output import as_json, data, fail, finished, note, short, table
from pairio_cli.shared import Json, SecretOption, ServiceOption, api, new_typer, part, patient_api
from pairio_cli.times import clock_s
from pairio_protocol.figures import counted

__all__ = ["batch_app"]

batch_app = new_typer("Batches: many jobs under one name (pairio submit --batch).")
BatchId = Annotated[
    str,
    typer.Argument(metavar="BATCH", help="Name of the batch.", autocompletion=complete.batches),
]
_EXIT_FAILED, _EXIT_TIMEOUT = 1, 4
_PAGE = 1000
_OPEN = ("pending", "starting", "running")
#: The last look at a batch may take so long when the time to wait is over: the node may be away.
_LAST_LOOK_S = 2.0


def _path(batch: str) -> str:
    return f"/api/v1/batches/{part(batch)}"


def _counts(batch: dict[str, Any]) -> str:
    return ", ".join(f"{count} {status}" for status, count in batch["statuses"].items())


def batch_jobs(node: Any, batch: str, service: str | None) -> list[dict[str, Any]]:
    """Return all jobs of a batch, newest first."""
    found: list[dict[str, Any]] = []
    query = {"batchId": batch, "serviceName": service, "limit": _PAGE}
    while True:
        page = node.call("GET", "/api/v1/jobs", None, query)
        found += page["jobs"]
        if not page["nextCursor"]:
            return found
        query["cursor"] = page["nextCursor"]


@batch_app.command("ls")
def batch_ls(
    service: ServiceOption = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many at most.")] = 50,
    json: Json = False,
) -> None:
    """List batches, newest first. Example: pairio batch ls"""
    query = {"serviceName": service, "limit": limit}
    found = api().call("GET", "/api/v1/batches", None, query)["batches"]
    if json:
        as_json(found)
        return
    rows = [
        [
            batch["batchId"],
            batch["serviceName"],
            str(batch["jobs"]),
            _counts(batch),
            clock_s(batch["timestampCreatedSec"]),
        ]
        for batch in found
    ]
    table(["BATCH", "SERVICE", "JOBS", "STATUS", "BEGAN"], rows, "No batch is known here")


@batch_app.command("show")
def batch_show(batch: BatchId, service: ServiceOption = None, json: Json = False) -> None:
    """Show a batch and its jobs. Example: pairio batch show nightly"""
    from pairio_cli.jobs import show_jobs

    node = api()
    found = node.call("GET", _path(batch), None, {"serviceName": service})
    jobs = batch_jobs(node, batch, found["serviceName"])
    if json:
        as_json({**found, "members": jobs})
        return
    data(f"batch      {found['batchId']}")
    data(f"service    {found['serviceName']}")
    data(f"jobs       {found['jobs']}: {_counts(found)}")
    show_jobs(jobs)


@batch_app.command("wait")
def batch_wait(
    batch: BatchId,
    service: ServiceOption = None,
    timeout: Annotated[float | None, typer.Option(min=0, help="Seconds at most.")] = None,
    json: Json = False,
) -> None:
    """Wait until every job of a batch is over. Example: pairio batch wait nightly"""
    node = patient_api()
    found = node.call("GET", _path(batch), None, {"serviceName": service})
    found = _waited(node, found, None if timeout is None else time.monotonic() + timeout)
    if json:
        as_json(found)
    else:
        data(_counts(found))
    if not found["isOver"]:
        note("error: the time to wait is over; the batch goes on")
        note(f"\nhint: pairio batch show {batch}")
        sys.exit(_EXIT_TIMEOUT)
    if found["statuses"].get("completed", 0) != found["jobs"]:
        note(f"error: not every job of batch {batch!r} completed: {_counts(found)}")
        note(f"\nhint: pairio batch retry {batch}, or pairio batch show {batch}")
        sys.exit(_EXIT_FAILED)
    finished(f"Completed {counted(found['jobs'], 'job')} of batch {batch!r}")


def _waited(node: Any, batch: dict[str, Any], ends_s: float | None) -> dict[str, Any]:
    """Wait for one open job after the other, as its end is told; return the batch at the end, or
    as it is at `ends_s` (monotonic)."""
    query = {"serviceName": batch["serviceName"]}
    with suppress(TimeOver):
        while True:
            with time_limit(_left_s(ends_s)):
                jobs = batch_jobs(node, batch["batchId"], batch["serviceName"])
            waiting = [job for job in jobs if job["status"] in _OPEN]
            for job in waiting:
                node.wait_for(job, ends_s)
            with time_limit(_left_s(ends_s)):
                batch = node.call("GET", _path(batch["batchId"]), None, query)
            is_late = ends_s is not None and time.monotonic() >= ends_s
            if batch["isOver"] or is_late or not waiting:
                break
    return batch


def _left_s(ends_s: float | None) -> float | None:
    return None if ends_s is None else max(0.0, ends_s - time.monotonic()) + _LAST_LOOK_S


@batch_app.command("cancel")
def batch_cancel(batch: BatchId, service: ServiceOption = None, json: Json = False) -> None:
    """Withdraw your jobs of a batch that are not over. Example: pairio batch cancel nightly"""
    found = api().call("DELETE", _path(batch), None, {"serviceName": service})
    if json:
        as_json(found)
    finished(f"Canceled {counted(found['canceled'], 'job')} of batch {batch!r}")


@batch_app.command("retry")
def batch_retry(
    batch: BatchId,
    service: ServiceOption = None,
    secret: SecretOption = None,
    json: Json = False,
) -> None:
    """Submit again what failed or was canceled in a batch. Example: pairio batch retry nightly"""
    from pairio._again import again_body
    from pairio_cli.secret import secrets_again

    node = patient_api()
    found = node.call("GET", _path(batch), None, {"serviceName": service})
    jobs = batch_jobs(node, batch, found["serviceName"])
    latest = {job["jobId"]: job for job in reversed(jobs)}  # newest first: the last one stays
    again = [job for job in latest.values() if job["status"] in ("failed", "canceled")]
    secrets = secrets_again(node, again, secret or [], f"pairio batch retry {batch}")
    made: list[dict[str, Any]] = []
    for start in range(0, len(again), _PAGE):
        page = slice(start, start + _PAGE)
        bodies = [
            again_body(job, skip_cache=False, secrets=values)
            for job, values in zip(again[page], secrets[page], strict=True)
        ]
        made += node.submit({"jobs": bodies}, many=True)["jobs"]
    refused = [job["error"]["message"] for job in made if "jobId" not in job]
    if json:
        as_json(made)
    else:
        for job in made:
            if "jobId" in job:
                data(job["jobId"])
    for words in dict.fromkeys(refused):
        note(f"refused: {words}")
    finished(f"Submitted {counted(len(made) - len(refused), 'job')} of batch {batch!r} again")
    blocked = [job for job in latest.values() if job["status"] == "blocked"]
    if blocked and not made:
        _say_blocked(node, blocked)
    if refused:
        note(f"error: {len(refused)} jobs were refused")
        note(f"\nhint: pairio batch show {batch}")
        sys.exit(_EXIT_FAILED)


def _say_blocked(node: Any, blocked: list[dict[str, Any]]) -> NoReturn:
    """Leave with what failed elsewhere, on which jobs of a batch rest."""
    first = blocked[0]
    path, query = f"/api/v1/jobs/{first['requestId']}/why", {"serviceName": first["serviceName"]}
    failed = node.call("GET", path, None, query).get("failedJob")
    fail(
        f"{counted(len(blocked), 'job')} blocked by what is not in the batch: {first['error']}",
        f"mend it, then pairio job rerun {short(failed)}; they go on then",
        _EXIT_FAILED,
    )
