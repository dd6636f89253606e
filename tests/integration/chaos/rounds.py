"""Rounds of chaos: the seed says which scenario, how much gossip is lost, and when all happens."""

import random
import time
import traceback
from dataclasses import dataclass

from tests.integration.chaos.lab import ENDS_S, Broken, Lab
from tests.integration.chaos.promises import check_all
from tests.integration.chaos.scenarios import Scenario
from tests.integration.chaos.wires import Wires

__all__ = ["Outcome", "play", "scenario_of"]


@dataclass(frozen=True)
class Outcome:
    """What a round came to. `broken` is the promise that did not hold, or the error."""

    seed: int
    scenario: str
    loss_percent: int
    jobs: int
    took_s: float
    measured: dict[str, float]
    notes: tuple[str, ...]
    broken: str = ""
    details: str = ""

    @property
    def passed(self) -> bool:
        """Say whether every promise held."""
        return not self.broken


def scenario_of(seed: int, deck: list[Scenario]) -> Scenario:
    """Return the scenario of a seed: as many seeds in a row as there are scenarios play all."""
    return deck[seed % len(deck)]


def play(
    scenario: Scenario, seed: int, *, ends_s: float = ENDS_S, plant: str | None = None
) -> Outcome:
    """Play one round in a lab of its own. Leaves the lab's folder only when it failed."""
    rng = random.Random(seed)
    loss = rng.choice(scenario.losses)
    wires = Wires() if scenario.wires else None
    lab = Lab(rng, scenario.nodes, loss, wires, scenario.small_disks, ends_s=ends_s)
    if plant is not None:
        lab.plant = plant
    began = time.monotonic()
    broken = details = ""
    try:
        lab.begin()
        scenario.run(lab, rng)
        check_all(lab)
    except Broken as error:
        broken, details = error.promise, _story(lab, str(error))
    except Exception as error:  # whatever a scenario met is its outcome
        broken = f"{type(error).__name__}: {error}".partition("\n")[0]
        details = _story(lab, "".join(traceback.format_exception(error)))
    finally:
        lab.end(keep=bool(broken) and plant is None)
    return Outcome(
        seed,
        scenario.name,
        loss,
        len(lab.book),
        time.monotonic() - began,
        dict(lab.measured),
        tuple(lab.notes),
        broken,
        details,
    )


def _story(lab: Lab, what: str) -> str:
    """Return what may tell why: every job on every node, and the ends of the logs."""
    lines = [what, f"homes and logs: {lab.folder}"]
    for job in lab.book:
        for node in lab.alive:
            view = lab.view(node, job)
            if view is None:
                lines.append(f"{job.job[-8:]} on {node}: unknown")
                continue
            attempts = [
                f"{a['computeNodeId'][-6:]} {a['ended'] or 'goes on'} {a['reason'] or ''}".strip()
                for a in view["attempts"]
            ]
            safe = "safe" if view["safe"] else "not safe"
            lines.append(f"{job.job[-8:]} on {node}: {view['status']}, {safe}, {attempts}")
    lines += [node.log_tail() for node in lab.nodes]
    return "\n".join(lines)
