"""The loop: one core, its effects, the disk. Time jumps here; the disk answers when told to."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from pairio_node import driver as driver_module
from pairio_node.clock import Clock
from pairio_node.driver import QUEUE_EVENTS_MAX, Driver
from pairio_node.errors import UnavailableError, UserError
from pairio_node.store import StoreError
from pairio_protocol import effects as ef
from pairio_protocol import events as ev
from pairio_protocol.cid import RAW, cid_of
from pairio_protocol.context import CoreConfig
from pairio_protocol.core import NodeCore
from pairio_protocol.records import Resources
from pairio_protocol.signing import SigningKey

APP = {
    "name": "greeter",
    "bundle": cid_of(RAW, b"bundle"),
    "processors": [
        {
            "name": "greet",
            "executable": "main.py",
            "inputs": [],
            "outputs": [{"name": "output"}],
            "parameters": [{"name": "name", "type": "str", "defaultValue": "world"}],
        }
    ],
}


class _Clock(Clock):
    """The loop's time, and what a machine sleeps on top of it."""

    slept_ms = 0

    def now_ms(self) -> int:
        return int(trio.current_time() * 1000) + self.slept_ms

    def unix_ms(self) -> int:
        return 1_700_000_000_000 + self.now_ms()


class _Core(NodeCore):
    """A core that remembers what it was told."""

    def __init__(self, compute: bool) -> None:
        config = CoreConfig(boot=b"b" * 16, started_unix_ms=1, compute=compute, isolation="medium")
        super().__init__(SigningKey(b"k" * 32), config)
        self.told: list[ev.Event] = []

    def handle(self, event: ev.Event, now_ms: int, unix_ms: int = 0) -> list[ef.Effect]:
        if not isinstance(event, ev.TimePassed):
            self.told.append(event)
        return super().handle(event, now_ms, unix_ms)

    def told_of(self, kind: type[ev.Event]) -> list[Any]:
        return [event for event in self.told if isinstance(event, kind)]


class _Disk:
    """The shell: collects effects and commits; `done` ends the oldest commit."""

    def __init__(self) -> None:
        self.effects: list[ef.Effect] = []
        self.commits: list[ef.Commit] = []
        self.asked_at_s: list[float] = []
        self.waiting: list[Callable[[Exception | None], None]] = []
        self.at_once = True
        self.error: Exception | None = None

    def carry_out(self, effect: ef.Effect) -> None:
        self.effects.append(effect)

    def write(self, commit: ef.Commit, on_done: Callable[[Exception | None], None]) -> None:
        self.commits.append(commit)
        self.asked_at_s.append(trio.current_time())
        if self.at_once:
            on_done(self.error)
        else:
            self.waiting.append(on_done)

    def requests(self) -> int:
        """How many records the commits hold."""
        return sum(segment.count for c in self.commits for segment in c.segments)


class _Lab:
    def __init__(self, compute: bool = False) -> None:
        self.core, self.disk, self.clock = _Core(compute), _Disk(), _Clock()
        self.driver = Driver(self.core, self.clock, self.disk)

    async def submit(self, name: str) -> dict[str, Any]:
        definition = {
            "appName": "greeter",
            "processorName": "greet",
            "inputFiles": [],
            "outputFiles": [{"name": "output"}],
            "parameters": [{"name": "name", "value": name}],
        }
        return await self.driver.call(
            lambda call: ev.Submit(call, self.service, definition, Resources(1000, 1, 0, 1000))
        )

    async def with_app(self) -> None:
        made = await self.driver.call(lambda call: ev.CreateService(call, "lab", "nonce"))
        self.service = made["service"]
        await self.driver.call(lambda call: ev.InstallApp(call, self.service, APP))
        self.disk.commits.clear()
        self.disk.asked_at_s.clear()
        self.core.told.clear()


@asynccontextmanager
async def _running(compute: bool = False) -> AsyncIterator[_Lab]:
    lab = _Lab(compute)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lab.driver.run)
        await lab.with_app()
        yield lab
        nursery.cancel_scope.cancel()


# -- calls and commits ------------------------------------------------------------------------


async def test_an_answer_waits_for_the_disk(autojump_clock: MockClock) -> None:
    async with _running() as lab, trio.open_nursery() as nursery:
        lab.disk.at_once = False
        answers: list[dict[str, Any]] = []

        async def call() -> None:
            answers.append(await lab.submit("Ada"))

        nursery.start_soon(call)
        await trio.sleep_until(trio.current_time() + 60)
        assert (len(lab.disk.waiting), answers) == (1, [])
        lab.disk.waiting.pop()(None)
        await wait_all_tasks_blocked()
        assert set(answers[0]) == {"request", "job"}


async def test_what_comes_together_is_committed_together(autojump_clock: MockClock) -> None:
    async with _running() as lab, trio.open_nursery() as nursery:
        for number in range(200):
            nursery.start_soon(lab.submit, f"name {number}")
        await wait_all_tasks_blocked()
        await trio.sleep_until(trio.current_time() + 1)
        assert lab.disk.requests() == 200
        assert len(lab.disk.commits) <= 5
        assert len(lab.core.told_of(ev.Committed)) == len(lab.disk.commits)


async def test_with_many_callers_what_comes_during_a_commit_is_one_segment_soon(
    autojump_clock: MockClock,
) -> None:
    async with _running() as lab, trio.open_nursery() as nursery:
        lab.disk.at_once = False
        began = trio.current_time()
        for number in range(40):  # one each millisecond, as over HTTP
            nursery.start_soon(lab.submit, f"name {number}")
            await trio.sleep_until(began + (number + 1) / 1000)
        await trio.sleep_until(began + 1)
        assert lab.disk.requests() == 40  # though no commit has ended
        assert driver_module.BUSY_CALLS <= len(lab.disk.commits) <= driver_module.BUSY_CALLS + 3
        assert max(lab.disk.asked_at_s) - began < 0.04 + driver_module.HOLD_MS / 1000 + 0.005
        nursery.cancel_scope.cancel()


async def test_one_alone_is_committed_at_once(autojump_clock: MockClock) -> None:
    async with _running() as lab:
        began = trio.current_time()
        await lab.submit("Ada")
        assert trio.current_time() - began < 0.01
        assert lab.disk.requests() == 1


async def test_what_the_core_refuses_is_an_error_with_its_hint(autojump_clock: MockClock) -> None:
    async with _running() as lab:
        with pytest.raises(UserError, match="no service 'nowhere'") as got:
            await lab.driver.call(lambda call: ev.Grant(call, "nowhere", "12D3", ("submit",)))
        assert got.value.hint == "services here: lab"
        assert lab.disk.commits == []


async def test_a_caller_that_went_away_is_in_nobodys_way(autojump_clock: MockClock) -> None:
    async with _running() as lab:
        lab.disk.at_once = False
        with trio.move_on_after(1):
            await lab.submit("Ada")
        lab.disk.at_once = True
        lab.disk.waiting.pop()(None)
        await lab.submit("Bob")
        assert lab.disk.requests() == 2


def _end_of(lab: _Lab) -> ev.Executed:
    """Return the end of the run that the core wants to be begun."""
    execute = next(e for e in lab.disk.effects if isinstance(e, ef.Execute))
    output = (cid_of(RAW, b"output"), 6, "output")
    return ev.Executed(
        execute.attempt, "", "completed", "", {"output": output}, cid_of(RAW, b""), {}, "medium"
    )


def _kinds(lab: _Lab) -> list[list[str]]:
    """Return what is in the log by now, commit by commit."""
    return [
        [type(record).__name__ for segment in commit.segments for record in segment.records()]
        for commit in lab.disk.commits
    ]


async def test_that_a_run_has_begun_is_committed_with_its_end_when_that_comes_soon(
    autojump_clock: MockClock,
) -> None:
    async with _running(compute=True) as lab:
        await lab.submit("Ada")
        await trio.sleep_until(trio.current_time() + driver_module.IDLE_HOLD_MS / 2000)
        assert _kinds(lab) == [["Request"]]
        lab.driver.post(_end_of(lab))
        await trio.sleep_until(trio.current_time() + 0.001)
        assert _kinds(lab) == [["Request"], ["Start", "Result"]]


async def test_that_a_run_has_begun_is_committed_soon_when_nothing_follows(
    autojump_clock: MockClock,
) -> None:
    async with _running(compute=True) as lab:
        began = trio.current_time()
        await lab.submit("Ada")
        await trio.sleep_until(began + 1)
        assert _kinds(lab) == [["Request"], ["Start"]]
        assert lab.disk.asked_at_s[1] - began < driver_module.IDLE_HOLD_MS / 1000 + 0.01


async def test_that_a_run_has_begun_does_not_wait_when_somebody_does(
    autojump_clock: MockClock,
) -> None:
    async with _running(compute=True) as lab:
        await lab.submit("Ada")
        await trio.sleep_until(trio.current_time() + driver_module.IDLE_HOLD_MS / 2000)
        assert _kinds(lab) == [["Request"]]
        began = trio.current_time()
        await lab.driver.post_stored(ev.TimePassed())
        assert trio.current_time() - began < 0.005
        assert _kinds(lab) == [["Request"], ["Start"]]


async def test_who_asks_is_told_when_what_is_under_way_is_on_disk(
    autojump_clock: MockClock,
) -> None:
    async with _running(compute=True) as lab, trio.open_nursery() as nursery:
        told: list[str] = []
        lab.driver.when_stored(lambda: told.append("nothing is under way"))
        assert told == ["nothing is under way"]
        lab.disk.at_once = False
        nursery.start_soon(lab.submit, "Ada")
        await wait_all_tasks_blocked()
        lab.driver.when_stored(lambda: told.append("it is on disk"))
        await trio.sleep_until(trio.current_time() + driver_module.IDLE_HOLD_MS / 2000)
        assert len(told) == 1
        assert _kinds(lab) == [["Request"]], "that it begins is not hurried for that"
        lab.disk.waiting.pop()(None)
        assert told[1:] == ["it is on disk"]


@pytest.mark.parametrize("when", ["while it was under way", "before the core has heard of it"])
async def test_who_asks_is_not_told_of_a_commit_that_failed(
    when: str, autojump_clock: MockClock
) -> None:
    async with _running() as lab, trio.open_nursery() as nursery:
        told: list[float] = []

        def ask() -> None:
            lab.driver.when_stored(lambda: told.append(trio.current_time()))

        async def submit() -> None:
            with pytest.raises(UserError, match="full"):
                await lab.submit("Ada")

        lab.disk.at_once = False
        nursery.start_soon(submit)
        await wait_all_tasks_blocked()
        if when == "while it was under way":
            ask()
        lab.disk.at_once = True
        began = trio.current_time()
        lab.disk.waiting.pop()(StoreError("full"))
        if when == "before the core has heard of it":
            ask()
        assert told == []
        await trio.sleep_until(began + 5)
        assert len(told) == 1 and told[0] - began >= 0.9


# -- a failing disk ---------------------------------------------------------------------------


async def test_a_failed_commit_is_said_and_tried_again_each_second_until_it_works(
    autojump_clock: MockClock,
) -> None:
    async with _running() as lab:
        lab.disk.error = StoreError("database or disk is full")
        with pytest.raises(UserError, match="not stored: database or disk is full") as caught:
            await lab.submit("Ada")
        assert caught.value.code == "disk"
        await trio.sleep_until(trio.current_time() + 5.5)
        lab.disk.error = None
        await trio.sleep_until(trio.current_time() + 1)
        waits = [b - a for a, b in zip(lab.disk.asked_at_s, lab.disk.asked_at_s[1:], strict=False)]
        assert len(waits) == 6, "nothing else happened, and still it was tried"
        assert all(0.9 < wait < 1.2 for wait in waits), waits
        first, last = lab.disk.commits[0], lab.disk.commits[-1]
        assert first.segments == last.segments, "the same bytes"
        assert len(lab.core.told_of(ev.CommitFailed)) == 6
        assert len(lab.core.told_of(ev.Committed)) == 1
        await trio.sleep_until(trio.current_time() + 60)
        assert len(lab.disk.commits) == 7, "and then no more"


async def test_commits_that_fail_together_are_told_and_tried_again_as_one_and_in_order(
    autojump_clock: MockClock,
) -> None:
    async with _running() as lab, trio.open_nursery() as nursery:
        refused: list[str] = []

        async def submit(name: str) -> None:
            with pytest.raises(UserError, match="not stored"):
                await lab.submit(name)
            refused.append(name)

        lab.disk.at_once = False
        for name in ("Ada", "Bob"):
            nursery.start_soon(submit, name)
            await wait_all_tasks_blocked()
        first, second = (commit.segments for commit in lab.disk.commits)
        lab.disk.waiting.pop(0)(StoreError("full"))
        await trio.sleep_until(trio.current_time() + 5)
        assert (refused, len(lab.disk.commits)) == ([], 2), "the second is still under way"
        lab.disk.at_once = True
        lab.disk.waiting.pop(0)(StoreError("full"))
        await trio.sleep_until(trio.current_time() + 2)
        assert sorted(refused) == ["Ada", "Bob"]
        assert len(lab.disk.commits) == 3
        assert lab.disk.commits[2].segments[:2] == (*first, *second)


async def test_what_is_written_while_the_disk_fails_comes_with_the_next_try(
    autojump_clock: MockClock,
) -> None:
    async with _running() as lab, trio.open_nursery() as nursery:
        lab.disk.error = StoreError("database or disk is full")
        with pytest.raises(UserError):
            await lab.submit("Ada")
        nursery.start_soon(lab.submit, "Bob")
        await trio.sleep_until(trio.current_time() + 0.5)
        assert len(lab.disk.commits) == 1
        lab.disk.error = None
        await trio.sleep_until(trio.current_time() + 1)
        assert [s.count for s in lab.disk.commits[-1].segments] == [1, 1]


# -- time -------------------------------------------------------------------------------------


async def test_a_machine_that_slept_is_told_to_its_core_before_anything_else(
    autojump_clock: MockClock,
) -> None:
    async with _running() as lab:
        lab.driver.post(ev.PeerUp(SigningKey(b"p" * 32).peer))
        await wait_all_tasks_blocked()
        lab.core.told.clear()
        lab.clock.slept_ms += 600_000
        lab.driver.post(ev.PeerDown(SigningKey(b"p" * 32).peer))
        await wait_all_tasks_blocked()
        woke, down = lab.core.told[:2]
        assert isinstance(woke, ev.Woke)
        assert 600_000 <= woke.gap_ms < 604_000
        assert isinstance(down, ev.PeerDown)
        await lab.submit("Ada")
        assert len(lab.core.told_of(ev.Woke)) == 1, "once"


async def test_a_quiet_hour_is_no_sleep(autojump_clock: MockClock) -> None:
    async with _running() as lab:
        lab.driver.post(ev.PeerUp(SigningKey(b"p" * 32).peer))
        for _ in range(60):
            await trio.sleep_until(trio.current_time() + 60)
            lab.driver.post(ev.PeerDown(SigningKey(b"q" * 32).peer))
        assert lab.core.told_of(ev.Woke) == []


async def test_the_core_gets_the_time_when_it_asked_for_it(autojump_clock: MockClock) -> None:
    async with _running() as lab:
        due_ms = lab.core.next_deadline_ms()
        assert due_ms is not None
        await trio.sleep_until(due_ms / 1000 + 0.01)
        assert lab.core.ctx.now_ms >= due_ms


# -- too much ---------------------------------------------------------------------------------


async def test_too_many_events_are_refused_and_a_caller_is_told() -> None:
    lab = _Lab()  # the loop does not run
    event = ev.PeerDown("12D3")
    for _ in range(QUEUE_EVENTS_MAX):
        assert lab.driver.post(event)
    assert not lab.driver.post(event)
    with pytest.raises(UnavailableError, match="the node is overloaded") as caught:
        await lab.driver.call(lambda call: ev.CreateService(call, "lab", "nonce"))
    assert caught.value.hint == "try again in a moment"


@pytest.mark.parametrize("error", [None, StoreError("full")])
async def test_the_end_of_a_commit_is_never_dropped(
    error: Exception | None, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    async with _running() as lab, trio.open_nursery() as nursery:
        lab.disk.at_once = False
        outcomes: list[str] = []

        async def call() -> None:
            try:
                await lab.submit("Ada")
            except UserError as failure:
                outcomes.append(failure.code)
            else:
                outcomes.append("stored")

        nursery.start_soon(call)
        await wait_all_tasks_blocked()
        monkeypatch.setattr(driver_module, "QUEUE_EVENTS_MAX", 0)  # a flood of others' frames
        assert not lab.driver.post(ev.PeerDown("12D3"))
        lab.disk.waiting.pop()(error)
        await wait_all_tasks_blocked()
        assert outcomes == ["stored" if error is None else "disk"]
        lab.disk.at_once = True
