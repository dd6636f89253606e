"""Between the core and a node's parts: what peers send becomes events, effects are carried out."""

from collections.abc import Callable
from dataclasses import astuple
from functools import partial
from typing import TYPE_CHECKING

import trio

from pairio_node.blocks import FetchFailed
from pairio_node.cache_needs import key_of
from pairio_node.errors import UserError
from pairio_node.status import TWIN_HINT, twin_words
from pairio_node.store import CommitRows
from pairio_node.strangers import Pace
from pairio_node.transport import (
    CHANNEL_CONTROL,
    CHANNEL_SYNC,
    Frame,
    Gossip,
    PeerDown,
    PeerUp,
    TransportEvent,
)
from pairio_protocol import effects as ef
from pairio_protocol import events as ev
from pairio_protocol.machines.contents import LOOK
from pairio_protocol.segment import Segment

if TYPE_CHECKING:
    from pairio_node.node import Node

__all__ = ["NodeShell"]

_CHANNELS = {"control": CHANNEL_CONTROL, "sync": CHANNEL_SYNC}
_TOPIC_PREFIX = "/pairio/1/"


class NodeShell:
    """The `driver.Shell` of a node; `on_transport` is the sink of its transport."""

    def __init__(self, node: "Node") -> None:
        self._node = node
        self._pace = Pace()

    # -- peers -> core --------------------------------------------------------------------

    async def on_transport(self, event: TransportEvent) -> None:
        """Hand a transport's event to the core; waits when too much is queued."""
        node = self._node
        match event:
            case PeerUp():
                posted: ev.Event = ev.PeerUp(event.peer, event.addresses)
                self.remember(event.peer, event.addresses)
            case PeerDown():
                posted = ev.PeerDown(event.peer)
                self._pace.forget(event.peer)
                if node.dht is not None:
                    node.dht.on_peer_down(event.peer)
            case Frame():
                if self._is_stranger(event.peer):
                    await self._pace.wait(event.peer)
                posted = ev.FrameReceived(event.peer, event.data)
            case Gossip():
                service = event.topic.removeprefix(_TOPIC_PREFIX).partition("/")[0]
                posted = ev.GossipReceived(service, event.forwarder, event.data)
        while not node.driver.post(posted):  # noqa: ASYNC110 - rare, and every event wakes nobody
            await trio.sleep(0.05)  # back-pressure: the stream is not read meanwhile

    def _is_stranger(self, peer: str) -> bool:
        """Say whether a peer is neither a member of a service here nor somebody whom this node's
        owner named or asked to let it in."""
        core = self._node.core
        if core.membership.shared_with(peer) or peer in core.ctx.config.trust:
            return False
        return not (core.own_wishes.names(peer) or core.guests.names(peer))

    def remember(self, peer: str, addresses: tuple[str, ...]) -> None:
        """Store where a member was found; with the next transaction, as the loop never waits."""
        node = self._node
        if not addresses or node.writer is None:
            return

        def on_done(error: Exception | None) -> None:
            if error is not None:
                node.core.ctx.counters["peers not remembered"] += 1

        row = (peer, " ".join(addresses), node.clock.unix_ms())
        node.writer.submit(CommitRows(peers=(row,)), on_done)

    # -- core -> parts --------------------------------------------------------------------

    def carry_out(self, effect: ef.Effect) -> None:
        """Do one effect of the core."""
        node = self._node
        match effect:
            case ef.Send():
                node.transport.send(effect.peer, _CHANNELS[effect.channel], effect.data)
            case ef.Announce():
                node.transport.announce(_topic(effect.service), effect.data)
            case ef.Connect():
                node.transport.keep_connected(effect.peer, effect.addresses)
                self.remember(effect.peer, effect.addresses)
            case ef.JoinTopic():
                service = effect.service
                node.transport.join_topic(
                    _topic(service),
                    lambda _, data: node.core.accepts_gossip(service, data),
                    lambda peer: service in node.core.membership.shared_with(peer),
                )
            case ef.LeaveTopic():
                node.transport.leave_topic(_topic(effect.service))
            case ef.Execute():
                node.spawn(node.executions.execute, effect)
            case ef.Kill():
                node.executions.kill(effect.attempt)
            case ef.GuestReads():
                node.guest_blocks.give(effect.peer, effect.service, effect.cids)
            case ef.FetchBlocks():
                if node.cache.has_just_made(effect.ticket, effect.service, effect.cids):
                    # Who waits here for the result is told with its commit, without a task.
                    node.driver.when_stored(partial(self._holds, effect))
                else:
                    node.spawn(self._fetch, effect)
            case ef.Locate():
                node.spawn(self._locate, effect)
            case ef.LookFurther():
                assert node.finder is not None  # the core looks no further without one
                node.spawn(node.finder.for_submit, effect)
            case ef.JobChanged() | ef.WishChanged():
                node.tell_changed()
                if isinstance(effect, ef.JobChanged):
                    node.watching.changed(effect.service, effect.job)
            case ef.TwinSeen():
                node.say(f"warning: {twin_words(effect.boot, effect.since_unix_ms)}. {TWIN_HINT}")
            case ef.Refuse() | ef.Reply() | ef.Fail():
                pass  # counted by the core; answers go through the driver

    def write(self, commit: ef.Commit, on_done: Callable[[Exception | None], None]) -> None:
        """Store a commit with the next transaction."""
        node = self._node
        assert node.writer is not None
        now = node.clock.unix_ms()

        def row(s: Segment) -> tuple[bytes, str, str, bytes, int, bytes, int]:
            return (s.hash, s.service, s.log.author, s.log.boot, s.first_seq, s.encode(), now)

        rows = CommitRows(
            services=tuple((s, name, int(up), epoch) for s, name, up, epoch in commit.services),
            changes=commit.changes,
            segments=tuple(map(row, commit.segments)),
            answers=commit.answers,
            kept=tuple(map(row, commit.kept)),
            dropped=tuple((astuple(d)[:6], d.kept) for d in commit.dropped),
            notes=commit.notes,
            forgotten=commit.forgotten,
        )
        node.submits.written(commit.notes)
        node.writer.submit(rows, on_done)

    def write_notes(self, notes: tuple[tuple[str, str, bytes], ...]) -> None:
        """Store notes with the next transaction; one that fails says so with the next commit."""
        node = self._node
        assert node.writer is not None

        def on_done(error: Exception | None) -> None:
            if error is not None:
                node.core.ctx.counters["notes not stored"] += len(notes)

        node.writer.submit(CommitRows(notes=notes), on_done)

    async def _fetch(self, effect: ef.FetchBlocks) -> None:
        node = self._node
        try:
            with node.blocks.in_use.working():
                if not await node.cache.is_here(effect.service, effect.cids):
                    await self._fetch_copy(effect)
                    await node.contents.settle(effect.service)
                elif not key_of(effect.ticket)[0]:
                    # Who waits here for the result: not before it is on the disk.
                    await node.driver.post_stored(ev.TimePassed())
        except FetchFailed as error:
            node.driver.post(ev.Fetched(effect.ticket, False, str(error)))
        except (UserError, OSError) as error:
            node.driver.post(ev.Fetched(effect.ticket, False, str(error), no_room=True))
        else:
            self._holds(effect)

    def _holds(self, effect: ef.FetchBlocks) -> None:
        node = self._node
        node.cache.on_held(effect.ticket, effect.service)
        node.driver.post(ev.Fetched(effect.ticket, True))

    async def _fetch_copy(self, effect: ef.FetchBlocks) -> None:
        node = self._node
        room_bytes = node.cache.room_for_copy(effect.ticket)
        for cid in effect.cids:
            came = await node.exchange.fetch(
                effect.service, cid, effect.holders, limit_bytes=room_bytes
            )
            node.cache.on_copied(effect.ticket, came)
            room_bytes -= came

    async def _locate(self, effect: ef.Locate) -> None:
        """Look whether content is here for a service, whole."""
        node = self._node
        with node.blocks.in_use.working():
            here = await node.cache.is_here(effect.service, effect.cids)
        if effect.ticket.startswith(LOOK) and node.finder is not None:  # for this node itself
            result = effect.ticket.removeprefix(LOOK)
            here = here or await node.finder.find_content(effect.service, result)
        node.driver.post(ev.Located(effect.ticket, here))


def _topic(service: str) -> str:
    return f"{_TOPIC_PREFIX}{service}/0"
