"""The container runner: Docker or Podman, an image by its id, the contract of files as elsewhere.

What the job sees: its image read-only, the app at /app, its inputs at /in, its /tmp; no network,
no capabilities, the node's filter of system calls. A `.py` is run by the image's own `python3`,
with the SDK's pure Python part on its path. A run without an image is given this machine's /usr.

Streamed inputs come by a container beside it (`beside`), since an image may hold nothing that could
forward: both have one network, which has nothing but a loopback.
"""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import trio

from pairio_node.runner import probe
from pairio_node.runner.base import ProbeResult, RunOutcome, RunSpec, bare_spec
from pairio_node.runner.bounds import JobBounds
from pairio_node.runner.container import inside
from pairio_node.runner.container.archive import ImageError
from pairio_node.runner.container.beside import beside_body, beside_name
from pairio_node.runner.container.body import (
    FOLDER_LABEL,
    HOME_LABEL,
    Facts,
    Mount,
    container_body,
    is_safe_path,
    with_init,
)
from pairio_node.runner.container.engines import NoEngine, find_engine
from pairio_node.runner.container.files import job_mounts, system_mounts
from pairio_node.runner.container.images import Images
from pairio_node.runner.container.settings import ContainerSettings
from pairio_node.runner.container.skeleton import write_skeleton
from pairio_node.runner.launch import Launcher
from pairio_node.runner.mounts import SECRETS_INSIDE, python_inside
from pairio_node.runner.process import ProcessRunner, common_environment
from pairio_node.runner.seccomp import docker_profile
from pairio_node.runner.selftest import judge, targets
from pairio_node.runner.supervise import (
    Ended,
    SupervisorLost,
    attach,
    is_supervised,
    supervise,
)
from pairio_node.runner.supervisor.engine import Engine, EngineError
from pairio_node.runner.supervisor.memory import remove_memory_files

__all__ = ["ContainerRunner"]

_T = TypeVar("_T")
_PROBE_MIB = 256
_CGROUPS_HINT = (
    "rootless engines need control groups version 2, delegated to the user: boot with"
    " systemd.unified_cgroup_hierarchy=1, or use an engine that runs as root"
)
_PROBE_TIME_MS = 30_000


class ContainerRunner(ProcessRunner):
    """Runs the app in a container. `home` is the node's; without it nothing outlives a probe."""

    name = "container"
    isolation: Literal["none", "medium", "strong"] = "medium"
    #: Apps with an image run here, and those alone.
    runs_images = True

    def __init__(
        self,
        launcher: Launcher,
        settings: ContainerSettings | None = None,
        home: Path | None = None,
    ) -> None:
        super().__init__(launcher)
        self._settings = settings or ContainerSettings()
        self._home = home
        self._home_id = hashlib.sha256(os.fsencode((home or Path()).resolve())).hexdigest()[:16]
        self._facts: Facts | None = None
        self._shells: dict[str, bool] = {}
        self._skeleton = ""
        self._lock = trio.Lock()

    @property
    def engine_name(self) -> str:
        """What runs the containers, and its version; empty before a probe found one."""
        return self._facts.name if self._facts else ""

    @property
    def memory_bound(self) -> Literal["cgroup", "watchdog"]:
        """Who holds a job to its memory: the kernel, or a look five times a second."""
        return "cgroup" if self._facts and self._facts.bounds_memory else "watchdog"

    def trust(self, probed: "ContainerRunner") -> None:
        """Take over what another runner's probe found of the same engine."""
        self._facts, self._skeleton = probed._facts, probed._skeleton

    # -- the probe ------------------------------------------------------------------------

    async def probe(self) -> ProbeResult:
        """Find an engine, remove what crashed nodes of this home left, try to get out."""
        try:
            self._facts = await trio.to_thread.run_sync(find_engine, self._settings)
            if self._home is not None and not is_safe_path(self._home):
                hint = "move it to a path without commas, colons and quotes"
                return ProbeResult(False, f"engines cannot be told the path {self._home}", hint)
            await self._in_thread(self._sweep)
            await self._in_thread(self._make_skeleton)
            outcome = await self._try_to_get_out()
        except NoEngine as error:
            return ProbeResult(False, str(error), error.hint)
        except (EngineError, ImageError, OSError) as error:
            return ProbeResult(False, f"containers cannot be tried: {error}", _hint(str(error)))
        found = judge(outcome.console + f"\n{outcome.error}".encode())
        if not found.ok:
            why = f"{self.engine_name}: {found.why}"
            return ProbeResult(False, why, _hint(found.why))
        # Without that bound one job could stop the machine before anybody looks.
        if not _is_bounded(outcome.console, inside.PROCESSES_MARK, JobBounds().processes):
            why = f"{self.engine_name} bounds no processes: it has no control group for them"
            return ProbeResult(False, why, _CGROUPS_HINT)
        most = _PROBE_MIB * 2**20
        bounded = _is_bounded(outcome.console, inside.MEMORY_MARK, most)
        self._facts = replace(self._facts, bounds_memory=bounded)
        return found

    async def _try_to_get_out(self) -> RunOutcome:
        with contextlib.ExitStack() as stack:
            make = tempfile.TemporaryDirectory(prefix="pairio-probe-", dir=self._home)
            folder = Path(stack.enter_context(make))
            bundle, work = folder / "app", folder / "work"
            bundle.mkdir()
            shutil.copy(inside.__file__, bundle / "main.py")
            shutil.copy(probe.__file__, bundle / "probe.py")
            world = {**stack.enter_context(targets()), "app": "/app", "names": [*probe.BASIC]}
            spec = bare_spec("probe", bundle, work, memory_mib=_PROBE_MIB, time_ms=_PROBE_TIME_MS)
            return await self._run(spec, trio.Event(), [json.dumps(world)])

    def _make_skeleton(self) -> None:
        with tempfile.TemporaryDirectory(prefix="pairio-image-") as folder:
            path = Path(folder, "skeleton.tar")
            image = write_skeleton(path)
            images = self._images()
            if not images.has(image):
                images.load(image, path)
        self._skeleton = image

    def _sweep(self) -> None:
        """Remove containers of this home whose supervisor is gone; others are adopted with it."""
        filters = json.dumps({"label": [f"{HOME_LABEL}={self._home_id}"]})
        query = {"all": "1", "filters": filters}
        # Jobs with secrets do not outlive their node.
        remove_memory_files(f"pairio-{self._home_id}-")
        for found in self._engine().ask("GET", "/containers/json", query) or ():
            labels = found.get("Labels") or {}
            if labels.get(HOME_LABEL) != self._home_id:
                continue
            if not is_supervised(Path(labels.get(FOLDER_LABEL) or "/nonexistent")):
                self._engine().remove(found["Id"])

    # -- images ---------------------------------------------------------------------------

    async def has_image(self, image_id: str) -> bool:
        """Say whether the engine has an image; it stays there for a while then.

        Raises:
            OSError: the engine does not say.
        """
        return await self._in_thread(lambda: self._images().has(image_id))

    async def load_image(self, image_id: str, archive: Path) -> None:
        """Hand an image to the engine from its docker-archive.

        Raises:
            ImageError: the archive holds something else, or what is not taken.
            OSError: the engine, or the file, cannot be had.
        """
        await self._in_thread(lambda: self._images().load(image_id, archive))

    async def save_image(self, name: str, archive: Path) -> bool:
        """Write an image that the owner has in the engine as a docker-archive; say whether there
        is one.

        Raises:
            ImageError, OSError: it cannot be had whole.
        """
        return await self._in_thread(lambda: self._images().save(name, archive))

    async def _in_thread(self, call: Callable[[], _T]) -> _T:
        async with self._lock:
            try:
                return await trio.to_thread.run_sync(call)
            except EngineError as error:
                raise OSError(str(error)) from None

    def _engine(self) -> Engine:
        if self._facts is None:
            raise OSError("no engine of containers was found")
        return Engine(self._facts.socket)

    def _images(self) -> Images:
        folder = self._home / "images" if self._home else None
        return Images(self._engine(), folder, self._settings.images_bytes_max)

    # -- one run --------------------------------------------------------------------------

    async def run(self, spec: RunSpec, cancel: trio.Event) -> RunOutcome:
        """Run to the end, a limit, or `cancel`."""
        return await self._run(spec, cancel, [])

    async def _run(self, spec: RunSpec, cancel: trio.Event, arguments: list[str]) -> RunOutcome:
        tmp = spec.work_dir / "tmp"
        for name in ("working/tmp", "out", "other"):
            (tmp / name).mkdir(parents=True, exist_ok=True)
        if spec.gpu_devices and self._facts is not None and self._facts.is_podman:
            return _infra("Podman is not asked for GPUs yet: use Docker on this node")
        self._write_job(spec, tmp)
        prepare = partial(self._prepare, spec, arguments)
        try:
            if spec.stream_folder is not None:  # somebody may have removed what it stands on
                await self._in_thread(self._make_skeleton)
            container = await trio.to_thread.run_sync(prepare)
        except FileNotFoundError as error:
            return RunOutcome("failed", str(error), {}, f"{error}\n".encode(), {})
        except (EngineError, ImageError, OSError) as error:
            return _infra(f"cannot prepare the container: {error}")
        plan = replace(
            self._plan(spec, []),
            environment={},
            cwd=None,
            container=container,
            secrets=spec.secrets,
        )
        try:
            ended = await supervise(self._launcher, plan, cancel)
        except (OSError, SupervisorLost) as error:
            await self._remove_left(spec.work_dir)
            return _infra(f"cannot run the job: {error}")
        return self._ended(spec, ended, cancel)

    async def resume(self, spec: RunSpec, cancel: trio.Event) -> RunOutcome:
        """Take up a run that an earlier node began in `spec.work_dir`."""
        try:
            ended = await attach(spec.work_dir, cancel, leave=spec.restart_grace_s > 0)
        except SupervisorLost as error:
            await self._remove_left(spec.work_dir)
            return _infra(str(error))
        return self._ended(spec, ended, cancel)

    def _ended(self, spec: RunSpec, ended: Ended, cancel: trio.Event) -> RunOutcome:
        return self._outcome(spec, ended, cancel)

    async def _remove_left(self, work_dir: Path) -> None:
        """Remove what a supervisor that was killed has left."""
        name = self._container_name(work_dir)

        def remove() -> None:
            remove_memory_files(self._memory_prefix(work_dir))
            for one in (name, beside_name(name)):
                self._engine().remove(one)

        with trio.CancelScope(shield=True):
            try:
                await trio.to_thread.run_sync(remove)
            except (EngineError, OSError):
                return  # the next start of the node removes it

    def _container_name(self, work_dir: Path) -> str:
        return "pairio-" + hashlib.sha256(os.fsencode(work_dir.resolve())).hexdigest()[:32]

    def _memory_prefix(self, work_dir: Path) -> str:
        """Return how the names of a job's files in memory begin."""
        return f"pairio-{self._home_id}-{self._container_name(work_dir)[-16:]}-"

    def _inside(self, spec: RunSpec, path: Path) -> str:
        return "/tmp/" + path.relative_to(spec.work_dir / "tmp").as_posix()

    def _input_path(self, spec: RunSpec, number: int) -> str:
        return f"/in/{number}/{spec.inputs[number].base_name}"

    def _prepare(self, spec: RunSpec, arguments: list[str]) -> dict[str, Any]:
        """Lay out files and mounts; return what the supervisor tells the engine. Blocks."""
        facts = self._facts
        if facts is None:
            raise OSError("no engine of containers was found")
        if not is_safe_path(spec.work_dir):
            raise OSError(f"engines cannot be told the path {spec.work_dir}")
        argv, mounts = self._program(spec)
        mounts += job_mounts(spec, facts.user)
        if not spec.image:
            mounts += system_mounts()
        image = spec.image or self._skeleton
        argv = with_init([*argv, *arguments], not spec.image or self._has_shell(image))
        seccomp = _seccomp(spec, facts)
        name = self._container_name(spec.work_dir)
        beside = None
        if spec.stream_folder is not None:
            body = beside_body(spec, facts, self._home_id, self._skeleton, seccomp)
            beside = {"name": beside_name(name), "body": body}
        return {
            "socket": facts.socket,
            "name": name,
            "bounded": facts.bounds_memory,
            "memory": self._memory_prefix(spec.work_dir),
            "owner": 0 if facts.is_nodes_user else int(facts.user.partition(":")[0]),
            "secrets": SECRETS_INSIDE,
            "beside": beside,
            "body": container_body(
                spec,
                facts,
                self._home_id,
                argv,
                self._variables(spec, argv),
                mounts,
                image,
                seccomp,
                "" if beside is None else str(beside["name"]),
            ),
        }

    def _program(self, spec: RunSpec) -> tuple[list[str], list[Mount]]:
        """Return the command and the mount of the app's folder. What the folder has not, an image
        may have: then it is run as it stands there."""
        relative = spec.executable.removeprefix("/app/").lstrip("/")
        on_disk = spec.bundle / relative
        is_own = on_disk.resolve().is_relative_to(spec.bundle.resolve()) and on_disk.is_file()
        if not is_own and not (spec.image and spec.executable.startswith("/")):
            raise FileNotFoundError(f"the app has no executable {spec.executable!r}")
        inside = f"/app/{relative}" if is_own else spec.executable
        python = "python3" if spec.image else python_inside()
        argv = [python, inside] if inside.endswith(".py") else [inside]
        return argv, [Mount(spec.bundle, "/app")] if is_own else []

    def _variables(self, spec: RunSpec, argv: list[str]) -> dict[str, str]:
        common = common_environment(spec, "/tmp")
        shown = ",".join(gpu.uuid for gpu in spec.gpu_devices) or "void"
        # An engine whose usual runtime is NVIDIA's gives all GPUs to images that ask for them.
        variables = {**common, "HOME": "/tmp", "NVIDIA_VISIBLE_DEVICES": shown}
        if spec.secrets:
            variables["PAIRIO_SECRETS_DIR"] = SECRETS_INSIDE
        if not spec.image:
            variables["PATH"] = "/usr/local/bin:/usr/bin:/bin"
            variables["PYTHONPATH"] = "/opt/pairio/sdk:/opt/pairio/site"
        elif any(word.endswith(".py") for word in argv):
            variables["PYTHONPATH"] = "/opt/pairio/sdk"
        return {**variables, **spec.environment}

    def _has_shell(self, image: str) -> bool:
        """Say whether an image has /bin/sh; a container of it is made for that, once."""
        if image not in self._shells:
            engine, name = self._engine(), f"pairio-look-{os.urandom(8).hex()}"
            body = {
                "Image": image,
                "Entrypoint": [],
                "Cmd": ["/"],
                "NetworkDisabled": True,
                "HostConfig": {"NetworkMode": "none"},
                "Labels": {HOME_LABEL: self._home_id},
            }
            engine.ask("POST", "/containers/create", {"name": name}, body)
            try:
                engine.ask("HEAD", f"/containers/{name}/archive", {"path": "/bin/sh"})
                self._shells[image] = True
            except EngineError as error:
                if error.status != 404:
                    raise
                self._shells[image] = False
            finally:
                engine.remove(name)
        return self._shells[image]


def _is_bounded(console: bytes, mark: str, most: int) -> bool:
    """Say whether the probe saw a bound that the engine was told."""
    for line in console.decode(errors="replace").splitlines():
        if line.startswith(mark):
            return 0 < int(line.removeprefix(mark)) <= most
    return False


def _seccomp(spec: RunSpec, facts: Facts) -> str:
    """Return the filter of system calls as the engine is told it: Docker the filter itself, Podman
    the file where it lies, which the engine has read when the job is made."""
    profile = json.dumps(docker_profile())
    if not facts.is_podman:
        return profile
    path = spec.work_dir / "seccomp.json"
    path.write_text(profile)
    return str(path)


def _infra(error: str) -> RunOutcome:
    return RunOutcome("infra", error, {}, b"", {})


def _hint(said: str) -> str:
    if "rlimit" in said:
        return "start the engine with higher limits (ulimit -n 4096, -u 2048), as systemd does"
    if "hybrid mode" in said:
        return 'let Podman use runc: `apt install runc`, runtime = "runc" in containers.conf'
    if "uid_map" in said or "newuidmap" in said or "subuid" in said:
        return "rootless Podman needs `apt install uidmap` and lines in /etc/subuid, /etc/subgid"
    return "see docs/containers.md"
