"""Jobs found by what they are, and by their definition; newest first, page by page."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import trio

from pairio_node.errors import NotFoundError, UserError, as_user_errors
from pairio_node.job_views import find_request
from pairio_protocol.fold import RequestState, ServiceFold
from pairio_protocol.normalise import job_id_of, normalise, parse_source

if TYPE_CHECKING:
    from pairio_node.node import Node

__all__ = ["JobQuery", "Search"]

#: After so many looks at requests others have their turn.
_LOOKS = 200


@dataclass(frozen=True)
class JobQuery:
    """What is looked for; what is not given does not matter. `user` and `node` are peer ids or
    names of members, `tags` must all be there, one of `statuses`; `input_` and `output` are CIDs or
    URLs. `cursor` is what the page before said."""

    service: str | None = None
    user: str | None = None
    job: str | None = None
    app: str | None = None
    processor: str | None = None
    node: str | None = None
    batch: str | None = None
    tags: tuple[str, ...] = ()
    statuses: tuple[str, ...] = ()
    input_: str | None = None
    output: str | None = None
    hidden: bool = False
    limit: int = 100
    cursor: str | None = None


class Search:
    """What the API finds; every method may raise `UserError`."""

    def __init__(self, node: "Node") -> None:
        self._node = node

    def newest(self, query: JobQuery) -> list[dict[str, Any]]:
        """Return the newest jobs that match, at once (for few)."""
        found = []
        for name, state in self._found(query):
            if state is not None:
                found.append(self._node.jobs.view(name, state))
            if len(found) >= query.limit:
                break
        return found

    async def page(self, query: JobQuery) -> dict[str, Any]:
        """Return `{"jobs": [...], "nextCursor"}`; the cursor is None after the last page."""
        jobs: list[dict[str, Any]] = []
        cursor, looks = None, 0
        for name, state in self._found(query):
            looks += 1
            if looks % _LOOKS == 0:
                await trio.lowlevel.checkpoint()
            if state is None:
                continue
            if len(jobs) == query.limit:
                return {"jobs": jobs, "nextCursor": cursor}
            jobs.append(self._node.jobs.view(name, state))
            cursor = f"{state.record.issued_unix_ms}-{state.id}"
        return {"jobs": jobs, "nextCursor": None}

    def _found(self, query: JobQuery) -> Iterator[tuple[str, RequestState | None]]:
        """Yield (service, request) of what matches, newest first; None for each that does not."""
        before = _position(query.cursor)
        states = [
            (name, state)
            for name in self._node.services.named_or_all(query.service)
            if name in self._node.core.membership.chains
            for state in self._candidates(name, query)
            if before is None or (state.record.issued_unix_ms, state.id) < before
        ]
        states.sort(key=lambda pair: (pair[1].record.issued_unix_ms, pair[1].id), reverse=True)
        for name, state in states:
            yield name, state if self._fits(name, state, query) else None

    def _candidates(self, service: str, query: JobQuery) -> list[RequestState]:
        fold = self._node.core.fold(service)
        jobs = self._jobs_with(service, fold, query)
        states = list(fold.requests.values())
        return states if jobs is None else [state for state in states if state.job in jobs]

    def _jobs_with(self, service: str, fold: ServiceFold, query: JobQuery) -> set[str] | None:
        """Return the jobs with the input and the output asked for; None: any."""
        with as_user_errors():
            given = parse_source(query.input_) if query.input_ is not None else {}
            made = parse_source(query.output) if query.output is not None else {}
        if made and "cid" not in made:
            raise UserError(
                f"output {query.output!r} is no content",
                hint="give an output's CID, or its URL on this machine",
            )
        found = self._node.cids.jobs_with(service, fold, made.get("cid"), given.get("cid"))
        if given and "cid" not in given:
            named = {
                job
                for job, document in fold.definitions.items()
                if any(entry["source"] == given for entry in document["inputs"])
            }
            found = named if found is None else found & named
        return found

    def _fits(self, service: str, state: RequestState, query: JobQuery) -> bool:
        document, record = state.document, state.record
        wanted = (
            (query.job, state.job),
            (query.app, document["app"]),
            (query.processor, document["processor"]),
            (query.batch, record.batch),
        )
        if any(asked is not None and asked != has for asked, has in wanted):
            return False
        if state.id in self._node.hiding and not query.hidden:
            return False
        if not set(query.tags) <= set(record.tags):
            return False
        if query.user is not None and not self._is(service, state.author, query.user):
            return False
        if query.statuses and self._node.jobs.status_of(service, state) not in query.statuses:
            return False
        if query.node is None:
            return True
        worker = self._node.jobs.view(service, state)["computeNodeId"]
        return worker is not None and self._is(service, worker, query.node)

    def _is(self, service: str, peer: str, name: str) -> bool:
        return name in (peer, self._node.core.membership.folded(service).member_of(peer))

    # -- by definition ----------------------------------------------------------------------

    async def by_definition(
        self, definition: dict[str, Any], service: str | None
    ) -> dict[str, Any]:
        """Return `{"jobId", "job"}` of a definition in the original's form, without submitting it:
        the job as it is known here or at a member, None when nobody asked for it yet."""
        node = self._node
        name = node.services.id_of(service)
        await node.inputs.name_all(definition)
        apps = node.core.membership.folded(name).apps
        app = definition.get("appName")
        if app not in apps:
            known = ", ".join(sorted(apps)) or "none"
            raise NotFoundError(f"no app {app!r} in this service", hint=f"its apps are: {known}")
        with as_user_errors():
            document = normalise(definition, apps[app])
        job = job_id_of(document)
        node.core.fold(name).define(job, document)
        state = self._best(name, job)
        if state is None:
            try:
                await node.results.one(job, name)
            except UserError:
                return {"jobId": job, "job": None}
            state = self._best(name, job)
        return {"jobId": job, "job": node.jobs.view(name, state) if state is not None else None}

    def _best(self, service: str, job: str) -> RequestState | None:
        """Return the newest request of a job that has completed, else the newest one."""
        fold = self._node.core.fold(service)
        states = [fold.requests[request] for request in fold.by_job.get(job, ())]
        done = [s for s in states if self._node.jobs.status_of(service, s) == "completed"]
        if done:
            return max(done, key=lambda state: state.record.issued_unix_ms)
        return find_request(fold, job)


def _position(cursor: str | None) -> tuple[int, str] | None:
    if not cursor:
        return None
    when, _, request = cursor.partition("-")
    if not when.isdecimal() or len(when) > 18:
        raise UserError(
            f"cursor {cursor[:100]!r} is none of this node", hint="give nextCursor of a page"
        )
    return int(when), request
