"""The libp2p transport: TCP, Noise, Yamux, gossipsub 1.1; own dialer, keepalive and reconnect.

Between two peers lie two streams per channel, one opened by each side for what it sends. A peer is
up when our control stream is open and theirs has arrived. A frame is 4 bytes of length and the
data; length 0 is a keepalive. Traps and measurements: the patches module and DESIGN section 6.
"""

import hashlib
import random
import socket
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import psutil
import trio
from libp2p import new_host
from libp2p.crypto.ed25519 import Ed25519PrivateKey
from libp2p.crypto.keys import KeyPair
from libp2p.crypto.x25519 import create_new_key_pair as new_x25519
from libp2p.custom_types import TProtocol
from libp2p.network.config import RetryConfig
from libp2p.network.stream.exceptions import StreamEOF
from libp2p.peer.id import ID
from libp2p.pubsub.gossipsub import PROTOCOL_ID_V11
from libp2p.pubsub.pubsub import Pubsub
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as Noise
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX
from libp2p.stream_muxer.yamux.yamux import Yamux
from libp2p.tools.anyio_service import background_trio_service
from multiaddr import Multiaddr

from pairio_node.places import Memberships, each_its_own
from pairio_node.transport import patches
from pairio_node.transport.base import (
    CHANNEL_CONTROL,
    CHANNEL_SYNC,
    ByteStream,
    Frame,
    Gossip,
    PeerDown,
    PeerUp,
    Sink,
    StreamEnded,
    TransportError,
    everybody,
)
from pairio_node.transport.circuits import is_circuit
from pairio_node.transport.hearers import HeardBy
from pairio_node.transport.multiaddrs import without_peer
from pairio_node.transport.others import OtherConnections
from pairio_node.transport.outbox import Outbox
from pairio_node.transport.relay import Relay, RelayBounds
from pairio_node.transport.relayed import Relayed
from pairio_protocol.limits import CONNECTIONS_MAX, FRAME_SIZE_BYTES_MAX

__all__ = ["Libp2pTransport"]

_KEEPALIVE_S = 2.5
_SILENCE_S = 8.5  # three missed, and a second
_OPEN_S = 10.0
_DIAL_S = 5.0
_NEXT_DIAL_S = 0.15
#: A peer's own addresses are tried so long before his relays.
_DIRECT_FIRST_S = 1.0
_DIAL_FAILURES_KEPT = 5  # in a row, before somebody else may have the place
_WRITE_S = 20.0
#: A peer needs one, and maybe another while the first is not known to be over.
_SYNC_STREAMS_MAX = 2
_COALESCE_BYTES = 256 * 1024
_READ_BYTES = 256 * 1024
_STEPS_PER_TURN = 32
_NOTHING = memoryview(b"")
#: A connection that lasted so long is no sign that dialling again is in vain. Two nodes with one
#: key push each other out: they take turns that grow.
_STEADY_S = 20.0
_BACKOFF_S_MIN, _BACKOFF_S_MAX = 0.05, 30.0
_GOSSIP_INTERVAL_S = 0.1
_GOSSIP_QUEUE_MAX = 256


class _Stream:
    """A libp2p stream as a ByteStream; `note_use(peer)` is called with whatever goes through it."""

    def __init__(
        self, stream: Any, peer: str, note_use: Callable[[str], None] = lambda _: None
    ) -> None:
        self._stream = stream
        self._note_use = note_use
        self.peer = peer
        self.connection = stream.muxed_conn
        self._ahead = _NOTHING  # read and not asked for yet
        self._steps = 0

    async def send(self, data: bytes) -> None:
        self._note_use(self.peer)
        try:
            await self._stream.write(data)
        except Exception as error:  # libp2p raises whatever its layers do
            raise TransportError(f"stream to {self.peer[-6:]} broke: {error!r}") from None

    async def receive_exactly(self, size: int) -> bytes:
        ahead = self._ahead
        if size <= len(ahead):
            self._ahead = ahead[size:] or _NOTHING  # an empty part would keep the whole
            await self._maybe_a_turn()
            return bytes(ahead[:size])
        parts: list[bytes | memoryview] = [ahead]
        size -= len(ahead)
        self._ahead = _NOTHING
        while size > 0:
            try:
                chunk = await self._stream.read(_READ_BYTES)
            except StreamEOF:
                chunk = b""
            except Exception as error:
                raise TransportError(f"stream of {self.peer[-6:]} broke: {error!r}") from None
            if not chunk and self._stream.muxed_stream.reset_received:  # stock: read as an end
                raise TransportError(f"stream of {self.peer[-6:]} was reset")
            if not chunk:
                raise StreamEnded(f"{self.peer[-6:]} closed the stream")
            parts.append(memoryview(chunk)[:size])
            self._ahead = memoryview(chunk)[size:] or _NOTHING
            size -= len(parts[-1])
            self._note_use(self.peer)
        return b"".join(parts)

    async def _maybe_a_turn(self) -> None:
        """Leave the loop to others now and then: a peer may send a thousand frames in one piece."""
        self._steps += 1
        if self._steps % _STEPS_PER_TURN == 0:
            await trio.lowlevel.checkpoint()

    async def close(self) -> None:
        try:
            await self._stream.close()
        except Exception:  # closed, reset, connection gone: all the same to us now
            return

    async def abort(self) -> None:
        try:
            await self._stream.reset()
        except Exception:
            return


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
        self._gossip_loss_percent = gossip_loss_percent
        patches.apply()
        private = Ed25519PrivateKey.from_bytes(seed)
        keys = KeyPair(private, private.get_public_key())
        self._listen = [Multiaddr(address) for address in listen]
        for address in self._listen:
            _check_free(address)
        self._host = new_host(
            key_pair=keys,
            sec_opt={NOISE: Noise(keys, noise_privkey=new_x25519().private_key)},
            muxer_opt={TProtocol(YAMUX): Yamux},
        )
        network: Any = self._host.get_network()
        network.retry_config = RetryConfig(max_retries=0)  # who dials tries again, in its own time
        self.peer_id = str(self._host.get_id())
        self._gossip = HeardBy(
            protocols=[PROTOCOL_ID_V11],
            degree=4,
            degree_low=3,
            degree_high=8,
            heartbeat_interval=1,
            heartbeat_initial_delay=0.5,
            prune_back_off=5,
            do_px=False,
            adaptive_gossip_enabled=False,
            spam_protection_enabled=False,
            eclipse_protection_enabled=False,
        )
        self._is_known: Callable[[str], bool] = everybody
        self._hearers: dict[str, Callable[[str], bool]] = {}
        self._gossip.may_hear = lambda topic, peer: self._hearers.get(topic, everybody)(peer)
        self._pubsub = Pubsub(self._host, self._gossip, msg_id_constructor=_message_id)
        self._peers: dict[str, _Peer] = {}
        self._wanted: dict[str, tuple[str, ...]] = {}
        self._dialing: set[str] = set()
        self._dial_failures: Counter[str] = Counter()  # in a row, by peer
        self._topics: dict[str, deque[bytes]] = {}
        self._topic_wakes: dict[str, trio.Event] = {}
        self._topic_scopes: dict[str, trio.CancelScope] = {}
        self._forwarders: dict[bytes, str] = {}  # of accepted gossip that waits to be handed on
        self._counters: Counter[str] = Counter()
        self._others = OtherConnections(self._host, self._is_pairio, self._counters)
        self._relayed = Relayed(self._host, self._others, self._counters, relays)
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
                async with (
                    background_trio_service(self._pubsub),
                    background_trio_service(self._gossip),
                    trio.open_nursery() as nursery,
                ):
                    await self._pubsub.wait_until_ready()
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
                found += [text.replace("0.0.0.0", ip, 1) for ip in _own_ips()]
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
        return {**self._counters, **held, "gossip_withheld": self._gossip.withheld}

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
                if state is None and await self._dial(peer):
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

    async def _dial(self, peer: str) -> bool:
        """Connect at one of the known addresses; by way of a relay where none answers soon."""
        known = self._wanted.get(peer, ())
        direct = tuple(a for a in known if not is_circuit(a))
        if len(direct) == len(known):
            return await self._dial_at(peer, known)
        async with trio.open_nursery() as nursery:
            at_once = trio.Event()

            async def dial(addresses: tuple[str, ...]) -> None:
                if await self._dial_at(peer, addresses):
                    nursery.cancel_scope.cancel()
                at_once.set()

            if direct:
                nursery.start_soon(dial, direct)
                with trio.move_on_after(_DIRECT_FIRST_S):
                    await at_once.wait()
            for address in known:
                if is_circuit(address):
                    nursery.start_soon(dial, (address,))
                    await trio.sleep(_NEXT_DIAL_S)
        return self._is_linked(peer)

    async def _dial_at(self, peer: str, addresses: tuple[str, ...]) -> bool:
        """Connect at one address after the other. Stock `connect` dials the first that it ever knew
        of a peer, waits while somebody else does, and refuses for 60 s after a failure."""
        network: Any = self._host.get_network()
        for address in addresses:
            if self._is_linked(peer):
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

    async def _dial_any(self, peer: str, addresses: tuple[str, ...]) -> bool:
        """Connect at any of the addresses: the next is tried when one takes its time."""
        async with trio.open_nursery() as nursery:

            async def dial(address: str) -> None:
                if await self._dial_at(peer, (address,)):
                    nursery.cancel_scope.cancel()

            for address in addresses:
                nursery.start_soon(dial, address)
                await trio.sleep(_NEXT_DIAL_S)
        return self._is_linked(peer)

    async def reach(self, peer: str, addresses: tuple[str, ...], *, keep: bool = True) -> None:
        """Connect, once, to a peer that need not be a pairio node. Raises TransportError."""
        if keep:
            self._others.keep(peer)
        if not self._is_linked(peer) and not await self._dial_any(peer, addresses):
            raise TransportError(f"{peer[-6:]} is not reached at {', '.join(addresses)}")

    def _is_linked(self, peer: str) -> bool:
        network: Any = self._host.get_network()
        return bool(network.get_connections(ID.from_base58(peer)))

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
            await _Stream(raw, peer).abort()
            return
        state = self._ensure(peer)
        state.arrived = True
        state.connections.append(raw.muxed_conn)
        await self._maybe_up(state)
        try:
            await self._read_loop(state, _Stream(raw, peer), CHANNEL_CONTROL, _SILENCE_S)
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
        stream = _Stream(raw, peer)
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
        self, state: _Peer, stream: _Stream, channel: str, silence_s: float
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

    async def _open(self, peer: str, protocol: str) -> _Stream:
        try:
            with trio.fail_after(_OPEN_S):
                raw = await self._host.new_stream(ID.from_base58(peer), [TProtocol(protocol)])
        except Exception as error:
            raise TransportError(f"no stream to {peer[-6:]}: {error!r}") from None
        self._others.note_use(peer)
        return _Stream(raw, peer, self._others.note_use)

    def set_stream_handler(
        self, protocol: str, handler: Callable[[ByteStream], Awaitable[None]]
    ) -> None:
        """Serve a protocol; an exception of the handler resets its stream and is counted."""

        async def handle(raw: Any) -> None:
            peer = str(raw.muxed_conn.peer_id)
            self._others.note_use(peer)
            await handler(_Stream(raw, peer, self._others.note_use))

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
        if topic in self._topics:
            return
        self._hearers[topic] = may_hear
        self._topics[topic] = deque(maxlen=_GOSSIP_QUEUE_MAX)
        self._topic_wakes[topic] = trio.Event()
        assert self._nursery is not None

        def validate(forwarder: ID, message: Any) -> bool:
            if forwarder == self._host.get_id():
                return True
            if random.uniform(0, 100) < self._gossip_loss_percent:
                self._counters["gossip_lost_on_purpose"] += 1
                return False
            try:
                ok = len(message.data) <= FRAME_SIZE_BYTES_MAX and accept(
                    str(forwarder), message.data
                )
            except Exception:  # a raising validator ends the stock host
                ok = False
            self._counters["gossip_received" if ok else "gossip_refused"] += 1
            if ok:
                self._forwarders[_message_id(message)] = str(forwarder)
                while len(self._forwarders) > _GOSSIP_QUEUE_MAX:
                    del self._forwarders[next(iter(self._forwarders))]
            return ok

        self._pubsub.set_topic_validator(topic, validate, False)
        scope = self._topic_scopes[topic] = trio.CancelScope()
        self._nursery.start_soon(self._gossip_in, topic, scope)

    def leave_topic(self, topic: str) -> None:
        """Take part in a topic no more; what waits to be published is dropped."""
        if self._topics.pop(topic, None) is not None:
            self._topic_wakes.pop(topic)
            self._topic_scopes.pop(topic).cancel()

    async def _gossip_in(self, topic: str, scope: trio.CancelScope) -> None:
        """Hand on what comes in a topic, and publish, until it is left."""
        assert self._nursery is not None
        with scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._gossip_out, topic)
                await self._hand_on(topic)
        if topic not in self._topics:  # it was not joined again meanwhile
            self._pubsub.remove_topic_validator(topic)
            await self._pubsub.unsubscribe(topic)

    async def _hand_on(self, topic: str) -> None:
        subscription = await self._pubsub.subscribe(topic)
        mine = self._host.get_id().to_bytes()
        while True:
            message = await subscription.get()
            if message.from_id != mine and self._sink is not None:
                forwarder = self._forwarders.pop(_message_id(message), "")
                await self._sink(Gossip(topic, forwarder, message.data))

    def announce(self, topic: str, data: bytes) -> None:
        """Publish, paced; the oldest waiting frames are dropped when too many wait."""
        if topic in self._topics:
            self._topics[topic].append(data)
            self._topic_wakes[topic].set()

    async def _gossip_out(self, topic: str) -> None:
        queue = self._topics.get(topic)  # None: left before this began
        while queue is not None:
            if not queue:
                self._topic_wakes[topic] = trio.Event()
                await self._topic_wakes[topic].wait()
            data = queue.popleft()
            if not self._pubsub.peers:  # signing for nobody costs as much as for many
                self._counters["gossip_to_nobody"] += 1
                continue
            try:
                await self._pubsub.publish(topic, data)
                self._counters["gossip_sent"] += 1
            except Exception:  # gossip may lose anything; sync makes it good
                self._counters["gossip_lost"] += 1
            await trio.sleep(_GOSSIP_INTERVAL_S)


def _message_id(message: Any) -> bytes:
    """Name gossip by its content: stock names repeat after a restart, and are then dropped."""
    return hashlib.sha256(message.data).digest()


def _check_free(address: Multiaddr) -> None:
    """Say in words that a port is taken: libp2p's SO_REUSEPORT lets two nodes share one."""
    text = str(address)
    parts = text.split("/")
    if len(parts) < 5 or parts[1] not in ("ip4", "ip6") or parts[3] != "tcp":
        raise TransportError(
            f"cannot listen on {text!r}", hint="use a multiaddr such as /ip4/0.0.0.0/tcp/4101"
        )
    family = socket.AF_INET if parts[1] == "ip4" else socket.AF_INET6
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((parts[2], int(parts[4])))
        except (OSError, ValueError) as error:
            raise TransportError(
                f"cannot listen on {text}: {getattr(error, 'strerror', error)}",
                hint="another program has the port: choose another one with --listen",
            ) from None


def _own_ips() -> list[str]:
    found = [
        address.address
        for addresses in psutil.net_if_addrs().values()
        for address in addresses
        if address.family == socket.AF_INET
    ]
    return sorted(found, key=lambda ip: ip.startswith("127."))
