"""Content that is gone: who holds what, hits that are none, inputs that are computed again."""

from dataclasses import replace
from typing import Any

from pairio_node.lost import lost_words
from pairio_protocol import effects as ef
from pairio_protocol import events as ev
from pairio_protocol.core import NodeCore
from pairio_protocol.fold import RequestState
from pairio_protocol.limits import HOLD_RETRY_MS, HOLDS_SERVED_MAX, LOST_PATIENCE_MS
from pairio_protocol.messages import MESSAGES, Held, Hold, Where
from tests.protocol.test_core_sim import RESOURCES, World, definition


def _core(world: World, index: int) -> NodeCore:
    return world.cores[world.peers[index]]


def _service(core: NodeCore) -> str:
    return core.membership.find("lab") or ""


def test_a_node_that_dropped_content_does_not_count_as_its_holder() -> None:
    world = World(2).with_service()
    world.call(world.peers[0], ev.Submit(10, "lab", definition("write"), RESOURCES))
    core = _core(world, 0)
    (result,) = core.fold(_service(core)).results
    assert core.replication.is_safe(result)
    world.do(world.peers[0], ev.ContentDropped(_service(core), (result, "unknown")))
    assert not core.replication.is_safe(result)


def test_copies_that_are_being_made_are_not_counted_here_any_more_once_they_are_dropped() -> None:
    world = World(1).with_service()
    world.call(world.peers[0], ev.Submit(10, "lab", definition("write"), RESOURCES))
    core = _core(world, 0)
    (copies,) = core.replication.copies.values()
    assert copies.holders == {core.ctx.me}
    world.do(world.peers[0], ev.ContentDropped(_service(core), (copies.key,)))
    assert not copies.holders and not copies.have_blocks


def test_holds_whose_document_never_comes_do_not_keep_others_out() -> None:
    world = World(4).with_service()
    core, (node, *members) = _core(world, 0), world.peers

    def hold(peer: str, name: str, segment: bytes) -> None:
        message = Hold(_service(core), name, (), (), segment)
        world.do(node, ev.FrameReceived(peer, MESSAGES.encode(message)))
        world.settle()

    for number in range(HOLDS_SERVED_MAX // 2):
        for peer in members[:2]:
            hold(peer, f"made up {number}", number.to_bytes(32, "big"))
    hold(members[2], "honest", b"")
    assert core.ctx.counters["holds beyond what is served at once"] == 1
    world.pass_time(HOLD_RETRY_MS + 1000)
    hold(members[2], "honest", b"")
    assert core.ctx.counters["holds beyond what is served at once"] == 1
    assert core.ctx.counters["holds whose document did not come"] == HOLDS_SERVED_MAX
    assert not core.replication._serving and not core.replication._unstored


class Lab(World):
    """Cores whose disks are looked at: `disks` holds what each has. A run needs its inputs."""

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.disks: dict[str, set[str]] = {peer: set() for peer in self.peers}
        self.fetches = True
        self.no_room = False
        self.liars: set[str] = set()

    def _carry_out(self, peer: str, effects: list[ef.Effect]) -> None:
        for effect in effects:
            match effect:
                case ef.FetchBlocks():
                    ok = self.fetches and not self.no_room and self._fetch(peer, effect.cids)
                    fetched = ev.Fetched(effect.ticket, ok, no_room=self.no_room)
                    self.queue.append((peer, fetched))
                case ef.Locate():
                    here = set(effect.cids) <= self.disks[peer] or peer in self.liars
                    self.queue.append((peer, ev.Located(effect.ticket, here)))
                case ef.Execute():
                    self.executed.append((peer, effect.document["processor"]))
                    self.queue.append((peer, self._run(peer, effect)))
                case _:
                    super()._carry_out(peer, [effect])

    def _fetch(self, peer: str, cids: tuple[str, ...]) -> bool:
        reached = [self.disks[p] for p in (peer, *self.cores[peer].ctx.connected)]
        ok = all(any(cid in disk for disk in reached) for cid in cids)
        self.disks[peer] |= set(cids) if ok else set()
        return ok

    def _run(self, peer: str, effect: ef.Execute) -> ev.Executed:
        inputs = tuple(e["source"]["cid"] for e in effect.document["inputs"])
        if not self._fetch(peer, inputs):
            why = "an input is not to be had"
            return ev.Executed(effect.attempt, "infra", "", why, {}, "", {}, "")
        done = self._executed(effect)
        self.disks[peer] |= {done.console, *(cid for cid, _, _ in done.outputs.values())}
        return done

    def lose_everything(self) -> None:
        for disk in self.disks.values():
            disk.clear()

    def leave(self, peer: str) -> None:
        """A node is gone: nobody is connected to it any more."""
        for other in self.peers:
            if other != peer:
                self.do(other, ev.PeerDown(peer))
                self.do(peer, ev.PeerDown(other))
        self.settle()

    def wait(self, ms: int) -> None:
        for _ in range(ms // 1000):
            self.pass_time(1000)

    def state(self, index: int, request: str) -> RequestState:
        core = _core(self, index)
        return core.fold(_service(core)).requests[request]


class FailingLab(Lab):
    """Every run fails."""

    def _run(self, peer: str, effect: ef.Execute) -> ev.Executed:
        return replace(super()._run(peer, effect), status="failed", error="no", outputs={})


def _submit(world: World, call: int, index: int = 0, **fields: Any) -> str:
    wish = fields.pop("wish", definition("write"))
    event = ev.Submit(call, "lab", wish, RESOURCES, **fields)
    return world.call(world.peers[index], event)["request"]


def test_what_was_collected_here_before_it_was_copied_is_computed_again_only_when_wanted() -> None:
    lab = Lab(1)
    lab.with_service()
    _submit(lab, 10)
    core = _core(lab, 0)
    (result,) = core.replication.copies
    lab.lose_everything()
    lab.do(lab.peers[0], ev.ContentDropped(_service(core), (result,)))
    lab.wait(30_000)
    assert len(lab.executed) == 1 and not core.replication.copies
    _submit(lab, 11)
    lab.wait(3000)
    assert len(lab.executed) == 2


def test_a_failed_result_cannot_be_said_to_be_lost() -> None:
    world = FailingLab(2)
    world.with_service()
    _submit(world, 10)
    core = _core(world, 0)
    (cid,) = core.fold(_service(core)).results
    (state,) = core.fold(_service(core)).requests.values()
    said = replace(state.record, mode="rerun_lost", salt_of=cid, tags=("again",))
    _core(world, 1).append(_service(core), said)
    world.wait(3000)
    fold = core.fold(_service(core))
    assert len(fold.requests) == 2 and not fold.is_lost(cid)
    again = world.state(0, _submit(world, 11))
    assert (again.answer, len(world.executed)) == (cid, 1)


def test_a_hit_whose_outputs_are_here_is_answered_at_once() -> None:
    lab = Lab(2)
    lab.with_service()
    _submit(lab, 10)
    again = _submit(lab, 11)
    assert lab.state(0, again).cached and len(lab.executed) == 1


def test_a_hit_that_only_another_member_holds_is_answered() -> None:
    lab = Lab(3)
    lab.with_service()
    _submit(lab, 10)
    lab.disks[lab.peers[0]].clear()
    assert lab.state(0, _submit(lab, 11)).cached


def test_a_hit_that_every_member_denies_is_computed_again_at_once() -> None:
    lab = Lab(3)
    lab.with_service()
    _submit(lab, 10)
    first = lab.state(0, _submit(lab, 11)).answer
    lab.lose_everything()
    again = lab.state(0, _submit(lab, 12))
    lab.wait(3000)
    fold = _core(lab, 0).fold(_service(_core(lab, 0)))
    assert not again.cached and again.answer not in (None, first)
    assert [processor for _, processor in lab.executed] == ["write", "write"]
    assert fold.is_lost(first or "") and not fold.is_lost(again.answer or "")
    (by,) = fold.why_lost(first or "")
    assert (by.record.mode, by.record.salt_of, by.answer) == ("rerun_lost", first, again.answer)


def test_all_members_come_to_the_same_and_the_next_hit_is_the_new_result() -> None:
    lab = Lab(3)
    lab.with_service()
    _submit(lab, 10)
    lab.lose_everything()
    again = lab.state(0, _submit(lab, 12))
    lab.wait(12_000)
    for core in lab.cores.values():
        fold = core.fold(_service(core))
        found = fold.canonical(again.job, again.document)
        assert found is not None and found.cid == again.answer
    assert lab.state(1, _submit(lab, 13, index=1)).answer == again.answer


def test_a_member_that_may_only_sleep_is_waited_for_and_its_copy_is_the_answer() -> None:
    lab = Lab(3)
    lab.with_service()
    first = lab.state(0, _submit(lab, 10)).answer
    worker = next(peer for peer, _ in lab.executed)
    for peer in lab.peers:
        if peer != worker:
            lab.disks[peer].clear()
    lab.leave(worker)
    request = _submit(lab, 11)
    lab.wait(LOST_PATIENCE_MS // 2000 * 1000)
    core = _core(lab, 0)
    assert core.coordinator.is_held_back(request) and lab.state(0, request).answer is None
    words = lost_words(core, _service(core), lab.state(0, request), None)
    assert words is not None and "held by no node that can be reached" in words
    for peer in lab.peers:
        if peer != worker:
            lab.connect(worker, peer)
    lab.wait(2000)
    assert lab.state(0, request).answer == first and len(lab.executed) == 1


def test_who_is_away_for_too_long_is_not_waited_for_and_is_heard_when_it_is_back() -> None:
    """Nobody can compute just now: the one who has the content comes back before anybody did."""
    lab = Lab(3)
    lab.with_service()
    first = lab.state(0, _submit(lab, 10)).answer
    worker = next(peer for peer, _ in lab.executed)
    other = next(peer for peer in lab.peers[1:] if peer != worker)
    for peer in (lab.peers[0], other):
        lab.disks[peer].clear()
    lab.leave(worker)
    lab.leave(other)
    request = _submit(lab, 11)
    lab.wait(LOST_PATIENCE_MS + 10_000)
    core = _core(lab, 0)
    fold = core.fold(_service(core))
    assert fold.is_lost(first or "") and lab.state(0, request).answer is None
    lab.connect(worker, lab.peers[0])
    lab.wait(10_000)
    assert not fold.is_lost(first or ""), "the request that said so was withdrawn"
    assert lab.state(0, request).answer == first


def test_an_input_that_nobody_holds_is_computed_again_and_its_dependents_go_on() -> None:
    lab = Lab(2)
    lab.with_service()
    _submit(lab, 10)
    job = lab.state(0, _submit(lab, 11)).job
    lab.lose_everything()
    source = {"input": f"job:{job}/output"}
    request = _submit(lab, 12, wish=definition("count", source))
    lab.wait(10_000)
    assert [processor for _, processor in lab.executed][-2:] == ["write", "count"]
    state = lab.state(0, request)
    fold = _core(lab, 0).fold(_service(_core(lab, 0)))
    assert state.answer is not None
    assert fold.lost_attempts(state, fold.results[state.answer].document.run) == 0


def test_a_result_whose_worker_died_with_its_only_copy_is_computed_again() -> None:
    lab = Lab(3)
    lab.with_service()
    lab.fetches = False
    request = _submit(lab, 10)
    lab.lose_everything()
    lab.fetches = True
    lab.wait(20_000)
    core = _core(lab, 0)
    answer = lab.state(0, request).answer
    assert answer is not None and core.fold(_service(core)).is_lost(answer)
    assert len(lab.executed) == 2
    words = lost_words(core, _service(core), lab.state(0, request), None)
    assert words is None
    shown = core.fold(_service(core)).results[answer]
    words = lost_words(core, _service(core), lab.state(0, request), shown)
    assert words is not None and "computed again, by request" in words


def test_a_recompute_that_fails_is_the_answer_and_not_tried_for_ever() -> None:
    lab = Lab(2)
    lab.with_service()
    _submit(lab, 10)
    lab.lose_everything()
    right = lab._run

    def fails(peer: str, effect: ef.Execute) -> ev.Executed:
        return replace(right(peer, effect), status="failed", outputs={}, error="exit 1")

    lab._run = fails  # type: ignore[method-assign]
    request = _submit(lab, 11)
    lab.wait(10_000)
    core = _core(lab, 0)
    answer = lab.state(0, request).answer
    assert answer is not None and len(lab.executed) == 2
    assert core.fold(_service(core)).results[answer].document.status == "failed"


def test_a_member_that_only_says_that_it_holds_content_is_not_believed_twice() -> None:
    lab = Lab(3)
    lab.with_service()
    _submit(lab, 10)
    lab.lose_everything()
    lab.liars = {lab.peers[2]}
    request = _submit(lab, 11)
    answer = lab.state(0, request).answer or ""
    assert lab.state(0, request).cached, "nothing speaks against it yet"
    core = _core(lab, 0)
    lab.do(lab.peers[0], ev.ContentUnavailable(_service(core), answer))
    lab.settle()
    lab.wait(LOST_PATIENCE_MS + 30_000)
    assert core.fold(_service(core)).is_lost(answer)
    assert len(lab.executed) == 2


def test_a_full_disk_is_no_reason_to_compute_again() -> None:
    lab = Lab(2)
    lab.with_service()
    lab.no_room = True
    _submit(lab, 10)
    lab.lose_everything()
    lab.wait(LOST_PATIENCE_MS + 30_000)
    core = _core(lab, 0)
    assert core.ctx.counters["results whose content was looked for"] == 0
    assert len(lab.executed) == 1


class SlowLab(Lab):
    """Disks that are looked at for long: `looks` are those under way."""

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.looks: list[tuple[str, ef.Locate | ef.FetchBlocks]] = []

    def _carry_out(self, peer: str, effects: list[ef.Effect]) -> None:
        for effect in effects:
            if isinstance(effect, ef.Locate | ef.FetchBlocks):
                self.looks.append((peer, effect))
            else:
                super()._carry_out(peer, [effect])

    def hear(self, peer: str, message: Where | Hold) -> None:
        self.do(self.peers[0], ev.FrameReceived(peer, MESSAGES.encode(message)))


def test_what_a_member_asks_again_and_again_is_looked_at_once_at_a_time() -> None:
    lab = SlowLab(2)
    lab.with_service()
    core, asker = _core(lab, 0), lab.peers[1]
    service = _service(core)
    for _ in range(100):
        lab.hear(asker, Where(service, "look:x", ("bafy",)))
        lab.hear(asker, Hold(service, "x", ("bafy",), (asker,), b""))
    assert len(lab.looks) == 2
    for _, effect in lab.looks[:]:
        if isinstance(effect, ef.Locate):
            lab.do(lab.peers[0], ev.Located(effect.ticket, False))
    lab.hear(asker, Where(service, "look:x", ("bafy",)))
    assert len(lab.looks) == 3
    lab.hear(asker, Where(service, "x" * 10_000, ("bafy",)))
    assert (len(lab.looks), lab.refused[-1].reason) == (3, "a where with a long name")


def test_who_waits_for_a_copy_that_is_collected_before_its_document_is_stored_is_told_no() -> None:
    lab = SlowLab(2)
    lab.with_service()
    core, asker = _core(lab, 0), lab.peers[1]
    service = _service(core)
    lab.hear(asker, Hold(service, "result", ("bafy",), (asker,), bytes(32)))
    ((_, fetch),) = lab.looks
    assert isinstance(fetch, ef.FetchBlocks)
    lab.do(lab.peers[0], ev.Fetched(fetch.ticket, True))
    told = [e for e in core.handle(ev.ContentDropped(service, ("result",)), lab.now_ms)
            if isinstance(e, ef.Send)]  # fmt: skip
    assert [MESSAGES.decode(e.data) for e in told] == [Held("result", False)]


def test_one_member_who_asks_for_much_leaves_place_for_others() -> None:
    lab = SlowLab(3)
    lab.with_service()
    core = _core(lab, 0)
    for number in range(HOLDS_SERVED_MAX):
        lab.hear(lab.peers[1], Where(_service(core), f"look:{number}", ("bafy",)))
    assert len(lab.looks) == HOLDS_SERVED_MAX // 2
    lab.hear(lab.peers[2], Where(_service(core), "look:1", ("bafy",)))
    assert len(lab.looks) == HOLDS_SERVED_MAX // 2 + 1


def test_a_strangers_look_is_refused() -> None:
    lab = Lab(2)
    lab.with_service()
    core = _core(lab, 0)
    frame = MESSAGES.encode(Where(_service(core), "t", ("bafy",)))
    lab.do(lab.peers[0], ev.FrameReceived("12D3KooWStranger", frame))
    assert "where of a stranger" in lab.refused[-1].reason


def test_content_that_is_denied_is_said_to_be_so_and_nothing_is_fetched() -> None:
    lab = Lab(2)
    lab.with_service()
    _submit(lab, 10)
    core = _core(lab, 0)
    (result,) = core.fold(_service(core)).results
    lab.lose_everything()
    lab.do(lab.peers[0], ev.ContentUnavailable(_service(core), result))
    lab.settle()
    lab.wait(5000)
    assert core.fold(_service(core)).is_lost(result) and len(lab.executed) == 2
