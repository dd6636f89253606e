"""The pages that a newcomer follows, followed to the letter by real nodes."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pairio.client import _jobs
from tests.integration.compare.findings import ROWS, table
from tests.integration.conftest import RunningNode, StartNode
from tests.integration.pages import Block, Reader, blocks

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]

ROOT = Path(__file__).parents[2]
#: "Five minutes" is for whoever reads and types; a machine that follows must be done long before.
TUTORIAL_S_MAX = 120.0


class Machines:
    """Homes as they would be on machines of their own, and the commands run there."""

    def __init__(self, top: Path, *names: str) -> None:
        self._homes = {name: top / name for name in names}
        self.running: list[RunningNode] = []
        for home in self._homes.values():
            home.mkdir(mode=0o700)
            (home / "node.toml").write_text('listen = ["/ip4/127.0.0.1/tcp/0"]\ncpus = 2\n')

    def run(self, machine: str, argv: list[str]) -> "subprocess.CompletedProcess[str]":
        """Run a command; a node that stays in the foreground goes on, and gives its first line."""
        home = self._homes[machine]
        if argv == ["pairio-node", "run"]:
            return self._start(home)
        program = {"pairio": "main", "pairio-node": "node_main"}[argv[0]]
        return RunningNode(home, None, {}).cli(*argv[1:], program=program)  # type: ignore[arg-type]

    def _start(self, home: Path) -> "subprocess.CompletedProcess[str]":
        node = RunningNode(home, None, {})  # type: ignore[arg-type]
        with home.with_suffix(".log").open("w") as log:
            node.process = subprocess.Popen(
                [sys.executable, "-m", "pairio_cli.node_entry", "run"],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=node.environment,
            )
        assert node.process.stdout is not None
        self.running.append(node)
        return subprocess.CompletedProcess([], 0, node.process.stdout.readline(), "")

    def stop(self) -> None:
        for node in self.running:
            node.stop()


@pytest.fixture
def client_of(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """The SDK's functions without a client use a new one, and it is closed."""
    monkeypatch.setattr(_jobs, "_default", None)
    monkeypatch.delenv("PAIRIO_SERVICE_NAME", raising=False)
    yield monkeypatch
    if _jobs._default is not None:
        _jobs._default.close()


def test_the_tutorial_works_to_the_letter_in_far_less_than_five_minutes(tmp_path: Path) -> None:
    machines = Machines(tmp_path, "first", "second")
    begun_s = time.monotonic()
    try:
        reader = Reader(machines.run, "first")
        reader.follow(ROOT / "docs/tutorial.md")
    finally:
        machines.stop()
    took_s = time.monotonic() - begun_s
    print(f"tutorial: {reader.commands} commands in {took_s:.1f} s")
    assert reader.commands >= 9
    assert took_s < TUTORIAL_S_MAX


def test_the_guide_to_workflows_works_to_the_letter(
    start_node: StartNode, client_of: pytest.MonkeyPatch
) -> None:
    node = start_node("lab")
    assert node.cli("service", "create", "lab").returncode == 0
    client_of.setenv("PAIRIO_HOME", str(node.home))
    client_of.chdir(ROOT)
    reader = Reader(lambda _, argv: node.cli(*argv[1:]), "lab")
    reader.follow(ROOT / "docs/workflows.md")
    assert reader.commands == 7
    [shown] = [block.text for block in blocks(ROOT / "docs/workflows.md") if block.kind == "yaml"]
    assert shown == (ROOT / "examples/monte_carlo/steps.yaml").read_text()


def test_a_page_that_says_something_else_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```console\n$ echo\nDone in 3s\n```\n")
    said = subprocess.CompletedProcess([], 0, "Done in 0.25s\n", "")
    Reader(lambda *_: said, "").follow(page)
    page.write_text("```console\n$ echo\n...\nDone in 9s\n```\n")
    Reader(lambda *_: said, "").follow(page)
    for wrong in ("...\nDone\n", "Done at last in 3s\n", "", "Done in 3s\n# hint: more\n"):
        page.write_text(f"```console\n$ echo\n{wrong or 'nothing'}\n```\n")
        with pytest.raises(AssertionError):
            Reader(lambda *_: said, "").follow(page)


def test_commands_name_what_earlier_ones_printed(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    invite, join = "$ invite\npairio:abc\n", "$ join pairio:abc\n"
    page.write_text(f"```console\n{invite}```\n<!-- on: b -->\n```console\n{join}```\n")
    seen: list[tuple[str, list[str]]] = []

    def run(machine: str, argv: list[str]) -> "subprocess.CompletedProcess[str]":
        seen.append((machine, argv))
        return subprocess.CompletedProcess(
            [], 0, "pairio:real\n" if argv[0] == "invite" else "", ""
        )

    Reader(run, "a").follow(page)
    assert seen == [("a", ["invite"]), ("b", ["join", "pairio:real"])]
    assert list(blocks(page))[1] == Block("console", ("b",), "$ join pairio:abc\n")


def test_the_comparison_shows_what_both_sides_found() -> None:
    dask = {"version": "Dask", "start_s": 0.5, "p50_ms": 11.0, "p99_ms": 20.0, "map_s": 2.0}
    dask |= {"again_ran": 100, "killed": {"s": 2.0, "done": 60}, "centre_had": 0}
    dask |= {"cancel_s": 1.9, "stranger": "a private key"}
    ours = dask | {"version": "pairio", "again_ran": 0, "again_s": 0.5, "cancel_s": 0.2}
    made = table(dask, ours, 1000, 1.0)
    assert "| the same jobs again, from a new program | 100 run | 0 run, 0.50 s |" in made
    assert "| goes on to its end | ended after 0.20 s |" in made
    with pytest.raises(KeyError):
        table(dask, {"version": "pairio"}, 1000, 1.0)
    page = (ROOT / "docs/comparison.md").read_text()
    for what, _ in ROWS:
        assert f"| {what.format(jobs=1000)} |" in page
