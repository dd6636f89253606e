"""What other machines may ask of membership (they do not import it)."""

from typing import Protocol

from pairio_protocol.allowlist import Folded
from pairio_protocol.service import Chain

__all__ = ["MembershipView"]


class MembershipView(Protocol):
    """Read access to the services that this node takes part in."""

    taken_up: set[str]
    chains: dict[str, Chain]
    petnames: dict[str, str]

    def active(self, service: str) -> Chain | None:
        """Return the chain of a service that is taken up, else None."""

    def folded(self, service: str) -> Folded:
        """Return the newest fold of a known service."""

    def shared_with(self, peer: str) -> list[str]:
        """Return the services in which `peer` has a role."""

    def home_nodes(self, service: str, job: str) -> list[str]:
        """Return the members to whom results of a job are sent, and who are asked for it first."""

    def connected_members(self, service: str) -> list[str]:
        """Return the connected peers with a role, sorted."""
