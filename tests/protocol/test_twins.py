"""Two nodes that run with one key notice each other, and leave each other's jobs alone."""

from dataclasses import replace

import pytest

from pairio_protocol import effects as ef
from pairio_protocol import events as ev
from pairio_protocol.context import CoreConfig
from pairio_protocol.core import NodeCore
from pairio_protocol.limits import TWIN_EXPIRY_MS, TWIN_PROOF_MS
from pairio_protocol.messages import MESSAGES, PresenceUpdate
from pairio_protocol.records import End
from pairio_protocol.signing import SigningKey, sha256
from tests.protocol.test_core_sim import APP, RESOURCES, World, definition

KEY, OTHER_KEY = SigningKey(b"a" * 32), SigningKey(b"b" * 32)


class Machines(World):
    """`a1` and `a2` have one key; `b`, which computes, is connected to one of them at a time."""

    def __init__(self) -> None:
        super().__init__(0)
        self.linked: str | None = None
        self.commits: dict[str, list[ef.Commit]] = {}
        self.seen: dict[str, list[ef.TwinSeen]] = {}
        self.killed: list[str] = []
        self.executing: list[ef.Execute] = []

    def start(self, name: str, boot: bytes, past: tuple[bytes, ...] = ()) -> NodeCore:
        config = CoreConfig(
            boot=boot,
            started_unix_ms=self.now_ms,
            past_boots=past,
            trust=(OTHER_KEY.peer,),
            compute=name == "b",
            isolation="medium",
        )
        core = NodeCore(OTHER_KEY if name == "b" else KEY, config)
        self.cores[name] = core
        self.peers = list(self.cores)
        commits = self.commits.setdefault(name, [])
        self.seen[name] = []
        services = {row[0]: row[:3] for commit in commits for row in commit.services}
        self.do(
            name,
            ev.Restored(
                tuple(services.values()),
                tuple((c[0], c[3]) for commit in commits for c in commit.changes),
                tuple(s.encode() for commit in commits for s in commit.segments),
            ),
        )
        return core

    def do(self, peer: str, event: ev.Event) -> None:
        core = self.cores[peer]
        self._carry_out(peer, core.handle(event, self.now_ms, self.now_ms))
        while (sealed := core.seal(self.now_ms, self.now_ms)) is not None:
            self.commits[peer].append(sealed.commit)
            self._carry_out(peer, sealed.effects)
            committed = ev.Committed(sealed.commit.ticket)
            self._carry_out(peer, core.handle(committed, self.now_ms, self.now_ms))

    def _carry_out(self, peer: str, effects: list[ef.Effect]) -> None:
        for effect in effects:
            match effect:
                case ef.Send():
                    to = "b" if effect.peer == OTHER_KEY.peer else self.linked
                    if to is not None and self.linked in (peer, to):
                        sender = self.cores[peer].ctx.me
                        self.queue.append((to, ev.FrameReceived(sender, effect.data)))
                case ef.Execute():
                    self.executing.append(effect)
                case ef.Kill():
                    self.killed.append(effect.attempt)
                case ef.TwinSeen():
                    self.seen[peer].append(effect)
                case _:
                    super()._carry_out(peer, [effect])

    def finish(self) -> None:
        """What B executes completes."""
        for effect in self.executing:
            self.do("b", self._executed(effect))
        self.executing = []
        self.settle()

    def link(self, name: str | None) -> None:
        """B's connection to the peer is this one now."""
        if self.linked is not None:
            self.do(self.linked, ev.PeerDown(OTHER_KEY.peer))
            self.do("b", ev.PeerDown(KEY.peer))
        self.linked = name
        if name is not None:
            self.do(name, ev.PeerUp(OTHER_KEY.peer))
            self.do("b", ev.PeerUp(KEY.peer))
        self.settle()
        for _ in range(3):
            self.pass_time(1000)

    def take_turns(self) -> None:
        """Whoever was cut off dials again, and B lets the other one go."""
        for name in ("a2", "a1", "a2"):
            self.link(name)
        self.pass_time(60_000)  # presence is signed anew
        for name in ("a1", "a2", "a1", "a2"):
            self.link(name)

    def has_noticed(self, name: str) -> bool:
        return bool(self.cores[name].twins.live)

    def ends(self, name: str) -> list[End]:
        core = self.cores[name]
        segments = core.logs.all_segments(next(iter(core.folds)))
        return [r for s in segments for r in s.records() if isinstance(r, End)]


@pytest.fixture
def machines() -> Machines:
    """B's service with A as a member; A1 runs, and has the service on its disk."""
    world = Machines()
    world.start("b", b"b" * 16)
    world.start("a1", b"1" * 16)
    world.link("a1")
    world.call("b", ev.CreateService(1, "lab", "00"))
    world.call("b", ev.Grant(2, "lab", KEY.peer, ("compute", "submit")))
    world.call("b", ev.InstallApp(3, "lab", APP))
    world.pass_time(2500)
    return world


def _copy_and_start(world: Machines) -> NodeCore:
    world.commits["a2"] = list(world.commits["a1"])
    world.pass_time(1000)
    return world.start("a2", b"2" * 16)


def _submit(world: Machines, name: str, call: int = 10) -> str:
    return world.call(name, ev.Submit(call, "lab", definition("write"), RESOURCES))["request"]


def test_two_that_take_turns_at_a_neighbour_both_notice(machines: Machines) -> None:
    _copy_and_start(machines)
    machines.take_turns()
    for name, other in (("a1", b"2" * 16), ("a2", b"1" * 16)):
        assert [twin.boot for twin in machines.cores[name].twins.live] == [other]
        assert len(machines.seen[name]) == 1  # said once
    assert not machines.cores["b"].twins.live


@pytest.mark.parametrize("past", [(b"1" * 16,), ()])
def test_a_restart_is_no_twin_on_this_machine_or_another(
    machines: Machines, past: tuple[bytes, ...]
) -> None:
    _submit(machines, "a1")
    machines.link(None)
    machines.commits["a2"] = list(machines.commits["a1"])
    machines.pass_time(1000)
    machines.start("a2", b"2" * 16, past)
    for _ in range(3):
        machines.link("a2")
        machines.pass_time(5000)
    assert not machines.has_noticed("a2")


def test_a_log_of_an_earlier_start_that_comes_back_by_sync_is_no_twin(machines: Machines) -> None:
    machines.commits["a2"] = list(machines.commits["a1"])
    _submit(machines, "a1")  # its last words, which only B has
    machines.link(None)
    machines.pass_time(1000)
    core = machines.start("a2", b"2" * 16)
    machines.link("a2")
    assert len(next(iter(core.folds.values())).requests) == 1
    assert not machines.has_noticed("a2")
    assert len(core.coordinator.wishes) == 1  # and is seen to


def test_a_request_of_a_twin_is_left_to_it_until_it_is_gone(machines: Machines) -> None:
    _copy_and_start(machines)
    machines.link(None)
    machines.pass_time(1000)
    machines.link("a2")
    machines.cores["b"].ctx.config = replace(machines.cores["b"].ctx.config, compute=False)
    machines.pass_time(3000)
    request = _submit(machines, "a2")
    machines.link("a1")
    a1 = machines.cores["a1"]
    assert request in next(iter(a1.folds.values())).requests
    assert machines.has_noticed("a1")
    assert a1.coordinator.wishes == {}
    machines.link(None)
    machines.pass_time(TWIN_EXPIRY_MS)
    assert not machines.has_noticed("a1")
    assert list(a1.coordinator.wishes) == [request]


def test_what_was_open_when_the_home_was_copied_goes_on_with_one(machines: Machines) -> None:
    machines.cores["b"].ctx.config = replace(machines.cores["b"].ctx.config, compute=False)
    request = _submit(machines, "a1")
    _copy_and_start(machines)
    assert list(machines.cores["a2"].coordinator.wishes) == [request]  # as after any restart
    machines.take_turns()
    assert list(machines.cores["a2"].coordinator.wishes) == []
    assert list(machines.cores["a1"].coordinator.wishes) == [request]


def test_a_run_that_the_twin_wants_too_is_not_killed(machines: Machines) -> None:
    _copy_and_start(machines)
    machines.take_turns()
    theirs = _submit(machines, "a2", 10)
    machines.link("a1")
    ours = _submit(machines, "a1", 11)
    assert machines.executing
    machines.call("a1", ev.CancelRequests(12, "lab", (ours,)))
    machines.pass_time(1000)
    assert machines.killed == []
    machines.link("a2")
    machines.finish()
    state = next(iter(machines.cores["a2"].folds.values())).requests[theirs]
    assert state.answer is not None


def test_only_attempts_of_this_home_are_ended_at_its_next_start(machines: Machines) -> None:
    a1 = machines.cores["a1"]
    machines.link(None)
    a1.ctx.config = replace(a1.ctx.config, compute=True)
    a1.book.send_own()
    _submit(machines, "a1")  # A1, alone, runs it itself
    assert len(machines.executing) == 1
    _copy_and_start(machines)
    assert machines.ends("a2") == []
    machines.start("a1", b"3" * 16, past=(b"1" * 16,))
    assert [end.reason for end in machines.ends("a1")] == ["the node restarted"]


def test_logs_that_derive_from_a_twin_are_the_twins(machines: Machines) -> None:
    twins = machines.cores["a1"].twins
    later = sha256(sha256(b"2" * 16)[:16])[:16]
    twins.on_segment(b"2" * 16, machines.now_ms + 1)
    assert twins.is_live(later)
    assert not twins.is_live(sha256(b"1" * 16)[:16])
    assert twins.is_own(sha256(b"1" * 16)[:16])


def _presence(machines: Machines, boot: bytes, counter: int, later_ms: int = -1) -> None:
    """A neighbour shows A1 what its key signed under a boot, that began before A1 did, or later."""
    entry = machines.cores["a1"].own_presence(next(iter(machines.cores["a1"].folds)))
    assert entry is not None
    old = replace(
        entry, boot=boot, counter=counter, started_unix_ms=entry.started_unix_ms + later_ms
    )
    update = MESSAGES.encode(PresenceUpdate((old.sign(KEY),)))
    machines.do("a1", ev.FrameReceived(OTHER_KEY.peer, update))


def test_what_an_earlier_start_of_this_home_said_may_be_replayed_for_ever(
    machines: Machines,
) -> None:
    _submit(machines, "a1")
    a1 = machines.cores["a1"]
    a1.ctx.config = replace(a1.ctx.config, past_boots=(b"0" * 16,))
    for counter in range(1, 5):
        _presence(machines, b"0" * 16, counter)
        machines.pass_time(20_000)
    assert not machines.has_noticed("a1")


def test_what_a_twin_said_last_does_not_keep_it_alive(machines: Machines) -> None:
    """Neighbours who know two starts of a key tell one of the other, also long after it ended."""
    _submit(machines, "a1")
    a1 = machines.cores["a1"]
    for _ in range(TWIN_EXPIRY_MS // 60_000):
        _presence(machines, b"9" * 16, 6, later_ms=1)
        assert machines.has_noticed("a1")
        machines.pass_time(60_000)
    _presence(machines, b"9" * 16, 6, later_ms=1)
    assert not machines.has_noticed("a1")
    _presence(machines, b"9" * 16, 7, later_ms=1)
    assert machines.has_noticed("a1")
    assert len(machines.seen["a1"]) == a1.ctx.counters["twins noticed"] == 2


def test_presence_that_was_on_its_way_at_the_start_proves_nothing(machines: Machines) -> None:
    _submit(machines, "a1")
    _presence(machines, b"9" * 16, 1)
    machines.pass_time(TWIN_PROOF_MS - 1000)
    _presence(machines, b"9" * 16, 2)
    assert not machines.has_noticed("a1")
    machines.pass_time(2000)
    _presence(machines, b"9" * 16, 3)
    assert machines.has_noticed("a1")


def test_an_attempt_of_the_twin_that_is_followed_here_is_not_ended_here(
    machines: Machines,
) -> None:
    _copy_and_start(machines)
    machines.take_turns()
    _submit(machines, "a2", 10)
    machines.link("a1")
    ours = _submit(machines, "a1", 11)
    a1 = machines.cores["a1"]
    attempt = a1.coordinator.attempt_of(ours)
    assert attempt is not None
    assert attempt.held
    assert a1.is_twins_attempt(attempt.id)  # B had it from the other one
    machines.link("a2")  # the beats go there now
    for _ in range(20):
        machines.pass_time(1000)
    assert a1.ctx.counters["leases lost"] == 1
    assert machines.ends("a1") == []
