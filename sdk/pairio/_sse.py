"""Server-Sent Events from the bytes of a stream. Standard library; no input or output."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pairio.errors import NodeNotRunning

__all__ = ["Event", "EventParser"]

_EVENT_SIZE_BYTES_MAX = 4 * 1024 * 1024


@dataclass(frozen=True)
class Event:
    """One event: its kind, and the document that it brought."""

    kind: str
    data: Any


class EventParser:
    """Cuts a stream into events; a comment shows that it is alive: an event of kind `alive`."""

    def __init__(self) -> None:
        self._left = b""

    def feed(self, chunk: bytes) -> Iterator[Event]:
        """Yield the events that are whole now.

        Raises:
            NodeNotRunning: what comes is no stream of events.
        """
        *whole, self._left = (self._left + chunk).split(b"\n\n")
        if len(self._left) > _EVENT_SIZE_BYTES_MAX:
            raise NodeNotRunning("what the node sends is no stream of events", "update pairio")
        for block in whole:
            event = _event(block.decode(errors="replace"))
            if event is not None:
                yield event


def _event(block: str) -> Event | None:
    kind, data = "message", []
    for line in block.split("\n"):
        name, _, value = line.partition(":")
        if name == "event":
            kind = value.strip()
        elif name == "data":
            data.append(value.removeprefix(" "))
    if not data:
        return Event("alive", None) if block.startswith(":") else None
    try:
        return Event(kind, json.loads("\n".join(data)))
    except ValueError:
        raise NodeNotRunning(
            "what the node sends is no stream of events", "update pairio"
        ) from None
