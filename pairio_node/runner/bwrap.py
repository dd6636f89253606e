"""The bwrap runner: namespaces, no network, a read-only system, a private /tmp.

What the job sees: the system's /usr, the app at /app, its inputs at /in, its /tmp, and the
interpreter with the SDK at fixed places below /opt/pairio. Everything is a mount, so it does not
matter where home, clone and environment lie, or who may enter the folders above them.
"""

import shutil
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Literal

import trio

from pairio_node.runner.base import ProbeResult, RunSpec
from pairio_node.runner.process import ProcessRunner, common_environment, interpreted, sdk_root
from pairio_node.runner.supervise import Plan, SupervisorLost, supervise

__all__ = ["BwrapRunner"]

_PROBE = """
import os, socket, sys
leaks = []
if os.path.exists(sys.argv[1]): leaks.append("reads a file of the host")
try:
    socket.create_connection(("127.0.0.1", int(sys.argv[2])), 1); leaks.append("reaches loopback")
except OSError: pass
try:
    open("/usr/pairio-probe", "w"); leaks.append("writes to the system")
except OSError: pass
if len([p for p in os.listdir("/proc") if p.isdigit()]) > 5: leaks.append("sees processes")
import pairio.sdk
print("held" if not leaks else "leaks: " + ", ".join(leaks))
"""


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
        listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
        with tempfile.TemporaryDirectory(prefix="pairio-probe-") as folder:
            work = Path(folder) / "work"
            (work / "tmp" / "working").mkdir(parents=True)
            secret = Path(folder) / "secret"
            secret.write_text("secret")
            port = listener.socket.getsockname()[1]
            spec = _probe_spec(work)
            argv = [
                *self._sandbox(spec),
                "--",
                _python_inside(),
                "-c",
                _PROBE,
                str(secret),
                str(port),
            ]
            plan = Plan(
                argv=argv,
                environment=self._environment(spec),
                cwd=None,
                memory_mib=1024,
                time_ms=20_000,
                work_dir=work,
                sandboxed=True,
            )
            try:
                ended = await supervise(self._launcher, plan, trio.Event())
            except (OSError, SupervisorLost) as error:
                return ProbeResult(False, f"the sandbox cannot be tried: {error}")
            finally:
                await listener.aclose()
        said = ended.console.decode(errors="replace").strip()
        if said == "held":
            return ProbeResult(True)
        return ProbeResult(False, f"the sandbox does not hold: {said[:300]}", _hint(said))

    def _inside(self, spec: RunSpec, path: Path) -> str:
        return "/tmp/" + path.relative_to(spec.work_dir / "tmp").as_posix()

    def _input_path(self, spec: RunSpec, number: int) -> str:
        return f"/in/{number}/{spec.inputs[number].base_name}"

    def _cwd(self, spec: RunSpec) -> Path | None:
        return None

    def _command(self, spec: RunSpec) -> list[str]:
        executable = self._executable(spec)
        inside = f"/app/{executable.relative_to(spec.bundle).as_posix()}"
        return [
            *self._sandbox(spec),
            "--",
            *self._limited(spec, interpreted(executable, inside, _python_inside())),
        ]

    def _environment(self, spec: RunSpec) -> dict[str, str]:
        return {
            **common_environment(spec, "/tmp"),
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "HOME": "/tmp",
            "PYTHONPATH": "/opt/pairio/sdk:/opt/pairio/site",
        }

    def _sandbox(self, spec: RunSpec) -> list[str]:
        argv = [
            "bwrap",
            "--unshare-all",
            "--unshare-user",
            "--disable-userns",
            "--uid",
            "65534",
            "--gid",
            "65534",
        ]
        argv += ["--hostname", "job", "--die-with-parent", "--new-session", "--cap-drop", "ALL"]
        argv += ["--ro-bind", "/usr", "/usr"]
        for name in ("bin", "lib", "lib64", "sbin"):
            if Path("/", name).is_symlink():
                argv += ["--symlink", f"usr/{name}", f"/{name}"]
            else:
                argv += ["--ro-bind-try", f"/{name}", f"/{name}"]
        for name in ("ld.so.cache", "alternatives", "localtime"):
            argv += ["--ro-bind-try", f"/etc/{name}", f"/etc/{name}"]
        argv += ["--proc", "/proc", "--dev", "/dev", "--size", str(64 * 2**20)]
        argv += ["--tmpfs", "/dev/shm"]
        if not sys.base_prefix.startswith("/usr"):
            argv += ["--ro-bind", sys.base_prefix, "/opt/pairio/python"]
        argv += ["--ro-bind", sysconfig.get_paths()["purelib"], "/opt/pairio/site"]
        argv += ["--ro-bind", str(sdk_root() / "pairio"), "/opt/pairio/sdk/pairio"]
        argv += ["--ro-bind", str(spec.bundle), "/app"]
        for number, file in enumerate(spec.inputs):
            argv += ["--ro-bind", str(file.path), self._input_path(spec, number)]
        argv += ["--bind", str(spec.work_dir / "tmp"), "/tmp", "--chdir", "/tmp/working"]
        return [*argv, "--remount-ro", "/"]

    def _limited(self, spec: RunSpec, argv: list[str]) -> list[str]:
        limits = ["--nproc=512:512", "--nofile=4096:4096", "--core=0:0"]
        return ["prlimit", *limits, "--", *argv]


def _python_inside() -> str:
    """Return where the sandbox has the node's interpreter."""
    executable = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
    base = Path(sys.base_prefix).resolve()
    if str(base).startswith("/usr") or not executable.is_relative_to(base):
        return str(executable)
    return f"/opt/pairio/python/{executable.relative_to(base).as_posix()}"


def _probe_spec(work: Path) -> RunSpec:
    return RunSpec(
        attempt="probe",
        job_id="probe",
        service="",
        app="",
        processor="",
        executable="",
        bundle=work,
        inputs=(),
        list_inputs=(),
        outputs=(),
        parameters=[],
        cpu_millicores=1000,
        memory_mib=1024,
        gpus=0,
        time_ms=20_000,
        work_dir=work,
    )


def _hint(said: str) -> str:
    if "uid map" in said or "RTM_NEWADDR" in said:
        return (
            "user namespaces are restricted (AppArmor on Ubuntu 24.04): give /usr/bin/bwrap a"
            " profile with `userns,`"
        )
    if "disable-userns" in said:
        return "bubblewrap 0.8 or newer is needed"
    return "run `bwrap --unshare-all --ro-bind / / true` to see more"
