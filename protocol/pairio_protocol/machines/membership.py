"""Membership: the services this node knows, their changes, and consent.

    unknown --a chain that names this node--> offered --accept, or a trusted admin--> taken up
        |                                        |                                      |
        +--joined by link: taken up as soon as   +--decline--> not offered again        +--leave
           a change names this node

Nobody is made a member against their will: an offered service is kept, shown, and nothing else
happens for it. Clock: none; changes have no time.
"""

import heapq
from collections.abc import Iterable
from typing import Any

from pairio_protocol.allowlist import Folded
from pairio_protocol.context import Context
from pairio_protocol.effects import JoinTopic, LeaveTopic
from pairio_protocol.errors import DecodeError, DefinitionError
from pairio_protocol.ids import rendezvous
from pairio_protocol.limits import (
    CHANGES_PER_REPLY_MAX,
    DECLINED_MAX,
    FRAME_SIZE_BYTES_MAX,
    HELLO_UNKNOWN_MAX,
    HOME_NODES,
    OFFER_WEIGHT_MAX,
    OFFER_WORK_PER_MINUTE_MAX,
    OFFERS_MAX,
    UNNAMED_MAX,
)
from pairio_protocol.machines.proposals import Proposals
from pairio_protocol.messages import Changes, Hello, HelloService, WantChanges
from pairio_protocol.names import is_alike
from pairio_protocol.service import Chain, ChangeBeyond, ChangeGap, Cut, SignedChange

__all__ = ["Membership"]

_ASKED_MAX = 1024


class Membership:
    """Chains of changes by service id, what is taken up, and the names used here."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self.chains: dict[str, Chain] = {}
        self.petnames: dict[str, str] = {}  # service -> name on this node
        self.taken_up: set[str] = set()
        self.choices: dict[str, str] = {}  # service -> what its owner said: declined, left
        self.unsaved_notes: list[tuple[str, str, bytes]] = []
        self.forgotten: list[str] = []  # services whose changes need not be kept
        self.unsaved_changes: list[tuple[str, str, int, bytes]] = []
        self.unsaved_services: set[str] = set()
        #: services that this node's owner joins by link: they come whatever else is offered, and
        #: are taken up as soon as they name this node
        self.expected: set[str] = set()
        #: public services in which this node is a guest: kept, and nothing else
        self.followed: set[str] = set()
        #: chains that come in several messages and have not named this node yet
        self._unnamed: dict[str, Chain] = {}
        self._asked_at: dict[tuple[str, str], bytes] = {}  # the digest when all was asked for
        self._offer_work = 0
        self._offer_work_ms = 0
        self.proposals = Proposals(ctx, self)

    # -- looking up -------------------------------------------------------------------

    def find(self, name: str) -> str | None:
        """Return the id of the service called `name` here, or that has this id."""
        if name in self.chains:
            return name
        return next((s for s, petname in self.petnames.items() if petname == name), None)

    def active(self, service: str) -> Chain | None:
        """Return the chain of a service that is taken up, else None."""
        return self.chains.get(service) if service in self.taken_up else None

    def folded(self, service: str) -> Folded:
        """Return the newest fold of a known service."""
        return self.chains[service].now

    def shared_with(self, peer: str) -> list[str]:
        """Return the services, taken up here, in which `peer` has a role."""
        return [s for s in sorted(self.taken_up) if self.chains[s].now.roles_of(peer)]

    def connected_members(self, service: str) -> list[str]:
        """Return the connected peers with a role in a service, sorted."""
        chain = self.active(service)
        if chain is None:
            return []
        return [p for p in sorted(self._ctx.connected) if chain.now.roles_of(p)]

    def offers(self) -> list[str]:
        """Return the services that name this node and wait for its owner."""
        return sorted(
            s
            for s, chain in self.chains.items()
            if s not in self.taken_up
            and s not in self.choices
            and chain.now.member_of(self._ctx.me)
        )

    # -- the owner's acts ---------------------------------------------------------------

    def restore(self, service: str, petname: str, taken_up: bool) -> None:
        """Take a service row from disk."""
        self.petnames[service] = petname
        if taken_up:
            self.taken_up.add(service)

    def restore_change(self, service: str, data: bytes) -> None:
        """Take a change from disk; it was valid when it was written."""
        if self.choices.get(service) == "declined":
            return
        self.chains.setdefault(service, Chain()).add(SignedChange.decode(data))

    def create(self, name: str, nonce: str) -> str:
        """Create a service; this node becomes admin, submitter and compute node. Returns its id."""
        me = self._ctx.me
        ops: list[dict[str, Any]] = [
            {"op": "create", "name": name, "admins": [me], "threshold": 1, "nonce": nonce},
            {
                "op": "add",
                "member": f"node-{me[-6:]}",
                "key": me,
                "roles": ["admin", "compute", "submit"],
            },
        ]
        chain = Chain()
        try:
            change = chain.propose(ops, [self._ctx.key], self._ctx.unix_ms)
            chain.add(change)
        except DecodeError as error:
            raise DefinitionError(f"service name {name!r}: {error}") from None
        self.chains[chain.service] = chain
        self._save(chain.service, change)
        self.take_up(chain.service)
        return chain.service

    def change(
        self,
        service: str,
        ops: list[dict[str, Any]],
        cuts: tuple[Cut, ...] = (),
        over: tuple[str, ...] = (),
    ) -> str:
        """Sign one change of a service of which this node is an admin, and take it if that is
        enough. Returns the id of the proposal when further admins have to sign, else "".

        Raises:
            DefinitionError: not an admin, or the ops do not fit.
        """
        self.check_admin(service)
        chain = self.chains[service]
        change = chain.propose(ops, [self._ctx.key], self._ctx.unix_ms, cuts, over)
        try:
            if chain.weigh(change).is_enough:
                self.take(service, change)
                return ""
        except DecodeError as error:
            raise DefinitionError(
                str(error), "see what is there: pairio service show SERVICE"
            ) from None
        self.proposals.propose(service, change)
        return change.cid

    def check_admin(self, service: str) -> None:
        """Raise DefinitionError if this node is no admin of a service."""
        folded = self.chains[service].now
        if self._ctx.me not in folded.admins:
            names = ", ".join(folded.member_of(peer) or peer for peer in folded.admins)
            raise DefinitionError(
                f"this node is no admin of {self.petnames[service]!r}",
                f"ask one of its admins: {names}",
            )

    def take(self, service: str, change: SignedChange) -> None:
        """Take a change that is signed by enough admins, and pass it on (DecodeError: invalid)."""
        chain = self.chains[service]
        chain.add(change)
        change = chain.get(change.cid)
        self._save(service, change)
        self._pass_on(service, [change], self._ctx.me)

    def append_proven(self, service: str, ops: list[dict[str, Any]], cuts: tuple[Cut, ...]) -> None:
        """Sign and take a change whose proofs make one admin's signature enough.

        Raises:
            DefinitionError: a proof is not good, the ops do not fit, or it needs more admins.
        """
        change = self.chains[service].propose(ops, [self._ctx.key], self._ctx.unix_ms, cuts)
        try:
            self.take(service, change)
        except DecodeError as error:
            raise DefinitionError(str(error)) from None

    def choose(self, service: str, choice: str) -> None:
        """Remember what the owner said of a service: declined, left, or nothing any more."""
        if choice == self.choices.get(service, ""):
            return
        self.choices.pop(service, None)
        if choice:
            self.choices[service] = choice
        if len(self.choices) > DECLINED_MAX:
            self.choose(next(iter(self.choices)), "")
        self.unsaved_notes.append(("choice", service, choice.encode()))

    def forget_followed(self, service: str) -> None:
        """Be a guest of a service no more; of what was known of it nothing stays."""
        self.followed.discard(service)
        if service not in self.taken_up and service not in self.offers():
            self._forget(service)

    def decline(self, service: str) -> None:
        """Forget an offered service but for its name, so that it is not offered again."""
        self._forget(service)
        self.choose(service, "declined")

    def _forget(self, service: str) -> None:
        if self.chains.pop(service, None) is None:
            return
        self.petnames.pop(service, None)
        self.unsaved_changes = [row for row in self.unsaved_changes if row[0] != service]
        self.unsaved_services.discard(service)
        self.forgotten.append(service)

    def take_down(self, service: str) -> None:
        """Take part no more; what is known of the service stays."""
        if service in self.taken_up:
            self.taken_up.discard(service)
            self.unsaved_services.add(service)
            self._ctx.emit(LeaveTopic(service))

    def take_up(self, service: str) -> None:
        """Become an active member: join the gossip, store, run if so configured."""
        if service in self.taken_up:
            return
        self.taken_up.add(service)
        self._name(service)
        self.unsaved_services.add(service)
        self._ctx.emit(JoinTopic(service))

    def _name(self, service: str) -> None:
        if service in self.petnames:
            return
        name = self.chains[service].now.name
        if any(is_alike(name, known) for known in self.petnames.values()):
            name = f"{name}~{service[-4:]}"
        self.petnames[service] = name

    def rename(self, service: str, name: str) -> None:
        """Call a service otherwise on this node; the name is free."""
        self.petnames[service] = name
        self.unsaved_services.add(service)

    def _save(self, service: str, change: SignedChange) -> None:
        self.unsaved_changes.append((service, change.cid, change.seq, change.encode()))
        self.unsaved_services.add(service)

    # -- peers --------------------------------------------------------------------------

    def hello(self, peer: str) -> None:
        """Say which services we share, and how far we know them; also to somebody who was removed
        and may not have heard of it."""
        services = tuple(
            HelloService(s, chain.epoch, chain.head, chain.digest)
            for s, chain in sorted(self.chains.items())
            if s in self.taken_up and chain.has_named(peer)
        )
        self._ctx.send(peer, Hello(self._ctx.config.boot, services[:256]))

    def on_hello(self, peer: str, hello: Hello) -> None:
        """Ask for what the peer knows more of, or otherwise."""
        unknown = 0
        for entry in hello.services:
            chain = self.chains.get(entry.service)
            if chain is None and self.choices.get(entry.service) != "declined":
                asked_for = entry.service in self.expected | self.followed
                asked_for = asked_for or peer in self._ctx.config.trust
                unknown += not asked_for
                if asked_for or unknown <= HELLO_UNKNOWN_MAX:  # the next hello names the rest again
                    self._ctx.send(peer, WantChanges(entry.service, 0, ""))
            if chain is None:
                continue
            if entry.digest != chain.digest:
                # Behind on the same branch: the rest of it. Otherwise there is a fork somewhere, or
                # a signature that decides one is missing here: then its head is known already.
                ahead = entry.epoch > chain.epoch and not chain.knows(entry.head)
                self._want(peer, entry.service, chain if ahead else None)
        if unknown > HELLO_UNKNOWN_MAX:
            self._ctx.refuse(peer, "a hello of more unknown services than are looked at")

    def _want(self, peer: str, service: str, chain: Chain | None) -> None:
        if chain is None:
            self._ctx.send(peer, WantChanges(service, 0, ""))
        else:
            self._ctx.send(peer, WantChanges(service, chain.epoch, chain.head))

    def on_want_changes(self, peer: str, want: WantChanges, shown: bool = False) -> None:
        """Send changes to whom the service names or has named; and if they are `shown` to him, as
        those of a public service are to a stranger."""
        chain = self.active(want.service)
        if chain is None or not (shown or chain.has_named(peer)):
            self._ctx.refuse(peer, "changes asked for by a stranger")
            return
        batch: list[bytes] = []
        size = 0
        changes = chain.changes(want.start, want.after, CHANGES_PER_REPLY_MAX + 1)
        for change in changes[:CHANGES_PER_REPLY_MAX]:
            data = change.encode()
            if batch and size + len(data) > FRAME_SIZE_BYTES_MAX - 1024:
                break
            batch.append(data)
            size += len(data)
        if batch:
            more = len(batch) < len(changes)
            self._ctx.send(peer, Changes(want.service, tuple(batch), more))

    def on_changes(self, peer: str, message: Changes) -> bool:
        """Take changes; True when a service's list has changed here."""
        fresh = message.service not in self.chains
        if fresh and self.choices.get(message.service) == "declined":
            return False
        known = self._unnamed if fresh else self.chains
        chain = known.get(message.service) or Chain()
        unasked = not self._is_wanted(message.service, chain)
        if unasked and chain.weight > OFFER_WEIGHT_MAX:
            self._unnamed.pop(message.service, None)
            self._ctx.refuse(peer, "an offer beyond what is kept")
            return False
        if unasked and peer not in self._ctx.config.trust and not self._may_look():
            self._ctx.refuse(peer, "an offer beyond what is looked at")
            return False
        before = chain.work
        try:
            return self._take_changes(peer, message, chain, fresh)
        finally:
            self._offer_work += chain.work - before if unasked else 0

    def _may_look(self) -> bool:
        """Say whether there is time for services that nobody here asked for: to read large lists
        costs much more than to send them."""
        now_ms = self._ctx.now_ms
        done = (now_ms - self._offer_work_ms) * OFFER_WORK_PER_MINUTE_MAX // 60_000
        self._offer_work = max(0, self._offer_work - done)
        self._offer_work_ms = now_ms
        return self._offer_work <= OFFER_WORK_PER_MINUTE_MAX

    def _take_changes(self, peer: str, message: Changes, chain: Chain, fresh: bool) -> bool:
        taken: list[SignedChange] = []
        last: SignedChange | None = None
        for data in message.changes[:CHANGES_PER_REPLY_MAX]:
            try:
                last = SignedChange.decode(data)
                if self._take(chain, message.service, last):
                    taken.append(last)
                if chain.weight > OFFER_WEIGHT_MAX and not self._is_wanted(message.service, chain):
                    break  # refused with the next message, if it is not to be kept at all
            except ChangeGap:
                if self._asks_for_all(peer, message.service, chain):
                    self._ctx.send(peer, WantChanges(message.service, 0, ""))
                    break
                self._ctx.refuse(peer, "a change after one that was refused")
            except ChangeBeyond:
                self._ctx.refuse(peer, "changes of one admin beyond what is kept")
            except DecodeError:
                self._ctx.refuse(peer, "invalid service change")
                if fresh:
                    self._unnamed.pop(message.service, None)
                    return False
                break
        else:
            if message.more and last is not None:
                self._ctx.send(peer, WantChanges(message.service, last.seq, last.cid))
        if not taken or not self._may_keep(peer, message, chain):
            return False
        if fresh:
            self._unnamed.pop(message.service, None)
            taken = chain.changes()
        self.chains[message.service] = chain
        taken = [chain.get(change.cid) for change in taken]  # with the signatures known before
        for change in taken:
            self._save(message.service, change)
        self._name(message.service)
        self._consider(message.service)
        self._pass_on(message.service, taken, peer)
        return True

    def _asks_for_all(self, peer: str, service: str, chain: Chain) -> bool:
        """Say whether a gap is to be closed with all that a peer knows: not again when that has
        brought nothing, since the gap is behind something that is refused."""
        if len(self._asked_at) > _ASKED_MAX:
            self._asked_at.clear()
        known = self._asked_at.get((peer, service))
        self._asked_at[peer, service] = chain.digest
        return not chain.service or known != chain.digest

    def _is_wanted(self, service: str, chain: Chain) -> bool:
        """Say whether this node's owner has asked for a service, by name or by whom he trusts."""
        asked = service in self.taken_up | self.expected | self.followed
        return asked or (bool(chain.service) and self._is_trusted(chain))

    def _may_keep(self, peer: str, message: Changes, chain: Chain) -> bool:
        """Say whether what came of a service is to be kept: anybody may make services, so of those
        that nobody here asked for only such as name this node, and only so many."""
        service = message.service
        if service in self.chains or self._is_wanted(service, chain):
            return True
        self._unnamed.pop(service, None)
        if chain.now.member_of(self._ctx.me) is None:
            if message.more:  # maybe further on
                self._unnamed[service] = chain
                if len(self._unnamed) > UNNAMED_MAX:
                    del self._unnamed[next(iter(self._unnamed))]
            else:
                self._ctx.refuse(peer, "changes of a service that does not name this node")
            return False
        if len(self.offers()) >= OFFERS_MAX:
            self._ctx.refuse(peer, "an offer beyond what is kept")
            return False
        return True

    @staticmethod
    def _take(chain: Chain, service: str, change: SignedChange) -> bool:
        taken = chain.add(change)
        if chain.service != service:
            raise DecodeError("the first change is not the service's")
        return taken

    def _consider(self, service: str) -> None:
        """Take a service up when its owner joined by link, or named one of its admins."""
        chain = self.chains[service]
        trusted = service not in self.choices and self._is_trusted(chain)
        if chain.now.member_of(self._ctx.me) and (service in self.expected or trusted):
            self.take_up(service)

    def _is_trusted(self, chain: Chain) -> bool:
        """Say whether a peer that the owner named is an admin, and has signed a change: anybody may
        name him as an admin of a service that he has never heard of."""
        admins = set(chain.now.admins) & set(self._ctx.config.trust)
        return bool(admins) and chain.has_signed(admins)

    def _pass_on(self, service: str, changes: list[SignedChange], source: str) -> None:
        """Send news to connected members, and to those who were named before."""
        chain = self.active(service)
        if chain is None:
            return
        for change in changes:
            for peer in sorted(self._ctx.connected):
                if peer != source and chain.has_named(peer):
                    self._ctx.send(peer, Changes(service, (change.encode(),), False))

    def home_nodes(self, service: str, job: str) -> list[str]:
        """Return the first HOME_NODES members by rendezvous(job, peer), connected or not."""
        peers = self.chains[service].now.peers()
        return heapq.nlargest(HOME_NODES, peers, key=lambda peer: rendezvous(job, peer))

    def members(self, service: str) -> Iterable[str]:
        """Return every key on the newest list."""
        return self.chains[service].now.peers()
