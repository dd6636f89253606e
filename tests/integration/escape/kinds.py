"""The runners that are tried. Another one is a function more: it gives the runner, and what its
runs need besides; or, in words, why this machine has not got it."""

import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import trio

from pairio_node.runner import BwrapRunner, Launcher, Runner, RunOutcome, RunSpec
from pairio_node.runner.container.runner import ContainerRunner
from pairio_node.runner.container.settings import ContainerSettings
from pairio_node.runner.mounts import Mounts
from pairio_node.runner.zygote.pool import WarmLimits, WarmPool
from pairio_node.runner.zygote.runner import WarmRunner, app_of
from tests.integration.engines import engine, missing

#: Workers that are not cold, and how long they may take on a busy machine.
_WARM, _WARM_S = ("zygote", "single"), 90

__all__ = ["HOLES", "KINDS", "Kind", "planted"]


@dataclass(frozen=True)
class Kind:
    """A runner to try. `spec_of` changes a run of a Python app into one for it. `is_own`: attempts
    that may work, since what they reach is the job's own and nobody else's. `forwards_inside`: a
    process of the job's passes on its streams."""

    runner: Runner
    spec_of: Callable[[RunSpec], RunSpec] = lambda spec: spec
    is_own: tuple[str, ...] = ()
    forwards_inside: bool = False


@asynccontextmanager
async def _bwrap(launcher: Launcher, _: Path) -> AsyncIterator[Kind | str]:
    if shutil.which("bwrap") is None:
        yield "bubblewrap is not installed"
    else:
        yield Kind(BwrapRunner(launcher), forwards_inside=True)


#: The first process of a container is a shell of the job's, as the job's own user.
_FIRST_PROCESS = (
    "write the memory of the first process",
    "list descriptors of the first process",
)


def _container(name: str) -> Callable[[Launcher, Path], AbstractAsyncContextManager[Kind | str]]:
    @asynccontextmanager
    async def kind(launcher: Launcher, folder: Path) -> AsyncIterator[Kind | str]:
        if why := missing(name):
            yield why
            return
        with engine(name) as found:
            home = folder / f"home-{name}"
            home.mkdir()
            runner = ContainerRunner(launcher, ContainerSettings(socket=found.socket), home)
            probe = await runner.probe()
            assert probe.ok, probe
            yield Kind(runner, is_own=_FIRST_PROCESS)

    return kind


class _AlwaysWarm(WarmRunner):
    """Runs nothing cold: waits until there is a worker."""

    async def run(self, spec: RunSpec, cancel: trio.Event) -> RunOutcome:
        app = app_of(spec)
        assert app is not None
        with trio.fail_after(_WARM_S):
            while not any(entry["workers"] in _WARM for entry in self.pool.status()):
                self.pool.take(app, lambda: self.config(spec), lambda _: False)
                await trio.sleep(0.05)
        cold = self.pool.status()[0]["jobsCold"]
        outcome = await super().run(spec, cancel)
        assert self.pool.status()[0]["jobsCold"] == cold, self.pool.status()
        return outcome


def _with_copies(spec: RunSpec) -> RunSpec:
    """Return the run with its inputs copied, as a node does with what comes from elsewhere: a
    worker that was started ahead cannot be shown other files."""
    inputs = []
    for number, file in enumerate(spec.inputs):
        copy = spec.work_dir / "in" / str(number) / file.base_name
        copy.parent.mkdir(parents=True)
        shutil.copy(file.path, copy)
        inputs.append(replace(file, path=copy))
    return replace(spec, inputs=tuple(inputs))


def _warm(mode: str) -> Callable[[Launcher, Path], AbstractAsyncContextManager[Kind | str]]:
    @asynccontextmanager
    async def kind(launcher: Launcher, folder: Path) -> AsyncIterator[Kind | str]:
        if shutil.which("bwrap") is None:
            yield "bubblewrap is not installed"
            return
        pool = WarmPool(folder / f"warm-{mode}", launcher, WarmLimits(mode=mode))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pool.serve)
            yield Kind(_AlwaysWarm(launcher, pool), _with_copies)
            nursery.cancel_scope.cancel()

    return kind


KINDS: dict[str, Callable[[Launcher, Path], AbstractAsyncContextManager[Kind | str]]] = {
    "bwrap": _bwrap,
    "zygote": _warm("on"),
    "single": _warm("single"),
    "container (Podman)": _container("podman"),
    "container (Docker)": _container("docker"),
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
