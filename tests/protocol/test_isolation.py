"""How strongly a run is isolated: job, service and owner may each ask for more."""

from dataclasses import replace

import pytest

from pairio_protocol import events as ev
from tests.protocol.test_core_sim import RESOURCES, World, definition

SANDBOX = "medium"


def _run_on(
    isolation: str, allow_process: tuple[str, ...], policy: str = "", job: str = ""
) -> str | None:
    """Submit a job at a node alone; return the isolation that its run must have, None: not run."""
    world = World(1)
    (core,) = world.cores.values()
    core.ctx.config = replace(
        core.ctx.config, isolation=isolation, allow_process=allow_process, compute=True
    )
    world.with_service()
    if policy:
        (chain,) = core.membership.chains.values()
        assert chain is not None
        chain.now.policy["isolation_min"] = policy
    world.do(
        world.peers[0], ev.Submit(10, "lab", definition("write"), RESOURCES, isolation_min=job)
    )
    needed = [task.isolation_min for task in core.worker.tasks.values()]
    return needed[0] if needed else None


@pytest.mark.parametrize("policy", ["", "none", "medium"])
@pytest.mark.parametrize("job", ["", "none", "medium"])
def test_without_a_sandbox_nothing_runs_that_the_owner_has_not_named(job: str, policy: str) -> None:
    # A service whose admin asks for nothing decides nothing about this machine.
    assert _run_on("none", (), policy, job) is None
    assert _run_on("none", ("another",), policy, job) is None


@pytest.mark.parametrize("name", ["hello", "lab", "*"])
def test_what_the_owner_has_named_runs_without_one_unless_more_is_asked_for(name: str) -> None:
    assert _run_on("none", (name,)) == "none"
    assert _run_on("none", (name,), policy="none") == "none"
    assert _run_on("none", (name,), policy="medium") is None
    assert _run_on("none", (name,), job="medium") is None
    assert _run_on("none", (name,), policy="medium", job="none") == "none"


def test_a_sandbox_is_medium_and_not_strong() -> None:
    assert _run_on(SANDBOX, ()) == "medium"
    assert _run_on(SANDBOX, (), job="none") == "medium"
    assert _run_on(SANDBOX, ("*",)) == "none"  # at least; the strongest that is there is taken
    assert _run_on(SANDBOX, (), job="strong") is None
    assert _run_on(SANDBOX, ("*",), policy="strong") is None
