"""`pairio submit`: from arguments to a job definition, and waiting for its end."""

import json as json_module
import re
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pairio._http import Api, part
from pairio._patient import PatientApi
from pairio.errors import PairioError
from pairio_cli.content import add_input
from pairio_cli.follow import TimeOver, follow, time_limit
from pairio_cli.insight import show_plan
from pairio_cli.output import INTERRUPTED, as_json, data, elapsed_s, finished, note, short
from pairio_cli.secret import read_secrets
from pairio_cli.shown import on_stderr, status_words
from pairio_cli.times import clock_s
from pairio_protocol.figures import size_text

__all__ = [
    "Waiting",
    "Wish",
    "body_of",
    "only_service",
    "plan_wish",
    "processor_of",
    "seen_to",
    "show_job",
    "submit_wish",
]

_EXIT_FAILED, _EXIT_TIMEOUT = 1, 4


@dataclass(frozen=True)
class Wish:
    """What the command line says."""

    name: str
    service: str | None
    parameters: list[str]
    inputs: list[str]
    outputs: list[str]
    resources: dict[str, Any]
    tags: list[str]
    skip_cache: bool
    rerun_failing: bool
    nocopy: bool = False
    secrets: list[str] = field(default_factory=list)
    secrets_if_asked: list[str] = field(default_factory=list)  # for the jobs of a file that ask
    values: dict[str, Any] = field(default_factory=dict)  # parameters that are no text
    batch: str = ""
    targets: tuple[str, ...] = ()


@dataclass(frozen=True)
class Waiting:
    """Whether a submit waits for the end, shows what the job writes, and for how long."""

    wait: bool = False
    follow: bool = False
    timeout_s: float | None = None


def submit_wish(api: PatientApi, wish: Wish, waiting: Waiting, *, json: bool) -> int:
    """Submit, maybe wait, print; return the exit code."""
    return seen_to(api, api.submit(body_of(api, wish)), waiting, json=json)


def plan_wish(api: Api, wish: Wish, *, json: bool) -> int:
    """Say what would become of a job; return the exit code."""
    plan = api.call("POST", "/api/v1/jobs/plan", body_of(api, wish))
    as_json(plan) if json else show_plan(plan)
    finished("Nothing was submitted")
    return 0


def body_of(api: Api, wish: Wish) -> dict[str, Any]:
    """Return what the API takes for a wish."""
    service = wish.service or only_service(api)
    processor = processor_of(api, service, wish.name)
    secrets = _secrets(wish, processor)
    return {
        "serviceName": service,
        "jobDefinition": _definition(api, wish, processor),
        "requiredResources": wish.resources,
        "tags": wish.tags,
        "skipCache": wish.skip_cache,
        "rerunFailing": wish.rerun_failing,
        **({"batchId": wish.batch} if wish.batch else {}),
        **({"targetComputeClientIds": wish.targets} if wish.targets else {}),
        **({"secrets": secrets} if secrets else {}),
    }


def _secrets(wish: Wish, processor: dict[str, Any]) -> dict[str, str]:
    asked = processor.get("secrets") or ()
    usual = read_secrets(wish.secrets_if_asked)
    return {n: v for n, v in usual.items() if n in asked} | read_secrets(wish.secrets)


def seen_to(api: PatientApi, job: dict[str, Any], waiting: Waiting, *, json: bool) -> int:
    """Wait for a job that was submitted, if that is wanted; print it; return the exit code."""
    is_waited_for = waiting.wait or waiting.follow
    if is_waited_for:
        try:
            left_s = None
            if waiting.timeout_s is not None:
                left_s = max(0.0, waiting.timeout_s - elapsed_s())
            job = _end_of(api, job, left_s, follows=waiting.follow)
        except KeyboardInterrupt:
            as_json(job) if json else data(job["jobId"])
            note("interrupted; the job goes on")
            note(f"\nhint: pairio job show {short(job['jobId'])}, or pairio job cancel")
            return INTERRUPTED
    as_json(job) if json else data(job["jobId"])
    _say(job, elapsed_s())
    if not is_waited_for:
        return 0
    if not job["isSettled"]:
        note("error: the time to wait is over; the job goes on")
        note(f"\nhint: pairio job why {short(job['jobId'])}")
        return _EXIT_TIMEOUT
    return 0 if job["status"] == "completed" else _EXIT_FAILED


def _end_of(
    api: PatientApi, job: dict[str, Any], left_s: float | None, *, follows: bool
) -> dict[str, Any]:
    """Return a job at its end, or as it is after `left_s`."""
    ends_s = None if left_s is None else time.monotonic() + left_s
    if follows and not job["cached"]:
        with suppress(TimeOver), time_limit(left_s):
            follow(job["requestId"], job["serviceName"], on_stderr())
    return api.wait_for(job, ends_s)


def _say(job: dict[str, Any], took_s: float) -> None:
    how = "from the cache, nothing ran" if job["cached"] else f"on {short(job['computeNodeId'])}"
    if job["cached"]:
        for source in job.get("sources") or ():
            note(f"input {source_words(source)}")
    if job["status"] == "completed":
        safe = "" if job["safe"] else " (not safe yet: no other member holds a copy)"
        note(f"Completed {how} in {took_s:.2f}s{safe}")
    elif job["status"] in ("failed", "canceled", "blocked"):
        note(f"error: the job is {job['status']}: {job['error']}")
        ask = "logs" if job["consoleOutputUrl"] else "why"
        note(f"\nhint: pairio job {ask} {short(job['jobId'])}")
    else:
        copies = "" if job["replicated"] else "; no other member has stored it yet"
        note(f"Submitted, {job['status']}{copies} ({took_s:.2f}s)")
        if job.get("lost"):
            note(job["lost"])


def only_service(api: Api) -> str:
    """Return the service that is meant when none is named."""
    found = api.call("GET", "/api/v1/services")["services"]
    services = [s["serviceName"] for s in found if not s.get("ended")]
    services = services or [s["serviceName"] for s in found]
    if len(services) == 1:
        return str(services[0])
    if not services:
        raise PairioError("this node is in no service", "pairio service create NAME")
    raise PairioError(
        "this node is in several services", f"name one: --service {' | '.join(services)}"
    )


def processor_of(api: Api, service: str, name: str) -> dict[str, Any]:
    """Return what a service's list says of APP/PROCESSOR.

    Raises:
        PairioError: it is not there.
    """
    app_name, _, processor_name = name.partition("/")
    apps = api.call("GET", f"/api/v1/services/{part(service)}/apps")["apps"]
    for app in apps:
        if app["appName"] != app_name:
            continue
        processors = app["appSpecification"]["processors"]
        for processor in processors:
            if processor["name"] == processor_name:
                return {**processor, "app": app_name}
        known = ", ".join(f"{app_name}/{p['name']}" for p in processors)
        raise PairioError(f"app {app_name!r} has no processor {processor_name!r}", f"use {known}")
    known = ", ".join(a["appName"] for a in apps) or "none"
    raise PairioError(f"service {service!r} has no app {app_name!r}", f"its apps: {known}")


def _definition(api: Api, wish: Wish, processor: dict[str, Any]) -> dict[str, Any]:
    types = {p["name"]: p["type"] for p in processor["parameters"]}
    bases = dict(_pairs(wish.outputs, "-o"))
    outputs = [o["name"] for o in processor["outputs"]]
    for name in bases:
        if name not in outputs:
            known = f"its outputs: {', '.join(outputs) or 'none'}"
            raise PairioError(f"processor {wish.name!r} has no output {name!r}", known)
    return {
        "appName": processor["app"],
        "processorName": processor["name"],
        "inputFiles": [_input(api, n, v, wish.nocopy) for n, v in _pairs(wish.inputs, "-i")],
        "outputFiles": [{"name": name, "fileBaseName": bases.get(name)} for name in outputs],
        "parameters": [
            {"name": n, "value": _value(n, v, types.get(n, "str"))}
            for n, v in _pairs(wish.parameters, "-p")
        ]
        + [{"name": name, "value": value} for name, value in wish.values.items()],
    }


def _pairs(given: list[str], flag: str) -> list[tuple[str, str]]:
    pairs = []
    for text in given:
        name, found, value = text.partition("=")
        if not found or not name:
            raise PairioError(f"{flag} {text!r} is not name=value", f"write {flag} name=value")
        pairs.append((name, value))
    return pairs


#: A CID of version 0.
_V0 = re.compile("Qm[1-9A-HJ-NP-Za-km-z]{44}")


def _input(api: Api, name: str, value: str, nocopy: bool) -> dict[str, Any]:
    if "://" in value or value.startswith(("job:", "bafk", "bafy")) or _V0.fullmatch(value):
        return {"name": name, "url": value}
    path = Path(value).expanduser()
    if not value or not path.exists():  # "" would be the folder that this runs in
        raise PairioError(
            f"input {name!r}: there is no file {value!r}" if value else f"input {name!r} is empty",
            "give a file or folder, an http(s) URL, a CID, or job:ID/OUTPUT",
        )
    added = add_input(api, path, nocopy)
    base_name = path.name or path.resolve().name or name
    return {"name": name, "url": f"ipfs://{added['cid']}", "fileBaseName": base_name}


def _value(name: str, text: str, kind: str) -> Any:
    """Return a parameter's value from its text; the node refuses what is not of its type."""
    inner = kind.removeprefix("Optional[").removesuffix("]") if kind.startswith("Opt") else kind
    if inner == "str":
        return text
    try:
        value = json_module.loads(text)
    except ValueError:
        lowered = text.lower()
        return {"true": True, "false": False}.get(lowered, text)
    return value


def show_job(job: dict[str, Any]) -> None:
    """Print a job for people."""
    definition = job["jobDefinition"]
    for label, value in (
        ("job", job["jobId"]),
        ("processor", f"{definition['appName']}/{definition['processorName']}"),
        ("service", job["serviceName"]),
        ("status", status_words(job) + (" (cached)" if job["cached"] else "")),
        ("error", job["error"]),
        ("lost", job.get("lost")),
        ("node", job["computeNodeId"]),
        ("safe", "yes" if job["safe"] else "no"),
        ("used", usage_words(job.get("usage") or {})),
        ("page", job["jobUrl"]),
    ):
        if value:
            data(f"{label:<10} {value}")
    for parameter in definition["parameters"]:
        data(f"{'parameter':<10} {parameter['name']} = {parameter['value']!r}")
    for source in job.get("sources") or ():
        data(f"{'input':<10} {source_words(source)}")
    for output in job["outputFileResults"]:
        size = "not there yet" if output["size"] is None else size_text(output["size"])
        data(f"{'output':<10} {output['name']} ({output['fileBaseName']}): {size}")
    for attempt in job["attempts"]:
        began, ended = (
            clock_s(attempt["timestampStartedSec"]),
            clock_s(attempt["timestampEndedSec"]),
        )
        how = ": ".join(part for part in (attempt["ended"], attempt["reason"]) if part)
        span = f"{began} to {ended}, {how}" if ended else f"since {began}"
        data(f"{'attempt':<10} on {attempt['computeNodeId']}, {span}")


def usage_words(usage: dict[str, int]) -> str:
    """Say what a run used; empty where nothing was counted."""
    if not usage.get("wall_ms"):
        return ""
    parts = [f"{usage['wall_ms'] / 1000:.2f} s", f"{usage.get('cpu_ms', 0) / 1000:.2f} s of CPU"]
    for key, what in (
        ("memory_peak_bytes", "memory"),
        ("disk_peak_bytes", "disk"),
        ("read_bytes", "read"),
        ("written_bytes", "written"),
    ):
        if usage.get(key):
            parts.append(f"{what} {size_text(usage[key])}")
    return ", ".join(parts)


def source_words(source: dict[str, Any]) -> str:
    """Say of an input by URL which content of it the result rests on."""
    parts = [size_text(source["size"])]
    if source["sha256"]:
        parts.append(f"sha256 {source['sha256'][:12]}...")
    elif source["ranges"]:
        read = sum(stop - start for start, stop in source["ranges"])
        parts.append(f"{read} of them read")
    if source["etag"]:
        parts.append(f"ETag {source['etag']}")
    date = clock_s(source["timestampReadSec"])
    return f"{source['name']} by URL, content of {date} ({', '.join(parts)})"
