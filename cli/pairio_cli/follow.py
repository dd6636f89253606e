"""Following a job: its console as it comes, where it runs, how it ends; also over a restart of the
node, from the place that was shown last."""

import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

from pairio_cli.output import note, short
from pairio_protocol.printable import PrintableStream

__all__ = ["TimeOver", "follow", "shown_on_stderr", "shown_on_stdout", "time_limit"]

#: How long a node that went away is waited for.
_AWAY_S = 60.0
_AGAIN_S = 0.5


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


def shown_on_stdout() -> Callable[[str], None]:
    """Return what writes a console to stdout: as it is, but nothing that does things to a
    terminal."""
    return _shown(sys.stdout)


def shown_on_stderr() -> Callable[[str], None]:
    """Return the same for stderr, where it is always made printable."""
    return _shown(sys.stderr, always=True)


def _shown(stream: Any, *, always: bool = False) -> Callable[[str], None]:
    filter_ = PrintableStream() if always or stream.isatty() else None

    def write(text: str) -> None:
        stream.write(filter_.feed(text.encode(errors="replace")) if filter_ else text)
        stream.flush()

    return write


def follow(
    job_id: str, service: str | None, write: Callable[[str], None], offset: int = 0
) -> dict[str, Any]:
    """Show a job's console until the job ends; return the event of its end.

    Raises:
        NodeNotRunning: the node went away and did not come back.
    """
    from pairio.errors import NodeNotRunning

    place: dict[str, Any] = {"offset": offset or None}
    gives_up_s: float | None = None
    while True:
        try:
            for event in _events(job_id, service, place):
                gives_up_s = None
                if event["type"] == "end":
                    return event
                _show(event, write, place)
            raise NodeNotRunning("the node ended its answer", "look: pairio-node status")
        except NodeNotRunning:
            now_s = time.monotonic()
            gives_up_s = gives_up_s or now_s + _AWAY_S
            if now_s >= gives_up_s or not place.get("seen"):
                raise
            time.sleep(_AGAIN_S)


def _events(job_id: str, service: str | None, place: dict[str, Any]) -> Iterator[dict[str, Any]]:
    from pairio._http import Api, part

    query = {"follow": "1", "format": "json", "serviceName": service}
    query |= {"attempt": place.get("attempt"), "offset": place.get("offset")}
    with closing(Api()) as api:
        for event in api.lines(f"/api/v1/jobs/{part(job_id)}/console", query):
            place["seen"] = True
            yield event


def _show(event: dict[str, Any], write: Callable[[str], None], place: dict[str, Any]) -> None:
    match event["type"]:
        case "output":
            write(event["text"])
            place |= {"attempt": event["attemptId"], "offset": event["nextOffset"]}
        case "gap":
            note(f"[{event['bytes']} bytes left out]")
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
