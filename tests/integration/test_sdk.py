"""The SDK with real nodes: workflows, failures, cancels, many jobs, a node that dies meanwhile."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest

from pairio.client import (
    AsyncClient,
    Client,
    PairioJob,
    PairioJobDefinition,
    PairioJobOutputFile,
    PairioJobParameter,
)
from pairio.errors import Conflict, InvalidRequest, JobBlocked, JobFailed
from pairio_cli.patient import AWAY
from tests.integration.conftest import RunningNode, launch
from tests.integration.waiting import until

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]

EXAMPLES = Path(__file__).parents[2] / "examples"
WAIT_S = 120
STEP = "flow/step"
_SPEC = {
    "name": "flow",
    "processors": [
        {
            "name": "step",
            "executable": "step.py",
            "inputs": [{"name": "inputs", "list": True}],
            "outputs": [{"name": "output"}],
            "parameters": [
                {"name": "text", "type": "str"},
                {"name": "number", "type": "Optional[float]"},
                {"name": "seconds", "type": "float", "defaultValue": 0.0},
                {"name": "needs", "type": "str", "defaultValue": ""},
            ],
        }
    ],
}
#: Says that it runs: a line too many is a job that ran twice. Fails while what it needs is missing.
_STEP = """
import json, os, sys, time
job = json.load(open(os.environ["PAIRIO_JOB_FILE"]))
given = {p["name"]: p["value"] for p in job["parameters"]}
with open(MARK, "a") as file:
    file.write(given["text"] + "\\n")
print("running", given["text"], flush=True)
time.sleep(given["seconds"])
if given["needs"] and not os.path.exists(given["needs"]):
    sys.exit("error: what it needs is missing")
parts = [open(entry["path"]).read() for entry in job["inputs"]]
with open(job["outputs"][0]["path"], "w") as file:
    file.write(given["text"] + "".join(f"({part})" for part in parts))
"""


class Lab:
    """A node whose jobs are processes of this machine, a client of it, and what has run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.mark = folder / "mark"
        self.home = folder / "home"
        self.node: RunningNode
        tools = folder / "bin"
        tools.mkdir()
        for tool in ("prlimit", "sh", "env"):
            (tools / tool).symlink_to(str(shutil.which(tool)))
        app = folder / "app"
        app.mkdir()
        (app / "spec.json").write_text(json.dumps(_SPEC))
        (app / "step.py").write_text(f"MARK = {str(self.mark)!r}\n{_STEP}")

    def start(self, program: str = "pairio_cli.node_entry", *arguments: str) -> RunningNode:
        self.node = launch(self.home, "--allow-process", "flow", *arguments, program=program)
        return self.node

    def ran(self) -> list[str]:
        return self.mark.read_text().split() if self.mark.exists() else []


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    made = Lab(tmp_path)
    for name in ("PAIRIO_API_URL", "PAIRIO_API_KEY", "PAIRIO_SERVICE_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PAIRIO_HOME", str(made.home))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    made.start()
    made.node.call("POST", "services", {"name": "lab"})
    made.node.call("POST", "services/lab/apps", {"source": str(tmp_path / "app")})
    yield made
    if made.node.process.poll() is None:
        made.node.stop()


@pytest.fixture
def client(lab: Lab) -> Iterator[Client]:
    with Client(reconnect_s=WAIT_S) as made:
        yield made


def _step(client: Client, text: str, *after: PairioJob, **more: Any) -> PairioJob:
    parameters = {"text": text, **more.pop("parameters", {})}
    inputs = {"inputs": [job.outputs["output"] for job in after]}
    return client.submit(STEP, inputs=inputs, parameters=parameters, **more)


# -- workflows -------------------------------------------------------------------------------


def test_a_diamond_and_a_chain_of_fifty(client: Client, lab: Lab) -> None:
    a = _step(client, "a")
    b, c = _step(client, "b", a), _step(client, "c", a)
    d = _step(client, "d", b, c)
    assert d.result(WAIT_S)["output"].read_text() == "d(b(a))(c(a))"
    assert sorted(lab.ran()) == ["a", "b", "c", "d"]
    last = a
    for number in range(50):
        last = _step(client, f"n{number}", last)
    text = last.result(WAIT_S)["output"].read_text()
    assert text == "(".join(f"n{n}" for n in range(49, -1, -1)) + "(a" + ")" * 50
    assert last.isRunnable
    assert "n49" in last.console()
    assert len(last.provenance()["jobs"]) >= 51


def test_the_second_run_of_two_hundred_jobs_runs_nothing(client: Client, lab: Lab) -> None:
    def run() -> tuple[list[PairioJob], float]:
        began = time.monotonic()
        layer = list(client.map(STEP, [{"text": f"0-{n}"} for n in range(50)]))
        jobs = layer[:]
        for depth in range(1, 4):
            inputs = [
                {"inputs": [layer[n].outputs["output"], layer[(n + 1) % 50].outputs["output"]]}
                for n in range(50)
            ]
            parameters = [{"text": f"{depth}-{n}"} for n in range(50)]
            layer = list(client.map(STEP, parameters, inputs=inputs))
            jobs += layer
        list(client.as_completed(jobs, timeout=WAIT_S))
        return jobs, time.monotonic() - began

    first, first_s = run()
    assert {job.status for job in first} == {"completed"}
    assert len(lab.ran()) == 200
    second, second_s = run()
    assert len(lab.ran()) == 200, "nothing ran"
    assert [job.jobId for job in second] == [job.jobId for job in first]
    assert all(job.cached and job.status == "completed" for job in second)
    print(f"200 jobs: {first_s:.2f} s, again: {second_s:.2f} s")


def test_a_failed_job_blocks_what_rests_on_it_until_it_is_run_again(
    client: Client, lab: Lab
) -> None:
    needed = lab.folder / "needed"
    first = _step(client, "first", parameters={"needs": str(needed)})
    second = _step(client, "second", first)
    third = _step(client, "third", second)
    over = list(client.as_completed([first, second, third], timeout=WAIT_S))
    assert sorted(job.status for job in over) == ["blocked", "blocked", "failed"]
    assert "what it needs is missing" in str(first.error)
    with pytest.raises(JobFailed, match="what it needs is missing"):
        first.result()
    for job in (second, third):
        with pytest.raises(JobBlocked, match="failed"):
            job.result()
    assert first.jobId in str(second.error)
    assert second.why()["blockedBy"] == first.jobId
    cached = _step(client, "first", parameters={"needs": str(needed)})
    assert (cached.status, cached.cached) == ("failed", True), "a failure is a hit"
    needed.touch()
    again = first.rerun()
    assert again.result(WAIT_S)["output"].read_text() == "first"
    released = [second.refresh(), third.refresh()]
    list(client.as_completed(released, timeout=WAIT_S))
    assert third.wait(WAIT_S).outputs["output"].read_text() == "third(second(first))"
    assert sorted(lab.ran()) == ["first", "first", "second", "third"]


def test_what_failed_in_a_batch_is_run_again_and_the_rest_is_not(client: Client, lab: Lab) -> None:
    needed = lab.folder / "needed"
    batch = client.sweep(STEP, {"text": ["a", "b"], "needs": ["", str(needed)]})
    with pytest.raises(JobFailed):
        batch.wait(WAIT_S, raise_on_failure=True)
    assert str(batch.progress()) == "4/4 done, 2 failed"
    needed.touch()
    assert batch.retry_failed() == 2
    assert [outputs["output"].read_text() for outputs in batch.results(WAIT_S)] == list("aabb")
    assert sorted(lab.ran()) == ["a", "a", "a", "b", "b", "b"]
    again = client.batch(batch.batch_id)
    assert {job.requestId for job in again} == {job.requestId for job in batch}
    assert batch.progress().completed == 4


def test_a_submit_that_waits_has_the_end_of_the_job_or_of_its_time(
    client: Client, lab: Lab
) -> None:
    assert _step(client, "quick", wait_sec=WAIT_S).status == "completed"
    slow = _step(client, "slow", parameters={"seconds": 600.0}, wait_sec=0.5)
    assert slow.status in ("pending", "starting", "running")
    slow.cancel()


# -- cancel, delete --------------------------------------------------------------------------


def test_a_canceled_run_ends_within_a_second_and_the_job_can_be_hidden(
    client: Client, lab: Lab
) -> None:
    job = _step(client, "slow", parameters={"seconds": 60.0})
    console, said = job.follow(), ""
    while "running slow" not in said:  # it may come in pieces
        said += next(console)
    console.close()
    with pytest.raises(Conflict, match="is running"):
        job.delete()
    began = time.monotonic()
    job.cancel()
    assert job.status == "canceled"
    until("its run is over", lambda: client.status()["running"] == 0)
    took_s = time.monotonic() - began
    until("it is said", lambda: [a["ended"] for a in job.refresh().attempts] == ["canceled"])
    print(f"cancel: {took_s * 1000:.0f} ms")
    other = _step(client, "quick").wait(WAIT_S)
    job.delete()
    assert [found.jobId for found in client.find_jobs()] == [other.jobId]
    assert len(client.find_jobs(hidden=True)) == 2
    assert client.find_job(job.jobId).status == "canceled"


def test_what_somebody_else_wants_goes_on(client: Client, lab: Lab) -> None:
    mine = _step(client, "shared", parameters={"seconds": 2.0})
    theirs = _step(client, "shared", parameters={"seconds": 2.0})
    assert mine.jobId == theirs.jobId
    mine.cancel()
    assert theirs.wait(WAIT_S).status == "completed"
    assert lab.ran() == ["shared"]


# -- inputs, parameters ----------------------------------------------------------------------


def test_files_bytes_floats_and_none_are_taken(client: Client, lab: Lab) -> None:
    path = lab.folder / "data.txt"
    path.write_text("from a file")
    job = client.submit(
        STEP,
        inputs={"inputs": [path, b"from bytes"]},
        parameters={"text": "x", "number": 0.5, "seconds": 0},
    )
    assert job.result(WAIT_S)["output"].read_text() == "x(from a file)(from bytes)"
    none = _step(client, "x", parameters={"number": None})
    left_out = _step(client, "x")
    assert none.jobId == left_out.jobId
    [found] = client.find_jobs(input=job.jobDefinition.inputFiles[0].url)
    assert found.jobId == job.jobId
    with pytest.raises(InvalidRequest) as caught:
        _step(client, "x", parameters={"number": float("nan")})
    assert caught.value.status == 400


# -- many ------------------------------------------------------------------------------------


def test_a_thousand_jobs_in_one_call(client: Client, lab: Lab) -> None:
    client.apps()
    lab.node.call("GET", "status")
    began = time.monotonic()
    batch = client.map(STEP, [{"text": f"n{n}", "seconds": 600.0} for n in range(1000)])
    took_s = time.monotonic() - began
    print(f"1,000 jobs submitted in {took_s:.2f} s")
    assert len(batch) == 1000
    assert took_s < 20, "2 s on a machine with nothing else to do"
    progress = batch.progress()
    assert (progress.total, progress.done) == (1000, 0)
    assert batch.cancel() == 1000
    assert batch.progress().canceled == 1000


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_the_async_client_with_a_real_node(backend: str, lab: Lab) -> None:
    async def run() -> list[str]:
        async with AsyncClient(reconnect_s=WAIT_S) as client:
            first = await client.submit(STEP, inputs={"inputs": [b"x"]}, parameters={"text": "a"})
            inputs = {"inputs": [first.outputs["output"]]}
            batch = await client.map(STEP, [{"text": t} for t in "bcd"], inputs=inputs)
            printed = [text async for text in batch[0].follow()]
            texts = [
                await job.outputs["output"].read_text() async for job in batch.as_completed(WAIT_S)
            ]
            return ["".join(printed), str(await batch.progress()), *sorted(texts)]

    got = anyio.run(run, backend=backend)
    assert got == ["running b\n", "3/3 done", "b(a(x))", "c(a(x))", "d(a(x))"]


# -- a node that dies --------------------------------------------------------------------------


def _meanwhile(client: Client, call: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    """Make a call in a thread; what it returned or raised is in the list when that is over."""
    got: list[Any] = []

    def run() -> None:
        try:
            got.append(call())
        except Exception as error:
            got.append(error)
        finally:
            client.close()  # this thread's connection

    thread = threading.Thread(target=run)
    thread.start()
    return thread, got


def _die_in_the_middle(client: Client, lab: Lab, call: Callable[[], Any]) -> Any:
    """Let the node die between the commit and the answer of a call, and start it again."""
    (lab.home / "die").touch()
    thread, got = _meanwhile(client, call)
    assert lab.node.process.wait(WAIT_S) != 0
    assert lab.node.process.stdout is not None
    lab.node.process.stdout.close()
    lab.start()
    thread.join(WAIT_S)
    assert not thread.is_alive()
    if isinstance(got[0], Exception):
        raise got[0]
    return got[0]


def test_nothing_is_submitted_twice_when_the_node_dies_before_it_answers(
    client: Client, lab: Lab
) -> None:
    lab.node.stop()
    lab.start("tests.integration.dying", "--no-watchdog")
    assert client.status()["services"] == ["lab"]
    job = _die_in_the_middle(client, lab, lambda: _step(client, "once", skip_cache=True))
    assert job.wait(WAIT_S).status == "completed"
    assert [found.requestId for found in client.find_jobs()] == [job.requestId]
    assert lab.ran() == ["once"]

    lab.node.stop()
    lab.start("tests.integration.dying", "--no-watchdog", "--no-compute")
    client.status()
    names = [{"text": f"n{n}"} for n in range(200)]  # more than one commit holds
    batch = _die_in_the_middle(client, lab, lambda: client.map(STEP, names, skip_cache=True))
    found = client.find_jobs(batch_id=batch.batch_id, limit=1000)
    assert {job.requestId for job in found} == {job.requestId for job in batch}
    assert (len(found), len(batch.refused)) == (200, 0)
    batch.cancel()


def test_without_a_key_it_would_be_submitted_twice(client: Client, lab: Lab) -> None:
    """That the test above can fail."""
    lab.node.stop()
    lab.start("tests.integration.dying", "--no-watchdog")
    client.status()
    ask = client._api.call
    client._api.call = lambda *a, **k: ask(*a[:4])  # type: ignore[method-assign]
    _die_in_the_middle(client, lab, lambda: _step(client, "twice", skip_cache=True))
    assert len(client.find_jobs()) == 2


def test_who_waits_goes_on_over_a_restart(client: Client, lab: Lab) -> None:
    batch = client.map(STEP, [{"text": f"n{n}", "seconds": 1.0} for n in range(6)])
    thread, got = _meanwhile(client, lambda: batch.wait(WAIT_S))
    until("one runs", lab.ran)
    lab.node.stop()
    lab.start()
    thread.join(WAIT_S)
    assert got == [batch]
    assert {job.status for job in batch} == {"completed"}
    assert sorted(lab.ran()) == [f"n{n}" for n in range(6)], "what ran went on"


@pytest.mark.parametrize("how", ["stops", "is killed"])
def test_a_first_submit_that_waits_goes_on_over_a_restart(lab: Lab, how: str) -> None:
    values: dict[str, Any] = {"text": "once", "seconds": 3.0}
    definition = PairioJobDefinition(
        appName="flow",
        processorName="step",
        outputFiles=[PairioJobOutputFile(name="output")],
        parameters=[PairioJobParameter(name=n, value=v) for n, v in values.items()],
    )
    with Client(reconnect_s=WAIT_S) as client:
        thread, got = _meanwhile(
            client, lambda: client.submit_job(job_definition=definition, wait_sec=WAIT_S)
        )
        until("it runs", lab.ran)
        if how == "stops":
            assert lab.node.stop() == 0
        else:
            lab.node.process.kill()
            lab.node.process.wait(WAIT_S)
            assert lab.node.process.stdout is not None
            lab.node.process.stdout.close()
        lab.start()
        thread.join(WAIT_S)
        assert [found.status for found in got] == ["completed"], got
        assert [found.requestId for found in client.find_jobs()] == [got[0].requestId]
        assert lab.ran() == ["once"]


@pytest.mark.parametrize("how", ["stops", "is killed"])
def test_commands_that_wait_go_on_over_a_restart(lab: Lab, how: str) -> None:
    given = ("-p", "text=once", "-p", "seconds=4.0", "--batch", "b")
    submit = _command(lab, "submit", STEP, *given, "--wait")
    until("it runs", lab.ran)
    [job] = lab.node.get("jobs")["jobs"]
    others = [
        _command(lab, "job", "wait", job["jobId"]),
        _command(lab, "batch", "wait", "b"),
        _command(lab, "job", "logs", "-f", job["jobId"]),
    ]
    until("all have asked", lambda: all(map(_is_connected, others)))
    if how == "stops":
        assert lab.node.stop() == 0
    else:
        lab.node.process.kill()
        lab.node.process.wait(WAIT_S)
        assert lab.node.process.stdout is not None
        lab.node.process.stdout.close()
    lab.start()
    said = [process.communicate(timeout=WAIT_S) for process in (submit, *others)]
    ends = [process.returncode for process in (submit, *others)]
    assert ends == [0] * 4, said
    outs = [out for out, _ in said]
    assert outs == [f"{job['jobId']}\n", "completed\n", "1 completed\n", "running once\n"]
    assert [err.count(AWAY) for _, err in said] == [1] * 4, said
    assert [found["requestId"] for found in lab.node.get("jobs")["jobs"]] == [job["requestId"]]
    assert lab.ran() == ["once"]


def _is_connected(process: "subprocess.Popen[str]") -> bool:
    return bool(psutil.Process(process.pid).net_connections("tcp"))


def _command(lab: Lab, *arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", "from pairio_cli.main import main; main()", *arguments],
        env=lab.node.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


# -- the examples ------------------------------------------------------------------------------


def test_the_originals_batch_idiom_and_map(lab: Lab, client: Client) -> None:
    lab.node.call("POST", "services", {"name": "hello_world_service"})
    lab.node.call("POST", "services/hello_world_service/apps", {"source": "hello_world"})
    first = _example(lab, "batch_of_the_original.py")
    assert len(first) == 5
    done = client.find_jobs(tag="example-batch")
    list(client.as_completed(done, timeout=WAIT_S))
    assert _example(lab, "batch_of_the_original.py")[-1] == "{'completed': 4}"
    mapped = _example(lab, "map.py", "hello_world_service")
    assert mapped[-1] == "3/3 done"
    assert sum(" completed " in line for line in mapped) == 3


def _example(lab: Lab, name: str, *arguments: str) -> list[str]:
    ran = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments],
        env={**lab.node.environment, "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        timeout=WAIT_S,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip().split("\n")
