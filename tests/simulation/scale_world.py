"""A world of many nodes in which nothing goes wrong, and everything that is sent is counted.

The network is one that has been up for a while: list, app, connections, presence and a log of every
node from an earlier start are there when it begins, so that founding is not part of what is
measured. Compared with `World`:

- no laws look on; links take 1 to 50 ms; gossip goes along a mesh of degree 4, as gossipsub's;
  what a node has seen is dropped before the core is asked, as there;
- disks keep nothing, as nobody is restarted;
- changes of the service are folded once for all nodes (`Chain._validated` is pure), which saves
  minutes and gigabytes. What the core itself remembers (signatures, what was decoded) it remembers
  here for all nodes together.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from time import process_time
from typing import Any
from unittest.mock import patch

from scenario import APP, definition
from world import Disk, Node, World

from pairio_protocol import effects as ef
from pairio_protocol import events as ev
from pairio_protocol.codec import unpack
from pairio_protocol.core import NodeCore
from pairio_protocol.limits import CONNECTIONS_MAX, PRESENCE_INTERVAL_MS, SYNC_INTERVAL_MS
from pairio_protocol.machines.presence import Heard
from pairio_protocol.messages import MESSAGES, Bid, Presence
from pairio_protocol.records import End, Resources
from pairio_protocol.segment import GENESIS, Segment
from pairio_protocol.service import Chain
from pairio_protocol.signing import asked, sha256

__all__ = ["Job", "ScaleWorld", "Sent", "folded_once"]

LINK_MS = (1, 50)
MESH_CYCLES = 2  # each gives every node two neighbours
ADDS_PER_CHANGE = 200


class _NoDisk(Disk):
    def write(self, commit: ef.Commit) -> None:
        """Nobody reads it again."""


class TimedCore(NodeCore):
    """The shipped core, with the CPU time that all of them together have used."""

    cpu_s = 0.0

    def handle(self, event: ev.Event, now_ms: int, unix_ms: int = 0) -> list[ef.Effect]:
        with _timed():
            return super().handle(event, now_ms, unix_ms)

    def seal(self, now_ms: int, unix_ms: int = 0) -> Any:
        with _timed():
            return super().seal(now_ms, unix_ms)

    def accepts_gossip(self, service: str, data: bytes) -> bool:
        with _timed():
            return super().accepts_gossip(service, data)


@contextmanager
def _timed() -> Iterator[None]:
    began = process_time()
    try:
        yield
    finally:
        TimedCore.cpu_s += process_time() - began


@contextmanager
def folded_once() -> Iterator[None]:
    """While this lasts, a change is validated and folded by the first node only."""
    known: dict[str, Any] = {}
    validated = Chain._validated

    def remembered(chain: Chain, document: Any, change: Any, seq: int, prev: Any) -> Any:
        if change.cid not in known:
            known[change.cid] = validated(chain, document, change, seq, prev)
        return known[change.cid]

    with patch.object(Chain, "_validated", remembered):
        yield


@dataclass
class Sent:
    """What went over all links since it was last begun, and what it cost."""

    frames: Counter[str] = field(default_factory=Counter)
    size: Counter[str] = field(default_factory=Counter)  # bytes
    bids: int = 0  # requests that bids named
    news: int = 0  # bytes of gossip, each segment once
    core_cpu_s: float = 0.0
    all_cpu_s: float = 0.0
    checks: int = 0  # signatures
    ms: int = 0


@dataclass
class Job:
    """One submitted job: what the submitter's node said, when it was submitted and began."""

    submitter: Node
    call: int
    at_ms: int
    started_ms: int | None = None


class ScaleWorld(World):
    """`count` nodes of one slot each, all of them submitters too."""

    def __init__(self, seed: int, count: int) -> None:
        super().__init__(seed)
        self.make_core = TimedCore
        self.net.delay_ms = self.net.gossip_delay_ms = LINK_MS
        self.jobs: list[Job] = []
        self.sent = Sent()
        self._began = (0, 0.0, 0.0, 0)
        for _ in range(count):
            node = self.add_node(cpu=1000)
            node.disk, node.clock_offset_ms = _NoDisk(), 0
        self.service = self._found()
        self._weave()
        self._start_all()

    # -- a network that has been up for a while -----------------------------------------------

    def _found(self) -> str:
        """Put the list with all members and the app on every disk."""
        first = self.nodes[0]
        chain = Chain()

        def change(*ops: dict[str, Any]) -> None:
            chain.add(chain.propose(list(ops), [first.key], self._unix(first)))

        create = {"op": "create", "name": "lab", "nonce": "00"}
        change({**create, "admins": [first.peer], "threshold": 1})
        roles = ["compute", "submit"]
        for start in range(0, len(self.nodes), ADDS_PER_CHANGE):
            page = self.nodes[start : start + ADDS_PER_CHANGE]
            change(
                *(
                    {"op": "add", "member": f"m{n.index}", "key": n.peer, "roles": roles}
                    for n in page
                )
            )
        change({"op": "app", "app": APP})
        logs = dict(_written_before(node, chain) for node in self.nodes)
        for node in self.nodes:
            node.disk.services[chain.service] = ("lab", True)
            node.disk.segments = logs
            for number, signed in enumerate(chain.changes()):
                node.disk.changes[chain.service, signed.cid] = (number, signed.encode())
        return chain.service

    def _weave(self) -> None:
        """Connect at random: cycles through all nodes, which are the mesh, then pair by pair."""
        count = len(self.nodes)
        mesh: dict[int, set[int]] = {index: set() for index in range(count)}
        for _ in range(MESH_CYCLES):
            order = self.rng.sample(range(count), count)
            for a, b in zip(order, order[1:] + order[:1], strict=True):
                mesh[a].add(b)
                mesh[b].add(a)
        self.mesh = mesh
        room = dict.fromkeys(range(count), CONNECTIONS_MAX)
        pairs = {(min(a, b), max(a, b)) for a, others in mesh.items() for b in others if a != b}
        others = [(a, b) for a in range(count) for b in range(a + 1, count)]
        self.rng.shuffle(others)
        for a, b in [*sorted(pairs), *(pair for pair in others if pair not in pairs)]:
            if room[a] and room[b]:
                room[a], room[b] = room[a] - 1, room[b] - 1
                self.link(a, b)

    def _start_all(self) -> None:
        for node in self.nodes:
            self.after(self.between((0, SYNC_INTERVAL_MS)), partial(self.start, node))
        self.run_for(SYNC_INTERVAL_MS)
        heard = {node.peer: self._heard(node) for node in self.nodes}
        for node in self.nodes:
            core = self._core(node)
            for link in self._at[node.index].values():
                other = self.nodes[sum(link.ends) - node.index]
                core.ctx.connected[other.peer] = (f"sim/{other.index}",)
            core.book.heard[self.service] = dict(heard)
            self.after(
                self.between((0, SYNC_INTERVAL_MS)), partial(self.give, node, ev.TimePassed())
            )
        self.run_for(2 * SYNC_INTERVAL_MS)

    def _heard(self, node: Node) -> Heard:
        """Return what a node says of itself, as if it had said so within the last minute."""
        book = self._core(node).book
        self._core(node).own_presence(self.service)
        own = book.heard[self.service][node.peer]
        said_ms = self.now_ms - self.between((0, PRESENCE_INTERVAL_MS - 1))
        book._sent_ms = own.at_ms = own.passed_ms = said_ms
        book._dirty = False
        return own

    @staticmethod
    def _core(node: Node) -> NodeCore:
        assert node.core is not None
        return node.core

    # -- counting ---------------------------------------------------------------------------

    def begin(self) -> None:
        """Count from now on."""
        self.sent = Sent()
        self._began = (self.now_ms, TimedCore.cpu_s, process_time(), _checks())

    def end(self) -> Sent:
        """Return what was counted since `begin`."""
        at_ms, core_s, all_s, checks = self._began
        self.sent.ms = self.now_ms - at_ms
        self.sent.core_cpu_s = TimedCore.cpu_s - core_s
        self.sent.all_cpu_s = process_time() - all_s
        self.sent.checks = _checks() - checks
        return self.sent

    def _send(self, node: Node, effect: ef.Send) -> None:
        kind = str(unpack(effect.data)[0])
        self.sent.frames[kind] += 1
        self.sent.size[kind] += len(effect.data)
        if kind == "bid":
            bid: Bid = MESSAGES.decode(effect.data)
            self.sent.bids += len(bid.requests)
        super()._send(node, effect)

    def _announce(self, node: Node, service: str, data: bytes, source: int | None) -> None:
        self.sent.news += len(data) if source is None else 0
        super()._announce(node, service, data, source)

    def _gossip(self, node: Node, target: Node, service: str, data: bytes) -> None:
        self.sent.frames["gossip"] += 1
        self.sent.size["gossip"] += len(data)

        def arrive() -> None:
            core = self._core(target)
            if data[-64:] in self._seen_gossip[target.index]:
                return
            if core.accepts_gossip(service, data):
                self._announce(target, service, data, node.index)
                self.give(target, ev.GossipReceived(service, node.peer, data))

        self.after(self.between(self.net.gossip_delay_ms), arrive)

    # -- jobs -------------------------------------------------------------------------------

    def submit(self, node: Node, work_ms: int) -> None:
        """Submit a job that nobody has submitted before."""
        number = len(self.jobs)
        job = Job(node, 0, self.now_ms)
        self.jobs.append(job)
        wish = definition("make", number, work_ms, "fine")
        resources = Resources(1000, 512, 0, 60_000)
        job.call = self.call(node, lambda c: ev.Submit(c, self.service, wish, resources))

    def _execute(self, node: Node, effect: ef.Execute) -> None:
        number = next(p["value"] for p in effect.document["parameters"] if p["name"] == "n")
        if self.jobs[number].started_ms is None:
            self.jobs[number].started_ms = self.now_ms
        super()._execute(node, effect)

    def is_ended(self, job: Job) -> bool:
        """Say whether the submitter's node knows the result."""
        answer = self.answers.get(job.call)
        if not isinstance(answer, ef.Reply):
            return False
        fold = self._core(job.submitter).folds[self.service]
        return fold.requests[answer.value["request"]].answer is not None

    def is_known_everywhere(self) -> bool:
        """Say whether all nodes hold the same logs."""
        return len({self._core(node).logs.digest(self.service) for node in self.nodes}) == 1

    def presence_size(self) -> int:
        """Return the bytes of one signed entry."""
        own = self._core(self.nodes[0]).book.heard[self.service][self.nodes[0].peer]
        assert isinstance(own.entry, Presence)
        return len(own.data)


def _written_before(node: Node, chain: Chain) -> tuple[bytes, bytes]:
    """Return (hash, segment) of a log that the node wrote at an earlier start."""
    end = End("request", f"run {node.index}", f"{node.peer}/0/0", "infra", "restart", chain.epoch)
    boot = sha256(f"earlier {node.index}".encode())[:16]
    segment = Segment.seal(node.key, chain.service, boot, 0, chain.epoch, GENESIS, [end])
    return segment.hash, segment.encode()


def _checks() -> int:
    return asked()
