"""What an engine is told to make for a job: pure, so that every word of it can be read and tested.

Podman makes command lines of what it is told, so no name that a submitter or an app chose stands
in a mount, but for those of secrets (letters, digits and _): paths are this node's, and are refused
when they hold what could end an option.
"""

import os
import re
import resource
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pairio_node.runner.base import RunSpec
from pairio_node.runner.bounds import JobBounds

__all__ = [
    "FOLDER_LABEL",
    "HOME_LABEL",
    "Facts",
    "Mount",
    "container_body",
    "default_user",
    "is_safe_path",
    "with_init",
]

HOME_LABEL: Final = "io.pairio.home"
FOLDER_LABEL: Final = "io.pairio.folder"
ATTEMPT_LABEL: Final = "io.pairio.attempt"
#: When the machine has no memory left, a job ends before the node and before other programs.
_OOM_SCORE: Final = 500
_SPARE: Final = 4
_SHM_SIZE_BYTES: Final = 64 * 2**20
_PERIOD_US: Final = 100_000
_UNSAFE: Final = re.compile(r'[,:"\\\x00-\x1f]')
#: The first process of a container is not told to end unless it asks to be, and has to take up
#: what others leave. So it is a shell that hands signals on and waits, where the image has one.
_INIT: Final = (
    "trap 'kill -TERM -1 2>/dev/null' TERM; \"$@\" & p=$!;"
    " while :; do wait $p; c=$?; kill -0 $p 2>/dev/null || exit $c; done"
)


@dataclass(frozen=True)
class Facts:
    """What an engine is. `user` is whom jobs run as inside: `uid:gid`. `bounds_memory`: whether it
    enforces what it is told."""

    socket: str
    name: str
    is_podman: bool
    is_rootless: bool
    bounds_memory: bool
    has_selinux: bool
    user: str

    @property
    def is_nodes_user(self) -> bool:
        """Whether jobs run as the node's own user."""
        return int(self.user.partition(":")[0]) == os.geteuid()


@dataclass(frozen=True)
class Mount:
    """A file or folder of this machine in a container."""

    source: Path
    target: str
    is_writable: bool = False

    @property
    def body(self) -> dict[str, Any]:
        """As the engine is told."""
        return {
            "Type": "bind",
            "Source": str(self.source),
            "Target": self.target,
            "ReadOnly": not self.is_writable,
        }


def is_safe_path(path: Path) -> bool:
    """Say whether a path may be told to an engine."""
    return _UNSAFE.search(str(path)) is None


def with_init(argv: Sequence[str], has_shell: bool) -> list[str]:
    """Return a command that ends when it is asked to."""
    return ["/bin/sh", "-c", _INIT, "sh", *argv] if has_shell else list(argv)


def container_body(
    spec: RunSpec,
    facts: Facts,
    home: str,
    argv: Sequence[str],
    environment: dict[str, str],
    mounts: Sequence[Mount],
    image: str,
    seccomp: str,
    network_of: str = "",
) -> dict[str, Any]:
    """Return the body of `POST /containers/create` for a job. `home` names the node's home in
    labels; `seccomp` is a filter, or the path of one; `network_of` the container whose network it
    has, where streams come from."""
    labels = {
        HOME_LABEL: home,
        FOLDER_LABEL: str(spec.work_dir),
        ATTEMPT_LABEL: spec.attempt[:200],
    }
    return {
        "Image": image,
        "Entrypoint": [],
        "Cmd": list(argv),
        "Env": [f"{name}={value}" for name, value in environment.items()],
        "User": facts.user,
        "WorkingDir": "/tmp/working",
        # One that has another's network has its name, too.
        **({} if network_of else {"Hostname": "job"}),
        "Labels": labels,
        "NetworkDisabled": spec.network == "none" and not network_of,
        "Healthcheck": {"Test": ["NONE"]},
        "AttachStdout": True,
        "AttachStderr": True,
        "HostConfig": {
            "OomScoreAdj": _OOM_SCORE,
            "NetworkMode": _network(spec, network_of),
            **_user_namespace(facts, network_of),
            "IpcMode": "private",
            "ReadonlyRootfs": True,
            "CapDrop": ["ALL"],
            "SecurityOpt": _security(facts, seccomp),
            "Memory": spec.memory_mib * 2**20,
            "MemorySwap": spec.memory_mib * 2**20,
            "CpuPeriod": _PERIOD_US,
            "CpuQuota": max(1000, spec.cpu_millicores * _PERIOD_US // 1000),
            "CpuShares": 2 if spec.nice else 1024,
            "PidsLimit": spec.bounds.processes,
            "ShmSize": _SHM_SIZE_BYTES,
            "Tmpfs": _tmpfs(facts),
            **_gpus(spec),
            "Ulimits": _ulimits(spec.bounds),
            "LogConfig": {"Type": "none"},
            "RestartPolicy": {"Name": "no"},
            "Mounts": [mount.body for mount in mounts],
        },
    }


def _network(spec: RunSpec, network_of: str) -> str:
    if spec.network == "full":
        return "host"
    return f"container:{network_of}" if network_of else "none"


def _user_namespace(facts: Facts, network_of: str) -> dict[str, str]:
    """Return whose user namespace it has: a network belongs to one, and can be shared in that."""
    if not (facts.is_rootless and facts.is_podman):
        return {}
    return {"UsernsMode": f"container:{network_of}" if network_of else "keep-id"}


def _gpus(spec: RunSpec) -> dict[str, Any]:
    """Return which GPUs the engine shows: those that the run was given, by UUID."""
    if not spec.gpu_devices:
        return {}
    uuids = [gpu.uuid for gpu in spec.gpu_devices]
    asked = {"Driver": "nvidia", "DeviceIDs": uuids, "Capabilities": [["gpu"]]}
    return {"DeviceRequests": [asked]}


def _tmpfs(facts: Facts) -> dict[str, str]:
    """Return what is in memory. Podman gives a read-only container such places without a bound, and
    copies what the image has there, for which a rootless one lacks the rights."""
    more = ",notmpcopyup" if facts.is_podman else ""
    return {
        "/run": f"rw,nosuid,nodev,size=1m,mode=755{more}",
        "/var/tmp": f"rw,nosuid,nodev,size=16m,mode=1777{more}",
    }


def _security(facts: Facts, seccomp: str) -> list[str]:
    options = ["no-new-privileges", f"seccomp={seccomp}"]
    return [*options, "label=disable"] if facts.has_selinux else options


def _ulimits(bounds: JobBounds) -> list[dict[str, Any]]:
    files_max = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    files = bounds.open_files if files_max == resource.RLIM_INFINITY else files_max
    limits = {
        "nofile": min(files, bounds.open_files),
        # Counted per user and not per job: for engines that bound no group.
        "nproc": _SPARE * bounds.processes,
        "core": 0,
        "fsize": bounds.disk_bytes,
    }
    return [{"Name": name, "Soft": value, "Hard": value} for name, value in limits.items()]


def default_user() -> str:
    """Return whom jobs run as: nobody, of a node that is root; else its own user, who is the same
    inside and owns the job's files. In a rootless engine root inside would be that user, too, but
    could do there what only root may."""
    return "65534:65534" if os.geteuid() == 0 else f"{os.geteuid()}:{os.getegid()}"
