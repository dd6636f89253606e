"""What jobs import of the SDK is compiled once by the node, and not in each job."""

import os
import shutil
from pathlib import Path

from pairio_node.runner.compiled import compile_sdk
from pairio_node.runner.process import sdk_root


def _copy(folder: Path) -> Path:
    shutil.copytree(
        sdk_root() / "pairio", folder / "pairio", ignore=shutil.ignore_patterns("__pycache__")
    )
    return folder


def test_what_is_not_compiled_or_was_changed_is_compiled(tmp_path: Path) -> None:
    root = _copy(tmp_path)
    files = [root / "pairio" / "__init__.py", *(root / "pairio" / "sdk").glob("*.py")]
    assert compile_sdk(root) == len(files)
    assert compile_sdk(root) == 0
    changed = root / "pairio" / "sdk" / "_app.py"
    os.utime(changed, (2**31, 2**31))
    assert compile_sdk(root) == 1
    assert len(list(root.rglob("*.pyc"))) == len(files)


def test_a_folder_that_takes_nothing_is_left_as_it_is(tmp_path: Path) -> None:
    root = _copy(tmp_path)
    for folder in (root / "pairio", root / "pairio" / "sdk"):
        (folder / "__pycache__").write_text("no folder")
    assert compile_sdk(root) == 0
