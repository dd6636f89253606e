"""Which of some members have the root of some content. All are asked at once, for a short time; who
has the root mostly has all of it, and if not, has it to fetch: a hint, for who is to run a job.
"""

from typing import Final

import trio

from pairio_node.blocks.base import BLOCK_SIZE_BYTES_MAX
from pairio_node.blocks.exchange import Exchange
from pairio_node.blocks.fetching import FOUND, send_frame
from pairio_node.transport.base import BLOCKS, StreamEnded, TransportError
from pairio_protocol.cid import matches

__all__ = ["find_holders"]

_ASK_S: Final = 1.0
PEERS_MAX: Final = 16


async def find_holders(
    exchange: Exchange, service: str, cid: str, peers: list[str]
) -> dict[str, bytes]:
    """Return the root block by those of `peers` (at most PEERS_MAX are asked) that gave it."""
    found: dict[str, bytes] = {}
    with trio.move_on_after(_ASK_S):
        async with trio.open_nursery() as nursery:
            for peer in peers[:PEERS_MAX]:
                nursery.start_soon(_ask, exchange, service, cid, peer, found)
    return found


async def _ask(
    exchange: Exchange, service: str, cid: str, peer: str, found: dict[str, bytes]
) -> None:
    async with exchange.turn(peer):
        try:
            stream = await exchange.open_stream(peer, BLOCKS)
        except TransportError:
            return  # it has gone
        try:
            await send_frame(stream, service)
            await send_frame(stream, [cid])
            if await stream.receive_exactly(1) == FOUND:
                size = int.from_bytes(await stream.receive_exactly(4), "big")
                data = await stream.receive_exactly(min(size, BLOCK_SIZE_BYTES_MAX))
                if matches(cid, data):
                    found[peer] = data
        except (TransportError, StreamEnded):
            return
        finally:
            with trio.CancelScope(shield=True), trio.move_on_after(1):
                await stream.abort()
