"""Looks at this machine for `doctor`: nothing is changed, no node has to run."""

import ctypes
import fcntl
import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path

import psutil
import trio

from pairio_node.config import NodeConfig, load_config
from pairio_node.doctor import Facts
from pairio_node.errors import UserError
from pairio_node.home import Home
from pairio_node.runner import BwrapRunner, Launcher
from pairio_node.runner.base import ProbeResult
from pairio_node.runner.bwrap import probe_spec
from pairio_node.runner.cgroups import probe as probe_cgroups
from pairio_node.runner.container.runner import ContainerRunner
from pairio_node.runner.gpus import find_gpus
from pairio_node.runner.seccomp import native
from pairio_node.runner.zygote.probe import probe_warm

__all__ = ["gather"]

_TIME_UNSYNCHRONISED = 0x0040  # STA_UNSYNC of adjtimex
_RUNNERS_S = 60
_RELAY_S = 3.0


async def gather(path: Path) -> Facts:
    """Return the facts about this machine and the home at `path`."""
    config, config_error = _config(path)
    there = next(p for p in (path, *path.parents) if p.exists())
    with tempfile.TemporaryDirectory(prefix="pairio-doctor-") as folder:
        runners, warm = await _probed(Path(folder), config)
    return Facts(
        compute=config.compute,
        allow_process=config.allow_process,
        machine=os.uname().machine,
        has_filter=native() is not None and Path("/proc/sys/kernel/seccomp").exists(),
        bwrap_version=_bwrap_version(),
        runners=runners,
        userns_max=_number("/proc/sys/user/max_user_namespaces"),
        userns_clone=_text("/proc/sys/kernel/unprivileged_userns_clone"),
        userns_restricted=_text("/proc/sys/kernel/apparmor_restrict_unprivileged_userns"),
        memory_limit=probe_cgroups(),
        warm_mode=config.warm,
        warm=warm,
        gpus=tuple(gpu.name or gpu.uuid for gpu in find_gpus()),
        gpus_wanted=config.gpus,
        year=time.gmtime().tm_year,
        clock_is_set=_clock_is_set(),
        ports_taken=_ports_taken(path, config),
        home=str(path),
        home_is_there=(path / "node.key").exists(),
        home_file_system=_file_system(there),
        disk_free_bytes=psutil.disk_usage(str(there)).free,
        has_public_address=_has_public_address(),
        relays=config.relays,
        relays_silent=await trio.to_thread.run_sync(_silent, config.relays),
        kubo_api=config.ipfs.api if config.ipfs else "",
        kubo_error=await trio.to_thread.run_sync(_kubo_error, config),
        config_error=config_error,
    )


def _config(path: Path) -> tuple[NodeConfig, str]:
    try:
        return load_config(path / "node.toml", {}), ""
    except UserError as error:
        return NodeConfig(), f"{error.message}; {error.hint}".rstrip("; ")


async def _probed(
    folder: Path, config: NodeConfig
) -> tuple[dict[str, ProbeResult], tuple[str, str]]:
    """Let a job try to get out of each kind of sandbox; start warm workers."""
    found, warm = {}, ("cold", f"no answer in {_RUNNERS_S} s")
    with Launcher(folder / "alive") as launcher:
        runners = (BwrapRunner(launcher), ContainerRunner(launcher, config.container))
        for runner in runners:
            found[runner.name] = ProbeResult(False, f"no answer in {_RUNNERS_S} s")
            with trio.move_on_after(_RUNNERS_S):
                found[runner.name] = await runner.probe()
        if found["bwrap"].ok and config.warm != "off":
            with trio.move_on_after(_RUNNERS_S):
                warm = await probe_warm(launcher, probe_spec(folder))
    return found, warm


def _bwrap_version() -> str | None:
    program = shutil.which("bwrap")
    if program is None:
        return None
    said = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=10)
    found = re.search(r"[0-9.]+", said.stdout)
    return found.group() if found else "0"


def _text(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _number(path: str) -> int | None:
    text = _text(path)
    return int(text) if text.isdigit() else None


def _clock_is_set() -> bool | None:
    """Ask the kernel whether something sets the clock; None: it does not say."""
    buffer = (ctypes.c_int * 64)()  # struct timex; modes 0: nothing is changed
    if ctypes.CDLL(None).adjtimex(buffer) < 0:
        return None
    status_at = 10 if ctypes.sizeof(ctypes.c_long) == 8 else 5
    return not buffer[status_at] & _TIME_UNSYNCHRONISED


def _ports_taken(path: Path, config: NodeConfig) -> tuple[tuple[str, int], ...]:
    """Return the ports that the node would want and another program has."""
    if not (path / "ports.json").exists() or _runs(path):
        return ()
    try:
        ports = Home(path).ports()
    except UserError:
        return ()
    wanted = {
        "api": ("127.0.0.1", config.api_port or ports.api),
        "gateway": ("127.0.0.1", config.gateway_port or ports.gateway),
        **({} if config.listen else {"listen": ("0.0.0.0", ports.listen)}),
    }
    return tuple((name, where[1]) for name, where in wanted.items() if not _is_free(*where))


def _is_free(host: str, port: int) -> bool:
    with socket.socket() as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind((host, port))
        except OSError:
            return False
    return True


def _runs(path: Path) -> bool:
    """Say whether a node has the home locked."""
    try:
        fd = os.open(path / "node.lock", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(fd)
    return False


def _has_public_address() -> bool:
    found = [a for addresses in psutil.net_if_addrs().values() for a in addresses]
    kinds = (socket.AF_INET, socket.AF_INET6)
    hosts = [a.address.partition("%")[0] for a in found if a.family in kinds]
    return any(ip_address(host).is_global for host in hosts)


def _silent(relays: tuple[str, ...]) -> tuple[str, ...]:
    """Return the relays at which nobody takes a connection."""
    silent = []
    for relay in relays:
        _, _, host, _, port, *_ = [*relay.split("/"), "", "", "", "", ""]
        try:
            socket.create_connection((host, int(port)), _RELAY_S).close()
        except (OSError, ValueError):
            silent.append(f"{host}:{port}")
    return tuple(silent)


def _file_system(path: Path) -> str:
    """Return the kind of file system that a path is on."""
    found, best = "", Path("/")
    with suppress(OSError):
        for line in Path("/proc/self/mounts").read_text().splitlines():
            _, mount, kind, *_ = line.split(" ")
            at = Path(mount.replace("\\040", " "))
            if path.resolve().is_relative_to(at) and at.parts >= best.parts:
                found, best = kind, at
    return found


def _kubo_error(config: NodeConfig) -> str:
    if config.ipfs is None:
        return ""
    from pairio_node.blocks.kubo import KuboApi

    try:
        KuboApi(config.ipfs).peer_id()
    except UserError as error:
        return error.message
    return ""
