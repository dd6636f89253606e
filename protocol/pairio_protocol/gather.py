"""Gathering what a result rests on, from what a node has folded. Pure.

    result --> its request (and what resolves that one's inputs) --> upstream results --> ...

What is not here is left out: `verify` finds that it is missing.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice, product
from typing import Any

from pairio_protocol.apps import processor_record
from pairio_protocol.documents import document_cid, encode
from pairio_protocol.evidence import Evidence, resolved_with
from pairio_protocol.fold import RequestState, ResultInfo, ServiceFold
from pairio_protocol.ids import LogId
from pairio_protocol.limits import EVIDENCE_RESULTS_MAX
from pairio_protocol.records import ResultDocument
from pairio_protocol.segment import Segment
from pairio_protocol.service import Chain

__all__ = ["Held", "bundle_of", "gather", "request_for"]

#: Ways to put upstream outputs into a job that are tried where the fold resolves it otherwise now.
_WAYS_MAX = 64


@dataclass(frozen=True)
class Held:
    """What a node holds of a service: its fold and changes, segments by hash, and the proof of a
    fork of a log, if there is one."""

    chain: Chain
    fold: ServiceFold
    segment_of: Callable[[bytes], Segment | None]
    fork_of: Callable[[LogId], tuple[Segment, Segment] | None]


@dataclass
class _Found:
    asked: dict[str, str] = field(default_factory=dict)
    segments: dict[bytes, Segment] = field(default_factory=dict)
    documents: dict[str, bytes] = field(default_factory=dict)


def gather(held: Held, result: ResultInfo, request: RequestState | None) -> Evidence:
    """Return the evidence for a result, as an answer to `request` (any that is here, if None)."""
    found = _Found()
    left: list[tuple[ResultInfo, RequestState | None, tuple[str, ...]]] = [(result, request, ())]
    while left and len(found.asked) < EVIDENCE_RESULTS_MAX:
        info, state, jobs = left.pop()
        if info.cid in found.asked:
            continue
        state = state or request_for(held.fold, info, jobs)
        found.asked[info.cid] = state.id if state is not None else ""
        for name in (info.segment, state.segment if state is not None else b""):
            segment = held.segment_of(name)
            if segment is not None:
                found.segments[segment.hash] = segment
        _add_documents(held.fold, info, state, found)
        jobs = _sources(state.document) if state is not None else ()
        left += [(one, None, jobs) for one in _rests_on(held.fold, info, state)]
    pairs = (held.fork_of(log) for log in sorted({s.log for s in found.segments.values()}))
    return Evidence(
        service=held.chain.service,
        asked=tuple(found.asked.items()),
        changes=tuple(change.encode() for change in held.chain.changes()),
        segments=tuple(segment.encode() for segment in found.segments.values()),
        forks=tuple((one.encode(), other.encode()) for one, other in filter(None, pairs)),
        documents=found.documents,
    )


def request_for(
    fold: ServiceFold, result: ResultInfo, jobs: tuple[str, ...] = ()
) -> RequestState | None:
    """Return the request by which a result is best explained: one that it answered here, or that
    asked for its very run, or else the oldest that it may answer. `jobs` are those that it may be
    a result of, where the fold resolves them otherwise by now."""
    also = [job for job in jobs if job in fold.definitions]
    known = dict.fromkeys([*fold.asked_as(result.document.job), *also])
    states = [fold.requests[name] for job in known for name in fold.by_job.get(job, ())]
    salt = result.document.salt

    def may_be(state: RequestState) -> bool:
        is_over = result.document.status == "completed" and state.record.mode == "rerun_failing"
        if not state.segment or not (is_over or state.salt() in ("", salt)):
            return False
        own = (state.job, fold.resolve(state.job).job)
        return result.document.job in own or _resolved(fold, state, result.document) is not None

    fitting = filter(may_be, states)
    return min(
        fitting,
        key=lambda s: (s.answer != result.cid, s.salt() != salt, s.record.issued_unix_ms, s.id),
        default=None,
    )


def bundle_of(chain: Chain, job: dict[str, Any]) -> tuple[str, bytes] | None:
    """Return the bundle's CID and the processor record of a job's code, as the newest change that
    has it says; None if none does."""
    for epoch in range(chain.epoch, -1, -1):
        folded = chain.at(epoch)
        app = folded.apps.get(job["app"]) if folded is not None else None
        if app is None:
            continue
        for processor in app["processors"]:
            record = encode(processor_record(app, processor))
            if document_cid(record) == job["code"]:
                return str(app["bundle"]), record
    return None


def _rests_on(
    fold: ServiceFold, info: ResultInfo, state: RequestState | None
) -> Iterator[ResultInfo]:
    names = dict.fromkeys(info.document.upstream)
    if state is not None and state.job != info.document.job:
        resolution = fold.resolve(state.job)
        if resolution.job == info.document.job:
            names.update(dict.fromkeys(resolution.upstream))
    known = (fold.results.get(name) or fold.void.get(name) for name in names)
    return (one for one in known if one is not None)


def _add_documents(
    fold: ServiceFold, info: ResultInfo, state: RequestState | None, found: _Found
) -> None:
    """Add the job that was asked for, and the resolved one."""
    if state is not None:
        found.documents[state.job] = state.record.definition
    if info.document.job in fold.definitions:
        found.documents[info.document.job] = encode(fold.definitions[info.document.job])
    elif state is not None:
        resolved = _resolved(fold, state, info.document)
        if resolved is not None:
            found.documents[info.document.job] = encode(resolved)


def _resolved(
    fold: ServiceFold, state: RequestState, result: ResultDocument
) -> dict[str, Any] | None:
    """Return the resolved job of a result: as the fold resolves the request now, or by what the
    result says that it rests on."""
    resolution = fold.resolve(state.job)
    if resolution.job == result.job:
        return resolution.document
    upstream = [fold.results.get(name) or fold.void.get(name) for name in result.upstream]
    made = [one.document.outputs for one in upstream if one is not None]
    sources = [e["source"] for e in state.document["inputs"] if "job" in e["source"]]
    if not sources:
        return None
    ways = [[o[s["output"]][0] for o in made if s["output"] in o] for s in sources]
    for cids in islice(product(*ways), _WAYS_MAX):
        job, document = resolved_with(state.document, cids)
        if job == result.job:
            return document
    return None


def _sources(job: dict[str, Any]) -> tuple[str, ...]:
    return tuple(e["source"]["job"] for e in job["inputs"] if "job" in e["source"])
