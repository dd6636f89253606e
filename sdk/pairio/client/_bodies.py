"""What is sent to a node and how its answers are read: no input or output. Both clients use it."""

import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict, TypeVar
from urllib.parse import urlsplit

from pairio._http import part
from pairio.client._base import JobBase
from pairio.client._models import (
    PairioJobDefinition,
    PairioJobInputFile,
    PairioJobOutputFile,
    PairioJobParameter,
    PairioJobRequiredResources,
)
from pairio.errors import InvalidRequest, RequestRefused, refusal_of

__all__ = [
    "SubmitOptions",
    "definitions_of",
    "file_of",
    "is_web_url",
    "job_error",
    "newest_tries",
    "pages_of",
    "search_query",
    "source_name",
    "submit_body",
    "swept",
    "texts_of",
    "watch_query",
]

#: Jobs and bytes in one call of a batch; the node takes 5,000 and 8 MiB.
_PAGE_JOBS_MAX = 1_000
_PAGE_SIZE_BYTES_MAX = 6 * 1024 * 1024
#: Requests that are watched by name; more by their batch.
_WATCHED_BY_NAME_MAX = 50
_STATUS_OF = {
    "not_found": 404,
    "forbidden": 403,
    "unauthorized": 401,
    "conflict": 409,
    "bug": 500,
    "unavailable": 503,
    "storage_full": 507,
}


class SubmitOptions(TypedDict, total=False):
    """Options of every submit, as `submit_job` describes them."""

    service_name: str | None
    required_resources: PairioJobRequiredResources | Mapping[str, float] | None
    tags: list[str] | None
    skip_cache: bool
    rerun_failing: bool
    delete_failing: bool
    batch_id: str | None
    target_compute_client_ids: list[str] | None
    secrets: Mapping[str, str] | None
    pin_inputs: bool


def submit_body(
    definition: PairioJobDefinition,
    urls: Mapping[str, str],
    service: str | None,
    options: SubmitOptions,
) -> dict[str, Any]:
    """Return the body of a submit; `urls` names what was added of the inputs."""
    wanted = definition.model_dump(exclude={"inputFiles"})
    inputs = [_input(entry, urls) for entry in definition.inputFiles]
    resources = options.get("required_resources") or PairioJobRequiredResources()
    if isinstance(resources, Mapping):
        resources = PairioJobRequiredResources(**resources)
    targets = options.get("target_compute_client_ids")
    body: dict[str, Any] = {
        "serviceName": service,
        "jobDefinition": {**wanted, "inputFiles": inputs},
        "requiredResources": resources.model_dump(),
        "tags": texts_of(options.get("tags")),
        "skipCache": bool(options.get("skip_cache")),
        "rerunFailing": bool(options.get("rerun_failing") or options.get("delete_failing")),
        "deleteFailing": bool(options.get("delete_failing")),
        "batchId": options.get("batch_id") or "",
        "targetComputeClientIds": None if targets is None or "*" in targets else texts_of(targets),
    }
    if options.get("secrets"):
        body["secrets"] = dict(options["secrets"] or {})
    return body


def texts_of(given: str | Iterable[str] | None) -> list[str]:
    """Return texts as a list; one that is given alone is one, not its letters."""
    return [given] if isinstance(given, str) else list(given or ())


def _input(entry: PairioJobInputFile, urls: Mapping[str, str]) -> dict[str, Any]:
    path, name = file_of(entry.url), source_name(entry.url)
    base = entry.fileBaseName or (path.name if path is not None else None)
    return {"name": entry.name, "fileBaseName": base, "url": urls.get(name, name)}


def source_name(url: Any) -> str:
    """Return what an input's source is called: the text of a URL or an output, else what is in it.

    Raises:
        InvalidRequest: it is no source.
    """
    if isinstance(url, bytes):
        return f"bytes {hashlib.sha256(url).hexdigest()}"
    path = file_of(url)
    if path is not None:
        return f"file {path.absolute()}"
    reference = _only_output(url) if isinstance(url, JobBase) else getattr(url, "reference", None)
    if isinstance(reference, str):
        return reference
    if isinstance(url, str):
        if ":" not in url and os.path.exists(url):
            raise InvalidRequest(
                f"{url!r} is a file here, but an input given as text is a URL, a CID or an output",
                f"give pathlib.Path({url!r}), or './{url}'",
            )
        return url
    raise InvalidRequest(
        f"{type(url).__name__} is no source of an input",
        "give a URL, a CID, a pathlib.Path, bytes, a job, or job.get_output(NAME)",
    )


def _only_output(job: JobBase) -> str:
    """Return the reference of a job's output, if it has but one."""
    names = [output["name"] for output in job._data["outputFileResults"]]
    if len(names) != 1:
        raise InvalidRequest(
            f"a job with {len(names)} outputs is no source of an input",
            "name one: "
            + (" or ".join(f"job.outputs[{name!r}]" for name in names) or "it has none"),
        )
    return f"job:{job._data['jobId']}/{part(names[0])}"


def file_of(url: Any) -> Path | None:
    """Return the local file or folder that a source is; None when it is something else."""
    if isinstance(url, os.PathLike):
        return Path(os.fspath(url)).expanduser()
    if isinstance(url, str) and url.startswith(("/", "./", "../", "~")):
        return Path(url).expanduser()
    return None


def is_web_url(url: Any) -> bool:
    """Say whether a source is an ordinary URL, of which a node may fetch the content."""
    if not isinstance(url, str) or not url.startswith(("http://", "https://")):
        return False
    return "/ipfs/" not in urlsplit(url).path


def definitions_of(
    spec: Mapping[str, Any],
    parameters: Sequence[Mapping[str, Any]],
    inputs: Mapping[str, Any] | Iterable[Mapping[str, Any]] | None,
    outputs: Mapping[str, str] | None,
    cache_bust: str | None,
) -> list[PairioJobDefinition]:
    """Return a definition for each of `parameters`, for a processor of the service.

    Raises:
        InvalidRequest: there are not as many inputs as parameters.
    """
    if inputs is None or isinstance(inputs, Mapping):
        shared = {name: _as_sources(given) for name, given in (inputs or {}).items()}
        each: Sequence[Mapping[str, Any]] = [shared] * len(parameters)
    else:
        each = list(inputs)
    if len(each) != len(parameters):
        raise InvalidRequest(
            f"{len(each)} inputs for {len(parameters)} jobs", "give as many, or one for all"
        )
    for number, values in enumerate([*parameters, *each]):
        if not isinstance(values, Mapping):
            raise InvalidRequest(
                f"{values!r:.100} (number {number % len(parameters)}) is no dict of values by name",
                "map takes a list of dicts; sweep takes one dict of lists",
            )
    names = {output["name"]: None for output in spec["outputs"]} | dict(outputs or {})
    return [
        PairioJobDefinition(
            appName=spec["appName"],
            processorName=spec["name"],
            inputFiles=list(_inputs(given)),
            outputFiles=[PairioJobOutputFile(name=n, fileBaseName=b) for n, b in names.items()],
            parameters=[PairioJobParameter(name=n, value=v) for n, v in values.items()],
            cacheBust=cache_bust,
        )
        for values, given in zip(parameters, each, strict=True)
    ]


def _inputs(given: Mapping[str, Any]) -> Iterator[PairioJobInputFile]:
    for name, source in given.items():
        sources = _as_sources(source)
        if isinstance(sources, list):
            for number, item in enumerate(sources):
                yield PairioJobInputFile(name=f"{name}[{number}]", url=item)
        else:
            yield PairioJobInputFile(name=name, url=sources)


def _as_sources(given: Any) -> Any:
    """Return the sources of an input that is a list (a list, a batch, what is generated) as a list,
    one source as it is."""
    is_one = isinstance(given, str | bytes | os.PathLike) or not isinstance(given, Iterable)
    return given if is_one else list(given)


def swept(parameters: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return every combination of values.

    Raises:
        InvalidRequest: it is no dict.
    """
    if not isinstance(parameters, Mapping):
        raise InvalidRequest(
            f"{parameters!r:.100} is no dict of values by name",
            "sweep takes one dict of lists; map takes a list of dicts",
        )
    values = [
        [value] if isinstance(value, str | bytes) or not isinstance(value, Iterable) else value
        for value in parameters.values()
    ]
    return [dict(zip(parameters, chosen, strict=True)) for chosen in itertools.product(*values)]


_Job = TypeVar("_Job", bound=JobBase)


def newest_tries(jobs: Sequence[_Job]) -> list[_Job]:
    """Return jobs, newest first, without those that did not complete and were submitted again."""
    kept: list[_Job] = []
    seen: set[str] = set()
    for job in jobs:
        name = job._data["jobId"]
        if name not in seen or job._data["status"] not in ("failed", "canceled"):
            kept.append(job)
        seen.add(name)
    return kept


def pages_of(bodies: Sequence[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Yield the jobs of each call of a batch."""
    page: list[dict[str, Any]] = []
    size = 0
    for body in bodies:
        size_bytes = len(json.dumps(body))
        if page and (len(page) >= _PAGE_JOBS_MAX or size + size_bytes > _PAGE_SIZE_BYTES_MAX):
            yield page
            page, size = [], 0
        page.append(body)
        size += size_bytes
    if page:
        yield page


def job_error(answer: Mapping[str, Any]) -> RequestRefused | None:
    """Return what the node says in place of a job of a batch; None for a job (which may have an
    `error` of its own, as text)."""
    error = answer.get("error")
    if not isinstance(error, dict):
        return None
    status = _STATUS_OF.get(error["code"], 400)
    return refusal_of(error["message"], error.get("hint"), error["code"], status)


def search_query(**filters: Any) -> dict[str, Any]:
    """Return the filters of a search that say something."""
    return {name: value for name, value in filters.items() if value not in (None, [])}


def watch_query(jobs: Sequence[JobBase]) -> dict[str, Any]:
    """Return what of the node's events tells of these jobs (arguments of `events`); empty: all."""
    known = [job._data for job in jobs]
    services = {data["serviceName"] for data in known}
    batches = {data.get("batchId") or "" for data in known}
    if len(known) <= _WATCHED_BY_NAME_MAX:
        query: dict[str, Any] = {"request_ids": [data["requestId"] for data in known]}
    elif len(batches) == 1 and "" not in batches:
        query = {"batch_id": batches.pop()}
    else:
        return {}
    return {**query, "service_name": services.pop()} if len(services) == 1 else query
