"""Proposals: changes that several admins have to sign."""

import os
from typing import Any

from pairio_protocol.documents import decode, encode
from pairio_protocol.messages import Changes, Proposal
from pairio_protocol.service import Chain, SignedChange
from tests.integration.attacks.doors import signed_change
from tests.integration.attacks.lab import Lab
from tests.integration.attacks.lists import FRIEND
from tests.integration.attacks.peers import Peer
from tests.integration.attacks.table import attack

PROPOSALS = "Proposals, where two admins have to sign"
INVALID = "refused: an invalid proposal"
ADMIN = "the key of one of three admins"
ADD = {"op": "add", "member": "friend", "key": FRIEND.peer, "roles": ["admin", "submit"]}


async def board(lab: Lab) -> Chain:
    """Make a service whose changes two of three admins have to sign; one of them is the node."""
    admins = [lab.root.key.peer, lab.second.key.peer, lab.node.info["peerId"]]
    adds = (lab.add("node", "submit"), lab.add("mallory", "submit"), lab.add("root", "admin"),
            lab.add("second", "admin"))  # fmt: skip
    keys = [lab.root.key, lab.second.key]
    return await lab.found("board", *adds, admins=admins, threshold=2, keys=keys)


def proposed(chain: Chain, by: Peer, *ops: dict[str, Any], at_ms: int = 1) -> SignedChange:
    """Return a change that one admin has signed."""
    return chain.propose(list(ops) or [ADD], [by.key], at_ms)


async def _say(lab: Lab, chain: Chain, by: Peer, *changes: SignedChange) -> list[Any]:
    """Send proposals; return those that the node keeps. None of them has changed the list."""
    by.say(*(Proposal(chain.service, change.encode()) for change in changes))
    await lab.has_taken(by)
    assert lab.get(f"services/{chain.service}")["head"] == chain.head, "the list has changed"
    waiting: list[Any] = lab.get(f"services/{chain.service}/proposals")["proposals"]
    return waiting


def _refused(name: str, has: str, does: str, counted: str, by: str, make: Any) -> None:
    @attack(PROPOSALS, name, has=has, does=does, counted=counted)
    async def attempt(lab: Lab) -> None:
        chain = await board(lab)
        change = make(lab, chain)
        assert await _say(lab, chain, lab.peers[by], change) == [], "it is kept"


def _other_body(lab: Lab, chain: Chain) -> SignedChange:
    signed = proposed(chain, lab.second, {"op": "policy", "policy": {}})
    return SignedChange(proposed(chain, lab.second).body, signed.signatures)


def _large(lab: Lab, chain: Chain) -> SignedChange:
    plain = decode(proposed(chain, lab.second).body, 2**20)
    ops = [{"op": "policy", "policy": {"x": "y" * 50_000}}]
    return signed_change(encode({**plain, "ops": ops}), lab.second.key)


def _other_list(lab: Lab, chain: Chain) -> SignedChange:
    plain = decode(proposed(chain, lab.second).body, 2**20)
    ops = [{"op": "policy", "policy": {"harmless": True}}]
    return signed_change(encode({**plain, "ops": ops}), lab.second.key)


_refused("a proposal of a stranger", "the service's id", "proposes to add himself",
         "refused: proposal of a stranger", "stranger",
         lambda lab, chain: proposed(chain, lab.stranger))  # fmt: skip
_refused("a proposal of a member who is no admin", "role submit", "proposes to add a friend",
         INVALID, "mallory", lambda lab, chain: proposed(chain, lab.mallory))  # fmt: skip
_refused("an admin's proposal, brought by another", "role submit, what an admin has signed",
         "passes it on, so that others see it as the service's",
         "refused: a proposal to or of somebody who may not sign it", "mallory",
         lambda lab, chain: proposed(chain, lab.second))  # fmt: skip
_refused("an admin's signature under another proposal", "a change that an admin signed",
         "puts its signature under another one", INVALID, "second", _other_body)  # fmt: skip
_refused("another service's first change, proposed", ADMIN, "proposes it here", INVALID, "second",
         lambda lab, chain: lab.other.changes()[0])  # fmt: skip
_refused("another service's change, proposed", "a change that an admin signed there",
         "proposes it here", "proposals after a change that is not known", "second",
         lambda lab, chain: lab.chain.changes()[-1])  # fmt: skip
_refused("a proposal of 50 KiB", ADMIN, "proposes it", INVALID, "second", _large)
_refused("a proposal that states another list than it makes", ADMIN,
         "shows harmless ops, and has others sign a list with a friend on it", INVALID, "second",
         _other_list)  # fmt: skip


@attack(PROPOSALS, "a change that one admin of two has signed", has=ADMIN,
        does="sends it as one of the list", counted="refused: invalid service change")  # fmt: skip
async def _alone(lab: Lab) -> None:
    chain = await board(lab)
    lab.second.say(Changes(chain.service, (proposed(chain, lab.second).encode(),), False))


@attack(PROPOSALS, "two signatures of one admin", has=ADMIN, does="signs twice",
        refused_by="it waits for another admin: a key counts once")  # fmt: skip
async def _twice(lab: Lab) -> bool:
    chain = await board(lab)
    change = proposed(chain, lab.second)
    doubled = SignedChange(change.body, change.signatures * 2)
    waiting = await _say(lab, chain, lab.second, doubled)
    return [len(proposal["signedBy"]) for proposal in waiting] in ([], [1])


@attack(PROPOSALS, "a forged second signature", has=ADMIN,
        does="signs in another admin's name too",
        refused_by="it waits for another admin: what he did not sign does not count")  # fmt: skip
async def _forged(lab: Lab) -> bool:
    chain = await board(lab)
    change = proposed(chain, lab.second)
    forged = (*change.signatures, (lab.root.key.peer, os.urandom(64)))
    waiting = await _say(lab, chain, lab.second, SignedChange(change.body, forged))
    return [len(proposal["signedBy"]) for proposal in waiting] == [1]


@attack(PROPOSALS, "flood of proposals", has=ADMIN, does="proposes 40 changes",
        counted="refused: a proposal beyond what is kept")  # fmt: skip
async def _flood(lab: Lab) -> None:
    chain = await board(lab)
    changes = [proposed(chain, lab.second, at_ms=number) for number in range(40)]
    assert len(await _say(lab, chain, lab.second, *changes)) == 8, "8 of one admin are kept"
    others = await _say(lab, chain, lab.root, proposed(chain, lab.root, at_ms=1000))
    assert len(others) == 9, "another admin has no place any more"


@attack(PROPOSALS, "a proposal, replayed after it was overtaken", has=ADMIN,
        does="proposes again what was made before a change", counted="stale proposals")  # fmt: skip
async def _stale(lab: Lab) -> None:
    chain = await board(lab)
    old = proposed(chain, lab.second)
    policy = {"op": "policy", "policy": {"newer": True}}
    chain.add(chain.propose([policy], [lab.root.key, lab.second.key], 2))
    lab.change_all(chain)
    await lab.has_taken(lab.root)
    assert await _say(lab, chain, lab.second, old) == [], "it is kept"


@attack(PROPOSALS, "a proposal, replayed after it was withdrawn", has=ADMIN,
        does="proposes again what this node's owner does not want to see",
        refused_by="it is not kept again until the owner asks for it")  # fmt: skip
async def _withdrawn(lab: Lab) -> bool:
    chain = await board(lab)
    change = proposed(chain, lab.second)
    (waiting,) = await _say(lab, chain, lab.second, change)
    await lab.call("DELETE", f"services/{chain.service}/proposals/{waiting['id']}")
    return await _say(lab, chain, lab.second, change) == []


@attack(PROPOSALS, "a proposal, replayed after it became a change", has=ADMIN,
        does="proposes again that a friend is added, who was removed since",
        refused_by="it is known as a change, and brings nobody back")  # fmt: skip
async def _done(lab: Lab) -> bool:
    chain = await board(lab)
    old = proposed(chain, lab.second)
    chain.add(old.signed_by(lab.root.key))
    remove = {"op": "remove", "member": "friend"}
    chain.add(chain.propose([remove], [lab.root.key, lab.second.key], 2))
    lab.change_all(chain)
    await lab.has_taken(lab.root)
    return await _say(lab, chain, lab.second, old, old.signed_by(lab.root.key)) == []
