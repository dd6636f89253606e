"""Strangers crowd a node: a program of its own, since libp2p leaves the sockets of connections that
the other side ended to the garbage collector, of which pytest would complain."""

import trio

from pairio_node.transport import TransportEvent, libp2p_transport
from pairio_node.transport.libp2p_transport import Libp2pTransport

_HERE = ("/ip4/127.0.0.1/tcp/0",)


async def _run(transport: Libp2pTransport) -> None:
    async def nothing(event: TransportEvent) -> None:
        return None

    async with transport.running(nothing):
        await trio.sleep_forever()


async def crowd() -> None:
    """Four strangers want two places; then a member comes, and stays."""
    node, member = (Libp2pTransport(seed * 32, _HERE) for seed in (b"N", b"M"))
    strangers = [Libp2pTransport(bytes([n]) * 32, _HERE) for n in range(4)]
    names = {one.peer_id for one in strangers}
    node.prefer(lambda peer: peer == member.peer_id)
    async with trio.open_nursery() as nursery:
        for transport in (node, member, *strangers):
            nursery.start_soon(_run, transport)
        with trio.fail_after(30):
            while not all(t._nursery for t in (node, member, *strangers)):  # noqa: ASYNC110
                await trio.sleep(0.01)  # house: waiting for sockets
            for one in strangers:
                one.keep_connected(node.peer_id, node.addresses())
            while node.counters().get("strangers_replaced", 0) < 2:
                assert len(node.connected() & names) <= 2, "strangers have half of the places"
                await trio.sleep(0.01)  # house: waiting for sockets
            member.keep_connected(node.peer_id, node.addresses())
            while member.peer_id not in node.connected():  # noqa: ASYNC110
                await trio.sleep(0.01)  # house: waiting for sockets
            for _ in range(50):
                assert member.peer_id in node.connected(), "a member stays, however they crowd"
                await trio.sleep(0.02)  # house: waiting for sockets
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    vars(libp2p_transport)["CONNECTIONS_MAX"] = 2
    trio.run(crowd)
