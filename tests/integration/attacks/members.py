"""A malicious member: what his role forbids, and others' runs."""

import os
import time
from typing import Any

import trio

from pairio_protocol.cid import RAW, cid_of
from pairio_protocol.documents import encode
from pairio_protocol.ids import request_id, run_id
from pairio_protocol.messages import (
    Award,
    Beat,
    Bid,
    CancelNow,
    Changes,
    Decline,
    Have,
    PresenceUpdate,
)
from pairio_protocol.normalise import job_id_of, normalise
from pairio_protocol.records import Cancel, End, Request, Resources, Result, ResultDocument, Start
from tests.integration.attacks.doors import presence
from tests.integration.attacks.lab import Lab, until
from tests.integration.attacks.peers import Peer
from tests.integration.attacks.table import attack

ROLES = "A member beyond his role"
RUNS = "A member and others' runs"
FORBIDDEN = "refused: a record that its author's role forbids"


def document(lab: Lab, bust: str = "x") -> dict[str, Any]:
    """Return a job's document that nobody has asked for."""
    definition = {
        "appName": "hello_world", "processorName": "hello_world_2", "inputFiles": [],
        "outputFiles": [{"name": "output"}], "parameters": [], "cacheBust": bust,
    }  # fmt: skip
    return normalise(definition, lab.chain.now.apps["hello_world"])


def wish(job: dict[str, Any], gpus: int = 1) -> Request:
    """Return a request; with a GPU nobody here can do it, so that it stays open."""
    now = int(time.time() * 1000)
    resources = Resources(1000, 256, gpus, 60_000)
    return Request(encode(job), "use", "", resources, "", (), "", 0, (), 1, now + 10**9, now)


def result(lab: Lab, peer: Peer, job: str, **more: Any) -> bytes:
    """Return a completed result of a job, signed by a peer."""
    out = cid_of(RAW, b"forged")
    fields: dict[str, Any] = {
        "service": lab.service, "job": job, "run": run_id(job, ""), "salt": "", "attempt": "a",
        "status": "completed", "error": "", "outputs": {"output": (out, 6, "output")},
        "console": out, "usage": {}, "code": out, "isolation": "strong", "upstream": (),
        "worker": peer.key.peer, "started_unix_ms": 1, "finished_unix_ms": 2,
    }  # fmt: skip
    return ResultDocument(**{**fields, **more}).sign(peer.key)


async def _open_request(lab: Lab, bust: str, by: Peer | None = None) -> tuple[str, str]:
    """Have an honest member make a request that stays open; return (request id, job id)."""
    author, boot = by or lab.honest, os.urandom(16)
    job = document(lab, bust)
    author.push(author.segment(lab.service, lab.epoch, wish(job), boot=boot))
    name = request_id(lab.service, author.key.peer, boot, 0)
    assert await until(lambda: status(lab, name) == "pending"), "the request is not known"
    lab.keep(name)
    return name, job_id_of(job)


def status(lab: Lab, request: str) -> str:
    found = [j for j in lab.get("jobs?limit=500")["jobs"] if j["requestId"] == request]
    return str(found[0]["status"]) if found else ""


# -- roles -------------------------------------------------------------------------------------


@attack(ROLES, "a request without the role submit", has="role compute", does="asks for a job",
        counted=FORBIDDEN)  # fmt: skip
async def _request(lab: Lab) -> None:
    record = wish(document(lab))
    lab.cruncher.push(lab.cruncher.segment(lab.service, lab.epoch, record))


@attack(ROLES, "a request by a reader", has="role read", does="asks for a job", counted=FORBIDDEN)
async def _reader(lab: Lab) -> None:
    lab.reader.push(lab.reader.segment(lab.service, lab.epoch, wish(document(lab))))


@attack(ROLES, "a cancel without the role submit", has="role compute",
        does="cancels an honest member's request", counted=FORBIDDEN)  # fmt: skip
async def _cancel(lab: Lab) -> None:
    record = Cancel((lab.job["requestId"],), 1)
    lab.cruncher.push(lab.cruncher.segment(lab.service, lab.epoch, record))


@attack(ROLES, "a start without the role compute", has="role submit",
        does="says that he runs a job",
        counted=FORBIDDEN)  # fmt: skip
async def _start(lab: Lab) -> None:
    record = Start(lab.job["requestId"], lab.job["runId"], "a", (), 1)
    lab.mallory.push(lab.mallory.segment(lab.service, lab.epoch, record))


@attack(ROLES, "a result without the role compute", has="role submit",
        does="signs a result of a job, so that others take it for a hit",
        counted=FORBIDDEN)  # fmt: skip
async def _result(lab: Lab) -> None:
    data = result(lab, lab.mallory, job_id_of(document(lab)))
    lab.mallory.push(lab.mallory.segment(lab.service, lab.epoch, Result(data)))


@attack(ROLES, "a list changed by one who is no admin", has="role submit", does="adds a friend",
        counted="refused: invalid service change")  # fmt: skip
async def _change(lab: Lab) -> None:
    add = {"op": "add", "member": "friend", "key": lab.stranger.key.peer, "roles": ["admin"]}
    change = lab.chain.propose([add], [lab.mallory.key], 1)
    lab.mallory.say(Changes(lab.service, (change.encode(),), False))


# -- others' runs ------------------------------------------------------------------------------


@attack(RUNS, "a cancel of somebody else's request", has="role submit",
        does="cancels an honest member's open request",
        refused_by="it has no effect: only its submitter's member, or an admin, may")  # fmt: skip
async def _cancel_others(lab: Lab) -> bool:
    name, _ = await _open_request(lab, "not mallory's")
    lab.mallory.push(lab.mallory.segment(lab.service, lab.epoch, Cancel((name,), 1)))
    await lab.has_taken(lab.mallory)
    return status(lab, name) == "pending"


@attack(RUNS, "an award of another's request", has="role submit",
        does="awards an honest member's request under his own attempt id",
        refused_by="declined: he is not its coordinator; nothing starts")  # fmt: skip
async def _award(lab: Lab) -> bool:
    name, job = await _open_request(lab, "awarded by mallory")
    attempt = f"{lab.mallory.key.peer}/{'0' * 16}/1"
    lab.mallory.say(Award(lab.service, name, run_id(job, ""), attempt, (), 10_000))
    declined = lambda m: isinstance(m, Decline) and m.attempt == attempt  # noqa: E731
    return await lab.mallory.hears(declined) is not None and status(lab, name) == "pending"


@attack(RUNS, "an award under somebody else's attempt id", has="role submit",
        does="awards in the name of an honest coordinator",
        counted="refused: an award under somebody else's attempt id")  # fmt: skip
async def _award_id(lab: Lab) -> None:
    attempt = f"{lab.honest.key.peer}/{'0' * 16}/1"
    request, run = lab.job["requestId"], lab.job["runId"]
    lab.mallory.say(Award(lab.service, request, run, attempt, (), 10_000))


@attack(RUNS, "an attempt id of 56 KB", has="role submit, a request of his own",
        does="awards it under an id that fits into no segment of the node",
        counted="refused: an award under somebody else's attempt id")  # fmt: skip
async def _award_long(lab: Lab) -> None:
    attempt = f"{lab.mallory.key.peer}/" + "\U0001f4a5" * 14_000
    request, run = lab.job["requestId"], lab.job["runId"]
    lab.mallory.say(Award(lab.service, request, run, attempt, (), 10_000))


@attack(RUNS, "flood of awards", has="role submit", does="awards 2,000 runs that do not exist",
        counted="awards declined")  # fmt: skip
async def _award_flood(lab: Lab) -> None:
    for number in range(2000):
        attempt = f"{lab.mallory.key.peer}/{'0' * 16}/{number}"
        lab.mallory.say(Award(lab.service, "0" * 64, "0" * 64, attempt, (), 10_000))


@attack(RUNS, "a bid of one who may not compute", has="role read",
        does="says that he has a large machine, and bids for an open run",
        refused_by="nothing is awarded to him: presence without the role is no offer")  # fmt: skip
async def _bid(lab: Lab) -> bool:
    return await _bid_in_vain(lab, lab.reader, gpus=8)


@attack(RUNS, "a bid without capacity", has="role compute",
        does="bids for a run that needs a GPU, having none",
        refused_by="nothing is awarded: it does not fit his presence")  # fmt: skip
async def _bid_small(lab: Lab) -> bool:
    return await _bid_in_vain(lab, lab.cruncher, gpus=0)


async def _bid_in_vain(lab: Lab, peer: Peer, gpus: int) -> bool:
    job = await lab.submit_open(f"for {peer.name}")
    peer.say(PresenceUpdate((presence(lab, peer.key, gpus=gpus, cpu_millicores=1),)))
    peer.say(Bid(lab.service, (job["requestId"],)))
    peer.heard.clear()
    await lab.has_taken(peer)
    return not any(isinstance(message, Award) for message in peer.heard)


@attack(RUNS, "a run held under a name of 56 KB", has="role compute, a run that he was awarded",
        does="says that he holds it under an id that fits into no segment of the node",
        counted="refused: a run that is held in no way that there is")  # fmt: skip
async def _have_long(lab: Lab) -> None:
    worker, boot = lab.cruncher, os.urandom(16)
    worker.heard.clear()
    worker.say(PresenceUpdate((presence(lab, worker.key, boot=boot, gpus=8, counter=1),)))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lab.submit_open, "held under a long name")
        award = await worker.hears(lambda m: isinstance(m, Award))  # it waits a second at most
        assert isinstance(award, Award), "nothing is awarded to him"
        name = f"{lab.node.info['peerId']}/" + "\U0001f4a5" * 14_000
        worker.say(Have(lab.service, award.run, name, "executing"))
        worker.say(Have(lab.service, award.run, award.attempt, "\U0001f4a5" * 14_000))
    gone = presence(lab, worker.key, boot=boot, gpus=0, counter=2, compute=False)
    worker.say(PresenceUpdate((gone,)))
    await lab.has_taken(worker)
    await lab.call("POST", f"jobs/{award.request}/cancel")


@attack(RUNS, "have and beat for another's attempt", has="role submit",
        does="says that he holds the run that another one has",
        refused_by="it has no effect: only the worker it was awarded to is followed")  # fmt: skip
async def _have(lab: Lab) -> bool:
    attempt = lab.job["attempts"][0]["attemptId"]
    lab.mallory.say(Have(lab.service, lab.job["runId"], attempt, "executing"))
    lab.mallory.say(Beat(lab.service, (attempt,)), CancelNow(lab.service, attempt))
    await lab.has_taken(lab.mallory)
    return True


@attack(RUNS, "an end of another's attempt", has="role submit",
        does="writes that an attempt was lost",
        refused_by="it has no effect: only its worker or its coordinator may end it")  # fmt: skip
async def _end(lab: Lab) -> bool:
    attempt = lab.job["attempts"][0]["attemptId"]
    record = End(lab.job["requestId"], lab.job["runId"], attempt, "infra", "lost", 1)
    return await lab.stores(lab.mallory, lab.mallory.segment(lab.service, lab.epoch, record))


@attack(RUNS, "a result under an unresolved id", has="role compute",
        does="signs a result of a job whose input is not computed yet",
        refused_by="it answers nobody: results exist under resolved ids only")  # fmt: skip
async def _unresolved(lab: Lab) -> bool:
    _, upstream = await _open_request(lab, "upstream")
    source = {"name": "x", "base_name": "x", "source": {"job": upstream, "output": "output"}}
    job, boot = {**document(lab, "rests on it"), "inputs": [source]}, os.urandom(16)
    lab.honest.push(lab.honest.segment(lab.service, lab.epoch, wish(job), boot=boot))
    name = request_id(lab.service, lab.honest.key.peer, boot, 0)
    assert await until(lambda: status(lab, name) == "pending"), "the request is not known"
    lab.keep(name)
    data = result(lab, lab.cruncher, job_id_of(job))
    assert await lab.stores(
        lab.cruncher, lab.cruncher.segment(lab.service, lab.epoch, Result(data))
    )
    return status(lab, name) == "pending"
