"""Submits by an idempotency key: a client that got no answer asks again, and nothing runs twice.

The key goes into the transaction that stores the request, so it is known after a crash between
that and the answer. Hits store nothing: asked again, they are hits again.

key unknown -> under way -> request is in the database with its key -> forgotten after a day
"""

import hashlib
import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import trio

from pairio_node.errors import ConflictError, UnavailableError
from pairio_protocol import events as ev
from pairio_protocol.commands import SUBMIT_NOTE
from pairio_protocol.fold import RequestState

if TYPE_CHECKING:
    from pairio_node.node import Node

__all__ = ["KEYS_MAX", "KEY_MS", "Submits"]

#: The note (`store.CommitRows.notes`) of a key; its name is `hash of key/hash of what was asked`.
_NOTE = SUBMIT_NOTE
#: Keys that are kept, and for how long.
KEYS_MAX = 50_000
KEY_MS = 24 * 3600 * 1000

_Known = tuple[str, str, str, int]  # hash of what was asked, service, request, when


class _UnderWay:
    """A submit that others with its key wait for."""

    def __init__(self, asked: str) -> None:
        self.asked = asked
        self.done = trio.Event()
        self.answer: dict[str, Any] | None = None
        self.error: BaseException | None = None


class Submits:
    """Submits of this node's clients, each key once."""

    def __init__(self, node: "Node") -> None:
        self._node = node
        self._known: dict[str, _Known] = {}
        self._under_way: dict[str, _UnderWay] = {}

    def restore(self, notes: Iterable[tuple[str, str, bytes]]) -> None:
        """Take what the database held at start."""
        self.written(notes)
        self._forget()

    def written(self, notes: Iterable[tuple[str, str, bytes]]) -> None:
        """Note the keys of requests that are in this commit."""
        for kind, name, data in notes:
            if kind == _NOTE and data:
                key, _, asked = name.partition("/")
                service, request, unix_ms = data.decode().split()
                self._known[key] = (asked, service, request, int(unix_ms))
        if len(self._known) > KEYS_MAX:
            self._forget()

    def _forget(self) -> None:
        """Let go keys that are too old, and the oldest tenth when there are too many."""
        since = self._node.clock.unix_ms() - KEY_MS
        over = len(self._known) - KEYS_MAX
        too_many = list(self._known)[: over + KEYS_MAX // 10 if over > 0 else 0]
        old = {key for key, known in self._known.items() if known[3] < since} | set(too_many)
        notes = [(_NOTE, f"{key}/{self._known.pop(key)[0]}", b"") for key in sorted(old)]
        if notes:
            self._node.shell.write_notes(tuple(notes))

    async def submit(self, body: dict[str, Any], key: str = "") -> dict[str, Any]:
        """Submit a job in the original's form, once for a key; returns the job.

        Raises:
            ConflictError: the key was given for something else.
            UserError: the job is refused.
        """
        if not key:
            return await self._submit(body, "")
        # Of secrets the names: a hash of their values, which is stored, could be guessed.
        plain = {**body, "secrets": sorted(body.get("secrets") or {})}
        name, asked = _hash(key), _hash(json.dumps(plain, sort_keys=True))
        known = self._request_of(name, asked)
        if known is not None:
            await self._node.driver.post_stored(ev.TimePassed())  # it may not be on disk yet
            return self._node.jobs.view(*known)
        under_way = self._under_way.get(name)
        if under_way is None:
            under_way = self._under_way[name] = _UnderWay(asked)
            # Not the caller's task: his going away must not leave it half done.
            self._node.spawn(self._run, name, under_way, body)
        elif under_way.asked != asked:
            raise _other()
        await under_way.done.wait()
        if under_way.error is not None:
            raise under_way.error
        assert under_way.answer is not None
        return under_way.answer

    async def _run(self, name: str, under_way: _UnderWay, body: dict[str, Any]) -> None:
        try:
            under_way.answer = await self._submit(body, f"{name}/{under_way.asked}")
        except Exception as error:  # the waiting callers raise it
            under_way.error = error
        finally:
            del self._under_way[name]
            if under_way.answer is None and under_way.error is None:
                under_way.error = UnavailableError("the node is stopping", hint="submit again")
            under_way.done.set()

    async def _submit(self, body: dict[str, Any], key: str) -> dict[str, Any]:
        job = await self._node.jobs.submit({**body, "key": key} if key else body)
        if body.get("deleteFailing"):
            self._hide_failing(job)
        return job

    def _hide_failing(self, job: dict[str, Any]) -> None:
        """Leave the failed requests for the same job out of lists."""
        fold = self._node.core.fold(job["serviceId"])
        older = (fold.requests[r] for r in fold.by_job.get(job["jobId"], ()))
        self._node.hiding.hide(
            state.id
            for state in list(older)
            if state.id != job["requestId"]
            and self._node.jobs.status_of(job["serviceId"], state) == "failed"
        )

    def _request_of(self, name: str, asked: str) -> tuple[str, RequestState] | None:
        known = self._known.get(name)
        if known is None or known[3] < self._node.clock.unix_ms() - KEY_MS:
            return None
        if known[0] != asked:
            raise _other()
        service = known[1]
        if service not in self._node.core.membership.chains:
            return None
        state = self._node.core.fold(service).requests.get(known[2])
        return (service, state) if state is not None else None


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def _other() -> ConflictError:
    return ConflictError(
        "this idempotency key was given for another job",
        hint="give each submit a key of its own; the same one only to ask again",
    )
