"""Secrets between whole nodes: from the submitter's memory to the worker's, and to nobody else."""

import contextlib
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from pairio_node.errors import UserError
from pairio_node.runner import Runners, RunOutcome, RunSpec
from pairio_node.transport import MemoryNetwork
from pairio_node.transport.base import SECRETS, StreamEnded
from pairio_protocol.codec import pack, unpack
from pairio_protocol.limits import SECRETS_SIZE_BYTES_MAX
from tests.node.node_lab import SERVICE, InstantRunner, LabNode, running, until

VALUE = "correct horse battery"
SPEC = {
    "name": "teller",
    "processors": [
        {
            "name": "tell",
            "executable": "main.py",
            "inputs": [],
            "outputs": [{"name": "output"}],
            "parameters": [],
            "secrets": ["TOKEN"],
        }
    ],
}
WISH = {
    "appName": "teller",
    "processorName": "tell",
    "outputFiles": [{"name": "output"}],
    "parameters": [],
}


class Teller(InstantRunner):
    """Remembers what it was given; its jobs end when told."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[RunSpec] = []
        self.go = trio.Event()

    async def run(self, spec: RunSpec, cancel: trio.Event) -> RunOutcome:
        self.given.append(spec)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_then_cancel, cancel, nursery.cancel_scope)
            await self.go.wait()
            nursery.cancel_scope.cancel()
        path = spec.work_dir / "output"
        path.write_text("told")
        status = "canceled" if cancel.is_set() else "completed"
        return RunOutcome(status, "", {"output": path}, b"", {"cpu_ms": 1})  # type: ignore[arg-type]


def _knows_the_app(node: LabNode) -> bool:
    return bool(node.services.all() and node.services.apps(SERVICE))


async def _then_cancel(cancel: trio.Event, scope: trio.CancelScope) -> None:
    await cancel.wait()
    scope.cancel()


@asynccontextmanager
async def lab(path: Path) -> AsyncIterator[tuple[LabNode, LabNode, LabNode, Teller]]:
    """Who submits, who computes, and another member that computes for nobody."""
    network = MemoryNetwork()
    app = path / "app"
    app.mkdir()
    (app / "main.py").write_text("# not read\n")
    (app / "spec.json").write_text(json.dumps(SPEC))
    async with (
        running(network, path / "a", compute=False) as submitter,
        running(network, path / "w", submitter) as worker,
        running(network, path / "o", submitter, compute=False) as other,
    ):
        teller = Teller()
        worker.runners = Runners([teller])
        await submitter.services.create(SERVICE)
        for node, name in ((worker, "worker"), (other, "other")):
            await submitter.admins.grant(SERVICE, node.peer_id, ["compute", "submit"], name)
        await submitter.services.install_app(SERVICE, str(app), None)
        for node in (worker, other):
            await until(partial(_knows_the_app, node), "the app is known")
        yield submitter, worker, other, teller


def _files(*nodes: LabNode) -> list[Path]:
    """What lies in homes; a folder that goes meanwhile has nothing any more."""
    tops = [os.walk(node.home.path) for node in nodes]
    return [Path(at, name) for top in tops for at, _, names in top for name in names]


def _holding(*nodes: LabNode) -> list[Path]:
    found = []
    for path in _files(*nodes):
        with contextlib.suppress(FileNotFoundError):
            if path.is_file() and VALUE.encode() in path.read_bytes():
                found.append(path)
    return found


async def _submit(node: LabNode, **more: Any) -> dict[str, Any]:
    with trio.fail_after(10):
        return await node.submits.submit(
            {"jobDefinition": dict(WISH), "secrets": {"TOKEN": VALUE}, **more}
        )


async def _ask(asker: LabNode, giver: LabNode, *question: Any) -> list[str] | None:
    """Ask for secrets as a worker does; None when the stream is broken off."""
    data = pack(list(question))
    with trio.fail_after(10):
        stream = await asker.transport.open_stream(giver.peer_id, SECRETS)
        await stream.send(len(data).to_bytes(4, "big") + data)
        try:
            size = int.from_bytes(await stream.receive_exactly(4), "big")
            words: list[str] = unpack(await stream.receive_exactly(size))
        except (StreamEnded, UserError):
            return None
        finally:
            await stream.abort()
    return words


async def test_the_worker_gets_them_and_afterwards_nobody_has_them(tmp_path: Path) -> None:
    async with lab(tmp_path) as (submitter, worker, other, teller):
        job = await _submit(submitter)
        await until(lambda: teller.given, "the run begins")
        spec = teller.given[0]
        assert spec.secrets == {"TOKEN": VALUE}
        assert spec.restart_grace_s == 0
        assert VALUE not in repr(spec)
        assert len(_holding(submitter)) == 1
        assert _holding(worker, other) == []
        teller.go.set()
        assert (await submitter.done(job))["status"] == "completed"
        await until(lambda: not _holding(submitter), "they are forgotten")
        assert not list((submitter.home.path / "secrets").iterdir())


async def test_answers_of_the_api_say_none(tmp_path: Path) -> None:
    async with lab(tmp_path) as (submitter, _, _, teller):
        job = await _submit(submitter)
        await until(lambda: teller.given, "the run begins")
        said = [job, submitter.jobs.one(job["jobId"], None), submitter.jobs.why(job["jobId"], None)]
        assert VALUE not in json.dumps([*said, submitter.status(), submitter.core.ctx.counters])
        teller.go.set()


async def test_a_cancel_forgets_them(tmp_path: Path) -> None:
    async with lab(tmp_path) as (submitter, _, _, teller):
        job = await _submit(submitter)
        await until(lambda: teller.given, "the run begins")
        await submitter.jobs.cancel(job["requestId"], None)
        await until(lambda: not _holding(submitter), "they are forgotten")


async def test_a_submit_that_is_refused_keeps_none(tmp_path: Path) -> None:
    async with lab(tmp_path) as (submitter, _, _, _):
        with pytest.raises(UserError) as refused:
            await _submit(submitter, secrets={"TOKEN": VALUE, "OTHER": VALUE})
        assert "OTHER" in refused.value.message
        assert VALUE not in refused.value.message
        with pytest.raises(UserError):
            await _submit(submitter, secrets={})
        await until(lambda: not _holding(submitter), "they are forgotten")


async def test_an_idempotency_key_stores_no_hash_of_a_secret(tmp_path: Path) -> None:
    """Asked again with another value it is the same submit: the value is in no hash."""
    async with lab(tmp_path) as (submitter, _, _, teller):
        body = {"jobDefinition": dict(WISH), "secrets": {"TOKEN": VALUE}}
        first = await submitter.submits.submit(body, "key")
        again = await submitter.submits.submit({**body, "secrets": {"TOKEN": "x" * 20}}, "key")
        assert first["requestId"] == again["requestId"]
        teller.go.set()


async def test_nobody_but_the_worker_of_the_attempt_is_answered(tmp_path: Path) -> None:
    async with lab(tmp_path) as (submitter, worker, other, teller):
        job = await _submit(submitter)
        await until(lambda: teller.given, "the run begins")
        service, request, attempt = job["serviceId"], job["requestId"], teller.given[0].attempt
        assert await _ask(other, submitter, service, request, attempt) is None
        assert await _ask(worker, submitter, service, request, attempt + "0") is None
        assert await _ask(worker, submitter, service, "no request", attempt) is None
        assert await _ask(worker, submitter, "no service", request, attempt) is None
        assert await _ask(worker, submitter, service, request) is None
        assert await _ask(worker, submitter, 1, 2, 3) is None
        assert await _ask(worker, submitter, service, request, "x" * 8000) is None
        assert await _ask(worker, submitter, service, request, attempt) == ["TOKEN", VALUE]
        teller.go.set()
        await submitter.done(job)
        assert await _ask(worker, submitter, service, request, attempt) is None


@pytest.mark.parametrize(
    "answer",
    [
        ["TOKEN"],
        ["OTHER", VALUE],
        ["TOKEN", VALUE, "MORE", VALUE],
        ["TOKEN", 5],
        {"TOKEN": VALUE},
        ["TOKEN", "x" * (SECRETS_SIZE_BYTES_MAX + 8000)],
        None,
    ],
)
async def test_a_submitter_that_gives_something_else_gets_no_run(
    tmp_path: Path, answer: Any
) -> None:
    async with lab(tmp_path) as (submitter, _, _, teller):

        async def lie(stream: Any) -> None:
            if answer is None:
                await stream.abort()
                return
            data = pack(answer)
            await stream.send(len(data).to_bytes(4, "big") + data)
            await stream.close()

        submitter.transport.set_stream_handler(SECRETS, lie)
        job = await _submit(submitter)
        await until(lambda: submitter.jobs.one(job["jobId"], None)["attempts"], "an attempt")
        await until(
            lambda: submitter.jobs.one(job["jobId"], None)["attempts"][0]["ended"] == "infra",
            "its end",
        )
        assert teller.given == []


async def test_they_outlive_a_restart_of_their_submitter(tmp_path: Path) -> None:
    network = MemoryNetwork()
    async with running(network, tmp_path / "n", compute=False) as node:
        await node.services.create(SERVICE)
        app = tmp_path / "app"
        app.mkdir()
        (app / "main.py").write_text("# not read\n")
        (app / "spec.json").write_text(json.dumps(SPEC))
        await node.services.install_app(SERVICE, str(app), None)
        job = await _submit(node)
    async with running(network, tmp_path / "n") as node:
        teller = Teller()
        teller.go.set()
        node.runners = Runners([teller])
        await until(partial(_knows_the_app, node), "what was stored is known")
        assert (await node.done(job))["status"] == "completed"
        assert teller.given[0].secrets == {"TOKEN": VALUE}
        await until(lambda: not _holding(node), "they are forgotten")
