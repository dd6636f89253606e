"""What a run leaves on its node, how that goes, and what a helper process is asked."""

import json
import logging
import os
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio

from pairio_node import execution
from pairio_node.adoption import JobCard
from pairio_node.blocks.in_use import InUse
from pairio_node.execution import Executions
from pairio_node.runner.lines import ask_in_lines
from pairio_node.runner.process import _has_any
from pairio_node.runner.supervisor.runfile import read
from pairio_node.transport import MemoryNetwork
from pairio_protocol.events import Executed
from tests.node.node_lab import InstantRunner, LabNode, three, until


def _folders(node: LabNode) -> list[Path]:
    return list((node.home.path / "jobs").iterdir())


async def test_the_folder_of_a_run_that_is_over_goes_a_moment_later(tmp_path: Path) -> None:
    async with three(MemoryNetwork(), tmp_path) as (admin, worker, _):
        await admin.done(await admin.greet("Ada"))
        await until(lambda: _folders(worker) == [], "the folder is gone")


async def test_folders_of_a_moment_go_together_and_with_their_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execution, "_REMOVE_S", 3600.0)
    removed: list[int] = []
    remove = execution._remove_all

    def counted(folders: list[Path]) -> None:
        removed.append(len(folders))
        remove(folders)

    async with three(MemoryNetwork(), tmp_path) as (admin, worker, _):
        monkeypatch.setattr(execution, "_remove_all", counted)
        for name in ("Ada", "Bob", "Eve"):
            await admin.done(await admin.greet(name))
        await until(lambda: worker.executions.running == 0, "all is over")
        assert len(_folders(worker)) == 3
        assert all(JobCard.of_plain(read(folder).card) is not None for folder in _folders(worker))
    assert [count for count in removed if count] == [3]
    assert _folders(worker) == []


@pytest.mark.parametrize("made", ["nothing", "file", "folder", "link in its place", "no folder"])
def test_what_a_job_made_beside_its_outputs_is_seen(made: str, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    if made == "link in its place":
        folder.symlink_to(elsewhere)
    elif made != "no folder":
        folder.mkdir()
    if made == "file":
        (folder / "x").touch()
    if made == "folder":
        (folder / "x").mkdir()
    assert _has_any(folder) == (made in ("file", "folder", "link in its place"))
    assert elsewhere.is_dir(), "a link is not followed"


async def test_a_question_waits_for_a_helper_that_does_not_read(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        theirs.setblocking(False)
        long = {"text": "x" * 2_000_000}
        answers: list[object] = []

        async def ask() -> None:
            answers.append(await ask_in_lines(ours, long, 30.0))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            heard = b""
            while not heard.endswith(b"\n"):
                await trio.lowlevel.wait_readable(theirs.fileno())
                heard += os.read(theirs.fileno(), 65536)
            theirs.send(b'{"ok": 1}\n')
        assert (json.loads(heard), answers) == (long, [{"ok": 1}])


class Held:
    """Stands for the preparation of a run: it makes the folder, then waits to be let go."""

    def __init__(self) -> None:
        self.begun, self.go_on = trio.Event(), trio.Event()
        self.folders: list[Path] = []

    async def prepare(self, effect: Any, runner: Any, folder: Path, reads: Any) -> Any:
        folder.mkdir()
        self.folders.append(folder)
        self.begun.set()
        await self.go_on.wait()
        assert folder.is_dir(), "it was removed under its run"
        raise OSError("no such input")


async def test_an_attempt_that_comes_twice_is_executed_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    held, told, stored = Held(), [], trio.Event()

    async def deliver(executed: Executed) -> None:
        told.append(executed.kind)
        await stored.wait()

    contents: Any = SimpleNamespace(store=SimpleNamespace(in_use=InUse()))
    preparation: Any = held
    executions = Executions(
        contents, preparation, tmp_path, lambda _: InstantRunner(), lambda _: None, deliver,
        lambda *_: None, lambda *_: None,
    )  # fmt: skip
    document = {"app": "greeter", "processor": "greet"}
    effect: Any = SimpleNamespace(attempt="a/1", service="s", document=document, job="j")
    caplog.set_level(logging.INFO, "pairio.runs")
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(executions.execute, effect)
            await held.begun.wait()
            await executions.execute(effect)  # returns: the first one has the folder
            held.go_on.set()
            await until(lambda: told == ["infra"], "the core is told")
            await executions.execute(effect)  # what it made is not stored yet
            assert executions.running == 1
            stored.set()
    assert (told, len(held.folders), executions.running) == (["infra"], 1, 0)
    assert caplog.text.count("goes on here already") == 2
