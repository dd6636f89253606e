"""Every command: an example in its help, --json where it reads, names completed; light to start."""

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import click
import pytest
import typer

from pairio_cli.main import app
from pairio_cli.node_main import app as node_app
from tests.cli.conftest import Run
from tests.cli.test_commands import APP, SERVICE
from tests.sdk.fake_node import JOB_ID, FakeNode, job


def _commands() -> Iterator[tuple[str, click.Command]]:
    def walk(command: click.Command, path: str) -> Iterator[tuple[str, click.Command]]:
        if isinstance(command, click.Group):
            for name in sorted(command.commands):
                yield from walk(command.commands[name], f"{path} {name}")
        else:
            yield path, command

    for root, name in ((app, "pairio"), (node_app, "pairio-node")):
        yield from walk(typer.main.get_command(root), name)


COMMANDS = dict(_commands())
#: It tells a story as it goes.
_WITHOUT_JSON = {"pairio demo"}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_has_an_example_that_names_it(name: str) -> None:
    help_text = " ".join((COMMANDS[name].help or "").split())
    assert f"Example: {name}" in help_text


@pytest.mark.parametrize("name", sorted(COMMANDS.keys() - _WITHOUT_JSON))
def test_a_command_speaks_json(name: str) -> None:
    options = {option for param in COMMANDS[name].params for option in param.opts}
    assert "--json" in options


# -- completion ------------------------------------------------------------------------------


def _completed(monkeypatch: pytest.MonkeyPatch, run: Run, words: str) -> list[str]:
    monkeypatch.setenv("_PAIRIO_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split(" ")) - 1))
    return run().out.split()


def test_the_shell_is_offered_names_that_the_node_knows(
    node: FakeNode, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.on("GET", "/services", {"services": [SERVICE]})
    node.on("GET", "/services/lab/apps", {"apps": [APP]})
    node.on("GET", "/jobs", {"jobs": [job()], "nextCursor": None})
    node.on("GET", "/batches", {"batches": [{"batchId": "nightly"}, {"batchId": "x\x1b[2J"}]})
    assert _completed(monkeypatch, run, "pairio service show ") == ["lab"]
    assert _completed(monkeypatch, run, "pairio submit hello/") == ["hello/greet"]
    assert _completed(monkeypatch, run, "pairio job show ") == [JOB_ID[-10:]]
    assert _completed(monkeypatch, run, f"pairio job show {JOB_ID[:12]}") == [JOB_ID]
    assert _completed(monkeypatch, run, "pairio batch show ") == ["nightly"]
    assert _completed(monkeypatch, run, "pairio job ls --batch n") == ["nightly"]
    assert "rerun" in _completed(monkeypatch, run, "pairio job re")


def test_without_a_node_nothing_is_offered_and_nothing_is_said(
    node: FakeNode, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PAIRIO_API_URL")
    monkeypatch.setenv("_PAIRIO_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "pairio job show ")
    monkeypatch.setenv("COMP_CWORD", "3")
    offered = run()
    assert (offered.out.strip(), offered.err) == ("", "")


# -- light -----------------------------------------------------------------------------------


def test_a_command_imports_no_more_than_it_needs() -> None:
    code = (
        "import sys\nsys.argv = ['pairio', 'job', 'ls', '--help']\n"
        "from pairio_cli.main import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print(sorted({m.partition('.')[0] for m in sys.modules}), file=sys.stderr)"
    )
    ran: Any = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ}
    )
    loaded = set(eval(ran.stderr))
    assert not loaded & {"trio", "libp2p", "pydantic", "yaml", "httpx", "pairio_node", "anyio"}
