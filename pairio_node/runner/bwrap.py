"""The bwrap runner: namespaces, no network, a read-only system, a private /tmp, filtered calls.

What the job sees beside the system (`mounts`): the app at /app, its inputs at /in, and its /tmp.
"""

import contextlib
import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Literal

import trio

from pairio_node.runner.base import ProbeResult, RunSpec, bare_spec
from pairio_node.runner.bounds import processes_rlimit, rlimits
from pairio_node.runner.mounts import (
    SECRETS_INSIDE,
    STREAMS_INSIDE,
    Mounts,
    forwarder,
    job_user,
    let_read,
    library_variables,
    python_inside,
    sandbox_head,
    secret_mounts,
)
from pairio_node.runner.process import ProcessRunner, common_environment, interpreted
from pairio_node.runner.seccomp import native, strict
from pairio_node.runner.selftest import command, judge, targets
from pairio_node.runner.supervise import Plan, SupervisorLost, supervise
from pairio_node.runner.supervisor.sandbox import FILTER

__all__ = ["BwrapRunner", "probe_spec"]


class BwrapRunner(ProcessRunner):
    """Runs the app under bubblewrap."""

    name = "bwrap"
    isolation: Literal["none", "medium", "strong"] = "medium"

    async def probe(self) -> ProbeResult:
        """Run a job that tries to get out; say what is missing when it cannot be run."""
        if shutil.which("bwrap") is None:
            return ProbeResult(
                False, "bubblewrap is not installed", "install it: apt install bubblewrap"
            )
        if native() is None:
            return ProbeResult(False, f"there is no filter for {os.uname().machine} processors")
        with contextlib.ExitStack() as stack:
            work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pairio-probe-")))
            (work / "tmp" / "working").mkdir(parents=True)
            try:
                world = stack.enter_context(targets())
                spec = probe_spec(work)
                self._hand_over(spec)
                plan = self._plan(spec, command(python_inside(), {**world, "app": "/app"}))
                ended = await supervise(self._launcher, plan, trio.Event())
            except (OSError, SupervisorLost) as error:
                return ProbeResult(False, f"the sandbox cannot be tried: {error}")
        found = judge(ended.console + f"\n{ended.error}".encode())
        return replace(found, hint="" if found.ok else _hint(found.why))

    def _inside(self, spec: RunSpec, path: Path) -> str:
        return "/tmp/" + path.relative_to(spec.work_dir / "tmp").as_posix()

    def _input_path(self, spec: RunSpec, number: int) -> str:
        return f"/in/{number}/{spec.inputs[number].base_name}"

    def _cwd(self, spec: RunSpec) -> Path | None:
        return None

    def _command(self, spec: RunSpec) -> list[str]:
        executable = self._executable(spec)
        inside = f"/app/{executable.relative_to(spec.bundle).as_posix()}"
        program = interpreted(executable, inside, python_inside())
        if spec.stream_folder is not None:
            program = [*forwarder(), *program]
        return self._limited(spec, program)

    def _plan(self, spec: RunSpec, argv: list[str]) -> Plan:
        mounts = Mounts(job_user())
        sandbox = self._sandbox(spec, mounts)
        architecture = native()
        if architecture is None:
            raise FileNotFoundError(f"there is no filter for {os.uname().machine} processors")
        return replace(
            self._bare_plan(spec, [*sandbox, "--", *argv]),
            filter=strict(architecture),
            user=mounts.user,
            files=tuple(mounts.files),
            secrets=spec.secrets,
        )

    def _hand_over(self, spec: RunSpec) -> None:
        user = job_user()
        if not user:
            return
        tmp = spec.work_dir / "tmp"
        for folder, _, files in os.walk(tmp):
            for path in (folder, *(os.path.join(folder, name) for name in files)):
                os.chown(path, user, user, follow_symlinks=False)
        if spec.bundle != spec.work_dir:
            let_read(spec.bundle)
        if (spec.work_dir / "in").is_dir():
            let_read(spec.work_dir / "in")

    def _environment(self, spec: RunSpec) -> dict[str, str]:
        return {
            **common_environment(spec, "/tmp"),
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "HOME": "/tmp",
            "PYTHONPATH": "/opt/pairio/sdk:/opt/pairio/site",
            **library_variables(),
            **({"PAIRIO_SECRETS_DIR": SECRETS_INSIDE} if spec.secrets else {}),
        }

    def _sandbox(self, spec: RunSpec, mounts: Mounts) -> list[str]:
        head = sandbox_head(shares_network=spec.network == "full")
        argv = [*head, "--seccomp", FILTER, *mounts.system()]
        argv += mounts.devices(hides_init=True, gpus=spec.gpu_devices)
        if spec.network == "full":
            argv += mounts.network()
        argv += mounts.read_only(spec.bundle, "/app")
        for number, file in enumerate(spec.inputs):
            if file.is_here:
                argv += mounts.read_only(file.path, self._input_path(spec, number))
        if spec.stream_folder is not None:
            argv += mounts.read_only(spec.stream_folder, STREAMS_INSIDE)
        argv += mounts.writable(spec.work_dir / "tmp", "/tmp")
        argv += secret_mounts(spec.secrets)
        return [*argv, "--chdir", "/tmp/working", "--remount-ro", "/"]

    def _limited(self, spec: RunSpec, argv: list[str]) -> list[str]:
        limits = rlimits(spec.bounds, processes_rlimit(spec.bounds))
        return ["prlimit", *limits, "--", *argv]


def probe_spec(work: Path) -> RunSpec:
    """Return a job to try a sandbox with."""
    return bare_spec("probe", work, work, executable="")


def _hint(said: str) -> str:
    if "disable-userns" in said:
        return "bubblewrap 0.8 or newer is needed"
    return "`pairio-node doctor` says more"
