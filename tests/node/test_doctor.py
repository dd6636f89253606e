"""What the doctor says: each thing that can be missing, in the words that the owner reads."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from pairio_cli.doctor import shown
from pairio_node.doctor import APPARMOR_PROFILE, Facts, examine, report
from pairio_node.doctor_facts import gather
from pairio_node.runner.base import ProbeResult

HOLDS = {"bwrap": ProbeResult(True), "container": ProbeResult(True)}


def _said(**facts: object) -> str:
    known = {"runners": HOLDS, "home": "/home/a/pairio", "home_file_system": "ext4", **facts}
    return "\n".join(shown(report(examine(Facts(**known)))))  # type: ignore[arg-type]


def _ok(**facts: object) -> bool:
    known = {"runners": HOLDS, **facts}
    return bool(report(examine(Facts(**known)))["ok"])  # type: ignore[arg-type]


def _denied(why: str) -> dict[str, ProbeResult]:
    return {**HOLDS, "bwrap": ProbeResult(False, why, "look closer")}


def test_a_machine_that_has_everything() -> None:
    assert (
        _said()
        == """\
ok       settings   can be read
ok       home       /home/a/pairio, on this machine (ext4)
ok       disk       1024.0 GiB free
ok       ports      free, or this node's
ok       clock      right, as far as can be seen from here
ok       seccomp    filters calls (x86_64)
ok       sandbox    bubblewrap 0.8.0 holds: jobs tried to get out
ok       warm       jobs of Python apps start in a moment
ok       containers hold: jobs tried to get out
ok       memory     held by the kernel (control groups)
ok       GPUs       none
this node can do what it is set to"""
    )


def test_whether_others_reach_this_machine() -> None:
    private = _said(has_public_address=False)
    assert "note     reach      only private addresses" in private
    assert "relays" in private
    assert _ok(has_public_address=False)
    two = ("/ip4/1.2.3.4/tcp/1/p2p/X", "/ip4/1.2.3.5/tcp/1/p2p/Y")
    assert "ok       reach      relays that answer: 2" in _said(relays=two)
    one = _said(relays=two, relays_silent=("1.2.3.4:1",))
    assert "ok       reach      no answer of the relay at 1.2.3.4:1" in one
    assert "note     reach " in _said(relays=two[:1], relays_silent=("1.2.3.4:1",))


def test_a_machine_that_has_nothing() -> None:
    said = _said(
        bwrap_version=None,
        runners={
            "bwrap": ProbeResult(False, "bubblewrap is not installed"),
            "container": ProbeResult(False, "no socket of Podman or Docker", "install Podman"),
        },
        has_filter=False,
        machine="riscv64",
        memory_limit=("watchdog", "no group may be made", "Delegate=memory"),
        gpus_wanted=1,
        year=1970,
        ports_taken=(("api", 4000),),
        home_file_system="nfs4",
        disk_free_bytes=2**20,
        kubo_api="http://127.0.0.1:5001",
        kubo_error="Connection refused",
        config_error="unknown setting 'cpu'",
    )
    assert (
        said
        == """\
MISSING  settings   unknown setting 'cpu'
                    -> mend node.toml; what follows is for a node with no settings
MISSING  home       /home/a/pairio is on a network (nfs4)
                    -> set PAIRIO_HOME to a folder on a disk of this machine; databases break
note     disk       0.0 GiB free
                    -> make room, or set quota_bytes in node.toml
MISSING  ports      taken by another program: 4000 (api)
                    -> end what listens there, or set api_port, gateway_port or listen in node.toml
MISSING  clock      it says the year 1970
                    -> set the clock: `sudo timedatectl set-ntp true`; requests would have expired
MISSING  seccomp    there is no filter of system calls on this machine (riscv64)
                    -> a kernel with CONFIG_SECCOMP_FILTER on x86_64 or aarch64 is needed
MISSING  sandbox    bubblewrap is not installed
                    -> install it: `sudo apt install bubblewrap` (Debian, Ubuntu), or dnf, pacman
note     containers apps with an image: no socket of Podman or Docker
                    -> install Podman
note     memory     looked at five times a second, not held by the kernel: no group may be made
                    -> Delegate=memory
MISSING  GPUs       node.toml offers 1, this machine has 0
                    -> install NVIDIA's driver (`nvidia-smi` must show them), or set gpus lower
MISSING  kubo       http://127.0.0.1:5001: Connection refused
                    -> start it (`ipfs daemon`), or take [ipfs] out
something is missing"""
    )


@pytest.mark.parametrize(
    "why",
    ["bwrap: setting up uid map: Permission denied", "bwrap: loopback: Failed RTM_NEWADDR: x"],
)
def test_ubuntus_apparmor_is_known_by_both_of_its_messages(why: str) -> None:
    said = _said(runners=_denied(why), userns_restricted="1")
    assert why in said
    assert "/etc/apparmor.d/bwrap" in said
    assert all(line in said for line in APPARMOR_PROFILE.splitlines())
    assert "userns," in APPARMOR_PROFILE


def test_old_bubblewrap_and_namespaces_that_are_off_are_told_apart() -> None:
    assert "bubblewrap 0.4.0 is too old" in _said(runners=_denied("x"), bwrap_version="0.4.0")
    off = _said(runners=_denied("x"), userns_max=0)
    assert "user.max_user_namespaces is 0" in off
    assert "sudo sysctl user.max_user_namespaces=15000" in off
    root_only = _said(runners=_denied("x"), userns_clone="0")
    assert "sudo sysctl kernel.unprivileged_userns_clone=1" in root_only
    other = _said(runners=_denied("the sandbox does not hold: keyctl (done)"))
    assert "keyctl (done)" in other
    assert "look closer" in other


def test_warm_workers_are_told_where_they_can_be() -> None:
    assert "all jobs start cold: no open_tree" in _said(warm=("cold", "no open_tree"))
    assert "no shared ones: mounts" in _said(warm=("single", "mounts"))
    assert "node.toml wants it" in _said(warm=("single", "x"), warm_mode="single")
    assert " warm " not in _said(warm_mode="off")
    assert " warm " not in _said(runners=_denied("x"))
    assert _ok(warm=("cold", "no open_tree"))


def test_only_what_the_node_is_set_to_do_is_needed() -> None:
    broken = {"runners": _denied("x")}
    assert not _ok(**broken)
    assert _ok(**broken, compute=False)
    assert _ok(**broken, allow_process=("mine",))
    assert "runs without one: mine" in _said(**broken, allow_process=("mine",))
    assert _ok(memory_limit=("watchdog", "", ""), clock_is_set=False, home_is_there=False)
    assert not _ok(gpus_wanted=2, gpus=("H100",))
    assert "offers all" in _said(gpus=("H100", "H100"), gpus_wanted=1)


def test_this_machine_is_looked_at_without_a_node_and_without_a_trace(tmp_path: Path) -> None:
    home = tmp_path / "none yet"
    facts = trio.run(gather, home)
    found = report(examine(facts))
    assert json.loads(json.dumps(found)) == found
    assert not home.exists()
    by_name = {finding["check"]: finding for finding in found["findings"]}
    assert "pairio-node init" in by_name["home"]["fix"]
    assert by_name["seccomp"]["ok"]
    assert ("warm" in by_name) == by_name["sandbox"]["ok"]
    assert by_name["sandbox"]["ok"] == (facts.bwrap_version is not None), by_name["sandbox"]


def test_the_command_ends_with_1_when_what_is_needed_is_missing(tmp_path: Path) -> None:
    code = "from pairio_cli.node_main import main; main()"
    run = subprocess.run(
        [sys.executable, "-c", code, "doctor", "--json"],
        env={"PATH": str(tmp_path), "PAIRIO_HOME": str(tmp_path / "home")},  # no bwrap there
        capture_output=True,
        text=True,
    )
    assert run.returncode == 1, run.stderr
    found = json.loads(run.stdout)
    assert not found["ok"]
    (sandbox,) = (f for f in found["findings"] if f["check"] == "sandbox")
    assert (sandbox["ok"], sandbox["needed"]) == (False, True)
    assert "apt install bubblewrap" in sandbox["fix"]
