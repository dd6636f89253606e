"""One seed's life: a service, members, jobs, everything that goes wrong, then healing.

`run_seed(seed, nodes)` returns the laws that looked and the counts; a broken law raises.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from laws import Broken, Laws
from world import BUNDLE, Node, World

from pairio_protocol import effects as ef
from pairio_protocol import events as ev
from pairio_protocol.core import NodeCore
from pairio_protocol.messages import MESSAGES, Bid, Push, SyncSegments
from pairio_protocol.normalise import definition_of
from pairio_protocol.records import End, Resources, Result, ResultDocument, Start
from pairio_protocol.segment import Segment

APP = {
    "name": "lab",
    "bundle": BUNDLE,
    "processors": [
        {
            "name": name,
            "executable": "main.py",
            "inputs": [{"name": i} for i in inputs],
            "outputs": [{"name": "output"}],
            "parameters": [
                {"name": "n", "type": "int", "defaultValue": 0},
                {"name": "ms", "type": "int", "defaultValue": 50},
                {"name": "mode", "type": "str", "defaultValue": "fine"},
            ],
        }
        for name, inputs in (("make", []), ("use", ["input"]))
    ],
}
#: How long things go wrong; with more than seven nodes shorter, since each costs its share.
TROUBLE_MS = 60_000
#: Rounds of repair follow each other faster than on real nodes: most of a life would be waiting.
REPAIR_INTERVAL_MS = 120_000
SHORT_RETENTION = {"retention_ms": 20_000, "retention_look_ms": 2_000, "log_age_ms": 6_000}
HEAL_MS = 600_000
#: How long an ended job that is asked for again may take: patience, and a run or two.
AGAIN_MS = 300_000


def definition(
    processor: str, n: int, ms: int, mode: str, inputs: dict[str, str] | None = None
) -> dict[str, Any]:
    return {
        "appName": "lab",
        "processorName": processor,
        "inputFiles": [{"name": k, "url": v} for k, v in (inputs or {}).items()],
        "outputFiles": [{"name": "output"}],
        "parameters": [
            {"name": "n", "value": n},
            {"name": "ms", "value": ms},
            {"name": "mode", "value": mode},
        ],
    }


class Life:
    """What happens in one world, by its seed."""

    def __init__(self, seed: int, count: int) -> None:
        self.laws = Laws()
        self.world = World(seed, self.laws)
        self.rng = self.world.rng
        self.count = count
        self.service = ""
        self.backups: dict[int, Any] = {}
        self.removed: set[str] = set()
        self.canceled: set[str] = set()
        self.jobs: list[str] = []
        self.trouble = True
        world, rng = self.world, self.rng
        self.short = seed % 4 == 3  # retention so short that logs are dropped
        world.settings = {"repair_interval_ms": REPAIR_INTERVAL_MS}
        if self.short:
            world.settings |= SHORT_RETENTION
        #: a machine that never comes back: others see to what it asked for
        self.gone: Node | None = None
        for index in range(count):
            world.add_node(compute=index > 0, cpu=rng.choice((1000, 2000, 4000)))
        self.admins = world.nodes[: rng.choice((1, 1, 2, 3))]
        if seed % 3 == 2 and count > 3 and len(self.admins) < count:
            self.gone = world.nodes[-1]
        world.gone_coordinators = self._coordinators_of_kill

    # -- founding -------------------------------------------------------------------------

    def found(self) -> None:
        world, rng = self.world, self.rng
        first = world.nodes[0]
        trust = tuple(node.peer for node in self.admins)
        for node in world.nodes:
            world.start(node, trust)
            for other in rng.sample(world.nodes, min(len(world.nodes), 3)):
                if other is not node:
                    world.know(node, other)
            world.know(node, first)
        world.watch_links()
        world.run_for(3_000)
        self.service = self.call(first, lambda c: ev.CreateService(c, "lab", "00"))["service"]
        if self.count > 7:  # in one change: each costs a greeting of everybody by everybody
            self._add_all(first)
        for node in world.nodes[1:] if self.count <= 7 else ():
            self.call(first, partial(self._add, node))
        if len(self.admins) > 1:
            admins = [a.peer for a in self.admins]
            self._grow_admins(first, admins)
        self.call(first, lambda c: ev.InstallApp(c, self.service, APP))
        world.run_for(6_000)

    def _add_all(self, first: Node) -> None:
        ops = [
            {"op": "add", "member": f"m{n.index}", "key": n.peer, "roles": ["compute", "submit"]}
            for n in self.world.nodes[1:]
        ]
        self._change(first, ops)
        self.world.run_for(500)

    def _change(self, first: Node, ops: list[dict[str, Any]]) -> None:
        core = first.core
        assert core is not None
        core.membership.change(self.service, ops)
        core.intake.on_service_changed(self.service)
        self.world.give(first, ev.TimePassed())

    def _grow_admins(self, first: Node, admins: list[str]) -> None:
        """Make the others admins too, so that several may sign at once."""
        self._change(first, [{"op": "admins", "admins": admins, "threshold": 1}])

    def _add(self, node: Node, call: int) -> ev.Grant:
        roles = ("compute", "submit")
        return ev.Grant(call, self.service, node.peer, roles, f"m{node.index}")

    def call(self, node: Node, make: Callable[[int], ev.Event]) -> dict[str, Any]:
        number = self.world.call(node, make)
        self.world.run_for(100)
        answer = self.world.answers[number]
        assert isinstance(answer, ef.Reply), answer
        return answer.value

    # -- trouble --------------------------------------------------------------------------

    def make_trouble(self) -> None:
        world, rng = self.world, self.rng
        end_ms = world.now_ms + (TROUBLE_MS if self.count <= 7 else TROUBLE_MS * 5 // self.count)
        world.net.gossip_loss = rng.choice((0.0, 0.1, 0.5, 0.9, 1.0))
        world.net.duplication = rng.choice((0.0, 0.3))
        world.net.delay_ms = (1, rng.choice((5, 50, 400)))
        world.net.gossip_delay_ms = (1, rng.choice((50, 3000)))
        kinds = rng.sample(FAULTS, k=rng.randint(3, len(FAULTS)))
        while world.now_ms < end_ms:
            for _ in range(rng.randint(1, 4)):
                self.submit()
            if rng.random() < 0.8:
                self.do(rng.choice(kinds))
            if rng.random() < 0.2:
                self.laws.check_order(world, rng.choice(world.nodes))
            world.run_for(rng.randint(200, 4_000))

    def do(self, kind: str) -> None:
        node = self.rng.choice(self.world.nodes)
        before = self.world.counts[f"fault: {kind}"]
        getattr(self, f"fault_{kind}")(node)
        if self.world.counts[f"fault: {kind}"] > before:
            self.world.note(node.index, kind)

    def hit(self, kind: str) -> None:
        self.world.counts[f"fault: {kind}"] += 1

    def submit(self) -> None:
        rng = self.rng
        node = rng.choice(self.world.nodes)
        if not node.up or node.asleep or not node.honest:
            return
        mode = rng.choice(("fine",) * 7 + ("noisy", "break"))
        ms = rng.choice((10, 50, 50, 500, 3_000, 15_000))
        inputs, processor = None, "make"
        if self.jobs and rng.random() < 0.3:
            inputs, processor = {"input": f"job:{rng.choice(self.jobs[-6:])}/output"}, "use"
        wish = definition(processor, rng.randint(0, 12), ms, mode, inputs)
        how = rng.choice(("use",) * 8 + ("skip_cache", "rerun_failing"))
        resources = Resources(rng.choice((500, 1000)), 512, 0, 60_000)
        number = self.world.call(
            node,
            lambda c: ev.Submit(c, self.service, wish, resources, how),
        )
        self.laws.calls[number] = (node.index, node.boots, self.service)
        core = node.core
        if core is not None:
            fold = core.folds.get(self.service)
            if fold is not None:
                self.jobs.extend(j for j in list(fold.definitions)[-1:] if j not in self.jobs)

    def _coordinators_of_kill(self, node: Node, task: Any) -> set[str]:
        """Whoever is no longer among a task's coordinators has withdrawn it himself."""
        return {other.peer for other in self.world.nodes if other.peer not in task.coordinators}

    def fault_crash(self, node: Node) -> None:
        if node.up and not node.asleep:
            self.hit("crash")
            self.world.crash(node)
            wait = self.rng.choice((50, 2_000, 15_000, 40_000))
            self.world.after(wait, lambda: self._restart(node))

    def _restart(self, node: Node) -> None:
        if not node.up:
            self.world.start(node)

    def fault_backup(self, node: Node) -> None:
        if node.index not in self.backups:
            self.backups[node.index] = node.disk.copy()
            return
        if node.up and not node.asleep:
            self.hit("backup")
            self.world.crash(node)
            node.disk = self.backups.pop(node.index)
            self.laws.restored_from_backup(node)
            self.world.after(1_000, lambda: self._restart(node))

    def fault_emptied(self, node: Node) -> None:
        """A node loses its block store; once in a seed: what is safe survives any *one* node."""
        if not self.laws.emptied and node.index and not node.asleep:
            self.hit("emptied")
            self.laws.emptied.append(node)
            self.laws.emptied_ms = self.world.now_ms
            self.world.lose(node, tuple(node.content))

    def fault_rotten(self, node: Node) -> None:
        """What a job gave is gone from every disk: the copies of it did not help."""
        found = self._given(node)
        if found:
            self.hit("rotten")
            self._rot(self.rng.choice(found))

    def fault_collected(self, node: Node) -> None:
        """A node drops what enough others have, and says so to its core."""
        if node.core is None or node.asleep:
            return
        for cid in self._given(node):
            cids = self._outputs_of(node, cid)
            segment = _core(node).fold(self.service).results[cid].segment
            holders = [n for n in self.world.nodes if set(cids) <= n.content]
            holders = [n for n in holders if n.disk.holds(segment)]
            if node in holders and len(holders) > 2:
                self.hit("collected")
                self.world.lose(node, cids)
                hit = [r for r in self._given(node) if {*self._outputs_of(node, r)} & {*cids}]
                self.world.give(node, ev.ContentDropped(self.service, tuple(hit)))
                return

    def _given(self, node: Node) -> list[str]:
        """Return the results with outputs that a node knows."""
        fold = node.core.folds.get(self.service) if node.core is not None else None
        return sorted(c for c, i in fold.results.items() if i.document.outputs) if fold else []

    def _outputs_of(self, node: Node, result: str) -> tuple[str, ...]:
        outputs = _core(node).fold(self.service).results[result].document.outputs
        return tuple(cid for cid, _, _ in outputs.values())

    def _rot(self, result: str) -> None:
        knowing = next(n for n in self.world.nodes if result in self._given(n))
        cids = self._outputs_of(knowing, result)
        self.laws.rotten.update(dict.fromkeys(cids, self.world.now_ms))
        for node in self.world.nodes:
            self.world.lose(node, cids)

    def fault_sleep(self, node: Node) -> None:
        if node.up and not node.asleep:
            self.hit("sleep")
            self.world.doze(node, self.rng.choice((500, 5_000, 20_000, 45_000)))

    def fault_partition(self, node: Node) -> None:
        self.hit("partition")
        one_way = self.rng.random() < 0.4
        if one_way:
            self.hit("asymmetric partition")
        side = set(self.rng.sample(range(self.count), self.rng.randint(1, self.count - 1)))
        pairs = {
            (a, b)
            for a in range(len(self.world.nodes))
            for b in range(len(self.world.nodes))
            if (a in side and b not in side) or (not one_way and b in side and a not in side)
        }
        self.world.net.blocked |= pairs
        wait = self.rng.choice((1_000, 9_000, 30_000))
        self.world.after(wait, lambda: self.world.net.blocked.difference_update(pairs))

    def fault_slow(self, node: Node) -> None:
        self.hit("slow")
        node.slow = self.rng.choice((1.0, 5.0, 30.0))

    def fault_clock(self, node: Node) -> None:
        self.hit("clock")
        jump_ms = self.rng.choice((-3_600_000, -5_000, 5_000, 3_600_000))
        if self.short:  # a clock is not wrong by more than a fraction of retention
            jump_ms = jump_ms % 4_000 - 2_000
        node.wall_offset_ms += jump_ms

    def fault_disk(self, node: Node) -> None:
        self.hit("disk")
        node.disk_fails = True

        def mend() -> None:
            node.disk_fails = False

        self.world.after(self.rng.choice((500, 8_000)), mend)

    def fault_cancel(self, node: Node) -> None:
        core = node.core
        if core is None or node.asleep:
            return
        fold = core.folds.get(self.service)
        mine = [n for n, s in fold.requests.items() if s.author == node.peer] if fold else []
        if mine and "submit" in core.membership.folded(self.service).roles_of(node.peer):
            self.hit("cancel")
            names = tuple(self.rng.sample(mine, 1))
            self.canceled.update(names)
            self.world.call(node, lambda c: ev.CancelRequests(c, self.service, names))

    def fault_remove(self, node: Node) -> None:
        admin = self.rng.choice(self.admins)
        if node in self.admins or not admin.up or admin.asleep or len(self.removed) > 2:
            return
        core = admin.core
        assert core is not None
        folded = core.membership.folded(self.service)
        name = folded.member_of(node.peer)
        if name is None or admin.peer not in folded.admins:
            return
        self.hit("remove")
        self.removed.add(node.peer)
        self.world.call(admin, lambda c: ev.Revoke(c, self.service, name))
        if self.rng.random() < 0.5:
            self.world.after(15_000, lambda: self._add_again(node))

    def _add_again(self, node: Node) -> None:
        for admin in self.admins:
            if admin.up and not admin.asleep:
                self.hit("added again")
                self.world.call(admin, partial(self._add, node))
                return

    def fault_roles(self, node: Node) -> None:
        """Two admins change the list at once: the chain forks."""
        ready = [a for a in self.admins if a.up and not a.asleep]
        for admin in ready:
            self.hit("roles")
            role = self.rng.choice((("compute", "submit"), ("submit",), ("submit", "read")))
            name = f"m{max(1, node.index)}"
            self.world.call(
                admin, partial(_other_roles, service=self.service, member=name, roles=role)
            )
        if len(ready) > 1:
            self.hit("concurrent admins")
            member = self.world.nodes[max(1, node.index)]
            self.world.after(10_000, lambda: self._use_losing_grant(member))

    def fault_twin(self, node: Node) -> None:
        """A second machine with the same key and a copy of the disk."""
        if len(self.world.nodes) >= self.count + 1 or not node.up or node.index == 0:
            return
        self.hit("twin")
        twin = self.world.add_node(compute=True, cpu=1000, twin_of=node)
        twin.disk = node.disk.copy()
        twin.known = {p: i for p, i in node.known.items() if i != twin.index}
        self.world.start(twin)

    # -- liars ----------------------------------------------------------------------------

    def fault_liar(self, node: Node) -> None:
        """A member sends what honest nodes never send, in his own name."""
        core = node.core
        if core is None or node.asleep or node.index == 0:
            return
        targets = [
            self.world.nodes[i]
            for link in self.world.links.values()
            for i in link.ends
            if node.index in link.ends and i != node.index
        ]
        chain = core.membership.active(self.service)
        if not targets or chain is None or not chain.now.roles_of(node.peer):
            return
        self.hit("liar")
        data = self._lie(node, core, chain.epoch)
        for target in self.rng.sample(targets, self.rng.randint(1, len(targets))):
            if self.rng.random() < 0.5:
                data = data[::-1]
            for frame in data:
                self.world.give(target, ev.FrameReceived(node.peer, frame))

    def _lie(self, node: Node, core: Any, epoch: int) -> list[bytes]:
        kind = self.rng.choice(("signature", "replay", "fork", "bid", "result", "junk", "old"))
        self.hit(f"lie {kind}")
        boot = self.rng.randbytes(16)
        fold = core.fold(self.service)
        if kind == "junk":
            return [self.rng.randbytes(self.rng.randint(0, 200))]
        if kind == "bid":
            names = tuple(list(fold.requests)[:10])
            return [MESSAGES.encode(Bid(self.service, names))]
        if kind == "replay":
            segments = [s.encode() for s in core.logs.all_segments(self.service)][:20]
            self.rng.shuffle(segments)
            return [MESSAGES.encode(SyncSegments(self.service, (s,), False)) for s in segments]
        records = self._false_records(node, fold, epoch)
        if kind == "old":
            records, epoch = [r for r in records if isinstance(r, Start)], max(0, epoch - 1)
        segment = self._sealed(node, boot, 0, epoch, bytes(32), records)
        if kind == "signature":
            data = bytearray(segment.encode())
            data[-1] ^= 1
            return [MESSAGES.encode(Push(bytes(data), True))]
        if kind == "fork":
            one, other = (
                self._sealed(node, boot, segment.last_seq + 1, epoch, segment.hash, records[:n])
                for n in (1, len(records))
            )
            if one.hash == other.hash:
                one = self._sealed(node, boot, 0, epoch, bytes(32), [*records, records[0]])
            return [MESSAGES.encode(Push(s.encode(), False)) for s in (segment, one, other)]
        return [MESSAGES.encode(Push(segment.encode(), False))]

    def _use_losing_grant(self, node: Node) -> None:
        """A member whom a losing branch let compute, and the winning one did not, signs results
        under that epoch."""
        core = node.core
        if core is None or node.asleep or core.membership.active(self.service) is None:
            return
        chain = core.membership.chains[self.service]
        winners = {link.cid for link in chain._links}
        for cid, link in sorted(chain._known.items()):
            if cid in winners or link.seq >= len(chain._links) or not self.trouble:
                continue
            granted = "compute" in link.folded.roles_of(node.peer)
            if granted and "compute" not in chain._folds[link.seq].roles_of(node.peer):
                self.hit("lie grant")
                records = self._false_records(node, core.fold(self.service), link.seq)
                boot = self.rng.randbytes(16)
                segment = self._sealed(node, boot, 0, link.seq, bytes(32), records)
                frame = MESSAGES.encode(Push(segment.encode(), False))
                for target in self.world.nodes:
                    if target is not node and self.world.link_of(node.index, target.peer):
                        self.world.give(target, ev.FrameReceived(node.peer, frame))
                return

    def _sealed(
        self, node: Node, boot: bytes, seq: int, epoch: int, prev: bytes, records: list[Any]
    ) -> Segment:
        return Segment.seal(node.key, self.service, boot, seq, epoch, prev, records)

    def _false_records(self, node: Node, fold: Any, epoch: int) -> list[Any]:
        """Starts of runs with junk upstream, ends of others' attempts, results nobody wanted."""
        records: list[Any] = [Start("00" * 32, "11" * 32, f"{node.peer}/0/1", ("bafyjunk",), 0)]
        for name, state in list(fold.requests.items())[-3:]:
            run = fold.run_of(state, fold.resolve(state.job))
            if run is None or state.cached:
                continue
            records.append(Start(name, run, f"{node.peer}/0/2", ("bafyjunk",), 0))
            for attempt, _ in fold.live_attempts(run):
                records.append(End(name, run, attempt, "infra", "a lie", 0))
            records.append(Result(self._false_result(node, state, fold)))
        return records

    def _false_result(self, node: Node, state: Any, fold: Any) -> bytes:
        """A completed result without the declared output."""
        from pairio_protocol.ids import run_id

        job = fold.resolve(state.job).job or state.job
        return ResultDocument(
            service=self.service,
            job=job,
            run=run_id(job, ""),
            salt="",
            attempt="x",
            status="completed",
            error="",
            outputs={},
            console=BUNDLE,
            usage={},
            code="",
            isolation="medium",
            upstream=(),
            worker=node.peer,
            started_unix_ms=0,
            finished_unix_ms=0,
        ).sign(node.key)

    # -- healing --------------------------------------------------------------------------

    def heal(self) -> None:
        world = self.world
        self.trouble = False
        world.net.blocked.clear()
        world.net.delay_ms = (1, 20)
        world.note(-1, "everything heals")
        for node in world.nodes:
            node.slow, node.disk_fails = 1.0, False
            if node.asleep:
                world._wake(node, 5_000)
            if node is self.gone:
                self.hit("gone for good")
                if node.up:
                    world.crash(node)
            elif not node.up and node.index < self.count:
                world.start(node)
            if node.index >= self.count and node.up:
                world.crash(node)  # the twin's owner notices, and ends it
        deadline = world.now_ms + HEAL_MS
        while world.now_ms < deadline:
            world.run_for(5_000)
            if self._unfinished() is None:
                break
        self._demand()

    def _members(self) -> list[Node]:
        found = []
        for node in self.world.nodes[: self.count]:
            if node.core is None or self.service not in node.core.membership.taken_up:
                continue
            if all(
                admin.core is not None
                and admin.core.membership.folded(self.service).roles_of(node.peer)
                for admin in self.admins
            ):
                found.append(node)
        return found

    def _unfinished(self) -> tuple[str, str, str] | None:
        """Return (law, why, job) of what a healed world still owes."""
        members = self._members()
        chains = {_core(n).membership.chains[self.service].digest for n in members}
        if len(chains) > 1:
            return ("converged", f"{len(chains)} lists of changes", "")
        digests = {_core(n).logs.digest(self.service) for n in members}
        if len(digests) > 1 and not self.short:
            return ("converged", f"{len(digests)} sets of logs among {len(members)} nodes", "")
        segments = [_core(n).logs.all_segments(self.service) for n in members]
        held = {frozenset(s.hash for s in of_one) for of_one in segments}
        if len(held) > 1 and not self.short:
            return ("converged", f"{len(held)} sets of segments under one digest", "")
        shown = {self._shown(n) for n in members}
        if len(shown) > 1 and not self.short:
            return ("converged", f"{len(shown)} states are shown", "")
        if self.short and (job := self._contradiction(members)):
            return ("converged", "a job is over here and not there", job)
        for request in sorted(self.laws.accepted):
            why = self._why_open(request, members)
            if why is not None:
                return ("every job ends", why, self.laws.accepted[request][2])
        return None

    def _contradiction(self, members: list[Node]) -> str | None:
        """Return a job that one member holds for ended and another, who knows it, does not. Logs
        are dropped at different times, so members may know different jobs, and different results
        of an input: then the job is another one to them."""
        ended: dict[tuple[str, str | None], bool] = {}
        for node in members:
            fold = _core(node).fold(self.service)
            for job in sorted(fold.definitions):
                if any(not fold.requests[r].cached for r in fold.by_job.get(job, ())):
                    done = self.laws._canonical(fold, job) is not None
                    if ended.setdefault((job, fold.resolve(job).job), done) != done:
                        return job
        return None

    def _shown(self, node: Node) -> int:
        assert node.core is not None
        fold = node.core.fold(self.service)
        rows = []
        for name, state in sorted(fold.requests.items()):
            if not state.cached:
                rows.append((name, state.canceled))
        for job in sorted(fold.definitions):
            if any(not fold.requests[r].cached for r in fold.by_job.get(job, ())):
                done = self.laws._canonical(fold, job) is not None
                rows.append((job, done))
        return hash(tuple(rows))

    def _why_open(self, request: str, members: list[Node]) -> str | None:
        index, service, _, replicated = self.laws.accepted[request]
        owner = self.world.nodes[index]
        if owner is self.gone:
            return self._why_left(request, service, members) if replicated else None
        if owner not in members or (owner.index in self.laws._lost_disk and not replicated):
            return None
        for node in members:
            core = _core(node)
            fold = core.fold(service)
            state = fold.requests.get(request)
            if state is None and self.short and (node is not owner or request in self.canceled):
                continue  # over, and dropped
            if state is None:
                cut = core.membership.chains[service].cuttings(owner.peer)
                if cut or owner.index in self.laws._lost_disk:
                    continue  # what was said under a role that is gone may not count
                return f"request {request[:8]} of node {index} is unknown to node {node.index}"
            if not fold.is_wanted(state, core.ctx.unix_ms) or node is not owner:
                continue
            if not self._is_hopeless(fold, state, core, members):
                return f"request {request[:8]} of node {index} is still open"
        return None

    def _why_left(self, request: str, service: str, members: list[Node]) -> str | None:
        """A replicated request of a machine that is gone must end too."""
        for node in members:
            core = _core(node)
            fold = core.fold(service)
            state = fold.requests.get(request)
            if state is None or not fold.is_wanted(state, core.ctx.unix_ms):
                return None  # over; or it counts no more, was on a disk that was set back, dropped
            if not self._is_hopeless(fold, state, core, members):
                return f"request {request[:8]} of a node that is gone is still open"
        return None

    def _is_hopeless(self, fold: Any, state: Any, core: Any, members: list[Node]) -> bool:
        """Nothing of what can still happen ends this request."""
        from pairio_protocol.limits import ATTEMPTS_MAX

        roles_of = core.membership.folded(self.service).roles_of
        resolution = fold.resolve(state.job)
        run = fold.run_of(state, resolution)
        exhausted = run is not None and fold.lost_attempts(state, run) >= ATTEMPTS_MAX
        vain = resolution.blocked_by is not None or self._waits_in_vain(fold, resolution, roles_of)
        nobody = not any("compute" in roles_of(m.peer) and m.compute for m in members)
        return exhausted or vain or nobody

    def _waits_in_vain(self, fold: Any, resolution: Any, roles_of: Any) -> bool:
        """An input's job may be one that nobody wants any more, or whose submitter is gone."""
        waited_for = resolution.waits_for or resolution.lacks
        for job in waited_for:
            states = [fold.requests[r] for r in fold.by_job.get(job, ())]
            if not any(fold.is_wanted(s, 0) and "submit" in roles_of(s.author) for s in states):
                return True
            inner = fold.resolve(job) if job in fold.definitions else None
            if inner is not None and (
                inner.blocked_by or self._waits_in_vain(fold, inner, roles_of)
            ):
                return True
            run = inner.job if inner is not None else None
            if run is None and inner is not None and not inner.waits_for:
                return True
        return bool(waited_for) and all(self._is_exhausted(fold, job) for job in waited_for)

    @staticmethod
    def _is_exhausted(fold: Any, job: str) -> bool:
        from pairio_protocol.limits import ATTEMPTS_MAX

        for name in fold.by_job.get(job, ()):
            state = fold.requests[name]
            if not fold.is_wanted(state, 0):
                continue
            run = fold.run_of(state, fold.resolve(state.job))
            if run is not None and fold.lost_attempts(state, run) < ATTEMPTS_MAX:
                return False
        return True

    def _demand(self) -> None:
        laws, world = self.laws, self.world
        owed = self._unfinished()
        law, why, job = owed if owed else ("every job ends", "", "")
        laws.need(law, owed is None, why, job=job)
        laws.looks["converged"] += 1
        for node in self._members():
            laws.check_order(world, node)
        enough = 1 if self.laws.emptied else 2
        for cids in laws._safe.values():
            if not laws.rotten.keys().isdisjoint(cids):
                continue
            holders = self._holders(cids)
            laws.need("safe results are there", holders >= enough, f"{holders} holders")
        if self.laws.emptied and len(self._members()) > 2:
            self._demand_copies()
        self._ask_again()
        for call, (index, boot, _) in sorted(laws.calls.items()):
            node = world.nodes[index]
            if node.boots == boot and node.up:
                laws.need("calls are answered", call in world.answers, f"call {call}", index)
        if not any(_core(n).worker.tasks for n in self._members()):
            before = world.counts["frames"]
            world.run_for(10_000)
            said = (world.counts["frames"] - before) / max(1, len(world.nodes)) / 10
            laws.need("calm", said < 40, f"{said:.0f} frames a second and node")

    def _ask_again(self) -> None:
        """Ask once more for a job that has ended, half the time after its content went."""
        world, members = self.world, self._members()
        able = [m for m in members if "submit" in self._roles(m)]
        if not able or not any(m.compute and "compute" in self._roles(m) for m in members):
            return
        node = self.rng.choice(able)
        fold = _core(node).fold(self.service)
        ended = [(s, fold.answer_for(s, fold.resolve(s.job))) for s in fold.requests.values()]
        done = [(s, r.cid) for s, r in ended if r is not None and r.document.outputs]
        if not done:
            return
        state, result = self.rng.choice(done)
        if self.rng.random() < 0.5:
            self.hit("rotten")
            self._rot(result)
        wish = definition_of(state.document)
        resources = state.record.resources
        call = world.call(node, lambda c: ev.Submit(c, self.service, wish, resources))
        until_ms = world.now_ms + AGAIN_MS
        answer: Any = None
        while world.now_ms < until_ms and not self._is_there(answer):
            world.run_for(500)
            reply = world.answers.get(call)
            name = reply.value["request"] if isinstance(reply, ef.Reply) else ""
            fold = _core(node).fold(self.service)
            again = fold.requests.get(name)
            answer = fold.result_of(again) if again is not None else None
        failed = answer is not None and answer.document.status == "failed"
        ok = failed or self._is_there(answer)
        self.laws.need("asked again", ok, "nothing came of it", node.index, state.job)

    def _roles(self, node: Node) -> tuple[str, ...]:
        return _core(node).membership.folded(self.service).roles_of(node.peer)

    def _is_there(self, answer: Any) -> bool:
        if answer is None:
            return False
        cids = {cid for cid, _, _ in answer.document.outputs.values()}
        return any(node.up and cids <= node.content for node in self.world.nodes)

    def _holders(self, cids: tuple[str, ...]) -> int:
        return sum(set(cids) <= node.content for node in self.world.nodes)

    def _demand_copies(self) -> None:
        """A node lost its blocks: within two rounds of repair every result has its copies again."""
        world = self.world
        # Where logs are dropped, not every member knows every result: then its worker must be here.
        members = {node.peer: _core(node).fold(self.service) for node in self._members()}
        known = {
            cid
            for fold in members.values()
            for cid, info in fold.results.items()
            if all(cid in other.results for other in members.values())
            or cid in getattr(members.get(info.document.worker), "results", ())
        }
        owed = [
            cids
            for (_, key), cids in sorted(self.laws._safe.items())
            if key in known
            and self.laws.rotten.keys().isdisjoint(cids)
            and any(set(cids) <= node.content for node in self._members())
        ]
        deadline = world.now_ms + 2 * REPAIR_INTERVAL_MS + 60_000
        while world.now_ms < deadline and any(self._holders(c) < 2 for c in owed):
            world.run_for(30_000)
        for cids in owed:
            held = self._holders(cids)
            self.laws.need("copies are made again", held >= 2, f"{held} holders")


FAULTS = (
    "emptied",
    "rotten",
    "collected",
    "crash",
    "backup",
    "sleep",
    "partition",
    "slow",
    "clock",
    "disk",
    "cancel",
    "remove",
    "roles",
    "twin",
    "liar",
    "liar",
    "crash",
    "sleep",
)


def _other_roles(
    call: int, service: str, member: str, roles: tuple[str, ...]
) -> ev.Grant | ev.Revoke:
    """Take `compute` from a member who is to submit only, or give him roles."""
    if roles == ("submit",):
        return ev.Revoke(call, service, member, ("compute",))
    return ev.Grant(call, service, member, roles)


def _core(node: Node) -> NodeCore:
    assert node.core is not None
    return node.core


def run_seed(seed: int, count: int) -> Life:
    """Live through one seed; raises `Broken` with the seed and the story of what went wrong."""
    life = Life(seed, count)
    try:
        life.found()
        life.make_trouble()
        life.heal()
    except Broken as broken:
        broken.add_note(story(life, seed, broken.job))
        raise
    except Exception as error:
        error.add_note(story(life, seed, ""))
        raise
    return life


def story(life: Life, seed: int, job: str) -> str:
    """Return what happened, the last things last."""
    lines = [f"seed {seed}: make simulate SEED={seed}"]
    last = life.world.story[-40:]
    lines += [f"  {at - 1_000_000:>8} ms  node {n}: {text}" for at, n, text in last]
    return "\n".join([*lines, f"  job {job}" if job else ""])


__all__ = ["FAULTS", "Life", "definition", "run_seed"]
