"""Secrets that this node's clients gave with jobs: in memory, and in files of mode 0600 so that a
restart does not lose them. A job's secrets go when none of its requests is open any more.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

from pairio_node.errors import UserError
from pairio_protocol.limits import (
    SECRET_LENGTH_MIN,
    SECRET_SIZE_BYTES_MAX,
    SECRETS_SIZE_BYTES_MAX,
)

__all__ = ["Vault", "check_values"]

_Job = tuple[str, str]  # service, job id


def check_values(values: Mapping[str, str]) -> None:
    """Refuse what is no secret, without saying it.

    Raises:
        UserError: a value is too short to be masked, too long, or holds what no file of text does.
    """
    total = 0
    for name, value in values.items():
        try:
            size = len(value.encode())
        except UnicodeEncodeError:
            raise UserError(f"secret {name[:80]!r} is no text", hint="use UTF-8") from None
        total += size
        if len(value) < SECRET_LENGTH_MIN or not value.strip():
            raise UserError(
                f"secret {name[:80]!r} has {len(value)} characters",
                hint=f"use at least {SECRET_LENGTH_MIN}: a shorter one could not be masked",
            )
        if size > SECRET_SIZE_BYTES_MAX or "\0" in value:
            raise UserError(
                f"secret {name[:80]!r} has {size} bytes, or a zero among them",
                hint=f"use text of at most {SECRET_SIZE_BYTES_MAX} bytes",
            )
    if total > SECRETS_SIZE_BYTES_MAX:
        raise UserError(
            f"the secrets have {total} bytes", hint=f"use at most {SECRETS_SIZE_BYTES_MAX} in all"
        )


class Vault:
    """The secrets, by job. Its methods block for a moment: call them in a thread."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._values: dict[_Job, dict[str, str]] = {}
        for path in sorted(folder.glob("*")) if folder.is_dir() else ():
            self._load(path)

    def _load(self, path: Path) -> None:
        try:
            kept = json.loads(path.read_text())
            job = (str(kept["service"]), str(kept["job"]))
            values = {str(name): str(value) for name, value in kept["values"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            path.unlink()  # half written by a start that crashed: its submit was not answered
            return
        self._values[job] = values

    @property
    def held(self) -> frozenset[_Job]:
        """The jobs of which there are secrets."""
        return frozenset(self._values)

    def get(self, service: str, job: str) -> dict[str, str] | None:
        """Return the secrets of a job."""
        return self._values.get((service, job))

    def keep(self, service: str, job: str, values: dict[str, str]) -> None:
        """Keep the secrets of a job, in place of those that were given before."""
        self._folder.mkdir(mode=0o700, exist_ok=True)
        path = self._path(service, job)
        part = path.with_suffix(".part")
        part.unlink(missing_ok=True)
        fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(fd, "w") as file:
            json.dump({"service": service, "job": job, "values": values}, file)
            file.flush()
            os.fsync(file.fileno())
        part.rename(path)
        self._values[service, job] = values

    def drop(self, service: str, job: str) -> None:
        """Forget the secrets of a job."""
        self._path(service, job).unlink(missing_ok=True)
        self._values.pop((service, job), None)

    def _path(self, service: str, job: str) -> Path:
        name = hashlib.sha256(f"{service}/{job}".encode()).hexdigest()[:32]
        return self._folder / name
