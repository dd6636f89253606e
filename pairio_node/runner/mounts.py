"""What a job sees in bubblewrap's sandbox: its arguments for namespaces and mounts.

The system's /usr, a small /etc of pairio's own, the interpreter with the SDK below /opt/pairio, a
/proc and a /dev of its own. Everything is a mount, so it does not matter where home, clone and
environment lie, or who may enter the folders above them.
"""

import functools
import os
import sys
import sysconfig
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Final

from pairio_node.runner.base import FORWARD_PORT, SOCKET
from pairio_node.runner.gpus import SHARED_DEVICES, Gpu
from pairio_node.runner.process import sdk_root
from pairio_node.runner.supervisor.sandbox import STAGE
from pairio_node.runner.supervisor.secret import secret_word

__all__ = [
    "JOB_ID",
    "SECRETS_INSIDE",
    "STREAMS_INSIDE",
    "Mounts",
    "forwarder",
    "job_user",
    "let_read",
    "library_variables",
    "python_inside",
    "sandbox_head",
    "secret_mounts",
]

#: User and group that a job sees itself as.
JOB_ID: Final = 65534
#: Whom jobs of a node that runs as root run as; a number that no system gives to anybody.
_JOB_USER: Final = 2_007_050_901
_ETC: Final = Path(__file__).parent / "etc"
_SHM_SIZE_BYTES: Final = 64 * 2**20
#: Where a job finds its secrets, a file each.
SECRETS_INSIDE: Final = "/run/secrets"
#: Where a sandbox has the socket that a job's streams come from (`pairio_node.streams`).
STREAMS_INSIDE: Final = "/run/pairio"
_SECRETS_SIZE_BYTES: Final = 2**20
_PYTHON: Final = "/opt/pairio/python"
#: Holds nothing but the library of an interpreter that is one: programs of an app look here first.
_LIBRARY_FOLDER: Final = "/opt/pairio/lib"
#: What a job with this machine's network needs of its /etc; other files there are pairio's own.
_NETWORK_FILES: Final = ("/etc/resolv.conf", "/etc/ssl", "/etc/ca-certificates", "/etc/pki")
#: What tells of the machine or of others, and is nothing that a job needs.
_MASKED_FILES: Final = ("/proc/keys", "/proc/key-users", "/proc/timer_list", "/proc/sched_debug")
_MASKED_FOLDERS: Final = ("/proc/acpi", "/proc/scsi")


def job_user() -> int:
    """Return whom jobs run as on this machine; 0: the node's own user, who is not root."""
    return _JOB_USER if os.geteuid() == 0 else 0


def sandbox_head(*, keep: tuple[str, ...] = (), shares_network: bool = False) -> list[str]:
    """Return bwrap with namespaces of every kind (but the network's, if that is shared with this
    machine), no capabilities but `keep`, no way back."""
    argv = ["bwrap", "--unshare-all", "--unshare-user", "--disable-userns"]
    argv += ["--share-net"] if shares_network else []
    argv += ["--uid", str(JOB_ID), "--gid", str(JOB_ID), "--hostname", "job"]
    argv += ["--die-with-parent", "--new-session", "--cap-drop", "ALL"]
    for capability in keep:
        argv += ["--cap-add", capability]
    return argv


class Mounts:
    """Collects mounts. `user`: see `job_user`; `files` is what a plan must have for that user."""

    def __init__(self, user: int) -> None:
        self.user = user
        self.files: list[str] = []

    def read_only(self, path: Path, inside: str) -> list[str]:
        """Return arguments that show a file or folder of this machine."""
        return ["--ro-bind", self._source(path), inside]

    def writable(self, path: Path, inside: str) -> list[str]:
        """The same, for what the job may change."""
        return ["--bind", self._source(path), inside]

    def _source(self, path: Path) -> str:
        if not self.user:
            return str(path)
        self.files.append(str(path))
        return f"{STAGE}/{len(self.files) - 1}"

    def system(self) -> list[str]:
        """Return arguments for the system, the interpreter and the SDK."""
        argv = ["--ro-bind", "/usr", "/usr"]
        for name in ("bin", "lib", "lib64", "sbin"):
            if Path("/", name).is_symlink():
                argv += ["--symlink", f"usr/{name}", f"/{name}"]
            else:
                argv += ["--ro-bind-try", f"/{name}", f"/{name}"]
        for name in ("ld.so.cache", "alternatives", "localtime"):
            argv += ["--ro-bind-try", f"/etc/{name}", f"/etc/{name}"]
        for file in sorted(_ETC.iterdir()):
            argv += self.read_only(file, f"/etc/{file.name}")
        if not sys.base_prefix.startswith("/usr"):
            argv += self.read_only(Path(sys.base_prefix), _PYTHON)
            if library := _library():
                argv += ["--symlink", library, f"{_LIBRARY_FOLDER}/{Path(library).name}"]
        argv += self.read_only(Path(sysconfig.get_paths()["purelib"]), "/opt/pairio/site")
        return argv + self.read_only(sdk_root() / "pairio", "/opt/pairio/sdk/pairio")

    def network(self) -> list[str]:
        """Return arguments for what it takes to use this machine's network."""
        argv = []
        for path in _NETWORK_FILES:
            if os.path.exists(path):
                argv += self.read_only(Path(os.path.realpath(path)), path)
        return argv

    def devices(
        self, *, masked: bool = True, hides_init: bool = False, gpus: Sequence[Gpu] = ()
    ) -> list[str]:
        """Return arguments for /proc, /dev and /dev/shm. A zygote mounts another /proc for each
        job, which the kernel refuses where one is partly `masked`. `hides_init`: the first process
        is bubblewrap's own, not to be written to by a job, which is its user."""
        argv = ["--proc", "/proc", "--dev", "/dev"]
        if masked:
            argv += self.gpus(gpus)
        argv += ["--size", str(_SHM_SIZE_BYTES), "--tmpfs", "/dev/shm", "--remount-ro", "/dev"]
        for path in _MASKED_FILES if masked else ():
            if os.path.exists(path):
                argv += ["--ro-bind", "/dev/null", path]
        folders = ("/proc/1", *_MASKED_FOLDERS) if hides_init else _MASKED_FOLDERS
        for path in folders if masked else ():
            if os.path.exists(path):
                argv += ["--tmpfs", path, "--remount-ro", path]
        return argv

    def gpus(self, gpus: Sequence[Gpu], root: Path = Path("/")) -> list[str]:
        """Return arguments for a job's GPUs: their devices, and none of the others'. They come
        before /dev is made read-only."""
        if not gpus:
            told = "/proc/driver/nvidia"
            there = (root / told[1:]).exists()
            return ["--tmpfs", told, "--remount-ro", told] if there else []
        argv: list[str] = []
        for name in (*(f"nvidia{gpu.minor}" for gpu in gpus), *SHARED_DEVICES):
            if (root / "dev" / name).exists():
                argv += ["--dev-bind", str(root / "dev" / name), f"/dev/{name}"]
        return argv


def secret_mounts(names: Collection[str]) -> list[str]:
    """Return arguments that put secrets, whose descriptors the supervisor has, into memory."""
    if not names:
        return []
    argv = ["--perms", "0500", "--size", str(_SECRETS_SIZE_BYTES), "--tmpfs", SECRETS_INSIDE]
    for name in sorted(names):
        argv += ["--perms", "0400", "--file", secret_word(name), f"{SECRETS_INSIDE}/{name}"]
    return [*argv, "--remount-ro", SECRETS_INSIDE]


def python_inside() -> str:
    """Return where the sandbox has the node's interpreter."""
    executable = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
    base = Path(sys.base_prefix).resolve()
    if str(base).startswith("/usr") or not executable.is_relative_to(base):
        return str(executable)
    return f"{_PYTHON}/{executable.relative_to(base).as_posix()}"


def library_variables() -> dict[str, str]:
    """Return what has the node's interpreter find its library in the sandbox: one that was built to
    be a library looks for it in a folder of this machine, and a job is not to see its name."""
    return {"LD_LIBRARY_PATH": _LIBRARY_FOLDER} if _library() else {}


@functools.cache
def _library() -> str:
    """Return where the sandbox has the library that the interpreter runs by; empty where it runs by
    none, or by one of the system's."""
    if sys.base_prefix.startswith("/usr"):
        return ""
    name = str(sysconfig.get_config_var("INSTSONAME"))
    maps = Path("/proc/self/maps").read_text(errors="surrogateescape")
    return _library_in(maps, name, Path(sys.base_prefix).resolve())


def _library_in(maps: str, name: str, prefix: Path) -> str:
    """As `_library`. It is among the `maps` of its process, wherever that found it."""
    for line in maps.splitlines():
        path = Path(line.split(maxsplit=5)[-1])
        if path.name == name and path.is_relative_to(prefix):
            return f"{_PYTHON}/{path.relative_to(prefix).as_posix()}"
    return ""


def forwarder() -> list[str]:
    """Return what passes a job's connections on to its socket, inside (`pairio.sdk._forward`)."""
    program = "/opt/pairio/sdk/pairio/sdk/_forward.py"
    socket = f"{STREAMS_INSIDE}/{SOCKET}"
    return [python_inside(), "-I", "-S", program, socket, str(FORWARD_PORT)]


def let_read(top: Path) -> None:
    """Let every user read a copy that the node made; who may reach it is decided above it."""
    for folder, names, files in os.walk(top):
        for name in (*names, *files):
            _let_read(os.path.join(folder, name))
    _let_read(str(top))


def _let_read(path: str) -> None:
    if os.path.islink(path):
        return
    mode = os.stat(path).st_mode & 0o7777
    wanted = mode | 0o444 | (0o111 if mode & 0o100 else 0)
    if wanted != mode:
        os.chmod(path, wanted)
