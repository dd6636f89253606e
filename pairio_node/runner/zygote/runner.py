"""The bwrap runner with warm workers: jobs of apps that are often run skip the start of an
interpreter and the import. What a job may do and see is the same."""

import contextlib
import os
import resource
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import trio

from pairio_node.runner.base import FORWARD_PORT, SOCKET, RunOutcome, RunSpec
from pairio_node.runner.bwrap import BwrapRunner
from pairio_node.runner.launch import Launcher
from pairio_node.runner.mounts import (
    SECRETS_INSIDE,
    Mounts,
    job_user,
    let_read,
    python_inside,
    sandbox_head,
)
from pairio_node.runner.process import common_environment, sdk_root
from pairio_node.runner.seccomp import middle, native, strict
from pairio_node.runner.supervise import (
    Ended,
    SupervisorLost,
    ask_to_end,
    attach,
    attend,
    request_of,
)
from pairio_node.runner.supervisor.disk import remove_tree
from pairio_node.runner.supervisor.sandbox import FILTER
from pairio_node.runner.supervisor.secret import handed
from pairio_node.runner.zygote import kernel
from pairio_node.runner.zygote.link import HostGone, HostSilent
from pairio_node.runner.zygote.pool import App, Warmed, WarmPool
from pairio_node.runner.zygote.warm_job import group_bounds

__all__ = ["WarmRunner", "app_of"]

_INSIDE = "/opt/pairio/warm"
_TMP_SIZE_BYTES = 64 * 2**20
_SHM_SIZE_BYTES = 64 * 2**20
#: The processes of so many jobs that go all the way fit into a zygote's limit.
_JOBS_GROUPED, _JOBS_WATCHED = 8, 2
#: What a job leaves beside its file when it came to import pydantic (`_declared` of the SDK).
_PYDANTIC_MARK = "pydantic-was-imported"
#: So many files of the owner's can be handed to a zygote's child, one by one.
_OWN_FILES_MAX = 100


class _NotBegun(Exception):
    """Nothing of the job has begun: it may run cold. Says why."""


class WarmRunner(BwrapRunner):
    """Runs jobs of Python apps in warm workers when there are any, all others cold."""

    def __init__(self, launcher: Launcher, pool: WarmPool) -> None:
        super().__init__(launcher)
        self.pool = pool

    async def run(self, spec: RunSpec, cancel: trio.Event) -> RunOutcome:
        """Run to the end, a limit, or `cancel`."""
        app = app_of(spec)
        if app is None:
            return await super().run(spec, cancel)
        warmed = self.pool.take(app, lambda: self.config(spec), lambda kind: _fits(spec, kind))
        if warmed is None:
            return await super().run(spec, cancel)
        try:
            ended = await self._run_warm(spec, warmed, cancel)
        except _NotBegun as error:
            self.pool.failed(app, warmed, str(error))
            remove_tree(spec.work_dir / "tmp")
            return await super().run(spec, cancel)
        except HostSilent as error:  # it may have begun the job, or do so yet
            self.pool.failed(app, warmed, str(error))
            _end_what_runs(spec)
            return RunOutcome("infra", f"cannot run the job: {error}", {}, b"", {})
        except (SupervisorLost, OSError) as error:  # it has begun: it is not run a second time
            _end_what_runs(spec)
            return RunOutcome("infra", f"cannot run the job: {error}", {}, b"", {})
        finally:
            self.pool.give_back(warmed)
        if os.path.lexists(spec.work_dir / "tmp" / _PYDANTIC_MARK):
            self.pool.needs_pydantic(app)
        if ended.why == "start" and not cancel.is_set():  # it never began: as if nothing had been
            self.pool.failed(app, warmed, ended.error)
            remove_tree(spec.work_dir / "tmp")
            return await super().run(spec, cancel)
        if ended.why == "lost":
            self.pool.failed(app, warmed, ended.error)
        return await self._told(spec, ended, cancel)

    def _outcome(self, spec: RunSpec, ended: Ended, cancel: trio.Event) -> RunOutcome:
        if ended.why == "lost":
            return RunOutcome("infra", ended.error, {}, ended.console, ended.usage)
        return super()._outcome(spec, ended, cancel)

    async def _run_warm(self, spec: RunSpec, warmed: Warmed, cancel: trio.Event) -> Ended:
        """Run a job in a warm worker. Raises _NotBegun for what comes before it begins, only."""
        leave = spec.restart_grace_s > 0
        with contextlib.ExitStack() as stack:
            try:
                request = self._request(spec, warmed)
                stack.enter_context(handed(spec.work_dir, spec.secrets))
                done_fd = await warmed.host.start(request)
            except HostSilent:
                raise
            except (HostGone, OSError) as error:
                raise _NotBegun(str(error)) from None
            if done_fd < 0:
                return await attach(spec.work_dir, cancel, leave=leave)
            try:
                return await attend(spec.work_dir, cancel, done_fd, leave=leave)
            finally:
                os.close(done_fd)

    def _request(self, spec: RunSpec, warmed: Warmed) -> dict[str, Any]:
        """Return what a host is told of a job, whose inputs and folders are made ready."""
        _hand_over(spec)
        plan = replace(self._bare_plan(spec, []), user=job_user(), secrets=spec.secrets)
        groups = self._groups()
        return request_of(plan) | {
            "alive": str(self._launcher.alive),
            "groups": groups,
            "job": self._job_text(spec, spec.work_dir / "tmp"),
            "targets": _targets(spec),
            "cwd": "/tmp/working",
            "limits": _limits(spec, warmed.kind, groups),
            "secrets": SECRETS_INSIDE,
            "streams": _streams(spec),
        }

    # -- what a host is told ----------------------------------------------------------------

    def config(self, spec: RunSpec) -> dict[str, Any]:
        """Return the configuration of a host for this job's app, but for its folder."""
        architecture = native()
        if architecture is None:
            raise FileNotFoundError("there is no filter for this processor")
        if job_user():
            let_read(spec.bundle)
        return {
            "script": f"/app/{self._executable(spec).relative_to(spec.bundle).as_posix()}",
            "strict": strict(architecture).hex(),
            "middle": middle(architecture).hex(),
            "shm_bytes": _SHM_SIZE_BYTES,
            "groups": self._groups(),
            "bounds": group_bounds(request_of(self._bare_plan(spec, []))),
            "zygote": self._zygote(spec),
            "single": self._single(spec, strict(architecture)),
        }

    def _groups(self) -> dict[str, Any] | None:
        found = self._launcher.groups
        return None if found is None else asdict(found)

    def _zygote(self, spec: RunSpec) -> dict[str, Any]:
        mounts = Mounts(job_user())
        argv = [*sandbox_head(keep=("CAP_SYS_ADMIN",)), *mounts.system()]
        argv += mounts.devices(masked=False)
        argv += self._program(spec, mounts)
        argv += ["--size", str(_TMP_SIZE_BYTES), "--tmpfs", "/tmp", "--dir", "/in"]
        argv += ["--dir", SECRETS_INSIDE]
        argv += ["--dir", "/tmp/working", "--chdir", "/tmp/working", "--remount-ro", "/"]
        return self._part(spec, mounts, argv, b"")

    def _single(self, spec: RunSpec, filter_: bytes) -> dict[str, Any]:
        mounts = Mounts(job_user())
        argv = [*sandbox_head(), "--as-pid-1", "--seccomp", FILTER, *mounts.system()]
        argv += mounts.devices()
        argv += self._program(spec, mounts)
        argv += mounts.writable(Path("{tmp}"), "/tmp") + mounts.read_only(Path("{in}"), "/in")
        argv += ["--dir", SECRETS_INSIDE]
        argv += ["--chdir", "/tmp/working", "--remount-ro", "/"]
        return self._part(spec, mounts, argv, filter_)

    def _program(self, spec: RunSpec, mounts: Mounts) -> list[str]:
        inside = f"{_INSIDE}/pairio_warm"
        return [
            *mounts.read_only(Path(__file__).parent, inside),
            *mounts.read_only(spec.bundle, "/app"),
        ]

    def _part(
        self, spec: RunSpec, mounts: Mounts, argv: list[str], filter_: bytes
    ) -> dict[str, Any]:
        environment = {**common_environment(spec, "/tmp"), **self._environment(spec)}
        of_a_job = ("JOB_", "PAIRIO_", "PROCESSOR_", "TMPDIR")
        return {
            "argv": [*argv, "--", python_inside(), f"{_INSIDE}/pairio_warm/start.py"],
            "environment": {k: v for k, v in environment.items() if not k.startswith(of_a_job)},
            "files": mounts.files,
            "user": mounts.user,
            "filter": filter_.hex(),
        }


def _end_what_runs(spec: RunSpec) -> None:
    """Tell the job of a run that is given up to end, if it goes on."""
    with contextlib.suppress(OSError):  # the run is lost in any case
        ask_to_end(spec.work_dir)


def app_of(spec: RunSpec) -> App | None:
    """Return what jobs that may share a warm worker have in common; None: it runs cold. So does
    what asks for a GPU, whose driver does not survive a fork, or for the machine's network, which
    no process is to have without a lease."""
    special = spec.gpus or spec.environment or spec.network != "none"
    if special or not spec.executable.endswith(".py"):
        return None
    cpus = max(1, spec.cpu_millicores // 1000)  # libraries make threads for so many at import
    return App(spec.service, spec.bundle.name, spec.executable, cpus, spec.app)


def _streams(spec: RunSpec) -> dict[str, Any] | None:
    """Return what is to forward to the job's streams (see `forwarding.Forwarding`)."""
    if spec.stream_folder is None:
        return None
    return {
        "program": str(sdk_root() / "pairio" / "sdk" / "_forward.py"),
        "folder": str(spec.stream_folder),
        "socket": SOCKET,
        "port": FORWARD_PORT,
    }


def _fits(spec: RunSpec, kind: str) -> bool:
    """Say whether a worker of this kind can show the job its inputs and secrets."""
    if spec.secrets and not kernel.makes_memory_folders():
        return False
    copies = spec.work_dir / "in"
    own = sum(not file.path.is_relative_to(copies) for file in spec.inputs)
    return own <= (_OWN_FILES_MAX if kind == "zygote" else 0)


def _hand_over(spec: RunSpec) -> None:
    """Let whom the job runs as read its inputs."""
    if job_user() and spec.inputs and (spec.work_dir / "in").is_dir():
        let_read(spec.work_dir / "in")


def _limits(spec: RunSpec, kind: str, groups: dict[str, Any] | None) -> dict[str, int]:
    """Return the limits of a job's processes (RLIMIT by name). The system counts the processes of
    all jobs of a zygote together; those of one job are bounded by its group. Where it has none,
    they are only looked at, and this is what stops them."""
    bounds, files_most = spec.bounds, resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    files = bounds.open_files
    if files_most != resource.RLIM_INFINITY:
        files = min(files, files_most)
    jobs = 1 if kind == "single" else _JOBS_WATCHED if groups is None else _JOBS_GROUPED
    return {
        "NPROC": jobs * (bounds.processes + 64),
        "NOFILE": files,
        "CORE": 0,
        "FSIZE": bounds.disk_bytes,
    }


def _targets(spec: RunSpec) -> list[tuple[str, str, bool]]:
    """Return what a zygote's child is to attach. Inputs that are the owner's own files are
    attached one by one, onto empty ones that are made for it."""
    if not spec.inputs:
        return []
    copies = spec.work_dir / "in"
    copies.mkdir(exist_ok=True)
    targets = [(str(copies), "/in", True)]
    for number, file in enumerate(spec.inputs):
        if not file.path.is_relative_to(copies):
            place = copies / str(number) / file.base_name
            place.parent.mkdir(parents=True, exist_ok=True)
            if file.path.is_dir():
                place.mkdir(exist_ok=True)
            else:
                place.touch()
            targets.append((str(file.path), f"/in/{number}/{file.base_name}", True))
    return targets
