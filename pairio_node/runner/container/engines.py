"""Finds the engine, says what it is, and what to do where none can be used."""

import os
from typing import Any

from pairio_node.runner.container.body import Facts, default_user
from pairio_node.runner.container.settings import ContainerSettings, sockets
from pairio_node.runner.supervisor.engine import Engine, EngineError

__all__ = ["NoEngine", "facts_of", "find_engine"]

_ANSWER_S = 5.0


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
            return facts_of(Engine(path))
        except EngineError as error:
            said.append(str(error))
        except (KeyError, TypeError, AttributeError):
            said.append(f"{path}: an engine that answers otherwise than Podman and Docker")
    raise NoEngine(
        "; ".join(said),
        "rootless Podman needs no rights: `systemctl --user enable --now podman.socket`;"
        " Docker's socket is for the group docker, whose members are root on this machine",
    )


def facts_of(engine: Engine) -> Facts:
    """Return what an engine says of itself.

    Raises:
        EngineError: it does not answer.
        KeyError, TypeError, AttributeError: it is none that is known.
    """
    info = engine.ask("GET", "/info", timeout_s=_ANSWER_S)
    version = engine.ask("GET", "/version", timeout_s=_ANSWER_S)
    options = [str(option) for option in info.get("SecurityOptions") or ()]
    podman = "podman" in _components(version)
    rootless = any(option.startswith("name=rootless") for option in options)
    selinux = any(option.startswith("name=selinux") for option in options)
    if podman:  # Podman 4.3 does not say so there
        own = engine.ask("GET", f"/v{version['Version']}/libpod/info", timeout_s=_ANSWER_S)
        security = own["host"]["security"]
        rootless, selinux = bool(security["rootless"]), bool(security.get("selinuxEnabled"))
    # Rootless Podman takes a bound on version 1 without a word, and enforces nothing.
    bounds = bool(info.get("MemoryLimit")) and not (rootless and info.get("CgroupVersion") == "1")
    return Facts(
        socket=engine.path,
        name=f"{'Podman' if podman else 'Docker'} {version.get('Version', '')}".strip(),
        is_podman=podman,
        is_rootless=rootless,
        bounds_memory=bounds,
        has_selinux=selinux,
        user=default_user(),
    )


def _components(version: dict[str, Any]) -> str:
    parts = version.get("Components") or ()
    return " ".join(str(part.get("Name", "")) for part in parts).lower()
