"""The runners that are tried. Another one is a function more: it gives the runner, and what its
runs need besides; or, in words, why this machine has not got it."""

import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from pairio_node.runner import BwrapRunner, Launcher, Runner, RunSpec
from pairio_node.runner.mounts import Mounts

__all__ = ["HOLES", "KINDS", "Kind", "planted"]


@dataclass(frozen=True)
class Kind:
    """A runner to try. `spec_of` changes a run of a Python app into one for it."""

    runner: Runner
    spec_of: Callable[[RunSpec], RunSpec] = lambda spec: spec


@asynccontextmanager
async def _bwrap(launcher: Launcher, _: Path) -> AsyncIterator[Kind | str]:
    if shutil.which("bwrap") is None:
        yield "bubblewrap is not installed"
    else:
        yield Kind(BwrapRunner(launcher))


KINDS: dict[str, Callable[[Launcher, Path], AbstractAsyncContextManager[Kind | str]]] = {
    "bwrap": _bwrap,
}

#: Holes in the sandbox of bubblewrap, to show that the attempts find them: arguments more.
HOLES: dict[str, list[str]] = {
    "no filter of calls": [],
    "the host's network": ["--share-net"],
    "the host's shared memory": ["--bind", "/dev/shm", "/dev/shm"],
    "the host's files": ["--bind", "/var/tmp", "/var/tmp"],
    "a /dev that can be written to": ["--dev", "/dev"],
}


def planted(runner: Runner, hole: str) -> Runner:
    """Return the runner with a hole in its sandbox."""
    assert isinstance(runner, BwrapRunner)
    sandbox = runner._sandbox

    def with_a_hole(spec: RunSpec, mounts: Mounts) -> list[str]:
        argv = sandbox(spec, mounts)
        if not HOLES[hole]:
            at = argv.index("--seccomp")
            return [*argv[:at], *argv[at + 2 :]]
        return [*argv[:-2], *HOLES[hole], *argv[-2:]]

    runner._sandbox = with_a_hole  # type: ignore[method-assign]
    return runner
