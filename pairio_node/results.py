"""The facade's part about results as such: found by id wherever they are, with all that they rest
on, and verified.
"""

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import trio

from pairio_node.blocks import BlockMissing, FetchFailed
from pairio_node.errors import NotFoundError, UserError
from pairio_node.job_views import find_request
from pairio_protocol import events as ev
from pairio_protocol.cid import CidError, parse_cid
from pairio_protocol.evidence import Evidence, direct_contents
from pairio_protocol.export import results_in
from pairio_protocol.fold import RequestState, ResultInfo, ServiceFold
from pairio_protocol.gather import Held, bundle_of, gather, request_for
from pairio_protocol.jobs import decode_job
from pairio_protocol.limits import LOOKUP_JOBS_MAX
from pairio_protocol.provenance import as_dot, as_statements, trace
from pairio_protocol.records import ResultDocument
from pairio_protocol.verify import Check, Progress, verify

if TYPE_CHECKING:
    from pairio_node.node import Node

__all__ = ["Rests", "Results"]

#: How often whoever waits for content hears that it goes on.
_ALIVE_S = 2.0


@dataclass(frozen=True)
class Rests:
    """What a result rests on: the evidence, the content (with the workers that made it, who are
    asked first), and processor records."""

    service: str
    evidence: Evidence
    contents: tuple[str, ...]
    workers: tuple[str, ...]
    records: tuple[bytes, ...]


@dataclass(frozen=True)
class _Found:
    service: str
    result: ResultInfo
    request: RequestState | None


class Results:
    """What the API asks about results; every method may raise `UserError`."""

    def __init__(self, node: "Node") -> None:
        self._node = node

    # -- finding ------------------------------------------------------------------------------

    async def one(self, name: str, service: str | None) -> dict[str, Any]:
        """Return a result by job id (or the end of it), request id or its own CID. One that is not
        known here is looked for at members."""
        found = await self._find(name, service)
        document = found.result.document
        if self._node.finder is not None:
            outputs = [cid for cid, _, _ in document.outputs.values()]
            if not await self._node.cache.is_here(found.service, outputs):
                await self._node.finder.find_content(found.service, found.result.cid)
        return {
            "serviceId": found.service,
            "serviceName": self._node.core.membership.petnames.get(found.service, found.service),
            "jobId": found.request.job if found.request is not None else document.job,
            "requestId": found.request.id if found.request is not None else None,
            "resolvedJobId": document.job,
            "resultCid": found.result.cid,
            "status": document.status,
            "error": document.error or None,
            "computeNodeId": document.worker,
            "consoleOutputCid": document.console,
            "outputs": [
                {"name": name, "cid": cid, "size": size, "fileBaseName": base}
                for name, (cid, size, base) in sorted(document.outputs.items())
            ],
        }

    async def _find(self, name: str, service: str | None, *, ask: bool = True) -> _Found:
        known = self._node.core.membership.chains
        services = [s for s in self._node.services.named_or_all(service) if s in known]
        found = self._known(name, services)
        if found is None and ask and await self.look_for(name, service):
            found = self._known(name, services)
        if found is not None:
            return found
        waiting = self._waiting(name, services)
        if waiting is not None:
            status = self._node.jobs.one(waiting.id, service)["status"]
            raise UserError(
                f"job {waiting.job} is {status}: it has no result yet",
                hint=f"wait for it: pairio job show {waiting.job[-10:]}",
            )
        raise NotFoundError(
            f"no job or result {name!r} on this node, nor at a connected member",
            hint="`pairio job ls` lists the jobs known here; a job is named by its id, or the end"
            " of it",
        )

    def _known(self, name: str, services: list[str]) -> _Found | None:
        found = [_in_fold(s, self._node.core.fold(s), name) for s in services]
        right = [one for one in found if one is not None]
        return max(right, key=_issued_unix_ms, default=None)

    def _waiting(self, name: str, services: list[str]) -> RequestState | None:
        states = (find_request(self._node.core.fold(service), name) for service in services)
        return next((state for state in states if state is not None), None)

    async def look_for(self, name: str, service: str | None) -> bool:
        """Look for a result by job id or CID: at connected members, in the DHT, in the network of
        Kubo. Say whether there is one now; not at once for what is waited for here."""
        if not _is_cid(name):
            return False
        taken = self._node.core.membership.taken_up
        services = [s for s in self._node.services.named_or_all(service) if s in taken]
        if self._waiting(name, services) is not None:
            return False
        await self._ask_members(name, services)
        found = self._known(name, services)
        if found is not None:
            if found.request is None:  # it comes with a result that is named by its CID
                await self._ask_members(found.result.cid, [found.service])
            return True
        finder = self._node.finder
        return finder is not None and await finder.find(name, services)

    async def _ask_members(self, name: str, services: list[str]) -> None:
        for service in services:
            with suppress(UserError):  # gone meanwhile
                await self._node.driver.call(partial(_look, service, name))

    async def _ask_all(self, name: str, service: str) -> None:
        """Ask members for what a result rests on, then who gave the result."""
        await self._ask_members(name, [service])
        if self._node.finder is not None:
            await self._node.finder.ask_giver(service, name)

    # -- what one rests on ----------------------------------------------------------------------

    async def rests(self, name: str, service: str | None, *, ask: bool) -> Rests:
        """Return what a result rests on, as far as it is known here; with `ask` also at members."""
        found = await self._find(name, service, ask=ask)
        if not found.result.segment:
            petname = self._node.core.membership.petnames.get(found.service, found.service)
            raise UserError(
                f"this node is a guest of {petname!r} and has the result alone, not what shows"
                " that it counts",
                hint="ask a member for a file (pairio export), and verify that",
            )
        rests = self._rests(found)
        if ask:
            asked: set[str] = set()
            while missing := [cid for cid in _unknown(rests.evidence) if cid not in asked]:
                missing = missing[:LOOKUP_JOBS_MAX]
                asked.update(missing)
                async with trio.open_nursery() as nursery:  # they go in one frame
                    for cid in missing:
                        nursery.start_soon(self._ask_all, cid, found.service)
                rests = self._rests(found)
        return rests

    def _rests(self, found: _Found) -> Rests:
        core, service = self._node.core, found.service
        held_logs = core.logs.logs_of(service)
        held = Held(
            core.membership.chains[service],
            core.fold(service),
            lambda name: core.logs.get(name) or core.retention.get(name),
            lambda log: held_logs[log].evidence if log in held_logs else None,
        )
        state = found.request
        if state is not None and not state.segment:  # a hit is no record; the request that ran it
            state = None
        evidence = gather(held, found.result, state)
        contents: dict[str, None] = {}
        workers: dict[str, None] = {}
        records: dict[bytes, None] = {}
        results = results_in(evidence.segments)
        for cid, _ in evidence.asked:
            if cid not in results:
                continue
            document = ResultDocument.decode(results[cid])
            workers[document.worker] = None
            contents.update(dict.fromkeys(_outputs(document)))
            job = evidence.documents.get(document.job)
            if job is None:
                continue
            plain = decode_job(job)
            contents.update(dict.fromkeys(direct_contents(plain, document)))
            code = bundle_of(held.chain, plain)
            if code is not None:
                contents[code[0]] = None
                records[code[1]] = None
        return Rests(service, evidence, tuple(contents), tuple(workers), tuple(records))

    async def bring(self, rests: Rests) -> AsyncIterator[dict[str, Any]]:
        """Fetch content that is not here; yield signs of life, and why some could not be had."""
        done, scope = trio.Event(), trio.CancelScope()
        failed: list[str] = []

        async def run() -> None:
            try:
                with scope:
                    for cid in rests.contents:
                        failed.extend(await self._fetch(rests, cid))
            finally:
                done.set()

        self._node.spawn(run)
        try:
            while not done.is_set():
                with trio.move_on_after(_ALIVE_S):
                    await done.wait()
                if not done.is_set():
                    yield {"progress": {"fetching": True}}
        finally:
            scope.cancel()
        for words in failed:
            yield {"note": words}

    async def _fetch(self, rests: Rests, cid: str) -> list[str]:
        """Fetch what is missing below a CID; return why it could not be had."""
        core = self._node.core
        try:
            if await self._node.content.missing(cid):
                members = self._node.files.members_to_ask(rests.service)
                holders = dict.fromkeys((*rests.workers, *members))
                others = [h for h in holders if h in core.ctx.connected or h in members]
                await self._node.exchange.fetch(rests.service, cid, others)
        except (FetchFailed, UserError, LookupError, ValueError) as error:
            return [str(error)]
        return []

    def provenance(self, rests: Rests, form: str) -> str:
        """Return where a result comes from: `json`, `dot` or `in-toto`."""
        graph = trace(rests.evidence, self._node.core.membership.chains[rests.service])
        if form == "dot":
            return as_dot(graph)
        return as_statements(graph, _rfc3339) if form == "in-toto" else json.dumps(graph)

    # -- verifying ------------------------------------------------------------------------------

    async def verify(self, rests: Rests, *, offline: bool) -> AsyncIterator[dict[str, Any]]:
        """Yield the checks of a result, one after the other; `{"progress": ...}` in between."""
        if not offline:
            async for line in self.bring(rests):
                yield line
        steps = verify(rests.evidence, self.block)
        while True:
            step = await trio.to_thread.run_sync(next, steps, None)
            if step is None:
                return
            match step:
                case Check():
                    yield step.plain()
                case Progress():
                    yield {"progress": {"blocks": step.blocks, "bytes": step.size_bytes}}

    def block(self, cid: str) -> bytes | None:
        """Return a block that is here; called in a thread."""
        try:
            return self._node.content.store.read_sync(cid)
        except (BlockMissing, CidError):
            return None


def _rfc3339(unix_ms: int) -> str:
    try:
        return datetime.fromtimestamp(unix_ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (OverflowError, ValueError, OSError):  # a member's word
        return "9999-12-31T23:59:59Z"


def _look(service: str, name: str, call: int) -> ev.LookFor:
    return ev.LookFor(call, service, name)


def _in_fold(service: str, fold: ServiceFold, name: str) -> _Found | None:
    """Return the result of a request, of a job, or with this CID."""
    result = fold.results.get(name) or fold.void.get(name)
    if result is not None:
        return _Found(service, result, request_for(fold, result))
    state = find_request(fold, name)
    if state is not None:
        known = fold.result_of(state) or fold.answer_for(state, fold.resolve(state.job))
        return _Found(service, known, state) if known is not None else None
    for result in fold.results_for(name):
        return _Found(service, result, request_for(fold, result))
    return None


def _issued_unix_ms(found: _Found) -> int:
    return found.request.record.issued_unix_ms if found.request is not None else 0


def _unknown(evidence: Evidence) -> Iterator[str]:
    """Return the results that evidence lacks, or lacks a request for."""
    results = results_in(evidence.segments)
    for cid, request in evidence.asked:
        if cid not in results or not request:
            yield cid
        else:
            upstream = ResultDocument.decode(results[cid]).upstream
            yield from (one for one in upstream if one not in results)


def _outputs(document: ResultDocument) -> list[str]:
    return [*(cid for cid, _, _ in document.outputs.values()), document.console]


def _is_cid(text: str) -> bool:
    try:
        parse_cid(text)
    except CidError:
        return False
    return True
