"""Following a job: its console as it comes, where it runs, how it ends; also over a restart of the
node, from the place that was shown last."""

import signal
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

from pairio_cli.output import note, short
from pairio_cli.shown import Shown
from pairio_protocol.figures import size_text

__all__ = ["TimeOver", "follow", "followed", "time_limit"]


class TimeOver(Exception):
    """The time to wait is over."""


@contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Raise TimeOver in the block after so many seconds; None: never."""

    def over(*_: Any) -> None:
        raise TimeOver

    if seconds is None:
        yield
        return
    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def follow(job_id: str, service: str | None, shown: Shown, offset: int = 0) -> dict[str, Any]:
    """Show a job's console until the job ends; return the event of its end.

    Raises:
        NodeNotRunning: the node went away and did not come back.
    """
    place: dict[str, Any] = {}
    try:
        for event in followed(job_id, service, offset, shown.note):
            if event["type"] == "end":
                return event
            _show(event, shown, place)
    finally:
        shown.end()
    raise AssertionError("unreachable: it ends with `end`, or raises")


def followed(
    job_id: str, service: str | None, offset: int = 0, say: Callable[[str], None] = note
) -> Iterator[dict[str, Any]]:
    """Yield the events of a job's console, over restarts of the node; the last one is `end`. `say`
    is told when the node goes.

    Raises:
        NodeNotRunning: the node went away and did not come back.
    """
    from pairio._http import part
    from pairio.errors import NodeNotRunning
    from pairio_cli.patient import AWAY, PatientNode

    path = f"/api/v1/jobs/{part(job_id)}/console"
    query: dict[str, Any] = {"follow": "1", "format": "json", "serviceName": service}
    query["offset"] = offset or None
    away = 0.0
    with closing(PatientNode()) as api:
        api.on_away = lambda: say(AWAY)
        while True:
            try:
                for event in api.lines(path, query):
                    away = 0.0
                    api.is_there()
                    yield event
                    if event["type"] == "end":
                        return
                    if event["type"] == "output":
                        query |= {"attempt": event["attemptId"], "offset": event["nextOffset"]}
                raise NodeNotRunning("the node ended its answer", "look: pairio-node status")
            except NodeNotRunning as error:
                away = api.pause(error, away)


def _show(event: dict[str, Any], shown: Shown, place: dict[str, Any]) -> None:
    note = shown.note
    match event["type"]:
        case "output":
            shown.write(event["text"])
            place["attempt"] = event["attemptId"]
        case "gap":
            note(f"[{size_text(event['bytes'])} left out]")
        case "note":
            note(f"[{event['text']}]")
        case "attempt":
            if event["attemptId"] != place.get("attempt"):
                again = f"attempt {event['number']} " if event["number"] > 1 else ""
                note(f"[{again}on {short(event['computeNodeId'])}]")
        case "status" if event["status"] != place.get("status"):
            place["status"] = event["status"]
            if event["status"] in ("pending", "starting", "blocked"):
                why = f": {event['error']}" if event["error"] else ""
                note(f"[{event['status']}{why}]")
