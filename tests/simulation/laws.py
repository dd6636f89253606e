"""The laws: what must hold in every world, each with the promise of DESIGN section 10 it guards.

Safety laws are looked at on every step, liveness laws once the world has healed. A law that is
broken raises `Broken` with its name; every look is counted, so that a law nobody ever looked at is
found out.
"""

from collections import Counter
from typing import Any

from world import BUNDLE, Node, World

from pairio_protocol import effects as ef
from pairio_protocol.errors import DecodeError
from pairio_protocol.ids import run_id
from pairio_protocol.messages import MESSAGES, Ack, Award, Forks, Held
from pairio_protocol.records import Cancel, End, Request, Result, Start
from pairio_protocol.segment import Segment
from pairio_protocol.service import Chain
from pairio_protocol.signing import sha256

LAWS = {
    "stored before acked": "A segment is on the disk of whoever acks it `stored`. (1)",
    "stored before told": "A request is on its submitter's disk before he is told. (1)",
    "replicated is true": "A submit said to be replicated is on another node's disk. (1)",
    "held is true": "Whoever says `held` has every block of it. (2)",
    "hits are there": "What a submit is answered with at once lies on a node that is there. (2)",
    "lost is lost": "Content is said to be lost only when nobody at hand has held it. (2)",
    "asked again": "Healed, whoever asks for an ended job again gets content that is there. (2)",
    "safe is true": "Content said to be safe lies on as many nodes as it should. (2)",
    "one hash per seq": "No honest node signs two segments for one place of a log. (3)",
    "members only": "What counts was signed by its author, a member at its epoch. (3)",
    "logs are chains": "What counts of a log is a gapless chain with epochs that never fall. (3)",
    "forks are void": "Nothing counts from the lowest forked seq of a log on. (3)",
    "cuts hold": "Nothing counts beyond a cut that was written under an earlier epoch. (3)",
    "roles rule records": "A record has effect only if its author's role at its epoch allows. (3)",
    "order of changes is nothing": "The same changes in any order give the same list. (3)",
    "order of segments is nothing": "The same segments in any order give the same state. (3)",
    "answers stay": "A request keeps the result it was answered with. (1)",
    "answers fit": "An answer is of the request's resolved job and run, outputs complete. (1)",
    "cancel is narrow": "A run that some request wants is not killed. (1)",
    "runs are wanted": "Nothing is executed that no member asked for. (3, 6)",
    "one at a time": "A node does not execute one run twice at once. (6)",
    "capacity holds": "What executes fits into what the owner gave. (6)",
    "take is the last resort": "A run is taken only when its coordinator cannot be reached. (1)",
    "bounds hold": "Frames, segments and queues keep their limits. (6)",
    "converged": "Healed, all members hold the same changes and logs, and show the same. (5)",
    "every job ends": "Healed, every accepted request has ended. (1)",
    "safe results are there": "Healed, what was said to be safe can be had. (2)",
    "copies are made again": "Healed, what was safe lies on as many nodes as it should again. (2)",
    "answers are remembered": "What a request was answered with outlives the log it stood in. (1)",
    "kept segments count": "What is kept of a dropped log still counts as it did there. (3)",
    "calm": "Healed and done, nodes say little. (6)",
    "calls are answered": "Every call of a client that lives is answered. (1)",
}

#: Who was connected, awake and holding content for so long was asked for it in vain by no doubt.
AT_HAND_MS = 70_000
#: What a node was told lately, by whom and about what may be gone by now.
LATELY_MS = 30_000


class Broken(AssertionError):
    """A law does not hold."""

    def __init__(self, law: str, why: str, node: int | None = None, job: str = "") -> None:
        super().__init__(f"law broken: {law}: {why}" + (f" (node {node})" if node else ""))
        self.law, self.job = law, job


def _own_boots(node: Node) -> set[bytes]:
    """Return the boots under which a core writes since its start."""
    assert node.core is not None
    boots = [node.core.ctx.config.boot]
    while len(boots) < 50:
        boots.append(sha256(boots[-1])[:16])
    return set(boots)


def _kind_of(frame: bytes) -> str:
    """Return a frame's kind: a short msgpack text after the list's head."""
    return frame[2 : 2 + (frame[1] & 0x1F)].decode()


def _list_at(chain: Chain, epoch: int) -> Any:
    """Return the winning branch's list at an epoch, beyond its end the newest; without `Chain.at`,
    which is what is looked at."""
    return chain._folds[epoch] if epoch < len(chain._folds) else chain._now


def _roles_at(chain: Chain, epoch: int, peer: str) -> set[str]:
    """Return the roles of a key at an epoch, read from the list; without `Folded.roles_of`."""
    folded = _list_at(chain, epoch)
    held = {role for roles, keys in folded.members.values() if peer in keys for role in roles}
    return set() if folded.ended else held - folded.barred.get(peer, frozenset())


class Laws:
    """Looks at everything that happens. One per world."""

    def __init__(self) -> None:
        self.looks: Counter[str] = Counter()
        self.transitions: Counter[str] = Counter()
        self._signed: dict[tuple[str, bytes, int], bytes] = {}
        self._seen: dict[int, dict[tuple[str, Any], int]] = {}
        self._pins: dict[tuple[int, str], tuple[str, int]] = {}
        self._safe: dict[tuple[int, str], tuple[str, ...]] = {}
        self._dropped: dict[int, tuple[int, int]] = {}
        self._workers: dict[str, str] = {}  # by result
        self.emptied: list[Node] = []  # lost its blocks after it said `held`, for all we know
        self.rotten: dict[str, int] = {}  # content that is on no disk any more, since when
        self.emptied_ms = 0
        self._copies_seen: dict[int, tuple[int, int, int]] = {}
        self._lost_disk: set[int] = set()
        self._answers_seen: dict[tuple[int, int, str], dict[str, str]] = {}
        self._taken: set[tuple[int, int, str]] = set()
        self._fold_ids: dict[int, int] = {}
        self._heights: dict[tuple[int, str], bytes] = {}  # at the last look at its logs
        self.accepted: dict[str, tuple[int, str, str, bool]] = {}  # request -> node, service, job
        self.calls: dict[int, tuple[int, int, str]] = {}  # call -> node, boot, service

    def need(self, law: str, holds: bool, why: str, node: int | None = None, job: str = "") -> None:
        self.looks[law] += 1
        if not holds:
            raise Broken(law, why, node, job)

    def restored_from_backup(self, node: Node) -> None:
        """What this node promised before may be gone from its disk: the owner did that."""
        self._lost_disk.add(node.index)
        for key in [k for k in self._pins if k[0] == node.index]:
            del self._pins[key]

    # -- effects --------------------------------------------------------------------------

    def sealed(self, world: World, node: Node, sealed: Any) -> None:
        for segment in sealed.commit.segments:
            if segment.log.author == node.peer and segment.log.boot in _own_boots(node):
                for seq in range(segment.first_seq, segment.last_seq + 1):
                    place = (segment.service + segment.log.author, segment.log.boot, seq)
                    known = self._signed.setdefault(place, segment.hash)
                    self.need("one hash per seq", known == segment.hash, f"seq {seq}", node.index)
                for record in segment.records():
                    if isinstance(record, Request) and record.mode == "rerun_lost":
                        self._look_at_loss(world, node, segment.service, record.salt_of)

    def _look_at_loss(self, world: World, node: Node, service: str, cid: str) -> None:
        """A node says that nobody has a result's outputs: nobody it has talked to for long does."""
        assert node.core is not None
        info = node.core.fold(service).results.get(cid)
        if info is None:
            return
        wanted = {c for c, _, _ in info.document.outputs.values()}
        self.transitions["content was said to be lost"] += 1
        before = world.now_ms - AT_HAND_MS
        list_now = node.core.membership.chains[service].now
        for other in world.nodes:
            if not list_now.roles_of(other.peer):  # was removed: nobody asks it, whatever it has
                continue
            link = world.link_of(node.index, other.peer)
            since = [other.had_since_ms.get(c, world.now_ms) for c in wanted]
            if other is not node:
                since += [other.here_since_ms, link.born_ms if link else world.now_ms]
            at_hand = max(since, default=world.now_ms) < before and other.away_since_ms is None
            self.need("lost is lost", not at_hand, f"node {other.index} has it", node.index)

    def effect(self, world: World, node: Node, effect: ef.Effect) -> None:
        self.transitions[type(effect).__name__] += 1
        if not node.honest:
            return
        match effect:
            case ef.Send():
                self._send(world, node, effect)
            case ef.Execute():
                self._execute(world, node, effect)
            case ef.Kill():
                self._kill(world, node, effect)
            case ef.Reply() if "request" in effect.value:
                self._told(world, node, effect)

    def _send(self, world: World, node: Node, effect: ef.Send) -> None:
        self.need("bounds hold", len(effect.data) <= 60 * 1024, f"{len(effect.data)} bytes")
        kind = _kind_of(effect.data)
        self.transitions[f"sent {kind}"] += 1
        if kind not in ("ack", "held", "award"):
            return
        match MESSAGES.decode(effect.data):
            case Ack() as message:
                ok = all(map(node.disk.holds, message.hashes))
                self.need("stored before acked", ok, "an ack of what is not on disk", node.index)
            case Held(ok=True) as message:
                cids = self._asked_to_hold(world, effect.peer, message.ticket)
                missing = set(cids) - {*node.content, *self.rotten, BUNDLE}
                if node in self.emptied:
                    missing = set()
                self.need("held is true", not missing, f"lacks {len(missing)}", node.index)
            case Award() as message:
                assert node.core is not None
                folded = node.core.membership.folded(message.service)
                ok = "compute" in folded.roles_of(effect.peer)
                self.need("runs are wanted", ok, "an award to a node that may not compute")

    @staticmethod
    def _asked_to_hold(world: World, peer: str, ticket: str) -> tuple[str, ...]:
        for node in world.nodes:
            if node.peer == peer and node.core is not None:
                look = node.core.contents._looks.get(ticket.removeprefix("look:"))
                if look is not None and ticket.startswith("look:"):
                    return tuple(look.cids)
                copies = node.core.replication.copies.get(ticket)
                if copies is not None:
                    return tuple(copies.cids)
        return ()

    def _told(self, world: World, node: Node, effect: ef.Reply) -> None:
        core = node.core
        assert core is not None
        request = effect.value["request"]
        for service, fold in core.folds.items():
            state = fold.requests.get(request)
            if state is not None and state.cached:
                self._look_at_hit(world, node, fold, state)
            if state is None or state.cached:
                continue
            ok = node.disk.holds(state.segment)
            self.need("stored before told", ok, "told before stored", node.index, state.job)
            count = core.commands.replicated.get(request, 0)
            if count:
                others = sum(
                    other.disk.holds(state.segment) for other in world.nodes if other is not node
                )
                ok = others >= count or bool(self._lost_disk)
                self.need("replicated is true", ok, f"{count} said, {others} are", node.index)
            self.accepted[request] = (node.index, service, state.job, bool(count))

    def _look_at_hit(self, world: World, node: Node, fold: Any, state: Any) -> None:
        """What an answer at once rests on: content here, or where it can be had."""
        document = fold.results[state.answer].document
        if document.status != "completed":
            return
        wanted = {cid for cid, _, _ in document.outputs.values()}
        before = world.now_ms - LATELY_MS
        lately = [self.rotten.get(cid, before) for cid in wanted]
        lately += [self.emptied_ms] if self.emptied else []
        ok = max(lately, default=before) > before or any(
            wanted <= other.content
            for other in world.nodes
            if other.away_since_ms is None or other.away_since_ms > before
        )
        self.need("hits are there", ok, "nobody has its outputs", node.index, state.job)

    def _execute(self, world: World, node: Node, effect: ef.Execute) -> None:
        core = node.core
        assert core is not None
        fold = core.fold(effect.service)
        roles_of = core.membership.folded(effect.service).roles_of
        task = core.worker.tasks[effect.attempt]
        wants = fold.who_wants(effect.run, task.state.job, core.ctx.unix_ms)
        ok = any("submit" in roles_of(state.author) for state in wants)
        self.need("runs are wanted", ok, "executed though nobody wants it", node.index)
        runs = [e.run for _, e in node.running.values()]
        self.need("one at a time", effect.run not in runs, "a run twice at once", node.index)
        used = sum(e.resources.cpu_millicores for _, e in node.running.values())
        used += effect.resources.cpu_millicores
        ok = used <= node.cpu_millicores
        self.need("capacity holds", ok, f"{used} of {node.cpu_millicores}", node.index)
        if effect.attempt.startswith(node.peer) and task.state.author != node.peer:
            self.transitions["a taken run executes"] += 1

    def _look_at_takes(self, node: Node, core: Any) -> None:
        """The step in which a request is taken: was it the last resort?"""
        for name, wish in core.coordinator.wishes.items():
            if not wish.taken or (node.index, node.boots, name) in self._taken:
                continue
            self._taken.add((node.index, node.boots, name))
            self.transitions["taken"] += 1
            author = core.fold(wish.service).requests[name].author
            gone = author not in core.ctx.connected
            self.need("take is the last resort", gone, "its coordinator is here", node.index)
            lost = self._unreached_ms(core, wish.service, name)
            ok = lost is not None and lost >= 10_000
            self.need("take is the last resort", ok, f"after {lost} ms", node.index)
            synced = core.synced_ms(wish.service)
            ok = synced is None or synced > core.ctx.now_ms - (lost or 0)
            self.need("take is the last resort", ok, "without sync", node.index)

    @staticmethod
    def _unreached_ms(core: Any, service: str, request: str) -> int | None:
        seen = core.bidder.seen.get((service, request))
        if seen is None or seen.lost_since_ms is None:
            return None
        return int(core.ctx.now_ms - seen.lost_since_ms)

    def _kill(self, world: World, node: Node, effect: ef.Kill) -> None:
        core = node.core
        assert core is not None
        task = core.worker.tasks.get(effect.attempt)
        if task is None:
            return
        service = task.award.service
        roles_of = core.membership.folded(service).roles_of
        if "compute" not in roles_of(node.peer):
            return
        wants = core.fold(service).who_wants(task.award.run, task.state.job, core.ctx.unix_ms)
        others = [s for s in wants if s.author not in world.gone_coordinators(node, task)]
        others = [s for s in others if "submit" in roles_of(s.author)]
        ok = not others
        self.need("cancel is narrow", ok, "killed though somebody wants it", node.index)

    # -- state after a step ---------------------------------------------------------------

    def after_step(self, world: World, node: Node) -> None:
        core = node.core
        if core is None or not node.honest:
            return
        for service, chain in core.membership.chains.items():
            if service in core.membership.taken_up:
                self._look_at_logs(node, core, service, chain)
                self._look_at_answers(node, core, service)
                self._look_at_memory(node, core, service, chain)
        self._look_at_takes(node, core)
        tasks = len(core.worker.tasks)
        self.need("bounds hold", tasks <= 4096, f"{tasks} tasks", node.index)
        self._look_at_copies(world, node, core)

    def _look_at_memory(self, node: Node, core: Any, service: str, chain: Chain) -> None:
        """After logs were dropped: what was answered is still here, and what is kept counts."""
        dropped = core.ctx.counters["logs dropped"]
        if not dropped or self._dropped.get(node.index) == (dropped, node.boots):
            return
        self._dropped[node.index] = (dropped, node.boots)
        fold = core.fold(service)
        for request, cid in fold.pins.items():
            ok = request in fold.requests or self._may_be_void(core, service, chain, node.peer)
            self.need("answers are remembered", ok, "a request is gone", node.index)
            worker = self._workers.get(cid, node.peer)
            ok = cid in fold.results or cid in fold.void or request not in fold.requests
            ok = ok or self._may_be_void(core, service, chain, worker)
            self.need("answers are remembered", ok, "a result is gone", node.index)
        for segment in core.retention.counting(service, chain):
            folded = chain.at(segment.epoch)
            ok = folded is not None and bool(folded.roles_of(segment.log.author))
            self.need("kept segments count", ok and segment.is_signed(), "no member", node.index)

    @staticmethod
    def _may_be_void(core: Any, service: str, chain: Chain, author: str) -> bool:
        """Something of the author's logs does not count here: cut, forked, a role gone."""
        heights = core.retention.told_heights(service)
        return (
            bool(chain.cuttings(author))
            or not chain.now.roles_of(author)
            or any(h.forked for h in heights if h.author == author)
            or any(g.forked for k, g in core.logs.logs_of(service).items() if k[0] == author)
        )

    def _look_at_copies(self, world: World, node: Node, core: Any) -> None:
        """What has become safe since the last look."""
        replication = core.replication
        counts = (len(replication.copies), len(replication._safe), node.boots)
        if self._copies_seen.get(node.index) == counts:
            return
        self._copies_seen[node.index] = counts
        wanted = 1 + core.ctx.config.replicas
        for key in replication._safe:
            if (node.index, key) in self._safe:
                continue
            cids, segment = self._of_copies(core, key)
            if not cids:
                continue
            self._safe[node.index, key] = cids
            holders = [n for n in world.nodes if set(cids) <= n.content or n in self.emptied]
            if not self.rotten.keys().isdisjoint(cids):
                continue
            if segment:
                holders = [n for n in holders if n.disk.holds(segment)]
            ok = len(holders) >= wanted or bool(self._lost_disk)
            self.need("safe is true", ok, f"{len(holders)} of {wanted}", node.index)

    @staticmethod
    def _of_copies(core: Any, key: str) -> tuple[tuple[str, ...], bytes]:
        """Return what the copies of a result are: the CIDs, and the hash of its segment."""
        for fold in core.folds.values():
            info = fold.results.get(key)
            if info is not None:
                cids = [cid for cid, _, _ in info.document.outputs.values()]
                cids = [c for c in (*cids, info.document.console) if c != BUNDLE]  # all have that
                return tuple(cids), info.segment
        return (), b""

    def _look_at_logs(self, node: Node, core: Any, service: str, chain: Chain) -> None:
        """New segments since the last look; all of them when the fold was made anew."""
        seen = self._seen.setdefault(node.index, {})
        stamp = hash((chain.digest, core.ctx.config.boot))
        if self._fold_ids.get(node.index) != stamp:
            self._fold_ids[node.index] = stamp
            seen.clear()
        heights = core.logs.digest(service)
        if seen and self._heights.get((node.index, service)) == heights:
            return
        self._heights[node.index, service] = heights
        for log_id, log in core.logs.logs_of(service).items():
            before = seen.get((service, log_id), 0)
            if log.accepted == before and log.fork_at is None:
                continue
            counting = log.counting()
            for index in range(min(before, len(counting)), len(counting)):
                self._look_at_segment(node, chain, counting, index)
            seen[service, log_id] = len(counting)
            if log.fork_at is not None and counting:
                ok = counting[-1].last_seq < log.fork_at
                self.need("forks are void", ok, f"forked at {log.fork_at}", node.index)

    def _look_at_segment(self, node: Node, chain: Chain, counting: list[Any], index: int) -> None:
        segment = counting[index]
        ok = bool(_roles_at(chain, segment.epoch, segment.log.author))
        self.need("members only", ok, "the author was no member", node.index)
        self.need("members only", segment.is_signed(), "a bad signature", node.index)
        before = counting[index - 1] if index else None
        ok = segment.first_seq == (before.last_seq + 1 if before else 0)
        ok = ok and segment.prev == (before.hash if before else bytes(32))
        ok = ok and (before is None or before.epoch <= segment.epoch)
        self.need("logs are chains", ok, "a gap, another chain, or a falling epoch", node.index)
        for cutting in chain.cuttings(segment.log.author):
            if segment.epoch < cutting.epoch:
                cut = cutting.cuts.get(segment.log)
                ok = cut is not None and segment.last_seq <= cut.seq
                self.need("cuts hold", ok, f"beyond the cut of {cutting.epoch}", node.index)

    def _look_at_answers(self, node: Node, core: Any, service: str) -> None:
        fold = core.folds.get(service)
        if fold is None:
            return
        seen = self._answers_seen.get((node.index, node.boots, service))
        if seen != fold.pins:
            self._answers_seen[node.index, node.boots, service] = dict(fold.pins)
        for request, cid in fold.pins.items() if seen != fold.pins else ():
            known, boots = self._pins.get((node.index, request), ("", 0))
            if known == cid:
                continue
            # An answer that a crash kept from the disk was nobody's yet.
            on_disk = node.disk.answers.get((service, request))
            ok = not known or (boots != node.boots and on_disk != known)
            self.need("answers stay", ok, "another result", node.index)
            self._pins[node.index, request] = (cid, node.boots)
            self._look_at_answer(node, fold, request, cid)
        for request in fold.pins:
            state = fold.requests.get(request)
            if state is not None:
                self.need("answers stay", state.answer == fold.pins[request], "moved", node.index)
                break

    def _look_at_answer(self, node: Node, fold: Any, request: str, cid: str) -> None:
        state, info = fold.requests.get(request), fold.results.get(cid)
        if state is None or info is None:
            return
        document = info.document
        self._workers[cid] = document.worker
        run_fits = document.run == run_id(document.job, document.salt)
        self.need("answers fit", run_fits, "a run of another job", node.index, state.job)
        outputs = {o["name"] for o in state.document["outputs"]}
        ok = document.status != "completed" or outputs <= set(document.outputs)
        self.need("answers fit", ok, "an output is missing", node.index, state.job)
        if not any("job" in e["source"] for e in state.document["inputs"]):
            ok = document.job == state.job
            self.need("answers fit", ok, "of another job", node.index, state.job)
        else:
            self.need("answers fit", document.job != state.job, "unresolved", node.index, state.job)

    # -- now and then: order is nothing -----------------------------------------------------

    def check_order(self, world: World, node: Node) -> None:
        """Build list and logs again in another order."""
        core = node.core
        if core is None or not node.honest:
            return
        for service in sorted(core.membership.taken_up):
            chain = core.membership.chains[service]
            changes = chain.changes()
            world.rng.shuffle(changes)
            again = Chain()
            left = sorted(changes, key=lambda c: c.seq > 0)
            while left:
                rest = []
                for change in left:
                    try:
                        again.add(change)
                    except DecodeError:
                        rest.append(change)
                if len(rest) == len(left):
                    break
                left = rest
            same = (again.head, again.digest) == (chain.head, chain.digest)
            self.need("order of changes is nothing", same, "another head", node.index)
            self._check_segments(world, node, service, chain)

    def _check_segments(self, world: World, node: Node, service: str, chain: Chain) -> None:
        from pairio_protocol.context import Context
        from pairio_protocol.fold import ServiceFold
        from pairio_protocol.machines.logs import Logs
        from pairio_protocol.machines.retention import Retention

        core = node.core
        assert core is not None
        held, pairs = [], []
        for log in core.logs.logs_of(service).values():
            held += [s.encode() for s in log.segments]
            if log.evidence is not None:
                pairs.append(tuple(s.encode() for s in log.evidence))
        world.rng.shuffle(held)
        context = Context(node.key, core.ctx.config)
        logs = Logs(context, Retention(context, core))  # a memory of its own, without tombstones
        for data in held:
            logs.restore(data, chain)
        logs.on_forks(node.peer, Forks(service, tuple(pairs)), chain)
        same = logs.digest(service) == core.logs.digest(service)
        self.need("order of segments is nothing", same, "other heights", node.index)
        fold = ServiceFold(service, chain.at, lambda peer: "submit" in chain.now.roles_of(peer))
        counting = [*core.retention.counting(service, chain), *logs.all_segments(service)]
        for segment in sorted(counting, key=lambda s: world.rng.random()):
            for offset, record in enumerate(segment.records()):
                if self._allowed(chain, segment, record):
                    try:
                        seq = segment.first_seq + offset
                        fold.add(segment.log, seq, segment.epoch, record, segment.hash)
                    except DecodeError:
                        continue
        mine = core.fold(service)
        for job, document in mine.definitions.items():  # those of local handles too
            fold.define(job, document)
        ok = set(fold.results) == set(mine.results)
        self.need("roles rule records", ok, "other results count", node.index)
        real = {n: s.canceled for n, s in mine.requests.items() if not s.cached}
        ok = real == {n: s.canceled for n, s in fold.requests.items()}
        self.need("order of segments is nothing", ok, "other requests or cancels", node.index)
        for job in sorted(mine.by_job):
            ok = self._canonical(fold, job) == self._canonical(mine, job)
            self.need("order of segments is nothing", ok, "another canonical", node.index, job)

    @staticmethod
    def _canonical(fold: Any, job: str) -> str | None:
        if job not in fold.definitions:
            return None
        resolved = fold.resolve(job)
        found = fold.canonical(resolved.job, fold.definitions[job]) if resolved.job else None
        return found.cid if found else None

    @staticmethod
    def _allowed(chain: Chain, segment: Segment, record: Any) -> bool:
        roles = _roles_at(chain, segment.epoch, segment.log.author)
        match record:
            case Request() | Cancel():
                return "submit" in roles
            case Start() | Result():
                return "compute" in roles
            case End():
                return bool(roles)
        return True
