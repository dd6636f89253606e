"""Batches: the requests that bear one name, counted and withdrawn. A job that was submitted again
in its batch counts as its newest request stands."""

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import trio

from pairio_node.errors import NotFoundError
from pairio_protocol import events as ev
from pairio_protocol.fold import RequestState

if TYPE_CHECKING:
    from pairio_node.node import Node

__all__ = ["Batches"]

Json = dict[str, Any]
#: After so many looks at requests others have their turn.
_LOOKS = 200
_OPEN = ("pending", "starting", "running")


class Batches:
    """Batches for clients; every method may raise `UserError`."""

    def __init__(self, node: "Node") -> None:
        self._node = node

    async def all(self, service: str | None, limit: int) -> list[Json]:
        """Return the newest batches: `{batchId, serviceName, jobs, statuses, timestamps}`."""
        found: dict[tuple[str, str], list[RequestState]] = {}
        for name, state in self._requests(service):
            if state.record.batch and state.id not in self._node.hiding:
                found.setdefault((name, state.record.batch), []).append(state)
        newest = sorted(found.items(), key=lambda item: -max(map(_when, item[1])))[:limit]
        return [await self._counted(*key, states) for key, states in newest]

    async def one(self, batch: str, service: str | None) -> Json:
        """Return one batch; in several services the newest.

        Raises:
            NotFoundError: no request known here bears the name.
        """
        found = await self._found(batch, service)
        return await self._counted(found[0], batch, found[1])

    async def cancel(self, batch: str, service: str | None) -> Json:
        """Withdraw this node's member's requests that are not over; returns the batch and how many
        they were (`canceled`)."""
        name, states = await self._found(batch, service)
        core = self._node.core
        folded = core.membership.folded(name)
        mine = folded.member_of(self._node.peer_id)
        requests = tuple(
            state.id
            for state in states
            if folded.member_of(state.author) == mine
            and not core.is_twins(state)
            and self._node.jobs.status_of(name, state) in (*_OPEN, "blocked")
        )
        if requests:
            await self._node.driver.call(lambda call: ev.CancelRequests(call, name, requests))
        return {**await self.one(batch, name), "canceled": len(requests)}

    async def _found(self, batch: str, service: str | None) -> tuple[str, list[RequestState]]:
        found: dict[str, list[RequestState]] = {}
        for number, (name, state) in enumerate(self._requests(service)):
            if number % _LOOKS == 0:
                await trio.lowlevel.checkpoint()
            if state.record.batch == batch:
                found.setdefault(name, []).append(state)
        if not found or not batch:
            raise NotFoundError(f"no batch {batch!r} on this node", hint="pairio batch ls")
        return max(found.items(), key=lambda item: max(map(_when, item[1])))

    def _requests(self, service: str | None) -> Iterator[tuple[str, RequestState]]:
        for name in self._node.services.named_or_all(service):
            if name in self._node.core.membership.chains:
                for state in list(self._node.core.fold(name).requests.values()):
                    yield name, state

    async def _counted(self, service: str, batch: str, states: list[RequestState]) -> Json:
        counts: Counter[str] = Counter()
        newest = {state.job: state for state in sorted(states, key=_when)}  # the last one stays
        for number, state in enumerate(newest.values()):
            if number % _LOOKS == 0:
                await trio.lowlevel.checkpoint()
            counts[self._node.jobs.status_of(service, state)] += 1
        petnames = self._node.core.membership.petnames
        return {
            "batchId": batch,
            "serviceName": petnames.get(service, service),
            "jobs": len(newest),
            "statuses": dict(sorted(counts.items())),
            "isOver": not any(counts[status] for status in _OPEN),
            "timestampCreatedSec": min(map(_when, states)) / 1000,
            "timestampLastSec": max(map(_when, states)) / 1000,
        }


def _when(state: RequestState) -> int:
    return state.record.issued_unix_ms
