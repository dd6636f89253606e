"""Presence: who is alive and what they have free; the standing bid of every node.

    own state changed --(at once, then <= 1 per PRESENCE_CHANGE_INTERVAL_MS)--> signed, sent to all
    another's entry is newer --> kept, passed on to at most PRESENCE_FANOUT neighbours
    not renewed for PRESENCE_EXPIRY_MS --> gone

An entry carries addresses: a member learnt of through somebody else is dialled.
"""

from dataclasses import dataclass

from pairio_protocol.context import Context
from pairio_protocol.effects import Connect
from pairio_protocol.errors import DecodeError
from pairio_protocol.ids import rendezvous
from pairio_protocol.limits import (
    CONNECTIONS_MAX,
    PRESENCE_CHANGE_INTERVAL_MS,
    PRESENCE_EXPIRY_MS,
    PRESENCE_FANOUT,
    PRESENCE_INTERVAL_MS,
    PRESENCE_PER_SERVICE_MAX,
)
from pairio_protocol.machines.membership_view import MembershipView
from pairio_protocol.messages import Presence, PresenceUpdate

__all__ = ["Heard", "PresenceBook"]

_ENTRIES_PER_FRAME = 64
_PAST_BOOTS_MAX = 8
_LOOKED_AT_MAX = 4096


@dataclass
class Heard:
    """An entry, its signed bytes, and when it was taken."""

    entry: Presence
    data: bytes
    at_ms: int
    past_boots: tuple[bytes, ...] = ()


class PresenceBook:
    """The newest entry of every member, by (service, peer)."""

    def __init__(self, ctx: Context, membership: MembershipView) -> None:
        self._ctx = ctx
        self._membership = membership
        self.heard: dict[str, dict[str, Heard]] = {}
        self._counter = 0
        self._load = 0
        self._dirty = True
        self._sent_ms = -PRESENCE_INTERVAL_MS
        self._looked_at: dict[bytes, None] = {}  # entries that neighbours bring again and again

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
        return self._sent_ms + wait

    def tick(self) -> None:
        """Send the own entry when it is due."""
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
            compute=config.compute and "compute" in roles,
            cpu_millicores=config.cpu_millicores,
            memory_mib=config.memory_mib,
            gpus=config.gpus,
            slots=max(1, config.cpu_millicores // 1000),
            load=self._load,
            isolation=config.isolation,
            addresses=config.addresses[:8],
        )
        data = entry.sign(self._ctx.key)
        self.heard.setdefault(service, {})[self._ctx.me] = Heard(entry, data, self._ctx.now_ms)

    def greet(self, peer: str) -> None:
        """Tell a newly connected member everything we know of the services we share."""
        for service in self._membership.shared_with(peer):
            if self._ctx.me not in self.heard.get(service, {}):
                self._renew(service)
            data = [h.data for p, h in self.heard[service].items() if p != peer]
            for start in range(0, len(data), _ENTRIES_PER_FRAME):
                page = tuple(data[start : start + _ENTRIES_PER_FRAME])
                self._ctx.send(peer, PresenceUpdate(page))

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
                self._pass_on(source, entry, data)
                self._dial(entry)
        return news

    def _take(self, source: str, entry: Presence, data: bytes) -> bool:
        if entry.service not in self._membership.taken_up or entry.peer == self._ctx.me:
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
                book[entry.peer] = Heard(entry, data, self._ctx.now_ms)
            return entry.peer in book
        if not _is_newer(entry, known, source):
            return False
        past = known.past_boots
        if entry.boot != known.entry.boot:
            past = (*past, known.entry.boot)[-_PAST_BOOTS_MAX:]
        book[entry.peer] = Heard(entry, data, self._ctx.now_ms, past)
        return True

    def _pass_on(self, source: str, entry: Presence, data: bytes) -> None:
        neighbours = [
            p
            for p in self._membership.connected_members(entry.service)
            if p not in (source, entry.peer)
        ]
        key = f"{entry.peer}{entry.counter}"
        neighbours.sort(key=lambda p: rendezvous(key, p), reverse=True)
        for peer in neighbours[:PRESENCE_FANOUT]:
            self._ctx.send(peer, PresenceUpdate((data,)))

    def _dial(self, entry: Presence) -> None:
        room = len(self._ctx.connected) < CONNECTIONS_MAX
        if entry.peer not in self._ctx.connected and entry.addresses and room:
            self._ctx.emit(Connect(entry.peer, entry.addresses))


def _is_newer(entry: Presence, known: Heard, source: str) -> bool:
    """Say whether an entry replaces what is known. What a peer says itself of a new boot counts,
    whatever the wall clock was when it started; by hearsay the later start does."""
    if entry.boot == known.entry.boot:
        return entry.counter > known.entry.counter
    if entry.boot in known.past_boots:
        return False
    return source == entry.peer or entry.order > known.entry.order
