"""The owner's rules, as worker, bidder and presence ask for them."""

from pairio_protocol.context import Context
from pairio_protocol.fold import RequestState
from pairio_protocol.limits import NETWORKS_SAID_MAX
from pairio_protocol.machines.membership_view import MembershipView
from pairio_protocol.open_submit import GUESTS
from pairio_protocol.owner import OwnerRules, jobs_max, refusal, rules_for

__all__ = ["Owner"]


class Owner:
    """What this node's owner lets run now."""

    def __init__(self, ctx: Context, membership: MembershipView) -> None:
        self._ctx = ctx
        self._membership = membership

    def rules(self, service: str) -> list[OwnerRules]:
        """Return the rules that hold for a service."""
        rules = self._ctx.config.owner_rules
        return rules_for(rules, self._names(service)) if rules else []

    def _names(self, service: str) -> tuple[str, str]:
        return service, self._membership.petnames.get(service, service)

    def closed(self, service: str) -> str | None:
        """Return the hours that keep jobs of a service from beginning now."""
        if not self._ctx.closed:
            return None
        rules = [r for r in self.rules(service) if r.service in self._ctx.closed]
        return "; ".join(r.hours for r in rules) if rules else None

    def refusal(self, service: str, state: RequestState) -> tuple[str, str, str] | None:
        """Return (rule, need, have) of what keeps a request's job off at any time."""
        rules = self.rules(service)
        if not rules:
            return None
        member = self._membership.folded(service).member_of(state.author)
        names = [name for name in (member, state.author) if name]
        if state.record.sponsor_of:  # it is not the sponsor's wish
            names = [GUESTS, state.record.sponsor_of]
        return refusal(rules, state.document, state.record.resources, names)

    def networks(self, service: str) -> tuple[str, ...]:
        """Return the apps of a service whose jobs may have this machine's network; "*": all."""
        allowed = set(self._ctx.config.allow_network)
        if allowed & {*self._names(service), "*"}:
            return ("*",)
        listed = allowed & self._membership.folded(service).apps.keys() if allowed else set()
        return tuple(sorted(listed))[:NETWORKS_SAID_MAX]

    def allows_network(self, service: str, app: str) -> bool:
        """Say whether jobs of an app may have this machine's network."""
        return not {app, "*"}.isdisjoint(self.networks(service))

    def jobs_max(self, service: str) -> int | None:
        """Return how many jobs of a service may run at once; None without a limit."""
        return jobs_max(r for r in self.rules(service) if r.service)

    @property
    def jobs_in_all_max(self) -> int | None:
        """How many jobs may run at once, of whatever service."""
        return jobs_max(r for r in self._ctx.config.owner_rules if not r.service)
