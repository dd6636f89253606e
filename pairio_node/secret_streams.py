"""Secrets on their way: from a client to this node's vault, from there to the worker of the attempt
under way, over a stream of their own, and to nobody else.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import trio

from pairio_node.errors import UnavailableError
from pairio_node.places import Places
from pairio_node.secret_vault import Vault, check_values
from pairio_node.transport.base import SECRETS, ByteStream, StreamEnded, TransportError
from pairio_protocol import events as ev
from pairio_protocol.codec import pack, unpack
from pairio_protocol.effects import Execute
from pairio_protocol.errors import DecodeError, DefinitionError
from pairio_protocol.limits import (
    SECRET_STREAMS_MAX,
    SECRET_STREAMS_PER_MEMBER_MAX,
    SECRET_STREAMS_PER_PEER_MAX,
    SECRETS_PER_JOB_MAX,
    SECRETS_SIZE_BYTES_MAX,
)
from pairio_protocol.normalise import job_id_of, normalise

if TYPE_CHECKING:
    from pairio_node.node import Node

__all__ = ["Secrets"]

_ASK_SIZE_BYTES_MAX: Final = 4 * 1024
#: Names and values with what packs them.
_ANSWER_SIZE_BYTES_MAX: Final = SECRETS_SIZE_BYTES_MAX + 4 * 1024
_STREAM_S: Final = 10.0
#: Requests expire without anybody being told.
_LOOK_S: Final = 60.0


class Secrets:
    """The secrets of the jobs that were submitted here."""

    def __init__(self, node: "Node") -> None:
        self._node = node
        self._vault = Vault(node.home.path / "secrets")
        self._submitting: Counter[tuple[str, str]] = Counter()
        self._places = Places(
            node.memberships,
            peer=SECRET_STREAMS_PER_PEER_MAX,
            member=SECRET_STREAMS_PER_MEMBER_MAX,
            everybody=SECRET_STREAMS_MAX,
        )
        self._kept = trio.Event()
        node.transport.set_stream_handler(SECRETS, self._serve)

    def begin(self) -> None:
        """Tell the core what is here, before it hears of anything else."""
        if self._vault.held:
            self._node.driver.post(ev.SecretsHeld(self._vault.held))

    # -- from a client ------------------------------------------------------------------------

    @contextmanager
    def kept_for(
        self, service: str, definition: dict[str, Any], values: dict[str, str]
    ) -> Iterator[tuple[str, ...]]:
        """Keep the secrets of a job that is submitted in the block; yields their names. They stay
        when a request for it is open afterwards.

        Raises:
            UserError: a value is none.
        """
        job = self._job_of(service, definition) if values else None
        if job is None:
            yield tuple(sorted(values))  # without secrets, or refused by the core
            return
        check_values(values)
        key = (service, job)
        self._submitting[key] += 1
        try:
            self._vault.keep(service, job, values)
            self._tell()
            self._kept.set()
            yield tuple(sorted(values))
        finally:
            self._submitting[key] -= 1
            if not self._submitting[key]:
                del self._submitting[key]
            if not self._is_open(*key):  # refused, or a hit
                self._vault.drop(*key)
                self._tell()

    def _job_of(self, service: str, definition: dict[str, Any]) -> str | None:
        folded = self._node.core.membership.folded(service)
        app = folded.apps.get(str(definition.get("appName")))
        try:
            return job_id_of(normalise(definition, app)) if app is not None else None
        except DefinitionError:
            return None

    def _tell(self) -> None:
        self._node.driver.post(ev.SecretsHeld(self._vault.held))

    async def run(self) -> None:
        """Let go what no open request needs, until cancelled."""
        await self._node.driver.post_stored(ev.TimePassed())  # what the disk held is known then
        while True:
            over = [job for job in self._vault.held if not self._is_open(*job)]
            for job in over:
                self._vault.drop(*job)
            if over:
                self._tell()
            if not self._vault.held:
                self._kept = trio.Event()
                await self._kept.wait()
            with trio.move_on_after(_LOOK_S):
                await self._node.changed()

    def _is_open(self, service: str, job: str) -> bool:
        if (service, job) in self._submitting:
            return True
        core = self._node.core
        if service not in core.membership.taken_up:
            return False
        fold = core.fold(service)
        return core.logs.pending_of(service) or any(
            fold.requests[name].author == core.ctx.me and fold.is_open(name, core.ctx.unix_ms)
            for name in fold.by_job.get(job, ())
        )

    # -- to a worker ----------------------------------------------------------------------------

    async def _serve(self, stream: ByteStream) -> None:
        """Answer a worker, or break the stream off: why is nobody's business."""
        with self._places.place(stream.peer) as is_free:
            if is_free:
                await self._answer(stream)
                return
        is_stranger = self._places.is_stranger(stream.peer)
        self._refused("a stranger" if is_stranger else "one who has too many")
        await stream.abort()

    async def _answer(self, stream: ByteStream) -> None:
        try:
            with trio.fail_after(_STREAM_S):
                match unpack(await _frame(stream, _ASK_SIZE_BYTES_MAX)):
                    case [str(service), str(request), str(attempt)]:
                        values = self._given(stream.peer, service, request, attempt)
                    case _:
                        raise DecodeError("no such question")
                if values is None:
                    await stream.abort()
                    return
                await _send(stream, [word for pair in sorted(values.items()) for word in pair])
                await stream.close()
        except (StreamEnded, TransportError, DecodeError, trio.TooSlowError):
            self._node.core.ctx.counters["refused: a stream for secrets that is none"] += 1
            await stream.abort()

    def _refused(self, whose: str) -> None:
        self._node.core.ctx.counters[f"refused: a stream for secrets, of {whose}"] += 1

    def _given(self, peer: str, service: str, request: str, attempt: str) -> dict[str, str] | None:
        job = self._node.core.gives_secrets(peer, service, request, attempt)
        return self._vault.get(service, job) if job is not None else None

    async def fetch(self, effect: Execute, names: tuple[str, ...]) -> dict[str, str]:
        """Return the secrets of a run that begins here, from the node that asked for it.

        Raises:
            UnavailableError: it gives none, or others.
        """
        state = self._node.core.fold(effect.service).requests.get(effect.request)
        author = state.author if state is not None else ""
        values = None
        if author == self._node.peer_id:
            values = self._given(author, effect.service, effect.request, effect.attempt)
        elif author:
            values = await self._ask(author, effect)
        if values is None or sorted(values) != sorted(names):
            raise UnavailableError(
                f"no secrets came from {author or 'the submitter'}", hint="submit again"
            )
        return values

    async def _ask(self, author: str, effect: Execute) -> dict[str, str] | None:
        try:
            with trio.fail_after(_STREAM_S):
                stream = await self._node.transport.open_stream(author, SECRETS)
                try:
                    await _send(stream, [effect.service, effect.request, effect.attempt])
                    words = unpack(await _frame(stream, _ANSWER_SIZE_BYTES_MAX))
                finally:
                    with trio.CancelScope(shield=True), trio.move_on_after(1):
                        await stream.abort()
        except (StreamEnded, TransportError, DecodeError, trio.TooSlowError):
            return None
        return _pairs(words)


def _pairs(words: Any) -> dict[str, str] | None:
    """Return the secrets in an answer, None when it is none."""
    if not isinstance(words, list) or len(words) % 2 or len(words) > 2 * SECRETS_PER_JOB_MAX:
        return None
    if not all(isinstance(word, str) for word in words):
        return None
    return dict(zip(words[::2], words[1::2], strict=True))


async def _frame(stream: ByteStream, size_max: int) -> bytes:
    size = int.from_bytes(await stream.receive_exactly(4), "big")
    if size > size_max:
        raise DecodeError("a frame that is too large")
    return await stream.receive_exactly(size)


async def _send(stream: ByteStream, words: list[str]) -> None:
    data = pack(words)
    await stream.send(len(data).to_bytes(4, "big") + data)
