"""What submits a job again: of use to the client and to the command line."""

from collections.abc import Mapping
from typing import Any

__all__ = ["again_body"]


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
