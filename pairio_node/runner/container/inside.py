"""Run in a container by its runner's probe: which bounds are there, then what gets out."""

import importlib
from pathlib import Path

__all__ = ["MEMORY_MARK", "PROCESSES_MARK", "main"]

MEMORY_MARK = "PAIRIO-MEMORY "
PROCESSES_MARK = "PAIRIO-PROCESSES "


def bound(*names: str) -> int:
    """Return the first of these bounds that the control group has; 0: none is seen."""
    for name in names:
        try:
            text = Path("/sys/fs/cgroup", name).read_text().strip()
        except OSError:
            continue
        return int(text) if text.isdigit() else 0
    return 0


def main() -> None:
    """Say the bound, and try what the argument says."""
    importlib.import_module("pairio.sdk")  # an app has to find it
    print(f"{MEMORY_MARK}{bound('memory.max', 'memory/memory.limit_in_bytes')}", flush=True)
    print(f"{PROCESSES_MARK}{bound('pids.max', 'pids/pids.max')}", flush=True)
    importlib.import_module("probe").main()  # which lies beside this file then


if __name__ == "__main__":
    main()
