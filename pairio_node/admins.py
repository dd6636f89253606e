"""The facade's part about what admins do: members, admins, apps, the end, proposals, the log."""

import base64
import binascii
from typing import TYPE_CHECKING, Any

from pairio_node.errors import UserError, as_user_errors
from pairio_node.service_views import proposal_view, service_view, waiting_view
from pairio_protocol import events as ev
from pairio_protocol.allowlist import parse_roles
from pairio_protocol.history import app_history, history

if TYPE_CHECKING:
    from collections.abc import Callable

    from pairio_node.node import Node

__all__ = ["Admins"]

Json = dict[str, Any]


class Admins:
    """What the API asks of an admin's node; every method may raise `UserError`.

    An act answers with the service and whether it is `changed`; where further admins have to sign,
    `proposal` is what waits for them.
    """

    def __init__(self, node: "Node") -> None:
        self._node = node

    async def _act(self, service: str, make: "Callable[[int, str], ev.Event]") -> Json:
        found = self._node.services.id_of(service)
        answer = await self._node.driver.call(lambda call: make(call, found))
        said = {k: v for k, v in answer.items() if k not in ("service", "proposal", "changed")}
        core = self._node.core
        return {
            **service_view(core, found),
            **said,
            "changed": answer["changed"],
            "proposal": waiting_view(core, found, answer["proposal"]),
        }

    # -- acts ---------------------------------------------------------------------------

    async def grant(self, service: str, who: str, roles: list[str], name: str | None) -> Json:
        """Give roles to a member, or put a peer on the list; it need not be connected."""
        with as_user_errors():
            parsed = parse_roles(roles)
        return await self._act(service, lambda c, s: ev.Grant(c, s, who, parsed, name or ""))

    async def revoke(
        self, service: str, who: str, roles: list[str] | None, since_unix_ms: int | None
    ) -> Json:
        """Take roles from a member, or a member or one of his keys off the list."""
        with as_user_errors():
            parsed = () if roles is None else parse_roles(roles)
        return await self._act(service, lambda c, s: ev.Revoke(c, s, who, parsed, since_unix_ms))

    async def rename_member(self, service: str, member: str, name: str) -> Json:
        """Call a member otherwise."""
        return await self._act(service, lambda c, s: ev.RenameMember(c, s, member, name))

    async def set_admins(self, service: str, admins: list[str], threshold: int) -> Json:
        """Name all admins anew, and how many have to sign."""
        return await self._act(service, lambda c, s: ev.SetAdmins(c, s, tuple(admins), threshold))

    async def end(self, service: str) -> Json:
        """End a service for everybody."""
        return await self._act(service, lambda c, s: ev.EndService(c, s))

    async def sign_over(self, service: str) -> Json:
        """Give back what branches that lost took away."""
        return await self._act(service, lambda c, s: ev.SignOver(c, s))

    async def remove_app(self, service: str, app: str) -> Json:
        """Take an app off the list."""
        return await self._act(service, lambda c, s: ev.RemoveApp(c, s, app))

    async def install(self, service: str, app: Json) -> Json:
        """Put an app on the list, or a newer version of it."""
        return await self._act(service, lambda c, s: ev.InstallApp(c, s, app))

    async def rename_here(self, service: str, name: str) -> Json:
        """Call a service otherwise on this node only."""
        found = self._node.services.id_of(service)
        await self._node.driver.call(lambda call: ev.RenameService(call, found, name))
        return service_view(self._node.core, found)

    # -- proposals ----------------------------------------------------------------------

    def proposals(self, service: str) -> list[Json]:
        """Return the changes that wait for signatures, those that do not fit any more included."""
        found = self._node.services.id_of(service)
        return [proposal_view(w) for w in self._node.core.membership.proposals.of(found)]

    async def sign(self, service: str, proposal: str, data: str | None) -> Json:
        """Sign a proposal that is kept here, or the one in `data` (base64, from a file). `data` of
        the answer has all signatures that are known here."""
        raw = _from_base64(data) if data is not None else b""
        answer = await self._act(service, lambda c, s: ev.SignProposal(c, s, proposal, raw))
        if answer["proposal"] is not None:
            return {**answer, "data": answer["proposal"]["data"]}
        chain = self._node.core.membership.chains[answer["serviceId"]]
        signed = chain.get(answer["signed"]).encode()
        return {**answer, "data": base64.b64encode(signed).decode()}

    async def withdraw(self, service: str, proposal: str) -> Json:
        """Drop a proposal on this node."""
        return await self._act(service, lambda c, s: ev.WithdrawProposal(c, s, proposal))

    async def renew(self, service: str, proposal: str) -> Json:
        """Propose again what does not fit any more."""
        return await self._act(service, lambda c, s: ev.RenewProposal(c, s, proposal))

    def look(self, service: str, proposal: str, data: str | None) -> Json:
        """Return the proposal that `sign` would sign."""
        found = self._node.services.id_of(service)
        raw = _from_base64(data) if data is not None else b""
        with as_user_errors():
            return proposal_view(self._node.core.membership.proposals.look(found, proposal, raw))

    # -- the log ------------------------------------------------------------------------

    def log(self, service: str, *, with_changes: bool) -> Json:
        """Return who changed what and when; with the signed changes, so that it can be verified."""
        found = self._node.services.id_of(service)
        chain = self._node.core.membership.chains[found]
        told: Json = {
            "type": "pairio/service-log",
            "serviceName": self._node.core.membership.petnames.get(found, chain.now.name),
            "serviceId": found,
            "epoch": chain.epoch,
            "head": chain.head,
            "losingHeads": chain.losing_heads(),
            "entries": history(chain),
        }
        if with_changes:
            changes = chain.changes(-1)
            told["changes"] = [base64.b64encode(c.encode()).decode() for c in changes]
        return told

    def app_history(self, service: str, app: str | None) -> list[Json]:
        """Return when apps, or one, came, were updated and went."""
        chain = self._node.core.membership.chains[self._node.services.id_of(service)]
        return app_history(chain, app)


def _from_base64(text: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise UserError(
            "the file holds no proposal", hint="make one: pairio service propose NAME --file FILE"
        ) from None
