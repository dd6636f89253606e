"""Submitting jobs and following them."""

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pairio._http import Api, part
from pairio._upload import add_path, add_reference
from pairio.client._models import PairioJobDefinition, PairioJobRequiredResources
from pairio.errors import PairioError

__all__ = ["PairioJob", "SpecialJobOutput", "add_content", "find_job", "find_jobs", "submit_job"]

_FINAL = ("completed", "failed", "canceled", "blocked")
_api: Api | None = None


def _shared_api() -> Api:
    global _api
    if _api is None:
        _api = Api()
    return _api


class _Entry(dict[str, Any]):
    """A part of a job's answer: `entry["name"]` as in JSON, `entry.name` as in the original."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"there is no {name!r} here: {', '.join(self)}") from None


def _entry(value: Any) -> Any:
    if isinstance(value, dict):
        return _Entry({key: _entry(item) for key, item in value.items()})
    if isinstance(value, list):
        return [_entry(item) for item in value]
    return value


#: Attributes of the original's jobs that say nothing here.
_ORIGINALS_ONLY = ("jobPrivateKey", "secrets", "imageUri", "resourceUtilizationLogUrl")


@dataclass(frozen=True)
class SpecialJobOutput:
    """An output of a job, usable as the `url` of another job's input before it exists."""

    jobId: str
    name: str
    fileBaseName: str
    _job: "PairioJob"

    @property
    def reference(self) -> str:
        """Return what stands in a job definition: `job:ID/NAME`."""
        return f"job:{self.jobId}/{part(self.name)}"

    @property
    def url(self) -> str | None:
        """Return a URL of the content on this machine, None until it exists."""
        return self._result().get("url")

    @property
    def size(self) -> int | None:
        """Return the size in bytes, None until it exists."""
        return self._result().get("size")

    def _result(self) -> dict[str, Any]:
        return next(r for r in self._job.outputFileResults if r["name"] == self.name)

    def read(self, path: str | None = None) -> bytes:
        """Return the content; of a folder, that of the file at `path` in it.

        Raises:
            RequestRefused: it does not exist (yet), or is a folder.
        """
        return self._job._bytes(f"outputs/{part(self.name)}", {"path": path})

    def list(self, path: str | None = None) -> list[dict[str, Any]]:
        """Return the entries of a folder: `{name, cid, type, size}`, type `file` or `folder`.

        Raises:
            RequestRefused: it does not exist (yet), or is a file.
        """
        data = self._job._bytes(f"outputs/{part(self.name)}", {"path": path, "format": "json"})
        entries: list[dict[str, Any]] = json.loads(data)["entries"]
        return entries


class PairioJob:
    """A job by one of its requests. Attributes have the original's names (`status`, `jobId`, ...).

    They are as of the last answer; `refresh` and `wait_until_done` renew them.
    """

    def __init__(self, api: Api, data: dict[str, Any]) -> None:
        self._api = api
        self._data = data

    def __getattr__(self, name: str) -> Any:
        data = self.__dict__.get("_data", {})
        if name in data:
            return _entry(data[name])
        if name == "computeClientName":
            return data["computeClientId"]
        if name in _ORIGINALS_ONLY:
            return None
        raise AttributeError(f"a job has no attribute {name!r}; it has {', '.join(sorted(data))}")

    def __repr__(self) -> str:
        return f"PairioJob({self.jobId[-8:]}, {self.status})"

    @property
    def job_url(self) -> str:
        """The job's page on this machine's node."""
        return str(self._data["jobUrl"])

    @property
    def inputFileUrlList(self) -> list[str]:  # noqa: N802 - the original's name
        """The sources of the inputs, as in the original."""
        return [str(entry["url"]) for entry in self._data["jobDefinition"]["inputFiles"]]

    @property
    def outputFileUrlList(self) -> list[str]:  # noqa: N802
        """URLs of the outputs that exist, as in the original."""
        return [str(r["url"]) for r in self._data["outputFileResults"] if r["url"]]

    def as_dict(self) -> dict[str, Any]:
        """Return everything that the node says of the job."""
        return dict(self._data)

    def refresh(self) -> None:
        """Ask the node for the present state."""
        query = {"serviceName": self._data["serviceName"]}
        self._data = self._api.call("GET", f"/api/v1/jobs/{self._data['requestId']}", None, query)

    def get_output(self, name: str) -> SpecialJobOutput:
        """Return an output by name; it may serve as another job's input before it exists.

        Raises:
            PairioError: the job has no such output.
        """
        for result in self._data["outputFileResults"]:
            if result["name"] == name:
                return SpecialJobOutput(self.jobId, name, result["fileBaseName"], self)
        known = ", ".join(r["name"] for r in self._data["outputFileResults"]) or "none"
        raise PairioError(f"the job has no output {name!r}", f"its outputs: {known}")

    def wait_until_done(self, *, wait_sec: float | None = None) -> None:
        """Wait until the job has ended and its result is safe, or for `wait_sec` seconds.

        A failed job does not raise: look at `status` and `error`.
        """
        ends = None if wait_sec is None else time.monotonic() + wait_sec
        while not self._data["isSettled"]:
            left = 30.0 if ends is None else min(30.0, ends - time.monotonic())
            if left <= 0:
                return
            query = {"serviceName": self._data["serviceName"], "timeoutSec": left}
            path = f"/api/v1/jobs/{self._data['requestId']}/wait"
            self._data = self._api.call("GET", path, None, query)

    def console(self) -> str:
        """Return the console output."""
        return self._bytes("console").decode(errors="replace")

    def _bytes(self, what: str, more: dict[str, Any] | None = None) -> bytes:
        query = {"serviceName": self._data["serviceName"], **(more or {})}
        path = f"/api/v1/jobs/{self._data['requestId']}/{what}"
        return b"".join(self._api.stream(path, query))


def add_content(path: str | Path, *, nocopy: bool = False) -> str:
    """Add a file or folder of this machine to the node; return what to give as an input's `url`.

    With `nocopy` it is hashed where it lies, and must stay as it is.

    Raises:
        PairioError: there is none, or a folder holds what is neither file nor folder.
    """
    add = add_reference if nocopy else add_path
    return f"ipfs://{add(_shared_api(), Path(path))['cid']}"


def submit_job(
    *,
    service_name: str | None = None,
    job_definition: PairioJobDefinition,
    required_resources: PairioJobRequiredResources | None = None,
    tags: list[str] | None = None,
    skip_cache: bool = False,
    rerun_failing: bool = False,
    delete_failing: bool = False,
    batch_id: str | None = None,
    target_compute_client_ids: list[str] | None = None,
    secrets: dict[str, str] | None = None,
) -> PairioJob:
    """Submit a job, or find its result in the cache; returns at once.

    Args:
        service_name: may be left out when the node is in one service (or PAIRIO_SERVICE_NAME).
        job_definition: what to compute.
        required_resources: what a run may use.
        tags: texts to find the job by.
        skip_cache: run it anew in any case.
        rerun_failing: run it anew if its result is a failure.
        delete_failing: as rerun_failing; a signed fact is not deleted.
        batch_id: text that groups jobs.
        target_compute_client_ids: peer ids that may run it; None: anyone.
        secrets: what the processor asks for by name; for the job alone, never stored in a record.

    Raises:
        NodeNotRunning, RequestRefused.
    """
    definition = job_definition.model_dump(exclude_none=False)
    for entry, given in zip(definition["inputFiles"], job_definition.inputFiles, strict=True):
        if isinstance(given.url, SpecialJobOutput):
            entry["url"] = given.url.reference
    body = {
        "serviceName": service_name or os.environ.get("PAIRIO_SERVICE_NAME"),
        "jobDefinition": definition,
        "requiredResources": (required_resources or PairioJobRequiredResources()).model_dump(),
        "tags": tags or [],
        "skipCache": skip_cache,
        "rerunFailing": rerun_failing or delete_failing,
        "deleteFailing": delete_failing,
        "batchId": batch_id or "",
        "targetComputeClientIds": target_compute_client_ids,
        **({"secrets": secrets} if secrets else {}),
    }
    api = _shared_api()
    return PairioJob(api, api.call("POST", "/api/v1/jobs", body))


def find_job(job_id: str, *, service_name: str | None = None) -> PairioJob:
    """Return a job by id. Raises RequestRefused when the node knows none."""
    api = _shared_api()
    query = {"serviceName": service_name or os.environ.get("PAIRIO_SERVICE_NAME")}
    return PairioJob(api, api.call("GET", f"/api/v1/jobs/{part(job_id)}", None, query))


def find_jobs(
    *,
    service_name: str | None = None,
    status: str | None = None,
    tag: str | None = None,
    limit: int = 100,
) -> list[PairioJob]:
    """Return the newest jobs that the node knows, newest first."""
    api = _shared_api()
    service = service_name or os.environ.get("PAIRIO_SERVICE_NAME")
    query = {"serviceName": service, "status": status, "tag": tag, "limit": limit}
    answer = api.call("GET", "/api/v1/jobs", None, query)
    return [PairioJob(api, data) for data in answer["jobs"]]
