"""The GPUs of this machine, and which run has which. A job sees the devices that it was given: what
libraries are told (`CUDA_VISIBLE_DEVICES`) a job could overrule, so the others are not there.

NVIDIA's driver tells of its GPUs in /proc; nothing is started to ask it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

__all__ = ["SHARED_DEVICES", "Gpu", "GpuPool", "NoGpu", "find_gpus"]

#: What every job with a GPU needs besides its own device; those that are there.
SHARED_DEVICES: Final = ("nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia-modeset")


class NoGpu(Exception):
    """There are not as many GPUs free as a run asks for; says how many there are."""


@dataclass(frozen=True)
class Gpu:
    """One GPU: `minor` is the number of its device, /dev/nvidiaMINOR."""

    uuid: str
    minor: int
    name: str = ""


def find_gpus(root: Path = Path("/")) -> tuple[Gpu, ...]:
    """Return the GPUs that the driver has and whose devices are there, by number."""
    found = []
    for file in root.glob("proc/driver/nvidia/gpus/*/information"):
        rows = (line.partition(":") for line in file.read_text(errors="replace").splitlines())
        facts = {name.strip(): value.strip() for name, _, value in rows}
        minor, uuid = facts.get("Device Minor", ""), facts.get("GPU UUID", "")
        if minor.isdigit() and uuid.startswith("GPU-") and (root / f"dev/nvidia{minor}").exists():
            found.append(Gpu(uuid, int(minor), facts.get("Model", "")))
    return tuple(sorted(found, key=lambda gpu: gpu.minor))


class GpuPool:
    """Gives GPUs to runs, each to one."""

    def __init__(self, gpus: Sequence[Gpu] = ()) -> None:
        self.all = tuple(gpus)
        self._taken: dict[str, tuple[Gpu, ...]] = {}

    def take(self, attempt: str, count: int) -> tuple[Gpu, ...]:
        """Give a run its GPUs.

        Raises:
            NoGpu: fewer are free.
        """
        busy = {gpu for gpus in self._taken.values() for gpu in gpus}
        free = [gpu for gpu in self.all if gpu not in busy]
        if len(free) < count:
            raise NoGpu(f"needs {count} GPUs, and {len(free)} of {len(self.all)} are free")
        if count:
            self._taken[attempt] = tuple(free[:count])
        return tuple(free[:count])

    def keep(self, attempt: str, uuids: Sequence[str]) -> None:
        """A run that an earlier start of the node began has these."""
        held = tuple(gpu for gpu in self.all if gpu.uuid in uuids)
        if held:
            self._taken[attempt] = held

    def give_back(self, attempt: str) -> None:
        """A run is over."""
        self._taken.pop(attempt, None)
