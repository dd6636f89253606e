"""Bytes that are no messages."""

import os
import socket
from contextlib import suppress
from typing import Any

import trio
from libp2p.peer.id import ID
from libp2p.stream_muxer.yamux.yamux import TYPE_DATA

from pairio_node.transport.base import BLOCKS, CHANNEL_SYNC, TransportError
from pairio_node.transport.circuits import is_circuit
from pairio_node.transport.quick import HEADER
from pairio_protocol.codec import pack
from pairio_protocol.limits import FRAME_SIZE_BYTES_MAX
from tests.integration.attacks.lab import Lab, until
from tests.integration.attacks.table import attack

FRAMES = "Bytes"
MALFORMED = "refused: malformed message"
HAS = "a connection"


@attack(FRAMES, "frames that are no messages", has=HAS, does="sends garbage on both channels",
        counted=MALFORMED)  # fmt: skip
async def _garbage(lab: Lab) -> None:
    for data in (b"\xc1", os.urandom(1000), bytes(FRAME_SIZE_BYTES_MAX), pack(["push"]),
                 pack(["push", 1, 2]), pack({"hello": 1}), pack(["ack", [["x"]]])):  # fmt: skip
        lab.stranger.say_raw(data)
        lab.stranger.say_raw(data, sync=True)


@attack(FRAMES, "lists nested 60,000 deep", has=HAS, does="sends one frame", counted=MALFORMED)
async def _deep(lab: Lab) -> None:
    lab.stranger.say_raw(b"\x91" * FRAME_SIZE_BYTES_MAX)


@attack(FRAMES, "a list that claims 4 billion items", has=HAS, does="sends 5 bytes",
        counted=MALFORMED)  # fmt: skip
async def _claims(lab: Lab) -> None:
    lab.stranger.say_raw(b"\xdd\xff\xff\xff\xff")


@attack(FRAMES, "messages of kinds that there are not", has=HAS, does="sends 100 of them",
        counted="messages of unknown kinds")  # fmt: skip
async def _kinds(lab: Lab) -> None:
    for number in range(100):
        lab.stranger.say_raw(pack([f"sudo{number}", "now"]))


@attack(FRAMES, "a frame above the bound", has=HAS, does="announces 2 GiB",
        counted="frames_refused")  # fmt: skip
async def _oversized(lab: Lab) -> None:
    stream = await lab.stranger.transport.open_stream(lab.stranger.node, CHANNEL_SYNC)
    await stream.send((2**31).to_bytes(4, "big"))
    peer, me = lab.stranger.node, lab.stranger.transport
    assert await until(lambda: lab.counters().get("frames_refused", 0) > 0)
    assert await until(lambda: peer in me.connected(), 10), "the next connection works"
    await trio.sleep(0.5)  # house: waiting for another process


@attack(FRAMES, "data beyond the window", has=HAS, does="announces 16 MiB on a stream",
        counted="contained: data beyond the window")  # fmt: skip
async def _beyond(lab: Lab) -> None:
    peer, me = lab.stranger.node, lab.stranger.transport
    stream: Any = await me.open_stream(peer, CHANNEL_SYNC)
    muxed = stream._stream.muxed_stream
    await muxed.conn._write_frame(HEADER.pack(0, TYPE_DATA, 0, muxed.stream_id, 2**24))
    counted = "contained: data beyond the window"
    assert await until(lambda: lab.counters().get(counted, 0) > 0)
    assert await until(lambda: peer in me.connected(), 10), "the next connection works"
    await trio.sleep(0.5)  # house: waiting for another process


@attack(FRAMES, "flood of streams for sync", has=HAS, does="opens 40, and says nothing on them",
        counted="streams_refused")  # fmt: skip
async def _sync_streams(lab: Lab) -> None:
    for _ in range(40):
        with suppress(TransportError), trio.move_on_after(5):
            await lab.visitor.transport.open_stream(lab.visitor.node, CHANNEL_SYNC)


@attack(FRAMES, "flood of streams", has=HAS, does="opens 200, and does not say for what",
        counted="contained: streams beyond what is handled")  # fmt: skip
async def _streams(lab: Lab) -> None:
    network = lab.visitor.transport._host.get_network()
    opened = []
    for _ in range(200):
        with suppress(Exception), trio.move_on_after(5):
            opened.append(await network.new_stream(ID.from_base58(lab.visitor.node)))
    await lab.has_taken(lab.visitor)
    for stream in opened:
        with suppress(Exception), trio.move_on_after(1):
            await stream.reset()


@attack(FRAMES, "a request for blocks above the bound", has=HAS, does="announces 4 GiB of CIDs",
        refused_by="the stream is reset")  # fmt: skip
async def _blocks(lab: Lab) -> bool:
    stream = await lab.stranger.transport.open_stream(lab.stranger.node, BLOCKS)
    await stream.send(b"\xff\xff\xff\xff" + b"x" * 1000)
    try:
        with trio.fail_after(5):
            await stream.receive_exactly(1)
    except trio.TooSlowError:
        return False
    except Exception:
        return True
    return False


@attack(FRAMES, "bytes that are no libp2p", has="the port", does="speaks HTTP, and garbage",
        refused_by="the connection is closed")  # fmt: skip
async def _no_libp2p(lab: Lab) -> bool:
    direct = (a for a in lab.node.info["addresses"] if not is_circuit(a))
    port = int(next(direct).split("/")[4])
    for data in (b"GET / HTTP/1.1\r\n\r\n", os.urandom(500), b"\x13/multistream/1.0.0\n" * 50):
        with socket.create_connection(("127.0.0.1", port), 5) as connection:
            connection.sendall(data)
    return True
