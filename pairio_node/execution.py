"""Carries out `Execute`: fetch code and inputs, run, store outputs, tell the core."""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import trio

from pairio_node.blocks import BlockMissing, Content, Exchange, FetchFailed
from pairio_node.blocks.unixfs import UnixfsError
from pairio_node.errors import StorageFullError, UserError
from pairio_node.runner import RunInput, Runner, RunOutcome, RunOutput, RunSpec
from pairio_protocol.effects import Execute
from pairio_protocol.events import Executed

__all__ = ["Executions"]

_LIMIT_BYTES = 2**42


class Executions:
    """The runs of this node. `runner_for(isolation)` gives the runner or None."""

    def __init__(
        self,
        content: Content,
        exchange: Exchange,
        jobs: Path,
        runner_for: Callable[[str], Runner | None],
    ) -> None:
        self._content = content
        self._exchange = exchange
        self._jobs = jobs
        self._runner_for = runner_for
        self._cancels: dict[str, trio.Event] = {}
        self._bundle_lock = trio.Lock()

    def kill(self, attempt: str) -> None:
        """End a run; `Executed` follows with kind `canceled`."""
        if attempt in self._cancels:
            self._cancels[attempt].set()

    @property
    def running(self) -> int:
        """How many runs are executing."""
        return len(self._cancels)

    async def execute(self, effect: Execute) -> Executed:
        """Run to the end. Never raises but for cancellation: a failure is part of the answer."""
        cancel = self._cancels[effect.attempt] = trio.Event()
        # The id is a coordinator's word: never a path.
        work_dir = self._jobs / hashlib.sha256(effect.attempt.encode()).hexdigest()[:32]
        try:
            return await self._execute(effect, work_dir, cancel)
        except (FetchFailed, BlockMissing, UnixfsError, UserError, OSError) as error:
            return _infra(effect, str(error))
        finally:
            del self._cancels[effect.attempt]
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(lambda: shutil.rmtree(work_dir, ignore_errors=True))

    async def _execute(self, effect: Execute, work_dir: Path, cancel: trio.Event) -> Executed:
        runner = self._runner_for(effect.isolation_min)
        if runner is None:
            return _infra(effect, f"no sandbox of isolation {effect.isolation_min!r} here")
        bundle = await self._bundle(effect)
        work_dir.mkdir(mode=0o700)
        inputs = []
        for number, entry in enumerate(effect.document["inputs"]):
            source = entry["source"]
            if "cid" not in source:
                return _infra(effect, f"input {entry['name']!r} is a URL, not read here yet")
            await self._exchange.fetch(source["cid"], effect.holders, limit_bytes=_LIMIT_BYTES)
            folder = work_dir / "in" / str(number)
            folder.mkdir(parents=True)
            path = folder / entry["base_name"]
            await self._content.export(source["cid"], path)
            inputs.append(RunInput(entry["name"], entry["base_name"], path))
        spec = RunSpec(
            attempt=effect.attempt,
            job_id=effect.job,
            service=effect.service,
            app=effect.document["app"],
            processor=effect.document["processor"],
            executable=effect.processor["executable"],
            bundle=bundle,
            inputs=tuple(inputs),
            list_inputs=tuple(i["name"] for i in effect.processor["inputs"] if i["list"]),
            outputs=tuple(RunOutput(o["name"], o["base_name"]) for o in effect.document["outputs"]),
            parameters=effect.document["parameters"],
            cpu_millicores=effect.resources.cpu_millicores,
            memory_mib=effect.resources.memory_mib,
            gpus=effect.resources.gpus,
            time_ms=effect.resources.time_ms,
            work_dir=work_dir,
        )
        outcome = await runner.run(spec, cancel)
        return await self._executed(effect, runner, outcome)

    async def _bundle(self, effect: Execute) -> Path:
        """Return the app's folder, exported once and kept."""
        path = self._jobs.parent / "apps" / effect.bundle
        async with self._bundle_lock:
            if not path.exists():
                await self._exchange.fetch(effect.bundle, effect.holders, limit_bytes=_LIMIT_BYTES)
                path.parent.mkdir(mode=0o700, exist_ok=True)
                part = path.with_name(f"{path.name}.part")
                await trio.to_thread.run_sync(lambda: shutil.rmtree(part, ignore_errors=True))
                await self._content.export(effect.bundle, part)
                part.rename(path)
        return path

    async def _executed(self, effect: Execute, runner: Runner, outcome: RunOutcome) -> Executed:
        names = {o["name"]: o["base_name"] for o in effect.document["outputs"]}
        outputs: dict[str, tuple[str, int, str]] = {}
        try:
            for name, path in outcome.outputs.items():
                added = await self._content.add_file(path)
                base = names.get(name, name.rpartition("/")[2])
                outputs[name] = (added.cid, added.size_bytes, base)
            console = await self._content.add_bytes(outcome.console)
        except StorageFullError as error:
            return _infra(effect, error.message)
        kind = outcome.status if outcome.status in ("infra", "canceled") else ""
        return Executed(
            attempt=effect.attempt,
            kind=kind,
            status=outcome.status,
            error=outcome.error,
            outputs=outputs,
            console=console.cid,
            usage=outcome.usage,
            isolation=runner.name,
            limit=outcome.limit,
        )


def _infra(effect: Execute, reason: str) -> Executed:
    return Executed(effect.attempt, "infra", "", reason, {}, "", {}, "")
