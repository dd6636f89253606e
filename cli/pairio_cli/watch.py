"""`pairio watch`: the service as it lives; on a dumb terminal, or piped, a line for
each change."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from typing import Annotated, Any

import typer

from pairio_cli.nodes import HEADERS, node_rows
from pairio_cli.output import as_json, as_lines, data, note, short, shorts
from pairio_cli.shared import ServiceOption, part
from pairio_cli.shown import status_words
from pairio_protocol.figures import counted

__all__ = ["watch"]

#: A screen is drawn at most so often.
_DRAW_S = 0.5
#: Nodes come and go without a job that changes: they are looked at so often.
_LOOK_S = 3.0
_JOBS = 15
#: Jobs of which the last line is remembered, so that none comes twice.
_SAID_MAX = 10_000
_CLEAR = "\x1b[H\x1b[2J"


def watch(
    service: ServiceOption = None,
    once: Annotated[bool, typer.Option("--once", help="Show it once and end.")] = False,
    json: Annotated[
        bool, typer.Option("--json", help="Print changes as JSON, a document a line.")
    ] = False,
) -> None:
    """Watch nodes and jobs as they change, until Ctrl-C. Example: pairio watch"""
    from pairio._http import Api

    with closing(Api()) as api, closing(Api()) as streamed:
        if once:
            if json:
                nodes, jobs = _looked(api, service)
                as_json({"nodes": nodes, "jobs": jobs})
                return
            for line in _screen(api, service):
                data(line)
            return
        if json:
            for event in streamed.events("/api/v1/events", {"serviceName": service}):
                if event.kind == "job":
                    as_json(event.data, one_line=True)
        elif sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb":
            _redraw(api, streamed, service)
        else:
            _print_lines(api, streamed, service)
    note("The node has stopped")


def _print_lines(api: Any, streamed: Any, service: str | None) -> None:
    said: dict[str, str] = {}
    for event in streamed.events("/api/v1/events", {"serviceName": service}):
        if event.kind != "job":
            continue
        job = event.data
        where = f" on {short(job['computeNodeId'])}" if job["computeNodeId"] else ""
        error = f": {job['error']}" if job["error"] else ""
        how = f"{job['status']}{' (cached)' if job['cached'] else ''}{where}{error}"
        if said.pop(job["requestId"], "") != how:  # else how far it is, or how safe its result
            when = time.strftime("%H:%M:%S")
            data(f"{when}  {short(job['jobId'])}  {_processor(api, job)}  {how}")
            sys.stdout.flush()
        said[job["requestId"]] = how
        if len(said) > _SAID_MAX:
            del said[next(iter(said))]


def _processor(api: Any, event: Any) -> str:
    query = {"serviceName": event["serviceName"]}
    job = api.call("GET", f"/api/v1/jobs/{part(event['requestId'])}", None, query)
    return f"{job['jobDefinition']['appName']}/{job['jobDefinition']['processorName']}"


def _redraw(api: Any, streamed: Any, service: str | None) -> None:
    """Draw the screen anew when a job changes, and now and then for the nodes."""
    import threading

    from pairio.errors import PairioError

    changed, over = threading.Event(), threading.Event()

    def listen() -> None:
        with suppress(PairioError):  # the next look at the node says why
            for _ in streamed.events("/api/v1/events", {"serviceName": service}):
                changed.set()
        over.set()
        changed.set()

    threading.Thread(target=listen, daemon=True).start()
    while not over.is_set():
        height, width = _size()
        lines = [line[:width] for line in _screen(api, service)][:height]
        sys.stdout.write(_CLEAR + "\n".join(lines))
        sys.stdout.flush()
        over.wait(_DRAW_S)
        changed.wait(_LOOK_S)
        changed.clear()


def _size() -> tuple[int, int]:
    import shutil

    size = shutil.get_terminal_size()
    return max(5, size.lines - 1), max(20, size.columns)


def _looked(api: Any, service: str | None) -> tuple[list[Any], list[Any]]:
    """Return the nodes, and the newest jobs."""
    query = {"serviceName": service}
    nodes = api.call("GET", "/api/v1/nodes", None, query)["nodes"]
    return nodes, api.call("GET", "/api/v1/jobs", None, {**query, "limit": _JOBS})["jobs"]


def _screen(api: Any, service: str | None) -> Iterator[str]:
    """Yield the lines of a screen: nodes, then the newest jobs."""
    nodes, jobs = _looked(api, service)
    running = sum(node["running"] for node in nodes)
    alive = sum(node["isAlive"] for node in nodes)
    yield f"pairio  {service or 'all services'}  {time.strftime('%H:%M:%S')}  " + (
        f"{alive} of {counted(len(nodes), 'node')} alive, {counted(running, 'run')}"
    )
    yield ""
    yield from as_lines(HEADERS, node_rows(nodes))
    yield ""
    ends = shorts(job["jobId"] for job in jobs)
    rows = [
        [
            ends[job["jobId"]],
            f"{job['jobDefinition']['appName']}/{job['jobDefinition']['processorName']}",
            status_words(job) + (" (cached)" if job["cached"] else ""),
            short(job["computeNodeId"]),
            _age(job["timestampCreatedSec"]),
            job["error"] or "",
        ]
        for job in jobs
    ]
    yield from as_lines(["JOB", "PROCESSOR", "STATUS", "NODE", "AGE", "ERROR"], rows)


def _age(unix_s: float) -> str:
    seconds = max(0, int(time.time() - unix_s))
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"
