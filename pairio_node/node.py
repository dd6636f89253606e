"""The node: its parts and their life."""

from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Any, TypeVarTuple

import trio

from pairio_node.admins import Admins
from pairio_node.api.links import Links
from pairio_node.bitswap import Bitswap
from pairio_node.blocks import (
    DiskBlockStore,
    Exchange,
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
from pairio_node.execution import Executions
from pairio_node.files import Files
from pairio_node.hiding import Hiding
from pairio_node.home import Home
from pairio_node.inputs import JobInputs
from pairio_node.insight import Insight
from pairio_node.ipfs import Kubo
from pairio_node.jobs import Jobs
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
from pairio_node.search import Search
from pairio_node.secret_streams import Secrets
from pairio_node.services import Services
from pairio_node.shell import NodeShell
from pairio_node.status import status_view
from pairio_node.store import Store, Writer
from pairio_node.submits import Submits
from pairio_node.transport import (
    Transport,
)
from pairio_node.urls import UrlRules
from pairio_node.watching import Watching
from pairio_protocol import effects as ef
from pairio_protocol import events as ev
from pairio_protocol.context import CoreConfig
from pairio_protocol.core import NodeCore

__all__ = ["Node"]

#: How long a node that stops waits for its jobs to be ended and given up.
_YIELD_S = 4.0
#: How long it then goes on, so that those who wait for the jobs hear of it.
_FAREWELL_S = 0.1

_Args = TypeVarTuple("_Args")


class Node:
    """One running node, made by `run.run_node`: its parts, which the API and each other ask."""

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
        self.jobs, self.files, self.inputs = Jobs(self), Files(self), JobInputs(self)
        self.publishing = Publishing(self)
        self.bitswap: Bitswap | None = None
        if config.bitswap:
            self.bitswap = Bitswap(self.publishing.blocks, transport, config.ipfs_peers)
        self.dht = Dht(self) if config.dht else None
        self.finder = Finder(self, self.dht) if self.dht is not None else None
        self.outside = Outside(self.contents, self.exchange, lambda: self.bitswap)
        self.runners = runners
        self.cache = Cache(self, self.jobs.find, self.files.ensure)
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
            bounds=lambda: self.config.bounds_for_job(jobs, self.blocks.quota_bytes),
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
        snapshot = self._store.load()
        # What a crash left; blocks of the embedded store are not put where another program's are.
        carried = [] if self.kubo else self._store.carried()
        self.blocks.db.take_back(carried)
        self.writer = Writer(self._store, self.blocks.db, has_carried=bool(carried))
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

    def tell_changed(self) -> None:
        """Something that clients see of jobs or wishes changed."""
        self._changed.set()

    async def changed(self) -> None:
        """Wait until something that clients see of jobs or wishes changes."""
        if self._changed.is_set():
            self._changed = trio.Event()  # of all that wait from now on
        await self._changed.wait()

    @property
    def peer_id(self) -> str:
        """This node's id."""
        return self.transport.peer_id

    def status(self) -> dict[str, Any]:
        """Return what `pairio-node status` shows."""
        return status_view(self)


def _no_service(name: str) -> str:
    return (
        f"warning: [rules.services.{name}] in node.toml: no service {name!r} here (yet), so these"
        " rules narrow nothing. See the names: pairio service ls"
    )
