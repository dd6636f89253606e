"""Which blocks a guest of a public service may read here: those of results that it asked for.

The core names outputs and consoles; what lies below them becomes the guest's as their blocks are
served. Kept in memory, bounded, the oldest forgotten first: a guest asks again and has them anew.
"""

from collections import OrderedDict
from collections.abc import Iterable

from pairio_node.blocks.unixfs import UnixfsError, parse_node
from pairio_protocol.cid import CidError
from pairio_protocol.limits import GUEST_BLOCKS_MAX

__all__ = ["GuestBlocks"]


class GuestBlocks:
    """(guest, service, CID) of what may be read."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[str, str, str], None] = OrderedDict()

    def give(self, peer: str, service: str, cids: Iterable[str]) -> None:
        """Let a guest read these blocks."""
        for cid in cids:
            self._known[peer, service, cid] = None
            self._known.move_to_end((peer, service, cid))
        while len(self._known) > GUEST_BLOCKS_MAX:
            self._known.popitem(last=False)

    def may_read(self, peer: str, service: str, cid: str) -> bool:
        """Say whether a guest may read a block."""
        return (peer, service, cid) in self._known

    def on_read(self, peer: str, service: str, cid: str, data: bytes) -> None:
        """A guest was given a block: it may read those that it links to."""
        try:
            below = [entry.cid for entry in parse_node(cid, data).entries]
        except (UnixfsError, CidError):
            return  # no folder and no file in parts: nothing lies below it
        self.give(peer, service, below)
