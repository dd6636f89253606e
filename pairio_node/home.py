"""A node's home: one directory with its key, settings, database, blocks and jobs.

`PAIRIO_HOME`, or the user's data directory. Locked while a node runs on it.
"""

import fcntl
import json
import os
import re
import secrets
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs

from pairio_node.errors import ConflictError, UserError
from pairio_protocol.signing import SigningKey

__all__ = ["Home", "default_home"]

_KEY_TEXT = re.compile(r"^pairio-node-key-v1 ed25519 ([0-9a-f]{64})\n?$")

#: Earlier starts that a home remembers.
_BOOTS_MAX = 1024
_MACHINE_ID = Path("/etc/machine-id")

_PORT_LOWEST = 10_240
_PORT_HIGHEST = 32_768


def default_home() -> Path:
    """Return PAIRIO_HOME, or where a user's data lies on this system."""
    named = os.environ.get("PAIRIO_HOME")
    return Path(named).absolute() if named else Path(platformdirs.user_data_dir("pairio", False))


@dataclass(frozen=True)
class Ports:
    """Chosen once and kept, so that yesterday's links and addresses work."""

    api: int
    gateway: int
    listen: int


class Home:
    """The directory. `open` makes or completes it; nothing that is there is destroyed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock_fd: int | None = None

    @property
    def key_path(self) -> Path:
        """Where the node's key lies."""
        return self.path / "node.key"

    @staticmethod
    def open(path: Path | None = None, seed: bytes | None = None) -> "Home":
        """Return the home at `path`, made if it is missing, completed if it has no key: with
        `seed`, else with a new one.

        Raises:
            UserError: not a directory, not writable, a corrupt key or port file.
        """
        home = Home(path or default_home())
        try:
            home.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            for name in ("blocks", "jobs"):
                (home.path / name).mkdir(mode=0o700, exist_ok=True)
            if not home.key_path.exists():
                home._write_key(seed or secrets.token_bytes(32))
            if not (home.path / "ports.json").exists():
                api, gateway, listen = _free_ports(3)
                ports = {"api": api, "gateway": gateway, "listen": listen}
                home._write("ports.json", json.dumps(ports))
        except OSError as error:
            raise UserError(
                f"cannot use {home.path} as a home: {error.strerror}",
                hint="set PAIRIO_HOME to a directory of yours",
            ) from None
        home.key()
        home.ports()
        return home

    def _write(self, name: str, text: str) -> None:
        """Write a file 0600, whole or not at all."""
        temporary = self.path / f".{name}.{secrets.token_hex(4)}"
        try:
            with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            temporary.rename(self.path / name)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise

    def _write_key(self, seed: bytes) -> None:
        self._write("node.key", f"pairio-node-key-v1 ed25519 {seed.hex()}\n")

    @staticmethod
    def install_key(path: Path | None, seed: bytes, replace: bool) -> tuple["Home", Path | None]:
        """Give the home at `path` a key from elsewhere; return it and where the old key went.

        Raises:
            ConflictError: a node runs on it, or it has another key and that is not to be replaced.
        """
        home = Home.open(path, seed)
        home.lock()
        try:
            if home.seed() == seed:
                return home, None
            old = home.key().peer
            if not replace:
                raise ConflictError(
                    f"{home.path} has another key already: it is node {old}",
                    hint="use another home (--home DIR), or --replace: the old key is kept aside",
                )
            home._write(f"node.key.{old}", home.key_path.read_text())
            home._write_key(seed)
            return home, home.path / f"node.key.{old}"
        finally:
            home.unlock()

    def seed(self) -> bytes:
        """Return the 32 secret bytes of the node's key."""
        path = self.key_path
        try:
            match = _KEY_TEXT.match(path.read_text())
        except (OSError, UnicodeDecodeError):
            match = None
        if match is None:
            raise UserError(
                f"{path} is not a node key",
                hint="restore it from a backup; or move it away and the node begins as a new one"
                " that no service knows",
            )
        return bytes.fromhex(match[1])

    def key(self) -> SigningKey:
        """Return the node's key."""
        return SigningKey(self.seed())

    def ports(self) -> Ports:
        """Return the ports chosen at the first start."""
        path = self.path / "ports.json"
        try:
            raw = json.loads(path.read_text())
            ports = Ports(int(raw["api"]), int(raw["gateway"]), int(raw["listen"]))
            if not all(0 < port < 65536 for port in (ports.api, ports.gateway, ports.listen)):
                raise ValueError(ports)
        except (OSError, ValueError, KeyError, TypeError, OverflowError):
            raise UserError(
                f"{path} is corrupt", hint="move it away: the node chooses new ports"
            ) from None
        return ports

    def secret(self, name: str) -> bytes:
        """Return 32 secret bytes kept in a file of this name (0600), made at first use."""
        path = self.path / name
        if not path.exists():
            self._write(name, secrets.token_hex(32))
        try:
            secret = bytes.fromhex(path.read_text())
            if len(secret) != 32:  # an empty one would let anybody make what it is to prove
                raise ValueError(len(secret))
        except (OSError, ValueError):
            raise UserError(f"{path} is corrupt", hint="move it away: a new one is made") from None
        return secret

    def lock(self) -> None:
        """Take the home for this process, or raise ConflictError naming who has it."""
        fd = os.open(self.path / "node.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.read(fd, 32).decode(errors="replace").strip() or "unknown"
            os.close(fd)
            raise ConflictError(
                f"a node runs on {self.path} already (process {holder})",
                hint="stop it, or use another home: PAIRIO_HOME=DIR",
            ) from None
        os.ftruncate(fd, 0)
        os.write(fd, str(os.getpid()).encode())
        self._lock_fd = fd

    def unlock(self) -> None:
        """Let the home go."""
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None

    def begin_boot(self) -> tuple[bytes, tuple[bytes, ...]]:
        """Return a new boot for this start, and those of earlier starts on this very home.

        A copy of a home has none: what the other one began is not its own.
        """
        path = self.path / "boots.json"
        machine = _MACHINE_ID.read_text().strip() if _MACHINE_ID.exists() else ""
        place = f"{machine} {self.path.stat().st_ino}"
        past: list[str] = []
        try:
            raw = json.loads(path.read_text())
            if raw["place"] == place:
                past = [boot for boot in raw["boots"] if len(bytes.fromhex(boot)) == 16]
        except (OSError, ValueError, KeyError, TypeError):
            past = []  # missing or corrupt: the node knows of no earlier start
        boot = secrets.token_bytes(16)
        boots = [*past, boot.hex()][-_BOOTS_MAX:]
        self._write("boots.json", json.dumps({"place": place, "boots": boots}))
        return boot, tuple(map(bytes.fromhex, past))

    def write_api(self, info: dict[str, Any]) -> None:
        """Tell local clients where the API is (api.json, 0600)."""
        self._write("api.json", json.dumps(info))

    def last_addresses(self) -> list[str]:
        """Return where the node was reached before it crashed; empty after a clean end."""
        try:
            return [str(a) for a in json.loads((self.path / "api.json").read_text())["addresses"]]
        except (OSError, ValueError, KeyError, TypeError):
            return []

    def remove_api(self) -> None:
        """The API is gone."""
        (self.path / "api.json").unlink(missing_ok=True)


def _free_ports(count: int) -> list[int]:
    """Return ports that are free now and that no system hands to outgoing connections: those
    (32768 and above on Linux, 49152 on others) would be taken one day when the node starts."""
    found: list[int] = []
    for _ in range(1000):
        port = _PORT_LOWEST + secrets.randbelow(_PORT_HIGHEST - _PORT_LOWEST)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port not in found:
            found.append(port)
        if len(found) == count:
            return found
    raise UserError("no free port was found", hint="set api_port and listen in node.toml")
