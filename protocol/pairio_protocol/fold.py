"""The fold: accepted records of one service -> state of its requests, runs and results.

It takes maxima and unions of what it is given, so the order, repetition and route of records do
not matter (DESIGN section 11). Nobody stores a state; this is derived again at every start.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pairio_protocol.allowlist import Folded
from pairio_protocol.documents import document_cid
from pairio_protocol.errors import DecodeError
from pairio_protocol.ids import LogId, rendezvous, request_id, run_id
from pairio_protocol.jobs import decode_job
from pairio_protocol.limits import DEPENDENCY_DEPTH_MAX, RESULTS_SENT_MAX
from pairio_protocol.normalise import job_id_of
from pairio_protocol.records import (
    Cancel,
    End,
    Record,
    Request,
    Result,
    ResultDocument,
    Start,
    Unknown,
    result_cid,
)

__all__ = ["RequestState", "Resolution", "ResultInfo", "RunState", "ServiceFold"]


@dataclass
class RequestState:
    """One request as this node knows it. `answer` is the CID of the result it was answered with,
    and stays so when another one becomes canonical."""

    id: str
    author: str
    record: Request
    job: str
    document: dict[str, Any]
    segment: bytes
    epoch: int
    canceled: bool = False
    answer: str | None = None
    cached: bool = False

    def salt(self) -> str:
        """Return what tells its run from a plain one."""
        match self.record.mode:
            case "skip_cache":
                return self.id
            case "rerun_failing":
                return self.record.salt_of
        return ""


@dataclass(frozen=True)
class ResultInfo:
    """An accepted result: its CID, the document, and the segment that carries it."""

    cid: str
    document: ResultDocument
    segment: bytes


@dataclass
class RunState:
    """What is known of one run: starts and ends by (attempt, author), and results."""

    starts: dict[tuple[str, str], Start] = field(default_factory=dict)
    ends: dict[tuple[str, str], End] = field(default_factory=dict)
    results: set[str] = field(default_factory=set)

    def end_of(self, attempt: str, worker: str) -> End | None:
        """Return how an attempt ended, by its worker's or its coordinator's word."""
        for author in (worker, awarded_by(attempt)):
            if (attempt, author) in self.ends:
                return self.ends[attempt, author]
        return None


def awarded_by(attempt: str) -> str:
    """Return the peer whose attempt it is, by its id."""
    return attempt.partition("/")[0]


@dataclass(frozen=True)
class Resolution:
    """How a job's inputs stand. `job` is the resolved id, None while upstream jobs are missing;
    `blocked_by` is the upstream job that failed; `lacks` are upstream jobs whose result's content
    is lost: a run goes on where it has begun, and begins nowhere."""

    job: str | None
    document: dict[str, Any] | None
    upstream: tuple[str, ...] = ()
    waits_for: tuple[str, ...] = ()
    blocked_by: str | None = None
    lacks: tuple[str, ...] = ()


class ServiceFold:
    """Requests, runs and results of one service.

    `at` gives the list at an epoch: who an author was when he wrote; `submits` says whether a
    peer may submit by the newest list: what others no longer may, nobody waits for.
    """

    def __init__(
        self,
        service: str,
        at: Callable[[int], Folded | None],
        submits: Callable[[str], bool],
    ) -> None:
        self._service = service
        self._at = at
        self._submits = submits
        self.requests: dict[str, RequestState] = {}
        self.runs: dict[str, RunState] = {}
        self.results: dict[str, ResultInfo] = {}
        self.definitions: dict[str, dict[str, Any]] = {}
        self.by_job: dict[str, list[str]] = {}
        self._by_resolved: dict[str, set[str]] = {}
        #: resolved job -> its canonical result, of those that have what its document declares
        self._best_known: dict[str, ResultInfo | None] = {}
        self._by_salt: dict[str, set[str]] = {}
        #: result -> requests that say its content is lost, but for those that were withdrawn
        self._lost: dict[str, set[str]] = {}
        self._consumers: dict[str, list[str]] = {}
        self._job_sources: dict[str, list[dict[str, str]]] = {}
        #: jobs that rest on no other -> how they stand, for ever
        self._at_once: dict[str, Resolution] = {}
        #: (job, CIDs put for its job sources) -> resolved id and document
        self._resolved: dict[tuple[str, tuple[str, ...]], tuple[str, dict[str, Any]]] = {}
        self._origins: dict[str, dict[str, None]] = {}
        self._cancels: dict[str, set[tuple[str, int]]] = {}
        #: answers that were given: request id -> the result's CID. Never changed.
        self.pins: dict[str, str] = {}
        #: results that were answers and do not count any more, for those who ask again
        self.void: dict[str, ResultInfo] = {}

    # -- taking records ---------------------------------------------------------------

    def add(
        self, log: LogId, seq: int, epoch: int, record: Record | Unknown, segment: bytes
    ) -> str | None:
        """Take one accepted record. Returns the request, run or result id that it touched.

        Raises:
            DecodeError: the record contradicts itself (its segment is kept, the record is void).
        """
        match record:
            case Request():
                return self._request(log, seq, epoch, record, segment)
            case Cancel():
                for name in record.requests:
                    self._cancels.setdefault(name, set()).add((log.author, epoch))
                    self._note_cancel(name)
                return record.requests[0] if record.requests else None
            case Start():
                self.run(record.run).starts.setdefault((record.attempt, log.author), record)
                return record.run
            case End():
                self.run(record.run).ends.setdefault((record.attempt, log.author), record)
                return record.run
            case Result():
                return self._result(log, record, segment)
            case Unknown():
                return None

    def _request(
        self, log: LogId, seq: int, epoch: int, record: Request, segment: bytes
    ) -> str | None:
        name = request_id(self._service, log.author, log.boot, seq)
        if name in self.requests:
            return None
        document = decode_job(record.definition)
        job = document_cid(record.definition)
        self.define(job, document)
        state = RequestState(name, log.author, record, job, document, segment, epoch)
        state.answer = self.pins.get(name)
        self.requests[name] = state
        self.by_job.setdefault(job, []).append(name)
        self._note_lost(state)
        self._note_cancel(name)
        return name

    def define(self, job: str, document: dict[str, Any]) -> None:
        """Know a job's definition."""
        if job not in self.definitions:
            self.definitions[job] = document
            sources = [entry["source"] for entry in document["inputs"] if "job" in entry["source"]]
            self._job_sources[job] = sources
            for source in sources:
                self._consumers.setdefault(source["job"], []).append(job)

    def upstream_of(self, job: str, count: int) -> list[str]:
        """Return `job` behind the jobs on which it rests, as far as known here, at most `count`."""
        found = [job]
        seen = {job}
        for name in found:  # grows while it is walked
            for source in self._job_sources.get(name, ()):
                if source["job"] not in seen and len(found) < count:
                    seen.add(source["job"])
                    found.append(source["job"])
        return found[::-1]

    def resting_on(self, jobs: Iterable[str]) -> set[str]:
        """Return `jobs` and all known jobs that rest on them, however far."""
        found = set(jobs)
        left = list(found)
        while left:
            for job in self._consumers.get(left.pop(), ()):
                if job not in found:
                    found.add(job)
                    left.append(job)
        return found

    def _note_cancel(self, name: str) -> None:
        """A request is canceled by its submitter's member, or by an admin, of then."""
        state = self.requests.get(name)
        if state is None:
            return
        for author, epoch in self._cancels.get(name, ()):
            folded = self._at(epoch)
            if folded is None:
                continue
            member = folded.member_of(author)
            same = author == state.author or (
                member is not None and member == folded.member_of(state.author)
            )
            if same or author in folded.admins:
                state.canceled = True
                self._note_lost(state)

    def _note_lost(self, state: RequestState) -> None:
        """A request may say that a result's content is lost; withdrawn, it says so no more."""
        if state.record.mode != "rerun_lost":
            return
        cid = state.record.salt_of
        names = self._lost.setdefault(cid, set())
        names.discard(state.id) if state.canceled else names.add(state.id)
        if not names:
            del self._lost[cid]
        if cid in self.results:
            self._best_known.pop(self.results[cid].document.job, None)

    def is_lost(self, cid: str) -> bool:
        """Say whether a member could not get a result's content from anybody, and has not found it
        since: it is no answer any more, and is computed again. A failed one has no content to lose,
        whatever a member says."""
        if cid not in self._lost:
            return False
        found = self.results.get(cid)
        return found is None or found.document.status == "completed"

    def why_lost(self, cid: str) -> list[RequestState]:
        """Return the requests that say that a result's content is lost, sorted by id."""
        return [self.requests[name] for name in sorted(self._lost.get(cid, ()))]

    def _result(self, log: LogId, record: Result, segment: bytes) -> str | None:
        document = ResultDocument.decode(record.document)
        if document.worker != log.author:
            raise DecodeError("a result in a log of somebody else than its worker")
        cid = result_cid(record.document)
        if cid in self.results:
            return None
        self._know(ResultInfo(cid, document, segment))
        self.run(document.run).results.add(cid)
        return cid

    def take_document(self, data: bytes) -> ResultInfo:
        """Know a result by its signed document alone, as a guest does, to whom no segment is sent
        (DecodeError: not one)."""
        document = ResultDocument.decode(data)
        info = ResultInfo(result_cid(data), document, b"")
        self._know(info)
        return info

    def _know(self, info: ResultInfo) -> None:
        document = info.document
        self.results[info.cid] = info
        self._by_resolved.setdefault(document.job, set()).add(info.cid)
        self._best_known.pop(document.job, None)
        if document.salt:
            self._by_salt.setdefault(document.salt, set()).add(info.cid)

    def has_results(self, resolved_job: str) -> bool:
        """Say whether any result of a job is known; costs nothing and keeps nothing."""
        return bool(self._by_resolved.get(resolved_job))

    def lacks_outputs(self, job: dict[str, Any], document: ResultDocument) -> bool:
        """Say whether a completed result has not all outputs that a job declares."""
        declared = {output["name"] for output in job["outputs"]}
        return document.status == "completed" and not declared <= set(document.outputs)

    def run(self, name: str) -> RunState:
        """Return the state of a run, new if nothing was known of it."""
        if name not in self.runs:
            self.runs[name] = RunState()
        return self.runs[name]

    # -- what is this node's own --------------------------------------------------------

    def pin(self, request: str, cid: str) -> None:
        """An answer is given: it stays, also when another result becomes canonical."""
        self.pins.setdefault(request, cid)
        state = self.requests.get(request)
        if state is not None:
            state.answer = self.pins[request]

    def adopt(self, before: "ServiceFold") -> None:
        """Take over what no record says from the fold that this one replaces: answers given,
        local handles, and the results that they name."""
        self.pins = before.pins
        for name, state in self.requests.items():
            state.answer = self.pins.get(name)
        for name, state in before.requests.items():
            if state.cached and name not in self.requests:
                self.requests[name] = state
                self.by_job.setdefault(state.job, []).append(name)
                self.define(state.job, state.document)
        known = {**before.void, **before.results}
        for cid in self.pins.values():
            if cid not in self.results and cid in known:
                self.void[cid] = known[cid]

    def result_of(self, state: RequestState) -> ResultInfo | None:
        """Return the result a request was answered with, also when it counts no more."""
        if state.answer is None:
            return None
        return self.results.get(state.answer) or self.void.get(state.answer)

    # -- attempts -----------------------------------------------------------------------

    def live_attempts(self, run: str) -> list[tuple[str, str]]:
        """Return (attempt, worker) of those that started rightly and have not ended, sorted."""
        state = self.runs.get(run)
        if state is None:
            return []
        done = {
            (self.results[c].document.attempt, self.results[c].document.worker)
            for c in state.results
        }
        return sorted(
            key
            for key, start in state.starts.items()
            if key not in done and state.end_of(*key) is None and self._is_right(run, start)
        )

    def _is_right(self, run: str, start: Start) -> bool:
        """A start counts when its request is known and wants the run, on results that count."""
        state = self.requests.get(start.request)
        if state is None or any(cid not in self.results for cid in start.upstream):
            return False
        return self.run_of(state, self.resolve(state.job)) == run

    def lost_attempts(self, state: RequestState, run: str) -> int:
        """Return how many attempts for a request were lost by machines, not by the app: by the word
        of who asks, of the worker that began it, or of who awarded what somebody began. (Anybody
        else could exhaust the request.)"""
        known = self.runs.get(run)
        if known is None:
            return 0
        begun = {attempt for attempt, _ in known.starts}
        lost = {
            attempt
            for (attempt, author), end in known.ends.items()
            if end.kind == "infra" and end.request == state.id
            if author == state.author
            or (attempt, author) in known.starts
            or (author == awarded_by(attempt) and attempt in begun)
        }
        if lost and self._lost:  # that an input was gone is no node's fault
            lost -= {
                attempt
                for (attempt, _), start in known.starts.items()
                if any(map(self.is_lost, start.upstream))
            }
        return len(lost)

    def was_answered(self, state: RequestState) -> bool:
        """Say whether this node gave a request an answer that still counts. One that was cut away
        is shown to whoever has it, but the run is wanted again: for all others, and for what rests
        on it, the request is open."""
        return state.answer in self.results

    def is_wanted(self, state: RequestState, unix_ms: int) -> bool:
        """Say whether a request still waits: not canceled, not expired, not answered."""
        if state.canceled or self.was_answered(state) or unix_ms > state.record.expires_unix_ms:
            return False
        if not self._submits(state.author):
            return False
        return self.answer_for(state, self.resolve(state.job)) is None

    def has_answer(self, state: RequestState) -> bool:
        """Say whether a request was answered, or would be now."""
        if self.was_answered(state):
            return True
        return self.answer_for(state, self.resolve(state.job)) is not None

    def is_open(self, request: str, unix_ms: int) -> bool:
        """Say whether a known request may still change: also one whose submitter lost his role,
        who may get it back."""
        state = self.requests.get(request)
        if state is None or state.canceled or unix_ms > state.record.expires_unix_ms:
            return False
        return not self.has_answer(state)

    def is_awaited(self, resolved_job: str, unix_ms: int) -> bool:
        """Say whether a known open request would be answered by a result of this job."""
        return any(
            self.is_open(request, unix_ms)
            for job in (resolved_job, *self.origins(resolved_job))
            for request in self.by_job.get(job, ())
        )

    def needed_jobs(self, unix_ms: int) -> set[str]:
        """Return the jobs that open requests want, and those on which these rest."""
        needed = {s.job for name, s in self.requests.items() if self.is_open(name, unix_ms)}
        left = list(needed)
        while left:
            for source in self._job_sources.get(left.pop(), ()):
                if source["job"] not in needed:
                    needed.add(source["job"])
                    left.append(source["job"])
        return needed

    def open_since(self, before_unix_ms: int, unix_ms: int) -> list[str]:
        """Return the jobs of requests issued before that and still open, as they may be looked up:
        resolved if they can be, with what they wait for or are blocked by."""
        jobs: dict[str, None] = {}
        for name, state in self.requests.items():
            if state.record.issued_unix_ms < before_unix_ms and self.is_open(name, unix_ms):
                resolution = self.resolve(state.job)
                # Also by its own id: with other results of its inputs it resolves otherwise there.
                asked = [state.job, resolution.job or state.job]
                asked += [*resolution.waits_for, *resolution.lacks]
                jobs.update(dict.fromkeys(asked))
                if resolution.blocked_by is not None:  # it may have succeeded elsewhere
                    jobs[resolution.blocked_by] = None
        return list(jobs)

    def who_wants(self, run: str, job: str, unix_ms: int) -> list[RequestState]:
        """Return the known requests, for `job` as it was asked for or what is the same with its
        inputs' results, that want a run."""
        resolved = self.resolve(job).job if job in self.definitions else None
        jobs = dict.fromkeys([job, *(self.asked_as(resolved) if resolved is not None else ())])
        return [
            state
            for state in (self.requests[n] for asked in jobs for n in self.by_job.get(asked, ()))
            if self.is_wanted(state, unix_ms) and self.run_of(state, self.resolve(state.job)) == run
        ]

    # -- looking up -------------------------------------------------------------------

    def canonical(
        self, resolved_job: str, document: dict[str, Any] | None = None
    ) -> ResultInfo | None:
        """Return the canonical result, of those whose content is not lost: completed, then lower
        rendezvous, then smaller CID.

        With the job's `document`, results that lack a declared output do not count. (All documents
        that resolve to one job declare the same outputs.)
        """
        cids = self._by_resolved.get(resolved_job, ())
        if document is None:
            return self._best_there(cids)
        if resolved_job not in self._best_known:
            fitting = [c for c in cids if self._fits(document, c)]
            self._best_known[resolved_job] = self._best_there(fitting)
        return self._best_known[resolved_job]

    def _best_there(self, cids: Collection[str]) -> ResultInfo | None:
        """Return the best result whose content is not lost. Where only lost ones were completed,
        that is what came of computing the last of them again, if anything."""
        found = self._best(cid for cid in cids if not self.is_lost(cid))
        lost = self._best_lost(cids)
        if lost is None or (found is not None and found.document.status == "completed"):
            return found
        return self._best(cid for cid in cids if self.results[cid].document.salt == lost.cid)

    def _best_lost(self, cids: Collection[str]) -> ResultInfo | None:
        """Return the completed result whose content was lost last: none was computed in its place
        that was completed."""
        if not self._lost:
            return None
        completed = [c for c in cids if self.results[c].document.status == "completed"]
        replaced = {self.results[c].document.salt for c in completed}
        return self._best(c for c in completed if self.is_lost(c) and c not in replaced)

    def lost_result(self, resolved_job: str, document: dict[str, Any]) -> ResultInfo | None:
        """Return the result of a job that has to be computed again, as its content is lost."""
        if not self._lost:
            return None
        found = self.canonical(resolved_job, document)
        if found is not None and found.document.status == "completed":
            return None
        cids = self._by_resolved.get(resolved_job, ())
        return self._best_lost([c for c in cids if self._fits(document, c)])

    def results_for(self, job: str) -> list[ResultInfo]:
        """Return what answers somebody who asks for a job by its id, resolved or not: the canonical
        result; where no definition is known, by which it could be chosen, a few."""
        if job in self.definitions:
            resolved = self.resolve(job).job
            found = self.canonical(resolved, self.definitions[job]) if resolved else None
            return [found] if found is not None else []
        for origin in self.origins(job):
            found = self.canonical(job, self.definitions[origin])
            if found is not None:
                return [found]
        cids = [cid for cid in sorted(self._by_resolved.get(job, ())) if not self.is_lost(cid)]
        return [self.results[cid] for cid in cids[:RESULTS_SENT_MAX]]

    def _best(self, cids: Any) -> ResultInfo | None:
        found = [self.results[cid] for cid in cids]
        if not found:
            return None
        return min(
            found,
            key=lambda r: (
                r.document.status != "completed",
                rendezvous(r.document.run, r.document.worker),
                r.cid,
            ),
        )

    def resolve(self, job: str) -> Resolution:
        """Replace every `job` source of a known job by the CID that the upstream result gives.

        Depth is bounded by DEPENDENCY_DEPTH_MAX; each job is done once.
        """
        if not self._job_sources[job]:
            return self._without_sources(job)
        return self._resolutions(job)[job]

    def failed_below(self, job: str) -> str:
        """Return the job that failed because of which one is blocked: itself, or one below it."""
        memo = self._resolutions(job) if self._job_sources.get(job) else {}
        while job in memo and memo[job].blocked_by is not None:
            job = memo[job].blocked_by or job
        return job

    def _resolutions(self, job: str) -> dict[str, Resolution]:
        """Resolve a job and all on which it rests."""
        memo: dict[str, Resolution] = {}
        left = [(job, 0)]  # no recursion: a member's chain of jobs may be long
        while left:
            name, depth = left[-1]
            if name not in memo and depth > DEPENDENCY_DEPTH_MAX:
                memo[name] = Resolution(None, None, blocked_by="too deep")
            sources = [s["job"] for s in self._job_sources[name]] if name not in memo else []
            first = [j for j in sources if j in self.definitions and j not in memo]
            if first:
                left += [(j, depth + 1) for j in reversed(first)]
                continue
            left.pop()
            if name not in memo:
                memo[name] = self._resolve(name, memo)
        return memo

    def _without_sources(self, job: str) -> Resolution:
        if job not in self._at_once:
            self._at_once[job] = Resolution(job, self.definitions[job])
        return self._at_once[job]

    def _resolve(self, job: str, memo: dict[str, Resolution]) -> Resolution:
        """Resolve a job; those known here on which it rests are in `memo`."""
        if not self._job_sources[job]:
            return self._without_sources(job)
        cids, upstream, waits, lacks = [], [], [], []
        for source in self._job_sources[job]:
            result = self._result_of(source["job"], source["output"], memo)
            if result is None:
                waits.append(source["job"])
            elif isinstance(result, str):
                return Resolution(None, None, blocked_by=result)
            elif source["output"] not in result.document.outputs:
                return Resolution(None, None, blocked_by=source["job"])
            else:
                cids.append(result.document.outputs[source["output"]][0])
                upstream.append(result.cid)
                if self.is_lost(result.cid):
                    lacks.append(source["job"])
        if waits:
            return Resolution(None, None, waits_for=tuple(dict.fromkeys(waits)))
        resolved_job, resolved = self._substituted(job, tuple(cids))
        return Resolution(
            resolved_job,
            resolved,
            tuple(dict.fromkeys(upstream)),
            lacks=tuple(dict.fromkeys(lacks)),
        )

    def _substituted(self, job: str, cids: tuple[str, ...]) -> tuple[str, dict[str, Any]]:
        """Return the id and document of a job with its `job` sources replaced, in their order."""
        known = self._resolved.get((job, cids))
        if known is None:
            left = iter(cids)
            document = self.definitions[job]
            inputs = [
                {**entry, "source": {"cid": next(left)}} if "job" in entry["source"] else entry
                for entry in document["inputs"]
            ]
            resolved = {**document, "inputs": inputs}
            known = self._resolved[job, cids] = (job_id_of(resolved), resolved)
            self._origins.setdefault(known[0], {})[job] = None
        return known

    def origins(self, resolved_job: str) -> list[str]:
        """Return the unresolved jobs whose inputs now give `resolved_job`."""
        jobs = self._origins.get(resolved_job, ())
        return [job for job in jobs if self.resolve(job).job == resolved_job]

    @property
    def substitutions(self) -> Mapping[tuple[str, tuple[str, ...]], tuple[str, dict[str, Any]]]:
        """(Job, CIDs put for its `job` sources) -> resolved id and document; it only grows."""
        return self._resolved

    def asked_as(self, resolved_job: str) -> list[str]:
        """Return the known jobs that are or ever were resolved to a job, itself included."""
        own = [resolved_job] if resolved_job in self.definitions else []
        return [*own, *self._origins.get(resolved_job, ())]

    def _result_of(
        self, job: str, output: str, memo: dict[str, Resolution]
    ) -> ResultInfo | str | None:
        """Return the result of an upstream job, None while it is missing, the id if it failed.

        While its definition is not known here, results without the output that is needed do not
        count: a liar's may be among them.
        """
        definition = self.definitions.get(job)
        resolved: str | None = job
        if definition is not None:
            if memo[job].blocked_by is not None:
                return job
            resolved = memo[job].job
        found = self.canonical(resolved, definition) if resolved is not None else None
        if definition is None:
            cids = self._by_resolved.get(job, ())
            found = self._best_there([c for c in cids if self._gives(output, c)])
        elif found is None and resolved is not None:
            found = self.lost_result(resolved, definition)
        if found is None:
            return None
        if found.document.status != "completed":
            return None if self._has_new_try(job, found) else job
        return found

    def _has_new_try(self, job: str, failed: ResultInfo) -> bool:
        """Say whether another run of a failed job was asked for, and has not ended: a run of its
        own, whatever the inputs gave when it was run. What its submitter was answered with is
        known to him alone, and must not decide here."""
        tried = [failed.cid]
        for cid in tried:  # each try that failed may have been tried again
            tried += self._by_salt.get(cid, ())
        return any(
            self._wants_own_run(state, tried)
            and not state.canceled
            and self._submits(state.author)
            and not any(self._fits(state.document, c) for c in self._by_salt.get(state.salt(), ()))
            for state in (self.requests[name] for name in self.by_job.get(job, ()))
        )

    @staticmethod
    def _wants_own_run(state: RequestState, tried: Collection[str]) -> bool:
        mode = state.record.mode
        return mode == "skip_cache" or (mode == "rerun_failing" and state.record.salt_of in tried)

    def run_of(self, state: RequestState, resolution: Resolution) -> str | None:
        """Return the run that a request wants, None while its job is not resolved."""
        if resolution.job is None:
            return None
        return run_id(resolution.job, self.salt_of(state, resolution.job))

    def runs_of(self, state: RequestState, resolution: Resolution) -> list[str]:
        """Return the runs that a request has wanted: the one that it asked for, and those in which
        that was computed again, since content was lost."""
        job, salt = resolution.job, state.salt()
        if job is None:
            return []
        lost = [c for c in sorted(self._by_resolved.get(job, ())) if not salt and self.is_lost(c)]
        return [run_id(job, salt), *(run_id(job, cid) for cid in lost)]

    def salt_of(self, state: RequestState, resolved_job: str) -> str:
        """Return what tells the run that a request wants from a plain one: what it asks for itself,
        or the result whose content is lost."""
        salt = state.salt()
        if not salt and self._lost:
            lost = self.lost_result(resolved_job, state.document)
            return lost.cid if lost is not None else ""
        return salt

    def answer_for(self, state: RequestState, resolution: Resolution) -> ResultInfo | None:
        """Return the result that answers a request now, None when it has to be computed."""
        if resolution.job is None:
            return None
        if state.record.mode == "skip_cache":
            return self._result_in(resolution.job, state.salt(), state.document)
        best = self.canonical(resolution.job, state.document)
        if best is None or best.document.status == "completed":
            return best
        if state.record.mode == "rerun_failing" and state.record.salt_of:
            return self._result_in(resolution.job, state.salt(), state.document)
        if not self._may_do_better(state, best):
            return best
        # The same run with more of what it lacked, which may have failed as well.
        run = self.runs.get(run_id(resolution.job, self.salt_of(state, resolution.job)))
        tries = (self.results[cid] for cid in run.results) if run is not None else ()
        return self._best(
            found.cid
            for found in tries
            if self._fits(state.document, found.cid) and not self._may_do_better(state, found)
        )

    def last_failure(self, resolved_job: str, document: dict[str, Any]) -> ResultInfo | None:
        """Return the failed result that a new try follows, None when there is no failure that
        counts: the canonical one, or that of its newest try. Which of several failures is canonical
        does not tell which came last, and a try of one that was tried already is no new run."""
        found = self.canonical(resolved_job, document)
        if found is None or found.document.status != "failed":
            return None
        while after := self._result_in(resolved_job, found.cid, document):
            found = after
        return found

    def _result_in(self, job: str, salt: str, document: dict[str, Any]) -> ResultInfo | None:
        """Return the best result of one run that fits a job's document."""
        run = self.runs.get(run_id(job, salt))
        return self._best(r for r in run.results if self._fits(document, r)) if run else None

    def _fits(self, job: dict[str, Any], cid: str) -> bool:
        return not self.lacks_outputs(job, self.results[cid].document)

    def _gives(self, output: str, cid: str) -> bool:
        document = self.results[cid].document
        return document.status != "completed" or output in document.outputs

    @staticmethod
    def _may_do_better(state: RequestState, failed: ResultInfo) -> bool:
        """A failure by a limit answers only who asks no more of that resource."""
        kind, _, bound = failed.document.limit.partition("=")
        asked = {
            "time_ms": state.record.resources.time_ms,
            "memory_mib": state.record.resources.memory_mib,
        }.get(kind)
        return asked is not None and asked > int(bound or 0)

    def find_jobs(self, prefix: str) -> Iterator[str]:
        """Return the job ids that start with `prefix`."""
        return (job for job in self.by_job if job.startswith(prefix))
