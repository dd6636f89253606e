"""Several requests for one run, several tries of it: who asks, cancels, says that it is lost."""

from dataclasses import replace

import pytest

from pairio_protocol import effects as ef
from pairio_protocol import events as ev
from pairio_protocol.cid import RAW, cid_of
from pairio_protocol.fold import ServiceFold
from pairio_protocol.limits import ATTEMPTS_MAX
from pairio_protocol.records import End
from tests.protocol.test_core_sim import RESOURCES, World, definition


class Held(World):
    """Runs that end when a test says so: `under_way`, with the node that each is at."""

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.holds = True
        self.under_way: list[tuple[str, ef.Execute]] = []
        self.killed: list[str] = []

    def _carry_out(self, peer: str, effects: list[ef.Effect]) -> None:
        others: list[ef.Effect] = []
        for effect in effects:
            if isinstance(effect, ef.Execute) and self.holds:
                self.under_way.append((peer, effect))
            elif isinstance(effect, ef.Kill):
                self.killed.append(effect.reason)
            else:
                others.append(effect)
        super()._carry_out(peer, others)

    def submit(self, call: int, processor: str = "write", **fields: object) -> dict[str, str]:
        inputs = fields.pop("inputs", None)
        asked = replace(RESOURCES, time_ms=fields.pop("time_ms", RESOURCES.time_ms))  # type: ignore[arg-type]
        asked_for = {**definition(processor, inputs), **fields}  # type: ignore[arg-type]
        return self.call(self.peers[0], ev.Submit(call, "lab", asked_for, asked))

    def fail(self, limit: str) -> None:
        while self.under_way:
            peer, effect = self.under_way.pop()
            console = cid_of(RAW, b"c")
            self.do(
                peer,
                ev.Executed(
                    effect.attempt, "", "failed", "no", {}, console, {}, "medium", limit=limit
                ),
            )
            self.settle()

    def wait(self, ms: int) -> None:
        for _ in range(0, ms, 1000):
            self.pass_time(1000)

    @property
    def fold(self) -> ServiceFold:
        return next(iter(self.cores[self.peers[0]].folds.values()))


@pytest.mark.parametrize("second", ["time_ms=120000", ""], ids=["by the new limit", "by the app"])
@pytest.mark.parametrize("bust", range(4))  # which of two failures is canonical goes by their CIDs
def test_more_time_after_a_limit_is_one_more_run_and_its_failure_is_the_answer(
    second: str, bust: int
) -> None:
    world = Held(2)
    world.with_service()
    world.submit(10, cacheBust=str(bust), time_ms=60_000)
    world.fail("time_ms=60000")
    again = world.submit(11, cacheBust=str(bust), time_ms=120_000)
    runs = 0
    for _ in range(60):
        runs += len(world.under_way)
        world.fail(second)
        world.wait(1000)
    assert runs == 1
    answer = world.fold.requests[again["request"]].answer
    assert answer is not None and world.fold.results[answer].document.limit == second


def test_a_run_that_is_lost_by_the_word_of_some_member_is_not_lost() -> None:
    """It takes no right to write that a run has ended, and who ends it is another matter."""
    world = Held(3)
    world.with_service()
    liar = world.cores[world.peers[2]]
    (service,) = liar.folds
    request = world.submit(10, time_ms=3_600_000)["request"]
    state = world.fold.requests[request]
    run = world.fold.run_of(state, world.fold.resolve(state.job))
    assert run is not None
    for number in range(2 * ATTEMPTS_MAX):
        for whose in (liar.ctx.me, world.peers[0], "x"):
            attempt = f"{whose}/0/{number}"
            liar.append(service, End(request, run, attempt, "infra", "a lie", 1))
    world.wait(15_000)
    assert len(world.fold.runs[run].ends) == 6 * ATTEMPTS_MAX
    assert world.fold.lost_attempts(state, run) == 0


def test_a_run_goes_on_as_long_as_it_is_wanted_by_whatever_name() -> None:
    world = Held(2)
    world.with_service()
    world.holds = False
    same = [world.submit(10 + n, cacheBust=str(n))["job"] for n in range(2)]  # the same bytes
    world.holds = True
    asked = [
        world.submit(20 + n, "count", inputs={"input": f"job:{job}/output"})
        for n, job in enumerate(same)
    ]
    assert asked[0]["job"] != asked[1]["job"] and len(world.under_way) == 1
    cancel = ev.CancelRequests(30, "lab", (asked[0]["request"],))
    world.call(world.peers[0], cancel)
    world.wait(10_000)
    assert world.killed == []
    world.call(world.peers[0], replace(cancel, call=31, requests=(asked[1]["request"],)))
    world.wait(10_000)
    assert len(world.killed) == 1, "now nobody wants it"
