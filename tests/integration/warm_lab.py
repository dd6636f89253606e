"""A lab for warm workers: an app that runs what its parameter says, and a pool that keeps it."""

import json
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio

from pairio_node.runner import Launcher, RunInput, RunOutcome, RunOutput, RunSpec
from pairio_node.runner.zygote.pool import WarmLimits, WarmPool
from pairio_node.runner.zygote.runner import WarmRunner

#: What a busy machine may take for anything.
PATIENCE_S = 90

_APP = """
import json, os, sys
{imports}
from pairio.sdk import App, ProcessorBase

class Probe(ProcessorBase):
    name = "probe"
    attributes = {attributes}
    @staticmethod
    def run(context):
        exec(context.code, {{**globals(), 'context': context}})

app = App("probe")
app.add_processor(Probe)
{before}
app.run()
"""


@dataclass
class Lab:
    """Jobs of one app. `say` in a job's code prints what `told` gives back."""

    top: Path
    runner: WarmRunner
    count: int = 0
    specs: dict[str, Any] = field(default_factory=dict)
    #: Has the pool let go, as by a node that stops; and when it has.
    stop: Callable[[], None] = lambda: None
    stopped: trio.Event = field(default_factory=trio.Event)

    def app(self, imports: str = "", before: str = "", attributes: str = "{}") -> None:
        """Write the app: what it does when it is imported, and just before it waits for jobs."""
        bundle = self.top / "apps" / f"app{len(list((self.top / 'apps').iterdir()))}"
        bundle.mkdir()
        text = _APP.format(imports=imports, before=before, attributes=attributes)
        (bundle / "main.py").write_text(text)
        self.specs = {"bundle": bundle}

    def spec(self, code: str, **changes: Any) -> RunSpec:
        self.count += 1
        work = self.top / "jobs" / str(self.count)
        work.mkdir(mode=0o700)
        fields = {
            "attempt": str(self.count),
            "job_id": f"job{self.count}",
            "service": "s",
            "app": "probe",
            "processor": "probe",
            "executable": "/app/main.py",
            "inputs": (),
            "list_inputs": (),
            "outputs": (),
            "parameters": [{"name": "code", "value": code}],
            "cpu_millicores": 1000,
            "memory_mib": 512,
            "gpus": 0,
            "time_ms": 60_000,
            "work_dir": work,
            **self.specs,
            **changes,
        }
        return RunSpec(**fields)

    async def run(self, code: str, cancel: trio.Event | None = None, **changes: Any) -> RunOutcome:
        return await self.run_spec(self.spec(code, **changes), cancel)

    async def run_spec(self, spec: RunSpec, cancel: trio.Event | None = None) -> RunOutcome:
        with trio.fail_after(PATIENCE_S):
            return await self.runner.run(spec, trio.Event() if cancel is None else cancel)

    async def told(self, code: str, **changes: Any) -> Any:
        """Run code that prints one JSON document; the job must complete."""
        outcome = await self.run(code, **changes)
        assert outcome.status == "completed", (outcome.error, outcome.console)
        return json.loads(outcome.console)

    @property
    def status(self) -> dict[str, Any]:
        return self.runner.pool.status()[0]

    async def warm(self, kind: str = "zygote") -> dict[str, Any]:
        """Have the app warm; fails when it gets another kind of workers."""
        await self.run("pass")
        return await self.settled(kind)

    async def settled(self, kind: str) -> dict[str, Any]:
        await until(lambda: self.status["workers"] != "starting" and _is_final(self.status))
        assert self.status["workers"] == kind, self.status
        return self.status


def _is_final(status: dict[str, Any]) -> bool:
    return status["workers"] != "cold" or bool(status["why"])


async def until(holds: Callable[[], bool]) -> None:
    with trio.fail_after(PATIENCE_S):
        while not holds():  # noqa: ASYNC110 - of another process, that sets no event
            await trio.sleep(0.05)


@asynccontextmanager
async def lab(
    top: Path, limits: WarmLimits | None = None, *, groups: bool = True
) -> AsyncIterator[Lab]:
    for name in ("apps", "jobs"):
        (top / name).mkdir(exist_ok=True)
    with Launcher(top / "alive", with_groups=groups) as launcher:
        pool = WarmPool(top / "warm", launcher, limits or WarmLimits())
        made = Lab(top, WarmRunner(launcher, pool))
        made.app()

        async def serve() -> None:
            with trio.CancelScope() as scope:
                made.stop = scope.cancel
                await pool.serve()
            made.stopped.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            yield made
            nursery.cancel_scope.cancel()
    shutil.rmtree(top / "jobs")


__all__ = ["PATIENCE_S", "Lab", "RunInput", "RunOutput", "lab", "until"]
