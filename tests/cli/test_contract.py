"""Commands and options that are stable: scripts of labs rely on them, so none of them goes."""

import click
import pytest
import typer

from pairio_cli.main import app
from pairio_cli.node_main import app as node_app

STABLE = [
    "node init",
    "node run --listen --bootstrap --compute --no-compute --cpus --memory-gb --gpus --json",
    "node status --json",
    "service create --json",
    "service ls --json",
    "service show --json",
    "service add-member --roles --json",
    "service offers --json",
    "service accept --json",
    "app install --image --json",
    "app ls --json",
    "token create --json",
    "open --print",
    "submit --service -p -i --cpus --gpus --memory-gb --time-sec --wait --timeout --tag --json",
    "job show --json",
    "job ls --json",
    "job logs",
    "get -o",
    "demo --keep",
]


@pytest.mark.parametrize("line", STABLE)
def test_a_stable_command_has_its_options(line: str) -> None:
    words = line.split()
    found: click.Command = typer.main.get_command(node_app if words[0] == "node" else app)
    for name in [w for w in words if not w.startswith("-") and w != "node"]:
        assert isinstance(found, click.Group)
        assert name in found.commands, f"no command {name!r} any more"
        found = found.commands[name]
    known = {o for p in found.params for o in (*p.opts, *p.secondary_opts)}
    assert {w for w in words if w.startswith("-")} <= known
