"""Why a job was a hit or a miss: what answered it, or the nearest earlier job and the fields in
which the two definitions differ."""

from typing import TYPE_CHECKING, Any

import trio

from pairio_protocol.fold import RequestState, ResultInfo, ServiceFold
from pairio_protocol.normalise import source_text

if TYPE_CHECKING:
    from pairio_node.node import Node

__all__ = ["COMPARED_MAX", "Explain", "differences"]

Json = dict[str, Any]
#: Earlier jobs that one is compared with, the newest first.
COMPARED_MAX = 20_000
#: After so many comparisons others have their turn.
_LOOKS = 100
_MISSES = {
    "skip_cache": "a miss: it was submitted with skip_cache, so what was there did not count",
    "rerun_failing": "a miss: it was submitted with rerun_failing, and what was there had failed",
    "rerun_lost": "a miss: nobody gave the content of its result any more",
}


def differences(this: Json, that: Json) -> list[Json]:
    """Return the fields in which two job documents differ: `{field, this, that}`; None is none."""
    mine, other = _fields(this), _fields(that)
    return [
        {"field": name, "this": mine.get(name), "that": other.get(name)}
        for name in sorted({*mine, *other}, key=_place)
        if mine.get(name) != other.get(name)
    ]


def _fields(document: Json) -> Json:
    """Return a document as fields with plain values."""
    found: Json = {name: document[name] for name in ("app", "processor", "code")}
    for entry in document["inputs"]:
        found[f"inputs.{entry['name']}"] = source_text(entry["source"])
        found[f"inputs.{entry['name']}.fileBaseName"] = entry["base_name"]
    for entry in document["outputs"]:
        found[f"outputs.{entry['name']}.fileBaseName"] = entry["base_name"]
    for entry in document["parameters"]:
        found[f"parameters.{entry['name']}"] = entry["value"]
    if "cache_bust" in document:
        found["cacheBust"] = document["cache_bust"]
    return found


def _place(field: str) -> tuple[int, str]:
    order = ("app", "processor", "code", "inputs", "parameters", "outputs", "cacheBust")
    return order.index(field.partition(".")[0]), field


class Explain:
    """What the API tells of hits and misses; every method may raise `UserError`."""

    def __init__(self, node: "Node") -> None:
        self._node = node

    async def job(self, job_id: str, service: str | None, other: str | None) -> Json:
        """Return why a job was a hit or a miss, and how it differs from the nearest earlier one,
        or from `other`."""
        name, state = self._node.jobs.find(job_id, service)
        fold = self._node.core.fold(name)
        answer = fold.result_of(state)
        is_hit = answer is not None and (
            state.cached or answer.document.finished_unix_ms <= state.record.issued_unix_ms
        )
        if other is not None:
            _, compared = self._node.jobs.find(other, name)
            nearest: Json | None = self._compared(name, state.document, compared)
        else:
            nearest = None if is_hit else await self.nearest(name, state)
        return {
            "jobId": state.job,
            "requestId": state.id,
            "isHit": is_hit,
            "why": self._hit(name, answer) if is_hit and answer else self._miss(fold, state),
            "answer": self._answer(name, answer) if answer is not None else None,
            "nearest": nearest,
        }

    def _hit(self, service: str, answer: ResultInfo) -> str:
        worker = self._member(service, answer.document.worker)
        return f"a hit: {worker} had computed it before it was asked for; nothing ran"

    def _miss(self, fold: ServiceFold, state: RequestState) -> str:
        if state.record.mode in _MISSES:
            return _MISSES[state.record.mode]
        asked = [fold.requests[name] for name in fold.by_job.get(state.job, ())]
        before = [s for s in asked if _when(s) < _when(state)]
        if not before:
            return "a miss: nobody known here had asked for a job of this definition before"
        if any(s.answer is None and not s.canceled for s in before):
            return "a miss: it was asked for before, and that had not been answered yet"
        return "a miss: it was asked for before, without a result that answers this request"

    def _answer(self, service: str, answer: ResultInfo) -> Json:
        document = answer.document
        return {
            "resultCid": answer.cid,
            "status": document.status,
            "computeNodeId": document.worker,
            "computeNodeName": self._member(service, document.worker),
            "timestampFinishedSec": document.finished_unix_ms / 1000,
            "runId": document.run,
        }

    def _member(self, service: str, peer: str) -> str:
        return self._node.core.membership.folded(service).member_of(peer) or peer

    async def nearest(self, service: str, state: RequestState) -> Json | None:
        """Return the earlier job of the same processor that differs in the fewest fields; of those
        that differ in as many the newest. None when there is none."""
        fold = self._node.core.fold(service)
        kind = (state.document["app"], state.document["processor"])
        jobs = [
            job
            for job, document in fold.definitions.items()
            if (document["app"], document["processor"]) == kind and job != state.job
        ]
        best: tuple[int, int, RequestState] | None = None
        for number, job in enumerate(reversed(jobs[-COMPARED_MAX:])):
            if number % _LOOKS == 0:
                await trio.lowlevel.checkpoint()
            asked = (fold.requests.get(name) for name in fold.by_job.get(job, ()))
            earlier = [s for s in asked if s is not None and _when(s) < _when(state)]
            if not earlier:
                continue
            newest = max(earlier, key=_when)
            count = len(differences(state.document, newest.document))
            if best is None or (count, -_when(newest)) < best[:2]:
                best = (count, -_when(newest), newest)
        return None if best is None else self._compared(service, state.document, best[2])

    def _compared(self, service: str, document: Json, other: RequestState) -> Json:
        return {
            "jobId": other.job,
            "status": self._node.jobs.status_of(service, other),
            "timestampCreatedSec": other.record.issued_unix_ms / 1000,
            "submittedBy": self._member(service, other.author),
            "differences": differences(document, other.document),
        }


def _when(state: RequestState) -> int:
    return state.record.issued_unix_ms
