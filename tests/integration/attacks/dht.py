"""The door of the DHT: who asks, what is said to be held, and what holders give."""

import os
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any

import trio

from pairio.errors import PairioError
from pairio_node.dht.asker import KAD_PROTOCOL, read_frame, write_frame
from pairio_node.transport.base import ByteStream, StreamEnded, TransportError
from pairio_protocol.cid import DAG_CBOR, cid_of
from pairio_protocol.ids import request_id
from pairio_protocol.kad import KAD, Contact, Find, Found, Give, Given, Provide, Provided
from pairio_protocol.limits import (
    KAD_GIVEN_SIZE_BYTES_MAX,
    KAD_JOBS_MAX,
    KAD_JOBS_PER_PROVIDER_MAX,
    KAD_PROVIDERS_PER_MEMBER_MAX,
    KAD_QUESTION_SIZE_BYTES_MAX,
    KAD_STREAMS_PER_PEER_MAX,
)
from pairio_protocol.normalise import job_id_of
from pairio_protocol.records import Result
from pairio_protocol.segment import GENESIS, Segment
from tests.integration.attacks.crowd import KEYS, crowd, opened
from tests.integration.attacks.lab import Lab, until
from tests.integration.attacks.members import document, result, wish
from tests.integration.attacks.peers import Peer
from tests.integration.attacks.table import attack

DOOR = "The DHT: who asks and who tells"
HOLDERS = "The DHT: what others answer"
STRANGER = "refused: a DHT stream of a stranger"
NONE = "refused: a DHT message that is none, or too large"
BEYOND = "refused: a DHT provide beyond the bound"
NO_ANSWER = "refused: a DHT answer that is none, or too large"
IN_VAIN = "refused: what a DHT holder gave and is no result that counts"
WHERE = ("/ip4/127.0.0.1/tcp/4001",)


def _job() -> str:
    """Return the id of a job that nobody knows."""
    return cid_of(DAG_CBOR, os.urandom(32))


async def _asked(peer: Peer, *questions: Any) -> list[Any]:
    """Ask the node, one after the other on one stream; return the answers until it ends."""
    answers: list[Any] = []
    stream = None
    with suppress(StreamEnded, TransportError):
        stream = await peer.transport.open_stream(peer.node, KAD_PROTOCOL)
        for question in questions:
            with trio.fail_after(30):
                await write_frame(stream, question)
                answers.append(KAD.decode(await read_frame(stream, 2**20)))
    if stream is not None:
        await stream.abort()
    return answers


async def _holders(lab: Lab, job: str, service: str = "", asker: Peer | None = None) -> set[str]:
    """Return whom the node names as holders of a job to a member."""
    [found] = await _asked(asker or lab.reader, Find(service or lab.service, job))
    return {contact.peer for contact in found.providers}


# -- who asks ----------------------------------------------------------------------------------


def _questions(lab: Lab) -> dict[str, Any]:
    job = lab.job["jobId"]
    return {
        "find": Find(lab.service, job),
        "give": Give(lab.service, job, 0, ""),
        "provide": Provide(lab.service, (job,), WHERE),
    }


def _door(kind: str, who: str, name: str, has: str, counted: str) -> None:
    does = {
        "find": "asks who holds a result of one of its jobs",
        "give": "asks for the signed result",
        "provide": "says that he holds it",
    }[kind]

    @attack(DOOR, f"{kind} of {name}", has=has, does=does, counted=counted)
    async def attempt(lab: Lab) -> None:
        peer = lab.peers[who]
        answers = await _asked(peer, _questions(lab)[kind])
        assert answers in ([], [Found((), ())], [Given((), ())], [Provided(0)]), answers
        named = await _holders(lab, lab.job["jobId"])
        assert named == {lab.node.info["peerId"]}, "he is named as a holder"


for _kind in ("find", "give", "provide"):
    _refused = f"refused: a DHT {'provide' if _kind == 'provide' else 'question'} of no member"
    _door(_kind, "nobody", "a stranger", "a key of his own, the service's id", STRANGER)
    _door(_kind, "xavier", "a removed member", "a key that was on the list", STRANGER)
    _door(_kind, "guest", "another service's member", "a role in another one", _refused)


@attack(DOOR, "a provide of one service, looked for in another", has="a role in another one",
        does="says there that he holds a job of this one",
        refused_by="nobody hears of it here: what is noted for one stays there")  # fmt: skip
async def _elsewhere(lab: Lab) -> bool:
    job = _job()
    assert await _asked(lab.guest, Provide(lab.other.service, (job,), WHERE)) == [Provided(1)]
    there = await _holders(lab, job, lab.other.service, lab.honest)
    assert there == {lab.guest.key.peer}, "what a member says is not noted at all"
    return not await _holders(lab, job)


@attack(DOOR, "an honest member's provide, sent again", has="role submit, the bytes",
        does="sends them as his own, with the other's addresses",
        refused_by="he is noted himself: a holder is whoever's key the connection has")  # fmt: skip
async def _replayed(lab: Lab) -> bool:
    said = Provide(lab.service, (_job(),), lab.honest.transport.addresses()[:1])
    await _asked(lab.mallory, said)
    return await _holders(lab, said.jobs[0]) == {lab.mallory.key.peer}


@attack(DOOR, "what is no question", has="role submit",
        does="sends garbage, an empty frame, a frame of 4 GiB, and answers nobody asked for",
        counted=NONE)  # fmt: skip
async def _garbage(lab: Lab) -> None:
    large = (KAD_QUESTION_SIZE_BYTES_MAX + 1).to_bytes(4, "big")
    wrong = [b"\0\0\0\0", b"\xff\xff\xff\xff", large, b"\0\0\0\2\xc1\xc1"]
    wrong += [_frame(KAD.encode(Provided(1))), _frame(b"\x92\xa4find\x92\xa1x\xa1x")]
    before = lab.counters().get(NONE, 0)
    for data in wrong:
        with suppress(TransportError):
            stream = await lab.mallory.transport.open_stream(lab.mallory.node, KAD_PROTOCOL)
            await stream.send(data)
    assert await until(lambda: lab.counters()[NONE] >= before + len(wrong)), "not all are counted"


def _frame(data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + data


@attack(DOOR, "a question that never ends", has="role submit", does="sends half of one, and waits",
        counted="refused: a DHT question that did not come in time")  # fmt: skip
async def _half(lab: Lab) -> None:
    stream = await lab.mallory.transport.open_stream(lab.mallory.node, KAD_PROTOCOL)
    await stream.send(_frame(KAD.encode(Find(lab.service, _job())))[:-1])


@attack(DOOR, "flood of streams for the DHT", has="role submit",
        does="opens 40, and says nothing on them",
        counted="refused: a DHT stream beyond the bound")  # fmt: skip
async def _streams(lab: Lab) -> None:
    held = await opened([lab.mallory], KAD_PROTOCOL, 40)
    assert await _holders(lab, lab.job["jobId"]), "a member is not answered meanwhile"
    for stream in held:
        await stream.abort()


@attack(DOOR, "one member's flood of streams for the DHT", has=f"role submit, {KEYS} keys",
        does="opens four with each, and says nothing on them",
        counted="refused: a DHT stream beyond the bound")  # fmt: skip
async def _members_streams(lab: Lab) -> None:
    async with crowd(lab) as (_, keys):
        await opened(keys, KAD_PROTOCOL, KAD_STREAMS_PER_PEER_MAX)
        assert await _holders(lab, lab.job["jobId"]), "a member is not answered meanwhile"


@attack(DOOR, "flood of strangers' streams for the DHT", has="two keys of his own",
        does="opens 100, and says nothing on them", counted=STRANGER)  # fmt: skip
async def _strangers_streams(lab: Lab) -> None:
    held = await opened([lab.stranger, lab.visitor], KAD_PROTOCOL, 50)
    assert await _holders(lab, lab.job["jobId"]), "a member is not answered meanwhile"
    for stream in held:
        await stream.abort()


@attack(DOOR, "flood of provides", has="role submit",
        does="says that he holds more jobs than are noted of one", counted=BEYOND)  # fmt: skip
async def _provides(lab: Lab) -> None:
    chain = await lab.found("provides", lab.add("node", "submit"), lab.add("mallory", "submit"),
                            lab.add("honest", "submit"), lab.add("reader", "read"))  # fmt: skip
    jobs = [_job() for _ in range(KAD_JOBS_PER_PROVIDER_MAX + KAD_JOBS_MAX)]
    said = [
        Provide(chain.service, tuple(jobs[at : at + KAD_JOBS_MAX]), WHERE)
        for at in range(0, len(jobs), KAD_JOBS_MAX)
    ]
    await _asked(lab.mallory, *said)
    await _is_noted_beside(lab, chain.service)


@attack(DOOR, "one job's holders, all of one member", has=f"role submit, {KEYS} keys",
        does="says with each that he holds one job", counted=BEYOND)  # fmt: skip
async def _one_job(lab: Lab) -> None:
    async with crowd(lab) as (chain, keys):
        job = _job()
        noted = [await _asked(key, Provide(chain.service, (job,), WHERE)) for key in keys]
        assert noted.count([Provided(1)]) == KAD_PROVIDERS_PER_MEMBER_MAX, noted
        await _is_noted_beside(lab, chain.service, job, keys[0])


async def _is_noted_beside(
    lab: Lab, service: str, job: str = "", asker: Peer | None = None
) -> None:
    """Let an honest member say that he holds a job; he must be named."""
    job = job or _job()
    assert await _asked(lab.honest, Provide(service, (job,), WHERE)) == [Provided(1)], "no place"
    named = await _holders(lab, job, service, asker)
    assert lab.honest.key.peer in named, "he is not named"


# -- what others answer ------------------------------------------------------------------------

Handler = Callable[[ByteStream], Awaitable[Any]]


def _answering(peer: Peer, holders: Sequence[Contact], given: Sequence[Given]) -> Handler:
    """Return a member's end, which names these holders to whoever asks, and gives this."""

    async def serve(stream: ByteStream) -> None:
        with suppress(StreamEnded, TransportError):
            while True:
                question = KAD.decode(await read_frame(stream, 2**20))
                if isinstance(question, Find):
                    await write_frame(stream, Found(tuple(holders), ()))
                    continue
                for part in (*given, Given((), (), True)):
                    await write_frame(stream, part)

    peer.transport.set_stream_handler(KAD_PROTOCOL, serve)
    return serve


def _me(peer: Peer) -> Contact:
    return Contact(peer.key.peer, peer.transport.addresses()[:1])


async def _looked_for(lab: Lab, job: str, service: str) -> Any:
    """Have the node look for a job by its id; None when it finds none."""
    try:
        return await lab.call("GET", f"jobs/{job}?serviceName={service}")
    except PairioError:
        return None


async def _is_not_found(lab: Lab, job: str = "") -> None:
    began_s = time.monotonic()
    assert await _looked_for(lab, job or _job(), lab.service) is None, "it is found"
    took_s = time.monotonic() - began_s
    assert took_s < 10, f"the look-up took {took_s:.1f} s"
    _answer_no_more(lab)


def _answer_no_more(lab: Lab) -> None:
    for peer in lab.peers.values():
        peer.transport.set_stream_handler(KAD_PROTOCOL, lambda stream: stream.abort())


@attack(HOLDERS, "a stranger named as a holder", has="role submit",
        does="names a stranger, who so learns what is looked for",
        counted="refused: a DHT contact that is no member")  # fmt: skip
async def _stranger(lab: Lab) -> None:
    asked: list[str] = []

    async def listen(stream: ByteStream) -> None:
        asked.append(stream.peer)

    lab.stranger.transport.set_stream_handler(KAD_PROTOCOL, listen)
    _answering(lab.mallory, [_me(lab.stranger)], [])
    await _is_not_found(lab)
    assert not asked, "the stranger is asked"


def _bytes(name: str, does: str, *data: bytes) -> None:
    @attack(HOLDERS, name, has="role submit", does=does, counted=NO_ANSWER)
    async def attempt(lab: Lab) -> None:
        async def serve(stream: ByteStream) -> None:
            with suppress(StreamEnded, TransportError):
                await read_frame(stream, 2**20)
                for part in data:
                    await stream.send(part)
                await trio.sleep_forever()

        lab.mallory.transport.set_stream_handler(KAD_PROTOCOL, serve)
        await _is_not_found(lab)


_bytes("garbage from one who is asked", "answers in bytes that are no message",
       _frame(b"\xff" * 20))  # fmt: skip
_bytes("an answer of 4 GiB", "announces it, and sends some of it", b"\xff" * 4, bytes(1000))
_bytes("another answer than was asked for", "answers a question for holders with a result",
       _frame(KAD.encode(Given((), (b"x",)))))  # fmt: skip


def _gives(name: str, does: str, make: Callable[[Lab, str], Awaitable[Sequence[bytes]]]) -> None:
    @attack(HOLDERS, name, has="role submit", does=does, counted=IN_VAIN)
    async def attempt(lab: Lab) -> None:
        job = job_id_of(document(lab, f"the DHT: {name}"))
        _answering(lab.mallory, [_me(lab.mallory)], [Given((), tuple(await make(lab, job)))])
        await _is_not_found(lab, job)


async def _garbage_given(lab: Lab, job: str) -> Sequence[bytes]:
    return [os.urandom(200), b"", b"\xc1" * 100]


async def _forged(lab: Lab, job: str) -> Sequence[bytes]:
    """A result in a worker's name, in a segment in the worker's name, with a signature of none."""
    record = Result(result(lab, lab.cruncher, job))
    segment = lab.cruncher.segment(lab.service, lab.epoch, record).encode()
    return [segment[:-64] + bytes(64)]


async def _no_worker(lab: Lab, job: str) -> Sequence[bytes]:
    record = Result(result(lab, lab.mallory, job))
    return [lab.mallory.segment(lab.service, lab.epoch, record).encode()]


async def _true_ones(lab: Lab, job: str) -> Sequence[bytes]:
    """Take what the node itself gives of another job."""
    [given] = await _asked(lab.mallory, Give(lab.service, lab.job["jobId"], 0, ""))
    assert given.segments, "a member is given nothing"
    return list(given.segments)


async def _other_service(lab: Lab, job: str) -> Sequence[bytes]:
    """A result that a worker signed for the same job, in a service of the worker's own."""
    chain = await lab.found("elsewhere", lab.add("node", "submit"),
                            lab.add("cruncher", "compute"))  # fmt: skip
    data = result(lab, lab.cruncher, job, service=chain.service)
    return [lab.cruncher.segment(lab.service, lab.epoch, Result(data)).encode()]


_gives("garbage given for a result", "says to hold it, and gives bytes", _garbage_given)
_gives("a forged result, given by a holder", "gives one in a worker's name", _forged)
_gives("a result without the role compute, given by a holder", "gives one that he signed himself",
       _no_worker)  # fmt: skip
_gives("another job's result, given by a holder", "gives what the node itself gave him",
       _true_ones)  # fmt: skip
_gives("another service's result, given by a holder", "gives a worker's result of the same job",
       _other_service)  # fmt: skip


@attack(HOLDERS, "more than is taken of one holder", has="role submit", does="gives without end",
        counted=NO_ANSWER)  # fmt: skip
async def _without_end(lab: Lab) -> None:
    part = Given((), (bytes(45_000),))
    _answering(lab.mallory, [_me(lab.mallory)], [part] * (KAD_GIVEN_SIZE_BYTES_MAX // 45_000 + 2))
    await _is_not_found(lab)


@attack(HOLDERS, "all who are asked stall, but for one", has="six members' keys",
        does="takes each question and answers nothing, or names holders that have nothing",
        refused_by="the result is found in time, at the one who has it")  # fmt: skip
async def _stalls(lab: Lab) -> bool:
    names = ("second", "mallory", "reader", "yves", "root")
    members = [lab.add(name, "submit") for name in (*names, "honest", "node")]
    chain = await lab.found("stalls", *members, lab.add("cruncher", "compute"),
                            {"op": "app", "app": lab.chain.now.apps["hello_world"]})  # fmt: skip
    job, segments = _done_elsewhere(lab, chain.service, chain.epoch)

    async def stalls(stream: ByteStream) -> None:
        with suppress(StreamEnded, TransportError):
            await read_frame(stream, 2**20)
            await trio.sleep_forever()

    for name in names[:3]:
        lab.peers[name].transport.set_stream_handler(KAD_PROTOCOL, stalls)
    empty = [_me(lab.peers[name]) for name in names]
    for name in names[3:]:
        _answering(lab.peers[name], empty, [])
    _answering(lab.honest, [_me(lab.honest)], [Given((), tuple(segments))])
    began_s = time.monotonic()
    found = await _looked_for(lab, job, chain.service)
    _answer_no_more(lab)
    return found is not None and found["status"] == "completed" and time.monotonic() - began_s < 10


def _done_elsewhere(lab: Lab, service: str, epoch: int) -> tuple[str, list[bytes]]:
    """Return a job that the node knows nothing of, and the segments that show its result."""
    job, boot = document(lab, "done elsewhere"), os.urandom(16)
    request = lab.honest.segment(service, epoch, wish(job, gpus=0), boot=boot)
    assert request_id(service, lab.honest.key.peer, boot, 0)
    data = result(lab, lab.cruncher, job_id_of(job), service=service, code=job["code"])
    done = Segment.seal(
        lab.cruncher.key, service, os.urandom(16), 0, epoch, GENESIS, [Result(data)]
    )
    return job_id_of(job), [request.encode(), done.encode()]
