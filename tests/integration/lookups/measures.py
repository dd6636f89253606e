"""The measures: what is asked of a real node over libp2p, and what it takes."""

import os
import statistics
import time
from collections.abc import Awaitable, Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import psutil
import trio

from pairio.errors import PairioError
from pairio_node.dht.search import Search
from pairio_protocol.cid import DAG_CBOR, cid_of
from pairio_protocol.kad import KAD, Contact, Give, Given, Provide, Provided
from pairio_protocol.limits import KAD_TOLD
from tests.integration.attacks.lab import Lab
from tests.integration.lookups.members import FAR, Member, Members

__all__ = ["Row", "at_node", "hops", "provides"]


#: How long it is looked what nothing costs.
_IDLE_S = 3.0


@dataclass
class Row:
    """Times of one kind of look-up, and how many of those that were `tried` found something."""

    what: str
    took_s: list[float] = field(default_factory=list)
    tried: int = 0
    found: int = 0
    #: CPU of the node that looks.
    cpu_s: float = 0.0
    note: str = ""
    #: Nothing is to be found.
    in_vain: bool = False

    def line(self) -> str:
        """Return it for the table."""
        took_ms = sorted(1000 * s for s in self.took_s)
        last = min(len(took_ms) - 1, len(took_ms) * 99 // 100)
        times = [f"{statistics.median(took_ms):.1f}", f"{took_ms[last]:.1f}"]
        cpu = f"{1000 * self.cpu_s / self.tried:.1f}" if self.cpu_s else ""
        cells = [self.what, self.tried, self.found, *times, cpu, self.note]
        return "| " + " | ".join(map(str, cells)) + " |"


def nobodys() -> str:
    """Return the id of a job that nobody has."""
    return cid_of(DAG_CBOR, os.urandom(32))


async def _asked(lab: Lab, row: Row, service: str, job: str) -> None:
    node = psutil.Process(lab.node.process.pid)
    spent_s, began_s = _cpu_s(node), time.perf_counter()
    row.tried += 1
    try:
        view = await lab.call("GET", f"jobs/{job}?serviceName={service}")
        row.found += view["status"] == "completed"
    except PairioError:
        if not row.in_vain:
            return
    row.took_s.append(time.perf_counter() - began_s)
    row.cpu_s += _cpu_s(node) - spent_s


async def at_node(lab: Lab, them: Members, repeats: int) -> list[Row]:
    """Ask a node's API for jobs by their ids, each known to somebody else."""
    known = Row("it is here already (what the API itself takes)")
    connected = Row("a connected member has it: a home node, or any other")
    one_hop = Row("DHT: a connected member names a holder that is connected")
    dialled = Row("DHT: a connected member names a holder that has to be dialled")
    nobody = Row("nobody has it; eight connected members and the DHT are asked", in_vain=True)
    jobs = [them.job(lab, number) for number in range(repeats)]
    holder = them.near[2]
    holder.answers_lookups = True
    for job, segments in jobs:
        holder.gives = {job: segments}
        await _asked(lab, connected, them.service, job)
    holder.answers_lookups, holder.gives = False, {}
    for job, _ in jobs:
        await _asked(lab, known, them.service, job)
    for number in range(repeats):
        job, segments = them.job(lab, repeats + number)
        holder.gives = {job: segments}
        them.tell_nearest(them.near[3:], job, holder)
        await _asked(lab, one_hop, them.service, job)
    holder.gives = {}
    for _ in range(repeats):
        await _asked(lab, nobody, them.service, nobodys())
    for number, member in enumerate(them.far):  # the node stays connected with each
        job, segments = them.job(lab, 2 * repeats + number)
        member.gives = {job: segments}
        them.tell_nearest(them.near, job, member)
        await _asked(lab, dialled, them.service, job)
        member.gives = {}
    return [known, connected, one_hop, dialled, nobody]


async def hops(lab: Lab, them: Members, repeats: int) -> Row:
    """Look, as a node does that knows two members, among others of whom each knows a few."""
    row, asked = Row(f"DHT: {FAR} members, each knows 6 of them, the asker 2"), 0
    by_peer = {member.key.peer: member for member in them.far}
    for number in range(repeats):
        job, segments = them.job(lab, 10_000 + number)
        asker, *others = them.far[number % FAR :] + them.far[: number % FAR]
        holder = others[number * 7 % len(others)]
        holder.gives = {job: segments}
        them.tell_nearest(others, job, holder)
        before = asker.counters["asked"]
        began_s = time.perf_counter()
        row.tried += 1
        if await _search(them.service, asker, others[:2], job, by_peer):
            row.found += 1
            row.took_s.append(time.perf_counter() - began_s)
        asked += asker.counters["asked"] - before
        holder.gives = {}
    row.note = f"{asked / repeats:.1f} questions each"
    return row


async def _search(
    service: str, asker: Member, first: list[Member], job: str, known: dict[str, Member]
) -> bool:
    async def take(_: Contact, given: Given) -> bool:
        return bool(given.segments)

    def locate(contact: Contact) -> Contact | None:
        return contact if contact.peer in known and contact.peer != asker.key.peer else None

    search = Search(asker.asker(), Give(service, job, 0, ""), locate, take)
    search.add_members(member.contact for member in first)
    return await search.run()


@contextmanager
def _counted_bytes() -> Any:
    """Count what goes over this process's sockets."""
    counts = {"sent": 0, "received": 0}
    with trio.socket.socket() as made:
        sockets: Any = type(made)
    stock = sockets.send, sockets.recv, sockets.recv_into
    send, receive, receive_into = stock

    async def sent(self: Any, *arguments: Any) -> int:
        size: int = await send(self, *arguments)
        counts["sent"] += size
        return size

    async def received(self: Any, *arguments: Any) -> bytes:
        data: bytes = await receive(self, *arguments)
        counts["received"] += len(data)
        return data

    async def received_into(self: Any, *arguments: Any) -> int:
        size: int = await receive_into(self, *arguments)
        counts["received"] += size
        return size

    sockets.send, sockets.recv, sockets.recv_into = sent, received, received_into
    try:
        yield counts
    finally:
        sockets.send, sockets.recv, sockets.recv_into = stock


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


async def _spent(process: psutil.Process, work: Callable[[], Awaitable[None]]) -> tuple[float, ...]:
    """Return seconds, and CPU seconds of this process and of the node."""
    mine_s, theirs_s, began_s = time.process_time(), _cpu_s(process), time.perf_counter()
    await work()
    took_s = time.perf_counter() - began_s
    return took_s, time.process_time() - mine_s, _cpu_s(process) - theirs_s


async def provides(lab: Lab, them: Members, each: int) -> tuple[int, list[str]]:
    """Let members tell the node, a question on a stream of its own as nodes ask; return how many
    were noted, and lines that say what one costs."""
    process = psutil.Process(lab.node.process.pid)
    node = Contact(lab.node.info["peerId"], tuple(lab.node.info["addresses"]))
    questions = [
        (member, Provide(them.service, (nobodys(),), member.transport.addresses()[:1]))
        for member in them.near
        for _ in range(each)
    ]
    noted, took_s = 0, list[float]()

    async def tell() -> None:
        nonlocal noted
        for member, question in questions:
            began_s = time.perf_counter()
            answer = await member.asker().ask(node, question, Provided)
            took_s.append(time.perf_counter() - began_s)
            noted += answer is not None and answer.noted

    with _counted_bytes() as counts:
        all_s, mine_s, theirs_s = await _spent(process, tell)
    idle = await _spent(process, partial(trio.sleep, _IDLE_S))
    sent, received, count = counts["sent"], counts["received"], len(questions)
    mine_ms = 1000 * (mine_s - idle[1] * all_s / idle[0]) / count
    theirs_ms = 1000 * (theirs_s - idle[2] * all_s / idle[0]) / count
    frames = 8 + len(KAD.encode(questions[0][1])) + len(KAD.encode(Provided(1)))
    p50_ms, all_bytes = 1000 * statistics.median(took_s), (sent + received) // count
    return noted, [
        f"| DHT: one member told of a job | 2 messages, {frames} B; {all_bytes:,} B with what"
        f" libp2p adds | {p50_ms:.1f} | {mine_ms:.1f} | {theirs_ms:.1f} |",
        f"| DHT: {KAD_TOLD} members told, one after the other | {2 * KAD_TOLD} messages,"
        f" {KAD_TOLD * all_bytes:,} B | {KAD_TOLD * p50_ms:.1f} |"
        f" {KAD_TOLD * mine_ms:.1f} | {theirs_ms:.1f} at each |",
    ]
