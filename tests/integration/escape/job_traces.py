"""Runs in a job: leaves traces wherever it can, or looks for those of another job.

It needs the standard library only. AFTER is what is looked for when the other job has ended, LOOKS
while it runs."""

import builtins
import contextlib
import ctypes
import os
import socket
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["AFTER", "LOOKS", "clear", "leave", "leave_daemon", "looked", "secret_of"]

World = dict[str, Any]
libc = ctypes.CDLL(None, use_errno=True)
_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm", "/dev", "/in", "/out", "/run", "/app", "/mnt")
_KEY, _CREATE = 0x70616972, 0o1000
#: Where files in memory may lie: the host's, and what a job has of them.
_IN_MEMORY = ("/dev/shm", "/run/secrets", "/run/user", "/run", "/var/tmp", "/tmp")
_FILE_BYTES_MAX, _PIECE_BYTES = 65536, 1024 * 1024
_kept: list[Any] = []


def leave(world: World) -> None:
    """Leave what can be left; what cannot is what the sandbox is for."""
    word = world["trace"]
    for folder in (*_FOLDERS, os.getcwd(), os.path.expanduser("~")):
        with contextlib.suppress(OSError), open(f"{folder}/trace-{word}", "w") as file:
            file.write(word)
    builtins.trace = word  # type: ignore[attr-defined]
    os.environ["TRACE"] = word
    with open(os.path.join(os.environ["PAIRIO_SECRETS_DIR"], "TOKEN")) as secret:
        _kept.append(secret.read())
    _kept.append(libc.shmget(_KEY, 4096, _CREATE | 0o666))
    _kept.append(libc.semget(_KEY, 1, _CREATE | 0o666))
    _kept.append(libc.msgget(_KEY, _CREATE | 0o666))
    _kept.append(libc.mq_open(f"/trace-{word}".encode(), os.O_RDWR | os.O_CREAT, 0o666, None))
    for family, address in (
        (socket.AF_UNIX, f"\0trace-{word}"),
        (socket.AF_INET, ("127.0.0.1", world["trace_port"])),
    ):
        with contextlib.suppress(OSError):
            made = socket.socket(family, socket.SOCK_STREAM)
            made.bind(address)
            made.listen(8)
            _kept.append(made)
    with contextlib.suppress(OSError):
        _kept.append(os.openpty())
        with open(f"{world['shared']}/terminal", "w") as file:
            file.write(os.ttyname(_kept[-1][1]))


def clear(word: str) -> None:
    """Remove what a process that nothing restricts has left on the machine."""
    for folder in (*_FOLDERS, os.getcwd(), os.path.expanduser("~")):
        with contextlib.suppress(OSError):
            os.unlink(f"{folder}/trace-{word}")
    remove = 0
    libc.shmctl(libc.shmget(_KEY, 0, 0), remove, None)
    libc.semctl(libc.semget(_KEY, 0, 0), 0, remove)
    libc.msgctl(libc.msgget(_KEY, 0), remove, None)
    libc.mq_unlink(f"/trace-{word}".encode())


def leave_daemon(world: World) -> None:
    """Start a process that leaves parent, group and session."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            argument = f"trace-daemon-{world['trace']}"
            os.execv("/bin/sleep", [argument, "600"])
        os._exit(0)
    time.sleep(0.3)


def _in_a_file(world: World) -> str:
    for folder in (*_FOLDERS, os.getcwd(), os.path.expanduser("~")):
        with contextlib.suppress(OSError), open(f"{folder}/trace-{world['trace']}") as file:
            return f"{file.read()} in {folder}"
    raise OSError("no file of it")


def _in_memory(world: World) -> str:
    return f"builtins.trace is {builtins.trace}"  # type: ignore[attr-defined]


def _in_the_environment(world: World) -> str:
    with open(f"/proc/{os.getppid()}/environ") as file:
        if world["trace"] in file.read() + str(dict(os.environ)):
            return "a variable"
    raise OSError("no variable of it")


def _by_key(name: str) -> Callable[[World], str]:
    def look(_: World) -> str:
        arguments = (_KEY, 0) if name == "msgget" else (_KEY, 0, 0)
        if getattr(libc, name)(*arguments) < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return "found by its key"

    return look


def _queue(world: World) -> str:
    if libc.mq_open(f"/trace-{world['trace']}".encode(), os.O_RDWR) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return "found by its name"


def _connected(family: int, address: Any) -> str:
    with socket.socket(family, socket.SOCK_STREAM) as made:
        made.settimeout(2)
        made.connect(address)
    return "connected"


def secret_of(trace: str) -> str:
    """Return the secret of the job that leaves a trace; whoever looks for it makes it anew."""
    return "-".join(("secret", trace[::-1], trace))


def _secret(world: World) -> str:
    """Look for a secret in files, in variables of processes, in this process' own memory."""
    value = secret_of(world["trace"]).encode()
    for top in _IN_MEMORY:
        for folder, _, names in os.walk(top):
            for name in names:
                path = os.path.join(folder, name)
                if os.path.islink(path) or not os.path.isfile(path):
                    continue
                with contextlib.suppress(OSError), open(path, "rb") as file:
                    if value in file.read(_FILE_BYTES_MAX):
                        return f"a file in {top}"
    for pid, words in _others():
        with contextlib.suppress(OSError), open(f"/proc/{pid}/environ", "rb") as environ:
            if value in environ.read() + words.encode():
                return f"a variable of process {pid}"
    if _is_in_memory(value):
        return "its own memory"
    raise OSError("no file, variable or memory of it")


def _is_in_memory(value: bytes) -> bool:
    """Say whether this process' memory holds a value elsewhere than where it looks from."""
    buffer = bytearray(_PIECE_BYTES)
    seen_from = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
    own = (range(id(value), id(value) + 4096), range(seen_from, seen_from + _PIECE_BYTES))
    with open("/proc/self/maps") as maps:
        lines = [line.split() for line in maps]
    with open("/proc/self/mem", "rb", 0) as memory:
        for fields in lines:
            start, stop = (int(end, 16) for end in fields[0].split("-"))
            if not fields[1].startswith("rw"):
                continue
            for at in range(start, stop, _PIECE_BYTES - len(value)):
                buffer[:] = bytes(_PIECE_BYTES)
                with contextlib.suppress(OSError, ValueError, OverflowError):
                    memory.seek(at)
                    memory.readinto(memoryview(buffer)[: min(_PIECE_BYTES, stop - at)])
                found = buffer.find(value)
                if found >= 0 and not any(at + found in part for part in own):
                    return True
    return False


def _stream(world: World) -> str:
    """Read the streamed input of a job beside this one, by its URL and past it."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(world["stream_url"], timeout=5) as answer:
        if answer.read() == world["stream_holds"].encode():
            return "read by its URL"
    raise OSError("something else")


def _others() -> Iterator[tuple[int, str]]:
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{name}/cmdline") as file:
                yield int(name), file.read()


def _daemon(world: World) -> str:
    for pid, words in _others():
        if words.startswith(f"trace-daemon-{world['trace']}"):
            return f"process {pid}"
    raise OSError("no process of it")


def _terminal(world: World) -> str:
    with open(f"{world['shared']}/terminal") as file:
        path = file.read()
    os.close(os.open(path, os.O_RDWR | os.O_NOCTTY))
    return path


def _descriptors(_: World) -> str:
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            target = os.readlink(f"/proc/self/fd/{name}")
            if int(name) > 2 and "/proc/" not in target:
                return target
    raise OSError("nothing but 0, 1 and 2")


AFTER: dict[str, Callable[[World], str]] = {
    "a file of the job before": _in_a_file,
    "a Python variable of the job before": _in_memory,
    "an environment variable of the job before": _in_the_environment,
    "shared memory of the job before": _by_key("shmget"),
    "a semaphore of the job before": _by_key("semget"),
    "a message queue of the job before": _by_key("msgget"),
    "a POSIX queue of the job before": _queue,
    "a daemon of the job before": _daemon,
    "a descriptor of the job before": _descriptors,
    "a secret of the job before": _secret,
}
LOOKS: dict[str, Callable[[World], str]] = {
    **{name.replace("the job before", "a job beside it"): look for name, look in AFTER.items()},
    "an abstract socket of a job beside it": lambda w: _connected(
        socket.AF_UNIX, f"\0trace-{w['trace']}"
    ),
    "loopback of a job beside it": lambda w: _connected(
        socket.AF_INET, ("127.0.0.1", w["trace_port"])
    ),
    "a terminal of a job beside it": _terminal,
    "a streamed input of a job beside it": _stream,
}


def looked(world: World, looks: dict[str, Callable[[World], str]]) -> dict[str, tuple[str, str]]:
    """Look for what another job left; the same form as `probe` has."""
    found = {}
    for name, look in looks.items():
        try:
            found[name] = ("worked", look(world))
        except (OSError, AttributeError) as error:
            found[name] = ("denied", f"{type(error).__name__}: {error}")
    sys.stdout.flush()
    return found
