"""How far a job is: read from what it prints where it runs, told to whoever asks for the job."""

import os
from contextlib import aclosing
from pathlib import Path

import pytest
import trio

from pairio_node.progress import ProgressReader, permille_in
from pairio_node.runner import Runners
from pairio_node.runner.supervisor.console import HEAD_BYTES, ConsoleWriter
from pairio_node.transport import MemoryNetwork
from pairio_node.watching import WatchQuery
from tests.node.node_lab import three
from tests.node.test_consoles import COMPLETED, TalkingRunner


@pytest.mark.parametrize(
    ("text", "permille"),
    [
        ("\n[progress] 42.5% fitting\n", 425),
        ("\n[progress] 0%\n", 0),
        ("\n[progress] 100.0%", 1000),
        ("\n[progress] 10% a\n[progress] 20% b\n", 200),
        ("\r[progress] 7%\r[progress] 8%\r", 80),
        ("\nepoch 3:  40%|####      | 4/10\r", 400),
        ("\n 99%|###| 1/2 [00:01<00:01]\n[progress] 10%\n", 100),
        ("\n[progress] 101%\n", None),
        ("\n[progress] -1%\n", None),
        ("\n[progress] 42", None),
        ("\nit says [progress] 42%\n", None),
        ("[progress] 42%\n", None),  # what stands before it is not known
        ("\n50% of the people | 3\n", None),
        ("\n" + "x" * 300 + "42%|", None),
    ],
)
def test_what_counts_as_progress(text: str, permille: int | None) -> None:
    assert permille_in(text.encode()) == permille


async def test_the_end_of_a_long_console_is_read_and_news_alone_are_told(tmp_path: Path) -> None:
    told: list[tuple[str, int]] = []
    consoles = {"a": tmp_path / "console", "away": tmp_path / "none"}
    reader = ProgressReader(lambda: consoles, lambda name, permille: told.append((name, permille)))
    writer = ConsoleWriter(consoles["a"])
    for words, news in (
        (b"[progress] 1%\n", [("a", 10)]),
        (b"", []),
        (b"x" * HEAD_BYTES + b"\n[progress] 1%\n", []),
        (os.urandom(3 * HEAD_BYTES) + b"\n[progress] 2%\n", [("a", 20)]),
        (b"\n 80%|####| 4/5\r", []),  # it says how far it is: a bar of a part is not that
        (b"[progress] 3%\n" + b"y" * 9000, []),
    ):
        writer.add(words)
        told.clear()
        await reader.look()
        assert told == news
    consoles.clear()
    await reader.look()
    assert reader._readers == {}


async def test_who_submitted_sees_it_while_the_job_runs(tmp_path: Path) -> None:
    async with three(MemoryNetwork(), tmp_path) as (admin, worker, guest):
        runner = TalkingRunner()
        worker.runners = Runners([runner])
        job = await admin.greet("Ada")
        assert job["progress"] is None
        stream = admin.watching.open(WatchQuery(job=job["jobId"]))
        with trio.fail_after(60):
            async with aclosing(stream) as events:  # type: ignore[type-var]
                await runner.words.send("[progress] 40.0% fitting\n")
                async for event in events:
                    if b'"progress": 0.4,' in event:
                        break
        for node in (admin, worker):
            assert node.jobs.one(job["requestId"], None)["progress"] == 0.4
        told = guest.jobs.one(job["requestId"], None)["progress"]
        assert told is None, "it is told in the console"
        await runner.words.send(COMPLETED)
        assert (await admin.done(job))["progress"] is None
