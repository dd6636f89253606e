"""What a result rests on, as bytes: enough to check it without any node (`verify.py`).

A node gathers it (`gather.py`), an export carries it (`export.py`). Nothing in it is trusted.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from pairio_protocol.documents import encode
from pairio_protocol.jobs import decode_job
from pairio_protocol.normalise import job_id_of
from pairio_protocol.records import ResultDocument

__all__ = ["Answers", "Block", "Evidence", "direct_contents", "resolved_with"]

#: Returns the bytes that somebody says are the block of a CID; None when there are none.
Block = Callable[[str], bytes | None]


@dataclass(frozen=True)
class Evidence:
    """A result, and what is to show that it counts.

    `asked` are pairs (result CID, id of the request that it answers): the first is the result that
    is claimed, the others those on which it rests. `changes` and `segments` are as they travel;
    `forks` are pairs of segments that contradict each other. `documents` are the definitions of
    jobs, as asked for and resolved, by CID.
    """

    service: str
    asked: tuple[tuple[str, str], ...]
    changes: tuple[bytes, ...]
    segments: tuple[bytes, ...]
    forks: tuple[tuple[bytes, bytes], ...] = ()
    documents: dict[str, bytes] = field(default_factory=dict)

    @property
    def result(self) -> str:
        """The CID of the result that is claimed."""
        return self.asked[0][0]


def resolved_with(document: dict[str, Any], cids: Iterable[str]) -> tuple[str, dict[str, Any]]:
    """Return the id and document of a job with CIDs put for its `job` sources, in their order."""
    left = iter(cids)
    inputs = [
        {**entry, "source": {"cid": next(left)}} if "job" in entry["source"] else entry
        for entry in document["inputs"]
    ]
    resolved = {**document, "inputs": inputs}
    return job_id_of(resolved), resolved


def direct_contents(job: dict[str, Any], result: ResultDocument) -> list[str]:
    """Return the CIDs of a result's inputs, outputs and console, each once."""
    inputs = [e["source"]["cid"] for e in job["inputs"] if "cid" in e["source"]]
    outputs = [cid for cid, _, _ in result.outputs.values()]
    return list(dict.fromkeys([*inputs, *outputs, result.console]))


class Answers:
    """Which results answer which jobs, by their documents alone.

    A result answers a job by its id; and one with `job` sources when its own job is the same but
    for these, and has in their places the outputs of results that answer the jobs named there.
    """

    def __init__(self, jobs: dict[str, bytes], results: dict[str, ResultDocument]) -> None:
        """Read `jobs` (what is no job is left out) by id, and `results` by CID."""
        self._jobs = {cid: decode_job(data) for cid, data in jobs.items()}
        self._results = results
        self._known: dict[str, dict[str, tuple[str, ...]]] = {}
        self._by_job: dict[str, list[str]] = {}
        self._by_shape: dict[bytes, list[str]] = {}
        for cid, result in results.items():
            self._by_job.setdefault(result.job, []).append(cid)
            job = self._jobs.get(result.job)
            if job is not None and not _sources(job):
                self._by_shape.setdefault(_shape(job), []).append(cid)

    def of(self, job: str) -> dict[str, tuple[str, ...]]:
        """Return the results that answer a job, each with those that resolve the job's sources."""
        left = [job]  # no recursion: a chain of jobs may be long
        while left:
            document = self._jobs.get(left[-1])
            needed = [s["job"] for s in _sources(document)] if document is not None else []
            new = [name for name in needed if name not in self._known and name not in left]
            if left[-1] in self._known or not new:
                name = left.pop()
                if name not in self._known:
                    self._known[name] = self._answers(name, document)
            else:
                left += new
        return self._known[job]

    def _answers(self, job: str, document: dict[str, Any] | None) -> dict[str, tuple[str, ...]]:
        if document is None or not _sources(document):
            return dict.fromkeys(self._by_job.get(job, ()), ())
        found = {}
        for cid in self._by_shape.get(_shape(document), ()):
            used = self._used(document, self._jobs[self._results[cid].job])
            if used is not None:
                found[cid] = used
        return found

    def _used(self, job: dict[str, Any], resolved: dict[str, Any]) -> tuple[str, ...] | None:
        """Return the results whose outputs stand in a resolved job for a job's sources; None when
        it is not that job resolved."""
        used: dict[str, None] = {}
        for entry, other in zip(job["inputs"], resolved["inputs"], strict=True):
            source, cid = entry["source"], other["source"].get("cid")
            if "job" not in source:
                if source != other["source"]:
                    return None
                continue
            giver = self._giver(source, cid)
            if giver is None:
                return None
            used[giver] = None
        return tuple(used)

    def _giver(self, source: dict[str, str], cid: str | None) -> str | None:
        for name in sorted(self._known.get(source["job"], ())):
            result = self._results[name]
            made = result.outputs.get(source["output"])
            if result.status == "completed" and made is not None and made[0] == cid:
                return name
        return None


def _sources(job: dict[str, Any]) -> list[dict[str, str]]:
    return [entry["source"] for entry in job["inputs"] if "job" in entry["source"]]


def _shape(job: dict[str, Any]) -> bytes:
    """Return what a job and the same job resolved have in common."""
    inputs = [{"name": e["name"], "base_name": e["base_name"]} for e in job["inputs"]]
    return encode({**job, "inputs": inputs})
