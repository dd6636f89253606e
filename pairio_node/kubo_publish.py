"""Makes results known through the node's Kubo daemon.

    a result that may be known, whole here --> documents put, result pinned, the file
        /pairio/results/JOB names it --> JOB announced (`provide/once`), one at a time
    not to be known any more, or let go by the cache --> file removed, result unpinned

Which may be known is the owner's word (`ipfs.publish`): those that are public (`Publishing`), all,
or none. A job's id is the key under which holders of a result are found. What was done is noted in
the home, and looked over again every REVIEW_S.
"""

from collections import Counter, deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Final

import trio

from pairio_node.blocks.base import BlockMissing, StoreUnavailable
from pairio_node.blocks.kubo import KuboError
from pairio_node.blocks.kubo_store import KuboBlockStore
from pairio_node.blocks.unixfs import UnixfsError
from pairio_node.errors import StorageFullError
from pairio_node.kubo_routing import Announcer
from pairio_protocol.cid import CidError, parse_cid

if TYPE_CHECKING:
    from pairio_node.node import Node
    from pairio_protocol.fold import ResultInfo

__all__ = ["MFS_RESULTS", "KuboPublisher"]

MFS_RESULTS: Final = "/pairio/results"
LOOK_S: Final = 1.0
#: How often what is known is looked over, and what could not be published is tried again.
REVIEW_S: Final = 10.0
#: Results published in one go; the loop looks at everything else in between.
_BATCH: Final = 32
#: Unresolved jobs that are published with what they resolve to.
_JOBS_MAX: Final = 16
#: Jobs that wait to be announced; further ones are announced with the daemon's next round.
PROVIDES_MAX: Final = 10_000
PROVIDE_S: Final = 60.0


class KuboPublisher:
    """What is published of one node, through the daemon that keeps its blocks. `folder` is one of
    the home: a file for each job, with the CID of its result."""

    def __init__(self, node: "Node", blocks: KuboBlockStore, mode: str, folder: Path) -> None:
        self._node = node
        self._blocks = blocks
        self._api = blocks.api
        self._mode = mode
        self._folder = folder / blocks.daemon
        self.published: dict[str, str] = {}
        self._seen: set[tuple[str, str]] = set()
        self._provides: deque[str] = deque()
        self._more = trio.Event()
        self._took_ms: deque[float] = deque(maxlen=100)
        self._announced: Counter[str] = Counter()
        self._counters = {"provided": 0, "providesDropped": 0, "publishFailures": 0}

    def status(self) -> dict[str, Any]:
        """What the node's status says of it; how long an announcement took, in the median."""
        took = round(median(self._took_ms), 1) if self._took_ms else None
        waiting = {"published": len(self.published), "providing": len(self._provides)}
        counted = {**self._counters, **self._announced}
        return {"publish": self._mode, **waiting, **counted, "provideMs": took}

    async def run(self) -> None:
        """Publish and announce until cancelled."""
        await trio.to_thread.run_sync(self._load)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._provide_all)
            if self._node.config.dht:
                announcer = Announcer(self._node.transport, self._api.swarm, self._announced)
                nursery.start_soon(announcer.run, lambda: self.published)
            reviewed_s = trio.current_time()  # not at once: the core takes up its results first
            while True:
                if not self._api.why_down:
                    with suppress(StoreUnavailable):  # said by who watches the daemon
                        if trio.current_time() - reviewed_s >= REVIEW_S:
                            reviewed_s = trio.current_time()
                            await self._review_and_count()
                        await self._publish_new()
                await trio.sleep(LOOK_S)

    def _load(self) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for file in self._folder.iterdir():
            with suppress(OSError, CidError):
                parse_cid(file.name)
                self.published[file.name] = file.read_text()

    # -- which ---------------------------------------------------------------------------

    def _may_be_known(self, service: str, info: "ResultInfo") -> bool:
        if info.document.status != "completed" or self._mode == "none":
            return False
        return self._mode == "all" or self._node.publishing.is_public(service, info.cid)

    def _wanted(self, info: "ResultInfo", service: str) -> bool:
        """Say whether a result is the one to name for its job, and may be known."""
        if not self._may_be_known(service, info):
            return False
        found = self._node.core.fold(service).results_for(info.document.job)
        return bool(found) and found[0].cid == info.cid

    def _new(self) -> Iterator[tuple[str, "ResultInfo"]]:
        for service in sorted(self._node.core.membership.taken_up):
            for info in list(self._node.core.fold(service).results.values()):
                if (service, info.cid) not in self._seen:
                    yield service, info

    # -- publish -------------------------------------------------------------------------

    async def _publish_new(self) -> None:
        done = 0
        for service, info in self._new():
            self._seen.add((service, info.cid))
            if self.published.get(info.document.job) == info.cid:
                continue
            if not self._wanted(info, service):
                continue
            try:
                await self._publish(service, info)
            except StoreUnavailable:
                self._seen.discard((service, info.cid))
                raise
            except (BlockMissing, KuboError, StorageFullError, UnixfsError, CidError):
                self._counters["publishFailures"] += 1  # looked at again with the next review
            done += 1
            if done >= _BATCH:
                return

    async def _publish(self, service: str, info: "ResultInfo") -> None:
        """Publish a result that is here whole; nothing when it is not."""
        content = self._node.contents.of(service)
        documents = self._node.publishing.documents(service, info)
        if not {info.cid, info.document.job} <= set(documents):
            return
        with self._blocks.in_use.working():
            for cid in _contents(info):
                if await content.missing(cid):
                    return
            jobs = [cid for cid in documents if cid not in (info.cid, info.document.job)]
            jobs = [info.document.job, *jobs[: _JOBS_MAX - 1]]
            for cid in (*jobs, info.cid):
                await content.store.put(cid, documents[cid])

            def make_known() -> None:
                self._blocks.settle_sync()
                self._api.pin(info.cid)
                for job in jobs:
                    self._api.write_file(f"{MFS_RESULTS}/{job}", info.cid.encode() + b"\n")
                    self._note(job, info.cid)

            before = {self.published.get(job) for job in jobs} - {None, info.cid}
            await trio.to_thread.run_sync(make_known, limiter=self._blocks.limiter)
        self.published |= dict.fromkeys(jobs, info.cid)
        await self._unpin(result for result in before if result is not None)
        self._announce(jobs)

    def _note(self, job: str, result: str) -> None:
        try:
            (self._folder / job).write_text(result)
        except OSError as error:
            raise StorageFullError(f"cannot note what is published: {error.strerror}") from None

    # -- withdraw ------------------------------------------------------------------------

    async def _review_and_count(self) -> None:
        try:
            await self._review()
        except (KuboError, OSError):
            self._counters["publishFailures"] += 1  # done again with the next review

    async def _review(self) -> None:
        """Withdraw what is not to be known any more, or is not kept; look at all others again."""
        self._seen.clear()
        wanted = dict[str, str]()
        for service, info in list(self._new()):
            await trio.lowlevel.checkpoint()
            job = info.document.job
            if job in self.published and self._wanted(info, service) and self._is_kept(info):
                fold = self._node.core.fold(service)
                wanted |= dict.fromkeys([job, *fold.origins(job)], info.cid)
        gone = [job for job in self.published if job not in wanted]
        for job in gone:
            await trio.to_thread.run_sync(self._forget, job, limiter=self._blocks.limiter)
        results = {self.published.pop(job) for job in gone}
        await self._unpin(results)

    def _is_kept(self, info: "ResultInfo") -> bool:
        return all(self._blocks.is_kept(cid) for cid in _contents(info))

    def _forget(self, job: str) -> None:
        self._api.unlink(f"{MFS_RESULTS}/{job}")
        (self._folder / job).unlink(missing_ok=True)

    async def _unpin(self, results: Iterable[str]) -> None:
        for result in set(results) - set(self.published.values()):
            with suppress(KuboError):
                await trio.to_thread.run_sync(self._api.unpin, result, limiter=self._blocks.limiter)

    # -- announce ------------------------------------------------------------------------

    def _announce(self, jobs: Iterable[str]) -> None:
        for job in jobs:
            if len(self._provides) >= PROVIDES_MAX:
                self._counters["providesDropped"] += 1
            else:
                self._provides.append(job)
        self._more.set()

    async def _provide_all(self) -> None:
        """Announce one after the other; wait while the daemon is connected with nobody."""
        while True:
            if not self._provides:
                self._more = trio.Event()
                await self._more.wait()
            began_s = trio.current_time()
            try:
                await trio.to_thread.run_sync(self._api.provide, self._provides[0], PROVIDE_S)
            except (KuboError, StoreUnavailable):
                await trio.sleep(REVIEW_S)
                continue
            self._provides.popleft()
            self._took_ms.append((trio.current_time() - began_s) * 1000)
            self._counters["provided"] += 1


def _contents(info: "ResultInfo") -> list[str]:
    """Return what a result links to besides its job."""
    cids = [cid for cid, _, _ in info.document.outputs.values()]
    return [cid for cid in dict.fromkeys([*cids, info.document.console]) if cid]
