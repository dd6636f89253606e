"""A malicious member: forged and replayed records, his own logs, floods."""

import os
from dataclasses import replace

from pairio_protocol.cid import cid_of
from pairio_protocol.ids import LogId, request_id
from pairio_protocol.messages import (
    Forks,
    Held,
    Hold,
    Kept,
    LookedUp,
    Lookup,
    PresenceUpdate,
    SyncSegments,
)
from pairio_protocol.normalise import job_id_of
from pairio_protocol.records import Cancel, Result
from pairio_protocol.segment import GENESIS, Segment
from tests.integration.attacks.doors import NOTHING, presence
from tests.integration.attacks.lab import Lab, until
from tests.integration.attacks.members import document, result, status, wish
from tests.integration.attacks.peers import Peer
from tests.integration.attacks.table import attack

FORGED = "Forged and replayed records"
LOGS = "A member's own logs, and floods"
SELF = "refused: a record that contradicts itself"


@attack(FORGED, "a segment with a forged signature", has="role submit",
        does="writes in an honest member's name",
        counted="refused: bad signature on a segment")  # fmt: skip
async def _forged(lab: Lab) -> None:
    segment = lab.mallory.segment(lab.service, lab.epoch, Cancel((lab.job["requestId"],), 1))
    lab.mallory.push(replace(segment, log=segment.log._replace(author=lab.honest.key.peer)))


@attack(FORGED, "an honest segment, altered", has="a segment that an honest member signed",
        does="changes its epoch", counted="refused: bad signature on a segment")  # fmt: skip
async def _altered(lab: Lab) -> None:
    segment = lab.honest.segment(lab.service, lab.epoch, NOTHING)
    lab.mallory.push(replace(segment, epoch=segment.epoch - 1))


@attack(FORGED, "presence with a forged signature", has="role submit",
        does="says in a worker's name that it is busy",
        counted="refused: invalid presence")  # fmt: skip
async def _forged_presence(lab: Lab) -> None:
    data = presence(lab, lab.cruncher.key, lab.mallory.key, load=64)
    lab.mallory.say(PresenceUpdate((data,)))


@attack(FORGED, "a result with a forged signature", has="role compute",
        does="signs a result in another worker's name", counted=SELF)  # fmt: skip
async def _forged_result(lab: Lab) -> None:
    me = lab.stranger.node
    data = result(lab, lab.cruncher, job_id_of(document(lab)), worker=me)
    lab.cruncher.push(lab.cruncher.segment(lab.service, lab.epoch, Result(data)))


@attack(FORGED, "another worker's result in one's own log", has="role compute",
        does="passes a result off as his own", counted=SELF)  # fmt: skip
async def _stolen_result(lab: Lab) -> None:
    data = result(lab, lab.yves, job_id_of(document(lab)))
    lab.cruncher.push(lab.cruncher.segment(lab.service, lab.epoch, Result(data)))


@attack(FORGED, "a result under another job's run", has="role compute",
        does="signs a result for a run that its job does not have", counted=SELF)  # fmt: skip
async def _wrong_run(lab: Lab) -> None:
    data = result(lab, lab.cruncher, job_id_of(document(lab)), run=lab.job["runId"])
    lab.cruncher.push(lab.cruncher.segment(lab.service, lab.epoch, Result(data)))


@attack(FORGED, "a result of another service", has="role compute, a result that he signed there",
        does="writes it into this service's log", counted=SELF)  # fmt: skip
async def _foreign_result(lab: Lab) -> None:
    data = result(lab, lab.cruncher, job_id_of(document(lab)), service=lab.other.service)
    lab.cruncher.push(lab.cruncher.segment(lab.service, lab.epoch, Result(data)))


@attack(FORGED, "a failure by a limit that is no number", has="role compute",
        does="signs a result on which a comparison of numbers would fail",
        counted=SELF)  # fmt: skip
async def _limit(lab: Lab) -> None:
    job = job_id_of(document(lab))
    data = result(lab, lab.cruncher, job, status="failed", outputs={}, limit="time_ms=x")
    lab.cruncher.push(lab.cruncher.segment(lab.service, lab.epoch, Result(data)))


@attack(FORGED, "a request that is no job", has="role submit",
        does="asks for a document of another kind", counted=SELF)  # fmt: skip
async def _no_job(lab: Lab) -> None:
    record = wish({"type": "pairio/app", "v": 1})
    lab.mallory.push(lab.mallory.segment(lab.service, lab.epoch, record))


@attack(FORGED, "a signature from another service",
        has="a segment that an honest member signed there",
        does="puts this service's id on it",
        counted="refused: bad signature on a segment")  # fmt: skip
async def _crossed(lab: Lab) -> None:
    there = lab.honest.segment(lab.other.service, 0, NOTHING)
    lab.mallory.push(replace(there, service=lab.service))


@attack(FORGED, "a member of another service", has="role submit in another service of the node",
        does="writes into this one",
        counted="refused: a segment of somebody who is no member")  # fmt: skip
async def _guest(lab: Lab) -> None:
    lab.guest.push(lab.guest.segment(lab.service, lab.epoch, NOTHING))


@attack(FORGED, "sync of another service's member",
        has="role submit in another service of the node",
        does="asks for this one's segments", counted="refused: lookup of a stranger")  # fmt: skip
async def _guest_sync(lab: Lab) -> None:
    lab.guest.say(Lookup(lab.service, 1, (lab.job["jobId"],)))


@attack(FORGED, "a segment of a service that the node is not in", has="a service of his own",
        does="pushes its segments",
        counted="refused: a segment of a service that is not taken up")  # fmt: skip
async def _nowhere(lab: Lab) -> None:
    lab.mallory.push(lab.mallory.segment(cid_of(0x71, b"nowhere"), 0, NOTHING))


@attack(FORGED, "a canceled request, replayed", has="a request that its submitter has canceled",
        does="pushes its segment again",
        refused_by="it has no effect: what was canceled stays so")  # fmt: skip
async def _replay(lab: Lab) -> bool:
    boot, author = os.urandom(16), lab.honest
    first = author.segment(lab.service, lab.epoch, wish(document(lab, "canceled")), boot=boot)
    name = request_id(lab.service, author.key.peer, boot, 0)
    second = author.segment(
        lab.service, lab.epoch, Cancel((name,), 1), boot=boot, seq=1, prev=first.hash
    )
    author.push(first, second)
    assert await until(lambda: status(lab, name) == "canceled"), "it is not canceled"
    lab.keep(name)
    lab.mallory.push(first, first)
    lab.mallory.say(SyncSegments(lab.service, (first.encode(),), False))
    await lab.has_taken(lab.mallory)
    return status(lab, name) == "canceled"


# -- logs and floods ---------------------------------------------------------------------------


@attack(LOGS, "a forked log", has="role submit",
        does="signs two segments for one place of his log, and tells each to somebody else",
        counted="forked logs")  # fmt: skip
async def _fork(lab: Lab) -> None:
    boot = os.urandom(16)
    one = lab.mallory.segment(lab.service, lab.epoch, Cancel(("1",), 1), boot=boot)
    other = lab.mallory.segment(lab.service, lab.epoch, Cancel(("2",), 1), boot=boot)
    lab.mallory.push(one, other)
    after = lab.mallory.segment(
        lab.service, lab.epoch, wish(document(lab, "fork")), boot=boot, seq=1, prev=one.hash
    )
    lab.mallory.push(after)
    await lab.has_taken(lab.mallory)
    name = request_id(lab.service, lab.mallory.key.peer, boot, 1)
    assert status(lab, name) == "", "what follows a fork counts"


@attack(LOGS, "a proof of a fork that is none", has="two segments of an honest member",
        does="says that they contradict each other",
        counted="refused: a proof of a fork that is none")  # fmt: skip
async def _no_fork(lab: Lab) -> None:
    one = lab.honest.segment(lab.service, lab.epoch, NOTHING).encode()
    other = lab.honest.segment(lab.service, lab.epoch, NOTHING).encode()
    lab.mallory.say(Forks(lab.service, ((one, other), (one,), ())))


@attack(LOGS, "a log that begins nowhere", has="role submit",
        does="sends a first segment that names one before it",
        counted="refused: a first segment that follows another")  # fmt: skip
async def _nowhere_first(lab: Lab) -> None:
    lab.mallory.push(lab.mallory.segment(lab.service, lab.epoch, NOTHING, prev=bytes([7]) * 32))


@attack(LOGS, "segments parked beyond gaps, to exhaust memory", has="role submit",
        does="sends 400 segments of 400 logs whose beginnings never come",
        counted="segments beyond what is parked")  # fmt: skip
async def _gaps(lab: Lab) -> None:
    for _ in range(400):
        lab.mallory.push(
            lab.mallory.segment(lab.service, lab.epoch, NOTHING, seq=9, prev=bytes([7]) * 32)
        )


@attack(LOGS, "segments parked for a change that never comes", has="role submit",
        does="signs 300 segments under a later change",
        counted="segments beyond what is parked")  # fmt: skip
async def _epochs(lab: Lab) -> None:
    for _ in range(300):
        lab.mallory.push(lab.mallory.segment(lab.service, lab.epoch + 1000, NOTHING))


@attack(LOGS, "a segment under an older change than the one before it", has="role submit",
        does="goes back to a time when he had more roles",
        counted="segments that do not count")  # fmt: skip
async def _older(lab: Lab) -> None:
    boot = os.urandom(16)
    first = lab.mallory.segment(lab.service, lab.epoch, NOTHING, boot=boot)
    second = lab.mallory.segment(
        lab.service, lab.epoch - 1, NOTHING, boot=boot, seq=1, prev=first.hash
    )
    lab.mallory.push(first, second)


def _with_body(peer: Peer, lab: Lab, body: bytes, count: int) -> Segment:
    """Return a segment that a peer signed around any bytes."""
    log = LogId(peer.key.peer, os.urandom(16), 0)
    bare = Segment(lab.service, log, 0, lab.epoch, GENESIS, body, count, b"")
    return replace(bare, signature=peer.key.sign(bare._signed()))


@attack(LOGS, "malformed records in a signed segment", has="role submit",
        does="signs records that are none",
        counted="refused: malformed records in a signed segment")  # fmt: skip
async def _malformed(lab: Lab) -> None:
    for body, count in ((b"\xc1", 1), (b"\x91\x92\xa6cancel\x01", 1), (b"\x90", 5)):
        lab.mallory.push(_with_body(lab.mallory, lab, body, count))


@attack(LOGS, "records nested 200 deep", has="role submit", does="signs a nested list",
        counted="refused: malformed records in a signed segment")  # fmt: skip
async def _nested(lab: Lab) -> None:
    body = b"\x91\x92\xa4deep" + b"\x91" * 200 + b"\x90"
    lab.mallory.push(_with_body(lab.mallory, lab, body, 1))


@attack(LOGS, "a record of an unknown kind", has="role submit", does="writes one",
        refused_by="it has no effect: it is kept and passed on, never acted on")  # fmt: skip
async def _unknown(lab: Lab) -> bool:
    return await lab.stores(
        lab.mallory, _with_body(lab.mallory, lab, b"\x91\x92\xa4sudo\xa3now", 1)
    )


@attack(LOGS, "a segment of 49 KiB", has="role submit", does="sends one above the bound",
        counted="refused: a segment that is none")  # fmt: skip
async def _large(lab: Lab) -> None:
    lab.mallory.push(lab.mallory.segment(lab.service, lab.epoch, Cancel(("x" * 1000,) * 50, 1)))


@attack(LOGS, "a kept segment that was not asked for", has="role submit",
        does="answers a look-up that was not made",
        counted="refused: a kept segment that was not asked for")  # fmt: skip
async def _kept(lab: Lab) -> None:
    segment = lab.mallory.segment(lab.service, lab.epoch, NOTHING)
    lab.mallory.say(Kept(segment.encode()), LookedUp(lab.service, 1))


@attack(LOGS, "copies of what cannot be", has="role submit",
        does="has the node keep content with paths for CIDs",
        refused_by="answered `held: no`; nothing is written")  # fmt: skip
async def _hold(lab: Lab) -> bool:
    lab.mallory.say(Hold(lab.service, "t1", ("../../node.key",), (), b""))
    held = await lab.mallory.hears(lambda m: isinstance(m, Held) and m.ticket == "t1")
    return held is not None and not held.ok


@attack(LOGS, "presence as large as a frame", has="role submit",
        does="gives addresses of 57 KB, which would not fit with others' into a frame",
        counted="refused: invalid presence")  # fmt: skip
async def _large_presence(lab: Lab) -> None:
    addresses = ("/dns4/" + "x" * 14_000,) * 4
    lab.mallory.say(PresenceUpdate((presence(lab, lab.mallory.key, addresses=addresses),)))


@attack(LOGS, "flood of presence by a member", has="role submit",
        does="says 2,000 times that something has changed",
        refused_by="one entry is kept of him, and passed on once a second at most")  # fmt: skip
async def _presence_flood(lab: Lab) -> bool:
    boot = os.urandom(16)
    entries = [
        presence(lab, lab.mallory.key, boot=boot, counter=number, compute=False, load=number)
        for number in range(2000)
    ]
    for start in range(0, 2000, 50):
        lab.mallory.say(PresenceUpdate(tuple(entries[start : start + 50])))
    return True


@attack(LOGS, "flood of look-ups", has="role submit",
        does="asks for 50 x 512 jobs that nobody knows",
        refused_by="each is answered: nothing is known; nobody else waits")  # fmt: skip
async def _lookups(lab: Lab) -> bool:
    jobs = tuple(cid_of(0x71, str(number).encode()) for number in range(512))
    for ticket in range(50):
        lab.mallory.say(Lookup(lab.service, 1000 + ticket, jobs))
    last = lambda m: isinstance(m, LookedUp) and m.ticket == 1049  # noqa: E731
    return await lab.mallory.hears(last, 10) is not None


@attack(LOGS, "flood of gossip by a member", has="role submit",
        does="publishes 300 segments of 300 logs at once",
        refused_by="each is taken or lost; honest members are served meanwhile")  # fmt: skip
async def _gossip_flood(lab: Lab) -> bool:
    topic = f"/pairio/1/{lab.service}/0"
    lab.mallory.transport.join_topic(topic, lambda *_: True)
    for _ in range(300):
        segment = lab.mallory.segment(lab.service, lab.epoch, NOTHING)
        await lab.mallory.transport._topics.pubsub.publish(topic, segment.encode())
    return await lab.serves_honest()
