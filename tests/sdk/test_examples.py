"""Every public call of the SDK has an example, and every example runs."""

import doctest
import inspect
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from pairio.client import (
    AsyncBatch,
    AsyncClient,
    AsyncPairioJob,
    AsyncSpecialJobOutput,
    Batch,
    BatchProgress,
    Client,
    PairioJob,
    PairioJobDefinition,
    PairioJobOutputFile,
    PairioJobParameter,
    SpecialJobOutput,
    _base,
    _sync_batch,
    _sync_calls,
    _sync_client,
    _sync_finding,
    _sync_job,
    _sync_output,
    _sync_watching,
)
from tests.sdk.fake_node import Asked, FakeNode, Raw, events, job, ranged
from tests.sdk.test_batches import SPEC, _app, _id, _taken, _told

MODULES = [
    *(_base, _sync_batch, _sync_calls, _sync_client, _sync_finding, _sync_job, _sync_output),
    _sync_watching,
]
CLASSES = [
    *(AsyncBatch, AsyncClient, AsyncPairioJob, AsyncSpecialJobOutput),
    *(Batch, BatchProgress, Client, PairioJob, SpecialJobOutput),
]


def _calls() -> Iterator[tuple[str, Any]]:
    for cls in CLASSES:
        for name, call in inspect.getmembers(cls, callable):
            if not name.startswith("_"):
                yield f"{cls.__name__}.{name}", call


@pytest.mark.parametrize(("name", "call"), list(_calls()), ids=lambda v: v if v is str else "")
def test_a_call_has_an_example(name: str, call: Any) -> None:
    assert ">>> " in (inspect.getdoc(call) or ""), name


def _events(asked: Asked) -> Raw:
    """Tell of a batch, or of requests, that all are done."""
    return events(_told(0, "completed"), _told(1, "completed"), ("ready", {}))


def _answers(node: FakeNode) -> None:
    service = {"serviceName": "lab", "members": [], "apps": ["hello_world"]}
    folder = {"entries": [{"name": "a.txt", "cid": "x", "type": "file", "size": 1}]}
    request = job()["requestId"]
    of_job = f"/jobs/{request}"
    refused = Raw(b'{"error": {"message": "it is a file", "hint": null, "code": "x"}}', 400)

    def output(asked: Asked) -> Any:
        return refused if "format" in asked.query else ranged(asked, b"hello")

    def console(asked: Asked) -> Any:
        told = {"attemptId": "a", "text": "hello\n", "nextOffset": 6}
        return events(("output", told), ("end", {})) if "follow" in asked.query else Raw(b"hello\n")

    for method, path, answer in (
        ("GET", "/services", {"services": [service]}),
        ("GET", "/services/lab", service),
        ("GET", "/services/lab/apps", {"apps": [_app()]}),
        ("GET", "/status", {"running": 0}),
        ("POST", "/jobs/batch", _taken),
        ("POST", "/jobs", job(batchId="b")),
        ("POST", "/jobs/find", {"job": None}),
        ("POST", "/content", {"cid": "bafkadded", "size": 1}),
        ("POST", "/content/urls", {"cid": "bafkadded", "size": 1}),
        ("POST", "/links", {"url": "http://127.0.0.1:1/open/code"}),
        ("DELETE", "/batches/b", {"canceled": 0}),
        ("GET", "/jobs", {"jobs": [job()], "nextCursor": None}),
        ("GET", f"/jobs/{job()['jobId']}", job()),
        ("GET", of_job, job()),
        ("DELETE", of_job, {"hidden": [request]}),
        ("POST", f"{of_job}/cancel", job(status="canceled")),
        ("GET", f"{of_job}/why", {"status": "completed"}),
        ("GET", f"{of_job}/console", console),
        ("GET", f"{of_job}/outputs/output", output),
        ("GET", f"{of_job}/outputs/folder", folder),
        ("GET", f"/results/{request}/provenance", {"jobs": []}),
        ("GET", "/events", _events),
    ):
        node.on(method, path, answer)


@pytest.mark.parametrize("module", MODULES, ids=lambda m: m.__name__)
def test_the_examples_run(
    module: ModuleType, node: FakeNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("README.md").write_text("read me")
    folder = {**job()["outputFileResults"][0], "name": "folder"}
    done = job(outputFileResults=[*job()["outputFileResults"], folder])
    assert SPEC["name"] == "hello_world"
    tests = doctest.DocTestFinder().find(module)
    assert sum(len(test.examples) for test in tests) > 0
    for test in tests:
        _answers(node)
        with Client() as client:
            pair = [PairioJob(client, job()), PairioJob(client, job(requestId=_id(2)))]
            test.globs |= {
                "client": client,
                "job": PairioJob(client, done),
                "batch": Batch(client, "b", pair),
                "Client": Client,
                "PairioJobDefinition": PairioJobDefinition,
                "PairioJobOutputFile": PairioJobOutputFile,
                "PairioJobParameter": PairioJobParameter,
            }
            result = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test)
        assert result.failed == 0, test.name
