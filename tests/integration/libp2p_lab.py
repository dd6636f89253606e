"""Small programs for `test_libp2p_patches.py`: `python libp2p_lab.py NAME PATCHED(0|1) [PORT]`.

Each runs in a process of its own, so that one can run without the patches.
"""

import os
import socket
import struct
import sys
from contextlib import suppress
from typing import Any

import trio
from libp2p import new_host
from libp2p.crypto.ed25519 import Ed25519PrivateKey
from libp2p.crypto.keys import KeyPair
from libp2p.crypto.x25519 import create_new_key_pair as new_x25519
from libp2p.custom_types import TProtocol
from libp2p.io.trio import TrioTCPStream
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from libp2p.pubsub.gossipsub import PROTOCOL_ID_V11, GossipSub
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.pubsub import Pubsub
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as Noise
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX
from libp2p.stream_muxer.yamux.yamux import YAMUX_HEADER_FORMAT, Yamux, YamuxStream
from libp2p.tools.anyio_service import background_trio_service
from libp2p.utils import encode_varint_prefixed
from multiaddr import Multiaddr
from trio._socket import _SocketType as SocketType  # the socket below each connection

from pairio_node.transport import patches

LOOPBACK = [Multiaddr("/ip4/127.0.0.1/tcp/0")]


def _host(seed: bytes) -> Any:
    private = Ed25519PrivateKey.from_bytes(seed)
    keys = KeyPair(private, private.get_public_key())
    noise = Noise(keys, noise_privkey=new_x25519().private_key)
    return new_host(key_pair=keys, sec_opt={NOISE: noise}, muxer_opt={TProtocol(YAMUX): Yamux})


def _address(host: Any) -> PeerInfo:
    return PeerInfo(host.get_id(), host.get_transport_addrs())


async def victim() -> None:
    """A host with gossip and a handler that raises; prints its port, lives until stdin ends."""
    host = _host(b"V" * 32)
    gossip = GossipSub(
        protocols=[PROTOCOL_ID_V11], degree=3, degree_low=2, degree_high=6, heartbeat_interval=1
    )
    pubsub = Pubsub(host, gossip)

    async def boom(stream: Any) -> None:
        raise RuntimeError("a handler with a bug")

    host.set_stream_handler(TProtocol("/boom"), boom)
    async with (
        host.run(listen_addrs=LOOPBACK),
        background_trio_service(pubsub),
        background_trio_service(gossip),
    ):
        await pubsub.subscribe("t")
        print(str(host.get_transport_addrs()[0]).split("/")[4], flush=True)
        await trio.lowlevel.FdStream(os.dup(0)).receive_some(1)


def _frames() -> dict[str, bytes]:
    bad_key = rpc_pb2.Message(
        data=b"q",
        topicIDs=["t"],
        from_id=b"\x01\x02",
        seqno=b"1",
        signature=b"abc",
        key=b"\xde\xad\xbe\xef",
    )
    junk = rpc_pb2.RPC()
    junk.control.ihave.add(topicID="t").messageIDs.extend([b"zz-not-hex"])
    junk.control.prune.add(topicID="t", backoff=10**9).peers.add(peerID=b"\x01")
    return {
        "garbage": encode_varint_prefixed(b"\xff\xff\xff\x01garbage"),
        "bad_key": encode_varint_prefixed(rpc_pb2.RPC(publish=[bad_key]).SerializeToString()),
        "junk_control": encode_varint_prefixed(junk.SerializeToString()),
        "oversize": b"\xff\xff\xff\xff\x7f",
    }


async def attack(kind: str, port: int) -> None:
    """Connect as a stranger and send one hostile thing; wait for what the victim does."""
    host = _host(b"A" * 32)
    private = Ed25519PrivateKey.from_bytes(b"V" * 32)
    peer = ID.from_pubkey(private.get_public_key())
    async with host.run(listen_addrs=LOOPBACK):
        await host.connect(PeerInfo(peer, [Multiaddr(f"/ip4/127.0.0.1/tcp/{port}")]))
        protocol = TProtocol("/boom") if kind == "boom" else PROTOCOL_ID_V11
        stream = await host.new_stream(peer, [protocol])
        if kind != "boom":
            await stream.write(_frames()[kind])
        await trio.sleep(1)


async def read_exactly() -> None:
    """101 bytes from a reader that gives one at a time."""
    from libp2p.io import utils

    class Drip:
        async def read(self, n: int) -> bytes:
            return b"x"

    assert len(await utils.read_exactly(Drip(), 101)) == 101  # type: ignore[arg-type]


async def connect_time() -> None:
    """A connect takes far less than 250 ms."""
    a, b = _host(b"A" * 32), _host(b"B" * 32)
    async with a.run(listen_addrs=LOOPBACK), b.run(listen_addrs=LOOPBACK):
        began = trio.current_time()
        await a.connect(_address(b))
        assert trio.current_time() - began < 0.2


async def window_updates() -> None:
    """200 small reads send no window update; stock sends one each."""
    calls = 0
    stock = YamuxStream.send_window_update

    async def counted(self: Any, *args: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        return await stock(self, *args, **named)

    YamuxStream.send_window_update = counted  # type: ignore[method-assign]
    a, b = _host(b"A" * 32), _host(b"B" * 32)
    done = trio.Event()

    async def serve(stream: Any) -> None:
        for _ in range(200):
            await stream.read(64)
            await stream.write(b"k")
        done.set()

    b.set_stream_handler(TProtocol("/drip"), serve)
    async with a.run(listen_addrs=LOOPBACK), b.run(listen_addrs=LOOPBACK):
        await a.connect(_address(b))
        stream = await a.new_stream(b.get_id(), [TProtocol("/drip")])
        calls = 0
        for _ in range(200):
            await stream.write(b"x" * 64)
            await stream.read(1)
        await done.wait()
    assert calls < 20, f"{calls} window updates"


async def read_ahead() -> None:
    """Ten messages, each of a length and a body, take fewer reads of the socket than parts."""
    calls = 0
    stock = trio.SocketStream.receive_some

    async def counted(self: Any, max_bytes: int | None = None) -> Any:
        nonlocal calls
        calls += 1
        return await stock(self, max_bytes)

    trio.SocketStream.receive_some = counted  # type: ignore[method-assign]
    near, far = socket.socketpair()
    reader = TrioTCPStream(trio.SocketStream(trio.socket.from_stdlib_socket(near)))
    sender = trio.SocketStream(trio.socket.from_stdlib_socket(far))
    message = b"m" * 4096
    for _ in range(10):
        await sender.send_all(b"l" + message)
    for _ in range(10):
        assert await reader.read(1) == b"l"
        assert await reader.read(4096) == message
    assert calls < 20, f"{calls} reads of the socket"
    await sender.aclose()
    assert await reader.read(1) == b""
    await reader.close()


async def window_wait() -> None:
    """A writer goes on when its reader does, also after more than 5 s."""
    a, b = _host(b"A" * 32), _host(b"B" * 32)
    size, begun = 32 * 1024 * 1024, trio.Event()  # beyond any window that stock may open

    async def serve(stream: Any) -> None:
        await begun.wait()
        await trio.sleep(8)
        left = size
        while left:
            left -= len(await stream.read(left))
        await stream.write(b"k")

    b.set_stream_handler(TProtocol("/slow"), serve)
    async with a.run(listen_addrs=LOOPBACK), b.run(listen_addrs=LOOPBACK):
        await a.connect(_address(b))
        stream = await a.new_stream(b.get_id(), [TProtocol("/slow")])
        begun.set()
        await stream.write(bytes(size))
        answer = await stream.read(1)
    assert answer == b"k"  # unbound where the write failed: the host keeps its exceptions


class _Passes(trio.abc.Instrument):
    """Counts how often the loop looks for what is next."""

    def __init__(self) -> None:
        self.count = 0

    def before_io_wait(self, timeout: float) -> None:
        self.count += 1


async def few_turns() -> None:
    """16 MiB take few turns of the loop, and arrive as they were."""
    a, b = _host(b"A" * 32), _host(b"B" * 32)
    piece, pieces = os.urandom(256 * 1024), 64
    passes = _Passes()

    async def serve(stream: Any) -> None:
        for _ in range(pieces):
            await stream.write(piece)
        await stream.close()

    b.set_stream_handler(TProtocol("/bulk"), serve)
    async with a.run(listen_addrs=LOOPBACK), b.run(listen_addrs=LOOPBACK):
        await a.connect(_address(b))
        trio.lowlevel.add_instrument(passes)
        stream = await a.new_stream(b.get_id(), [TProtocol("/bulk")])
        came = bytearray()
        while len(came) < len(piece) * pieces:
            came += await stream.read(len(piece))
        trio.lowlevel.remove_instrument(passes)
    assert came == piece * pieces
    assert passes.count < 20 * pieces, f"{passes.count / pieces:.0f} turns for 256 KiB"


async def window_kept() -> None:
    """A peer that sends more than it may is let go; what it sent is not kept."""
    a, b = _host(b"A" * 32), _host(b"B" * 32)
    arrived, kept_bytes = trio.Event(), 0

    async def serve(stream: Any) -> None:
        nonlocal kept_bytes
        connection = stream.muxed_conn
        arrived.set()
        for _ in range(100):
            kept_bytes = max(kept_bytes, sum(map(len, connection.stream_buffers.values())))
            await trio.sleep(0.02)

    b.set_stream_handler(TProtocol("/full"), serve)
    async with a.run(listen_addrs=LOOPBACK), b.run(listen_addrs=LOOPBACK):
        await a.connect(_address(b))
        stream = await a.new_stream(b.get_id(), [TProtocol("/full")])
        await arrived.wait()
        muxed, data = stream.muxed_stream, bytes(60_000)
        header = struct.pack(YAMUX_HEADER_FORMAT, 0, 0, 0, muxed.stream_id, len(data))
        with suppress(Exception), trio.move_on_after(20):  # broken off at some frame
            for _ in range(400):
                await muxed.conn._write_frame(header + data)
        with trio.move_on_after(10):
            while b.get_network().get_connections(a.get_id()):  # noqa: ASYNC110
                await trio.sleep(0.02)
        is_let_go = not b.get_network().get_connections(a.get_id())
    assert 0 < kept_bytes <= 1024 * 1024, f"{kept_bytes} bytes kept"
    assert is_let_go


async def cancelled_write() -> None:
    """A write that is cancelled before anything of it has left spoils nothing."""
    a, b = _host(b"A" * 32), _host(b"B" * 32)
    send, waits = SocketType.send, trio.Event()
    is_held = False

    async def held(self: Any, *args: Any) -> Any:
        if is_held:
            waits.set()
            await trio.sleep_forever()
        return await send(self, *args)

    SocketType.send = held  # type: ignore[method-assign]

    async def serve(stream: Any) -> None:
        while True:
            await stream.write(await stream.read(1))

    b.set_stream_handler(TProtocol("/echo"), serve)
    async with a.run(listen_addrs=LOOPBACK), b.run(listen_addrs=LOOPBACK):
        await a.connect(_address(b))
        stream = await a.new_stream(b.get_id(), [TProtocol("/echo")])
        other = await a.new_stream(b.get_id(), [TProtocol("/echo")])
        await other.write(b"1")
        assert await other.read(1) == b"1"
        is_held = True
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.write, b"never sent")
            await waits.wait()
            nursery.cancel_scope.cancel()
        is_held = False
        with trio.fail_after(10):
            await other.write(b"2")
            answer = await other.read(1)
    assert answer == b"2"


async def _repeat(pubsub: Any) -> None:
    for number in range(100):
        await pubsub.publish("t", b"news %d" % number)
        await trio.sleep(0.2)


async def sender_record() -> None:
    """Gossip RPCs carry no signed peer record."""
    from libp2p.pubsub.pubsub import RpcQueue  # type: ignore[attr-defined]

    seen = []
    push = RpcQueue.push

    def recorded(self: Any, rpc: Any, priority: bool = False) -> Any:
        result = push(self, rpc, priority)
        seen.append(rpc.HasField("senderRecord"))
        return result

    RpcQueue.push = recorded  # type: ignore[method-assign]
    hosts = [_host(b"A" * 32), _host(b"B" * 32)]
    gossips = [
        GossipSub(protocols=[PROTOCOL_ID_V11], degree=3, degree_low=2, degree_high=6) for _ in hosts
    ]
    subs = [Pubsub(h, g) for h, g in zip(hosts, gossips, strict=True)]
    async with (
        hosts[0].run(listen_addrs=LOOPBACK),
        hosts[1].run(listen_addrs=LOOPBACK),
        background_trio_service(subs[0]),
        background_trio_service(subs[1]),
        background_trio_service(gossips[0]),
        background_trio_service(gossips[1]),
    ):
        subscription = await subs[1].subscribe("t")
        await subs[0].subscribe("t")
        await hosts[0].connect(_address(hosts[1]))
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_repeat, subs[0])
                await subscription.get()
                nursery.cancel_scope.cancel()
    assert seen
    assert not any(seen)


def main() -> None:
    name, patched = sys.argv[1], sys.argv[2] == "1"
    if patched:
        patches.apply()
    if name.startswith("attack-"):
        trio.run(attack, name.removeprefix("attack-"), int(sys.argv[3]))
    else:
        trio.run(globals()[name])


if __name__ == "__main__":
    main()
