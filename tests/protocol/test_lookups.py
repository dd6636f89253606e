"""Whom a submit asks whether its job was done already."""

from pairio_protocol import effects as ef
from pairio_protocol import events as ev
from pairio_protocol.limits import HOME_NODES, LOOKUP_ASKED
from pairio_protocol.messages import MESSAGES, Lookup
from tests.protocol.test_core_sim import RESOURCES, World, definition


class Lab(World):
    """Counts who is asked for which jobs."""

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.asked: dict[str, set[str]] = {}

    def _carry_out(self, peer: str, effects: list[ef.Effect]) -> None:
        for effect in effects:
            if isinstance(effect, ef.Send):
                message = MESSAGES.decode(effect.data)
                if isinstance(message, Lookup):
                    for job in message.jobs:
                        self.asked.setdefault(job, set()).add(effect.peer)
        super()._carry_out(peer, effects)


def _submits(lab: Lab, count: int) -> list[str]:
    wishes = [{**definition("write"), "cacheBust": str(number)} for number in range(count)]
    first = lab.peers[0]
    for number, wish in enumerate(wishes):  # one look-up at a time: the rest go with the next
        lab.do(first, ev.Submit(100 + number, "lab", wish, RESOURCES))
    lab.settle()
    answers = [lab.answers[100 + number] for number in range(count)]
    return [a.value["job"] for a in answers if isinstance(a, ef.Reply)]


def test_a_submit_asks_the_home_nodes_of_its_job_and_a_few_more_however_many_there_are() -> None:
    lab = Lab(14)
    lab.with_service()
    jobs = _submits(lab, 20)
    core = lab.cores[lab.peers[0]]
    service = core.membership.find("lab") or ""
    assert len(set(jobs)) == 20
    for job in jobs:
        homes = set(core.membership.home_nodes(service, job)) - {core.ctx.me}
        assert len(lab.asked[job]) == LOOKUP_ASKED
        assert homes <= lab.asked[job] and len(homes) >= HOME_NODES - 1
    assert set().union(*(lab.asked[job] for job in jobs)) == set(lab.peers[1:])


def test_in_a_small_service_everybody_is_asked() -> None:
    lab = Lab(LOOKUP_ASKED + 1)
    lab.with_service()
    (job,) = _submits(lab, 1)
    assert lab.asked[job] == set(lab.peers[1:])
