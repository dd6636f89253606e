"""The door for joining: wishes that are not good, and answers from those who have no say."""

import os
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from pairio_protocol.cid import cid_of
from pairio_protocol.ids import LogId
from pairio_protocol.links import Link, LinkPeer
from pairio_protocol.messages import WishAnswer, WishMessage
from pairio_protocol.proofs import DeviceGrant, proof_of_device, proof_of_invitation
from pairio_protocol.service import Chain, Cut
from pairio_protocol.signing import SigningKey, sha256
from pairio_protocol.wishes import Head, Wish, asked_for, leaving
from tests.integration.attacks.lab import Lab
from tests.integration.attacks.lists import FRIEND
from tests.integration.attacks.peers import Peer
from tests.integration.attacks.table import attack

WISHES = "The door for joining"
ANSWERS = "Answers to wishes"
INVALID = "refused: an invalid wish"
LINK = "an invitation's link"
FAR_MS = 4_000_000_000_000


class Club:
    """A service of whose admins the node is one, and an invitation into it."""

    def __init__(self, chain: Chain, token: bytes, node: str) -> None:
        self.chain, self.token = chain, SigningKey(token)
        peers = (LinkPeer(node, ()),)
        fields: Any = {"seed": token, "roles": ("submit",), "expires_unix_ms": FAR_MS}
        self.link = Link("join", chain.service, "club", peers, **fields)

    def wish(self, key: SigningKey, roles: tuple[str, ...] = (), **bent: Any) -> bytes:
        """Return the wish that the link lets a key say, maybe with other fields, signed by it."""
        return replace(self._bare(key, roles), **bent).sign(key)

    def _bare(self, key: SigningKey, roles: tuple[str, ...] = ()) -> Wish:
        return asked_for(self.link, key, "x", roles, (), int(time.time() * 1000))

    def change(self, lab: Lab, *ops: dict[str, Any], cuts: tuple[Cut, ...] = ()) -> None:
        """Make a change, and tell the node."""
        change = self.chain.propose(list(ops), [lab.root.key], int(time.time() * 1000), cuts)
        self.chain.add(change)
        lab.change_all(self.chain)


async def club(lab: Lab, uses: int = 5, expires_unix_ms: int = FAR_MS) -> Club:
    """Make one."""
    token = os.urandom(32)
    invite = {"op": "invite", "key": SigningKey(token).peer, "roles": ["submit"], "uses": uses,
              "expires_unix_ms": expires_unix_ms}  # fmt: skip
    node = lab.node.info["peerId"]
    members = (lab.add("node", "admin", "submit"), lab.add("mallory", "submit"),
               lab.add("honest", "submit"))  # fmt: skip
    admins = [lab.root.key.peer, node]
    return Club(await lab.found("club", *members, invite, admins=admins), token, node)


async def _is_kept_out(lab: Lab, at: Club, by: Peer, data: bytes) -> list[WishAnswer]:
    """Say a wish; return the answers. The list has not changed."""
    by.heard.clear()
    by.say(WishMessage(data))
    answers = [m for m in await said_after(lab, by) if isinstance(m, WishAnswer)]
    assert lab.get(f"services/{at.chain.service}")["head"] == at.chain.head, "the list has changed"
    return answers


async def said_after(lab: Lab, peer: Peer) -> list[Any]:
    """Return what the node has said to a stranger, or a member, once it took all that he said."""
    heard = peer.heard
    peer.heard = []
    await lab.has_taken(peer)
    return [*heard, *peer.heard]


Make = Callable[[Lab, Club], bytes]


def _wish(
    name: str, does: str, counted: str, make: Make, by: str = "stranger", has: str = LINK,
    **invitation: Any,
) -> None:  # fmt: skip
    @attack(WISHES, name, has=has, does=does, counted=counted)
    async def attempt(lab: Lab) -> None:
        at = await club(lab, **invitation)
        data = make(lab, at)
        await lab.has_taken(lab.root)  # whoever changed the list
        await _is_kept_out(lab, at, lab.peers[by], data)


def _refused(code: str) -> str:
    return f"wishes refused: {code}"


def _used_up(lab: Lab, at: Club) -> bytes:
    proof = proof_of_invitation(at.token, at.chain.service, FRIEND.peer)
    at.change(lab, {"op": "add", "member": "friend", "key": FRIEND.peer, "roles": ["submit"],
                    "invitation": {"key": at.token.peer, "signature": proof.hex()}})  # fmt: skip
    return at.wish(lab.stranger.key)


def _withdrawn(lab: Lab, at: Club) -> bytes:
    at.change(lab, {"op": "uninvite", "key": at.token.peer})
    return at.wish(lab.stranger.key)


def _others_proof(lab: Lab, at: Club) -> bytes:
    proof = proof_of_invitation(at.token, at.chain.service, FRIEND.peer)
    return at.wish(lab.stranger.key, proof=proof)


def _other_club(lab: Lab, at: Club) -> bytes:
    proof = proof_of_invitation(at.token, lab.other.service, lab.stranger.key.peer)
    return at.wish(lab.stranger.key, proof=proof)


def _altered(lab: Lab, at: Club) -> bytes:
    data = at.wish(lab.stranger.key)
    return data.replace(b"submit", b"admin\x00", 1)


def _in_anothers_name(lab: Lab, at: Club) -> bytes:
    return replace(Wish.decode(at.wish(FRIEND)), name="mine").sign(lab.stranger.key)


def _large(lab: Lab, at: Club) -> bytes:
    heads = tuple(Head(os.urandom(16), 1, os.urandom(32)) for _ in range(400))
    return at.wish(lab.stranger.key, heads=heads)


def _join(lab: Lab, at: Club, peer: Peer) -> bytes:
    """Let a peer join with the invitation; return the wish by which he does."""
    proof = proof_of_invitation(at.token, at.chain.service, peer.key.peer)
    at.change(lab, {"op": "add", "member": peer.name, "key": peer.key.peer, "roles": ["submit"],
                    "invitation": {"key": at.token.peer, "signature": proof.hex()}})  # fmt: skip
    return at.wish(peer.key)


def _leave_now(lab: Lab, at: Club, peer: Peer) -> bytes:
    """Let a peer leave; return the wish by which he does."""
    wish = leaving(at.chain.service, peer.key, at.chain.epoch, (), 1)
    op = {"op": "remove", "member": peer.name, "key": peer.key.peer,
          "leave": {"epoch": wish.epoch, "signature": wish.proof.hex()}}  # fmt: skip
    at.change(lab, op)
    return wish.sign(peer.key)


def _removed(lab: Lab, at: Club) -> bytes:
    data = _join(lab, at, lab.stranger)
    at.change(lab, {"op": "remove", "member": "stranger"})
    return data


def _left(lab: Lab, at: Club) -> bytes:
    data = _join(lab, at, lab.stranger)
    _leave_now(lab, at, lab.stranger)
    return data


def _left_before(lab: Lab, at: Club) -> bytes:
    at.change(lab, lab.add("stranger", "submit"))
    data = _leave_now(lab, at, lab.stranger)
    at.change(lab, lab.add("stranger", "submit"))
    return data


def _leave_for_another(lab: Lab, at: Club) -> bytes:
    wish = leaving(at.chain.service, lab.mallory.key, at.chain.epoch, (), 1)
    return replace(wish, peer=lab.honest.key.peer).sign(lab.mallory.key)


def _leave_with_others_cuts(lab: Lab, at: Club) -> bytes:
    cut = Cut(LogId(lab.mallory.key.peer, os.urandom(16), 0), 1, os.urandom(32))
    wish = leaving(at.chain.service, lab.mallory.key, at.chain.epoch, (cut,), 1)
    return replace(wish, heads=()).sign(lab.mallory.key)


_wish("an expired link", "joins a second after its end", _refused("expired"),
      lambda lab, at: at.wish(lab.stranger.key), expires_unix_ms=1000)  # fmt: skip
_wish("a link that was used as often as it may be", "joins with it", _refused("used_up"), _used_up,
      uses=1)  # fmt: skip
_wish("a link that was withdrawn", "joins with it", _refused("withdrawn"), _withdrawn)
_wish("a token's signature for another peer", "puts his own peer id beside it",
      _refused("bad_proof"), _others_proof)  # fmt: skip
_wish("a token's signature for another service", "joins this one with it", _refused("bad_proof"),
      _other_club)  # fmt: skip
_wish("a wish for more roles than the link gives", "asks to be an admin", _refused("roles"),
      lambda lab, at: at.wish(lab.stranger.key, ("admin", "submit")))  # fmt: skip
_wish("a wish, altered", "changes its roles after it was signed", INVALID, _altered)
_wish("a wish in another peer's name", "signs it himself", INVALID, _in_anothers_name)
_wish("a wish of 20 KiB", "names 400 logs in it", INVALID, _large)
_wish("a wish for a service that is not here", "joins with a link into another one",
      "refused: a wish for a service that is not here",
      lambda lab, at: at.wish(lab.stranger.key, service=elsewhere()))  # fmt: skip
_wish("a wish, replayed by another stranger", "says it as if it were his",
      "refused: a wish passed on by a stranger", lambda lab, at: at.wish(lab.stranger.key),
      by="visitor", has="a wish that somebody else signed")  # fmt: skip
_wish("a wish, replayed after its peer was removed", "brings him back", _refused("removed"),
      _removed, by="mallory", has="role submit, a wish that he passed on once")  # fmt: skip
_wish("a wish, replayed after its peer has left", "brings him back against his will",
      _refused("used_before"), _left, by="mallory",
      has="role submit, a wish that he passed on once")  # fmt: skip
_wish("a leave, replayed after its peer came back", "takes him off the list",
      _refused("bad_proof"), _left_before, by="mallory",
      has="role submit, a wish that he passed on once")  # fmt: skip
_wish("a leave in an honest member's name", "takes him off the list", INVALID, _leave_for_another,
      by="mallory", has="role submit")  # fmt: skip
_wish("a leave without the cuts that were signed", "leaves, and has others cut his logs otherwise",
      _refused("bad_proof"), _leave_with_others_cuts, by="mallory", has="role submit")  # fmt: skip


def elsewhere() -> str:
    """Return the id of a service that there is not."""
    return cid_of(0x71, os.urandom(8))


@attack(WISHES, "flood of wishes", has="role submit, 60 keys", does="passes on that all want in",
        counted="wishes that made place for newer ones")  # fmt: skip
async def _flood(lab: Lab) -> None:
    at = await club(lab)
    for _ in range(60):
        key = SigningKey(os.urandom(32))
        lab.mallory.say(WishMessage(at.wish(key, kind="request", token="", proof=b"")))
    await lab.has_taken(lab.mallory)
    waiting = lab.get(f"services/{at.chain.service}/requests")["requests"]
    assert len(waiting) == 16, f"{len(waiting)} of one sender are kept"


# -- devices -----------------------------------------------------------------------------------


def _device(at: Club, key: SigningKey, by: SigningKey, signer: SigningKey, at_ms: int) -> bytes:
    """Return the wish of a key to be a device of `by`."""
    grant = DeviceGrant.sign(signer, at.chain.service, at.token.peer, at_ms)
    proof = proof_of_device(at.token, at.chain.service, key.peer)
    return at.wish(key, kind="device", roles=(), by=by.peer, expires_unix_ms=at_ms, proof=proof,
                   grant=grant.signature)  # fmt: skip


@attack(WISHES, "a device of somebody who is no member", has="two keys",
        does="vouches for his second key with his first",
        refused_by="answered `waits`: nobody here knows him; the list stays as it is")  # fmt: skip
async def _device_of_nobody(lab: Lab) -> bool:
    at = await club(lab)
    data = _device(at, lab.stranger.key, lab.visitor.key, lab.visitor.key, FAR_MS)
    answers = await _is_kept_out(lab, at, lab.stranger, data)
    return [(a.state, a.code) for a in answers] == [("waits", "unknown_member")]


def _forged_device(lab: Lab, at: Club) -> bytes:
    return _device(at, lab.stranger.key, lab.honest.key, lab.mallory.key, FAR_MS)


def _second_device(lab: Lab, at: Club) -> bytes:
    grant = DeviceGrant.sign(lab.mallory.key, at.chain.service, at.token.peer, FAR_MS)
    proof = grant.plain(proof_of_device(at.token, at.chain.service, FRIEND.peer))
    at.change(lab, {"op": "add", "member": "mallory", "key": FRIEND.peer, "roles": ["submit"],
                    "device": proof})  # fmt: skip
    return _device(at, lab.stranger.key, lab.mallory.key, lab.mallory.key, FAR_MS)


def _removed_device(lab: Lab, at: Club) -> bytes:
    at.change(lab, lab.add("stranger", "submit"))
    at.change(lab, {"op": "remove", "member": "stranger"})
    return _device(at, lab.stranger.key, lab.mallory.key, lab.mallory.key, FAR_MS)


_wish("a device of an honest member, forged", "signs in his name that it is his",
      _refused("bad_proof"), _forged_device, has="role submit, a key besides")  # fmt: skip
_wish("a device's link used twice", "lets a second device in with it", _refused("used_up"),
      _second_device, has="a device's link")  # fmt: skip
_wish("a device's link after its end", "joins with it", _refused("expired"),
      lambda lab, at: _device(at, lab.stranger.key, lab.mallory.key, lab.mallory.key, 1000),
      has="a device's link")  # fmt: skip
_wish("a removed key, as another member's device", "comes back by a member's word",
      _refused("removed"), _removed_device,
      has="a removed key, a friend with role submit")  # fmt: skip


# -- answers -----------------------------------------------------------------------------------

NOT_ASKED = "refused: an answer to a wish that it did not get"


@attack(ANSWERS, "a no to a wish, from a member who is no admin", has="role submit",
        does="says that a wish which the node passes on is denied",
        counted=NOT_ASKED)  # fmt: skip
async def _no_admin(lab: Lab) -> None:
    members = (lab.add("node", "submit"), lab.add("mallory", "submit"))
    chain = await lab.found("club", *members)
    at = Club(chain, os.urandom(32), lab.node.info["peerId"])
    data = at.wish(lab.stranger.key, kind="request", token="", proof=b"")
    await _is_kept_out(lab, at, lab.stranger, data)
    lab.mallory.say(WishAnswer(chain.service, sha256(data), "refused", "denied"))
    await lab.has_taken(lab.mallory)
    answers = await _is_kept_out(lab, at, lab.stranger, data)
    states = [answer.state for answer in answers]
    assert states and set(states) == {"waits"}, f"he is told {states}"


async def _own_wish(lab: Lab) -> tuple[Club, bytes]:
    """Let the node ask to join a service of an attacker's; return the wish."""
    host = lab.second
    chain = Chain()
    create = {"op": "create", "name": f"trap{os.urandom(2).hex()}", "admins": [host.key.peer],
              "threshold": 1, "nonce": "0"}  # fmt: skip
    chain.add(chain.propose([create], [host.key], 1))
    lab.aside.add(chain.service)
    link = Link("request", chain.service, "trap", (LinkPeer(host.key.peer, ()),), b"", ("submit",))
    await lab.call("POST", "joins", {"link": link.encode(), "waitSec": 0})
    wished = await host.hears(
        lambda m: isinstance(m, WishMessage) and Wish.decode(m.wish).service == chain.service
    )
    assert wished is not None, "the node says no wish"
    return Club(chain, os.urandom(32), host.key.peer), wished.wish


async def _still_waits(lab: Lab, at: Club, by: Peer) -> None:
    """See that the node is in no such service, and goes on waiting."""
    await lab.has_taken(by)
    services = {s["serviceId"] for s in lab.get("services")["services"]}
    assert at.chain.service not in services, "it is in the service"
    (own,) = [j for j in lab.get("joins")["joins"] if j["serviceId"] == at.chain.service]
    assert own["state"] == "waiting", own


@attack(ANSWERS, "an answer from one who was not asked", has="a connection",
        does="says that the node's wish is refused", counted=NOT_ASKED)  # fmt: skip
async def _not_asked(lab: Lab) -> None:
    at, data = await _own_wish(lab)
    lab.mallory.say(WishAnswer(at.chain.service, sha256(data), "refused", "denied"))
    await _still_waits(lab, at, lab.mallory)


@attack(ANSWERS, "a wish that is granted without a change", has="a link that the node joins by",
        does="says that the node is a member, and shows no list that says so",
        refused_by="it goes on waiting: only a signed list makes it a member")  # fmt: skip
async def _granted(lab: Lab) -> bool:
    at, data = await _own_wish(lab)
    lab.second.say(WishAnswer(at.chain.service, sha256(data), "granted", ""))
    await _still_waits(lab, at, lab.second)
    return True
