"""Finds a leftover of the original Pairio (0.5.9 on PyPI), which has the same package name.

Installed into one environment the two overwrite each other's files, and what then fails has no
resemblance to the cause. Only names of files are looked at: this runs at every start.
"""

import os
import sys
from collections.abc import Sequence

from pairio_cli.output import fail

__all__ = ["find_leftover", "refuse_leftover"]

#: A file that every version of the original has and this project has not.
_ORIGINALS_FILE = os.path.join("pairio", "common", "api_requests.py")
_HINT = (
    "the two cannot be in one environment: make a new one for this pairio, or run"
    " `python -m pip uninstall pairio` until it finds none, then install this pairio again"
)


def find_leftover(folders: Sequence[str], scripts: str) -> str | None:
    """Return what of the original lies in `folders` (sys.path) or `scripts`, None if nothing."""
    for folder in folders:
        try:
            names = os.listdir(folder or ".")
        except OSError:
            continue  # a zip file, or not there
        for name in names:
            if name.startswith("pairio-0.") and name.endswith((".dist-info", ".egg-info")):
                version = name.removeprefix("pairio-").rpartition(".")[0]
                return f"the original Pairio {version} is installed in {folder}"
        if "pairio" in names and os.path.exists(os.path.join(folder, _ORIGINALS_FILE)):
            return f"files of the original Pairio lie in {os.path.join(folder, 'pairio')}"
    return _find_script(os.path.join(scripts, "pairio"))


def _find_script(path: str) -> str | None:
    try:
        with open(path, errors="replace") as file:
            text = file.read(4096)
    except OSError:
        return None
    if "pairio.cli" in text and "pairio_cli" not in text:
        return f"{path} is a command of the original Pairio"
    return None


def refuse_leftover() -> None:
    """End the program in words when the original is in the way."""
    found = find_leftover(sys.path, os.path.dirname(sys.executable))
    if found is not None:
        fail(found, _HINT, 1)
