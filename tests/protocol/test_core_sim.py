"""Several cores, joined by queues: a job is awarded, run elsewhere, and found in the cache."""

from collections import deque

import pytest

from pairio_protocol import commands
from pairio_protocol import effects as ef
from pairio_protocol import events as ev
from pairio_protocol.cid import RAW, cid_of
from pairio_protocol.context import CoreConfig
from pairio_protocol.core import NodeCore
from pairio_protocol.records import Resources
from pairio_protocol.signing import SigningKey

BUNDLE = cid_of(RAW, b"bundle")
RESOURCES = Resources(1000, 1024, 0, 60_000)


def _processor(name: str, inputs: list[str]) -> dict[str, object]:
    return {
        "name": name,
        "executable": "main.py",
        "inputs": [{"name": i} for i in inputs],
        "outputs": [{"name": "output"}],
        "parameters": [{"name": "name", "type": "str", "defaultValue": "world"}],
    }


APP = {
    "name": "hello",
    "bundle": BUNDLE,
    "processors": [_processor("write", []), _processor("count", ["input"])],
}


class World:
    """Cores that hear each other at once; every commit succeeds; every run completes."""

    def __init__(self, count: int) -> None:
        self.now_ms = 1000
        self.cores: dict[str, NodeCore] = {}
        self.queue: deque[tuple[str, ev.Event]] = deque()
        self.answers: dict[int, ef.Reply | ef.Fail] = {}
        self.executed: list[tuple[str, str]] = []
        self.refused: list[ef.Refuse] = []
        for i in range(count):
            first = next(iter(self.cores), "")
            config = CoreConfig(
                boot=bytes([i]) * 16,
                started_unix_ms=1,
                trust=(first,),
                compute=i > 0 or count == 1,
                cpu_millicores=2000,
                memory_mib=4096,
                isolation="medium",
            )
            core = NodeCore(SigningKey(bytes([i + 1]) * 32), config)
            self.cores[core.ctx.me] = core
        self.peers = list(self.cores)

    def do(self, peer: str, event: ev.Event) -> None:
        core = self.cores[peer]
        self._carry_out(peer, core.handle(event, self.now_ms, self.now_ms))
        while (sealed := core.seal(self.now_ms, self.now_ms)) is not None:
            self._carry_out(peer, sealed.effects)
            committed = ev.Committed(sealed.commit.ticket)
            self._carry_out(peer, core.handle(committed, self.now_ms, self.now_ms))

    def _carry_out(self, peer: str, effects: list[ef.Effect]) -> None:
        for effect in effects:
            match effect:
                case ef.Send():
                    self.queue.append((effect.peer, ev.FrameReceived(peer, effect.data)))
                case ef.Reply() | ef.Fail():
                    self.answers[effect.call] = effect
                case ef.Execute():
                    self.executed.append((peer, effect.document["processor"]))
                    self.queue.append((peer, self._executed(effect)))
                case ef.FetchBlocks():
                    self.queue.append((peer, ev.Fetched(effect.ticket, True)))
                case ef.Locate():
                    self.queue.append((peer, ev.Located(effect.ticket, True)))
                case ef.Refuse():
                    self.refused.append(effect)
                case _:
                    pass

    @staticmethod
    def _executed(effect: ef.Execute) -> ev.Executed:
        outputs = {
            o["name"]: (cid_of(RAW, o["name"].encode()), 6, o["base_name"])
            for o in effect.document["outputs"]
        }
        console = cid_of(RAW, b"console")
        return ev.Executed(
            effect.attempt, "", "completed", "", outputs, console, {"cpu_ms": 1}, "medium"
        )

    def settle(self) -> None:
        while self.queue:
            peer, event = self.queue.popleft()
            self.do(peer, event)

    def pass_time(self, ms: int) -> None:
        self.now_ms += ms
        for peer in self.peers:
            self.do(peer, ev.TimePassed())
        self.settle()

    def connect(self, a: str, b: str) -> None:
        self.do(a, ev.PeerUp(b))
        self.do(b, ev.PeerUp(a))
        self.settle()

    def call(self, peer: str, event: ev.Event) -> dict[str, str]:
        self.do(peer, event)
        self.settle()
        answer = self.answers[event.call]  # type: ignore[union-attr]
        assert isinstance(answer, ef.Reply), answer
        return answer.value

    def with_service(self) -> "World":
        first = self.peers[0]
        for i, a in enumerate(self.peers):
            for b in self.peers[:i]:
                self.connect(a, b)
        self.call(first, ev.CreateService(1, "lab", "00"))
        for peer in self.peers[1:]:
            self.call(first, ev.Grant(2, "lab", peer, ("compute", "submit")))
        self.call(first, ev.InstallApp(3, "lab", APP))
        self.pass_time(2500)
        return self


def definition(processor: str, inputs: dict[str, str] | None = None) -> dict[str, object]:
    return {
        "appName": "hello",
        "processorName": processor,
        "inputFiles": [{"name": n, "url": u} for n, u in (inputs or {}).items()],
        "outputFiles": [{"name": "output"}],
        "parameters": [],
    }


def test_a_job_is_computed_by_another_node_and_answered() -> None:
    world = World(3).with_service()
    answer = world.call(world.peers[0], ev.Submit(10, "lab", definition("write"), RESOURCES))
    core = world.cores[world.peers[0]]
    fold = next(iter(core.folds.values()))
    state = fold.requests[answer["request"]]
    assert state.answer is not None
    assert fold.results[state.answer].document.worker != world.peers[0]
    assert core.replication.is_safe(state.answer or "")
    assert world.refused == []


def test_the_second_time_nothing_runs() -> None:
    world = World(3).with_service()
    first = world.call(world.peers[0], ev.Submit(10, "lab", definition("write"), RESOURCES))
    again = world.call(world.peers[1], ev.Submit(11, "lab", definition("write"), RESOURCES))
    assert first["job"] == again["job"]
    assert len(world.executed) == 1


def test_a_result_that_only_another_node_knows_is_found_before_anything_runs() -> None:
    world = World(7).with_service()
    world.call(world.peers[0], ev.Submit(10, "lab", definition("write"), RESOURCES))
    folds = {p: next(iter(core.folds.values())) for p, core in world.cores.items()}
    # Gossip is switched off in this world, sync has not been; home nodes were sent the result.
    other = next(peer for peer in world.peers if not folds[peer].results)
    world.call(other, ev.Submit(11, "lab", definition("write"), RESOURCES))
    assert len(world.executed) == 1


def test_a_job_that_rests_on_another_runs_after_it() -> None:
    world = World(2).with_service()
    first = world.call(world.peers[0], ev.Submit(10, "lab", definition("write"), RESOURCES))
    source = {"input": f"job:{first['job']}/output"}
    world.call(world.peers[0], ev.Submit(11, "lab", definition("count", source), RESOURCES))
    assert [processor for _, processor in world.executed] == ["write", "count"]


def test_a_node_alone_runs_its_own_jobs() -> None:
    world = World(1).with_service()
    world.call(world.peers[0], ev.Submit(10, "lab", definition("write"), RESOURCES))
    assert world.executed == [(world.peers[0], "write")]


def test_all_nodes_know_the_same_in_the_end() -> None:
    world = World(4).with_service()
    for i in range(5):
        wish = {**definition("write"), "cacheBust": str(i)}
        world.call(world.peers[i % 4], ev.Submit(20 + i, "lab", wish, RESOURCES))
    for _ in range(8):
        world.pass_time(3500)
    service = next(iter(world.cores[world.peers[0]].folds))
    digests = {core.logs.digest(service) for core in world.cores.values()}
    assert len(digests) == 1


def test_an_unknown_parameter_is_refused_with_what_is_allowed() -> None:
    world = World(1).with_service()
    wish = {**definition("write"), "parameters": [{"name": "nmae", "value": "x"}]}
    world.do(world.peers[0], ev.Submit(10, "lab", wish, RESOURCES))
    answer = world.answers[10]
    assert isinstance(answer, ef.Fail)
    assert "nmae" in answer.message
    assert "name" in (answer.hint or "")


def test_a_node_with_too_many_open_requests_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "REQUESTS_OPEN_PER_AUTHOR_MAX", 2)
    world = World(1).with_service()
    core = world.cores[world.peers[0]]
    core.coordinator.award_open = lambda: None  # type: ignore[method-assign]
    for number in range(3):
        wish = {**definition("write"), "cacheBust": str(number)}
        world.do(world.peers[0], ev.Submit(10 + number, "lab", wish, RESOURCES))
    assert [type(world.answers[10 + n]) for n in range(3)] == [ef.Reply, ef.Reply, ef.Fail]
    answer = world.answers[12]
    assert isinstance(answer, ef.Fail)
    assert "2 requests of this node are open; at most 2" in answer.message
