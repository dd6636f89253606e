"""Gossip that only some peers may hear: what stock gossipsub tells any subscriber.

Whoever subscribes to a topic is sent its messages. Here `may_hear(topic, peer)` decides for every
message that is sent, and who may not hear a topic gets no place in its mesh. A peer's subscription
is remembered all the same: he may become a member later.
"""

from collections.abc import Callable, Iterable
from typing import Any

from libp2p.peer.id import ID
from libp2p.pubsub.gossipsub import GossipSub
from libp2p.pubsub.pb import rpc_pb2

__all__ = ["HeardBy"]


class HeardBy(GossipSub):
    """Gossipsub that asks who may hear a topic; `withheld` counts what was not sent."""

    may_hear: Callable[[str, str], bool]
    withheld = 0

    def send_rpc(self, peer_id: ID, rpc: rpc_pb2.RPC, priority: bool = False) -> None:
        """Send what the peer may hear; everything of gossipsub goes through here."""
        peer = str(peer_id)
        heard = [m for m in rpc.publish if all(self.may_hear(t, peer) for t in m.topicIDs)]
        if len(heard) < len(rpc.publish):
            self.withheld += len(rpc.publish) - len(heard)
            whole, rpc = rpc, rpc_pb2.RPC()
            rpc.CopyFrom(whole)
            del rpc.publish[:]
            rpc.publish.extend(heard)
            if not (heard or rpc.HasField("control") or rpc.subscriptions):
                return
        super().send_rpc(peer_id, rpc, priority)

    async def handle_graft(self, graft_msg: rpc_pb2.ControlGraft, sender_peer_id: ID) -> None:
        """Take a peer into the mesh if he may hear the topic."""
        if self.may_hear(graft_msg.topicID, str(sender_peer_id)):
            await super().handle_graft(graft_msg, sender_peer_id)
        else:
            await self.emit_prune(graft_msg.topicID, sender_peer_id, False, False)

    def _get_in_topic_gossipsub_peers_from_minus(
        self, topic: str, num_to_select: int, minus: Iterable[ID], *more: Any, **named: Any
    ) -> list[ID]:
        subscribed = self.pubsub.peer_topics.get(topic, set()) if self.pubsub else set()
        deaf = {peer for peer in subscribed if not self.may_hear(topic, str(peer))}
        return super()._get_in_topic_gossipsub_peers_from_minus(
            topic, num_to_select, {*minus, *deaf}, *more, **named
        )
