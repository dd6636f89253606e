"""Run in a container by its runner's probe: which bound of memory is there, then what gets out."""

import importlib
from pathlib import Path

__all__ = ["MEMORY_MARK", "main"]

MEMORY_MARK = "PAIRIO-MEMORY "
_BOUNDS = ("memory.max", "memory/memory.limit_in_bytes")


def memory_bound_bytes() -> int:
    """Return the bound of memory that the control group has; 0: none is seen."""
    for name in _BOUNDS:
        try:
            text = Path("/sys/fs/cgroup", name).read_text().strip()
        except OSError:
            continue
        return int(text) if text.isdigit() else 0
    return 0


def main() -> None:
    """Say the bound, and try what the argument says."""
    importlib.import_module("pairio.sdk")  # an app has to find it
    print(f"{MEMORY_MARK}{memory_bound_bytes()}", flush=True)
    importlib.import_module("probe").main()  # which lies beside this file then


if __name__ == "__main__":
    main()
