"""What `pairio-node status` shows."""

from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from pairio_node.owner_rules import rules_for_none
from pairio_node.runner.container.runner import ContainerRunner
from pairio_protocol.machines.twins import Twin

if TYPE_CHECKING:
    from pairio_node.node import Node

__all__ = ["TWIN_HINT", "status_view", "twin_words"]

TWIN_HINT = "Stop one of them: they take each other's messages (docs/privacy.md)"


def status_view(node: "Node") -> dict[str, Any]:
    """Return the state of a node and its counters, in the original's style of names."""
    core, config = node.core, node.config
    membership = core.membership
    return {
        "peerId": node.peer_id,
        "addresses": list(node.transport.addresses()),
        "apiUrl": node.api_url,
        "version": _version(),
        "home": str(node.home.path),
        "compute": config.compute,
        "capacity": {
            "numCpus": config.cpu_millicores / 1000,
            "memoryGb": config.memory_mib / 1024,
            "numGpus": config.gpus,
        },
        "isolation": core.ctx.config.isolation,
        "draining": node.draining.begun,
        "memoryLimit": node.memory_limit,
        "runners": list(node.runners.names),
        "runnersMissing": {
            name: {"why": probe.why, "hint": probe.hint}
            for name, probe in node.runners.missing.items()
        },
        "warm": _warm(node),
        "containers": _containers(node),
        **node.crashes,
        "running": node.executions.running,
        "accepted": len(core.worker.tasks),
        "peers": sorted(node.transport.connected()),
        **node.transport.relays(),
        "services": [membership.petnames[s] for s in sorted(membership.taken_up)],
        "offers": len(membership.offers()),
        "joins": node.joins.all(),
        "closedNow": [name or "all services" for name in sorted(core.ctx.closed)],
        "rulesForNone": rules_for_none(
            config.rules, {*membership.chains, *membership.petnames.values()}
        ),
        "twins": [_twin(twin) for twin in core.twins.live],
        "codeMissing": sorted({bundle for _, bundle in node.code.missing}),
        "ipfs": node.kubo.status() if node.kubo else None,
        "blocks": {**node.cache.status(), **node.exchange.counters},
        "bitswap": _bitswap(node),
        "dht": node.dht.status() if node.dht is not None else None,
        "counters": {
            **node.transport.counters(),
            **core.ctx.counters,
            **core.logs.counts(),
            **node.consoles.streams.counters,
            **node.preparation.counters,
            **(node.bitswap.refusals() if node.bitswap is not None else {}),
            **(node.dht.refusals() if node.dht is not None else {}),
        },
    }


def _warm(node: "Node") -> list[dict[str, Any]]:
    """Return the apps that are run warm, or why not, the most recently used first."""
    names = node.core.membership.petnames
    found = node.warm.status() if node.warm is not None else []
    return [{**entry, "service": names.get(entry["service"], entry["service"])} for entry in found]


def _bitswap(node: "Node") -> dict[str, Any] | None:
    """Return how much went over Bitswap, and whom it goes with; None when it is off."""
    if node.bitswap is None:
        return None
    return {"peers": node.bitswap.peers(), **node.bitswap.counters}


def _version() -> str:
    try:
        return version("pairio")
    except PackageNotFoundError:
        return "unknown"


def _containers(node: "Node") -> dict[str, Any] | None:
    """Return the engine that runs apps in their images, and who holds its jobs to their memory."""
    runner = next((r for r in node.runners.holding if isinstance(r, ContainerRunner)), None)
    if runner is None:
        return None
    return {"engine": runner.engine_name, "memoryLimit": runner.memory_bound}


def twin_words(boot: bytes, since_unix_ms: int) -> str:
    """Say that another node uses this node's key."""
    since = datetime.fromtimestamp(since_unix_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return f"another node uses this key: boot {boot.hex()[:16]}, since {since}"


def _twin(twin: Twin) -> dict[str, Any]:
    """Return another node that uses this node's key."""
    return {
        "boot": twin.boot.hex(),
        "sinceSec": twin.since_unix_ms / 1000,
        "words": twin_words(twin.boot, twin.since_unix_ms),
    }
