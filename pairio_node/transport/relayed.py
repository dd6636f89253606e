"""A node's use of relays: it dials by way of any, and is reached by way of those its owner named.

A reservation is asked for at each relay that was named, all at once, and renewed every half minute
on the same connection; where that is lost or nobody answers, it is made anew, again and again, with
longer and longer waits. So one relay that goes away leaves the others, and whoever was connected
through it dials the next address. A relay is not believed: both ends of a circuit check by Noise
who is at the other (`circuits`).
"""

import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import trio
from libp2p.peer.id import ID
from libp2p.relay.circuit_v2.pb import circuit_pb2 as pb
from libp2p.security.noise.exceptions import PeerIDMismatchesPubkey
from multiaddr import Multiaddr

from pairio_node.transport.base import TransportError
from pairio_node.transport.circuits import (
    CIRCUIT,
    HOP,
    STOP,
    Circuit,
    is_linked_directly,
    is_relayed,
    peer_in,
    read_hop,
    read_stop,
    split_circuit,
    write_message,
)
from pairio_node.transport.others import OtherConnections
from pairio_protocol.limits import RELAY_ANSWER_MS, RELAY_RENEW_MS, RELAY_TAKEN_MAX

__all__ = ["Relayed"]

_ANSWER_S: Final = RELAY_ANSWER_MS / 1000
_AGAIN_S_MIN: Final = 0.5
_AGAIN_S_MAX: Final = 30.0
_WHY: Final = {
    pb.PERMISSION_DENIED: "it relays for members of its services and for peers that are named",
    pb.RESERVATION_REFUSED: "it has no place left",
    pb.RESOURCE_LIMIT_EXCEEDED: "it has no place left",
}


@dataclass
class _Named:
    """A relay that the owner named: `why` it does not hold a place for this node, empty if it
    does; `lost` is set when the connection ends."""

    at: str
    peer: str
    why: str = "not asked yet"
    lost: trio.Event = field(default_factory=trio.Event)
    taken: int = 0


class Relayed:
    """See the module. `relays` are multiaddrs that end in /p2p/ID."""

    def __init__(
        self,
        host: Any,
        others: OtherConnections,
        counters: Counter[str],
        relays: tuple[str, ...] = (),
    ) -> None:
        self._host = host
        self._me = str(host.get_id())
        self._others = others
        self._counters = counters
        self._linking: dict[str, trio.Lock] = {}
        self._named: dict[str, _Named] = {}
        for address in relays:
            at, _, peer = address.rpartition("/p2p/")
            self._named.setdefault(peer, _Named(at, peer))
            others.keep(peer)

    def addresses(self) -> tuple[str, ...]:
        """Return where this node is reached by way of the relays that were named."""
        return tuple(
            f"{relay.at}/p2p/{relay.peer}{CIRCUIT}/p2p/{self._me}" for relay in self._named.values()
        )

    def status(self) -> list[dict[str, Any]]:
        """Return each relay, whether it holds a place for this node, and if not why."""
        return [
            {
                "address": f"{relay.at}/p2p/{relay.peer}",
                "held": not relay.why,
                "why": relay.why,
                "circuits": relay.taken,
            }
            for relay in self._named.values()
        ]

    # -- dialling ---------------------------------------------------------------------------

    async def dial(self, address: str, peer: str) -> None:
        """Connect to a peer by way of a relay; raises TransportError."""
        at, relay = split_circuit(address)
        if self._me in (relay, peer) or relay == peer:
            raise TransportError(f"no circuit to {peer[-6:]} by way of {relay[-6:]}")
        try:
            with trio.fail_after(_ANSWER_S):
                await self._link(at, relay)
                async with self._asked(relay, HOP) as stream:
                    message = pb.HopMessage(type=pb.HopMessage.CONNECT)
                    message.peer.id = ID.from_base58(peer).to_bytes()
                    await write_message(stream, message)
                    await self._answer(stream)
                    self._others.keep(relay)
                    circuit = Circuit(stream, True, relay, lambda: self._others.let_go(relay))
                    try:
                        await self._host.upgrade_outbound_connection(circuit, ID.from_base58(peer))
                    except BaseException:
                        await circuit.close()
                        raise
        except Exception as error:  # libp2p raises whatever its layers do
            self._count(error)
            raise TransportError(f"no circuit to {peer[-6:]}: {error!r}") from None

    def _count(self, error: BaseException | None) -> None:
        """Count what a relay did wrong: nothing for long, or gave somebody else."""
        if isinstance(error, trio.TooSlowError):
            self._counters["relays that did not answer"] += 1
        while error is not None:
            if isinstance(error, PeerIDMismatchesPubkey) or "ID mismatch" in str(error):
                self._counters["refused: a circuit that ends at another peer"] += 1
                return
            error = error.__cause__ or error.__context__

    async def _link(self, at: str, relay: str) -> None:
        """Connect to a relay itself, unless that is so; two that want it wait for one another."""
        lock = self._linking.setdefault(relay, trio.Lock())
        try:
            async with lock:
                if not is_linked_directly(self._host, relay):
                    network = self._host.get_network()
                    await network.dial_addr(Multiaddr(at), ID.from_base58(relay))
        finally:
            if not lock.statistics().tasks_waiting and not lock.locked():
                self._linking.pop(relay, None)

    @asynccontextmanager
    async def _asked(self, relay: str, protocol: Any) -> AsyncIterator[Any]:
        """Yield a stream to a relay, which is reset if what is done with it fails."""
        stream = await self._host.new_stream(ID.from_base58(relay), [protocol])
        self._others.note_use(relay)
        try:
            yield stream
        except BaseException:
            with trio.CancelScope(shield=True), trio.move_on_after(1):
                await stream.reset()
            raise

    async def _answer(self, stream: Any) -> None:
        """Read an answer; TransportError says why it is no."""
        answer = await read_hop(stream)
        if answer.status != pb.OK:
            raise TransportError(_WHY.get(answer.status, f"it says no ({answer.status})"))

    # -- being reached ----------------------------------------------------------------------

    async def serve(self) -> None:
        """Hold a place at each relay that was named, and take who comes, until cancelled."""
        self._others.on_gone = self._on_gone
        self._host.set_stream_handler(STOP, self._on_stop)
        async with trio.open_nursery() as nursery:
            for relay in self._named.values():
                nursery.start_soon(self._hold, relay)

    def _on_gone(self, peer: str) -> None:
        if peer in self._named:
            self._named[peer].lost.set()

    async def _hold(self, relay: _Named) -> None:
        again_s = _AGAIN_S_MIN
        while True:
            relay.lost = trio.Event()
            await self._reserve(relay)
            if relay.why:
                self._counters["relay_failures"] += 1
                await trio.sleep(again_s * random.uniform(0.5, 1.5))
                again_s = min(again_s * 2, _AGAIN_S_MAX)
                continue
            again_s = _AGAIN_S_MIN
            with trio.move_on_after(RELAY_RENEW_MS / 1000):
                await relay.lost.wait()
                relay.why = "the connection was lost"
                await trio.sleep(again_s * random.uniform(0.5, 1.5))

    async def _reserve(self, relay: _Named) -> None:
        """Ask a relay for a place, or for the same place for longer."""
        try:
            with trio.fail_after(_ANSWER_S):
                await self._link(relay.at, relay.peer)
                async with self._asked(relay.peer, HOP) as stream:
                    await write_message(stream, pb.HopMessage(type=pb.HopMessage.RESERVE))
                    await self._answer(stream)
                    await stream.close()
            relay.why = ""
        except trio.TooSlowError as error:
            self._count(error)
            relay.why = f"no answer in {_ANSWER_S:.0f} s"
            await self._unlink(relay.peer)
        except TransportError as error:
            relay.why = error.message
        except Exception as error:
            relay.why = f"it cannot be reached, or is no relay ({type(error).__name__})"

    async def _unlink(self, relay: str) -> None:
        """Give up a connection on which nobody answers: a router may have forgotten it."""
        with trio.move_on_after(1):
            for connection in self._host.get_network().get_connections(ID.from_base58(relay)):
                await connection.close()

    async def _on_stop(self, stream: Any) -> None:
        """A relay says that somebody comes: let him in if he is who he should be."""
        relay = self._named.get(str(stream.muxed_conn.peer_id))
        if relay is None or is_relayed(stream.swarm_conn):
            self._counters["refused: a circuit of a peer that is none of our relays"] += 1
            await stream.reset()
            return
        if relay.taken >= RELAY_TAKEN_MAX:
            self._counters["refused: a circuit beyond the bound"] += 1
            await stream.reset()
            return
        relay.taken += 1
        circuit = Circuit(stream, False, relay.peer)
        try:
            with trio.fail_after(_ANSWER_S):
                message = await read_stop(stream)
                if message.type != pb.StopMessage.CONNECT:
                    raise ValueError("not a connect")
                source = peer_in(message)
                answer = pb.StopMessage(type=pb.StopMessage.STATUS, status=pb.OK)
                await write_message(stream, answer)
                muxed = await self._host.upgrade_inbound_connection(
                    circuit, Multiaddr(f"/p2p/{relay.peer}{CIRCUIT}")
                )
            if str(muxed.peer_id) != source:
                self._counters["refused: a circuit that ends at another peer"] += 1
                await muxed.close()
                await circuit.close()
            await circuit.over.wait()
        except Exception:
            self._counters["refused: a circuit that came to nothing"] += 1
            await stream.reset()
        finally:
            relay.taken -= 1
