"""The runners of a node: which of them hold here, and which of them a run gets.

A run gets what it asks for or is not run: nothing is weakened silently. `process`, which isolates
from nothing, is for services and apps that the owner has named (`allow_process`), and for runs of
which neither the job nor its service asks for more.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import trio

from pairio_node.runner.base import ProbeResult, Runner
from pairio_protocol.records import ISOLATIONS

__all__ = ["NoRunner", "Runners", "Wish", "probe_all"]


class NoRunner(Exception):
    """No runner of this node may take the run; says why."""


@dataclass(frozen=True)
class Wish:
    """What a run asks for. `names`: its app and its service, as the owner may call them."""

    isolation_min: str
    has_image: bool = False
    names: Collection[str] = ()


@dataclass(frozen=True)
class Runners:
    """`all` in the order in which they are taken, `found` what their probes said, by name.
    `allow_process`: what may run without a sandbox; "*": everything."""

    all: Sequence[Runner]
    found: dict[str, ProbeResult] = field(default_factory=dict)
    allow_process: Collection[str] = ()

    @property
    def holding(self) -> list[Runner]:
        """Those that hold here and are used, the first choice first. What isolates from nothing is
        not, where there is a sandbox."""
        held = [r for r in self.all if self.found.get(r.name, ProbeResult(True)).ok]
        sandboxes = [r for r in held if r.isolation != "none"]
        if self.allow_process and all(r.runs_images for r in sandboxes):
            return held
        return sandboxes

    @property
    def isolation(self) -> str:
        """How strongly apps without an image are isolated here."""
        held = [r.isolation for r in self.holding if not r.runs_images]
        return max(held, key=ISOLATIONS.index, default="none")

    @property
    def plain(self) -> Runner | None:
        """The first choice for what is not a run, but the owner's own app that says what it is."""
        return next((r for r in self.holding if not r.runs_images), None)

    @property
    def names(self) -> tuple[str, ...]:
        """What runs jobs here."""
        return tuple(runner.name for runner in self.holding)

    @property
    def missing(self) -> dict[str, ProbeResult]:
        """What does not hold here, and why."""
        return {name: probe for name, probe in self.found.items() if not probe.ok}

    def choose(self, wish: Wish) -> Runner:
        """Return the runner of a new run.

        Raises:
            NoRunner: none is strong enough, or none may take it.
        """
        fitting = [r for r in self.holding if r.runs_images == wish.has_image]
        for runner in fitting:
            if runner.isolation == "none" and not self._may_be_process(wish):
                continue
            if ISOLATIONS.index(runner.isolation) >= ISOLATIONS.index(wish.isolation_min):
                return runner
        what = "an app with an image" if wish.has_image else f"isolation {wish.isolation_min!r}"
        raise NoRunner(f"nothing here runs {what}: {self._said()}")

    def _may_be_process(self, wish: Wish) -> bool:
        return bool({*wish.names, "*"} & {*self.allow_process})

    def _said(self) -> str:
        missing = (f"no {name}: {probe.why}" for name, probe in self.missing.items())
        return "; ".join((f"there is {', '.join(self.names) or 'no sandbox'}", *missing))

    def named(self, name: str) -> Runner | None:
        """Return the runner that began a run, whether or not it holds now."""
        return next((runner for runner in self.all if runner.name == name), None)


async def probe_all(runners: Sequence[Runner], allow_process: Collection[str]) -> Runners:
    """Let each runner try to break out; what holds is used from then on."""
    found: dict[str, ProbeResult] = {}

    async def probe(runner: Runner) -> None:
        found[runner.name] = await runner.probe()

    async with trio.open_nursery() as nursery:
        for runner in runners:
            nursery.start_soon(probe, runner)
    return Runners(runners, {r.name: found[r.name] for r in runners}, allow_process)
