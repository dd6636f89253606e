"""The table: one row for each attack, and how it is tried."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from pairio_node.transport import TransportError
from tests.integration.attacks.lab import Lab, until

__all__ = ["ROWS", "Attack", "Outcome", "attack", "judge"]

Try = Callable[[Lab], Awaitable[Any]]


@dataclass(frozen=True)
class Attack:
    """One attack. `counted` is the name of the counter that must rise; without one `attempt`
    itself returns whether the answer was a refusal."""

    name: str
    has: str
    does: str
    refused_by: str
    counted: str
    attempt: Try
    part: str
    module: str


@dataclass
class Outcome:
    """What came of one attack."""

    attack: Attack
    wrong: list[str] = field(default_factory=list)
    took_s: float = 0.0


ROWS: list[Attack] = []


def attack(
    part: str, name: str, *, has: str, does: str, counted: str = "", refused_by: str = ""
) -> Callable[[Try], Try]:
    """Add a row: its attempt sends what the attacker sends. What refuses it is a counter of the
    node, or, in words, the answer."""
    assert bool(counted) != bool(refused_by)

    def register(attempt: Try) -> Try:
        shown = refused_by or f"counted as `{counted}`"
        ROWS.append(Attack(name, has, does, shown, counted, attempt, part, attempt.__module__))
        return attempt

    return register


async def judge(lab: Lab, row: Attack, patience_s: float = 20.0) -> Outcome:
    """Try an attack, and say what went wrong: not refused, state moved, honest members unserved.
    The state before is the one after the attack before: nothing moves it in between either."""
    outcome = Outcome(row)
    for peer in lab.peers.values():
        peer.lost = ""
    before, counted_before = lab.last_state or await lab.state(), lab.counters()
    try:
        answer = await row.attempt(lab)
    except (AssertionError, TransportError, BaseExceptionGroup) as raised:
        error = _failure(raised)
        lost = "; ".join(f"{p.name} lost: {p.lost}" for p in lab.peers.values() if p.lost)
        outcome.wrong.append(f"{error or 'an assertion failed'} {lost}".strip())
        answer = True
    if row.counted:
        rose = await until(
            lambda: _count(lab.counters(), row.counted) > _count(counted_before, row.counted),
            patience_s,
        )
        if not rose:
            outcome.wrong.append(f"{row.counted!r} did not rise")
    elif not answer:
        outcome.wrong.append("it was not refused")
    if lab.node.process.poll() is not None:
        outcome.wrong.append("the node has ended")
        return outcome
    if not await lab.serves_honest():
        outcome.wrong.append("the honest member is not served any more")
    lab.last_state = await lab.state()
    if lab.last_state != before:
        outcome.wrong.append("the state has moved")
    return outcome


def _failure(raised: BaseException) -> BaseException:
    """Return what failed, out of its nurseries; what is no failure of an attempt is raised."""
    if isinstance(raised, BaseExceptionGroup):
        _, rest = raised.split((AssertionError, TransportError))
        if rest is not None:
            raise rest
        while isinstance(raised, BaseExceptionGroup):
            raised = raised.exceptions[0]
    return raised


def _count(counters: dict[str, int], name: str) -> int:
    return counters.get(name, 0)
