"""Looks at warm workers from outside of their sandbox, in /proc: what the app did when it was
imported, and whether a job's process is shut in before it runs. Needs no cooperation of theirs."""

import os
from dataclasses import dataclass

from pairio_node.runner.supervisor.processes import descendants

__all__ = ["Namespaces", "import_tricks", "not_shut_in", "taken_since"]

_SEPARATE = ("mnt", "pid", "net", "ipc")
#: What a job that waits has open: the standard ones, and the link to its supervisor.
_OPEN = {"0", "1", "2", "3"}
_NAMESPACES = (*_SEPARATE, "user", "uts", "cgroup")
#: What is mounted from here is read-only in a sandbox: shared pages of it are no channel.
_READ_ONLY = ("/usr/", "/lib", "/opt/pairio/", "/app/")


@dataclass(frozen=True)
class Namespaces:
    """Those of a process, by kind."""

    by_kind: dict[str, str]

    @staticmethod
    def of(pid: int) -> "Namespaces":
        """Raises OSError when there is no such process, or this one may not look at it."""
        return Namespaces({kind: os.readlink(f"/proc/{pid}/ns/{kind}") for kind in _NAMESPACES})


def import_tricks(sandbox_pid: int, allowed_fds: set[int]) -> tuple[int, str]:
    """Look at a zygote whose bwrap is `sandbox_pid`: return its process, and what it has from the
    import of its app that every job would share, "" when there is nothing.

    Raises:
        OSError: it is gone, or this process may not look at it.
    """
    tree = descendants(sandbox_pid)
    if len(tree) < 2:
        raise ProcessLookupError("it has ended")
    zygote = tree[1]
    found = []
    if len(tree) > 2:
        found.append(f"{len(tree) - 2} processes")
    if (threads := len(os.listdir(f"/proc/{zygote}/task"))) > 1:
        found.append(f"{threads - 1} threads")
    if shared := _shared_mappings(zygote):
        found.append(f"shared memory ({shared})")
    kept = {int(name) for name in os.listdir(f"/proc/{zygote}/fd")} - allowed_fds
    if kept:
        found.append(f"{len(kept)} open descriptors")
    if Namespaces.of(zygote) != Namespaces.of(tree[0]):
        found.append("namespaces of its own")
    return zygote, ", ".join(found)


def _shared_mappings(pid: int) -> str:
    """Return what one mapping is that writes would go through to others; "" when there is none."""
    with open(f"/proc/{pid}/maps") as file:
        for line in file:
            fields = line.split(maxsplit=5)
            path = fields[5].strip() if len(fields) > 5 else "anonymous"
            shared = fields[1].endswith("s")
            if shared and ("w" in fields[1] or not path.startswith(_READ_ONLY)):
                return path
    return ""


def not_shut_in(pid: int, outside: Namespaces, zygote: Namespaces | None) -> str:
    """Return what is missing for the process of a job to be let go, "" when nothing is:
    it shares nothing with what is `outside`, and a job of a
    `zygote` must have namespaces of its own; None: it has a sandbox of its own.

    Raises:
        OSError: it is gone, or this process may not look at it.
    """
    status = {}
    with open(f"/proc/{pid}/status") as file:
        for line in file:
            key, _, value = line.partition(":")
            status[key] = value.strip()
    wanted = {"NoNewPrivs": "1", "Seccomp": "2"}
    wanted |= {f"Cap{kind}": "0" * 16 for kind in ("Inh", "Prm", "Eff", "Amb")}
    wrong = [f"{key} is {status.get(key)}" for key in wanted if status.get(key) != wanted[key]]
    if zygote is not None and int(status.get("Seccomp_filters", "2")) < 2:
        wrong.append("it has no filter of its own")
    job, own = Namespaces.of(pid).by_kind, outside.by_kind
    wrong += [f"it shares {kind}" for kind in (*_SEPARATE, "user") if job[kind] == own[kind]]
    if zygote is not None:
        other = zygote.by_kind
        wrong += [f"it shares {kind} with others" for kind in _SEPARATE if job[kind] == other[kind]]
        if job["user"] != other["user"]:
            wrong.append("it has another user namespace")
        if int(status["Threads"]) > 1:
            wrong.append("it has threads")
        wrong += _more_descriptors(pid)
        if shared := _shared_mappings(pid):
            wrong.append(f"it shares memory ({shared})")
    return "; ".join(wrong)


def taken_since(pid: int) -> str:
    """Return what a job of a zygote that was found shut in has come to since, "" when nothing. What
    it has given up is gone for good: capabilities, namespaces, calls. What it has open is not, and
    memory is shared with others through descriptors only.

    Raises:
        OSError: as `not_shut_in`.
    """
    wrong = _more_descriptors(pid)
    if len(os.listdir(f"/proc/{pid}/task")) > 1:
        wrong.append("it has threads")
    return "; ".join(wrong)


def _more_descriptors(pid: int) -> list[str]:
    more = {*os.listdir(f"/proc/{pid}/fd")} - _OPEN
    return [f"it has descriptors {', '.join(sorted(more))}"] if more else []
