"""A job's secrets in its supervisor: handed to the sandbox through memory, masked in the console.

Standard library only, and nothing here is written to a disk.
"""

import ctypes
import os
import re
from collections.abc import Mapping
from typing import Any

__all__ = ["Mask", "secret_fds", "secret_word"]

_PR_SET_DUMPABLE = 4
#: A line of a secret that is shorter is masked only together with the others.
_LINE_BYTES_MIN = 8


def secret_word(name: str) -> str:
    """Return what stands in a plan's `argv` for the descriptor of a secret."""
    return f"{{secret:{name}}}"


def secret_fds(plan: Mapping[str, Any]) -> dict[str, int]:
    """Return descriptors that give the plan's secrets, by the words that stand for them. The caller
    closes them. This process leaves no memory behind from now on, should it crash."""
    values: Mapping[str, str] = plan.get("secrets") or {}
    if values:
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    fds = {}
    for name, value in values.items():
        fd = fds[secret_word(name)] = os.memfd_create("secret", os.MFD_CLOEXEC)
        os.pwrite(fd, value.encode(), 0)
    return fds


class Mask:
    """Replaces secrets in what a job writes, also where one comes in several pieces. What may be
    the beginning of one is held back until more comes, or `end`."""

    def __init__(self, secrets: Mapping[str, str]) -> None:
        patterns: dict[bytes, bytes] = {}
        for name, value in secrets.items():
            told = f"[secret {name}]".encode()
            whole = value.encode()
            for part in (whole, whole.strip(), *whole.splitlines()):
                if len(part.strip()) >= _LINE_BYTES_MIN:
                    patterns.setdefault(part.strip(b"\r\n"), told)
        self._told = patterns
        longest_first = sorted(patterns, key=len, reverse=True)
        self._any = re.compile(b"|".join(map(re.escape, longest_first))) if patterns else None
        self._held = b""

    def add(self, data: bytes) -> bytes:
        """Return what may be written of all that came so far."""
        if self._any is None:
            return data
        data = self._held + data
        cut = len(data) - self._beginning(data)
        parts, at = [], 0
        for match in self._any.finditer(data):
            if match.start() >= cut:
                break
            parts += [data[at : match.start()], self._told[match[0]]]
            at = match.end()
        cut = max(cut, at)
        self._held = data[cut:]
        return b"".join((*parts, data[at:cut]))

    def end(self) -> bytes:
        """Return what was held back."""
        held, self._held = self._held, b""
        return self._any.sub(lambda match: self._told[match[0]], held) if self._any else held

    def _beginning(self, data: bytes) -> int:
        """Return how many bytes at the end may be the beginning of a secret."""
        found = 0
        for pattern in self._told:
            at = data.find(pattern[:1], max(0, len(data) - len(pattern) + 1))
            while at >= 0 and not pattern.startswith(data[at:]):
                at = data.find(pattern[:1], at + 1)
            if at >= 0:
                found = max(found, len(data) - at)
        return found
