"""Whatever a peer sends, a core answers with effects and counters, never with an exception.

A poison frame would end the node, which its watchdog starts again, which is sent the frame again.
So every kind of message is taken as it really travels, bent in one or more places, and given to a
core: from a member, who can sign his own segments, presence and results, and from a stranger, who
can sign services of his own.
"""

import copy
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from pairio_protocol import events as ev
from pairio_protocol.codec import pack, unpack
from pairio_protocol.core import NodeCore
from pairio_protocol.documents import Link, document_cid, encode
from pairio_protocol.documents import decode as decode_document
from pairio_protocol.effects import Effect, Fail, Reply, Send
from pairio_protocol.errors import DefinitionError
from pairio_protocol.ids import LogId, run_id
from pairio_protocol.limits import FRAME_SIZE_BYTES_MAX
from pairio_protocol.messages import (
    MESSAGES,
    Ask,
    Asked,
    AskNoMore,
    Award,
    Beat,
    Bid,
    CancelNow,
    Changes,
    Decline,
    Follow,
    Forks,
    Have,
    Kept,
    Proposal,
    Push,
    Renew,
    Renewed,
    SyncSegments,
    Where,
    WishAnswer,
    WishMessage,
)
from pairio_protocol.open_submit import OpenSubmit
from pairio_protocol.records import RECORDS, Cancel, Request, Resources
from pairio_protocol.segment import GENESIS, Segment
from pairio_protocol.service import Chain, SignedChange
from pairio_protocol.signing import SigningKey, sha256, signing_input
from pairio_protocol.wishes import leaving
from tests.protocol.test_core_sim import APP, RESOURCES, World, definition

ADMIN, VICTIM, MEMBER, STRANGER = (SigningKey(bytes([n]) * 32) for n in (1, 2, 3, 9))
CASES = 400
_Random = random.Random


class Recorded(World):
    """A world that remembers every frame that was sent in it, by kind."""

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.frames: dict[str, list[bytes]] = {}

    def _carry_out(self, peer: str, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Send):
                kind = unpack(effect.data)[0]
                self.frames.setdefault(kind, []).append(effect.data)
        super()._carry_out(peer, effects)


def _busy_world() -> Recorded:
    """Three members, jobs done, jobs that rest on others, and some that nobody can do."""
    world = Recorded(3)
    world.with_service()
    admin, victim, member = world.peers
    limits = OpenSubmit(100, 10, 1000, 100, 4000, 4096, 1, 3_600_000)
    world.call(admin, ev.SetPublic(9, "lab", limits.document()))
    made = world.call(admin, ev.Submit(10, "lab", definition("write"), RESOURCES))
    source = {"input": f"job:{made['job']}/output"}
    world.call(victim, ev.Submit(11, "lab", definition("count", source), RESOURCES))
    world.call(member, ev.Submit(12, "lab", definition("count", source), RESOURCES))
    for number, peer in enumerate(world.peers):
        wish = {**definition("write"), "cacheBust": str(number)}
        world.call(peer, ev.Submit(20 + number, "lab", wish, replace(RESOURCES, gpus=1)))
    for _ in range(3):
        world.pass_time(3500)
    return world


# -- how things are bent -------------------------------------------------------------------


def _deep(levels: int) -> Any:
    value: Any = []
    for _ in range(levels):
        value = [value]
    return value


_JUNK: list[Callable[[], Any]] = [
    lambda: None,
    lambda: True,
    lambda: -1,
    lambda: 0,
    lambda: 1,
    lambda: 2**31,
    lambda: 2**62,
    lambda: 2**63 - 1,
    lambda: 2**64 - 1,
    lambda: 1.5,
    lambda: float("nan"),
    lambda: float("inf"),
    lambda: "",
    lambda: "x",
    lambda: "/",
    lambda: "../../etc",
    lambda: "a\x00b",
    lambda: "time_ms=x",
    lambda: "time_ms=" + "9" * 5000,
    lambda: "é" * 3000,
    lambda: "\U0001f4a5" * 14_000,
    lambda: b"",
    lambda: bytes(16),
    lambda: bytes(32),
    lambda: b"\xff" * 64,
    lambda: b"x" * 50_000,
    list,
    lambda: [[]],
    lambda: _deep(20),
    lambda: [""] * 300,
    dict,
    lambda: {"op": "create"},
    lambda: VICTIM.peer,
    lambda: MEMBER.peer,
    lambda: STRANGER.peer,
    lambda: document_cid(b"nothing"),
]


def _places(value: Any, found: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """Return (container, key) of everything inside a plain value."""
    items: Any = ()
    if isinstance(value, list):
        items = enumerate(value)
    elif isinstance(value, dict):
        items = value.items()
    for key, item in list(items):
        found.append((value, key))
        _places(item, found)
    return found


def _bend(plain: Any, rng: _Random, pool: list[Any]) -> Any:
    """Change one to three places: replaced, dropped, doubled, or by something seen elsewhere."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        places = _places(plain, [])
        if not places:
            break
        where, key = rng.choice(places)
        how = rng.randrange(10)
        if how == 0 and isinstance(where, list):
            where.pop(key)
        elif how == 1 and isinstance(where, list):
            where.insert(key, where[key])
        elif how == 2 and isinstance(where, dict):
            del where[key]
        elif how <= 4 and pool:
            where[key] = rng.choice(pool)
        elif how == 5 and isinstance(where[key], int) and not isinstance(where[key], bool):
            where[key] += rng.choice((-1, 1, 1000))
        else:
            where[key] = rng.choice(_JUNK)()
    return plain


def _packed(plain: Any) -> bytes:
    try:
        data = pack(plain)
    except (ValueError, OverflowError):
        return b"\xc1"
    return data if len(data) <= FRAME_SIZE_BYTES_MAX else data[:FRAME_SIZE_BYTES_MAX]


# -- the attackers -------------------------------------------------------------------------


class Victim:
    """The core that everything is sent to, and what it must keep to."""

    def __init__(self) -> None:
        world = _busy_world()
        self.core: NodeCore = world.cores[VICTIM.peer]
        self.now_ms = world.now_ms
        self.frames = world.frames
        self.service = next(iter(self.core.membership.taken_up))
        self.pool = [item for frames in self.frames.values() for f in frames[:3]
                     for item in _texts(unpack(f))]  # fmt: skip
        self.serial = 0
        self.answers: set[int] = set()
        self._take(ev.PeerUp(STRANGER.peer))

    def _take(self, event: ev.Event) -> None:
        effects = self.core.handle(event, self.now_ms, self.now_ms)
        while (sealed := self.core.seal(self.now_ms, self.now_ms)) is not None:
            effects += sealed.effects
            done = ev.Committed(sealed.commit.ticket)
            effects += self.core.handle(done, self.now_ms, self.now_ms)
        for effect in effects:
            if isinstance(effect, Send):
                assert len(effect.data) <= FRAME_SIZE_BYTES_MAX
            if isinstance(effect, Reply | Fail):
                self.answers.add(effect.call)

    def receive(self, sender: str, data: bytes) -> None:
        """Give it a frame, and every now and then some time."""
        self.serial += 1
        self._take(ev.FrameReceived(sender, data))
        if self.serial % 50 == 0:
            self.now_ms += 700
            self._take(ev.TimePassed())

    def is_well(self) -> None:
        """It still serves its owner, and what is on its disk can be read again."""
        wish = {**definition("write"), "cacheBust": f"after {self.serial}"}
        self._take(ev.Submit(900, self.service, wish, RESOURCES))
        for _ in range(20):
            self.now_ms += 300
            self._take(ev.TimePassed())
        assert 900 in self.answers


def _texts(plain: Any) -> list[Any]:
    return [where[key] for where, key in _places(plain, []) if isinstance(where[key], str | bytes)]


def _segment(service: str, epoch: int, rng: _Random, plain: list[Any]) -> bytes:
    """Return a segment that the member signed, whatever its records are."""
    boot, body = rng.randbytes(16), _packed(plain)
    log = LogId(MEMBER.peer, boot, 0)
    unsigned = Segment(service, log, 0, epoch, GENESIS, body, max(1, len(plain)), b"")
    signature = MEMBER.sign(unsigned._signed())
    return Segment(service, log, 0, epoch, GENESIS, body, max(1, len(plain)), signature).encode()


def _wish(victim: Victim) -> bytes:
    chain = victim.core.membership.chains[victim.service]
    return leaving(victim.service, MEMBER, chain.epoch, (), 1).sign(MEMBER)


def _job(victim: Victim) -> bytes:
    return next(iter(victim.core.fold(victim.service).requests.values())).record.definition


def _samples(victim: Victim) -> dict[str, list[bytes]]:
    """Return frames of every kind: as they were sent, and made here where none was."""
    service, log = victim.service, LogId(MEMBER.peer, bytes(16), 0)
    name = next(iter(victim.core.fold(service).requests))
    run = next(iter(victim.core.fold(service).runs))
    attempt = f"{MEMBER.peer}/00/1"
    one = Segment.seal(MEMBER, service, log.boot, 0, 0, GENESIS, [Cancel((name,), 1)])
    other = Segment.seal(MEMBER, service, log.boot, 0, 0, GENESIS, [Cancel((name,), 2)])
    made = [
        CancelNow(service, attempt),
        Decline(service, run, attempt, "CPUs", "8", "4"),
        Bid(service, (name,)),
        Beat(service, (attempt,)),
        Renew(service, attempt, 1),
        Renewed(service, attempt, 1, 10_000),
        Have(service, run, attempt, "queued"),
        Forks(service, ((one.encode(), other.encode()),)),
        Kept(one.encode()),
        SyncSegments(service, (one.encode(),), False),
        Award(service, name, run, attempt, (), 10_000),
        WishMessage(_wish(victim)),
        WishAnswer(service, bytes(32), "refused", "used_up"),
        Where(service, "ticket", (name,)),
        Follow(service, 0, ""),
        Ask(service, "1", _job(victim), RESOURCES, ("tag",)),
        AskNoMore(service, "1"),
        Asked(service, "1", "done", "", b"document"),
        Proposal(service, victim.core.membership.chains[service].changes()[-1].encode()),
    ]
    found = {kind: list(frames) for kind, frames in victim.frames.items()}
    for message in made:
        found.setdefault(MESSAGES.kind_of(message), []).append(MESSAGES.encode(message))
    assert set(found) == set(MESSAGES.kinds())
    return found


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("sender", [MEMBER.peer, STRANGER.peer], ids=["member", "stranger"])
def test_bent_messages_of_every_kind(seed: int, sender: str) -> None:
    victim, rng = Victim(), _Random(seed)
    samples = _samples(victim)
    for _ in range(CASES):
        frame = rng.choice(samples[rng.choice(sorted(samples))])
        victim.receive(sender, _packed(_bend(unpack(frame), rng, victim.pool)))
    victim.is_well()


@pytest.mark.parametrize("seed", range(3))
def test_bent_records_in_a_members_own_segments(seed: int) -> None:
    victim, rng = Victim(), _Random(seed)
    epoch = victim.core.membership.chains[victim.service].epoch
    records = [
        unpack(segment.body)
        for segment in victim.core.logs.all_segments(victim.service)
        if segment.count
    ]
    for _ in range(CASES):
        plain = _bend(copy.deepcopy(rng.choice(records)), rng, victim.pool)
        if isinstance(plain, list):
            data = _segment(victim.service, epoch, rng, plain)
            victim.receive(MEMBER.peer, MESSAGES.encode(Push(data, True)))
    victim.is_well()


def _signed_document(plain: dict[str, Any]) -> bytes | None:
    """Return a result document signed by the member, bent as it is; None if it is no document."""
    plain.pop("signature", None)
    try:
        body = encode(plain)
    except DefinitionError:
        return None
    return encode({**plain, "signature": MEMBER.sign(signing_input("result", body)).hex()})


@pytest.mark.parametrize("seed", range(3))
def test_bent_results_and_requests_that_their_author_signed(seed: int) -> None:
    victim, rng = Victim(), _Random(seed)
    fold = victim.core.fold(victim.service)
    epoch = victim.core.membership.chains[victim.service].epoch
    results = [info.document._body() for info in fold.results.values()]
    for state in list(fold.requests.values()):  # as if the member had computed what is open
        results.append({**results[0], "status": "failed", "job": Link(state.job),
                        "run": run_id(state.job, ""), "limit": "time_ms=1000"})  # fmt: skip
    jobs = list(fold.definitions.values())
    for _ in range(CASES):
        if rng.random() < 0.7:
            plain = {**copy.deepcopy(rng.choice(results)), "worker": MEMBER.peer}
            document = _signed_document(_bend(plain, rng, victim.pool))
            record = None if document is None else ["result", document]
        else:
            record = _bent_request(_bend(copy.deepcopy(rng.choice(jobs)), rng, victim.pool), rng)
        if record is not None:
            data = _segment(victim.service, epoch, rng, [record])
            victim.receive(
                MEMBER.peer, MESSAGES.encode(SyncSegments(victim.service, (data,), False))
            )
    victim.is_well()


def _bent_request(document: Any, rng: _Random) -> list[Any] | None:
    try:
        definition_bytes = encode(document)
        mode = rng.choice(("use", "skip_cache", "rerun_failing"))
        return RECORDS.to_plain(
            Request(
                definition_bytes,
                mode,
                "",
                Resources(1000, 1, 0, 60_000),
                "",
                (),
                "",
                0,
                (),
                1,
                2**62,
                1,
            )
        )
    except (DefinitionError, ValueError):
        return None


@pytest.mark.parametrize("seed", range(2))
def test_bent_presence_that_its_peer_signed(seed: int) -> None:
    victim, rng = Victim(), _Random(seed)
    entries = [data for frame in victim.frames["presence"] for data in unpack(frame)[1]]
    for _ in range(CASES):
        body = _bend(unpack(unpack(rng.choice(entries))[0]), rng, victim.pool)
        if isinstance(body, list) and len(body) > 2 and rng.random() < 0.9:
            body[1], body[2] = victim.service, MEMBER.peer
            body[4:6] = [2**40 + victim.serial, victim.serial]
        packed = _packed(body)
        message = signing_input("presence", victim.service, sha256(packed))
        data = pack([packed, MEMBER.sign(message)])
        frame = pack(["presence", [data]])
        if len(frame) <= FRAME_SIZE_BYTES_MAX:
            victim.receive(MEMBER.peer, frame)
    victim.is_well()


@pytest.mark.parametrize("seed", range(3))
def test_bent_changes_that_an_admin_signed(seed: int) -> None:
    """A stranger's own service that names the victim, and the victim's by another of its admins."""
    victim, rng = Victim(), _Random(seed)
    real = victim.core.membership.chains[victim.service]
    for _ in range(CASES):
        ops = _bend(_ops(real, rng), rng, victim.pool)
        if rng.random() < 0.5:
            chain, key = _own_service(rng), STRANGER
        else:
            chain, key = real, ADMIN
        change = _change(chain, ops, key, rng, victim.pool)
        if change is not None:
            service = chain.service or change.cid
            known = () if chain is real else tuple(c.encode() for c in chain.changes())
            frame = MESSAGES.encode(Changes(service, (*known, change.encode()), False))
            if len(frame) <= FRAME_SIZE_BYTES_MAX:
                victim.receive(STRANGER.peer, frame)
    victim.is_well()


def _own_service(rng: _Random) -> Chain:
    chain = Chain()
    create = {"op": "create", "name": "x", "admins": [STRANGER.peer], "threshold": 1}
    add = {"op": "add", "member": "you", "key": VICTIM.peer, "roles": ["compute"]}
    nonce = rng.randbytes(4).hex()
    chain.add(chain.propose([{**create, "nonce": nonce}, add], [STRANGER], 1))
    return chain


def _ops(chain: Chain, rng: _Random) -> list[Any]:
    """Return ops of a change as they stand in a service, of every kind there is."""
    change = rng.choice(chain.changes())
    found = copy.deepcopy(decode_document(change.body, 2**20)["ops"])
    more = [
        {"op": "policy", "policy": {"isolation_min": "medium", "more": [1, {"a": None}]}},
        {"op": "role", "member": "you", "roles": ["read"]},
        {"op": "remove", "member": "you", "key": VICTIM.peer},
        {"op": "admins", "admins": [STRANGER.peer, VICTIM.peer], "threshold": 1},
        {"op": "app", "app": copy.deepcopy(APP)},
        {"op": "rename", "member": "you", "to": "me"},
        {"op": "app_remove", "app": "hello"},
        {
            "op": "invite",
            "key": MEMBER.peer,
            "roles": ["read"],
            "uses": 1,
            "expires_unix_ms": 2**50,
        },
        {"op": "end"},
    ]
    return (
        [*found, *rng.sample(more, rng.randrange(3))] if rng.random() < 0.6 else [rng.choice(more)]
    )


def _change(
    chain: Chain, ops: Any, key: SigningKey, rng: _Random, pool: list[Any]
) -> SignedChange | None:
    """Return a change with these ops, if need be one that only looks like one."""
    try:
        change = chain.propose(ops, [key], 1)
        if rng.random() < 0.5:
            return change
        plain = decode_document(change.body, 2**20)
    except DefinitionError:
        seq, prev = chain.epoch + 1, chain.head
        plain = {"type": "pairio/change", "v": 1, "seq": seq, "prev": prev, "ops": ops, "cuts": [],
                 "over": [], "state": prev, "issued": 1}  # fmt: skip
    cut = {"author": MEMBER.peer, "boot": "00" * 16, "shard": 0, "seq": 1, "hash": "00" * 32}
    plain["cuts"] = [cut] if rng.random() < 0.3 else plain["cuts"]
    try:
        body = encode(_bend(plain, rng, pool) if rng.random() < 0.8 else plain)
    except DefinitionError:
        return None
    return SignedChange(body, ((key.peer, key.sign(signing_input("change", sha256(body)))),))
