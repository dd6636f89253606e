"""What would become of a job if it were submitted now: its id, a hit or a miss and why, who could
run it. Nothing is submitted."""

from typing import TYPE_CHECKING, Any

from pairio_node.blocked import blocked_words
from pairio_node.explain import Explain
from pairio_node.job_views import fitting_view, resources_view
from pairio_protocol import events as ev
from pairio_protocol.documents import encode
from pairio_protocol.fold import RequestState
from pairio_protocol.normalise import definition_of
from pairio_protocol.records import Resources

if TYPE_CHECKING:
    from pairio_node.node import Node

__all__ = ["Plans"]

Json = dict[str, Any]


class Plans:
    """Submits that are only looked at; every method may raise `UserError`."""

    def __init__(self, node: "Node", explain: Explain) -> None:
        self._node = node
        self._explain = explain

    async def plan(self, body: Json) -> Json:
        """Return what a submit of this body would be answered with."""
        node, core = self._node, self._node.core
        service = node.services.id_of(body.get("serviceName"))
        resources = node.jobs.resources_of(service, body)
        found = await node.search.by_definition(body["jobDefinition"], service)
        state = self._state(service, body, found["jobId"], resources)
        fold = core.fold(service)
        resolution = fold.resolve(state.job)
        answer = fold.answer_for(state, resolution)
        nearest = None if answer is not None else await self._explain.nearest(service, state)
        folded = core.membership.folded(service)
        return {
            "jobId": state.job,
            "serviceName": core.membership.petnames.get(service, service),
            "jobDefinition": definition_of(state.document),
            "requiredResources": resources_view(resources),
            "isHit": answer is not None,
            "why": self._why(service, state, answer is not None, resolution.blocked_by),
            "hitStatus": answer.document.status if answer is not None else None,
            "computeNodeId": answer.document.worker if answer is not None else None,
            "computedBy": folded.member_of(answer.document.worker) if answer is not None else None,
            "waitsFor": list(resolution.waits_for or resolution.lacks),
            "blockedBy": resolution.blocked_by,
            "maySubmit": "submit" in folded.roles_of(node.peer_id)
            or service in core.guests.services,
            "nearest": nearest,
            "nodes": fitting_view(core, service, state, {}),
        }

    def _state(self, service: str, body: Json, job: str, resources: Resources) -> RequestState:
        """Return a request as it would be; it goes nowhere."""
        core = self._node.core
        document = core.fold(service).definitions[job]
        mode = "skip_cache" if body.get("skipCache") else "use"
        if body.get("rerunFailing") and mode == "use":
            mode = "rerun_failing"
        asked = ev.Submit(
            call=0,
            service=service,
            definition={},
            resources=resources,
            mode=mode,
            tags=tuple(body.get("tags") or ()),
            targets=tuple(body.get("targetComputeClientIds") or ()),
        )
        record = core.commands.record_of(asked, job, encode(document), core.fold(service))
        epoch = core.membership.chains[service].epoch
        return RequestState("dry run", core.ctx.me, record, job, document, b"", epoch)

    def _why(self, service: str, state: RequestState, is_hit: bool, blocked_by: str | None) -> str:
        if is_hit:
            return "a hit: a result is there; nothing would run"
        if blocked_by is not None:
            words = blocked_words(self._node.core, service, blocked_by)
            return f"a miss, and it would be blocked: {words}"
        if state.record.mode == "skip_cache":
            return "a miss: with skip_cache what is there does not count"
        return "a miss: no result of this definition is known here or at the members asked"
