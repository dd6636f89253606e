"""A node's settings: `node.toml` in its home, overridden by the command line.

A field's comment is its row in docs/reference/settings.md (`scripts/gen_settings_docs`).
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

    #: multiaddrs to listen on; `["none"]`: nowhere, others reach this node by way of `relays`
    #: only. Default: all interfaces, on a port chosen once and kept.
    listen: tuple[str, ...] = ()
    #: multiaddrs ending in `/p2p/ID` to dial at start; services of these peers are taken up
    #: unasked.
    bootstrap: tuple[str, ...] = ()
    #: multiaddrs ending in `/p2p/ID` of up to 4 nodes by way of which others reach this one
    #: ([behind a router](../relays.md)); `--relay`.
    relays: tuple[str, ...] = ()
    #: whether others are reached by way of this node: members of its services, and peers that are
    #: named here; `--be-relay`.
    relay: bool = False
    #: peer ids for which this node relays besides members of its services and peers of `bootstrap`
    #: and `trust`.
    relay_for: tuple[str, ...] = ()
    #: peers that are reached by way of this node at a time.
    relay_reservations: int = 32
    #: MB per second that it passes on, for all together.
    relay_mb_per_s: float = 8.0
    #: peer ids whose services are taken up unasked.
    trust: tuple[str, ...] = ()
    #: whether this node runs jobs.
    compute: bool = True
    #: whether this node carries and runs what strangers ask of public services ([public
    #: services](../public.md)).
    guests: bool = True
    #: CPUs that all jobs together may use. Default: all.
    cpus: float = 0.0
    #: memory that all jobs together may use. Default: four fifths.
    memory_gb: float = 0.0
    #: how many of this machine's GPUs (NVIDIA) jobs may have; each goes to one job, which sees no
    #: other.
    gpus: int = 0
    #: services or apps that may run here without a sandbox; `"*"` means all.
    allow_process: tuple[str, ...] = ()
    #: services or apps whose jobs may have this machine's network, if they ask for it; `"*"` means
    #: all ([network](../network.md)).
    allow_network: tuple[str, ...] = ()
    #: `on`: Python apps are imported once and their jobs forked from there; `single`: each job has
    #: a process of its own that was started ahead; `off`: every job starts cold ([warm
    #: workers](../warm.md)).
    warm: str = "on"
    #: apps that have warm workers at a time.
    warm_apps: int = 8
    #: memory that all warm workers that wait for jobs may hold.
    warm_memory_gb: float = 2.0
    #: port of the API on loopback. Default: chosen once and kept.
    api_port: int = 0
    #: port on which content is served to a browser. Default: chosen once and kept.
    gateway_port: int = 0
    #: bytes that content may take. Default: a fifth of the free disk, at most 100 GB.
    quota_bytes: int = 0
    #: how long copies that others count on stay here whatever else wants their place ([the
    #: cache](../cache.md)).
    promise_days: float = 30.0
    #: how long an award holds without a sign of life.
    lease_ms: int = 10_000
    #: copies of a result besides the worker's.
    replicas: int = 1
    #: how long a running job goes on while no node runs on the home; a node that starts within it
    #: takes the job up. 0, or `--yield-jobs`: jobs end with the node.
    restart_grace_s: int = 60
    #: GB that one job may keep on the disk ([limits](../running.md)). Default: half of what is
    #: free when it starts, at most 100.
    job_disk_gb: float = 0.0
    #: processes and threads that one job may have at a time. Default: 512.
    job_processes_max: int = JOB_PROCESSES_MAX
    #: files that each process of a job may have open at a time. Default: 4096.
    job_open_files_max: int = JOB_OPEN_FILES_MAX
    #: hosts, or `host:port`, that inputs by URL may come from whatever their address:
    #: `["data.lab", "127.0.0.1:8080"]`. All others must have public addresses only, also after
    #: every redirect.
    allow_hosts: tuple[str, ...] = ()
    #: bytes that one input by URL may have. Default: 21474836480 (20 GiB).
    url_input_bytes_max: int = 20 * _GIB
    #: whether the node speaks [Bitswap](../bitswap.md): serves what is public, and asks IPFS nodes
    #: for inputs by CID that no member has.
    bitswap: bool = True
    #: whether the node takes part in the [DHT](../dht.md) of job ids: notes who holds results,
    #: tells of its own that are public or pinned, and looks there for what no connected member
    #: has.
    dht: bool = True
    #: addresses of IPFS nodes to stay connected with, ending in `/p2p/12D3Koo...`; `--ipfs-peer`.
    ipfs_peers: tuple[str, ...] = ()
    #: what the owner lets run here, a table: see below. Default: nothing is narrower.
    rules: tuple[HourRules, ...] = ()
    #: the Kubo daemon that keeps the content, a table: see below. Default: none: content is kept
    #: in the home.
    ipfs: IpfsSettings | None = None
    #: the engine of containers, a table: see below. Default: the first that answers.
    container: ContainerSettings = field(default_factory=ContainerSettings)
    #: for tests: share of incoming topic frames, in percent, that is dropped before it is looked
    #: at; 100 is gossip off altogether.
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
