"""The console of a job: text as it is, or with `follow=1` live, also as Server-Sent Events.

Events are JSON documents (`pairio_node.consoles`), one as the data of each event, or one a line
with `format=json`; `nextOffset` in `output` is where a client that was cut off goes on. As text,
what is not output stands in lines of its own, in brackets.
"""

import codecs
import json
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

from fastapi import FastAPI, Query, Request, Response
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

if TYPE_CHECKING:
    from pairio_node.api.facade import NodeFacade

__all__ = ["Closing", "ConsolesFacade", "console_routes"]

Event = dict[str, Any]
_NO_STORE = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}


class ConsolesFacade(Protocol):
    """Implemented by `pairio_node.consoles.Consoles`; may raise `UserError`."""

    def follow(
        self, job_id: str, service: str | None, attempt: str | None, offset: int, *, follow: bool
    ) -> AsyncIterator[Event]:
        """Yield what a job writes, and what becomes of it."""


class Closing(StreamingResponse):
    """Ends its source when the client leaves, at once."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve it."""
        async with aclosing(self.body_iterator):  # type: ignore[type-var]
            await super().__call__(scope, receive, send)


def console_routes(app: FastAPI, node: "NodeFacade") -> None:
    """Add the route."""

    @app.get("/api/v1/jobs/{job_id}/console")
    async def console(
        request: Request,
        job_id: str,
        serviceName: str | None = None,  # noqa: N803
        follow: bool = False,
        attempt: str | None = None,
        offset: Annotated[int, Query(ge=0, lt=2**62)] = 0,
        format: Literal["text", "json"] = "text",
    ) -> Response:
        """What the job printed; with `follow=1` also what it is printing, until it ends."""
        node.jobs.one(job_id, serviceName)  # an unknown job is an error, not an empty console
        events = node.consoles.follow(job_id, serviceName, attempt, offset, follow=follow)
        as_events = "text/event-stream" in request.headers.get("accept", "")
        if as_events or format == "json":
            make = _as_event if as_events else _as_line
            kind = "text/event-stream" if as_events else "application/x-ndjson"
            return Closing(_documents(events, make), media_type=kind, headers=_NO_STORE)
        return Closing(_text(events, follow=follow), media_type="text/plain", headers=_NO_STORE)


def _as_event(event: Event) -> bytes:
    head = f"event: {event['type']}\ndata: ".encode()
    return head + json.dumps(event).encode() + b"\n\n"


def _as_line(event: Event) -> bytes:
    return json.dumps(event).encode() + b"\n"


async def _documents(
    events: AsyncIterator[Event], make: Callable[[Event], bytes]
) -> AsyncIterator[bytes]:
    """Yield events as JSON; output becomes text, characters whole."""
    decoders: dict[str, codecs.IncrementalDecoder] = {}
    async with aclosing(events):  # type: ignore[type-var]
        async for event in events:
            yield make(_decoded(event, decoders) if event["type"] == "output" else event)


def _decoded(event: Event, decoders: dict[str, codecs.IncrementalDecoder]) -> Event:
    attempt, data = event["attemptId"], event["data"]
    if attempt not in decoders:
        decoders.clear()  # another attempt has begun
        decoders[attempt] = codecs.getincrementaldecoder("utf-8")("replace")
    text = decoders[attempt].decode(data)
    next_offset = event["offset"] + len(data) - len(decoders[attempt].getstate()[0])
    shown = {name: value for name, value in event.items() if name != "data"}
    return {**shown, "text": text, "nextOffset": next_offset}


async def _text(events: AsyncIterator[Event], *, follow: bool) -> AsyncIterator[bytes]:
    """Yield the output, and what is to be said in lines of their own."""
    at_line_start = True
    async with aclosing(events):  # type: ignore[type-var]
        async for event in events:
            if event["type"] == "output":
                data: bytes = event["data"]
            elif words := _words(event, follow=follow):
                data = (b"" if at_line_start else b"\n") + f"[{words}]\n".encode()
            else:
                continue
            at_line_start = data.endswith(b"\n")
            yield data


def _words(event: Event, *, follow: bool) -> str:
    """Return what a reader of the text is told of an event; nothing of most."""
    match event["type"]:
        case "gap":
            return f"{event['bytes']} bytes left out"
        case "note":
            return str(event["text"])
        case "attempt" if follow and event["number"] > 1:
            return f"attempt {event['number']} on {event['computeNodeId']}"
        case "end" if event["status"] != "completed":
            return f"{event['status']}: {event['error']}"
    return ""
