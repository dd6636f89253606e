"""Jobs as they change, for async programs. `_sync_watching.py` is made of this file."""

import time
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import aclosing

from pairio._patient_async import PAUSE_S
from pairio._sse import Event
from pairio.client._async_calls import AsyncCalls
from pairio.client._async_io import sleep
from pairio.client._async_job import AsyncPairioJob
from pairio.client._bodies import watch_query
from pairio.errors import NodeNotRunning, WaitTimeout

__all__ = ["AsyncWatching"]

_ALIVE_S = 10.0


class AsyncWatching(AsyncCalls):
    """Events of a node."""

    async def events(
        self,
        *,
        service_name: str | None = None,
        batch_id: str | None = None,
        job_id: str | None = None,
        request_ids: Sequence[str] = (),
        alive_s: float = _ALIVE_S,
    ) -> AsyncGenerator[Event, None]:
        """Yield what happens to jobs: events of kind `job` (`{requestId, jobId, status, isSettled,
        safe, cached, error, computeNodeId, batchId, serviceName}`) first for how each watched job
        is, then `ready`, then `job` for each change; `alive` after so many seconds without one.
        Without a batch, a job or requests: of all jobs, changes only.

        Example:
            >>> async for event in client.events(batch_id="b"):
            ...     if event.kind == "ready":
            ...         break
            ...     print(event.data["status"])
            completed
            completed

        Raises:
            NodeNotRunning: the stream broke off. Called again it begins with how everything is.
            NodeUnavailable: too many watch already.
        """
        query = {
            "serviceName": service_name,
            "batchId": batch_id,
            "jobId": job_id,
            "requestId": list(request_ids),
            "aliveSec": alive_s,
        }
        async with aclosing(self._events("/api/v1/events", query)) as events:
            async for event in events:
                yield event

    async def as_completed(
        self, jobs: Iterable[AsyncPairioJob], timeout: float | None = None
    ) -> AsyncGenerator[AsyncPairioJob, None]:
        """Yield jobs as they end, each once; those that have ended already first.

        Args:
            jobs: of any batches and services.
            timeout: seconds in all; None: as long as it takes.

        Example:
            >>> async for done in client.as_completed([job], timeout=60):
            ...     print(done.status)
            completed

        Raises:
            WaitTimeout: the time is over; the jobs go on.
        """
        async with aclosing(self._watched(list(jobs), timeout)) as changes:
            async for job in changes:
                if job is not None and job.is_settled:
                    if job.lacks_outputs:
                        await job.refresh()
                    yield job

    async def _watched(
        self, jobs: list[AsyncPairioJob], timeout: float | None
    ) -> AsyncGenerator[AsyncPairioJob | None, None]:
        """Yield each job that changes, until all have settled; settled ones once; None for a sign
        of life. Over restarts of the node."""
        ends = None if timeout is None else time.monotonic() + timeout
        left = {job._data["requestId"]: job for job in jobs}
        for job in list(left.values()):
            if job.is_settled:
                del left[job._data["requestId"]]
                yield job
        away = 0.0
        while left:
            alive_s = _ALIVE_S
            if ends is not None:
                alive_s = max(0.1, min(_ALIVE_S, ends - time.monotonic()))
            query = watch_query(list(left.values()))
            watched = self.events(**query, alive_s=alive_s)
            try:
                async with aclosing(watched) as events:
                    async for event in events:
                        away = 0.0
                        if event.kind == "ready" and not query:
                            for found in await self._refreshed(left):
                                yield found
                        changed = self._noted(event, left)
                        if changed is not None or event.kind == "alive":
                            yield changed
                        if not left:
                            return
                        if ends is not None and time.monotonic() >= ends:
                            raise _too_long(left, timeout)
                await sleep(PAUSE_S)  # the node ended the stream: it stops
            except NodeNotRunning as error:
                away = await self._api.pause(error, away)

    async def _refreshed(self, left: dict[str, AsyncPairioJob]) -> list[AsyncPairioJob]:
        """Renew all that is waited for; return what has settled."""
        for job in left.values():
            await job.refresh()
        settled = [job for job in left.values() if job.is_settled]
        for job in settled:
            del left[job._data["requestId"]]
        return settled

    def _noted(self, event: Event, left: dict[str, AsyncPairioJob]) -> AsyncPairioJob | None:
        """Take an event to the job that is waited for; a settled one is waited for no more."""
        job = left.get(event.data["requestId"]) if event.kind == "job" else None
        if job is not None:
            job._note(event.data)
            if job.is_settled:
                del left[event.data["requestId"]]
        return job

    async def _look_at(self, jobs: list[AsyncPairioJob]) -> None:
        """Renew the states of jobs."""
        left = {job._data["requestId"]: job for job in jobs if not job.is_settled}
        query, ends = watch_query(list(left.values())), 0.0
        if not query:  # too many, of several batches
            for job in left.values():
                await job.refresh()
        while left and query:
            watched = self.events(**query)
            try:
                async with aclosing(watched) as events:
                    async for event in events:
                        if event.kind == "ready":
                            return
                        self._noted(event, left)
            except NodeNotRunning as error:
                ends = await self._api.pause(error, ends)


def _too_long(left: Mapping[str, AsyncPairioJob], timeout: float | None) -> WaitTimeout:
    return WaitTimeout(
        f"{len(left)} jobs are not over after {timeout} s",
        "they go on; job.why() says what one waits for",
    )
