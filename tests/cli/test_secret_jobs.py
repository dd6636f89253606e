"""Secrets of jobs in files, and of jobs that are submitted again: on a fake node."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Run
from tests.cli.test_jobs import BATCH
from tests.sdk.fake_node import JOB_ID, Asked, FakeNode, job

VALUE, OTHER = "correct horse battery", "another one of them"
GREET: dict[str, Any] = {"inputs": [], "outputs": [], "parameters": []}
APP = {
    "appName": "hello",
    "appSpecification": {
        "processors": [
            {"name": "greet", **GREET},
            {"name": "secret", **GREET, "secrets": ["TOKEN"]},
            {"name": "both", **GREET, "secrets": ["KEY", "TOKEN"]},
        ]
    },
}


def _of(name: str, **changes: Any) -> dict[str, Any]:
    """Return a job of one of the processors."""
    definition = {**job()["jobDefinition"], "appName": "hello", "processorName": name}
    return job(jobDefinition=definition, **changes)


@pytest.fixture
def lab(node: FakeNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeNode:
    node.on("GET", "/services", {"services": [{"serviceName": "lab"}]})
    node.on("GET", "/services/lab/apps", {"apps": [APP]})
    node.on("GET", "/batches/nightly", BATCH)
    node.on("POST", "/jobs", job())
    node.on("POST", "/jobs/batch", many)
    (tmp_path / "token").write_text(f"{VALUE}\n")
    monkeypatch.setenv("MY_KEY", OTHER)
    return node


def many(asked: Asked) -> dict[str, Any]:
    return {"jobs": [job() for _ in asked.body["jobs"]]}


def _given(lab: FakeNode) -> list[dict[str, str] | None]:
    """Return the secrets of each job of the last call."""
    *_, asked = lab.calls("POST", "/jobs/batch")
    return [body.get("secrets") for body in asked.body["jobs"]]


# -- in a file --------------------------------------------------------------------------------


def test_a_job_of_a_file_says_where_its_secrets_are(
    lab: FakeNode, run: Run, tmp_path: Path
) -> None:
    file = tmp_path / "job.yaml"
    file.write_text('job: hello/both\nsecrets: {TOKEN: "@token", KEY: env:MY_KEY}\n')
    done = run("submit", "--file", str(file))
    assert (done.code, done.out) == (0, f"{JOB_ID}\n")
    [asked] = lab.calls("POST", "/jobs")
    assert asked.body["secrets"] == {"TOKEN": VALUE, "KEY": OTHER}


def test_those_of_the_command_line_go_to_the_jobs_that_ask(
    lab: FakeNode, run: Run, tmp_path: Path
) -> None:
    file = tmp_path / "jobs.json"
    jobs: list[dict[str, Any]] = [{"job": f"hello/{n}"} for n in ("greet", "secret", "both")]
    jobs[2]["secrets"] = {"KEY": "env:MY_KEY"}
    file.write_text(json.dumps(jobs))
    assert run("submit", "--file", str(file), "--secret", f"TOKEN=@{tmp_path}/token").code == 0
    assert _given(lab) == [None, {"TOKEN": VALUE}, {"TOKEN": VALUE, "KEY": OTHER}]


def test_what_a_job_says_itself_comes_before_the_command_line(
    lab: FakeNode, run: Run, tmp_path: Path
) -> None:
    file = tmp_path / "jobs.json"
    own = {"job": "hello/secret", "secrets": {"TOKEN": "env:MY_KEY"}}
    file.write_text(json.dumps([{"job": "hello/secret"}, own]))
    assert run("submit", "--file", str(file), "--secret", f"TOKEN=@{tmp_path}/token").code == 0
    assert _given(lab) == [{"TOKEN": VALUE}, {"TOKEN": OTHER}]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (f"secrets: {{TOKEN: {VALUE}}}", "job 1: secret 'TOKEN' names no place to read it from"),
        (f"secrets: {VALUE}", "job 1: secrets are no names with places"),
        (f"secrets: [{VALUE}]", "job 1: secrets are no names with places"),
        (f"secrets: {{TOKEN: [{VALUE}]}}", "secret 'TOKEN' names no place"),
        ('secrets: {TOKEN: "@nowhere"}', "nowhere: No such file or directory"),
        ("secrets: {TOKEN: env:NOT_SET_HERE}", "no variable 'NOT_SET_HERE' is set"),
        ("network: full", "the network is no choice of a job's"),
    ],
)
def test_a_mistake_is_said_before_anything_is_submitted_and_no_value_is(
    text: str, says: str, lab: FakeNode, run: Run, tmp_path: Path
) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(f"- job: hello/secret\n  {text}\n- job: hello/greet\n")
    done = run("submit", "--file", str(file))
    assert (done.code, done.out) == (1, "")
    assert says in done.err
    assert "hint: " in done.err
    assert VALUE not in done.err
    assert not lab.calls("POST", "/jobs/batch")


def test_a_secret_that_no_job_of_the_file_asks_for_is_refused(
    lab: FakeNode, run: Run, tmp_path: Path
) -> None:
    file = tmp_path / "jobs.json"
    file.write_text(json.dumps([{"job": "hello/greet"}, {"job": "hello/secret"}]))
    done = run("submit", "--file", str(file), "--secret", f"TOKN=@{tmp_path}/token")
    assert done.code == 1
    assert "no job of the file asks for the secret 'TOKN'" in done.err
    assert "hint: asked for: TOKEN" in done.err
    assert not lab.calls("POST", "/jobs/batch")


# -- again ------------------------------------------------------------------------------------

OVER = [
    _of("greet", jobId="bafya", status="failed"),
    _of("secret", jobId="bafyb", status="failed"),
    _of("both", jobId="bafyc", status="canceled"),
    _of("secret", jobId="bafyd", status="completed"),
]


def test_a_retry_asks_for_the_secrets_that_were_forgotten(lab: FakeNode, run: Run) -> None:
    lab.on("GET", "/jobs", {"jobs": OVER, "nextCursor": None})
    done = run("batch", "retry", "nightly")
    assert (done.code, done.out) == (1, "")
    assert "2 jobs ask for the secret 'KEY', 'TOKEN', and none was given" in done.err
    assert "pairio batch retry nightly --secret KEY=@FILE --secret TOKEN=@FILE" in done.err
    assert not lab.calls("POST", "/jobs/batch")


def test_a_retry_gives_each_job_the_secrets_that_it_asks_for(
    lab: FakeNode, run: Run, tmp_path: Path
) -> None:
    lab.on("GET", "/jobs", {"jobs": OVER, "nextCursor": None})
    secrets = ("--secret", f"TOKEN=@{tmp_path}/token", "--secret", "KEY=env:MY_KEY")
    done = run("batch", "retry", "nightly", *secrets)
    assert done.code == 0
    by_id = [None, {"TOKEN": VALUE}, {"KEY": OTHER, "TOKEN": VALUE}]
    assert sorted(map(str, _given(lab))) == sorted(map(str, by_id))
    assert VALUE not in done.out + done.err


def test_a_retry_without_secrets_asks_for_none(lab: FakeNode, run: Run, tmp_path: Path) -> None:
    lab.on("GET", "/jobs", {"jobs": OVER[:1], "nextCursor": None})
    assert run("batch", "retry", "nightly").code == 0
    assert _given(lab) == [None]
    done = run("batch", "retry", "nightly", "--secret", f"TOKEN=@{tmp_path}/token")
    assert (done.code, "none of the jobs asks for the secret 'TOKEN'" in done.err) == (1, True)


def test_nothing_to_retry_needs_no_secret(lab: FakeNode, run: Run) -> None:
    lab.on("GET", "/jobs", {"jobs": OVER[3:], "nextCursor": None})
    assert run("batch", "retry", "nightly").code == 0


def test_a_job_that_runs_anew_is_given_its_secrets_again(
    lab: FakeNode, run: Run, tmp_path: Path
) -> None:
    lab.on("GET", f"/jobs/{JOB_ID}", _of("secret", status="completed"))
    refused = run("job", "rerun", JOB_ID)
    assert refused.code == 1
    assert "1 job asks for the secret 'TOKEN', and none was given" in refused.err
    assert run("job", "rerun", JOB_ID, "--secret", f"TOKEN=@{tmp_path}/token").code == 0
    [asked] = lab.calls("POST", "/jobs")
    assert asked.body["secrets"] == {"TOKEN": VALUE}
