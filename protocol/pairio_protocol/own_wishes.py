"""Own wishes: this node wants to join a service, or to leave one.

    join:  waiting --granted: the list names this node--> done   --lost in a fork--> waiting
              |  ^--said again: a peer of the link is connected, every WISH_RETRY_MS
              +--the inviter refuses, or every connected peer of the link--> refused
    leave: waiting --the list names this node no more--> gone

They are kept on disk. A link counts as the owner's consent: the service is taken up as soon as a
change of it names this node.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pairio_protocol.codec import pack, unpack
from pairio_protocol.effects import Connect, WishChanged
from pairio_protocol.limits import WISH_RETRY_MS, WISHES_OWN_MAX
from pairio_protocol.links import LinkPeer
from pairio_protocol.messages import WantChanges, WishAnswer, WishMessage
from pairio_protocol.signing import sha256
from pairio_protocol.wishes import Wish, is_granted

if TYPE_CHECKING:
    from pairio_protocol.core import NodeCore

__all__ = ["NOTE", "OwnWish", "OwnWishes"]

NOTE = "own wish"


@dataclass
class OwnWish:
    """A wish of this node: the peers of the link that it came by, what they say, its state."""

    wish: Wish
    data: bytes
    service_name: str
    peers: tuple[LinkPeer, ...] = ()
    state: str = "waiting"  # waiting | done | refused
    code: str = ""
    refusals: dict[str, str] = field(default_factory=dict)

    @property
    def slot(self) -> str:
        """A service has one wish to join (or the like) and one to leave at a time."""
        return f"{self.wish.service} {'leave' if self.wish.kind == 'leave' else 'join'}"

    @property
    def link_peers(self) -> tuple[str, ...]:
        """The peers of the link, the inviter first."""
        return tuple(p.peer for p in self.peers)


class OwnWishes:
    """This node's wishes, by slot, oldest first."""

    def __init__(self, core: "NodeCore") -> None:
        self._core = core
        self._ctx = core.ctx
        self.all: dict[str, OwnWish] = {}
        self.unsaved: list[tuple[str, str, bytes]] = []
        self._retry_ms = 0
        self._former: dict[bytes, None] = {}  # hashes of wishes that newer ones took the place of

    def get(self, service: str, slot: str = "join") -> OwnWish | None:
        """Return the wish to join a service, or to leave it."""
        return self.all.get(f"{service} {slot}")

    def names(self, peer: str) -> bool:
        """Say whether a peer is of a link by which this node joins or has joined."""
        return any(peer in own.link_peers for own in self.all.values())

    def add(self, own: OwnWish) -> None:
        """Wish for something: keep it, dial, say it to whoever is connected."""
        former = self.all.pop(own.slot, None)
        if former is not None:
            self._former[sha256(former.data)] = None
            if len(self._former) > WISHES_OWN_MAX:
                del self._former[next(iter(self._former))]
        self.all[own.slot] = own
        for slot, old in list(self.all.items()):
            if len(self.all) > WISHES_OWN_MAX and old.state != "waiting":
                self.remove(slot)
        self._save(own)
        if own.wish.kind != "leave":
            self._core.membership.expected.add(own.wish.service)
        self._say(own)
        self._retry_ms = self._ctx.now_ms + WISH_RETRY_MS

    def remove(self, slot: str) -> None:
        """Wish for it no more."""
        own = self.all.pop(slot, None)
        if own is not None:
            self.unsaved.append((NOTE, slot, b""))
            if own.wish.kind != "leave":
                self._core.membership.expected.discard(own.wish.service)
            self._ctx.emit(WishChanged(own.wish.service))

    def restore(self, data: bytes) -> None:
        """Take a wish from disk; its link's peers are dialled again."""
        raw, name, peers, state, code = unpack(data)
        links = tuple(LinkPeer(peer, tuple(addresses)) for peer, addresses in peers)
        own = OwnWish(Wish.decode(raw), raw, name, links, state, code)
        self.all[own.slot] = own
        if own.wish.kind != "leave" and state != "refused":
            self._core.membership.expected.add(own.wish.service)
        if state == "waiting":
            self._dial(own)
            self._retry_ms = self._ctx.now_ms + WISH_RETRY_MS

    def _save(self, own: OwnWish) -> None:
        peers = [[p.peer, list(p.addresses)] for p in own.peers]
        data = pack([own.data, own.service_name, peers, own.state, own.code])
        self.unsaved.append((NOTE, own.slot, data))
        self._ctx.emit(WishChanged(own.wish.service))

    # -- saying it ------------------------------------------------------------------------

    def _hearers(self, own: OwnWish) -> list[str]:
        """Return the connected peers that are to hear a wish: of the link, and known members."""
        chain = self._core.membership.chains.get(own.wish.service)
        return [
            peer
            for peer in sorted(self._ctx.connected)
            if peer in own.link_peers or (chain is not None and chain.now.roles_of(peer))
        ]

    def _say(self, own: OwnWish) -> None:
        self._dial(own)
        for peer in self._hearers(own):
            self._ctx.send(peer, WishMessage(own.data))

    def _dial(self, own: OwnWish) -> None:
        for peer in own.peers:
            if peer.peer not in self._ctx.connected and peer.addresses:
                self._ctx.emit(Connect(peer.peer, peer.addresses))

    def on_peer_up(self, peer: str) -> None:
        """Somebody is connected: say to them what is for them."""
        for own in self.all.values():
            if own.state == "waiting" and peer in self._hearers(own):
                self._ctx.send(peer, WishMessage(own.data))

    def tick(self) -> None:
        """Say again what waits."""
        if self.deadline_ms() is None or self._ctx.now_ms < self._retry_ms:
            return
        self._retry_ms = self._ctx.now_ms + WISH_RETRY_MS
        for own in self.all.values():
            if own.state == "waiting":
                self._say(own)

    def deadline_ms(self) -> int | None:
        """When something is to be said again."""
        waits = any(own.state == "waiting" for own in self.all.values())
        return self._retry_ms if waits else None

    # -- what becomes of it -----------------------------------------------------------------

    def on_answer(self, peer: str, answer: WishAnswer) -> None:
        """A peer says what became of a wish: the word of somebody of the link, or of a member."""
        own = next((o for o in self.all.values() if sha256(o.data) == answer.wish), None)
        if own is None and answer.wish in self._former:
            return  # it was on its way when this node wished anew
        if own is None or own.wish.service != answer.service or peer not in self._hearers(own):
            self._ctx.refuse(peer, "an answer to a wish that it did not get")
            return
        if own.state != "waiting":
            return
        if answer.state == "granted":
            self._on_granted(own, peer)
        elif answer.state == "refused":
            own.refusals[peer] = answer.code[:40]
            self._consider_refusals(own)
        elif answer.code != own.code:
            own.refusals.pop(peer, None)
            own.code = answer.code[:40]
            self._save(own)

    def _on_granted(self, own: OwnWish, peer: str) -> None:
        """The list will say so itself; it is asked for in case it did not come along."""
        service = own.wish.service
        chain = self._core.membership.chains.get(service)
        start = (chain.epoch, chain.head) if chain is not None else (0, "")
        self._ctx.send(peer, WantChanges(service, *start))
        own.code = "granted"
        self._save(own)
        self.on_service_changed(service)
        if own.wish.kind == "leave" and (chain is None or not chain.now.member_of(self._ctx.me)):
            self.remove(own.slot)

    def _consider_refusals(self, own: OwnWish) -> None:
        """The inviter's no is final; those of others when nobody else of the link is connected."""
        asked = self._hearers(own)
        inviter = own.link_peers[:1]
        final = next((own.refusals[p] for p in inviter if p in own.refusals), None)
        if final is None and all(peer in own.refusals for peer in asked):
            codes = [code for code in own.refusals.values() if code != "unknown_service"]
            final = codes[0] if codes else next(iter(own.refusals.values()))
            if inviter and inviter[0] not in self._ctx.connected and final == "unknown_service":
                return  # only the inviter knows that
        if final is None or final == "full":
            return
        own.state, own.code = "refused", final
        self._save(own)
        self._core.membership.expected.discard(own.wish.service)
        chain = self._core.membership.chains.get(own.wish.service)
        if chain is not None and not chain.now.member_of(self._ctx.me):
            self._core.membership.take_down(own.wish.service)  # it was lost in a fork

    def on_service_changed(self, service: str) -> None:
        """The list has changed: is this node on it?"""
        chain = self._core.membership.chains.get(service)
        own, leave = self.get(service), self.get(service, "leave")
        if chain is None:
            return
        is_member = chain.now.member_of(self._ctx.me) is not None
        if leave is not None and not is_member:
            self.remove(leave.slot)
            self._core.membership.choose(service, "")
        if own is None:
            return
        decided = own.wish.kind == "request" and own.code == "granted" and is_member
        if decided or is_granted(own.wish, chain.now):
            if own.state != "done":
                own.state, own.code = "done", ""
                self._save(own)
        elif own.state == "done" and not is_member:
            self._on_lost(own, bool(chain.cuttings(self._ctx.me)))

    def _on_lost(self, own: OwnWish, was_removed: bool) -> None:
        """This node is on the list no more: removed, or another branch of changes has won."""
        if was_removed:
            self.remove(own.slot)
            return
        own.state, own.code, own.refusals = "waiting", "lost_in_a_fork", {}
        self._save(own)
        self._say(own)
        self._retry_ms = self._ctx.now_ms + WISH_RETRY_MS
