"""What submits a job again: of use to the client and to the command line."""

from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["again_body", "secret_names"]


def again_body(
    job: Mapping[str, Any], skip_cache: bool, secrets: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Return the body that submits a job, as a node shows it, again: run anew whatever there is,
    or if its result is a failure. `secrets` are told anew, for nobody keeps them."""
    return {
        "serviceName": job["serviceName"],
        "jobDefinition": job["jobDefinition"],
        "requiredResources": job["requiredResources"],
        "tags": job["tags"],
        "skipCache": skip_cache,
        "rerunFailing": not skip_cache,
        "deleteFailing": False,
        "batchId": job.get("batchId") or "",
        "targetComputeClientIds": job.get("targetComputeClientIds"),
        **({"secrets": dict(secrets)} if secrets else {}),
    }


def secret_names(
    jobs: Iterable[Mapping[str, Any]], apps: Mapping[str, Iterable[Mapping[str, Any]]]
) -> list[tuple[str, ...]]:
    """Return the names of the secrets that the processor of each job asks for; `apps` are those of
    each service, by its name. The node says what is wrong with a processor that is not there."""
    known = {
        (service, app["appName"], processor["name"]): tuple(processor.get("secrets") or ())
        for service, found in apps.items()
        for app in found
        for processor in app["appSpecification"]["processors"]
    }
    asked = []
    for job in jobs:
        definition = job["jobDefinition"]
        key = (job["serviceName"], definition["appName"], definition["processorName"])
        asked.append(known.get(key, ()))
    return asked
