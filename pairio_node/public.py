"""The facade's part about public services: making one public, and being a guest of one."""

from typing import TYPE_CHECKING, Any

import trio

from pairio_node.errors import UserError
from pairio_node.job_views import job_status
from pairio_node.service_views import waiting_view
from pairio_protocol import events as ev
from pairio_protocol.fold import RequestState
from pairio_protocol.guests import REFUSALS
from pairio_protocol.limits import LINK_PEERS_MAX
from pairio_protocol.links import Link, LinkPeer
from pairio_protocol.open_submit import OpenSubmit

if TYPE_CHECKING:
    from pairio_node.node import Node

__all__ = ["Public"]

_ADDRESSES = 3  # of each peer in a link: few, so that it stays short


class Public:
    """What the API asks about public services; every method may raise `UserError`."""

    def __init__(self, node: "Node") -> None:
        self._node = node

    async def set(self, service: str, open_submit: dict[str, int] | None) -> dict[str, Any]:
        """Let strangers submit within limits, or (None) no more; returns limits and link, as they
        are now, and as `proposal` the change if it waits for further admins."""
        found = self._node.services.id_of(service)
        answer = await self._node.driver.call(lambda call: ev.SetPublic(call, found, open_submit))
        waiting = waiting_view(self._node.core, found, answer["proposal"])
        return {**self.view(found), "proposal": waiting}

    def view(self, service: str) -> dict[str, Any]:
        """Return what strangers may have of a service, and the link by which they come."""
        membership = self._node.core.membership
        folded = membership.folded(service)
        allowed = OpenSubmit.of(folded)
        return {
            "serviceName": membership.petnames.get(service, folded.name),
            "serviceId": service,
            "public": allowed.document() if allowed is not None else None,
            "link": self._link(service) if allowed is not None else None,
        }

    def _link(self, service: str) -> str:
        """Return a link with the addresses of this node and of members who may sponsor."""
        core = self._node.core
        folded = core.membership.folded(service)
        if service in core.guests.services:
            return Link("public", service, folded.name, core.guests.services[service]).encode()
        peers = [LinkPeer(self._node.peer_id, self._node.transport.addresses()[:_ADDRESSES])]
        for peer in core.membership.connected_members(service):
            said = core.addresses_of(service, peer) or core.ctx.connected[peer]
            if "submit" in folded.roles_of(peer) and said:
                peers.append(LinkPeer(peer, said[:_ADDRESSES]))
        return Link("public", service, folded.name, tuple(peers[:LINK_PEERS_MAX])).encode()

    def defaults(self, service: str) -> dict[str, float]:
        """Return what a job is given that asks for nothing; a guest's within what it may have."""
        found: dict[str, float] = {"numCpus": 1, "memoryGb": 1, "numGpus": 0, "timeSec": 3600}
        core = self._node.core
        chain = core.membership.chains.get(service)
        allowed = OpenSubmit.of(chain.now) if chain is not None else None
        if service in core.guests.services and allowed is not None:
            found["numCpus"] = min(found["numCpus"], allowed.cpu_millicores / 1000)
            found["memoryGb"] = min(found["memoryGb"], allowed.memory_mib / 1024)
            found["timeSec"] = min(found["timeSec"], allowed.time_ms / 1000)
        return found

    async def joined(self, service: str, wait_s: float) -> dict[str, Any]:
        """Return how far becoming a guest has come, when that is decided or after `wait_s`.

        Raises:
            UserError: no peer of the link shows the service; it is forgotten again.
        """
        core = self._node.core
        guests = core.guests
        with trio.move_on_after(wait_s):
            while service not in guests.refused and not guests.is_known(service):
                await self._node.changed()
        name = core.membership.petnames.get(service, service)
        if guests.is_known(service):
            view = {"state": "joined", "member": None, "roles": ["guest"], "note": None}
            return {**view, "serviceId": service, "serviceName": name}
        if service in guests.refused:
            code = guests.refused[service]
            await self._node.driver.call(lambda call: ev.LeaveService(call, service))
            raise UserError(
                f"no guest of {name!r}: {REFUSALS[code]}",
                hint="ask whoever gave you the link for a new one, or for an invitation",
                code=code,
            )
        return {
            "state": "waiting",
            "kind": "public",
            "serviceId": service,
            "serviceName": name,
            "code": "",
            "message": "no member of the link has answered yet",
            "hint": "it goes on in the background: leave this node running",
        }

    def why(self, service: str, state: RequestState) -> dict[str, Any]:
        """Return why a guest's job is where it is: who sponsors it, and who did not and why."""
        core = self._node.core
        job = core.guests.jobs.get(state.id)
        status, error = job_status(core, service, state)
        folded = core.membership.folded(service)
        refusals = job.refusals if job is not None else {}
        nodes = [
            {
                "name": folded.member_of(peer) or peer,
                "peerId": peer,
                "fits": False,
                "rule": "sponsor",
                "need": "a member who sponsors the job",
                "have": REFUSALS.get(code, "refused"),
            }
            for peer, code in sorted(refusals.items())
        ]
        if job is not None and job.sponsor:
            have = "it carries the job; runs of guests begin where a slot is free"
            if not job.accepted:
                have = "it was asked, and has not answered yet"
            fit = {"fits": job.accepted, "rule": "sponsor", "need": "", "have": have}
            name = folded.member_of(job.sponsor) or job.sponsor
            nodes.append({"name": name, "peerId": job.sponsor, **fit})
        return {
            "jobId": state.job,
            "requestId": state.id,
            "status": status,
            "error": error or core.guests.over.get(state.id),
            "coordinator": job.sponsor if job is not None else None,
            "waitsFor": [],
            "blockedBy": None,
            "attempt": None,
            "attempts": [],
            "nodes": nodes,
        }
