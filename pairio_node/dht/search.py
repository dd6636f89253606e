"""One look-up of one job in one service.

    members near the job's id --find--> nearer ones, asked next; and holders
    holders --give--> segments, which the core checks --> found, or the next holder

Each kind of question goes to at most KAD_ASKED_MAX members, KAD_AT_ONCE at a time, and all of it
ends after KAD_LOOK_MS. Places go round among members: a second key of one is asked when no other
member is left, and holders are taken in turn from what each informant says. So neither who has many
keys, all nearest to the job's id, nor who names many that have nothing uses up others' places.
"""

from collections import Counter
from collections.abc import Awaitable, Callable, Iterable

import trio

from pairio_node.dht.asker import Asker
from pairio_protocol.kad import Contact, Find, Found, Give, Given, distance
from pairio_protocol.limits import KAD_ASKED_MAX, KAD_AT_ONCE, KAD_LOOK_MS

__all__ = ["Search"]


class Search:
    """`locate(contact)` returns a member with all addresses known of it, or None when it is none,
    or this node; `take(holder, given)` says whether what came has the result; `member_of` whose key
    a peer is."""

    def __init__(
        self,
        asker: Asker,
        question: Give,
        locate: Callable[[Contact], Contact | None],
        take: Callable[[Contact, Given], Awaitable[bool]],
        member_of: Callable[[str], str] = str,
    ) -> None:
        self._asker = asker
        self._question = question
        self._locate = locate
        self._take = take
        self._member_of = member_of
        self._near: list[tuple[int, Contact]] = []
        self._seen: set[str] = set()
        self._asked: Counter[str] = Counter()  # by member
        self._named: list[tuple[str, Contact]] = []  # (who named him, holder)
        self._tried_at: dict[str, set[str]] = {}  # holders: at which addresses
        self._tried: Counter[str] = Counter()  # by member
        self._believed: Counter[str] = Counter()  # members, by how many whom they named were tried
        self._silent: set[str] = set()  # who did not answer is not asked for anything else
        self._busy = {"find": 0, "give": 0}
        self._changed = trio.Event()
        self._found = False

    def add_members(self, members: Iterable[Contact]) -> None:
        """Members to begin with."""
        for contact in members:
            if contact.peer not in self._seen:
                self._seen.add(contact.peer)
                self._near.append((distance(self._question.job, contact.peer), contact))

    def add_holders(self, informant: str, holders: Iterable[Contact]) -> None:
        """Whom somebody says to hold a result."""
        known = (self._locate(contact) for contact in holders)
        self._named += [(informant, contact) for contact in known if contact is not None]

    async def run(self) -> bool:
        """Look; say whether a result was found."""
        with trio.move_on_after(KAD_LOOK_MS / 1000):
            async with trio.open_nursery() as nursery:
                while not self._found:
                    self._changed = trio.Event()
                    while (holder := self._next_holder()) is not None:
                        self._busy["give"] += 1
                        nursery.start_soon(self._give, holder)
                    while (member := self._next_member()) is not None:
                        self._busy["find"] += 1
                        nursery.start_soon(self._find, member)
                    if not any(self._busy.values()):
                        break
                    await self._changed.wait()
                nursery.cancel_scope.cancel()
        return self._found

    def _next_member(self) -> Contact | None:
        if self._busy["find"] >= KAD_AT_ONCE or self._asked.total() >= KAD_ASKED_MAX:
            return None
        if not self._near:
            return None
        best = min(self._near, key=lambda row: (self._asked[self._member_of(row[1].peer)], row[0]))
        self._near.remove(best)
        self._asked[self._member_of(best[1].peer)] += 1
        return best[1]

    def _next_holder(self) -> Contact | None:
        """Return the next holder, of another member and another informant each time; one that
        failed is asked again only at other addresses."""
        if self._busy["give"] >= KAD_AT_ONCE or self._tried.total() >= KAD_ASKED_MAX:
            return None
        self._named = [row for row in self._named if self._is_new(row[1])]
        if not self._named:
            return None
        best = min(self._named, key=self._turn)
        self._named.remove(best)
        informant, holder = best
        self._tried_at.setdefault(holder.peer, set()).update(holder.addresses)
        self._tried[self._member_of(holder.peer)] += 1
        self._believed[self._member_of(informant)] += 1
        return holder

    def _is_new(self, holder: Contact) -> bool:
        tried_at = self._tried_at.get(holder.peer)
        if holder.peer in self._silent:
            return False
        return tried_at is None or bool(set(holder.addresses) - tried_at)

    def _turn(self, named: tuple[str, Contact]) -> tuple[int, int]:
        informant, holder = named
        believed = self._believed[self._member_of(informant)]
        return self._tried[self._member_of(holder.peer)] + believed, believed

    async def _find(self, member: Contact) -> None:
        try:
            question = Find(self._question.service, self._question.job)
            answer = await self._asker.ask(member, question, Found)
            if answer is None:
                self._silent.add(member.peer)
            else:
                self.add_holders(member.peer, answer.providers)
                closer = (self._locate(contact) for contact in answer.closer)
                self.add_members(contact for contact in closer if contact is not None)
        finally:
            self._busy["find"] -= 1
            self._changed.set()

    async def _give(self, holder: Contact) -> None:
        try:
            given = await self._asker.give(holder, self._question)
            if given is not None and await self._take(holder, given):
                self._found = True
        finally:
            self._busy["give"] -= 1
            self._changed.set()
