"""Brings here what a run needs before its job begins: code, image, inputs, secrets.

An input by CID is the owner's own file where there is one, else a copy; a large one that the app
reads by streams is neither: its parts come as they are read. An input by URL is fetched whole or
streamed.
"""

import shutil
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Container, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import trio

from pairio_node.adoption import JobCard
from pairio_node.blocks import BlockMissing, Exchange, FetchFailed, ScopedContent
from pairio_node.blocks.synced import sync_tree
from pairio_node.blocks.unixfs import UnixfsError
from pairio_node.images import RunImages
from pairio_node.outside import Outside
from pairio_node.runner import RunInput, Runner, RunOutput, RunSpec
from pairio_node.runner.bounds import JobBounds
from pairio_node.runner.supervisor.disk import remove_tree
from pairio_node.streams import JobStreams
from pairio_node.streams.content import ReadContent, StreamedContent
from pairio_node.urls import UrlError, UrlRules, fetch_url
from pairio_protocol.apps import Needs
from pairio_protocol.cid import DAG_PB, parse_cid
from pairio_protocol.effects import Execute
from pairio_protocol.limits import STREAMED_SIZE_BYTES_MIN
from pairio_protocol.records import SourceRead

__all__ = ["InputRefused", "Preparation", "RunReads"]

_LIMIT_BYTES = 2**42
#: A copy of an input takes at most so much of what is free where jobs lie.
_DISK_PERCENT_MAX = 90
#: What strangers ask for takes the CPU that nothing else on the machine wants.
_GUESTS_NICE = 19
#: What a job may use is looked at anew after this time.
_BOUNDS_S = 1.0
#: What a run reads by streams, in its folder.
_STREAMS = "streams"


class InputRefused(Exception):
    """An input by URL cannot be had here; elsewhere it may be allowed, or reachable."""


@dataclass
class RunReads:
    """From where a run reads its inputs, but for copies in its folder."""

    bound: list[str] = field(default_factory=list)  # CIDs, read from the owner's own files
    sources: dict[str, SourceRead] = field(default_factory=dict)  # inputs by URL, fetched whole
    streams: JobStreams | None = None


class Preparation:
    """What runs of this node need. Inputs that no member gives are taken from `outside`. `bindable`
    gives, in a thread, where a file or folder lies that the owner has here and that is as it was;
    `bounds` what one job may use now, in a thread. `used` hears of what was needed."""

    def __init__(
        self,
        contents: ScopedContent,
        exchange: Exchange,
        apps: Path,
        url_rules: UrlRules,
        restart_grace_s: int,
        *,
        outside: Outside,
        used: Callable[[str], None],
        bindable: Callable[[str], Path | None],
        secrets_of: Callable[[Execute, tuple[str, ...]], Awaitable[dict[str, str]]],
        bounds: Callable[[], JobBounds],
    ) -> None:
        self._contents = contents
        self._exchange = exchange
        self._apps = apps
        self._url_rules = url_rules
        self._grace_s = restart_grace_s
        self._inputs = outside
        self._used = used
        self._bindable = bindable
        self._secrets_of = secrets_of
        self._bounds = bounds
        self._bounded: tuple[float, JobBounds] | None = None
        self._images = RunImages(contents)
        self._bundle_locks: defaultdict[str, trio.Lock] = defaultdict(trio.Lock)
        self._bundles: set[tuple[str, str]] = set()  # services and what is here whole for them
        #: What jobs tried in vain.
        self.counters: Counter[str] = Counter()

    def forget(self, cids: Container[str]) -> None:
        """These blocks are not here any more: bundles among them are fetched again when asked."""
        self._bundles = {(service, b) for service, b in self._bundles if b not in cids}
        for bundle in [b for b in self._bundle_locks if b in cids]:
            del self._bundle_locks[bundle]

    async def prepare(
        self, effect: Execute, runner: Runner, folder: Path, reads: RunReads
    ) -> RunSpec:
        """Make the folder of a run that is to begin, and fetch what it needs. `reads` is told at
        once what it reads from elsewhere.

        Raises:
            InputRefused: see there.
            FetchFailed, BlockMissing, UnixfsError, UserError, OSError: something cannot be had.
        """
        may_bind = runner.isolation != "none"
        needs = Needs.of(effect.processor)
        streamed = _streamed_names(effect.processor)
        own_network = may_bind and not needs.network
        bundle = await self._bundle(effect)
        folder.mkdir(mode=0o700)
        rules = self._url_rules  # strangers do not reach what the owner lets members reach
        if effect.for_guest:
            rules = replace(rules, allow_hosts=())
        inputs = []
        for number, entry in enumerate(effect.document["inputs"]):
            streams = None
            if entry["name"].partition("[")[0] in streamed:
                streams = reads.streams = reads.streams or JobStreams(
                    folder / _STREAMS, rules, own_network=own_network, refused=self.counters
                )
            part = folder / "in" / str(number)
            part.mkdir(parents=True)
            path = part / entry["base_name"]
            try:
                made = await self._input(
                    effect, number, entry, path, reads, streams, may_bind, rules
                )
            except UrlError as error:
                said = "; ".join(text for text in (error.message, error.hint) if text)
                raise InputRefused(f"input {entry['name']!r}: {said}") from None
            inputs.append(made)
        spec = await self._spec(effect, needs, bundle, folder, tuple(inputs))
        if "container" in effect.processor:
            image = await self._images.ensure(effect, folder, runner, self._fetch)
            spec = replace(spec, image=image)
        return spec

    async def _spec(
        self,
        effect: Execute,
        needs: Needs,
        bundle: Path,
        folder: Path,
        inputs: tuple[RunInput, ...],
    ) -> RunSpec:
        return RunSpec(
            attempt=effect.attempt,
            job_id=effect.job,
            service=effect.service,
            app=effect.document["app"],
            processor=effect.document["processor"],
            executable=effect.processor["executable"],
            bundle=bundle,
            inputs=inputs,
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

    async def resumed(self, card: JobCard, folder: Path) -> tuple[RunSpec, JobStreams | None]:
        """Return as much of the specification of a run as its end needs, when an earlier start of
        the node began it, and its streams."""
        spec = RunSpec(
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
            restart_grace_s=self._grace_s,
            bounds=await self._bounds_now(),
        )
        streams = JobStreams.found(
            folder / _STREAMS, self._url_rules, self.counters, self._reader(card.service)
        )
        return spec, streams

    async def changed_input(self, bound: Sequence[str]) -> str | None:
        """Return the CID of one of these inputs whose file is not as it was, if there is one."""
        for cid in bound:
            if await trio.to_thread.run_sync(self._bindable, cid) is None:
                return cid
        return None

    async def _bounds_now(self) -> JobBounds:
        """Return what one job may use: the disk may be slow to say what is free, and is not asked
        for each of many jobs."""
        now_s = trio.current_time()
        if self._bounded is None or now_s - self._bounded[0] > _BOUNDS_S:
            self._bounded = (now_s, await trio.to_thread.run_sync(self._bounds))
        return self._bounded[1]

    async def _secrets(self, effect: Execute, needs: Needs) -> dict[str, str]:
        if not needs.secrets:
            return {}
        return await self._secrets_of(effect, needs.secrets)

    async def _input(
        self,
        effect: Execute,
        number: int,
        entry: dict[str, Any],
        path: Path,
        reads: RunReads,
        streams: JobStreams | None,
        may_bind: bool,
        rules: UrlRules,
    ) -> RunInput:
        """Fetch an input, or have it read by `streams`. Raises UrlError."""
        name, source = entry["name"], entry["source"]
        if "url" in source:
            is_here = streams is None
            if streams is not None:
                await streams.add_url(number, name, source["url"])
            else:
                reads.sources[name] = await _fetched(source["url"], path, rules)
            return RunInput(name, entry["base_name"], path, is_here=is_here)
        content = None
        if streams is not None:
            content = await self._streamed(effect, name, source["cid"], may_bind)
        if streams is not None and content is not None:
            streams.add_content(number, content, self._reader(effect.service))
            return RunInput(name, entry["base_name"], path, is_here=False)
        path = await self._content(effect, reads, source["cid"], path, may_bind)
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

    async def _content(
        self, effect: Execute, reads: RunReads, cid: str, path: Path, may_bind: bool
    ) -> Path:
        """Return where an input by CID lies: in the owner's own file or folder, if there is one as
        it was and the job cannot write to it, else in a copy at `path`."""
        limit_bytes = _LIMIT_BYTES
        await self._inputs.fetch(effect.service, cid, effect.holders, limit_bytes=limit_bytes)
        own = await trio.to_thread.run_sync(self._bindable, cid) if may_bind else None
        if own is not None:
            reads.bound.append(cid)
            return own
        free_bytes = await trio.to_thread.run_sync(lambda: shutil.disk_usage(path.parent).free)
        # A few blocks can name a file without end: what is left of the disk is for others, too.
        limit_bytes = min(limit_bytes, free_bytes * _DISK_PERCENT_MAX // 100)
        await self._contents.of(effect.service).export(cid, path, limit_bytes=limit_bytes)
        return path

    async def _bundle(self, effect: Execute) -> Path:
        """Return the app's folder, exported once and kept; not that of another service's app."""
        path = self._apps / effect.bundle
        if (effect.service, effect.bundle) in self._bundles and path.exists():
            return path
        async with self._bundle_locks[effect.bundle]:
            if (effect.service, effect.bundle) not in self._bundles:
                await self._fetch(effect, effect.bundle)
                self._bundles.add((effect.service, effect.bundle))
            if not path.exists():
                path.parent.mkdir(mode=0o700, exist_ok=True)
                part = path.with_name(f"{path.name}.part")
                await trio.to_thread.run_sync(remove_tree, part)
                await self._contents.of(effect.service).export(effect.bundle, part)
                # What has this name is trusted for good, also when the power fails now.
                await trio.to_thread.run_sync(sync_tree, part)
                part.rename(path)
        return path

    async def _fetch(self, effect: Execute, cid: str) -> None:
        await self._exchange.fetch(effect.service, cid, effect.holders, limit_bytes=_LIMIT_BYTES)
        self._used(cid)


def _streamed_names(processor: dict[str, Any]) -> set[str]:
    """Return the names of the inputs that an app reads by streams."""
    return {entry["name"] for entry in processor["inputs"] if entry.get("stream")}


async def _fetched(url: str, path: Path, rules: UrlRules) -> SourceRead:
    """Fetch a URL whole; return what a result tells of it."""
    read_unix_ms = time.time_ns() // 1_000_000
    came = await fetch_url(url, path, rules)
    return SourceRead(came.size_bytes, came.etag, came.modified, read_unix_ms, came.sha256_hex)
