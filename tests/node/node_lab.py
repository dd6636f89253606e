"""For node tests: whole nodes in one loop, joined by an in-memory network, with a runner that
computes at once."""

import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

import trio

from pairio_node.api.links import Links
from pairio_node.blocks.changes import Carried
from pairio_node.config import NodeConfig
from pairio_node.home import Home
from pairio_node.node import Node
from pairio_node.runner import Runners, RunOutcome, RunSpec
from pairio_node.runner.base import ProbeResult
from pairio_node.store import CommitRows, Store, StoreError
from pairio_node.transport import MemoryNetwork, MemoryTransport

SERVICE = "lab"
SPEC = {
    "name": "greeter",
    "processors": [
        {
            "name": "greet",
            "executable": "main.py",
            "inputs": [],
            "outputs": [{"name": "output"}],
            "parameters": [{"name": "name", "type": "str", "defaultValue": "world"}],
        }
    ],
}


class InstantRunner:
    """Writes `hello NAME` into the output; remembers what it ran."""

    name = "bwrap"
    isolation: Literal["none", "medium", "strong"] = "medium"
    runs_images = False

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.fails = False

    async def probe(self) -> ProbeResult:
        return ProbeResult(True)

    async def run(self, spec: RunSpec, cancel: trio.Event) -> RunOutcome:
        name = spec.parameters[0]["value"]
        self.ran.append(name)
        path = spec.work_dir / "output"
        path.write_text(f"hello {name}")
        usage = {"cpu_ms": 1, "wall_ms": 1, "memory_peak_bytes": 1}
        if self.fails:
            return RunOutcome("failed", "it broke", {}, b"broken\n", usage)
        return RunOutcome("completed", "", {"output": path}, b"greeting\n", usage)

    async def resume(self, spec: RunSpec, cancel: trio.Event) -> RunOutcome:
        return RunOutcome("infra", "nothing outlives this runner", {}, b"", {})


class FillingStore(Store):
    """A store whose disk can be full."""

    is_full = False

    def commit(self, rows: CommitRows, carried: Sequence[Carried] = ()) -> None:
        if self.is_full:
            raise StoreError("database or disk is full")
        super().commit(rows, carried)


class LabNode(Node):
    """A node of the laboratory, with what tests look at."""

    runner: InstantRunner
    store: FillingStore

    async def greet(self, name: str, **more: Any) -> dict[str, Any]:
        """Submit a job."""
        definition = {
            "appName": "greeter",
            "processorName": "greet",
            "inputFiles": [],
            "outputFiles": [{"name": "output"}],
            "parameters": [{"name": "name", "value": name}],
        }
        with trio.fail_after(10):
            return await self.jobs.submit({"jobDefinition": definition, **more})

    async def done(self, job: dict[str, Any]) -> dict[str, Any]:
        """Wait for a job; it must end in time."""
        return await self.jobs.wait(job["requestId"], None, 10)

    async def output(self, job: dict[str, Any]) -> str:
        cid, _, _ = await self.jobs.output_cid(job["requestId"], None, "output")
        return b"".join([chunk async for chunk in self.content.read(cid)]).decode()


@asynccontextmanager
async def running(
    network: MemoryNetwork,
    home: Path,
    *bootstrap: LabNode,
    say: Callable[[str], None] = lambda _: None,
    **settings: Any,
) -> AsyncIterator[LabNode]:
    """Run a node on a home; it dials and trusts the nodes in `bootstrap`."""
    addresses = tuple(node.transport.addresses()[0] for node in bootstrap)
    settings = {"quota_bytes": 2**24, **settings}
    config = NodeConfig(bootstrap=addresses, cpus=2, memory_gb=2, **settings)
    opened = Home.open(home)
    opened.lock()
    store, runner = FillingStore(Store.open(home / "node.db")._db), InstantRunner()
    node = LabNode(
        opened, config, store, Runners([runner]), MemoryTransport(network, opened.seed())
    )
    node.say = say
    node.runner, node.store, node.links = runner, store, Links(1, 2, b"k" * 32)
    try:
        async with node.transport.running(node.shell.on_transport):
            node.begin()
            async with trio.open_nursery() as nursery:
                node.start(nursery)
                yield node
                nursery.cancel_scope.cancel()
    finally:
        node.references.close()
        if node.writer is not None:
            node.writer.stop()
        store.close()
        opened.unlock()


def app_directory(path: Path) -> Path:
    """Make the app's directory."""
    path.mkdir()
    (path / "main.py").write_text("# the runner of these tests does not read it\n")
    (path / "spec.json").write_text(json.dumps(SPEC))
    return path


async def until(is_so: Callable[[], Any], what: str) -> None:
    """Wait until something that a node says is so."""
    with trio.move_on_after(10):
        while not is_so():
            with trio.move_on_after(0.005):
                await trio.sleep_forever()
        return
    raise AssertionError(f"not in 10 s: {what}")


def _knows_the_app(node: LabNode) -> bool:
    return bool(node.services.all() and node.services.apps(SERVICE))


@asynccontextmanager
async def three(network: MemoryNetwork, path: Path) -> AsyncIterator[tuple[LabNode, ...]]:
    """An admin and a guest that only submit, and a worker; the app is known to all of them."""
    async with (
        running(network, path / "admin", compute=False) as admin,
        running(network, path / "worker", admin) as worker,
        running(network, path / "guest", admin, compute=False) as guest,
    ):
        await admin.services.create(SERVICE)
        await admin.admins.grant(SERVICE, worker.peer_id, ["compute"], "worker")
        await admin.admins.grant(SERVICE, guest.peer_id, ["submit"], "guest")
        await admin.services.install_app(SERVICE, str(app_directory(path / "app")), None)
        for node in (worker, guest):
            await until(partial(_knows_the_app, node), "the app is known")
        yield admin, worker, guest
