"""What must hold after every scenario, one sentence each."""

import json
import time
from typing import Any

from tests.integration.chaos.lab import SERVICE, Accepted, Broken, Lab
from tests.integration.chaos.nodes import Node, Refused, Unreachable
from tests.integration.chaos.plants import plant_at
from tests.integration.waiting import until

__all__ = ["ENDS", "SAFE", "SAME", "STORY", "check_all", "check_safe"]

ENDS = "every accepted job ends"
SAFE = "no safe result is lost: its outputs can be read from another node"
SAME = "all nodes show the same state, and nothing runs for nobody"
STORY = "`pairio job show` tells the story: attempts with times and reasons"

_READ_S, _SAME_S = 10.0, 20.0


def check_all(lab: Lab) -> None:
    """Check every promise; what was killed is started again on the way. Raises Broken."""
    plant_at("begin", lab)
    for job in lab.book:
        for node in lab.alive:
            lab.wait_end(job, node)
    plant_at("ended", lab)
    check_safe(lab)
    lab.revive()
    plant_at("revived", lab)
    _check_same(lab)
    for job in lab.book:
        _check_story(lab, job)


def check_safe(lab: Lab) -> None:
    """Read the outputs of every job that was reported safe from nodes that did not compute it."""
    for job in lab.book:
        views = [view for node in lab.alive if (view := lab.view(node, job))]
        if not any(view["safe"] for view in views):
            continue
        worker = views[0]["computeNodeId"]
        readers = [node for node in lab.alive if node.peer != worker]
        for node in readers:
            _check_output(node, job, min(_READ_S, lab.ends_s))
        again = [v["lost"] for node in lab.alive if (v := lab.view(node, job)) and v["lost"]]
        if again:  # to be read because it was computed once more is not what was promised
            raise Broken(SAFE, f"{job.job[-8:]}: {again[0]}")


def _check_output(node: Node, job: Accepted, limit_s: float) -> None:
    path = f"jobs/{job.request}/outputs/output?serviceName={SERVICE}"
    answers: list[str] = []

    def is_there() -> bool:
        try:
            status, data = node.raw("GET", path)
        except Unreachable as error:
            answers.append(str(error))
            return False
        answers.append(f"{status} {data[:200]!r}")
        if status == 200 and data.decode() != job.text:
            raise Broken(SAFE, f"{job.job[-8:]} from {node}: {data!r} in place of {job.text!r}")
        return status == 200

    try:
        until("readable", is_there, limit_s)
    except TimeoutError:
        raise Broken(SAFE, f"{job.job[-8:]} from {node}: {answers[-1]}") from None


def _check_same(lab: Lab) -> None:
    """Compare what all nodes show, until they agree."""
    shown: dict[str, Any] = {}

    def agree() -> bool:
        for node in lab.nodes:
            shown[node.name] = _state(node)
        return all(state == shown[lab.nodes[0].name] for state in shown.values())

    began = time.monotonic()
    try:
        until("the same", agree, min(_SAME_S, lab.ends_s))
    except TimeoutError:
        raise Broken(SAME, _difference(shown)) from None
    lab.measured["same_s"] = time.monotonic() - began
    known = {entry["requestId"] for entry in shown[lab.nodes[0].name]["jobs"]}
    missing = [job.request for job in lab.book if job.request not in known]
    if missing:
        raise Broken(ENDS, f"accepted and known to nobody: {missing}")


def _state(node: Node) -> dict[str, Any]:
    """Return what is the same everywhere once all have heard of everything."""
    try:
        jobs = node.call("GET", f"jobs?serviceName={SERVICE}&limit=1000")["jobs"]
        status = node.call("GET", "status")
        service = node.call("GET", f"services/{SERVICE}")
    except (Refused, Unreachable) as error:
        return {"error": f"{node}: {error}"}
    views = []
    for job in jobs:
        if job["cached"]:
            continue  # a handle of this node alone
        attempts = {(a["attemptId"], a["computeNodeId"], a["ended"]) for a in job["attempts"]}
        views.append(
            {
                "requestId": job["requestId"],
                "jobId": job["jobId"],
                "status": job["status"],
                "canceled": job["canceled"],
                "outputs": sorted((o["name"], o["cid"]) for o in job["outputFileResults"]),
                "attempts": sorted(attempts),
            }
        )
    views.sort(key=lambda view: view["requestId"])
    counters = status["counters"]
    return {
        "jobs": views,
        "logs": counters["logs"],
        "segments": counters["segments"],
        "forked": counters["forked"],
        "head": service["head"],
        "running": status["running"],
        "held": status["accepted"],
    }


def _difference(shown: dict[str, Any]) -> str:
    """Say in which fields nodes differ, and one example of each."""
    lines = []
    for key in sorted({key for state in shown.values() for key in state}):
        values = {name: state.get(key) for name, state in shown.items()}
        if key == "jobs":
            values = {name: _odd(value, values.values()) for name, value in values.items()}
        if len({json.dumps(value) for value in values.values()}) > 1:
            lines.append(f"{key}: {json.dumps(values)[:1500]}")
    return "\n  ".join(lines)


def _odd(jobs: Any, others: Any) -> Any:
    """Return the jobs of one node that are not the same on all."""
    everywhere = [other or [] for other in others]
    return [job for job in jobs or [] if not all(job in other for other in everywhere)]


def _check_story(lab: Lab, job: Accepted) -> None:
    """The command line of another node than the submitter's tells what happened and when."""
    node = next(n for n in reversed(lab.nodes) if n is not job.node)
    shown = lab.show(node, job)
    attempts = shown["attempts"]
    where = f"{job.job[-8:]} on {node}: {json.dumps(attempts)}"
    if not any(a["ended"] == "completed" for a in attempts):
        raise Broken(STORY, f"no attempt completed: {where}")
    for attempt in attempts:
        began, ended = attempt["timestampStartedSec"], attempt["timestampEndedSec"]
        if ended is not None and ended < began - 0.001:
            raise Broken(STORY, f"an attempt ended before it began: {where}")
        if attempt["ended"] not in (None, "completed") and not attempt["reason"]:
            raise Broken(STORY, f"an attempt ended without a reason: {where}")
    # A frozen worker may wake in time to give its result after all.
    given_up = [a for a in attempts if a["ended"] in ("infra", "completed") and a["reason"]]
    if job.lost and not given_up:
        raise Broken(STORY, f"nothing tells of the attempt that was lost: {where}")
