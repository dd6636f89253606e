"""Proposals: changes of a service that too few of its admins have signed yet.

    made here, or by a message, or from a file --> held --signed by enough--> taken as a change
                                                    |
                                                    +--the list has changed--> stale: shown so
                                                    +--withdrawn by the owner--> not taken again

Signatures that come separately are united; who may sign is sent what is new. Nothing is signed
unasked. Bounded for each admin who proposes, so that one cannot crowd out the others. Clock: none.
"""

from dataclasses import replace
from typing import Protocol

from pairio_protocol.context import Context
from pairio_protocol.errors import DecodeError, DefinitionError
from pairio_protocol.limits import PROPOSALS_MAX, PROPOSALS_PER_ADMIN_MAX, WITHDRAWN_MAX
from pairio_protocol.messages import Hello, Proposal
from pairio_protocol.service import Chain, ChangeGap, SignedChange, Weighed

__all__ = ["NOTE", "WITHDRAWN_NOTE", "Proposals"]

#: Kinds of notes on disk; the name is `service id`.
NOTE = "proposal"
WITHDRAWN_NOTE = "proposal withdrawn"


class _Owner(Protocol):
    """What proposals need of membership."""

    def active(self, service: str) -> Chain | None:
        """Return the chain of a service that is taken up, else None."""

    def take(self, service: str, change: SignedChange) -> None:
        """Take a change that is signed by enough admins."""


class Proposals:
    """The proposals of every service, by id: the CID that the change will have."""

    def __init__(self, ctx: Context, owner: _Owner) -> None:
        self._ctx = ctx
        self._owner = owner
        self._held: dict[str, dict[str, SignedChange]] = {}
        self._withdrawn: dict[str, dict[str, None]] = {}
        self._known: dict[str, Weighed] = {}  # by id, of those that are held
        self.unsaved: list[tuple[str, str, bytes]] = []  # (kind, name, data); without data: gone

    def of(self, service: str) -> list[Weighed]:
        """Return the proposals of a service, those that were made first first."""
        chain = self._owner.active(service)
        if chain is None:
            return []
        found = (self._weighed(chain, change) for change in self._held.get(service, {}).values())
        return sorted(found, key=lambda w: (w.document["issued"], w.change.cid))

    def count(self, service: str) -> int:
        """Return how many proposals of a service are kept."""
        return len(self._held.get(service, ()))

    def _weighed(self, chain: Chain, change: SignedChange) -> Weighed:
        """Weigh a kept change. What it does never changes, and a long list is dear to fold."""
        known = self._known.get(change.cid)
        if known is None or known.change != change:
            known = self._known[change.cid] = chain.weigh(change)
        return replace(known, is_newest=known.document["prev"] == chain.head)

    def find(self, service: str, name: str) -> Weighed:
        """Return the proposal with this id, a unique end of it, or for "" the only one that fits
        the list, or the only one.

        Raises:
            DefinitionError: none such.
        """
        proposals = self.of(service)
        found = [w for w in proposals if w.change.cid.endswith(name)]
        if not name:
            found = [w for w in found if w.is_newest] or found
        if len(found) == 1:
            return found[0]
        known = ", ".join(w.change.cid[-10:] for w in proposals) or "none"
        what = "several proposals are waiting" if found else "no proposal is waiting"
        if name:
            what = f"{len(found)} proposals end in {name!r}" if found else f"no proposal {name!r}"
        raise DefinitionError(what, f"waiting: {known}")

    def look(self, service: str, name: str, data: bytes) -> Weighed:
        """Return the proposal in `data`, which another admin gave in a file, or without it the one
        that `find` finds.

        Raises:
            DefinitionError: none such, or one that does not follow a change that is known here.
        """
        chain = self._owner.active(service)
        if not data or chain is None:
            return self.find(service, name)
        try:
            return chain.weigh(SignedChange.decode(data))
        except ChangeGap:
            raise DefinitionError(
                "the proposal follows a change that this node does not know yet",
                "connect it to a member that does, or take the changes before it by file first",
            ) from None
        except DecodeError as error:
            raise DefinitionError(
                f"no proposal for this service: {error}", "ask for the file again"
            ) from None

    # -- the owner's acts ---------------------------------------------------------------

    def propose(self, service: str, change: SignedChange) -> None:
        """Keep a change that this node has signed, and send it to those who may sign it.

        Raises:
            DefinitionError: too many are waiting.
        """
        chain = self._owner.active(service)
        assert chain is not None
        weighed = chain.weigh(change)
        if not self._make_room(service, weighed):
            raise DefinitionError(
                f"{PROPOSALS_PER_ADMIN_MAX} proposals of one admin wait for signatures, or"
                f" {PROPOSALS_MAX} of all",
                "withdraw some: pairio service withdraw NAME ID",
            )
        self._keep(service, weighed)
        self._send(service, weighed, self._ctx.me)

    def sign(self, service: str, change: SignedChange) -> bool:
        """Sign a proposal that fits; says whether it has become a change.

        Raises:
            DefinitionError: stale, or this node may not sign it.
        """
        chain = self._owner.active(service)
        assert chain is not None
        if chain.knows(change.cid):
            return False
        weighed = self._united(service, chain.weigh(change))
        if not weighed.is_newest:
            raise DefinitionError(
                "the list has changed since this was proposed: it does not fit any more",
                "propose it anew: pairio service propose NAME --renew ID",
            )
        self._take_again(service, change.cid)
        if self._ctx.me in weighed.signers:
            signed = weighed.change
        elif self._ctx.me in weighed.may_sign():
            signed = weighed.change.signed_by(self._ctx.key)
        else:
            raise DefinitionError(
                "this node is no admin who may sign it",
                f"one of these may: {', '.join(weighed.may_sign())}",
            )
        weighed = chain.weigh(signed)
        if weighed.is_enough:
            self._take(service, weighed)
            return True
        self.propose(service, signed)
        return False

    def withdraw(self, service: str, cid: str) -> None:
        """Drop a proposal here; others may hold it all the same, but it is not taken again."""
        withdrawn = self._withdrawn.setdefault(service, {})
        self.drop(service, cid)
        withdrawn[cid] = None
        self.unsaved.append((WITHDRAWN_NOTE, f"{service} {cid}", b"1"))
        if len(withdrawn) > WITHDRAWN_MAX:
            self._take_again(service, next(iter(withdrawn)))

    def drop(self, service: str, cid: str) -> None:
        """Forget a proposal: it was made anew, or is a change now."""
        self._known.pop(cid, None)
        if self._held.get(service, {}).pop(cid, None) is not None:
            self.unsaved.append((NOTE, f"{service} {cid}", b""))

    def _take_again(self, service: str, cid: str) -> None:
        """Forget that a proposal was withdrawn."""
        if cid in self._withdrawn.get(service, ()):
            del self._withdrawn[service][cid]
            self.unsaved.append((WITHDRAWN_NOTE, f"{service} {cid}", b""))

    def restore(self, kind: str, name: str, data: bytes) -> None:
        """Take a proposal from disk, or that one was withdrawn."""
        service, _, cid = name.partition(" ")
        chain = self._owner.active(service)
        if kind == WITHDRAWN_NOTE:
            self._withdrawn.setdefault(service, {})[cid] = None
        elif chain is not None and not chain.knows(cid):
            self._held.setdefault(service, {})[cid] = SignedChange.decode(data)

    # -- peers --------------------------------------------------------------------------

    def on_hello(self, peer: str, hello: Hello) -> None:
        """Send what the peer may sign, once it knows the same changes."""
        for entry in hello.services:
            chain = self._owner.active(entry.service)
            if chain is None or entry.digest != chain.digest or entry.service not in self._held:
                continue
            for weighed in self.of(entry.service):
                if weighed.is_newest and peer in weighed.may_sign():
                    self._ctx.send(peer, Proposal(entry.service, weighed.change.encode()))

    def on_proposal(self, peer: str, message: Proposal) -> bool:
        """Take a proposal from a peer; True when the service's list has changed."""
        service = message.service
        chain = self._owner.active(service)
        assert chain is not None
        try:
            change = SignedChange.decode(message.change)
            if chain.knows(change.cid) or change.cid in self._withdrawn.get(service, ()):
                return False
            came = chain.weigh(change)
        except ChangeGap:  # it comes again after the hello that follows the changes
            self._ctx.counters["proposals after a change that is not known"] += 1
            return False
        except DecodeError:
            self._ctx.refuse(peer, "an invalid proposal")
            return False
        if not {peer, self._ctx.me} <= set(came.may_sign()):
            self._ctx.refuse(peer, "a proposal to or of somebody who may not sign it")
            return False
        if not came.is_newest:
            self._ctx.counters["stale proposals"] += 1
            return False
        held = self._held.get(service, {}).get(change.cid)
        weighed = self._united(service, came)
        if weighed.is_enough:
            self._take(service, weighed)
            return True
        if held is None and not self._make_room(service, weighed):
            self._ctx.refuse(peer, "a proposal beyond what is kept")
            return False
        if held is None or len(weighed.signers) > len(held.signatures):
            self._keep(service, weighed)
            self._send(service, weighed, peer)
        if len(weighed.signers) > len(came.signers):
            self._ctx.send(peer, Proposal(service, weighed.change.encode()))
        return False

    def on_service_changed(self, service: str) -> None:
        """What has become a change is no proposal any more."""
        chain = self._owner.active(service)
        if chain is not None:
            for cid in [c for c in self._held.get(service, ()) if chain.knows(c)]:
                self.drop(service, cid)

    # -- keeping ------------------------------------------------------------------------

    def _united(self, service: str, weighed: Weighed) -> Weighed:
        """Return the proposal with the signatures that are known here too."""
        held = self._held.get(service, {}).get(weighed.change.cid)
        chain = self._owner.active(service)
        if held is None or chain is None:
            return weighed
        return chain.weigh(held.united_with(weighed.change.signatures))

    def _keep(self, service: str, weighed: Weighed) -> None:
        self._held.setdefault(service, {})[weighed.change.cid] = weighed.change
        self.unsaved.append((NOTE, f"{service} {weighed.change.cid}", weighed.change.encode()))

    def _make_room(self, service: str, weighed: Weighed) -> bool:
        """Say whether one more is kept; stale ones make room for it."""
        if weighed.change.cid in self._held.get(service, {}):
            return True
        held = self.of(service)
        own = [w for w in held if w.signers[0] == weighed.signers[0]]
        for crowd, bound in ((own, PROPOSALS_PER_ADMIN_MAX), (held, PROPOSALS_MAX)):
            if len(crowd) < bound:
                continue
            stale = next((w for w in crowd if not w.is_newest), None)
            if stale is None:
                return False
            self.drop(service, stale.change.cid)
            held = [w for w in held if w is not stale]
        return True

    def _send(self, service: str, weighed: Weighed, source: str) -> None:
        """Send a proposal to those connected who may sign it."""
        for peer in weighed.may_sign():
            if peer not in (source, self._ctx.me):
                self._ctx.send(peer, Proposal(service, weighed.change.encode()))

    def _take(self, service: str, weighed: Weighed) -> None:
        self.drop(service, weighed.change.cid)
        self._owner.take(service, weighed.change)
