"""Services, changes of them that wait, and apps, as clients see them: plain JSON."""

import base64
from typing import Any

from pairio_protocol.core import NodeCore
from pairio_protocol.open_submit import OpenSubmit
from pairio_protocol.service import Weighed
from pairio_protocol.wording import op_words

__all__ = ["app_view", "proposal_view", "service_view", "waiting_view"]


def service_view(core: NodeCore, service: str) -> dict[str, Any]:
    """Return a service as clients see it."""
    chain = core.membership.chains[service]
    folded = chain.now
    allowed = OpenSubmit.of(folded)
    alive = {entry.peer: entry for entry in core.book.everybody(service)}
    return {
        "serviceName": core.membership.petnames.get(service, folded.name),
        "serviceId": service,
        "epoch": chain.epoch,
        "head": chain.head,
        "takenUp": service in core.membership.taken_up,
        "admins": list(folded.admins),
        "roles": ["guest"]
        if service in core.guests.services
        else list(folded.roles_of(core.ctx.me)),
        "public": allowed.document() if allowed is not None else None,
        "results": "public" if folded.has_public_results else "members",
        "members": [
            {
                "name": name,
                "roles": list(roles),
                "peers": list(keys),
                "alive": any(k in core.ctx.connected or k == core.ctx.me for k in keys),
                "computes": any(k in alive and alive[k].compute for k in keys),
            }
            for name, (roles, keys) in sorted(folded.members.items())
        ],
        "apps": sorted(folded.apps),
        "threshold": folded.threshold,
        "ended": folded.ended,
        "losingBranches": len(chain.losing_heads()),
        "proposals": core.membership.proposals.count(service),
    }


def waiting_view(core: NodeCore, service: str, change: str) -> dict[str, Any] | None:
    """Return the proposal that a change (its CID) is, None when it waits for nobody."""
    found = (w for w in core.membership.proposals.of(service) if w.change.cid == change)
    return next(map(proposal_view, found), None)


def proposal_view(weighed: Weighed) -> dict[str, Any]:
    """Return a proposed change as clients see it: what it does, who signed, who may yet."""
    before, after = weighed.before, weighed.after
    changes_admins = (before.admins, before.threshold) != (after.admins, after.threshold)
    signers = set(weighed.signers)

    def named(peers: tuple[str, ...]) -> list[dict[str, Any]]:
        names = {peer: before.member_of(peer) or after.member_of(peer) for peer in peers}
        return [{"peerId": peer, "member": names[peer]} for peer in peers]

    return {
        "id": weighed.change.cid,
        "epoch": weighed.document["seq"],
        "issuedUnixMs": weighed.document["issued"],
        "does": [op_words(op, before) for op in weighed.document["ops"]],
        "cuts": len(weighed.document["cuts"]),
        "proposedBy": named(weighed.signers[:1])[0],
        "signedBy": named(weighed.signers),
        "missing": named(tuple(p for p in weighed.may_sign() if p not in signers)),
        "needed": before.threshold,
        "have": len(signers & set(before.admins)),
        "neededAfter": after.threshold if changes_admins else None,
        "haveAfter": len(signers & set(after.admins)) if changes_admins else None,
        "fits": weighed.is_newest,
        "data": base64.b64encode(weighed.change.encode()).decode(),
    }


def app_view(app: dict[str, Any]) -> dict[str, Any]:
    """Return an app as clients see it: the original's specification and where the code is."""
    return {"appName": app["name"], "bundle": app["bundle"], "appSpecification": app}
