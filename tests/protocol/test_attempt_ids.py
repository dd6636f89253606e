"""An attempt id stands for one execution on a worker, whatever its coordinator sends again."""

from dataclasses import replace

import pytest

from pairio_protocol import events as ev
from pairio_protocol.effects import Effect, Execute
from pairio_protocol.ids import request_id, run_id
from pairio_protocol.messages import MESSAGES, Award, CancelNow, Decline, Have, Push
from pairio_protocol.records import Record
from pairio_protocol.segment import GENESIS, Segment
from pairio_protocol.signing import SigningKey
from tests.protocol.test_core_sim import RESOURCES, World, definition

VICTIM, MEMBER = (SigningKey(bytes([n]) * 32) for n in (2, 3))
ATTEMPT = f"{MEMBER.peer}/{'03' * 8}/1"


class Repeating(World):
    """A member awards runs of his own to a worker, always under one attempt id. What begins there
    ends only when `ends` is called."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        super().__init__(3)
        self.with_service()
        self.core = self.cores[VICTIM.peer]
        self.service = next(iter(self.core.membership.taken_up))
        wish = {**definition("write"), "cacheBust": "x"}
        made = self.call(VICTIM.peer, ev.Submit(10, "lab", wish, RESOURCES))
        record = self.core.fold(self.service).requests[made["request"]].record
        wishes: list[Record] = [replace(record, mode="skip_cache")] * 2  # a run of its own each
        epoch = self.core.membership.chains[self.service].epoch
        own = Segment.seal(MEMBER, self.service, bytes(16), 0, epoch, GENESIS, wishes)
        self.heard(Push(own.encode(), False))
        self.begun.clear()
        self.queue.clear()

    def _carry_out(self, peer: str, effects: list[Effect]) -> None:
        self.begun += [e.attempt for e in effects if isinstance(e, Execute)]
        super()._carry_out(peer, [e for e in effects if not isinstance(e, Execute)])

    def heard(self, message: Award | CancelNow | Push) -> None:
        """The worker hears something of the member."""
        self.do(VICTIM.peer, ev.FrameReceived(MEMBER.peer, MESSAGES.encode(message)))

    def award(self, number: int = 0) -> list[Have | Decline]:
        """Award a request of the member; return what the worker says to it."""
        self.queue.clear()
        name = request_id(self.service, MEMBER.peer, bytes(16), number)
        run = run_id(self.core.fold(self.service).requests[name].job, name)
        self.heard(Award(self.service, name, run, ATTEMPT, (), 10_000))
        said = [MESSAGES.decode(e.data) for _, e in self.queue if isinstance(e, ev.FrameReceived)]
        return [message for message in said if isinstance(message, Have | Decline)]

    def ends(self, kind: str) -> None:
        """The executor says that the run is over."""
        over = ev.Executed(ATTEMPT, kind, "", "no such input", {}, "", {}, "")
        self.do(VICTIM.peer, over)

    def declined(self, number: int = 0) -> bool:
        """Award it once more; say whether it was declined and counted."""
        before = self.core.ctx.counters["awards declined"]
        (said,) = self.award(number)
        counted = self.core.ctx.counters["awards declined"] - before
        return isinstance(said, Decline) and "attempt id" in said.reason and counted == 1


def test_an_award_that_comes_twice_is_answered_twice_and_begins_once() -> None:
    world = Repeating()
    world.award()
    (said,) = world.award()
    assert isinstance(said, Have)
    assert said.state == "executing"
    assert world.begun == [ATTEMPT]


@pytest.mark.parametrize("number", [0, 1], ids=["the same run", "another run"])
def test_an_attempt_that_has_ended_is_not_begun_again(number: int) -> None:
    world = Repeating()
    world.award()
    world.ends("infra")  # the executor still waits for the commit of it
    assert world.declined(number)
    assert world.begun == [ATTEMPT]


@pytest.mark.parametrize("number", [0, 1], ids=["the same run", "another run"])
def test_an_attempt_that_is_being_killed_is_not_begun_again(number: int) -> None:
    world = Repeating()
    world.award()
    world.heard(CancelNow(world.service, ATTEMPT))
    assert world.core.worker.tasks[ATTEMPT].canceled
    assert world.declined(number)
    world.ends("canceled")
    assert ATTEMPT not in world.core.worker.tasks
    assert world.declined(number)
    assert world.begun == [ATTEMPT]


@pytest.mark.parametrize("number", [0, 1], ids=["the same run", "another run"])
def test_an_attempt_of_a_service_that_was_left_is_not_begun_again(number: int) -> None:
    world = Repeating()
    world.award()
    world.core.worker.leave(world.service)  # its kill is under way
    assert world.declined(number)
    assert world.begun == [ATTEMPT]


def test_an_attempt_that_an_earlier_start_of_the_node_began_is_not_begun_again() -> None:
    world = Repeating()
    world.award()
    world.ends("infra")
    world.core.worker.begun.clear()  # as after a restart: the records are what is left
    assert world.declined()
