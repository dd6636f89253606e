"""A malicious sponsor, and whoever else answers the node where it is a guest."""

from collections.abc import Callable
from typing import Any

import trio

from pairio_protocol.jobs import decode_job
from pairio_protocol.links import Link, LinkPeer
from pairio_protocol.messages import Ask, Asked, Award, Changes, Follow
from pairio_protocol.normalise import job_id_of
from pairio_protocol.service import Chain
from tests.integration.attacks.lab import Lab
from tests.integration.attacks.members import document, result, status
from tests.integration.attacks.peers import Peer
from tests.integration.attacks.public import LIMITS
from tests.integration.attacks.table import attack

GUESTS = "Where the node is a guest: forged answers"
HAS = "a public service of his own, in which the node is a guest"
NO_WORKERS = "refused: a result that no worker of the service signed for the job"
NOT_ASKED = "refused: an answer to a job that it was not asked for"


async def inn(lab: Lab) -> Chain:
    """Make, once, a public service that the node is a guest of: `second` is its admin and its only
    sponsor, `cruncher` computes."""
    if "inn" in lab.made:
        found: Chain = lab.made["inn"]
        return found
    host, chain = lab.second, Chain()
    create = {"op": "create", "name": "inn", "admins": [host.key.peer], "threshold": 1,
              "nonce": "0"}  # fmt: skip
    app = {"op": "app", "app": lab.chain.now.apps["hello_world"]}
    policy = {"op": "policy", "policy": {"open_submit": LIMITS.document()}}
    members = (lab.add("second", "submit"), lab.add("cruncher", "compute"))
    chain.add(chain.propose([create, *members, app, policy], [host.key], 1))
    lab.aside.add(chain.service)
    link = Link("public", chain.service, "inn", (LinkPeer(host.key.peer, ()),))
    await lab.call("POST", "joins", {"link": link.encode(), "waitSec": 0})
    assert await host.hears(lambda m: isinstance(m, Follow) and m.service == chain.service)
    host.say(Changes(chain.service, tuple(c.encode() for c in chain.changes(-1)), False))
    host.say(Asked(chain.service, "", "waits", "", b""))
    await lab.has_taken(host)
    assert chain.service in {s["serviceId"] for s in lab.get("services")["services"]}
    lab.made["inn"] = chain
    return chain


async def asked_by_node(lab: Lab, tag: str) -> Ask:
    """Let the node ask its sponsor for a job; return what it asks."""
    chain = await inn(lab)
    lab.second.heard.clear()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lab.submit, chain.service, tag)
        ask = await lab.second.hears(lambda m: isinstance(m, Ask) and m.service == chain.service)
        assert isinstance(ask, Ask), "the node asks nothing"
        lab.second.say(Asked(chain.service, ask.ask, "waits", "", b""))
    return ask


def signed(lab: Lab, ask: Ask, by: Peer, **fields: Any) -> bytes:
    """Return a result of the job that the node asks for."""
    right = {"service": ask.service, **fields}
    return result(lab, by, job_id_of(decode_job(ask.definition)), **right)


async def is_unmoved(lab: Lab, ask: Ask, by: Peer) -> None:
    """See that the job is still not done when the node has taken what a peer said."""
    await lab.has_taken(by)
    assert status(lab, ask.ask) == "pending", status(lab, ask.ask)


def _done(
    name: str, does: str, counted: str, by: str, signer: str,
    bend: Callable[[Lab], dict[str, Any]] = lambda _: {},
) -> None:  # fmt: skip
    @attack(GUESTS, name, has=HAS if by == "second" else "a connection", does=does,
            counted=counted)  # fmt: skip
    async def attempt(lab: Lab) -> None:
        ask = await asked_by_node(lab, name)
        data = signed(lab, ask, lab.peers[signer], **bend(lab))
        lab.peers[by].say(Asked(ask.service, ask.ask, "done", "", data))
        await is_unmoved(lab, ask, lab.peers[by])


_done("a result from one who was not asked", "brings a result that a worker has signed", NOT_ASKED,
      "mallory", "cruncher")  # fmt: skip
_done("a result that its sponsor signed", "signs the result himself, though he computes not",
      NO_WORKERS, "second", "second")  # fmt: skip
_done("a result with a forged signature, for a guest", "signs it in a worker's name", NO_WORKERS,
      "second", "second", lambda lab: {"worker": lab.cruncher.key.peer})  # fmt: skip
_done("a result of another service, for a guest", "brings one that the worker signed elsewhere",
      NO_WORKERS, "second", "cruncher", lambda lab: {"service": lab.service})  # fmt: skip
_done("a result without its outputs, for a guest", "has a worker sign that there are none",
      NO_WORKERS, "second", "cruncher", lambda _: {"outputs": {}})  # fmt: skip


@attack(GUESTS, "another job's result, for a guest", has=HAS,
        does="brings a worker's result of a job that was not asked for",
        counted=NO_WORKERS)  # fmt: skip
async def _other_job(lab: Lab) -> None:
    ask = await asked_by_node(lab, "mine")
    data = result(lab, lab.cruncher, job_id_of(document(lab, "not mine")), service=ask.service)
    lab.second.say(Asked(ask.service, ask.ask, "done", "", data))
    await is_unmoved(lab, ask, lab.second)


@attack(GUESTS, "a result that is none, for a guest", has=HAS, does="brings garbage",
        counted=NO_WORKERS)  # fmt: skip
async def _garbage(lab: Lab) -> None:
    ask = await asked_by_node(lab, "garbage")
    lab.second.say(Asked(ask.service, ask.ask, "done", "", b"\xc1" * 100))
    await is_unmoved(lab, ask, lab.second)


@attack(GUESTS, "an answer that there is not", has=HAS, does="answers in words of his own",
        counted="refused: an answer of a sponsor that is none")  # fmt: skip
async def _state(lab: Lab) -> None:
    ask = await asked_by_node(lab, "words")
    lab.second.say(Asked(ask.service, ask.ask, "completed", "", b""))
    await is_unmoved(lab, ask, lab.second)


@attack(GUESTS, "the end of a job, told by one who was not asked", has="a connection",
        does="says that a guest's job was canceled", counted=NOT_ASKED)  # fmt: skip
async def _over(lab: Lab) -> None:
    ask = await asked_by_node(lab, "not over")
    lab.mallory.say(Asked(ask.service, ask.ask, "over", "canceled", b""))
    await is_unmoved(lab, ask, lab.mallory)


@attack(GUESTS, "a list for a guest that its admins did not sign", has="a connection",
        does="signs a change that makes himself a worker",
        counted="refused: invalid service change")  # fmt: skip
async def _list(lab: Lab) -> None:
    chain = await inn(lab)
    change = chain.propose([lab.add("mallory", "compute")], [lab.mallory.key], 1)
    lab.mallory.say(Changes(chain.service, (change.encode(),), False))


@attack(GUESTS, "work for a guest", has=HAS, does="awards a run to the node",
        counted="refused: award of a stranger")  # fmt: skip
async def _work(lab: Lab) -> None:
    ask = await asked_by_node(lab, "work")
    attempt = f"{lab.second.key.peer}/{'0' * 16}/1"
    lab.second.say(Award(ask.service, ask.ask, "0" * 64, attempt, (), 10_000))
