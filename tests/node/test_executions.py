"""What a run leaves on its node, how that goes, and what a helper process is asked."""

import json
import os
import socket
from pathlib import Path

import pytest
import trio

from pairio_node import execution
from pairio_node.adoption import JobCard
from pairio_node.runner.lines import ask_in_lines
from pairio_node.runner.process import _has_any
from pairio_node.runner.supervisor.runfile import read
from pairio_node.transport import MemoryNetwork
from tests.node.node_lab import LabNode, three, until


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
