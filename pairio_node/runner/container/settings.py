"""`[container]` in node.toml: which engine, and how much its images may take.

[container]
socket = "/run/user/1000/podman/podman.sock"    # default: rootless Podman, Podman, Docker
images_bytes_max = 20000000000
"""

import os
from dataclasses import dataclass
from typing import Any, Final

from pairio_node.errors import UserError

__all__ = ["ContainerSettings", "parse_container", "sockets"]

_GIB: Final = 1024**3


@dataclass(frozen=True)
class ContainerSettings:
    """Settings of the engine of containers. `enabled` is false where none is to be used."""

    #: whether one is used.
    enabled: bool = True
    #: path of its socket. Default: rootless Podman, Podman, Docker: the first that is there and
    #: answers.
    socket: str = ""
    #: bytes that one image, and all that the node has loaded, may take. Default: 21474836480 (20
    #: GiB).
    images_bytes_max: int = 20 * _GIB


def parse_container(raw: Any) -> ContainerSettings:
    """Return the settings of the table `[container]`.

    Raises:
        UserError: an unknown setting, a value of the wrong type or range.
    """
    if not isinstance(raw, dict):
        raise UserError(f"setting container is {raw!r}", hint="give it a table: [container]")
    known = ("enabled", "socket", "images_bytes_max")
    for name in raw:
        if name not in known:
            raise UserError(
                f"unknown setting container.{name}", hint=f"settings: {', '.join(known)}"
            )
    enabled = raw.get("enabled", True)
    socket = raw.get("socket", "")
    size_bytes = raw.get("images_bytes_max", ContainerSettings.images_bytes_max)
    if not isinstance(enabled, bool):
        raise UserError(f"setting container.enabled is {enabled!r}", hint="use true or false")
    path = socket.removeprefix("unix://") if isinstance(socket, str) else None
    if path is None or (path and not path.startswith("/")):
        raise UserError(
            f"setting container.socket is {socket!r}",
            hint="use the path of a unix socket, such as /var/run/docker.sock",
        )
    if isinstance(size_bytes, bool) or not isinstance(size_bytes, int) or size_bytes < 1:
        raise UserError(
            f"setting container.images_bytes_max is {size_bytes!r}", hint="use a number of bytes"
        )
    return ContainerSettings(enabled, path, size_bytes)


def sockets(settings: ContainerSettings) -> list[str]:
    """Return the sockets where an engine may be: the one that is set, else those that are there,
    the one with the least rights first."""
    if settings.socket:
        return [settings.socket]
    user_folder = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.geteuid()}"
    usual = [f"{user_folder}/podman/podman.sock"]
    usual += ["/run/podman/podman.sock", "/var/run/docker.sock"]
    return [path for path in usual if os.path.exists(path)]
