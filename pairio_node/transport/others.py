"""Connections of peers that are no pairio nodes, or have not shown that they are: bounded, so that
strangers leave room for others, and kept as long as they are used.

When there are too many, the one goes that was used longest ago; those to peers that the owner named
stay. A pairio node counts here until it opens its control stream.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any

import trio
from libp2p.abc import INotifee

from pairio_protocol.limits import OTHER_CONNECTIONS_MAX

__all__ = ["OtherConnections"]


class OtherConnections(INotifee):
    """Watches a host's connections. `is_pairio(peer)` says who is none of these."""

    def __init__(self, host: Any, is_pairio: Callable[[str], bool], counters: Counter[str]) -> None:
        self._network = host.get_network()
        self._is_pairio = is_pairio
        self._counters = counters
        self._used_s: dict[str, float] = {}
        self._kept: Counter[str] = Counter()
        #: Told when the last connection of a peer is over.
        self.on_gone: Callable[[str], None] = lambda _: None
        self._network.register_notifee(self)

    def keep(self, peer: str) -> None:
        """Keep the connection of a peer, until `let_go` was called as often."""
        self._kept[peer] += 1

    def let_go(self, peer: str) -> None:
        """The opposite of `keep`."""
        self._kept[peer] -= 1
        if self._kept[peer] <= 0:
            del self._kept[peer]

    def note_use(self, peer: str) -> None:
        """A stream was opened by a peer, or to it."""
        if peer in self._used_s:
            self._used_s[peer] = trio.current_time()

    async def connected(self, network: Any, conn: Any) -> None:
        """A connection began: of too many the one used longest ago ends."""
        peer = str(conn.muxed_conn.peer_id)
        self._used_s.setdefault(peer, trio.current_time())
        others = [p for p in self._used_s if not self._is_pairio(p) and p not in self._kept]
        if len(others) > OTHER_CONNECTIONS_MAX:
            last = min(others, key=lambda p: self._used_s[p])
            self._counters["other_connections_closed"] += 1
            for other in list(network.get_connections()):
                if str(other.muxed_conn.peer_id) == last:
                    await other.close()

    async def disconnected(self, network: Any, conn: Any) -> None:
        """A connection ended."""
        peer = conn.muxed_conn.peer_id
        if not any(other is not conn for other in network.get_connections(peer)):
            self._used_s.pop(str(peer), None)
            self.on_gone(str(peer))

    async def opened_stream(self, network: Any, stream: Any) -> None:
        """Nothing: streams are noted when their protocol is known."""

    async def closed_stream(self, network: Any, stream: Any) -> None:
        """Nothing."""

    async def listen(self, network: Any, multiaddr: Any) -> None:
        """Nothing."""

    async def listen_close(self, network: Any, multiaddr: Any) -> None:
        """Nothing."""
