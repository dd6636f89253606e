"""Homes behind routers: network namespaces with address translation, and a street between them.

    home (10.214.1.2) - router - street - router - home (10.214.2.2)
                                  |
                          open (203.0.113.1)

A router translates addresses and drops what nobody inside has asked for, as those at home do.
"""

import contextlib
import os
import shutil
import subprocess

__all__ = ["Nats", "why_no_nats"]


def _run(*argv: str) -> None:
    run = subprocess.run(argv, capture_output=True, text=True, timeout=20)
    if run.returncode != 0:
        raise OSError(f"{' '.join(argv)}: {run.stderr.strip()}")


def why_no_nats() -> str:
    """Return why this machine cannot have routers in namespaces; empty when it can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    missing = [name for name in ("ip", "iptables") if shutil.which(name) is None]
    if missing:
        return f"routers in namespaces need the program {missing[0]}"
    try:
        Nats(1).remove()
    except OSError as error:
        return f"no routers in namespaces here: {error}"
    return ""


class Nats:
    """`homes`: the words that run something in each; `street`: the same for where all see it."""

    open_host = "203.0.113.1"
    _made = 0

    def __init__(self, homes: int = 2) -> None:
        Nats._made += 1
        self._stem = f"pairio-nat-{os.getpid()}-{Nats._made}"
        self._names: list[str] = []
        try:
            self._add("street")
            self._ip("street", "link", "add", "br0", "type", "bridge")
            self._ip("street", "addr", "add", f"{self.open_host}/24", "dev", "br0")
            self._ip("street", "link", "set", "br0", "up")
            for number in range(1, homes + 1):
                self._add_home(number)
        except OSError:
            self.remove()
            raise
        self.street = self._inside("street")
        self.homes = [self._inside(f"home{number}") for number in range(1, homes + 1)]

    def _name(self, which: str) -> str:
        return f"{self._stem}-{which}"

    def _inside(self, which: str) -> tuple[str, ...]:
        return ("ip", "netns", "exec", self._name(which))

    def _add(self, which: str) -> None:
        _run("ip", "netns", "add", self._name(which))
        self._names.append(self._name(which))
        self._ip(which, "link", "set", "lo", "up")

    def _ip(self, which: str, *arguments: str) -> None:
        _run("ip", "-n", self._name(which), *arguments)

    def _wire(self, one: str, device: str, other: str, far: str) -> None:
        ends = ("type", "veth", "peer", "name", far, "netns", self._name(other))
        _run("ip", "link", "add", device, "netns", self._name(one), *ends)

    def _add_home(self, number: int) -> None:
        router, home, inner = f"router{number}", f"home{number}", f"10.214.{number}"
        self._add(router)
        self._add(home)
        self._wire(router, "wan", "street", f"up{number}")
        self._ip("street", "link", "set", f"up{number}", "master", "br0", "up")
        self._ip(router, "addr", "add", f"203.0.113.{number + 1}/24", "dev", "wan")
        self._ip(router, "link", "set", "wan", "up")
        self._wire(router, "lan", home, "eth0")
        self._ip(router, "addr", "add", f"{inner}.1/24", "dev", "lan")
        self._ip(router, "link", "set", "lan", "up")
        self._ip(home, "addr", "add", f"{inner}.2/24", "dev", "eth0")
        self._ip(home, "link", "set", "eth0", "up")
        self._ip(home, "route", "add", "default", "via", f"{inner}.1")
        inside = self._inside(router)
        _run(*inside, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
        known = ("-m", "conntrack", "--ctstate", "ESTABLISHED,RELATED", "-j", "ACCEPT")
        for rule in (
            ("-t", "nat", "-A", "POSTROUTING", "-o", "wan", "-j", "MASQUERADE"),
            ("-A", "FORWARD", "-i", "lan", "-j", "ACCEPT"),
            ("-A", "FORWARD", *known),
            ("-P", "FORWARD", "DROP"),
            ("-A", "INPUT", "-i", "wan", *known),
            ("-A", "INPUT", "-i", "wan", "-j", "DROP"),
        ):
            _run(*inside, "iptables", "-w", *rule)

    def remove(self) -> None:
        """Take the namespaces down."""
        while self._names:
            with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                _run("ip", "netns", "del", self._names.pop())
