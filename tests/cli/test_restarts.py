"""Commands that wait while the node restarts: it is found where it is then, nothing is submitted
twice, and when it stays away that is said."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pairio import _patient
from pairio.errors import NodeNotRunning
from pairio_cli import batches
from pairio_cli.patient import AWAY, PatientNode
from tests.cli.conftest import Run
from tests.cli.test_commands import APP, SERVICE
from tests.sdk.fake_node import JOB_ID, REQUEST_ID, Asked, FakeNode, Raw, job

RUNNING = job(status="running", isSettled=False)
WAIT = f"/jobs/{REQUEST_ID}/wait"
OPEN_BATCH = {"batchId": "nightly", "serviceName": "lab", "jobs": 1, "isOver": False}
OPEN_BATCH |= {"statuses": {"running": 1}}
DONE_BATCH = {**OPEN_BATCH, "isOver": True, "statuses": {"completed": 1}}


def _home_is(node: FakeNode) -> None:
    home = Path(os.environ["PAIRIO_HOME"])
    home.mkdir(exist_ok=True)
    (home / "api.json").write_text(json.dumps({"url": node.url, "token": node.token}))


@pytest.fixture
def lab(node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> FakeNode:
    """A node that is found by its home, as a restarted one is."""
    monkeypatch.delenv("PAIRIO_API_URL")
    _home_is(node)
    _tell_of_jobs(node)
    node.on("POST", "/jobs", RUNNING)
    node.on("GET", "/jobs", {"jobs": [RUNNING], "nextCursor": None})
    node.on("GET", f"/jobs/{JOB_ID}", RUNNING)
    node.on("GET", "/batches/nightly", OPEN_BATCH)
    return node


def _tell_of_jobs(node: FakeNode) -> None:
    node.on("GET", "/services", {"services": [SERVICE]})
    node.on("GET", "/services/lab/apps", {"apps": [APP]})


@pytest.fixture
def leave(lab: FakeNode) -> Callable[[Asked], Any]:
    """The node goes, and its home says so."""

    def gone(_: Asked) -> Any:
        (Path(os.environ["PAIRIO_HOME"]) / "api.json").unlink()
        lab.leave()
        raise ConnectionResetError

    return gone


def _back_while_it_sleeps(again: FakeNode, patch: pytest.MonkeyPatch) -> None:
    _tell_of_jobs(again)
    again.on("POST", "/jobs", RUNNING)
    again.on("GET", WAIT, job())
    again.on("GET", "/batches/nightly", DONE_BATCH)
    patch.setattr(_patient, "sleep", lambda _: _home_is(again))


WAITING = [
    (("submit", "hello/greet", "--wait"), JOB_ID),
    (("job", "rerun", JOB_ID, "--wait"), JOB_ID),
    (("job", "wait", JOB_ID), "completed"),
    (("batch", "wait", "nightly"), "1 completed"),
]


@pytest.mark.parametrize(("command", "out"), WAITING)
def test_who_waits_goes_on_when_the_node_is_back_elsewhere(
    command: tuple[str, ...],
    out: str,
    lab: FakeNode,
    leave: Callable[[Asked], Any],
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lab.on("GET", WAIT, leave)
    with FakeNode(token="another") as again:
        _back_while_it_sleeps(again, monkeypatch)
        waited = run(*command)
        assert (waited.code, waited.out) == (0, f"{out}\n"), waited.err
        assert waited.err.count(AWAY) == 1
        assert "error" not in waited.err
        assert again.calls("POST", "/jobs") == []


def test_a_submit_whose_answer_is_lost_is_sent_again_with_its_key(
    lab: FakeNode, leave: Callable[[Asked], Any], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.on("POST", "/jobs", leave)
    with FakeNode(token="another") as again:
        _back_while_it_sleeps(again, monkeypatch)
        waited = run("submit", "hello/greet", "--wait")
        assert (waited.code, waited.err.count(AWAY)) == (0, 1), waited.err
        [first], [second] = lab.calls("POST", "/jobs"), again.calls("POST", "/jobs")
        assert first.key == second.key
        assert len(first.key) > 15


def test_each_time_that_the_node_goes_is_said(
    lab: FakeNode, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_patient, "PAUSE_S", 0.0)
    cut = Raw(json.dumps(job()).encode(), cut=20)
    lab.on("GET", WAIT, [cut, cut, RUNNING, cut, job()])
    waited = run("submit", "hello/greet", "--wait")
    assert (waited.code, waited.err.count(AWAY)) == (0, 2), waited.err


@pytest.mark.parametrize(("command", "out"), WAITING)
def test_one_that_stays_away_is_an_error_after_a_minute(
    command: tuple[str, ...],
    out: str,
    lab: FakeNode,
    leave: Callable[[Asked], Any],
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [1000.0]
    monkeypatch.setattr(_patient, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(_patient, "sleep", lambda s: now.__setitem__(0, now[0] + s))
    lab.on("GET", WAIT, leave)
    waited = run(*command)
    assert (waited.code, waited.out) == (1, "")
    assert now[0] == pytest.approx(1060, abs=0.5)
    assert waited.err.count(AWAY) == 1
    assert "error: no node" in waited.err
    assert "hint: start" in waited.err


@pytest.mark.parametrize(("command", "out"), WAITING)
def test_the_time_to_wait_counts_also_while_the_node_is_away(
    command: tuple[str, ...],
    out: str,
    lab: FakeNode,
    leave: Callable[[Asked], Any],
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_patient, "PAUSE_S", 0.01)
    monkeypatch.setattr(batches, "_LAST_LOOK_S", 0.0)
    monkeypatch.setattr("pairio_cli.submit.elapsed_s", lambda: 0.0)
    lab.on("GET", WAIT, leave)
    waited = run(*command, "--timeout", "0.5")
    assert waited.code == 4, waited.err
    assert "the time to wait is over" in waited.err
    assert waited.err.count(AWAY) == 1


def test_an_answer_that_the_node_forgot_is_waited_for_by_the_jobs_id(
    lab: FakeNode, run: Run
) -> None:
    lab.on("POST", "/jobs", job(cached=True, isSettled=False, safe=False))
    lab.on("GET", f"/jobs/{JOB_ID}/wait", job(cached=True))
    assert run("submit", "hello/greet", "--wait").code == 0


def test_what_may_not_be_done_twice_is_not_asked_again(lab: FakeNode) -> None:
    def gone(_: Asked) -> Any:
        raise ConnectionResetError

    lab.on("POST", "/services", gone)
    node = PatientNode()
    with pytest.raises(NodeNotRunning):
        node.call("POST", "/api/v1/services", {"name": "lab"})
    assert len(lab.calls("POST", "/services")) == 1
    node.close()


def test_a_node_that_does_not_run_is_not_waited_for(lab: FakeNode, run: Run) -> None:
    lab.leave()
    ran = run("submit", "hello/greet", "--wait")
    assert (ran.code, AWAY in ran.err) == (1, False)
