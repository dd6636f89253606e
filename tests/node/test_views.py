"""What clients see of attempts: where, from when to when, how they ended, and why."""

from types import SimpleNamespace
from typing import Any, cast

from pairio_node.job_views import attempts_view, exhausted_words
from pairio_protocol.core import NodeCore
from pairio_protocol.fold import RequestState, RunState
from pairio_protocol.records import End, Start

COORDINATOR, WORKER = "12D3KooWcoordinator", "12D3KooWworker"
ATTEMPT = f"{COORDINATOR}/boot/1"


def _end(kind: str, reason: str, at_ms: int) -> End:
    return End("request", "run", ATTEMPT, kind, reason, at_ms)


def _shown(ends: dict[str, End], results: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    run = RunState(
        starts={(ATTEMPT, WORKER): Start("request", "run", ATTEMPT, (), 1_000)},
        ends={(ATTEMPT, author): end for author, end in ends.items()},
        results=set(results or ()),
    )
    fold = SimpleNamespace(
        runs={"run": run},
        results=results or {},
        resolve=lambda _: None,
        runs_of=lambda *_: ["run"],
    )
    core = cast(NodeCore, SimpleNamespace(fold=lambda _: fold))
    return attempts_view(core, "s", cast(RequestState, SimpleNamespace(document={}, job="job")))


def _result(status: str, error: str) -> dict[str, Any]:
    document = SimpleNamespace(
        attempt=ATTEMPT, worker=WORKER, status=status, error=error, finished_unix_ms=9_000
    )
    return {"cid": SimpleNamespace(document=document)}


def test_one_that_goes_on_has_no_end() -> None:
    (attempt,) = _shown({})
    assert (attempt["computeNodeId"], attempt["timestampStartedSec"]) == (WORKER, 1.0)
    assert (attempt["timestampEndedSec"], attempt["ended"], attempt["reason"]) == (None, None, None)


def test_one_that_was_given_up_and_says_so_later_itself_was_given_up() -> None:
    lost, canceled = _end("infra", "its lease ran out", 5_000), _end("canceled", "canceled", 8_000)
    (attempt,) = _shown({WORKER: canceled, COORDINATOR: lost})
    assert (attempt["ended"], attempt["reason"]) == ("infra", "its lease ran out")
    assert attempt["timestampEndedSec"] == 5.0


def test_a_result_that_came_all_the_same_keeps_the_reason_for_giving_up() -> None:
    lost = _end("infra", "its lease ran out", 5_000)
    (attempt,) = _shown({COORDINATOR: lost}, _result("completed", ""))
    assert (attempt["ended"], attempt["timestampEndedSec"]) == ("completed", 9.0)
    assert attempt["reason"] == "its lease ran out"


def test_an_app_that_failed_says_why() -> None:
    (attempt,) = _shown({}, _result("failed", "exit 3"))
    assert (attempt["ended"], attempt["reason"]) == ("failed", "exit 3")


def test_a_run_that_was_lost_too_often_tells_why_the_last_time() -> None:
    ends = [_end("infra", "its lease ran out", 1), _end("infra", "disk: used\x1b[2J 2 GiB", 9)]
    run = RunState(ends={(ATTEMPT, f"author {n}"): end for n, end in enumerate(ends)})
    assert exhausted_words(run) == (
        "exhausted: 8 attempts were lost, the last by: disk: used 2 GiB; submit it again"
    )
    assert exhausted_words(RunState()) == "exhausted: 8 attempts were lost; submit it again"
