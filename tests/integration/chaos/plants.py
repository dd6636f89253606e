"""Faults that the harness plants on purpose, to show that it notices: `PAIRIO_CHAOS_PLANT=name`.

The nodes know nothing of them. Each is planted at one point of `check_all` and has to be found as
the broken promise named in `tests/integration/test_chaos.py`.
"""

from collections.abc import Callable
from functools import partial

from tests.block_files import lose_blocks
from tests.integration.chaos.lab import LONG_LEASE, Accepted, Lab
from tests.integration.waiting import until

__all__ = ["plant_at"]


def plant_at(point: str, lab: Lab) -> None:
    """Plant the lab's fault if it belongs here."""
    if lab.plant in ("", LONG_LEASE):  # that one is a setting of the nodes
        return
    where, plant = _PLANTS[lab.plant]
    if where == point:
        plant(lab)


def _nobody_computes(lab: Lab) -> None:
    """Every computing node dies and none comes back: nothing can end."""
    for node in lab.nodes[1:]:
        node.kill()


def _blocks_are_gone(lab: Lab) -> None:
    """What was said to be safe is on no disk."""
    for job in lab.book:
        until("safe", partial(_is_safe, lab, job), 15)
    for node in lab.alive:
        lose_blocks(node.home)


def _is_safe(lab: Lab, job: Accepted) -> bool:
    return bool((lab.view(job.node, job) or {}).get("safe"))


def _a_node_forgets(lab: Lab) -> None:
    """A node comes back without its database, where nobody finds it."""
    node = lab.nodes[-1]
    node.kill()
    for path in node.home.glob("node.db*"):
        path.unlink()
    node.settings |= {"bootstrap": [], "listen": ["/ip4/127.0.0.1/tcp/0"]}
    node.start()
    node.wait_ready()


_PLANTS: dict[str, tuple[str, Callable[[Lab], None]]] = {
    "nobody computes": ("begin", _nobody_computes),
    "blocks are gone": ("ended", _blocks_are_gone),
    "a node forgets": ("revived", _a_node_forgets),
}
