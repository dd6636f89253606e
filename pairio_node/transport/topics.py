"""The topics that a node takes part in: gossipsub 1.1, paced; the node says what is passed on.

Gossip may lose anything: what matters comes again by sync.
"""

import hashlib
import random
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import trio
from libp2p.peer.id import ID
from libp2p.pubsub.gossipsub import PROTOCOL_ID_V11
from libp2p.pubsub.pubsub import Pubsub
from libp2p.tools.anyio_service import background_trio_service

from pairio_node.transport.base import Gossip, Sink, everybody
from pairio_node.transport.hearers import HeardBy
from pairio_protocol.limits import FRAME_SIZE_BYTES_MAX

__all__ = ["Topics"]

_INTERVAL_S = 0.1
_QUEUE_MAX = 256


class Topics:
    """The gossip of one host. So many percent as `loss_percent` of what comes are refused."""

    def __init__(self, host: Any, counters: Counter[str], loss_percent: int) -> None:
        self._host = host
        self._counters = counters
        self._loss_percent = loss_percent
        self.router = HeardBy(
            protocols=[PROTOCOL_ID_V11],
            degree=4,
            degree_low=3,
            degree_high=8,
            heartbeat_interval=1,
            heartbeat_initial_delay=0.5,
            prune_back_off=5,
            do_px=False,
            adaptive_gossip_enabled=False,
            spam_protection_enabled=False,
            eclipse_protection_enabled=False,
        )
        self.router.may_hear = lambda topic, peer: self._hearers.get(topic, everybody)(peer)
        self.pubsub = Pubsub(host, self.router, msg_id_constructor=_message_id)
        self._hearers: dict[str, Callable[[str], bool]] = {}
        self._waiting: dict[str, deque[bytes]] = {}  # by topic, to be published
        self._wakes: dict[str, trio.Event] = {}
        self._scopes: dict[str, trio.CancelScope] = {}
        self._forwarders: dict[bytes, str] = {}  # of accepted gossip that waits to be handed on
        self._nursery: trio.Nursery | None = None
        self._sink: Sink | None = None

    @property
    def withheld(self) -> int:
        """How many messages were not sent to peers that may not hear them."""
        return self.router.withheld

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """Run gossipsub while the block runs."""
        async with background_trio_service(self.pubsub), background_trio_service(self.router):
            yield

    async def begin(self, nursery: trio.Nursery, sink: Sink) -> None:
        """From now on topics can be joined: `sink` is given what comes in them."""
        await self.pubsub.wait_until_ready()
        self._nursery, self._sink = nursery, sink

    def join(
        self,
        topic: str,
        accept: Callable[[str, bytes], bool],
        may_hear: Callable[[str], bool],
    ) -> None:
        """Take part in a topic; `accept(forwarder, data)` says what is passed on, `may_hear(peer)`
        to whom."""
        if topic in self._waiting:
            return
        self._hearers[topic] = may_hear
        self._waiting[topic] = deque(maxlen=_QUEUE_MAX)
        self._wakes[topic] = trio.Event()
        assert self._nursery is not None

        def validate(forwarder: ID, message: Any) -> bool:
            if forwarder == self._host.get_id():
                return True
            if random.uniform(0, 100) < self._loss_percent:
                self._counters["gossip_lost_on_purpose"] += 1
                return False
            try:
                ok = len(message.data) <= FRAME_SIZE_BYTES_MAX and accept(
                    str(forwarder), message.data
                )
            except Exception:  # a raising validator ends the stock host
                ok = False
            self._counters["gossip_received" if ok else "gossip_refused"] += 1
            if ok:
                self._forwarders[_message_id(message)] = str(forwarder)
                while len(self._forwarders) > _QUEUE_MAX:
                    del self._forwarders[next(iter(self._forwarders))]
            return ok

        self.pubsub.set_topic_validator(topic, validate, False)
        scope = self._scopes[topic] = trio.CancelScope()
        self._nursery.start_soon(self._take_part, topic, scope)

    def leave(self, topic: str) -> None:
        """Take part in a topic no more; what waits to be published is dropped."""
        if self._waiting.pop(topic, None) is not None:
            self._wakes.pop(topic)
            self._scopes.pop(topic).cancel()

    async def _take_part(self, topic: str, scope: trio.CancelScope) -> None:
        """Hand on what comes in a topic, and publish, until it is left."""
        with scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._publish, topic)
                await self._hand_on(topic)
        if topic not in self._waiting:  # it was not joined again meanwhile
            self.pubsub.remove_topic_validator(topic)
            await self.pubsub.unsubscribe(topic)

    async def _hand_on(self, topic: str) -> None:
        subscription = await self.pubsub.subscribe(topic)
        mine = self._host.get_id().to_bytes()
        while True:
            message = await subscription.get()
            if message.from_id != mine and self._sink is not None:
                forwarder = self._forwarders.pop(_message_id(message), "")
                await self._sink(Gossip(topic, forwarder, message.data))

    def announce(self, topic: str, data: bytes) -> None:
        """Publish, paced; the oldest waiting frames are dropped when too many wait."""
        if topic in self._waiting:
            self._waiting[topic].append(data)
            self._wakes[topic].set()

    async def _publish(self, topic: str) -> None:
        queue = self._waiting.get(topic)  # None: left before this began
        while queue is not None:
            if not queue:
                self._wakes[topic] = trio.Event()
                await self._wakes[topic].wait()
            data = queue.popleft()
            if not self.pubsub.peers:  # signing for nobody costs as much as for many
                self._counters["gossip_to_nobody"] += 1
                continue
            try:
                await self.pubsub.publish(topic, data)
                self._counters["gossip_sent"] += 1
            except Exception:  # gossip may lose anything; sync makes it good
                self._counters["gossip_lost"] += 1
            await trio.sleep(_INTERVAL_S)


def _message_id(message: Any) -> bytes:
    """Name gossip by its content: stock names repeat after a restart, and are then dropped."""
    return hashlib.sha256(message.data).digest()
