"""The console of a job as its clients follow it: live from whichever node runs it, over several
attempts, and what was stored of it once it has ended.

What is told is a row of events, plain JSON but for the bytes of `output`:
`status` (status, computeNodeId, error), `attempt` (attemptId, number, computeNodeId), `output`
(attemptId, offset, data), `gap` (bytes that are not kept), `note` (text),
`alive`, `end` (status, error).
"""

from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import trio

from pairio_node.blocks import BlockMissing
from pairio_node.blocks.unixfs import UnixfsError
from pairio_node.console_streams import ConsoleStreams, NoConsole
from pairio_node.errors import UserError
from pairio_node.job_views import attempts_view, is_final, job_status, result_of
from pairio_node.runner.supervisor.console import HEAD_BYTES, TAIL_BYTES
from pairio_protocol.fold import RequestState
from pairio_protocol.limits import CONSOLES_FOLLOWED_MAX, LOG_PIECE_SIZE_BYTES_MAX

if TYPE_CHECKING:
    from pairio_node.node import Node

__all__ = ["Consoles"]

Event = dict[str, Any]
#: Clients hear something so often, though the job says nothing.
_ALIVE_S = 15.0
#: How long the last output of an attempt that has ended is waited for.
_LAST_S = 2.0
#: How soon a worker that gave no console is asked again.
_AGAIN_S = 0.5


class Consoles:
    """Consoles for the clients of this node."""

    def __init__(self, node: "Node", may_read: Callable[[str, str], bool]) -> None:
        self._node = node
        self.streams = ConsoleStreams(
            node.transport,
            lambda service, attempt: node.executions.console_of(service, attempt),
            may_read,
            node.memberships,
        )
        self.followed = 0

    def follow(
        self, job_id: str, service: str | None, attempt: str | None, offset: int, *, follow: bool
    ) -> AsyncIterator[Event]:
        """Return what a job writes, from `offset` on of the attempt named (else of the first one
        shown), until it ends; without `follow` what there is now.

        Raises:
            UserError: no such job; too many consoles are followed.
        """
        found = self._node.jobs.find(job_id, service)
        if self.followed >= CONSOLES_FOLLOWED_MAX:
            raise UserError(
                f"{self.followed} consoles are followed already",
                hint="end some of those clients; without follow=1 what there is comes at once",
                code="too_many",
                http_status=429,
            )
        return self._events(*found, (attempt, offset), follow=follow)

    async def _events(
        self, service: str, state: RequestState, first: tuple[str | None, int], *, follow: bool
    ) -> AsyncIterator[Event]:
        sending, receiving = trio.open_memory_channel[Event](0)
        follower = _Follower(self.streams, self._node, service, state, sending, first)
        failed: list[Exception] = []
        scope = trio.CancelScope()

        async def run() -> None:
            try:
                with scope, sending:
                    await follower.run(follow=follow)
            except* Exception as errors:  # the client's, not the node's
                failed.append(errors)
            finally:
                self.followed -= 1

        self.followed += 1
        self._node.spawn(run)
        try:
            while True:
                event: Event = {"type": "alive"}
                try:
                    with trio.move_on_after(_ALIVE_S):
                        event = await receiving.receive()
                except trio.EndOfChannel:
                    break
                yield event
        finally:
            scope.cancel()  # the client may have left
        if failed:
            raise failed[0]


class _Follower:
    """One client that follows one request."""

    def __init__(
        self,
        streams: ConsoleStreams,
        node: "Node",
        service: str,
        state: RequestState,
        sending: trio.MemorySendChannel[Event],
        first: tuple[str | None, int],
    ) -> None:
        self._streams = streams
        self._node = node
        self._service = service
        self._state = state
        self._sending = sending
        self._first = first  # attempt, if one is named, and where to begin in it
        self._status: tuple[Any, ...] = ()
        self._shown: dict[str, int] = {}  # by attempt: up to where its output was told
        self._whole: set[str] = set()  # attempts of which all was told
        self._said = ""

    async def run(self, *, follow: bool) -> None:
        """Tell everything there is, and with `follow` what comes, until the job ends."""
        while True:
            self._state = self._node.jobs.still(self._service, self._state)
            await self._say_status()
            live = self._live()
            if live is not None:
                is_whole = await self._watch(*live, follow=follow)
                if not follow:
                    return
                if is_whole:
                    continue
            elif is_final(self._node.core, self._service, self._state) or not follow:
                await self._stored()
                if follow:
                    await self._say("end", **self._now())
                return
            with trio.move_on_after(_AGAIN_S if live is not None else float("inf")):
                await self._node.changed()

    def _now(self) -> Event:
        status, error = job_status(self._node.core, self._service, self._state)
        return {"status": status, "error": error}

    def _live(self) -> tuple[str, str] | None:
        """Return (attempt, worker) of one that goes on and was not told whole; one that was begun
        to be told first."""
        fold = self._node.core.fold(self._service)
        run = fold.run_of(self._state, fold.resolve(self._state.job))
        if run is None or result_of(self._node.core, self._service, self._state) is not None:
            return None
        live = [key for key in fold.live_attempts(run) if key[0] not in self._whole]
        return min(live, key=lambda key: key[0] not in self._shown, default=None)

    async def _say(self, kind: str, **fields: Any) -> None:
        await self._sending.send({"type": kind, **fields})

    async def _say_status(self) -> None:
        live = self._live()
        worker = live[1] if live is not None else None
        now = (*self._now().values(), worker)
        if now != self._status:
            self._status = now
            await self._say("status", **self._now(), computeNodeId=worker)

    async def _say_once(self, text: str) -> None:
        if text != self._said:
            self._said = text
            await self._say("note", text=text)

    async def _begin(self, attempt: str, worker: str) -> int:
        """Say which attempt is told now, if that is news; return from where on."""
        if attempt not in self._shown:
            named, offset = self._first
            self._shown[attempt] = offset if named in (None, attempt) else 0
            self._first = ("", 0)
            views = attempts_view(self._node.core, self._service, self._state)
            known = [view["attemptId"] for view in views]
            number = known.index(attempt) + 1 if attempt in known else len(known) or 1
            await self._say("attempt", attemptId=attempt, number=number, computeNodeId=worker)
        return self._shown[attempt]

    # -- while it runs --------------------------------------------------------------------------

    async def _watch(self, attempt: str, worker: str, *, follow: bool) -> bool:
        """Tell the output of an attempt that goes on; return whether all of it was told."""
        is_whole = False
        async with trio.open_nursery() as nursery:
            if follow:
                nursery.start_soon(self._until_over, attempt, worker, nursery.cancel_scope)
            try:
                await self._tell(attempt, worker, follow=follow)
                is_whole = True
                self._whole.add(attempt)
            except NoConsole as error:
                await self._say_once(error.message)
            nursery.cancel_scope.cancel()
        return is_whole

    async def _tell(self, attempt: str, worker: str, *, follow: bool) -> None:
        offset = await self._begin(attempt, worker)
        if worker == self._node.peer_id:
            pieces = self._streams.tail(self._service, attempt, offset, follow=follow)
        else:
            pieces = self._streams.ask(worker, self._service, attempt, offset, follow=follow)
        async with aclosing(pieces):  # type: ignore[type-var]
            async for at, data in pieces:
                await self._output(attempt, at, data)

    async def _output(self, attempt: str, at: int, data: bytes) -> None:
        if at > self._shown[attempt]:
            await self._say("gap", attemptId=attempt, bytes=at - self._shown[attempt])
        await self._say("output", attemptId=attempt, offset=at, data=data)
        self._shown[attempt] = at + len(data)

    async def _until_over(self, attempt: str, worker: str, scope: trio.CancelScope) -> None:
        """Wait until an attempt has ended, by what is known here, and a little for its last
        output: a worker may be lost, or never say that it has ended."""
        fold = self._node.core.fold(self._service)
        while any(
            (attempt, worker) in fold.live_attempts(run)
            for run in fold.runs_of(self._state, fold.resolve(self._state.job))
        ):
            await self._node.changed()
            fold = self._node.core.fold(self._service)
        await trio.sleep(_LAST_S)
        scope.cancel()

    # -- when it has ended ----------------------------------------------------------------------

    async def _stored(self) -> None:
        """Tell what was stored of the answer's console and was not told live."""
        result = result_of(self._node.core, self._service, self._state)
        if result is None:
            return
        document = result.document
        shown = await self._begin(document.attempt, document.worker)
        try:
            await self._node.files.ensure(document.console, self._service, self._state)
            size_bytes = await self._node.content.size(document.console)
            if document.attempt in self._whole and shown >= size_bytes:
                return  # a run that was over at once may have ended with less told than it said
            start = min(shown, size_bytes)
            if shown > HEAD_BYTES and start > HEAD_BYTES + TAIL_BYTES:
                start = HEAD_BYTES  # in the middle something is left out: told again from there
            async for data in self._node.files.read(document.console, start, 2**62):
                for at in range(0, len(data), LOG_PIECE_SIZE_BYTES_MAX):
                    piece = data[at : at + LOG_PIECE_SIZE_BYTES_MAX]
                    await self._output(document.attempt, self._shown[document.attempt], piece)
        except (UserError, UnixfsError, BlockMissing) as error:
            await self._say("note", text=f"its console is not to be had now: {error}")
