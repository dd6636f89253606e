"""Connections to peers at addresses that were told: directly, and by way of relays."""

from collections import Counter
from typing import Any

import trio
from libp2p.peer.id import ID
from multiaddr import Multiaddr

from pairio_node.transport.circuits import is_circuit
from pairio_node.transport.multiaddrs import without_peer
from pairio_node.transport.relayed import Relayed

__all__ = ["Dialer"]

_DIAL_S = 5.0
_NEXT_DIAL_S = 0.15
#: A peer's own addresses are tried so long before his relays.
_DIRECT_FIRST_S = 1.0


class Dialer:
    """Dials for one host; `relayed` dials addresses that lead through a relay."""

    def __init__(self, host: Any, relayed: Relayed, counters: Counter[str]) -> None:
        self._host = host
        self._relayed = relayed
        self._counters = counters

    async def connect(self, peer: str, addresses: tuple[str, ...]) -> bool:
        """Connect at one of a peer's addresses; by way of a relay where none answers soon."""
        direct = tuple(a for a in addresses if not is_circuit(a))
        if len(direct) == len(addresses):
            return await self._dial_at(peer, addresses)
        async with trio.open_nursery() as nursery:
            at_once = trio.Event()

            async def dial(some: tuple[str, ...]) -> None:
                if await self._dial_at(peer, some):
                    nursery.cancel_scope.cancel()
                at_once.set()

            if direct:
                nursery.start_soon(dial, direct)
                with trio.move_on_after(_DIRECT_FIRST_S):
                    await at_once.wait()
            for address in addresses:
                if is_circuit(address):
                    nursery.start_soon(dial, (address,))
                    await trio.sleep(_NEXT_DIAL_S)
        return self.is_linked(peer)

    async def _dial_at(self, peer: str, addresses: tuple[str, ...]) -> bool:
        """Connect at one address after the other. Stock `connect` dials the first that it ever knew
        of a peer, waits while somebody else does, and refuses for 60 s after a failure."""
        network: Any = self._host.get_network()
        for address in addresses:
            if self.is_linked(peer):
                return True
            self._counters["dials"] += 1
            try:
                if is_circuit(address):
                    await self._relayed.dial(address, peer)
                    return True
                target = Multiaddr(without_peer(address))
                with trio.fail_after(_DIAL_S):
                    await network.dial_addr(target, ID.from_base58(peer))
            except Exception:  # refused, unreachable, wrong key, garbage: the next address
                self._counters["dial_failures"] += 1
                continue
            return True
        return False

    async def connect_any(self, peer: str, addresses: tuple[str, ...]) -> bool:
        """Connect at any of the addresses: the next is tried when one takes its time."""
        async with trio.open_nursery() as nursery:

            async def dial(address: str) -> None:
                if await self._dial_at(peer, (address,)):
                    nursery.cancel_scope.cancel()

            for address in addresses:
                nursery.start_soon(dial, address)
                await trio.sleep(_NEXT_DIAL_S)
        return self.is_linked(peer)

    def is_linked(self, peer: str) -> bool:
        """Say whether there is a connection to a peer."""
        network: Any = self._host.get_network()
        return bool(network.get_connections(ID.from_base58(peer)))
