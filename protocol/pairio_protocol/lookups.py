"""Looking jobs up at members: before a submit runs anything, and for what stays open for long.

    submit --one look-up of a service at a time; what comes meanwhile goes with the next-->
        asked --all have answered, or LOOKUP_MS--> submitted again, with whatever came

A member that did not answer in time is not waited for until it does. An answer comes as pushed
segments (of logs), or as `kept` ones (of logs that the member has dropped), then `looked_up`.
"""

import heapq
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pairio_protocol import events as ev
from pairio_protocol.effects import LookFurther
from pairio_protocol.errors import DecodeError
from pairio_protocol.fold import Resolution, ServiceFold
from pairio_protocol.gather import request_for
from pairio_protocol.ids import rendezvous
from pairio_protocol.limits import (
    ASKED_MS,
    LOOKUP_ASKED,
    LOOKUP_JOBS_MAX,
    LOOKUP_MS,
    UPSTREAM_SENT_MAX,
)
from pairio_protocol.machines.deadlines import Deadlines
from pairio_protocol.messages import LookedUp, Lookup
from pairio_protocol.records import Result, ResultDocument
from pairio_protocol.segment import Segment

if TYPE_CHECKING:
    from pairio_protocol.core import NodeCore

__all__ = ["Lookups", "segments_about"]

_Call = ev.Submit | ev.LookFor


@dataclass
class _Lookup:
    """Calls that wait for members to say what results they have."""

    service: str
    events: list[_Call]
    waits_for: set[str]


class Lookups:
    """What this node asks members for, and what it answers them."""

    def __init__(self, core: "NodeCore") -> None:
        self._core = core
        self._ctx = core.ctx
        self._under_way: dict[int, _Lookup] = {}
        self._unasked: dict[str, deque[tuple[_Call, str]]] = {}
        self._looked_up: set[int] = set()  # calls that go on with what members have sent
        self._further: dict[int, ev.Submit] = {}  # submits whose job is looked up in the DHT
        self._looked_further: set[int] = set()
        self._ticket = 0
        self._silent: set[str] = set()
        self._due: Deadlines[int] = Deadlines()
        self._asked_until_ms: dict[str, int] = {}
        self._turn = 0

    # -- for submits ------------------------------------------------------------------------

    def ask_first(self, event: _Call, service: str, job: str) -> bool:
        """Look a call's job up at connected members, once; True while they are waited for."""
        is_anew = isinstance(event, ev.Submit) and event.mode == "skip_cache"
        if event.call in self._looked_up or is_anew:
            self._looked_up.discard(event.call)
            return False
        if not self._whom_to_ask(service):
            return False
        self._unasked.setdefault(service, deque()).append((event, job))
        if not any(lookup.service == service for lookup in self._under_way.values()):
            self._send_lookup(service)
        return True

    def _whom_to_ask(self, service: str) -> list[str]:
        """Return the connected members that have answered every look-up so far."""
        peers = self._core.membership.connected_members(service)
        return [peer for peer in peers if peer not in self._silent]

    def _send_lookup(self, service: str) -> None:
        """Ask for what waits, as much as one frame takes."""
        unasked = self._unasked.get(service)
        if not unasked:
            self._unasked.pop(service, None)
            return
        fold = self._core.fold(service)
        jobs: dict[str, None] = {}
        events: list[_Call] = []
        peers = self._whom_to_ask(service)
        asked: dict[str, dict[str, None]] = {peer: {} for peer in peers}
        while unasked and len(jobs) < LOOKUP_JOBS_MAX:
            event, job = unasked.popleft()
            events.append(event)
            known = job in fold.definitions  # not if the fold was made anew meanwhile
            resolution = fold.resolve(job) if known else Resolution(None, None)
            names = dict.fromkeys([job, resolution.job or job, *resolution.waits_for])
            jobs |= names
            all_of_them = isinstance(event, ev.LookFor)  # somebody knows that it is somewhere
            key = resolution.job or job
            for peer in peers if all_of_them else _nearest(key, peers):
                asked[peer] |= names
        asked = {peer: names for peer, names in asked.items() if names}
        self._ticket += 1
        self._under_way[self._ticket] = _Lookup(service, events, set(asked))
        self._due.set(self._ticket, self._ctx.now_ms + LOOKUP_MS)
        for peer, names in asked.items():
            self._ctx.send(peer, Lookup(service, self._ticket, tuple(names)[:LOOKUP_JOBS_MAX]))
        if not asked:
            self._go_on(self._ticket)

    def on_looked_up(self, peer: str, ticket: int) -> None:
        """A member has pushed what it has."""
        self._silent.discard(peer)
        lookup = self._under_way.get(ticket)
        if lookup is not None:
            lookup.waits_for.discard(peer)
            if not lookup.waits_for:
                self._go_on(ticket)

    def _is_asking(self, service: str, peer: str) -> bool:
        """Say whether a look-up at this member is under way."""
        return any(k.service == service and peer in k.waits_for for k in self._under_way.values())

    def _go_on(self, ticket: int) -> None:
        """Submit again, with whatever members have sent; then ask for what waits meanwhile."""
        lookup = self._under_way.pop(ticket)
        self._due.drop(ticket)
        self._silent |= lookup.waits_for & set(self._ctx.connected)
        self._silent &= set(self._ctx.connected)
        for event in lookup.events:
            self._looked_up.add(event.call)
            self._core.commands.on_command(event)
            self._looked_up.discard(event.call)
        self._send_lookup(lookup.service)

    def on_peers_changed(self) -> None:
        """With nobody left to answer, nobody is waited for."""
        connected = set(self._ctx.connected)
        self._asked_until_ms = {p: t for p, t in self._asked_until_ms.items() if p in connected}
        for ticket, lookup in list(self._under_way.items()):
            lookup.waits_for &= connected
            if not lookup.waits_for:
                self._go_on(ticket)

    def tick(self) -> None:
        """Go on without those who have not answered in time."""
        for ticket in self._due.due(self._ctx.now_ms):
            self._go_on(ticket)

    def deadline_ms(self) -> int | None:
        """When a look-up is over anyway."""
        return self._due.next_ms()

    # -- for what stays open, and for others --------------------------------------------------

    def ask_for(self, service: str, jobs: list[str]) -> None:
        """Look jobs up at a connected member, the next in turn; results come as they are found."""
        peers = self._core.membership.connected_members(service)
        if jobs and peers:
            self._turn += 1
            peer = peers[self._turn % len(peers)]
            self._asked_until_ms[peer] = self._ctx.now_ms + ASKED_MS
            self._ctx.send(peer, Lookup(service, 0, tuple(jobs[:LOOKUP_JOBS_MAX])))

    def wants(self, segment: Segment, peer: str) -> bool:
        """Say whether a kept segment is wanted: of a member whom this node has asked for jobs, or
        with a result of what is open here."""
        if self._is_asking(segment.service, peer):
            return True
        if self._ctx.now_ms < self._asked_until_ms.get(peer, 0):
            return True
        fold = self._core.fold(segment.service)
        try:
            results = [r for r in segment.records() if isinstance(r, Result)]
            jobs = [ResultDocument.decode(record.document).job for record in results]
        except DecodeError:
            return False
        return any(fold.is_awaited(job, self._ctx.unix_ms) for job in jobs)

    def on_lookup(self, peer: str, message: Lookup) -> None:
        """Send the results that there are, and of jobs on which they rest what is needed to see
        that they do: requests for the definitions, results for the resolution."""
        fold = self._core.fold(message.service)
        for job in message.jobs[:LOOKUP_JOBS_MAX]:
            for segment in segments_about(fold, job):
                self._core.push(peer, segment)
        self._ctx.send(peer, LookedUp(message.service, message.ticket))

    # -- further than connected members ---------------------------------------------------------

    def ask_further(self, event: ev.Submit, service: str, job: str) -> bool:
        """Let a submit's job be looked up in the DHT, once, after connected members had nothing;
        True while that is waited for. Not when all home nodes of the job are connected: they were
        asked, and have what there is."""
        if event.call in self._looked_further or not self._ctx.config.looks_further:
            self._looked_further.discard(event.call)
            return False
        if event.mode == "skip_cache":
            return False
        resolved = self._core.fold(service).resolve(job).job or job
        homes = self._core.membership.home_nodes(service, resolved)
        if all(peer == self._ctx.me or peer in self._ctx.connected for peer in homes):
            return False
        self._further[event.call] = event
        self._ctx.emit(LookFurther(event.call, service, resolved))
        return True

    def on_looked_further(self, call: int) -> None:
        """Submit again, with whatever came."""
        event = self._further.pop(call, None)
        if event is not None:
            self._looked_up.add(call)
            self._looked_further.add(call)
            self._core.commands.on_command(event)
            self._looked_up.discard(call)
            self._looked_further.discard(call)


def segments_about(fold: ServiceFold, job: str) -> Iterator[bytes]:
    """Yield the hashes of segments with the results of a job, and of jobs on which it rests what is
    needed to see that they do: requests for the definitions, results for the resolution. A result
    may be named in place of a job, by its CID: then the request that it answers comes too."""
    if job in fold.results:
        result = fold.results[job]
        request = request_for(fold, result)
        if request is not None:
            yield request.segment
        yield result.segment
        return
    for name in fold.upstream_of(job, UPSTREAM_SENT_MAX):
        found = fold.results_for(name)
        requests = fold.by_job.get(name)
        if found and requests and (name != job or found[0].document.job != name):
            yield fold.requests[requests[0]].segment
        for result in found:
            yield result.segment


def _nearest(job: str, peers: list[str]) -> list[str]:
    """Return those of some members who are asked for a job first: its home nodes, and a few more
    in the order by which members become home nodes."""
    return heapq.nlargest(LOOKUP_ASKED, peers, key=lambda peer: rendezvous(job, peer))
