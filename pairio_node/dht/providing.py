"""Tells the DHT what this node holds: results that are public or pinned here, with their content.

    a result of these --> due --at most one job a KAD_PROVIDE_INTERVAL_MS--> told to the KAD_TOLD
    members nearest to the job's id --half of KAD_RECORD_MS, or others are nearest--> due again

A result is told under its resolved job, and under every definition that resolves to it. What waits
is made again from what is here, so nothing of it is stored.
"""

import math
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from pairio_node.dht.asker import Asker
from pairio_protocol.fold import ServiceFold
from pairio_protocol.kad import Provide, Provided
from pairio_protocol.limits import (
    ADDRESSES_MAX,
    KAD_ASKED_MAX,
    KAD_JOBS_PER_PROVIDER_MAX,
    KAD_PROVIDE_INTERVAL_MS,
    KAD_RECORD_MS,
    KAD_TOLD,
)

if TYPE_CHECKING:
    from pairio_node.dht.node import Dht
    from pairio_node.node import Node

__all__ = ["Providing"]

#: How often it is looked whether there is something new to tell, or somebody else to tell it to;
#: more seldom when looking takes more than this share of the time.
LOOK_S = 2.0
_LOOK_PERCENT_MAX = 1
#: What nobody could be told, or is not here whole, is tried again after this time.
AGAIN_S = 60.0
#: Unresolved definitions that a result is told under.
_ORIGINS_MAX = 16

#: (service, job)
Key = tuple[str, str]


@dataclass(frozen=True)
class _Told:
    """When a job is told again, and to which starts of which members it was."""

    again_s: float
    starts: frozenset[tuple[str, bytes]]
    is_noted: bool


class Providing:
    """What one node tells; `run` does it."""

    def __init__(self, node: "Node", dht: "Dht", asker: Asker, counters: Counter[str]) -> None:
        self._node = node
        self._dht = dht
        self._asker = asker
        self._counters = counters
        self._told: dict[Key, _Told] = {}
        self._due: deque[Key] = deque()
        self._looked_at: object = None
        self._again_s = math.inf
        self._look_s = 0.0

    def status(self) -> dict[str, int]:
        """How many jobs are told, and how many wait."""
        noted = sum(told.is_noted for told in self._told.values())
        return {"providing": noted, "waiting": len(self._due)}

    async def run(self) -> None:
        """Tell until cancelled."""
        while True:
            await self._look()
            if not self._due:
                await trio.sleep(LOOK_S)
                continue
            began_s = trio.current_time()
            await self._tell(self._due.popleft())
            pause_s = KAD_PROVIDE_INTERVAL_MS / 1000
            await trio.sleep(max(0.0, pause_s - (trio.current_time() - began_s)))

    # -- what is due ------------------------------------------------------------------------

    async def _look(self) -> None:
        """Find out anew what is due, if anything of what it follows from has changed."""
        now_s = trio.current_time()
        if now_s < self._look_s:
            return
        starts = {service: self._starts(service) for service in self._services()}
        if (state := self._state(starts)) == self._looked_at and now_s < self._again_s:
            return
        self._looked_at = state
        wanted: dict[Key, None] = {}
        for service in starts:
            for number, key in enumerate(self._wanted(service)):
                if number % 64 == 0:
                    await trio.lowlevel.checkpoint()
                if len(wanted) < KAD_JOBS_PER_PROVIDER_MAX:
                    wanted[key] = None
        self._told = {key: told for key, told in self._told.items() if key in wanted}
        due: list[Key] = []
        for number, key in enumerate(wanted):
            if number % 64 == 0:
                await trio.lowlevel.checkpoint()
            if self._is_due(key, starts[key[0]], now_s):
                due.append(key)
        self._due = deque(due)
        self._again_s = min((told.again_s for told in self._told.values()), default=math.inf)
        took_s = trio.current_time() - now_s
        self._look_s = now_s + max(LOOK_S, took_s * 100 / _LOOK_PERCENT_MAX)

    def _services(self) -> list[str]:
        return sorted(self._node.core.membership.taken_up)

    def _starts(self, service: str) -> dict[str, bytes]:
        """Return the members that may be told, with the boot of each: a new start of one knows
        nothing of what the one before was told."""
        heard = self._node.core.book.heard.get(service, {})
        known = self._dht.known(service)
        return {peer: heard[peer].entry.boot if peer in heard else b"" for peer in known}

    def _state(self, starts: dict[str, dict[str, bytes]]) -> object:
        """Return what decides what is due, in a form that can be compared."""
        core = self._node.core
        rows = [
            (service, len(core.fold(service).results), frozenset(members.items()))
            for service, members in starts.items()
        ]
        publishing = self._node.publishing
        return rows, set(self._node.cache.pins), publishing.results(), publishing.open_services()

    def _wanted(self, service: str) -> Iterator[Key]:
        """Yield what of a service is to be told: of all its results if they are public, else of
        those that are pinned or published here."""
        fold = self._node.core.fold(service)
        cids = set(fold.results)
        if service not in self._node.publishing.open_services():
            pins = self._node.cache.pins.values()
            pinned = {pin.result for pin in pins if pin.service == service}
            cids &= pinned | self._node.publishing.results()
        for cid in sorted(cids):
            job = fold.results[cid].document.job
            if fold.results[cid].document.status == "completed" and _is_answer(fold, job, cid):
                yield service, job
                for origin in fold.origins(job)[:_ORIGINS_MAX]:
                    yield service, origin

    def _is_due(self, key: Key, starts: dict[str, bytes], now_s: float) -> bool:
        """Say whether a job is to be told (again): in time, or since others are nearest to it."""
        told = self._told.get(key)
        if told is None or told.again_s <= now_s:
            return bool(starts)
        nearest = self._dht.nearest(key[0], key[1], KAD_TOLD)
        return not {(c.peer, starts.get(c.peer, b"")) for c in nearest} <= told.starts

    # -- telling ----------------------------------------------------------------------------

    async def _tell(self, key: Key) -> None:
        """Tell the nearest members of a job, if all of its result is here."""
        service, job = key
        if service not in self._node.core.membership.taken_up:
            return
        told, noted = set[tuple[str, bytes]](), 0
        if await self._is_here(key):
            starts = self._starts(service)
            addresses = self._node.transport.addresses()[:ADDRESSES_MAX]
            for contact in self._dht.nearest(service, job, KAD_ASKED_MAX):
                question = Provide(service, (job,), addresses)
                answer = await self._asker.ask(contact, question, Provided)
                told.add((contact.peer, starts.get(contact.peer, b"")))
                noted += answer is not None and answer.noted > 0
                if noted >= KAD_TOLD:
                    break
        self._counters["provided"] += bool(noted)
        again_s = trio.current_time() + (KAD_RECORD_MS / 2000 if noted else AGAIN_S)
        self._told[key] = _Told(again_s, frozenset(told), bool(noted))
        self._again_s = min(self._again_s, again_s)

    async def _is_here(self, key: Key) -> bool:
        fold = self._node.core.fold(key[0])
        found = fold.results_for(key[1])
        if not found:
            return False
        document = found[0].document
        cids = [cid for cid, _, _ in document.outputs.values()]
        content = [cid for cid in dict.fromkeys([*cids, document.console]) if cid]
        with self._node.blocks.in_use.working():
            return await self._node.cache.is_here(key[0], content)


def _is_answer(fold: ServiceFold, job: str, cid: str) -> bool:
    """Say whether a result is the one that answers for its job."""
    found = fold.results_for(job)
    return bool(found) and found[0].cid == cid
