"""The list of members: forged, old, forked and oversized changes; the removed; invitations."""

import os
from typing import Any

import trio

from pairio_protocol.documents import decode, encode
from pairio_protocol.ids import peer_of
from pairio_protocol.limits import HELLO_UNKNOWN_MAX, MEMBERS_MAX
from pairio_protocol.messages import (
    Changes,
    Digest,
    Hello,
    HelloService,
    PresenceUpdate,
    WantChanges,
)
from pairio_protocol.proofs import proof_of_invitation
from pairio_protocol.service import Chain, SignedChange
from pairio_protocol.signing import SigningKey
from tests.integration.attacks.doors import NOTHING, presence, signed_change
from tests.integration.attacks.lab import Lab, until
from tests.integration.attacks.members import document, wish
from tests.integration.attacks.peers import Peer
from tests.integration.attacks.table import attack

LIST = "The list of members"
GONE = "A removed member"
INVITED = "Invitations"
INVALID = "refused: invalid service change"
FRIEND = SigningKey(b"friend of an attacker".ljust(32, b"."))


def _add(name: str = "friend", key: SigningKey = FRIEND, **more: Any) -> dict[str, Any]:
    return {"op": "add", "member": name, "key": key.peer, "roles": ["compute", "submit"], **more}


def _tell(by: Peer, service: str, *changes: SignedChange) -> None:
    for change in changes:
        by.say(Changes(service, (change.encode(),), False))


def _until(lab: Lab, seq: int) -> Chain:
    """Return the chain as it was after a change."""
    chain = Chain()
    for change in lab.chain.changes():
        if change.seq <= seq:
            chain.add(change)
    return chain


def _bent(change: SignedChange, key: SigningKey, **fields: Any) -> SignedChange:
    """Return a change with other fields, signed."""
    return signed_change(encode({**decode(change.body, 2**20), **fields}), key)


# -- forged and malformed ----------------------------------------------------------------------


@attack(LIST, "a change with a forged signature", has="an admin's peer id",
        does="adds a friend in the admin's name", counted=INVALID)  # fmt: skip
async def _forged(lab: Lab) -> None:
    change = lab.chain.propose([_add()], [lab.mallory.key], 1)
    _, signature = change.signatures[0]
    _tell(lab.mallory, lab.service, SignedChange(change.body, ((lab.root.key.peer, signature),)))


@attack(LIST, "a signature of an older admin set", has="the key of an admin of before",
        does="signs a change of today", counted=INVALID)  # fmt: skip
async def _old_admin(lab: Lab) -> None:
    _tell(lab.old, lab.service, lab.chain.propose([_add()], [lab.old.key], 1))


@attack(LIST, "a signature over another body", has="a change that an admin signed",
        does="puts its signatures on a change of his own", counted=INVALID)  # fmt: skip
async def _other_body(lab: Lab) -> None:
    signed = lab.chain.changes()[0].signatures
    change = lab.chain.propose([_add()], [], 1)
    _tell(lab.mallory, lab.service, SignedChange(change.body, signed))


@attack(LIST, "a change of another service", has="a change that the same admin signed there",
        does="sends it as one of this service", counted=INVALID)  # fmt: skip
async def _other_service(lab: Lab) -> None:
    _tell(lab.mallory, lab.service, lab.other.changes()[0])


@attack(LIST, "a change that states another list than it makes", has="an admin's key",
        does="signs a state that gives a friend a role", counted=INVALID)  # fmt: skip
async def _state(lab: Lab) -> None:
    change = lab.chain.propose([{"op": "policy", "policy": {}}], [lab.second.key], 1)
    state = decode(lab.chain.propose([_add()], [lab.second.key], 1).body, 2**20)["state"]
    _tell(lab.second, lab.service, _bent(change, lab.second.key, state=state))


@attack(LIST, "a change that skips a number", has="an admin's key",
        does="signs change 1,000 after the newest", counted=INVALID)  # fmt: skip
async def _skips(lab: Lab) -> None:
    change = lab.chain.propose([_add()], [lab.second.key], 1)
    _tell(lab.second, lab.service, _bent(change, lab.second.key, seq=1000))


@attack(LIST, "an oversized change", has="an admin's key", does="signs a change of 50 KiB",
        counted=INVALID)  # fmt: skip
async def _oversized(lab: Lab) -> None:
    change = lab.chain.propose([_add()], [lab.second.key], 1)
    ops = [{"op": "policy", "policy": {"x": "y" * 50_000}}]
    _tell(lab.second, lab.service, _bent(change, lab.second.key, ops=ops))


@attack(LIST, "a change of 300 ops", has="an admin's key", does="signs it", counted=INVALID)
async def _many_ops(lab: Lab) -> None:
    change = lab.chain.propose([_add()], [lab.second.key], 1)
    _tell(lab.second, lab.service, _bent(change, lab.second.key, ops=[{"op": "end"}] * 300))


@attack(LIST, "ops that there are not", has="an admin's key", does="signs them", counted=INVALID)
async def _no_ops(lab: Lab) -> None:
    change = lab.chain.propose([_add()], [lab.second.key], 1)
    for ops in ([{"op": "sudo"}], [{"op": ["add"]}], ["end"], [{"op": "create"}], []):
        _tell(lab.second, lab.service, _bent(change, lab.second.key, ops=ops))


@attack(LIST, "a cut of an honest member's log", has="an admin's key",
        does="cuts logs of somebody who loses no role by the change", counted=INVALID)  # fmt: skip
async def _cut(lab: Lab) -> None:
    change = lab.chain.propose([{"op": "policy", "policy": {}}], [lab.second.key], 1)
    cut = {"author": lab.honest.key.peer, "boot": "00" * 16, "shard": 0, "seq": 0,
           "hash": "00" * 32}  # fmt: skip
    _tell(lab.second, lab.service, _bent(change, lab.second.key, cuts=[cut]))


@attack(LIST, "a member's key for another member", has="an admin's key",
        does="puts an honest member's key under a friend's name", counted=INVALID)  # fmt: skip
async def _second_name(lab: Lab) -> None:
    change = lab.chain.propose([_add()], [lab.second.key], 1)
    ops = [_add("friend", lab.honest.key)]
    _tell(lab.second, lab.service, _bent(change, lab.second.key, ops=ops))


@attack(LIST, "names that cannot be printed", has="an admin's key",
        does="names members with slashes, zero bytes, and marks that turn the text around",
        counted=INVALID)  # fmt: skip
async def _names(lab: Lab) -> None:
    change = lab.chain.propose([_add()], [lab.second.key], 1)
    for name in ("a/b", "a\x00", "a\u202eb", "", "x" * 201):
        _tell(lab.second, lab.service, _bent(change, lab.second.key, ops=[_add(name)]))


@attack(LIST, "a look-alike name", has="an admin's key",
        does="adds a friend as `h\u043enest`, with a Cyrillic letter, and as `HONEST`",
        counted=INVALID)  # fmt: skip
async def _alike(lab: Lab) -> None:
    right = lab.chain.propose([_add()], [lab.second.key], 1)
    for name in ("h\u043enest", "HONEST", "h\u00f3nest"):
        _tell(lab.second, lab.service, _bent(right, lab.second.key, ops=[_add(name)]))


@attack(LIST, "more than 4,096 members", has="an admin's key",
        does="adds them to a service of 4,096",
        counted=INVALID)  # fmt: skip
async def _members(lab: Lab) -> None:
    chain = await trio.to_thread.run_sync(_crowd, lab.root.key, lab.node.info["peerId"])
    lab.aside.add(chain.service)
    lab.change_all(chain)

    def is_full() -> bool:
        found = [s for s in lab.get("services")["services"] if s["serviceId"] == chain.service]
        return bool(found) and len(found[0]["members"]) == MEMBERS_MAX

    assert await until(is_full, 20), f"{MEMBERS_MAX} fit"
    plain = decode(chain.changes()[-1].body, 2**20)
    plain |= {"seq": chain.epoch + 1, "prev": chain.head, "ops": [_add("one more")]}
    _tell(lab.root, chain.service, signed_change(encode(plain), lab.root.key))


def _crowd(key: SigningKey, node: str) -> Chain:
    """Return a service that is full."""
    chain = Chain()
    create = {"op": "create", "name": "crowd", "admins": [key.peer], "threshold": 1, "nonce": "0"}
    adds = [_add(f"m{n}", _Peer(peer_of(os.urandom(32)))) for n in range(MEMBERS_MAX - 1)]
    chain.add(chain.propose([create, _add("node", _Peer(node))], [key], 1))
    for start in range(0, len(adds), 256):
        chain.add(chain.propose(adds[start : start + 256], [key], 1))
    return chain


class _Peer(SigningKey):
    """A peer id that a list names; the key is the node's own."""

    def __init__(self, peer: str) -> None:
        self.peer = peer


# -- forks and replays -------------------------------------------------------------------------


@attack(LIST, "a removed admin's longer branch", has="the key of an admin who was removed",
        does="builds 20 changes beside his removal, and gives himself all roles",
        refused_by="the branch of the removal wins, however short; he grants nothing")  # fmt: skip
async def _longer(lab: Lab) -> bool:
    branch = _until(lab, 0)
    for number in range(20):
        op = _add(f"friend{number}", SigningKey(bytes([number]) * 32)) if number else _add()
        branch.add(branch.propose([op], [lab.old.key], 1))
    _tell(lab.old, lab.service, *branch.changes()[1:])
    return await _stays(lab, lab.old)


@attack(LIST, "ground CIDs", has="the key of a later admin",
        does="makes 300 siblings of an earlier admin's change, and sends that of the smallest CID",
        refused_by="the earlier admin wins; CIDs decide only between the same signers")  # fmt: skip
async def _ground(lab: Lab) -> bool:
    before = _until(lab, 3)
    siblings = [before.propose([_add()], [lab.second.key], number) for number in range(300)]
    _tell(lab.second, lab.service, min(siblings, key=lambda change: change.cid))
    return await _stays(lab, lab.second)


@attack(LIST, "flood of forks", has="the key of an admin", does="makes 100 siblings of one change",
        counted="refused: changes of one admin beyond what is kept")  # fmt: skip
async def _siblings(lab: Lab) -> None:
    before = _until(lab, 2)
    for number in range(100):
        _tell(lab.second, lab.service, before.propose([_add()], [lab.second.key], 1000 + number))


async def _stays(lab: Lab, by: Peer) -> bool:
    """Say whether the list stays as it is once the node has taken what a peer said."""
    await lab.has_taken(by)
    return bool(lab.get("services/lab")["head"] == lab.chain.head)


@attack(LIST, "old changes, replayed", has="all changes of the service",
        does="sends them again: also the removal of a member who came back",
        refused_by="no news; whoever came back keeps his role")  # fmt: skip
async def _replayed(lab: Lab) -> bool:
    _tell(lab.mallory, lab.service, *lab.chain.changes())
    await lab.has_taken(lab.mallory)
    segment = lab.yves.segment(lab.service, lab.epoch, NOTHING)
    return await lab.stores(lab.yves, segment)


@attack(LIST, "an older head", has="role submit", does="says hello with the head of years ago",
        refused_by="the node keeps the newest it has seen, and sends that")  # fmt: skip
async def _older(lab: Lab) -> bool:
    old = _until(lab, 1)
    entry = HelloService(lab.service, old.epoch, old.head, old.digest)
    lab.mallory.say(Hello(bytes(16), (entry,)), Digest(lab.service, bytes(40), old.digest))
    return await _stays(lab, lab.mallory)


@attack(LIST, "a crowd of services in a hello", has="a connection",
        does="names 300 services that there are not, so that all are asked for",
        counted="refused: a hello of more unknown services than are looked at")  # fmt: skip
async def _hello(lab: Lab) -> None:
    names = [own.cid for own in (signed_change(os.urandom(8)) for _ in range(300))]
    entries = tuple(HelloService(name, 1, name, bytes(32)) for name in names)
    lab.stranger.heard.clear()
    lab.stranger.say(Hello(bytes(16), entries))
    assert await _stays(lab, lab.stranger), "the list has changed"
    asked = sum(isinstance(message, WantChanges) for message in lab.stranger.heard)
    assert asked <= HELLO_UNKNOWN_MAX, f"{asked} are asked for"


# -- the removed -------------------------------------------------------------------------------


@attack(GONE, "a segment of a removed member, of today", has="the key of a removed member",
        does="writes under the newest change",
        counted="refused: a segment of somebody who is no member")  # fmt: skip
async def _gone(lab: Lab) -> None:
    lab.xavier.push(lab.xavier.segment(lab.service, lab.epoch, wish(document(lab))))


@attack(GONE, "a segment of a removed member, dated back", has="the key of a removed member",
        does="writes under the change before his removal, in a log that no cut names",
        counted="segments that do not count")  # fmt: skip
async def _back_dated(lab: Lab) -> None:
    lab.xavier.push(lab.xavier.segment(lab.service, 1, wish(document(lab))))


@attack(GONE, "sync of a removed member", has="the key of a removed member",
        does="goes on asking for news", counted="refused: digest of a stranger")  # fmt: skip
async def _gone_sync(lab: Lab) -> None:
    lab.xavier.say(Digest(lab.service, bytes(32), bytes(32)))


@attack(GONE, "presence of a removed member", has="the key of a removed member",
        does="offers his machine",
        counted="refused: presence of somebody who is no member")  # fmt: skip
async def _gone_presence(lab: Lab) -> None:
    lab.xavier.say(PresenceUpdate((presence(lab, lab.xavier.key),)))


# -- invitations -------------------------------------------------------------------------------


def _invitation(lab: Lab, **more: Any) -> tuple[Chain, SigningKey, dict[str, Any]]:
    """Return a service that the node is in, an invitation into it, and its op."""
    token, key = SigningKey(os.urandom(32)), lab.root.key
    chain = Chain()
    create = {"op": "create", "name": f"club{os.urandom(2).hex()}", "admins": [key.peer],
              "threshold": 1, "nonce": os.urandom(8).hex()}  # fmt: skip
    invite = {"op": "invite", "key": token.peer, "roles": ["submit"], "uses": 1,
              "expires_unix_ms": 2_000_000_000_000, **more}  # fmt: skip
    node = _add("node", _Peer(lab.node.info["peerId"]))
    chain.add(chain.propose([create, node], [key], 1))
    chain.add(chain.propose([invite], [key], 1))
    lab.aside.add(chain.service)
    lab.change_all(chain)
    return chain, token, invite


def _joining(chain: Chain, token: SigningKey, key: SigningKey, name: str) -> dict[str, Any]:
    proof = proof_of_invitation(token, chain.service, key.peer)
    return {**_add(name, key), "roles": ["submit"],
            "invitation": {"key": token.peer, "signature": proof.hex()}}  # fmt: skip


def _try_join(
    lab: Lab, chain: Chain, op: dict[str, Any], like: dict[str, Any], issued: int = 1
) -> None:
    """Send a change with this op, as an admin's node would append it; `like` is an op that is
    right and makes the same list."""
    right = chain.propose([like], [lab.root.key], 1)
    _tell(lab.root, chain.service, _bent(right, lab.root.key, ops=[op], issued=issued))


@attack(INVITED, "an expired invitation", has="the token", does="joins a second after its end",
        counted=INVALID)  # fmt: skip
async def _expired(lab: Lab) -> None:
    chain, token, _ = _invitation(lab, expires_unix_ms=1000)
    op = _joining(chain, token, FRIEND, "late")
    _try_join(lab, chain, op, op, issued=2000)


@attack(INVITED, "an invitation for another peer", has="an invitation's signature over one peer id",
        does="puts his own in its place", counted=INVALID)  # fmt: skip
async def _other_peer(lab: Lab) -> None:
    chain, token, _ = _invitation(lab)
    right = _joining(chain, token, lab.stranger.key, "x")
    wrong = _joining(chain, token, FRIEND, "x")
    _try_join(lab, chain, {**right, "invitation": wrong["invitation"]}, right)


@attack(INVITED, "an invitation into another service", has="a token for another service",
        does="joins this one with it", counted=INVALID)  # fmt: skip
async def _other_club(lab: Lab) -> None:
    chain, token, _ = _invitation(lab)
    wrong = _joining(lab.other, token, FRIEND, "x")
    _try_join(lab, chain, wrong, _joining(chain, token, FRIEND, "x"))


@attack(INVITED, "an invitation for more than it gives", has="the token of a submitter",
        does="joins as an admin", counted=INVALID)  # fmt: skip
async def _more(lab: Lab) -> None:
    chain, token, _ = _invitation(lab)
    op = _joining(chain, token, FRIEND, "x")
    _try_join(lab, chain, {**op, "roles": ["admin", "compute", "submit"]}, op)


@attack(INVITED, "an invitation used twice", has="the token of one use", does="lets two in",
        counted=INVALID)  # fmt: skip
async def _twice(lab: Lab) -> None:
    chain, token, _ = _invitation(lab)
    chain.add(chain.propose([_joining(chain, token, FRIEND, "one")], [lab.root.key], 1))
    lab.change_all(chain)
    second = SigningKey(b"2" * 32)
    _try_join(lab, chain, _joining(chain, token, second, "two"), _add("two", second))


@attack(INVITED, "an invitation used on two nodes at the same moment", has="the token of one use",
        does="lets one in at each of two admins' nodes",
        refused_by="one of the two wins on every node; the other is in nowhere")  # fmt: skip
async def _two_nodes(lab: Lab) -> bool:
    chain, token, _ = _invitation(lab)
    ops = [_joining(chain, token, SigningKey(bytes([n]) * 32), f"m{n}") for n in (3, 4)]
    changes = [chain.propose([op], [lab.root.key], 1) for op in ops]
    _tell(lab.root, chain.service, *changes)
    await lab.has_taken(lab.root)
    members = {m["name"] for m in lab.get(f"services/{chain.service}")["members"]}
    return len(members & {"m3", "m4"}) == 1
