"""The self-test of a runner: what a job would like to reach is really there, and the job tries.

`Targets` makes a file, sockets and a process; `command` is what the job runs; `judge` reads what it
said. Each runner tries it at the start of a node, and `make escape` tries more of it.
"""

import contextlib
import json
import os
import secrets
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pairio_node.runner import probe
from pairio_node.runner.base import ProbeResult

__all__ = ["command", "judge", "said", "targets"]


@contextlib.contextmanager
def targets() -> Iterator[dict[str, Any]]:
    """Make what is not to be reached; gives the world that `probe` is told of. The app's folder and
    an input (`app`, `input`) are the caller's, as a job sees them.

    Raises:
        OSError: it cannot be made.
    """
    word = secrets.token_hex(8)
    with contextlib.ExitStack() as stack:
        top = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pairio-targets-")))
        top.chmod(0o755)
        (home := top / "home").mkdir(mode=0o700)
        (home / "node.key").write_text(word)
        (home / "node.key").chmod(0o600)
        (shared := top / "shared").mkdir()
        shared.chmod(0o777)
        shm = Path("/dev/shm", f"pairio-targets-{word}")
        shm.write_text(word)
        stack.callback(shm.unlink)
        _listening(stack, socket.AF_UNIX, f"\0pairio-{word}")
        victim = stack.enter_context(_victim(word))
        yield {
            "word": word,
            "secret": str(home / "node.key"),
            "shared": str(shared),
            "shm": str(shm),
            "victim": victim,
            "victim_argument": _argument(word),
            "victim_address": _stack_of(victim),
            "tcp": {
                name: (host, _listening(stack, family, (host, 0)).getsockname()[1])
                for name, family, host in _hosts()
            },
            "abstract": f"pairio-{word}",
            "socket": _listening(stack, socket.AF_UNIX, str(shared / "socket")).getsockname(),
        }


def _hosts() -> list[tuple[str, int, str]]:
    found = [("loopback", socket.AF_INET, "127.0.0.1")]
    if Path("/proc/sys/net/ipv6").exists():
        found.append(("loopback6", socket.AF_INET6, "::1"))
    return [(name, int(family), host) for name, family, host in found]


def _listening(stack: contextlib.ExitStack, family: int, address: Any) -> socket.socket:
    made = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
    made.bind(address)
    made.listen(8)
    if family == socket.AF_UNIX and address[0] == "/":
        os.chmod(address, 0o777)
    return made


def _argument(word: str) -> str:
    return f"pairio-victim-{word}"


@contextlib.contextmanager
def _victim(word: str) -> Iterator[int]:
    """Run a process that has the word in its environment."""
    process = subprocess.Popen(
        [_argument(word), "600"], executable="/bin/sleep", env={"SECRET": word}
    )
    try:
        yield process.pid
    finally:
        process.kill()
        process.wait()


def _stack_of(pid: int) -> int:
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        if line.endswith("[stack]"):
            return int(line.partition("-")[0], 16)
    raise OSError(f"process {pid} has no stack")


def command(python: str, world: dict[str, Any], names: tuple[str, ...] = ()) -> list[str]:
    """Return what a job runs to try `names`, by default what a node tries at its start."""
    chosen = names or tuple(probe.BASIC)
    program = Path(probe.__file__).read_text()
    return [python, "-I", "-c", program, json.dumps({**world, "names": chosen})]


def said(console: bytes) -> dict[str, tuple[str, str]] | None:
    """Return what a job that ran `command` said: how each attempt went, and what of it can be seen;
    None when it did not come to that."""
    for line in reversed(console.decode(errors="replace").splitlines()):
        if line.startswith(probe.MARK):
            with contextlib.suppress(ValueError):
                raw = json.loads(line.removeprefix(probe.MARK))
                return {name: (how, seen) for name, (how, seen) in raw.items()}
    return None


def judge(console: bytes, names: tuple[str, ...] = ()) -> ProbeResult:
    """Say whether everything that was tried was denied."""
    found = said(console)
    if found is None:
        last = console.decode(errors="replace").strip()[-300:]
        return ProbeResult(False, f"the sandbox cannot be tried: {last or 'no word from it'}")
    missing = {*(names or probe.BASIC)} - {*found}
    leaks = [f"{name} ({seen})" for name, (how, seen) in found.items() if how == "worked"]
    if leaks or missing:
        what = "; ".join(leaks[:3]) or f"{sorted(missing)[0]} was not tried"
        return ProbeResult(False, f"the sandbox does not hold: {what}"[:300])
    return ProbeResult(True)
