"""A node with a check switched off: `python -m tests.integration.attacks.planted FAULT... run ...`.

So that it is seen that the table would find out.
"""

import sys
from typing import Any

from pairio_node import urls
from pairio_node.blocks import exchange
from pairio_node.blocks.guests import GuestBlocks
from pairio_node.dht import asker as kad_asker
from pairio_node.dht import server as kad_server
from pairio_node.dht.node import Dht
from pairio_node.dht.records import Records
from pairio_node.node import Node
from pairio_node.places import Places
from pairio_node.streams.server import _Connection
from pairio_node.transport.base import ByteStream
from pairio_node.transport.relay import Relay
from pairio_protocol import joining, sponsors
from pairio_protocol.changes import Weighed
from pairio_protocol.core import NodeCore
from pairio_protocol.fold import ServiceFold
from pairio_protocol.intake import Intake
from pairio_protocol.machines.membership import Membership
from pairio_protocol.open_submit import OpenSubmit
from pairio_protocol.segment import Segment

__all__ = ["FAULTS"]


def _signatures(*_: Any) -> bool:
    """Segments count whoever signed them."""
    return True


def _roles(*_: Any) -> bool:
    """Anybody may write anything."""
    return True


def _shared(membership: Membership, peer: str) -> list[str]:
    """Strangers are let in at every door."""
    return sorted(membership.taken_up)


def _trusted(membership: Membership, chain: Any) -> bool:
    """Whoever names a trusted peer is trusted."""
    return bool(set(chain.now.admins) & set(membership._ctx.config.trust))


def _nothing(*_: Any) -> str:
    """Nothing speaks against it."""
    return ""


def _yes(*_: Any) -> bool:
    return True


def _no(*_: Any) -> bool:
    return False


def _members(weighed: Weighed) -> tuple[str, ...]:
    """Every member may sign a proposal."""
    return (*weighed.before.admins, *weighed.before.peers())


def _known(relay: Relay, peer: str) -> list[tuple[str, str]]:
    """Everybody is somebody whom the owner named."""
    return [("", peer)]


def _place(places: Places, peer: str) -> tuple[str, str]:
    """There is always a place, for strangers too."""
    return "", peer


def _secrets(core: NodeCore, peer: str, service: str, request: str, attempt: str) -> str | None:
    """Whoever knows a request is given its secrets."""
    state = core.fold(service).requests.get(request)
    return state.job if state is not None else None


def _first(connection: _Connection, target: bytes) -> Any:
    """Whatever is asked for, the first input is meant."""
    return next(iter(connection._sources.values()))


async def _believed(*_: Any) -> bool:
    """Whatever a holder gives is a result."""
    return True


async def _any_frame(stream: ByteStream, size_bytes_max: int) -> bytes:
    """Frames have no bound."""
    return await stream.receive_exactly(int.from_bytes(await stream.receive_exactly(4), "big"))


#: By name: class or module, method, what is put in its place, and a row that must fail.
FAULTS: dict[str, tuple[Any, str, Any, str]] = {
    "signatures": (Segment, "is_signed", _signatures, "a segment with a forged signature"),
    "roles": (Intake, "_may", staticmethod(_roles), "a result without the role compute"),
    "doors": (Membership, "shared_with", _shared, "digest of a stranger"),
    "trust": (Membership, "_is_trusted", _trusted, "a trusted peer named as a second admin"),
    "proposals": (Weighed, "may_sign", _members, "an admin's proposal, brought by another"),
    "wishes": (joining, "why_refused", _nothing, "a wish for more roles than the link gives"),
    "limits": (OpenSubmit, "beyond", _nothing, "a guest's job of more GPUs than guests may have"),
    "places": (sponsors, "_why_no_place", _nothing, "more open jobs of one guest"),
    "hours": (sponsors._Counts, "take", _yes, "more jobs of all guests in an hour"),
    "sponsors": (
        *(Intake, "_why_not_sponsored", staticmethod(_nothing)),
        "a stranger's request that goes first",
    ),
    "guests": (GuestBlocks, "may_read", _yes, "a member's result, asked for by a guest"),
    "outputs": (ServiceFold, "lacks_outputs", _no, "a result without its outputs, for a guest"),
    "logs": (Node, "_may_read", _yes, "another service's member who knows a run"),
    "peers": (Places, "_free", _place, "one member's flood of streams for consoles"),
    "secrets": (NodeCore, "gives_secrets", _secrets, "a reader who knows the attempt"),
    "inputs": (_Connection, "_source", _first, "another job's input"),
    "loopback": (urls, "_objection", _nothing, "an input of the machine's own network"),
    "askers": (Dht, "is_member", _yes, "give of another service's member"),
    "holders": (Records, "_has_room", _yes, "one job's holders, all of one member"),
    "givers": (Dht, "_import", _believed, "a forged result, given by a holder"),
    "waits": (kad_server, "_IDLE_S", 10_000.0, "a question that never ends"),
    "frames": (kad_asker, "read_frame", _any_frame, "an answer of 4 GiB"),
    "gifts": (kad_asker, "KAD_GIVEN_SIZE_BYTES_MAX", 2**40, "more than is taken of one holder"),
    "relays": (Relay, "_known_as", _known, "a place at a relay, for a stranger"),
    "streams": (exchange, "BLOCK_STREAMS_PER_PEER_MAX", 10_000, "flood of streams for blocks"),
}


def main() -> None:
    """Plant the faults that are named first, then run the node."""
    while len(sys.argv) > 1 and sys.argv[1] in FAULTS:
        owner, name, instead, _ = FAULTS[sys.argv.pop(1)]
        setattr(owner, name, instead)
    from pairio_cli.node_main import main as run

    run()


if __name__ == "__main__":
    main()
