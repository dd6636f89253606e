"""`pairio job ...`: jobs that were submitted."""

import sys
import time
from typing import Annotated, Any

import click
import typer

from pairio_cli import complete, insight, results
from pairio_cli.follow import follow, followed
from pairio_cli.output import as_json, data, fail, finished, note, short, shorts, table
from pairio_cli.shared import (
    JobId,
    Json,
    SecretOption,
    ServiceOption,
    api,
    new_typer,
    part,
    patient_api,
)
from pairio_cli.shown import on_stdout, status_words
from pairio_protocol.figures import counted
from pairio_protocol.printable import PrintableStream

__all__ = ["job_app", "show_jobs"]

job_app = new_typer("Jobs: how they are, why, what they write and rest on.")
job_app.command("provenance")(results.provenance)
_STATUSES = ("pending", "starting", "running", "completed", "failed", "canceled", "blocked")
_EXIT_FAILED, _EXIT_TIMEOUT = 1, 4
_PAGE = 1000
_Name = Annotated[str | None, typer.Option(help="Those of this member only, by name or key.")]


def _path(job_id: str, rest: str = "") -> str:
    return f"/api/v1/jobs/{part(job_id)}{rest}"


def _get(job_id: str, service: str | None, rest: str = "") -> Any:
    return api().call("GET", _path(job_id, rest), None, {"serviceName": service})


@job_app.command("ls")
def job_ls(
    service: ServiceOption = None,
    status: Annotated[
        str | None,
        typer.Option(click_type=click.Choice(_STATUSES), help="Jobs in this state only."),
    ] = None,
    tag: Annotated[
        list[str] | None, typer.Option(help="With this tag only; given again: with all of them.")
    ] = None,
    output: Annotated[
        str | None, typer.Option(metavar="CID", help="Jobs that made this content only.")
    ] = None,
    input_: Annotated[
        str | None,
        typer.Option("--input", metavar="CID|URL", help="Jobs that used it only."),
    ] = None,
    user: _Name = None,
    app: Annotated[str | None, typer.Option(help="Jobs of this app only.")] = None,
    processor: Annotated[str | None, typer.Option(help="Jobs of this processor only.")] = None,
    node: Annotated[str | None, typer.Option(help="Computed by this member or node only.")] = None,
    batch: Annotated[
        str | None, typer.Option(help="Of this batch only.", autocompletion=complete.batches)
    ] = None,
    hidden: Annotated[bool, typer.Option("--hidden", help="Also those that were hidden.")] = False,
    limit: Annotated[int, typer.Option(min=1, help="How many at most.")] = 50,
    json: Json = False,
) -> None:
    """List jobs, newest first. Example: pairio job ls --status running"""
    query = {"serviceName": service, "status": status, "output": output, "input": input_}
    query |= {"userId": user, "appName": app, "processorName": processor, "batchId": batch}
    query |= {"computeClientId": node, "hidden": "true" if hidden else None}
    jobs, more = _pages({k: v for k, v in query.items() if v is not None}, tag or [], limit)
    if json:
        as_json(jobs)
    else:
        show_jobs(jobs)
    if more:
        note(f"There are more: --limit {limit * 2}")


def _pages(query: dict[str, Any], tags: list[str], limit: int) -> tuple[list[Any], bool]:
    """Return the jobs that match, at most `limit`, and whether there are more."""
    node, cursor = api(), None
    found: list[Any] = []
    while True:
        more = {"tag": tags, "limit": min(_PAGE, limit - len(found)), "cursor": cursor}
        page = node.call("GET", "/api/v1/jobs", None, {**query, **more})
        found += page["jobs"]
        cursor = page.get("nextCursor")
        if not cursor or len(found) >= limit:
            return found, bool(cursor)


def show_jobs(jobs: list[dict[str, Any]]) -> None:
    """Print jobs as a table."""
    ends = shorts(job["jobId"] for job in jobs)
    rows = [
        [
            ends[job["jobId"]],
            f"{job['jobDefinition']['appName']}/{job['jobDefinition']['processorName']}",
            status_words(job),
            short(job["computeNodeId"]),
            ",".join(job["tags"]),
        ]
        for job in jobs
    ]
    table(["JOB", "PROCESSOR", "STATUS", "NODE", "TAGS"], rows, "No such job is known here")


@job_app.command("show")
def job_show(job_id: JobId, service: ServiceOption = None, json: Json = False) -> None:
    """Show a job. Example: pairio job show ID"""
    job = _get(job_id, service)
    if json:
        as_json(job)
        return
    from pairio_cli.submit import show_job

    show_job(job)


@job_app.command("why")
def job_why(job_id: JobId, service: ServiceOption = None, json: Json = False) -> None:
    """Say why a job is where it is, node by node. Example: pairio job why ID"""
    found = _get(job_id, service, "/why")
    if json:
        as_json(found)
        return
    data(found["status"] + (f": {found['error']}" if found["error"] else ""))
    if found.get("lost"):
        data(found["lost"])
    for job in found["waitsFor"]:
        data(f"waits for the result of job {job}")
    if found.get("waitsForSecretsOf"):
        data(f"waits for secrets from {found['waitsForSecretsOf']}, which is away or lost them")
    if found["attempt"]:
        data(f"{found['attempt']['state']} at {found['attempt']['node']}")
    if found.get("failedJob"):
        failed = short(found["failedJob"])
        note(f"\nhint: mend what failed, then pairio job rerun {failed}; this one goes on then")
        return
    insight.show_fits(found["nodes"])


@job_app.command("logs")
def job_logs(
    job_id: JobId,
    follow_: Annotated[
        bool, typer.Option("-f", "--follow", help="As the job writes, until it ends.")
    ] = False,
    offset: Annotated[int, typer.Option(min=0, help="Leave out so many bytes.")] = 0,
    service: ServiceOption = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print JSON; with -f a document a line, as it comes.")
    ] = False,
) -> None:
    """Print what a job writes. Example: pairio job logs -f ID"""
    if json:
        _logs_as_json(job_id, service, offset, follows=follow_)
        return
    if follow_:
        job = _get(job_id, service)
        end = follow(job["requestId"], service, on_stdout(), offset)
        _say_end(job, end["status"], end["error"])
    chunks = api().stream(_path(job_id, "/console"), _console_query(service, offset))
    if sys.stdout.isatty():
        stream = PrintableStream()
        for chunk in chunks:
            print(stream.feed(chunk), end="")
        print(stream.feed(b"", final=True), end="")
        return
    for chunk in chunks:
        sys.stdout.buffer.write(chunk)
    sys.stdout.buffer.flush()


def _logs_as_json(job_id: str, service: str | None, offset: int, *, follows: bool) -> None:
    job = _get(job_id, service)
    if not follows:
        chunks = api().stream(_path(job_id, "/console"), _console_query(service, offset))
        text = b"".join(chunks).decode(errors="replace")
        as_json({"jobId": job["jobId"], "status": job["status"], "text": text})
        return
    for event in followed(job["requestId"], service, offset):
        if event["type"] != "alive":
            as_json(event, one_line=True)
    _say_end(job, event["status"], event["error"])


def _console_query(service: str | None, offset: int) -> dict[str, Any]:
    return {"serviceName": service, "offset": offset or None}


def _say_end(job: dict[str, Any], status: str, error: str | None) -> None:
    """Leave with what became of a job."""
    name = short(job["jobId"])
    if status != "completed":
        fail(f"job {name} is {status}: {error}", f"pairio job why {name}", _EXIT_FAILED)
    finished(f"Job {name} completed")
    sys.exit(0)


@job_app.command("wait")
def job_wait(
    job_id: JobId,
    service: ServiceOption = None,
    timeout: Annotated[float | None, typer.Option(min=0, help="Seconds at most.")] = None,
    json: Json = False,
) -> None:
    """Wait until a job is over. Example: pairio job wait ID --timeout 60"""
    node = patient_api()
    job = node.call("GET", _path(job_id), None, {"serviceName": service})
    job = node.wait_for(job, None if timeout is None else time.monotonic() + timeout)
    as_json(job) if json else data(job["status"])
    name = short(job["jobId"])
    if not job["isSettled"]:
        words = f"the time to wait is over; job {name} is {job['status']} and goes on"
        fail(words, f"pairio job why {name}", _EXIT_TIMEOUT)
    _say_end(job, job["status"], job["error"])


@job_app.command("cancel")
def job_cancel(job_id: JobId, service: ServiceOption = None, json: Json = False) -> None:
    """Withdraw a job, or one request by its id. Example: pairio job cancel ID"""
    job = api().call("POST", _path(job_id, "/cancel"), None, {"serviceName": service})
    if json:
        as_json(job)
        return
    finished(f"job {job['jobId']} is {job['status']}")


@job_app.command("rerun")
def job_rerun(
    job_id: JobId,
    service: ServiceOption = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the end.")] = False,
    follow_: Annotated[
        bool, typer.Option("-f", "--follow", help="Show what it writes, and wait.")
    ] = False,
    timeout: Annotated[
        float | None, typer.Option(min=0, help="Seconds to wait at most, with --wait.")
    ] = None,
    secret: SecretOption = None,
    json: Json = False,
) -> None:
    """Run a job anew, whatever the cache has. Example: pairio job rerun ID --wait"""
    from pairio._again import again_body
    from pairio_cli.secret import secrets_again
    from pairio_cli.submit import Waiting, seen_to

    if timeout is not None and not (wait or follow_):
        fail("--timeout is given without --wait", "add --wait", 2)
    node = patient_api()
    before = node.call("GET", _path(job_id), None, {"serviceName": service})
    failed = before["status"] in ("failed", "canceled")
    [values] = secrets_again(node, [before], secret or [], f"pairio job rerun {short(job_id)}")
    body = again_body(before, skip_cache=not failed, secrets=values)
    job = node.submit(body)
    sys.exit(seen_to(node, job, Waiting(wait, follow_, timeout), json=json))


@job_app.command("rm")
def job_rm(job_id: JobId, service: ServiceOption = None, json: Json = False) -> None:
    """Leave a job out of lists on this node; it counts in statistics. Example: pairio job rm ID"""
    done = api().call("DELETE", _path(job_id), None, {"serviceName": service})
    if json:
        as_json(done)
    finished(
        f"Hidden on this node: {counted(len(done['hidden']), 'request')}; pairio job ls --hidden"
    )


job_app.command("explain")(insight.job_explain)
job_app.command("graph")(insight.job_graph)
job_app.command("script")(insight.job_script)
