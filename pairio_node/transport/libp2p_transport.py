"""The libp2p transport: TCP, Noise, Yamux; peers kept connected, and frames to and from them.

Between two peers lie two streams per channel, one opened by each side for what it sends. A peer is
up when our control stream is open and theirs has arrived. A frame is 4 bytes of length and the
data; length 0 is a keepalive. Traps and measurements: the patches module and DESIGN section 6.
"""

import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import trio
from libp2p import new_host
from libp2p.crypto.ed25519 import Ed25519PrivateKey
from libp2p.crypto.keys import KeyPair
from libp2p.crypto.x25519 import create_new_key_pair as new_x25519
from libp2p.custom_types import TProtocol
from libp2p.network.config import RetryConfig
from libp2p.peer.id import ID
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as Noise
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX
from libp2p.stream_muxer.yamux.yamux import Yamux
from multiaddr import Multiaddr

from pairio_node.places import Memberships, each_its_own
from pairio_node.transport import patches
from pairio_node.transport.base import (
    CHANNEL_CONTROL,
    CHANNEL_SYNC,
    ByteStream,
    Frame,
    PeerDown,
    PeerUp,
    Sink,
    StreamEnded,
    TransportError,
    everybody,
)
from pairio_node.transport.dialer import Dialer
from pairio_node.transport.libp2p_stream import Libp2pStream
from pairio_node.transport.listening import check_free, own_ips
from pairio_node.transport.multiaddrs import without_peer
from pairio_node.transport.others import OtherConnections
from pairio_node.transport.outbox import Outbox
from pairio_node.transport.relay import Relay, RelayBounds
from pairio_node.transport.relayed import Relayed
from pairio_node.transport.topics import Topics
from pairio_protocol.limits import CONNECTIONS_MAX, FRAME_SIZE_BYTES_MAX

__all__ = ["Libp2pTransport"]

_KEEPALIVE_S = 2.5
_SILENCE_S = 8.5  # three missed, and a second
_OPEN_S = 10.0
_DIAL_FAILURES_KEPT = 5  # in a row, before somebody else may have the place
_WRITE_S = 20.0
#: A peer needs one, and maybe another while the first is not known to be over.
_SYNC_STREAMS_MAX = 2
_COALESCE_BYTES = 256 * 1024
#: A connection that lasted so long is no sign that dialling again is in vain. Two nodes with one
#: key push each other out: they take turns that grow.
_STEADY_S = 20.0
_BACKOFF_S_MIN, _BACKOFF_S_MAX = 0.05, 30.0


@dataclass
class _Peer:
    """A connection: our sending queues, whether theirs has arrived, and the scope of its tasks."""

    id: str
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    queues: dict[str, Outbox] = field(
        default_factory=lambda: {CHANNEL_CONTROL: Outbox(), CHANNEL_SYNC: Outbox()}
    )
    wakes: dict[str, trio.Event] = field(
        default_factory=lambda: {CHANNEL_CONTROL: trio.Event(), CHANNEL_SYNC: trio.Event()}
    )
    connections: list[Any] = field(default_factory=list)
    sync_streams: int = 0
    opened: bool = False
    arrived: bool = False
    up: bool = False
    told_up: trio.Event = field(default_factory=trio.Event)
    gone: trio.Event = field(default_factory=trio.Event)
    reason: str = ""


class Libp2pTransport:
    """See the module. Made with the raw 32-byte Ed25519 seed of the node; `gossip_loss_percent` is
    for tests (docs/reference/settings.md). `relays` are those by way of which others reach it, with
    `relay` it is one itself."""

    def __init__(
        self,
        seed: bytes,
        listen: tuple[str, ...],
        gossip_loss_percent: int = 0,
        *,
        relays: tuple[str, ...] = (),
        relay: RelayBounds | None = None,
    ) -> None:
        patches.apply()
        private = Ed25519PrivateKey.from_bytes(seed)
        keys = KeyPair(private, private.get_public_key())
        self._listen = [Multiaddr(address) for address in listen]
        for address in self._listen:
            check_free(address)
        self._host = new_host(
            key_pair=keys,
            sec_opt={NOISE: Noise(keys, noise_privkey=new_x25519().private_key)},
            muxer_opt={TProtocol(YAMUX): Yamux},
        )
        network: Any = self._host.get_network()
        network.retry_config = RetryConfig(max_retries=0)  # who dials tries again, in its own time
        self.peer_id = str(self._host.get_id())
        self._is_known: Callable[[str], bool] = everybody
        self._peers: dict[str, _Peer] = {}
        self._wanted: dict[str, tuple[str, ...]] = {}
        self._dialing: set[str] = set()
        self._dial_failures: Counter[str] = Counter()  # in a row, by peer
        self._counters: Counter[str] = Counter()
        self._topics = Topics(self._host, self._counters, gossip_loss_percent)
        self._others = OtherConnections(self._host, self._is_pairio, self._counters)
        self._relayed = Relayed(self._host, self._others, self._counters, relays)
        self._dialer = Dialer(self._host, self._relayed, self._counters)
        self._relay: Relay | None = None
        if relay is not None:
            self._relay = Relay(self._host, self._others, self._counters, relay)
        self._nursery: trio.Nursery | None = None
        self._sink: Sink | None = None

    # -- life -----------------------------------------------------------------------------

    @asynccontextmanager
    async def running(self, sink: Sink) -> AsyncIterator[None]:
        """Listen and serve while the block runs; events go to `sink`."""
        self._sink = sink
        self._host.set_stream_handler(TProtocol(CHANNEL_CONTROL), self._on_control)
        self._host.set_stream_handler(TProtocol(CHANNEL_SYNC), self._on_sync)
        async with self._host.run(listen_addrs=self._listen):
            try:
                async with self._topics.serving(), trio.open_nursery() as nursery:
                    await self._topics.begin(nursery, sink)
                    self._nursery = nursery
                    if self._relayed.addresses():
                        nursery.start_soon(self._relayed.serve)
                    if self._relay is not None:
                        nursery.start_soon(self._relay.serve)
                    yield
                    self._nursery = None
                    nursery.cancel_scope.cancel()
            finally:  # stock closes under cancellation, and so leaves the port taken
                with trio.CancelScope(shield=True), trio.move_on_after(2):
                    await self._host.get_network().close()

    def addresses(self) -> tuple[str, ...]:
        """Return full multiaddrs with /p2p/, the ones other machines can dial first: by way of two
        relays, then directly, then by way of the rest."""
        found: list[str] = []
        for address in self._host.get_transport_addrs():
            text = str(address)
            if "/ip4/0.0.0.0/" in text:
                found += [text.replace("0.0.0.0", ip, 1) for ip in own_ips()]
            else:
                found.append(text)
        found.sort(key=lambda a: "/ip4/127." in a)
        direct = [f"{without_peer(a)}/p2p/{self.peer_id}" for a in found]
        relayed = self._relayed.addresses()
        return tuple(dict.fromkeys([*relayed[:2], *direct, *relayed[2:]]))

    def relays(self) -> dict[str, Any]:
        """Return what the relays of this node say, and what it does as one, for the status."""
        relay = self._relay.status() if self._relay is not None else None
        return {"relays": self._relayed.status(), "relay": relay}

    def counters(self) -> dict[str, int]:
        """Return what was sent, received, refused."""
        held = {f"contained: {where}": n for where, n in patches.contained.items()}
        return {**self._counters, **held, "gossip_withheld": self._topics.withheld}

    def connected(self) -> frozenset[str]:
        """Return the peers that are up."""
        return frozenset(p.id for p in self._peers.values() if p.up)

    # -- dialing ----------------------------------------------------------------------------

    def keep_connected(self, peer: str, addresses: tuple[str, ...]) -> None:
        """Dial, and dial again after every loss, until `forget`."""
        if peer == self.peer_id or (peer not in self._wanted and not self._has_place()):
            return
        known = self._wanted.get(peer, ())
        self._wanted[peer] = tuple(dict.fromkeys([*addresses, *known]))[:8]
        if peer not in self._dialing and self._nursery is not None:
            self._dialing.add(peer)
            self._nursery.start_soon(self._dial_loop, peer)

    def _has_place(self) -> bool:
        """Say whether one more may be dialled; whoever failed most gives up his place."""
        if len(self._wanted) < CONNECTIONS_MAX:
            return True
        away = [p for p in self._wanted if p not in self._peers]
        worst = max(away, key=lambda p: self._dial_failures[p], default=None)
        if worst is None or self._dial_failures[worst] < _DIAL_FAILURES_KEPT:
            return False
        self.forget(worst)
        return True

    def forget(self, peer: str) -> None:
        """Do not dial a peer any more."""
        self._wanted.pop(peer, None)
        self._dial_failures.pop(peer, None)

    async def _dial_loop(self, peer: str) -> None:
        backoff_s = _BACKOFF_S_MIN
        try:
            while peer in self._wanted:
                state = self._peers.get(peer)
                if state is None and await self._dialer.connect(peer, self._wanted.get(peer, ())):
                    state = self._ensure(peer)
                if state is None:
                    self._dial_failures[peer] += 1
                else:
                    self._dial_failures.pop(peer, None)
                    began = trio.current_time()
                    await state.gone.wait()
                    if trio.current_time() - began > _STEADY_S:
                        backoff_s = _BACKOFF_S_MIN
                # Two that dial each other at once would meet again and again without jitter.
                await trio.sleep(backoff_s * random.uniform(0.5, 1.5))
                backoff_s = min(backoff_s * 2, _BACKOFF_S_MAX)
        finally:
            self._dialing.discard(peer)

    async def reach(self, peer: str, addresses: tuple[str, ...], *, keep: bool = True) -> None:
        """Connect, once, to a peer that need not be a pairio node. Raises TransportError."""
        if keep:
            self._others.keep(peer)
        if not self._dialer.is_linked(peer) and not await self._dialer.connect_any(peer, addresses):
            raise TransportError(f"{peer[-6:]} is not reached at {', '.join(addresses)}")

    def speakers(self, protocol: str) -> list[str]:
        """Return the peers that a stream of `protocol` may be opened to, as far as they have said
        what they speak."""
        store: Any = self._host.get_peerstore()
        connected = self._host.get_connected_peers()
        return [str(p) for p in connected if store.supports_protocols(p, [protocol])]

    # -- peers ------------------------------------------------------------------------------

    def _is_pairio(self, peer: str) -> bool:
        return peer in self._peers or peer in self._wanted

    def _ensure(self, peer: str) -> _Peer:
        state = self._peers.get(peer)
        if state is None:
            state = self._peers[peer] = _Peer(peer)
            assert self._nursery is not None
            self._nursery.start_soon(self._serve_peer, state)
        return state

    async def _serve_peer(self, state: _Peer) -> None:
        """Open our control stream and write to it, until the connection is gone."""
        try:
            with state.scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._write_loop, state, CHANNEL_CONTROL)
                    nursery.start_soon(self._write_loop, state, CHANNEL_SYNC)
                    nursery.start_soon(self._give_up_half_open, state)
            if self._nursery is not None:
                if state.up and self._sink is not None:
                    state.up = False
                    await self._sink(PeerDown(state.id, state.reason))
                with trio.move_on_after(1):
                    await self._disconnect(state)
        finally:  # only now may the next connection begin
            state.up = False
            del self._peers[state.id]
            state.gone.set()
            state.told_up.set()

    async def _give_up_half_open(self, state: _Peer) -> None:
        """A peer that opens no stream of its own has another connection with our peer id, or is
        none of ours: let go, dial again."""
        with trio.move_on_after(_SILENCE_S):
            await state.told_up.wait()
        if not state.up:
            self._lose(state, "it opened no control stream")

    async def _disconnect(self, state: _Peer) -> None:
        """Close what this connection used; the other side may have begun a new one already."""
        network: Any = self._host.get_network()
        for connection in network.get_connections(ID.from_base58(state.id)):
            if not state.connections or connection.muxed_conn in state.connections:
                try:
                    await connection.close()
                except Exception:
                    self._counters["disconnect_failures"] += 1

    def _lose(self, state: _Peer, reason: str) -> None:
        state.reason = state.reason or reason
        state.scope.cancel()

    async def _write_loop(self, state: _Peer, channel: str) -> None:
        queue = state.queues[channel]
        stream = None
        try:
            if channel == CHANNEL_SYNC:
                await state.wakes[channel].wait()
            stream = await self._open(state.id, channel)
            state.connections.append(stream.connection)
            if channel == CHANNEL_CONTROL:
                state.opened = True
                await self._maybe_up(state)
            while True:
                if not queue:
                    state.wakes[channel] = trio.Event()
                    with trio.move_on_after(_KEEPALIVE_S):
                        await state.wakes[channel].wait()
                data = self._coalesce(queue)
                with trio.fail_after(_WRITE_S):
                    await stream.send(data)
        except (TransportError, trio.TooSlowError) as error:
            self._lose(state, f"{channel}: {error}")
        finally:
            if stream is not None:
                with trio.CancelScope(shield=True), trio.move_on_after(0.5):
                    await stream.abort()

    def _coalesce(self, queue: Outbox) -> bytes:
        """Return queued frames as one write; a keepalive when there are none."""
        if not queue:
            return bytes(4)
        parts, size = [], 0
        while queue and size < _COALESCE_BYTES:
            frame = queue.take()
            parts += [len(frame).to_bytes(4, "big"), frame]
            size += len(frame)
            self._counters["frames_sent"] += 1
        return b"".join(parts)

    async def _maybe_up(self, state: _Peer) -> None:
        if state.opened and state.arrived and not state.up and self._sink is not None:
            state.up = True
            await self._sink(PeerUp(state.id, self._wanted.get(state.id, ())))
            state.told_up.set()

    def send(self, peer: str, channel: str, frame: bytes) -> bool:
        """Queue a frame; False when the queue is full or there is no such connection."""
        state = self._peers.get(peer)
        if state is None or not state.up or not state.queues[channel].has_room(frame):
            self._counters["frames_dropped"] += 1
            return False
        if not 0 < len(frame) <= FRAME_SIZE_BYTES_MAX:
            raise ValueError(f"a frame of {len(frame)} bytes; 1 to {FRAME_SIZE_BYTES_MAX}")
        state.queues[channel].put(frame)
        state.wakes[channel].set()
        return True

    async def _on_control(self, raw: Any) -> None:
        peer = str(raw.muxed_conn.peer_id)
        known = self._peers.get(peer)
        if known is not None and (known.arrived or known.scope.cancel_called):
            # The other side began anew and we have not noticed the loss yet.
            self._lose(known, "replaced by a newer connection")
            await known.gone.wait()
        if self._nursery is None or not self._has_room(peer):
            await Libp2pStream(raw, peer).abort()
            return
        state = self._ensure(peer)
        state.arrived = True
        state.connections.append(raw.muxed_conn)
        await self._maybe_up(state)
        try:
            await self._read_loop(state, Libp2pStream(raw, peer), CHANNEL_CONTROL, _SILENCE_S)
        finally:
            self._lose(state, "control stream ended")

    def prefer(
        self, is_known: Callable[[str], bool], memberships: Memberships = each_its_own
    ) -> None:
        """Say whose connections count: strangers get half of the places."""
        self._is_known = is_known
        if self._relay is not None:
            self._relay.memberships = lambda peer: memberships(peer) if is_known(peer) else ()

    def _has_room(self, peer: str) -> bool:
        """Say whether a peer may connect; of too many strangers the first gives up his place, so
        that neither members nor those who want to join are kept out."""
        if not self._is_known(peer) and peer not in self._wanted:
            strangers = [
                state
                for state in self._peers.values()
                if not (self._is_known(state.id) or state.id in self._wanted)
                and not state.scope.cancel_called
            ]
            if len(strangers) >= CONNECTIONS_MAX:
                self._counters["strangers_replaced"] += 1
                self._lose(strangers[0], "its place went to another stranger")
        return len(self._peers) < CONNECTIONS_MAX * 2

    async def _on_sync(self, raw: Any) -> None:
        peer = str(raw.muxed_conn.peer_id)
        state = self._peers.get(peer)
        stream = Libp2pStream(raw, peer)
        if state is None or state.sync_streams >= _SYNC_STREAMS_MAX:
            self._counters["streams_refused"] += state is not None
            await stream.abort()
            return
        state.sync_streams += 1
        try:
            await self._read_loop(state, stream, CHANNEL_SYNC, _SILENCE_S * 4)
        finally:
            state.sync_streams -= 1

    async def _read_loop(
        self, state: _Peer, stream: Libp2pStream, channel: str, silence_s: float
    ) -> None:
        try:
            while not state.gone.is_set():
                with trio.fail_after(silence_s):
                    size = int.from_bytes(await stream.receive_exactly(4), "big")
                    if size > FRAME_SIZE_BYTES_MAX:
                        self._counters["frames_refused"] += 1
                        self._lose(state, f"a frame of {size} bytes")
                        return
                    data = await stream.receive_exactly(size) if size else b""
                if not size:
                    continue
                await state.told_up.wait()
                if state.up and self._sink is not None:
                    self._counters["frames_received"] += 1
                    await self._sink(Frame(state.id, channel, data))
        except (StreamEnded, TransportError, trio.TooSlowError) as error:
            state.reason = state.reason or f"{channel}: {error or 'silence'}"
        finally:
            with trio.CancelScope(shield=True), trio.move_on_after(0.5):
                await stream.abort()

    # -- streams ----------------------------------------------------------------------------

    async def open_stream(self, peer: str, protocol: str) -> ByteStream:
        """Open a stream; raises TransportError."""
        return await self._open(peer, protocol)

    async def _open(self, peer: str, protocol: str) -> Libp2pStream:
        try:
            with trio.fail_after(_OPEN_S):
                raw = await self._host.new_stream(ID.from_base58(peer), [TProtocol(protocol)])
        except Exception as error:
            raise TransportError(f"no stream to {peer[-6:]}: {error!r}") from None
        self._others.note_use(peer)
        return Libp2pStream(raw, peer, self._others.note_use)

    def set_stream_handler(
        self, protocol: str, handler: Callable[[ByteStream], Awaitable[None]]
    ) -> None:
        """Serve a protocol; an exception of the handler resets its stream and is counted."""

        async def handle(raw: Any) -> None:
            peer = str(raw.muxed_conn.peer_id)
            self._others.note_use(peer)
            await handler(Libp2pStream(raw, peer, self._others.note_use))

        self._host.set_stream_handler(TProtocol(protocol), handle)

    # -- gossip -----------------------------------------------------------------------------

    def join_topic(
        self,
        topic: str,
        accept: Callable[[str, bytes], bool],
        may_hear: Callable[[str], bool] = everybody,
    ) -> None:
        """Take part in a topic; `accept(forwarder, data)` says what is passed on, `may_hear(peer)`
        to whom."""
        self._topics.join(topic, accept, may_hear)

    def leave_topic(self, topic: str) -> None:
        """Take part in a topic no more; what waits to be published is dropped."""
        self._topics.leave(topic)

    def announce(self, topic: str, data: bytes) -> None:
        """Publish, paced; the oldest waiting frames are dropped when too many wait."""
        self._topics.announce(topic, data)
