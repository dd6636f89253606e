"""`pairio submit`: from arguments to a job definition, and waiting for its end."""

import json as json_module
import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pairio._http import Api, part
from pairio.errors import PairioError
from pairio_cli.content import add_input
from pairio_cli.output import INTERRUPTED, as_json, data, note, short
from pairio_cli.secret import read_secrets

__all__ = ["Wish", "show_job", "submit_wish"]

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


def submit_wish(api: Api, wish: Wish, *, wait: bool, timeout_s: float | None, json: bool) -> int:
    """Submit, maybe wait, print; return the exit code."""
    began = time.monotonic()
    service = wish.service or _only_service(api)
    processor = _processor(api, service, wish.name)
    body = {
        "serviceName": service,
        "jobDefinition": _definition(api, wish, processor),
        "requiredResources": wish.resources,
        "tags": wish.tags,
        "skipCache": wish.skip_cache,
        "rerunFailing": wish.rerun_failing,
    }
    if wish.secrets:
        body["secrets"] = read_secrets(wish.secrets)
    job = api.call("POST", "/api/v1/jobs", body)
    if wait:
        try:
            job = _wait(api, job, service, None if timeout_s is None else began + timeout_s)
        except KeyboardInterrupt:
            as_json(job) if json else data(job["jobId"])
            note("interrupted; the job goes on")
            note(f"\nhint: pairio job show {short(job['jobId'])}, or pairio job cancel")
            return INTERRUPTED
    as_json(job) if json else data(job["jobId"])
    _say(job, time.monotonic() - began)
    if not wait:
        return 0
    if not job["isSettled"]:
        note("error: the time to wait is over; the job goes on")
        note(f"\nhint: pairio job why {short(job['jobId'])}")
        return _EXIT_TIMEOUT
    return 0 if job["status"] == "completed" else _EXIT_FAILED


def _wait(api: Api, job: dict[str, Any], service: str, ends: float | None) -> dict[str, Any]:
    while not job["isSettled"]:
        left = 30.0 if ends is None else min(30.0, ends - time.monotonic())
        if left <= 0:
            break
        path = f"/api/v1/jobs/{job['requestId']}/wait"
        job = api.call("GET", path, None, {"serviceName": service, "timeoutSec": left})
    return job


def _say(job: dict[str, Any], took_s: float) -> None:
    how = "from the cache, nothing ran" if job["cached"] else f"on {short(job['computeNodeId'])}"
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


def _only_service(api: Api) -> str:
    services = [s["serviceName"] for s in api.call("GET", "/api/v1/services")["services"]]
    if len(services) == 1:
        return str(services[0])
    if not services:
        raise PairioError("this node is in no service", "pairio service create NAME")
    raise PairioError(
        "this node is in several services", f"name one: --service {' | '.join(services)}"
    )


def _processor(api: Api, service: str, name: str) -> dict[str, Any]:
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
        ],
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
    if not path.exists():
        raise PairioError(
            f"input {name!r}: there is no file {value!r}",
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
        ("status", job["status"] + (" (cached)" if job["cached"] else "")),
        ("error", job["error"]),
        ("lost", job.get("lost")),
        ("node", job["computeNodeId"]),
        ("safe", "yes" if job["safe"] else "no"),
        ("page", job["jobUrl"]),
    ):
        if value:
            data(f"{label:<10} {value}")
    for parameter in definition["parameters"]:
        data(f"{'parameter':<10} {parameter['name']} = {parameter['value']!r}")
    for output in job["outputFileResults"]:
        size = "not there yet" if output["size"] is None else f"{output['size']} bytes"
        data(f"{'output':<10} {output['name']} ({output['fileBaseName']}): {size}")
    for attempt in job["attempts"]:
        began, ended = _clock(attempt["timestampStartedSec"]), _clock(attempt["timestampEndedSec"])
        how = ": ".join(part for part in (attempt["ended"], attempt["reason"]) if part)
        span = f"{began} to {ended}, {how}" if ended else f"since {began}"
        data(f"{'attempt':<10} on {attempt['computeNodeId']}, {span}")


def _clock(unix_s: float | None) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(unix_s)) if unix_s else ""
