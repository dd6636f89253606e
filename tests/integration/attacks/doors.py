"""A stranger, who knows the service's id and what any member may have told him, at every door."""

import os
import time

import trio
from libp2p.peer.id import ID

from pairio_node.transport.base import BLOCKS
from pairio_protocol.codec import pack
from pairio_protocol.messages import (
    Ack,
    Award,
    Beat,
    Bid,
    CancelNow,
    Changes,
    Decline,
    Digest,
    Forks,
    Frontier,
    Have,
    Held,
    Hold,
    Kept,
    LookedUp,
    Lookup,
    Message,
    Presence,
    PresenceUpdate,
    SyncSegments,
    WantChanges,
)
from pairio_protocol.records import Cancel
from pairio_protocol.service import Chain, SignedChange
from pairio_protocol.signing import SigningKey, sha256, signing_input
from tests.integration.attacks.lab import Lab, until
from tests.integration.attacks.peers import Peer
from tests.integration.attacks.table import attack

NOTHING = Cancel(("0" * 64,), 1)
PART = "A stranger at every door"
HAS = "a key of his own, the service's id"


def presence(lab: Lab, key: SigningKey, signer: SigningKey | None = None, **more: object) -> bytes:
    """Return a presence entry of a key, signed by it or by another."""
    fields: dict[str, object] = {
        "service": lab.service, "peer": key.peer, "boot": os.urandom(16),
        "started_unix_ms": int(time.time() * 1000), "counter": 1, "compute": True,
        "cpu_millicores": 64_000, "memory_mib": 2**20, "gpus": 8, "slots": 64, "load": 0,
        "isolation": "strong", "addresses": (),
    }  # fmt: skip
    return Presence(**{**fields, **more}).sign(signer or key)  # type: ignore[arg-type]


def about(lab: Lab, service: str) -> dict[str, Message]:
    """Return one message of each kind about a service's jobs and logs."""
    run, request = lab.job["runId"], lab.job["requestId"]
    attempt = lab.job["attempts"][0]["attemptId"]
    own = lab.stranger.segment(service, lab.epoch, NOTHING).encode()
    return {
        "digest": Digest(service, bytes(32), bytes(32)),
        "frontier": Frontier(service, b"", b"", (), False),
        "segments": SyncSegments(service, (own,), False),
        "forks": Forks(service, ((own, own),)),
        "award": Award(service, request, run, f"{lab.stranger.key.peer}/{'0' * 16}/1", (), 10_000),
        "have": Have(service, run, attempt, "executing"),
        "decline": Decline(service, run, attempt, "x", "", ""),
        "bid": Bid(service, (request,)),
        "beat": Beat(service, (attempt,)),
        "cancel_now": CancelNow(service, attempt),
        "lookup": Lookup(service, 1, (lab.job["jobId"],)),
        "looked_up": LookedUp(service, 1),
        "hold": Hold(service, "t", (lab.job["consoleOutputCid"],), (), b""),
        "held": Held(lab.job["requestId"], True),
        "ack": Ack((bytes(32),)),
    }


def _door(kind: str, does: str) -> None:
    @attack(PART, f"{kind} of a stranger", has=HAS, does=does,
            counted=f"refused: {kind} of a stranger")  # fmt: skip
    async def attempt(lab: Lab) -> None:
        lab.stranger.say(about(lab, lab.service)[kind])


for _kind, _does in (
    ("digest", "begins sync, to learn what the logs hold"),
    ("frontier", "asks for all segments"),
    ("segments", "sends a segment of his own by sync"),
    ("forks", "sends proof that a log is forked"),
    ("award", "awards a run to the node"),
    ("have", "says that he holds a run"),
    ("decline", "declines a run that he was not offered"),
    ("bid", "asks for runs"),
    ("beat", "renews the lease of an attempt"),
    ("cancel_now", "ends an attempt"),
    ("lookup", "asks for a result by its job id"),
    ("looked_up", "answers a look-up that he was not asked"),
    ("hold", "has the node keep copies for him"),
    ("held", "says that he holds copies"),
    ("ack", "says that he has stored a request"),
):
    _door(_kind, _does)


@attack(PART, "push of a stranger", has=HAS, does="pushes a segment that he signed",
        counted="refused: a segment of somebody who is no member")  # fmt: skip
async def _push(lab: Lab) -> None:
    lab.stranger.push(lab.stranger.segment(lab.service, lab.epoch, NOTHING))


@attack(PART, "kept of a stranger", has=HAS, does="sends a segment as the answer to a look-up",
        counted="refused: an invalid kept segment")  # fmt: skip
async def _kept(lab: Lab) -> None:
    lab.stranger.say(Kept(lab.stranger.segment(lab.service, lab.epoch, NOTHING).encode()))


@attack(PART, "gossip of a stranger", has=HAS, does="publishes a segment that he signed",
        counted="refused: gossip that no member signed")  # fmt: skip
async def _gossip(lab: Lab) -> None:
    topic = f"/pairio/1/{lab.service}/0"
    lab.stranger.transport.join_topic(topic, lambda *_: True)
    name = "refused: gossip that no member signed"
    before = lab.counters().get(name, 0)

    def again() -> bool:
        segment = lab.stranger.segment(lab.service, lab.epoch, NOTHING)
        lab.stranger.transport.announce(topic, segment.encode())
        return lab.counters().get(name, 0) > before

    with trio.move_on_after(10):
        while not again():  # noqa: ASYNC110
            await trio.sleep(0.2)  # house: waiting for another process


@attack(PART, "gossip, listened to by a stranger", has=HAS, does="subscribes to the topic",
        refused_by="he hears nothing: gossip goes to members only")  # fmt: skip
async def _listener(lab: Lab) -> bool:
    topic = f"/pairio/1/{lab.service}/0"
    for peer in (lab.stranger, lab.mallory, lab.honest):
        peer.transport.join_topic(topic, lambda *_: True)
    with trio.move_on_after(15):
        while len(lab.honest.gossip) < 5:
            segment = lab.mallory.segment(lab.service, lab.epoch, NOTHING)
            lab.mallory.transport.announce(topic, segment.encode())
            await trio.sleep(0.2)  # house: waiting for another process
    assert len(lab.honest.gossip) >= 5, "a member hears nothing either"
    return lab.stranger.gossip == []


@attack(PART, "flood of gossip by a stranger", has=HAS, does="publishes 300 segments at once",
        counted="refused: gossip that no member signed")  # fmt: skip
async def _gossip_flood(lab: Lab) -> None:
    topic = f"/pairio/1/{lab.service}/0"
    transport = lab.stranger.transport
    transport.join_topic(topic, lambda *_: True)
    for _ in range(300):
        # The node gives him no place in its mesh; he sends all the same.
        transport._topics.router.mesh.setdefault(topic, set()).add(
            ID.from_base58(lab.stranger.node)
        )
        segment = lab.stranger.segment(lab.service, lab.epoch, NOTHING)
        await transport._topics.pubsub.publish(topic, segment.encode())


@attack(PART, "presence of a stranger", has=HAS, does="offers a large machine",
        counted="refused: presence of somebody who is no member")  # fmt: skip
async def _presence(lab: Lab) -> None:
    lab.stranger.say(PresenceUpdate((presence(lab, lab.stranger.key),)))


@attack(PART, "flood of presence by a stranger", has="2,000 keys", does="offers 2,000 machines",
        counted="refused: presence of somebody who is no member")  # fmt: skip
async def _presence_flood(lab: Lab) -> None:
    for _ in range(40):
        keys = [SigningKey(os.urandom(32)) for _ in range(50)]
        lab.stranger.say(PresenceUpdate(tuple(presence(lab, key) for key in keys)))


@attack(PART, "changes asked for by a stranger", has=HAS, does="asks who the members are",
        counted="refused: changes asked for by a stranger")  # fmt: skip
async def _want(lab: Lab) -> None:
    lab.stranger.say(WantChanges(lab.service, 0, ""))


@attack(PART, "a change that makes a stranger a member", has=HAS,
        does="signs a change that adds himself",
        counted="refused: invalid service change")  # fmt: skip
async def _change(lab: Lab) -> None:
    me = lab.stranger.key
    add = {"op": "add", "member": "me", "key": me.peer, "roles": ["admin"]}
    change = lab.chain.propose([add], [me], 1)
    lab.stranger.say(Changes(lab.service, (change.encode(),), False))


@attack(PART, "blocks asked for by a stranger", has="the CID of a result's output",
        does="asks for the block", counted="blocks_refused")  # fmt: skip
async def _blocks(lab: Lab) -> None:
    cid = lab.job["outputFileResults"][0]["cid"]
    answer = await answer_for_block(lab.stranger, lab.service, cid)
    assert answer == b"\x02", f"answered {answer!r}"


@attack(PART, "blocks of a service, asked for under another", has="a role in another one",
        does="asks for a block of this one in the other's name",
        refused_by="answered `missing`: what is held for one is not there for another")  # fmt: skip
async def _other_blocks(lab: Lab) -> bool:
    cid = lab.job["outputFileResults"][0]["cid"]
    return await answer_for_block(lab.guest, lab.other.service, cid) == b"\x00"


async def answer_for_block(peer: Peer, service: str, cid: str) -> bytes:
    """Return the first byte of the answer to a peer who asks for a block."""
    stream = await peer.transport.open_stream(peer.node, BLOCKS)
    for part in (service, [cid]):
        data = pack(part)
        await stream.send(len(data).to_bytes(4, "big") + data)
    answer = await stream.receive_exactly(1)
    await stream.abort()
    return answer


@attack(PART, "a segment of an unknown epoch, of a stranger", has=HAS,
        does="signs 120 segments under a later change, to be kept until it comes",
        counted="refused: a segment of an unknown epoch, of a stranger")  # fmt: skip
async def _parked(lab: Lab) -> None:
    for _ in range(120):
        lab.stranger.push(lab.stranger.segment(lab.service, lab.epoch + 1000, NOTHING))


# -- services that nobody asked for ------------------------------------------------------------


def own_service(lab: Lab, number: int, *admins: str, names_node: bool = True) -> Chain:
    """Return a service that the stranger has made."""
    key, chain = lab.stranger.key, Chain()
    create = {"op": "create", "name": f"trap{number}", "admins": [key.peer, *admins],
              "threshold": 1, "nonce": os.urandom(8).hex()}  # fmt: skip
    add = {"op": "add", "member": "you", "key": lab.stranger.node, "roles": ["compute", "submit"]}
    chain.add(chain.propose([create, add] if names_node else [create], [key], 1))
    return chain


def _tell(lab: Lab, chain: Chain) -> None:
    data = tuple(change.encode() for change in chain.changes())
    lab.stranger.say(Changes(chain.service, data, False))


@attack(PART, "a service that nobody asked for", has="services of his own",
        does="sends one that does not name the node",
        counted="refused: changes of a service that does not name this node")  # fmt: skip
async def _unnamed(lab: Lab) -> None:
    _tell(lab, own_service(lab, 0, names_node=False))


@attack(PART, "a member against his will", has="a service of his own",
        does="makes the node a compute member of it",
        refused_by="it waits under `pairio service offers`; nothing is run for it")  # fmt: skip
async def _offer(lab: Lab) -> bool:
    chain = own_service(lab, 1)
    _tell(lab, chain)
    await lab.has_taken(lab.stranger)
    return chain.service in {offer["serviceId"] for offer in lab.get("offers")["offers"]}


@attack(PART, "a trusted peer named as a second admin", has="the peer id of one the owner trusts",
        does="makes a service with him as a co-admin, who never signed, so that it is taken up",
        refused_by="it waits under `pairio service offers`: he has not signed")  # fmt: skip
async def _forged_trust(lab: Lab) -> bool:
    chain = own_service(lab, 2, lab.root.key.peer)
    _tell(lab, chain)
    await lab.has_taken(lab.stranger)
    return chain.service in {offer["serviceId"] for offer in lab.get("offers")["offers"]}


@attack(PART, "flood of offers", has="100 services of his own", does="names the node in all",
        counted="refused: an offer beyond what is kept")  # fmt: skip
async def _offers(lab: Lab) -> None:
    for number in range(100):
        _tell(lab, own_service(lab, 10 + number))
    assert await until(lambda: len(lab.get("offers")["offers"]) == 64), "64 are kept"


@attack(PART, "another service's first change", has="a service of his own",
        does="sends its first change as one of the service's",
        counted="refused: invalid service change")  # fmt: skip
async def _first(lab: Lab) -> None:
    change = own_service(lab, 3).changes()[0]
    lab.stranger.say(Changes(lab.service, (change.encode(),), False))


def signed_change(body: bytes, *keys: SigningKey) -> SignedChange:
    """Return a change with these bytes, signed by these keys."""
    message = signing_input("change", sha256(body))
    return SignedChange(body, tuple((key.peer, key.sign(message)) for key in keys))
