"""Presence: who is alive and what they have free; the standing bid of every node.

    own state changed --(at once, then <= 1 per PRESENCE_CHANGE_INTERVAL_MS)--> signed, sent to all
    another's entry is newer --> kept; passed on to PRESENCE_FANOUT neighbours, with what else
        came within PRESENCE_PASS_MS, unless its load alone is another: that concerns those who may
        award to it, whom it tells itself; the others hear every PRESENCE_INTERVAL_MS
    not renewed for PRESENCE_EXPIRY_MS --> gone

An entry carries addresses: a member learnt of through somebody else is dialled.
"""

from dataclasses import dataclass, fields
from operator import attrgetter

from pairio_protocol.context import Context
from pairio_protocol.effects import Connect
from pairio_protocol.errors import DecodeError
from pairio_protocol.limits import (
    CONNECTIONS_MAX,
    FRAME_SIZE_BYTES_MAX,
    PRESENCE_CHANGE_INTERVAL_MS,
    PRESENCE_EXPIRY_MS,
    PRESENCE_FANOUT,
    PRESENCE_INTERVAL_MS,
    PRESENCE_PASS_MS,
    PRESENCE_PER_SERVICE_MAX,
)
from pairio_protocol.machines.membership_view import MembershipView
from pairio_protocol.machines.owner import Owner
from pairio_protocol.machines.twins import Twins
from pairio_protocol.messages import Presence, PresenceUpdate

__all__ = ["Heard", "PresenceBook"]

_ENTRIES_PER_FRAME = 64
_ENTRIES_BYTES = FRAME_SIZE_BYTES_MAX - 1024
_PAST_BOOTS_MAX = 8
#: Renewals are passed on; they come at about PRESENCE_INTERVAL_MS, delayed by other nodes.
_PASSED_AGAIN_MS = PRESENCE_INTERVAL_MS * 5 // 6
_LOOKED_AT_MAX = 4096


@dataclass
class Heard:
    """An entry, its signed bytes, when it was taken, and when one of its peer was passed on."""

    entry: Presence
    data: bytes
    at_ms: int
    passed_ms: int = 0
    past_boots: tuple[bytes, ...] = ()
    rival: bytes = b""  # what its peer said since under a past boot, to be shown to it


class PresenceBook:
    """The newest entry of every member, by (service, peer)."""

    def __init__(
        self, ctx: Context, membership: MembershipView, twins: Twins, owner: Owner
    ) -> None:
        self._ctx = ctx
        self._twins = twins
        self._owner = owner
        self._membership = membership
        self.heard: dict[str, dict[str, Heard]] = {}
        self._counter = 0
        self._load = 0
        self._dirty = True
        self._sent_ms = -PRESENCE_INTERVAL_MS
        self._looked_at: dict[bytes, None] = {}  # entries that neighbours bring again and again
        #: service -> peer -> (who brought it, entry) that waits to be passed on
        self._passing: dict[str, dict[str, tuple[str, bytes]]] = {}
        self._pass_ms = 0
        self._turn = 0

    def get(self, service: str, peer: str) -> Presence | None:
        """Return the newest entry of a peer that is connected or was heard lately."""
        heard = self.heard.get(service, {}).get(peer)
        if heard is None:
            return None
        fresh = self._ctx.now_ms - heard.at_ms < PRESENCE_EXPIRY_MS
        return heard.entry if fresh or peer in self._ctx.connected else None

    def everybody(self, service: str) -> list[Presence]:
        """Return the live entries of a service, own one included."""
        entries = (self.get(service, peer) for peer in self.heard.get(service, {}))
        return [entry for entry in entries if entry is not None]

    def set_load(self, load: int) -> None:
        """Say how many runs are queued or executing here."""
        if load != self._load:
            self._load, self._dirty = load, True

    def changed(self) -> None:
        """Something else of the entry (a service, an address) has changed: tell soon."""
        self._dirty = True

    def deadline_ms(self) -> int:
        """When the next entry is due."""
        wait = PRESENCE_CHANGE_INTERVAL_MS if self._dirty else PRESENCE_INTERVAL_MS
        own_ms = self._sent_ms + wait
        return min(own_ms, self._pass_ms) if self._passing else own_ms

    def tick(self) -> None:
        """Send the own entry when it is due, and others' that wait."""
        if self._passing and self._ctx.now_ms >= self._pass_ms:
            self._pass_on()
        if self._ctx.now_ms >= self.deadline_ms():
            self.send_own()

    def send_own(self) -> None:
        """Sign a new entry for every service and send it to all connected members."""
        self._dirty, self._sent_ms = False, self._ctx.now_ms
        for service in sorted(self._membership.taken_up):
            self._renew(service)
            data = self.heard[service][self._ctx.me].data
            for peer in self._membership.connected_members(service):
                self._ctx.send(peer, PresenceUpdate((data,)))

    def _renew(self, service: str) -> None:
        config = self._ctx.config
        roles = self._membership.folded(service).roles_of(self._ctx.me)
        self._counter += 1
        entry = Presence(
            service=service,
            peer=self._ctx.me,
            boot=config.boot,
            started_unix_ms=config.started_unix_ms,
            counter=self._counter,
            compute=config.compute and "compute" in roles and self._owner.closed(service) is None,
            cpu_millicores=config.cpu_millicores,
            memory_mib=config.memory_mib,
            gpus=config.gpus,
            slots=self._slots(service),
            load=self._load,
            isolation=config.isolation,
            addresses=config.addresses[:8],
            networks=self._owner.networks(service),
        )
        data = entry.sign(self._ctx.key)
        self.heard.setdefault(service, {})[self._ctx.me] = Heard(entry, data, self._ctx.now_ms)

    def _slots(self, service: str) -> int:
        slots = max(1, self._ctx.config.cpu_millicores // 1000)
        limits = (self._owner.jobs_in_all_max, self._owner.jobs_max(service))
        return min([slots, *(limit for limit in limits if limit is not None)])

    def greet(self, peer: str) -> None:
        """Tell a newly connected member everything we know of the services we share."""
        for service in self._membership.shared_with(peer):
            if self._ctx.me not in self.heard.get(service, {}) or self._twins.live:
                self._renew(service)  # a twin is to learn that this start is no past one
            heard = self.heard[service]
            self._send(peer, [h.data for p, h in heard.items() if p != peer])
            if peer in heard and heard[peer].rival:
                self._send(peer, [heard[peer].rival])

    def _send(self, peer: str, entries: list[bytes]) -> None:
        page: list[bytes] = []
        for data in entries:
            full = sum(map(len, page)) + len(data) > _ENTRIES_BYTES
            if len(page) == _ENTRIES_PER_FRAME or full:
                self._ctx.send(peer, PresenceUpdate(tuple(page)))
                page = []
            page.append(data)
        if page:
            self._ctx.send(peer, PresenceUpdate(tuple(page)))

    def on_update(self, source: str, message: PresenceUpdate) -> list[Presence]:
        """Take entries; return those that were news. Passes them on and dials whom we lack."""
        news: list[Presence] = []
        for data in message.entries[:_ENTRIES_PER_FRAME]:
            if data in self._looked_at:
                continue
            try:
                entry = Presence.decode(data)
            except DecodeError:
                self._ctx.refuse(source, "invalid presence")
                continue
            if self._take(source, entry, data):
                news.append(entry)
                self._dial(entry)
        return news

    def _take(self, source: str, entry: Presence, data: bytes) -> bool:
        if entry.service not in self._membership.taken_up:
            return False
        if entry.peer == self._ctx.me:
            self._twins.on_presence(entry)
            return False
        if not self._membership.folded(entry.service).roles_of(entry.peer):
            self._ctx.refuse(source, "presence of somebody who is no member")
            return False
        self._looked_at[data] = None
        if len(self._looked_at) > _LOOKED_AT_MAX:
            del self._looked_at[next(iter(self._looked_at))]
        book = self.heard.setdefault(entry.service, {})
        known = book.get(entry.peer)
        if known is None:
            if len(book) < PRESENCE_PER_SERVICE_MAX:
                book[entry.peer] = Heard(entry, data, self._ctx.now_ms, self._ctx.now_ms)
                self._wait_to_pass(source, entry, data)
            return entry.peer in book
        if not _is_newer(entry, known, source):
            if source == entry.peer and entry.boot in known.past_boots:
                self._note_rival(known, data)
            return False
        past = known.past_boots
        if entry.boot != known.entry.boot:
            past = (*past, known.entry.boot)[-_PAST_BOOTS_MAX:]
        passed_ms = known.passed_ms
        if _tells_more(entry, known.entry) or self._ctx.now_ms - passed_ms >= _PASSED_AGAIN_MS:
            passed_ms = self._ctx.now_ms
            self._wait_to_pass(source, entry, data)
        book[entry.peer] = Heard(entry, data, self._ctx.now_ms, passed_ms, past, known.rival)
        return True

    def _note_rival(self, known: Heard, data: bytes) -> None:
        """A peer says itself what belongs to a start that had ended: two nodes use one key. Each
        is told of the other, the second one when it is connected next."""
        self._ctx.counters["peers that run twice"] += 1
        known.rival = data
        self._ctx.send(known.entry.peer, PresenceUpdate((known.data,)))

    def _wait_to_pass(self, source: str, entry: Presence, data: bytes) -> None:
        if not self._passing:
            self._pass_ms = self._ctx.now_ms + PRESENCE_PASS_MS
        self._passing.setdefault(entry.service, {})[entry.peer] = (source, data)

    def _pass_on(self) -> None:
        """Send what waits to the next few neighbours, other ones each time."""
        passing, self._passing = self._passing, {}
        for service, entries in passing.items():
            peers = self._membership.connected_members(service)
            for _ in range(min(PRESENCE_FANOUT, len(peers))):
                self._turn += 1
                to = peers[self._turn % len(peers)]
                self._send(to, [d for p, (source, d) in entries.items() if to not in (p, source)])

    def _dial(self, entry: Presence) -> None:
        room = len(self._ctx.connected) < CONNECTIONS_MAX
        if entry.peer not in self._ctx.connected and entry.addresses and room:
            self._ctx.emit(Connect(entry.peer, entry.addresses))


#: All that an entry says but its counter and load.
_LASTING = attrgetter(*(f.name for f in fields(Presence) if f.name not in ("counter", "load")))


def _tells_more(entry: Presence, known: Presence) -> bool:
    """Say whether more than the load has changed."""
    return bool(_LASTING(entry) != _LASTING(known))


def _is_newer(entry: Presence, known: Heard, source: str) -> bool:
    """Say whether an entry replaces what is known. What a peer says itself of a new boot counts,
    whatever the wall clock was when it started; by hearsay the later start does."""
    if entry.boot == known.entry.boot:
        return entry.counter > known.entry.counter
    if entry.boot in known.past_boots:
        return False
    return source == entry.peer or entry.order > known.entry.order
