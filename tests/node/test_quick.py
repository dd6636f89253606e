"""The short way of bytes through libp2p gives what stock gives, and bounds what a peer may send."""

import random
import socket
import tracemalloc
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.io.trio import TrioTCPStream
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.stream_muxer.yamux.yamux import (
    FLAG_ACK,
    FLAG_FIN,
    FLAG_SYN,
    HEADER_SIZE,
    TYPE_DATA,
    TYPE_PING,
    TYPE_WINDOW_UPDATE,
)
from noise.backends.default.ciphers import ChaCha20Cipher
from noise.state import CipherState

from pairio_node.transport import quick
from pairio_node.transport.base import StreamEnded
from pairio_node.transport.libp2p_stream import Libp2pStream
from pairio_node.transport.quick import HEADER, WINDOW_BYTES_MAX

WINDOW_BYTES = 256 * 1024
MESSAGE_BYTES_MAX = 65_535


def _cipher() -> Any:
    state = CipherState(SimpleNamespace(cipher_class=ChaCha20Cipher))
    state.initialize_key(bytes(32))
    return state


def _sealed(plain: bytes, sizes: list[int]) -> bytes:
    """Noise messages that hold `plain`, cut at `sizes` in turn."""
    cipher, said, at = _cipher(), b"", 0
    while at < len(plain):
        size = sizes[len(said) % len(sizes)]
        message = cipher.encrypt_with_ad(None, plain[at : at + size])
        said += len(message).to_bytes(2, "big") + message
        at += size
    return said


class _Raw:
    """A connection that is no socket: gives what is there in pieces, keeps what is written."""

    def __init__(self, data: bytes = b"", piece_bytes: int = 2**20) -> None:
        self._pieces = [data[i : i + piece_bytes] for i in range(0, len(data), piece_bytes)]
        self.written = b""
        self.is_closed = self.is_full = False

    async def read(self, n: int) -> bytes:
        return self._pieces.pop(0) if self._pieces else b""

    async def write(self, data: bytes) -> None:
        if self.is_full:
            await trio.sleep_forever()
        self.written += data

    async def close(self) -> None:
        self.is_closed = True


class _Lab:
    """A session above a connection, with streams 1 and 3 open."""

    def __init__(self, raw: Any) -> None:
        self.streams = {n: SimpleNamespace(recv_window=WINDOW_BYTES) for n in (1, 3)}
        self.buffers: dict[int, Any] = {n: bytearray() for n in self.streams}
        self.events = {n: trio.Event() for n in self.streams}
        self.noted: Counter[str] = Counter()
        muxer = SimpleNamespace(
            streams=self.streams, stream_buffers=self.buffers, stream_events=self.events
        )
        protocol = SimpleNamespace(cipher_state_decrypt=_cipher(), cipher_state_encrypt=_cipher())
        channel = SimpleNamespace(
            read_writer=SimpleNamespace(read_write_closer=raw),
            noise_state=SimpleNamespace(noise_protocol=protocol),
        )
        session: Any = SimpleNamespace(conn=channel, _drain=lambda n: b"")
        self.session = quick._Session(muxer, session, lambda what: self.noted.update([what]))

    async def others(self) -> list[tuple[Any, ...]]:
        """Read as stock does, to the end: the frames that were left to it, with their bodies."""
        found: list[tuple[Any, ...]] = []
        while True:
            try:
                head = HEADER.unpack(await self.session.read(HEADER_SIZE))
            except ConnectionClosedError:
                return found
            body = b""
            if head[1] == TYPE_DATA:
                while len(body) < head[4]:
                    body += await self.session.read(head[4] - len(body))
            found.append((*head[1:4], body))


def _frame(
    kind: int, flags: int, stream: int, body: bytes = b"", length: int | None = None
) -> bytes:
    return HEADER.pack(0, kind, flags, stream, len(body) if length is None else length) + body


async def test_frames_arrive_whole_wherever_they_are_cut() -> None:
    rng = random.Random(1)
    for _ in range(30):
        plain, streams, others = b"", {1: b"", 3: b""}, []
        for _ in range(40):
            stream, body = rng.choice((1, 3, 5)), rng.randbytes(rng.choice((0, 1, 700, 5000)))
            flags = rng.choice((0, 0, 0, FLAG_FIN, FLAG_ACK, FLAG_SYN))
            kind = rng.choice((TYPE_DATA, TYPE_DATA, TYPE_DATA, TYPE_WINDOW_UPDATE, TYPE_PING))
            body = body if kind == TYPE_DATA else b""
            plain += _frame(kind, flags, stream, body)
            if kind == TYPE_DATA and not flags and stream in streams:
                streams[stream] += body
            else:
                others.append((kind, flags, stream, body))
        sizes = [rng.choice((1, 11, 12, 13, 4000, 65_519)) for _ in range(5)]
        lab = _Lab(_Raw(_sealed(plain, sizes), rng.choice((1000, 70_000, 2**20))))
        assert await lab.others() == others
        assert {n: bytes(b) for n, b in lab.buffers.items()} == streams
        for number, open_here in lab.streams.items():
            assert open_here.recv_window == WINDOW_BYTES - len(streams[number])
            assert lab.events[number].is_set() == bool(streams[number])


@pytest.mark.parametrize("flags", [0, FLAG_SYN, FLAG_ACK, FLAG_FIN])
@pytest.mark.parametrize(
    ("stream", "allowed"), [(1, WINDOW_BYTES), (5, WINDOW_BYTES_MAX)], ids=["open", "closed"]
)
async def test_data_beyond_the_window_ends_the_connection(
    flags: int, stream: int, allowed: int
) -> None:
    allowed = WINDOW_BYTES if flags == FLAG_SYN else allowed
    for length, is_fine in ((allowed, True), (allowed + 1, False)):
        lab = _Lab(_Raw(_sealed(_frame(TYPE_DATA, flags, stream, length=length), [65_519])))
        with pytest.raises(ConnectionClosedError, match="closed" if is_fine else "may come"):
            await lab.session.read(HEADER_SIZE)
            await lab.session.read(1)
        assert lab.noted == ({} if is_fine else {"data beyond the window": 1})


async def test_what_was_read_opens_the_window_again_and_nothing_else_does() -> None:
    body = bytes(WINDOW_BYTES // 2)
    lab = _Lab(_Raw(_sealed(_frame(TYPE_DATA, 0, 1, body) * 3, [65_519])))
    assert await lab.others() == []
    assert len(lab.buffers[1]) == WINDOW_BYTES
    assert lab.noted == {"data beyond the window": 1}


async def test_a_changed_message_ends_the_connection() -> None:
    said = bytearray(_sealed(_frame(TYPE_DATA, 0, 1, b"sound"), [65_519]))
    said[-1] ^= 1
    lab = _Lab(_Raw(bytes(said)))
    with pytest.raises(ConnectionClosedError, match="did not make"):
        await lab.session.read(HEADER_SIZE)
    assert not lab.buffers[1]


def _empty_messages(count: int) -> bytes:
    cipher = _cipher()
    messages = [cipher.encrypt_with_ad(None, b"") for _ in range(count)]
    return b"".join(len(message).to_bytes(2, "big") + message for message in messages)


@pytest.mark.parametrize(
    "said",
    [_sealed(_frame(TYPE_DATA, 0, 1) * 2000, [60_000]), _empty_messages(2000)],
    ids=["frames", "messages"],
)
async def test_thousands_that_hold_nothing_leave_others_their_turn(said: bytes) -> None:
    lab, turns, is_over = _Lab(_Raw(said)), 0, False
    async with trio.open_nursery() as nursery:

        async def look() -> None:
            nonlocal turns
            while not is_over:
                turns += 1
                await trio.lowlevel.checkpoint()

        nursery.start_soon(look)
        assert await lab.others() == []
        is_over = True
    assert turns >= 2000 // 100


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 40_000), st.integers(0, 60_000)), max_size=12))
def test_what_is_kept_for_a_reader_is_as_a_bytearray(steps: list[tuple[int, int]]) -> None:
    pieces, model, rng = quick._Pieces(b"before"), bytearray(b"before"), random.Random(3)
    for came, taken in steps:
        data = rng.randbytes(came)
        pieces.extend(memoryview(data))
        model.extend(data)
        assert (len(pieces), bool(pieces)) == (len(model), bool(model))
        assert pieces[:taken] == model[:taken]
        if taken % 2:
            assert pieces.take(taken) == model[:taken]
        else:
            del pieces[:taken]
        del model[:taken]
        assert bytes(pieces) == model
    pieces.clear()
    assert (len(pieces), bytes(pieces)) == (0, b"")


async def test_a_little_of_each_message_does_not_keep_the_messages() -> None:
    """One byte for a stream in each message, the rest for nobody."""
    filler = _frame(TYPE_PING, FLAG_ACK, 0) * 5000
    plain, count = _frame(TYPE_DATA, 0, 1, b"x") + filler, 100
    raw = _Raw(_sealed(plain * count, [len(plain)]), 70_000)
    lab = _Lab(raw)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        with pytest.raises(ConnectionClosedError):
            while True:
                await lab.session.read(HEADER_SIZE)
        kept = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert len(lab.buffers[1]) == count
    assert kept < 2 * len(plain)


def _tcp() -> tuple[RawConnection, socket.socket]:
    near, far = socket.socketpair()
    near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
    stream = trio.SocketStream(trio.socket.from_stdlib_socket(near))
    return RawConnection(TrioTCPStream(stream), initiator=True), far


async def _plain(far: socket.socket, size: int) -> bytes:
    """Read as the peer would until `size` bytes are decrypted."""
    cipher, plain = _cipher(), b""
    peer = trio.SocketStream(trio.socket.from_stdlib_socket(far))
    came = b""
    while len(plain) < size:
        came += await peer.receive_some()
        while len(came) >= 2 and len(came) >= 2 + int.from_bytes(came[:2], "big"):
            length = int.from_bytes(came[:2], "big")
            assert length <= MESSAGE_BYTES_MAX
            plain += cipher.decrypt_with_ad(None, came[2 : 2 + length])
            came = came[2 + length :]
    return plain


async def test_what_is_sent_can_be_read_whatever_its_size() -> None:
    raw, far = _tcp()
    lab, rng = _Lab(raw), random.Random(2)
    bodies = [rng.randbytes(size) for size in (0, 1, 65_507, 65_508, 65_519, 262_144)]
    expected = b"".join(b"header" + body for body in bodies)
    async with trio.open_nursery() as nursery:

        async def send() -> None:
            for body in bodies:
                await lab.session.send(b"header", memoryview(body))

        nursery.start_soon(send)
        assert await _plain(far, len(expected)) == expected
    await raw.close()
    far.close()


async def test_a_write_that_was_cancelled_before_it_left_is_as_if_never_begun() -> None:
    raw, far = _tcp()
    lab = _Lab(raw)
    with trio.move_on_after(0):
        await lab.session.write(b"never sent")
    await lab.session.write(b"sent")
    assert await _plain(far, 4) == b"sent"
    await raw.close()
    far.close()


async def test_a_write_that_was_broken_off_is_the_connections_last() -> None:
    raw, far = _tcp()
    lab = _Lab(raw)
    with trio.move_on_after(0.1) as scope:
        await lab.session.send(b"", memoryview(bytes(2**20)))
    assert scope.cancelled_caught
    with pytest.raises(ConnectionClosedError, match="broken off"):
        await lab.session.write(b"more")
    far.close()


async def test_through_a_relay_a_cancelled_write_is_the_last_too() -> None:
    """There nobody knows how much of it had left."""
    raw = _Raw()
    lab = _Lab(raw)
    await lab.session.write(b"sent")
    assert _cipher().decrypt_with_ad(None, raw.written[2:]) == b"sent"
    raw.is_full = True
    with trio.move_on_after(0.1):
        await lab.session.write(b"held")
    raw.is_full = False
    assert raw.is_closed
    with pytest.raises(ConnectionClosedError, match="broken off"):
        await lab.session.write(b"more")


async def test_frames_grow_while_the_socket_takes_them_and_shrink_when_it_does_not() -> None:
    near, far = socket.socketpair()
    stream = trio.SocketStream(trio.socket.from_stdlib_socket(near))
    lab = _Lab(RawConnection(TrioTCPStream(stream), initiator=True))
    least = lab.session.frame_bytes
    assert least + HEADER_SIZE == MESSAGE_BYTES_MAX - 16
    peer = trio.SocketStream(trio.socket.from_stdlib_socket(far))
    await lab.session.write(b"small ones say nothing about it")
    assert lab.session.frame_bytes == least
    await lab.session.send(b"", memoryview(bytes(least)))
    assert lab.session.frame_bytes == 2 * least
    with trio.move_on_after(0.1):
        await lab.session.send(b"", memoryview(bytes(2**22)))
    assert lab.session.frame_bytes == least
    await peer.aclose()
    await stream.aclose()


class _Chunks:
    """A libp2p stream that gives what it has in chunks, then ends."""

    def __init__(self, chunks: list[bytes]) -> None:
        self._chunks = chunks
        self.muxed_conn = None
        self.muxed_stream = SimpleNamespace(reset_received=False)

    async def read(self, n: int) -> bytes:
        return self._chunks.pop(0) if self._chunks else b""


async def test_a_stream_gives_exactly_as_much_as_is_asked_for() -> None:
    rng = random.Random(4)
    data = rng.randbytes(3000)
    for _ in range(50):
        cuts = sorted(rng.randrange(1, 3000) for _ in range(5))
        chunks = [data[a:b] for a, b in zip([0, *cuts], [*cuts, 3000], strict=True) if a < b]
        stream, came = Libp2pStream(_Chunks(chunks), "peer"), b""
        while len(came) < len(data):
            size = min(rng.choice((0, 1, 4, 700, 3000)), len(data) - len(came))
            part = await stream.receive_exactly(size)
            assert len(part) == size
            came += part
        assert came == data
        assert await stream.receive_exactly(0) == b""
        with pytest.raises(StreamEnded):
            await stream.receive_exactly(1)


async def test_a_thousand_frames_in_one_piece_leave_others_their_turn() -> None:
    stream, turns = Libp2pStream(_Chunks([bytes(1000)]), "peer"), 0
    async with trio.open_nursery() as nursery:

        async def look() -> None:
            nonlocal turns
            while True:
                turns += 1
                await trio.lowlevel.checkpoint()

        nursery.start_soon(look)
        for _ in range(1000):
            await stream.receive_exactly(1)
        nursery.cancel_scope.cancel()
    assert turns >= 1000 // 50
