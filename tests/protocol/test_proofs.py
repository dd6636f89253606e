"""What stands in for the signatures of all admins but one: invitations, devices, leaving."""

import contextlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pairio_protocol.errors import DecodeError, DefinitionError
from pairio_protocol.ids import LogId
from pairio_protocol.limits import SIBLINGS_MAX
from pairio_protocol.proofs import (
    DeviceGrant,
    proof_of_device,
    proof_of_invitation,
    proof_of_leave,
)
from pairio_protocol.service import Chain, ChangeBeyond, ChangeGap, Cut, SignedChange
from pairio_protocol.signing import SigningKey

ANN, BEN, CAT, DAN, EVE, TOKEN = (SigningKey(bytes([i]) * 32) for i in range(1, 7))
HOUR_MS = 3_600_000
Op = dict[str, Any]


def service(threshold: int = 2) -> Chain:
    """A service with three admins, of whom two must sign."""
    chain = Chain()
    admins = [ANN.peer, BEN.peer, CAT.peer]
    create = {"op": "create", "name": "lab", "admins": admins, "threshold": threshold}
    chain.add(chain.propose([{**create, "nonce": "00"}], [ANN, BEN], 0))
    return chain


def twin(chain: Chain) -> Chain:
    """Another node that knows the same changes."""
    other = Chain()
    for change in chain.changes(-1):
        other.add(change)
    return other


def do(chain: Chain, *ops: Op, by: tuple[SigningKey, ...] = (ANN, BEN), at_ms: int = 1) -> None:
    chain.add(chain.propose(list(ops), list(by), at_ms))


def invite(roles: tuple[str, ...] = ("submit", "compute"), uses: int = 1) -> Op:
    return {
        "op": "invite",
        "key": TOKEN.peer,
        "roles": list(roles),
        "uses": uses,
        "expires_unix_ms": HOUR_MS,
    }


def joins(chain: Chain, key: SigningKey, name: str, *roles: str, **changed: Any) -> Op:
    signature = proof_of_invitation(TOKEN, chain.service, key.peer).hex()
    return {
        "op": "add",
        "member": name,
        "key": key.peer,
        "roles": list(roles or ("submit",)),
        "invitation": {"key": TOKEN.peer, "signature": signature},
        **changed,
    }


def device(chain: Chain, voucher: SigningKey, key: SigningKey, name: str, **changed: Any) -> Op:
    grant = DeviceGrant.sign(voucher, chain.service, TOKEN.peer, HOUR_MS)
    proof = grant.plain(proof_of_device(TOKEN, chain.service, key.peer))
    roles = list(chain.now.members[name][0])
    return {
        "op": "add",
        "member": name,
        "key": key.peer,
        "roles": roles,
        "device": {**proof, **changed},
    }


def add(key: SigningKey, name: str, *roles: str) -> Op:
    return {"op": "add", "member": name, "key": key.peer, "roles": list(roles or ("submit",))}


def remove(name: str) -> Op:
    return {"op": "remove", "member": name}


def refused(words: str, chain: Chain, *ops: Op, **how: Any) -> None:
    head = chain.head
    with pytest.raises((DecodeError, DefinitionError), match=words):
        do(chain, *ops, **how)
    assert chain.head == head


# -- invitations --------------------------------------------------------------------------


def test_an_invitation_needs_the_threshold_and_who_has_it_only_one_admin() -> None:
    chain = service()
    refused("1 admins signed a change; 2 are needed", chain, invite(), by=(ANN,))
    do(chain, invite())
    do(chain, joins(chain, DAN, "dan", "submit", "compute"), by=(CAT,))
    assert chain.now.roles_of(DAN.peer) == ("compute", "submit")
    assert twin(chain).now.document() == chain.now.document()


def test_without_a_proof_one_admin_adds_nobody() -> None:
    chain = service()
    do(chain, invite())
    refused("2 are needed", chain, add(DAN, "dan"), by=(ANN,))
    both = (joins(chain, DAN, "dan"), add(EVE, "eve"))
    refused("2 are needed", chain, *both, by=(ANN,))
    refused("0 admins signed", chain, joins(chain, DAN, "dan"), by=(DAN,))


@pytest.mark.parametrize(
    ("words", "op", "at_ms"),
    [
        ("expired", lambda c: joins(c, DAN, "dan"), HOUR_MS + 1),
        ("other roles", lambda c: joins(c, DAN, "dan", "admin"), 1),
        ("over this key", lambda c: {**joins(c, EVE, "eve"), "key": DAN.peer}, 1),
        ("already", lambda c: joins(c, DAN, "ann"), 1),
        (
            "no such invitation",
            lambda c: joins(c, DAN, "d", invitation={"key": EVE.peer, "signature": "0" * 128}),
            1,
        ),
        (
            "128 lower-case",
            lambda c: joins(c, DAN, "d", invitation={"key": TOKEN.peer, "signature": "F" * 128}),
            1,
        ),
        ("not {", lambda c: joins(c, DAN, "dan", invitation=True), 1),
    ],
)
def test_an_invitation_lets_in_whom_it_names_while_it_lives(
    words: str, op: Any, at_ms: int
) -> None:
    chain = service()
    do(chain, invite(), add(ANN, "ann"))
    refused(words, chain, op(chain), by=(ANN,), at_ms=at_ms)


def test_uses_are_counted_along_the_chain_and_withdrawn_is_withdrawn() -> None:
    chain = service()
    do(chain, invite(uses=2))
    do(chain, joins(chain, DAN, "dan"), by=(ANN,))
    other = twin(chain)
    do(other, {"op": "uninvite", "key": TOKEN.peer})
    refused("withdrawn", other, joins(other, EVE, "eve"), by=(ANN,))
    do(chain, joins(chain, EVE, "eve"), by=(ANN,))
    late = SigningKey(b"z" * 32)
    refused("used_up", chain, joins(chain, late, "late"), by=(ANN,))


def test_an_invitation_of_another_service_counts_for_nothing() -> None:
    chain, other = service(), service(threshold=1)
    do(chain, invite())
    foreign = joins(other, DAN, "dan")
    assert other.service != chain.service
    refused("over this key", chain, foreign, by=(ANN,))


def test_whom_the_admins_removed_comes_back_by_a_new_invitation_only() -> None:
    chain = service()
    do(chain, invite(uses=5))
    do(chain, joins(chain, DAN, "dan"), by=(ANN,))
    do(chain, remove("dan"))
    refused("removed after the invitation", chain, joins(chain, DAN, "dan"), by=(ANN,))
    do(chain, {"op": "uninvite", "key": TOKEN.peer})
    fresh = SigningKey(b"f" * 32)
    do(chain, {**invite(), "key": fresh.peer})
    proof = {"key": fresh.peer, "signature": ""}
    proof["signature"] = proof_of_invitation(fresh, chain.service, DAN.peer).hex()
    do(chain, joins(chain, DAN, "dan", invitation=proof), by=(ANN,))
    assert chain.now.roles_of(DAN.peer) == ("submit",)


def test_one_admin_cannot_take_roles_away_under_cover_of_an_invitation() -> None:
    chain = service()
    do(chain, invite(), add(DAN, "dan", "submit", "read"))
    refused("other roles", chain, joins(chain, DAN, "dan", "compute"), by=(ANN,))
    do(chain, joins(chain, DAN, "dan", "compute", "read", "submit"), by=(ANN,))
    assert chain.now.roles_of(DAN.peer) == ("compute", "read", "submit")


def test_of_two_that_use_one_invitation_at_once_one_wins_on_every_node() -> None:
    chain = service()
    do(chain, invite())
    one = chain.propose([joins(chain, DAN, "dan")], [ANN], 2)
    two = chain.propose([joins(chain, EVE, "eve")], [BEN], 2)
    nodes = [twin(chain), twin(chain)]
    for node, order in zip(nodes, ((one, two), (two, one)), strict=True):
        for change in order:
            node.add(change)
    assert nodes[0].head == nodes[1].head
    assert nodes[0].now.member_of(DAN.peer) == "dan"  # Ann comes first in the list of admins
    assert nodes[0].now.member_of(EVE.peer) is None
    assert nodes[0].has_named(EVE.peer)
    refused("used_up", nodes[0], joins(chain, EVE, "eve"), by=(BEN,))


def test_a_single_signature_never_wins_over_the_thresholds() -> None:
    chain = service()
    do(chain, invite())
    weak = chain.propose([joins(chain, DAN, "dan")], [ANN], 2)
    strong = chain.propose([add(EVE, "eve")], [BEN, CAT], 2)
    for order in ((weak, strong), (strong, weak)):
        node = twin(chain)
        for change in order:
            node.add(change)
        assert node.head == strong.cid


# -- devices ------------------------------------------------------------------------------


def test_a_member_brings_a_further_device_with_one_admins_signature() -> None:
    chain = service()
    do(chain, add(DAN, "dan", "submit", "read"))
    do(chain, device(chain, DAN, EVE, "dan"), by=(CAT,))
    assert chain.now.members["dan"] == (("read", "submit"), tuple(sorted([DAN.peer, EVE.peer])))
    late = SigningKey(b"z" * 32)
    refused("used_up", chain, device(chain, DAN, late, "dan"), by=(CAT,))


@pytest.mark.parametrize(
    ("words", "changed", "at_ms"),
    [
        ("not signed by a key of its member", {"by": ANN.peer}, 1),
        ("expired", {}, HOUR_MS + 1),
        ("not the member's signature", {"expires_unix_ms": HOUR_MS * 2}, 1),
        ("not the token's signature", {"signature": "0" * 128}, 1),
    ],
)
def test_a_device_comes_by_its_members_word_only(words: str, changed: Op, at_ms: int) -> None:
    chain = service()
    do(chain, add(DAN, "dan"), add(ANN, "ann"))
    refused(words, chain, device(chain, DAN, EVE, "dan", **changed), by=(ANN,), at_ms=at_ms)
    more = {**device(chain, DAN, EVE, "dan"), "roles": ["submit", "admin"]}
    refused("its member's roles", chain, more, by=(ANN,))


def test_a_removed_device_does_not_come_back_by_its_member() -> None:
    chain = service()
    do(chain, add(DAN, "dan"), add(EVE, "dan"))
    do(chain, {**remove("dan"), "key": EVE.peer})
    refused("removed before", chain, device(chain, DAN, EVE, "dan"), by=(ANN,))


def test_whom_a_losing_branch_removed_lets_no_device_in() -> None:
    chain = service(threshold=1)
    do(chain, add(DAN, "dan"), by=(ANN,))
    losing = chain.propose([remove("dan")], [BEN], 2)
    winning = chain.propose([device(chain, DAN, EVE, "dan")], [ANN], 2)
    for order in ((losing, winning), (winning, losing)):
        node = twin(chain)
        for change in order:
            node.add(change)
        assert node.head == winning.cid
        assert node.now.roles_of(DAN.peer) == node.now.roles_of(EVE.peer) == ()


# -- leaving ------------------------------------------------------------------------------


def leaving(chain: Chain, key: SigningKey, name: str, cuts: tuple[Cut, ...], epoch: int) -> Op:
    proof = proof_of_leave(key, chain.service, epoch, [cut.plain() for cut in cuts])
    return {**remove(name), "key": key.peer, "leave": proof}


def leave(chain: Chain, op: Op, cuts: tuple[Cut, ...], by: SigningKey = ANN) -> SignedChange:
    change = chain.propose([op], [by], 5, cuts)
    chain.add(change)
    return change


def test_a_member_leaves_by_its_own_word_and_names_its_own_cuts() -> None:
    chain = service()
    do(chain, add(DAN, "dan"))
    cuts = (Cut(LogId(DAN.peer, bytes(16), 0), 7, bytes(32)),)
    op = leaving(chain, DAN, "dan", cuts, chain.epoch)
    with pytest.raises(DefinitionError, match="over its cuts"):  # an admin cuts more than it said
        leave(chain, op, ())
    leave(chain, op, cuts)
    assert chain.now.member_of(DAN.peer) is None
    assert list(chain.cuttings(DAN.peer)[0].cuts.values()) == list(cuts)


def test_a_leave_is_not_said_again_after_the_member_has_come_back() -> None:
    chain = service()
    do(chain, add(DAN, "dan"))
    op = leaving(chain, DAN, "dan", (), chain.epoch)
    leave(chain, op, ())
    do(chain, add(DAN, "dan"))
    with pytest.raises(DefinitionError, match="from before the key was added"):
        leave(chain, op, ())
    assert chain.now.member_of(DAN.peer) == "dan"


def test_nobody_is_made_to_leave() -> None:
    chain = service()
    do(chain, add(DAN, "dan"))
    op = {**leaving(chain, EVE, "dan", (), chain.epoch), "key": DAN.peer}
    with pytest.raises(DefinitionError, match="not the leaving key's"):
        leave(chain, op, ())


def test_an_admin_leaves_by_the_thresholds_signatures() -> None:
    chain = service()
    do(chain, add(CAT, "cat", "admin", "submit"))
    op = leaving(chain, CAT, "cat", (), chain.epoch)
    with pytest.raises(DecodeError, match="2 are needed"):
        leave(chain, op, ())
    do(chain, op)
    assert chain.now.admins == (ANN.peer, BEN.peer)


def test_one_who_left_is_not_brought_back_by_the_proof_that_let_him_in() -> None:
    chain = service()
    do(chain, invite(uses=3))
    proof = joins(chain, DAN, "dan")
    do(chain, proof, by=(ANN,))
    leave(chain, leaving(chain, DAN, "dan", (), chain.epoch), ())
    refused("let this key in before", chain, proof, by=(ANN,))
    do(chain, joins(chain, EVE, "eve"), by=(ANN,))
    assert (chain.now.member_of(DAN.peer), chain.now.member_of(EVE.peer)) == (None, "eve")


# -- histories ------------------------------------------------------------------------------

KEYS = [SigningKey(bytes([40 + i]) * 32) for i in range(6)]


def _next_op(
    chain: Chain, draw: Any, tokens: list[SigningKey]
) -> tuple[Op, tuple[SigningKey, ...]]:
    """An op that may fit, and who signs it: often one admin only."""
    kind = draw(st.sampled_from(("add", "invite", "uninvite", "join", "device", "leave", "remove")))
    members = [key for key in KEYS if chain.now.member_of(key.peer)]
    comes = kind in ("add", "join") or not members
    key = draw(st.sampled_from(KEYS if comes else members))
    name = chain.now.member_of(key.peer) or key.peer[-6:]
    signers = draw(st.sampled_from(((ANN,), (BEN,), (CAT,), (ANN, BEN), (BEN, CAT))))
    token = draw(st.sampled_from(tokens))
    if kind == "invite":
        return {**invite(uses=draw(st.integers(1, 2))), "key": token.peer}, signers
    if kind == "uninvite":
        return {"op": "uninvite", "key": token.peer}, signers
    if kind == "join":
        signature = proof_of_invitation(token, chain.service, key.peer).hex()
        proof = {"key": token.peer, "signature": signature}
        return joins(chain, key, name, "compute", "submit", invitation=proof), signers
    if kind == "device" and members:
        return device(chain, key, draw(st.sampled_from(KEYS)), name), signers
    if kind == "leave" and members:
        return leaving(chain, key, name, (), draw(st.integers(0, chain.epoch))), signers
    if kind == "remove":
        return remove(name), signers
    return add(key, name, "submit"), signers


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_whatever_admins_did_apart_all_nodes_agree_in_any_order(data: st.DataObject) -> None:
    first = service()
    do(first, add(KEYS[0], "one"), add(KEYS[1], "two"), invite(uses=2))
    nodes = [first, twin(first), twin(first)]
    tokens = [TOKEN, SigningKey(b"u" * 32)]
    for step in range(data.draw(st.integers(4, 16))):
        node = data.draw(st.sampled_from(nodes))
        op, signers = _next_op(node, data.draw, tokens)
        with contextlib.suppress(DecodeError, DefinitionError):
            node.add(node.propose([op], list(signers), step))
        if data.draw(st.integers(0, 3)) == 0:  # two nodes meet
            for change in data.draw(st.sampled_from(nodes)).changes(-1):
                node.add(change)
    everything = {change.cid: change for node in nodes for change in node.changes(-1)}
    rest = sorted(everything.values(), key=lambda change: change.seq)
    fresh = Chain()
    for change in rest:
        fresh.add(change)
    shuffled = Chain()
    waiting = data.draw(st.permutations(rest[1:]))
    shuffled.add(rest[0])
    while waiting:
        waiting = [c for c in waiting if not _taken(shuffled, c)]
    for node in nodes:
        for change in rest:
            node.add(change)
    for node in (*nodes, shuffled):
        assert (node.head, node.digest) == (fresh.head, fresh.digest)
        assert node.now.document() == fresh.now.document()
        roles = [node.now.roles_of(key.peer) for key in KEYS]
        assert roles == [fresh.now.roles_of(key.peer) for key in KEYS]
        for entry in node.now.invitations.values():
            assert entry["used"] <= entry["uses"]


def _taken(chain: Chain, change: SignedChange) -> bool:
    try:
        chain.add(change)
    except ChangeGap:
        return False
    return True


# -- one admin of three against the others ------------------------------------------------


def forked(chain: Chain, at: int) -> Chain:
    """What a node knows that saw only the first changes of a service."""
    other = Chain()
    for change in chain.changes(-1)[:at]:
        other.add(change)
    return other


def by_a_device(chain: Chain, admin: SigningKey, name: str, over: tuple[str, ...] = ()) -> Any:
    """A change that an admin makes alone: a further device of his own."""
    op = device(chain, admin, SigningKey(b"d" * 32), name)
    return chain.propose([op], [admin], 9, (), over)


def test_one_admin_does_not_undo_what_the_threshold_signed_from_an_older_fork() -> None:
    chain = service()
    do(chain, add(ANN, "ann"), invite(uses=5))
    at = len(chain.changes(-1))
    do(chain, joins(chain, EVE, "eve"), by=(CAT,))  # one signature: an older fork may win here
    do(chain, add(DAN, "dan"), by=(BEN, CAT))
    do(chain, {"op": "admins", "admins": [BEN.peer, CAT.peer], "threshold": 2}, by=(BEN, CAT))
    weak = by_a_device(forked(chain, at), ANN, "ann")
    other = forked(chain, at)
    other.add(weak)
    for change in chain.changes(-1)[at:]:
        other.add(change)
    head = chain.head
    chain.add(weak)
    assert chain.head == other.head == head
    assert ANN.peer not in chain.now.admins
    assert chain.now.member_of(DAN.peer) == other.now.member_of(DAN.peer) == "dan"


def test_an_admin_who_was_removed_does_not_come_back_by_an_older_fork() -> None:
    chain = service(threshold=1)
    at = len(chain.changes(-1))
    do(chain, add(DAN, "dan"), by=(BEN,))
    do(chain, {"op": "admins", "admins": [BEN.peer, CAT.peer], "threshold": 1}, by=(BEN,))
    old = forked(chain, at)
    for _ in range(3):
        do(old, add(EVE, "eve"), by=(ANN,))
        chain.add(old.changes(-1)[-1])
    assert ANN.peer not in chain.now.admins
    assert chain.now.member_of(EVE.peer) is None
    assert twin(chain).head == chain.head


def test_one_admin_alone_does_not_give_back_what_a_losing_branch_took() -> None:
    chain = service()
    do(chain, add(ANN, "ann"), add(DAN, "dan"))
    lost = chain.propose([remove("dan")], [BEN, CAT], 2)
    do(chain, {"op": "policy", "policy": {}}, by=(ANN, BEN))
    chain.add(lost)
    assert not chain.now.roles_of(DAN.peer)
    with pytest.raises(DecodeError, match="2 are needed"):
        chain.add(by_a_device(chain, ANN, "ann", over=(lost.cid,)))
    assert not chain.now.roles_of(DAN.peer)
    chain.add(chain.propose([{"op": "policy", "policy": {}}], [ANN, BEN], 9, (), (lost.cid,)))
    assert chain.now.roles_of(DAN.peer) == ("submit",)


def test_whoever_passes_a_change_on_adds_nothing_to_it() -> None:
    chain = service()
    change = chain.propose([add(DAN, "dan")], [BEN, CAT], 1)
    junk = [("x" * 400 + str(number), b"j" * 64) for number in range(100)]
    padded = SignedChange(change.body, (*junk, (ANN.peer, b"j" * 64), *change.signatures))
    chain.add(SignedChange.decode(padded.encode()))
    assert chain.get(change.cid) == change
    assert chain.add(change.signed_by(ANN))
    assert {peer for peer, _ in chain.get(change.cid).signatures} == {
        ANN.peer,
        BEN.peer,
        CAT.peer,
    }


def test_a_member_does_not_use_the_changes_up_by_devices_that_come_and_go(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pairio_protocol.proofs.DEVICE_LINKS_MAX", 3)
    chain = service()
    do(chain, add(DAN, "dan"))
    voucher = DAN
    for number in range(4):
        key, token = SigningKey(bytes([50 + number]) * 32), SigningKey(bytes([90 + number]) * 32)
        grant = DeviceGrant.sign(voucher, chain.service, token.peer, HOUR_MS)
        proof = grant.plain(proof_of_device(token, chain.service, key.peer))
        op = {"op": "add", "member": "dan", "key": key.peer, "roles": ["submit"], "device": proof}
        if number == 3:
            refused("more than 3 devices", chain, op, by=(ANN,))
            return
        do(chain, op, by=(ANN,))
        voucher = key  # also through devices of devices


def test_a_key_that_its_own_device_vouches_for_does_not_begin_to_count_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pairio_protocol.proofs.DEVICE_LINKS_MAX", 2)
    chain = service()
    do(chain, add(DAN, "dan"))
    for number, (voucher, key) in enumerate([(DAN, EVE), (EVE, DAN), (EVE, TOKEN)]):
        token = SigningKey(bytes([90 + number]) * 32)
        grant = DeviceGrant.sign(voucher, chain.service, token.peer, HOUR_MS)
        proof = grant.plain(proof_of_device(token, chain.service, key.peer))
        op = {"op": "add", "member": "dan", "key": key.peer, "roles": ["submit"], "device": proof}
        if number < 2:
            do(chain, op, by=(ANN,))
    refused("more than 2 devices", chain, op, by=(ANN,))


def test_roles_that_were_taken_do_not_come_back_by_an_older_invitation() -> None:
    chain = service()
    do(chain, invite(uses=9))
    do(chain, joins(chain, DAN, "dan", "submit", "compute"), by=(ANN,))
    do(chain, {"op": "role", "member": "dan", "roles": ["submit"]})
    refused("taken from the key", chain, joins(chain, DAN, "dan", "submit", "compute"), by=(ANN,))
    grant = DeviceGrant.sign(DAN, chain.service, EVE.peer, HOUR_MS)
    key = SigningKey(b"k" * 32)
    proof = grant.plain(proof_of_device(EVE, chain.service, key.peer))
    op = {"op": "add", "member": "dan", "key": key.peer, "roles": ["submit"], "device": proof}
    do(chain, op, by=(ANN,))
    refused("taken from the key", chain, joins(chain, key, "dan", "submit", "compute"), by=(ANN,))


def flood(chain: Chain, admin: SigningKey, count: int) -> list[SignedChange]:
    """Changes that an admin makes alone, all of which follow the newest one."""
    return [
        chain.propose([device(chain, admin, SigningKey(b"d" * 32), "ann")], [admin], 10 + number)
        for number in range(count)
    ]


def test_an_admin_who_signs_without_end_keeps_no_change_of_others_out() -> None:
    chain = service()
    do(chain, add(ANN, "ann"), add(DAN, "dan"), invite(uses=9))
    weak = chain.propose([joins(chain, EVE, "eve")], [CAT], 2)
    strong = chain.propose([remove("dan")], [BEN, CAT], 2)
    for change in flood(chain, ANN, SIBLINGS_MAX):
        chain.add(change)
    with pytest.raises(ChangeBeyond):
        chain.add(flood(forked(chain, 2), ANN, SIBLINGS_MAX + 1)[-1])
    assert chain.add(weak)
    assert chain.add(strong)
    assert chain.head == strong.cid
