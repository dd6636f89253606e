"""A world of shipped cores on virtual time: network, disks, clocks, executors, all seeded.

Nothing here decides anything of the protocol: the world carries effects out, as the shell of a node
does, and lets things go wrong as a plan says. Same seed, same run: every choice comes from one
`random.Random`, every collection that is walked is ordered.
"""

import heapq
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from pairio_protocol import effects as ef
from pairio_protocol import events as ev
from pairio_protocol.cid import RAW, cid_of
from pairio_protocol.context import CoreConfig
from pairio_protocol.core import NodeCore, Sealed
from pairio_protocol.limits import CONNECTIONS_MAX
from pairio_protocol.segment import Segment
from pairio_protocol.signing import SigningKey, sha256

__all__ = ["Disk", "Link", "Network", "Node", "World"]

BUNDLE = cid_of(RAW, b"bundle")
#: Silence after which a connection counts as gone (three keepalives and a probe).
SILENCE_MS = 8_000


@dataclass
class Disk:
    """What survives a crash: what commits wrote, in order."""

    services: dict[str, tuple[str, bool]] = field(default_factory=dict)
    changes: dict[tuple[str, str], tuple[int, bytes]] = field(default_factory=dict)
    segments: dict[bytes, bytes] = field(default_factory=dict)  # by hash
    answers: dict[tuple[str, str], str] = field(default_factory=dict)
    kept: dict[bytes, bytes] = field(default_factory=dict)  # by hash; of logs that were dropped
    dropped: dict[tuple[str, str, bytes], ef.Dropped] = field(default_factory=dict)

    def write(self, commit: ef.Commit) -> None:
        for service, petname, taken_up, _ in commit.services:
            self.services[service] = (petname, taken_up)
        for service, cid, seq, data in commit.changes:
            self.changes[service, cid] = (seq, data)
        for segment in commit.segments:
            self.segments[segment.hash] = segment.encode()
        for service, request, cid in commit.answers:
            self.answers.setdefault((service, request), cid)
        for segment in commit.kept:
            self.kept[segment.hash] = segment.encode()
        for row in commit.dropped:
            self._drop(row)

    def _drop(self, row: ef.Dropped) -> None:
        key = (row.service, row.author, row.boot)
        before = self.dropped.get(key)
        if before is None or before.height < row.height:
            self.dropped[key] = replace(row, kept=None)
        if row.kept is None:
            return
        for segment_hash, data in list(self.segments.items()):
            segment = Segment.decode(data)
            if (segment.service, *segment.log[:2]) == (row.service, row.author, row.boot):
                del self.segments[segment_hash]
                if segment_hash in row.kept:
                    self.kept[segment_hash] = data

    def holds(self, segment_hash: bytes) -> bool:
        return segment_hash in self.segments or segment_hash in self.kept

    def copy(self) -> "Disk":
        return Disk(
            dict(self.services),
            dict(self.changes),
            dict(self.segments),
            dict(self.answers),
            dict(self.kept),
            dict(self.dropped),
        )

    def restored(self) -> ev.Restored:
        changes = sorted(self.changes.items(), key=lambda i: (i[0][0], i[1][0], i[0][1]))
        return ev.Restored(
            tuple((s, name, up) for s, (name, up) in sorted(self.services.items())),
            tuple((key[0], data) for key, (_, data) in changes),
            tuple(self.segments.values()),
            tuple((s, r, c) for (s, r), c in sorted(self.answers.items())),
            kept=tuple(self.kept.values()),
            dropped=tuple(self.dropped.values()),
        )


@dataclass
class Network:
    """What the network does to frames. Blocked pairs are directed: partitions may be asymmetric."""

    gossip_loss: float = 0.0
    duplication: float = 0.0
    delay_ms: tuple[int, int] = (1, 20)
    gossip_delay_ms: tuple[int, int] = (1, 200)
    blocked: set[tuple[int, int]] = field(default_factory=set)


@dataclass
class Link:
    """A connection between two nodes; frames arrive in order, or not at all once it is gone."""

    number: int
    ends: tuple[int, int]
    born_ms: int = 0
    silent_since_ms: int | None = None
    last_ms: dict[int, int] = field(default_factory=dict)


class Node:
    """One machine: a core, a disk, clocks of its own, and what it executes."""

    def __init__(self, index: int, seed: bytes, cpu_millicores: int, compute: bool) -> None:
        self.index = index
        self.key = SigningKey(seed)
        self.peer = self.key.peer
        self.cpu_millicores = cpu_millicores
        self.compute = compute
        self.disk = Disk()
        self.core: NodeCore | None = None
        self.boots = 0
        self.asleep = False
        self.honest = True
        self.slow = 1.0
        self.disk_fails = False
        self.disk_failed_ms = -1000
        self.clock_offset_ms = index * 7_777
        self.wall_offset_ms = 0
        self.content: set[str] = set()
        self.had_since_ms: dict[str, int] = {}  # what came to its disk, when it did first
        self.away_since_ms: int | None = None  # killed or asleep
        self.here_since_ms = 0
        self.known: dict[str, int] = {}  # peers to keep connected -> node index
        self.running: dict[str, tuple[int, ef.Execute]] = {}
        self.outlived: dict[str, tuple[int, ef.Execute]] = {}  # until when, of the last start
        self.timer_ms: int | None = None
        self.inbox: list[ev.Event] = []
        self.last_look_ms = 0

    @property
    def up(self) -> bool:
        return self.core is not None


class World:
    """Nodes, links and time. `watch` is told of every step (the laws)."""

    def __init__(self, seed: int, watch: Any = None) -> None:
        self.rng = random.Random(seed)
        self.now_ms = 1_000_000
        self.nodes: list[Node] = []
        self.net = Network()
        self.links: dict[int, Link] = {}
        self._at: dict[int, dict[int, Link]] = {}  # the same links by node, in their order
        self._to: dict[int, dict[str, Link]] = {}  # the same links by node and its other's key
        #: who passes gossip on to whom; None: everybody on every connection
        self.mesh: dict[int, set[int]] | None = None
        self.counts: Counter[str] = Counter()
        self.story: list[tuple[int, int, str]] = []
        self.answers: dict[int, ef.Reply | ef.Fail] = {}
        self.watch = watch
        self._heap: list[tuple[int, int, Callable[[], None]]] = []
        self._number = 0
        self._calls = 0
        self._seen_gossip: dict[int, set[bytes]] = {}
        self._trust: tuple[str, ...] = ()
        self.make_core: type[NodeCore] = NodeCore
        self.settings: dict[str, Any] = {}  # of every node, beyond the defaults
        #: who has withdrawn what a worker kills; the scenario knows
        self.gone_coordinators: Callable[[Node, Any], set[str]] = lambda node, task: set()

    # -- time -----------------------------------------------------------------------------

    def after(self, ms: int, action: Callable[[], None]) -> None:
        self._number += 1
        heapq.heappush(self._heap, (self.now_ms + max(0, ms), self._number, action))

    def run_until(self, at_ms: int) -> None:
        while self._heap and self._heap[0][0] <= at_ms:
            when, _, action = heapq.heappop(self._heap)
            self.now_ms = max(self.now_ms, when)
            action()
        self.now_ms = at_ms

    def run_for(self, ms: int) -> None:
        self.run_until(self.now_ms + ms)

    def between(self, bounds: tuple[int, int]) -> int:
        return self.rng.randint(*bounds)

    def note(self, node: int, text: str) -> None:
        self.story.append((self.now_ms, node, text))

    # -- nodes ----------------------------------------------------------------------------

    def add_node(self, compute: bool = True, cpu: int = 2000, twin_of: Node | None = None) -> Node:
        index = len(self.nodes)
        number = twin_of.index if twin_of else index
        seed = self.rng.randbytes(0) + number.to_bytes(4, "big") + b"pairio simulation key no 28x"
        node = Node(index, seed[:32].ljust(32, b"."), cpu, compute)
        self.nodes.append(node)
        self._seen_gossip[index] = set()
        self._at[index], self._to[index] = {}, {}
        return node

    def start(self, node: Node, trust: tuple[str, ...] = ()) -> None:
        node.boots += 1
        node.away_since_ms, node.here_since_ms = None, self.now_ms
        boot = _boot(node.index, node.boots)
        if trust:
            self._trust = trust
        config = CoreConfig(
            boot=boot,
            started_unix_ms=self._unix(node),
            past_boots=tuple(_boot(node.index, number) for number in range(1, node.boots)),
            trust=self._trust,
            compute=node.compute,
            cpu_millicores=node.cpu_millicores,
            memory_mib=8192,
            isolation="medium",
            addresses=(f"sim/{node.index}",),
        )
        config = replace(config, **self.settings)
        node.core = self.make_core(node.key, config)
        node.timer_ms, node.inbox, node.running = None, [], {}
        outlived, node.outlived = node.outlived, {}
        node.last_look_ms = self._clock(node)
        self._seen_gossip[node.index] = set()
        self.note(node.index, "starts")
        restored = node.disk.restored()
        for attempt, (until_ms, effect) in outlived.items():
            self.counts["fault: a run outlived its node"] += 1
            self._run_until(node, effect, max(until_ms, self.now_ms + 5))
            restored = replace(restored, adopted=(*restored.adopted, _adopted(attempt, effect)))
        self.give(node, restored)
        self.after(self.between((5, 500)), lambda: self._dial_known(node, node.boots))

    def crash(self, node: Node) -> None:
        self.note(node.index, "is killed")
        node.core = None
        node.away_since_ms = self.now_ms
        for attempt, (until_ms, effect) in node.running.items():
            if self.rng.random() < 0.5:  # its supervisor lives on
                node.outlived[attempt] = (until_ms, effect)
        for link in list(self._at[node.index].values()):
            self._break(link)

    def _clock(self, node: Node) -> int:
        return self.now_ms + node.clock_offset_ms

    def _unix(self, node: Node) -> int:
        return 1_700_000_000_000 + self.now_ms + node.wall_offset_ms

    # -- the driver -----------------------------------------------------------------------

    def give(self, node: Node, event: ev.Event) -> None:
        """Hand an event to a node, as its driver does; a sleeping one takes it when it wakes."""
        if node.core is None:
            return
        if node.asleep:
            if len(node.inbox) < 10_000:
                node.inbox.append(event)
            return
        core, clock, unix = node.core, self._clock(node), self._unix(node)
        node.last_look_ms = clock
        self.counts["events"] += 1
        self._carry_out(node, core.handle(event, clock, unix))
        self._seal(node)
        if node.core is core:
            self._set_timer(node)
            if self.watch is not None:
                self.watch.after_step(self, node)

    def _seal(self, node: Node) -> None:
        core = node.core
        if core is None or self.now_ms - node.disk_failed_ms < 1000:
            return
        sealed: Sealed | None = core.seal(self._clock(node), self._unix(node))
        if sealed is None:
            return
        if self.watch is not None:
            self.watch.sealed(self, node, sealed)
        commit, boot = sealed.commit, node.boots
        delay = int(self.between((1, 8)) * node.slow)
        self.after(delay, lambda: self._committed(node, boot, commit))
        self._carry_out(node, sealed.effects)

    def _committed(self, node: Node, boot: int, commit: ef.Commit) -> None:
        if node.boots != boot or node.core is None:
            if self.rng.random() < 0.5 and node.boots == boot:
                node.disk.write(commit)  # the write was under way and made it
                self.counts["fault: last write survived a crash"] += 1
            else:
                self.counts["fault: last write lost in a crash"] += 1
            return
        if node.disk_fails:
            self.counts["fault: commit failed"] += 1
            node.disk_failed_ms = self.now_ms
            self.after(1000, lambda: self._reseal(node, boot))
            self.give(node, ev.CommitFailed(commit.ticket, "the disk is full"))
            return
        node.disk.write(commit)
        self.give(node, ev.Committed(commit.ticket))

    def _reseal(self, node: Node, boot: int) -> None:
        if node.boots == boot and node.core is not None:
            self.give(node, ev.TimePassed())

    def _set_timer(self, node: Node) -> None:
        assert node.core is not None
        due = node.core.next_deadline_ms()
        if due is None:
            return
        due_ms = max(due - node.clock_offset_ms, self.now_ms + 1)
        if node.timer_ms is not None and node.timer_ms <= due_ms and node.timer_ms > self.now_ms:
            return
        node.timer_ms, boot = due_ms, node.boots
        self.after(due_ms - self.now_ms, lambda: self._ring(node, boot, due_ms))

    def _ring(self, node: Node, boot: int, due_ms: int) -> None:
        if node.boots == boot and node.timer_ms == due_ms and node.up and not node.asleep:
            node.timer_ms = None
            self.give(node, ev.TimePassed())

    def doze(self, node: Node, ms: int) -> None:
        """The machine sleeps (or the process is stopped); its clock goes on."""
        if node.asleep or not node.up:
            return
        node.asleep = True
        node.away_since_ms = self.now_ms
        self.note(node.index, f"sleeps for {ms} ms")
        self.after(ms, lambda: self._wake(node, ms))

    def _wake(self, node: Node, ms: int) -> None:
        if not node.asleep:
            return
        node.asleep = False
        if not node.up:
            return
        inbox, node.inbox = node.inbox, []
        node.away_since_ms, node.here_since_ms = None, self.now_ms
        self.note(node.index, "wakes")
        if ms > 2000:
            self.give(node, ev.Woke(ms))
        for event in inbox:
            self.give(node, event)
        if node.up:
            node.timer_ms = None
            self.give(node, ev.TimePassed())

    # -- effects --------------------------------------------------------------------------

    def _carry_out(self, node: Node, effects: list[ef.Effect]) -> None:
        for effect in effects:
            if self.watch is not None:
                self.watch.effect(self, node, effect)
            match effect:
                case ef.Send():
                    self._send(node, effect)
                case ef.Announce():
                    self._announce(node, effect.service, effect.data, None)
                case ef.Connect():
                    self._connect(node, effect.peer)
                case ef.Execute():
                    self._execute(node, effect)
                case ef.Kill():
                    self._kill(node, effect.attempt)
                case ef.FetchBlocks():
                    self._fetch(node, effect)
                case ef.Locate():
                    self._locate(node, effect)
                case ef.Reply() | ef.Fail():
                    self.answers[effect.call] = effect
                case ef.Refuse():
                    self.counts[f"refused: {effect.reason}"] += 1

    def call(self, node: Node, make: Callable[[int], ev.Event]) -> int:
        """Give a local call; its answer comes into `answers`."""
        self._calls += 1
        self.give(node, make(self._calls))
        return self._calls

    # -- network --------------------------------------------------------------------------

    def link_of(self, a: int, peer: str) -> Link | None:
        return self._to[a].get(peer)

    def _connect(self, node: Node, peer: str) -> None:
        target = next((n for n in self.nodes if n.peer == peer and n is not node), None)
        if target is not None and peer not in node.known and peer != node.peer:
            node.known[peer] = target.index
            self.after(self.between((5, 50)), lambda: self._dial(node, target))

    def know(self, node: Node, target: Node) -> None:
        """The owner names a peer to connect to."""
        node.known[target.peer] = target.index

    def _dial_known(self, node: Node, boot: int) -> None:
        if node.boots != boot or not node.up:
            return
        for index in list(node.known.values()):
            self._dial(node, self.nodes[index])
        self.after(self.between((1500, 2500)), lambda: self._dial_known(node, boot))

    def _dial(self, node: Node, target: Node) -> None:
        a, b = node.index, target.index
        if not (node.up and target.up) or node.asleep or target.asleep or a == b:
            return
        if (a, b) in self.net.blocked or (b, a) in self.net.blocked or node.peer == target.peer:
            return
        if self.link_of(a, target.peer) or self.link_of(b, node.peer):
            return
        if any(len(self._at[end]) >= CONNECTIONS_MAX for end in (a, b)):
            return
        self.link(a, b)
        self.give(node, ev.PeerUp(target.peer, (f"sim/{b}",)))
        self.give(target, ev.PeerUp(node.peer, ()))

    def link(self, a: int, b: int) -> Link:
        """Let there be a connection; nobody is told of it here."""
        self._number += 1
        link = Link(self._number, (a, b), self.now_ms)
        self.links[link.number] = self._at[a][link.number] = self._at[b][link.number] = link
        self._to[a][self.nodes[b].peer] = self._to[b][self.nodes[a].peer] = link
        return link

    def _break(self, link: Link) -> None:
        if self.links.pop(link.number, None) is None:
            return
        for end in link.ends:
            del self._at[end][link.number]
            del self._to[end][self.nodes[_other(link, end)].peer]
        a, b = (self.nodes[i] for i in link.ends)
        self.after(self.between((0, 30)), lambda: self._down(a, b.peer))
        self.after(self.between((0, 30)), lambda: self._down(b, a.peer))

    def _down(self, node: Node, peer: str) -> None:
        if self.link_of(node.index, peer) is None:
            self.give(node, ev.PeerDown(peer))

    def watch_links(self) -> None:
        """Keepalive: a connection on which one side hears nothing ends."""
        for link in list(self.links.values()):
            a, b = link.ends
            silent = (
                (a, b) in self.net.blocked
                or (b, a) in self.net.blocked
                or self.nodes[a].asleep
                or self.nodes[b].asleep
            )
            if not silent:
                link.silent_since_ms = None
            elif link.silent_since_ms is None:
                link.silent_since_ms = self.now_ms
            elif self.now_ms - link.silent_since_ms >= SILENCE_MS:
                self.counts["fault: connection lost by silence"] += 1
                self._break(link)
        self.after(1000, self.watch_links)

    def _send(self, node: Node, effect: ef.Send) -> None:
        link = self.link_of(node.index, effect.peer)
        if link is None:
            return
        self.counts["frames"] += 1
        self.counts["frame bytes"] += len(effect.data)
        target = self.nodes[_other(link, node.index)]
        at_ms = self.now_ms + int(self.between(self.net.delay_ms) * max(node.slow, target.slow))
        at_ms = max(at_ms, link.last_ms.get(node.index, 0))
        link.last_ms[node.index] = at_ms
        event = ev.FrameReceived(node.peer, effect.data)
        self.after(at_ms - self.now_ms, lambda: self._deliver(link, node, target, event))

    def _deliver(self, link: Link, node: Node, target: Node, event: ev.Event) -> None:
        if link.number not in self.links:
            self.counts["fault: frame lost with its connection"] += 1
            return
        if (node.index, target.index) in self.net.blocked:  # TCP sends it again later
            link.last_ms[node.index] = max(link.last_ms[node.index], self.now_ms + 200)
            self.after(200, lambda: self._deliver(link, node, target, event))
            return
        self.give(target, event)

    def _announce(self, node: Node, service: str, data: bytes, source: int | None) -> None:
        seen = self._seen_gossip[node.index]
        key = data[-64:]
        if source is not None and key in seen:
            return
        seen.add(key)
        for link in list(self._at[node.index].values()):
            other = _other(link, node.index)
            if other == source or (self.mesh is not None and other not in self.mesh[node.index]):
                continue
            copies = 2 if self.rng.random() < self.net.duplication else 1
            for _ in range(copies):
                if copies == 2:
                    self.counts["fault: gossip duplicated"] += 1
                if self.rng.random() < self.net.gossip_loss:
                    self.counts["fault: gossip lost"] += 1
                    continue
                self._gossip(node, self.nodes[other], service, data)

    def _gossip(self, node: Node, target: Node, service: str, data: bytes) -> None:
        def arrive() -> None:
            core = target.core
            if core is None or (node.index, target.index) in self.net.blocked or target.asleep:
                return
            self.counts["gossip frames"] += 1
            if core.accepts_gossip(service, data):
                self._announce(target, service, data, node.index)
                self.give(target, ev.GossipReceived(service, node.peer, data))

        self.after(self.between(self.net.gossip_delay_ms), arrive)

    # -- blocks and runs ------------------------------------------------------------------

    def _has(self, node: Node, cids: tuple[str, ...], holders: tuple[str, ...]) -> bool:
        """Fetch content from connected holders."""
        missing = [c for c in cids if c not in node.content and c != BUNDLE]
        for cid in missing:
            sources = [
                n
                for n in self.nodes
                if n.up
                and not n.asleep
                and n.peer in holders
                and cid in n.content
                and self.link_of(node.index, n.peer) is not None
                and (n.index, node.index) not in self.net.blocked
            ]
            if not sources:
                return False
            self._store(node, cid)
        return True

    def _store(self, node: Node, cid: str) -> str:
        node.content.add(cid)
        node.had_since_ms.setdefault(cid, self.now_ms)
        return cid

    def _put(self, node: Node, data: bytes) -> str:
        return self._store(node, cid_of(RAW, data))

    def lose(self, node: Node, cids: tuple[str, ...]) -> None:
        """A disk loses some content; nobody is told."""
        for cid in cids:
            node.content.discard(cid)
            node.had_since_ms.pop(cid, None)

    def _fetch(self, node: Node, effect: ef.FetchBlocks) -> None:
        boot = node.boots

        def fetch() -> None:
            if node.boots == boot and node.up:
                ok = self._has(node, effect.cids, effect.holders)
                self.give(node, ev.Fetched(effect.ticket, ok, "" if ok else "nobody has it"))

        self.after(int(self.between((1, 30)) * node.slow), fetch)

    def _locate(self, node: Node, effect: ef.Locate) -> None:
        boot = node.boots

        def locate() -> None:
            if node.boots == boot and node.up:
                here = set(effect.cids) <= {*node.content, BUNDLE}
                self.give(node, ev.Located(effect.ticket, here))

        self.after(int(self.between((0, 2)) * node.slow), locate)

    def _execute(self, node: Node, effect: ef.Execute) -> None:
        self.counts["executions"] += 1
        took = int(int(_parameters(effect).get("ms", 50)) * node.slow) + self.between((1, 20))
        self._run_until(node, effect, self.now_ms + min(took, effect.resources.time_ms))

    def _run_until(self, node: Node, effect: ef.Execute, until_ms: int) -> None:
        boot = node.boots
        mine = (until_ms, effect)
        node.running[effect.attempt] = mine

        def finish() -> None:
            if node.boots != boot or not node.up:
                return
            if node.asleep:
                self.after(500, finish)
                return
            if node.running.get(effect.attempt) is mine:
                del node.running[effect.attempt]
                self.give(node, self._executed(node, effect, _parameters(effect)))

        self.after(until_ms - self.now_ms, finish)

    def _executed(self, node: Node, effect: ef.Execute, parameters: dict[str, Any]) -> ev.Executed:
        inputs = tuple(e["source"]["cid"] for e in effect.document["inputs"])
        if not self._has(node, inputs, effect.holders):
            return _infra(effect.attempt, "an input is not to be had")
        if parameters.get("mode") == "break":
            self.counts["app failed"] += 1
            return ev.Executed(
                effect.attempt, "", "failed", "exit 1", {}, self._put(node, b"no"), {}, "medium"
            )
        who = node.peer.encode() if parameters.get("mode") == "noisy" else b""
        text = effect.job.encode() + who
        outputs = {
            o["name"]: (self._put(node, text + o["name"].encode()), len(text), o["base_name"])
            for o in effect.document["outputs"]
        }
        usage = {"cpu_ms": int(parameters.get("ms", 50))}
        console = self._put(node, b"said")
        return ev.Executed(effect.attempt, "", "completed", "", outputs, console, usage, "medium")

    def _kill(self, node: Node, attempt: str) -> None:
        if node.running.pop(attempt, None) is not None:
            self.counts["runs killed"] += 1
            boot = node.boots

            def ended() -> None:
                if node.boots == boot:
                    self.give(node, ev.Executed(attempt, "canceled", "", "", {}, "", {}, ""))

            self.after(5, ended)


def _other(link: Link, index: int) -> int:
    a, b = link.ends
    return b if a == index else a


def _parameters(effect: ef.Execute) -> dict[str, Any]:
    return {p["name"]: p["value"] for p in effect.document["parameters"]}


def _adopted(attempt: str, effect: ef.Execute) -> ev.Adopted:
    return ev.Adopted(
        effect.service,
        attempt,
        effect.request,
        effect.run,
        effect.upstream,
        effect.coordinators,
        effect.lease_ms,
        effect.started_unix_ms,
    )


def _infra(attempt: str, why: str) -> ev.Executed:
    return ev.Executed(attempt, "infra", "", why, {}, "", {}, "")


def _boot(index: int, number: int) -> bytes:
    return sha256(f"{index} {number}".encode())[:16]
