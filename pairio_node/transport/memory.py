"""The in-memory transport: several nodes in one trio loop, joined by a `MemoryNetwork`.

For tests. It keeps the contract of base.py as the libp2p one does (one suite holds both to it), and
what goes wrong on a real network goes wrong here when it is told to, repeatably for one seed:
connections are lost and cut, frames come late, gossip is lost. No sockets, threads or real time:
with a clock that jumps, hours take milliseconds.
"""

import hashlib
import random
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any
from weakref import WeakSet

import trio

from pairio_node.places import Memberships, each_its_own
from pairio_node.transport.base import (
    CHANNEL_CONTROL,
    CHANNEL_SYNC,
    ByteStream,
    Frame,
    Gossip,
    PeerDown,
    PeerUp,
    Sink,
    TransportError,
    everybody,
)
from pairio_node.transport.memory_stream import MemoryStream, Pipe
from pairio_protocol.limits import CONNECTIONS_MAX, FRAME_SIZE_BYTES_MAX
from pairio_protocol.signing import SigningKey

__all__ = ["MemoryNetwork", "MemoryTransport"]

_QUEUE_FRAMES_MAX = 4096
_BACKOFF_S_MIN, _BACKOFF_S_MAX = 0.05, 30.0
_GOSSIP_INTERVAL_S = 0.1
_GOSSIP_QUEUE_MAX = 256
_SEEN_MAX = 4096


class MemoryNetwork:
    """What joins the transports. Faults may be set at any time; `seed` makes them repeatable."""

    def __init__(self, seed: int = 0) -> None:
        self.random = random.Random(seed)
        #: Every frame and every hop of gossip takes a time between these.
        self.delay_s: tuple[float, float] = (0.0, 0.0)
        #: Which share of gossip every hop loses, 0 to 1.
        self.gossip_loss = 0.0
        self.listening: dict[str, MemoryTransport] = {}
        self._cut: set[frozenset[str]] = set()
        self._last_number = 0

    def cut(self, a: str, b: str) -> None:
        """Let nothing through between two peers until `mend`."""
        self._cut.add(frozenset((a, b)))
        self.lose(a, b)

    def mend(self, a: str, b: str) -> None:
        """Let two peers reach each other again."""
        self._cut.discard(frozenset((a, b)))

    def lose(self, a: str, b: str) -> None:
        """Break the connection of two peers, once; whoever keeps it dials again."""
        for transport in self.listening.values():
            if transport.peer_id == a and b in transport.links:
                transport.links[b].break_off("connection lost")

    def is_cut(self, a: str, b: str) -> bool:
        """Say whether nothing goes through between two peers."""
        return frozenset((a, b)) in self._cut

    def new_address(self, peer: str) -> str:
        """Return a multiaddr that nobody else listens on."""
        self._last_number += 1
        return f"/memory/{self._last_number}/p2p/{peer}"

    def due_s(self) -> float:
        """Return when something that is sent now is there; queues keep the order."""
        return trio.current_time() + self.random.uniform(*self.delay_s)


class _Queue:
    """Frames under way to one peer on one channel, with the earliest time of each arrival."""

    def __init__(self) -> None:
        self.frames: deque[tuple[float, bytes]] = deque()
        self.wake = trio.Event()


class _Link:
    """A connection of two peers."""

    def __init__(self, a: str, b: str) -> None:
        self.queues = {(to, c): _Queue() for to in (a, b) for c in (CHANNEL_CONTROL, CHANNEL_SYNC)}
        self.pipes: WeakSet[Pipe] = WeakSet()
        self.gone = trio.Event()
        self.reason = ""

    def break_off(self, reason: str) -> None:
        """End the connection: what is under way is lost, streams are reset."""
        self.reason = self.reason or reason
        self.gone.set()
        for pipe in self.pipes:
            pipe.break_off()


class MemoryTransport:
    """See the module. Made with the raw 32-byte Ed25519 seed of the node; listens on `address`
    (one that such a transport had before), or on a new one."""

    def __init__(self, network: MemoryNetwork, seed: bytes, address: str = "") -> None:
        self.peer_id = SigningKey(seed).peer
        self.links: dict[str, _Link] = {}
        self._network = network
        self._address = address or network.new_address(self.peer_id)
        self._wanted: dict[str, tuple[str, ...]] = {}
        self._dialing: set[str] = set()
        self._handlers: dict[str, Callable[[ByteStream], Awaitable[None]]] = {}
        self._topics: dict[str, Callable[[str, bytes], bool]] = {}
        self._is_known: Callable[[str], bool] = everybody
        self._hearers: dict[str, Callable[[str], bool]] = {}
        self._announced: dict[str, deque[bytes]] = {}
        self._announced_wakes: dict[str, trio.Event] = {}
        self._inbox: deque[tuple[float, str, str, bytes]] = deque(maxlen=_GOSSIP_QUEUE_MAX)
        self._inbox_wake = trio.Event()
        self._seen: OrderedDict[bytes, None] = OrderedDict()
        self._counters: Counter[str] = Counter()
        self._nursery: trio.Nursery | None = None
        self._sink: Sink | None = None

    # -- life -----------------------------------------------------------------------------

    @asynccontextmanager
    async def running(self, sink: Sink) -> AsyncIterator[None]:
        """Listen and serve while the block runs; events go to `sink`."""
        self._sink = sink
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self._network.listening[self._address] = self
            nursery.start_soon(self._gossip_in)
            try:
                yield
            finally:
                self._nursery = None
                del self._network.listening[self._address]
                for link in self.links.values():
                    link.break_off("the other side stopped")
                nursery.cancel_scope.cancel()

    def addresses(self) -> tuple[str, ...]:
        """Return the one multiaddr, with /p2p/."""
        return (self._address,)

    def relays(self) -> dict[str, Any]:
        """There are none in memory."""
        return {"relays": [], "relay": None}

    def counters(self) -> dict[str, int]:
        """Return what was sent, received, refused."""
        return dict(self._counters)

    def connected(self) -> frozenset[str]:
        """Return the peers that are up."""
        return frozenset(p for p, link in self.links.items() if not link.gone.is_set())

    async def reach(self, peer: str, addresses: tuple[str, ...], *, keep: bool = True) -> None:
        """Connect, once. In memory all peers are pairio nodes: it is up then."""
        await trio.lowlevel.checkpoint()
        if not self._dial(peer, addresses):
            raise TransportError(f"{peer[-6:]} is not reached")

    def speakers(self, protocol: str) -> list[str]:
        """Return the peers that a stream of `protocol` may be opened to."""
        return [
            other.peer_id
            for other in self._network.listening.values()
            if other.peer_id in self.connected() and protocol in other._handlers
        ]

    # -- dialing --------------------------------------------------------------------------

    def keep_connected(self, peer: str, addresses: tuple[str, ...]) -> None:
        """Dial, and dial again after every loss, until `forget`."""
        if peer == self.peer_id or (
            peer not in self._wanted and len(self._wanted) >= CONNECTIONS_MAX
        ):
            return
        known = self._wanted.get(peer, ())
        self._wanted[peer] = tuple(dict.fromkeys([*addresses, *known]))[:8]
        if peer not in self._dialing and self._nursery is not None:
            self._dialing.add(peer)
            self._nursery.start_soon(self._dial_loop, peer)

    def forget(self, peer: str) -> None:
        """Do not dial a peer any more."""
        self._wanted.pop(peer, None)

    async def _dial_loop(self, peer: str) -> None:
        backoff_s = _BACKOFF_S_MIN
        try:
            while peer in self._wanted:
                await trio.lowlevel.checkpoint()
                if self._dial(peer, self._wanted[peer]):
                    began = trio.current_time()
                    await self.links[peer].gone.wait()
                    if trio.current_time() - began > 5:
                        backoff_s = _BACKOFF_S_MIN
                await trio.sleep(backoff_s * self._network.random.uniform(0.5, 1.5))
                backoff_s = min(backoff_s * 2, _BACKOFF_S_MAX)
        finally:
            self._dialing.discard(peer)

    def _dial(self, peer: str, addresses: tuple[str, ...]) -> bool:
        """Connect at one of the addresses; True when there is a connection."""
        if peer in self.links:
            return True
        for address in addresses:
            self._counters["dials"] += 1
            other = self._network.listening.get(address)
            if other is not None and other.peer_id == peer and self._may_join(other):
                link = _Link(self.peer_id, peer)
                self._join(link, peer)
                other._join(link, self.peer_id)
                return True
            self._counters["dial_failures"] += 1
        return False

    def _may_join(self, other: "MemoryTransport") -> bool:
        return (
            not self._network.is_cut(self.peer_id, other.peer_id)
            and self.peer_id not in other.links  # it has not seen the end of the last one yet
            and other._has_room(self.peer_id)
        )

    def prefer(
        self, is_known: Callable[[str], bool], memberships: Memberships = each_its_own
    ) -> None:
        """Say whose connections count: strangers get half of the places."""
        self._is_known = is_known

    def _has_room(self, peer: str) -> bool:
        strangers = sum(not self._is_known(other) for other in self.links)
        if not self._is_known(peer) and strangers >= CONNECTIONS_MAX:
            return False
        return len(self.links) < CONNECTIONS_MAX * 2

    def _join(self, link: _Link, peer: str) -> None:
        assert self._nursery is not None
        self.links[peer] = link
        self._nursery.start_soon(self._serve, link, peer)

    async def _serve(self, link: _Link, peer: str) -> None:
        """Hand on what a connection brings, until it is gone. Only then may the next one begin."""
        assert self._sink is not None
        try:
            await self._sink(PeerUp(peer, self._wanted.get(peer, ())))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._read, link, peer, CHANNEL_CONTROL)
                nursery.start_soon(self._read, link, peer, CHANNEL_SYNC)
                await link.gone.wait()
                nursery.cancel_scope.cancel()
            await self._sink(PeerDown(peer, link.reason))
        finally:
            del self.links[peer]

    # -- frames ---------------------------------------------------------------------------

    def send(self, peer: str, channel: str, frame: bytes) -> bool:
        """Queue a frame; False when the queue is full or there is no such connection."""
        link = self.links.get(peer)
        queue = link.queues[peer, channel] if link is not None else None
        if link is None or queue is None or link.gone.is_set() or _is_full(queue):
            self._counters["frames_dropped"] += 1
            return False
        if not 0 < len(frame) <= FRAME_SIZE_BYTES_MAX:
            raise ValueError(f"a frame of {len(frame)} bytes; 1 to {FRAME_SIZE_BYTES_MAX}")
        queue.frames.append((self._network.due_s(), frame))
        queue.wake.set()
        self._counters["frames_sent"] += 1
        return True

    async def _read(self, link: _Link, peer: str, channel: str) -> None:
        assert self._sink is not None
        queue = link.queues[self.peer_id, channel]
        while True:
            if not queue.frames:
                queue.wake = trio.Event()
                await queue.wake.wait()
            due_s, frame = queue.frames[0]
            await trio.sleep_until(due_s)
            queue.frames.popleft()
            self._counters["frames_received"] += 1
            await self._sink(Frame(peer, channel, frame))

    # -- streams --------------------------------------------------------------------------

    async def open_stream(self, peer: str, protocol: str) -> ByteStream:
        """Open a stream; raises TransportError."""
        await trio.lowlevel.checkpoint()
        link = self.links.get(peer)
        if link is None or link.gone.is_set():
            raise TransportError(f"no stream to {peer[-6:]}: not connected")
        other = next(
            t for t in self._network.listening.values() if t.links.get(self.peer_id) is link
        )
        handler = other._handlers.get(protocol)
        if handler is None or other._nursery is None:
            raise TransportError(f"no stream to {peer[-6:]}: it does not serve {protocol}")
        there, back = Pipe(), Pipe()
        link.pipes.update((there, back))
        other._nursery.start_soon(other._handle, handler, MemoryStream(self.peer_id, there, back))
        return MemoryStream(peer, back, there)

    def set_stream_handler(
        self, protocol: str, handler: Callable[[ByteStream], Awaitable[None]]
    ) -> None:
        """Serve a protocol; an exception of the handler resets its stream and is counted."""
        self._handlers[protocol] = handler

    async def _handle(
        self, handler: Callable[[ByteStream], Awaitable[None]], stream: MemoryStream
    ) -> None:
        try:
            await handler(stream)
        except Exception:
            self._counters["contained: stream handler"] += 1
            await stream.abort()

    # -- gossip ---------------------------------------------------------------------------

    def join_topic(
        self,
        topic: str,
        accept: Callable[[str, bytes], bool],
        may_hear: Callable[[str], bool] = everybody,
    ) -> None:
        """Take part in a topic; `accept(forwarder, data)` says what is passed on, `may_hear(peer)`
        to whom."""
        if topic in self._topics:
            return
        self._hearers[topic] = may_hear
        assert self._nursery is not None
        self._topics[topic] = accept
        self._announced[topic] = deque(maxlen=_GOSSIP_QUEUE_MAX)
        self._announced_wakes[topic] = trio.Event()
        self._nursery.start_soon(self._gossip_out, topic)

    def leave_topic(self, topic: str) -> None:
        """Take part in a topic no more; what waits to be published is dropped."""
        if self._topics.pop(topic, None) is not None:
            self._announced.pop(topic)
            self._announced_wakes.pop(topic).set()

    def announce(self, topic: str, data: bytes) -> None:
        """Publish, paced; the oldest waiting frames are dropped when too many wait."""
        if topic in self._topics:
            self._announced[topic].append(data)
            self._announced_wakes[topic].set()

    async def _gossip_out(self, topic: str) -> None:
        queue = self._announced[topic]
        while self._announced.get(topic) is queue:
            if not queue:
                self._announced_wakes[topic] = trio.Event()
                await self._announced_wakes[topic].wait()
                continue
            data = queue.popleft()
            if self._is_news(data):
                self._counters["gossip_sent"] += 1
                self._spread(topic, data, "")
            await trio.sleep(_GOSSIP_INTERVAL_S)

    def _spread(self, topic: str, data: bytes, forwarder: str) -> None:
        """Flood: to every neighbour that takes part, but whom it came from."""
        for other in list(self._network.listening.values()):
            link = self.links.get(other.peer_id)
            if other.peer_id == forwarder or link is None or link.gone.is_set():
                continue
            if topic not in other._topics or other.links.get(self.peer_id) is not link:
                continue
            if not self._hearers[topic](other.peer_id):
                self._counters["gossip_withheld"] += 1
                continue
            if self._network.random.random() < self._network.gossip_loss:
                continue
            other._inbox.append((self._network.due_s(), topic, self.peer_id, data))
            other._inbox_wake.set()

    async def _gossip_in(self) -> None:
        assert self._sink is not None
        while True:
            if not self._inbox:
                self._inbox_wake = trio.Event()
                await self._inbox_wake.wait()
            await trio.sleep_until(self._inbox[0][0])
            _, topic, forwarder, data = self._inbox.popleft()
            if hashlib.sha256(data).digest() in self._seen:
                continue
            if not self._accepts(topic, forwarder, data):
                self._counters["gossip_refused"] += 1
                continue
            self._is_news(data)
            self._counters["gossip_received"] += 1
            self._spread(topic, data, forwarder)
            await self._sink(Gossip(topic, forwarder, data))

    def _accepts(self, topic: str, forwarder: str, data: bytes) -> bool:
        try:
            return len(data) <= FRAME_SIZE_BYTES_MAX and self._topics[topic](forwarder, data)
        except Exception:  # a validator with a bug accepts nothing; it ends nobody
            return False

    def _is_news(self, data: bytes) -> bool:
        """Note what went through here; say whether it is new."""
        name = hashlib.sha256(data).digest()
        if name in self._seen:
            return False
        self._seen[name] = None
        if len(self._seen) > _SEEN_MAX:
            self._seen.popitem(last=False)
        return True


def _is_full(queue: _Queue) -> bool:
    return len(queue.frames) >= _QUEUE_FRAMES_MAX
