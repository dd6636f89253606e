"""How far a run says that it is reaches whoever asked for it, with the beats there are anyway."""

import pytest

from pairio_protocol import effects as ef
from pairio_protocol import events as ev
from pairio_protocol.errors import DecodeError
from pairio_protocol.limits import LEASE_MS
from pairio_protocol.messages import MESSAGES, Beat, Renew
from tests.protocol.test_core_sim import RESOURCES, World, definition
from tests.protocol.test_exclusive import Lab

BEAT_MS = LEASE_MS // 3 + 200


def _told(lab: Lab, request: str) -> int:
    attempt = lab.submitter.coordinator.attempt_of(request)
    assert attempt is not None
    return attempt.permille


@pytest.mark.parametrize(
    ("name", "secrets"), [("plain", ()), ("online", ()), ("secret", ("TOKEN",))]
)
def test_what_a_run_says_comes_with_the_next_beat(name: str, secrets: tuple[str, ...]) -> None:
    lab = Lab()
    request = lab.submit(name, secrets=secrets)
    lab.pass_slowly(1000)
    [(worker, effect)] = lab.started
    lab.do(worker, ev.Progressed(effect.attempt, 425))
    assert _told(lab, request) == 0
    lab.pass_slowly(BEAT_MS)
    assert _told(lab, request) == 425
    lab.do(worker, ev.Progressed(effect.attempt, 900))
    lab.pass_slowly(BEAT_MS)
    assert _told(lab, request) == 900
    lab.end(worker, effect)
    assert lab.is_done(request)


def test_a_run_that_says_nothing_makes_no_beat_longer() -> None:
    beat = Beat("s", ("a",))
    assert len(MESSAGES.to_plain(beat)) == 3
    assert len(MESSAGES.to_plain(Renew("s", "a", 1))) == 4
    assert MESSAGES.decode(MESSAGES.encode(beat)) == beat


class Alone(World):
    """One node, whose runs never end; `changed` are the jobs of which its clients were told."""

    def __init__(self) -> None:
        self.changed: list[str] = []
        super().__init__(1)

    def _carry_out(self, peer: str, effects: list[ef.Effect]) -> None:
        self.changed += [e.job for e in effects if isinstance(e, ef.JobChanged)]
        super()._carry_out(peer, [e for e in effects if not isinstance(e, ef.Execute)])


def test_a_run_here_is_told_of_at_once_and_only_when_it_says_something_else() -> None:
    world = Alone()
    world.with_service()
    peer = world.peers[0]
    made = world.call(peer, ev.Submit(10, "lab", definition("write"), RESOURCES))
    attempt = world.cores[peer].coordinator.attempt_of(made["request"])
    assert attempt is not None
    for permille, changes in ((10, 1), (10, 0), (11, 1)):
        world.changed.clear()
        world.do(peer, ev.Progressed(attempt.id, permille))
        assert (attempt.permille, world.changed) == (permille, [made["job"]] * changes)
    world.do(peer, ev.Progressed("nobody's", 10))


@pytest.mark.parametrize(
    "wrong",
    [
        ["beat", "s", ["a"], [1001]],
        ["beat", "s", ["a"], [-1]],
        ["beat", "s", ["a"], ["1"]],
        ["renew", "s", "a", 1, 1001],
        ["renew", "s", "a", 1, -1],
    ],
)
def test_what_is_no_progress_is_malformed(wrong: list[object]) -> None:
    with pytest.raises(DecodeError):
        MESSAGES.from_plain(wrong)


def test_only_the_worker_says_how_far_a_run_is() -> None:
    lab = Lab()
    request = lab.submit("plain")
    lab.pass_slowly(1000)
    [(worker, effect)] = lab.started
    [other] = {*lab.peers[1:]} - {worker}
    beat = MESSAGES.encode(Beat(lab.service, (effect.attempt,), (999,)))
    lab.do(lab.peers[0], ev.FrameReceived(other, beat))
    assert _told(lab, request) == 0
    lab.do(lab.peers[0], ev.FrameReceived(worker, beat))
    assert _told(lab, request) == 999
