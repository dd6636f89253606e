"""What is done with jobs before and after they are submitted, one and many: on a fake node."""

import json
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from pairio_cli.patient import AWAY
from tests.cli.conftest import Run
from tests.cli.test_commands import APP, SERVICE
from tests.sdk.fake_node import JOB_ID, REQUEST_ID, Asked, FakeNode, Raw, job

OTHER_ID = "bafyreic7kdsq3rfykcb3ltzy5v5tzo3x5z4z4m5s6u7v2w3x4y5z6a7b8c"
PLAN: dict[str, Any] = {
    "jobId": JOB_ID,
    "serviceName": "lab",
    "jobDefinition": job()["jobDefinition"],
    "requiredResources": job()["requiredResources"],
    "isHit": False,
    "why": "a miss: no result of this definition is known here or at the members asked",
    "hitStatus": None,
    "computeNodeId": None,
    "computedBy": None,
    "waitsFor": [],
    "blockedBy": None,
    "maySubmit": True,
    "nearest": {
        "jobId": OTHER_ID,
        "status": "completed",
        "timestampCreatedSec": 1_700_000_000.0,
        "submittedBy": "Ada",
        "differences": [{"field": "parameters.name", "this": "Ada", "that": "Bob"}],
    },
    "nodes": [
        {"name": "Ada", "peerId": "12D3KooWada", "fits": True, "rule": "", "need": "", "have": ""},
        {"name": "Bob", "peerId": "p", "fits": False, "rule": "CPUs", "need": "8", "have": "4"},
    ],
}
BATCH: dict[str, Any] = {
    "batchId": "nightly",
    "serviceName": "lab",
    "jobs": 2,
    "statuses": {"completed": 1, "failed": 1},
    "isOver": True,
    "timestampCreatedSec": 1_700_000_000.0,
    "timestampLastSec": 1_700_000_060.0,
}
NODE: dict[str, Any] = {
    "name": "Ada",
    "peerId": "12D3KooWada",
    "serviceName": "lab",
    "roles": ["submit"],
    "isThis": True,
    "isConnected": True,
    "isAlive": True,
    "computes": True,
    "slots": 4,
    "free": 3,
    "running": 1,
    "numCpus": 4,
    "memoryGb": 8,
    "numGpus": 0,
    "isolation": "medium",
}
GRAPH: dict[str, Any] = {
    "jobId": JOB_ID,
    "serviceName": "lab",
    "isWhole": True,
    "jobs": [
        {
            "jobId": OTHER_ID,
            "status": "completed",
            "error": None,
            "computeNodeId": "12D3KooWada",
            "requiredResources": None,
            "jobDefinition": job()["jobDefinition"],
        },
        {
            "jobId": JOB_ID,
            "status": "running",
            "error": None,
            "computeNodeId": None,
            "requiredResources": job()["requiredResources"],
            "jobDefinition": {
                **job()["jobDefinition"],
                "inputFiles": [
                    {"name": n, "fileBaseName": "x", "url": f"job:{OTHER_ID}/output"} for n in "ab"
                ],
            },
        },
    ],
    "edges": [
        {"fromJobId": OTHER_ID, "outputName": "output", "toJobId": JOB_ID, "inputName": name}
        for name in "ab"
    ],
}


def lines(*events: dict[str, Any]) -> Raw:
    """Return a console as the node tells it."""
    return Raw(b"".join(json.dumps(event).encode() + b"\n" for event in events))


def talk(status: str = "completed", error: str | None = None) -> Raw:
    """Return what a job says, with something that would rename the window of a terminal."""
    return lines(
        {"type": "status", "status": "pending", "error": None, "computeNodeId": None},
        {"type": "attempt", "attemptId": "a1", "number": 1, "computeNodeId": "12D3KooWworker"},
        {"type": "output", "attemptId": "a1", "offset": 0, "text": "one\n", "nextOffset": 4},
        {"type": "alive"},
        {"type": "gap", "attemptId": "a1", "bytes": 9},
        {"type": "attempt", "attemptId": "a2", "number": 2, "computeNodeId": "12D3KooWother"},
        {"type": "output", "attemptId": "a2", "offset": 0, "text": "two \x1b]0;x\x07\n"},
        {"type": "end", "status": status, "error": error},
    )


def _with_next(raw: Raw) -> Raw:
    """Add where each output ends."""
    events = [json.loads(line) for line in raw.body.splitlines()]
    for event in events:
        if event["type"] == "output":
            event.setdefault("nextOffset", event["offset"] + len(event["text"]))
    return lines(*events)


@pytest.fixture
def lab(node: FakeNode) -> FakeNode:
    """A node with a service, an app, a job, a batch."""
    node.on("GET", "/services", {"services": [SERVICE]})
    node.on("GET", "/services/lab/apps", {"apps": [APP]})
    node.on("POST", "/jobs", job())
    node.on("POST", "/jobs/plan", PLAN)
    node.on("GET", "/jobs", {"jobs": [job()], "nextCursor": None})
    node.on("GET", f"/jobs/{JOB_ID}", job())
    node.on("GET", f"/jobs/{REQUEST_ID}", job())
    for name in (JOB_ID, REQUEST_ID):
        node.on("GET", f"/jobs/{name}/console", _with_next(talk()))
    node.on("GET", f"/jobs/{JOB_ID}/graph", GRAPH)
    node.on("DELETE", f"/jobs/{JOB_ID}", {"hidden": [REQUEST_ID]})
    node.on("GET", "/batches", {"batches": [BATCH]})
    node.on("GET", "/batches/nightly", BATCH)
    node.on("DELETE", "/batches/nightly", {**BATCH, "canceled": 2})
    node.on(
        "GET", "/nodes", {"nodes": [NODE, {**NODE, "name": "Bob", "isAlive": False, "running": 0}]}
    )
    return node


# -- lists -----------------------------------------------------------------------------------


def test_job_ls_hands_every_filter_on_and_reads_page_after_page(lab: FakeNode, run: Run) -> None:
    page = {"jobs": [job()] * 1000, "nextCursor": "7-a"}
    lab.on("GET", "/jobs", [page, {"jobs": [job()] * 500, "nextCursor": "9-b"}])
    filters = ("--user", "Ada", "--app", "a", "--processor", "p", "--node", "n", "--batch", "b")
    listed = run("job", "ls", *filters, "--hidden", "--limit", "1500", "--json")
    assert len(json.loads(listed.out)) == 1500
    assert listed.err == "There are more: --limit 3000\n"
    first, second = lab.asked
    assert first.query == {
        "userId": "Ada",
        "appName": "a",
        "processorName": "p",
        "computeClientId": "n",
        "batchId": "b",
        "hidden": "true",
        "limit": "1000",
    }
    assert (second.query["cursor"], second.query["limit"]) == ("7-a", "500")


def test_ids_are_shortened_and_differ(lab: FakeNode, run: Run) -> None:
    twins = [job(jobId=f"{start}{JOB_ID[-12:]}") for start in ("bafyx", "bafyy")]
    lab.on("GET", "/jobs", {"jobs": [*twins, job()], "nextCursor": None})
    shown = [line.split()[0] for line in run("job", "ls").out.splitlines()[1:]]
    assert len(set(shown)) == 3
    assert all(JOB_ID.endswith(name[-10:]) for name in shown)


def test_node_ls_shows_who_is_there_and_what_is_free(lab: FakeNode, run: Run) -> None:
    shown = run("node", "ls")
    assert shown.out.splitlines()[1].split()[:2] == ["Ada", "(this"]
    assert "3/4" in shown.out
    assert "away" in shown.out.splitlines()[2]
    assert json.loads(run("node", "ls", "--json").out)[0] == NODE


# -- following -------------------------------------------------------------------------------


@pytest.fixture
def run_raw(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Any:
    """Run `pairio` and return (code, out, err), whatever stands in them."""

    def command(*arguments: str) -> tuple[Any, str, str]:
        from pairio_cli import main

        monkeypatch.setattr(sys, "argv", ["pairio", *arguments])
        capfd.readouterr()
        with pytest.raises(SystemExit) as left:
            main.main()
        return (left.value.code, *capfd.readouterr())

    return command


def test_what_is_output_is_data_and_the_rest_is_not(lab: FakeNode, run_raw: Any) -> None:
    code, out, err = run_raw("job", "logs", "-f", JOB_ID)
    assert (code, out) == (0, "one\ntwo \x1b]0;x\x07\n"), "piped it is as it was"
    assert "[pending]\n[on" in err
    assert "[9 bytes left out]\n[attempt 2 on" in err
    assert f"Job {JOB_ID[-10:]} completed (" in err
    lab.on("GET", f"/jobs/{REQUEST_ID}/console", _with_next(talk("failed", "it broke")))
    code, _, err = run_raw("job", "logs", "-f", JOB_ID)
    assert (code, "is failed: it broke\n\nhint: pairio job why" in err) == (1, True)


def test_nothing_of_a_job_does_something_to_a_terminal(
    lab: FakeNode, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.on("POST", "/jobs", job(isSettled=False, status="pending"))
    lab.on("GET", f"/jobs/{REQUEST_ID}/wait", job(error="\x1b[2Jgone"))
    followed = run("submit", "hello/greet", "--follow")  # the fixture refuses escapes
    assert followed.code == 0
    assert "two \n" in followed.err
    evil = job(tags=["\x1b]52;c;x\x07t\x9b2J"], error="\x1b[2Jno", status="failed")
    lab.on("GET", "/jobs", {"jobs": [evil], "nextCursor": None})
    lab.on("GET", f"/jobs/{JOB_ID}", evil)
    lab.on("POST", f"/jobs/{JOB_ID}/cancel", evil)
    for command in (("job", "ls"), ("job", "show", JOB_ID), ("job", "cancel", JOB_ID)):
        shown = run(*command)
        assert "\x9b" not in shown.out + shown.err
    assert json.loads(run("job", "show", JOB_ID, "--json").out) == evil
    assert "\x9b" not in run("job", "show", JOB_ID, "--json").out


def test_a_node_that_is_away_for_a_moment_is_asked_again_from_there(
    lab: FakeNode, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pairio._patient.PAUSE_S", 0.0)
    first = lines(
        {"type": "attempt", "attemptId": "a1", "number": 1, "computeNodeId": "12D3KooWworker"},
        {"type": "output", "attemptId": "a1", "offset": 0, "text": "one\n", "nextOffset": 4},
    )
    second = lines(
        {"type": "output", "attemptId": "a1", "offset": 4, "text": "two\n", "nextOffset": 8},
        {"type": "end", "status": "completed", "error": None},
    )
    lab.on("GET", f"/jobs/{REQUEST_ID}/console", [first, second])
    shown = run("job", "logs", "-f", JOB_ID)
    assert (shown.code, shown.out) == (0, "one\ntwo\n")
    assert shown.err.count(AWAY) == 1
    again = lab.calls("GET", f"/jobs/{REQUEST_ID}/console")[1]
    assert (again.query["attempt"], again.query["offset"]) == ("a1", "4")


def test_a_time_limit_ends_the_following_only(lab: FakeNode, run: Run) -> None:
    import threading

    pending = job(status="running", isSettled=False)
    waited = threading.Event()

    def silent(_: Asked) -> Raw:
        waited.wait(20)
        return talk()

    lab.on("POST", "/jobs", pending)
    lab.on("GET", f"/jobs/{REQUEST_ID}/console", silent)
    ended = run("submit", "hello/greet", "--follow", "--timeout", "0.3", "--json")
    waited.set()
    assert ended.code == 4
    assert json.loads(ended.out) == pending
    assert "the job goes on" in ended.err


# -- again, away, waiting --------------------------------------------------------------------


def test_rerun_runs_anew_what_completed_and_what_failed(lab: FakeNode, run: Run) -> None:
    assert run("job", "rerun", JOB_ID).code == 0
    lab.on("GET", f"/jobs/{JOB_ID}", job(status="failed", error="no"))
    assert run("job", "rerun", JOB_ID, "--wait").code == 0
    first, second = (asked.body for asked in lab.calls("POST", "/jobs"))
    assert (first["skipCache"], first["rerunFailing"]) == (True, False)
    assert (second["skipCache"], second["rerunFailing"]) == (False, True)
    assert first["jobDefinition"] == job()["jobDefinition"]
    assert first["tags"] == ["t"]


def test_rm_hides_here(lab: FakeNode, run: Run) -> None:
    gone = run("job", "rm", JOB_ID)
    assert (gone.code, gone.out) == (0, "")
    assert "Hidden on this node: 1 request;" in gone.err


@pytest.mark.parametrize(
    ("status", "settled", "code"),
    [("completed", True, 0), ("failed", True, 1), ("canceled", True, 1), ("running", False, 4)],
)
def test_wait_ends_as_the_job_did(
    status: str, settled: bool, code: int, lab: FakeNode, run: Run
) -> None:
    found = job(status=status, isSettled=settled, error="why" if code == 1 else None)
    lab.on("GET", f"/jobs/{JOB_ID}", job(status="running", isSettled=False))
    lab.on("GET", f"/jobs/{REQUEST_ID}/wait", found)
    waited = run("job", "wait", JOB_ID, "--timeout", "0.2")
    assert (waited.code, waited.out) == (code, f"{status}\n")
    assert ("hint: pairio job why" in waited.err) == (code != 0)


# -- plans, explanations, graphs -------------------------------------------------------------


def test_a_dry_run_submits_nothing_and_says_what_would_be(lab: FakeNode, run: Run) -> None:
    planned = run("submit", "hello/greet", "-p", "name=Ada", "--dry-run")
    assert (planned.code, planned.out) == (0, f"{JOB_ID}\n")
    assert "a miss: no result" in planned.err
    assert "parameters.name: Ada here, Bob there" in planned.err
    assert "could run now on: Ada\n  not on Bob: CPUs: needs 8, has 4" in planned.err
    assert lab.calls("POST", "/jobs") == []
    assert json.loads(run("submit", "hello/greet", "--dry-run", "--json").out) == PLAN


def test_explain_shows_the_difference_field_by_field(lab: FakeNode, run: Run) -> None:
    told = {
        "jobId": JOB_ID,
        "requestId": REQUEST_ID,
        "isHit": False,
        "why": "a miss: it is new",
        "answer": None,
        "nearest": PLAN["nearest"],
    }
    lab.on("GET", f"/jobs/{JOB_ID}/explain", told)
    shown = run("job", "explain", JOB_ID)
    assert (shown.code, shown.err) == (0, "")
    assert shown.out.startswith("a miss: it is new\nnearest earlier job: ")
    assert shown.out.endswith("  parameters.name: Ada here, Bob there\n")
    run("job", "explain", JOB_ID, "--with", OTHER_ID)
    assert lab.asked[-1].query == {"with": OTHER_ID}
    assert json.loads(run("job", "explain", JOB_ID, "--json").out) == told


def test_a_graph_is_a_tree_that_draws_nothing_twice(lab: FakeNode, run: Run) -> None:
    drawn = run("job", "graph", JOB_ID)
    assert (drawn.code, drawn.err) == (0, "")
    assert drawn.out == (
        f"hello/greet {JOB_ID[-10:]}  running\n"
        f"├─ a <- output of hello/greet {OTHER_ID[-10:]}  completed\n"
        f"└─ b <- output of hello/greet {OTHER_ID[-10:]}  completed\n"
    )
    dot = run("job", "graph", JOB_ID, "--format", "dot").out
    assert dot.startswith("digraph job {\n")
    assert f'"{OTHER_ID}" -> "{JOB_ID}" [label="output -> a"];' in dot
    assert json.loads(run("job", "graph", JOB_ID, "--format", "json").out) == GRAPH


def test_a_chain_of_thousands_is_drawn(lab: FakeNode, run: Run) -> None:
    names = [f"bafy{number:040}" for number in range(3000)]
    chain = {
        **GRAPH,
        "jobId": names[-1],
        "jobs": [{**GRAPH["jobs"][0], "jobId": name} for name in names],
        "edges": [
            {"fromJobId": a, "outputName": "o", "toJobId": b, "inputName": "i"}
            for a, b in pairwise(names)
        ],
    }
    lab.on("GET", f"/jobs/{JOB_ID}/graph", chain)
    assert len(run("job", "graph", JOB_ID).out.splitlines()) == 3000


def test_a_script_of_a_job_that_is_not_known_whole_is_none(lab: FakeNode, run: Run) -> None:
    lab.on("GET", f"/jobs/{JOB_ID}/graph", {**GRAPH, "isWhole": False})
    refused = run("job", "script", JOB_ID)
    assert (refused.code, refused.out) == (1, "")


def test_a_script_is_python_whatever_the_job_is_called(
    lab: FakeNode, run: Run, tmp_path: Path
) -> None:
    definition = {**job()["jobDefinition"], "appName": 'x"""\n\\', "cacheBust": "it's"}
    definition["parameters"] = [{"name": "p", "value": [1.5, True, "\x1b[2J"]}]
    last = {**GRAPH["jobs"][1], "jobDefinition": definition}
    lab.on("GET", f"/jobs/{JOB_ID}/graph", {**GRAPH, "jobs": [GRAPH["jobs"][0], last]})
    file = tmp_path / "again.py"
    assert run("job", "script", JOB_ID, "-o", str(file)).code == 0
    compile(file.read_text(), "again.py", "exec")
    assert run("job", "script", JOB_ID).out == file.read_text()


# -- batches ---------------------------------------------------------------------------------


def test_batches_are_listed_shown_canceled(lab: FakeNode, run: Run) -> None:
    listed = run("batch", "ls")
    assert "1 completed, 1 failed" in listed.out
    assert json.loads(run("batch", "ls", "--json").out) == [BATCH]
    shown = run("batch", "show", "nightly")
    assert "jobs       2: 1 completed, 1 failed" in shown.out
    assert json.loads(run("batch", "show", "nightly", "--json").out) == {
        **BATCH,
        "members": [job()],
    }
    canceled = run("batch", "cancel", "nightly")
    assert "Canceled 2 jobs of batch 'nightly' (" in canceled.err


def test_waiting_for_a_batch_ends_as_the_worst_of_it(lab: FakeNode, run: Run) -> None:
    failed = run("batch", "wait", "nightly")
    assert (failed.code, "hint: pairio batch retry nightly" in failed.err) == (1, True)
    done = {**BATCH, "statuses": {"completed": 2}}
    lab.on("GET", "/batches/nightly", [{**BATCH, "isOver": False}, done])
    running = job(status="running", isSettled=False)
    lab.on("GET", "/jobs", {"jobs": [running], "nextCursor": None})
    lab.on("GET", f"/jobs/{REQUEST_ID}/wait", job())
    waited = run("batch", "wait", "nightly")
    assert (waited.code, waited.out) == (0, "2 completed\n")
    lab.on("GET", "/batches/nightly", {**BATCH, "isOver": False})
    lab.on("GET", f"/jobs/{REQUEST_ID}/wait", running)
    assert run("batch", "wait", "nightly", "--timeout", "0.1").code == 4


def test_a_console_on_a_terminal_does_nothing_to_it(
    lab: FakeNode, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = "gr\u00fcn \x1b[31mred\x1b[0m \x1b]0;title\x07end\n".encode()
    lab.on("GET", f"/jobs/{JOB_ID}/console", Raw(said))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert run("job", "logs", JOB_ID).out == "gr\u00fcn red end\n"


def test_a_retry_submits_what_failed_last_again(lab: FakeNode, run: Run) -> None:
    jobs = [
        job(jobId="bafya", status="completed"),
        job(jobId="bafyb", status="failed"),
        job(jobId="bafya", status="failed"),  # older: it was tried again already
    ]
    lab.on("GET", "/jobs", {"jobs": jobs, "nextCursor": None})
    refusal = {"error": {"message": "no app", "hint": "", "code": "invalid"}}
    lab.on("POST", "/jobs/batch", [{"jobs": [job(jobId="bafyb")]}, {"jobs": [refusal]}])
    again = run("batch", "retry", "nightly")
    assert (again.code, again.out) == (0, "bafyb\n")
    [body] = [asked.body["jobs"] for asked in lab.calls("POST", "/jobs/batch")]
    assert [entry["rerunFailing"] for entry in body] == [True]
    refused = run("batch", "retry", "nightly")
    assert (refused.code, "no app" in refused.err) == (1, True)


def test_a_retry_of_what_rests_on_other_jobs_names_the_one_that_failed(
    lab: FakeNode, run: Run
) -> None:
    blocked = job(status="blocked", error="input job bafyroot failed: it broke")
    lab.on("GET", "/jobs", {"jobs": [blocked], "nextCursor": None})
    lab.on("GET", f"/jobs/{REQUEST_ID}/why", {"failedJob": "bafyreirootjobthatfailed"})
    again = run("batch", "retry", "nightly")
    assert (again.code, again.out) == (1, "")
    assert "1 job blocked by what is not in the batch: input job bafyroot failed" in again.err
    assert again.err.endswith("hint: mend it, then pairio job rerun thatfailed; they go on then\n")


# -- jobs in files ---------------------------------------------------------------------------

MANY = """\
- name: first
  job: hello/greet
  parameters: {name: Ada, count: 3, flag: true}
  outputs: {output: o.txt}
  resources: {cpus: 2, time_sec: 60}
  tags: [a]
- job: hello/greet
  inputs: {input: "step:first/output"}
"""


def test_one_job_of_a_file_is_submitted_as_from_the_command_line(
    lab: FakeNode, run: Run, tmp_path: Path
) -> None:
    (tmp_path / "in.txt").write_text("abc")
    lab.on("POST", "/content", {"cid": "bafkadded", "size": 3})
    file = tmp_path / "job.yaml"
    file.write_text("job: hello/greet\ninputs: {input: in.txt}\nparameters: {count: 3}\n")
    done = run("submit", "--file", str(file), "--json", "--tag", "t", "--batch", "b", "--cpus", "2")
    assert json.loads(done.out) == job()
    [asked] = lab.calls("POST", "/jobs")
    definition = asked.body["jobDefinition"]
    assert definition["inputFiles"] == [
        {"name": "input", "url": "ipfs://bafkadded", "fileBaseName": "in.txt"}
    ]
    assert definition["parameters"] == [{"name": "count", "value": 3}]
    assert (asked.body["tags"], asked.body["batchId"]) == (["t"], "b")
    assert asked.body["requiredResources"]["numCpus"] == 2.0


def test_jobs_of_a_file_may_rest_on_each_other(lab: FakeNode, run: Run, tmp_path: Path) -> None:
    file = tmp_path / "jobs.yaml"
    file.write_text(MANY)
    done = run("submit", "--file", str(file), "--wait")
    assert (done.code, done.out) == (0, f"{JOB_ID}\n{JOB_ID}\n")
    assert "Completed 2 jobs, 0 of them from the cache (" in done.err
    first, second = (asked.body for asked in lab.calls("POST", "/jobs"))
    assert first["requiredResources"] == {
        "numCpus": 2,
        "numGpus": None,
        "memoryGb": None,
        "timeSec": 60,
    }
    assert second["jobDefinition"]["inputFiles"][0]["url"] == f"job:{JOB_ID}/output"
    planned = run("submit", "--file", str(file), "--dry-run")
    assert planned.out == f"{JOB_ID}\n{JOB_ID}\n"
    assert "0 of 2 are hits" in planned.err


def test_a_list_of_inputs_has_an_input_for_each_of_them(
    lab: FakeNode, run: Run, tmp_path: Path
) -> None:
    file = tmp_path / "jobs.yaml"
    file.write_text(
        "- {job: hello/greet, name: first}\n"
        f"- {{job: hello/greet, inputs: {{input: ['step:first/output', 'job:{JOB_ID}/x']}}}}\n"
    )
    assert run("submit", "--file", str(file)).code == 0
    given = lab.calls("POST", "/jobs")[1].body["jobDefinition"]["inputFiles"]
    assert [(each["name"], each["url"]) for each in given] == [
        ("input[0]", f"job:{JOB_ID}/output"),
        ("input[1]", f"job:{JOB_ID}/x"),
    ]


def test_many_jobs_go_in_one_call_and_each_refusal_is_said(
    lab: FakeNode, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    import io

    class Stdin:
        buffer = io.BytesIO(json.dumps({"jobs": [{"job": "hello/greet"}] * 3}).encode())

    monkeypatch.setattr(sys, "stdin", Stdin)
    refusal = {"error": {"message": "no room", "hint": "make room", "code": "invalid"}}
    lab.on("POST", "/jobs/batch", {"jobs": [job(), refusal, job(cached=True)]})
    done = run("submit", "--file", "-")
    assert (done.code, done.out) == (1, f"{JOB_ID}\n{JOB_ID}\n")
    assert "job 2 was refused: no room" in done.err
    assert done.err.endswith("\n\nhint: make room\n")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no `job: APP/PROCESSOR`"),
        ("[]", "holds no job"),
        ("- 3", "job 1 has no `job: APP/PROCESSOR`"),
        ("job: hello/greet\nrubbish: 1", "'rubbish' is none of"),
        ("job: hello/greet\ntags: x", "tags is 'x'"),
        ("job: hello/greet\nresources: {gpu: 1}", "'gpu'"),
        ("jobs: []\nmore: 1", "'more' beside jobs"),
        ("{", "job.yaml: "),
        ("job: [", "job.yaml: "),
        ("- {job: hello/greet, name: a}\n- {job: hello/greet, name: a}", "named 'a'"),
        (
            "- {job: hello/greet, name: a}\n- {job: hello/greet, inputs: {i: step:b/o}}",
            "before it are: a",
        ),
        ("job: hello/greet\ninputs: {input: ''}", "input 'input' is empty"),
        ("job: hello/greet\nparameters: {name: 2026-01-01}", "'name' is 2026-01-01"),
        ("job: !!python/object/apply:os.system ['true']", "job.yaml: "),
    ],
)
def test_a_mistake_in_a_file_is_said_with_its_place(
    text: str, says: str, lab: FakeNode, run: Run, tmp_path: Path
) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(text)
    wrong = run("submit", "--file", str(file), "--dry-run")
    assert (wrong.code, wrong.out) in ((1, ""), (1, f"{JOB_ID}\n"))
    assert says in wrong.err
    assert "\n\nhint: " in wrong.err


def test_a_file_or_a_job_is_named_not_both(lab: FakeNode, run: Run) -> None:
    assert run("submit", "--file", "/nowhere").code == 1
    assert run("submit", "hello/greet", "--file", "x").code == 2
    assert run("submit", "--file", "x", "-p", "a=b").code == 2


# -- watching --------------------------------------------------------------------------------


def test_watch_prints_a_line_for_each_change_where_there_is_no_screen(
    lab: FakeNode, run: Run
) -> None:
    event = {
        "requestId": REQUEST_ID,
        "jobId": JOB_ID,
        "serviceName": "lab",
        "batchId": "",
        "status": "failed",
        "error": "\x1b[2Jno",
        "isSettled": True,
        "safe": True,
        "cached": False,
        "computeNodeId": "12D3KooWada",
    }
    text = f"id: 1\nevent: job\ndata: {json.dumps(event)}\n\n: alive\n\n"
    lab.on("GET", "/events", Raw(text.encode()))
    watched = run("watch")
    assert watched.code == 0
    assert "hello/greet  failed on 2D3KooWada: no" in watched.out
    lab.on("GET", "/jobs", {"jobs": [job(timestampCreatedSec=1.0)], "nextCursor": None})
    once = run("watch", "--once")
    assert "1 of 2 nodes alive, 1 run" in once.out
    assert JOB_ID[-10:] in once.out


@pytest.mark.parametrize(
    ("path", "command"),
    [
        ("/jobs", "submit hello/greet"),
        ("/jobs", f"job rerun {JOB_ID}"),
        ("/jobs/batch", "batch retry nightly"),
    ],
)
def test_what_is_submitted_has_a_key_under_which_it_is_done_once(
    path: str, command: str, lab: FakeNode, run: Run
) -> None:
    failed = job(status="failed")
    lab.on("GET", "/jobs", {"jobs": [failed], "nextCursor": None})
    lab.on("GET", f"/jobs/{JOB_ID}", failed)
    lab.on("POST", "/jobs", job())
    lab.on("POST", "/jobs/batch", {"jobs": [job()]})
    for _ in range(2):
        run(*command.split())
    first, second = lab.calls("POST", path)
    assert first.key
    assert first.key != second.key
