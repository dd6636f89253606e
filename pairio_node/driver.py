"""The only loop: event -> core.handle -> effects -> one timer. It decides nothing.

Whatever happens (a frame, a finished run, a call of a client) is posted as an event; the loop hands
events to the core one by one and its effects to the shell. When nothing waits, or 64 records do,
what was written is sealed and committed in one transaction; `Committed` comes back as an event.
"""

import math
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

import trio

from pairio_node.clock import Clock
from pairio_node.errors import UnavailableError, UserError
from pairio_protocol.core import NodeCore
from pairio_protocol.effects import Commit, Effect, Fail, Reply
from pairio_protocol.errors import DecodeError
from pairio_protocol.events import CommitFailed, Committed, Event, Restored, TimePassed, Woke
from pairio_protocol.limits import SEGMENT_RECORDS_MAX

__all__ = ["Driver", "Shell"]

#: Events that may wait; peers are held back by their transport long before.
QUEUE_EVENTS_MAX = 65_536
#: A gap between two looks at the clock that means: the machine slept.
SLEEP_GAP_MS = 2_000
#: Events handled before the loop lets others run and seals.
BATCH_EVENTS_MAX = 64
#: A disk that failed is tried again after this time.
RETRY_MS = 1_000
#: With this many callers waiting, throughput counts: what they write while a commit is under way
#: goes into one segment, at most this long. A quiet node seals at once.
BUSY_CALLS = 8
HOLD_MS = 20
#: What nobody waits for goes with the next commit: after so long it gets one of its own. Most warm
#: jobs end within this time, so that their beginning and their result are one.
IDLE_HOLD_MS = 50


#: Told in the loop that something is on disk.
_Told = Callable[[], None]


class Shell(Protocol):
    """Carries effects out. `carry_out` never blocks: it queues or starts tasks."""

    def carry_out(self, effect: Effect) -> None:
        """Do one effect."""

    def write(self, commit: Commit, on_done: Callable[[Exception | None], None]) -> None:
        """Store a commit; call `on_done` in the loop when it is on disk, or with the error."""


class Driver:
    """Drives one core. `post` and `call` may be used from any task of the loop's thread."""

    def __init__(self, core: NodeCore, clock: Clock, shell: Shell) -> None:
        self.core = core
        self._clock = clock
        self._shell = shell
        self._queue: deque[Event] = deque()
        self._wake = trio.Event()
        self._calls: dict[int, tuple[trio.Event, list[Reply | Fail]]] = {}
        self._call_number = 0
        self._stored: dict[int, _Told] = {}  # by id of an event in the queue
        self._unsealed: list[_Told] = []
        self._in_flight: dict[int, list[_Told]] = {}  # by ticket
        self._failed_at_ms = -math.inf
        self._failed: list[CommitFailed] = []  # while others are still under way
        self._sealed_ms = 0
        self._idle_until_ms = -math.inf  # for what nobody waits for

    def post(self, event: Event) -> bool:
        """Queue an event; False (and dropped) when QUEUE_EVENTS_MAX wait already."""
        if len(self._queue) >= QUEUE_EVENTS_MAX:
            return False
        self._append(event)
        return True

    def _append(self, event: Event) -> None:
        self._queue.append(event)
        self._wake.set()

    async def call(self, make_event: Callable[[int], Event]) -> dict[str, Any]:
        """Post the event that `make_event(call)` makes and wait for its answer.

        Raises:
            UserError: what the core answered with `Fail`.
            UnavailableError: too much is waiting; nothing was done.
        """
        self._call_number += 1
        number = self._call_number
        done = trio.Event()
        answer: list[Reply | Fail] = []
        self._calls[number] = (done, answer)
        try:
            if not self.post(make_event(number)):
                raise UnavailableError("the node is overloaded", hint="try again in a moment")
            await done.wait()
        finally:
            del self._calls[number]
        if isinstance(answer[0], Fail):
            failure = answer[0]
            raise UserError(failure.message, hint=failure.hint, code=failure.code)
        return answer[0].value

    async def post_stored(self, event: Event) -> None:
        """Post an event and wait until all that the core wrote because of it is on disk."""
        stored = trio.Event()
        self._stored[id(event)] = stored.set
        try:
            while not self.post(event):  # noqa: ASYNC110 - rare: too much is waiting
                await trio.sleep(0.05)
            await stored.wait()
        finally:
            self._stored.pop(id(event), None)

    def when_stored(self, told: _Told) -> None:
        """Call `told` when all that is written by now, and not only waits for more, is on disk;
        at once if it is."""
        self._unsealed.append(told)
        if self._clock.now_ms() - self._failed_at_ms < RETRY_MS:
            return  # what failed is written again before anybody is told
        if self.core.can_wait():
            self._sealed_before()
        else:
            self._wake.set()

    async def run(self) -> None:
        """Run until cancelled."""
        last_ms = self._clock.now_ms()
        while True:
            await self._wait()
            now_ms = self._clock.now_ms()
            if now_ms - last_ms > SLEEP_GAP_MS and self._overslept(last_ms, now_ms):
                self._handle(Woke(now_ms - last_ms))
            last_ms = now_ms
            if not self._queue:
                self._handle(TimePassed())
            for _ in range(min(len(self._queue), BATCH_EVENTS_MAX)):
                self._handle(self._queue.popleft())
                if self.core.pending_count() >= SEGMENT_RECORDS_MAX:
                    self._seal()
            self._seal()
            if self._queue:  # else it waits at once
                await trio.lowlevel.checkpoint()

    def _overslept(self, last_ms: int, now_ms: int) -> bool:
        """Say whether the loop was to look at the clock before: then it was the machine."""
        due_ms = self.core.next_deadline_ms()
        return due_ms is not None and now_ms - max(due_ms, last_ms) > SLEEP_GAP_MS

    async def _wait(self) -> None:
        """Wait for an event or for the core's deadline."""
        if self._queue:
            return
        due_ms = self.core.next_deadline_ms()
        wait_s = math.inf if due_ms is None else max(0, due_ms - self._clock.now_ms()) / 1000
        if self._is_held():
            wait_s = min(wait_s, HOLD_MS / 1000)
        if self._idle_until_ms > -math.inf:
            wait_s = min(wait_s, max(0, self._idle_until_ms - self._clock.now_ms()) / 1000)
        retry_ms = self._failed_at_ms + RETRY_MS - self._clock.now_ms()
        if retry_ms > 0 and self.core.has_pending():
            wait_s = min(wait_s, retry_ms / 1000)
        self._wake = trio.Event()
        with trio.move_on_after(max(wait_s, 0.001)):
            await self._wake.wait()

    def _handle(self, event: Event) -> None:
        try:
            effects = self.core.handle(event, self._clock.now_ms(), self._clock.unix_ms())
        except DecodeError as error:
            if not isinstance(event, Restored):
                raise
            raise UserError(
                f"what node.db holds does not verify any more: {error}",
                hint="the disk is damaged, or somebody has changed it: put an older copy of node.db"
                " in its place, or move it away and join again; members send what they have",
            ) from None
        self._carry_out(effects)
        stored = self._stored.pop(id(event), None)
        if stored is not None:
            self._unsealed.append(stored)

    def _carry_out(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Reply | Fail):
                self._answer(effect)
            else:
                self._shell.carry_out(effect)

    def _answer(self, effect: Reply | Fail) -> None:
        waiting = self._calls.get(effect.call)
        if waiting is not None:  # else the caller has gone
            waiting[1].append(effect)
            waiting[0].set()

    def _is_held(self) -> bool:
        """Say whether what was written waits for more (group commit)."""
        return (
            len(self._calls) >= BUSY_CALLS
            and bool(self._in_flight)
            and 0 < self.core.pending_count() < SEGMENT_RECORDS_MAX
            and self._clock.now_ms() - self._sealed_ms < HOLD_MS
        )

    def _is_idle(self) -> bool:
        """Say whether something was written, nobody waits for it, and it may wait for more."""
        if self._unsealed or not self.core.has_pending() or not self.core.can_wait():
            self._idle_until_ms = -math.inf
            return False
        now_ms = self._clock.now_ms()
        if self._idle_until_ms == -math.inf:
            self._idle_until_ms = now_ms + IDLE_HOLD_MS
        return now_ms < self._idle_until_ms

    def _seal(self) -> None:
        """Hand what was written to the disk; a failing disk is tried again once a second."""
        if self._is_held() or self._is_idle():
            return
        if self._failed or self._clock.now_ms() - self._failed_at_ms < RETRY_MS:
            return
        sealed = self.core.seal(self._clock.now_ms(), self._clock.unix_ms())
        if sealed is None:
            if self._unsealed:
                self._sealed_before()
            return
        self._sealed_ms, self._idle_until_ms = self._clock.now_ms(), -math.inf
        ticket = sealed.commit.ticket
        self._in_flight[ticket], self._unsealed = self._unsealed, []

        def on_done(error: Exception | None) -> None:
            waiting = self._in_flight.pop(ticket)
            if error is None:
                self._append(Committed(ticket))  # never dropped: callers wait for it
                for told in waiting:
                    told()
            else:
                self._unsealed += waiting
                self._failed_at_ms = self._clock.now_ms()
                self._failed.append(CommitFailed(ticket, str(error)))
            if self._failed and not self._in_flight:
                self._tell_failed()

        self._shell.write(sealed.commit, on_done)
        self._carry_out(sealed.effects)

    def _tell_failed(self) -> None:
        """All that was under way with a commit that failed has been answered, with the same. Newest
        first: what each held is put before what came later."""
        for failed in sorted(self._failed, key=lambda event: event.ticket, reverse=True):
            self._append(failed)
        self._failed = []

    def _sealed_before(self) -> None:
        """Nothing is left to write: who waits does so for the newest commit under way, if any."""
        if self._in_flight:
            self._in_flight[max(self._in_flight)] += self._unsealed
        else:
            for told in self._unsealed:
                told()
        self._unsealed = []
