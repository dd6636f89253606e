"""Hostile frames over real libp2p: what no member signed goes no further, and ends nobody.

A is the test itself: a bare transport with the key of a member, connected to B alone. B and C are
nodes in processes of their own, in a line A-B-C.
"""

import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest
import trio
from libp2p.custom_types import TProtocol
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from multiaddr import Multiaddr

from pairio_node.transport import (
    CHANNEL_CONTROL,
    CHANNEL_SYNC,
    Frame,
    PeerUp,
    TransportEvent,
)
from pairio_node.transport.libp2p_transport import Libp2pTransport
from pairio_protocol.codec import pack
from pairio_protocol.limits import FRAME_SIZE_BYTES_MAX
from pairio_protocol.messages import MESSAGES, Ack, Presence, PresenceUpdate, Push, SyncSegments
from pairio_protocol.records import Cancel
from pairio_protocol.segment import GENESIS, Segment
from pairio_protocol.signing import SigningKey
from tests.integration.conftest import RunningNode, StartNode
from tests.integration.libp2p_lab import LOOPBACK, _host

pytestmark = pytest.mark.integration
KEY = SigningKey(b"A" * 32)


def _member_of(node: RunningNode) -> tuple[str, int]:
    """Make a service on a node with A as a member; return its id and epoch."""
    assert node.cli("service", "create", "lab").returncode == 0
    added = node.cli("service", "grant", "lab", KEY.peer, "--roles", "submit")
    assert added.returncode == 0, added.stderr
    service = node.get("services/lab")
    return service["serviceId"], service["epoch"]


def _segment(service: str, epoch: int) -> Segment:
    """Return a segment of A, the first of a new log."""
    record = Cancel(("nothing",), int(time.time() * 1000))
    return Segment.seal(KEY, service, os.urandom(16), 0, epoch, GENESIS, [record])


def _badly_signed(segment: Segment) -> bytes:
    wrong = bytes([segment.signature[0] ^ 1]) + segment.signature[1:]
    return replace(segment, signature=wrong).encode()


def _count(node: RunningNode, *words: str) -> int:
    """Return the sum of a node's counters whose names hold all of these words."""
    counters: dict[str, int] = node.get("status")["counters"]
    return sum(n for name, n in counters.items() if all(word in name for word in words))


async def _until(what: str, is_so: Callable[[], bool], step: Callable[[], Any] = int) -> None:
    with trio.move_on_after(30):
        while not is_so():
            step()
            await trio.sleep(0.1)  # house: waiting for another process
        return
    raise AssertionError(what)


class _A:
    """The bare transport, and what B answers."""

    def __init__(self) -> None:
        self.transport = Libp2pTransport(b"A" * 32, ("/ip4/127.0.0.1/tcp/0",))
        self.up = trio.Event()
        self.frames: list[bytes] = []

    async def sink(self, event: TransportEvent) -> None:
        if isinstance(event, PeerUp):
            self.up.set()
        if isinstance(event, Frame):
            self.frames.append(event.data)

    def acks(self) -> set[bytes]:
        found: set[bytes] = set()
        for data in self.frames:
            message = MESSAGES.decode(data)
            if isinstance(message, Ack):
                found.update(message.hashes)
        return found


async def _with_a(node: RunningNode, body: Callable[[_A], Awaitable[None]]) -> None:
    """Connect A with a node and do something."""
    a = _A()
    async with a.transport.running(a.sink):
        a.transport.keep_connected(node.info["peerId"], tuple(node.info["addresses"]))
        with trio.fail_after(20):
            await a.up.wait()
        await body(a)


async def test_a_badly_signed_segment_stops_at_the_first_node_and_a_good_one_does_not(
    start_node: StartNode,
) -> None:
    b = start_node("b", "--no-compute")
    c = start_node("c", "--no-compute", "--bootstrap", b.info["addresses"][0])
    service, epoch = _member_of(b)
    added = b.cli("service", "grant", "lab", c.info["peerId"], "--roles", "submit")
    assert added.returncode == 0, added.stderr
    epoch = b.get("services/lab")["epoch"]
    await _until("C takes part", lambda: bool(c.get("services")["services"]))
    topic = f"/pairio/1/{service}/0"

    async def inject(a: _A) -> None:
        a.transport.join_topic(topic, lambda *_: True)

        def both() -> None:
            a.transport.announce(topic, _badly_signed(_segment(service, epoch)))
            a.transport.announce(topic, _segment(service, epoch).encode())

        # Gossip may lose anything, and its mesh takes a while: again, until C has enough.
        await _until("good ones reach C", lambda: _count(c, "gossip_received") >= 5, both)
        assert a.transport.connected() == {b.info["peerId"]}

    await _with_a(b, inject)
    assert _count(b, "gossip_refused") >= 5
    assert _count(b, "refused: gossip that no member signed") == _count(b, "gossip_refused")
    assert _count(b, "gossip_received") >= 5
    assert _count(c, "gossip_refused") == 0
    assert _count(c, "refused") == 0, c.get("status")["counters"]


def _unsigned(service: str, epoch: int) -> list[tuple[str, bytes]]:
    """Frames of the right shape that nobody signed."""
    bad = _badly_signed(_segment(service, epoch))
    presence = Presence(
        service, KEY.peer, b"b" * 16, 2**50, 1, True, 1000, 1, 0, 1, 0, "none", ()
    ).sign(SigningKey(b"X" * 32))
    return [
        (CHANNEL_CONTROL, MESSAGES.encode(Push(bad, True))),
        (CHANNEL_SYNC, MESSAGES.encode(SyncSegments(service, (bad,), False))),
        (CHANNEL_CONTROL, MESSAGES.encode(PresenceUpdate((presence,)))),
    ]


_GARBAGE = [
    b"\xc1",
    os.urandom(1000),
    b"\x91" * 5000,  # nested lists
    b"\xdd\xff\xff\xff\xff",  # a list of 2^32
    pack(["push"]),
    pack(["push", 1, 2]),
    pack({"hello": 1}),
    bytes(FRAME_SIZE_BYTES_MAX),
]


async def test_garbage_and_unsigned_frames_are_counted_and_the_node_goes_on(
    start_node: StartNode,
) -> None:
    b = start_node("b", "--no-compute")
    service, epoch = _member_of(b)

    async def attack(a: _A) -> None:
        peer = b.info["peerId"]
        for data in _GARBAGE:
            for channel in (CHANNEL_CONTROL, CHANNEL_SYNC):
                assert a.transport.send(peer, channel, data)
        for channel, data in _unsigned(service, epoch):
            assert a.transport.send(peer, channel, data)
        good = _segment(service, epoch)
        assert a.transport.send(peer, CHANNEL_CONTROL, MESSAGES.encode(Push(good.encode(), True)))
        await _until("a good one is stored and acked", lambda: a.acks() == {good.hash})
        await _until(
            "what came on sync is counted as well",
            lambda: _count(b, "refused: malformed message") == 2 * len(_GARBAGE),
        )
        assert _count(b, "refused: bad signature on a segment") == 2
        assert _count(b, "refused", "presence") == 1
        assert a.transport.connected() == {peer}, "no reason to hang up"

    await _with_a(b, attack)
    assert b.process.poll() is None
    assert b.get("services/lab")["serviceId"] == service


async def test_an_oversized_frame_ends_its_connection_and_nothing_else(
    start_node: StartNode,
) -> None:
    b = start_node("b", "--no-compute")
    service, epoch = _member_of(b)
    too_long = (FRAME_SIZE_BYTES_MAX + 1).to_bytes(4, "big")
    host = _host(b"S" * 32)  # a stranger that speaks libp2p and nothing of ours

    async def wait(stream: Any) -> None:
        await trio.sleep_forever()

    host.set_stream_handler(TProtocol(CHANNEL_CONTROL), wait)
    async with host.run(listen_addrs=LOOPBACK):
        address = Multiaddr(b.info["addresses"][0].partition("/p2p/")[0])
        peer = ID.from_base58(b.info["peerId"])
        await host.connect(PeerInfo(peer, [address]))
        stream = await host.new_stream(peer, [TProtocol(CHANNEL_CONTROL)])
        await stream.write(too_long + b"x" * 1000)
        await _until("counted", lambda: _count(b, "frames_refused") == 1)
        await host.get_network().close()  # stock leaves sockets to the garbage collector

    async def attack(a: _A) -> None:
        second = await a.transport.open_stream(b.info["peerId"], CHANNEL_SYNC)
        await second.send(too_long)
        await _until("counted", lambda: _count(b, "frames_refused") == 2)
        good = _segment(service, epoch)
        frame = MESSAGES.encode(Push(good.encode(), True))
        again = _Again(a, b.info["peerId"], frame)
        await _until("A is back and heard", lambda: good.hash in a.acks(), again.send)

    await _with_a(b, attack)


class _Again:
    """Sends a frame over whatever connection there is now."""

    def __init__(self, a: _A, peer: str, frame: bytes) -> None:
        self._a, self._peer, self._frame = a, peer, frame

    def send(self) -> None:
        self._a.transport.send(self._peer, CHANNEL_CONTROL, self._frame)
