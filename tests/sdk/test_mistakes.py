"""What a user sees of mistakes: an error of pairio's own, with a hint that says what to do."""

import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from pairio.client import AsyncClient, Client, PairioJob
from pairio.errors import (
    InvalidRequest,
    NodeNotRunning,
    NoSuchOutput,
    NotAllowed,
    NotFound,
    PairioError,
)
from tests.sdk.fake_node import FakeNode, Raw, job
from tests.sdk.test_batches import GREET, _app


@pytest.fixture
def client(node: FakeNode) -> Iterator[Client]:
    node.on("GET", "/services", {"services": [{"serviceName": "lab", "members": [], "apps": []}]})
    node.on("GET", "/services/lab/apps", {"apps": [_app()]})
    node.on("POST", "/jobs", job())
    with Client() as made:
        yield made


def _sync(url: str, token: str) -> None:
    with Client(url, token) as client:
        client.status()


def _async(url: str, token: str) -> None:
    async def ask() -> None:
        async with AsyncClient(url, token) as client:
            await client.status()

    anyio.run(ask)


@pytest.mark.parametrize("ask", [_sync, _async], ids=["sync", "async"])
def test_no_node_another_program_and_a_wrong_token_are_told_apart(
    ask: Callable[[str, str], None], node: FakeNode
) -> None:
    for url, hint in (("http://127.0.0.1:9", "start it: pairio-node run"), ("x", "use one such")):
        with pytest.raises(NodeNotRunning) as caught:
            ask(url, "")
        assert hint in str(caught.value.hint)
    with pytest.raises(NotAllowed, match="no token that allows this"):
        ask(node.url, "wrong")
    node.on("GET", "/status", Raw(b"<html>"))
    with pytest.raises(NodeNotRunning, match="is no pairio node"):
        ask(node.url, node.token)


def test_a_node_that_lacks_a_call_may_be_older(client: Client, node: FakeNode) -> None:
    body = b'{"error": {"message": "GET /x: Not Found", "hint": "see", "code": "http"}}'
    node.on("GET", "/status", Raw(body, 404))
    with pytest.raises(NotFound) as caught:
        client.status()
    assert "may be older than this program" in str(caught.value.hint)


@pytest.mark.parametrize("given", ["brackets", "get_output"])
def test_an_output_that_is_not_there_says_which_are(given: str, client: Client) -> None:
    made = PairioJob(client, job())
    with pytest.raises(NoSuchOutput) as caught:
        made.outputs["nope"] if given == "brackets" else made.get_output("nope")
    assert str(caught.value) == "the job has no output 'nope'"
    assert caught.value.hint == "its outputs: output"
    assert isinstance(caught.value, KeyError)
    assert made.outputs.get("nope") is None


def test_resources_are_given_as_a_dict_as_well(client: Client, node: FakeNode) -> None:
    client.submit(GREET, required_resources={"numCpus": 2})
    asked = node.calls("POST", "/jobs")[0].body["requiredResources"]
    assert asked == {"numCpus": 2, "numGpus": 0, "memoryGb": 4, "timeSec": 3600}
    with pytest.raises(InvalidRequest, match="cpus") as caught:
        client.submit(GREET, required_resources={"cpus": 2})
    assert "numCpus" in str(caught.value.hint)


def test_text_that_names_a_file_here_is_no_input_by_accident(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("data.csv").write_text("1")
    with pytest.raises(InvalidRequest, match=r"'data.csv' is a file here") as caught:
        client.submit(GREET, inputs={"input": "data.csv"})
    assert "pathlib.Path('data.csv')" in str(caught.value.hint)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda client: client.submit("hello_world"),
        lambda client: client.submit("hello_world/none"),
        lambda client: client.submit(GREET, inputs={"input": 3}),
        lambda client: client.submit(GREET, inputs={"input": Path("/nowhere/x")}),
        lambda client: client.submit(GREET, parameters={"name": object()}),
        lambda client: client.map(GREET, {"name": ["a"]}),
        lambda client: client.sweep(GREET, [1]),
        lambda client: client.service("none"),
        lambda client: client.find_job("none"),
        lambda client: client.batch("none"),
        lambda client: PairioJob(client, job(status="failed", error="it broke")).result(1),
    ],
)
def test_every_error_says_what_to_do(wrong: Callable[[Client], Any], client: Client) -> None:
    with pytest.raises(PairioError) as caught:
        wrong(client)
    assert caught.value.hint


def test_a_traceback_says_what_to_do() -> None:
    shown = "".join(traceback.format_exception(PairioError("no service was named", "name one")))
    assert shown.endswith("PairioError: no service was named\nhint: name one\n")
    assert "hint" not in "".join(traceback.format_exception(PairioError("no")))
