"""What a runner is: the contract between the node and whatever isolates a job."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal, Protocol

import trio

from pairio_node.runner.bounds import JobBounds
from pairio_node.runner.gpus import Gpu

__all__ = [
    "FORWARD_PORT",
    "SOCKET",
    "ProbeResult",
    "RunInput",
    "RunOutcome",
    "RunOutput",
    "RunSpec",
    "Runner",
    "bare_spec",
]

#: Where streamed inputs are read in a job's own network, and the socket behind it.
FORWARD_PORT: Final = 18741
SOCKET: Final = "s"


@dataclass(frozen=True)
class RunInput:
    """An input: a file or folder on this machine that the job may read. One that is streamed has a
    `url` for the job, and nothing at `path` unless it `is_here`."""

    name: str
    base_name: str
    path: Path
    url: str = ""
    is_here: bool = True


@dataclass(frozen=True)
class RunOutput:
    """A declared output."""

    name: str
    base_name: str


@dataclass(frozen=True)
class RunSpec:
    """One run. `work_dir` is made by the caller and owned by the runner from then on."""

    attempt: str
    job_id: str
    service: str
    app: str
    processor: str
    executable: str
    bundle: Path
    inputs: tuple[RunInput, ...]
    list_inputs: tuple[str, ...]
    outputs: tuple[RunOutput, ...]
    parameters: list[dict[str, Any]]
    cpu_millicores: int
    memory_mib: int
    gpus: int
    time_ms: int
    work_dir: Path
    #: How long the job goes on without a node; 0: it ends with whoever runs it.
    restart_grace_s: int = 0
    #: How far behind other processes of the machine it comes for the CPU, 0 to 19.
    nice: int = 0
    #: The id of the image that it runs in, which the engine has; empty: the machine's own system.
    image: str = ""
    #: More variables for the job; used to make an app write its spec.
    environment: dict[str, str] = field(default_factory=dict)
    #: The GPUs that it was given: as many as it asked for.
    gpu_devices: tuple[Gpu, ...] = ()
    #: What this node lets it use besides what it asked for.
    bounds: JobBounds = field(default_factory=JobBounds)
    #: "none", or "full": it shares this machine's network.
    network: Literal["none", "full"] = "none"
    #: By name; only in memory, also on the way to the job.
    secrets: dict[str, str] = field(default_factory=dict, repr=False)

    #: Where a socket lies by which the job reads streamed inputs (`streams`); None: it has none.
    stream_folder: Path | None = None


def bare_spec(what: str, bundle: Path, work_dir: Path, **changes: Any) -> RunSpec:
    """Return a run that is no job's: the node tries a sandbox, or has an app say what it is."""
    spec = RunSpec(
        attempt=what,
        job_id=what,
        service="",
        app="",
        processor="",
        executable="main.py",
        bundle=bundle,
        inputs=(),
        list_inputs=(),
        outputs=(),
        parameters=[],
        cpu_millicores=1000,
        memory_mib=1024,
        gpus=0,
        time_ms=20_000,
        work_dir=work_dir,
    )
    return replace(spec, **changes)


@dataclass(frozen=True)
class RunOutcome:
    """How a run ended. `limit` is `time_ms=...` or `memory_mib=...` when one was reached; `yield`
    means that no node was there for longer than the grace. `samples` are JSON lines, or nothing."""

    status: Literal["completed", "failed", "canceled", "infra", "yield"]
    error: str
    outputs: dict[str, Path]
    console: bytes
    usage: dict[str, int]
    limit: str = ""
    samples: bytes = b""


@dataclass(frozen=True)
class ProbeResult:
    """Whether a runner holds here, and if not, why and what to do."""

    ok: bool
    why: str = ""
    hint: str = ""


class Runner(Protocol):
    """One way to isolate a job."""

    name: str
    isolation: Literal["none", "medium", "strong"]
    #: Whether it is for apps with an image, or for those without.
    runs_images: bool

    async def probe(self) -> ProbeResult:
        """Really run something that tries to get out."""

    async def run(self, spec: RunSpec, cancel: trio.Event) -> RunOutcome:
        """Run to the end, a limit, or `cancel`; no process of the job is left afterwards.

        With a `restart_grace_s` the job goes on when the calling task is cancelled.
        """

    async def resume(self, spec: RunSpec, cancel: trio.Event) -> RunOutcome:
        """Take up a run that an earlier node began in `spec.work_dir`: wait, or take its outcome.
        Of the specification only limits, outputs and folder are looked at."""
