"""Nodes that listen on nothing, reached by way of a relay; what a relay gives to whom."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from libp2p.host.exceptions import StreamFailure
from libp2p.network.stream.exceptions import StreamError
from libp2p.relay.circuit_v2.pb import circuit_pb2 as pb
from multiaddr import Multiaddr

from pairio_node.transport import (
    CHANNEL_CONTROL,
    CHANNEL_SYNC,
    ByteStream,
    TransportError,
)
from pairio_node.transport.circuits import Circuit, is_circuit, split_circuit, write_message
from pairio_protocol.limits import (
    RELAY_CIRCUITS_OF_PAIR_MAX,
    RELAY_STRANGER_AT_ONCE_MAX,
)
from tests.node.relay_lab import (
    Net,
    ask,
    bad_relay,
    connect_to,
    held,
    knock,
    served,
    until,
)
from tests.node.transport_lab import Side, a_moment

ECHO = "/pairio/echo/1"
TOPIC = "/pairio/1/test/0"
RESERVE = pb.HopMessage(type=pb.HopMessage.RESERVE)


@asynccontextmanager
async def network() -> AsyncIterator[Net]:
    """Yield what makes sides; an error is told as it is, not below those of ten nurseries."""
    failed: Exception | None = None
    async with trio.open_nursery() as nursery:
        net = Net(nursery)
        try:
            yield net
        except Exception as error:
            failed = error
        await net.stop_all()
        nursery.cancel_scope.cancel()
    if failed is not None:
        raise failed


async def _met(dialler: Side, hidden: Side) -> None:
    await until(lambda: any(held(hidden)))
    dialler.keep(hidden)
    await dialler.until_up(hidden)
    await hidden.until_up(dialler)


# -- addresses --------------------------------------------------------------------------------


def test_the_address_of_a_circuit_names_the_relay_and_where_it_is() -> None:
    at = "/ip4/203.0.113.1/tcp/4001"
    assert split_circuit(f"{at}/p2p/R/p2p-circuit/p2p/P") == (at, "R")
    assert split_circuit(f"{at}/p2p/R/p2p-circuit") == (at, "R")
    assert is_circuit(f"{at}/p2p/R/p2p-circuit")
    assert not is_circuit(f"{at}/p2p/R")
    for bad in (
        *(at, f"{at}/p2p-circuit/p2p/P", "/p2p/R/p2p-circuit/p2p/P"),
        f"{at}/p2p/R/p2p-circuit/p2p/Q/p2p-circuit/p2p/P",
        f"{at}/p2p/R/ip4/1.2.3.4/p2p-circuit/p2p/P",
    ):
        with pytest.raises(TransportError, match="not the address of a circuit"):
            split_circuit(bad)


# -- being reached ----------------------------------------------------------------------------


@pytest.mark.integration
async def test_two_that_listen_on_nothing_have_everything_over_a_circuit() -> None:
    async with network() as net:
        relay = await net.relay("relay", "hidden", "other")
        hidden, other = await net.hidden("hidden", relay), await net.hidden("other")
        assert other.transport.addresses() == ()
        (address,) = hidden.transport.addresses()
        assert Multiaddr(address).protocols()
        assert address == f"{relay.transport.addresses()[0]}/p2p-circuit/p2p/{hidden.id}"
        await _met(other, hidden)

        for channel in (CHANNEL_CONTROL, CHANNEL_SYNC):
            for one, to in ((other, hidden), (hidden, other)):
                assert one.transport.send(to.id, channel, b"hello")
                await to.until(lambda to=to, on=channel: b"hello" in to.frames(on))  # type: ignore[misc]

        size = 3 * 1024 * 1024

        async def echo(stream: ByteStream) -> None:
            await stream.send(await stream.receive_exactly(size))

        other.transport.set_stream_handler(ECHO, echo)
        stream = await hidden.transport.open_stream(other.id, ECHO)
        data = bytes(range(256)) * (size // 256)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.send, data)
            assert await stream.receive_exactly(size) == data

        for side in (hidden, other):
            side.transport.join_topic(TOPIC, lambda *_: True)
        with trio.fail_after(20):
            for number in range(100):
                if hidden.gossip():
                    break
                other.transport.announce(TOPIC, b"news %d" % number)
                await a_moment(0.2)
        assert served(relay)["circuits"] == 1
        assert served(relay)["bytes"] > 2 * size


@pytest.mark.integration
async def test_a_node_that_can_be_dialled_is_not_relayed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pairio_node.transport.dialer._DIRECT_FIRST_S", 60.0)
    async with network() as net:
        relay = await net.relay("relay", "near")
        at = (relay.transport.addresses()[0],)
        near = await net.near("near", at)
        other = await net.open("other")
        await _met(other, near)
        assert served(relay)["circuits"] == 0
        assert served(relay)["reservations"] == 1


@pytest.mark.integration
async def test_a_relay_that_goes_away_leaves_the_other_one() -> None:
    async with network() as net:
        first, second = await net.relay("first", "hidden"), await net.relay("second", "hidden")
        hidden, other = await net.hidden("hidden", first, second), await net.hidden("other")
        await until(lambda: held(hidden) == [True, True])
        other.keep(hidden)
        await other.until_up(hidden)
        assert served(first)["circuits"] == 1
        await net.stop(first)
        await other.until_down(hidden)
        await other.until_up(hidden, 2)
        await until(lambda: served(second)["circuits"] == 1)
        await until(lambda: held(hidden) == [False, True])


@pytest.mark.integration
async def test_a_relay_that_comes_back_holds_the_place_again() -> None:
    async with network() as net:
        relay = await net.relay("relay", "hidden")
        address = relay.transport.addresses()[0]
        hidden = await net.hidden("hidden", relay)
        await until(lambda: held(hidden) == [True])
        await net.stop(relay)
        await until(lambda: held(hidden) == [False])
        back = await net.relay("relay", "hidden", at=address)
        await until(lambda: held(hidden) == [True])
        other = await net.open("other")
        await _met(other, hidden)
        assert served(back)["circuits"] == 1


# -- who is given what ------------------------------------------------------------------------


@pytest.mark.integration
async def test_a_stranger_is_held_no_place() -> None:
    async with network() as net:
        relay = await net.relay("relay", "somebody else")
        hidden = await net.hidden("hidden", relay)
        await relay.until_counted("refused: a relay reservation of a stranger")
        await until(lambda: _why(hidden).startswith("it relays for members"))
        assert served(relay)["reservations"] == 0
        other = await net.open("other")
        with pytest.raises(TransportError):
            await other.transport.reach(hidden.id, hidden.transport.addresses())
        await relay.until_counted("refused: a circuit to a peer without a reservation")


def _why(side: Side) -> str:
    (relay,) = side.transport.relays()["relays"]
    return str(relay["why"])


@pytest.mark.integration
async def test_members_are_known_once_the_node_knows_its_services() -> None:
    async with network() as net:
        relay = await net.relay("relay")
        hidden = await net.hidden("hidden", relay)
        await relay.until_counted("refused: a relay reservation of a stranger")
        members = {hidden.id}
        relay.transport.prefer(lambda peer: peer in members)
        await until(lambda: held(hidden) == [True])
        other = await net.open("other")
        await _met(other, hidden)
        members.clear()  # removed: what he had ends, with the circuits to him
        await other.until_down(hidden)
        assert served(relay)["reservations"] == 0


@pytest.mark.integration
async def test_no_more_reservations_than_the_owner_gives() -> None:
    async with network() as net:
        relay = await net.relay("relay", "one", "two", reservations=1)
        one = await net.hidden("one", relay)
        await until(lambda: held(one) == [True])
        two = await net.hidden("two", relay)
        await relay.until_counted("refused: a relay reservation beyond the bound")
        await until(lambda: _why(two) == "it has no place left")
        assert (await ask(one, relay, RESERVE))[0] == pb.OK  # who has one renews it


@pytest.mark.integration
async def test_many_keys_of_one_member_have_half_of_the_places() -> None:
    async with network() as net:
        relay = await net.relay("relay", reservations=4)
        relay.transport.prefer(lambda _: True, lambda peer: [("lab", "Ada")])
        keys = [await net.open(f"key {n}") for n in range(3)]
        said = [(await ask(key, relay, RESERVE))[0] for key in keys]
        assert said == [pb.OK, pb.OK, pb.RESERVATION_REFUSED]
        relay.transport.prefer(lambda _: True, lambda peer: [("lab", "Bob")])
        assert (await ask(keys[2], relay, RESERVE))[0] == pb.OK


@pytest.mark.integration
async def test_no_more_circuits_between_two_than_are_of_use() -> None:
    async with network() as net:
        relay = await net.relay("relay", "hidden", "member")
        hidden = await net.hidden("hidden", relay)
        member = await net.hidden("member", relay)
        await until(lambda: held(hidden) == held(member) == [True])
        said = [
            (await ask(member, relay, connect_to(hidden.id)))[0]
            for _ in range(RELAY_CIRCUITS_OF_PAIR_MAX + 1)
        ]
        assert said == [*[pb.OK] * RELAY_CIRCUITS_OF_PAIR_MAX, pb.RESOURCE_LIMIT_EXCEEDED]
        await relay.until_counted("refused: a circuit beyond the bound")


@pytest.mark.integration
async def test_strangers_make_place_for_strangers_and_take_none_of_members(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pairio_node.transport.relay.RELAY_STRANGERS_TO_PEER_MAX", 2)
    monkeypatch.setattr("pairio_node.transport.relay.RELAY_STRANGER_LEAST_MS", 0)
    async with network() as net:
        relay = await net.relay("relay", "hidden", "member")
        hidden, member = await net.hidden("hidden", relay), await net.open("member")
        await _met(member, hidden)
        for n in range(3):
            stranger = await net.open(f"stranger {n}")
            assert (await ask(stranger, relay, connect_to(hidden.id)))[0] == pb.OK
        await relay.until_counted("circuits of strangers that made place for others")
        await until(lambda: served(relay)["circuitsOfStrangers"] == 2)
        assert served(relay)["circuits"] == 3
        assert member.downs(hidden) == []


@pytest.mark.integration
async def test_a_stranger_has_the_time_to_join_before_his_circuit_makes_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pairio_node.transport.relay.RELAY_STRANGERS_TO_PEER_MAX", 1)
    monkeypatch.setattr("pairio_node.transport.relay.RELAY_STRANGER_LEAST_MS", 60_000)
    async with network() as net:
        relay = await net.relay("relay", "hidden")
        hidden, joiner = await net.hidden("hidden", relay), await net.open("joiner")
        await _met(joiner, hidden)
        stranger = await net.open("stranger")
        status, _ = await ask(stranger, relay, connect_to(hidden.id))
        assert status == pb.RESOURCE_LIMIT_EXCEEDED
        assert served(relay)["circuitsOfStrangers"] == 1
        assert joiner.downs(hidden) == []


@pytest.mark.integration
async def test_a_stranger_who_gets_no_further_place_takes_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    most = RELAY_CIRCUITS_OF_PAIR_MAX + 1
    monkeypatch.setattr("pairio_node.transport.relay.RELAY_STRANGERS_TO_PEER_MAX", most)
    monkeypatch.setattr("pairio_node.transport.relay.RELAY_STRANGER_LEAST_MS", 0)
    async with network() as net:
        relay = await net.relay("relay", "hidden")
        hidden = await net.hidden("hidden", relay)
        await until(lambda: held(hidden) == [True])
        other, greedy = await net.open("other"), await net.open("greedy")
        assert (await ask(other, relay, connect_to(hidden.id)))[0] == pb.OK
        said = [(await ask(greedy, relay, connect_to(hidden.id)))[0] for _ in range(most)]
        assert said == [*[pb.OK] * (most - 1), pb.RESOURCE_LIMIT_EXCEEDED]
        assert served(relay)["circuitsOfStrangers"] == most


@pytest.mark.integration
async def test_a_stranger_who_comes_too_fast_is_refused_and_others_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pairio_node.transport.relay.RELAY_STRANGER_PER_S_MAX", 0.01)
    async with network() as net:
        relay = await net.relay("relay", "hidden")
        hidden, stranger = await net.hidden("hidden", relay), await net.open("stranger")
        await until(lambda: held(hidden) == [True])
        said = []
        for _ in range(RELAY_STRANGER_AT_ONCE_MAX + 1):
            status, stream = await ask(stranger, relay, connect_to(hidden.id))
            said.append(status)
            await stream.reset()
        assert said[-1] == pb.RESOURCE_LIMIT_EXCEEDED
        await relay.until_counted("refused: circuits of strangers, too fast")
        other = await net.open("other")
        assert (await ask(other, relay, connect_to(hidden.id)))[0] == pb.OK


@pytest.mark.integration
async def test_a_relay_is_no_way_to_another_relay() -> None:
    async with network() as net:
        relay, other = await net.relay("relay", "behind"), await net.hidden("other")
        behind = await net.relayed_relay("behind", relay)
        await until(lambda: held(behind) == [True])
        other.keep(behind)
        await other.until_up(behind)
        status, _ = await ask(other, behind, RESERVE)
        assert status == pb.PERMISSION_DENIED
        await behind.until_counted("refused: a circuit over a circuit")


@pytest.mark.integration
async def test_bytes_are_passed_on_no_faster_than_the_owner_gives() -> None:
    async with network() as net:
        relay = await net.relay("relay", "hidden", "member", bytes_per_s=512 * 1024)
        hidden, member = await net.hidden("hidden", relay), await net.open("member")
        await _met(member, hidden)

        async def take(stream: ByteStream) -> None:
            await stream.receive_exactly(1024 * 1024)
            await stream.send(b"k")

        hidden.transport.set_stream_handler(ECHO, take)
        stream = await member.transport.open_stream(hidden.id, ECHO)
        began = trio.current_time()
        await stream.send(bytes(1024 * 1024))
        assert await stream.receive_exactly(1) == b"k"
        assert trio.current_time() - began > 1.5


# -- relays that are not honest ---------------------------------------------------------------


@pytest.mark.integration
async def test_a_relay_that_gives_another_peer_is_found_out() -> None:
    async with network() as net:
        liar, other = await net.open("liar"), await net.open("other")

        async def be_him(host: Any, stream: Any) -> None:
            await stream.read(4096)
            answer = pb.HopMessage(type=pb.HopMessage.STATUS, status=pb.OK)
            await write_message(stream, answer)
            circuit = Circuit(stream, False, liar.id)
            await host.upgrade_inbound_connection(circuit, Multiaddr(f"/p2p/{liar.id}/p2p-circuit"))

        bad_relay(liar, be_him)
        hidden = await net.hidden("hidden", liar)
        with pytest.raises(TransportError):
            await other.transport.reach(hidden.id, hidden.transport.addresses())
        await other.until_counted("refused: a circuit that ends at another peer")
        assert hidden.id not in other.transport.connected()


@pytest.mark.integration
async def test_a_relay_that_says_that_another_comes_is_found_out() -> None:
    async with network() as net:
        relay = await net.relay("relay", "hidden")
        hidden, innocent = await net.hidden("hidden", relay), await net.open("innocent")
        await until(lambda: held(hidden) == [True])
        await knock(relay, hidden, innocent.id)
        await hidden.until_counted("refused: a circuit that ends at another peer")
        assert innocent.id not in hidden.transport.connected()


@pytest.mark.integration
async def test_nobody_but_the_relays_that_were_named_brings_others() -> None:
    async with network() as net:
        relay, other = await net.relay("relay", "hidden"), await net.open("other")
        hidden = await net.hidden("hidden", relay)
        await _met(other, hidden)
        with pytest.raises((TransportError, ValueError, StreamError, StreamFailure)):
            await knock(other, hidden, other.id)
        await hidden.until_counted("refused: a circuit of a peer that is none of our relays")


@pytest.mark.integration
async def test_a_relay_that_stalls_is_given_up_and_others_are_not_held_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with network() as net:
        monkeypatch.setattr("pairio_node.transport.relayed._ANSWER_S", 1.0)
        stalls, relay = await net.open("stalls"), await net.relay("relay", "hidden")

        async def say_nothing(host: Any, stream: Any) -> None:
            await trio.sleep_forever()

        bad_relay(stalls, say_nothing)
        hidden, other = await net.hidden("hidden", stalls, relay), await net.open("other")
        await until(lambda: held(hidden) == [False, True])
        await hidden.until_counted("relays that did not answer")
        other.keep(hidden)
        await other.until_up(hidden)


@pytest.mark.integration
async def test_what_is_no_relay_message_is_refused() -> None:
    async with network() as net:
        relay, stranger = await net.relay("relay", "hidden"), await net.open("stranger")
        status = pb.HopMessage(type=pb.HopMessage.STATUS, status=pb.OK)
        nobody = pb.HopMessage(type=pb.HopMessage.CONNECT)
        huge = pb.HopMessage(type=pb.HopMessage.RESERVE, senderRecord=bytes(8192))
        for message in (status, nobody, huge):
            with pytest.raises((TransportError, ValueError, StreamError, StreamFailure)):
                await ask(stranger, relay, message)
        counted = relay.transport.counters()["refused: a relay message that is none"]
        assert counted == 3


@pytest.mark.integration
async def test_a_node_without_relays_takes_no_part() -> None:
    async with network() as net:
        plain, other = await net.open("plain"), await net.open("other")
        for question in (RESERVE, connect_to(other.id)):
            with pytest.raises((TransportError, ValueError, StreamError, StreamFailure)):
                await ask(other, plain, question)
        await a_moment(0.1)
        assert not any("relay" in name for name in plain.transport.counters())
