"""For tests of Bitswap: two nodes' ends in one loop, and a peer that says whatever a test wants."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import trio
import trio.testing

from pairio_node.bitswap import BITSWAP, Bitswap
from pairio_node.bitswap.wire import Message, Want, decode_message, encode_message, want
from pairio_node.blocks import BlockMissing, Content, DiskBlockStore
from pairio_node.transport import MemoryNetwork, MemoryTransport, TransportEvent
from pairio_node.transport.base import ByteStream
from pairio_node.transport.prefixed import receive_prefixed

PATIENCE_S = 20.0


class Shelf:
    """A store whose blocks are public but for those in `private`."""

    def __init__(self, path: Path) -> None:
        self.store = DiskBlockStore(path, 2**30)
        self.content = Content(self.store)
        self.private: set[str] = set()

    async def among(self, cids: Sequence[str]) -> set[str]:
        return {cid for cid in cids if cid not in self.private and self.store.has(cid)}

    async def get(self, cid: str) -> bytes:
        if cid in self.private:
            raise BlockMissing(cid)
        return await self.store.get(cid)


class End:
    """A node's end: transport, shelf, Bitswap."""

    def __init__(self, network: MemoryNetwork, name: str, path: Path) -> None:
        self.transport = MemoryTransport(network, name.encode().ljust(32, b"."))
        self.shelf = Shelf(path / name)
        self.bitswap = Bitswap(self.shelf, self.transport)
        self.id = self.transport.peer_id

    async def sink(self, event: TransportEvent) -> None:
        """Events of the control channel are nothing to Bitswap."""

    async def fetch(self, cid: str, *peers: str, limit_bytes: int = 2**40) -> int:
        with trio.fail_after(PATIENCE_S * 3):
            return await self.bitswap.fetch(
                self.shelf.store, cid, peers=peers or None, limit_bytes=limit_bytes
            )


class Puppet:
    """A peer whose every word a test says; what it hears is kept."""

    def __init__(self, network: MemoryNetwork, name: str = "puppet") -> None:
        self.transport = MemoryTransport(network, name.encode().ljust(32, b"."))
        self.id = self.transport.peer_id
        self.heard: list[Message] = []
        self._changed = trio.Event()
        self.transport.set_stream_handler(BITSWAP, self._listen)

    async def sink(self, event: TransportEvent) -> None:
        """Nothing."""

    async def _listen(self, stream: ByteStream) -> None:
        while True:
            data = await receive_prefixed(stream.receive_exactly, lambda: 2**24)
            self.heard.append(decode_message(data))
            self._changed.set()
            self._changed = trio.Event()

    async def open(self, end: End) -> ByteStream:
        return await self.transport.open_stream(end.id, BITSWAP)

    async def say(self, end: End, message: bytes) -> None:
        stream = await self.open(end)
        await stream.send(message)
        await stream.close()

    async def ask(self, end: End, *wants: Want) -> None:
        await self.say(end, encode_message(wants))

    async def until(self, count: int) -> list[Message]:
        """Return what was heard, when it is so many messages."""
        with trio.fail_after(PATIENCE_S):
            while len(self.heard) < count:
                await self._changed.wait()
        return self.heard

    def wanted(self) -> list[str]:
        return [entry.cid for message in self.heard for entry in message.wants]


@asynccontextmanager
async def ends(path: Path, *names: str) -> AsyncIterator[tuple[MemoryNetwork, list[End]]]:
    """Run ends, all connected with the first one."""
    network = MemoryNetwork()
    async with AsyncExitStack() as stack:
        made = [End(network, name, path) for name in names]
        for end in made:
            await stack.enter_async_context(end.transport.running(end.sink))
        nursery = await stack.enter_async_context(trio.open_nursery())
        for end in made:
            nursery.start_soon(end.bitswap.run)
        for end in made[1:]:
            await end.transport.reach(made[0].id, made[0].transport.addresses())
        await trio.testing.wait_all_tasks_blocked()
        yield network, made
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def puppet(network: MemoryNetwork, end: End, name: str = "puppet") -> AsyncIterator[Puppet]:
    """Run a puppet, connected with an end."""
    made = Puppet(network, name)
    async with made.transport.running(made.sink):
        await made.transport.reach(end.id, end.transport.addresses())
        yield made


def wants(*cids: str, is_have: bool = False) -> list[Want]:
    return [want(cid, is_have=is_have) for cid in cids]
