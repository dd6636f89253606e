"""A node with a check switched off: `python -m tests.integration.attacks.planted FAULT... run ...`.

So that it is seen that the table would find out.
"""

import sys
from typing import Any

from pairio_protocol.intake import Intake
from pairio_protocol.machines.membership import Membership
from pairio_protocol.segment import Segment

__all__ = ["FAULTS"]


def _signatures(*_: Any) -> bool:
    """Segments count whoever signed them."""
    return True


def _roles(*_: Any) -> bool:
    """Anybody may write anything."""
    return True


def _shared(membership: Membership, peer: str) -> list[str]:
    """Strangers are let in at every door."""
    return sorted(membership.taken_up)


def _trusted(membership: Membership, chain: Any) -> bool:
    """Whoever names a trusted peer is trusted."""
    return bool(set(chain.now.admins) & set(membership._ctx.config.trust))


#: By name: class, method, what is put in its place, and a row of the table that must fail.
FAULTS: dict[str, tuple[type, str, Any, str]] = {
    "signatures": (Segment, "is_signed", _signatures, "a segment with a forged signature"),
    "roles": (Intake, "_may", staticmethod(_roles), "a result without the role compute"),
    "doors": (Membership, "shared_with", _shared, "digest of a stranger"),
    "trust": (Membership, "_is_trusted", _trusted, "a trusted peer named as a second admin"),
}


def main() -> None:
    """Plant the faults that are named first, then run the node."""
    while len(sys.argv) > 1 and sys.argv[1] in FAULTS:
        owner, name, instead, _ = FAULTS[sys.argv.pop(1)]
        setattr(owner, name, instead)
    from pairio_cli.node_main import main as run

    run()


if __name__ == "__main__":
    main()
