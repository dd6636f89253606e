"""Bytes through py-libp2p 0.8.1 in few steps and few copies; applied with the other patches.

Stock takes ten copies and some ten turns of the loop for 64 KB, two Noise messages where one would
do, and five layers of calls for each. Here a connection reads what the socket has, decrypts message
by message, and gives what plain data frames hold to their streams; every other frame is stock's to
handle. Writing is the same the other way round: up to 256 KiB are encrypted and sent at once.

Three things that stock does not do: data beyond the window ends the connection (stock keeps it,
however much it is); a cancelled write does not spoil the connection when nothing of it had left
(stock has used up a nonce); a peer that sends thousands of tiny frames takes turns with others.
"""

import struct
from collections import deque
from collections.abc import Callable
from typing import Any

import trio
from cryptography.exceptions import InvalidTag
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.io.trio import TrioTCPStream
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.network.stream.net_stream import NetStream
from libp2p.security.noise.io import MAX_PLAINTEXT_LENGTH, NoiseTransportReadWriter
from libp2p.security.secure_session import SecureSession
from libp2p.stream_muxer.yamux.yamux import (
    DEFAULT_WINDOW_SIZE,
    FLAG_SYN,
    HEADER_SIZE,
    TYPE_DATA,
    YAMUX_HEADER_FORMAT,
    Yamux,
    YamuxStream,
)

__all__ = ["HEADER", "WINDOW_BYTES_MAX", "apply", "frame_bytes"]

HEADER = struct.Struct(YAMUX_HEADER_FORMAT)
#: What one frame of ours holds: others wait while it is encrypted and sent, so that it is large
#: only where the socket takes it at once.
_FRAME_BYTES_MIN: int = MAX_PLAINTEXT_LENGTH - HEADER.size
_FRAME_BYTES_MAX = 256 * 1024
#: Taken from a socket at once: others wait while it is decrypted.
_READ_BYTES = 64 * 1024
_LENGTH_BYTES = 2
#: A piece from here on is kept as it came.
_LARGE_BYTES = 16 * 1024
#: What a peer is allowed to send ahead on one stream, at most.
WINDOW_BYTES_MAX = 1024 * 1024
#: Messages and frames that are looked at before others have their turn.
_STEPS_PER_TURN = 64
_CLOSE_S = 1.0
_NOTHING = memoryview(b"")


def apply(note: Callable[[str], None]) -> None:
    """Put it in place; `note` is told of what was contained."""
    _sealed_connections(note)
    _read_what_is_there()
    _without_locks()


def frame_bytes(connection: Any) -> int:
    """Return how much a Yamux connection should send in one frame now."""
    session = connection.secured_conn
    if isinstance(session, _Session):
        return session.frame_bytes
    return _FRAME_BYTES_MIN


class _Sealed:
    """The Noise messages of a connection."""

    def __init__(self, session: SecureSession) -> None:
        channel: Any = session.conn
        self._raw = channel.read_writer.read_write_closer
        protocol = channel.noise_state.noise_protocol
        self._incoming = protocol.cipher_state_decrypt
        self._outgoing = protocol.cipher_state_encrypt
        self._came = _NOTHING
        self._is_broken = False
        self.frame_bytes = _FRAME_BYTES_MIN

    async def receive(self) -> memoryview:
        """Return what the next message says. Raises what the connection does at its end."""
        while len(self._came) < _LENGTH_BYTES or len(self._came) < self._size():
            more = await self._raw.read(_READ_BYTES)
            if not more:
                raise ConnectionClosedError("closed by the peer", transport="tcp")
            self._came = memoryview(b"".join((self._came, more)) if self._came else more)
        size = self._size()
        sealed, self._came = self._came[_LENGTH_BYTES:size], self._came[size:] or _NOTHING
        try:
            return memoryview(self._incoming.decrypt_with_ad(None, sealed))
        except InvalidTag:
            said = "closed: a message that the peer did not make"
            raise ConnectionClosedError(said, transport="tcp") from None

    def _size(self) -> int:
        return _LENGTH_BYTES + int.from_bytes(self._came[:_LENGTH_BYTES], "big")

    async def send(self, head: bytes, body: memoryview) -> None:
        """Send `head` and `body`; one caller at a time."""
        if self._is_broken:
            raise ConnectionClosedError("a write was broken off", transport="tcp")
        nonce, sent = self._outgoing.n, 0
        sealed = memoryview(self._seal(head, body))
        tcp = _socket(self._raw)
        try:
            if tcp is None:
                await self._raw.write(bytes(sealed))
            else:
                sent = await tcp.send(sealed)
                self._fit(len(body), sent == len(sealed))
                while sent < len(sealed):
                    sent += await tcp.send(sealed[sent:])
        except (OSError, trio.ClosedResourceError) as error:
            raise ConnectionClosedError(f"connection closed: {error}", transport="tcp") from error
        except trio.Cancelled:
            if tcp is not None and not sent:
                self._outgoing.set_nonce(nonce)  # nobody has seen what was encrypted with it
            else:  # the peer has the half of a message: nothing fits after it
                self._is_broken = True
                with trio.CancelScope(shield=True), trio.move_on_after(_CLOSE_S):
                    await self._raw.close()
            raise

    def _fit(self, body_bytes: int, is_whole: bool) -> None:
        """Choose how much is sent at once, by how the socket took `body_bytes`."""
        if not is_whole:
            self.frame_bytes = _FRAME_BYTES_MIN
        elif body_bytes >= self.frame_bytes:
            self.frame_bytes = min(2 * self.frame_bytes, _FRAME_BYTES_MAX)

    def _seal(self, head: bytes, body: memoryview) -> bytes:
        room = MAX_PLAINTEXT_LENGTH - len(head)
        starts = range(room, len(body), MAX_PLAINTEXT_LENGTH)
        plain: list[bytes | memoryview] = [b"".join((head, body[:room]))]
        plain += [body[start : start + MAX_PLAINTEXT_LENGTH] for start in starts]
        sealed = []
        for piece in plain:
            message = self._outgoing.encrypt_with_ad(None, piece)
            sealed += [len(message).to_bytes(_LENGTH_BYTES, "big"), message]
        return b"".join(sealed)


def _socket(raw: Any) -> Any:
    """Return the TCP socket below a connection; None when it goes through a relay."""
    if isinstance(raw, RawConnection) and isinstance(raw.stream, TrioTCPStream):
        stream = raw.stream.stream
        return stream.socket if isinstance(stream, trio.SocketStream) else None
    return None


class _Pieces:
    """What came for a stream and is not read: a bytearray as far as stock uses one. That would be
    moved again and again while it is filled at one end and read at the other."""

    def __init__(self, data: bytes | bytearray = b"") -> None:
        self._large: deque[memoryview] = deque()
        self._small = bytearray(data)  # put together: each would keep the message that it came in
        self._size = len(data)

    def __len__(self) -> int:
        return self._size

    def __bytes__(self) -> bytes:
        return b"".join((*self._large, self._small))

    def __getitem__(self, part: slice) -> bytes:
        return bytes(self)[part]

    def __delitem__(self, part: slice) -> None:
        self.take(len(range(self._size)[part]))  # stock deletes at the front only

    def extend(self, data: bytes | memoryview) -> None:
        """Add what came."""
        self._size += len(data)
        if len(data) < _LARGE_BYTES:
            self._small += data
        else:
            self._small_to_large()
            self._large.append(memoryview(data))

    def clear(self) -> None:
        """Forget all."""
        self.__init__()  # type: ignore[misc]

    def take(self, n: int) -> bytes:
        """Return and forget the first `n` bytes, or what there is."""
        taken, left = [], n
        while left > 0 and self._size:
            if not self._large:
                self._small_to_large()
            piece = self._large.popleft()
            if len(piece) > left:
                self._large.appendleft(piece[left:])
                piece = piece[:left]
            taken.append(piece)
            left -= len(piece)
            self._size -= len(piece)
        return b"".join(taken)

    def _small_to_large(self) -> None:
        if self._small:
            self._large.append(memoryview(self._small))
            self._small = bytearray()


class _Session:
    """What Yamux reads from and writes to in place of the stock session."""

    def __init__(self, muxer: Any, session: SecureSession, note: Callable[[str], None]) -> None:
        self._muxer = muxer
        self._session = session
        self._note = note
        self._sealed = _Sealed(session)
        self._plain = memoryview(session._drain(None))  # read ahead while the muxer was agreed on
        self._left = 0  # of the body of the frame that has begun
        self._steps = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    @property
    def frame_bytes(self) -> int:
        """How much should be sent in one frame now."""
        return self._sealed.frame_bytes

    async def send(self, head: bytes, body: memoryview) -> None:
        """Send a frame."""
        await self._sealed.send(head, body)

    async def write(self, data: bytes) -> None:
        """Send whole frames."""
        await self._sealed.send(b"", memoryview(data))

    async def read(self, n: int | None = None) -> bytes:
        """Return the next header of a frame that is not plain data, or what comes of its body."""
        if self._left:
            piece = await self._body(self._left if n is None else n)
            return bytes(piece)
        while True:
            header = await self._header()
            _, kind, flags, stream_id, length = HEADER.unpack(header)
            stream = self._muxer.streams.get(stream_id)
            if kind == TYPE_DATA:
                self._check_window(stream, length, bool(flags & FLAG_SYN))
                self._left = length
            if kind != TYPE_DATA or flags or stream is None:
                return header
            stream.recv_window -= length
            while self._left:
                self._give(stream_id, await self._body(self._left))

    def _check_window(self, stream: Any, length: int, is_new: bool) -> None:
        if stream is not None:
            window = stream.recv_window
        else:  # what comes for a stream that was closed here is read, and thrown away
            window = DEFAULT_WINDOW_SIZE if is_new else WINDOW_BYTES_MAX
        if length > window:
            self._note("data beyond the window")
            raise ConnectionClosedError(f"{length} bytes where {window} may come", transport="tcp")

    def _give(self, stream_id: int, piece: memoryview) -> None:
        buffers = self._muxer.stream_buffers
        buffer = buffers.get(stream_id)
        if buffer is None:
            return  # closed meanwhile: nobody reads it
        if not isinstance(buffer, _Pieces):
            buffer = buffers[stream_id] = _Pieces(buffer)
        buffer.extend(piece)
        self._muxer.stream_events[stream_id].set()

    async def _header(self) -> bytes:
        await self._step()
        header = b""
        while len(header) < HEADER_SIZE:
            if not self._plain:
                await self._next()
            piece = self._plain[: HEADER_SIZE - len(header)]
            self._plain = self._plain[len(piece) :]
            header += piece
        return header

    async def _body(self, size: int) -> memoryview:
        """Return the next piece of a body."""
        while not self._plain:
            await self._next()
        piece = self._plain[: min(size, self._left)]
        self._plain = self._plain[len(piece) :]
        self._left -= len(piece)
        return piece

    async def _next(self) -> None:
        await self._step()
        self._plain = await self._sealed.receive()

    async def _step(self) -> None:
        self._steps += 1
        if self._steps >= _STEPS_PER_TURN:
            self._steps = 0
            await trio.lowlevel.checkpoint()


def _sealed_connections(note: Callable[[str], None]) -> None:
    """Put a `_Session` below each Yamux."""
    stock = Yamux.handle_incoming

    async def handle_incoming(self: Any) -> None:
        session = self.secured_conn
        if isinstance(session, SecureSession) and isinstance(
            session.conn, NoiseTransportReadWriter
        ):
            self.secured_conn = _Session(self, session, note)
        await stock(self)

    async def write_frame(self: Any, head: bytes, body: memoryview = _NOTHING) -> None:
        async with self._write_lock:
            if isinstance(self.secured_conn, _Session):
                await self.secured_conn.send(head, body)
            else:
                await self.secured_conn.write(head + body)

    Yamux.handle_incoming = handle_incoming
    Yamux._write_frame = write_frame


def _read_what_is_there() -> None:
    """Stock takes two locks, three turns of the loop and three copies for each read."""
    stock = YamuxStream.read

    async def read(self: Any, n: int | None = -1) -> bytes:
        connection = self.conn
        while n is not None and n > 0:
            is_over = self.recv_closed or self.closed or self.reset_received
            buffer = connection.stream_buffers.get(self.stream_id)
            if is_over or buffer is None or connection.event_shutting_down.is_set():
                break
            if buffer:
                if not isinstance(buffer, _Pieces):
                    buffer = connection.stream_buffers[self.stream_id] = _Pieces(buffer)
                data = buffer.take(n)
                await self._auto_tune_and_send_window_update(bytes_read=len(data))
                await trio.lowlevel.checkpoint()
                return data
            came = connection.stream_events[self.stream_id]
            if came.is_set():
                came = connection.stream_events[self.stream_id] = trio.Event()
            await came.wait()
        data = await stock(self, n)
        return bytes(data)

    YamuxStream.read = read


class _NoLock:
    """A lock that nobody needs."""

    async def __aenter__(self) -> None:
        return

    async def __aexit__(self, *_: object) -> None:
        return


def _without_locks() -> None:
    """Each lock is a turn of the loop, also when it is free. Stock locks the state of a stream to
    look at it, where nothing else can run meanwhile, and a socket that one task alone reads."""
    init_stream, init_socket = NetStream.__init__, TrioTCPStream.__init__

    def without_state_lock(self: Any, *args: Any, **named: Any) -> None:
        init_stream(self, *args, **named)
        self._state_lock = _NoLock()

    def without_read_lock(self: Any, *args: Any, **named: Any) -> None:
        init_socket(self, *args, **named)
        self.read_lock = _NoLock()

    NetStream.__init__ = without_state_lock
    TrioTCPStream.__init__ = without_read_lock
