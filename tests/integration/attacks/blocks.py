"""The door for blocks: what is no content, more than is served, and wrong bytes for a CID.

How blocks are asked for is written down once here (`_ask`): a service, then lists of CIDs.
"""

import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import trio

from pairio_node.transport.base import BLOCKS, ByteStream, StreamEnded, TransportError
from pairio_protocol.cid import RAW, cid_of
from pairio_protocol.codec import pack
from pairio_protocol.messages import Held, Hold
from tests.integration.attacks.lab import Lab, until
from tests.integration.attacks.peers import Peer
from tests.integration.attacks.table import attack

BLOCKS_DOOR = "The door for blocks"
RESET = "the stream is reset; the next one is served"


async def _ask(peer: Peer, service: object, *wants: object) -> ByteStream:
    """Open a stream and say what is wanted."""
    stream = await peer.transport.open_stream(peer.node, BLOCKS)
    for part in (service, *wants):
        data = pack(part)
        await stream.send(len(data).to_bytes(4, "big") + data)
    return stream


async def _answer(stream: ByteStream) -> bytes:
    """Return the first byte of the answer; none when the stream was ended instead."""
    try:
        with trio.fail_after(20):
            return await stream.receive_exactly(1)
    except (StreamEnded, TransportError):
        return b""
    finally:
        await stream.abort()


async def _is_served(lab: Lab) -> bool:
    cid = lab.job["outputFileResults"][0]["cid"]
    return await _answer(await _ask(lab.honest, lab.service, [cid])) == b"\x01"


def _no_content(name: str, does: str, make: Callable[[Lab], tuple[object, ...]]) -> None:
    @attack(BLOCKS_DOOR, name, has="role submit", does=does, refused_by=RESET)
    async def attempt(lab: Lab) -> bool:
        try:
            answer = await _answer(await _ask(lab.mallory, *make(lab)))
        except TransportError:  # before all was said
            answer = b""
        assert answer == b"", f"answered {answer!r}"
        return await _is_served(lab)


_no_content("a path for a CID", "asks for files of the node's home",
            lambda lab: (lab.service, ["../../node.key"]))  # fmt: skip
_no_content("a path for a service", "asks in the name of a folder above the blocks",
            lambda lab: ("../..", [lab.job["consoleOutputCid"]]))  # fmt: skip
_no_content("2,000 CIDs in one request", "asks for all of them",
            lambda lab: (lab.service, [lab.job["consoleOutputCid"]] * 2000))  # fmt: skip
_no_content("a map for a list of CIDs", "asks for it",
            lambda lab: (lab.service, {"cid": lab.job["consoleOutputCid"]}))  # fmt: skip


@attack(BLOCKS_DOOR, "what the node holds for itself only", has="role submit, the CID",
        does="asks for a file that the owner has added and put into no job",
        refused_by="answered `missing`: members have what is their service's")  # fmt: skip
async def _owners(lab: Lab) -> bool:
    made = await lab.upload(b"the owner's own")
    return await _answer(await _ask(lab.mallory, lab.service, [made])) == b"\x00"


@attack(BLOCKS_DOOR, "flood of streams for blocks", has="a connection",
        does="opens 100 and says nothing more on them",
        counted="block_streams_refused")  # fmt: skip
async def _streams(lab: Lab) -> None:
    opened: list[ByteStream] = []
    for _ in range(100):
        with suppress(TransportError), trio.move_on_after(5):
            opened.append(await _ask(lab.visitor, lab.service))
        if lab.counters()["block_streams_refused"]:
            break
    assert await _is_served(lab), "a member is not served meanwhile"
    for stream in opened:
        await stream.abort()


# -- a holder that gives something else --------------------------------------------------------


def _holder(
    name: str, does: str, gives: Callable[[ByteStream], Awaitable[Any]], counted: str
) -> None:
    @attack(BLOCKS_DOOR, name, has="role submit", does=does, counted=counted)
    async def attempt(lab: Lab) -> None:
        async def serve(stream: ByteStream) -> None:
            try:
                await stream.receive_exactly(8)
                await gives(stream)
                await trio.sleep_forever()
            except (StreamEnded, TransportError):
                return

        cid, ticket = cid_of(RAW, os.urandom(32)), os.urandom(8).hex()
        lab.mallory.transport.set_stream_handler(BLOCKS, serve)
        lab.mallory.say(Hold(lab.service, ticket, (cid,), (), b""))
        held = await lab.mallory.hears(lambda m: isinstance(m, Held) and m.ticket == ticket, 60)
        assert held is not None, "it is not answered"
        assert not held.ok, "it says that it holds what there is not"
        answer = await _answer(await _ask(lab.honest, lab.service, [cid]))
        assert answer == b"\x00", "wrong bytes are given to others"


_holder("wrong bytes for a CID", "has the node fetch a block from him, and gives another",
        lambda stream: stream.send(b"\x01" + (5).to_bytes(4, "big") + b"wrong"),
        "block_holders_wrong")  # fmt: skip
_holder("a block of 4 GiB", "has the node fetch a block from him, and announces more than any has",
        lambda stream: stream.send(b"\x01\xff\xff\xff\xff" + bytes(1000)),
        "block_holders_wrong")  # fmt: skip


@attack(BLOCKS_DOOR, "a stranger as the holder of a service's content", has="role submit",
        does="has the node ask a stranger for blocks, who so learns of them",
        refused_by="only members are asked: the stranger hears nothing")  # fmt: skip
async def _stranger_holds(lab: Lab) -> bool:
    asked: list[str] = []

    async def serve(stream: ByteStream) -> None:
        asked.append(stream.peer)
        await stream.abort()

    for peer in (lab.stranger, lab.mallory):
        peer.transport.set_stream_handler(BLOCKS, serve)
    cid, ticket = cid_of(RAW, os.urandom(32)), os.urandom(8).hex()
    lab.mallory.say(Hold(lab.service, ticket, (cid,), (lab.stranger.key.peer,), b""))
    held = await lab.mallory.hears(lambda m: isinstance(m, Held) and m.ticket == ticket, 60)
    assert held is not None, "it is not answered"
    assert asked, "nobody was asked"
    return await until(lambda: len(asked) == 1) and not held.ok
