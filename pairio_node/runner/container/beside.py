"""The container beside a job by which its streams come: it has the socket, and the job's network.

It listens on the loopback that both have and passes connections on to the node's socket, with the
interpreter and system of this machine: the job's image may have neither, and sees nothing of it.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from pairio_node.runner.base import RunSpec
from pairio_node.runner.bounds import JobBounds
from pairio_node.runner.container.body import Facts, Mount, container_body
from pairio_node.runner.container.files import system_mounts
from pairio_node.runner.mounts import STREAMS_INSIDE, forwarder
from pairio_node.runner.process import sdk_root

__all__ = ["beside_body", "beside_name"]

_MEMORY_MIB: Final = 128
_PROCESSES: Final = 32


def beside_name(job: str) -> str:
    """Return the name of the container beside that of a job."""
    return f"{job}-streams"


def beside_body(
    spec: RunSpec, facts: Facts, home: str, skeleton: str, seccomp: str
) -> dict[str, Any]:
    """Return what the engine is to make for the streams of a job."""
    assert spec.stream_folder is not None
    own = replace(
        spec,
        memory_mib=_MEMORY_MIB,
        bounds=JobBounds(processes=_PROCESSES),
        gpu_devices=(),
        secrets={},
    )
    mounts = system_mounts(with_packages=False)
    mounts.append(Mount(sdk_root() / "pairio", "/opt/pairio/sdk/pairio"))
    mounts.append(Mount(Path(spec.stream_folder), STREAMS_INSIDE))
    words = {"LANG": "C.UTF-8"}
    body = container_body(own, facts, home, forwarder(), words, mounts, skeleton, seccomp)
    return {**body, "WorkingDir": "/"}
