"""The console of a job at any member: live, over attempts, whole once the job has ended."""

from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from pairio_node.errors import NotFoundError, UserError
from pairio_node.runner import Runners, RunOutcome, RunSpec
from pairio_node.runner.supervisor.console import ConsoleWriter, read_console
from pairio_node.runner.supervisor.job import CONSOLE_FILE
from pairio_node.transport import MemoryNetwork
from pairio_node.transport.base import LOGS, ByteStream
from pairio_protocol.limits import CONSOLES_FOLLOWED_MAX
from tests.node.node_lab import InstantRunner, LabNode, three, until

Event = dict[str, Any]


class TalkingRunner(InstantRunner):
    """Jobs say what the test says, and end when it says so."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self._heard = trio.open_memory_channel[str | RunOutcome](9)

    async def run(self, spec: RunSpec, cancel: trio.Event) -> RunOutcome:
        path = spec.work_dir / CONSOLE_FILE
        writer = ConsoleWriter(path)
        async for word in self._heard:
            if isinstance(word, str):
                writer.add(word.encode())
            elif word.status == "completed":
                outcome = await super().run(spec, cancel)
                return RunOutcome("completed", "", outcome.outputs, read_console(path), {})
            else:
                return word
        raise AssertionError("unreachable")


COMPLETED = RunOutcome("completed", "", {}, b"", {})
LOST = RunOutcome("infra", "the disk is on fire", {}, b"", {})


class Follower:
    """A client; `until(kind)` returns what came up to the first event of that kind."""

    def __init__(self, events: AsyncIterator[Event]) -> None:
        self._events = events

    async def until(self, kind: str) -> list[Event]:
        found: list[Event] = []
        with trio.fail_after(20):
            async for event in self._events:
                if event["type"] != "alive":
                    found.append(event)
                if event["type"] == kind:
                    return found
        raise AssertionError(f"it ended before {kind}: {found}")

    async def said(self) -> str:
        return str((await self.until("output"))[-1]["data"].decode())


@asynccontextmanager
async def following(node: LabNode, job: Event, **given: Any) -> AsyncIterator[Follower]:
    asked = {"attempt": None, "offset": 0, "follow": True, **given}
    events = node.consoles.follow(job["requestId"], None, **asked)
    async with aclosing(events):  # type: ignore[type-var]
        yield Follower(events)


async def _all(node: LabNode, job: Event, **given: Any) -> bytes:
    """Return all output of a job that has ended."""
    async with following(node, job, **given) as follower:
        events = await follower.until("end")
    return b"".join(e["data"] for e in events if e["type"] == "output")


def _talking(worker: LabNode) -> TalkingRunner:
    runner = TalkingRunner()
    worker.runners = Runners([runner])
    return runner


@pytest.mark.parametrize("who", [0, 1, 2], ids=["submitter", "worker", "any member"])
async def test_a_member_follows_a_job_from_its_start_to_its_end(who: int, tmp_path: Path) -> None:
    async with three(MemoryNetwork(), tmp_path) as nodes:
        admin, worker, _ = nodes
        runner = _talking(worker)
        job = await admin.greet("Ada")
        await _known(nodes[who], job)
        async with following(nodes[who], job) as follower:
            await runner.words.send("one\n")
            events = await follower.until("output")
            kinds = [e["type"] for e in events]
            assert kinds[-2:] == ["attempt", "output"]
            assert set(kinds[:-2]) == {"status"}
            assert events[-2]["computeNodeId"] == worker.peer_id
            assert events[-2]["number"] == 1
            await runner.words.send("two\n")
            assert await follower.said() == "two\n"
            await runner.words.send("last\n")
            await runner.words.send(COMPLETED)
            rest = await follower.until("end")
            assert b"".join(e["data"] for e in rest if e["type"] == "output") == b"last\n"
            assert rest[-1] == {"type": "end", "status": "completed", "error": None}


async def _known(node: LabNode, job: Event) -> None:
    """Wait until a node has heard of a request."""
    with trio.fail_after(10):
        while True:
            try:
                node.jobs.one(job["requestId"], None)
            except NotFoundError:
                await node.changed()
            else:
                return


async def test_it_goes_on_over_attempts_and_says_so(tmp_path: Path) -> None:
    async with three(MemoryNetwork(), tmp_path) as (admin, worker, _):
        runner = _talking(worker)
        job = await admin.greet("Ada")
        async with following(admin, job) as follower:
            await runner.words.send("first\n")
            assert await follower.said() == "first\n"
            await runner.words.send(LOST)
            await runner.words.send("second\n")
            events = await follower.until("output")
            began = next(e for e in events if e["type"] == "attempt")
            assert (began["number"], events[-1]["offset"]) == (2, 0)
            assert events[-1]["data"] == b"second\n"
            await runner.words.send(COMPLETED)
            assert (await follower.until("end"))[-1]["status"] == "completed"


async def test_a_job_that_has_ended_tells_what_was_stored_from_any_offset(tmp_path: Path) -> None:
    async with three(MemoryNetwork(), tmp_path) as (admin, _, guest):
        job = await admin.done(await admin.greet("Ada"))
        hit = await guest.done(await guest.greet("Ada"))
        assert await _all(guest, hit) == await _all(admin, job) == b"greeting\n"
        assert await _all(admin, job, offset=5) == b"ing\n"
        attempt = job["attempts"][0]["attemptId"]
        assert await _all(admin, job, attempt=attempt, offset=5) == b"ing\n"
        assert await _all(admin, job, attempt="an earlier one", offset=5) == b"greeting\n"
        async with following(admin, job, follow=False) as follower:
            assert await follower.said() == "greeting\n"


async def test_without_follow_what_there_is_now_is_told(tmp_path: Path) -> None:
    async with three(MemoryNetwork(), tmp_path) as (admin, worker, _):
        runner = _talking(worker)
        job = await admin.greet("Ada")
        async with following(admin, job) as follower:
            await runner.words.send("one\n")
            assert await follower.said() == "one\n"
        events = admin.consoles.follow(job["requestId"], None, None, 0, follow=False)
        with trio.fail_after(10):
            told = [event["data"] async for event in events if event["type"] == "output"]
        assert told == [b"one\n"]
        await runner.words.send(COMPLETED)


async def _breaks(stream: ByteStream) -> None:
    await stream.abort()


async def _never_ends(stream: ByteStream) -> None:
    await stream.send(b"\x01" + (0).to_bytes(8, "big") + (4).to_bytes(4, "big") + b"one\n")
    await trio.sleep_forever()


@pytest.mark.parametrize(("serve", "note"), [(_breaks, True), (_never_ends, False)])
async def test_a_worker_that_gives_no_live_console_costs_nothing_at_the_end(
    serve: Callable[[ByteStream], Any], note: bool, tmp_path: Path
) -> None:
    async with three(MemoryNetwork(), tmp_path) as (admin, worker, _):
        runner = _talking(worker)
        worker.transport.set_stream_handler(LOGS, serve)
        job = await admin.greet("Ada")
        async with following(admin, job) as follower:
            await runner.words.send("one\n")
            await follower.until("note" if note else "output")
            await runner.words.send("two\n")
            await runner.words.send(COMPLETED)
            events = await follower.until("end")
        rest = b"".join(e["data"] for e in events if e["type"] == "output")
        assert rest == (b"one\ntwo\n" if note else b"two\n")
        assert len([e for e in events if e["type"] == "note"]) == 0, "said once"


async def test_followers_are_counted_and_those_who_leave_are_let_go(tmp_path: Path) -> None:
    async with three(MemoryNetwork(), tmp_path) as (admin, worker, _):
        runner = _talking(worker)
        job = await admin.greet("Ada")
        await runner.words.send("one\n")
        followers = []
        for _ in range(CONSOLES_FOLLOWED_MAX):
            followers.append(admin.consoles.follow(job["requestId"], None, None, 0, follow=True))
            await anext(followers[-1])
        with pytest.raises(UserError, match="are followed already"):
            admin.consoles.follow(job["requestId"], None, None, 0, follow=True)
        for events in followers:
            await events.aclose()  # type: ignore[attr-defined]
        await until(lambda: not admin.consoles.followed, "they are let go")
        async with following(admin, job) as follower:
            await follower.until("output")
        await runner.words.send(COMPLETED)


async def test_an_unknown_job_has_no_console(tmp_path: Path) -> None:
    async with three(MemoryNetwork(), tmp_path) as (admin, _, _):
        with pytest.raises(NotFoundError):
            admin.consoles.follow("bafynothing", None, None, 0, follow=True)
