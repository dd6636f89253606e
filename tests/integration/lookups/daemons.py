"""The same with Kubo: what it takes to be announced in its network, and to be found there."""

import os
import statistics
import time
from pathlib import Path

import psutil
import trio

from pairio_node.blocks.kubo import KuboApi
from pairio_node.ipfs_settings import parse_ipfs
from pairio_node.kubo_routing import announce, ask_holders
from pairio_node.transport import TransportEvent
from pairio_node.transport.libp2p_transport import Libp2pTransport
from pairio_protocol.cid import DAG_CBOR, cid_of
from pairio_protocol.documents import encode
from pairio_protocol.kad import Contact
from tests.integration.kubo import Kubo
from tests.integration.lookups.measures import Row, nobodys

__all__ = ["by_kubo"]

_LOOKS_IN_VAIN = 10


async def _nothing(_: TransportEvent) -> None:
    """Nobody is a pairio node here."""


async def by_kubo(program: Path, folder: Path, repeats: int) -> tuple[list[Row], list[str]]:
    """Run two daemons that know each other; announce at one, and look from the other."""
    daemons = [Kubo(program, folder / name) for name in ("near", "far")]
    holder, asker = (Libp2pTransport(os.urandom(32), ("/ip4/127.0.0.1/tcp/0",)) for _ in daemons)
    try:
        for daemon in daemons:
            await trio.to_thread.run_sync(daemon.start)
        near, far = daemons
        await trio.to_thread.run_sync(far.connect, near)
        async with holder.running(_nothing), asker.running(_nothing):
            bodies = [encode({"job": os.urandom(16).hex()}) for _ in range(repeats)]
            jobs = {cid_of(DAG_CBOR, body): body for body in bodies}
            lines = await _announced(near, holder, jobs)
            rows = await _looked_for(far, asker, list(jobs), holder.peer_id)
            return rows, [*lines, f"Kubo: {near.version}."]
    finally:
        for daemon in daemons:
            await trio.to_thread.run_sync(daemon.stop)


def _cpu_s(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def _cell(what: str, took_s: list[float], cpu_s: tuple[float, float]) -> str:
    count = len(took_s)
    mine_ms, daemons_ms = (f"{1000 * s / count:.1f}" for s in cpu_s)
    p50_ms = f"{1000 * statistics.median(took_s):.1f}"
    return f"| {what} | {count} times | {p50_ms} | {mine_ms} | {daemons_ms} |"


async def _announced(near: Kubo, holder: Libp2pTransport, jobs: dict[str, bytes]) -> list[str]:
    """Publish blocks as a node does results: block, pin, file, `provide/once`; then name the node
    beside the daemon."""
    api = KuboApi(parse_ipfs(near.url))
    daemon = Contact(near.peer_id, tuple(near.addresses))
    steps: dict[str, list[float]] = {"pin": [], "provide": [], "add": []}
    cpu: dict[str, tuple[float, float]] = {}

    def pin(job: str) -> None:
        api.pin(job)
        api.write_file(f"/pairio/results/{job}", job.encode())

    api.make_folder("/pairio/results")
    for job, body in jobs.items():
        await trio.to_thread.run_sync(api.put_block, job, body)
    for name in steps:
        before = (time.process_time(), _cpu_s(near.process_id))
        for job in jobs:
            began_s = time.perf_counter()
            if name == "pin":
                await trio.to_thread.run_sync(pin, job)
            elif name == "provide":
                await trio.to_thread.run_sync(api.provide, job, 60.0)
            else:
                await announce(holder, daemon, job)
            steps[name].append(time.perf_counter() - began_s)
        cpu[name] = (time.process_time() - before[0], _cpu_s(near.process_id) - before[1])
    return [
        _cell("Kubo: pin a result and write the file that names it", steps["pin"], cpu["pin"]),
        _cell("Kubo: announce the job id (`provide/once`)", steps["provide"], cpu["provide"]),
        _cell("Kubo: one ADD_PROVIDER, the node beside its daemon", steps["add"], cpu["add"]),
    ]


async def _looked_for(far: Kubo, asker: Libp2pTransport, jobs: list[str], holder: str) -> list[Row]:
    """Look as a node does: `findprovs` at its daemon, then those who are named."""
    api = KuboApi(parse_ipfs(far.url))
    found, vain = (
        Row("Kubo's routing: two daemons, one hop"),
        Row("Kubo's routing, nobody has it", in_vain=True),
    )

    async def look(row: Row, job: str) -> None:
        began_s = time.perf_counter()
        row.tried += 1
        named = await trio.to_thread.run_sync(api.providers, job, 8, 2.0)
        contacts = await ask_holders(asker, named, job) if named else []
        row.took_s.append(time.perf_counter() - began_s)
        row.found += any(contact.peer == holder for contact in contacts)

    for job in jobs:
        await look(found, job)
    for _ in range(min(_LOOKS_IN_VAIN, len(jobs))):
        await look(vain, nobodys())
    return [found, vain]
