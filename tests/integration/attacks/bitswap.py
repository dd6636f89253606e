"""A stranger who speaks Bitswap, as any IPFS node may: what is private, and what is too much."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from pairio_node.bitswap.wire import BITSWAP, Message, encode_message, read_message, want
from pairio_node.transport.base import ByteStream, TransportError
from pairio_protocol.cid import RAW, cid_bytes, cid_of
from pairio_protocol.limits import (
    BITSWAP_ENTRIES_MAX,
    BITSWAP_MESSAGE_SIZE_BYTES_MAX,
    BITSWAP_STREAMS_PER_PEER_MAX,
    BITSWAP_WANTS_PER_PEER_MAX,
    BITSWAP_WANTS_SIZE_BYTES_MAX,
)
from tests.integration.attacks.lab import Lab, until
from tests.integration.attacks.peers import Peer
from tests.integration.attacks.table import attack

PART = "Bitswap"
HAS = "a key of his own"
KNOWS = "a key of his own, the CIDs of a job, of its output and of the app"
NOTHING = cid_of(RAW, b"what is nowhere")
TOO_LARGE = "refused: a Bitswap message that is none, or too large"


async def _send(peer: Peer, data: bytes) -> ByteStream:
    stream = await peer.transport.open_stream(peer.node, BITSWAP)
    await stream.send(data)
    return stream


@asynccontextmanager
async def _answers(peer: Peer) -> AsyncIterator[list[Message]]:
    """Yield what the node answers to a peer, as it comes."""
    heard: list[Message] = []

    async def listen(stream: ByteStream) -> None:
        while True:
            heard.append(await read_message(stream, lambda: BITSWAP_MESSAGE_SIZE_BYTES_MAX))

    peer.transport.set_stream_handler(BITSWAP, listen)
    yield heard


async def _is_given_nothing(peer: Peer, cids: list[str]) -> bool:
    """Ask for the word that blocks are there, and for the blocks; say whether none of them is."""
    names = [*cids, NOTHING]
    async with _answers(peer) as heard:
        for count, is_have in ((1, True), (2, False)):
            await _send(peer, encode_message([want(cid, is_have=is_have) for cid in names]))
            # One after the other: what is asked for twice before it is answered has one answer.
            assert await until(lambda: _answered(heard) >= count * len(names)), heard  # noqa: B023
    said = [presence for message in heard for presence in message.presences]
    given = any(message.blocks for message in heard)
    return not given and all(not is_here for _, is_here in said)


def _answered(heard: list[Message]) -> int:
    return sum(len(message.presences) + len(message.blocks) for message in heard)


def _private(lab: Lab) -> list[str]:
    (app,) = lab.get("services/lab/apps")["apps"]
    cids = [lab.job["jobId"], lab.job["outputFileResults"][0]["cid"], app["bundle"]]
    return [cid for cid in cids if cid]


@attack(PART, "blocks of a service, asked for by their CIDs", has=KNOWS,
        does="wants them, and wants to know whether they are there",
        refused_by="the same answer as for blocks that are nowhere")  # fmt: skip
async def _blocks(lab: Lab) -> bool:
    return await _is_given_nothing(lab.stranger, _private(lab))


@attack(PART, "blocks of his own service, where nobody looks at roles", has="the role `read`",
        does="wants them over Bitswap",
        refused_by="the same answer as for blocks that are nowhere")  # fmt: skip
async def _member(lab: Lab) -> bool:
    return await _is_given_nothing(lab.reader, _private(lab))


@attack(PART, "blocks that nobody asked for", has=HAS, does="sends a hundred",
        counted="refused: a block that nobody asked for")  # fmt: skip
async def _unasked(lab: Lab) -> None:
    used = lab.get("status")["blocks"]["usedBytes"]
    blocks = [(b"\x01\x55\x12\x20", b"junk %d" % number) for number in range(100)]
    await _send(lab.stranger, encode_message(blocks=blocks))
    assert lab.get("status")["blocks"]["usedBytes"] == used


@attack(PART, "a message above the bound", has=HAS, does="announces 4 GiB, and half a MiB",
        counted=TOO_LARGE)  # fmt: skip
async def _oversized(lab: Lab) -> None:
    for announced in (b"\xff\xff\xff\xff\x0f", _varint(BITSWAP_WANTS_SIZE_BYTES_MAX + 1)):
        await _send(lab.stranger, announced + b"x" * 1000)


@attack(PART, "more wants in a message than are counted", has=HAS,
        does="sends half a MiB of entries", counted=TOO_LARGE)  # fmt: skip
async def _entries(lab: Lab) -> None:
    entry = b"\x0a\x03\x0a\x01\x01"
    entries = entry * (BITSWAP_ENTRIES_MAX + 1)
    body = b"\x0a" + _varint(len(entries)) + entries
    await _send(lab.stranger, _varint(len(body)) + body)


@attack(PART, "more wants than are kept", has=HAS, does="wants 2,000 blocks that are nowhere",
        counted="refused: a Bitswap want beyond the bound")  # fmt: skip
async def _wants(lab: Lab) -> None:
    many = [want(cid_of(RAW, b"%d" % n)) for n in range(BITSWAP_WANTS_PER_PEER_MAX * 2)]
    await _send(lab.stranger, encode_message(many))


@attack(PART, "garbage", has=HAS, does="sends bytes that are no message", counted=TOO_LARGE)
async def _garbage(lab: Lab) -> None:
    for data in (b"\x05\xff\xff\xff\xff\xff", b"\x02\x0a\x7f", b"\x04\x0a\x02\x0a\x00"):
        await _send(lab.stranger, data)
    raw = cid_bytes(NOTHING)
    await _send(lab.stranger, b"\x28\x0a\x26\x0a\x24" + raw[:30])  # and then silence


@attack(PART, "more streams than a peer may have", has=HAS, does="opens twenty, and is silent",
        counted="refused: a Bitswap stream beyond the bound")  # fmt: skip
async def _streams(lab: Lab) -> None:
    opened = []
    for _ in range(BITSWAP_STREAMS_PER_PEER_MAX + 12):
        with suppress(TransportError):  # reset before it was written to
            opened.append(await _send(lab.stranger, b"\x01"))
    for stream in opened:
        await stream.abort()


def _varint(n: int) -> bytes:
    out = bytearray()
    while n > 127:
        out.append(n & 127 | 128)
        n >>= 7
    return bytes(out + bytes([n]))
