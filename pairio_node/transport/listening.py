"""Where a node listens: whether a port is free, and at which addresses others may reach it."""

import socket

import psutil
from multiaddr import Multiaddr

from pairio_node.transport.base import TransportError

__all__ = ["check_free", "own_ips"]


def check_free(address: Multiaddr) -> None:
    """Say in words that a port is taken: libp2p's SO_REUSEPORT lets two nodes share one."""
    text = str(address)
    parts = text.split("/")
    if len(parts) < 5 or parts[1] not in ("ip4", "ip6") or parts[3] != "tcp":
        raise TransportError(
            f"cannot listen on {text!r}", hint="use a multiaddr such as /ip4/0.0.0.0/tcp/4101"
        )
    family = socket.AF_INET if parts[1] == "ip4" else socket.AF_INET6
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((parts[2], int(parts[4])))
        except (OSError, ValueError) as error:
            raise TransportError(
                f"cannot listen on {text}: {getattr(error, 'strerror', error)}",
                hint="another program has the port: choose another one with --listen",
            ) from None


def own_ips() -> list[str]:
    """Return the IPv4 addresses of this machine, those that only it can dial last."""
    found = [
        address.address
        for addresses in psutil.net_if_addrs().values()
        for address in addresses
        if address.family == socket.AF_INET
    ]
    return sorted(found, key=lambda ip: ip.startswith("127."))
