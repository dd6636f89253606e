"""The owner's rules narrow what runs on a node, and say so to whoever asks why."""

from dataclasses import replace
from typing import Any

import pytest

from pairio_protocol import events as ev
from pairio_protocol.messages import Decline
from pairio_protocol.owner import OwnerRules, allows_app
from pairio_protocol.records import Resources
from tests.protocol.test_core_sim import RESOURCES, World, definition


class Lab(World):
    """Node 0 submits, node 1 computes by its owner's rules; runs end when told."""

    def __init__(self, *rules: OwnerRules) -> None:
        super().__init__(2)
        self.with_service()
        self.submitter, self.worker = (self.cores[peer] for peer in self.peers)
        self.service = next(iter(self.submitter.membership.taken_up))
        self.worker.ctx.config = replace(self.worker.ctx.config, owner_rules=rules)
        self.worker.book.changed()
        self.pass_time(3000)
        self.held: list[tuple[str, ev.Event]] = []

    def submit(self, number: int = 0, resources: Resources = RESOURCES) -> str:
        wish = {**definition("write"), "cacheBust": str(number)}
        call = ev.Submit(100 + number, "lab", wish, resources)
        self.call(self.peers[0], call)
        return str(self.answers[call.call].value["request"])  # type: ignore[union-attr]

    def declines(self, request: str) -> list[Decline]:
        errand = self.submitter.coordinator.errand_of(request)
        return [] if errand is None else [decline for _, decline in errand.declined.values()]

    def is_done(self, request: str) -> bool:
        return self.submitter.fold(self.service).requests[request].answer is not None

    def hold_runs(self) -> None:
        """From now on runs end only by `finish`."""
        self._executed = self._hold  # type: ignore[method-assign, assignment]

    def _hold(self, effect: Any) -> ev.Event:
        self.held.append((self.worker.ctx.me, World._executed(effect)))
        return ev.TimePassed()

    def finish(self) -> None:
        held, self.held = self.held, []
        self.queue.extend(held)
        self.settle()


NARROW = [
    (OwnerRules(apps=("other",)), "owner allows apps other", "hello/write", ""),
    (OwnerRules(apps=("hello/count",)), "owner allows apps hello/count", "hello/write", ""),
    (OwnerRules(submitters=("ada",)), "owner allows submitters ada", None, ""),
    (OwnerRules(cpu_millicores=500), "owner allows CPUs a job", "1", "0.5"),
    (OwnerRules(memory_mib=512), "owner allows memory MiB a job", "1024", "512"),
    (OwnerRules(time_ms=30_000), "owner allows seconds a job", "60", "30"),
    (OwnerRules("lab", apps=("other",)), "owner allows apps other", "hello/write", ""),
]


@pytest.mark.parametrize(("rules", "rule", "need", "have"), NARROW)
def test_a_job_that_a_rule_keeps_off_is_declined_with_rule_need_and_have(
    rules: OwnerRules, rule: str, need: str | None, have: str
) -> None:
    lab = Lab(rules)
    request = lab.submit()
    [decline] = lab.declines(request)
    assert (decline.reason, decline.has) == (rule, have)
    assert decline.needs == need if need else decline.needs
    assert lab.executed == []


@pytest.mark.parametrize(
    "rules",
    [
        OwnerRules(apps=("hello",)),
        OwnerRules(apps=("other", "hello/write")),
        OwnerRules(cpu_millicores=1000, memory_mib=1024, gpus=0, time_ms=60_000, jobs_max=1),
        OwnerRules("another service", apps=("other",)),
    ],
)
def test_what_the_rules_allow_runs(rules: OwnerRules) -> None:
    lab = Lab(rules)
    assert lab.is_done(lab.submit())


def test_a_submitter_is_named_by_peer_id_or_by_the_members_name() -> None:
    lab = Lab()
    member = lab.worker.membership.folded(lab.service).member_of(lab.peers[0])
    assert member
    for number, name in enumerate((lab.peers[0], member)):
        rules = (OwnerRules(submitters=(name,)),)
        lab.worker.ctx.config = replace(lab.worker.ctx.config, owner_rules=rules)
        assert lab.is_done(lab.submit(number))


def test_rules_for_all_and_for_a_service_hold_together_and_widen_nothing() -> None:
    lab = Lab(OwnerRules(apps=("other",)), OwnerRules("lab", apps=("hello",)))
    assert [d.reason for d in lab.declines(lab.submit())] == ["owner allows apps other"]
    lab = Lab(OwnerRules(cpu_millicores=64_000))
    request = lab.submit(0, Resources(4000, 1024, 0, 60_000))  # more than the node has
    assert not lab.is_done(request)


@pytest.mark.parametrize("rules", [OwnerRules(jobs_max=1), OwnerRules("lab", jobs_max=1)])
def test_at_most_so_many_jobs_run_at_once_and_all_of_them_in_the_end(rules: OwnerRules) -> None:
    lab = Lab(rules)
    assert lab.worker.own_presence(lab.service).slots == 1  # type: ignore[union-attr]
    lab.hold_runs()
    requests = [lab.submit(number) for number in range(3)]
    for done in range(3):
        lab.pass_time(1000)
        assert len(lab.executed) == done + 1
        assert sum(task.executing for task in lab.worker.worker.tasks.values()) == 1
        lab.finish()
    assert all(map(lab.is_done, requests))


def test_outside_the_hours_nothing_begins_and_the_others_know() -> None:
    lab = Lab(OwnerRules(hours="22:00-06:00"))
    lab.do(lab.peers[1], ev.OwnerHours(frozenset({""})))
    lab.pass_time(3000)
    request = lab.submit()
    for _ in range(5):
        lab.pass_time(2000)
    assert lab.executed == []
    assert lab.declines(request) == []  # its presence says that it does not compute now
    lab.do(lab.peers[1], ev.OwnerHours(frozenset()))
    lab.pass_time(3000)
    assert lab.is_done(request)


def test_when_the_hours_end_what_runs_goes_on_and_what_waits_is_given_back() -> None:
    lab = Lab(OwnerRules("lab", hours="22:00-06:00", jobs_max=1))
    lab.hold_runs()
    first, second = lab.submit(1), lab.submit(2)
    assert len(lab.worker.worker.tasks) == 2
    lab.do(lab.peers[1], ev.OwnerHours(frozenset({"lab"})))
    lab.settle()
    assert [task.executing for task in lab.worker.worker.tasks.values()] == [True]
    assert [(d.reason, d.needs) for d in lab.declines(second)] == [("owner's hours", "22:00-06:00")]
    lab.finish()
    assert lab.is_done(first)
    assert not lab.is_done(second)


def test_hours_of_another_service_close_nothing_here() -> None:
    lab = Lab(OwnerRules("other", hours="22:00-06:00"))
    lab.do(lab.peers[1], ev.OwnerHours(frozenset({"other"})))
    assert lab.is_done(lab.submit())


def test_a_forbidden_job_is_neither_bid_for_nor_taken() -> None:
    lab = Lab(OwnerRules(apps=("other",)))
    lab.submit()
    assert len(lab.worker.bidder.seen) == 1
    lab.do(lab.peers[1], ev.PeerDown(lab.peers[0]))
    lab.do(lab.peers[0], ev.PeerDown(lab.peers[1]))
    for _ in range(40):
        lab.pass_time(1000)
    assert lab.worker.ctx.counters["runs taken"] == 0
    assert lab.worker.bidder.seen == {}


def test_code_is_wanted_of_apps_of_which_something_may_run() -> None:
    assert allows_app([OwnerRules(apps=("hello/write",))], "hello")
    assert not allows_app([OwnerRules(apps=("hello/write",))], "other")
    assert not allows_app([OwnerRules(), OwnerRules("lab", apps=("other",))], "hello")
    assert allows_app([], "hello")
