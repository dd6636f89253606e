"""Jobs as clients ask for them: submitted, shown, waited for, withdrawn; outputs and consoles."""

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import trio

from pairio_node.errors import NotFoundError, UserError
from pairio_node.job_views import find_request, is_settled, job_status, job_view, why_view
from pairio_protocol import events as ev
from pairio_protocol.fold import RequestState
from pairio_protocol.records import Resources

if TYPE_CHECKING:
    from pairio_node.node import Node

__all__ = ["Jobs"]


class Jobs:
    """What the API and other parts of the node ask about jobs; every method may raise
    `UserError`."""

    def __init__(self, node: "Node") -> None:
        self._node = node

    def find(self, job_id: str, service: str | None) -> tuple[str, RequestState]:
        """Return a request and its service; where several have the job, the one asked for last."""
        node = self._node
        known = node.core.membership.chains
        names = [name for name in node.services.named_or_all(service) if name in known]
        states = [(name, find_request(node.core.fold(name), job_id)) for name in names]
        found = [(name, state) for name, state in states if state is not None]
        if not found:
            raise NotFoundError(
                f"no job {job_id!r} on this node", hint="`pairio job ls` lists the jobs known here"
            )
        return max(found, key=lambda pair: pair[1].record.issued_unix_ms)

    def status_of(self, service: str, state: RequestState) -> str:
        """Return the status of a request."""
        return job_status(self._node.core, service, state)[0]

    def view(self, service: str, state: RequestState) -> dict[str, Any]:
        """Return a job as clients see it, by one of its requests."""
        node = self._node
        assert node.links is not None
        view = job_view(node.core, service, state, node.links)
        view["inputsReplicated"] = view["inputsReplicated"] and not node.inputs.only_here(view)
        return view

    async def submit(self, body: dict[str, Any]) -> dict[str, Any]:
        """Submit a job in the original's form; returns the job."""
        node = self._node
        service = node.services.id_of(body.get("serviceName"))
        definition = body["jobDefinition"]
        await node.inputs.name_all(definition)
        mode = "skip_cache" if body.get("skipCache") else "use"
        if body.get("rerunFailing") and mode == "use":
            mode = "rerun_failing"
        inputs = await node.inputs.look(service, definition)
        resources = self.resources_of(service, body)
        with node.secrets.kept_for(service, definition, body.get("secrets") or {}) as names:
            answer = await node.driver.call(
                lambda call: ev.Submit(
                    call=call,
                    service=service,
                    definition=definition,
                    resources=resources,
                    mode=mode,
                    tags=tuple(body.get("tags") or ()),
                    batch=body.get("batchId") or "",
                    targets=tuple(body.get("targetComputeClientIds") or ()),
                    local_content=tuple(inputs.local),
                    held=tuple(inputs.held),
                    key=body.get("key") or "",
                    secrets=names,
                )
            )
        state = node.core.fold(service).requests[answer["request"]]
        if state.cached and state.answer is not None:
            node.cache.hit(service, state.answer)
        return self.view(service, state)

    def resources_of(self, service: str, body: dict[str, Any]) -> Resources:
        """Return the resources that a submit asks for, with defaults filled in."""
        raw = body.get("requiredResources") or {}
        return _resources(self._node.public.defaults(service) | _given(raw))

    def one(self, job_id: str, service: str | None) -> dict[str, Any]:
        """Return a job by job id, unique prefix, or request id."""
        return self.view(*self.find(job_id, service))

    async def find_or_look(self, job_id: str, service: str | None) -> dict[str, Any]:
        """Return a job; one that is named by its whole id and not known here is looked for."""
        try:
            return self.one(job_id, service)
        except NotFoundError:
            if not await self._node.results.look_for(job_id, service):
                raise
            return self.one(job_id, service)

    def why(self, job_id: str, service: str | None) -> dict[str, Any]:
        """Return why a job is where it is: what it waits for, and what every node says to it."""
        node = self._node
        name, state = self.find(job_id, service)
        if name in node.core.guests.services:
            return node.public.why(name, state)
        return why_view(node.core, name, state)

    async def cancel(self, job_id: str, service: str | None) -> dict[str, Any]:
        """Withdraw a request, or all open ones of this node's member for a job."""
        node = self._node
        name, state = self.find(job_id, service)
        fold, folded = node.core.fold(name), node.core.membership.folded(name)
        mine = folded.member_of(node.peer_id)
        requests = [state.id]
        if job_id != state.id:
            every = (fold.requests[r] for r in fold.by_job.get(state.job, ()))
            same = (s for s in every if not node.core.is_twins(s))
            requests = [s.id for s in same if folded.member_of(s.author) == mine] or [state.id]
        await node.driver.call(lambda call: ev.CancelRequests(call, name, tuple(requests)))
        return self.view(name, state)

    async def wait(self, job_id: str, service: str | None, timeout_s: float) -> dict[str, Any]:
        """Return the job when it has ended and is safe, or as it is after `timeout_s`."""
        name, state = self.find(job_id, service)
        with trio.move_on_after(timeout_s):
            while not is_settled(self._node.core, name, state):
                await self._node.changed()
                state = self.still(name, state)
        return self.view(name, state)

    def still(self, service: str, state: RequestState) -> RequestState:
        """Return a request as it is now; as it was when it counts no more, and what it was."""
        fold = self._node.core.fold(service)
        fold.define(state.job, state.document)
        return fold.requests.get(state.id, state)

    async def console(self, job_id: str, service: str | None) -> AsyncIterator[bytes]:
        """Yield the console output of a job that has ended."""
        node = self._node
        name, state = self.find(job_id, service)
        cid = self.view(name, state)["consoleOutputCid"]
        if cid is not None:
            await node.files.ensure(cid, name, state)
            async for chunk in node.content.read(cid):
                yield chunk

    async def output_cid(
        self, job_id: str, service: str | None, output: str, *, some: bool = False
    ) -> tuple[str, str, int]:
        """Return (CID, file name, size) of an output whose blocks are here now; with `some` they
        come as they are read, if somebody has them."""
        name, state = self.find(job_id, service)
        view = self.view(name, state)
        results = [*view["outputFileResults"], *view["otherFileOutputs"]]
        for result in results:
            if result["name"] == output:
                if result["cid"] is None:
                    raise UserError(
                        f"job {state.job} is {view['status']}: output {output!r} is not there yet",
                        hint="wait for it: pairio submit --wait, or pairio job show",
                    )
                if not (some and await self._node.files.is_somewhere(result["cid"])):
                    await self._node.files.ensure(result["cid"], name, state)
                return result["cid"], result.get("fileBaseName") or output, result["size"]
        known = ", ".join(r["name"] for r in results) or "none"
        raise NotFoundError(f"job {state.job} has no output {output!r}", hint=f"outputs: {known}")


def _given(raw: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in raw.items() if value is not None}


def _resources(raw: dict[str, Any]) -> Resources:
    try:
        return Resources(
            cpu_millicores=round(float(raw["numCpus"]) * 1000),
            memory_mib=round(float(raw["memoryGb"]) * 1024),
            gpus=int(raw["numGpus"]),
            time_ms=round(float(raw["timeSec"]) * 1000),
        )
    except (ValueError, OverflowError) as error:
        raise UserError(f"requiredResources: {error}") from None
