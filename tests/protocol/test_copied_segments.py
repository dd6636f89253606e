"""Who only carries another's segments on cannot spoil them: their hash is of what is signed."""

from dataclasses import replace

from pairio_protocol import events as ev
from pairio_protocol.messages import MESSAGES, Push
from pairio_protocol.records import Cancel
from pairio_protocol.segment import GENESIS, Segment
from pairio_protocol.signing import SigningKey
from tests.protocol.test_core_sim import World

AUTHOR, RECEIVER, CARRIER = (SigningKey(bytes([n]) * 32) for n in (1, 2, 3))


def test_a_copy_with_another_signature_takes_no_genuine_ones_place() -> None:
    world = World(3).with_service()
    core = world.cores[RECEIVER.peer]
    service = next(iter(core.membership.taken_up))
    epoch, boot = core.membership.chains[service].epoch, b"\x09" * 16
    first = Segment.seal(AUTHOR, service, boot, 0, epoch, GENESIS, [Cancel(("a",), 1)])
    second = Segment.seal(AUTHOR, service, boot, 1, epoch, first.hash, [Cancel(("b",), 1)])
    spoilt = replace(second, signature=bytes(64))
    assert spoilt.hash == second.hash
    for segment in (second, spoilt, first):  # beyond a gap; in its place; and the gap is closed
        push = MESSAGES.encode(Push(segment.encode(), False))
        world.do(RECEIVER.peer, ev.FrameReceived(CARRIER.peer, push))
    held = core.logs.get(second.hash)
    assert held is not None and held.is_signed()
    assert core.ctx.counters["refused: bad signature on a segment"] == 1
