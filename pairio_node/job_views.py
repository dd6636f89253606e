"""Jobs as clients see them: plain JSON in the original's names."""

from collections.abc import Mapping
from typing import Any, Protocol

from pairio_node.blocked import blocked_words
from pairio_node.lost import lost_words
from pairio_protocol.apps import Needs, needs_of
from pairio_protocol.core import NodeCore
from pairio_protocol.fold import RequestState, ResultInfo, RunState, ServiceFold
from pairio_protocol.limits import ATTEMPTS_MAX, PERMILLE_MAX
from pairio_protocol.messages import Decline
from pairio_protocol.normalise import definition_of
from pairio_protocol.policy import isolation_needed, misfit
from pairio_protocol.printable import printable
from pairio_protocol.records import SAMPLES_OUTPUT, End, Resources, ResultDocument
from pairio_protocol.revoked import why_without

__all__ = [
    "LinkMaker",
    "attempts_view",
    "fitting_view",
    "is_final",
    "is_settled",
    "job_status",
    "job_view",
    "progress_of",
    "resources_view",
    "result_of",
    "why_view",
]


class LinkMaker(Protocol):
    """Makes URLs for people; never stored, never hashed."""

    def job_page(self, job_id: str, service: str | None = None) -> str:
        """Return the URL of a job's page."""

    def content(self, cid: str, name: str) -> str:
        """Return the capability URL of some content."""


def is_final(core: NodeCore, service: str, state: RequestState) -> bool:
    """Say whether a request will not change any more by itself."""
    return job_status(core, service, state)[0] in ("completed", "failed", "canceled")


def is_settled(core: NodeCore, service: str, state: RequestState) -> bool:
    """Say whether somebody who waits for a request should be told now."""
    status = job_status(core, service, state)[0]
    if status == "completed" and state.answer is not None:
        return core.replication.is_settled(state.answer)
    return status in ("completed", "failed", "canceled", "blocked")


def result_of(core: NodeCore, service: str, state: RequestState) -> ResultInfo | None:
    """Return the result that a request has been answered with, or would be now."""
    fold = core.fold(service)
    if state.answer is not None:
        return fold.result_of(state)
    if core.coordinator.is_held_back(state.id):
        return None
    return fold.answer_for(state, fold.resolve(state.job))


def job_status(core: NodeCore, service: str, state: RequestState) -> tuple[str, str | None]:
    """Return (status, error)."""
    result = result_of(core, service, state)
    if result is not None:
        return result.document.status, result.document.error or None
    if state.canceled:
        return "canceled", core.guests.over.get(state.id)
    if core.ctx.unix_ms > state.record.expires_unix_ms:
        return "failed", "expired"
    chain = core.membership.chains[service]
    is_a_guests = state.author == state.record.sponsor_of  # this node's, who has no role
    if not is_a_guests and "submit" not in chain.now.roles_of(state.author):
        why = why_without(chain, state.author, "submit")
        return "failed", f"revoked: its submitter may not submit any more; {why}".rstrip("; ")
    fold = core.fold(service)
    resolution = fold.resolve(state.job)
    if resolution.blocked_by is not None:
        return "blocked", blocked_words(core, service, resolution.blocked_by)
    app = state.document["app"]
    is_listed = app in core.membership.folded(service).apps
    run = fold.run_of(state, resolution)
    if run is not None and fold.live_attempts(run):
        return "running", None
    attempt = core.coordinator.attempt_of(state.id)
    if attempt is not None and attempt.held:
        return "starting", None
    if not is_listed:
        return "blocked", f"app {app!r} was removed from the service"
    if run is not None and fold.lost_attempts(state, run) >= ATTEMPTS_MAX:
        return "failed", exhausted_words(fold.runs[run])
    return "pending", None


def progress_of(core: NodeCore, service: str, state: RequestState) -> float | None:
    """Return how far the run of a request is, by its own word: 0 to 1; None where that is not
    known. Its coordinator and its worker know."""
    attempt = core.coordinator.attempt_of(state.id)
    permille = attempt.permille if attempt is not None else 0
    if not permille:
        fold = core.fold(service)
        run = fold.run_of(state, fold.resolve(state.job))
        live = fold.live_attempts(run) if run is not None else ()
        tasks = (core.worker.tasks.get(name) for name, worker in live if worker == core.ctx.me)
        permille = max((task.permille for task in tasks if task is not None), default=0)
    return permille / PERMILLE_MAX if permille else None


def exhausted_words(run: RunState) -> str:
    """Return what became of a run that machines have lost too often: the reason of the last one
    may be that of all, and then it helps to submit it otherwise."""
    last = max(run.ends.values(), key=lambda end: end.issued_unix_ms, default=None)
    why = f", the last by: {printable(last.reason)}" if last is not None else ""
    return f"exhausted: {ATTEMPTS_MAX} attempts were lost{why}; submit it again"


def attempts_view(core: NodeCore, service: str, state: RequestState) -> list[dict[str, Any]]:
    """Return every try of the request's run, oldest first: where, from when to when, how it ended;
    also of those in which it was computed again because its content was lost.

    One that was given up and gave its result all the same has that result's status, and the reason
    for which it was given up.
    """
    fold = core.fold(service)
    runs = [fold.runs[n] for n in fold.runs_of(state, fold.resolve(state.job)) if n in fold.runs]
    documents = [fold.results[cid].document for run in runs for cid in sorted(run.results)]
    gave = {(document.attempt, document.worker): document for document in documents}
    starts = [(key, start, run) for run in runs for key, start in run.starts.items()]
    found = []
    for (name, worker), start, run in sorted(starts, key=lambda i: i[1].issued_unix_ms):
        end, document = _first_end(run, name, worker), gave.get((name, worker))
        ended, reason = (end.kind, end.reason) if end else (None, None)
        ended_ms = end.issued_unix_ms if end else None
        if document is not None:
            ended, ended_ms = document.status, document.finished_unix_ms
            reason = reason or document.error or None
        found.append(
            {
                "attemptId": name,
                "computeNodeId": worker,
                "timestampStartedSec": start.issued_unix_ms / 1000,
                "timestampEndedSec": ended_ms / 1000 if ended_ms is not None else None,
                "ended": ended,
                "reason": reason,
            }
        )
    return found


def _first_end(run: RunState, attempt: str, worker: str) -> End | None:
    """Return how an attempt ended first: its coordinator may have given it up, and its worker have
    said later, when it woke, that it was canceled."""
    authors = dict.fromkeys((attempt.partition("/")[0], worker))
    ends = [run.ends[attempt, author] for author in authors if (attempt, author) in run.ends]
    return min(ends, key=lambda end: end.issued_unix_ms, default=None)


def job_view(core: NodeCore, service: str, state: RequestState, links: LinkMaker) -> dict[str, Any]:
    """Return a job as clients see it, by one of its requests."""
    result = result_of(core, service, state)
    document = result.document if result else None
    status, error = job_status(core, service, state)
    fold = core.fold(service)
    resolution = fold.resolve(state.job)
    attempts = attempts_view(core, service, state)
    record = state.record
    inputs_key = f"{state.id}/inputs"
    started = document.started_unix_ms if document else None
    if started is None and attempts:
        started = int(attempts[-1]["timestampStartedSec"] * 1000)
    worker = document.worker if document else (attempts[-1]["computeNodeId"] if attempts else None)
    return {
        "jobId": state.job,
        "requestId": state.id,
        "sponsorOf": record.sponsor_of or None,
        "runId": document.run if document else fold.run_of(state, resolution),
        "replicated": core.commands.replicated.get(state.id, 0),
        "inputsReplicated": not core.replication.is_copying(inputs_key),
        "canceled": state.canceled,
        "jobUrl": links.job_page(state.job, core.membership.petnames.get(service)),
        "serviceName": core.membership.petnames.get(service, service),
        "serviceId": service,
        "userId": state.author,
        "batchId": record.batch,
        "status": status,
        "isRunnable": resolution.job is not None and not resolution.lacks,
        "error": error,
        "progress": progress_of(core, service, state) if status == "running" else None,
        "lost": lost_words(core, service, state, result),
        "cached": state.cached,
        "safe": result is not None and core.replication.is_safe(result.cid),
        "isSettled": is_settled(core, service, state),
        "computeNodeId": worker,
        "computeClientId": worker,
        "attempts": attempts,
        "jobDefinition": definition_of(state.document),
        "jobDefinitionHash": state.job,
        "jobDependencies": [
            entry["source"]["job"] for entry in state.document["inputs"] if "job" in entry["source"]
        ],
        "requiredResources": resources_view(record.resources),
        "tags": list(record.tags),
        "targetComputeClientIds": list(record.targets) or None,
        "timestampCreatedSec": record.issued_unix_ms / 1000,
        "timestampStartingSec": started / 1000 if started else None,
        "timestampStartedSec": started / 1000 if started else None,
        "timestampFinishedSec": document.finished_unix_ms / 1000 if document else None,
        "isolation": document.isolation if document else None,
        "usage": document.usage if document else None,
        **_samples(document, links),
        "sources": _sources(document) if document else [],
        "consoleOutputUrl": links.content(document.console, "console.txt") if document else None,
        "consoleOutputCid": document.console if document else None,
        "outputFileResults": _outputs(state, result, links),
        "otherFileOutputs": _others(result, links),
    }


def _sources(document: ResultDocument) -> list[dict[str, Any]]:
    """Return what was read of inputs by URL: the content behind a URL may be another by now."""
    return [
        {
            "name": name,
            "size": source.size_bytes,
            "etag": source.etag or None,
            "lastModified": source.modified or None,
            "timestampReadSec": source.read_unix_ms / 1000,
            "sha256": source.sha256 or None,
            "ranges": [list(pair) for pair in source.ranges] or None,
        }
        for name, source in sorted(document.sources.items())
    ]


def why_view(core: NodeCore, service: str, state: RequestState) -> dict[str, Any]:
    """Return why a request is where it is: status, what it waits for, and per node the rule that
    keeps the run off it, with what is needed and what it has."""
    status, error = job_status(core, service, state)
    fold = core.fold(service)
    resolution = fold.resolve(state.job)
    errand = core.coordinator.errand_of(state.id)
    needs = needs_of(core.membership.folded(service).apps, state.document)
    attempt = core.coordinator.attempt_of(state.id)
    return {
        "jobId": state.job,
        "requestId": state.id,
        "status": status,
        "error": error,
        "lost": lost_words(core, service, state, result_of(core, service, state)),
        "coordinator": state.author,
        "waitsFor": list(resolution.waits_for or resolution.lacks),
        "blockedBy": resolution.blocked_by,
        "failedJob": fold.failed_below(resolution.blocked_by) if resolution.blocked_by else None,
        "waitsForSecretsOf": _waits_for_secrets_of(core, service, state, needs),
        "attempt": {"node": attempt.worker, "state": attempt.state} if attempt else None,
        "attempts": attempts_view(core, service, state),
        "nodes": fitting_view(core, service, state, errand.declined if errand else {}),
    }


def _waits_for_secrets_of(
    core: NodeCore, service: str, state: RequestState, needs: Needs
) -> str | None:
    """Return the node without whose secrets an open request cannot run, if they are not to be had:
    it is away, or it is this one and has lost them."""
    ended = is_final(core, service, state)
    here = state.author == core.ctx.me
    lost = here and (service, state.job) not in core.ctx.secrets_held
    away = not here and state.author not in core.ctx.connected
    return state.author if needs.secrets and not ended and (lost or away) else None


def fitting_view(
    core: NodeCore, service: str, state: RequestState, declined: Mapping[str, tuple[int, Decline]]
) -> list[dict[str, Any]]:
    """Return for each node of the service whether a request fits it, and the rule that keeps it
    off; `declined` are the last refusals of nodes."""
    folded = core.membership.folded(service)
    needed = isolation_needed(state.record, folded)
    network_for = state.document["app"] if needs_of(folded.apps, state.document).network else ""
    resources = state.record.resources
    nodes = []
    for entry in sorted(core.presence(service), key=lambda e: e.peer):
        rule = _owner_rule(core, service, state) if entry.peer == core.ctx.me else None
        rule = rule or misfit(entry, resources, needed, state.record.targets, network_for)
        last = declined.get(entry.peer)
        if rule is None and last is not None:
            rule = (last[1].reason, last[1].needs, last[1].has)
        if rule is None and "compute" not in folded.roles_of(entry.peer):
            rule = ("role", "compute", ", ".join(folded.roles_of(entry.peer)) or "none")
        if rule is None and entry.peer not in (*core.ctx.connected, core.ctx.me):
            rule = ("connection", "a connection to it", "none from this node")
        if rule is None and entry.load >= entry.slots:
            rule = ("busy", "a free slot", f"{entry.load} runs on {entry.slots} slots")
        name = folded.member_of(entry.peer) or entry.peer
        fit = dict(zip(("rule", "need", "have"), rule or ("", "", ""), strict=True))
        nodes.append({"name": name, "peerId": entry.peer, "fits": rule is None, **fit})
    return nodes


def _owner_rule(core: NodeCore, service: str, state: RequestState) -> tuple[str, str, str] | None:
    """Return what the owner of this node says to a request, None if it may run here now."""
    hours = core.owner.closed(service)
    if hours is not None:
        return ("owner's hours", hours, "now is outside them")
    return core.owner.refusal(service, state)


def resources_view(resources: Resources) -> dict[str, Any]:
    """Return resources in the original's names and units."""
    return {
        "numCpus": _number(resources.cpu_millicores, 1000),
        "numGpus": resources.gpus,
        "memoryGb": _number(resources.memory_mib, 1024),
        "timeSec": _number(resources.time_ms, 1000),
    }


def _number(value: int, scale: int) -> int | float:
    return value // scale if value % scale == 0 else value / scale


def _outputs(
    state: RequestState, result: ResultInfo | None, links: LinkMaker
) -> list[dict[str, Any]]:
    made = result.document.outputs if result else {}
    views = []
    for output in state.document["outputs"]:
        cid, size, _ = made.get(output["name"], (None, None, None))
        views.append(
            {
                "name": output["name"],
                "fileBaseName": output["base_name"],
                "url": links.content(cid, output["base_name"]) if cid else None,
                "cid": cid,
                "size": size,
            }
        )
    return views


def _samples(document: ResultDocument | None, links: LinkMaker) -> dict[str, Any]:
    """Return where the run's use over time is, by the original's name."""
    cid, _, base = (document.outputs if document else {}).get(SAMPLES_OUTPUT, (None, 0, ""))
    return {
        "resourceUtilizationLogUrl": links.content(cid, base) if cid else None,
        "resourceUtilizationLogCid": cid,
    }


def _others(result: ResultInfo | None, links: LinkMaker) -> list[dict[str, Any]]:
    if result is None:
        return []
    return [
        {"name": name, "url": links.content(cid, base), "cid": cid, "size": size}
        for name, (cid, size, base) in sorted(result.document.outputs.items())
        if name.startswith("other/")
    ]


def find_request(fold: ServiceFold, name: str) -> RequestState | None:
    """Return the request with this id, or the newest one of the job with this id or prefix."""
    if name in fold.requests:
        return fold.requests[name]
    jobs = [name] if name in fold.by_job else []
    if not jobs and len(name) >= 8:
        jobs = [job for job in fold.by_job if job.startswith(name) or job.endswith(name)][:2]
    if len(jobs) != 1 or not fold.by_job[jobs[0]]:
        return None
    return max(
        (fold.requests[r] for r in fold.by_job[jobs[0]]), key=lambda s: s.record.issued_unix_ms
    )
