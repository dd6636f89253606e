"""An app's directory on this machine: its specification, and which files are its code."""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import trio

from pairio_node.errors import NotFoundError, UserError
from pairio_node.runner.base import Runner, bare_spec
from pairio_protocol.printable import printable

__all__ = ["find_app", "is_left_out", "load_spec"]

_LEFT_OUT = {
    "__pycache__",
    ".git",
    ".venv",
    ".mypy_cache",
    ".ruff_cache",
    ".pytest_cache",
    ".DS_Store",
}
_SPEC_TIME_MS = 60_000
_SPEC_SIZE_BYTES_MAX = 1024 * 1024


def find_app(source: str) -> Path:
    """Return the directory of an app: a path on this machine, or the name of a shipped app.

    Raises:
        NotFoundError: neither; names the shipped ones.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return path.resolve()
    import importlib.util

    package = importlib.util.find_spec("pairio_apps")
    roots = [Path(p) for p in (package.submodule_search_locations or [])] if package else []
    shipped = sorted(d.name for root in roots for d in root.iterdir() if (d / "main.py").exists())
    for root in roots:
        if source in shipped and (root / source).is_dir():
            return (root / source).resolve()
    raise NotFoundError(
        f"no app {source!r}: it is no directory on this machine and no shipped app",
        hint=f"give a directory with a main.py, or one of: {', '.join(shipped)}",
    )


def is_left_out(relative: str) -> bool:
    """Say whether a file of an app's directory is not code: caches, version control."""
    return any(part in _LEFT_OUT for part in relative.split("/")) or relative.endswith(".pyc")


async def load_spec(directory: Path, runner: Runner | None) -> dict[str, Any]:
    """Return the app's specification; main.py is run in the sandbox when spec.json is missing or
    older than it.

    Raises:
        UserError: no specification can be had; says why, with what the app printed.
    """
    spec_file, main_file = directory / "spec.json", directory / "main.py"
    fresh = spec_file.exists() and (
        not main_file.exists() or spec_file.stat().st_mtime >= main_file.stat().st_mtime
    )
    if not fresh and not main_file.exists():
        raise UserError(
            f"{directory} is no app: it has neither spec.json nor main.py",
            hint="see docs/app-contract.md",
        )
    if not fresh and runner is None:
        raise UserError(
            "main.py would have to be run to say what the app is, and there is no sandbox here",
            hint="see `pairio-node doctor`, or write its spec.json (docs/app-contract.md)",
        )
    text = spec_file.read_text() if fresh or runner is None else await _made(directory, runner)
    try:
        spec = json.loads(text)
    except ValueError as error:
        raise UserError(f"{spec_file} is not JSON: {error}") from None
    if not isinstance(spec, dict):
        raise UserError(f"{spec_file} holds no map")
    return spec


async def _made(directory: Path, runner: Runner) -> str:
    """Run main.py so that it writes its specification."""
    folder = Path(tempfile.mkdtemp(prefix="pairio-spec-"))
    try:
        bundle = folder / "app"
        await trio.to_thread.run_sync(
            lambda: shutil.copytree(
                directory, bundle, ignore=lambda _, names: [n for n in names if is_left_out(n)]
            )
        )
        inside = "/tmp" if runner.isolation != "none" else str(folder / "work" / "tmp")
        spec = bare_spec(
            "spec",
            bundle,
            folder / "work",
            memory_mib=2048,
            time_ms=_SPEC_TIME_MS,
            environment={"SPEC_OUTPUT_FILE": f"{inside}/spec.json"},
        )
        outcome = await runner.run(spec, trio.Event())
        made = folder / "work" / "tmp" / "spec.json"
        if outcome.status != "completed" or not made.is_file() or made.is_symlink():
            said = printable(outcome.console.decode(errors="replace")).strip()[-1000:]
            raise UserError(f"main.py wrote no specification: {outcome.error}\n{said}")
        if made.stat().st_size > _SPEC_SIZE_BYTES_MAX:
            raise UserError("the specification is larger than 1 MiB")
        return made.read_text()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
