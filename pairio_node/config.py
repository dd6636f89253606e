"""A node's settings: `node.toml` in its home, overridden by the command line.

Every setting is described in docs/reference/settings.md (a test holds the two together).
"""

import math
import os
import tomllib
from dataclasses import dataclass, field, fields, replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import psutil

from pairio_node.errors import UserError
from pairio_node.ipfs_settings import IpfsSettings, parse_ipfs
from pairio_node.owner_rules import HourRules, parse_rules
from pairio_node.runner.bounds import JobBounds
from pairio_node.runner.container.settings import ContainerSettings, parse_container
from pairio_protocol.errors import DecodeError
from pairio_protocol.ids import public_key_of
from pairio_protocol.limits import (
    BITSWAP_ASKED_MAX,
    JOB_DISK_BYTES_MAX,
    JOB_OPEN_FILES_MAX,
    JOB_PROCESSES_MAX,
    RELAYS_MAX,
)

__all__ = ["NodeConfig", "load_config", "peer_in"]

_GIB = 1024**3
_WARM = ("on", "single", "off")


@dataclass(frozen=True)
class NodeConfig:
    """Settings of one run. Sequences are tuples; units end the names."""

    #: Multiaddrs to listen on; empty: all interfaces, on the port kept in the home; only `none`:
    #: nowhere.
    listen: tuple[str, ...] = ()
    #: Multiaddrs ending in /p2p/ID to dial at start; their services are taken up unasked.
    bootstrap: tuple[str, ...] = ()
    #: Multiaddrs ending in /p2p/ID of nodes by way of which others reach this one.
    relays: tuple[str, ...] = ()
    #: Whether others are reached by way of this node: members of its services, `bootstrap`,
    #: `trust`, and the peer ids of `relay_for`; how many, and with how many MB per second.
    relay: bool = False
    relay_for: tuple[str, ...] = ()
    relay_reservations: int = 32
    relay_mb_per_s: float = 8.0
    #: Peer ids whose services are taken up unasked.
    trust: tuple[str, ...] = ()
    #: Whether this node runs jobs.
    compute: bool = True
    #: Whether it carries and runs what strangers ask of public services.
    guests: bool = True
    #: What all jobs together may use.
    cpus: float = 0.0
    memory_gb: float = 0.0
    gpus: int = 0
    #: Services or apps that may run without a sandbox here; "*": all.
    allow_process: tuple[str, ...] = ()
    #: Services or apps whose jobs may have this machine's network; "*": all.
    allow_network: tuple[str, ...] = ()
    #: Warm workers: `on`, `single` (a process of its own for each job, from the start), `off`.
    warm: str = "on"
    #: How many apps have them, and what all of them may hold.
    warm_apps: int = 8
    warm_memory_gb: float = 2.0
    #: Ports of the API and of the content gateway; 0: those kept in the home.
    api_port: int = 0
    gateway_port: int = 0
    #: Bytes that blocks may take; 0: a fifth of the free disk, at most 100 GB.
    quota_bytes: int = 0
    #: How long copies that others count on stay here whatever else wants their place.
    promise_days: float = 30.0
    #: How long an award holds without a sign of life.
    lease_ms: int = 10_000
    #: Copies of a result besides the worker's.
    replicas: int = 1
    #: How long a running job goes on while no node runs on the home; 0: it ends with the node.
    restart_grace_s: int = 60
    #: GB that one job may keep on the disk; 0: half of what is free when it starts, at most 100.
    job_disk_gb: float = 0.0
    #: Processes and threads of one job, and files that each of its processes may have open.
    job_processes_max: int = JOB_PROCESSES_MAX
    job_open_files_max: int = JOB_OPEN_FILES_MAX
    #: Hosts, or host:port, that inputs by URL may come from whatever their address.
    allow_hosts: tuple[str, ...] = ()
    #: Bytes that one input by URL may have.
    url_input_bytes_max: int = 20 * _GIB
    #: Whether it speaks Bitswap with IPFS nodes: serves what is public, asks for inputs.
    bitswap: bool = True
    #: Whether it takes part in the DHT of job ids, and looks results up there.
    dht: bool = True
    #: Multiaddrs ending in /p2p/ID of IPFS nodes to stay connected with.
    ipfs_peers: tuple[str, ...] = ()
    #: What the owner lets run here: the table [rules] (owner_rules.py).
    rules: tuple[HourRules, ...] = ()
    #: The Kubo daemon that keeps the blocks: the table [ipfs] (ipfs_settings.py); None: they are
    #: kept in the home.
    ipfs: IpfsSettings | None = None
    #: The engine of containers: the table [container] (runner/container/settings.py).
    container: ContainerSettings = field(default_factory=ContainerSettings)
    #: For tests: percent of incoming topic frames to drop unseen; 100: gossip is off altogether.
    gossip_loss_percent: int = 0

    @property
    def trusted(self) -> frozenset[str]:
        """The peers that the owner named: their services are taken up unasked."""
        return frozenset({*self.trust, *map(peer_in, self.bootstrap)})

    @property
    def cpu_millicores(self) -> int:
        """CPUs for jobs in thousandths."""
        return math.ceil(self.cpus * 1000) or (os.cpu_count() or 1) * 1000

    @property
    def memory_mib(self) -> int:
        """Memory for jobs; by default four fifths of what the machine has."""
        return math.ceil(self.memory_gb * 1024) or int(psutil.virtual_memory().total * 0.8) // 2**20

    def quota_for(self, path: Path, held_bytes: int = 0) -> int:
        """Return the block quota for a store on `path` that holds so much already: what it takes
        itself counts as free, or it would shrink with every start."""
        if self.quota_bytes:
            return self.quota_bytes
        free_bytes = int(psutil.disk_usage(str(path)).free) + held_bytes
        return min(free_bytes // 5, 100 * _GIB)

    def bounds_for_job(self, jobs: Path, quota_bytes: int) -> JobBounds:
        """Return what a job that starts now in the folder `jobs` may use besides what it asks for;
        outputs that do not fit into the quota could not be kept."""
        free_bytes = int(psutil.disk_usage(str(jobs)).free)
        disk_bytes = math.ceil(self.job_disk_gb * _GIB) or min(JOB_DISK_BYTES_MAX, free_bytes // 2)
        return JobBounds(
            processes=self.job_processes_max,
            open_files=self.job_open_files_max,
            disk_bytes=disk_bytes,
            output_bytes=min(disk_bytes, quota_bytes),
            reserve_bytes=min(_GIB, free_bytes // 10),
        )


def load_config(path: Path, overrides: dict[str, Any]) -> NodeConfig:
    """Return the settings of `path` (may be missing) with `overrides` (None: not given).

    Raises:
        UserError: not TOML, an unknown setting, a value of the wrong type or range.
    """
    raw: dict[str, Any] = {}
    if path.exists():
        try:
            raw = tomllib.loads(path.read_text())
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
            raise UserError(
                f"cannot read {path}: {error}", hint="mend it or move it away"
            ) from None
    known = {field.name: field.type for field in fields(NodeConfig)}
    unknown = sorted(set(raw) - set(known))
    if unknown:
        raise UserError(
            f"unknown setting {unknown[0]!r} in {path}", hint=f"settings: {', '.join(known)}"
        )
    merged = {**raw, **{k: v for k, v in overrides.items() if v is not None}}
    if isinstance(merged.get("ipfs"), str) and isinstance(raw.get("ipfs"), dict):
        merged["ipfs"] = {**raw["ipfs"], "api": merged["ipfs"]}  # the rest holds for any daemon
    values = {name: _typed(name, value, known[name]) for name, value in merged.items()}
    config = replace(NodeConfig(), **values)
    _check(config)
    return config


def _typed(name: str, value: Any, kind: Any) -> Any:
    if name == "rules":
        return parse_rules(value)
    if name == "ipfs":
        return parse_ipfs(value)
    if name == "container":
        return parse_container(value)
    if "tuple" in str(kind):
        if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
            return tuple(value)
    elif kind is bool or kind is str:
        if isinstance(value, kind):
            return value
    elif _is_number(value, whole=kind is int):
        return kind(value)
    raise UserError(f"setting {name} is {value!r}", hint=f"give it {_in_words(kind)}")


def _is_number(value: Any, whole: bool) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return not whole or value == value // 1  # not so for infinity and NaN


def _in_words(kind: Any) -> str:
    words = {bool: "true or false", int: "a whole number", float: "a number"}
    return words.get(kind, 'a list of texts, such as ["a", "b"]')


def _check(config: NodeConfig) -> None:
    if config.warm not in _WARM:
        raise UserError(f"setting warm is {config.warm!r}", hint=f"use {', '.join(_WARM)}")
    for address in config.listen if config.listen != ("none",) else ():
        _check_listen(address)
    _check_relays(config)
    for address in config.bootstrap:
        peer_in(address)
    for address in config.ipfs_peers:
        peer_in(address, "ipfs_peers")
    if len(config.ipfs_peers) > BITSWAP_ASKED_MAX:
        raise UserError(
            f"setting ipfs_peers names {len(config.ipfs_peers)} peers",
            hint=f"use at most {BITSWAP_ASKED_MAX}",
        )
    for peer in config.trust:
        _check_peer(peer, "trust")
    for host in config.allow_hosts:
        if not host or set(host) & set("/@*, "):
            raise UserError(
                f"setting allow_hosts is no list of hosts: {host!r}",
                hint="use HOST or HOST:PORT, no URL",
            )
    for name, low, high in (
        ("cpus", 0, 4096),
        ("memory_gb", 0, 65536),
        ("gpus", 0, 1024),
        ("warm_apps", 1, 256),
        ("warm_memory_gb", 0, 65536),
        ("api_port", 0, 65535),
        ("gateway_port", 0, 65535),
        ("quota_bytes", 0, 2**60),
        ("promise_days", 0, 36_500),
        ("lease_ms", 1000, 3_600_000),
        ("replicas", 0, 16),
        ("restart_grace_s", 0, 86_400),
        ("job_disk_gb", 0, 2**20),
        ("job_processes_max", 8, 2**20),
        ("job_open_files_max", 64, 2**20),
        ("url_input_bytes_max", 1, 2**60),
        ("relay_reservations", 1, 1024),
        ("relay_mb_per_s", 0.1, 100_000),
        ("gossip_loss_percent", 0, 100),
    ):
        if not low <= getattr(config, name) <= high:
            raise UserError(
                f"setting {name} is {getattr(config, name)}", hint=f"use {low} to {high}"
            )


def _check_relays(config: NodeConfig) -> None:
    for address in config.relays:
        peer_in(address, "relays")
        if "/p2p-circuit" in address:
            raise UserError(
                f"relays address {address!r} leads through another relay",
                hint="name a relay that anybody reaches: /ip4/.../tcp/.../p2p/12D3Koo...",
            )
    if len(config.relays) > RELAYS_MAX:
        raise UserError(
            f"setting relays names {len(config.relays)} relays", hint=f"use at most {RELAYS_MAX}"
        )
    for peer in config.relay_for:
        _check_peer(peer, "relay_for")


def _check_listen(address: str) -> None:
    nothing, kind, host, tcp, port = [*address.split("/"), "", "", "", ""][:5]
    try:
        ip_address(host)
        right = (nothing, tcp) == ("", "tcp") and address.count("/") == 4
        right = right and kind == ("ip6" if ":" in host else "ip4") and 0 <= int(port) < 65536
    except ValueError:
        right = False
    if not right:
        raise UserError(
            f"listen address {address!r} is not one to listen on",
            hint="use one such as /ip4/0.0.0.0/tcp/4001 (port 0: any free one), or none alone",
        )


def _check_peer(peer: str, where: str) -> None:
    try:
        public_key_of(peer)
    except DecodeError as error:
        raise UserError(f"{where}: {error}") from None


def peer_in(address: str, where: str = "bootstrap") -> str:
    """Return the peer id at the end of a multiaddr of a setting, or raise UserError."""
    prefix, found, peer = address.rpartition("/p2p/")
    if not found or not prefix.startswith("/"):
        raise UserError(
            f"{where} address {address!r} names no peer",
            hint="use one that the other node prints: /ip4/.../tcp/.../p2p/12D3Koo...",
        )
    _check_peer(peer, where)
    return peer
