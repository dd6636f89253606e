"""Answers wants: what each peer has asked for, and what it is given of it.

A want that cannot be met stays noted, and is met when the block becomes public, as Bitswap has it.
Wants of one peer, peers, and bytes are bounded; peers are strangers here, members included.
"""

from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Protocol

import trio

from pairio_node.bitswap.outbox import Outbox
from pairio_node.bitswap.wire import Message, Want, encode_message
from pairio_node.blocks.base import BlockMissing
from pairio_node.errors import UserError
from pairio_node.rate import Rate
from pairio_node.transport.base import Transport, TransportError
from pairio_protocol.limits import (
    BITSWAP_ALL_PER_S_BYTES_MAX,
    BITSWAP_ANSWERS_AT_ONCE_MAX,
    BITSWAP_PEER_PER_S_BYTES_MAX,
    BITSWAP_PEERS_MAX,
    BITSWAP_WANTS_PER_PEER_MAX,
)

__all__ = ["Library", "Server"]

#: Wants looked at in one go.
_BATCH = 64
#: A message with blocks is sent when it holds so much.
_MESSAGE_BYTES = 512 * 1024
#: A stream for answers stays open so long without one.
_LINGER_S = 1.0


class Library(Protocol):
    """The blocks that anybody may read."""

    async def among(self, cids: Sequence[str]) -> set[str]:
        """Return those of `cids` that are public and here."""

    async def get(self, cid: str) -> bytes:
        """Return a public block; BlockMissing for one that is not, or not here."""


class _Ledger:
    """What one peer wants. `fresh` is what has to be looked at."""

    def __init__(self, outbox: Outbox) -> None:
        self.outbox = outbox
        self.wants: dict[bytes, Want] = {}
        self.fresh: dict[bytes, None] = {}
        self.wake = trio.Event()
        self.scope = trio.CancelScope()
        self.is_worked = False
        self.rate = Rate(BITSWAP_PEER_PER_S_BYTES_MAX)


class Server:
    """See the module. `start` starts a task."""

    def __init__(
        self,
        library: Library,
        transport: Transport,
        counters: Counter[str],
        start: Callable[[Callable[[], Awaitable[None]]], None],
    ) -> None:
        self._library = library
        self._transport = transport
        self._counters = counters
        self._start = start
        self._ledgers: OrderedDict[str, _Ledger] = OrderedDict()
        self._all = Rate(BITSWAP_ALL_PER_S_BYTES_MAX)
        self._at_once = trio.CapacityLimiter(BITSWAP_ANSWERS_AT_ONCE_MAX)

    def on_message(self, peer: str, message: Message) -> None:
        """Note what a peer wants, and what it wants no more."""
        ledger = self._ledgers.get(peer)
        if ledger is None:
            if not any(not want.is_cancel for want in message.wants):
                return
            ledger = self._new_ledger(peer)
        self._ledgers.move_to_end(peer)
        if message.is_full:
            ledger.wants.clear()
            ledger.fresh.clear()
        for want in message.wants:
            self._note(ledger, want)
        self._work_on(peer, ledger)

    def recheck(self) -> None:
        """More is public than before: look at all open wants again."""
        for peer, ledger in self._ledgers.items():
            ledger.fresh |= dict.fromkeys(ledger.wants)
            self._work_on(peer, ledger)

    def forget(self, peer: str) -> None:
        """Forget a peer; what is being sent to it is broken off."""
        ledger = self._ledgers.pop(peer, None)
        if ledger is not None:
            ledger.scope.cancel()

    def wants_of(self, peer: str) -> int:
        """Return how many wants of a peer are open."""
        ledger = self._ledgers.get(peer)
        return len(ledger.wants) if ledger is not None else 0

    def _new_ledger(self, peer: str) -> _Ledger:
        while len(self._ledgers) >= BITSWAP_PEERS_MAX:
            self.forget(next(iter(self._ledgers)))
            self._counters["bitswap_peers_forgotten"] += 1
        ledger = self._ledgers[peer] = _Ledger(Outbox(self._transport, peer))
        return ledger

    def _note(self, ledger: _Ledger, want: Want) -> None:
        if want.is_cancel:
            ledger.wants.pop(want.raw, None)
            ledger.fresh.pop(want.raw, None)
            return
        had = ledger.wants.get(want.raw)
        if had is None and len(ledger.wants) >= BITSWAP_WANTS_PER_PEER_MAX:
            self._counters["bitswap_wants_refused"] += 1
            return
        if had is None or want.is_have <= had.is_have:  # a block is more than the word
            ledger.wants[want.raw] = want
        ledger.fresh[want.raw] = None

    def _work_on(self, peer: str, ledger: _Ledger) -> None:
        if ledger.fresh and not ledger.is_worked:
            ledger.is_worked = True
            self._start(partial(self._work, peer, ledger))
        elif ledger.fresh:
            ledger.wake.set()

    async def _work(self, peer: str, ledger: _Ledger) -> None:
        """Answer a peer until nothing of it is left to look at."""
        try:
            with trio.CancelScope() as ledger.scope:
                while ledger.fresh and self._ledgers.get(peer) is ledger:
                    await self._answer(ledger)
                    if not ledger.fresh:
                        ledger.wake = trio.Event()
                        with trio.move_on_after(_LINGER_S):
                            await ledger.wake.wait()
        except (TransportError, BlockMissing, UserError, OSError):  # it is gone, or the store fails
            self._counters["bitswap_answers_lost"] += 1
            if self._ledgers.get(peer) is ledger:
                del self._ledgers[peer]
        finally:
            ledger.is_worked = False
            await ledger.outbox.close()

    async def _answer(self, ledger: _Ledger) -> None:
        """Look at some wants and send what there is to say of them."""
        batch = [ledger.wants[raw] for raw in list(ledger.fresh)[:_BATCH] if raw in ledger.wants]
        for raw in list(ledger.fresh)[:_BATCH]:
            del ledger.fresh[raw]
        cids = {want.raw: want.cid for want in batch}
        here = await self._library.among([cid for cid in cids.values() if cid])
        presences = []
        asked = []
        for want in batch:
            if ledger.wants.get(want.raw) is not want:
                continue  # taken back meanwhile, or asked for anew: then it is in `fresh` again
            if cids[want.raw] not in here:
                if want.send_dont_have:
                    presences.append((want.raw, False))
            elif want.is_have:
                presences.append((want.raw, True))
                del ledger.wants[want.raw]
            else:
                asked.append(want)
        if presences:
            await ledger.outbox.send(encode_message(presences=presences))
        await self._give(ledger, asked)

    async def _give(self, ledger: _Ledger, wants: list[Want]) -> None:
        """Send blocks, as many in a message as there is room for."""
        left = wants[::-1]
        while left:
            async with self._at_once:
                size = await self._give_some(ledger, left)
            await self._all.wait(size)
            await ledger.rate.wait(size)

    async def _give_some(self, ledger: _Ledger, left: list[Want]) -> int:
        """Send one message with blocks, taking their wants from the end of `left`; return how many
        bytes they have."""
        blocks, lost, size = [], [], 0
        while left and size < _MESSAGE_BYTES:
            want = left.pop()
            if ledger.wants.get(want.raw) is not want:
                continue
            try:
                data = await self._library.get(want.cid)
            except BlockMissing:  # gone since it was looked for
                lost.append((want.raw, False))
                continue
            ledger.wants.pop(want.raw, None)
            blocks.append((want.prefix, data))
            size += len(data)
        if blocks or lost:
            await ledger.outbox.send(encode_message(blocks=blocks, presences=lost))
            self._counters["bitswap_blocks_sent"] += len(blocks)
            self._counters["bitswap_bytes_sent"] += size
        return size
