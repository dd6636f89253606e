"""Met by a leftover command of the original Pairio, which calls `pairio.cli:main`."""

import sys

__all__ = ["main"]


def main() -> None:
    """Say whose command this is."""
    sys.exit(
        f"error: {sys.argv[0]} is a command of the original Pairio, not of this project\n\n"
        "hint: remove it, then install this pairio again: its command stands in the same place"
    )
