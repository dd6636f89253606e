"""Whom a submit asks whether its job was done already."""

from dataclasses import replace

from pairio_protocol import effects as ef
from pairio_protocol import events as ev
from pairio_protocol.limits import HOME_NODES, LOOKUP_ASKED
from pairio_protocol.messages import MESSAGES, Lookup
from pairio_protocol.normalise import job_id_of, normalise
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


# -- further than connected members ------------------------------------------------------------


class FurtherLab(Lab):
    """The first node may look further; what it is to look for is noted."""

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.further: list[ef.LookFurther] = []
        self.first = self.cores[self.peers[0]]
        self.first.ctx.config = replace(self.first.ctx.config, looks_further=True)

    def _carry_out(self, peer: str, effects: list[ef.Effect]) -> None:
        self.further += [effect for effect in effects if isinstance(effect, ef.LookFurther)]
        super()._carry_out(peer, effects)

    def submit(self, call: int, mode: str = "use") -> None:
        wish = definition("write")
        self.do(self.first.ctx.me, ev.Submit(call, "lab", wish, RESOURCES, mode=mode))
        self.settle()

    def lose_a_home(self) -> str:
        """Cut the first node off one home node of the job."""
        service = self.first.membership.find("lab") or ""
        membership, me = self.first.membership, self.first.ctx.me
        app = membership.folded(service).apps["hello"]
        job = job_id_of(normalise(definition("write"), app))
        home = next(peer for peer in membership.home_nodes(service, job) if peer != me)
        self.do(self.first.ctx.me, ev.PeerDown(home))
        self.do(home, ev.PeerDown(self.first.ctx.me))
        self.settle()
        return job


def test_a_submit_looks_no_further_while_all_home_nodes_of_its_job_are_connected() -> None:
    lab = FurtherLab(5)
    lab.with_service()
    lab.submit(100)
    assert lab.further == []
    assert isinstance(lab.answers[100], ef.Reply)


def test_with_a_home_node_away_it_looks_further_once_and_then_asks_for_the_job() -> None:
    lab = FurtherLab(5)
    lab.with_service()
    job = lab.lose_a_home()
    lab.submit(100)
    assert [(look.call, look.job) for look in lab.further] == [(100, job)]
    assert (100 in lab.answers, lab.executed) == (False, [])
    asked = len(lab.asked[job])
    lab.do(lab.first.ctx.me, ev.LookedFurther(100))
    lab.settle()
    assert isinstance(lab.answers[100], ef.Reply)
    assert len(lab.executed) == 1
    assert len(lab.further) == 1
    assert len(lab.asked[job]) == asked, "members are not asked a second time"
    lab.do(lab.first.ctx.me, ev.LookedFurther(100))  # said twice: nothing
    lab.settle()
    assert len(lab.executed) == 1


def test_who_asks_for_a_new_run_or_was_not_told_to_looks_no_further() -> None:
    lab = FurtherLab(5)
    lab.with_service()
    lab.lose_a_home()
    lab.submit(100, mode="skip_cache")
    lab.first.ctx.config = replace(lab.first.ctx.config, looks_further=False)
    lab.submit(101)
    assert lab.further == []
