"""Carries out `Execute`: fetch code and inputs, run, store outputs, tell the core.

A run's folder goes only after the core has stored what it made of `Executed`. Until then a node
that starts again on the home takes the run up (`adoption`), and nothing is run twice.
"""

import hashlib
import logging
import shutil
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Container, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import trio

from pairio_node.adoption import JobCard, find_jobs
from pairio_node.blocks import BlockMissing, Exchange, FetchFailed, ScopedContent
from pairio_node.blocks.unixfs import UnixfsError
from pairio_node.errors import StorageFullError, UserError
from pairio_node.images import RunImages
from pairio_node.outside import Outside
from pairio_node.progress import ProgressReader
from pairio_node.runner import NoRunner, RunInput, Runner, RunOutcome, RunOutput, RunSpec
from pairio_node.runner.bounds import JobBounds
from pairio_node.runner.gpus import GpuPool, NoGpu
from pairio_node.runner.supervisor.disk import remove_tree
from pairio_node.runner.supervisor.job import CONSOLE_FILE
from pairio_node.streams import JobStreams
from pairio_node.streams.content import ReadContent, StreamedContent
from pairio_node.urls import UrlError, UrlRules, fetch_url
from pairio_protocol.apps import Needs
from pairio_protocol.cid import DAG_PB, parse_cid
from pairio_protocol.effects import Execute
from pairio_protocol.events import Adopted, Executed
from pairio_protocol.limits import STREAMED_SIZE_BYTES_MIN
from pairio_protocol.records import SAMPLES_OUTPUT, SourceRead

__all__ = ["Executions"]

log = logging.getLogger("pairio.runs")

_LIMIT_BYTES = 2**42
#: A copy of an input takes at most so much of what is free where jobs lie.
_DISK_PERCENT_MAX = 90
#: What strangers ask for takes the CPU that nothing else on the machine wants.
_GUESTS_NICE = 19
#: What a job may use is looked at anew after this time.
_BOUNDS_S = 1.0
#: Folders of runs that are over lie so much longer, to go together.
_REMOVE_S = 0.2
#: Stands for the console among what a run made: no output has an empty name.
_CONSOLE = ""
#: What a run reads by streams, in its folder.
_STREAMS = "streams"


@dataclass
class _Run:
    """A run that goes on. `fetching` is left when the job starts."""

    folder: Path
    service: str
    bound: list[str] = field(default_factory=list)  # inputs read from the owner's own files
    sources: dict[str, SourceRead] = field(default_factory=dict)  # inputs by URL, fetched whole
    streams: JobStreams | None = None
    cancel: trio.Event = field(default_factory=trio.Event)
    fetching: trio.CancelScope = field(default_factory=trio.CancelScope)


class Executions:
    """The runs of this node. `runner_for(run)` gives the runner or raises NoRunner, `runner_named`
    the one that began a run; `deliver` hands an `Executed` to the core and returns when what
    follows from it is on disk. Inputs that no member gives are taken from `outside`. `bindable`
    gives, in a thread, where a file or folder lies that the owner has here and that is as it
    was; `bounds` what one job may use now, in a thread. What a run made is on the disk before what
    `deliver` leads to is (`store.Writer`)."""

    def __init__(
        self,
        contents: ScopedContent,
        exchange: Exchange,
        jobs: Path,
        runner_for: Callable[[Execute], Runner],
        runner_named: Callable[[str], Runner | None],
        deliver: Callable[[Executed], Awaitable[None]],
        restart_grace_s: int,
        url_rules: UrlRules,
        used: Callable[[str], None] = lambda _: None,
        outside: Outside | None = None,
        bindable: Callable[[str], Path | None] = lambda _: None,
        secrets_of: Callable[[Execute, tuple[str, ...]], Awaitable[dict[str, str]]] | None = None,
        bounds: Callable[[], JobBounds] = JobBounds,
        progressed: Callable[[str, int], None] = lambda _, __: None,
        made: Callable[[str, list[str]], None] = lambda _, __: None,
    ) -> None:
        self._contents = contents
        self._exchange = exchange
        self._inputs = outside or exchange
        self._jobs = jobs
        self._runner_for = runner_for
        self._runner_named = runner_named
        self._deliver = deliver
        self._grace_s = restart_grace_s
        self._url_rules = url_rules
        self._used = used
        #: How far they are, by their own word; `run` it.
        self.progress = ProgressReader(self._consoles, progressed)
        #: What jobs tried in vain.
        self.counters: Counter[str] = Counter()
        #: The GPUs of this machine that jobs may have.
        self.gpus = GpuPool()
        self._bindable = bindable
        self._secrets_of = secrets_of
        self._bounds = bounds
        self._bounded: tuple[float, JobBounds] | None = None
        self._made = made
        self._runs: dict[str, _Run] = {}
        self._found: list[tuple[_Run, JobCard]] = []
        self._done_with: list[Path] = []
        self._images = RunImages(contents)
        self._yielding = False
        self._none_left = trio.Event()
        self._bundle_lock = trio.Lock()
        self._bundles: set[tuple[str, str]] = set()  # services and what is here whole for them

    def kill(self, attempt: str) -> None:
        """End a run; `Executed` follows with kind `canceled`."""
        run = self._runs.get(attempt)
        if run is not None:
            run.cancel.set()
            run.fetching.cancel()

    def forget(self, cids: Container[str]) -> None:
        """These blocks are not here any more: bundles among them are fetched again when asked."""
        self._bundles = {(service, b) for service, b in self._bundles if b not in cids}

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
        """Run to the end; a failure is part of the answer."""
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
        if run.streams is not None:
            await run.streams.close()
        self._done_with.append(run.folder)
        self.gpus.give_back(attempt)
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
        bounds = await self._bounds_now()
        spec = _resumed_spec(run.folder, card, self._grace_s, bounds)
        read = self._reader(card.service)
        streams = JobStreams.found(run.folder / _STREAMS, self._url_rules, self.counters, read)
        outcome = await _served(streams, lambda: runner.resume(spec, run.cancel))
        return await self._executed(card, outcome, streams)

    async def _bounds_now(self) -> JobBounds:
        """Return what one job may use: the disk may be slow to say what is free, and is not asked
        for each of many jobs."""
        now_s = trio.current_time()
        if self._bounded is None or now_s - self._bounded[0] > _BOUNDS_S:
            self._bounded = (now_s, await trio.to_thread.run_sync(self._bounds))
        return self._bounded[1]

    # -- one run --------------------------------------------------------------------------

    async def _execute(self, effect: Execute, run: _Run) -> Executed:
        try:
            runner = self._runner_for(effect)
        except NoRunner as error:
            return _no_result(effect.attempt, "infra", str(error))
        spec: RunSpec | Executed | None = None
        with run.fetching:
            spec = await self._prepare(effect, run, runner)
            if isinstance(spec, RunSpec) and "container" in effect.processor:
                image = await self._images.ensure(effect, run.folder, runner, self._fetch)
                spec = replace(spec, image=image)
        if spec is None or run.cancel.is_set():
            return _no_result(effect.attempt, *self._given_up)
        if isinstance(spec, Executed):
            return spec
        try:
            spec = replace(spec, gpu_devices=self.gpus.take(effect.attempt, spec.gpus))
        except NoGpu as error:
            return _no_result(effect.attempt, "infra", str(error))
        uuids = tuple(gpu.uuid for gpu in spec.gpu_devices)
        card = JobCard.of(effect, runner.name, tuple(run.bound), uuids, run.sources)
        card.write(run.folder)
        ready = spec

        async def work() -> RunOutcome:
            return await runner.run(_with_urls(ready, run.streams), run.cancel)

        return await self._executed(card, await _served(run.streams, work), run.streams)

    @property
    def _given_up(self) -> tuple[str, str]:
        """Kind and reason of the end of a run that was told to end."""
        return ("yield", "its node stops") if self._yielding else ("canceled", "canceled")

    async def _prepare(self, effect: Execute, run: _Run, runner: Runner) -> RunSpec | Executed:
        """Fetch code and inputs."""
        may_bind = runner.isolation != "none"
        needs = Needs.of(effect.processor)
        streamed = _streamed(effect.processor)
        own_network = may_bind and not needs.network
        bundle = await self._bundle(effect)
        folder = run.folder
        folder.mkdir(mode=0o700)
        rules = self._url_rules  # strangers do not reach what the owner lets members reach
        if effect.for_guest:
            rules = replace(rules, allow_hosts=())
        inputs = []
        for number, entry in enumerate(effect.document["inputs"]):
            streams = None
            if entry["name"].partition("[")[0] in streamed:
                streams = run.streams = run.streams or JobStreams(
                    folder / _STREAMS, rules, own_network=own_network, refused=self.counters
                )
            try:
                made = await self._run_input(effect, run, number, entry, streams, may_bind, rules)
            except UrlError as error:  # elsewhere it may be allowed, or reachable
                said = "; ".join(part for part in (error.message, error.hint) if part)
                reason = f"input {entry['name']!r}: {said}"
                return _no_result(effect.attempt, "infra", reason)
            inputs.append(made)
        return RunSpec(
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
            work_dir=folder,
            restart_grace_s=0 if needs.exclusive else self._grace_s,
            nice=_GUESTS_NICE if effect.for_guest else 0,
            bounds=await self._bounds_now(),
            network="full" if needs.network else "none",
            secrets=await self._secrets(effect, needs),  # last: they are asked for at once
        )

    async def _secrets(self, effect: Execute, needs: Needs) -> dict[str, str]:
        if not needs.secrets or self._secrets_of is None:
            return {}
        return await self._secrets_of(effect, needs.secrets)

    async def _run_input(
        self,
        effect: Execute,
        run: _Run,
        number: int,
        entry: dict[str, Any],
        streams: JobStreams | None,
        may_bind: bool,
        rules: UrlRules,
    ) -> RunInput:
        """Fetch an input, or have it read by `streams`. Raises UrlError."""
        name, source = entry["name"], entry["source"]
        folder = run.folder / "in" / str(number)
        folder.mkdir(parents=True)
        path, is_here = folder / entry["base_name"], True
        if "url" in source:
            if streams is not None:
                await streams.add_url(number, name, source["url"])
                is_here = False
            else:
                run.sources[name] = await _fetched(source["url"], path, rules)
            return RunInput(name, entry["base_name"], path, is_here=is_here)
        content = None
        if streams is not None:
            content = await self._streamed(effect, name, source["cid"], may_bind)
        if streams is not None and content is not None:
            streams.add_content(number, content, self._reader(effect.service))
            return RunInput(name, entry["base_name"], path, is_here=False)
        path = await self._input(effect, run, source["cid"], path, may_bind)
        if streams is not None and path.is_file():
            streams.add_file(number, path)
        return RunInput(name, entry["base_name"], path)

    async def _streamed(
        self, effect: Execute, name: str, cid: str, may_bind: bool
    ) -> StreamedContent | None:
        """Return an input that the job reads by parts, if it is a large file: not one of the
        owner's own, which is shown to it where it lies. Only its root is fetched for that."""
        if parse_cid(cid).codec != DAG_PB:
            return None  # one block
        if may_bind and await trio.to_thread.run_sync(self._bindable, cid) is not None:
            return None
        content = self._contents.of(effect.service)
        try:
            await self._exchange.fetch_range(effect.service, cid, 0, 1, effect.holders)
            size_bytes = await content.size(cid)
        except (FetchFailed, BlockMissing, UnixfsError):
            return None  # a folder, or not at any member: it is fetched whole, if it can be
        if size_bytes < STREAMED_SIZE_BYTES_MIN:
            return None
        return StreamedContent(name, cid, size_bytes, tuple(effect.holders))

    def _reader(self, service: str) -> ReadContent:
        """Return what reads content for a service, fetched from its holders as it is read."""

        async def read(
            cid: str, holders: Sequence[str], start: int, stop: int
        ) -> AsyncIterator[bytes]:
            self._used(cid)
            await self._exchange.fetch_range(service, cid, start, stop, holders)
            async for chunk in self._contents.of(service).read(cid, start, stop):
                yield chunk

        return read

    async def _input(
        self, effect: Execute, run: _Run, cid: str, path: Path, may_bind: bool
    ) -> Path:
        """Return where an input by CID lies: in the owner's own file or folder, if there is one as
        it was and the job cannot write to it, else in a copy at `path`."""
        limit_bytes = _LIMIT_BYTES
        await self._inputs.fetch(effect.service, cid, effect.holders, limit_bytes=limit_bytes)
        own = await trio.to_thread.run_sync(self._bindable, cid) if may_bind else None
        if own is not None:
            run.bound.append(cid)
            return own
        free_bytes = await trio.to_thread.run_sync(lambda: shutil.disk_usage(run.folder).free)
        # A few blocks can name a file without end: what is left of the disk is for others, too.
        limit_bytes = min(limit_bytes, free_bytes * _DISK_PERCENT_MAX // 100)
        await self._contents.of(effect.service).export(cid, path, limit_bytes=limit_bytes)
        return path

    async def _bundle(self, effect: Execute) -> Path:
        """Return the app's folder, exported once and kept; not that of another service's app."""
        path = self._jobs.parent / "apps" / effect.bundle
        if (effect.service, effect.bundle) in self._bundles and path.exists():
            return path
        async with self._bundle_lock:
            if (effect.service, effect.bundle) not in self._bundles:
                await self._fetch(effect, effect.bundle)
                self._bundles.add((effect.service, effect.bundle))
            if not path.exists():
                path.parent.mkdir(mode=0o700, exist_ok=True)
                part = path.with_name(f"{path.name}.part")
                await trio.to_thread.run_sync(remove_tree, part)
                await self._contents.of(effect.service).export(effect.bundle, part)
                part.rename(path)
        return path

    async def _fetch(self, effect: Execute, cid: str) -> None:
        await self._exchange.fetch(effect.service, cid, effect.holders, limit_bytes=_LIMIT_BYTES)
        self._used(cid)

    async def _executed(
        self, card: JobCard, outcome: RunOutcome, streams: JobStreams | None
    ) -> Executed:
        """Store what a run made."""
        if streams is not None and outcome.status in ("completed", "failed"):
            # A failure for want of input is none of the app; nor is a file that changed a result.
            trouble = streams.change or (streams.trouble if outcome.status == "failed" else "")
            if trouble:
                return _no_result(card.attempt, "infra", trouble)
        for cid in card.bound if outcome.status in ("completed", "failed") else ():
            if await trio.to_thread.run_sync(self._bindable, cid) is None:
                reason = f"input {cid} is a file of this node's owner that changed meanwhile"
                return _no_result(card.attempt, "infra", reason)
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


def _streamed(processor: dict[str, Any]) -> set[str]:
    """Return the names of the inputs that an app reads by streams."""
    return {entry["name"] for entry in processor["inputs"] if entry.get("stream")}


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


async def _fetched(url: str, path: Path, rules: UrlRules) -> SourceRead:
    """Fetch a URL whole; return what a result tells of it."""
    read_unix_ms = time.time_ns() // 1_000_000
    came = await fetch_url(url, path, rules)
    return SourceRead(came.size_bytes, came.etag, came.modified, read_unix_ms, came.sha256_hex)


def _resumed_spec(folder: Path, card: JobCard, grace_s: int, bounds: JobBounds) -> RunSpec:
    """Return as much of a run's specification as its end needs."""
    return RunSpec(
        attempt=card.attempt,
        job_id="",
        service=card.service,
        app="",
        processor="",
        executable="",
        bundle=folder,
        inputs=(),
        list_inputs=(),
        outputs=tuple(RunOutput(name, base) for name, base in card.outputs),
        parameters=[],
        cpu_millicores=0,
        memory_mib=card.memory_mib,
        gpus=0,
        time_ms=card.time_ms,
        work_dir=folder,
        restart_grace_s=grace_s,
        bounds=bounds,
    )


def _remove_all(folders: Sequence[Path]) -> None:
    for folder in folders:
        remove_tree(folder)


def _no_result(attempt: str, kind: str, reason: str) -> Executed:
    return Executed(attempt, kind, "", reason, {}, "", {}, "")
