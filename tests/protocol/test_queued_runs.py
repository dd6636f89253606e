"""A run that waits in a worker's queue: its own time begins when it does, its lease before."""

from dataclasses import replace

import pytest

from pairio_protocol.limits import LEASE_MS
from tests.protocol.test_core_sim import RESOURCES
from tests.protocol.test_exclusive import Lab

LONG = replace(RESOURCES, time_ms=3_600_000)


class Queue(Lab):
    """Two long runs hold both slots of the one worker, and a third of one minute waits."""

    def __init__(self, name: str) -> None:
        super().__init__(workers=1)
        for call in (100, 101):
            self.submit("plain", call=call, resources=LONG)
        self.request = self.submit(name, call=102)
        self.before, self.started = self.started, []
        assert len(self.before) == 2

    def let_begin(self) -> None:
        for worker, effect in self.before:
            self.end(worker, effect)
        self.pass_slowly(4000, 1000)
        assert [effect.request for _, effect in self.started] == [self.request]

    def losses(self) -> list[str]:
        runs = self.submitter.fold(self.service).runs.values()
        return [end.reason for run in runs for end in run.ends.values() if end.kind == "infra"]


@pytest.mark.parametrize("name", ["plain", "online"])
def test_time_in_a_queue_is_none_of_the_runs_own(name: str) -> None:
    lab = Queue(name)
    lab.pass_slowly(50_000, 1000)
    lab.let_begin()
    lab.pass_slowly(RESOURCES.time_ms - 5000, 1000)
    assert (lab.losses(), lab.killed, len(lab.started)) == ([], [], 1)
    lab.end(*lab.started[0])
    assert lab.is_done(lab.request)


@pytest.mark.parametrize("name", ["plain", "online"])
def test_a_run_may_wait_longer_than_it_may_take(name: str) -> None:
    lab = Queue(name)
    lab.pass_slowly(3 * RESOURCES.time_ms, 1000)
    assert lab.losses() == []
    lab.let_begin()


def test_a_run_that_has_begun_has_its_time_and_no_more() -> None:
    lab = Queue("plain")
    lab.pass_slowly(50_000, 1000)
    lab.let_begin()
    lab.pass_slowly(RESOURCES.time_ms + LEASE_MS, 1000)
    assert lab.losses() == ["its lease ran out"]


def test_a_worker_that_is_silent_loses_what_waits_there() -> None:
    lab = Queue("plain")
    lab.pass_slowly(2 * RESOURCES.time_ms, 1000)
    lab.cut = {(lab.peers[1], lab.peers[0])}
    lab.pass_slowly(LEASE_MS + 1000, 1000)
    assert lab.losses() == ["its lease ran out"] * 3
