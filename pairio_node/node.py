"""The node: its parts, their life, and the facade that the API calls."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVarTuple

import trio

from pairio_node.admins import Admins
from pairio_node.api.links import Links
from pairio_node.bitswap import Bitswap
from pairio_node.blocks import (
    Added,
    DiskBlockStore,
    Exchange,
    FetchFailed,
    LocalStore,
    ScopedContent,
)
from pairio_node.blocks.guests import GuestBlocks
from pairio_node.blocks.references import References
from pairio_node.blocks.referencing import ReferencingStore
from pairio_node.cache import Cache
from pairio_node.cars import Cars
from pairio_node.cids import CidIndex
from pairio_node.clock import Clock
from pairio_node.code import CodeKeeper
from pairio_node.config import NodeConfig, peer_in
from pairio_node.consoles import Consoles
from pairio_node.dht import Dht, Finder
from pairio_node.draining import Draining
from pairio_node.driver import Driver
from pairio_node.errors import NotFoundError, UnavailableError, UserError
from pairio_node.execution import Executions
from pairio_node.folders import build_folder
from pairio_node.hiding import Hiding
from pairio_node.home import Home
from pairio_node.inputs import JobInputs
from pairio_node.insight import Insight
from pairio_node.ipfs import Kubo
from pairio_node.joins import Joins
from pairio_node.outside import Outside
from pairio_node.owner_rules import closed_rules, rules_for_none, watch_hours
from pairio_node.pinning import UrlPins
from pairio_node.preparation import Preparation
from pairio_node.public import Public
from pairio_node.publishing import Publishing
from pairio_node.referenced import ReferencedData
from pairio_node.remembering import remember_members
from pairio_node.results import Results
from pairio_node.runner import Runner, Runners, Wish
from pairio_node.runner.zygote.pool import WarmPool
from pairio_node.search import JobQuery, Search
from pairio_node.secret_streams import Secrets
from pairio_node.services import Services
from pairio_node.serving import Found, Item, Serving
from pairio_node.shell import NodeShell
from pairio_node.status import status_view
from pairio_node.store import Store, Writer
from pairio_node.submits import Submits
from pairio_node.transport import (
    Transport,
)
from pairio_node.urls import UrlRules
from pairio_node.views import (
    find_request,
    is_settled,
    job_status,
    job_view,
    why_view,
)
from pairio_node.watching import Watching
from pairio_protocol import effects as ef
from pairio_protocol import events as ev
from pairio_protocol.context import CoreConfig
from pairio_protocol.core import NodeCore
from pairio_protocol.fold import RequestState
from pairio_protocol.records import Resources

__all__ = ["Node"]

#: How long a node that stops waits for its jobs to be ended and given up.
_YIELD_S = 4.0
#: How long it then goes on, so that those who wait for the jobs hear of it.
_FAREWELL_S = 0.1
#: Bytes that a client gave stay so long for the job that is to name them.
_NAMED_S = 60.0

_Args = TypeVarTuple("_Args")


class Node:
    """One running node. Made by `run.run_node`; the API calls its public methods."""

    #: What keeps apps warm, for the status.
    warm: WarmPool | None = None

    def __init__(
        self,
        home: Home,
        config: NodeConfig,
        store: Store,
        runners: Runners,
        transport: Transport,
        kubo: Kubo | None = None,
    ) -> None:
        self.home = home
        self.config = config
        self.clock = Clock()
        self.transport = transport
        self.kubo = kubo
        self.blocks: LocalStore = kubo.blocks if kubo else DiskBlockStore(home.path / "blocks", 0)
        self.blocks.quota_bytes = config.quota_for(home.path, self.blocks.used_bytes)
        self.references = References(home.path / "references.db", self.blocks, home.path)
        store_here = ReferencingStore(self.blocks, self.references)
        self.contents = ScopedContent(store_here, home.path / "held")
        self.referenced = ReferencedData(self, self.references)
        self.content = self.contents.everything
        self.guest_blocks = GuestBlocks()
        self.exchange = Exchange(self.contents, self.transport, self._may_read, self.guest_blocks)
        self.inputs = JobInputs(self)
        self.serving = Serving(self.content, self.exchange, self._content_sources)
        self._wide_serving = Serving(
            self.content,
            self.exchange,
            self._content_sources,
            lambda cids: self.outside.fetch_blocks(cids),
        )
        self.publishing = Publishing(self)
        self.bitswap: Bitswap | None = None
        if config.bitswap:
            self.bitswap = Bitswap(self.publishing.blocks, transport, config.ipfs_peers)
        self.dht = Dht(self) if config.dht else None
        self.finder = Finder(self, self.dht) if self.dht is not None else None
        self.outside = Outside(self.contents, self.exchange, lambda: self.bitswap)
        self.runners = runners
        self.cache = Cache(self, self._find, self._ensure)
        self.exchange.on_served = self.cache.used
        self.services = Services(self)
        self.joins, self.admins = Joins(self), Admins(self)
        self.public = Public(self)
        self.results = Results(self)
        self.consoles = Consoles(self, self._may_read)
        self.insight = Insight(self)
        self.cids = CidIndex()
        self.hiding, self.search, self.submits = Hiding(self), Search(self), Submits(self)
        self.watching, self.url_pins = Watching(self), UrlPins(self)
        self.cars, self.secrets = Cars(self), Secrets(self)
        #: What the status says of earlier starts.
        self.crashes: dict[str, Any] = {"restarts": 0, "lastCrash": None}
        self.draining = Draining(self)
        #: What holds the memory of jobs: `cgroup` or `watchdog`.
        self.memory_limit = "watchdog"
        #: Tells the owner something at once (stderr).
        self.say: Callable[[str], None] = lambda _: None
        self.preparation = self._preparation()
        self.executions = self._executions()
        self.shell = NodeShell(self)
        self._store = store
        self.writer: Writer | None = None
        self.links: Links | None = None
        self.api_url = ""
        self._nursery: trio.Nursery | None = None
        self._changed = trio.Event()
        self.core: NodeCore
        self.driver: Driver
        self.code: CodeKeeper

    def _preparation(self) -> Preparation:
        config, jobs = self.config, self.home.path / "jobs"
        return Preparation(
            self.contents,
            self.exchange,
            self.home.path / "apps",
            UrlRules(config.allow_hosts, config.url_input_bytes_max),
            config.restart_grace_s,
            outside=self.outside,
            used=self.cache.used,
            bindable=self.references.unchanged_path,
            secrets_of=self.secrets.fetch,
            bounds=lambda: config.bounds_for_job(jobs, self.blocks.quota_bytes),
        )

    def _executions(self) -> Executions:
        return Executions(
            self.contents,
            self.preparation,
            self.home.path / "jobs",
            self._runner_for,
            self.runners.named,
            lambda executed: self.driver.post_stored(executed),
            self._progressed,
            self.cache.on_made,
        )

    def _progressed(self, attempt: str, permille: int) -> None:
        self.driver.post(ev.Progressed(attempt, permille))

    def begin(self) -> None:
        """Make core and driver; the transport must be listening."""
        boot, past_boots = self.home.begin_boot()
        core_config = CoreConfig(
            boot=boot,
            started_unix_ms=self.clock.unix_ms(),
            past_boots=past_boots,
            trust=tuple(sorted(self.config.trusted)),
            compute=self.config.compute,
            guests=self.config.guests,
            cpu_millicores=self.config.cpu_millicores,
            memory_mib=self.config.memory_mib,
            gpus=self.config.gpus,
            isolation=self.runners.isolation,
            executors=self.runners.names,
            allow_process=self.config.allow_process,
            allow_network=self.config.allow_network,
            owner_rules=tuple(rule.core for rule in self.config.rules),
            lease_ms=self.config.lease_ms,
            replicas=self.config.replicas,
            looks_further=self.config.dht,
            addresses=self.transport.addresses(),
        )
        self.core = NodeCore(self.home.key(), core_config)
        self.driver = Driver(self.core, self.clock, self.shell)
        self.transport.prefer(
            lambda peer: bool(self.core.membership.shared_with(peer)), self.memberships
        )
        containers = "container" in self.runners.names
        self.code = CodeKeeper(self.core, self.exchange, self.transport.connected, containers)

    def start(self, nursery: trio.Nursery) -> None:
        """Take what the disk holds, start the loop, dial."""
        self._nursery = nursery
        self.blocks.db.take_back(self._store.carried())
        self.writer = Writer(self._store, self.blocks.db)
        snapshot = self._store.load()
        adopted, gone = self.executions.find()
        restored = ev.Restored(
            snapshot.services,
            snapshot.changes,
            snapshot.segments,
            snapshot.answers,
            adopted,
            snapshot.kept,
            tuple(ef.Dropped(*row) for row in snapshot.dropped),
            snapshot.notes,
        )
        known = [name for row in snapshot.services for name in row[:2]]
        for name in rules_for_none(self.config.rules, known):
            self.say(_no_service(name))
        if closed := closed_rules(self.config.rules, datetime.now()):
            self.driver.post(ev.OwnerHours(closed))
        self.referenced.begin(nursery)
        self.secrets.begin()
        self.driver.post(restored)
        nursery.start_soon(self.driver.run)
        self.cache.start(nursery, snapshot.notes)
        self.hiding.restore(snapshot.notes)
        self.submits.restore(snapshot.notes)
        nursery.start_soon(self.executions.adopt)
        nursery.start_soon(self.executions.remove, gone)
        nursery.start_soon(self.executions.progress.run)
        nursery.start_soon(self.code.run)
        nursery.start_soon(self.secrets.run)
        nursery.start_soon(remember_members, self)
        nursery.start_soon(self.publishing.run)
        if self.bitswap is not None:
            nursery.start_soon(self.bitswap.run)
        if self.dht is not None:
            nursery.start_soon(self.dht.run)
        if self.kubo is not None:
            nursery.start_soon(self.kubo.run, self)
        nursery.start_soon(
            watch_hours, self.config.rules, lambda now: self.driver.post(ev.OwnerHours(now))
        )
        for address in self.config.bootstrap:  # first: connections are bounded
            self.transport.keep_connected(peer_in(address), (address,))
        for peer, addresses in snapshot.peers:
            self.transport.keep_connected(peer, addresses)

    def spawn(self, run: Callable[[*_Args], Awaitable[None]], *args: *_Args) -> None:
        """Let something go on in the background; it must not fail."""
        assert self._nursery is not None
        self._nursery.start_soon(run, *args)

    def _may_read(self, peer: str, service: str) -> bool:
        """Blocks of a service go to those who have a role in it now; any role reads. Guests of a
        public service have those of their results (`GuestBlocks`)."""
        return service in self.core.membership.shared_with(peer)

    def memberships(self, peer: str) -> Sequence[tuple[str, str]]:
        """Return (service, member) of a peer for each service here in which it has a role."""
        membership = self.core.membership
        found = [(s, membership.folded(s).member_of(peer)) for s in membership.shared_with(peer)]
        return [(service, member) for service, member in found if member is not None]

    def _runner_for(self, effect: ef.Execute) -> Runner:
        """Return the runner of a run that the core took; raises NoRunner."""
        app, service = effect.document["app"], effect.service
        names = (app, service, self.core.membership.petnames.get(service, service))
        return self.runners.choose(
            Wish(effect.isolation_min, "container" in effect.processor, names)
        )

    async def leave_jobs(self) -> None:
        """Leave running jobs to their supervisors, or give them up where nothing is to be left."""
        if (self.config.restart_grace_s == 0 or self.draining.begun) and self.executions.running:
            with trio.move_on_after(_YIELD_S):
                self.driver.post(ev.Draining())
                await self.executions.yield_all()
                await trio.sleep(_FAREWELL_S)

    # -- the facade: jobs -----------------------------------------------------------------

    def named_or_all(self, service: str | None) -> list[str]:
        """Return the ids of a service, or of all that are taken up here or asked as a guest."""
        if service:
            return [self.services.id_of(service)]
        return sorted(self.core.membership.taken_up) + sorted(self.core.guests.services)

    def _find(self, job_id: str, service: str | None) -> tuple[str, RequestState]:
        """Return a request and its service; where several have the job, the one asked for last."""
        known = self.core.membership.chains
        names = [name for name in self.named_or_all(service) if name in known]
        states = [(name, find_request(self.core.fold(name), job_id)) for name in names]
        found = [(name, state) for name, state in states if state is not None]
        if not found:
            raise NotFoundError(
                f"no job {job_id!r} on this node", hint="`pairio job ls` lists the jobs known here"
            )
        return max(found, key=lambda pair: pair[1].record.issued_unix_ms)

    def find_job(self, job_id: str, service: str | None) -> tuple[str, RequestState]:
        """Return (service, request) of a job known here."""
        return self._find(job_id, service)

    def status_of(self, service: str, state: RequestState) -> str:
        """Return the status of a request."""
        return job_status(self.core, service, state)[0]

    def view(self, service: str, state: RequestState) -> dict[str, Any]:
        """Return a job as clients see it, by one of its requests."""
        assert self.links is not None
        view = job_view(self.core, service, state, self.links)
        view["inputsReplicated"] = view["inputsReplicated"] and not self.inputs.only_here(view)
        return view

    async def submit(self, body: dict[str, Any]) -> dict[str, Any]:
        """Submit a job in the original's form; returns the job."""
        service = self.services.id_of(body.get("serviceName"))
        definition = body["jobDefinition"]
        await self.inputs.name_all(definition)
        mode = "skip_cache" if body.get("skipCache") else "use"
        if body.get("rerunFailing") and mode == "use":
            mode = "rerun_failing"
        inputs = await self.inputs.look(service, definition)
        resources = self.resources_of(service, body)
        with self.secrets.kept_for(service, definition, body.get("secrets") or {}) as names:
            answer = await self.driver.call(
                lambda call: ev.Submit(
                    call=call,
                    service=service,
                    definition=definition,
                    resources=resources,
                    mode=mode,
                    tags=tuple(body.get("tags") or ()),
                    batch=body.get("batchId") or "",
                    targets=tuple(body.get("targetComputeClientIds") or ()),
                    local_content=tuple(inputs.local),
                    held=tuple(inputs.held),
                    key=body.get("key") or "",
                    secrets=names,
                )
            )
        state = self.core.fold(service).requests[answer["request"]]
        if state.cached and state.answer is not None:
            self.cache.hit(service, state.answer)
        return self.view(service, state)

    def resources_of(self, service: str, body: dict[str, Any]) -> Resources:
        """Return the resources that a submit asks for, with defaults filled in."""
        raw = body.get("requiredResources") or {}
        return _resources(self.public.defaults(service) | _given(raw))

    def on_more_public(self) -> None:
        """More may be read by anybody than before."""
        if self.bitswap is not None:
            self.bitswap.on_more_public()

    def job(self, job_id: str, service: str | None) -> dict[str, Any]:
        """Return a job by job id, unique prefix, or request id."""
        return self.view(*self._find(job_id, service))

    async def find_or_look(self, job_id: str, service: str | None) -> dict[str, Any]:
        """Return a job; one that is named by its whole id and not known here is looked for."""
        try:
            return self.job(job_id, service)
        except NotFoundError:
            if not await self.results.look_for(job_id, service):
                raise
            return self.job(job_id, service)

    def jobs(
        self,
        *,
        service: str | None,
        status: str | None,
        tag: str | None,
        limit: int,
        output: str | None = None,
        input_: str | None = None,
    ) -> list[dict[str, Any]]:
        """Return the newest jobs known here that match; `output` and `input_` are CIDs that they
        made and used."""
        return self.search.newest(
            JobQuery(
                service=service,
                statuses=(status,) if status is not None else (),
                tags=(tag,) if tag is not None else (),
                limit=limit,
                output=output,
                input_=input_,
            )
        )

    def why(self, job_id: str, service: str | None) -> dict[str, Any]:
        """Return why a job is where it is: what it waits for, and what every node says to it."""
        name, state = self._find(job_id, service)
        if name in self.core.guests.services:
            return self.public.why(name, state)
        return why_view(self.core, name, state)

    async def cancel(self, job_id: str, service: str | None) -> dict[str, Any]:
        """Withdraw a request, or all open ones of this node's member for a job."""
        name, state = self._find(job_id, service)
        fold, folded = self.core.fold(name), self.core.membership.folded(name)
        mine = folded.member_of(self.peer_id)
        requests = [state.id]
        if job_id != state.id:
            every = (fold.requests[r] for r in fold.by_job.get(state.job, ()))
            same = (s for s in every if not self.core.is_twins(s))
            requests = [s.id for s in same if folded.member_of(s.author) == mine] or [state.id]
        await self.driver.call(lambda call: ev.CancelRequests(call, name, tuple(requests)))
        return self.view(name, state)

    def tell_changed(self) -> None:
        """Something that clients see of jobs or wishes changed."""
        self._changed.set()

    async def changed(self) -> None:
        """Wait until something that clients see of jobs or wishes changes."""
        if self._changed.is_set():
            self._changed = trio.Event()  # of all that wait from now on
        await self._changed.wait()

    async def wait(self, job_id: str, service: str | None, timeout_s: float) -> dict[str, Any]:
        """Return the job when it has ended and is safe, or as it is after `timeout_s`."""
        name, state = self._find(job_id, service)
        with trio.move_on_after(timeout_s):
            while not is_settled(self.core, name, state):
                await self.changed()
                state = self.still(name, state)
        return self.view(name, state)

    def still(self, service: str, state: RequestState) -> RequestState:
        """Return a request as it is now; as it was when it counts no more, and what it was."""
        fold = self.core.fold(service)
        fold.define(state.job, state.document)
        return fold.requests.get(state.id, state)

    async def console(self, job_id: str, service: str | None) -> AsyncIterator[bytes]:
        """Yield the console output of a job that has ended."""
        name, state = self._find(job_id, service)
        cid = self.view(name, state)["consoleOutputCid"]
        if cid is not None:
            await self._ensure(cid, name, state)
            async for chunk in self.content.read(cid):
                yield chunk

    async def output_cid(
        self, job_id: str, service: str | None, output: str, *, some: bool = False
    ) -> tuple[str, str, int]:
        """Return (CID, file name, size) of an output whose blocks are here now; with `some` they
        come as they are read, if somebody has them."""
        name, state = self._find(job_id, service)
        view = self.view(name, state)
        results = [*view["outputFileResults"], *view["otherFileOutputs"]]
        for result in results:
            if result["name"] == output:
                if result["cid"] is None:
                    raise UserError(
                        f"job {state.job} is {view['status']}: output {output!r} is not there yet",
                        hint="wait for it: pairio submit --wait, or pairio job show",
                    )
                if not (some and await self._is_somewhere(result["cid"])):
                    await self._ensure(result["cid"], name, state)
                return result["cid"], result.get("fileBaseName") or output, result["size"]
        known = ", ".join(r["name"] for r in results) or "none"
        raise NotFoundError(f"job {state.job} has no output {output!r}", hint=f"outputs: {known}")

    async def _is_somewhere(self, cid: str) -> bool:
        """Say whether content can be read here, with its root at least from somebody else."""
        try:
            await self.look_content(cid, (), cid)
        except UserError:
            return False  # `_ensure` says why, and tells the core
        return True

    async def ensure_content(self, cid: str, service: str, state: RequestState) -> None:
        """Fetch what belongs to a job's result, if it is not here; UnavailableError."""
        await self._ensure(cid, service, state)

    async def _ensure(self, cid: str, service: str, state: RequestState) -> None:
        self.cache.used(cid)
        answer = self.core.fold(service).results.get(state.answer or "")
        worker = [answer.document.worker] if answer else []
        holders = [*worker, *self.members_to_ask(service)]
        if service in self.core.guests.services:
            holders = [self.core.guests.given_by.get(state.id, "")]
        try:
            others = [h for h in dict.fromkeys(holders) if h != self.peer_id]
            is_public = self.core.membership.folded(service).has_public_results
            source = self.outside if is_public else self.exchange
            with self.blocks.in_use.working():
                await source.fetch(service, cid, others)
        except FetchFailed as error:
            if self.finder is not None:
                self.finder.on_not_given(service, cid)
            if answer is not None and state.author == self.peer_id:
                self.driver.post(ev.ContentUnavailable(service, answer.cid))
            raise UnavailableError(
                str(error),
                hint="try again when a member that has it is up; if nobody has it for a minute, "
                "the job is computed again (pairio job show)",
            ) from None

    # -- the facade: content ----------------------------------------------------------------

    def read_content(
        self, cid: str, start: int, stop: int, root: str | None = None
    ) -> AsyncIterator[bytes]:
        """Yield bytes of a file, fetched as they are read if need be: from members and, with the
        `root` that the reader named and it lies below, where that may be from Bitswap peers."""
        self.cache.used(cid)
        return self._serving_of(root).read(cid, start, stop)

    async def look_content(self, cid: str, path: Sequence[str], root: str | None = None) -> Found:
        """Return what lies at a path below `cid`, here or elsewhere."""
        return await self._serving_of(root).look(cid, path)

    def _serving_of(self, root: str | None) -> Serving:
        """Return what reads below a root. Who is asked learns the CID: strangers are not asked for
        what a service keeps to its members."""
        if root is None or self._is_private(root):
            return self.serving
        return self._wide_serving

    def _is_private(self, cid: str) -> bool:
        """Say whether this is an output, a console or an app of a service that shows it to nobody
        else, and was not published."""
        if cid in self.publishing.roots():
            return False
        for service in set(self.named_or_all(None)) & set(self.core.membership.chains):
            folded = self.core.membership.folded(service)
            if any(app["bundle"] == cid for app in folded.apps.values()):
                return True
            if not folded.has_public_results and self.cids.is_made(
                service, self.core.fold(service), cid
            ):
                return True
        return False

    async def content_block(self, cid: str) -> bytes:
        """Return a block of a file or folder."""
        await self.serving.look(cid)
        return await self.content.store.get(cid)

    async def list_content(self, cid: str, root: str | None = None) -> list[Item]:
        """Return the entries of a folder."""
        return await self._serving_of(root).entries(cid)

    def _content_sources(self) -> Iterator[tuple[str, list[str]]]:
        """Yield every service that content may be of, with the members to ask for it."""
        membership = self.core.membership
        for service in sorted(membership.taken_up):
            yield service, self.members_to_ask(service)
        for service in sorted(self.core.guests.services):
            yield service, sorted(set(self.core.guests.given_by.values()))

    def members_to_ask(self, service: str) -> list[str]:
        """Return who may be asked for content of a service: connected members, and who gave this
        node results of it lately."""
        givers = self.finder.givers(service) if self.finder is not None else []
        return list(dict.fromkeys([*self.core.membership.connected_members(service), *givers]))

    async def add_content(self, chunks: AsyncIterator[bytes]) -> tuple[str, int]:
        """Add bytes; returns (CID, size)."""
        with self.blocks.in_use.working(_NAMED_S):
            return await self.content.add_stream(chunks)

    async def add_file(self, path: Path) -> Added:
        """Add a file of this machine."""
        with self.blocks.in_use.working(_NAMED_S):
            return await self.content.add_file(path)

    async def add_folder(self, entries: Sequence[tuple[str, str | None]]) -> tuple[str, int]:
        """Add a folder of files that are here; returns (CID, size)."""
        with self.blocks.in_use.working(_NAMED_S):
            return await build_folder(self.content, entries)

    @property
    def peer_id(self) -> str:
        """This node's id."""
        return self.transport.peer_id

    def status(self) -> dict[str, Any]:
        """Return what `pairio-node status` shows."""
        return status_view(self)


def _given(raw: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in raw.items() if value is not None}


def _resources(raw: dict[str, Any]) -> Resources:
    try:
        return Resources(
            cpu_millicores=round(float(raw["numCpus"]) * 1000),
            memory_mib=round(float(raw["memoryGb"]) * 1024),
            gpus=int(raw["numGpus"]),
            time_ms=round(float(raw["timeSec"]) * 1000),
        )
    except (ValueError, OverflowError) as error:
        raise UserError(f"requiredResources: {error}") from None


def _no_service(name: str) -> str:
    return (
        f"warning: [rules.services.{name}] in node.toml: no service {name!r} here (yet), so these"
        " rules narrow nothing. See the names: pairio service ls"
    )
