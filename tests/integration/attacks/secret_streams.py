"""The door for secrets: they go to the worker of the attempt under way, and to nobody else.

The node submits jobs of an app that asks for a secret; cruncher and mallory may compute.
"""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import trio

from pairio_node.transport.base import SECRETS, ByteStream, StreamEnded, TransportError
from pairio_protocol.codec import pack, unpack
from pairio_protocol.limits import SECRET_STREAMS_PER_PEER_MAX
from pairio_protocol.messages import Award, Changes, Have, PresenceUpdate, WantChanges
from pairio_protocol.service import Chain, SignedChange
from tests.integration.attacks.crowd import crowd, opened
from tests.integration.attacks.doors import presence
from tests.integration.attacks.lab import Lab, until
from tests.integration.attacks.peers import Peer
from tests.integration.attacks.table import attack

PART = "The door for secrets"
VALUE = "correct horse battery 72"
MAY_NOT = "refused: secrets that it may not have"
NONE = "refused: a stream for secrets that is none"
STRANGER = "refused: a stream for secrets, of a stranger"
TOO_MANY = "refused: a stream for secrets, of one who has too many"
LEASE_S = 10.0
SPEC = {
    "name": "teller",
    "processors": [
        {"name": "tell", "executable": "main.py", "inputs": [], "outputs": [{"name": "output"}],
         "parameters": [{"name": "tag", "type": "str"}], "secrets": ["TOKEN"]}
    ],
}  # fmt: skip


@dataclass
class Given:
    """A run of a job with a secret, awarded to `worker`."""

    service: str
    request: str
    attempt: str
    worker: Peer

    @property
    def question(self) -> list[str]:
        """What its worker asks."""
        return [self.service, self.request, self.attempt]


async def _vault(lab: Lab) -> Chain:
    """Make, once, a service with an app that asks for a secret; the node does not compute in it."""
    if "vault" in lab.made:
        found: Chain = lab.made["vault"]
        return found
    node = lab.node.info["peerId"]
    members = [lab.add("node", "submit"), lab.add("reader", "read"), lab.add("root", "admin")]
    members += [lab.add(name, "compute") for name in ("cruncher", "mallory")]
    admins = [lab.root.key.peer, node]
    chain = lab.made["vault"] = await lab.found("vault", *members, admins=admins)
    folder = lab.work / "teller"
    folder.mkdir()
    (folder / "main.py").write_text("# nobody runs it\n")
    (folder / "spec.json").write_text(json.dumps(SPEC))
    await lab.call("POST", f"services/{chain.service}/apps", {"source": str(folder)})
    return chain


@asynccontextmanager
async def _given(lab: Lab, tag: str, worker: Peer | None = None) -> AsyncIterator[Given]:
    """Submit a job with a secret, and let a worker hold its run."""
    chain, worker = await _vault(lab), worker or lab.cruncher
    _offer(lab, chain, worker, cpu_millicores=1000)
    body = {
        "serviceName": chain.service,
        "jobDefinition": {
            "appName": "teller", "processorName": "tell", "outputFiles": [{"name": "output"}],
            "parameters": [{"name": "tag", "value": tag}],
        },
        "secrets": {"TOKEN": VALUE},
        "requiredResources": {"numCpus": 1, "memoryGb": 1, "numGpus": 0, "timeSec": 600},
    }  # fmt: skip
    worker.heard.clear()
    request = ""
    try:
        async with trio.open_nursery() as nursery:  # it waits a second for an answer

            async def submit() -> None:
                nonlocal request
                request = (await lab.call("POST", "jobs", body))["requestId"]

            nursery.start_soon(submit)
            award = await worker.hears(lambda m: isinstance(m, Award))
            assert isinstance(award, Award), "nothing is awarded to him"
            worker.say(Have(award.service, award.run, award.attempt, "executing"))
        given = Given(award.service, award.request, award.attempt, worker)
        await lab.has_taken(worker)
        assert await _asked(worker, given.question) == ["TOKEN", VALUE], "its worker gets none"
        yield given
    finally:
        _offer(lab, chain, worker, cpu_millicores=0, compute=False)
        if request:
            await lab.call("POST", f"jobs/{request}/cancel")


def _offer(lab: Lab, chain: Chain, worker: Peer, **what: Any) -> None:
    lab.made["offers"] = counter = lab.made.get("offers", 0) + 1
    boot = worker.key.peer.encode()[:16]
    entry = presence(lab, worker.key, service=chain.service, boot=boot, counter=counter,
                     started_unix_ms=1, gpus=0, slots=1, **what)  # fmt: skip
    worker.say(PresenceUpdate((entry,)))


async def _say(peer: Peer, data: bytes) -> ByteStream:
    stream = await peer.transport.open_stream(peer.node, SECRETS)
    await stream.send(data)
    return stream


async def _asked(peer: Peer, question: list[str]) -> list[str] | None:
    """Ask for secrets; None when the stream is broken off."""
    data = pack(question)
    try:
        with trio.fail_after(20):
            stream = await _say(peer, len(data).to_bytes(4, "big") + data)
            size = int.from_bytes(await stream.receive_exactly(4), "big")
            words: list[str] = unpack(await stream.receive_exactly(size))
            return words
    except (StreamEnded, TransportError):
        return None


async def _gets_nothing(peer: Peer, question: list[str]) -> None:
    assert await _asked(peer, question) is None, f"{peer.name} is answered"


@attack(PART, "a stranger who knows the attempt", has="ids of a service, a request, an attempt",
        does="asks for its secrets", counted=STRANGER)  # fmt: skip
async def _stranger(lab: Lab) -> None:
    async with _given(lab, "nobody") as given:
        await _gets_nothing(lab.nobody, given.question)


@attack(PART, "a member of another service who knows the attempt", has="a role in another one",
        does="asks for its secrets, in its own service's name, too", counted=MAY_NOT)  # fmt: skip
async def _other(lab: Lab) -> None:
    async with _given(lab, "guest") as given:
        await _gets_nothing(lab.guest, given.question)
        await _gets_nothing(lab.guest, [lab.other.service, given.request, given.attempt])


@attack(PART, "a reader who knows the attempt", has="role read", does="asks for its secrets",
        counted=MAY_NOT)  # fmt: skip
async def _reader(lab: Lab) -> None:
    async with _given(lab, "reader") as given:
        await _gets_nothing(lab.reader, given.question)


@attack(PART, "a worker to whom another run was awarded", has="role compute, a run of his own",
        does="asks for the secrets of the first one, by its ids and by his own",
        counted=MAY_NOT)  # fmt: skip
async def _other_run(lab: Lab) -> None:
    async with _given(lab, "one") as one, _given(lab, "two", lab.mallory) as two:
        await _gets_nothing(lab.mallory, one.question)
        await _gets_nothing(lab.mallory, [one.service, one.request, two.attempt])
        await _gets_nothing(lab.mallory, [one.service, two.request, one.attempt])


@attack(PART, "a worker whose run was canceled", has="role compute, a run that he was awarded",
        does="asks for its secrets afterwards", counted=MAY_NOT)  # fmt: skip
async def _canceled(lab: Lab) -> None:
    async with _given(lab, "canceled") as given:
        await lab.call("POST", f"jobs/{given.request}/cancel")
        await _gets_nothing(given.worker, given.question)


@attack(PART, "a worker whose lease has run out", has="role compute, a run that he was awarded",
        does="asks for its secrets afterwards", counted=MAY_NOT)  # fmt: skip
async def _late(lab: Lab) -> None:
    async with _given(lab, "late") as given:
        _offer(lab, await _vault(lab), given.worker, cpu_millicores=0, compute=False)
        await trio.sleep(LEASE_S + 1)  # house: the node's own clock
        await _gets_nothing(given.worker, given.question)


@attack(PART, "a worker who was removed since", has="a run that he was awarded",
        does="asks for its secrets afterwards", counted=MAY_NOT)  # fmt: skip
async def _removed(lab: Lab) -> None:
    async with _given(lab, "removed") as given:
        chain = await _vault(lab)
        await _tell(lab, chain, {"op": "remove", "member": "cruncher"})
        await _gets_nothing(given.worker, given.question)
        await _tell(lab, chain, lab.add("cruncher", "compute"))


async def _tell(lab: Lab, chain: Chain, op: dict[str, Any]) -> None:
    """Change the list of the service, which the node has changed itself meanwhile."""
    lab.root.heard.clear()
    lab.root.say(WantChanges(chain.service, 0, ""))
    told = await lab.root.hears(lambda m: isinstance(m, Changes) and m.service == chain.service)
    for data in told.changes:
        chain.add(SignedChange.decode(data))
    lab.change(chain, lab.root.key, op)
    assert await until(lambda: lab.heads()[chain.service] == chain.head), "it is not taken"


@attack(PART, "what is no question for secrets", has="role compute",
        does="sends garbage, a list of other things, and a frame of 4 GiB",
        counted=NONE)  # fmt: skip
async def _garbage(lab: Lab) -> None:
    wrong = (b"\xc1\xc1", pack([1, 2, 3]), pack({"a": 1}), pack(["x"]))
    frames = [len(data).to_bytes(4, "big") + data for data in wrong]
    frames.append(b"\xff\xff\xff\xffx")
    before = lab.counters().get(NONE, 0)
    for frame in frames:
        with trio.move_on_after(20):
            try:
                await (await _say(lab.mallory, frame)).receive_exactly(1)
            except (StreamEnded, TransportError):
                continue
        raise AssertionError(f"answered: {frame!r}")
    assert await until(lambda: lab.counters()[NONE] >= before + len(frames)), "not all are counted"


@attack(PART, "a stranger's flood of streams for secrets", has="a connection",
        does="opens 100 and says nothing on them", counted=STRANGER)  # fmt: skip
async def _strangers_streams(lab: Lab) -> None:
    held = await opened([lab.visitor, lab.stranger], SECRETS, 50)
    async with _given(lab, "beside strangers"):  # its worker is answered all the same
        for stream in held:
            await stream.abort()


@attack(PART, "one member's flood of streams for secrets", has="role compute, 17 keys",
        does="opens four with each, and says nothing on them", counted=TOO_MANY)  # fmt: skip
async def _members_streams(lab: Lab) -> None:
    async with crowd(lab) as (_, keys):
        await opened(keys, SECRETS, SECRET_STREAMS_PER_PEER_MAX)
        async with _given(lab, "beside a crowd"):  # its worker is answered all the same
            pass
