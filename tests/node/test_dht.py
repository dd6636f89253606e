"""The DHT of job ids: what is noted, who is asked, and what liars cost."""

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from pairio_node.dht.asker import KAD_PROTOCOL, Asker, read_frame, write_frame
from pairio_node.dht.contacts import Contacts
from pairio_node.dht.records import Records
from pairio_node.dht.search import Search
from pairio_node.dht.server import Knowledge, Server
from pairio_node.transport import MemoryNetwork, MemoryTransport, TransportEvent
from pairio_node.transport.base import ByteStream
from pairio_protocol.cid import RAW, cid_of
from pairio_protocol.kad import (
    KAD,
    Contact,
    Find,
    Found,
    Give,
    Given,
    Provide,
    Provided,
    distance,
)
from pairio_protocol.limits import (
    KAD_ASKED_MAX,
    KAD_BUCKET_MAX,
    KAD_CONTACTS_MAX,
    KAD_FAILED_MS,
    KAD_GIVEN_SEGMENTS_MAX,
    KAD_JOBS_PER_PROVIDER_MAX,
    KAD_LOOK_MS,
    KAD_PROVIDERS_PER_JOB_MAX,
    KAD_PROVIDERS_PER_MEMBER_MAX,
    KAD_QUESTION_SIZE_BYTES_MAX,
    KAD_RECORD_MS,
    KAD_STREAMS_PER_PEER_MAX,
)
from tests.node.node_lab import SERVICE as LAB
from tests.node.node_lab import three, until

SERVICE = "bafyreia-a-service"
JOB = cid_of(RAW, b"a job")
RESULT = b"the signed result"
ADDRESSES = ("/ip4/127.0.0.1/tcp/4001",)


def _job(number: int) -> str:
    return cid_of(RAW, b"job %d" % number)


def _everybody(peer: str) -> bool:
    return True


# -- what is noted ------------------------------------------------------------------------------


def _note(
    records: Records, job: str, peer: str, member: str = "", now_s: float = 0.0, **where: Any
) -> bool:
    """Note a holder, a member of its own if none is named."""
    holder = Contact(peer, where.get("addresses", ADDRESSES))
    return records.note(where.get("service", SERVICE), job, holder, member or peer, now_s)


def _holders(records: Records, job: str, now_s: float = 0.0) -> list[str]:
    return [c.peer for c in records.holders(SERVICE, job, _everybody, now_s)]


def test_what_a_holder_says_is_forgotten_unless_he_says_it_again() -> None:
    records, a_day_s = Records(), KAD_RECORD_MS / 1000
    for peer in ("a", "b"):
        assert _note(records, JOB, peer)
    moved = ("/ip4/127.0.0.1/tcp/1",)
    assert _note(records, JOB, "b", now_s=a_day_s / 2, addresses=moved)
    assert _holders(records, JOB, a_day_s - 1) == ["a", "b"]
    assert records.holders(SERVICE, JOB, _everybody, a_day_s) == [Contact("b", moved)]
    records.expire(a_day_s * 2)
    assert (records.count, _holders(records, JOB)) == (0, [])


def test_whoever_lost_his_role_is_no_holder_any_more() -> None:
    records = Records()
    for peer in ("gone", "here"):
        _note(records, JOB, peer)
    found = records.holders(SERVICE, JOB, lambda peer: peer != "gone", 0.0)
    assert [contact.peer for contact in found] == ["here"]
    assert records.count == 1


def test_records_of_one_service_say_nothing_of_another() -> None:
    records = Records()
    _note(records, JOB, "a", service="another service")
    assert _holders(records, JOB) == []


def test_a_flood_of_one_member_is_bounded_and_leaves_room_for_others() -> None:
    records = Records(records_max=100)
    for number in range(500):
        _note(records, _job(number), f"key {number % 64}", "flood")
    assert records.count == 100
    assert all(_note(records, _job(number), "honest") for number in range(500, 540))
    assert records.count == 100
    assert all(_holders(records, _job(number)) == ["honest"] for number in range(500, 540))
    for number in range(64):  # many keys are no more than one
        _note(records, _job(600 + number), f"key {number}", "flood")
    assert all(_holders(records, _job(number)) == ["honest"] for number in range(500, 540))


def test_one_holder_has_a_bound_of_his_own_and_so_has_one_job() -> None:
    records = Records()
    taken = sum(
        _note(records, f"job {number}", "flood") for number in range(KAD_JOBS_PER_PROVIDER_MAX + 10)
    )
    assert taken == KAD_JOBS_PER_PROVIDER_MAX
    peers = [f"peer {number}" for number in range(KAD_PROVIDERS_PER_JOB_MAX + 5)]
    noted = [_note(records, JOB, peer) for peer in peers]
    assert sum(noted) == KAD_PROVIDERS_PER_JOB_MAX
    assert _holders(records, JOB) == peers[:KAD_PROVIDERS_PER_JOB_MAX]


def test_the_keys_of_one_member_do_not_take_all_places_of_a_job() -> None:
    records = Records()
    noted = [_note(records, JOB, f"key {n}", "flood") for n in range(KAD_PROVIDERS_PER_JOB_MAX)]
    assert sum(noted) == KAD_PROVIDERS_PER_MEMBER_MAX < KAD_PROVIDERS_PER_JOB_MAX
    assert _note(records, JOB, "honest")
    assert "honest" in _holders(records, JOB)


def test_a_key_that_is_another_members_now_is_his() -> None:
    records = Records()
    assert _note(records, JOB, "key", "one")
    assert _note(records, JOB, "key", "two")
    assert (records.count, _holders(records, JOB)) == (1, ["key"])
    records.expire(KAD_RECORD_MS / 1000)
    assert (records.count, _holders(records, JOB)) == (0, [])


def test_a_bucket_keeps_whom_it_knows_and_gives_the_places_of_those_that_failed() -> None:
    contacts = Contacts("me")
    far = [p for p in (f"peer {n}" for n in range(400)) if distance("me", p).bit_length() == 256]
    for peer in far:
        contacts.note(peer, ADDRESSES)
    assert contacts.count() == KAD_BUCKET_MAX
    known, late = far[:KAD_BUCKET_MAX], far[KAD_BUCKET_MAX]
    assert all(contacts.addresses_of(peer) for peer in known)
    contacts.failed(known[3], 100.0)
    assert contacts.has_failed(known[3], 100.0 + KAD_FAILED_MS / 1000 - 1)
    assert not contacts.has_failed(known[3], 100.0 + KAD_FAILED_MS / 1000)
    contacts.note(late, ADDRESSES)
    assert (contacts.addresses_of(late), contacts.addresses_of(known[3])) == (ADDRESSES, ())


# -- a small network ----------------------------------------------------------------------------

Handler = Callable[[ByteStream], Awaitable[None]]


@dataclass
class End:
    """A member's end: what it holds, notes and knows; or a liar, who does what he wants."""

    transport: MemoryTransport
    records: Records = field(default_factory=Records)
    near: list[Contact] = field(default_factory=list)
    is_holder: bool = False
    counters: Counter[str] = field(default_factory=Counter)
    heard: list[Any] = field(default_factory=list)

    @property
    def contact(self) -> Contact:
        return Contact(self.transport.peer_id, self.transport.addresses()[:1])

    async def give(self, question: Give) -> Given:
        segments = (b"what else there is", RESULT) if self.is_holder else ()
        return Given((), segments, self.is_holder)


class Lab:
    """Members in one loop; `strangers` are none."""

    def __init__(self) -> None:
        self.network = MemoryNetwork()
        self.ends: dict[str, End] = {}
        self.strangers: set[str] = set()

    def is_member(self, service: str, peer: str) -> bool:
        return service == SERVICE and peer not in self.strangers

    def locate(self, contact: Contact) -> Contact | None:
        return contact if self.is_member(SERVICE, contact.peer) else None

    def add(self, stack: AsyncExitStack, name: str, lies: Handler | None = None) -> End:
        end = End(MemoryTransport(self.network, name.encode().ljust(32, b".")))
        contacts = Contacts(end.transport.peer_id)
        knows = Knowledge(self.is_member, lambda *_: end.near, lambda *_: end.is_holder, end.give)
        server = Server(end.transport, end.records, contacts, knows, end.counters)
        end.transport.set_stream_handler(KAD_PROTOCOL, lies or server.serve)
        self.ends[name] = end
        return end

    def names(self, end: End, *holders: End) -> None:
        """Let a member have been told of holders."""
        for holder in holders:
            peer = holder.contact.peer
            end.records.note(SERVICE, JOB, holder.contact, peer, trio.current_time())


async def _nothing(event: TransportEvent) -> None:
    """Events of the control channel are nothing to the DHT."""


@asynccontextmanager
async def _lab(*names: str, liars: Sequence[Handler] = ()) -> AsyncIterator[tuple[Lab, list[End]]]:
    """Run members by name, then liars."""
    lab = Lab()
    async with AsyncExitStack() as stack:
        ends = [lab.add(stack, name) for name in names]
        ends += [lab.add(stack, f"liar {n}", lies) for n, lies in enumerate(liars)]
        for end in ends:
            await stack.enter_async_context(end.transport.running(_nothing))
        yield lab, ends


async def _search(
    lab: Lab, asker: End, *members: End, member_of: Callable[[str], str] = str
) -> tuple[bool, list[str]]:
    """Look for the job, beginning at these members; return whether it was found, and who gave what
    was taken for a try."""
    tried: list[str] = []

    async def take(holder: Contact, given: Given) -> bool:
        tried.append(holder.peer)
        return RESULT in given.segments

    ask = Asker(asker.transport, Contacts(asker.transport.peer_id), asker.counters)
    search = Search(ask, Give(SERVICE, JOB, 0, ""), lab.locate, take, member_of)
    search.add_members(end.contact for end in members)
    return await search.run(), tried


async def test_a_member_that_was_told_leads_to_the_holder(autojump_clock: MockClock) -> None:
    async with _lab("asker", "told", "holder") as (lab, (asker, told, holder)):
        holder.is_holder = True
        lab.names(told, holder)
        assert await _search(lab, asker, told) == (True, [holder.transport.peer_id])


async def test_nearer_members_are_asked_in_turn(autojump_clock: MockClock) -> None:
    names = ("asker", "one", "two", "three", "holder")
    async with _lab(*names) as (lab, (asker, one, two, three, holder)):
        holder.is_holder = True
        one.near, two.near, three.near = [two.contact], [three.contact], [holder.contact]
        assert (await _search(lab, asker, one))[0]


async def test_where_nobody_knows_anything_it_is_over_at_once(autojump_clock: MockClock) -> None:
    async with _lab("asker", "one", "two") as (lab, (asker, one, two)):
        one.near = [two.contact, one.contact]
        began_s = trio.current_time()
        assert await _search(lab, asker, one, two) == (False, [])
        assert trio.current_time() - began_s < 0.5


# -- liars: they cost their bound and nothing else ------------------------------------------------


async def _stalls(stream: ByteStream) -> None:
    await read_frame(stream, KAD_QUESTION_SIZE_BYTES_MAX)
    await trio.sleep_forever()


async def _garbage(stream: ByteStream) -> None:
    await read_frame(stream, KAD_QUESTION_SIZE_BYTES_MAX)
    await stream.send((20).to_bytes(4, "big") + b"\xff" * 20)
    await stream.close()


async def _huge(stream: ByteStream) -> None:
    await read_frame(stream, KAD_QUESTION_SIZE_BYTES_MAX)
    await stream.send(b"\xff\xff\xff\xff" + b"x" * 1000)


async def _resets(stream: ByteStream) -> None:
    await stream.abort()


async def _forges(stream: ByteStream) -> None:
    """Says to hold it, and gives what does not count."""
    while True:
        question = KAD.decode(await read_frame(stream, KAD_QUESTION_SIZE_BYTES_MAX))
        if isinstance(question, Find):
            me = Contact(question.job, ())  # no peer at all
            await write_frame(stream, Found((me,), ()))
        else:
            await write_frame(stream, Given((), (b"a forged result",)))
            await write_frame(stream, Given((), (), True))


async def _never_ends(stream: ByteStream) -> None:
    await read_frame(stream, KAD_QUESTION_SIZE_BYTES_MAX)
    while True:
        await write_frame(stream, Given((), (b"x" * 1000,) * 40))


async def _with_liars(*liars: Handler) -> tuple[bool, float, list[str]]:
    """Look where an honest member knows the holder, and liars are asked before and beside him; they
    are named as holders, too."""
    async with _lab("asker", "told", "holder", liars=liars) as (lab, ends):
        asker, told, holder, *wrong = ends
        holder.is_holder = True
        lab.names(told, *wrong, holder)
        began_s = trio.current_time()
        found, tried = await _search(lab, asker, *wrong[: KAD_ASKED_MAX - 1], told)
        return found, trio.current_time() - began_s, tried


async def test_those_who_stall_cost_their_bound(autojump_clock: MockClock) -> None:
    found, took_s, _ = await _with_liars(*[_stalls] * (KAD_ASKED_MAX - 1))
    assert found
    assert took_s <= KAD_LOOK_MS / 1000


async def test_those_who_send_garbage_too_much_or_nothing_cost_nothing(
    autojump_clock: MockClock,
) -> None:
    found, took_s, tried = await _with_liars(_garbage, _huge, _resets, _garbage)
    assert found
    assert took_s < 1
    assert len(tried) == 1, "what they gave was not looked at"


async def test_what_is_forged_is_one_try_and_the_next_is_asked(autojump_clock: MockClock) -> None:
    found, took_s, tried = await _with_liars(*[_forges] * 4)
    assert found
    assert took_s < 1
    assert len(tried) <= KAD_ASKED_MAX


async def test_an_answer_without_end_is_not_taken(autojump_clock: MockClock) -> None:
    found, _, tried = await _with_liars(_never_ends)
    assert found
    assert len(tried) == 1


async def test_if_all_stall_it_is_over_in_time(autojump_clock: MockClock) -> None:
    async with _lab("asker", liars=[_stalls] * 20) as (lab, (asker, *wrong)):
        began_s = trio.current_time()
        assert await _search(lab, asker, *wrong) == (False, [])
        assert trio.current_time() - began_s <= KAD_LOOK_MS / 1000
        assert asker.counters["asked"] == KAD_ASKED_MAX


async def test_one_who_names_many_false_holders_does_not_crowd_out_the_true_one(
    autojump_clock: MockClock,
) -> None:
    empty = [f"empty {n}" for n in range(KAD_ASKED_MAX)]
    async with _lab("asker", "poisoner", "told", "holder", *empty) as (lab, ends):
        asker, poisoner, told, holder, *nothing = ends
        holder.is_holder = True
        lab.names(poisoner, *nothing)
        lab.names(told, holder)
        found, _ = await _search(lab, asker, poisoner, told)
        assert found
        assert asker.counters["asked"] <= 2 * KAD_ASKED_MAX


async def test_one_with_many_keys_near_to_the_job_is_not_asked_before_everybody_else(
    autojump_clock: MockClock,
) -> None:
    many = [f"key {n}" for n in range(40)]
    async with _lab("asker", "told", "holder", *many) as (lab, ends):
        asker, told, holder, *keys = ends
        holder.is_holder = True
        lab.names(told, holder)
        keys.sort(key=lambda end: distance(JOB, end.transport.peer_id))
        nearest = keys[: 2 * KAD_ASKED_MAX]
        for key in nearest:  # they name each other
            key.near = [end.contact for end in nearest[:8]]
        mine = {end.transport.peer_id for end in keys}

        def member_of(peer: str) -> str:
            return "many keys" if peer in mine else peer

        assert (await _search(lab, asker, *nearest, told, member_of=member_of))[0]
        assert asker.counters["asked"] <= KAD_ASKED_MAX + 1


async def test_false_holders_of_one_member_do_not_crowd_out_the_true_one(
    autojump_clock: MockClock,
) -> None:
    """Whom honest members name, too: he has told them all."""
    empty = [f"key {n}" for n in range(2 * KAD_CONTACTS_MAX)]
    async with _lab("asker", "told", "also told", "holder", *empty) as (lab, ends):
        asker, told, also_told, holder, *nothing = ends
        holder.is_holder = True
        lab.names(told, *nothing[: KAD_CONTACTS_MAX - 1], holder)
        lab.names(also_told, *nothing[KAD_CONTACTS_MAX:])
        mine = {end.transport.peer_id for end in nothing}

        def member_of(peer: str) -> str:
            return "many keys" if peer in mine else peer

        assert (await _search(lab, asker, told, also_told, member_of=member_of))[0]


async def test_false_addresses_of_the_holder_do_not_hide_the_true_ones(
    autojump_clock: MockClock,
) -> None:
    async with _lab("asker", "poisoner", "told", "holder") as (lab, ends):
        asker, poisoner, told, holder = ends
        holder.is_holder = True
        wrong = Contact(holder.transport.peer_id, ("/memory/nobody",))
        poisoner.records.note(SERVICE, JOB, wrong, "holder", trio.current_time())
        lab.names(told, holder)
        assert (await _search(lab, asker, poisoner, told))[0]


async def test_who_is_no_member_is_never_asked(autojump_clock: MockClock) -> None:
    heard: list[str] = []

    async def listens(stream: ByteStream) -> None:
        heard.append(stream.peer)

    async with _lab("asker", "poisoner", liars=[listens]) as (lab, (asker, poisoner, stranger)):
        lab.strangers.add(stranger.transport.peer_id)
        poisoner.near = [stranger.contact]
        lab.names(poisoner, stranger)
        assert await _search(lab, asker, poisoner) == (False, [])
        assert heard == []
        assert asker.counters["asked"] == 1


# -- the door -----------------------------------------------------------------------------------


async def _ask(asker: End, end: End, question: Any) -> Any:
    await asker.transport.reach(end.transport.peer_id, end.transport.addresses())
    stream = await asker.transport.open_stream(end.transport.peer_id, KAD_PROTOCOL)
    await write_frame(stream, question)
    return KAD.decode(await read_frame(stream, 2**20))


async def test_a_stranger_is_told_nothing_and_notes_nothing(autojump_clock: MockClock) -> None:
    async with _lab("stranger", "node", "holder") as (lab, (stranger, node, holder)):
        node.is_holder = True
        node.near = [holder.contact]
        lab.names(node, holder)
        lab.strangers.add(stranger.transport.peer_id)
        assert await _ask(stranger, node, Find(SERVICE, JOB)) == Found((), ())
        assert await _ask(stranger, node, Give(SERVICE, JOB, 0, "")) == Given((), ())
        me = stranger.contact.addresses
        assert await _ask(stranger, node, Provide(SERVICE, (JOB,), me)) == Provided(0)
        assert (node.counters["questions_refused"], node.counters["provides_refused"]) == (2, 1)
        assert node.records.count == 1


async def test_a_member_is_told_of_holders_and_may_be_one(autojump_clock: MockClock) -> None:
    async with _lab("member", "node", "other") as (_, (member, node, other)):
        said = Provide(SERVICE, (JOB, _job(1)), member.contact.addresses)
        assert await _ask(member, node, said) == Provided(2)
        found = await _ask(other, node, Find(SERVICE, JOB))
        assert [c.peer for c in found.providers] == [member.transport.peer_id]
        assert (await _ask(member, node, Find(SERVICE, JOB))).providers == (), "not of himself"


async def test_malformed_questions_end_the_stream_and_are_counted(
    autojump_clock: MockClock,
) -> None:
    async with _lab("member", "node") as (_, (member, node)):
        await member.transport.reach(node.transport.peer_id, node.transport.addresses())
        too_long = (KAD_QUESTION_SIZE_BYTES_MAX + 1).to_bytes(4, "big")
        no_job = KAD.encode(Provide(SERVICE, (), ())).replace(b"\x90\x90", b"\x91\xa1x\x90")
        bad = [b"\x00\x00\x00\x00", too_long, b"\x00\x00\x00\x02\xc1\xc1"]
        bad.append(len(no_job).to_bytes(4, "big") + no_job)
        for data in bad:
            stream = await member.transport.open_stream(node.transport.peer_id, KAD_PROTOCOL)
            await stream.send(data)
            await trio.sleep_until(trio.current_time() + 1)
        assert node.counters["messages_refused"] == len(bad)


async def test_a_peer_has_few_streams_and_silent_ones_end(autojump_clock: MockClock) -> None:
    async with _lab("member", "node") as (_, (member, node)):
        await member.transport.reach(node.transport.peer_id, node.transport.addresses())
        streams = [
            await member.transport.open_stream(node.transport.peer_id, KAD_PROTOCOL)
            for _ in range(KAD_STREAMS_PER_PEER_MAX + 3)
        ]
        await trio.sleep_until(trio.current_time() + 1)
        assert node.counters["streams_refused"] == 3
        assert len(streams) == KAD_STREAMS_PER_PEER_MAX + 3
        await trio.sleep_until(trio.current_time() + 60)
        assert await _ask(member, node, Find(SERVICE, JOB)) == Found((), ())


async def test_more_questions_than_are_answered_in_a_second_wait(
    autojump_clock: MockClock,
) -> None:
    async with _lab("member", "node") as (_, (member, node)):
        await member.transport.reach(node.transport.peer_id, node.transport.addresses())
        stream = await member.transport.open_stream(node.transport.peer_id, KAD_PROTOCOL)
        began_s = trio.current_time()
        for _ in range(200):
            await write_frame(stream, Find(SERVICE, JOB))
            await read_frame(stream, 2**20)
        assert trio.current_time() - began_s > 5


async def test_no_more_than_the_bound_is_given(autojump_clock: MockClock) -> None:
    async with _lab("member", "node") as (_, (member, node)):

        async def give(question: Give) -> Given:
            return Given((), (b"x" * 1000,) * (KAD_GIVEN_SEGMENTS_MAX + 50), True)

        knows = Knowledge(lambda *_: True, lambda *_: [], lambda *_: True, give)
        contacts = Contacts(node.transport.peer_id)
        server = Server(node.transport, node.records, contacts, knows, node.counters)
        node.transport.set_stream_handler(KAD_PROTOCOL, server.serve)
        ask = Asker(member.transport, Contacts("x"), member.counters)
        given = await ask.give(node.contact, Give(SERVICE, JOB, 0, ""))
        assert given is not None
        assert len(given.segments) == KAD_GIVEN_SEGMENTS_MAX
        assert given.is_whole


# -- a node's own -------------------------------------------------------------------------------


async def test_a_node_that_was_told_of_a_holder_asks_him_though_nobody_else_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    async def give(holder: Contact, _: Give) -> None:
        asked.append(holder.peer)

    async with three(MemoryNetwork(), tmp_path) as (_, worker, guest):
        assert guest.dht is not None
        service = guest.services.id_of(LAB)
        dht = guest.dht
        await until(lambda: worker.peer_id in dht.known(service), "it knows where the worker is")
        now_s = trio.current_time()
        holder = Contact(worker.peer_id, ())
        assert guest.dht._records.note(service, JOB, holder, "worker", now_s)
        monkeypatch.setattr(guest.dht._asker, "give", give)
        assert await guest.dht.look(service, JOB) is None
    assert asked == [worker.peer_id]
