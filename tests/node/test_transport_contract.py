"""What every transport promises (transport/base.py), tested the same way on each of them."""

import pytest
import trio

from pairio_node.transport import (
    CHANNEL_CONTROL,
    CHANNEL_SYNC,
    ByteStream,
    Frame,
    PeerDown,
    PeerUp,
    StreamEnded,
    TransportError,
    TransportEvent,
)
from pairio_protocol.limits import FRAME_SIZE_BYTES_MAX
from tests.node.transport_lab import (
    PATIENCE_S,
    Lab,
    Libp2pLab,
    MemoryLab,
    Side,
    a_moment,
    line,
    sides,
)

ECHO = "/pairio/echo/1"
TOPIC = "/pairio/1/test/0"


@pytest.fixture(params=["memory", pytest.param("libp2p", marks=pytest.mark.integration)])
def lab(request: pytest.FixtureRequest) -> Lab:
    return MemoryLab() if request.param == "memory" else Libp2pLab()


# -- connections ------------------------------------------------------------------------------


async def test_both_sides_are_told_of_each_other_and_of_the_end(lab: Lab) -> None:
    async with sides(lab, "a", "b") as (a, b):
        assert a.transport.connected() == frozenset()
        a.keep(b)
        await a.until_up(b)
        await b.until_up(a)
        assert a.ups(b) == [PeerUp(b.id, b.transport.addresses())]
        assert b.transport.connected() == {a.id}
        a.transport.forget(b.id)
        await lab.lose(a, b)
        await a.until_down(b)
        await b.until_down(a)
        assert a.transport.connected() == b.transport.connected() == frozenset()


async def test_addresses_end_in_the_id_that_answers_there(lab: Lab) -> None:
    async with sides(lab, "a") as (a,):
        assert a.transport.addresses()
        assert all(text.endswith(f"/p2p/{a.id}") for text in a.transport.addresses())


async def test_a_lost_connection_is_dialed_again(lab: Lab) -> None:
    async with line(lab, "a", "b") as (a, b):
        for times in (1, 2):
            await lab.lose(a, b)
            await a.until_down(b, times)
            await a.until_up(b, times + 1)
            await b.until_up(a, times + 1)
        assert a.transport.send(b.id, CHANNEL_CONTROL, b"again")
        await b.until(lambda: b"again" in b.frames(CHANNEL_CONTROL))


async def test_a_peer_is_reached_once_for_streams(lab: Lab) -> None:
    async with sides(lab, "a", "b") as (a, b):

        async def echo(stream: ByteStream) -> None:
            await stream.send(await stream.receive_exactly(1))

        b.transport.set_stream_handler(ECHO, echo)
        await a.transport.reach(b.id, b.transport.addresses())
        await a.transport.reach(b.id, b.transport.addresses())  # it is: nothing to do
        with trio.fail_after(PATIENCE_S):
            while b.id not in a.transport.speakers(ECHO):
                await a_moment(0.05)
        assert a.transport.speakers("/pairio/other/1") == []
        stream = await a.transport.open_stream(b.id, ECHO)
        await stream.send(b"x")
        assert await stream.receive_exactly(1) == b"x"


async def test_a_peer_that_is_not_there_is_not_reached(lab: Lab) -> None:
    async with sides(lab, "a", "b") as (a, b):
        with pytest.raises(TransportError, match="not reached"):
            await a.transport.reach(b.id, a.transport.addresses())


async def test_a_peer_that_went_away_is_found_when_it_is_back(lab: Lab) -> None:
    async with sides(lab, "a") as (a,):
        async with sides(lab, "b") as (b,):
            address = b.transport.addresses()[0]
            a.keep(b)
            await a.until_up(b)
        await a.until_down(b)
        back = Side(lab.make("b", address))
        async with back.transport.running(back.sink):
            await a.until_up(back, 2)
            await back.until_up(a)


async def test_a_forgotten_peer_is_not_dialed_again(lab: Lab) -> None:
    async with line(lab, "a", "b") as (a, b):
        a.transport.forget(b.id)
        dials = a.transport.counters()["dials"]
        await lab.lose(a, b)
        await a.until_down(b)
        await a_moment()
        assert a.transport.counters()["dials"] == dials
        assert len(a.ups(b)) == 1


async def test_whoever_answers_with_another_key_is_not_taken_for_the_peer(lab: Lab) -> None:
    async with sides(lab, "a", "b", "c") as (a, b, c):
        a.transport.keep_connected(c.id, b.transport.addresses())
        await a.until_counted("dial_failures")
        assert c.id not in a.transport.connected()
        c.keep(a)  # the real one
        await a.until_up(c)


async def test_two_that_dial_each_other_end_up_with_one_connection(lab: Lab) -> None:
    async with sides(lab, "a", "b") as (a, b):
        a.keep(b)
        b.keep(a)
        await a.until_up(b)
        await b.until_up(a)
        await a_moment(1)
        for one, other in ((a, b), (b, a)):
            assert other.id in one.transport.connected()
            assert _alternate(one.events)
        assert a.transport.send(b.id, CHANNEL_CONTROL, b"x")
        await b.until(lambda: b"x" in b.frames(CHANNEL_CONTROL))


def _alternate(events: list[TransportEvent]) -> bool:
    """Up, frames, down, up ...: nothing of a peer outside of its connection."""
    is_up = False
    for event in events:
        if isinstance(event, PeerUp | PeerDown):
            if isinstance(event, PeerUp) == is_up:
                return False
            is_up = not is_up
        elif isinstance(event, Frame) and not is_up:
            return False
    return True


async def test_a_peer_is_up_before_its_frames_and_down_after_them(lab: Lab) -> None:
    async with sides(lab, "a", "b") as (a, b):
        for one, other in ((a, b), (b, a)):
            one.on_event = _greets(one, other)
        a.keep(b)
        for times in range(1, 6):
            await a.until_up(b, times)
            await b.until_up(a, times)
            await b.until(lambda: len(b.frames(CHANNEL_CONTROL)) > 0)
            await lab.lose(b, a)
            await a.until_down(b, times)
            await b.until_down(a, times)
        assert _alternate(a.events)
        assert _alternate(b.events)


def _greets(one: Side, other: Side):  # type: ignore[no-untyped-def]
    async def greet(event: TransportEvent) -> None:
        if isinstance(event, PeerUp):
            one.transport.send(other.id, CHANNEL_CONTROL, b"hello")
        await trio.lowlevel.checkpoint()

    return greet


class _SlowEar:
    """Holds a side back when it is told something of one kind."""

    def __init__(self, side: Side, kind: type[TransportEvent]) -> None:
        self.heard: list[type[TransportEvent]] = []
        self.go_on = trio.Event()
        self._kind = kind
        side.on_event = self._hear

    async def _hear(self, event: TransportEvent) -> None:
        self.heard.append(type(event))
        if isinstance(event, self._kind):
            await self.go_on.wait()


async def test_frames_wait_until_their_peer_is_told_to_be_up(lab: Lab) -> None:
    async with sides(lab, "a", "b") as (a, b):
        ear = _SlowEar(b, PeerUp)
        a.keep(b)
        await a.until_up(b)
        assert a.transport.send(b.id, CHANNEL_CONTROL, b"x")
        assert a.transport.send(b.id, CHANNEL_SYNC, b"y")
        await a_moment()
        assert ear.heard == [PeerUp]
        ear.go_on.set()
        await b.until(lambda: b.frames(CHANNEL_CONTROL) + b.frames(CHANNEL_SYNC) == [b"x", b"y"])


@pytest.mark.parametrize("slow", ["who dials", "who is dialed"])
async def test_the_end_of_a_connection_is_told_before_the_next_begins(lab: Lab, slow: str) -> None:
    async with line(lab, "a", "b") as (a, b):
        one, other = (a, b) if slow == "who dials" else (b, a)
        ear = _SlowEar(one, PeerDown)
        await lab.lose(one, other)
        await other.until_down(one)
        await a_moment()
        assert ear.heard == [PeerDown]
        ear.go_on.set()
        await one.until_up(other, 2)
        await other.until_up(one, 2)


# -- frames -----------------------------------------------------------------------------------


async def test_frames_of_a_channel_arrive_in_order(lab: Lab) -> None:
    numbers = [n.to_bytes(4, "big") for n in range(1500)]
    async with line(lab, "a", "b") as (a, b):
        for number in numbers:
            assert a.transport.send(b.id, CHANNEL_CONTROL, number)
            assert a.transport.send(b.id, CHANNEL_SYNC, number)
        await b.until(lambda: len(b.events) == 1 + 2 * len(numbers))
        assert b.frames(CHANNEL_CONTROL) == numbers
        assert b.frames(CHANNEL_SYNC) == numbers


async def test_a_full_queue_refuses_and_loses_nothing_that_it_took(lab: Lab) -> None:
    async with line(lab, "a", "b") as (a, b):
        taken = 0
        while a.transport.send(b.id, CHANNEL_CONTROL, b"f"):
            taken += 1
            assert taken < 100_000, "unbounded"
        assert a.transport.counters()["frames_dropped"] == 1
        await b.until(lambda: len(b.frames(CHANNEL_CONTROL)) == taken)
        assert a.transport.send(b.id, CHANNEL_CONTROL, b"g")
        await b.until(lambda: b.frames(CHANNEL_CONTROL)[-1] == b"g")
        assert len(b.frames(CHANNEL_CONTROL)) == taken + 1
        assert a.transport.counters()["frames_sent"] == taken + 1
        assert b.transport.counters()["frames_received"] == taken + 1


@pytest.mark.parametrize("size", [0, FRAME_SIZE_BYTES_MAX + 1])
async def test_an_empty_or_oversized_frame_is_refused_to_the_sender(lab: Lab, size: int) -> None:
    async with line(lab, "a", "b") as (a, b):
        with pytest.raises(ValueError, match=f"a frame of {size} bytes"):
            a.transport.send(b.id, CHANNEL_SYNC, bytes(size))
        largest = bytes(FRAME_SIZE_BYTES_MAX)
        assert a.transport.send(b.id, CHANNEL_SYNC, largest)
        await b.until(lambda: b.frames(CHANNEL_SYNC) == [largest])


async def test_nothing_is_sent_to_whom_one_is_not_connected(lab: Lab) -> None:
    async with sides(lab, "a", "b") as (a, b):
        assert not a.transport.send(b.id, CHANNEL_CONTROL, b"x")
        with pytest.raises(TransportError, match="no stream to"):
            await a.transport.open_stream(b.id, ECHO)


# -- topics -----------------------------------------------------------------------------------


async def _announce_until(a: Side, c: Side, rounds: int, *more: bytes) -> None:
    """Announce numbered good frames, each after the frames in `more`, until C has some."""
    number = 0
    with trio.fail_after(PATIENCE_S):
        while len(c.gossip()) < rounds:
            for frame in more:
                a.transport.announce(TOPIC, b"%s %d" % (frame, number))
            a.transport.announce(TOPIC, b"good %d" % number)
            number += 1
            await a_moment(0.2)


async def test_gossip_goes_on_from_neighbour_to_neighbour(lab: Lab) -> None:
    async with line(lab, "a", "b", "c") as (a, b, c):
        for side in (a, b, c):
            side.transport.join_topic(TOPIC, lambda *_: True)
        await _announce_until(a, c, 3)
        assert {(g.topic, g.forwarder) for g in c.gossip()} == {(TOPIC, b.id)}
        assert {g.forwarder for g in b.gossip()} == {a.id}
        assert a.gossip() == [], "its own"
        assert len({g.data for g in c.gossip()}) == len(c.gossip()), "each once"
        assert a.transport.counters()["gossip_sent"] >= 3
        assert c.transport.counters()["gossip_received"] == len(c.gossip())


@pytest.mark.parametrize("how", ["says no", "has a bug"])
async def test_gossip_that_is_not_accepted_goes_no_further(lab: Lab, how: str) -> None:
    def accept(forwarder: str, data: bytes) -> bool:
        if data.startswith(b"bad") and how == "has a bug":
            raise RuntimeError("a validator with a bug")
        return not data.startswith(b"bad")

    async with line(lab, "a", "b", "c") as (a, b, c):
        a.transport.join_topic(TOPIC, lambda *_: True)
        b.transport.join_topic(TOPIC, accept)
        c.transport.join_topic(TOPIC, lambda *_: True)
        await _announce_until(a, c, 3, b"bad")
        assert [g.data for g in b.gossip() + c.gossip() if g.data.startswith(b"bad")] == []
        assert b.transport.counters()["gossip_refused"] >= 1
        assert c.transport.counters().get("gossip_refused", 0) == 0


async def test_who_has_left_a_topic_hears_nothing_of_it_until_it_is_back(lab: Lab) -> None:
    async with line(lab, "a", "b") as (a, b):
        for side in (a, b):
            side.transport.join_topic(TOPIC, lambda *_: True)
        await _announce_until(a, b, 2)
        b.transport.leave_topic(TOPIC)
        b.transport.leave_topic(TOPIC)
        await a_moment(0.5)
        heard = len(b.gossip())
        for number in range(5):
            a.transport.announce(TOPIC, b"unheard %d" % number)
            b.transport.announce(TOPIC, b"unsaid %d" % number)
            await a_moment(0.15)
        assert len(b.gossip()) == heard
        assert not any(g.data.startswith(b"unsaid") for g in a.gossip())
        b.transport.join_topic(TOPIC, lambda *_: True)
        await _announce_until(a, b, heard + 2, b"again")


async def test_gossip_is_sent_to_those_only_who_may_hear_the_topic(lab: Lab) -> None:
    async with line(lab, "a", "b", "c") as (a, b, c):
        hearers = {a.id}
        a.transport.join_topic(TOPIC, lambda *_: True)
        b.transport.join_topic(TOPIC, lambda *_: True, lambda peer: peer in hearers)
        c.transport.join_topic(TOPIC, lambda *_: True)
        await _announce_until(a, b, 8)
        assert c.gossip() == []
        hearers.add(c.id)
        await _announce_until(a, c, 1)


async def test_an_oversized_announcement_is_refused_by_whoever_gets_it(lab: Lab) -> None:
    async with line(lab, "a", "b") as (a, b):
        a.transport.join_topic(TOPIC, lambda *_: True)
        b.transport.join_topic(TOPIC, lambda *_: True)
        await _announce_until(a, b, 2, bytes(FRAME_SIZE_BYTES_MAX))
        assert all(g.data.startswith(b"good") for g in b.gossip())
        assert b.transport.counters()["gossip_refused"] >= 1


# -- streams ----------------------------------------------------------------------------------


async def _echo(stream: ByteStream) -> None:
    """Answer every size and its bytes, until the end."""
    try:
        while True:
            size = await stream.receive_exactly(4)
            await stream.send(size + await stream.receive_exactly(int.from_bytes(size, "big")))
    except StreamEnded:
        await stream.close()


async def test_a_stream_gives_exactly_what_is_asked_for(lab: Lab) -> None:
    data = bytes(n % 251 for n in range(150_000))
    async with line(lab, "a", "b") as (a, b):
        b.transport.set_stream_handler(ECHO, _echo)
        stream = await a.transport.open_stream(b.id, ECHO)
        assert stream.peer == b.id
        with trio.fail_after(PATIENCE_S):
            await stream.send(len(data).to_bytes(4, "big") + data[:1000])
            await stream.send(data[1000:])
            assert int.from_bytes(await stream.receive_exactly(4), "big") == len(data)
            parts = [await stream.receive_exactly(size) for size in (1, 99_999, 50_000)]
        assert b"".join(parts) == data
        await stream.close()


async def test_the_handler_knows_who_opened_the_stream(lab: Lab) -> None:
    async with line(lab, "a", "b") as (a, b):
        opened_by = trio.open_memory_channel[str](1)

        async def handler(stream: ByteStream) -> None:
            await opened_by[0].send(stream.peer)

        b.transport.set_stream_handler(ECHO, handler)
        await a.transport.open_stream(b.id, ECHO)
        with trio.fail_after(PATIENCE_S):
            assert await opened_by[1].receive() == a.id


async def test_a_clean_end_and_a_reset_are_told_apart(lab: Lab) -> None:
    async with line(lab, "a", "b") as (a, b):

        async def handler(stream: ByteStream) -> None:
            how = await stream.receive_exactly(1)
            await stream.send(b"last")
            await (stream.close() if how == b"c" else stream.abort())

        b.transport.set_stream_handler(ECHO, handler)
        with trio.fail_after(PATIENCE_S):
            ended = await a.transport.open_stream(b.id, ECHO)
            await ended.send(b"c")
            assert await ended.receive_exactly(4) == b"last"
            with pytest.raises(StreamEnded):
                await ended.receive_exactly(1)
            reset = await a.transport.open_stream(b.id, ECHO)
            await reset.send(b"a")
            with pytest.raises(TransportError):
                await reset.receive_exactly(5)


async def test_a_handler_that_raises_resets_its_stream_and_nothing_else(lab: Lab) -> None:
    async with line(lab, "a", "b") as (a, b):

        async def boom(stream: ByteStream) -> None:
            raise RuntimeError("a handler with a bug")

        b.transport.set_stream_handler("/pairio/boom/1", boom)
        b.transport.set_stream_handler(ECHO, _echo)
        before = b.transport.counters().get("contained: stream handler", 0)
        with trio.fail_after(PATIENCE_S):
            broken = await a.transport.open_stream(b.id, "/pairio/boom/1")
            with pytest.raises(TransportError):
                await broken.receive_exactly(1)
            assert b.transport.counters()["contained: stream handler"] == before + 1
            stream = await a.transport.open_stream(b.id, ECHO)
            await stream.send(b"\0\0\0\1x")
            assert await stream.receive_exactly(5) == b"\0\0\0\1x"
        assert a.transport.connected() == {b.id}


async def test_a_protocol_that_nobody_serves_is_refused(lab: Lab) -> None:
    async with line(lab, "a", "b") as (a, b):
        with pytest.raises(TransportError, match="no stream to"):
            await a.transport.open_stream(b.id, "/pairio/nothing/1")
        assert a.transport.connected() == {b.id}


async def test_streams_break_with_their_connection(lab: Lab) -> None:
    async with line(lab, "a", "b") as (a, b):
        b.transport.set_stream_handler(ECHO, _echo)
        stream = await a.transport.open_stream(b.id, ECHO)
        await stream.send(b"\0\0\0\1x")
        await stream.receive_exactly(5)
        await lab.lose(b, a)
        with trio.fail_after(PATIENCE_S), pytest.raises((TransportError, StreamEnded)):
            await stream.receive_exactly(1)
        await stream.abort()  # never raises
        await stream.close()


async def test_a_reader_that_takes_its_time_holds_the_writer_back(lab: Lab) -> None:
    size = 4 * 1024 * 1024
    async with line(lab, "a", "b") as (a, b):
        go_on, done = trio.Event(), trio.Event()

        async def slow(stream: ByteStream) -> None:
            await go_on.wait()
            assert await stream.receive_exactly(size) == bytes(size)
            done.set()

        b.transport.set_stream_handler(ECHO, slow)
        stream = await a.transport.open_stream(b.id, ECHO)
        sent = trio.Event()

        async def write() -> None:
            await stream.send(bytes(size))
            sent.set()

        with trio.fail_after(PATIENCE_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(write)
                await a_moment()
                assert not sent.is_set()
                go_on.set()
                await done.wait()
