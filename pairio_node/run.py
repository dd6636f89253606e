"""One start of a node: home, database, sandbox, transport, API, and the end of them all."""

import gc
import logging
import os
import secrets
import signal
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import trio

from pairio_node.api.auth import Auth
from pairio_node.api.links import Links
from pairio_node.api.server import serve_api
from pairio_node.config import NodeConfig
from pairio_node.home import Home
from pairio_node.ipfs import open_kubo
from pairio_node.node import Node
from pairio_node.nodelog import node_log
from pairio_node.runner import Launcher, ProcessRunner, Runners, probe_all
from pairio_node.runner.compiled import compile_sdk
from pairio_node.runner.container.runner import ContainerRunner
from pairio_node.runner.gpus import GpuPool, find_gpus
from pairio_node.runner.zygote.pool import WarmLimits, WarmPool
from pairio_node.runner.zygote.runner import WarmRunner
from pairio_node.store import Store
from pairio_node.transport import Transport
from pairio_node.transport.circuits import is_circuit
from pairio_node.transport.libp2p_transport import Libp2pTransport
from pairio_node.transport.relay import RelayBounds

__all__ = ["run_node"]

log = logging.getLogger("pairio.node")

#: A signal that comes twice at once (to the group, and passed on by the watchdog) is one.
_SECOND_SIGNAL_S = 1.0


async def _open_runners(
    home: Home, config: NodeConfig, launcher: Launcher, warm: WarmPool
) -> tuple[Runners, str]:
    """Return what runs jobs here, the first choice first, and a line when no sandbox holds."""
    await trio.to_thread.run_sync(compile_sdk)
    containers = ContainerRunner(launcher, config.container, home.path)
    runners = [WarmRunner(launcher, warm), containers, ProcessRunner(launcher)]
    opened = await probe_all(runners, config.allow_process)
    if opened.isolation != "none":
        return opened, ""
    probe = opened.found["bwrap"]
    note = f"no sandbox: {probe.why}. {probe.hint}.".replace(". .", ".")
    allowed = ", ".join(config.allow_process)
    return opened, note + (
        f" Runs without one: {allowed}" if allowed else " Apps are not run here."
    )


def _warm_pool(home: Home, config: NodeConfig, launcher: Launcher) -> WarmPool:
    limits = WarmLimits(
        mode=config.warm,
        apps_max=config.warm_apps,
        memory_bytes=int(config.warm_memory_gb * 2**30),
    )
    return WarmPool(home.path / "warm", launcher, limits)


def _libp2p(home: Home, config: NodeConfig, again: bool) -> Transport:
    listen = config.listen or (f"/ip4/0.0.0.0/tcp/{home.ports().listen}",)
    if listen == ("none",):
        listen = ()
    if again and len(listen) == 1:
        listen = (_same_port(listen[0], home.last_addresses()),)
    bounds = RelayBounds(
        named=config.trusted | frozenset(config.relay_for),
        reservations=config.relay_reservations,
        bytes_per_s=int(config.relay_mb_per_s * 1_000_000),
    )
    return Libp2pTransport(
        home.seed(),
        listen,
        config.gossip_loss_percent,
        relays=config.relays,
        relay=bounds if config.relay else None,
    )


def _same_port(listen: str, before: list[str]) -> str:
    """After a crash, the port that the system chose then: others know it."""
    before = [address for address in before if not is_circuit(address)]
    if not listen.endswith("/tcp/0") or not before:
        return listen
    port = before[0].partition("/tcp/")[2].partition("/")[0]
    return f"{listen.removesuffix('0')}{port}"


async def run_node(
    home: Home,
    config: NodeConfig,
    ready: Callable[[dict[str, Any]], None],
    say: Callable[[str], None] = lambda _: None,
    crashes: dict[str, Any] | None = None,
) -> None:
    """Run a node until SIGINT or SIGTERM. `crashes` is what the status says of earlier ones.

    Raises:
        UserError: a port is taken, the home is in use or corrupt; nothing was changed.
    """
    home.lock()
    stop = trio.Event()
    store = Store.open(home.path / "node.db")

    def say_and_log(text: str) -> None:
        log.info("%s", text)
        say(text)

    try:
        with node_log(home.path), Launcher(home.path / "node.alive") as launcher:
            log.info("starts: pid %d", os.getpid())
            async with trio.open_nursery() as top:
                await top.start(_watch_signals, stop)
                kubo = await open_kubo(home, config)
                gpus = find_gpus()[: config.gpus]
                if len(gpus) < config.gpus:
                    say_and_log(f"gpus is {config.gpus}, and this machine has {len(gpus)}")
                    config = replace(config, gpus=len(gpus))
                warm = _warm_pool(home, config, launcher)
                runners, note = await _open_runners(home, config, launcher, warm)
                if note and config.compute:
                    say_and_log(note)
                node = Node(
                    home,
                    config,
                    store,
                    runners,
                    _libp2p(home, config, bool(crashes and crashes["restarts"])),
                    kubo,
                )
                node.crashes |= crashes or {}
                node.say = say_and_log
                node.executions.gpus = GpuPool(gpus)
                node.memory_limit = launcher.memory_limit
                node.warm = warm
                top.start_soon(warm.serve)
                await _serve(node, ready, stop)
                log.info("stops: asked to")
                top.cancel_scope.cancel()
    finally:
        store.close()
        home.unlock()
        gc.freeze()  # what is left goes with the process, and need not be looked through first


async def _serve(node: Node, ready: Callable[[dict[str, Any]], None], stop: trio.Event) -> None:
    """API outermost to innermost: transport, driver, API; stopped the other way round."""
    home, ports = node.home, node.home.ports()
    home.remove_api()  # of a start that crashed: its token is refused from now on
    api_port = node.config.api_port or ports.api
    gateway_port = node.config.gateway_port or ports.gateway
    token = secrets.token_urlsafe(32)
    auth = Auth(token, home.path / "tokens.json", api_port)
    node.links = Links(api_port, gateway_port, home.secret("links.key"))
    node.api_url = f"http://127.0.0.1:{api_port}"
    node.draining.stopped = stop.set
    async with node.transport.running(node.shell.on_transport):
        node.begin()
        try:
            async with trio.open_nursery() as nursery:
                node.start(nursery)
                nursery.start_soon(_end_streams, node, stop)
                async with trio.open_nursery() as api:
                    await api.start(
                        partial(serve_api, node, auth, node.links, api_port, gateway_port, stop)
                    )
                    addresses = list(node.transport.addresses())
                    info = {"url": node.api_url, "token": token, "pid": os.getpid()}
                    gateway_url = f"http://127.0.0.1:{gateway_port}"
                    home.write_api({**info, "gatewayUrl": gateway_url, "addresses": addresses})
                    log.info("ready: %s, %s", " ".join(addresses), node.api_url)
                    ready({"peerId": node.peer_id, "addresses": addresses, "apiUrl": node.api_url})
                    gc.freeze()  # what was imported stays, and need not be looked through again
                home.remove_api()
                await node.leave_jobs()
                nursery.cancel_scope.cancel()
        finally:
            if node.writer is not None:
                node.writer.stop()
            node.references.close()
            node.blocks.db.close()


async def _end_streams(node: Node, stop: trio.Event) -> None:
    """End what would else be served until the grace of a stop is over."""
    await stop.wait()
    node.watching.stop()


async def _watch_signals(stop: trio.Event, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as numbers:
        task_status.started()
        first_s = 0.0
        async for _ in numbers:
            if not stop.is_set():
                first_s = trio.current_time()
                stop.set()
            elif trio.current_time() - first_s > _SECOND_SIGNAL_S:
                os._exit(1)  # the second one means it
