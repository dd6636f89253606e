"""Connections of peers that are no pairio nodes, over libp2p: bounded, and kept while used."""

from contextlib import suppress

import pytest
import trio

from pairio_node.transport import ByteStream, StreamEnded, TransportError, others
from tests.node.transport_lab import PATIENCE_S, Libp2pLab, a_moment, sides

pytestmark = pytest.mark.integration
SOME = "/some/other/1"


async def _serve(stream: ByteStream) -> None:
    with suppress(StreamEnded, TransportError):
        await stream.receive_exactly(1)
    await stream.close()


async def test_of_too_many_the_one_used_longest_ago_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(others, "OTHER_CONNECTIONS_MAX", 2)
    lab = Libp2pLab()
    async with sides(lab, "node", "s1", "s2", "s3") as (node, s1, s2, s3):
        node.transport.set_stream_handler(SOME, _serve)
        for stranger in (s1, s2):
            await stranger.transport.reach(node.id, node.transport.addresses())
            await a_moment(0.1)
        stream = await s1.transport.open_stream(node.id, SOME)
        await a_moment(0.1)
        await (await s2.transport.open_stream(node.id, SOME)).close()
        await a_moment(0.1)
        await stream.send(b"x")  # s1 is used still, s2 no more
        await a_moment(0.1)
        await s3.transport.reach(node.id, node.transport.addresses())
        with trio.fail_after(PATIENCE_S):
            while not node.transport.counters().get("other_connections_closed"):
                await a_moment(0.05)
        await s1.transport.open_stream(node.id, SOME)
        await s3.transport.open_stream(node.id, SOME)
        assert not node.events  # none of them is a node


async def test_nodes_are_not_counted_and_named_peers_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(others, "OTHER_CONNECTIONS_MAX", 1)
    async with sides(Libp2pLab(), "node", "member", "named", "s1", "s2") as all_sides:
        node, member, named, s1, s2 = all_sides
        for side in all_sides:
            side.transport.set_stream_handler(SOME, _serve)
        await node.transport.reach(named.id, named.transport.addresses())
        member.keep(node)
        await node.until_up(member)
        for stranger in (s1, s2):
            await stranger.transport.reach(node.id, node.transport.addresses())
            await a_moment(0.1)
        with trio.fail_after(PATIENCE_S):
            while not node.transport.counters().get("other_connections_closed"):
                await a_moment(0.05)
        await a_moment(0.3)
        assert node.transport.connected() == {member.id}
        assert len(node.downs(member)) == 0
        await (await node.transport.open_stream(named.id, SOME)).close()
        assert node.transport.counters()["other_connections_closed"] == 1
