"""What this machine lacks to run jobs, and how to mend it: from facts to words.

`doctor_facts` looks for the facts; nothing here touches the machine."""

from dataclasses import asdict, dataclass, field
from typing import Any, Final

from pairio_node.runner.base import ProbeResult

__all__ = ["APPARMOR_PROFILE", "Facts", "Finding", "examine", "report"]

_BWRAP_MIN: Final = (0, 8)
_NETWORK_FILE_SYSTEMS: Final = frozenset(
    (
        *("9p", "afs", "ceph", "cifs", "fuse.sshfs", "glusterfs", "gpfs"),
        *("lustre", "nfs", "nfs4", "smb3", "smbfs"),
    )
)
_YEAR_MIN: Final = 2026
_DISK_FREE_MIN: Final = 2**30

APPARMOR_PROFILE: Final = """\
abi <abi/4.0>,
include <tunables/global>
profile bwrap /usr/bin/bwrap flags=(unconfined) {
  userns,
  include if exists <local/bwrap>
}
"""
_APPARMOR_FIX: Final = (
    "AppArmor keeps programs from user namespaces (Ubuntu 23.10 and later). Let bubblewrap have"
    " them: write this into /etc/apparmor.d/bwrap, then run `sudo systemctl reload apparmor`:\n\n"
    + APPARMOR_PROFILE
)
_WARM_FIX: Final = "jobs run all the same, a bit later; Linux 5.12 or newer has all it takes"
_INSTALL: Final = "install it: `sudo apt install bubblewrap` (Debian, Ubuntu), or dnf, pacman"


@dataclass(frozen=True)
class Facts:
    """What was found on the machine. None: it is not known, or not there."""

    compute: bool = True
    allow_process: tuple[str, ...] = ()
    machine: str = "x86_64"
    has_filter: bool = True  # this processor's calls are known, and the kernel filters
    bwrap_version: str | None = "0.8.0"
    runners: dict[str, ProbeResult] = field(default_factory=dict)
    userns_max: int | None = None
    userns_clone: str = ""
    userns_restricted: str = ""
    memory_limit: tuple[str, str, str] = ("cgroup", "", "")
    warm_mode: str = "on"
    warm: tuple[str, str] = ("zygote", "")
    gpus: tuple[str, ...] = ()
    gpus_wanted: int = 0
    year: int = _YEAR_MIN
    clock_is_set: bool | None = True
    ports_taken: tuple[tuple[str, int], ...] = ()
    home: str = ""
    home_is_there: bool = True
    home_file_system: str = ""
    disk_free_bytes: int = 2**40
    #: Whether this machine has an address that is everybody's; relays that were named, and of them
    #: those that do not answer.
    has_public_address: bool = True
    relays: tuple[str, ...] = ()
    relays_silent: tuple[str, ...] = ()
    kubo_api: str = ""
    kubo_error: str = ""
    config_error: str = ""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. `needed`: this node does not do without what it is set to."""

    check: str
    ok: bool
    needed: bool
    said: str
    fix: str = ""


def examine(facts: Facts) -> list[Finding]:
    """Return what holds and what does not, in the order in which it is mended."""
    found = [
        _settings(facts),
        _home(facts),
        _disk(facts),
        _ports(facts),
        _reach(facts),
        _clock(facts),
        _calls(facts),
        _sandbox(facts),
        _warm(facts),
        _containers(facts),
        _memory(facts),
        _gpus(facts),
        _kubo(facts),
    ]
    return [finding for finding in found if finding is not None]


def _settings(facts: Facts) -> Finding:
    if facts.config_error:
        fix = "mend node.toml; what follows is for a node with no settings"
        return Finding("settings", False, True, facts.config_error, fix)
    return Finding("settings", True, True, "can be read")


def _home(facts: Facts) -> Finding:
    kind = facts.home_file_system
    if kind in _NETWORK_FILE_SYSTEMS:
        fix = "set PAIRIO_HOME to a folder on a disk of this machine; databases break"
        return Finding("home", False, True, f"{facts.home} is on a network ({kind})", fix)
    if not facts.home_is_there:
        said = f"there is no node in {facts.home} yet"
        return Finding("home", False, False, said, "make one: `pairio-node init`")
    return Finding("home", True, True, f"{facts.home}, on this machine ({kind or 'a disk'})")


def _disk(facts: Facts) -> Finding:
    free = facts.disk_free_bytes
    said = f"{free / 2**30:.1f} GiB free"
    fix = "make room, or set quota_bytes in node.toml"
    ok = free >= _DISK_FREE_MIN
    return Finding("disk", ok, False, said, "" if ok else fix)


def _ports(facts: Facts) -> Finding:
    if facts.ports_taken:
        said = ", ".join(f"{port} ({name})" for name, port in facts.ports_taken)
        fix = "end what listens there, or set api_port, gateway_port or listen in node.toml"
        return Finding("ports", False, True, f"taken by another program: {said}", fix)
    return Finding("ports", True, True, "free, or this node's")


def _reach(facts: Facts) -> Finding | None:
    """None: it has an address that others can dial, if no firewall keeps them."""
    if facts.relays_silent:
        said = f"no answer of the relay at {', '.join(facts.relays_silent)}"
        ok = len(facts.relays_silent) < len(facts.relays)
        return Finding("reach", ok, False, said, "is it on, and does its firewall let others in?")
    if facts.relays:
        return Finding("reach", True, False, f"relays that answer: {len(facts.relays)}")
    if facts.has_public_address:
        return None
    said = "only private addresses: nodes outside of this network do not reach this one"
    fix = "name a relay in node.toml (relays), or let the router pass its port on"
    return Finding("reach", False, False, said, f"{fix}; inside of this network all is well")


def _clock(facts: Facts) -> Finding:
    if facts.year < _YEAR_MIN:
        fix = "set the clock: `sudo timedatectl set-ntp true`; requests would have expired"
        return Finding("clock", False, True, f"it says the year {facts.year}", fix)
    if facts.clock_is_set is False:
        fix = "`sudo timedatectl set-ntp true` keeps it right; pairio needs it to the minute"
        return Finding("clock", False, False, "nothing keeps it right (no NTP)", fix)
    return Finding("clock", True, True, "right, as far as can be seen from here")


def _calls(facts: Facts) -> Finding:
    if not facts.has_filter:
        said = f"there is no filter of system calls on this machine ({facts.machine})"
        fix = "a kernel with CONFIG_SECCOMP_FILTER on x86_64 or aarch64 is needed"
        return Finding("seccomp", False, _needs_sandbox(facts), said, fix)
    return Finding("seccomp", True, _needs_sandbox(facts), f"filters calls ({facts.machine})")


def _needs_sandbox(facts: Facts) -> bool:
    return facts.compute and not facts.allow_process


def _sandbox(facts: Facts) -> Finding:
    probe, needed = facts.runners.get("bwrap", ProbeResult(False, "was not tried")), True
    if not facts.compute:
        needed = False
    if probe.ok:
        version = facts.bwrap_version or "of an unknown version"
        return Finding(
            "sandbox", True, needed, f"bubblewrap {version} holds: jobs tried to get out"
        )
    said, fix = _why_no_sandbox(facts, probe)
    if facts.allow_process:
        said += f"; runs without one: {', '.join(facts.allow_process)}"
        needed = False
    return Finding("sandbox", False, needed, said, fix)


def _why_no_sandbox(facts: Facts, probe: ProbeResult) -> tuple[str, str]:
    """Return why bubblewrap does not hold here, and the nearest remedy."""
    if facts.bwrap_version is None:
        return "bubblewrap is not installed", _INSTALL
    if _version(facts.bwrap_version) < _BWRAP_MIN:
        return f"bubblewrap {facts.bwrap_version} is too old", "version 0.8 or newer is needed"
    denied = "uid map: Permission denied" in probe.why or "RTM_NEWADDR" in probe.why
    if denied and facts.userns_restricted != "0":
        return probe.why, _APPARMOR_FIX
    if facts.userns_max == 0:
        fix = "`sudo sysctl user.max_user_namespaces=15000`, and into /etc/sysctl.d to keep it"
        return "user namespaces are switched off (user.max_user_namespaces is 0)", fix
    if facts.userns_clone == "0":
        fix = "`sudo sysctl kernel.unprivileged_userns_clone=1`, and into /etc/sysctl.d to keep it"
        return "user namespaces are for root only (kernel.unprivileged_userns_clone is 0)", fix
    return probe.why, probe.hint


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".") if part.isdigit())


def _warm(facts: Facts) -> Finding | None:
    if facts.warm_mode == "off" or not facts.runners.get("bwrap", ProbeResult(False)).ok:
        return None
    kind, why = facts.warm
    if kind == "zygote":
        return Finding("warm", True, False, "jobs of Python apps start in a moment")
    if kind == "single" and facts.warm_mode == "single":
        return Finding("warm", True, False, "one worker for each job, as node.toml wants it")
    less = "one worker for each job, no shared ones" if kind == "single" else "all jobs start cold"
    return Finding("warm", False, False, f"{less}: {why}", _WARM_FIX)


def _containers(facts: Facts) -> Finding | None:
    probe = facts.runners.get("container")
    if probe is None:
        return None
    if probe.ok:
        return Finding("containers", True, False, "hold: jobs tried to get out")
    return Finding("containers", False, False, f"apps with an image: {probe.why}", probe.hint)


def _memory(facts: Facts) -> Finding:
    kind, why, hint = facts.memory_limit
    if kind == "cgroup":
        return Finding("memory", True, False, "held by the kernel (control groups)")
    said = f"looked at five times a second, not held by the kernel: {why}"
    return Finding("memory", False, False, said, hint)


def _gpus(facts: Facts) -> Finding:
    count, wanted = len(facts.gpus), facts.gpus_wanted
    if wanted > count:
        said = f"node.toml offers {wanted}, this machine has {count}"
        fix = "install NVIDIA's driver (`nvidia-smi` must show them), or set gpus lower"
        return Finding("GPUs", False, True, said, fix)
    if count > wanted:
        said = f"{count} ({', '.join(sorted({*facts.gpus}))}), {wanted} of them for jobs"
        return Finding("GPUs", True, False, said, f"gpus = {count} in node.toml offers all")
    return Finding("GPUs", True, False, f"{count}" if count else "none")


def _kubo(facts: Facts) -> Finding | None:
    if not facts.kubo_api:
        return None
    if facts.kubo_error:
        said = f"{facts.kubo_api}: {facts.kubo_error}"
        return Finding("kubo", False, True, said, "start it (`ipfs daemon`), or take [ipfs] out")
    return Finding("kubo", True, True, f"answers at {facts.kubo_api}")


def report(findings: list[Finding]) -> dict[str, Any]:
    """Return the findings as one JSON document."""
    return {"ok": not _bad(findings), "findings": [asdict(finding) for finding in findings]}


def _bad(findings: list[Finding]) -> list[Finding]:
    return [f for f in findings if f.needed and not f.ok]
