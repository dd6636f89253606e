"""Real nodes: processes of their own, homes of their own, libp2p on loopback."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pairio._http import Api
from tests.integration.kubo import StartKubo, starter


@dataclass
class RunningNode:
    home: Path
    process: "subprocess.Popen[str]"
    info: dict[str, Any]
    inside: tuple[str, ...] = ()

    def get(self, path: str) -> Any:
        return self.call("GET", path)

    def call(self, method: str, path: str, body: Any = None) -> Any:
        found = json.loads((self.home / "api.json").read_text())
        api = Api(found["url"], found["token"])
        try:
            return api.call(method, f"/api/v1/{path}", body)
        finally:
            api.close()

    @property
    def environment(self) -> dict[str, str]:
        clean = {k: v for k, v in os.environ.items() if not k.startswith("PAIRIO_")}
        return {**clean, "PAIRIO_HOME": str(self.home)}

    def cli(self, *arguments: str, program: str = "main") -> "subprocess.CompletedProcess[str]":
        code = f"from pairio_cli.{program} import main; main()"
        return subprocess.run(
            [*self.inside, sys.executable, "-c", code, *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def stop(self) -> int:
        self.process.terminate()
        code = self.process.wait(15)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code


def launch(
    home: Path,
    *arguments: str,
    plants: tuple[str, ...] = (),
    program: str = "pairio_cli.node_entry",
    inside: tuple[str, ...] = (),
) -> RunningNode:
    """Start a node on a home; what it says to nobody goes to HOME.log. `plants` are faults that
    show that tests can fail (`attacks/planted.py`); `program` is what runs in its place, `inside`
    the words before it, such as those for a network namespace."""
    program = "tests.integration.attacks.planted" if plants else program
    argv = [*inside, sys.executable, "-m", program, *plants, "run", "--json"]
    if "none" not in arguments:  # `--listen none`: it listens nowhere
        argv += ["--listen", "/ip4/127.0.0.1/tcp/0"]
    argv += ["--cpus", "2", "--memory-gb", "4"]
    argv += ["--allow-process", "hello_world", *arguments]
    log_path = home.with_name(f"{home.name}.log")
    with log_path.open("a") as log:
        process = subprocess.Popen(
            argv,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={**os.environ, "PAIRIO_HOME": str(home)},
        )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, log_path.read_text()
    return RunningNode(home, process, json.loads(line), inside)


StartNode = Callable[..., RunningNode]


@pytest.fixture
def start_node(tmp_path: Path) -> Iterator[StartNode]:
    """Start nodes by name; they are ended with the test."""
    nodes: list[RunningNode] = []

    def start(
        name: str,
        *arguments: str,
        program: str = "pairio_cli.node_entry",
        inside: tuple[str, ...] = (),
    ) -> RunningNode:
        node = launch(tmp_path / name, *arguments, program=program, inside=inside)
        nodes.append(node)
        return node

    yield start
    for node in nodes:
        if node.process.poll() is None:
            node.stop()


@pytest.fixture
def start_kubo(tmp_path: Path) -> Iterator[StartKubo]:
    """Start real Kubo daemons by name; they are ended with the test."""
    yield from starter(tmp_path)


@pytest.fixture(scope="module")
def start_kubo_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartKubo]:
    """The same for daemons that a whole module of tests uses."""
    yield from starter(tmp_path_factory.mktemp("kubo"))
