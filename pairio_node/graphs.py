"""The jobs on which a job rests, as a graph: those before first."""

from typing import TYPE_CHECKING, Any

from pairio_node.job_views import find_request
from pairio_protocol.fold import ServiceFold
from pairio_protocol.normalise import definition_of

if TYPE_CHECKING:
    from pairio_node.node import Node

__all__ = ["GRAPH_JOBS_MAX", "Graphs"]

Json = dict[str, Any]
#: Jobs in one graph; of a larger one those nearest to the job.
GRAPH_JOBS_MAX = 5_000


class Graphs:
    """Graphs for clients; every method may raise `UserError`."""

    def __init__(self, node: "Node") -> None:
        self._node = node

    def of(self, job_id: str, service: str | None) -> Json:
        """Return `{jobId, serviceName, isWhole, jobs, edges}`. An edge says which output of which
        job is which input of which; a job comes after those on which it rests."""
        name, state = self._node.jobs.find(job_id, service)
        fold = self._node.core.fold(name)
        names = set(fold.upstream_of(state.job, GRAPH_JOBS_MAX))
        ordered = _ordered(fold, state.job, names)
        edges = [
            {
                "fromJobId": entry["source"]["job"],
                "outputName": entry["source"]["output"],
                "toJobId": job,
                "inputName": entry["name"],
            }
            for job in ordered
            for entry in _sources(fold, job)
        ]
        return {
            "jobId": state.job,
            "serviceName": self._node.core.membership.petnames.get(name, name),
            "isWhole": all(
                edge["fromJobId"] in names and edge["fromJobId"] in fold.definitions
                for edge in edges
            ),
            "jobs": [self._job(name, fold, job) for job in ordered],
            "edges": edges,
        }

    def _job(self, service: str, fold: ServiceFold, job: str) -> Json:
        document, state = fold.definitions.get(job), find_request(fold, job)
        view = self._node.jobs.view(service, state) if state is not None else {}
        status = view.get("status") or self._unasked(fold, job)
        return {
            "jobId": job,
            "status": status,
            "error": view.get("error"),
            "computeNodeId": view.get("computeNodeId"),
            "requiredResources": view.get("requiredResources"),
            "jobDefinition": definition_of(document) if document is not None else None,
        }

    def _unasked(self, fold: ServiceFold, job: str) -> str:
        """Return the status of a job of which no request is known here."""
        if job not in fold.definitions:
            return "unknown"
        resolution = fold.resolve(job)
        found = fold.canonical(resolution.job) if resolution.job is not None else None
        return found.document.status if found is not None else "unknown"


def _sources(fold: ServiceFold, job: str) -> list[Json]:
    """Return the inputs of a job that are outputs of jobs."""
    document = fold.definitions.get(job)
    return [e for e in document["inputs"] if "job" in e["source"]] if document else []


def _ordered(fold: ServiceFold, root: str, names: set[str]) -> list[str]:
    """Return jobs so that each comes after those on which it rests; chains may be long."""
    ordered: dict[str, None] = {}
    stack = [(root, False)]
    while stack:
        job, is_done = stack.pop()
        if is_done:
            ordered[job] = None
        elif job not in ordered and job in names:
            stack.append((job, True))
            befores = dict.fromkeys(entry["source"]["job"] for entry in _sources(fold, job))
            stack.extend((before, False) for before in reversed(befores))
    return list(ordered)
