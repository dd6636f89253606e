"""Becoming and ceasing to be a member, among cores that hear each other at once."""

from dataclasses import replace
from typing import Any

import pytest

from pairio_protocol import effects as ef
from pairio_protocol import events as ev
from pairio_protocol.core import NodeCore
from pairio_protocol.limits import (
    OFFERS_MAX,
    WISH_EXPIRY_MS,
    WISH_RETRY_MS,
    WISHES_HELD_MAX,
    WISHES_PER_PEER_MAX,
)
from pairio_protocol.links import Link, LinkPeer
from pairio_protocol.messages import MESSAGES, Changes, WishAnswer, WishMessage
from pairio_protocol.own_wishes import OwnWish
from pairio_protocol.proofs import DeviceGrant
from pairio_protocol.service import Chain
from pairio_protocol.signing import SigningKey, sha256
from pairio_protocol.wishes import asked_for
from tests.protocol.test_core_sim import APP, RESOURCES, World, definition

TOKEN = SigningKey(b"token" + bytes(27))
HOUR_MS = 3_600_000


class Strangers(World):
    """Cores that trust nobody and are connected only as a test says; their disks' notes."""

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.number = 100
        self.topics: set[tuple[str, str]] = set()
        for core in self.cores.values():
            core.ctx.config = replace(core.ctx.config, trust=())

    def _carry_out(self, peer: str, effects: list[ef.Effect]) -> None:
        for effect in effects:
            if isinstance(effect, ef.JoinTopic):
                self.topics.add((peer, effect.service))
            if isinstance(effect, ef.LeaveTopic):
                self.topics.discard((peer, effect.service))
        super()._carry_out(peer, effects)

    def do(self, peer: str, event: ev.Event) -> None:
        if peer not in self.cores:
            return  # a stranger of whom there is nothing but a key
        if isinstance(event, ev.FrameReceived) and event.peer not in self.cores[peer].ctx.connected:
            return  # it was cut while under way
        super().do(peer, event)

    def ask(self, peer: str, make: Any, *fields: Any) -> dict[str, Any]:
        self.number += 1
        return self.call(peer, make(self.number, *fields))

    def fails(self, peer: str, make: Any, *fields: Any) -> ef.Fail:
        self.number += 1
        self.do(peer, make(self.number, *fields))
        self.settle()
        answer = self.answers[self.number]
        assert isinstance(answer, ef.Fail), answer
        return answer

    def cut(self, a: str, b: str) -> None:
        self.do(a, ev.PeerDown(b))
        self.do(b, ev.PeerDown(a))
        self.settle()

    def create(self, *admins: str) -> str:
        """The first creates a service; more admins are given the right by it."""
        first, *others = admins
        service: str = self.ask(first, ev.CreateService, "lab", "00")["service"]
        self.ask(first, ev.InstallApp, "lab", APP)
        for peer in others:
            self.connect(first, peer)
            core = self.cores[peer]
            core.ctx.config = replace(core.ctx.config, trust=(first,))
            self.ask(first, ev.Grant, "lab", peer, ("admin", "submit"))
        if others:
            op = {"op": "admins", "admins": list(admins), "threshold": 1}
            core = self.cores[first]
            core.membership.change(service, [op])
            core.intake.on_service_changed(service)
            self.do(first, ev.TimePassed())
            self.settle()
        return service

    def invite(
        self, by: str, uses: int = 1, roles: tuple[str, ...] = ("submit", "compute")
    ) -> Link:
        expires = self.now_ms + HOUR_MS
        service = self.ask(by, ev.Invite, "lab", TOKEN.peer, roles, uses, expires)["service"]
        return self.link("join", service, by, roles=roles, expires_unix_ms=expires)

    def link(self, kind: str, service: str, *peers: str, **fields: Any) -> Link:
        at = tuple(LinkPeer(p, (f"/ip4/192.0.2.1/tcp/1/p2p/{p}",)) for p in peers)
        seed = b"" if kind == "request" else b"token" + bytes(27)
        return Link(kind, service, "lab", at, seed, **fields)

    def join(self, peer: str, link: Link, name: str = "", roles: tuple[str, ...] = ()) -> bool:
        return bool(self.ask(peer, ev.JoinService, link, name, roles)["already"])

    def own(self, peer: str, service: str) -> OwnWish:
        own = self.cores[peer].own_wishes.get(service)
        assert own is not None
        return own

    def roles(self, peer: str, service: str) -> tuple[str, ...]:
        """As the peer itself sees it."""
        core = self.cores[peer]
        chain = core.membership.active(service)
        return chain.now.roles_of(peer) if chain is not None else ()


def test_who_has_a_link_is_a_member_at_once_and_computes() -> None:
    world = Strangers(2)
    admin, guest = world.peers
    service = world.create(admin)
    link = world.invite(admin)
    world.connect(admin, guest)
    assert not world.join(guest, link, "Ada")
    assert world.roles(guest, service) == ("compute", "submit")
    assert world.cores[admin].membership.folded(service).member_of(guest) == "Ada"
    assert world.own(guest, service).state == "done"
    assert (guest, service) in world.topics
    world.pass_time(2500)
    world.ask(admin, ev.Submit, "lab", definition("write"), RESOURCES)
    assert world.executed == [(guest, "write")]
    assert world.join(guest, link, "Ada"), "joining twice is no error"
    assert world.refused == []


def test_the_wish_is_said_when_a_peer_of_the_link_is_there_again() -> None:
    world = Strangers(2)
    admin, guest = world.peers
    service = world.create(admin)
    world.join(guest, world.invite(admin))
    assert world.own(guest, service).state == "waiting"
    world.connect(guest, admin)
    assert world.roles(guest, service) == ("compute", "submit")


def test_through_a_member_who_is_no_admin_also_when_the_admin_comes_later() -> None:
    world = Strangers(3)
    admin, member, guest = world.peers
    service = world.create(admin)
    link = world.invite(admin, uses=2)
    world.connect(admin, member)
    world.join(member, link)
    world.connect(member, guest)
    world.cut(admin, member)
    link = replace(link, peers=(LinkPeer(admin, ()), LinkPeer(member, ())))
    world.join(guest, link)
    assert world.own(guest, service).code == "waits_admin"
    world.connect(member, admin)
    assert world.roles(guest, service) == ("compute", "submit")
    assert admin not in world.cores[guest].ctx.connected
    assert world.cores[member].joining.held[service] == {}
    assert world.own(guest, service).state == "done"


@pytest.mark.parametrize(
    ("why", "code"),
    [
        (lambda w, a, link: w.pass_time(HOUR_MS + 1), "expired"),
        (lambda w, a, link: w.ask(a, ev.Uninvite, "lab", TOKEN.peer), "withdrawn"),
        (lambda w, a, link: w.join(w.peers[2], link), "used_up"),
        (lambda w, a, link: None, "roles"),
    ],
)
def test_a_link_that_is_not_good_any_more_is_refused_with_the_reason(why: Any, code: str) -> None:
    world = Strangers(3)
    admin, guest, other = world.peers
    service = world.create(admin)
    link = world.invite(admin)
    world.connect(admin, other)
    world.connect(admin, guest)
    why(world, admin, link)
    world.join(guest, link, "", ("admin",) if code == "roles" else ())
    own = world.own(guest, service)
    assert (own.state, own.code) == ("refused", code)
    assert world.roles(guest, service) == ()


def test_a_member_who_is_refused_further_roles_stays_what_he_is() -> None:
    world = Strangers(2)
    admin, guest = world.peers
    service = world.create(admin)
    world.connect(admin, guest)
    link = world.invite(admin, roles=("read", "submit"))
    world.join(guest, link, "", ("read",))
    world.join(guest, link)
    assert world.own(guest, service).code == "used_up"
    assert world.roles(guest, service) == ("read",)
    assert (guest, service) in world.topics


def test_a_member_gets_further_roles_by_a_further_link() -> None:
    world = Strangers(2)
    admin, guest = world.peers
    service = world.create(admin)
    world.connect(admin, guest)
    link = world.invite(admin, uses=2, roles=("read", "submit"))
    world.join(guest, link, "", ("read",))
    assert not world.join(guest, link)
    assert world.roles(guest, service) == ("read", "submit")


def test_a_wish_larger_than_any_needs_to_be_is_refused() -> None:
    world = Strangers(2)
    admin, guest = world.peers
    service = world.create(admin)
    world.connect(admin, guest)
    link = world.link("request", service, admin)
    far = tuple("/dns4/" + "x" * 5000 for _ in range(8))
    wish = asked_for(link, world.cores[guest].ctx.key, "x", ("read",), far, 1)
    frame = MESSAGES.encode(WishMessage(wish.sign(world.cores[guest].ctx.key)))
    world.do(admin, ev.FrameReceived(guest, frame))
    assert [r.reason for r in world.refused] == ["an invalid wish"]


def test_a_service_that_the_inviter_does_not_have() -> None:
    world = Strangers(2)
    admin, guest = world.peers
    world.create(admin)
    world.connect(admin, guest)
    other = Strangers(1)
    link = world.link("join", other.create(other.peers[0]), admin)
    link = replace(link, service=link.service[:-4] + "aaaa")
    world.join(guest, link)
    assert world.own(guest, link.service).code == "unknown_service"


def test_an_invitation_that_an_admin_does_not_know_yet_waits_until_it_does() -> None:
    world = Strangers(3)
    first, second, guest = world.peers
    service = world.create(first, second)
    world.cut(first, second)
    link = world.invite(first)
    world.connect(second, guest)
    world.join(guest, replace(link, peers=(LinkPeer(first, ()), LinkPeer(second, ()))))
    assert world.own(guest, service).code == "unknown_invitation"
    world.connect(first, second)
    assert world.roles(guest, service) == ("compute", "submit")


def test_two_use_a_one_use_invitation_at_two_admins_at_once() -> None:
    world = Strangers(4)
    first, second, one, two = world.peers
    service = world.create(first, second)
    link = world.invite(first)
    world.cut(first, second)
    world.connect(first, one)
    world.connect(second, two)
    both = replace(link, peers=(LinkPeer(first, ()), LinkPeer(second, ())))
    world.join(one, both)
    world.join(two, both)
    assert world.roles(one, service) == world.roles(two, service) == ("compute", "submit")
    world.connect(first, second)
    for _ in range(3):
        world.pass_time(WISH_RETRY_MS)
    assert world.roles(one, service) == ("compute", "submit")
    assert world.roles(two, service) == ()
    own = world.own(two, service)
    assert (own.state, own.code) == ("refused", "used_up")
    assert (two, service) not in world.topics
    for peer in (first, second, one):
        folded = world.cores[peer].membership.folded(service)
        assert (folded.member_of(one) is None, folded.member_of(two)) == (False, None)


def test_of_two_uses_at_once_the_one_that_lost_the_fork_is_made_good() -> None:
    world = Strangers(4)
    first, second, one, two = world.peers
    service = world.create(first, second)
    link = world.invite(first, uses=2)
    world.cut(first, second)
    world.connect(first, one)
    world.connect(second, two)
    both = replace(link, peers=(LinkPeer(first, ()), LinkPeer(second, ())))
    world.join(one, both)
    world.join(two, both)
    world.connect(first, second)
    assert world.roles(one, service) == world.roles(two, service) == ("compute", "submit")
    assert world.own(two, service).state == "done"


def restart(world: Strangers, peer: str, notes: dict[str, tuple[str, str, bytes]]) -> NodeCore:
    """A new start of a node of which only its notes were on disk."""
    old = world.cores[peer]
    config = replace(old.ctx.config, boot=bytes([99]) * 16)
    core = world.cores[peer] = NodeCore(
        SigningKey(bytes([world.peers.index(peer) + 1]) * 32), config
    )
    world.do(peer, ev.Restored((), (), (), notes=tuple(notes.values())))
    return core


def test_a_wish_outlives_a_restart() -> None:
    world = Strangers(2)
    admin, guest = world.peers
    service = world.create(admin)
    link = world.invite(admin)
    core = world.cores[guest]
    core.handle(ev.JoinService(1, link, "Ada", ()), world.now_ms, world.now_ms)
    sealed = core.seal(world.now_ms, world.now_ms)
    assert sealed is not None
    restart(world, guest, {n: (k, n, d) for k, n, d in sealed.commit.notes})
    world.connect(guest, admin)
    assert world.roles(guest, service) == ("compute", "submit")
    assert world.cores[admin].membership.folded(service).member_of(guest) == "Ada"


# -- without a token ------------------------------------------------------------------------


def test_without_a_token_an_admin_decides() -> None:
    world = Strangers(3)
    admin, guest, other = world.peers
    service = world.create(admin)
    link = world.link("request", service, admin, roles=("submit",))
    world.connect(admin, guest)
    world.connect(admin, other)
    world.join(guest, link, "Ada")
    world.join(other, link, "Bob")
    waiting = world.cores[admin].joining.waiting(service)
    assert [held.wish.name for held in waiting] == ["Ada", "Bob"]
    assert world.own(guest, service).code == "waits_approval"
    assert world.roles(guest, service) == ()
    world.ask(admin, ev.ApproveWish, "lab", waiting[0].id, ("compute", "submit"))
    world.ask(admin, ev.DenyWish, "lab", waiting[1].wish.peer[-6:])
    assert world.roles(guest, service) == ("compute", "submit")
    assert world.own(guest, service).state == "done"
    assert world.own(other, service).code == "denied"
    world.join(other, link, "Bob")
    assert "waiting: none" in (world.fails(admin, ev.DenyWish, "lab", "x").hint or "")


def test_names_of_members_are_not_taken_twice_however_they_are_written() -> None:
    world = Strangers(3)
    admin, one, two = world.peers
    service = world.create(admin)
    link = world.invite(admin, uses=2)
    for peer, name in ((one, "Ada"), (two, "\uff21DA")):  # a full-width A
        world.connect(admin, peer)
        world.join(peer, link, name)
    names = world.cores[admin].membership.folded(service).members
    assert f"ADA~{two[-6:]}" in names


def request_of(world: Strangers, service: str, key: SigningKey, name: str = "x") -> bytes:
    link = world.link("request", service, world.peers[0])
    wish = asked_for(link, key, name, ("submit",), (), world.now_ms)
    return MESSAGES.encode(WishMessage(wish.sign(key)))


def test_one_stranger_has_one_wish_here_and_brings_no_others() -> None:
    world = Strangers(2)
    admin, flood = world.peers
    service = world.create(admin)
    world.connect(admin, flood)
    for number in range(WISHES_PER_PEER_MAX + 5):
        for key in (SigningKey(number.to_bytes(32, "big")), world.cores[flood].ctx.key):
            frame = request_of(world, service, key, str(number))
            world.do(admin, ev.FrameReceived(flood, frame))
    held = world.cores[admin].joining.held[service]
    assert [h.wish.name for h in held.values()] == [str(WISHES_PER_PEER_MAX + 4)]
    assert {r.reason for r in world.refused} == {"a wish passed on by a stranger"}


def test_a_flood_of_strangers_displaces_its_own_and_never_what_has_a_proof() -> None:
    world = Strangers(3)
    admin, member, guest = world.peers
    service = world.create(admin)
    link = world.invite(admin, uses=2)
    world.connect(admin, member)
    world.join(member, link)
    world.cut(admin, member)
    world.connect(member, guest)
    world.join(guest, replace(link, peers=(LinkPeer(member, ()),)))
    for number in range(WISHES_HELD_MAX * 2):
        key = SigningKey(number.to_bytes(32, "big"))
        world.cores[member].ctx.connected[key.peer] = ()
        world.do(member, ev.FrameReceived(key.peer, request_of(world, service, key)))
    held = world.cores[member].joining.held[service]
    assert len(held) == WISHES_HELD_MAX
    world.connect(member, admin)
    assert world.roles(guest, service) == ("compute", "submit")


def test_a_wish_that_somebody_kept_for_long_is_not_asked_again() -> None:
    world = Strangers(2)
    admin, guest = world.peers
    service = world.create(admin)
    world.connect(admin, guest)
    old = request_of(world, service, world.cores[guest].ctx.key)
    world.now_ms += WISH_EXPIRY_MS + 1
    world.do(admin, ev.FrameReceived(guest, old))
    assert world.cores[admin].joining.waiting(service) == []


def test_answers_count_from_those_who_were_asked_only() -> None:
    world = Strangers(3)
    admin, guest, liar = world.peers
    service = world.create(admin)
    world.connect(guest, liar)
    world.join(guest, world.invite(admin))
    answer = WishAnswer(service, sha256(world.own(guest, service).data), "refused", "denied")
    world.do(guest, ev.FrameReceived(liar, MESSAGES.encode(answer)))
    assert world.own(guest, service).state == "waiting"
    assert [r.reason for r in world.refused] == ["an answer to a wish that it did not get"]


def test_a_member_who_is_no_admin_does_not_answer_for_one() -> None:
    world = Strangers(4)
    admin, member, liar, guest = world.peers
    service = world.create(admin)
    link = world.invite(admin, uses=3)
    for peer in (member, liar):
        world.connect(admin, peer)
        world.join(peer, link)
        world.cut(admin, peer)
    world.connect(member, liar)
    world.connect(member, guest)
    world.join(guest, replace(link, peers=(LinkPeer(member, ()),)))
    answer = WishAnswer(service, sha256(world.own(guest, service).data), "refused", "denied")
    world.do(member, ev.FrameReceived(liar, MESSAGES.encode(answer)))
    world.settle()
    assert world.own(guest, service).state == "waiting"
    world.connect(member, admin)
    assert world.roles(guest, service) == ("compute", "submit")


def test_an_answer_that_crosses_a_second_wish_is_no_wrong_move() -> None:
    world = Strangers(2)
    admin, guest = world.peers
    service = world.create(admin)
    link = world.link("request", service, admin, roles=("submit",))
    world.connect(admin, guest)
    world.number += 2
    for call in (world.number - 1, world.number):  # the second one before an answer is here
        world.now_ms += 1
        world.do(guest, ev.JoinService(call, link, "Ada", ()))
    world.settle()
    assert [held.wish.name for held in world.cores[admin].joining.waiting(service)] == ["Ada"]
    assert world.own(guest, service).code == "waits_approval"
    assert world.refused == []


# -- devices --------------------------------------------------------------------------------


def device_link(world: Strangers, service: str, member: str, *more: str) -> Link:
    expires = world.now_ms + HOUR_MS
    grant = DeviceGrant.sign(world.cores[member].ctx.key, service, TOKEN.peer, expires)
    return world.link("device", service, member, *more, by=member, grant=grant.signature,
                      expires_unix_ms=expires)  # fmt: skip


def test_a_member_links_a_further_device_through_himself() -> None:
    world = Strangers(3)
    admin, member, phone = world.peers
    service = world.create(admin)
    world.connect(admin, member)
    world.join(member, world.invite(admin), "Ada")
    link = device_link(world, service, member)
    world.connect(member, phone)
    world.join(phone, link)
    folded = world.cores[admin].membership.folded(service)
    assert folded.member_of(phone) == folded.member_of(member) == "Ada"
    assert world.roles(phone, service) == ("compute", "submit")


def test_what_an_admin_denied_stays_denied_after_a_restart() -> None:
    world = Strangers(2)
    admin, guest = world.peers
    service = world.create(admin)
    world.connect(admin, guest)
    world.join(guest, world.link("request", service, admin, roles=("submit",)), "Ada")
    core = world.cores[admin]
    call = ev.DenyWish(1, "lab", core.joining.waiting(service)[0].id)
    core.handle(call, world.now_ms, world.now_ms)
    sealed = core.seal(world.now_ms, world.now_ms)
    assert sealed is not None
    again = NodeCore(core.ctx.key, core.ctx.config)
    changes = tuple((service, c.encode()) for c in core.membership.chains[service].changes(-1))
    notes = tuple(note for note in sealed.commit.notes if note[2])
    again.handle(ev.Restored(((service, "lab", True),), changes, (), notes=notes), 1, 1)
    again.handle(ev.PeerUp(guest), 1, world.now_ms)
    wish = MESSAGES.encode(WishMessage(world.own(guest, service).data))
    sent = again.handle(ev.FrameReceived(guest, wish), 1, world.now_ms)
    assert again.joining.waiting(service) == []
    answers = [MESSAGES.decode(effect.data) for effect in sent if isinstance(effect, ef.Send)]
    assert [a.code for a in answers if isinstance(a, WishAnswer)] == ["denied"]


# -- leaving --------------------------------------------------------------------------------


def test_who_leaves_is_off_the_list_and_takes_part_no_more() -> None:
    world = Strangers(3)
    admin, member, other = world.peers
    service = world.create(admin)
    link = world.invite(admin, uses=2)
    for peer in (member, other):
        world.connect(admin, peer)
        world.join(peer, link)
    world.connect(member, other)
    core = world.cores[member]
    wish = {**definition("write"), "cacheBust": "never runs"}
    made = world.ask(member, ev.Submit, "lab", wish, replace(RESOURCES, gpus=1))
    world.ask(member, ev.LeaveService, "lab")
    for peer in (admin, other):
        folded = world.cores[peer].membership.folded(service)
        assert folded.member_of(member) is None
        assert world.cores[peer].fold(service).requests[made["request"]].canceled
    assert service not in core.membership.taken_up
    assert (member, service) not in world.topics
    assert core.membership.offers() == []
    assert core.coordinator.wishes == {}
    assert core.own_wishes.all == {}
    assert "no service" in world.fails(member, ev.Submit, "x", wish, RESOURCES).message
    assert "takes no part" in world.fails(member, ev.Submit, "lab", wish, RESOURCES).message


def test_who_left_is_not_brought_back_by_whoever_kept_his_wish() -> None:
    world = Strangers(3)
    admin, member, other = world.peers
    service = world.create(admin)
    link = world.invite(admin, uses=5)
    for peer in (member, other):
        world.connect(admin, peer)
        world.join(peer, link)
    wish = MESSAGES.encode(WishMessage(world.own(member, service).data))
    world.ask(member, ev.LeaveService, "lab")
    folded = world.cores[admin].membership.folded
    assert folded(service).member_of(member) is None
    world.do(admin, ev.FrameReceived(other, wish))
    world.settle()
    assert folded(service).member_of(member) is None
    assert world.cores[admin].ctx.counters["wishes refused: used_before"] == 1
    world.join(member, link)
    assert world.own(member, service).code == "used_before"


def test_who_leaves_sees_to_nobody_elses_requests_any_more() -> None:
    world = Strangers(2)
    admin, member = world.peers
    service = world.create(admin)
    world.connect(admin, member)
    world.join(member, world.invite(admin))
    wish = replace(RESOURCES, gpus=1)  # nobody has one
    made = world.ask(admin, ev.Submit, "lab", definition("write"), wish)
    world.pass_time(3500)
    core = world.cores[member]
    core.coordinator.add(service, made["request"], taken=True)
    assert core.coordinator.wishes
    world.ask(member, ev.LeaveService, "lab")
    assert core.coordinator.wishes == {}
    assert made["request"] in world.cores[admin].coordinator.wishes


def test_one_who_leaves_alone_is_taken_off_when_an_admin_is_there() -> None:
    world = Strangers(2)
    admin, member = world.peers
    service = world.create(admin)
    world.connect(admin, member)
    world.join(member, world.invite(admin))
    world.cut(admin, member)
    world.ask(member, ev.LeaveService, "lab")
    assert world.cores[member].membership.offers() == []
    world.connect(admin, member)
    assert world.cores[admin].membership.folded(service).member_of(member) is None
    assert world.cores[member].own_wishes.all == {}
    assert service not in world.cores[member].membership.taken_up


def test_the_last_admin_does_not_leave() -> None:
    world = Strangers(1)
    world.create(world.peers[0])
    failure = world.fails(world.peers[0], ev.LeaveService, "lab")
    assert "fewer admins" in failure.message
    assert "another node an admin" in (failure.hint or "")


def test_a_worker_that_leaves_gives_its_runs_back() -> None:
    world = Strangers(3)
    admin, slow, other = world.peers
    world.create(admin)
    link = world.invite(admin, uses=2)
    world.connect(admin, slow)
    world.join(slow, link)
    world.pass_time(2500)
    executed = world._executed
    world._executed = lambda effect: ev.TimePassed()  # type: ignore[method-assign,assignment,return-value]
    world.ask(admin, ev.Submit, "lab", definition("write"), RESOURCES)
    assert world.executed == [(slow, "write")]
    world._executed = executed  # type: ignore[method-assign]
    world.connect(admin, other)
    world.join(other, link)
    world.pass_time(2500)
    world.ask(slow, ev.LeaveService, "lab")
    world.pass_time(2500)
    assert world.executed == [(slow, "write"), (other, "write")]


# -- offers ---------------------------------------------------------------------------------


def test_what_was_declined_is_not_offered_again_but_may_be_joined() -> None:
    world = Strangers(2)
    admin, guest = world.peers
    service = world.create(admin)
    world.connect(admin, guest)
    world.ask(admin, ev.Grant, "lab", guest, ("submit",))
    membership = world.cores[guest].membership
    assert membership.offers() == [service]
    world.ask(guest, ev.DeclineService, "lab")
    world.ask(admin, ev.Grant, "lab", guest, ("compute",))
    world.cut(admin, guest)
    world.connect(admin, guest)
    assert (membership.offers(), membership.chains) == ([], {})
    world.join(guest, world.invite(admin))
    assert world.roles(guest, service) == ("compute", "submit")


def chain_of(number: int, *members: str) -> Chain:
    key, chain = SigningKey(b"stranger" + bytes(24)), Chain()
    create = {"op": "create", "name": f"s{number}", "admins": [key.peer], "threshold": 1}
    adds = [{"op": "add", "member": m, "key": m, "roles": ["submit"]} for m in members]
    chain.add(chain.propose([{**create, "nonce": str(number)}, *adds], [key], 1))
    return chain


def test_services_of_strangers_are_kept_in_bounds() -> None:
    world = Strangers(2)
    victim, stranger = world.peers
    world.connect(victim, stranger)
    membership = world.cores[victim].membership

    def send(chain: Chain) -> None:
        data = tuple(change.encode() for change in chain.changes(-1))
        frame = MESSAGES.encode(Changes(chain.service, data, False))
        world.do(victim, ev.FrameReceived(stranger, frame))

    for number in range(OFFERS_MAX * 2):
        send(chain_of(number))
    assert membership.chains == {}, "what does not name this node is not kept"
    for number in range(OFFERS_MAX * 2):
        send(chain_of(1000 + number, victim))
    assert len(membership.chains) == OFFERS_MAX
    assert membership.taken_up == set()


def test_a_service_that_was_declined_and_then_joined_goes_by_its_new_list() -> None:
    world = Strangers(3)
    admin, node, later = world.peers
    lab = world.create(admin)
    world.connect(admin, node)
    world.ask(admin, ev.Grant, "lab", node, ("submit",))
    world.cores[node].fold(lab)  # somebody looked at the offer
    world.ask(node, ev.DeclineService, "lab")
    assert lab not in world.cores[node].folds, "of what was declined nothing is kept"
    world.join(node, world.invite(admin))
    world.ask(admin, ev.Grant, "lab", later, ("submit",))  # a change that comes later
    world.pass_time(2500)
    chain = world.cores[node].membership.chains[lab]
    assert chain.now.roles_of(later) == ("submit",)
    assert world.cores[node].fold(lab)._at(chain.epoch) == chain.now


def test_a_run_of_one_service_makes_nothing_of_those_that_are_only_offered() -> None:
    world = Strangers(3)
    admin, node, other = world.peers
    for peer in (admin, other):
        config = world.cores[peer].ctx.config
        world.cores[peer].ctx.config = replace(config, compute=False)
    offered = world.create(other)
    world.connect(other, node)
    world.ask(other, ev.Grant, "lab", node, ("submit",))
    world.ask(admin, ev.CreateService, "one", "01")
    world.ask(admin, ev.InstallApp, "one", APP)
    world.connect(admin, node)
    world.ask(admin, ev.Grant, "one", node, ("compute", "submit"))
    world.ask(node, ev.AcceptService, "one")
    world.pass_time(2500)
    world.ask(admin, ev.Submit, "one", definition("write"), RESOURCES)
    world.pass_time(3000)
    assert [peer for peer, _ in world.executed] == [node]
    assert offered in world.cores[node].membership.chains
    assert offered not in world.cores[node].folds
