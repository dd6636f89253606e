"""A service: the signed list of who may do what, as a chain of changes and its fold.

A change is `{type, v, seq, prev, ops, cuts, over, state, issued}` in DAG-CBOR with signatures
beside it. The service's id is the CID of the first one. `Chain` holds every valid change, the
branch that wins, and the folded document after each of its changes, so that any epoch (the seq of
a change) can be asked for its members.

Source: DESIGN section 5. The rule at a fork is applied at the first divergence, never by length.
"""

from bisect import bisect_right, insort
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

from pairio_protocol.allowlist import Folded, apply_ops, is_count
from pairio_protocol.changes import (
    ChangeBeyond,
    ChangeGap,
    Cut,
    Cutting,
    SignedChange,
    Told,
    Weighed,
    parse_cuts,
    signed_bytes,
)
from pairio_protocol.documents import decode, document_cid, encode
from pairio_protocol.errors import DecodeError, DefinitionError
from pairio_protocol.ids import LogId
from pairio_protocol.limits import (
    CHANGE_SIZE_BYTES_MAX,
    CHANGES_MAX,
    SERVICE_SIZE_BYTES_MAX,
    SIBLINGS_MAX,
)
from pairio_protocol.proofs import Place, is_proven
from pairio_protocol.signing import SigningKey, sha256, verify

__all__ = [
    "Chain",
    "ChangeBeyond",
    "ChangeGap",
    "Cut",
    "Cutting",
    "SignedChange",
    "Told",
    "Weighed",
]

_CHANGE_FIELDS = {"type", "v", "seq", "prev", "ops", "cuts", "over", "state", "issued"}


@dataclass(frozen=True)
class _Link:
    """One valid change. Its validity rests on its ancestors only."""

    cid: str
    seq: int
    prev: str | None
    change: SignedChange
    signers: tuple[str, ...]
    folded: Folded
    removes: frozenset[str]
    lost: dict[str, frozenset[str]]
    cuts: dict[LogId, Cut]
    over: tuple[str, ...]
    #: signatures without which it would not be valid
    needed: int
    #: of the folded document
    size_bytes: int


@dataclass(frozen=True)
class _Below:
    """What a change and those that follow it come to, on whatever branch: the keys that they
    remove, and whether one of them has the signatures of its threshold."""

    removes: frozenset[str]
    is_strong: bool


class Chain:
    """All valid changes of one service that this node knows, and the branch that wins.

    The winning branch and everything derived from it are functions of the set of changes: the
    order in which they came does not matter. Losing branches are kept and passed on, since their
    removals and cuts apply too. Nothing is mutated by a refused change.
    """

    def __init__(self) -> None:
        self._known: dict[str, _Link] = {}
        self._children: dict[str, list[str]] = {}
        self._order: list[tuple[int, str]] = []  # (seq, CID) of all that are known, sorted
        self._root = ""
        self._links: list[_Link] = []
        self._folds: list[Folded] = []
        self._now: Folded | None = None
        self._cuttings: dict[str, list[Cutting]] = {}
        self._named: set[str] = set()  # keys that any branch ever had on the list
        self._mix = bytes(32)
        self._weight = 0
        self._work = 0
        self._losers: list[_Link] = []  # of other branches than the winning one, by seq
        self._over: set[str] = set()  # what the winning branch signs over
        self._deepest = -1  # the highest seq of any branch
        #: how often a fork made the past another one: who was what at an epoch
        self.rewrites = 0

    @property
    def service(self) -> str:
        """The service's id."""
        return self._root

    @property
    def epoch(self) -> int:
        """The seq of the newest change of the winning branch."""
        return len(self._links) - 1

    def epoch_of_new(self, author: str) -> int:
        """Return the epoch under which an author writes now: that of the newest change, or of a
        later one on a losing branch that took something from him. It cuts away whatever he writes
        under an earlier one."""
        return max([self.epoch, *(cutting.epoch for cutting in self.cuttings(author))])

    @property
    def head(self) -> str:
        """The CID of the newest change of the winning branch."""
        return self._links[-1].cid

    @property
    def digest(self) -> bytes:
        """A hash over all known changes and who signed them (xor: order does not matter)."""
        return self._mix

    @property
    def now(self) -> Folded:
        """The folded document after the newest change, less what any losing branch took away: also
        one that is longer, whose cuts apply to all that is written now."""
        assert self._now is not None
        return self._now

    def at(self, epoch: int) -> Folded | None:
        """Return the fold after change `epoch`, None when that is not known here.

        What losing branches took away is taken away here too, until a change signs over them. Who
        wrote under a losing branch that is longer than the winning one is judged by the newest
        change, until there is one with that seq.
        """
        if len(self._folds) <= epoch <= self._deepest:
            return self.now
        return self._folds[epoch] if 0 <= epoch < len(self._folds) else None

    @property
    def weight(self) -> int:
        """About how much memory the chain takes, in bytes: each change has its own list."""
        return self._weight

    @property
    def work(self) -> int:
        """About how much there was to do for the chain: a unit is a byte of a document that is made
        and hashed; an op costs some for each member."""
        return self._work

    def has_signed(self, admins: set[str]) -> bool:
        """Say whether one of these admins has signed a change of the winning branch."""
        return any(admins.intersection(link.signers) for link in self._links)

    def knows(self, cid: str) -> bool:
        """Say whether a change is known, on whatever branch."""
        return cid in self._known

    def has_named(self, peer: str) -> bool:
        """Say whether a key is or was on the list, on whatever branch."""
        return peer in self._named

    def cuttings(self, author: str) -> list[Cutting]:
        """Return what changes of every branch took from a key."""
        return self._cuttings.get(author, [])

    def losing_heads(self) -> list[str]:
        """Return the ends of the branches that lost and that no change has signed over."""
        winners = {link.cid for link in self._links}
        over = self._over
        return sorted(
            cid
            for cid in self._known
            if cid not in winners and cid not in over and not self._children.get(cid)
        )

    def changes(
        self, start: int = 0, after: str = "", most: int | None = None
    ) -> list[SignedChange]:
        """Return the known changes behind (seq `start`, CID `after`), in that order; `most` of
        them, or all."""
        first = bisect_right(self._order, (start, after))
        last = None if most is None else first + most
        return [self._known[cid].change for _, cid in self._order[first:last]]

    def add(self, change: SignedChange) -> bool:
        """Take a change, or further admins' signatures of a known one. False when it is no news.

        Two admins may do the same thing in the same millisecond: that is one change with two
        signatures, and who signed decides a fork. So signatures are united.

        Raises:
            DecodeError: invalid. The chain is as before.
            ChangeBeyond: its signers have signed too many after the same one.
            ChangeGap: the change before it must come first. The chain is as before.
        """
        cid = change.cid
        if cid in self._known:
            return self._add_signers(self._known[cid], change)
        document, seq, prev = self._read(change)
        link = self._validated(document, change, seq, prev)
        self._check_siblings(link)
        self._known[cid] = link
        insort(self._order, (seq, cid))
        self._weight += len(change.body) + link.size_bytes
        self._work += len(change.body) * len(link.folded.members) // 20 + link.size_bytes
        self._named |= _added(document["ops"])
        if prev is None:
            self._root = cid
        else:
            self._children.setdefault(prev, []).append(cid)
        self._stir(link)
        if self._links and prev == self.head:
            self._extend(link)
        else:
            self._deepest = max(self._deepest, seq)
            self._choose()
        return True

    def _check_siblings(self, link: _Link) -> None:
        """Refuse what goes on with a flood. It is counted for each signer, so that one admin who
        signs without end keeps out no change of another."""
        siblings = self._children.get(link.prev or "", ())
        signed = Counter(peer for cid in siblings for peer in self._known[cid].signers)
        if all(signed[peer] >= SIBLINGS_MAX for peer in link.signers):
            raise ChangeBeyond(f"more than {SIBLINGS_MAX} changes of one admin after one")

    def story(self) -> list[Told]:
        """Return every known change, by seq, those that count first."""
        winners = {link.cid for link in self._links}
        over = self._over
        told = [(link, self._told(link, winners, over)) for link in self._known.values()]
        told.sort(key=lambda pair: (pair[0].seq, pair[1].fate != "counts", pair[0].cid))
        return [one for _, one in told]

    def _told(self, link: _Link, winners: set[str], over: set[str]) -> Told:
        lost = "over" if link.cid in over else "lost"
        fate = "counts" if link.cid in winners else lost
        before = self._known[link.prev].folded if link.prev is not None else None
        document = decode(link.change.body, CHANGE_SIZE_BYTES_MAX)
        signers = tuple(dict.fromkeys(p for p, _ in link.change.signatures))
        signers = tuple(peer for peer in signers if peer in link.signers)
        return Told(link.change, document, signers, link.needed, before, fate)

    def taken_from(self, peer: str, role: str) -> Told | None:
        """Return the change by which a peer is without a role now; None if nobody took it."""
        if role in self.now.roles_of(peer):
            return None
        winners = {link.cid for link in self._links}
        losses = [link for link in self._known.values() if role in link.lost.get(peer, ())]
        if self.now.ended:
            losses.append(next(link for link in self._links if link.folded.ended))
        if not losses:
            return None
        newest = max(losses, key=lambda link: (link.cid in winners, link.seq, link.cid))
        return self._told(newest, winners, self._over)

    def weigh(self, change: SignedChange) -> Weighed:
        """Look at a change that at least one admin has signed, without taking it.

        Raises:
            DecodeError: it would be invalid whoever signed it.
            ChangeGap: the change before it is not known here.
        """
        document, seq, prev = self._read(change)
        if prev is None:
            raise DecodeError("a first change cannot be proposed")
        link = self._validated(document, change, seq, prev, is_enough=False)
        before = self._known[prev].folded
        try:
            self._validated(document, change, seq, prev)
            is_enough = True
        except DecodeError:
            is_enough = False
        signed = link.change
        signers = tuple(peer for peer, _ in signed.signatures)
        newest = prev == self.head
        return Weighed(signed, document, before, link.folded, signers, is_enough, newest)

    def _read(self, change: SignedChange) -> tuple[dict[str, Any], int, str | None]:
        """Return a change's document, seq and prev; the change before it is known."""
        document = decode(change.body, CHANGE_SIZE_BYTES_MAX)
        if set(document) != _CHANGE_FIELDS or document["type"] != "pairio/change":
            raise DecodeError("not a service change")
        seq = document["seq"]
        counts = (document["v"], seq, document["issued"])
        if not all(map(is_count, counts)) or document["v"] != 1:
            raise DecodeError("not a service change of version 1")
        if not 0 <= seq <= CHANGES_MAX or len(self._known) > CHANGES_MAX:
            raise DecodeError(f"change {seq} is not between 0 and {CHANGES_MAX}")
        prev = document["prev"]
        if prev is not None and not isinstance(prev, str):
            raise DecodeError("`prev` is no CID")
        if seq == 0 and (prev is not None or self._known):
            raise DecodeError("another service's first change")
        if seq and prev not in self._known:
            raise ChangeGap(f"change {seq} comes after one that is not known here")
        return document, seq, prev

    def _add_signers(self, known: _Link, change: SignedChange) -> bool:
        message = signed_bytes(change.body)
        before = self._known[known.prev].folded if known.prev is not None else known.folded
        fresh = {
            p: s
            for p, s in change.signatures
            if p in before.admins and p not in known.signers and verify(p, message, s)
        }
        if not fresh:
            return False
        united = SignedChange(change.body, (*known.change.signatures, *sorted(fresh.items())))
        signers = tuple(sorted({*known.signers, *fresh}))
        self._stir(known)
        self._known[known.cid] = replace(known, change=united, signers=signers)
        self._stir(self._known[known.cid])
        self._choose()
        return True

    def _stir(self, link: _Link) -> None:
        """Put a change into the digest, or take it out again."""
        own = sha256("|".join((link.cid, *link.signers)).encode())
        self._mix = bytes(a ^ b for a, b in zip(self._mix, own, strict=True))

    def get(self, cid: str) -> SignedChange:
        """Return a known change with all signatures (KeyError otherwise)."""
        return self._known[cid].change

    def _validated(
        self,
        document: dict[str, Any],
        change: SignedChange,
        seq: int,
        prev: str | None,
        is_enough: bool = True,
    ) -> _Link:
        """Return the link that a change makes; with `is_enough` False one signature is enough."""
        parent = self._known[prev] if prev is not None else None
        if parent is not None and parent.seq != seq - 1:
            raise DecodeError(f"change {seq} follows change {parent.seq}")
        before = parent.folded if parent else None
        ops, needed = document["ops"], 1
        if before is not None:
            # Signing over a removal gives back what the threshold took: no proof is enough for it.
            proven = is_proven(ops) and not document["over"]
            needed = 1 if proven or not is_enough else before.threshold
            # First: whoever did not sign costs no folding.
            signers = _signers(change, before, needed)
        cuts = document["cuts"] if isinstance(document["cuts"], list) else []
        place = Place(self._root, seq, document["issued"], tuple(cuts))
        folded, removes = apply_ops(before, ops, place)
        if before is None:
            signers, needed = _signers(change, folded, folded.threshold), folded.threshold
        elif is_enough and (folded.admins, folded.threshold) != (before.admins, before.threshold):
            needed = before.threshold  # also when an admin leaves
            _signers(change, before, needed)
            _signers(change, folded, folded.threshold)
        removes |= frozenset(before.admins if before else ()) - frozenset(folded.admins)
        data = encode(folded.document())
        if len(data) > SERVICE_SIZE_BYTES_MAX or document["state"] != document_cid(data):
            raise DecodeError(f"change {seq} states another document than it makes")
        lost = _lost(before, folded)
        parsed = parse_cuts(document["cuts"], lost)
        over = document["over"]
        if not isinstance(over, list) or not all(isinstance(c, str) for c in over):
            raise DecodeError("`over` is not a list of CIDs")
        return _Link(
            change.cid,
            seq,
            prev,
            _tidy(change, before or folded, folded),
            signers,
            folded,
            removes,
            lost,
            parsed,
            tuple(over),
            needed,
            len(data),
        )

    # -- which branch wins, and what follows ----------------------------------------------

    def _extend(self, link: _Link) -> None:
        """What `_choose` comes to when a change follows the newest one: a branch that grows wins
        where it won before, and what it was at earlier epochs stays so."""
        if link.seq <= self._deepest:  # what was judged by the newest change
            self.rewrites += 1
        self._deepest = max(self._deepest, link.seq)
        self._links.append(link)
        self._sign_over(link, self._over)
        self._folds.append(self._barred(link, link.seq))
        self._now = self._barred(link, self._deepest)
        for key in link.lost:
            cuttings = self._cuttings.setdefault(key, [])
            cuttings.append(Cutting(link.seq, link.cuts))

    def _choose(self) -> None:
        """Walk from the root, at every divergence to the winner; derive folds and cuttings."""
        self.rewrites += 1
        by_seq = sorted(self._known.values(), key=lambda k: (k.seq, k.cid))
        below = self._below(by_seq)
        links = [self._known[self._root]]
        while children := self._children.get(links[-1].cid):
            siblings = [self._known[cid] for cid in children]
            links.append(_winner(siblings, below, links[-1].folded))
        self._links = links
        winners = {link.cid for link in links}
        self._losers = [link for link in by_seq if link.cid not in winners]
        self._over = set()
        self._folds = []
        barred: dict[str, frozenset[str]] = {}
        start = 0
        for link in links:
            end = bisect_right(self._losers, link.seq, lo=start, key=lambda k: k.seq)
            if self._sign_over(link, self._over):
                barred = self._taken_away({}, self._losers[:end])
            elif end > start:
                barred = self._taken_away(barred, self._losers[start:end])
            self._folds.append(replace(link.folded, barred=barred) if barred else link.folded)
            start = end
        self._now = self._barred(links[-1], self._deepest)
        self._cuttings = {}
        for link in by_seq:
            for key in link.lost:
                self._cuttings.setdefault(key, []).append(Cutting(link.seq, link.cuts))

    def _below(self, by_seq: list[_Link]) -> dict[str, _Below]:
        """Return what each change and those that follow it come to."""
        below: dict[str, _Below] = {}
        for link in reversed(by_seq):
            own = _Below(link.removes, self._is_strong(link))
            for cid in self._children.get(link.cid, ()):
                more = below[cid]
                removes = own.removes | more.removes if more.removes else own.removes
                own = _Below(removes, own.is_strong or more.is_strong)
            below[link.cid] = own
        return below

    def _is_strong(self, link: _Link) -> bool:
        """Say whether the threshold signed a change, or only one admin, for its proofs."""
        before = self._known[link.prev].folded if link.prev is not None else link.folded
        return len(link.signers) >= before.threshold

    def _barred(self, link: _Link, until_seq: int) -> Folded:
        """Return the fold after `link`, the newest so far, without what losing changes up to a seq
        took away."""
        end = bisect_right(self._losers, until_seq, key=lambda k: k.seq)
        barred = self._taken_away({}, self._losers[:end])
        return replace(link.folded, barred=barred) if barred else link.folded

    def _taken_away(
        self, before: dict[str, frozenset[str]], losers: list[_Link]
    ) -> dict[str, frozenset[str]]:
        """Return the roles that losing changes took, unless they are signed over, and `before`."""
        taking = [link for link in losers if link.lost and link.cid not in self._over]
        barred = dict(before) if taking else before
        for loser in taking:
            for key, roles in loser.lost.items():
                barred[key] = barred.get(key, frozenset()) | roles
        return barred

    def _sign_over(self, link: _Link, over: set[str]) -> bool:
        """Put what a winning change signs over, ancestors included, to `over`; was it news?"""
        count = len(over)
        for cid in link.over:
            at: str | None = cid
            while at in self._known and at not in over:
                over.add(at)
                at = self._known[at].prev
        return len(over) > count

    def propose(
        self,
        ops: list[dict[str, Any]],
        keys: list[SigningKey],
        unix_ms: int,
        cuts: tuple[Cut, ...] = (),
        over: tuple[str, ...] = (),
    ) -> SignedChange:
        """Return the change that does `ops` after the newest one, signed by `keys`.

        Args:
            cuts: the last segments that count of keys that lose something; logs that are not
                named are cut at 0.
            over: heads of losing branches whose removals are not to apply any more.

        Raises:
            DefinitionError: the ops do not fit, or the change would be too large.
        """
        before = self._links[-1].folded if self._links else None
        try:
            place = Place(self._root, len(self._links), unix_ms, tuple(c.plain() for c in cuts))
            folded, _ = apply_ops(before, ops, place)
        except DecodeError as error:
            raise DefinitionError(
                str(error), "see what is there: pairio service show SERVICE"
            ) from None
        body = encode(
            {
                "type": "pairio/change",
                "v": 1,
                "seq": len(self._links),
                "prev": self._links[-1].cid if self._links else None,
                "ops": ops,
                "cuts": [cut.plain() for cut in cuts],
                "over": list(over),
                "state": document_cid(encode(folded.document())),
                "issued": unix_ms,
            }
        )
        if len(body) > CHANGE_SIZE_BYTES_MAX:
            raise DefinitionError(
                f"the change has {len(body)} bytes; at most {CHANGE_SIZE_BYTES_MAX}"
            )
        message = signed_bytes(body)
        return SignedChange(body, tuple((key.peer, key.sign(message)) for key in keys))


def _winner(siblings: list[_Link], below: dict[str, _Below], before: Folded) -> _Link:
    """Return which of the changes that follow one change wins (DESIGN section 5).

    A branch (a change and all that follow it) without whose removed signers a sibling would lack
    its threshold disarms that sibling; of those that nobody disarms one-sidedly, branches with a
    change that the threshold signed go before those of changes that needed one signature: else one
    admin, even a removed one, could undo what all have signed, from any change of one signature on.
    Then the earliest signers in the previous admin list win, then the smaller CID. Chosen among the
    set, since in pairs the rule may go round in a circle.
    """
    if len(siblings) == 1:
        return siblings[0]

    def disarms(one: _Link, other: _Link) -> bool:
        return len(set(other.signers) - below[one.cid].removes) < other.needed

    disarmers = [link for link in siblings if below[link.cid].removes]
    armed = [
        link
        for link in siblings
        if not any(disarms(other, link) and not disarms(link, other) for other in disarmers)
    ]
    rank = {peer: number for number, peer in enumerate(before.admins)}

    def order(link: _Link) -> tuple[bool, bool, list[int], str]:
        is_weak = len(link.signers) < before.threshold
        places = sorted(rank[p] for p in link.signers)
        return not below[link.cid].is_strong, is_weak, places, link.cid

    return min(armed or siblings, key=order)


def _added(ops: list[dict[str, Any]]) -> set[str]:
    return {op["key"] for op in ops if op["op"] == "add"}


def _signers(change: SignedChange, folded: Folded, needed: int) -> tuple[str, ...]:
    """Return the admins who signed, sorted; DecodeError when they are fewer than are needed."""
    message = signed_bytes(change.body)
    found = {p for p, s in change.signatures if p in folded.admins and verify(p, message, s)}
    if len(found) < needed:
        raise DecodeError(f"{len(found)} admins signed a change; {needed} are needed")
    return tuple(sorted(found))


def _tidy(change: SignedChange, before: Folded, after: Folded) -> SignedChange:
    """Return a change with the right signatures of admins only, each once: whoever passes it on
    could add others, until it is too large to be passed on."""
    message = signed_bytes(change.body)
    admins = {*before.admins, *after.admins}
    right: dict[str, bytes] = {}
    for peer, signature in change.signatures:
        if peer in admins and peer not in right and verify(peer, message, signature):
            right[peer] = signature
    return SignedChange(change.body, tuple(right.items()))


def _lost(before: Folded | None, after: Folded) -> dict[str, frozenset[str]]:
    """Return the roles that every key has lost."""
    if before is None:
        return {}
    lost = {}
    for key in before.peers():
        gone = frozenset(before.roles_of(key)) - frozenset(after.roles_of(key))
        if gone and not after.ended:
            lost[key] = gone
    return lost
