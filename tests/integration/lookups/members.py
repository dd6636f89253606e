"""Members of a service that are no whole nodes: a key, a transport, the shipped server of the DHT,
and the answers to a node's look-up. So each job can be known to exactly whom a measure needs."""

import hashlib
import os
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import trio

from pairio_node.dht.asker import KAD_PROTOCOL, Asker
from pairio_node.dht.contacts import Contacts
from pairio_node.dht.records import Records
from pairio_node.dht.server import Knowledge, Server
from pairio_node.transport import Frame, TransportEvent
from pairio_protocol.kad import Contact, Give, Given, distance
from pairio_protocol.limits import KAD_TOLD
from pairio_protocol.messages import MESSAGES, LookedUp, Lookup
from pairio_protocol.normalise import job_id_of
from pairio_protocol.records import Result
from pairio_protocol.service import Chain
from tests.integration.attacks.lab import Lab
from tests.integration.attacks.members import document, result, wish
from tests.integration.attacks.peers import Peer, connected

__all__ = ["FAR", "NEAR", "Member", "Members", "members"]

#: Members that are connected with the node, and members that are not.
NEAR, FAR = 8, 20
#: Members whose addresses each of those knows that are not connected with the node.
KNOWN = 6


class Member(Peer):
    """One member. `gives` are segments by job; `near` are those whom it knows."""

    def __init__(self, name: str) -> None:
        super().__init__(name, hashlib.sha256(f"lookups {name}".encode()).digest())
        self.service = ""
        self.gives: dict[str, tuple[bytes, ...]] = {}
        self.answers_lookups = False
        self.near: Sequence[Member] = ()
        self.records, self.counters = Records(), Counter[str]()

    @property
    def contact(self) -> Contact:
        """Where it is."""
        return Contact(self.key.peer, self.transport.addresses()[:1])

    async def sink(self, event: TransportEvent) -> None:
        """Answer look-ups of the node, at once."""
        if isinstance(event, Frame):
            message = MESSAGES.decode(event.data)
            if isinstance(message, Lookup) and message.service == self.service:
                known = self.gives if self.answers_lookups else {}
                for job in message.jobs:
                    self.push(*known.get(job, ()))
                self.say(LookedUp(message.service, message.ticket))
        await super().sink(event)

    def serve(self) -> None:
        """Answer on the DHT's protocol, with the code that nodes have."""

        def near(service: str, job: str, count: int) -> list[Contact]:
            nearest = sorted(self.near, key=lambda m: distance(job, m.key.peer))
            return [member.contact for member in nearest[:count]]

        async def give(question: Give) -> Given:
            return Given((), self.gives.get(question.job, ()), True)

        knows = Knowledge(lambda *_: True, near, lambda _, job: job in self.gives, give)
        contacts = Contacts(self.key.peer)
        server = Server(self.transport, self.records, contacts, knows, self.counters)
        self.transport.set_stream_handler(KAD_PROTOCOL, server.serve)

    def asker(self) -> Asker:
        """Return what asks others, with no memory."""
        return Asker(self.transport, Contacts(self.key.peer), self.counters)

    def is_told(self, service: str, job: str, holder: "Member") -> None:
        """Note a holder, as after a `provide`."""
        self.records.note(service, job, holder.contact, holder.name, trio.current_time())


class Members:
    """The service, its connected members and the others."""

    def __init__(self, chain: Chain, near: list[Member], far: list[Member]) -> None:
        self.chain, self.near, self.far = chain, near, far
        self._lab: Lab

    @property
    def service(self) -> str:
        """Its id."""
        return self.chain.service

    def job(self, lab: Lab, number: int) -> tuple[str, tuple[bytes, ...]]:
        """Return a job that the node knows nothing of, and the segments that show its result."""
        definition = document(lab, f"lookups {number} {os.urandom(4).hex()}")
        asker, worker, epoch = self.near[0], self.near[1], self.chain.epoch
        request = asker.segment(self.service, epoch, wish(definition, gpus=0))
        job = job_id_of(definition)
        data = result(lab, worker, job, service=self.service, code=definition["code"])
        done = worker.segment(self.service, epoch, Result(data))
        return job, (request.encode(), done.encode())

    def tell_nearest(self, among: Sequence[Member], job: str, holder: Member) -> None:
        """Let the members nearest to a job know who holds it."""
        for member in sorted(among, key=lambda m: distance(job, m.key.peer))[:KAD_TOLD]:
            member.is_told(self.service, job, holder)


@asynccontextmanager
async def members(lab: Lab) -> AsyncIterator[Members]:
    """Make the service; connect some of its members with the node, and run the others."""
    near = [Member(f"near {n}") for n in range(NEAR)]
    far = [Member(f"far {n}") for n in range(FAR)]
    adds = [
        {"op": "add", "member": m.name, "key": m.key.peer, "roles": ["submit", "compute"]}
        for m in (*near, *far)
    ]
    app = {"op": "app", "app": lab.chain.now.apps["hello_world"]}
    chain = await lab.found("lookups", lab.add("node", "submit"), *adds, app)
    for number, member in enumerate(far):
        member.near = [far[(number + step * step + 1) % FAR] for step in range(KNOWN)]
    for member in (*near, *far):
        member.service = chain.service
    async with AsyncExitStack() as stack:
        for member in far:
            await stack.enter_async_context(member.transport.running(member.sink))
        await stack.enter_async_context(connected(list(near), lambda: lab.node))
        for member in (*near, *far):
            member.serve()
        yield Members(chain, near, far)
