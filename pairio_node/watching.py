"""Changes of jobs as they happen, for clients that would else ask again and again.

Whoever watches is first told how every job that he watches is, then each change. Nothing is kept
for a slow reader but which jobs changed, so he misses states in between and never the last one;
one who comes again is told everything anew.
"""

import json
import secrets
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import trio

from pairio_node.errors import NotFoundError, UnavailableError
from pairio_node.job_views import is_settled, job_status, progress_of
from pairio_protocol.fold import RequestState

if TYPE_CHECKING:
    from pairio_node.node import Node

__all__ = [
    "ALIVE_S",
    "ALIVE_S_MAX",
    "ALIVE_S_MIN",
    "REQUESTS_MAX",
    "WATCHED_MAX",
    "WATCHERS_MAX",
    "WatchQuery",
    "Watching",
]

#: Clients that watch at once; requests that one of them watches; requests he may name one by one.
WATCHERS_MAX = 100
WATCHED_MAX = 20_000
REQUESTS_MAX = 100
#: Changes that come so soon after each other are told together.
_TOGETHER_S = 0.03
#: A silent connection is shown to be alive, as often as is wished within these bounds.
ALIVE_S, ALIVE_S_MIN, ALIVE_S_MAX = 10.0, 0.1, 30.0
#: Every watched job is looked at, whatever was told of it.
_LOOK_S = 10.0
#: After so many looks at jobs others have their turn.
_LOOKS = 200


@dataclass(frozen=True)
class WatchQuery:
    """What is watched: requests by id, or those of a batch, or of a job; else all there are."""

    service: str | None = None
    batch: str | None = None
    job: str | None = None
    requests: tuple[str, ...] = ()
    alive_s: float = ALIVE_S

    @property
    def names_some(self) -> bool:
        """Say whether it names what is watched; else only changes are told."""
        return bool(self.requests) or self.batch is not None or self.job is not None

    def fits(self, state: RequestState) -> bool:
        """Say whether a request is watched."""
        if self.requests and state.id not in self.requests:
            return False
        if self.job is not None and state.job != self.job:
            return False
        return self.batch is None or state.record.batch == self.batch


@dataclass
class _Watch:
    query: WatchQuery
    services: tuple[str, ...]
    changed: dict[tuple[str, str], None] = field(default_factory=dict)
    has_all_changed: bool = False
    has_overflowed: bool = False
    wake: trio.Event = field(default_factory=trio.Event)
    told: dict[tuple[str, str], tuple[RequestState, str]] = field(default_factory=dict)
    count: int = 0

    def note(self, service: str, job: str) -> None:
        """A job of a service has changed; without names: any."""
        if service and service not in self.services:
            return
        if not job or len(self.changed) >= WATCHED_MAX:
            self.has_overflowed = self.has_overflowed or bool(job)
            self.has_all_changed = True
            self.changed.clear()
        elif not self.has_all_changed:
            for name in (service,) if service else self.services:
                self.changed[name, job] = None
        self.wake.set()


class Watching:
    """Who watches jobs of this node."""

    def __init__(self, node: "Node") -> None:
        self._node = node
        self._watches: list[_Watch] = []
        self._boot = secrets.token_hex(4)
        #: Set when the node stops: streams end then.
        self.over = trio.Event()

    def changed(self, service: str, job: str) -> None:
        """Tell those who watch it."""
        for watch in self._watches:
            watch.note(service, job)

    def stop(self) -> None:
        """End all streams."""
        self.over.set()
        for watch in self._watches:
            watch.wake.set()

    def open(self, query: WatchQuery) -> AsyncIterator[bytes]:
        """Return a stream of Server-Sent Events.

        Raises:
            NotFoundError: a request that is named is not known here.
            UnavailableError: too many watch already, or it is too much to watch.
        """
        if len(self._watches) >= WATCHERS_MAX:
            raise UnavailableError(
                f"{WATCHERS_MAX} clients watch already", hint="close one of them, or ask with /wait"
            )
        known = self._node.core.membership.chains
        services = tuple(n for n in self._node.services.named_or_all(query.service) if n in known)
        watch = _Watch(query, services)
        watched = list(self._watched(watch)) if query.names_some else []
        missing = set(query.requests) - {state.id for _, state in watched}
        if missing:
            raise NotFoundError(f"no request {min(missing)!r} on this node", hint="pairio job ls")
        if len(watched) > WATCHED_MAX:
            raise UnavailableError(
                f"{len(watched)} jobs to watch; at most {WATCHED_MAX}", hint="name a batch"
            )
        return self._stream(watch, watched)

    async def _stream(
        self, watch: _Watch, watched: list[tuple[str, RequestState]]
    ) -> AsyncIterator[bytes]:
        self._watches.append(watch)
        try:
            for events in self._tell(watch, watched):
                yield events
                await trio.lowlevel.checkpoint()
            yield self._event(watch, "ready", {})
            looked_s = trio.current_time()
            while not self.over.is_set():
                with trio.move_on_after(watch.query.alive_s) as waited:
                    await watch.wake.wait()
                if waited.cancelled_caught:
                    yield b": alive\n\n"
                else:
                    await trio.sleep(_TOGETHER_S)
                is_late = trio.current_time() - looked_s > _LOOK_S
                is_everything = is_late or watch.has_all_changed
                looked_s = trio.current_time() if is_everything else looked_s
                changed, has_overflowed = list(watch.changed), watch.has_overflowed
                watch.changed, watch.wake = {}, trio.Event()
                watch.has_all_changed = watch.has_overflowed = False
                if is_everything:
                    found = self._watched(watch, has_overflowed)
                else:
                    found = self._affected(watch, changed)
                for events in self._tell(watch, [*found, *self._vanished(watch)]):
                    yield events
                    await trio.lowlevel.checkpoint()
        finally:
            self._watches.remove(watch)

    def _watched(
        self, watch: _Watch, has_overflowed: bool = False
    ) -> Iterator[tuple[str, RequestState]]:
        """Yield (service, request) of all that is watched; where that is all there are, those told
        of, unless it is not known what changed."""
        for service in watch.services:
            fold = self._node.core.fold(service)
            if watch.query.requests:
                found = [fold.requests.get(name) for name in watch.query.requests]
            elif watch.query.names_some or has_overflowed:
                found = list(fold.requests.values())
            else:
                found = [fold.requests.get(name) for of, name in watch.told if of == service]
            for state in found:
                if state is not None and watch.query.fits(state):
                    yield service, state

    def _affected(
        self, watch: _Watch, changed: Iterable[tuple[str, str]]
    ) -> Iterator[tuple[str, RequestState]]:
        """Yield the watched requests whose jobs changed, or rest on those that did."""
        by_service: dict[str, set[str]] = {}
        for service, job in changed:
            jobs = by_service.setdefault(service, set())
            jobs.update((job, *self._node.core.fold(service).asked_as(job)))
        for service, jobs in by_service.items():
            fold = self._node.core.fold(service)
            for job in sorted(fold.resting_on(jobs)):
                for request in fold.by_job.get(job, ()):
                    state = fold.requests.get(request)
                    if state is not None and watch.query.fits(state):
                        yield service, state

    def _vanished(self, watch: _Watch) -> list[tuple[str, RequestState]]:
        """Return requests that count no more (their submitter was revoked), with what they were."""
        return [
            (service, self._node.jobs.still(service, state))
            for (service, request), (state, summary) in watch.told.items()
            if request not in self._node.core.fold(service).requests
        ]

    def _tell(self, watch: _Watch, found: Iterable[tuple[str, RequestState]]) -> Iterator[bytes]:
        """Yield events of those that are not as they were told, some at a time."""
        events: list[bytes] = []
        for number, (service, state) in enumerate(found, 1):
            summary = self._summary(service, state)
            text = json.dumps(summary)
            if watch.told.get((service, state.id), (None, ""))[1] != text:
                watch.told.pop((service, state.id), None)  # the one told last is the last
                watch.told[service, state.id] = (state, text)
                events.append(self._event(watch, "job", summary))
            if number % _LOOKS == 0:
                yield b"".join(events) or b": alive\n\n"
                events = []
        while len(watch.told) > WATCHED_MAX:
            del watch.told[next(iter(watch.told))]
        if events:
            yield b"".join(events)

    def _event(self, watch: _Watch, kind: str, data: dict[str, Any]) -> bytes:
        watch.count += 1
        text = f"id: {self._boot}-{watch.count}\nevent: {kind}\ndata: {json.dumps(data)}\n\n"
        return text.encode()

    def _summary(self, service: str, state: RequestState) -> dict[str, Any]:
        core = self._node.core
        status, error = job_status(core, service, state)
        answer = core.fold(service).results.get(state.answer or "")
        return {
            "requestId": state.id,
            "jobId": state.job,
            "serviceName": core.membership.petnames.get(service, service),
            "batchId": state.record.batch,
            "status": status,
            "error": error,
            "progress": progress_of(core, service, state) if status == "running" else None,
            "isSettled": is_settled(core, service, state),
            "safe": answer is not None and core.replication.is_safe(answer.cid),
            "cached": state.cached,
            "computeNodeId": answer.document.worker if answer is not None else None,
        }
