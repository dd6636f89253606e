"""What jobs and batches are without asking a node: shared by blocking and async clients."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from pairio.client import _html
from pairio.errors import JobBlocked, JobCanceled, JobFailed, NoSuchOutput, RequestRefused

__all__ = [
    "FINAL",
    "BatchProgress",
    "JobBase",
    "Outputs",
    "Refused",
    "Service",
    "failure_of",
]

_Output = TypeVar("_Output")
#: What a job that goes on no more by itself is.
FINAL = ("completed", "failed", "canceled", "blocked")


class Entry(dict[str, Any]):
    """A part of a job's answer: `entry["name"]` as in JSON, `entry.name` as in the original."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"there is no {name!r} here: {', '.join(self)}") from None


def entry(value: Any) -> Any:
    """Return a part of an answer with attributes."""
    if isinstance(value, dict):
        return Entry({key: entry(item) for key, item in value.items()})
    if isinstance(value, list):
        return [entry(item) for item in value]
    return value


#: Attributes of the original's jobs that say nothing here.
_ORIGINALS_ONLY = ("jobPrivateKey", "secrets", "imageUri", "resourceUtilizationLogUrl")


class Outputs(dict[str, _Output]):
    """The outputs of a job by name."""

    def __missing__(self, name: str) -> _Output:
        known = ", ".join(self) or "none"
        raise NoSuchOutput(f"the job has no output {name!r}", f"its outputs: {known}")


class JobBase:
    """The attributes of a job, with the original's names, as of the last answer of the node."""

    jobId: str
    requestId: str
    serviceName: str
    userId: str
    batchId: str
    tags: list[str]
    #: pending, starting, running, completed, failed, canceled or blocked
    status: str
    error: str | None
    isRunnable: bool
    canceled: bool
    cached: bool
    #: Whether a second node holds the result.
    safe: bool
    computeNodeId: str | None
    computeClientId: str | None
    computeClientName: str | None
    jobUrl: str
    jobDefinition: Any
    jobDefinitionHash: str
    jobDependencies: list[str]
    requiredResources: Any
    targetComputeClientIds: list[str] | None
    attempts: list[Any]
    usage: dict[str, int] | None
    outputFileResults: list[Any]
    otherFileOutputs: list[Any]
    consoleOutputUrl: str | None
    timestampCreatedSec: float
    timestampStartingSec: float | None
    timestampStartedSec: float | None
    timestampFinishedSec: float | None

    def __init__(self, data: dict[str, Any]) -> None:
        self._data = data

    def __getattr__(self, name: str) -> Any:
        data = self.__dict__.get("_data", {})
        if name in data:
            return entry(data[name])
        if name == "computeClientName":
            return data["computeClientId"]
        if name in _ORIGINALS_ONLY:
            return None
        raise AttributeError(f"a job has no attribute {name!r}; it has {', '.join(sorted(data))}")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._data['jobId'][-8:]}, {self._data['status']})"

    def _repr_html_(self) -> str:
        return _html.job_html(self._data)

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

    @property
    def progress(self) -> float | None:
        """How far the run is, 0 to 1, by its own word (`report_progress` of apps); None where it
        says nothing, or does not run. As of the last answer or event."""
        found: float | None = self._data.get("progress")
        return found

    @property
    def is_settled(self) -> bool:
        """Whether the job has ended and its result, if it has one, is safe."""
        return bool(self._data["isSettled"])

    @property
    def lacks_outputs(self) -> bool:
        """Whether the job has completed and it is not known here yet what it made."""
        missing = any(result["cid"] is None for result in self._data["outputFileResults"])
        return self._data["status"] == "completed" and missing

    def as_dict(self) -> dict[str, Any]:
        """Return everything that the node says of the job.

        Example:
            >>> job.as_dict()["status"]
            'completed'
        """
        return dict(self._data)

    def raise_on_failure(self) -> None:
        """Raise if the job has ended without completing.

        Example:
            >>> job.raise_on_failure()

        Raises:
            JobFailed: it failed; of these JobCanceled, and JobBlocked by a failed input's job.
        """
        error = failure_of(self)
        if error is not None:
            raise error

    def _note(self, event: dict[str, Any]) -> None:
        """Take what an event says of the job."""
        self._data.update(
            {key: event[key] for key in ("status", "error", "isSettled", "safe", "cached")}
        )
        self._data["progress"] = event.get("progress")  # an older node does not tell it


def failure_of(job: JobBase) -> JobFailed | None:
    """Return what to raise for a job that has ended without completing; else None."""
    status, name = job._data["status"], job._data["jobId"][-8:]
    said = str(job._data["error"] or "no reason is given")  # by whoever ran it
    reason = "".join(c if c.isprintable() or c == "\n" else "?" for c in said)
    if status == "failed":
        return JobFailed(f"job {name} failed: {reason}", "look at job.console()", job)
    if status == "canceled":
        return JobCanceled(f"job {name} was canceled", "submit it again", job)
    if status == "blocked":
        hint = "submit the failed job again with rerun_failing=True; this one goes on then"
        return JobBlocked(f"job {name} is blocked: {reason}", hint, job)
    return None


@dataclass(frozen=True)
class BatchProgress:
    """How many jobs of a batch are in which state. `refused` were never taken by the node;
    `partly` is what the running ones have done by their own word, in jobs."""

    total: int = 0
    pending: int = 0
    starting: int = 0
    running: int = 0
    completed: int = 0
    failed: int = 0
    canceled: int = 0
    blocked: int = 0
    refused: int = 0
    cached: int = 0
    partly: float = 0.0

    @classmethod
    def of(cls, jobs: Iterable[JobBase], refused: int) -> "BatchProgress":
        """Count jobs.

        Example:
            >>> str(BatchProgress.of(batch, refused=0))
            '2/2 done'
        """
        known = [job._data for job in jobs]
        states = Counter(data["status"] for data in known)
        cached = sum(bool(data["cached"]) for data in known)
        partly = sum(data.get("progress") or 0.0 for data in known if data["status"] == "running")
        return cls(
            total=len(known) + refused, refused=refused, cached=cached, partly=partly, **states
        )

    @property
    def done(self) -> int:
        """How many are over: completed, failed, canceled, blocked, refused."""
        return self.completed + self.failed + self.canceled + self.blocked + self.refused

    @property
    def share(self) -> float:
        """How much of the batch is done, 0 to 1, with what running jobs say of themselves."""
        return (self.done + self.partly) / self.total if self.total else 1.0

    def __str__(self) -> str:
        states = ("running", "failed", "canceled", "blocked", "refused", "cached")
        more = [f"{count} {name}" for name in states if (count := getattr(self, name))]
        share = f" ({self.share:.0%})" if self.partly else ""
        return ", ".join([f"{self.done}/{self.total} done{share}", *more])

    def _repr_html_(self) -> str:
        return _html.progress_html(self)


@dataclass(frozen=True)
class Refused:
    """A job of a batch that the node did not take: which of them, its definition, and why."""

    index: int
    definition: dict[str, Any]
    error: RequestRefused


class Service(Entry):
    """A service as this node knows it: `serviceName`, `serviceId`, `members`, `apps`, `roles`, ...;
    `apps` are names, `app(name)` is what one can do."""

    def __repr__(self) -> str:
        return f"Service({self['serviceName']}, {len(self['members'])} members)"

    def _repr_html_(self) -> str:
        return _html.service_html(self)
