"""Results that no connected member has: looked for in the DHT of each service, and in the network
of the node's Kubo daemon, if it has one.

Whoever gave a result is remembered for a while: it is asked for what the result rests on, and for
its content.
"""

from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

import trio

from pairio_node.dht.node import Dht, Giver, has_result
from pairio_node.errors import UserError
from pairio_protocol import effects as ef
from pairio_protocol import events as ev
from pairio_protocol.kad import Contact
from pairio_protocol.limits import (
    KAD_ASKED_MAX,
    KAD_LOOK_MS,
    KAD_SUBMITS_AT_ONCE,
    KAD_SUBMITS_WAITING_MAX,
)
from pairio_protocol.machines.contents import outputs_of

if TYPE_CHECKING:
    from pairio_node.node import Node

__all__ = ["Finder"]

#: How long whoever gave a result is asked for what belongs to it, and how many such are kept.
_GIVER_S = 600.0
_GIVERS_MAX = 8
_VOUCHED_MAX = 4096
#: What was not found is not looked for again for so long: clients ask again and again.
_IN_VAIN_S = 5.0
_IN_VAIN_MAX = 1024
#: Services in which one id is looked for; and how many at once.
_SERVICES_MAX = 32
_SERVICES_AT_ONCE = 4


K = TypeVar("K")
V = TypeVar("V")


class Finder:
    """What the node asks; nothing that is found counts before the core has checked it."""

    def __init__(self, node: "Node", dht: Dht) -> None:
        self._node = node
        self._dht = dht
        self._givers: OrderedDict[tuple[str, str], float] = OrderedDict()
        self._vouched: OrderedDict[tuple[str, str], str] = OrderedDict()  # content: who has it
        self._in_vain_s: OrderedDict[str, float] = OrderedDict()
        self._turns = trio.Semaphore(KAD_SUBMITS_AT_ONCE)
        self._waiting = 0
        self._services_turns = trio.CapacityLimiter(_SERVICES_AT_ONCE)

    def givers(self, service: str) -> list[str]:
        """Return who gave results of a service lately, the last one first."""
        since_s = trio.current_time() - _GIVER_S
        rows = reversed(self._givers.items())
        return [p for (s, p), given_s in rows if s == service and given_s > since_s]

    def is_vouched(self, service: str, cids: Sequence[str]) -> bool:
        """Say whether somebody who gave a result lately said to have this content of it."""
        since_s = trio.current_time() - _GIVER_S
        givers = [self._vouched.get((service, cid)) for cid in cids]
        return bool(cids) and all(
            peer is not None and self._givers.get((service, peer), 0.0) > since_s for peer in givers
        )

    def on_not_given(self, service: str, cid: str) -> None:
        """Nobody gave some content: who said to have it is not believed any more."""
        self._vouched.pop((service, cid), None)

    async def find(self, name: str, services: Sequence[str]) -> bool:
        """Look for a job's result by its id: in the DHT of each service, then in Kubo's network."""
        now_s = trio.current_time()
        if now_s < self._in_vain_s.get(name, 0.0):
            return False
        chosen = list(services)[:_SERVICES_MAX]
        found = await self._in_services(name, chosen) or await self._by_kubo(name, chosen)
        if not found:
            _put(self._in_vain_s, name, trio.current_time() + _IN_VAIN_S, _IN_VAIN_MAX)
        return found

    async def for_submit(self, effect: ef.LookFurther) -> None:
        """Look for what would answer a submit, then let it go on: found or not, in time."""
        try:
            if self._waiting >= KAD_SUBMITS_WAITING_MAX:
                self._dht.counters["submits_not_looked"] += 1
                return
            self._waiting += 1
            try:
                with trio.move_on_after(KAD_LOOK_MS / 1000):
                    async with self._turns:
                        await self._race(effect.service, effect.job)
            finally:
                self._waiting -= 1
        finally:
            with trio.CancelScope(shield=True), trio.move_on_after(1):
                while not self._node.driver.post(ev.LookedFurther(effect.call)):  # noqa: ASYNC110
                    await trio.sleep(0.05)

    async def ask_giver(self, service: str, name: str) -> None:
        """Ask who gave results lately for one on which they rest."""
        if has_result(self._node.core.fold(service), name):
            return
        known = self._dht.known(service)
        contacts = [Contact(peer, known.get(peer, ())) for peer in self.givers(service)]
        if contacts:
            await self._dht.look(service, name, contacts, ask_members=False)

    async def find_content(self, service: str, result: str) -> bool:
        """Look for a holder of what a known result gave, where no member is connected who could be
        asked; say whether there is one that says to have all of it."""
        info = self._node.core.fold(service).results.get(result)
        outputs = outputs_of(info) if info is not None else ()
        if info is None or not outputs or self.is_vouched(service, outputs):
            return bool(outputs)
        if self._node.core.membership.connected_members(service):
            return False
        with trio.move_on_after(KAD_LOOK_MS / 1000):
            await self._race(service, info.document.job, whole=True)
        return self.is_vouched(service, outputs)

    # -- parts ------------------------------------------------------------------------------

    async def _race(self, service: str, job: str, *, whole: bool = False) -> None:
        """Look in the DHT and in Kubo's network at once; what is found first is enough."""
        async with trio.open_nursery() as nursery:

            async def ask_kubo() -> None:
                if await self._by_kubo(job, [service], KAD_LOOK_MS / 2000, whole=whole):
                    nursery.cancel_scope.cancel()

            nursery.start_soon(ask_kubo)
            if await self._in_service(service, job, whole=whole):
                nursery.cancel_scope.cancel()

    async def _in_services(self, name: str, services: Sequence[str]) -> bool:
        found: list[bool] = []
        async with trio.open_nursery() as nursery:

            async def look(service: str) -> None:
                async with self._services_turns:
                    if await self._in_service(service, name):
                        found.append(True)
                        nursery.cancel_scope.cancel()

            for service in services:
                nursery.start_soon(look, service)
        return bool(found)

    async def _in_service(
        self,
        service: str,
        job: str,
        holders: Sequence[Contact] = (),
        *,
        ask_members: bool = True,
        whole: bool = False,
    ) -> bool:
        giver = None
        with suppress(UserError):  # the service is gone meanwhile, or the node overloaded
            giver = await self._dht.look(
                service, job, holders, ask_members=ask_members, whole=whole
            )
        if giver is not None:
            self._note(service, job, giver)
        return giver is not None

    def _note(self, service: str, job: str, giver: Giver) -> None:
        """Remember who gave a result, and stay connected with it if there is a place."""
        peer = giver.contact.peer
        _put(self._givers, (service, peer), trio.current_time(), _GIVERS_MAX)
        if giver.is_whole:
            fold = self._node.core.fold(service)
            found = [fold.results[job]] if job in fold.results else fold.results_for(job)
            for cid in (cid for result in found for cid in outputs_of(result)):
                _put(self._vouched, (service, cid), peer, _VOUCHED_MAX)
        self._node.transport.keep_connected(peer, giver.contact.addresses)

    async def _by_kubo(
        self,
        job: str,
        services: Sequence[str],
        timeout_s: float = KAD_LOOK_MS / 1000,
        *,
        whole: bool = False,
    ) -> bool:
        """Ask the daemon's network who announced a result, and those of them that are members."""
        kubo = self._node.kubo
        if kubo is None:
            return False
        holders = await kubo.find_nodes(self._node.transport, job, timeout_s)
        self._dht.counters["kubo_holders"] += len(holders)
        for service in services:
            mine = [c for c in holders if self._dht.is_member(service, c.peer)][:KAD_ASKED_MAX]
            if mine and await self._in_service(service, job, mine, ask_members=False, whole=whole):
                return True
        return False


def _put(known: OrderedDict[K, V], key: K, value: V, most: int) -> None:
    """Note something as the newest, and forget the oldest beyond `most`."""
    known[key] = value
    known.move_to_end(key)
    if len(known) > most:
        known.popitem(last=False)
