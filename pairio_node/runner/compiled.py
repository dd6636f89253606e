"""The SDK, compiled ahead: jobs see its folder read-only, so each would compile its files anew."""

import contextlib
import py_compile
from importlib.util import cache_from_source
from pathlib import Path

from pairio_node.runner.process import sdk_root

__all__ = ["compile_sdk"]


def compile_sdk(root: Path | None = None) -> int:
    """Compile what jobs import of the SDK and was not compiled when it was installed; returns how
    many files that were. Where its folder cannot be written to, jobs go on as before."""
    folder = (root or sdk_root()) / "pairio"
    count = 0
    for path in (folder / "__init__.py", *sorted((folder / "sdk").glob("*.py"))):
        cached = Path(cache_from_source(str(path)))
        if cached.exists() and cached.stat().st_mtime >= path.stat().st_mtime:
            continue
        with contextlib.suppress(OSError, py_compile.PyCompileError):
            py_compile.compile(str(path), doraise=True)
            count += 1
    return count
