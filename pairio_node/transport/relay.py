"""A relay: passes connections on to peers that cannot be dialled. Only where the owner said so.

Peers behind a NAT *reserve* here, over a connection of their own; others then *connect* to them by
way of this node. Who may reserve: members of a service that this node is in too, and peers that its
owner named. Who may connect to them: anybody, since who wants to join is a stranger; but strangers
have few circuits, a small share of the bytes, a short time, and the oldest of theirs makes place
for the next. What is passed on cannot be read here (`circuits`).
"""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Final

import trio
from libp2p.peer.id import ID
from libp2p.relay.circuit_v2.pb import circuit_pb2 as pb

from pairio_node.places import Memberships, Places
from pairio_node.rate import Rate
from pairio_node.transport.circuits import (
    HOP,
    STOP,
    is_linked_directly,
    is_relayed,
    peer_in,
    read_hop,
    read_stop,
    write_message,
)
from pairio_node.transport.others import OtherConnections
from pairio_protocol.limits import (
    RELAY_ANSWER_MS,
    RELAY_CIRCUIT_MS,
    RELAY_CIRCUITS_MAX,
    RELAY_CIRCUITS_OF_PAIR_MAX,
    RELAY_CIRCUITS_OF_PEER_MAX,
    RELAY_IDLE_MS,
    RELAY_RESERVATION_MS,
    RELAY_STRANGER_AT_ONCE_MAX,
    RELAY_STRANGER_CIRCUIT_MS,
    RELAY_STRANGER_LEAST_MS,
    RELAY_STRANGER_PER_S_MAX,
    RELAY_STRANGERS_MAX,
    RELAY_STRANGERS_SHARE,
    RELAY_STRANGERS_TO_PEER_MAX,
)

__all__ = ["Relay", "RelayBounds"]

_CHUNK_BYTES: Final = 64 * 1024
_LOOK_S: Final = 5.0
#: How long one direction goes on when the other has ended.
_HALF_S: Final = 5.0
#: How much may be sent at once after a pause.
_BURST_S: Final = 0.25


@dataclass(frozen=True)
class RelayBounds:
    """What the owner gives: peers named, reservations, bytes in a second for all circuits."""

    named: frozenset[str] = frozenset()
    reservations: int = 32
    bytes_per_s: int = 8 * 1024 * 1024


class _Refused(Exception):
    """The answer is a refusal: `status`, and what is counted."""

    def __init__(self, status: "pb.Status.ValueType", counted: str) -> None:
        super().__init__(counted)
        self.status, self.counted = status, counted


@dataclass
class _Reserved:
    """A reservation: until when, and the place that it takes."""

    until_s: float
    place: ExitStack


@dataclass(eq=False)
class _Carried:
    """A circuit that is carried."""

    source: str
    target: str
    scope: trio.CancelScope
    began_s: float
    used_s: float


class Relay:
    """See the module. `memberships` are set once this node knows its services. Places are those of
    members, not of keys: half of all for one of them at most."""

    def __init__(
        self, host: Any, others: OtherConnections, counters: Counter[str], bounds: RelayBounds
    ) -> None:
        self._host = host
        self._others = others
        self._counters = counters
        self._bounds = bounds
        self.memberships: Memberships = lambda _: ()
        self._reserved: dict[str, _Reserved] = {}
        most = bounds.reservations
        self._places = Places(self._known_as, peer=1, member=(most + 1) // 2, everybody=most)
        self._circuits = Places(
            self._known_as,
            peer=RELAY_CIRCUITS_OF_PEER_MAX,
            member=RELAY_CIRCUITS_OF_PEER_MAX,
            everybody=RELAY_CIRCUITS_MAX,
        )
        self._carried: list[_Carried] = []
        self._bytes = 0
        per_s = bounds.bytes_per_s
        self._pace = Rate(per_s, per_s * _BURST_S)
        strangers_per_s = per_s / RELAY_STRANGERS_SHARE
        self._strangers_pace = Rate(strangers_per_s, strangers_per_s * _BURST_S)
        self._strangers_come: dict[str, Rate] = {}

    def status(self) -> dict[str, int]:
        """Return what is carried now, and how much it was since the start."""
        return {
            "reservations": len(self._reserved),
            "reservationsMax": self._bounds.reservations,
            "circuits": len(self._carried),
            "circuitsOfStrangers": len(self._strangers()),
            "bytes": self._bytes,
            "bytesPerSec": self._bounds.bytes_per_s,
        }

    def _known_as(self, peer: str) -> Sequence[tuple[str, str]]:
        return [("", peer)] if peer in self._bounds.named else self.memberships(peer)

    def _may_reserve(self, peer: str) -> bool:
        return bool(self._known_as(peer))

    def _strangers(self) -> list[_Carried]:
        goes_on = [c for c in self._carried if not c.scope.cancel_called]
        return [c for c in goes_on if not self._may_reserve(c.source)]

    # -- asked ------------------------------------------------------------------------------

    async def serve(self) -> None:
        """Answer on HOP, and end what is over, until cancelled."""
        self._host.set_stream_handler(HOP, self._on_hop)
        while True:
            await trio.sleep(_LOOK_S)
            self._end_what_is_over()

    async def _on_hop(self, stream: Any) -> None:
        """Answer one question; a circuit lasts as long as this."""
        peer = str(stream.muxed_conn.peer_id)
        self._others.note_use(peer)
        try:
            with trio.fail_after(RELAY_ANSWER_MS / 1000):
                message = await read_hop(stream)
            if is_relayed(stream.swarm_conn):
                raise _Refused(pb.PERMISSION_DENIED, "a circuit over a circuit")
            if message.type == pb.HopMessage.RESERVE:
                await write_message(stream, self._reserve(peer))
                await stream.close()
            elif message.type == pb.HopMessage.CONNECT:
                await self._connect(stream, peer, peer_in(message))
            else:
                raise ValueError("an answer that was not asked for")
        except _Refused as refused:
            self._counters[f"refused: {refused.counted}"] += 1
            await _say_no(stream, refused.status)
        except Exception:  # no message, silence, or the stream broke
            self._counters["refused: a relay message that is none"] += 1
            await _reset(stream)

    def _reserve(self, peer: str) -> pb.HopMessage:
        if not self._may_reserve(peer):
            raise _Refused(pb.PERMISSION_DENIED, "a relay reservation of a stranger")
        until_s = trio.current_time() + RELAY_RESERVATION_MS / 1000
        if peer not in self._reserved:
            place = ExitStack()
            if not place.enter_context(self._places.place(peer)):
                raise _Refused(pb.RESERVATION_REFUSED, "a relay reservation beyond the bound")
            self._reserved[peer] = _Reserved(until_s, place)
            self._others.keep(peer)
        self._reserved[peer].until_s = until_s
        until_unix_s = int(time.time()) + RELAY_RESERVATION_MS // 1000
        return pb.HopMessage(
            type=pb.HopMessage.STATUS,
            status=pb.OK,
            reservation=pb.Reservation(expire=until_unix_s),
            limit=pb.Limit(duration=RELAY_CIRCUIT_MS // 1000),
        )

    # -- carrying ---------------------------------------------------------------------------

    async def _connect(self, stream: Any, source: str, target: str) -> None:
        """Carry a circuit from its begin to its end."""
        with self._a_place(source, target):
            lasts_ms = RELAY_CIRCUIT_MS if self._may_reserve(source) else RELAY_STRANGER_CIRCUIT_MS
            now_s = trio.current_time()
            scope = trio.CancelScope(deadline=now_s + lasts_ms / 1000)
            carried = _Carried(source, target, scope, now_s, now_s)
            self._carried.append(carried)  # before anything is waited for
            onward = None
            try:
                with scope:
                    onward = await self._knock(source, target, lasts_ms)
                    answer = pb.HopMessage(type=pb.HopMessage.STATUS, status=pb.OK)
                    answer.limit.duration = lasts_ms // 1000
                    await write_message(stream, answer)
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(self._pass_on, carried, stream, onward)
                        nursery.start_soon(self._pass_on, carried, onward, stream)
            finally:
                self._carried.remove(carried)
                if onward is not None or scope.cancelled_caught:
                    await _reset(stream, onward)

    @contextmanager
    def _a_place(self, source: str, target: str) -> Iterator[None]:
        """Have a place for a circuit for the block, or raise; a stranger's takes that of another
        stranger when there are too many."""
        if not self._is_here(target):
            raise _Refused(pb.NO_RESERVATION, "a circuit to a peer without a reservation")
        if not self._may_reserve(source):
            self._check_pace(source)
        pair = sum((c.source, c.target) == (source, target) for c in self._carried)
        if pair >= RELAY_CIRCUITS_OF_PAIR_MAX:
            raise _Refused(pb.RESOURCE_LIMIT_EXCEEDED, "a circuit beyond the bound")
        if not self._may_reserve(source):
            self._make_place_among_strangers(target)
            yield
            return
        with self._circuits.place(source) as is_free:
            known = sum(c.target == target and self._may_reserve(c.source) for c in self._carried)
            if not is_free or known >= RELAY_CIRCUITS_OF_PEER_MAX:
                raise _Refused(pb.RESOURCE_LIMIT_EXCEEDED, "a circuit beyond the bound")
            yield

    def _check_pace(self, stranger: str) -> None:
        known = self._strangers_come.get(stranger)
        if known is None:
            known = Rate(RELAY_STRANGER_PER_S_MAX, RELAY_STRANGER_AT_ONCE_MAX)
            self._strangers_come[stranger] = known
        if not known.try_take():
            raise _Refused(pb.RESOURCE_LIMIT_EXCEEDED, "circuits of strangers, too fast")

    def _make_place_among_strangers(self, target: str) -> None:
        """Let the oldest of too many strangers go: not before he had the time to join."""
        strangers = self._strangers()
        there = [c for c in strangers if c.target == target]
        oldest = there[0] if len(there) >= RELAY_STRANGERS_TO_PEER_MAX else None
        if oldest is None and len(strangers) >= RELAY_STRANGERS_MAX:
            oldest = strangers[0]
        if oldest is None:
            return
        if trio.current_time() < oldest.began_s + RELAY_STRANGER_LEAST_MS / 1000:
            raise _Refused(pb.RESOURCE_LIMIT_EXCEEDED, "circuits of strangers, too fast")
        self._counters["circuits of strangers that made place for others"] += 1
        oldest.scope.cancel()

    async def _knock(self, source: str, target: str, lasts_ms: int) -> Any:
        """Return a stream to the target, which knows who comes and has said yes."""
        onward = None
        try:
            with trio.fail_after(RELAY_ANSWER_MS / 1000):
                onward = await self._host.new_stream(ID.from_base58(target), [STOP])
                message = pb.StopMessage(type=pb.StopMessage.CONNECT)
                message.peer.id = ID.from_base58(source).to_bytes()
                message.limit.duration = lasts_ms // 1000
                await write_message(onward, message)
                answer = await read_stop(onward)
                if answer.status != pb.OK:
                    raise ValueError("it does not want to")
                return onward
        except BaseException as error:  # silent, gone, unwilling, no speaker of STOP; or cancelled
            await _reset(onward)
            if not isinstance(error, Exception):
                raise
            counted = "a circuit that its target did not take"
            raise _Refused(pb.CONNECTION_FAILED, counted) from None

    async def _pass_on(self, carried: _Carried, source: Any, target: Any) -> None:
        """Pass bytes on in one direction until its end; the other then has a moment."""
        try:
            while data := await _read(source):
                carried.used_s = trio.current_time()
                self._bytes += len(data)
                wait_s = self._pace.take(len(data))
                if not self._may_reserve(carried.source):
                    wait_s = max(wait_s, self._strangers_pace.take(len(data)))
                if wait_s > 0:
                    await trio.sleep(wait_s)
                self._others.note_use(carried.source)
                await target.write(data)
            await target.close_write()
        except Exception:  # reset by one side, or one that does not read
            carried.scope.cancel()
        ends_s = trio.current_time() + _HALF_S
        carried.scope.deadline = min(carried.scope.deadline, ends_s)

    # -- ending -----------------------------------------------------------------------------

    def _is_here(self, peer: str) -> bool:
        """Say whether a peer has a reservation, still may, and is connected by itself."""
        reserved = self._reserved.get(peer)
        if reserved is None or reserved.until_s < trio.current_time():
            return False
        if not self._may_reserve(peer):
            return False
        return is_linked_directly(self._host, peer)

    def _end_what_is_over(self) -> None:
        for peer in [peer for peer in self._reserved if not self._is_here(peer)]:
            self._reserved.pop(peer).place.close()
            self._others.let_go(peer)
        for stranger in [p for p in self._strangers_come if not is_linked_directly(self._host, p)]:
            del self._strangers_come[stranger]
        idle_s = trio.current_time() - RELAY_IDLE_MS / 1000
        for carried in self._carried:
            if carried.target not in self._reserved or carried.used_s < idle_s:
                carried.scope.cancel()


async def _read(stream: Any) -> bytes:
    """Read what there is; empty at the end."""
    try:
        return bytes(await stream.read(_CHUNK_BYTES))
    except EOFError:
        return b""


async def _reset(*streams: Any) -> None:
    with trio.CancelScope(shield=True), trio.move_on_after(1):
        for stream in streams:
            try:
                if stream is not None:
                    await stream.reset()
            except Exception:
                continue


async def _say_no(stream: Any, status: "pb.Status.ValueType") -> None:
    try:
        with trio.fail_after(RELAY_ANSWER_MS / 1000):
            await write_message(stream, pb.HopMessage(type=pb.HopMessage.STATUS, status=status))
            await stream.close()
    except Exception:
        await _reset(stream)
