"""One fetch of a DAG over Bitswap.

First all peers are asked who has the root. Those who do are holders: each gets a window of wants,
filled again as blocks come. A holder that says it lacks a block is not asked for it again; one that
is silent for too long, or breaks off, is left, and its wants go to others.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import trio

from pairio_node.bitswap.outbox import Outbox
from pairio_node.bitswap.wire import encode_message, want
from pairio_node.blocks.base import BlockCorrupt, BlockMissing, BlockStore
from pairio_node.blocks.exchange import FetchFailed
from pairio_node.errors import UserError
from pairio_node.transport.base import Transport, TransportError
from pairio_protocol.cid import RAW, CidError, parse_cid
from pairio_protocol.dag import links_of
from pairio_protocol.limits import (
    BITSWAP_ASK_AGAIN_MS,
    BITSWAP_DAG_BLOCKS_MAX,
    BITSWAP_DAG_DEPTH_MAX,
    BITSWAP_FIND_MS,
    BITSWAP_HOLDERS_MAX,
    BITSWAP_LACKING_MAX,
    BITSWAP_STALL_MS,
    BITSWAP_WINDOW_MAX,
)
from pairio_protocol.unixfs import UnixfsError

__all__ = ["Fetch"]

#: Blocks that are checked and stored at once.
_TAKERS = 4


@dataclass
class _Holder:
    """A peer that has the root: what it was asked for, and when it last gave something."""

    outbox: Outbox
    wants: set[str] = field(default_factory=set)
    heard_s: float = 0.0
    is_asked_again: bool = False
    lacks: int = 0


class Fetch:
    """See the module. Made for one root, or for some `blocks` and nothing below them, of which
    the first is the root; `run` once."""

    def __init__(
        self,
        transport: Transport,
        store: BlockStore,
        root: str,
        peers: Sequence[str],
        limit_bytes: int,
        blocks: Sequence[str] = (),
    ) -> None:
        self.received_bytes = 0
        #: Peers that are asked, and what is sent to them.
        self.asked = {peer: Outbox(transport, peer) for peer in peers}
        self._store = store
        self._root = root
        self._limit_bytes = limit_bytes
        self._holders: dict[str, _Holder] = {}
        self._spare: list[str] = []  # have the root too
        self._unsure = set(peers)  # have not said yet whether they have the root
        self._reasons: dict[str, str] = {}  # why a peer is asked no more
        self._left: dict[str, set[str]] = {}  # what such a peer was asked for to the end
        #: (CID, depth), the next one last.
        self._todo = [(cid, 0) for cid in reversed(blocks)] or [(root, 0)]
        self._has_below = not blocks  # what blocks link to is wanted, too
        self._depths: dict[str, int] = {}  # of blocks that are wanted now
        self._lacking: dict[str, set[str]] = {}  # block -> peers that said they lack it
        self._nodes: set[str] = set()  # blocks with links that were gone through
        self._taking: set[str] = set()  # being checked and stored
        self._found = 0
        self._began_s = 0.0
        self._failed: Exception | None = None
        self._wake = trio.Event()
        self._came, self._taken = trio.open_memory_channel[tuple[str, bytes, int]](0)
        self._limiter = store.limiter

    # -- what peers say -------------------------------------------------------------------

    def on_presence(self, peer: str, cid: str, is_here: bool) -> None:
        """A peer says whether it has a block."""
        if peer in self._unsure and cid == self._root:
            self._unsure.discard(peer)
            if is_here:
                self._spare.append(peer)
            else:
                self._reasons[peer] = "does not have it"
        elif not is_here and cid in self._depths and peer in self._holders:
            self._lacks(peer, cid)
        self._poke()

    def awaits(self, peer: str, cid: str) -> bool:
        """Say whether a peer was asked for a block that is still wanted."""
        if cid == self._root and peer in self._unsure:
            return True
        return peer in self._holders and cid in self._holders[peer].wants

    async def on_block(self, peer: str, cid: str, data: bytes) -> None:
        """A block came that was asked for, and is what its CID says. Returns when the fetch has
        taken it over: until then its stream is not read further."""
        if peer in self._unsure:  # a small one, in place of the word
            self._unsure.discard(peer)
            self._spare.append(peer)
        elif peer in self._holders:
            self._holders[peer].heard_s = trio.current_time()
            self._holders[peer].is_asked_again = False
        for holder in self._holders.values():
            holder.wants.discard(cid)
        self._lacking.pop(cid, None)
        depth = self._depths.pop(cid, 0)
        if cid == self._root:
            self._todo = [entry for entry in self._todo if entry[0] != cid]
        self._taking.add(cid)
        with suppress(trio.BrokenResourceError):  # the fetch has ended meanwhile
            await self._came.send((cid, data, depth))

    async def _take(self) -> None:
        """Store what comes. A task of the fetch: what it puts is work under way (`in_use`)."""
        async for cid, data, depth in self._taken:
            try:
                self.received_bytes += len(data)
                if self.received_bytes > self._limit_bytes:
                    most = f"more than {self._limit_bytes} bytes"
                    raise FetchFailed(f"content {self._root} has {most}")
                await self._store.put(cid, data)
                self._follow(cid, data, depth)
            except (FetchFailed, BlockCorrupt, BlockMissing, UserError) as error:
                self._failed = self._failed or error
            finally:
                self._taking.discard(cid)
                self._poke()

    def leave(self, peer: str, reason: str) -> None:
        """Ask a peer no more; what it was asked for goes to others."""
        if peer in self.asked:
            self._reasons.setdefault(peer, reason)
            self._left[peer] = self._open_wants(peer)
        self._unsure.discard(peer)
        self._spare = [p for p in self._spare if p != peer]
        holder = self._holders.pop(peer, None)
        for cid in holder.wants if holder is not None else ():
            self._todo.append((cid, self._depths.pop(cid, 0)))
        self._poke()

    def _lacks(self, peer: str, cid: str) -> None:
        """A holder has not the block that it was asked for."""
        holder = self._holders[peer]
        if cid not in holder.wants:
            return
        holder.wants.discard(cid)
        self._lacking.setdefault(cid, set()).add(peer)
        self._todo.append((cid, self._depths.pop(cid)))
        holder.lacks += 1
        if holder.lacks > BITSWAP_LACKING_MAX:
            self.leave(peer, "lacks too many blocks")

    def _poke(self) -> None:
        self._wake.set()

    # -- the walk -------------------------------------------------------------------------

    def _follow(self, cid: str, block: bytes, depth: int) -> None:
        """Want what a block links to."""
        if parse_cid(cid).codec == RAW or cid in self._nodes or not self._has_below:
            return
        self._nodes.add(cid)
        try:
            links = links_of(cid, block)
        except (UnixfsError, CidError) as error:
            raise FetchFailed(f"content {self._root} cannot be: {error}") from None
        self._found += len(links)
        if depth >= BITSWAP_DAG_DEPTH_MAX or self._found > BITSWAP_DAG_BLOCKS_MAX:
            raise FetchFailed(f"content {self._root} is too deep, or has too many blocks")
        self._todo += [(link, depth + 1) for link in reversed(links) if link not in self._nodes]

    async def run(self) -> int:
        """Fetch; return the bytes that came. Raises as `Client.fetch` does."""
        async with self._taken, trio.open_nursery() as nursery:
            for _ in range(_TAKERS):
                nursery.start_soon(self._take)
            failed = await self._run()
            nursery.cancel_scope.cancel()
        if failed is not None:
            raise failed
        return self.received_bytes

    async def _run(self) -> Exception | None:
        """Fetch; return why not."""
        try:
            await self._fill()
            if not self._is_done():
                await self._ask_for_holders()
            while not self._is_done() and self._failed is None:
                self._wake = trio.Event()  # before anything is looked at: what comes now counts
                self._hire()
                await self._fill()
                self._give_up_if_stuck()
                if not self._is_done():
                    with trio.move_on_at(self._due_s()):
                        await self._wake.wait()
                    await self._leave_silent()
        except (FetchFailed, BlockMissing, UserError) as error:
            return error
        return self._failed

    def _is_done(self) -> bool:
        return not (self._todo or self._depths or self._taking)

    async def _ask_for_holders(self) -> None:
        """Ask all peers who has the root, and wait until one does."""
        self._began_s = trio.current_time()
        message = encode_message([want(self._root, is_have=True)])

        async def ask(peer: str) -> None:
            try:
                await self.asked[peer].send(message)
            except TransportError as error:
                self.leave(peer, str(error))

        with trio.move_on_after(BITSWAP_FIND_MS / 1000):
            async with trio.open_nursery() as nursery:
                for peer in self.asked:
                    nursery.start_soon(ask, peer)
                while self._unsure and not self._spare:
                    self._wake = trio.Event()
                    await self._wake.wait()
                nursery.cancel_scope.cancel()

    def _hire(self) -> None:
        """Take holders, as many as are of use."""
        while self._spare and len(self._holders) < BITSWAP_HOLDERS_MAX:
            peer = self._spare.pop(0)
            self._holders[peer] = _Holder(self.asked[peer], heard_s=trio.current_time())

    async def _fill(self) -> None:
        """Follow what is here, and ask for what is not, as far as windows have room."""
        asks: dict[str, list[str]] = {}
        put_back: list[tuple[str, int]] = []
        while self._todo and self._failed is None and self._may_ask(put_back):
            batch = [self._todo.pop() for _ in range(min(len(self._todo), BITSWAP_WINDOW_MAX))]
            new = [e for e in batch if e[0] not in self._depths and e[0] not in self._taking]
            here = await trio.to_thread.run_sync(self._which_are_here, new, limiter=self._limiter)
            for cid, depth in new:
                if cid in here:
                    await self._pass(cid, depth)
                elif (peer := self._free_holder(cid)) is None:
                    put_back.append((cid, depth))
                elif cid not in self._depths:
                    self._want_from(peer, cid, depth)
                    asks.setdefault(peer, []).append(cid)
        self._todo += reversed(put_back)
        for peer, cids in asks.items():
            await self._ask(peer, cids)

    def _may_ask(self, in_vain: list[tuple[str, int]]) -> bool:
        """Say whether it is of use to look at what is wanted next: something could be asked for, or
        it may all be here. Holders that lack what comes next wait for what comes later: with those
        that have room only for it, all of a large file would be looked through again and again."""
        windows = [len(holder.wants) < BITSWAP_WINDOW_MAX for holder in self._holders.values()]
        return len(in_vain) < BITSWAP_WINDOW_MAX and (any(windows) or not windows)

    def _which_are_here(self, entries: list[tuple[str, int]]) -> set[str]:
        return {cid for cid, _ in entries if self._store.has(cid)}

    async def _pass(self, cid: str, depth: int) -> None:
        """A block is here: what it links to is wanted."""
        if cid not in self._nodes and parse_cid(cid).codec != RAW and self._has_below:
            self._follow(cid, await self._store.get(cid), depth)

    def _want_from(self, peer: str, cid: str, depth: int) -> None:
        holder = self._holders[peer]
        if not holder.wants:
            holder.heard_s = trio.current_time()
        holder.wants.add(cid)
        self._depths[cid] = depth

    async def _ask(self, peer: str, cids: list[str]) -> None:
        if peer in self._holders:  # else it was left meanwhile
            try:
                await self.asked[peer].send(encode_message(map(want, cids)))
            except TransportError as error:
                self.leave(peer, str(error))

    def _free_holder(self, cid: str) -> str | None:
        lacking = self._lacking.get(cid, ())
        free = [
            (len(holder.wants), peer)
            for peer, holder in self._holders.items()
            if peer not in lacking and len(holder.wants) < BITSWAP_WINDOW_MAX
        ]
        return min(free)[1] if free else None

    def _give_up_if_stuck(self) -> None:
        """Fail when nobody is left who could bring what is wanted."""
        if self._depths or self._taking or self._unsure or self._spare:
            return
        if not self._todo:
            return
        cid = self._todo[-1][0]
        who = [f"{peer[-6:]}: {why}" for peer, why in self._reasons.items()]
        who += [f"{peer[-6:]}: lacks the block {cid}" for peer in self._holders]
        asked = "; ".join(who) or "no Bitswap peer is connected"
        raise FetchFailed(f"content {self._root} could not be fetched over Bitswap ({asked})")

    def _due_s(self) -> float:
        """Return when somebody has been silent for too long."""
        due = [
            h.heard_s + (BITSWAP_STALL_MS if h.is_asked_again else BITSWAP_ASK_AGAIN_MS) / 1000
            for h in self._holders.values()
            if h.wants
        ]
        return min(due, default=self._began_s + BITSWAP_FIND_MS / 1000)

    async def _leave_silent(self) -> None:
        """Ask those again who are silent, and leave those who stay so."""
        now_s = trio.current_time()
        for peer, holder in list(self._holders.items()):
            silent_ms = (now_s - holder.heard_s) * 1000
            if holder.wants and silent_ms >= BITSWAP_STALL_MS:
                self.leave(peer, "is silent")
            elif holder.wants and silent_ms >= BITSWAP_ASK_AGAIN_MS and not holder.is_asked_again:
                holder.is_asked_again = True
                await self._ask(peer, sorted(holder.wants))
        is_over = (now_s - self._began_s) * 1000 >= BITSWAP_FIND_MS
        for peer in list(self._unsure) if is_over and not self._holders and not self._spare else ():
            self.leave(peer, "does not answer")

    async def close(self, is_wanted: Callable[[str, str], bool]) -> None:
        """Take back what was asked for, has not come, and is not wanted by another fetch of
        (peer, CID); end the streams."""
        async with trio.open_nursery() as nursery:
            for peer, outbox in self.asked.items():
                wants = self._open_wants(peer) | self._left.get(peer, set())
                left = {cid for cid in wants if not is_wanted(peer, cid)}
                nursery.start_soon(_take_back, outbox, left)

    def _open_wants(self, peer: str) -> set[str]:
        """Return what a peer was asked for and has not answered."""
        holder = self._holders.get(peer)
        wants = set(holder.wants) if holder is not None else set()
        return wants | {self._root} if peer in self._unsure else wants


async def _take_back(outbox: Outbox, cids: set[str]) -> None:
    try:
        if cids:
            entries = [want(cid, is_cancel=True) for cid in sorted(cids)]
            await outbox.send(encode_message(entries))
    except TransportError:
        return  # it is gone, and its wantlist with it
    finally:
        await outbox.close()
