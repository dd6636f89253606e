"""What the README says works as printed."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration
ROOT = Path(__file__).parents[2]


def _block(heading: str, language: str) -> str:
    section = (ROOT / "README.md").read_text().split(f"## {heading}\n")[1].split("\n## ")[0]
    found = re.search(rf"```{language}\n(.*?)```", section, re.DOTALL)
    assert found is not None
    return found[1]


def test_the_four_commands_and_the_python_example_run(tmp_path: Path) -> None:
    example = tmp_path / "example.py"
    example.write_text(_block("From Python", "python"))
    commands = _block("Your own network in four commands", "sh").replace(" & ", " > ready & ")
    first, rest = commands.split("\n", 1)
    script = (
        f"set -e\n{first}\nnode=$!\ntrap 'kill $node; wait $node' EXIT\n"
        "until grep -q ready ready; do sleep 0.1; done\n"
        f"{rest}\n{sys.executable} {example}\n"
    )
    bin_dir = Path(sys.executable).parent
    run = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        env={
            **os.environ,
            "PAIRIO_HOME": str(tmp_path / "home"),
            "PATH": f"{bin_dir}:{os.environ['PATH']}",
        },
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert run.returncode == 0, run.stderr
    assert "completed b'Hello, world!'" in run.stdout
    assert "Completed on" in run.stderr
