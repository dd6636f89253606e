"""Requests that the owner does not want to see any more. A signed fact is not deleted: it counts in
statistics, answers as a cache hit, and is found by its id; it is left out of lists.
"""

from collections.abc import Iterable
from itertools import islice
from typing import TYPE_CHECKING

from pairio_node.errors import ConflictError

if TYPE_CHECKING:
    from pairio_node.node import Node

__all__ = ["HIDDEN_MAX", "Hiding"]

#: Requests that are kept as hidden; with more, those hidden first are seen again.
HIDDEN_MAX = 100_000
_NOTE = "hidden"
_OPEN = ("pending", "starting", "running")


class Hiding:
    """Which requests are hidden, by id; kept in the database."""

    def __init__(self, node: "Node") -> None:
        self._node = node
        self._hidden: dict[str, None] = {}

    def restore(self, notes: Iterable[tuple[str, str, bytes]]) -> None:
        """Take what the database held at start."""
        self._hidden.update((name, None) for kind, name, _ in notes if kind == _NOTE)

    def __contains__(self, request: str) -> bool:
        return request in self._hidden

    def hide(self, requests: Iterable[str]) -> None:
        """Leave these requests out of lists from now on."""
        new = [name for name in requests if name not in self._hidden]
        self._hidden.update(dict.fromkeys(new))
        gone = list(islice(self._hidden, max(0, len(self._hidden) - HIDDEN_MAX)))
        for name in gone:
            del self._hidden[name]
        notes = [(_NOTE, name, b"1") for name in new] + [(_NOTE, name, b"") for name in gone]
        self._node.shell.write_notes(tuple(notes))

    def hide_job(self, job_id: str, service: str | None) -> list[str]:
        """Hide a request, or all requests of a job; returns their ids.

        Raises:
            NotFoundError: there is none.
            ConflictError: one is not over.
        """
        name, state = self._node.jobs.find(job_id, service)
        fold = self._node.core.fold(name)
        requests = [state.id] if job_id == state.id else list(fold.by_job.get(state.job, ()))
        for request in requests:
            status = self._node.jobs.status_of(name, fold.requests[request])
            if status in _OPEN:
                raise ConflictError(
                    f"job {state.job} is {status}", hint="cancel it first: pairio job cancel ID"
                )
        self.hide(requests)
        return requests
