"""What others may make a node keep: services nobody asked for, segments that wait."""

from typing import Any

import pytest

from pairio_protocol import events as ev
from pairio_protocol.context import CoreConfig
from pairio_protocol.core import NodeCore
from pairio_protocol.effects import Send
from pairio_protocol.limits import (
    HELLO_UNKNOWN_MAX,
    OFFER_WEIGHT_MAX,
    OFFERS_MAX,
    PARKED_SEGMENTS_PER_AUTHOR_MAX,
    PARKED_SEGMENTS_PER_SERVICE_MAX,
    UNNAMED_MAX,
)
from pairio_protocol.machines import membership, retention
from pairio_protocol.messages import MESSAGES, Changes, Hello, HelloService, Push, WantChanges
from pairio_protocol.records import Cancel
from pairio_protocol.segment import GENESIS, Segment
from pairio_protocol.service import Chain
from pairio_protocol.signing import SigningKey
from tests.protocol.test_core_sim import World

VICTIM, MEMBER, OTHER, STRANGER, TRUSTED = (SigningKey(bytes([n]) * 32) for n in (1, 2, 3, 9, 8))
ADD = {"op": "add", "member": "you", "key": VICTIM.peer, "roles": ["compute", "submit"]}


def _fresh_node() -> NodeCore:
    """A node in no service whose owner trusts one peer."""
    core = NodeCore(VICTIM, CoreConfig(bytes(16), 1, trust=(TRUSTED.peer,)))
    for peer in (STRANGER.peer, TRUSTED.peer):
        core.handle(ev.PeerUp(peer), 1)
    return core


def _service(number: int, key: SigningKey, *admins: SigningKey, names_victim: bool = True) -> Chain:
    chain = Chain()
    listed = [k.peer for k in (key, *admins)]
    create = {"op": "create", "name": f"s{number}", "admins": listed, "threshold": 1, "nonce": "0"}
    ops: list[dict[str, Any]] = [create, ADD] if names_victim else [create]
    chain.add(chain.propose(ops, [key], number))
    return chain


def _send(core: NodeCore, chain: Chain, sender: SigningKey, more: bool = False) -> None:
    data = tuple(change.encode() for change in chain.changes())
    frame = MESSAGES.encode(Changes(chain.service, data, more))
    core.handle(ev.FrameReceived(sender.peer, frame), 1)


def test_a_service_that_does_not_name_this_node_is_not_kept() -> None:
    core = _fresh_node()
    for number in range(20):
        _send(core, _service(number, STRANGER, names_victim=False), STRANGER)
    assert core.membership.chains == {}
    assert not core.has_pending()
    refused = "refused: changes of a service that does not name this node"
    assert core.ctx.counters[refused] == 20


def test_one_that_names_it_in_a_later_message_is_offered_and_only_few_of_those_wait() -> None:
    core = _fresh_node()
    for number in range(3 * UNNAMED_MAX):
        _send(core, _service(number, STRANGER, names_victim=False), STRANGER, more=True)
    assert len(core.membership._unnamed) == UNNAMED_MAX
    late = _service(100, STRANGER, names_victim=False)
    _send(core, late, STRANGER, more=True)
    late.add(late.propose([ADD], [STRANGER], 2))
    _send(core, late, STRANGER)
    assert core.membership.offers() == [late.service]
    assert len(core.membership.unsaved_changes) == 2


def test_to_name_a_trusted_peer_as_a_second_admin_takes_no_service_up() -> None:
    core = _fresh_node()
    forged = _service(1, STRANGER, TRUSTED)
    _send(core, forged, STRANGER)
    assert core.membership.taken_up == set()
    assert core.membership.offers() == [forged.service]
    forged.add(forged.propose([{"op": "policy", "policy": {}}], [TRUSTED], 2))
    _send(core, forged, STRANGER)
    assert core.membership.taken_up == {forged.service}, "he has signed: it is his"


def test_a_flood_of_offers_keeps_no_trusted_service_out() -> None:
    core = _fresh_node()
    for number in range(OFFERS_MAX + 10):
        _send(core, _service(number, STRANGER), STRANGER)
    assert len(core.membership.offers()) == OFFERS_MAX
    assert core.ctx.counters["refused: an offer beyond what is kept"] == 10
    wanted = _service(1000, TRUSTED)
    _send(core, wanted, TRUSTED)
    assert core.membership.taken_up == {wanted.service}


def test_an_offer_that_grows_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(membership, "OFFER_WEIGHT_MAX", 10_000)
    core, chain = _fresh_node(), _service(1, STRANGER)
    for number in range(50):
        chain.add(chain.propose([{"op": "policy", "policy": {"n": number}}], [STRANGER], 2))
        _send(core, chain, STRANGER)
    assert core.membership.chains[chain.service].weight < 20_000 < OFFER_WEIGHT_MAX
    assert core.ctx.counters["refused: an offer beyond what is kept"]


def test_large_lists_of_strangers_are_read_in_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(membership, "OFFER_WORK_PER_MINUTE_MAX", 50_000)
    core = _fresh_node()
    refused = "refused: an offer beyond what is looked at"
    read = 0
    for number in range(100):
        chain = _service(number, STRANGER)
        chain.add(chain.propose([{"op": "policy", "policy": {"x": "y" * 9000}}], [STRANGER], 2))
        _send(core, chain, STRANGER)
        read += not core.ctx.counters[refused]
    assert 3 <= read <= 7
    wanted = _service(1000, TRUSTED)
    _send(core, wanted, TRUSTED)
    assert core.membership.taken_up == {wanted.service}
    core.handle(ev.TimePassed(), 60_000)
    before = core.ctx.counters[refused]
    late = _service(1001, STRANGER)
    frame = MESSAGES.encode(Changes(late.service, (late.changes(-1)[0].encode(),), False))
    core.handle(ev.FrameReceived(STRANGER.peer, frame), 60_000)
    assert core.ctx.counters[refused] == before
    assert late.service in core.membership.offers()


def test_what_is_too_large_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(membership, "OFFER_WEIGHT_MAX", 10_000)
    core, chain = _fresh_node(), _service(1, STRANGER)
    for number in range(50):
        chain.add(chain.propose([{"op": "policy", "policy": {"n": number}}], [STRANGER], 2))
    _send(core, chain, STRANGER)
    assert core.membership.chains[chain.service].weight < 12_000 < chain.weight


def test_a_flood_of_one_admins_forks_hides_nothing_and_is_asked_for_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pairio_protocol.service.SIBLINGS_MAX", 3)
    core, chain = _fresh_node(), _service(1, TRUSTED, OTHER)
    forks = [chain.propose([{"op": "end"}], [OTHER], at) for at in range(2, 9)]
    honest = chain.propose([{"op": "policy", "policy": {}}], [TRUSTED], 9)
    other = _service(1, TRUSTED, OTHER)
    other.add(other.propose([{"op": "policy", "policy": {"x": 1}}], [OTHER], 50))
    behind = other.propose([{"op": "policy", "policy": {"x": 2}}], [OTHER], 51)
    root, aside = chain.changes(-1)[0], other.changes(-1)[-1]
    listing = (root, *forks[:3], aside, behind, honest)
    frame = MESSAGES.encode(Changes(chain.service, tuple(c.encode() for c in listing), False))
    wants = []
    for _ in range(4):  # as if the peer answered each question with all that it has
        effects = core.handle(ev.FrameReceived(TRUSTED.peer, frame), 1)
        wants.append(sum(isinstance(e, Send) and _is_want(e) for e in effects))
    assert wants == [1, 0, 1, 0]  # once more, after what came behind
    assert core.membership.chains[chain.service].head == honest.cid
    assert core.ctx.counters["refused: changes of one admin beyond what is kept"]


def _is_want(effect: Send) -> bool:
    return isinstance(MESSAGES.decode(effect.data), WantChanges)


def _world() -> tuple[World, NodeCore, str, int]:
    world = World(3).with_service()
    core = world.cores[VICTIM.peer]
    service = next(iter(core.membership.taken_up))
    world.do(VICTIM.peer, ev.PeerUp(STRANGER.peer))
    return world, core, service, core.membership.chains[service].epoch


def _push(
    world: World, service: str, author: SigningKey, number: int, epoch: int, seq: int = 0
) -> None:
    boot = number.to_bytes(16, "big")
    prev = bytes([1]) * 32 if seq else GENESIS
    segment = Segment.seal(author, service, boot, seq, epoch, prev, [Cancel(("x",), 1)])
    frame = MESSAGES.encode(Push(segment.encode(), False))
    world.do(VICTIM.peer, ev.FrameReceived(author.peer, frame))


def test_segments_beyond_gaps_are_bounded_for_an_author_in_however_many_logs() -> None:
    world, core, service, epoch = _world()
    for number in range(PARKED_SEGMENTS_PER_AUTHOR_MAX + 50):
        _push(world, service, MEMBER, number, epoch, seq=5)
    _push(world, service, OTHER, 1, epoch, seq=5)
    logs = core.logs.logs_of(service)
    parked = {k.peer: sum(len(log.parked) for i, log in logs.items() if i.author == k.peer)
              for k in (MEMBER, OTHER)}  # fmt: skip
    assert parked == {MEMBER.peer: PARKED_SEGMENTS_PER_AUTHOR_MAX, OTHER.peer: 1}
    assert core.ctx.counters["segments beyond what is parked"] == 50
    assert sum(i.author == MEMBER.peer for i in logs) == PARKED_SEGMENTS_PER_AUTHOR_MAX


def test_of_what_a_removed_member_writes_in_new_logs_nothing_is_kept() -> None:
    world, core, service, epoch = _world()
    name = core.membership.folded(service).member_of(MEMBER.peer)
    core.membership.change(service, [{"op": "remove", "member": name}])
    core.intake.on_service_changed(service)
    before = set(core.logs.logs_of(service))
    for number in range(100, 120):
        for at_ms in (1, 2):  # also two that contradict each other, beyond a gap
            boot = number.to_bytes(16, "big")
            record = Cancel(("x",), at_ms)
            made = Segment.seal(MEMBER, service, boot, 5, epoch, bytes([1]) * 32, [record])
            frame = MESSAGES.encode(Push(made.encode(), False))
            world.do(VICTIM.peer, ev.FrameReceived(MEMBER.peer, frame))
        _push(world, service, MEMBER, number + 1000, epoch)
    assert set(core.logs.logs_of(service)) == before
    assert core.ctx.counters["segments that do not count"] == 60
    assert not core.ctx.counters["forked logs"]


def test_segments_of_an_unknown_epoch_are_parked_for_members_and_none_takes_all_the_room() -> None:
    world, core, service, epoch = _world()
    _push(world, service, STRANGER, 0, epoch + 1)
    assert core.logs._unknown_epoch == {}
    _push(world, service, OTHER, 0, epoch + 1)
    for number in range(PARKED_SEGMENTS_PER_SERVICE_MAX + 50):
        _push(world, service, MEMBER, number, epoch + 1)
    chain = core.membership.chains[service]
    assert core.logs.unpark(service, chain) == []
    parked = [s for of in core.logs._unknown_epoch[service].values() for s in of]
    assert len(parked) == PARKED_SEGMENTS_PER_SERVICE_MAX
    assert [s.log.author for s in parked].count(OTHER.peer) == 1


def test_kept_segments_of_one_author_are_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "KEPT_BYTES_PER_AUTHOR_MAX", 1000)
    _, core, service, epoch = _world()
    chain, kept = core.membership.chains[service], core.retention
    taken = {MEMBER.peer: 0, OTHER.peer: 0}
    for number in range(100):
        for author in (MEMBER, OTHER):
            if author is OTHER and number >= 3:
                continue
            boot = number.to_bytes(16, "big")
            made = Segment.seal(author, service, boot, 0, epoch, GENESIS, [Cancel(("x" * 64,), 1)])
            taken[author.peer] += kept.take(made, chain)
    assert 5 < taken[MEMBER.peer] < 15
    assert taken[OTHER.peer] == 3
    assert core.ctx.counters["kept segments beyond what is taken"] == 100 - taken[MEMBER.peer]


def test_changes_are_told_in_order_from_any_place_and_no_more_than_asked() -> None:
    chain, key = Chain(), MEMBER
    create = {"op": "create", "name": "s", "admins": [key.peer], "threshold": 1, "nonce": "0"}
    chain.add(chain.propose([create], [key], 0))
    for number in range(5):  # two that follow each, in whatever order of CIDs
        both = [chain.propose([{"op": "policy", "policy": {"n": number, "m": m}}], [key], m)
                for m in range(2)]  # fmt: skip
        for change in both:
            chain.add(change)
    told = chain.changes(-1)
    places = [(change.seq, change.cid) for change in told]
    assert places == sorted(places)
    assert len(places) == 11
    for number, (seq, cid) in enumerate(places):
        assert chain.changes(seq, cid) == told[number + 1 :]
        assert chain.changes(seq, cid, 3) == told[number + 1 : number + 4]


def test_what_is_parked_for_a_later_change_is_not_asked_for_with_each_other_one() -> None:
    world, core, service, epoch = _world()
    for number in range(50):
        _push(world, service, MEMBER, number, epoch + 2)
    asked = []
    for number in range(2):
        core.membership.change(service, [{"op": "policy", "policy": {"number": number}}])
        core.intake.on_service_changed(service)
        effects = core.handle(ev.TimePassed(), world.now_ms, world.now_ms)
        sent = [MESSAGES.decode(e.data) for e in effects if isinstance(e, Send)]
        asked.append(sum(isinstance(message, WantChanges) for message in sent))
        held = [i for i in core.logs.logs_of(service) if i.author == MEMBER.peer]
        assert len(held) == (50 if number else 0)
    assert asked == [0, 0]


def test_of_a_hello_only_some_unknown_services_are_asked_for_and_those_of_the_owner_all() -> None:
    core = _fresh_node()
    names = [_service(number, STRANGER).service for number in range(100)]
    core.membership.expected.add(names[-1])
    hello = Hello(bytes(16), tuple(HelloService(name, 0, name, bytes(32)) for name in names))
    effects = core.handle(ev.FrameReceived(STRANGER.peer, MESSAGES.encode(hello)), 1)
    sent = [MESSAGES.decode(effect.data) for effect in effects if isinstance(effect, Send)]
    asked = [message.service for message in sent if isinstance(message, WantChanges)]
    assert asked == [*names[:HELLO_UNKNOWN_MAX], names[-1]]
    counted = core.ctx.counters["refused: a hello of more unknown services than are looked at"]
    assert counted == 1
    effects = core.handle(ev.FrameReceived(TRUSTED.peer, MESSAGES.encode(hello)), 1)
    assert sum(isinstance(effect, Send) for effect in effects) == 100
