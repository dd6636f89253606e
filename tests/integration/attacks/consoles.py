"""The door for consoles: who reads what a job says, and how many at once."""

from contextlib import suppress

import trio

from pairio_node.transport.base import LOGS, ByteStream, StreamEnded, TransportError
from pairio_protocol.codec import pack
from pairio_protocol.limits import LOG_STREAMS_PER_PEER_MAX
from tests.integration.attacks.crowd import KEYS, crowd, opened
from tests.integration.attacks.lab import Lab
from tests.integration.attacks.peers import Peer
from tests.integration.attacks.streams import waiting
from tests.integration.attacks.table import attack

CONSOLES = "The door for consoles"


async def _ask(peer: Peer, *asked: object) -> ByteStream:
    stream = await peer.transport.open_stream(peer.node, LOGS)
    data = pack(list(asked))
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


def _attempt(lab: Lab) -> str:
    return str(lab.job["attempts"][0]["attemptId"])


@attack(CONSOLES, "a stranger who knows an attempt", has="ids of a service and an attempt",
        does="asks for its console", counted="logs_refused")  # fmt: skip
async def _stranger(lab: Lab) -> None:
    try:
        answer = await _answer(await _ask(lab.stranger, lab.service, _attempt(lab), 0, True))
    except TransportError:  # reset before all was said
        answer = b""
    # Ended unread, or `refused` where some other service knows the peer.
    assert answer in (b"", b"\x02"), f"answered {answer!r}"


@attack(CONSOLES, "another service's member who knows a run", has="a role in another one",
        does="asks for its console while it goes on", counted="logs_refused")  # fmt: skip
async def _other(lab: Lab) -> None:
    async with waiting(lab) as job:
        asked = (job["serviceId"], job["attempts"][0]["attemptId"], 0, True)
        assert await _answer(await _ask(lab.reader, *asked)) == b"\x01", "members read nothing"
        answer = await _answer(await _ask(lab.guest, *asked))
        assert answer == b"\x02", f"answered {answer!r}"


@attack(CONSOLES, "a run of one service, asked for under another", has="a role in another one",
        does="asks for its console in the other's name",
        refused_by="answered `unknown`: runs of one service are none of another")  # fmt: skip
async def _under_another(lab: Lab) -> bool:
    async with waiting(lab) as job:
        attempt = job["attempts"][0]["attemptId"]
        answer = await _answer(await _ask(lab.guest, lab.other.service, attempt, 0, True))
        return answer == b"\x03"


@attack(CONSOLES, "a path for an attempt", has="role submit",
        does="asks for a file of the node's home",
        refused_by="answered `unknown`: attempts are names of runs, never paths")  # fmt: skip
async def _path(lab: Lab) -> bool:
    answer = await _answer(await _ask(lab.mallory, lab.service, "../../node.key", 0, False))
    return answer == b"\x03"


@attack(CONSOLES, "what is no request for a console", has="role submit",
        does="asks from before the beginning", counted="logs_refused")  # fmt: skip
async def _no_request(lab: Lab) -> None:
    answer = await _answer(await _ask(lab.mallory, lab.service, _attempt(lab), -1, True))
    assert answer == b"", f"answered {answer!r}"


@attack(CONSOLES, "a stranger's flood of streams for consoles", has="a connection",
        does="opens 100 and says nothing on them", counted="logs_refused")  # fmt: skip
async def _strangers_streams(lab: Lab) -> None:
    for _ in range(100):
        with suppress(TransportError), trio.move_on_after(5):
            await lab.visitor.transport.open_stream(lab.visitor.node, LOGS)
    answer = await _answer(await _ask(lab.honest, lab.service, _attempt(lab), 0, True))
    assert answer == b"\x03", "a member is not answered meanwhile"


@attack(CONSOLES, "flood of streams for consoles", has="role submit",
        does="opens 100 and says nothing on them", counted="log_streams_refused")  # fmt: skip
async def _streams(lab: Lab) -> None:
    opened: list[ByteStream] = []
    for _ in range(100):
        with suppress(TransportError), trio.move_on_after(5):
            stream = await lab.mallory.transport.open_stream(lab.mallory.node, LOGS)
            await stream.send(b"\0")
            opened.append(stream)
        if lab.counters()["log_streams_refused"]:
            break
    answer = await _answer(await _ask(lab.honest, lab.service, _attempt(lab), 0, True))
    assert answer == b"\x03", "a member is not answered meanwhile"
    for stream in opened:
        await stream.abort()


@attack(CONSOLES, "one member's flood of streams for consoles", has=f"role submit, {KEYS} keys",
        does="opens eight with each, and says nothing on them",
        counted="log_streams_refused")  # fmt: skip
async def _members_streams(lab: Lab) -> None:
    async with crowd(lab) as (_, keys):
        await opened(keys, LOGS, LOG_STREAMS_PER_PEER_MAX)
        answer = await _answer(await _ask(lab.honest, lab.service, _attempt(lab), 0, True))
        assert answer == b"\x03", "a member is not answered meanwhile"
