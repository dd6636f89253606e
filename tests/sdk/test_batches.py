"""Many jobs as one: submitted in one call, told of by events; how they look; async the same."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
import trio

from pairio import _patient
from pairio._http_async import AsyncApi
from pairio._sse import Event, EventParser
from pairio.client import (
    AsyncClient,
    Batch,
    BatchProgress,
    Client,
    PairioJob,
    PairioJobDefinition,
    Service,
    _sync_watching,
)
from pairio.client._bodies import pages_of, swept, watch_query
from pairio.client._progress import ProgressBar, bar
from pairio.errors import (
    InvalidRequest,
    JobFailed,
    NodeNotRunning,
    NotFound,
    PairioError,
    RequestRefused,
    WaitTimeout,
)
from tests.sdk.fake_node import JOB_ID, Asked, FakeNode, Raw, events, job, ranged

SPEC = {
    "name": "hello_world",
    "processors": [
        {
            "name": "hello_world_2",
            "inputs": [{"name": "input"}],
            "outputs": [{"name": "output"}],
            "parameters": [{"name": "name", "type": "str"}],
        }
    ],
}
GREET = "hello_world/hello_world_2"


@pytest.fixture
def client(node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    for module in (_patient, _sync_watching):
        monkeypatch.setattr(module, "PAUSE_S", 0.01)
    node.on("GET", "/services", {"services": [{"serviceName": "lab", "members": [], "apps": []}]})
    node.on("GET", "/services/lab/apps", {"apps": [_app()]})
    node.on("POST", "/jobs/batch", _taken)
    node.on("POST", "/jobs", job(batchId="b"))
    with Client(reconnect_s=5) as made:
        yield made


def _app() -> dict[str, Any]:
    return {"appName": "hello_world", "bundle": "bafy", "appSpecification": SPEC}


def _id(number: int) -> str:
    return f"{number:064x}"


def _pending(number: int, **more: Any) -> dict[str, Any]:
    open_ = {"status": "pending", "isSettled": False, "safe": False, "batchId": "b"}
    outputs = [{**job()["outputFileResults"][0], "cid": None, "url": None, "size": None}]
    return job(requestId=_id(number), **{**open_, "outputFileResults": outputs, **more})


def _taken(asked: Asked) -> Any:
    """Take all jobs but those whose name is `bad`."""
    answers = []
    for number, body in enumerate(asked.body["jobs"]):
        values = {p["name"]: p["value"] for p in body["jobDefinition"]["parameters"]}
        if values.get("name") == "bad":
            error = {"message": "it is bad", "hint": "mend it", "code": "invalid"}
            answers.append({"error": error})
        else:
            definition = {**job()["jobDefinition"], **body["jobDefinition"]}
            answers.append(
                _pending(number, jobDefinition=definition, batchId=body["batchId"], error=None)
            )
    return {"jobs": answers}


def _told(number: int, status: str, **more: Any) -> tuple[str, dict[str, Any]]:
    return "job", {
        "requestId": _id(number),
        "jobId": JOB_ID,
        "status": status,
        "error": None,
        "isSettled": status in ("completed", "failed", "blocked", "canceled"),
        "safe": status == "completed",
        "cached": False,
        **more,
    }


# -- map, sweep, submit ------------------------------------------------------------------------


def test_a_thousand_jobs_are_one_call(client: Client, node: FakeNode) -> None:
    batch = client.map(GREET, ({"name": f"n{n}"} for n in range(1000)), tags=["t"])
    [asked] = node.calls("POST", "/jobs/batch")
    assert len(batch) == len(asked.body["jobs"]) == 1000
    assert asked.key
    first = asked.body["jobs"][0]
    assert first["jobDefinition"]["outputFiles"] == [{"name": "output", "fileBaseName": None}]
    assert first["jobDefinition"]["parameters"] == [{"name": "name", "value": "n0"}]
    assert (first["tags"], first["batchId"]) == (["t"], batch.batch_id)
    assert len({body["batchId"] for body in asked.body["jobs"]}) == 1
    client.map(GREET, [{"name": "x"}] * 2500)
    assert [len(a.body["jobs"]) for a in node.calls("POST", "/jobs/batch")[1:]] == [1000, 1000, 500]
    assert len({a.key for a in node.calls("POST", "/jobs/batch")}) == 4


def test_pages_are_bounded_in_bytes_too() -> None:
    bodies = [{"x": "y" * 2_500_000} for _ in range(5)]
    assert [len(page) for page in pages_of(bodies)] == [2, 2, 1]
    assert list(pages_of([])) == []


def test_a_sweep_is_every_combination() -> None:
    assert swept({"a": [1, 2], "b": range(2), "c": "xy"}) == [
        {"a": 1, "b": 0, "c": "xy"},
        {"a": 1, "b": 1, "c": "xy"},
        {"a": 2, "b": 0, "c": "xy"},
        {"a": 2, "b": 1, "c": "xy"},
    ]
    assert swept({"list": [[1, 2]]}) == [{"list": [1, 2]}]
    assert swept({"n": 5}) == [{"n": 5}]


def test_inputs_are_the_same_for_all_or_one_for_each(client: Client, node: FakeNode) -> None:
    def sent() -> list[Any]:
        jobs = node.calls("POST", "/jobs/batch")[-1].body["jobs"]
        return [[(i["name"], i["url"]) for i in j["jobDefinition"]["inputFiles"]] for j in jobs]

    two = [{"name": "a"}, {"name": "b"}]
    client.map(GREET, two, inputs={"input": "https://x/1"})
    assert sent() == [[("input", "https://x/1")]] * 2
    client.map(GREET, two, inputs=[{"input": "https://x/1"}, {"input": ["https://x/2"]}])
    assert sent() == [[("input", "https://x/1")], [("input[0]", "https://x/2")]]
    with pytest.raises(InvalidRequest, match="1 inputs for 2 jobs"):
        client.map(GREET, two, inputs=[{"input": "https://x/1"}])


@pytest.mark.parametrize("given", [{"name": ["a"]}, ["a", "b"], [{"name": "a"}, 7]])
def test_what_are_no_values_by_name_is_said(given: Any, client: Client) -> None:
    with pytest.raises(InvalidRequest, match="is no dict of values by name") as caught:
        client.map(GREET, given)
    assert caught.value.hint == "map takes a list of dicts; sweep takes one dict of lists"
    with pytest.raises(InvalidRequest, match="is no dict"):
        client.sweep(GREET, [given])  # type: ignore[arg-type]


def test_one_tag_is_not_its_letters(client: Client, node: FakeNode) -> None:
    client.submit(GREET, tags="alone")  # type: ignore[arg-type]
    assert node.calls("POST", "/jobs")[-1].body["tags"] == ["alone"]
    node.on("GET", "/jobs", {"jobs": [], "nextCursor": None})
    client.find_jobs(tags="alone")
    assert node.calls("GET", "/jobs")[-1].query["tag"] == "alone"


def test_what_the_node_does_not_take_is_said_job_by_job(client: Client) -> None:
    batch = client.map(GREET, [{"name": "a"}, {"name": "bad"}, {"name": "c"}])
    assert [len(batch), len(batch.refused)] == [2, 1]
    refused = batch.refused[0]
    assert (refused.index, str(refused.error), refused.error.hint) == (1, "it is bad", "mend it")
    with pytest.raises(RequestRefused, match="it is bad"):
        client.map(GREET, [{"name": "bad"}, {"name": "bad"}])


@pytest.mark.parametrize(
    ("name", "error", "says"),
    [
        ("hello_world", PairioError, "names no processor"),
        ("hello_world/nix", NotFound, "has no processor 'hello_world/nix'"),
    ],
)
def test_a_processor_that_is_not_there_is_said(
    name: str, error: type[PairioError], says: str, client: Client
) -> None:
    with pytest.raises(error, match=says) as caught:
        client.submit(name)
    assert caught.value.hint in ("write APP/PROCESSOR", f"it has: {GREET}")


def test_without_a_service_or_with_several_the_hint_names_them(
    client: Client, node: FakeNode
) -> None:
    node.on("GET", "/services", {"services": []})
    with pytest.raises(PairioError, match="in no service"):
        client.submit(GREET)
    node.on("GET", "/services", {"services": [{"serviceName": "a"}, {"serviceName": "b"}]})
    with pytest.raises(PairioError, match="which service") as caught:
        client.submit(GREET)
    assert caught.value.hint == "give service_name: a, b"


def test_an_app_that_was_installed_meanwhile_is_found(client: Client, node: FakeNode) -> None:
    node.on("GET", "/services/lab/apps", [{"apps": []}, {"apps": [_app()]}])
    assert client.submit(GREET, parameters={"name": "Ada"}).status == "completed"


# -- waiting by events -----------------------------------------------------------------------


def _batch(client: Client, count: int = 3) -> Batch:
    return Batch(client, "b", [PairioJob(client, _pending(n)) for n in range(count)])


def test_jobs_come_as_they_end(client: Client, node: FakeNode) -> None:
    batch = _batch(client)
    told = [_told(0, "pending"), _told(1, "running"), _told(2, "failed", error="it broke")]
    node.on(
        "GET", "/events", events(*told, ("ready", {}), _told(1, "completed"), _told(0, "canceled"))
    )
    node.on("GET", f"/jobs/{_id(1)}", job(requestId=_id(1)))
    over = [(job.requestId, job.status) for job in batch.as_completed(timeout=10)]
    assert over == [(_id(2), "failed"), (_id(1), "completed"), (_id(0), "canceled")]
    assert batch[1].outputs["output"].cid == "bafkx", "a completed one has its outputs"
    assert node.calls("GET", "/events")[0].query["requestId"] == ",".join(map(_id, range(3)))
    assert str(batch._counted()) == "3/3 done, 1 failed, 1 canceled"


def test_a_stream_that_breaks_off_is_begun_anew(client: Client, node: FakeNode) -> None:
    node.on(
        "GET",
        "/events",
        [
            events(_told(0, "completed"), cut=True),
            events(_told(0, "completed"), _told(1, "completed")),
            events(_told(1, "completed"), _told(2, "completed")),
        ],
    )
    batch = _batch(client).wait(10)
    assert [job.status for job in batch] == ["completed"] * 3
    assert len(node.calls("GET", "/events")) == 3
    last = node.calls("GET", "/events")[-1].query["requestId"]
    assert last == _id(2), "only what is left is watched"


def test_waiting_for_a_batch_ends_with_its_time(client: Client, node: FakeNode) -> None:
    node.on("GET", "/events", events(_told(0, "completed"), ("ready", {})))
    with pytest.raises(WaitTimeout, match=r"2 jobs are not over after 0\.05 s"):
        _batch(client).wait(0.05)
    _batch(client).wait_until_done(wait_sec=0.05)


def test_a_batch_raises_for_a_failure_when_asked_to(client: Client, node: FakeNode) -> None:
    node.on("GET", "/events", events(*(_told(n, "completed") for n in (0, 1)), _told(2, "failed")))
    assert _batch(client).wait(5)[2].status == "failed"
    with pytest.raises(JobFailed):
        _batch(client).wait(5, raise_on_failure=True)
    with pytest.raises(JobFailed):
        _batch(client).results(5)


def test_progress_asks_once_and_counts(client: Client, node: FakeNode) -> None:
    node.on("GET", "/events", events(_told(0, "running"), _told(1, "completed"), ("ready", {})))
    progress = _batch(client).progress()
    assert (progress.total, progress.running, progress.completed, progress.pending) == (3, 1, 1, 1)
    assert progress.done == 1
    assert len(node.calls("GET", "/events")) == 1


def test_what_failed_is_submitted_again_in_one_call(client: Client, node: FakeNode) -> None:
    jobs = [
        PairioJob(client, _pending(n, status=status, isSettled=True, tags=["t"]))
        for n, status in enumerate(("failed", "completed", "canceled", "blocked"))
    ]
    node.on("GET", f"/jobs/{_id(3)}", _pending(3))
    batch = Batch(client, "b", jobs)
    assert batch.retry_failed() == 2
    [asked] = node.calls("POST", "/jobs/batch")
    sent = [(b["rerunFailing"], b["batchId"], b["tags"]) for b in asked.body["jobs"]]
    assert sent == [(True, "b", ["t"])] * 2
    assert [job.status for job in batch] == ["pending", "completed", "pending", "pending"]
    assert Batch(client, "b", jobs[1:2]).retry_failed() == 0


def _secret_jobs(client: Client, node: FakeNode) -> Batch:
    """Return a batch in which jobs of three processors failed: each asks for other secrets."""
    asked: dict[str, list[str]] = {"none": [], "one": ["TOKEN"], "both": ["KEY", "TOKEN"]}
    processors = [{"name": name, "secrets": names} for name, names in asked.items()]
    del processors[0]["secrets"]
    app = {"appName": "hello", "appSpecification": {"processors": processors}}
    node.on("GET", "/services/lab/apps", {"apps": [app]})
    definitions = ({**job()["jobDefinition"], "processorName": name} for name in asked)
    over = {"status": "failed", "isSettled": True}
    jobs = [_pending(n, jobDefinition=d, **over) for n, d in enumerate(definitions)]
    return Batch(client, "b", [PairioJob(client, data) for data in jobs])


def test_a_retry_gives_each_job_the_secrets_that_it_asks_for(
    client: Client, node: FakeNode
) -> None:
    batch = _secret_jobs(client, node)
    given = {"TOKEN": "correct horse", "KEY": "battery staple"}
    assert batch.retry_failed(secrets=given) == 3
    [asked] = node.calls("POST", "/jobs/batch")
    token = {"TOKEN": "correct horse"}
    assert [b.get("secrets") for b in asked.body["jobs"]] == [None, token, given]
    assert "correct horse" not in repr(batch) + repr(batch.jobs)


def test_a_secret_that_no_job_of_a_retry_asks_for_is_refused(
    client: Client, node: FakeNode
) -> None:
    batch = _secret_jobs(client, node)
    with pytest.raises(InvalidRequest, match="none of the jobs asks for the secret 'TOKN'") as told:
        batch.retry_failed(secrets={"TOKN": "correct horse"})
    assert told.value.hint == "asked for: KEY, TOKEN"
    assert node.calls("POST", "/jobs/batch") == []
    node.on("GET", "/services/lab/apps", {"apps": []})
    assert Batch(client, "b", []).retry_failed(secrets={"TOKN": "correct horse"}) == 0


def test_a_job_that_runs_anew_is_given_its_secrets_again(client: Client, node: FakeNode) -> None:
    found = _secret_jobs(client, node)[1]
    found.rerun(skip_cache=True, secrets={"TOKEN": "correct horse"})
    found.rerun()
    given = [asked.body.get("secrets") for asked in node.calls("POST", "/jobs")]
    assert given == [{"TOKEN": "correct horse"}, None]


def test_what_is_watched_is_named_or_a_batch_or_everything(client: Client) -> None:
    few = [PairioJob(client, _pending(n)) for n in range(3)]
    assert watch_query(few) == {"request_ids": [_id(n) for n in range(3)], "service_name": "lab"}
    many = [PairioJob(client, _pending(n)) for n in range(60)]
    assert watch_query(many) == {"batch_id": "b", "service_name": "lab"}
    mixed = [PairioJob(client, _pending(n, batchId=f"b{n}")) for n in range(60)]
    assert watch_query(mixed) == {}


def test_jobs_of_many_batches_are_asked_for_one_by_one_at_first(
    client: Client, node: FakeNode
) -> None:
    jobs = [PairioJob(client, _pending(n, batchId=f"b{n}")) for n in range(60)]
    for number in range(59):
        node.on("GET", f"/jobs/{_id(number)}", job(requestId=_id(number)))
    node.on("GET", f"/jobs/{_id(59)}", _pending(59))
    node.on("GET", "/events", events(("ready", {}), _told(59, "failed")))
    assert len(list(client.as_completed(jobs, timeout=10))) == 60
    assert client.as_completed([], timeout=1).__next__ is not None


def test_a_batch_is_found_again(client: Client, node: FakeNode) -> None:
    pages = [
        {"jobs": [_pending(2), _pending(1)], "nextCursor": "c"},
        {"jobs": [_pending(0)], "nextCursor": None},
    ]
    node.on("GET", "/jobs", pages)
    assert [job.requestId for job in client.batch("b")] == [_id(0), _id(1), _id(2)]
    assert [asked.query.get("cursor") for asked in node.calls("GET", "/jobs")] == [None, "c"]
    node.on("GET", "/jobs", {"jobs": [], "nextCursor": None})
    with pytest.raises(NotFound, match="no job of batch 'gone'"):
        client.batch("gone")


def test_every_filter_of_a_search_is_sent(client: Client, node: FakeNode) -> None:
    node.on("GET", "/jobs", {"jobs": [], "nextCursor": None})
    client.find_jobs(
        service_name="lab", user="u", app="a", processor="p", node="n", batch_id="b",
        tags=["t1", "t2"], status=["failed", "blocked"], input="i", output="o", hidden=True,
    )  # fmt: skip
    assert node.calls("GET", "/jobs")[0].query == {
        "serviceName": "lab", "userId": "u", "appName": "a", "processorName": "p",
        "computeClientId": "n", "batchId": "b", "tag": "t1,t2", "status": "failed,blocked",
        "input": "i", "output": "o", "hidden": "True", "limit": "100",
    }  # fmt: skip


def test_a_definition_is_looked_for_without_submitting(client: Client, node: FakeNode) -> None:
    definition = PairioJobDefinition(appName="a", processorName="p")
    node.on("POST", "/jobs/find", {"jobId": "bafy", "job": None})
    assert client.find_job_by_definition(definition) is None
    node.on("POST", "/jobs/find", {"jobId": JOB_ID, "job": job()})
    found = client.find_job_by_definition(definition)
    assert found is not None
    assert found.status == "completed"
    assert node.calls("POST", "/jobs") == []


# -- events as bytes ----------------------------------------------------------------------------


def test_events_are_cut_out_of_any_chunks() -> None:
    text = b': alive\n\nid: 1\nevent: job\ndata: {"a":\ndata: 1}\n\n'
    text += b"event: ready\ndata: {}\n\nid: 3\n\n"
    for size in (1, 7, len(text)):
        parser = EventParser()
        chunks = [text[i : i + size] for i in range(0, len(text), size)]
        found = [event for chunk in chunks for event in parser.feed(chunk)]
        assert found == [Event("alive", None), Event("job", {"a": 1}), Event("ready", {})]
    for wrong in (b"data: {\n\n", b"x" * 5_000_000):
        with pytest.raises(NodeNotRunning, match="no stream of events"):
            list(EventParser().feed(wrong))


# -- how things look --------------------------------------------------------------------------

HOSTILE = "<script>alert('1')</script>"


def test_what_a_notebook_shows_is_escaped(client: Client) -> None:
    outputs = [
        {
            "name": HOSTILE,
            "fileBaseName": HOSTILE,
            "url": "javascript:alert(1)",
            "cid": "x",
            "size": 5,
        },
        {"name": "o", "fileBaseName": "o.txt", "url": 'http://h/"x', "cid": "x", "size": 2048},
    ]
    definition = {
        "appName": HOSTILE,
        "processorName": HOSTILE,
        "inputFiles": [],
        "outputFiles": [],
        "parameters": [{"name": HOSTILE, "value": HOSTILE}],
    }
    hostile = PairioJob(
        client,
        job(
            status="failed", error=HOSTILE, serviceName=HOSTILE, computeNodeId=HOSTILE,
            jobDefinition=definition, outputFileResults=outputs, jobUrl="javascript:x",
        ),
    )  # fmt: skip
    member = {"name": HOSTILE, "roles": [HOSTILE], "alive": True}
    service = Service({"serviceName": HOSTILE, "apps": [HOSTILE], "members": [member]})
    shown = [
        hostile._repr_html_(),
        Batch(client, HOSTILE, [hostile] * 30)._repr_html_(),
        service._repr_html_(),
    ]
    for html in shown:
        assert "<script" not in html
        assert "javascript:" not in html.replace("&", "")
        assert "&lt;script" in html
    assert 'href="http://h/&quot;x"' in shown[0]
    assert "2.0 kB" in shown[0]
    assert "and 10 more" in shown[1]


def test_the_bar_says_how_far_it_is(
    client: Client, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    progress = BatchProgress(total=10, completed=4, failed=1, running=2, pending=3)
    assert bar(progress, 12.3) == f"[{'#' * 15}{'-' * 15}] 5/10 done, 2 running, 1 failed, 12 s"
    assert "width:40.00%" in progress._repr_html_()
    ProgressBar().show(progress, last=True)
    assert capsys.readouterr().err == "", "nothing into a file or a pipe"
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    shown = ProgressBar()
    shown.show(progress)
    shown.show(progress)
    shown.show(progress, last=True)
    text = capsys.readouterr().err
    assert (text.count("5/10 done"), text.endswith("\n")) == (2, True)
    assert BatchProgress().done == 0


def test_what_running_jobs_say_of_themselves_moves_the_bar(client: Client, node: FakeNode) -> None:
    far = [_told(0, "running", progress=0.5), _told(1, "running"), ("ready", {})]
    node.on("GET", "/events", events(*far))
    batch = _batch(client)
    progress = batch.progress()
    assert [job.progress for job in batch] == [0.5, None, None]
    assert (progress.share, str(progress)) == (0.5 / 3, "0/3 done (17%), 2 running")
    assert bar(progress, 1).startswith(f"[{'#' * 5}{'-' * 25}] ")
    assert "running</b> 50%" in batch[0]._repr_html_()
    assert "width:16.67%" in progress._repr_html_()
    node.on("GET", "/events", events(_told(0, "completed"), ("ready", {})))
    assert batch.progress().partly == 0
    assert batch[0].progress is None


def test_a_job_shows_a_bar_while_it_is_waited_for(
    client: Client,
    node: FakeNode,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    node.on("GET", "/events", events(_told(0, "completed")))
    node.on("GET", f"/jobs/{_id(0)}", job(requestId=_id(0)))
    done = PairioJob(client, _pending(0)).wait(5, progress=True)
    assert "1/1 done" in capsys.readouterr().err
    assert done.outputs["output"].cid is not None
    node.on("GET", "/events", events(("alive", {}), ("alive", {})))
    node.on("GET", f"/jobs/{_id(0)}", _pending(0))
    with pytest.raises(WaitTimeout, match=r"pending after 0\.1 s"):
        PairioJob(client, _pending(0)).wait(0.1, progress=True)


def test_a_batch_shows_a_bar_while_it_is_waited_for(
    client: Client,
    node: FakeNode,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    node.on("GET", "/events", events(*(_told(n, "completed") for n in range(3))))
    _batch(client).wait(5, progress=True)
    assert "3/3 done" in capsys.readouterr().err


# -- the console -------------------------------------------------------------------------------


def _said(text: str, offset: int) -> tuple[str, dict[str, Any]]:
    return "output", {"attemptId": "a", "text": text, "nextOffset": offset}


def test_the_console_is_followed_over_a_break(client: Client, node: FakeNode) -> None:
    path = f"/jobs/{job()['requestId']}/console"
    node.on("GET", "/services", {"services": []})
    client.services()
    node.on(
        "GET",
        path,
        [
            events(_said("one\n", 4), cut=True),
            events(("alive", {})),
            events(_said("two\n", 8), ("end", {"status": "completed"})),
        ],
    )
    node.on("GET", f"/jobs/{job()['requestId']}", job())
    running = PairioJob(client, job(status="running", isSettled=False))
    assert list(running.follow()) == ["one\n", "two\n"]
    assert running.status == "completed"
    asked = [a.query.get("offset") for a in node.calls("GET", path)]
    assert asked == [None, "4", "4"]


def test_a_batch_is_canceled_in_one_call(client: Client, node: FakeNode) -> None:
    node.on("DELETE", "/batches/b", {"canceled": 2})
    node.on("GET", "/events", events(*(_told(n, "canceled") for n in range(3)), ("ready", {})))
    batch = _batch(client)
    assert batch.cancel() == 2
    assert {job.status for job in batch} == {"canceled"}


# -- outputs -----------------------------------------------------------------------------------


def test_outputs_are_read_opened_and_downloaded(
    client: Client, node: FakeNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = PairioJob(client, job())
    path = f"/jobs/{job()['requestId']}/outputs/output"
    refused = {"error": {"message": "it is a file", "hint": None, "code": "invalid"}}

    def answer(asked: Asked) -> Any:
        is_list = asked.query.get("format") == "json"
        text = "grüß".encode()
        return Raw(json.dumps(refused).encode(), 400) if is_list else ranged(asked, text)

    node.on("GET", path, answer)
    output = done.outputs["output"]
    assert output.read_text() == "grüß"
    with output.open() as file:
        assert file.read(2) == b"gr"
        assert file.seek(0) == 0
    with pytest.raises(PairioError, match="no text in ascii"):
        output.read_text(encoding="ascii")
    target = output.download(tmp_path / "here.txt")
    assert target.read_text() == "grüß"
    with pytest.raises(PairioError, match="is there already"):
        output.download(target)
    output.download(target, overwrite=True)
    with pytest.raises(PairioError, match="cannot write"):
        output.download(tmp_path / "no" / "where.txt")
    monkeypatch.chdir(tmp_path)
    assert output.download() == Path("output.txt")
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_file()) == ["here.txt", "output.txt"]


def test_a_folder_is_downloaded_and_stays_inside(
    client: Client, node: FakeNode, tmp_path: Path
) -> None:
    inside = [
        {"name": "a.txt", "cid": "x", "type": "file", "size": 1},
        {"name": "sub", "cid": "y", "type": "folder", "size": 1},
    ]
    lists = {"": inside, "sub": [{"name": "b.txt", "cid": "z", "type": "file", "size": 1}]}

    def answer(asked: Asked) -> Any:
        where = asked.query.get("path", "")
        return {"entries": lists[where]} if "format" in asked.query else Raw(where.encode())

    node.on("GET", f"/jobs/{job()['requestId']}/outputs/output", answer)
    output = PairioJob(client, job()).outputs["output"]
    output.download(tmp_path / "got")
    assert (tmp_path / "got" / "a.txt").read_text() == "a.txt"
    assert (tmp_path / "got" / "sub" / "b.txt").read_text() == "sub/b.txt"
    for name in ("../x", "..", "/etc/passwd", "a/b", ""):
        lists[""] = [{"name": name, "cid": "x", "type": "file", "size": 1}]
        with pytest.raises(PairioError, match="is no name for a file"):
            output.download(tmp_path / "evil")
        assert not (tmp_path / "x").exists()
        (tmp_path / "evil").rmdir()


# -- async ------------------------------------------------------------------------------------


def _async_round(node: FakeNode) -> Any:
    async def run() -> list[str]:
        async with AsyncClient(reconnect_s=5) as client:
            first = await client.submit(GREET, parameters={"name": "Ada"})
            text = await first.outputs["output"].read_text()
            batch = await client.map(GREET, [{"name": "a"}, {"name": "b"}, {"name": "c"}])
            over = [job.status async for job in batch.as_completed(10)]
            with pytest.raises(NotFound):
                await client.find_job("bafygone")
            async with anyio.create_task_group() as tasks:
                for _ in range(20):
                    tasks.start_soon(first.refresh)
            return [first.status, text, *over]

    return run


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_the_async_client_does_the_same_on_either_loop(
    backend: str, client: Client, node: FakeNode
) -> None:
    request = job()["requestId"]
    node.on("GET", f"/jobs/{request}", job())
    node.on("GET", f"/jobs/{request}/outputs/output", Raw(b"hello"))
    told = [_told(n, "completed") for n in range(3)]
    node.on("GET", "/events", [events(told[0], cut=True), events(*told)])
    for number in range(3):
        node.on("GET", f"/jobs/{_id(number)}", job(requestId=_id(number)))
    got = anyio.run(_async_round(node), backend=backend)
    assert got == ["completed", "hello", "completed", "completed", "completed"]


async def test_an_async_call_that_is_cancelled_leaves_no_answer_to_the_next(
    node: FakeNode,
) -> None:
    node.on("GET", "/status", [{"n": 1}, {"n": 2}])
    api = AsyncApi()
    assert await api.call("GET", "/api/v1/status") == {"n": 1}
    with trio.CancelScope() as scope:
        scope.cancel()
        await api.call("GET", "/api/v1/status")
    assert await api.call("GET", "/api/v1/status") == {"n": 2}
    assert len(api._idle) == 1
    await api.close()


async def test_async_streams_close_their_connection(node: FakeNode) -> None:
    node.on("GET", "/big", Raw(b"x" * 1_000_000))
    api = AsyncApi()
    stream = api.stream("/api/v1/big")
    assert await anext(stream)
    await stream.aclose()
    assert api._idle == []
    node.on("GET", "/big", Raw(b"x" * 1_000_000, cut=10))
    with pytest.raises(NodeNotRunning, match="in the middle"):
        async for _ in api.stream("/api/v1/big"):
            pass


# -- jobs as inputs ----------------------------------------------------------------------------


def test_jobs_batches_and_what_is_generated_are_inputs(client: Client, node: FakeNode) -> None:
    first = client.submit(GREET)
    batch = client.map(GREET, [{"name": "a"}, {"name": "b"}])
    many = ({"input": [job, first.outputs["output"]]} for job in batch)
    client.map(GREET, ({"name": str(n)} for n in range(2)), inputs=many)
    client.map(GREET, [{}, {}], inputs={"input": (job for job in batch)})
    client.submit(GREET, inputs={"input": first})
    client.submit(GREET, inputs={"input": batch})
    reference = f"job:{JOB_ID}/output"
    bodies = [b for asked in node.calls("POST", "/jobs/batch")[1:] for b in asked.body["jobs"]]
    bodies += [asked.body for asked in node.calls("POST", "/jobs")[1:]]
    given = [[(i["name"], i["url"]) for i in b["jobDefinition"]["inputFiles"]] for b in bodies]
    pair = [("input[0]", reference), ("input[1]", reference)]
    assert given == [pair, pair, pair, pair, [("input", reference)], pair]
    outputs = [{**job()["outputFileResults"][0], "name": name} for name in ("x", "y")]
    with pytest.raises(InvalidRequest, match="a job with 2 outputs") as caught:
        client.submit(GREET, inputs={"input": PairioJob(client, job(outputFileResults=outputs))})
    assert caught.value.hint == "name one: job.outputs['x'] or job.outputs['y']"


# -- the guide -----------------------------------------------------------------------------


def test_the_guides_python_runs(
    client: Client, node: FakeNode, capsys: pytest.CaptureFixture[str]
) -> None:
    request = job()["requestId"]
    for name in (request, _id(0), _id(1)):
        node.on("GET", f"/jobs/{name}", job(requestId=name))
        node.on("GET", f"/jobs/{name}/outputs/output", Raw(b"hello"))
    node.on("GET", "/events", events(_told(0, "completed"), _told(1, "completed"), ("ready", {})))
    count = {**SPEC["processors"][0], "name": "count_characters"}  # type: ignore[dict-item]
    spec = {"name": "hello_world", "processors": [*SPEC["processors"], count]}
    node.on("GET", "/services/lab/apps", {"apps": [{**_app(), "appSpecification": spec}]})
    names: dict[str, Any] = {"names": ["Ada", "Grace"], "AsyncClient": AsyncClient}
    guide = (Path(__file__).parents[2] / "docs" / "sdk.md").read_text()
    blocks = [block.split("```")[0] for block in guide.split("```python\n")[1:]]
    assert len(blocks) >= 4
    for block in blocks:
        if "async with" not in block:
            exec(block, names)
            continue
        inner = "\n".join(f"    {line}" for line in block.split("\n"))
        exec(f"async def example():\n{inner}", names)
        anyio.run(names["example"])
    names["client"].close()
    assert "2/2 done" in capsys.readouterr().out
