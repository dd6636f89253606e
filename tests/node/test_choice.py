"""Which runner a run gets: never a weaker one than it asks for."""

from typing import Literal

import pytest
import trio

from pairio_node.runner import NoRunner, Runners, Wish, probe_all
from pairio_node.runner.base import ProbeResult, RunOutcome, RunSpec

BROKEN = ProbeResult(False, "it leaks", "mend it")


class _Runner:
    def __init__(
        self, name: str, isolation: Literal["none", "medium", "strong"], probe: ProbeResult
    ) -> None:
        self.name, self.isolation, self._probe = name, isolation, probe
        self.runs_images = name == "container"

    async def probe(self) -> ProbeResult:
        return self._probe

    async def run(self, spec: RunSpec, cancel: trio.Event) -> RunOutcome:
        raise NotImplementedError

    async def resume(self, spec: RunSpec, cancel: trio.Event) -> RunOutcome:
        raise NotImplementedError


async def _runners(*broken: str, allow: tuple[str, ...] = ()) -> Runners:
    kinds: list[tuple[str, Literal["none", "medium"]]]
    kinds = [("warm", "medium"), ("bwrap", "medium"), ("container", "medium"), ("process", "none")]
    found = [_Runner(n, i, BROKEN if n in broken else ProbeResult(True)) for n, i in kinds]
    return await probe_all(found, allow)


async def test_the_first_that_holds_is_taken() -> None:
    assert (await _runners()).choose(Wish("medium")).name == "warm"
    assert (await _runners("warm")).choose(Wish("none")).name == "bwrap"


async def test_an_app_with_an_image_runs_in_a_container_and_nowhere_else() -> None:
    runners = await _runners()
    assert runners.choose(Wish("medium", has_image=True)).name == "container"
    with pytest.raises(NoRunner, match="no container: it leaks"):
        (await _runners("container", allow=("*",))).choose(Wish("none", has_image=True))


async def test_a_container_is_no_sandbox_for_an_app_without_an_image() -> None:
    runners = await _runners("warm", "bwrap")
    assert runners.isolation == "none"
    with pytest.raises(NoRunner, match="no bwrap: it leaks"):
        runners.choose(Wish("none"))


async def test_a_broken_sandbox_is_never_made_up_for_by_none() -> None:
    runners = await _runners("warm", "bwrap", allow=("mine",))
    assert runners.names == ("container", "process")
    for wish in (Wish("medium", names=("mine",)), Wish("none", names=("other",)), Wish("strong")):
        with pytest.raises(NoRunner):
            runners.choose(wish)
    assert runners.choose(Wish("none", names=("mine", "lab"))).name == "process"


async def test_process_is_not_there_unless_the_owner_allows_it() -> None:
    assert (await _runners()).names == ("warm", "bwrap", "container")
    assert (await _runners(allow=("*",))).names == ("warm", "bwrap", "container")
    assert (await _runners("warm", "bwrap", "container")).plain is None


async def test_who_began_a_run_is_found_again_although_it_does_not_hold_now() -> None:
    runners = await _runners("bwrap")
    found = runners.named("bwrap")
    assert found is not None
    assert found.name == "bwrap"
    assert list(runners.missing) == ["bwrap"]
    assert runners.isolation == "medium"
