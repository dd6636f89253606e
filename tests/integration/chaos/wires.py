"""Network namespaces that can be cut apart: two sides, each with its own network, and a hub."""

import ctypes
import os
import shutil
import socket
import subprocess
import threading

__all__ = ["Wires", "connect", "why_no_wires"]

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def _ip(*arguments: str) -> None:
    run = subprocess.run(["ip", *arguments], capture_output=True, text=True, timeout=20)
    if run.returncode != 0:
        raise OSError(f"ip {' '.join(arguments)}: {run.stderr.strip()}")


def why_no_wires() -> str:
    """Return why this machine cannot have network namespaces; empty when it can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "network namespaces need the program `ip` (iproute2)"
    try:
        Wires().remove()
    except OSError as error:
        return f"no network namespaces here: {error}"
    return ""


class Wires:
    """Two sides (`sides`: namespaces, `hosts`: their addresses) joined by a bridge in a hub.

    Cutting takes the bridge down: packets vanish, nobody is told, as when a cable is pulled far
    away.
    """

    _made = 0

    def __init__(self) -> None:
        Wires._made += 1
        stem = f"pairio-{os.getpid()}-{Wires._made}"
        self._hub = f"{stem}-hub"
        self.sides = (f"{stem}-a", f"{stem}-b")
        self.hosts = ("10.213.0.1", "10.213.0.2")
        self._names: list[str] = []
        try:
            for name in (self._hub, *self.sides):
                _ip("netns", "add", name)
                self._names.append(name)
                _ip("-n", name, "link", "set", "lo", "up")
            _ip("-n", self._hub, "link", "add", "br0", "type", "bridge")
            for number, (side, host) in enumerate(zip(self.sides, self.hosts, strict=True)):
                port = f"up{number}"
                peer = ("type", "veth", "peer", "name", port, "netns", self._hub)
                _ip("link", "add", "wan", "netns", side, *peer)
                _ip("-n", self._hub, "link", "set", port, "master", "br0", "up")
                _ip("-n", side, "addr", "add", f"{host}/24", "dev", "wan")
                _ip("-n", side, "link", "set", "wan", "up")
            self.heal()
        except OSError:
            self.remove()
            raise

    def cut(self) -> None:
        """Nothing passes between the sides any more."""
        _ip("-n", self._hub, "link", "set", "br0", "down")

    def heal(self) -> None:
        """What is sent arrives again."""
        _ip("-n", self._hub, "link", "set", "br0", "up")

    def remove(self) -> None:
        """Take the namespaces down."""
        while self._names:
            _ip("netns", "del", self._names.pop())


def connect(namespace: str, port: int, timeout_s: float) -> socket.socket:
    """Return a connection to a port on loopback, made inside `namespace` (empty: here)."""
    if not namespace:
        return socket.create_connection(("127.0.0.1", port), timeout_s)
    made: list[socket.socket] = []
    failed: list[OSError] = []

    def inside() -> None:  # a thread of its own: it stays in the namespace until it ends
        try:
            with open(f"/run/netns/{namespace}") as file:
                if _libc.setns(file.fileno(), _CLONE_NEWNET) != 0:
                    raise OSError(ctypes.get_errno(), f"setns {namespace}")
            made.append(socket.create_connection(("127.0.0.1", port), timeout_s))
        except OSError as error:
            failed.append(error)

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return made[0]
