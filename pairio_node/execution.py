"""Carries out `Execute`: run what is prepared (`preparation`), store outputs, tell the core.

A run's folder goes only after the core has stored what it made of `Executed`. Until then a node
that starts again on the home takes the run up (`adoption`), and nothing is run twice.
"""

import hashlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import trio

from pairio_node.adoption import JobCard, find_jobs
from pairio_node.blocks import BlockMissing, FetchFailed, ScopedContent
from pairio_node.blocks.unixfs import UnixfsError
from pairio_node.errors import StorageFullError, UserError
from pairio_node.preparation import InputRefused, Preparation, RunReads
from pairio_node.progress import ProgressReader
from pairio_node.runner import NoRunner, Runner, RunOutcome, RunSpec
from pairio_node.runner.gpus import GpuPool, NoGpu
from pairio_node.runner.supervisor.disk import remove_tree
from pairio_node.runner.supervisor.job import CONSOLE_FILE
from pairio_node.streams import JobStreams
from pairio_protocol.effects import Execute
from pairio_protocol.events import Adopted, Executed
from pairio_protocol.records import SAMPLES_OUTPUT

__all__ = ["Executions"]

log = logging.getLogger("pairio.runs")

#: Folders of runs that are over lie so much longer, to go together.
_REMOVE_S = 0.2
#: Stands for the console among what a run made: no output has an empty name.
_CONSOLE = ""


@dataclass
class _Run:
    """A run that goes on. `fetching` is left when the job starts."""

    folder: Path
    service: str
    reads: RunReads = field(default_factory=RunReads)
    cancel: trio.Event = field(default_factory=trio.Event)
    fetching: trio.CancelScope = field(default_factory=trio.CancelScope)


class Executions:
    """The runs of this node. `runner_for(run)` gives the runner or raises NoRunner, `runner_named`
    the one that began a run; `deliver` hands an `Executed` to the core and returns when what
    follows from it is on disk. What a run made (`made` hears of it) is on the disk before what
    `deliver` leads to is (`store.Writer`)."""

    def __init__(
        self,
        contents: ScopedContent,
        preparation: Preparation,
        jobs: Path,
        runner_for: Callable[[Execute], Runner],
        runner_named: Callable[[str], Runner | None],
        deliver: Callable[[Executed], Awaitable[None]],
        progressed: Callable[[str, int], None],
        made: Callable[[str, list[str]], None],
    ) -> None:
        self._contents = contents
        self._preparation = preparation
        self._jobs = jobs
        self._runner_for = runner_for
        self._runner_named = runner_named
        self._deliver = deliver
        #: How far they are, by their own word; `run` it.
        self.progress = ProgressReader(self._consoles, progressed)
        #: The GPUs of this machine that jobs may have.
        self.gpus = GpuPool()
        self._made = made
        self._runs: dict[str, _Run] = {}
        self._found: list[tuple[_Run, JobCard]] = []
        self._done_with: list[Path] = []
        self._yielding = False
        self._none_left = trio.Event()

    def kill(self, attempt: str) -> None:
        """End a run; `Executed` follows with kind `canceled`."""
        run = self._runs.get(attempt)
        if run is not None:
            run.cancel.set()
            run.fetching.cancel()

    @property
    def running(self) -> int:
        """How many runs are executing."""
        return len(self._runs)

    def console_of(self, service: str, attempt: str) -> Path | None:
        """Return where the console of a run that goes on here for a service is written, when its
        job has begun; None when no such run goes on here."""
        run = self._runs.get(attempt)
        return run.folder / CONSOLE_FILE if run is not None and run.service == service else None

    def _consoles(self) -> dict[str, Path]:
        return {name: run.folder / CONSOLE_FILE for name, run in self._runs.items()}

    async def yield_all(self) -> None:
        """End all runs and return when the core has stored that they were given up."""
        self._yielding = True
        for attempt in list(self._runs):
            self.kill(attempt)
        while self._runs:
            self._none_left = trio.Event()
            await self._none_left.wait()

    async def execute(self, effect: Execute) -> None:
        """Run to the end; a failure is part of the answer. An attempt that goes on here is not
        begun again, and nothing is told of it: its folder, GPUs and end are the first one's."""
        if effect.attempt in self._runs:
            log.warning("attempt %s goes on here already: not begun again", effect.attempt[-40:])
            return
        # The id is a coordinator's word: never a path.
        name = hashlib.sha256(effect.attempt.encode()).hexdigest()[:32]
        run = self._runs[effect.attempt] = _Run(self._jobs / name, effect.service)
        self.progress.begun()
        names = (effect.document["app"], effect.document["processor"], effect.job)
        log.info("run begins: %s/%s, job %s, attempt %s", *names, effect.attempt[-40:])
        if self._yielding:  # begun just before the core was told
            self.kill(effect.attempt)
        await self._finish(run, effect.attempt, self._execute(effect, run))

    async def _finish(self, run: _Run, attempt: str, work: Awaitable[Executed]) -> None:
        with self._contents.store.in_use.working():  # inputs, code and outputs stay meanwhile
            try:
                executed = await work
            except (FetchFailed, BlockMissing, UnixfsError, UserError, OSError) as error:
                executed = _no_result(attempt, "infra", str(error))
            how = executed.kind or executed.status
            log.info("run ends: attempt %s, %s %s", attempt[-40:], how, executed.error or "")
            await self._deliver(executed)
        if run.reads.streams is not None:
            await run.reads.streams.close()
        self._done_with.append(run.folder)
        self.gpus.give_back(attempt)
        if self._runs.get(attempt) is run:
            del self._runs[attempt]
        self._none_left.set()
        if len(self._done_with) == 1:  # else somebody is about to
            await self._remove_soon()

    async def _remove_soon(self) -> None:
        """Remove the folders of runs that are over: those of a moment with one call of a thread,
        and before whoever stops the node cancels this."""
        try:
            await trio.sleep(_REMOVE_S)
        finally:
            folders, self._done_with = self._done_with, []
            with trio.CancelScope(shield=True):
                await self.remove(folders)

    # -- after a restart ------------------------------------------------------------------

    def find(self) -> tuple[tuple[Adopted, ...], Sequence[Path]]:
        """Look for runs that outlived the last start: what the core is to be told, and folders
        that nobody needs (`remove`). `adopt` must follow."""
        adopted, gone = find_jobs(self._jobs)
        for folder, card in adopted:
            run = self._runs[card.attempt] = _Run(folder, card.service)
            self.gpus.keep(card.attempt, card.gpus)
            self._found.append((run, card))
        return tuple(card.event for _, card in adopted), gone

    async def adopt(self) -> None:
        """See the found runs to their ends."""
        async with trio.open_nursery() as nursery:
            for run, card in self._found:
                self.progress.begun()
                nursery.start_soon(self._finish, run, card.attempt, self._resume(run, card))
            self._found = []

    async def remove(self, folders: Sequence[Path]) -> None:
        """Remove folders of runs."""
        await trio.to_thread.run_sync(_remove_all, folders)

    async def _resume(self, run: _Run, card: JobCard) -> Executed:
        runner = self._runner_named(card.runner)
        if runner is None:
            reason = f"it was begun by {card.runner!r}, which this version does not know"
            return _no_result(card.attempt, "infra", reason)
        spec, streams = await self._preparation.resumed(card, run.folder)
        outcome = await _served(streams, lambda: runner.resume(spec, run.cancel))
        return await self._executed(card, outcome, streams)

    # -- one run --------------------------------------------------------------------------

    async def _execute(self, effect: Execute, run: _Run) -> Executed:
        try:
            runner = self._runner_for(effect)
        except NoRunner as error:
            return _no_result(effect.attempt, "infra", str(error))
        spec: RunSpec | None = None
        try:
            with run.fetching:
                spec = await self._preparation.prepare(effect, runner, run.folder, run.reads)
        except InputRefused as error:
            if not run.cancel.is_set():
                return _no_result(effect.attempt, "infra", str(error))
        if spec is None or run.cancel.is_set():
            return _no_result(effect.attempt, *self._given_up)
        try:
            spec = replace(spec, gpu_devices=self.gpus.take(effect.attempt, spec.gpus))
        except NoGpu as error:
            return _no_result(effect.attempt, "infra", str(error))
        uuids = tuple(gpu.uuid for gpu in spec.gpu_devices)
        card = JobCard.of(effect, runner.name, tuple(run.reads.bound), uuids, run.reads.sources)
        card.write(run.folder)
        ready = spec

        async def work() -> RunOutcome:
            return await runner.run(_with_urls(ready, run.reads.streams), run.cancel)

        return await self._executed(card, await _served(run.reads.streams, work), run.reads.streams)

    @property
    def _given_up(self) -> tuple[str, str]:
        """Kind and reason of the end of a run that was told to end."""
        return ("yield", "its node stops") if self._yielding else ("canceled", "canceled")

    async def _executed(
        self, card: JobCard, outcome: RunOutcome, streams: JobStreams | None
    ) -> Executed:
        """Store what a run made."""
        if outcome.status in ("completed", "failed"):
            trouble = await self._input_trouble(card, outcome, streams)
            if trouble:
                return _no_result(card.attempt, "infra", trouble)
        base_names = dict(card.outputs)
        content = self._contents.of(card.service)
        texts = {_CONSOLE: outcome.console}
        if outcome.samples and SAMPLES_OUTPUT not in outcome.outputs:
            texts[SAMPLES_OUTPUT] = outcome.samples
        try:
            added = await content.add_all(outcome.outputs, texts, settle=False)
        except StorageFullError as error:
            return _no_result(card.attempt, "infra", error.message)
        self._made(card.service, [one.cid for one in added.values()])
        console = added.pop(_CONSOLE)
        outputs = {
            name: (one.cid, one.size_bytes, base_names.get(name, name.rpartition("/")[2]))
            for name, one in added.items()
        }
        kind: str = outcome.status if outcome.status in ("infra", "canceled", "yield") else ""
        reason = outcome.error
        if kind == "canceled":
            kind, reason = self._given_up
        return Executed(
            attempt=card.attempt,
            kind=kind,
            status=outcome.status,
            error=reason,
            outputs=outputs,
            console=console.cid,
            usage=outcome.usage,
            isolation=card.runner,
            limit=outcome.limit,
            sources={**card.sources_read, **(await streams.told() if streams is not None else {})},
        )

    async def _input_trouble(
        self, card: JobCard, outcome: RunOutcome, streams: JobStreams | None
    ) -> str:
        """Return why what a job did says nothing of its app; "": it counts. A failure for want of
        input is none of the app; nor is a file that changed a result."""
        if streams is not None:
            trouble = streams.change or (streams.trouble if outcome.status == "failed" else "")
            if trouble:
                return trouble
        changed = await self._preparation.changed_input(card.bound) if card.bound else None
        if changed is None:
            return ""
        return f"input {changed} is a file of this node's owner that changed meanwhile"


def _with_urls(spec: RunSpec, streams: JobStreams | None) -> RunSpec:
    """Return a specification with the URLs by which its job reads what is streamed to it."""
    if streams is None:
        return spec
    inputs = tuple(
        replace(file, url=streams.url(n, file.base_name)) if streams.has(n) else file
        for n, file in enumerate(spec.inputs)
    )
    return replace(spec, inputs=inputs, stream_folder=streams.shown)


async def _served(
    streams: JobStreams | None, work: Callable[[], Awaitable[RunOutcome]]
) -> RunOutcome:
    """Run a job, and serve what it reads meanwhile."""
    if streams is None:
        return await work()
    outcome: RunOutcome | None = None
    failure: Exception | None = None
    async with streams.serving():
        try:
            outcome = await work()
        except Exception as error:  # raised again, not in a group
            failure = error
    if outcome is None:
        raise failure or RuntimeError("a run without an outcome")
    return outcome


def _remove_all(folders: Sequence[Path]) -> None:
    for folder in folders:
        remove_tree(folder)


def _no_result(attempt: str, kind: str, reason: str) -> Executed:
    return Executed(attempt, kind, "", reason, {}, "", {}, "")
