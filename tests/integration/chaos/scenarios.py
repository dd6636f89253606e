"""The scenarios: what is done to a running service. What must hold is in `promises.py`.

Each is a function of a lab and a seeded random generator; its docstring is the promise it guards.
"""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from tests.integration.chaos.disks import no_room
from tests.integration.chaos.lab import Accepted, Broken, Lab
from tests.integration.chaos.nodes import Node, Refused
from tests.integration.chaos.promises import check_safe
from tests.integration.chaos.wires import why_no_wires
from tests.integration.waiting import until

__all__ = ["QUIET", "SCENARIOS", "Scenario"]


@dataclass(frozen=True)
class Scenario:
    """`wires`: two sides that can be cut apart; `small_disks`: the first nodes have little room;
    `losses`: percents of gossip loss to choose from; `why_not` says why this machine cannot run it
    (empty: it can)."""

    run: Callable[[Lab, random.Random], None]
    nodes: int = 4
    losses: tuple[int, ...] = (0, 50, 100)
    wires: bool = False
    small_disks: int = 0
    why_not: Callable[[], str] = lambda: ""

    @property
    def name(self) -> str:
        """Its function's name, with blanks."""
        return self.run.__name__.replace("_", " ")

    @property
    def promise(self) -> str:
        """What it guards."""
        return " ".join((self.run.__doc__ or "").split())


def kill_the_computing_node(lab: Lab, rng: random.Random) -> None:
    """A job whose machine dies runs elsewhere, after at most lease, detection and a second."""
    job, victim = _running_job(lab, rng)
    _bystanders(lab, rng)
    time.sleep(rng.uniform(0.0, 1.0))
    killed_s = time.time()
    victim.kill()
    job.lost = True
    lab.next_start(job, job.node, killed_s)
    lab.wait_end(job, job.node)
    check_safe(lab)  # with the victim's disk gone


def kill_the_submitter_after_submit(lab: Lab, rng: random.Random) -> None:
    """A request accepted with a replica ends without the node that accepted it."""
    node = lab.nodes[0]
    job = lab.submit(node, rng.uniform(0.2, 2.0))
    if rng.random() < 0.5:
        job = lab.submit(node, 0.2, after=job)  # one that somebody else has to award
    if rng.random() < 0.3:
        time.sleep(rng.uniform(0.0, 0.5))
    if job.replicated < 1:
        raise Broken("a submit is acked by another member while one is connected", job.job)
    node.kill()
    for survivor in lab.alive:
        lab.wait_end(job, survivor)


def freeze_the_computing_node(lab: Lab, rng: random.Random) -> None:
    """A frozen machine costs as little as a dead one, and does no harm when it wakes."""
    job, victim = _running_job(lab, rng)
    frozen_s = time.time()
    victim.freeze()
    job.lost = True
    try:
        lab.next_start(job, job.node, frozen_s)
        time.sleep(rng.choice((0.0, rng.uniform(0.0, 4.0))))
    finally:
        victim.thaw()
    lab.wait_end(job, job.node)


def restart_the_computing_node(lab: Lab, rng: random.Random) -> None:
    """A node that comes back on its home takes up what it was doing, or says that it was lost."""
    job, victim = _running_job(lab, rng)
    time.sleep(rng.uniform(0.0, 1.0))
    if rng.random() < 0.5:
        victim.crash()
        victim.restart_after_crash()
        lab.notes.append("crash")
    else:
        if victim.stop() != 0:
            raise Broken("a node ends with 0 when it is asked to", victim.log_tail())
        time.sleep(rng.uniform(0.0, 2.0))
        victim.start()
        lab.notes.append("stop and start")
    victim.wait_ready()
    lab.wait_end(job, job.node)
    for node in lab.alive:
        lab.wait_end(job, node)


def power_failure(lab: Lab, rng: random.Random) -> None:
    """What was accepted ends though every machine lost its power at once."""
    jobs = [lab.submit(rng.choice(lab.nodes), rng.uniform(0.2, 2.0)) for _ in range(6)]
    jobs.append(lab.submit(lab.nodes[0], 0.2, after=jobs[0]))
    time.sleep(rng.uniform(0.0, 1.0))
    for node in rng.sample(lab.nodes, len(lab.nodes)):
        node.kill()
    lab.revive()
    for job in jobs:
        lab.wait_end(job, job.node)


def gossip_off(lab: Lab, rng: random.Random) -> None:
    """Without any gossip everything happens all the same, only later."""
    jobs: list[Accepted] = []
    for number in range(12):
        rest = jobs[-1] if number % 4 == 3 else None
        jobs.append(lab.submit(rng.choice(lab.nodes), rng.uniform(0.0, 0.3), after=rest))
    for job in jobs:
        for node in lab.nodes:
            lab.wait_end(job, node)
    for node in lab.nodes[1:]:
        counters = node.call("GET", "status")["counters"]
        if counters.get("gossip_received"):
            raise Broken("gossip is off altogether", f"{node} took {counters}")


def fill_a_disk(lab: Lab, rng: random.Random) -> None:
    """With a full disk the caller is told, nothing accepted is lost, and it goes on with room."""
    node = rng.choice((lab.nodes[0], lab.nodes[1]))
    before = [lab.submit(node, rng.uniform(0.1, 1.0)) for _ in range(3)]
    with no_room(node) as how:
        refused = _submit_until_refused(lab, node)
        lab.notes.append(f"{how}, {node} said: {refused.message[:60]}")
        if refused.code != "disk" or "not stored" not in refused.message:
            raise Broken("a full disk is told to the caller in words", str(refused))
        elsewhere = lab.submit(next(n for n in lab.nodes if n is not node), 0.2)
        lab.wait_end(elsewhere, elsewhere.node)
    went_on = until("it goes on", lambda: _try_submit(lab, node), 15)
    assert isinstance(went_on, Accepted)
    for job in (*before, went_on):
        lab.wait_end(job, node)


def two_partitions(lab: Lab, rng: random.Random) -> None:
    """Work goes on on both sides of a cut; afterwards all agree, and the same job is the same."""
    wires = lab.wires
    assert wires is not None
    left, right = lab.nodes[0], lab.nodes[3]
    across = lab.submit(left, rng.uniform(3.0, 5.0))
    lab.computing(across)
    cut_s = time.monotonic()
    wires.cut()
    try:
        for _ in range(3):
            lab.submit(left, rng.uniform(0.0, 0.5))
            lab.submit(right, rng.uniform(0.0, 0.5))
        _the_same_job(lab, left, right)
        for job in lab.book[1:]:
            lab.wait_end(job, job.node)
        if rng.random() < 0.5:  # long enough for everybody to notice, or not
            time.sleep(max(0.0, 10.0 - (time.monotonic() - cut_s)))
    finally:
        wires.heal()
    lab.notes.append(f"cut for {time.monotonic() - cut_s:.0f} s")
    for job in lab.book:
        for node in lab.nodes:
            lab.wait_end(job, node)


def nothing_happens(lab: Lab, rng: random.Random) -> None:
    """Without trouble every promise holds; with a planted fault one is found broken."""
    lab.submit(lab.nodes[0], 1.0)


# -- what they share ----------------------------------------------------------------------


def _running_job(lab: Lab, rng: random.Random) -> tuple[Accepted, Node]:
    """Return a job of node 0 that is being computed, and the node that computes it."""
    job = lab.submit(lab.nodes[0], rng.uniform(2.0, 4.0))
    return job, lab.computing(job)


def _bystanders(lab: Lab, rng: random.Random) -> None:
    """Jobs that have nothing to do with the trouble, or little."""
    for _ in range(rng.randrange(4)):
        lab.submit(rng.choice(lab.alive), rng.uniform(0.0, 1.0))


def _the_same_job(lab: Lab, left: Node, right: Node) -> None:
    """Both sides ask for one job; it runs twice, and is one job with one output."""
    tag = f"twin-{lab.rng.getrandbits(32):08x}"
    definition = {
        "appName": "sleeper",
        "processorName": "sleep",
        "outputFiles": [{"name": "output", "fileBaseName": "output.txt"}],
        "parameters": [{"name": "seconds", "value": 0.2}, {"name": "tag", "value": tag}],
    }
    one = lab.submit_definition(left, definition, f"slept {tag}\n")
    other = lab.submit_definition(right, definition, f"slept {tag}\n")
    if one.job != other.job or one.request == other.request:
        raise Broken("one job has one id everywhere, and every request its own", tag)


def _submit_until_refused(lab: Lab, node: Node) -> Refused:
    for _ in range(40):
        try:
            lab.submit(node, 0.1)
        except Refused as refused:
            return refused
    raise Broken("a full disk is told to the caller", f"{node} accepted 40 jobs without room")


def _try_submit(lab: Lab, node: Node) -> Accepted | None:
    try:
        return lab.submit(node, 0.1)
    except Refused:
        return None


#: For tests of the harness itself.
QUIET = Scenario(nothing_happens, nodes=2)

#: By name. The order is the deck of `make chaos`: the seed says which one a round plays.
SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario(kill_the_computing_node),
        Scenario(kill_the_submitter_after_submit),
        Scenario(freeze_the_computing_node),
        Scenario(restart_the_computing_node, nodes=3),
        Scenario(power_failure, nodes=3),
        Scenario(gossip_off, losses=(100,)),
        Scenario(fill_a_disk, nodes=3, small_disks=2),
        Scenario(two_partitions, wires=True, why_not=why_no_wires),
    )
}
