"""A node that is waited for while it restarts, for async programs. `_patient.py` is made of
this file."""

import time
from collections.abc import Callable
from typing import Any

from anyio import sleep

from pairio._http_async import AsyncApi
from pairio.errors import NodeNotRunning, NotFound, RequestRefused

__all__ = ["PAUSE_S", "RECONNECT_S", "WAIT_S", "AsyncPatientApi"]

#: A node that was there and is away is looked for so often, and so long if nothing else is said.
PAUSE_S = 0.2
RECONNECT_S = 60.0
#: How long the node is asked to hold back what it says of a job that is not over.
WAIT_S = 30.0


class AsyncPatientApi(AsyncApi):
    """Calls of one node; when it was there and is away, it is waited for `reconnect_s` seconds.
    `on_away` is called once each time that it goes."""

    def __init__(
        self, url: str | None = None, token: str | None = None, reconnect_s: float = RECONNECT_S
    ) -> None:
        super().__init__(url, token)
        self.reconnect_s = reconnect_s
        self.on_away: Callable[[], object] | None = None
        self._was_there = self._is_away = False

    async def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        query: dict[str, Any] | None = None,
        key: str | None = None,
    ) -> Any:
        """Make a call that may be made twice; while the node is away, again.

        Raises:
            NodeNotRunning, RequestRefused.
        """
        ends = 0.0
        while True:
            try:
                return await self.once(method, path, body, query, key)
            except NodeNotRunning as error:
                ends = await self.pause(error, ends)

    async def once(
        self,
        method: str,
        path: str,
        body: Any = None,
        query: dict[str, Any] | None = None,
        key: str | None = None,
    ) -> Any:
        """Make a call, and wait for no node that is away.

        Raises:
            NodeNotRunning, RequestRefused.
        """
        try:
            answer = await super().call(method, path, body, query, key)
        except RequestRefused:
            self.is_there()
            raise
        self.is_there()
        return answer

    def is_there(self) -> None:
        """Note that the node has said something."""
        self._was_there, self._is_away = True, False

    async def pause(self, error: NodeNotRunning, ends: float) -> float:
        """Wait a little for a node that is away, and return when to give up (monotonic); raise the
        error when that is now, or it never was there. `ends` is 0 at the first time."""
        now = time.monotonic()
        ends = ends or now + self.reconnect_s
        self._was_there |= error.was_there
        if not self._was_there or now >= ends:
            raise error
        if not self._is_away and self.on_away is not None:
            self.on_away()
        self._is_away = True
        await sleep(PAUSE_S)
        if self.is_elsewhere():
            await self.close()
        return ends

    async def about(
        self, job: dict[str, Any], what: str, query: dict[str, Any], ask: Any = None
    ) -> Any:
        """Ask about a request; one that the node forgot (an answer from the cache is noted in
        memory only) about the job. `ask` makes the call in place of `call`."""
        ask = ask or self.call
        query = {"serviceName": job["serviceName"], **query}
        rest = f"/{what}" if what else ""
        try:
            return await ask("GET", f"/api/v1/jobs/{job['requestId']}{rest}", None, query)
        except NotFound:
            return await ask("GET", f"/api/v1/jobs/{job['jobId']}{rest}", None, query)

    async def wait_for(self, job: dict[str, Any], ends: float | None = None) -> dict[str, Any]:
        """Return a job, as the node shows it, when it is over, and safe if it completed; or as it
        was told last at `ends` (monotonic), also when the node is away then.

        Raises:
            NodeNotRunning: the node went away and did not come back.
        """
        away = 0.0
        while not job["isSettled"]:
            left = WAIT_S if ends is None else min(WAIT_S, ends - time.monotonic())
            if left <= 0:
                break
            try:
                job = await self.about(job, "wait", {"timeoutSec": left}, self.once)
                away = 0.0
            except NodeNotRunning as error:
                away = await self.pause(error, away)
        return job
