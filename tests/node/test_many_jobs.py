"""Jobs found again, hidden, watched, and submitted once for a key."""

import json
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import trio

from pairio_node import submits, watching
from pairio_node.errors import (
    ConflictError,
    ForbiddenError,
    NotFoundError,
    UnavailableError,
    UserError,
)
from pairio_node.search import JobQuery
from pairio_node.transport import MemoryNetwork
from pairio_node.watching import WATCHERS_MAX, WatchQuery
from tests.node.node_lab import SERVICE, LabNode, app_directory, running, three, until


def _body(name: str, **more: Any) -> dict[str, Any]:
    definition = {
        "appName": "greeter",
        "processorName": "greet",
        "inputFiles": [],
        "outputFiles": [{"name": "output"}],
        "parameters": [{"name": "name", "value": name}],
    }
    return {"jobDefinition": definition, **more}


def _names(page: dict[str, Any]) -> list[str]:
    return [job["jobDefinition"]["parameters"][0]["value"] for job in page["jobs"]]


# -- search ----------------------------------------------------------------------------------


async def test_jobs_are_found_by_what_they_are_newest_first_page_by_page(tmp_path: Path) -> None:
    async with three(MemoryNetwork(), tmp_path) as (admin, worker, guest):
        for number, name in enumerate(("Ada", "Bob", "Eve", "Fay")):
            tags = ["even" if number % 2 == 0 else "odd", "all"]
            job = await admin.greet(name, tags=tags, batchId=f"b{number // 2}")
            await admin.done(job)
        theirs = await guest.done(await guest.greet("Guy"))
        await until(lambda: len(admin.search.newest(JobQuery())) == 5, "the guest's job is known")

        async def found(**query: Any) -> list[str]:
            return _names(await admin.search.page(JobQuery(**query)))

        assert sorted(await found()) == ["Ada", "Bob", "Eve", "Fay", "Guy"]
        assert await found(tags=("even", "all")) == ["Eve", "Ada"]
        assert await found(batch="b0") == ["Bob", "Ada"]
        assert await found(batch="") == ["Guy"]
        assert await found(user="guest") == await found(user=guest.peer_id) == ["Guy"]
        assert len(await found(node="worker")) == len(await found(node=worker.peer_id)) == 5
        assert await found(node="admin") == []
        assert len(await found(app="greeter", processor="greet")) == 5
        assert await found(processor="other") == []
        assert await found(statuses=("failed", "blocked")) == []
        assert len(await found(statuses=("completed", "failed"))) == 5
        assert await found(job=theirs["jobId"]) == ["Guy"]
        [output] = theirs["outputFileResults"]
        assert await found(output=output["cid"]) == await found(output=output["url"]) == ["Guy"]
        assert await found(input_="https://example.org/none") == []
        with pytest.raises(UserError, match="is no content"):
            await found(output="https://example.org/x")

        pages, cursor = [], None
        while True:
            page = await admin.search.page(JobQuery(limit=2, cursor=cursor))
            pages.append(_names(page))
            cursor = page["nextCursor"]
            if cursor is None:
                break
        assert [len(page) for page in pages] == [2, 2, 1]
        assert sorted(name for page in pages for name in page) == [
            "Ada",
            "Bob",
            "Eve",
            "Fay",
            "Guy",
        ]
        with pytest.raises(UserError, match="cursor"):
            await found(cursor="nonsense")


async def test_a_definition_is_found_without_being_submitted(tmp_path: Path) -> None:
    async with three(MemoryNetwork(), tmp_path) as (admin, worker, guest):
        definition = _body("Ada")["jobDefinition"]
        nobodys = await guest.search.by_definition(definition, None)
        assert nobodys["job"] is None
        done = await admin.done(await admin.greet("Ada"))
        found = await guest.search.by_definition(definition, SERVICE)
        assert nobodys["jobId"] == found["jobId"] == done["jobId"]
        assert (found["job"]["status"], worker.runner.ran) == ("completed", ["Ada"])
        with pytest.raises(NotFoundError, match="no app 'nix'"):
            await guest.search.by_definition({**definition, "appName": "nix"}, SERVICE)
        with pytest.raises(UserError, match="no parameter 'colour'"):
            wrong = [{"name": "colour", "value": 1}]
            await guest.search.by_definition({**definition, "parameters": wrong}, SERVICE)


# -- hiding ----------------------------------------------------------------------------------


async def test_what_is_hidden_stays_out_of_lists_and_is_still_an_answer(tmp_path: Path) -> None:
    async with _alone(tmp_path) as node:
        job = await node.done(await node.greet("Ada"))
        other = await node.done(await node.greet("Bob"))
        assert node.hiding.hide_job(job["jobId"], None) == [job["requestId"]]
        assert _names({"jobs": node.search.newest(JobQuery())}) == ["Bob"]
        assert len(node.search.newest(JobQuery(hidden=True))) == 2
        assert node.jobs.one(job["requestId"], None)["status"] == "completed"
        again = await node.greet("Ada")
        assert (again["cached"], node.runner.ran) == (True, ["Ada", "Bob"])
        with pytest.raises(NotFoundError):
            node.hiding.hide_job("bafygone", None)
    async with _alone(tmp_path) as node:
        assert _names({"jobs": node.search.newest(JobQuery())}) == ["Bob"]
        assert node.jobs.one(other["jobId"], None)["status"] == "completed"


async def test_an_open_job_is_not_hidden(tmp_path: Path) -> None:
    async with _alone(tmp_path, compute=False) as node:
        job = await node.greet("Ada")
        with pytest.raises(ConflictError, match="is pending"):
            node.hiding.hide_job(job["jobId"], None)
        await node.jobs.cancel(job["jobId"], None)
        node.hiding.hide_job(job["jobId"], None)
        assert node.search.newest(JobQuery()) == []


# -- keys ------------------------------------------------------------------------------------


async def test_a_key_makes_one_request_of_many_calls(tmp_path: Path) -> None:
    async with _alone(tmp_path) as node:
        answers: list[dict[str, Any]] = []

        async def submit() -> None:
            answers.append(await node.submits.submit(_body("Ada", skipCache=True), "k"))

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(submit)
        await submit()
        assert len({answer["requestId"] for answer in answers}) == 1
        other = await node.submits.submit(_body("Ada", skipCache=True), "another")
        assert other["requestId"] != answers[0]["requestId"]
        with pytest.raises(ConflictError, match="another job"):
            await node.submits.submit(_body("Bob", skipCache=True), "k")
        for job in (other, answers[0]):
            await node.done(job)
        assert node.runner.ran == ["Ada", "Ada"]
    async with _alone(tmp_path) as node:  # the answer was lost with the node
        again = await node.submits.submit(_body("Ada", skipCache=True), "k")
        assert again["requestId"] == answers[0]["requestId"]
        assert (await node.done(again))["status"] == "completed"
        assert node.runner.ran == []


async def test_a_caller_who_goes_away_leaves_nothing_half_done(tmp_path: Path) -> None:
    async with _alone(tmp_path, compute=False) as node:
        with trio.CancelScope() as scope:
            scope.cancel()
            await node.submits.submit(_body("Ada", skipCache=True), "k")
        job = await node.submits.submit(_body("Ada", skipCache=True), "k")
        assert [found["requestId"] for found in node.search.newest(JobQuery())] == [
            job["requestId"]
        ]


async def test_a_refused_submit_may_be_made_again(tmp_path: Path) -> None:
    async with _alone(tmp_path) as node:
        for _ in range(2):
            with pytest.raises(UserError, match="no app 'nix'"):
                wrong = {**_body("Ada")["jobDefinition"], "appName": "nix"}
                await node.submits.submit({"jobDefinition": wrong}, "k")
        node.store.is_full = True
        with pytest.raises(UserError, match="not stored"):
            await node.submits.submit(_body("Ada", skipCache=True), "full")
        node.store.is_full = False
        job = await node.submits.submit(_body("Ada", skipCache=True), "full")
        await node.done(job)
        assert node.runner.ran == ["Ada"], "what could not be stored ran later, and once"


async def test_keys_are_bounded_and_expire(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submits, "KEYS_MAX", 10)
    async with _alone(tmp_path, compute=False) as node:
        for number in range(14):
            await node.submits.submit(_body(f"n{number}"), f"k{number}")
        assert len(node.submits._known) <= 10
        known = len(node.submits._known)
    async with _alone(tmp_path, compute=False) as node:
        assert len(node.submits._known) == known, "what was let go is gone from the disk too"
    monkeypatch.setattr(submits, "KEY_MS", -1)
    async with _alone(tmp_path, compute=False) as node:
        assert node.submits._known == {}


async def test_delete_failing_hides_what_failed(tmp_path: Path) -> None:
    async with _alone(tmp_path) as node:
        node.runner.fails = True
        failed = await node.done(await node.greet("Ada"))
        assert failed["status"] == "failed"
        node.runner.fails = False
        body = _body("Ada", rerunFailing=True, deleteFailing=True)
        job = await node.done(await node.submits.submit(body))
        assert job["status"] == "completed"
        shown = [found["requestId"] for found in node.search.newest(JobQuery())]
        assert shown == [job["requestId"]]
        assert node.jobs.one(failed["requestId"], None)["status"] == "failed", "a fact stays one"


async def test_what_fails_again_and_again_is_run_again_each_time(tmp_path: Path) -> None:
    """Which of two failures counts is chance; each retry is one of the newest."""
    async with _alone(tmp_path) as node:
        node.runner.fails = True
        for name in ("Ada", "Eve", "Bob"):
            await node.done(await node.greet(name))
            for runs in range(2, 7):
                job = await node.done(await node.greet(name, rerunFailing=True))
                assert (job["status"], node.runner.ran.count(name)) == ("failed", runs)
        node.runner.fails = False
        assert (await node.done(await node.greet("Ada", rerunFailing=True)))[
            "status"
        ] == "completed"
        assert (await node.greet("Ada", rerunFailing=True))["cached"]


# -- events ----------------------------------------------------------------------------------


async def test_who_watches_is_told_states_first_then_changes(tmp_path: Path) -> None:
    async with _alone(tmp_path, compute=False) as node:
        first = await node.greet("Ada", batchId="b")
        await node.greet("Bob", batchId="other")
        watch = _Reader(node, WatchQuery(batch="b"))
        assert await watch.next() == ("job", first["requestId"], "pending")
        assert (await watch.next())[0] == "ready"
        second = await node.greet("Eve", batchId="b")
        assert await watch.next() == ("job", second["requestId"], "pending")
        await node.jobs.cancel(first["jobId"], None)
        assert await watch.next() == ("job", first["requestId"], "canceled")
        await watch.close()


async def test_a_job_that_ends_elsewhere_is_told(tmp_path: Path) -> None:
    async with three(MemoryNetwork(), tmp_path) as (admin, _, _):
        everything = _Reader(admin, WatchQuery())
        assert (await everything.next())[0] == "ready"
        job = await admin.greet("Ada")
        seen: list[dict[str, Any]] = []
        while not (seen and seen[-1]["safe"] and seen[-1]["isSettled"]):
            seen.append(await everything.data())
        assert {event["requestId"] for event in seen} == {job["requestId"]}
        assert seen[-1]["status"] == "completed"
        await everything.close()


async def test_a_slow_reader_costs_no_more_than_the_jobs_he_watches(tmp_path: Path) -> None:
    async with _alone(tmp_path, compute=False) as node:
        job = await node.greet("Ada", batchId="b")
        watch = _Reader(node, WatchQuery(batch="b"))
        while (await watch.next())[0] != "ready":
            pass
        for _ in range(5_000):
            node.watching.changed("", "")
        for number in range(30_000):
            node.watching.changed(job["serviceId"], f"bafy{number}")
        assert len(node.watching._watches[0].changed) <= 20_000
        await node.jobs.cancel(job["jobId"], None)
        assert await watch.next() == ("job", job["requestId"], "canceled")
        await watch.close()
        assert node.watching._watches == []


async def test_watchers_are_bounded_and_end_with_the_node(tmp_path: Path) -> None:
    async with _alone(tmp_path) as node:
        with pytest.raises(NotFoundError, match="no request 'nix'"):
            node.watching.open(WatchQuery(requests=("nix",)))
        watches = [_Reader(node, WatchQuery()) for _ in range(WATCHERS_MAX)]
        for watch in watches:
            await watch.next()
        with pytest.raises(UnavailableError, match="watch already"):
            node.watching.open(WatchQuery())
        node.watching.stop()
        for watch in watches:
            with pytest.raises(StopAsyncIteration), trio.fail_after(5):
                await watch.next()


async def test_who_watches_everything_misses_no_job_when_too_much_happens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "WATCHED_MAX", 3)
    async with _alone(tmp_path, compute=False) as node:
        watch = _Reader(node, WatchQuery())
        assert (await watch.next())[0] == "ready"
        jobs = [await node.greet(f"n{number}") for number in range(8)]
        seen = {(await watch.next())[1] for _ in range(8)}
        assert seen == {job["requestId"] for job in jobs}
        await watch.close()


# -- URLs ------------------------------------------------------------------------------------


class _Hello(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "5")
        self.end_headers()
        self.wfile.write(b"hello")

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


async def test_what_a_url_gives_becomes_content_under_the_owners_rules(tmp_path: Path) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hello)
    threading.Thread(target=server.serve_forever, args=(0.01,)).start()
    url = f"http://127.0.0.1:{server.server_port}/x"
    try:
        async with running(MemoryNetwork(), tmp_path / "a", allow_hosts=("127.0.0.1",)) as node:
            added = await node.url_pins.add(url)
            assert added["size"] == 5
            read = [chunk async for chunk in node.content.read(added["cid"])]
            assert b"".join(read) == b"hello"
            assert list((tmp_path / "a" / "jobs").iterdir()) == []
        async with running(MemoryNetwork(), tmp_path / "b") as node:
            with pytest.raises(ForbiddenError, match="loopback"):
                await node.url_pins.add(url)
            assert list((tmp_path / "b" / "jobs").iterdir()) == []
    finally:
        server.shutdown()
        server.server_close()


class _Reader:
    """Reads events one by one."""

    def __init__(self, node: LabNode, query: WatchQuery) -> None:
        self._stream = node.watching.open(query)
        self._left: list[str] = []

    async def _event(self) -> tuple[str, dict[str, Any]]:
        with trio.fail_after(10):
            while not self._left:
                text = (await anext(self._stream)).decode()
                self._left += [e for e in text.split("\n\n") if e and not e.startswith(":")]
        fields = dict(line.split(": ", 1) for line in self._left.pop(0).split("\n"))
        return fields["event"], json.loads(fields["data"])

    async def data(self) -> dict[str, Any]:
        return (await self._event())[1]

    async def next(self) -> tuple[str, Any, Any]:
        kind, data = await self._event()
        return kind, data.get("requestId"), data.get("status")

    async def close(self) -> None:
        await self._stream.aclose()  # type: ignore[attr-defined]


@asynccontextmanager
async def _alone(path: Path, **settings: Any) -> AsyncIterator[LabNode]:
    """A node with the service, the app and nobody else; the second time it finds them."""
    async with running(MemoryNetwork(), path / "alone", **settings) as node:
        if (path / "app").exists():
            await until(node.services.all, "the disk was read")
        else:
            await node.services.create(SERVICE)
            await node.services.install_app(SERVICE, str(app_directory(path / "app")), None)
        yield node
