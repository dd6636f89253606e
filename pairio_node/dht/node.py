"""The node's DHT: job id -> holders of a result, among the members of each service.

Kademlia, but for one thing: who may stand in a table is not whoever says so. Each service has its
signed list of members, and what is stored, asked and answered stays among them; so a peer that is
made up has no place, and routing is by the list: members nearest to a job's id whose addresses are
known here, then those that they know.
"""

import heapq
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import trio

from pairio_node.dht.asker import KAD_PROTOCOL, Asker
from pairio_node.dht.contacts import Contacts
from pairio_node.dht.providing import Providing
from pairio_node.dht.records import Records
from pairio_node.dht.search import Search
from pairio_node.dht.server import Knowledge, Server
from pairio_node.transport.base import ByteStream
from pairio_protocol import events as ev
from pairio_protocol.fold import ServiceFold
from pairio_protocol.gather import request_for
from pairio_protocol.kad import Contact, Give, Given, distance
from pairio_protocol.limits import ADDRESSES_MAX, CHANGES_PER_REPLY_MAX, KAD_ASKED_MAX
from pairio_protocol.lookups import segments_about
from pairio_protocol.machines.contents import outputs_of

if TYPE_CHECKING:
    from pairio_node.node import Node

__all__ = ["Dht", "Giver", "has_result"]

#: What nobody said again is looked for this often.
_EXPIRE_S = 600.0
_REFUSALS = {
    "strangers_refused": "a DHT stream of a stranger",
    "questions_refused": "a DHT question of no member",
    "provides_refused": "a DHT provide of no member",
    "provides_beyond": "a DHT provide beyond the bound",
    "messages_refused": "a DHT message that is none, or too large",
    "questions_late": "a DHT question that did not come in time",
    "streams_refused": "a DHT stream beyond the bound",
    "answers_refused": "a DHT answer that is none, or too large",
    "contacts_refused": "a DHT contact that is no member",
    "given_in_vain": "what a DHT holder gave and is no result that counts",
}


@dataclass(frozen=True)
class Giver:
    """Who gave a result, and whether it says to have all outputs."""

    contact: Contact
    is_whole: bool


class Dht:
    """See the module. Serves as soon as it is made; `run` keeps it up."""

    def __init__(self, node: "Node") -> None:
        self.counters: Counter[str] = Counter()
        self._node = node
        self._transport = node.transport
        self._records = Records()
        self._contacts = Contacts(node.transport.peer_id)
        self._asker = Asker(node.transport, self._contacts, self.counters)
        knows = Knowledge(self.is_member, self.nearest, self._holds, self._give, node.memberships)
        self._server = Server(node.transport, self._records, self._contacts, knows, self.counters)
        self._providing = Providing(node, self, self._asker, self.counters)
        node.transport.set_stream_handler(KAD_PROTOCOL, self._serve)

    async def run(self) -> None:
        """Tell others what is held here, and forget what they do not say again."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._providing.run)
            while True:
                await trio.sleep(_EXPIRE_S)
                self._records.expire(trio.current_time())

    def status(self) -> dict[str, Any]:
        """What the node's status says of it."""
        shown = {k: n for k, n in sorted(self.counters.items()) if k not in _REFUSALS}
        kept = {"noted": self._records.count, "contacts": self._contacts.count()}
        return {**self._providing.status(), **kept, **shown}

    def refusals(self) -> dict[str, int]:
        """Return what peers tried in vain, by what it was."""
        found = {f"refused: {words}": self.counters[name] for name, words in _REFUSALS.items()}
        return {words: count for words, count in found.items() if count}

    def on_peer_down(self, peer: str) -> None:
        """A connection is gone."""
        self._server.forget(peer)

    # -- members ----------------------------------------------------------------------------

    def is_member(self, service: str, peer: str) -> bool:
        """Say whether a peer has a role in a service now; any role does."""
        chain = self._node.core.membership.active(service)
        return chain is not None and bool(chain.now.roles_of(peer))

    def known(self, service: str) -> dict[str, tuple[str, ...]]:
        """Return the members that may be asked, with their addresses: none are needed of those
        that are connected. This node is not among them, nor who failed a moment ago."""
        found, connected = dict[str, tuple[str, ...]](), self._node.core.ctx.connected
        for peer in self._node.core.membership.members(service):
            if peer == self._transport.peer_id:
                continue
            addresses = self._addresses_of(service, peer)
            if peer in connected or addresses:
                found[peer] = addresses
        return found

    def _addresses_of(self, service: str, peer: str) -> tuple[str, ...]:
        """Return where a member is; nowhere, if it failed a moment ago and is not connected."""
        core = self._node.core
        heard, connected = core.book.heard.get(service, {}), core.ctx.connected
        if peer not in connected and self._contacts.has_failed(peer, trio.current_time()):
            return ()
        said = heard[peer].entry.addresses if peer in heard else ()
        return _merged(said, connected.get(peer, ()), self._contacts.addresses_of(peer))

    def nearest(self, service: str, job: str, count: int) -> Sequence[Contact]:
        """Return those of them that are nearest to a job's id; of each member one before any has
        two, so that nobody gets all places by keys that he made until they were near."""
        known = self.known(service)
        keys: Counter[str] = Counter()
        rows: list[tuple[int, str]] = []
        for peer in sorted(known, key=lambda peer: distance(job, peer)):
            member = self._member_of(service, peer)
            rows.append((keys[member], peer))
            keys[member] += 1
        nearest = heapq.nsmallest(count, rows, key=lambda row: row[0])  # it keeps their order
        return [Contact(peer, known[peer]) for _, peer in nearest]

    def _member_of(self, service: str, peer: str) -> str:
        chain = self._node.core.membership.active(service)
        return (chain.now.member_of(peer) if chain is not None else None) or peer

    def _locate(self, service: str, contact: Contact) -> Contact | None:
        """Return a member that somebody named, with what is known here of where it is first; None
        for whoever is no member, and for this node."""
        peer = contact.peer
        if peer == self._transport.peer_id:
            return None
        if not self.is_member(service, peer):
            self.counters["contacts_refused"] += 1
            return None
        addresses = _merged(self._addresses_of(service, peer), contact.addresses)
        is_up = peer in self._node.core.ctx.connected
        return Contact(peer, addresses) if addresses or is_up else None

    # -- serving ----------------------------------------------------------------------------

    async def _serve(self, stream: ByteStream) -> None:
        await self._server.serve(stream)

    def _holds(self, service: str, job: str) -> bool:
        return has_result(self._node.core.fold(service), job)

    async def _give(self, question: Give) -> Given:
        """Return the changes that an asker lacks, and the segments that show a job's results."""
        core = self._node.core
        service, fold = question.service, core.fold(question.service)
        results = fold.results_for(question.job)
        hashes: dict[bytes, None] = {}
        for result in results:
            request = request_for(fold, result)
            if request is not None:
                hashes[request.segment] = None
        hashes |= dict.fromkeys(segments_about(fold, question.job))
        held = [core.logs.get(h) or core.retention.get(h) for h in hashes]
        segments = tuple(segment.encode() for segment in held if segment is not None)
        if not segments:
            return Given((), ())
        changes = core.membership.chains[service].changes(
            question.start, question.after, CHANGES_PER_REPLY_MAX
        )
        outputs = [cid for result in results for cid in outputs_of(result)]
        with self._node.blocks.in_use.working():
            is_whole = await self._node.cache.is_here(service, outputs)
        return Given(tuple(change.encode() for change in changes), segments, is_whole)

    # -- looking ----------------------------------------------------------------------------

    async def look(
        self,
        service: str,
        job: str,
        holders: Sequence[Contact] = (),
        *,
        ask_members: bool = True,
        whole: bool = False,
    ) -> Giver | None:
        """Look for a job's result in a service, or ask these `holders` only; return who gave it,
        and says to have all its outputs if it is to be `whole`."""
        core = self._node.core
        chain = core.membership.active(service)
        if chain is None:
            return None
        gave: list[Giver] = []

        async def take(holder: Contact, given: Given) -> bool:
            if whole and not given.is_whole:
                return bool(gave)
            if await self._import(service, job, given):
                gave.append(Giver(holder, given.is_whole))
            else:
                self.counters["given_in_vain"] += 1
            return bool(gave)

        question = Give(service, job, chain.epoch, chain.head)
        search = Search(
            self._asker,
            question,
            partial(self._locate, service),
            take,
            partial(self._member_of, service),
        )
        search.add_holders("", holders)
        if ask_members:
            is_member, now_s = partial(self.is_member, service), trio.current_time()
            noted = self._records.holders(service, job, is_member, now_s)
            search.add_holders(self._transport.peer_id, noted)
            search.add_members(self.nearest(service, job, KAD_ASKED_MAX))
        self.counters["looks"] += 1
        found = await search.run()
        self.counters["looks_found"] += found
        return gave[0] if gave else None

    async def _import(self, service: str, job: str, given: Given) -> bool:
        """Let the core check what a holder gave; say whether a result that counts was in it."""
        fold = self._node.core.fold(service)
        if not has_result(fold, job):
            await self._node.driver.call(
                lambda call: ev.ImportEvidence(call, service, given.changes, given.segments)
            )
        return has_result(self._node.core.fold(service), job)


def has_result(fold: ServiceFold, name: str) -> bool:
    """Say whether a result of a job, or the result with this CID, is known and counts."""
    return name in fold.results or bool(fold.results_for(name))


def _merged(*sources: tuple[str, ...]) -> tuple[str, ...]:
    """Return addresses of several sources, the first source's first, no more than are told."""
    return tuple(dict.fromkeys(address for some in sources for address in some))[:ADDRESSES_MAX]
