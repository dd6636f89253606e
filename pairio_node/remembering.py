"""Where connected members say that they are, for the next start of this node.

A member that this node dialled is remembered when it is reached. One that came by itself is not: so
the node whom all others dial would know nobody when it comes back at another address, and they
would look for it in vain where it was.
"""

from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from pairio_node.node import Node

__all__ = ["remember_members"]

_LOOK_S = 5.0


async def remember_members(node: "Node") -> None:
    """Remember members that came by themselves, until cancelled."""
    known: dict[str, tuple[str, ...]] = {}
    while True:
        await trio.sleep(_LOOK_S)
        core = node.core
        for service in core.membership.taken_up:
            heard = core.book.heard.get(service, {})
            for peer in core.membership.connected_members(service):
                said = heard[peer].entry.addresses if peer in heard else ()
                if said and not core.ctx.connected[peer] and known.get(peer) != said:
                    known[peer] = said
                    node.shell.remember(peer, said)
