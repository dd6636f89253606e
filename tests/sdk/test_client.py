"""submit_job and jobs: the original's names, over a fake node."""

import inspect
import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from pairio.client import (
    PairioJob,
    PairioJobDefinition,
    PairioJobInputFile,
    PairioJobOutputFile,
    PairioJobParameter,
    PairioJobRequiredResources,
    find_job,
    find_jobs,
    submit_job,
)
from pairio.errors import NodeNotRunning, PairioError, RequestRefused
from tests.sdk.fake_node import JOB_ID, FakeNode, Raw, job

REQUEST = job()["requestId"]


def _definition(**changed: Any) -> PairioJobDefinition:
    return PairioJobDefinition(
        **{
            "appName": "hello",
            "processorName": "greet",
            "outputFiles": [PairioJobOutputFile(name="output", fileBaseName="output.txt")],
            "parameters": [PairioJobParameter(name="name", value="Ada")],
            **changed,
        }
    )


def _submitted(node: FakeNode, **arguments: Any) -> PairioJob:
    node.on("POST", "/jobs", arguments.pop("answer", job()))
    return submit_job(job_definition=arguments.pop("definition", _definition()), **arguments)


# -- the original's names ------------------------------------------------------------------


def test_submit_job_has_the_originals_arguments() -> None:
    parameters = inspect.signature(submit_job).parameters
    originals = {
        *("service_name", "job_definition", "required_resources", "tags"),
        *("skip_cache", "rerun_failing", "delete_failing"),
    }
    assert originals <= set(parameters)
    assert all(p.kind is p.KEYWORD_ONLY for p in parameters.values())


def test_a_job_has_the_originals_attributes(node: FakeNode) -> None:
    answer = job(
        **dict.fromkeys(("timestampStartingSec", "timestampStartedSec")),
        timestampCreatedSec=1.0,
        timestampFinishedSec=2.0,
        userId="12D3KooWme",
        batchId="",
        jobDependencies=[],
    )
    found = _submitted(node, answer=answer)
    for name in (
        *("jobId", "jobPrivateKey", "serviceName", "userId", "batchId", "tags", "jobDefinition"),
        *("jobDefinitionHash", "jobDependencies", "requiredResources", "secrets"),
        *("inputFileUrlList", "outputFileUrlList", "outputFileResults", "consoleOutputUrl"),
        *("resourceUtilizationLogUrl", "timestampCreatedSec", "timestampStartingSec"),
        *("timestampStartedSec", "timestampFinishedSec", "canceled", "status", "isRunnable"),
        *("error", "computeClientId", "computeClientName", "imageUri", "job_url"),
    ):
        getattr(found, name)
    assert found.job_url == answer["jobUrl"]
    assert found.jobDefinition.appName == found.jobDefinition["appName"] == "hello"
    assert found.jobDefinition.parameters[0].value == "Ada"
    assert found.requiredResources.numCpus == 1
    assert [r.fileBaseName for r in found.outputFileResults] == ["output.txt"]
    assert found.outputFileUrlList == ["http://127.0.0.1:2/ipfs/x"]
    with pytest.raises(AttributeError, match="no attribute 'colour'"):
        _ = found.colour
    with pytest.raises(AttributeError, match="'nix'"):
        _ = found.jobDefinition.nix
    json.dumps(found.as_dict())


def test_the_body_is_what_the_node_takes(node: FakeNode) -> None:
    resources = PairioJobRequiredResources(numCpus=2, numGpus=1, memoryGb=0.5, timeSec=60)
    _submitted(
        node,
        service_name="lab",
        required_resources=resources,
        tags=["t"],
        skip_cache=True,
        definition=_definition(cacheBust="1"),
        target_compute_client_ids=["12D3KooWbob"],
    )
    [asked] = node.calls("POST", "/jobs")
    assert asked.token == node.token
    assert asked.body == {
        "serviceName": "lab",
        "jobDefinition": {
            "appName": "hello",
            "processorName": "greet",
            "inputFiles": [],
            "outputFiles": [{"name": "output", "fileBaseName": "output.txt"}],
            "parameters": [{"name": "name", "value": "Ada"}],
            "cacheBust": "1",
        },
        "requiredResources": {"numCpus": 2.0, "numGpus": 1, "memoryGb": 0.5, "timeSec": 60.0},
        "tags": ["t"],
        "skipCache": True,
        "rerunFailing": False,
        "deleteFailing": False,
        "batchId": "",
        "targetComputeClientIds": ["12D3KooWbob"],
    }


def test_delete_failing_reruns(node: FakeNode) -> None:
    _submitted(node, delete_failing=True)
    assert node.calls("POST", "/jobs")[0].body["rerunFailing"] is True


@pytest.mark.parametrize("value", ["x", 3, 0.5, 5.0, True, [0.5], ["a"], None])
def test_a_parameter_keeps_its_value_and_type(value: Any, node: FakeNode) -> None:
    _submitted(node, definition=_definition(parameters=[PairioJobParameter(name="n", value=value)]))
    [sent] = node.calls("POST", "/jobs")[0].body["jobDefinition"]["parameters"]
    assert (sent["value"], type(sent["value"])) == (value, type(value))


def test_an_unknown_field_of_a_definition_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="colour"):
        PairioJobDefinition(appName="a", processorName="p", colour="red")  # type: ignore[call-arg]


# -- outputs and inputs ----------------------------------------------------------------------


def test_an_output_serves_as_an_input_before_it_exists(node: FakeNode) -> None:
    first = _submitted(node, answer=job(status="pending", isSettled=False))
    second = _definition(
        inputFiles=[
            PairioJobInputFile(name="a", fileBaseName="a.txt", url=first.get_output("output")),
            PairioJobInputFile(name="b", url="https://example.org/b"),
        ]
    )
    _submitted(node, definition=second)
    sent = node.calls("POST", "/jobs")[1].body["jobDefinition"]["inputFiles"]
    assert [entry["url"] for entry in sent] == [f"job:{JOB_ID}/output", "https://example.org/b"]
    assert second.inputFiles[0].url == first.get_output("output"), "the caller's is left alone"


def test_get_output_names_those_that_exist(node: FakeNode) -> None:
    found = _submitted(node)
    output = found.get_output("output")
    assert (output.jobId, output.name, output.fileBaseName) == (JOB_ID, "output", "output.txt")
    assert (output.url, output.size) == ("http://127.0.0.1:2/ipfs/x", 5)
    with pytest.raises(PairioError, match="no output 'nix'") as caught:
        found.get_output("nix")
    assert caught.value.hint == "its outputs: output"


def test_an_output_and_the_console_are_read(node: FakeNode) -> None:
    found = _submitted(node)
    node.on("GET", f"/jobs/{REQUEST}/outputs/output", Raw(b"x" * 600_000))
    node.on("GET", f"/jobs/{REQUEST}/console", Raw("é\n".encode() + b"\xff"))
    assert found.get_output("output").read() == b"x" * 600_000
    assert found.console() == "é\n\ufffd"
    node.on("GET", f"/jobs/{REQUEST}/outputs/output", Raw(b"x" * 600_000, cut=300_000))
    found._client.reconnect_s = 0
    with pytest.raises(NodeNotRunning, match="stopped in the middle"):
        found.get_output("output").read()


# -- waiting ---------------------------------------------------------------------------------


def test_wait_until_done_asks_until_the_job_has_settled(node: FakeNode) -> None:
    running = job(status="running", isSettled=False)
    found = _submitted(node, answer=running)
    node.on("GET", f"/jobs/{REQUEST}/wait", [running, running, job()])
    found.wait_until_done()
    assert found.status == "completed"
    waits = node.calls("GET", f"/jobs/{REQUEST}/wait")
    assert len(waits) == 3
    assert {w.query["serviceName"] for w in waits} == {"lab"}


def test_wait_until_done_ends_with_its_time(node: FakeNode) -> None:
    running = job(status="running", isSettled=False)
    found = _submitted(node, answer=running)
    node.on("GET", f"/jobs/{REQUEST}/wait", running)
    found.wait_until_done(wait_sec=0.02)
    assert found.status == "running"
    assert float(node.calls("GET", f"/jobs/{REQUEST}/wait")[0].query["timeoutSec"]) <= 0.02


def test_a_submit_that_waits_is_one_call_where_that_is_enough(node: FakeNode) -> None:
    assert _submitted(node, wait_sec=60).status == "completed"
    [asked] = node.calls("POST", "/jobs")
    assert asked.query == {"waitSec": "30.0"}  # no longer in one call
    assert node.calls("GET", f"/jobs/{REQUEST}/wait") == []
    _submitted(node)
    assert node.calls("POST", "/jobs")[-1].query == {}


def test_a_submit_that_waits_goes_on_waiting_and_ends_with_its_time(node: FakeNode) -> None:
    running = job(status="running", isSettled=False)
    node.on("GET", f"/jobs/{REQUEST}/wait", [running, job()])
    assert _submitted(node, answer=running, wait_sec=60).status == "completed"
    node.on("GET", f"/jobs/{REQUEST}/wait", running)
    assert _submitted(node, answer=running, wait_sec=0.02).status == "running"


def test_a_failed_job_does_not_raise(node: FakeNode) -> None:
    found = _submitted(node, answer=job(status="failed", error="it broke"))
    found.wait_until_done()
    assert (found.status, found.error) == ("failed", "it broke")
    assert node.calls("GET", f"/jobs/{REQUEST}/wait") == []


def test_refresh_asks_for_the_present_state(node: FakeNode) -> None:
    found = _submitted(node, answer=job(status="pending"))
    node.on("GET", f"/jobs/{REQUEST}", job(status="running"))
    found.refresh()
    assert found.status == "running"


def test_jobs_are_found(node: FakeNode) -> None:
    node.on("GET", f"/jobs/{JOB_ID}", job())
    node.on("GET", "/jobs", {"jobs": [job(), job(status="failed")]})
    assert find_job(JOB_ID).jobId == JOB_ID
    assert [j.status for j in find_jobs(status="failed", tag="t", limit=3)] == [
        "completed",
        "failed",
    ]
    assert node.calls("GET", "/jobs")[0].query == {"status": "failed", "tag": "t", "limit": "3"}
    with pytest.raises(RequestRefused) as caught:
        find_job("bafygone")
    assert (caught.value.status, caught.value.code) == (404, "not_found")
    assert caught.value.hint == "look elsewhere"


# -- where the node is: PAIRIO_API_URL, PAIRIO_API_KEY, PAIRIO_SERVICE_NAME, PAIRIO_HOME --------


def test_the_service_comes_from_the_environment(
    node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PAIRIO_SERVICE_NAME", "from environment")
    _submitted(node)
    _submitted(node, service_name="given")
    names = [a.body["serviceName"] for a in node.calls("POST", "/jobs")]
    assert names == ["from environment", "given"]


def _local(node: FakeNode, token: str | None = None) -> None:
    """Make the fake node the one of this machine's home."""
    home = Path(os.environ["PAIRIO_HOME"])
    home.mkdir(exist_ok=True)
    (home / "api.json").write_text(json.dumps({"url": node.url, "token": token or node.token}))


def test_a_leftover_key_of_the_original_does_not_break_the_local_default(
    node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PAIRIO_API_URL")
    monkeypatch.setenv("PAIRIO_API_KEY", "x" * 32)
    _local(node)
    assert _submitted(node).status == "completed"
    assert node.asked[0].token == node.token


def test_a_key_counts_for_the_node_that_the_url_names(
    node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PAIRIO_API_KEY", "wrong")
    with pytest.raises(RequestRefused, match="no token that allows this"):
        _submitted(node)


def test_without_a_node_the_error_says_what_to_do(
    node: FakeNode, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("PAIRIO_API_URL")
    with pytest.raises(NodeNotRunning, match=r"no node runs on .*home") as none:
        _submitted(node)
    assert none.value.hint == "start one: pairio-node run; wait for its line `ready`"
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "api.json").write_text("{")
    with pytest.raises(NodeNotRunning, match="cannot read"):
        _submitted(node)
    (tmp_path / "home" / "api.json").write_text('{"url": "http://127.0.0.1:9", "token": "x"}')
    with pytest.raises(NodeNotRunning, match=r"no node answers at http://127\.0\.0\.1:9"):
        _submitted(node)


def test_a_restarted_node_is_found_again(node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PAIRIO_API_URL")
    _local(node)
    found = _submitted(node)
    node.token = "after the restart"
    _local(node)
    node.on("GET", f"/jobs/{REQUEST}", job(status="running"))
    found.refresh()
    assert found.status == "running"
    with FakeNode(dict(node.answers), token="on another port") as other:
        _local(other)
        node.token = "gone"
        found.refresh()
        assert [a.token for a in other.asked] == ["on another port"]
        found._client.close()


def test_a_connection_closed_while_idle_is_opened_again(node: FakeNode) -> None:
    found = _submitted(node)
    node.on("GET", f"/jobs/{REQUEST}", [Raw(json.dumps(job()).encode(), cut=100_000), job()])
    found.refresh()  # after this answer the server closes the connection
    found.refresh()
    assert len(node.calls("GET", f"/jobs/{REQUEST}")) == 2


def test_threads_do_not_share_a_connection(node: FakeNode) -> None:
    found = _submitted(node)
    together = threading.Barrier(4)

    def answer(asked: Any) -> Any:
        together.wait(5)
        return job(status=asked.query["serviceName"])

    node.on("GET", f"/jobs/{REQUEST}", answer)
    seen: list[str] = []

    def refresh(name: str) -> None:
        own = PairioJob(found._client, job(serviceName=name))
        own.refresh()
        seen.append(own.status)
        found._client.close()

    threads = [threading.Thread(target=refresh, args=(f"s{i}",)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert sorted(seen) == ["s0", "s1", "s2", "s3"]


@pytest.mark.parametrize("url", ["https://pairio.vercel.app", "http://h:x", "nonsense"])
def test_a_wrong_url_is_named(url: str, node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAIRIO_API_URL", url)
    with pytest.raises(NodeNotRunning, match="PAIRIO_API_URL is") as caught:
        _submitted(node)
    assert "unset it" in str(caught.value.hint)
