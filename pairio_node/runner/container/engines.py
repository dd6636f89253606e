"""Finds the engine, says what it is, and what to do where none can be used."""

import os
from typing import Any

from pairio_node.runner.container.body import Facts, default_user
from pairio_node.runner.container.settings import ContainerSettings, sockets
from pairio_node.runner.supervisor.engine import Engine, EngineError

__all__ = ["NoEngine", "find_engine"]

_ANSWER_S = 10.0


class NoEngine(Exception):
    """No engine can be used; says why and what to do."""

    def __init__(self, why: str, hint: str) -> None:
        super().__init__(why)
        self.hint = hint


def find_engine(settings: ContainerSettings) -> Facts:
    """Return the first engine that answers; blocks.

    Raises:
        NoEngine: none does.
    """
    if not settings.enabled:
        raise NoEngine("containers are switched off", "set [container] enabled = true in node.toml")
    found = sockets(settings)
    if not found:
        raise NoEngine(
            "no socket of Podman or Docker",
            "install Podman and run `systemctl --user enable --now podman.socket`, or set"
            " [container] socket in node.toml",
        )
    said = []
    for path in found:
        if not os.access(path, os.W_OK):
            said.append(f"{path}: not for this user, or not there")
            continue
        try:
            return _facts(path)
        except EngineError as error:
            said.append(str(error))
    raise NoEngine(
        "; ".join(said),
        "rootless Podman needs no rights: `systemctl --user enable --now podman.socket`;"
        " Docker's socket is for the group docker, whose members are root on this machine",
    )


def _facts(path: str) -> Facts:
    engine = Engine(path)
    info = engine.ask("GET", "/info", timeout_s=_ANSWER_S)
    version = engine.ask("GET", "/version", timeout_s=_ANSWER_S)
    options = [str(option) for option in info.get("SecurityOptions") or ()]
    rootless = any(option.startswith("name=rootless") for option in options)
    podman = "podman" in _components(version)
    # Rootless Podman takes a bound on version 1 without a word, and enforces nothing.
    bounds = bool(info.get("MemoryLimit")) and not (rootless and info.get("CgroupVersion") == "1")
    return Facts(
        socket=path,
        name=f"{'Podman' if podman else 'Docker'} {version.get('Version', '')}".strip(),
        is_podman=podman,
        is_rootless=rootless,
        bounds_memory=bounds,
        has_selinux=any(option.startswith("name=selinux") for option in options),
        user=default_user(rootless),
    )


def _components(version: dict[str, Any]) -> str:
    parts = version.get("Components") or ()
    return " ".join(str(part.get("Name", "")) for part in parts).lower()
