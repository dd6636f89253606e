"""The process runner: own apps, no sandbox, and the frame that the bwrap runner shares.

Nothing keeps such a job from reading what the node's user can read: opt-in only.
"""

import importlib.util
import json
import os
import shutil
import signal
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import trio

from pairio_node.runner.base import ProbeResult, RunOutcome, RunSpec
from pairio_node.runner.bounds import (
    explained,
    is_nodes_own,
    passed_words,
    processes_rlimit_shared,
    rlimits,
    size_words,
)
from pairio_node.runner.folders import FolderError, is_utf8, measure_folder, plain_files
from pairio_node.runner.launch import Launcher
from pairio_node.runner.supervise import Ended, Plan, SupervisorLost, attach, supervise
from pairio_node.runner.supervisor.watch import Passed
from pairio_protocol.printable import printable

__all__ = ["ProcessRunner", "common_environment", "interpreted", "sdk_root"]

_OTHER_FILES_MAX = 1000
#: How libraries are told how many threads to start; by themselves they count the machine's CPUs.
_THREADS = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "NUMEXPR_MAX_THREADS",
    "NUMBA_NUM_THREADS",
    "RAYON_NUM_THREADS",
    "JULIA_NUM_THREADS",
    "GOMAXPROCS",
    "PYTHON_CPU_COUNT",
)


class ProcessRunner:
    """Runs the app as a plain process of this user."""

    name = "process"
    isolation: Literal["none", "medium", "strong"] = "none"
    runs_images = False

    def __init__(self, launcher: Launcher) -> None:
        self._launcher = launcher

    async def probe(self) -> ProbeResult:
        """Processes always work."""
        return ProbeResult(True)

    async def run(self, spec: RunSpec, cancel: trio.Event) -> RunOutcome:
        """Run to the end, a limit, or `cancel`."""
        tmp = spec.work_dir / "tmp"
        for name in ("working/tmp", "out", "other"):
            (tmp / name).mkdir(parents=True, exist_ok=True)
        try:
            command = await trio.to_thread.run_sync(self._command, spec)
            plan = self._plan(spec, command)
        except FileNotFoundError as error:
            return _failed(str(error))
        self._write_job(spec, tmp)
        try:
            await trio.to_thread.run_sync(self._hand_over, spec)
            ended = await supervise(self._launcher, plan, cancel)
        except (OSError, SupervisorLost) as error:
            return _infra(f"cannot run the job: {error}")
        return await self._told(spec, ended, cancel)

    async def resume(self, spec: RunSpec, cancel: trio.Event) -> RunOutcome:
        """Take up a run that an earlier node began in `spec.work_dir`."""
        try:
            ended = await attach(spec.work_dir, cancel, leave=spec.restart_grace_s > 0)
        except SupervisorLost as error:
            return _infra(str(error))
        return await self._told(spec, ended, cancel)

    # -- what differs with a sandbox ----------------------------------------------------

    def _plan(self, spec: RunSpec, argv: list[str]) -> Plan:
        return self._bare_plan(spec, argv)

    def _bare_plan(self, spec: RunSpec, argv: list[str]) -> Plan:
        """Return what a supervisor is told of any job; nothing of a sandbox."""
        return Plan(
            argv=argv,
            environment={**self._environment(spec), **spec.environment},
            cwd=self._cwd(spec),
            memory_mib=spec.memory_mib,
            time_ms=spec.time_ms,
            work_dir=spec.work_dir,
            sandboxed=self.isolation != "none",
            grace_s=spec.restart_grace_s,
            nice=spec.nice,
            cpu_millicores=spec.cpu_millicores,
            bounds=spec.bounds,
        )

    def _hand_over(self, spec: RunSpec) -> None:
        """Give the job's files to whom it runs as, when that is another user."""

    def _inside(self, spec: RunSpec, path: Path) -> str:
        """Return where the job sees a path below its work folder."""
        return str(path)

    def _input_path(self, spec: RunSpec, number: int) -> str:
        return str(spec.inputs[number].path)

    def _cwd(self, spec: RunSpec) -> Path | None:
        return spec.work_dir / "tmp" / "working"

    def _command(self, spec: RunSpec) -> list[str]:
        executable = self._executable(spec)
        return self._limited(spec, interpreted(executable, str(executable), sys.executable))

    def _environment(self, spec: RunSpec) -> dict[str, str]:
        paths = [str(sdk_root()), *(p for p in sys.path if p.endswith("site-packages"))]
        tmp = self._inside(spec, spec.work_dir / "tmp")
        return {
            **common_environment(spec, tmp),
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "HOME": tmp,
            "PYTHONPATH": os.pathsep.join(paths),
        }

    # -- what is shared -------------------------------------------------------------------

    def _executable(self, spec: RunSpec) -> Path:
        """Return the program on this machine: `/app/x` and relative paths lie in the bundle."""
        relative = spec.executable.removeprefix("/app/").lstrip("/")
        path = spec.bundle / relative
        inside = path.resolve().is_relative_to(spec.bundle.resolve())
        if not inside or not path.is_file():
            raise FileNotFoundError(f"the app has no executable {spec.executable!r}")
        return path

    def _limited(self, spec: RunSpec, argv: list[str]) -> list[str]:
        prlimit = shutil.which("prlimit")
        if prlimit is None:
            return argv
        most = processes_rlimit_shared(os.geteuid())
        return [prlimit, *rlimits(spec.bounds, most), "--", *argv]

    def _write_job(self, spec: RunSpec, tmp: Path) -> None:
        (tmp / "job.json").write_text(self._job_text(spec, tmp))

    def _job_text(self, spec: RunSpec, tmp: Path) -> str:
        """Return what tells a job what it is to do (docs/app-contract.md)."""
        job = {
            "job_id": spec.job_id,
            "service": spec.service,
            "app": spec.app,
            "processor": spec.processor,
            "inputs": [
                {
                    "name": i.name,
                    "base_name": i.base_name,
                    **({"path": self._input_path(spec, n)} if i.is_here else {}),
                    **({"url": i.url} if i.url else {}),
                }
                for n, i in enumerate(spec.inputs)
            ],
            "list_inputs": list(spec.list_inputs),
            "outputs": [
                {
                    "name": o.name,
                    "base_name": o.base_name,
                    "path": self._inside(spec, tmp / "out" / str(n)),
                }
                for n, o in enumerate(spec.outputs)
            ],
            "additional_outputs": self._inside(spec, tmp / "other"),
            "parameters": spec.parameters,
        }
        return json.dumps(job)

    async def _told(self, spec: RunSpec, ended: Ended, cancel: trio.Event) -> RunOutcome:
        """Return the outcome; the loop does not wait for a look through many files."""
        if not spec.outputs and not _has_any(spec.work_dir / "tmp" / "other"):
            return self._outcome(spec, ended, cancel)
        return await trio.to_thread.run_sync(self._outcome, spec, ended, cancel)

    def _outcome(self, spec: RunSpec, ended: Ended, cancel: trio.Event) -> RunOutcome:
        def failed(error: str, limit: str = "") -> RunOutcome:
            kept = _printable_end(error)
            return RunOutcome("failed", kept, {}, ended.console, ended.usage, limit, ended.samples)

        if ended.why == "start":
            return _infra(f"cannot start the job: {ended.error}")
        if ended.why == "canceled" and not cancel.is_set():
            return _infra("the job's supervisor was told to end, not by this node")
        if ended.why == "canceled":
            return RunOutcome("canceled", "canceled", {}, ended.console, ended.usage)
        if ended.why == "yield":
            return RunOutcome("yield", "its node was away too long", {}, b"", ended.usage)
        if ended.why == "time":
            passed = Passed("time", spec.time_ms, spec.time_ms)
            return failed(passed_words(passed), f"time_ms={spec.time_ms}")
        if ended.passed is not None and is_nodes_own(ended.passed):
            return _infra(passed_words(ended.passed))
        if ended.passed is not None:
            of_memory = ended.passed.which == "memory"
            limit = f"memory_mib={spec.memory_mib}" if of_memory else ""
            return failed(passed_words(ended.passed), limit)
        if ended.exit_code == -signal.SIGXFSZ or ended.exit_code == 128 + signal.SIGXFSZ:
            most = size_words(spec.bounds.disk_bytes)
            return failed(f"file: one was to have more than the {most} that a job may write")
        if ended.exit_code != 0:
            last = explained(_last_words(ended.console), spec.bounds)
            return failed(f"the job exited with code {ended.exit_code}: {last}")
        return self._kept(spec, ended, failed)

    def _kept(self, spec: RunSpec, ended: Ended, failed: Callable[[str], RunOutcome]) -> RunOutcome:
        """Return the outcome of a job that says that it has done its work: what it left counts."""
        tmp = spec.work_dir / "tmp"
        outputs: dict[str, Path] = {}
        for number, output in enumerate(spec.outputs):
            path = tmp / "out" / str(number)
            # `out` is the job's to change, too: a link in its place would lead out of the sandbox.
            if not _is_folder(tmp / "out") or not (_is_plain(path) or _is_folder(path)):
                return failed(f"output {output.name!r} was not made, or is neither file nor folder")
            outputs[output.name] = path
        outputs |= _others(tmp / "other")
        size = 0
        for name, path in outputs.items():
            if not is_utf8(name):
                return failed(f"output {name!r} is not named in UTF-8")
            if _is_plain(path) and not os.access(path, os.R_OK):
                return failed(f"output {name!r} cannot be read")
            try:
                size += path.stat().st_size if _is_plain(path) else measure_folder(path)
            except FolderError as error:
                return failed(f"output {name!r} cannot be kept: {error}")
        passed = Passed("outputs", size, spec.bounds.output_bytes)
        if size > passed.most:
            words = passed_words(passed)
            return _infra(words) if is_nodes_own(passed) else failed(words)
        return RunOutcome(
            "completed", "", outputs, ended.console, ended.usage, samples=ended.samples
        )


def sdk_root() -> Path:
    """Return the folder that holds the SDK (`pairio`); the node itself never imports it."""
    spec = importlib.util.find_spec("pairio")
    if spec is None or spec.origin is None:
        raise FileNotFoundError("the pairio SDK is not installed beside the node")
    return Path(spec.origin).parent.parent


def _others(top: Path) -> dict[str, Path]:
    """Return the additional outputs by name. The job may have put links anywhere, also in the place
    of the folder itself: none is followed."""
    if not _is_folder(top):
        return {}
    plain = plain_files(top)[:_OTHER_FILES_MAX]
    return {f"other/{path.relative_to(top).as_posix()}": path for path in plain}


def _last_words(console: bytes) -> str:
    """Return the last line of a console that says more than how far the job is."""
    lines = console[-8192:].decode(errors="replace").strip().splitlines()
    said = (line for line in reversed(lines) if not line.startswith("[progress] "))
    return next(said, lines[-1] if lines else "")[-500:]


def _has_any(folder: Path) -> bool:
    """Say whether something lies in a folder, or the job put a link in its place: that is looked
    at in a thread, and not followed."""
    try:
        if folder.is_symlink():
            return True
        with os.scandir(folder) as entries:
            return next(entries, None) is not None
    except OSError:
        return False


def _is_folder(path: Path) -> bool:
    """Say whether a path is a folder, and no link to one."""
    try:
        return stat.S_ISDIR(path.lstat().st_mode)
    except OSError:  # the job may have taken away the right to look
        return False


def _is_plain(path: Path) -> bool:
    """Say whether a path is a regular file: never a link, device or pipe that a job left."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def interpreted(on_disk: Path, inside: str, python: str) -> list[str]:
    """Return how a program is started: `.py` by an interpreter that has the SDK."""
    return [python, inside] if on_disk.suffix == ".py" else [inside]


def common_environment(spec: RunSpec, tmp: str) -> dict[str, str]:
    """Return the original's variables, and what keeps libraries to the CPUs of the job."""
    cpus = str(max(1, spec.cpu_millicores // 1000))
    return {
        "LANG": "C.UTF-8",
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        **dict.fromkeys(_THREADS, cpus),
        "CUDA_VISIBLE_DEVICES": ",".join(gpu.uuid for gpu in spec.gpu_devices),
        "JOB_ID": spec.job_id,
        "JOB_INTERNAL": "1",
        "JOB_TIMEOUT_SEC": str(spec.time_ms // 1000),
        "PAIRIO_JOB_FILE": f"{tmp}/job.json",
        "PAIRIO_JOB_WORKING_DIR": f"{tmp}/working",
        "PAIRIO_JOB_CLEANUP_DIR": tmp,
        "PROCESSOR_EXECUTABLE": spec.executable,
        "TMPDIR": f"{tmp}/working/tmp",
    }


def _printable_end(error: str) -> str:
    """Return an error as it may stand in a result: what a job said last may hold anything."""
    return printable(error).replace("\n", " ")


def _infra(error: str) -> RunOutcome:
    return RunOutcome("infra", error, {}, b"", {})


def _failed(error: str) -> RunOutcome:
    return RunOutcome("failed", error, {}, f"{error}\n".encode(), {})
