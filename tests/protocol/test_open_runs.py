"""Runs that nobody can take just now: they cost little, and keep no other from being looked at."""

from dataclasses import replace

import pytest

from pairio_protocol import events as ev
from pairio_protocol.limits import LOOK_INTERVAL_MS
from pairio_protocol.machines import coordinator
from pairio_protocol.machines.errands import Errand
from pairio_protocol.messages import Presence
from tests.protocol.test_core_sim import APP, RESOURCES, World, definition
from tests.protocol.test_public import LIMITS, SMALL, Public

HUGE = replace(RESOURCES, memory_mib=1_000_000)  # no node has as much


class Crowd(World):
    """Node 0 submits; a look goes through four runs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(2)
        monkeypatch.setattr(coordinator, "AWARDS_PER_LOOK", 4)
        self.with_service()
        self.submitter = self.peers[0]
        self.core = self.cores[self.submitter]
        self.looked: list[tuple[str, str]] = []
        award = self.core.coordinator._award

        def note(errand: Errand, candidates: list[Presence]) -> None:
            self.looked.append((errand.service, errand.run))
            award(errand, candidates)

        self.core.coordinator._award = note  # type: ignore[method-assign]

    def submit_huge(self, count: int, service: str = "lab") -> None:
        for number in range(count):
            wish = {**definition("write"), "cacheBust": str(number)}
            self.call(self.submitter, ev.Submit(100 + number, service, wish, HUGE))

    def wakes_in(self, ms: int) -> int:
        """Let the submitter alone wake when it says so; return how often it does."""
        end_ms, wakes = self.now_ms + ms, 0
        while (due_ms := self.core.next_deadline_ms()) is not None and due_ms <= end_ms:
            self.now_ms = max(self.now_ms + 1, due_ms)
            self.do(self.submitter, ev.TimePassed())
            wakes += 1
        return wakes


def test_many_runs_that_nobody_can_take_are_looked_at_once_in_a_round(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = Crowd(monkeypatch)
    world.submit_huge(10)
    world.wakes_in(LOOK_INTERVAL_MS)  # what the last one set going
    world.looked.clear()
    assert world.wakes_in(10 * LOOK_INTERVAL_MS) < 100
    assert len(set(world.looked)) == 10
    assert len(world.looked) <= 11 * 10


def test_rounds_of_two_services_do_not_keep_each_other_going(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = Crowd(monkeypatch)
    world.call(world.submitter, ev.CreateService(4, "other", "01"))
    world.call(world.submitter, ev.Grant(5, "other", world.peers[1], ("compute", "submit")))
    world.call(world.submitter, ev.InstallApp(6, "other", APP))
    world.pass_time(2500)
    world.submit_huge(6)
    world.submit_huge(12, "other")
    world.wakes_in(LOOK_INTERVAL_MS)
    world.looked.clear()
    assert world.wakes_in(10 * LOOK_INTERVAL_MS) < 100
    assert len(set(world.looked)) == 18


def test_a_run_behind_many_that_nobody_can_take_is_awarded_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = Crowd(monkeypatch)
    world.submit_huge(10)
    world.call(world.submitter, ev.Submit(99, "lab", definition("write"), RESOURCES))
    world.wakes_in(10)
    world.settle()
    assert world.executed == [(world.peers[1], "write")]


def test_a_guests_run_behind_many_that_nobody_can_take_has_its_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(coordinator, "AWARDS_PER_LOOK", 4)
    many = {"requests_per_hour": 20, "open_max": 20, "all_per_hour": 40, "all_open_max": 40}
    generous = replace(LIMITS, memory_mib=HUGE.memory_mib, **many)
    world = Public(strangers=2).make_public(generous)
    greedy, modest = world.strangers
    world.follow(greedy)
    world.follow(modest)
    for number in range(4):
        world.submit(greedy, str(number), replace(SMALL, memory_mib=HUGE.memory_mib))
    answer = world.submit(modest, "Ada")
    for _ in range(2):
        world.pass_time(LOOK_INTERVAL_MS)
    result = world.cores[modest].fold(world.service).result_of(world.state(modest, answer))
    assert result is not None
