"""Shell completion as a shell runs it: the script that is installed, in bash; what zsh and fish ask
for, as their scripts ask for it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.test_commands import APP, SERVICE
from tests.sdk.fake_node import JOB_ID, FakeNode, job

#: Where `pairio` is installed.
BIN = Path(sys.executable).parent
BASH = """\
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
_pairio_completion pairio "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture
def lab(node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> FakeNode:
    node.on("GET", "/services", {"services": [SERVICE]})
    node.on("GET", "/services/lab/apps", {"apps": [APP]})
    node.on("GET", "/jobs", {"jobs": [job()], "nextCursor": None})
    monkeypatch.setenv("PATH", f"{BIN}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("PYTEST_CURRENT_TEST", raising=False)
    return node


def _asked(*command: str, **environment: str) -> str:
    ran = subprocess.run(
        command, capture_output=True, text=True, timeout=60, env={**os.environ, **environment}
    )
    assert (ran.returncode, ran.stderr) == (0, ""), ran
    return ran.stdout


@pytest.fixture
def script(lab: FakeNode, tmp_path: Path) -> Path:
    """Return the script for bash that `pairio --install-completion` installs."""
    named = {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}  # whatever runs this test
    path = tmp_path / "completion.sh"
    path.write_text(_asked("pairio", "--show-completion", "bash", **named))
    return path


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("pairio", "batc"), ["batch"]),
        (("pairio", "job", "exp"), ["explain"]),
        (("pairio", "job", "show", ""), [JOB_ID[-10:]]),
        (("pairio", "submit", "hello/"), ["hello/greet"]),
        (("pairio", "job", "ls", "--sta"), ["--status"]),
        (("pairio", "job", "ls", "--status", "comp"), ["completed"]),
    ],
)
def test_bash_is_offered_what_fits(
    script: Path, words: tuple[str, ...], offered: list[str]
) -> None:
    assert _asked("bash", "-c", BASH, "bash", str(script), *words).split() == offered


def test_zsh_and_fish_are_answered(lab: FakeNode) -> None:
    given = {"_TYPER_COMPLETE_ARGS": "pairio job exp"}
    zsh = _asked("pairio", _PAIRIO_COMPLETE="complete_zsh", **given)
    assert '"explain":"Say why a job was a hit or a miss.' in zsh
    action = {"_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    fish = _asked("pairio", _PAIRIO_COMPLETE="complete_fish", **given, **action)
    assert fish.startswith("explain\tSay why")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_script_is_had_for_each_shell(lab: FakeNode, shell: str) -> None:
    named = {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    for program in ("pairio", "pairio-node"):
        text = _asked(program, "--show-completion", shell, **named)
        assert f"complete_{shell}" in text
