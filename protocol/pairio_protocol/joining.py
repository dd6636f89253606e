"""Joining: the wishes of others, at members of a service.

    wish --granted already--------------------------------> answer `granted`
         --this node is an admin: good proof--> change ----> answer `granted`
         |                        bad proof----------------> answer `refused`, and why
         |                        none, or not known yet --> held, answer `waits`
         --it is not: held, passed on to connected admins; their answers are passed back

Held wishes are looked at again when the list changes and when an admin is connected. They are
bounded in number, by sender and altogether; those whose proof is not known to be good go first.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pairio_protocol.codec import pack, unpack
from pairio_protocol.effects import WishChanged
from pairio_protocol.errors import DecodeError, DefinitionError
from pairio_protocol.limits import (
    DECLINED_MAX,
    WISH_EXPIRY_MS,
    WISHES_HELD_MAX,
    WISHES_PER_PEER_MAX,
)
from pairio_protocol.messages import WishAnswer, WishMessage
from pairio_protocol.service import Chain
from pairio_protocol.signing import sha256
from pairio_protocol.wishes import SOFT, Wish, is_granted, is_proven, op_for, why_refused

if TYPE_CHECKING:
    from pairio_protocol.core import NodeCore

__all__ = ["DENIED_NOTE", "NOTE", "Held", "Joining"]

#: Kinds of notes on disk; the name is the wish's hash.
NOTE = "held wish"
DENIED_NOTE = "denied wish"


@dataclass
class Held:
    """A wish that waits: who brought it, when, and what was answered last. `epoch` is the newest
    change that was known then."""

    wish: Wish
    data: bytes
    source: str
    at_unix_ms: int
    epoch: int = 0
    code: str = ""
    proven: bool = False

    @property
    def hash(self) -> bytes:
        """The hash that answers name."""
        return sha256(self.data)

    @property
    def id(self) -> str:
        """The wish's name for people."""
        return self.hash.hex()[:16]


class Joining:
    """Wishes of others, by service and hash."""

    def __init__(self, core: "NodeCore") -> None:
        self._core = core
        self._ctx = core.ctx
        self.held: dict[str, dict[bytes, Held]] = {}
        self.unsaved: list[tuple[str, str, bytes]] = []
        self._denied: dict[bytes, None] = {}
        self._looking = False
        self._look_again: set[str] = set()

    # -- from peers -----------------------------------------------------------------------

    def on_wish(self, peer: str, message: WishMessage) -> None:
        """Grant a wish, pass it on, or say why not."""
        try:
            wish = Wish.decode(message.wish)
        except DecodeError:
            self._ctx.refuse(peer, "an invalid wish")
            return
        chain = self._core.membership.active(wish.service)
        epoch = chain.epoch if chain is not None else 0
        held = Held(wish, message.wish, peer, self._ctx.unix_ms, epoch)
        if chain is None:
            self._ctx.refuse(peer, "a wish for a service that is not here")
            self._answer(held, "refused", "unknown_service")
        elif peer != wish.peer and not chain.now.roles_of(peer):
            self._ctx.refuse(peer, "a wish passed on by a stranger")
        else:
            self._see_to(chain, held)

    def on_answer(self, peer: str, answer: WishAnswer) -> bool:
        """Pass an admin's answer on to whoever has the wish; False when it is not held here."""
        held = self.held.get(answer.service, {}).get(answer.wish)
        chain = self._core.membership.active(answer.service)
        if held is None or chain is None or peer not in chain.now.admins:
            return False
        self._answer(held, answer.state, answer.code)
        if answer.state != "waits":
            self._drop(held)
        return True

    def on_peer_up(self, peer: str) -> None:
        """Somebody is connected: an admin is told what waits for one."""
        for service, waiting in self.held.items():
            chain = self._core.membership.active(service)
            if chain is not None and peer in chain.now.admins:
                for held in waiting.values():
                    self._ctx.send(peer, WishMessage(held.data))

    def on_service_changed(self, service: str) -> None:
        """The list has changed: look at what waits again. What that changes is looked at after."""
        self._look_again.add(service)
        if self._looking:
            return
        self._looking = True
        try:
            while self._look_again:
                self._look(self._look_again.pop())
        finally:
            self._looking = False

    def _look(self, service: str) -> None:
        chain = self._core.membership.active(service)
        for held in list(self.held.get(service, {}).values()):
            if chain is None:
                self._drop(held)
            elif self._is_over(chain, held) or (
                held.code in SOFT and self._ctx.me in chain.now.admins
            ):
                self._see_to(chain, held)

    @staticmethod
    def _is_over(chain: Chain, held: Held) -> bool:
        """Say whether a wish is granted, or an admin gave other roles than were asked for."""
        wish, joined = held.wish, chain.now.past.joined
        decided = wish.kind == "request" and joined.get(wish.peer, -1) > held.epoch
        return decided or is_granted(wish, chain.now)

    # -- deciding -------------------------------------------------------------------------

    def _see_to(self, chain: Chain, held: Held) -> None:
        wish = held.wish
        if self._is_over(chain, held):
            self._drop(held)
            self._answer(held, "granted", "")
            self._core.membership.hello(wish.peer)
        elif held.hash in self._denied:
            self._answer(held, "refused", "denied")
        elif self._ctx.me in chain.now.admins:
            self._decide(chain, held)
        elif self._hold(chain, held, "waits_admin"):
            self._answer(held, "waits", "waits_admin")
            for peer in chain.now.admins:
                self._ctx.send(peer, WishMessage(held.data))

    def _decide(self, chain: Chain, held: Held) -> None:
        """This node is an admin: append what has its proof; keep what a person decides."""
        wish = held.wish
        code = why_refused(wish, chain.now, self._ctx.unix_ms)
        if not code and wish.kind == "request":
            code = "waits_approval"
        if not code:
            try:
                self.grant(chain, held)
            except DefinitionError:
                # Its signature does not fit, or this needs more admins than one.
                code = "waits_approval" if self._is_an_admins_leave(chain, wish) else "bad_proof"
        if not code:
            return
        if code in SOFT or code == "waits_approval":
            if self._hold(chain, held, code):
                self._answer(held, "waits", code)
        else:
            self._ctx.counters[f"wishes refused: {code}"] += 1
            self._drop(held)
            self._answer(held, "refused", code)

    @staticmethod
    def _is_an_admins_leave(chain: Chain, wish: Wish) -> bool:
        return wish.kind == "leave" and wish.peer in chain.now.admins

    def grant(self, chain: Chain, held: Held) -> None:
        """Append what a proven wish is for, and tell its peer.

        Raises:
            DefinitionError: its proof is not good, or the list has no place.
        """
        wish, service = held.wish, held.wish.service
        self._core.membership.append_proven(service, [op_for(wish, chain.now)], wish.cuts())
        self._drop(held)
        self._answer(held, "granted", "")
        self._core.intake.on_service_changed(service)
        self._core.membership.hello(wish.peer)

    # -- the owner's word -------------------------------------------------------------------

    def waiting(self, service: str) -> list[Held]:
        """Return what waits for an admin's word, oldest first."""
        return [h for h in self.held.get(service, {}).values() if h.code == "waits_approval"]

    def find(self, service: str, name: str) -> Held:
        """Return the wish that a person names; DefinitionError if it is none or not one."""
        waiting = self.waiting(service)
        found = [h for h in waiting if h.id.startswith(name) or h.wish.peer.endswith(name)]
        if len(found) != 1 or not name:
            known = ", ".join(h.id for h in waiting) or "none"
            what = "several requests" if len(found) > 1 else "no request"
            raise DefinitionError(f"{what} {name!r}", f"waiting: {known}")
        return found[0]

    def deny(self, held: Held) -> None:
        """Refuse a wish, now and when it is said again."""
        self._denied[held.hash] = None
        self.unsaved.append((DENIED_NOTE, held.hash.hex(), b"1"))
        if len(self._denied) > DECLINED_MAX:
            oldest = next(iter(self._denied))
            del self._denied[oldest]
            self.unsaved.append((DENIED_NOTE, oldest.hex(), b""))
        self._drop(held)
        self._answer(held, "refused", "denied")

    # -- keeping --------------------------------------------------------------------------

    def _hold(self, chain: Chain, held: Held, code: str) -> bool:
        """Keep a wish; False, and counted, when there is no place for it."""
        waiting = self.held.setdefault(held.wish.service, {})
        known = waiting.get(held.hash)
        if known is None:
            held.proven = is_proven(held.wish, chain.now, chain.epoch, self._ctx.unix_ms)
            if not self._make_place(held):
                self._ctx.refuse(held.source, "a wish beyond what is kept")
                self._answer(held, "refused", "full")
                return False
            waiting[held.hash] = known = held
        known.source = held.source
        if known.code != code:
            known.code = code
            self._save(known)
        return True

    def _make_place(self, held: Held) -> bool:
        """Older wishes of the same peer go, and what waited too long; then, of one who brings too
        many, or of all, the oldest whose proof is not known to be good. They are said again."""
        for old in self._everything():
            same = (old.wish.peer, old.wish.service) == (held.wish.peer, held.wish.service)
            if same or self._ctx.unix_ms - old.at_unix_ms > WISH_EXPIRY_MS:
                self._drop(old)
        kept = self._everything()
        brought = [h for h in kept if h.source == held.source]
        if len(brought) >= WISHES_PER_PEER_MAX:
            kept = brought
        elif len(kept) < WISHES_HELD_MAX:
            return True
        weakest = next((h for h in kept if not h.proven), None)
        if weakest is None:
            return False
        self._ctx.counters["wishes that made place for newer ones"] += 1
        self._drop(weakest)
        return True

    def _everything(self) -> list[Held]:
        return [h for waiting in self.held.values() for h in waiting.values()]

    def forget_service(self, service: str) -> None:
        """This node takes part in a service no more."""
        for held in list(self.held.pop(service, {}).values()):
            self.unsaved.append((NOTE, held.hash.hex(), b""))

    def _save(self, held: Held) -> None:
        """Keep on disk what waits for a person; the rest is said again by its peer."""
        if held.code == "waits_approval":
            data = pack([held.data, held.source, held.at_unix_ms, held.epoch, held.code])
            self.unsaved.append((NOTE, held.hash.hex(), data))
        self._ctx.emit(WishChanged(held.wish.service))

    def _drop(self, held: Held) -> None:
        waiting = self.held.get(held.wish.service, {})
        known = waiting.pop(held.hash, None)
        if known is not None:
            if known.code == "waits_approval":
                self.unsaved.append((NOTE, held.hash.hex(), b""))
            self._ctx.emit(WishChanged(held.wish.service))

    def restore(self, kind: str, name: str, data: bytes) -> None:
        """Take from disk a held wish, or that one was denied."""
        if kind == DENIED_NOTE:
            self._denied[bytes.fromhex(name)] = None
            return
        raw, source, at_unix_ms, epoch, code = unpack(data)
        held = Held(Wish.decode(raw), raw, source, at_unix_ms, epoch, code)
        self.held.setdefault(held.wish.service, {})[held.hash] = held

    def _answer(self, held: Held, state: str, code: str) -> None:
        """Tell who brought the wish, and its peer if it is connected too."""
        answer = WishAnswer(held.wish.service, held.hash, state, code)
        for peer in dict.fromkeys((held.source, held.wish.peer)):
            self._ctx.send(peer, answer)
