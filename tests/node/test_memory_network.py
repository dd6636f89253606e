"""The faults of the in-memory network: told, repeatable, and no others. Time jumps here."""

import trio
from trio.testing import MockClock

from pairio_node.transport import CHANNEL_CONTROL, Gossip
from tests.node.transport_lab import MemoryLab, Side, line, sides

TOPIC = "/pairio/1/test/0"


async def test_a_cut_link_stays_down_until_it_is_mended(autojump_clock: MockClock) -> None:
    lab = MemoryLab()
    async with line(lab, "a", "b") as (a, b):
        lab.network.cut(a.id, b.id)
        await a.until_down(b)
        await b.until_down(a)
        await trio.sleep_until(trio.current_time() + 600)
        assert (a.transport.connected(), len(a.ups(b))) == (frozenset(), 1)
        assert 15 < a.transport.counters()["dial_failures"] < 100, "it backs off"
        lab.network.mend(a.id, b.id)
        await trio.sleep_until(trio.current_time() + 46)
        assert a.transport.connected() == {b.id}


async def test_frames_come_late_and_still_in_order(autojump_clock: MockClock) -> None:
    lab = MemoryLab()
    lab.network.delay_s = (0.1, 5.0)
    numbers = [bytes([n]) for n in range(200)]
    async with line(lab, "a", "b") as (a, b):
        began = trio.current_time()
        for number in numbers:
            assert a.transport.send(b.id, CHANNEL_CONTROL, number)
        await b.until(lambda: len(b.frames(CHANNEL_CONTROL)) == 200)
        assert b.frames(CHANNEL_CONTROL) == numbers
        assert 4 < trio.current_time() - began <= 5, "a delay, not a rate"


async def test_what_is_under_way_when_a_connection_breaks_is_lost(
    autojump_clock: MockClock,
) -> None:
    lab = MemoryLab()
    lab.network.delay_s = (1.0, 1.0)
    async with line(lab, "a", "b") as (a, b):
        a.transport.send(b.id, CHANNEL_CONTROL, b"lost")
        lab.network.lose(a.id, b.id)
        await a.until_up(b, 2)
        a.transport.send(b.id, CHANNEL_CONTROL, b"next")
        await b.until(lambda: b.frames(CHANNEL_CONTROL) == [b"next"])


async def _heard(loss: float, seed: int) -> list[bytes]:
    """Return what B heard of 200 announcements."""
    lab = MemoryLab(seed)
    lab.network.gossip_loss = loss
    async with line(lab, "a", "b") as (a, b):
        for side in (a, b):
            side.transport.join_topic(TOPIC, lambda *_: True)
        for number in range(200):
            a.transport.announce(TOPIC, bytes([number]))
        await trio.sleep_until(trio.current_time() + 60)
        return [g.data for g in b.gossip()]


async def test_gossip_is_lost_as_told_and_the_same_for_one_seed(autojump_clock: MockClock) -> None:
    assert await _heard(0.0, 1) == [bytes([n]) for n in range(200)]
    assert await _heard(1.0, 1) == []
    half = await _heard(0.5, 1)
    assert 60 < len(half) < 140
    assert half == await _heard(0.5, 1)
    assert half != await _heard(0.5, 2)


async def test_announcements_are_paced_and_their_queue_is_bounded(
    autojump_clock: MockClock,
) -> None:
    lab = MemoryLab()
    async with line(lab, "a", "b") as (a, b):
        for side in (a, b):
            side.transport.join_topic(TOPIC, lambda *_: True)
        for number in range(1000):
            a.transport.announce(TOPIC, number.to_bytes(2, "big"))
        await trio.sleep_until(trio.current_time() + 1)
        assert 9 <= len(b.gossip()) <= 11
        await trio.sleep_until(trio.current_time() + 600)
        assert len(b.gossip()) == 256, "the newest; the oldest were dropped"
        assert b.gossip()[-1].data == (999).to_bytes(2, "big")


async def test_in_a_ring_everybody_hears_everything_once(autojump_clock: MockClock) -> None:
    lab = MemoryLab()
    async with line(lab, "a", "b", "c", "d") as ring:
        ring[3].keep(ring[0])
        await ring[0].until_up(ring[3])
        for side in ring:
            side.transport.join_topic(TOPIC, lambda *_: True)
        ring[0].transport.announce(TOPIC, b"news")
        await trio.sleep_until(trio.current_time() + 1)
        assert [_data(side) for side in ring] == [[], [b"news"], [b"news"], [b"news"]]


def _data(side: Side) -> list[bytes]:
    return [event.data for event in side.events if isinstance(event, Gossip)]


async def test_a_node_keeps_no_more_than_its_connections(autojump_clock: MockClock) -> None:
    async with sides(MemoryLab(), *(f"n{number}" for number in range(40))) as made:
        for other in made[1:]:
            made[0].keep(other)
        await trio.sleep_until(trio.current_time() + 10)
        assert len(made[0].transport.connected()) == 32
