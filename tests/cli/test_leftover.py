"""A leftover of the original Pairio is named before it does harm, and looking costs nothing."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pairio_cli.leftover import find_leftover
from tests.cli.conftest import Run

ROOT = Path(__file__).parents[2]


def _dist_info(folder: Path, version: str = "0.5.9") -> None:
    info = folder / f"pairio-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: pairio\nVersion: {version}\n")


def _files(folder: Path) -> None:
    (folder / "pairio" / "common").mkdir(parents=True)
    (folder / "pairio" / "__init__.py").write_text("raise RuntimeError('the original')\n")
    (folder / "pairio" / "common" / "api_requests.py").write_text("")


def _script(folder: Path, module: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "pairio").write_text(f"#!/usr/bin/python3\nfrom {module} import main\nmain()\n")


def test_its_metadata_is_found_and_the_version_named(tmp_path: Path) -> None:
    _dist_info(tmp_path)
    assert find_leftover([str(tmp_path)], "") == (
        f"the original Pairio 0.5.9 is installed in {tmp_path}"
    )
    (tmp_path / "pairio-0.5.9.dist-info").rename(tmp_path / "pairio-0.5.9.egg-info")
    assert "0.5.9" in str(find_leftover(["", "/nowhere", str(tmp_path)], ""))


def test_its_files_are_found_without_metadata(tmp_path: Path) -> None:
    _files(tmp_path)
    found = find_leftover([str(tmp_path)], "")
    assert found == f"files of the original Pairio lie in {tmp_path / 'pairio'}"


def test_its_command_is_found(tmp_path: Path) -> None:
    _script(tmp_path / "bin", "pairio.cli")
    assert find_leftover([], str(tmp_path / "bin")) == (
        f"{tmp_path / 'bin' / 'pairio'} is a command of the original Pairio"
    )


def test_this_project_is_no_leftover(tmp_path: Path) -> None:
    _dist_info(tmp_path, "1.0.0.dev0")
    _script(tmp_path / "bin", "pairio_cli.main")
    (tmp_path / "pairio-helper-0.1.dist-info").mkdir()
    assert find_leftover([str(tmp_path), str(ROOT / "sdk")], str(tmp_path / "bin")) is None
    assert find_leftover(sys.path, str(Path(sys.executable).parent)) is None


@pytest.mark.parametrize("program", ["pairio", "pairio-node"])
def test_both_commands_explain_it(
    program: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _dist_info(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    left = run("--help", program=program)
    assert (left.code, left.out) == (1, "")
    assert "the original Pairio 0.5.9 is installed in" in left.err
    assert "\n\nhint: the two cannot be in one environment" in left.err


@pytest.mark.parametrize("module", ["main", "node_main"])
def test_its_package_in_front_of_ours_is_explained(module: str, tmp_path: Path) -> None:
    _files(tmp_path)
    code = f"from pairio_cli.{module} import main; main()"
    run = subprocess.run(
        [sys.executable, "-c", code, "--help"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert (run.returncode, run.stdout) == (1, "")
    assert "files of the original Pairio lie in" in run.stderr
    assert "Traceback" not in run.stderr


def test_its_command_meets_words_in_our_package(capsys: pytest.CaptureFixture[str]) -> None:
    from pairio.cli import main

    with pytest.raises(SystemExit) as left:
        main()
    assert "is a command of the original Pairio" in str(left.value.code)
    assert "hint: " in str(left.value.code)


def test_looking_takes_less_than_20_ms() -> None:
    took = []
    for _ in range(5):
        began = time.perf_counter()
        find_leftover(sys.path, str(Path(sys.executable).parent))
        took.append(time.perf_counter() - began)
    assert min(took) < 0.02
