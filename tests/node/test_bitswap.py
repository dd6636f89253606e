"""Bitswap between ends in one loop: what is served and to whom, what is fetched and kept."""

import random
from pathlib import Path

import pytest
import trio

from pairio_node.bitswap import fetch as fetching
from pairio_node.bitswap.wire import Want, encode_message, want
from pairio_node.blocks import FetchFailed
from pairio_node.blocks.base import StoreUnavailable
from pairio_node.errors import StorageFullError
from pairio_node.transport.base import TransportError
from pairio_protocol.cid import DAG_PB, RAW, cid_bytes, cid_of
from pairio_protocol.limits import (
    BITSWAP_STREAMS_PER_PEER_MAX,
    BITSWAP_UNASKED_MAX,
    BITSWAP_WANTS_PER_PEER_MAX,
    BITSWAP_WANTS_SIZE_BYTES_MAX,
)
from pairio_protocol.unixfs import Entry, directory_block
from tests.node.bitswap_lab import ends, puppet, wants

BIG = random.Random(1).randbytes(5 * 1024 * 1024 + 21)


async def _settled() -> None:
    with trio.move_on_after(0.05):
        await trio.sleep_forever()


# -- fetching -------------------------------------------------------------------------------


async def test_a_file_of_many_chunks_comes_whole(tmp_path: Path) -> None:
    async with ends(tmp_path, "a", "b") as (_, (a, b)):
        added = await a.shelf.content.add_bytes(BIG)
        assert await b.fetch(added.cid) > len(BIG)
        assert b"".join([part async for part in b.shelf.content.read(added.cid)]) == BIG
        assert a.bitswap.counters["bitswap_blocks_sent"] == 7
        assert b.bitswap.counters["bitswap_blocks_received"] == 7
        assert b.bitswap.counters["bitswap_blocks_unasked"] == 0


async def test_a_store_that_fails_costs_an_answer_and_not_the_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: object) -> set[str]:
        raise StorageFullError("cannot note a block: No space left on device")

    async with ends(tmp_path, "a", "b") as (_, (a, b)):
        added = await a.shelf.content.add_bytes(b"abc")
        with monkeypatch.context() as patch:
            patch.setattr(a.shelf, "among", full)
            with pytest.raises(FetchFailed):
                await b.fetch(added.cid)
        assert a.bitswap.counters["bitswap_answers_lost"] == 1
        await b.fetch(added.cid)


async def test_a_folder_with_folders_comes_whole(tmp_path: Path) -> None:
    source = tmp_path / "folder"
    (source / "deep" / "deeper").mkdir(parents=True)
    (source / "empty").mkdir()
    (source / "ä name").write_bytes(b"")
    (source / "deep" / "deeper" / "big").write_bytes(BIG)
    async with ends(tmp_path, "a", "b") as (_, (a, b)):
        added = await a.shelf.content.add_directory(source)
        await b.fetch(added.cid)
        await b.shelf.content.export(added.cid, tmp_path / "out")
    assert (tmp_path / "out" / "deep" / "deeper" / "big").read_bytes() == BIG
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["deep", "empty", "ä name"]


async def test_what_is_here_is_not_asked_for_again(tmp_path: Path) -> None:
    async with ends(tmp_path, "a", "b") as (_, (a, b)):
        added = await a.shelf.content.add_bytes(BIG)
        with pytest.raises(FetchFailed, match="more than 3000000 bytes"):
            await b.fetch(added.cid, limit_bytes=3_000_000)
        kept = b.bitswap.counters["bitswap_blocks_received"]
        assert 2 <= kept < 7
        await b.fetch(added.cid)
        # What came after the bound was passed was on its way; it is here, and was counted.
        assert a.bitswap.counters["bitswap_blocks_sent"] <= 7 + kept
        await b.fetch(added.cid)
        assert not (await b.shelf.content.missing(added.cid))


async def test_several_holders_share_the_work(tmp_path: Path) -> None:
    async with ends(tmp_path, "b", "a1", "a2") as (_, (b, a1, a2)):
        data = b"".join(bytes([n]) * 1024 * 1024 for n in range(70))
        added = await a1.shelf.content.add_bytes(data)
        await a2.shelf.content.add_bytes(data)
        await b.fetch(added.cid)
        sent = [a.bitswap.counters["bitswap_blocks_sent"] for a in (a1, a2)]
        assert sum(sent) == 71
        assert min(sent) > 10


async def test_a_holder_that_lacks_a_block_is_helped_out_by_another(tmp_path: Path) -> None:
    async with ends(tmp_path, "b", "a1", "a2") as (_, (b, a1, a2)):
        added = await a1.shelf.content.add_bytes(BIG)
        await a2.shelf.content.add_bytes(BIG)
        blocks, _ = await a1.shelf.content.walk(added.cid)
        a1.shelf.private |= set(blocks[1:4])
        a2.shelf.private |= set(blocks[4:6])
        await b.fetch(added.cid)
        assert not await b.shelf.content.missing(added.cid)


async def test_a_holder_of_the_root_alone_costs_no_walk_of_all_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "BITSWAP_WINDOW_MAX", 4)
    monkeypatch.setattr(fetching, "BITSWAP_LACKING_MAX", 1000)
    async with ends(tmp_path, "b", "a1", "a2") as (_, (b, a1, a2)):
        leaves = [b"leaf %d" % number for number in range(400)]
        entries = [Entry(cid_of(RAW, leaf), len(leaf), len(leaf), leaf.decode()) for leaf in leaves]
        block = directory_block(entries)
        root = cid_of(DAG_PB, block)
        for data, cid in [*((leaf, cid_of(RAW, leaf)) for leaf in leaves), (block, root)]:
            await a1.shelf.store.put(cid, data)
        await a2.shelf.store.put(root, block)
        looked = 0
        has = b.shelf.store.has

        def counted(cid: str) -> bool:
            nonlocal looked
            looked += 1
            return has(cid)

        monkeypatch.setattr(b.shelf.store, "has", counted)
        await b.fetch(root)
        assert b.bitswap.counters["bitswap_blocks_received"] == 401
        assert looked < 401 * 20


async def test_content_that_nobody_has_is_refused_soon_and_in_words(tmp_path: Path) -> None:
    async with ends(tmp_path, "b", "a1", "a2") as (_, (b, a1, _)):
        cid = cid_of(RAW, b"nowhere")
        with pytest.raises(FetchFailed, match=r"does not have it; .*does not have it"):
            await b.fetch(cid)
        added = await a1.shelf.content.add_bytes(BIG)
        blocks, _ = await a1.shelf.content.walk(added.cid)
        a1.shelf.private.add(blocks[3])
        with pytest.raises(FetchFailed, match=f"lacks the block {blocks[3]}"):
            await b.fetch(added.cid)


async def test_without_a_peer_it_is_said_so(tmp_path: Path) -> None:
    async with ends(tmp_path, "b") as (_, (b,)):
        with pytest.raises(FetchFailed, match="no Bitswap peer is connected"):
            await b.fetch(cid_of(RAW, b"nowhere"))


async def test_a_holder_that_falls_silent_is_left_for_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "BITSWAP_STALL_MS", 300)
    monkeypatch.setattr(fetching, "BITSWAP_ASK_AGAIN_MS", 100)
    async with (
        ends(tmp_path, "b", "a") as (network, (b, a)),
        puppet(network, b) as silent,
        trio.open_nursery() as nursery,
    ):
        added = await a.shelf.content.add_bytes(BIG)
        nursery.start_soon(b.fetch, added.cid, silent.id, a.id)
        await silent.until(1)
        await silent.say(b, encode_message(presences=[(cid_bytes(added.cid), True)]))
    assert not await b.shelf.content.missing(added.cid)


async def test_a_block_that_was_lost_on_the_way_is_asked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "BITSWAP_ASK_AGAIN_MS", 100)
    async with (
        ends(tmp_path, "b") as (network, (b,)),
        puppet(network, b) as holder,
        trio.open_nursery() as nursery,
    ):
        cid = cid_of(RAW, b"lost once")
        nursery.start_soon(b.fetch, cid, holder.id)
        await holder.until(1)
        await holder.say(b, encode_message(presences=[(cid_bytes(cid), True)]))
        await holder.until(3)
        assert [w.cid for w in holder.heard[2].wants] == [cid]
        await holder.say(b, encode_message(blocks=[(b"\x01\x55\x12\x20", b"lost once")]))
    assert b.shelf.store.has(cid)


async def test_a_peer_that_only_is_silent_costs_a_bounded_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "BITSWAP_STALL_MS", 200)
    monkeypatch.setattr(fetching, "BITSWAP_FIND_MS", 100)
    async with ends(tmp_path, "b") as (network, (b,)), puppet(network, b) as silent:
        with pytest.raises(FetchFailed, match="does not answer"):
            await b.fetch(cid_of(RAW, b"x"), silent.id)
        await silent.until(2)
        assert silent.heard[1].wants[0].is_cancel


async def test_a_block_that_was_not_asked_for_is_not_kept(tmp_path: Path) -> None:
    async with ends(tmp_path, "b") as (network, (b,)), puppet(network, b) as liar:
        for data in (b"unasked", b"too"):
            stream = await liar.open(b)
            await stream.send(encode_message(blocks=[(b"\x01\x55\x12\x20", data)]))
            with pytest.raises(TransportError), trio.fail_after(5):  # and its stream is reset
                await stream.receive_exactly(1)
            assert not b.shelf.store.has(cid_of(RAW, data))
        assert b.bitswap.counters["bitswap_blocks_unasked"] == 2
        assert b.bitswap.counters["bitswap_messages_refused"] == 2


async def test_wrong_bytes_for_a_want_are_not_kept_and_a_liar_is_left(tmp_path: Path) -> None:
    async with (
        ends(tmp_path, "b") as (network, (b,)),
        puppet(network, b) as liar,
        trio.open_nursery() as nursery,
    ):
        cid = cid_of(RAW, b"right")
        failed = []

        async def fetch() -> None:
            with pytest.raises(FetchFailed, match="sends what nobody asked for") as caught:
                await b.fetch(cid, liar.id)
            failed.append(caught)

        nursery.start_soon(fetch)
        await liar.until(1)
        await liar.say(b, encode_message(presences=[(cid_bytes(cid), True)]))
        await liar.until(2)
        blocks = [(b"\x01\x55\x12\x20", b"wrong %d" % n) for n in range(BITSWAP_UNASKED_MAX + 1)]
        await liar.say(b, encode_message(blocks=blocks))
    assert failed
    assert not list((tmp_path / "b").glob("*/*"))
    assert b.bitswap.counters["bitswap_blocks_unasked"] == BITSWAP_UNASKED_MAX + 1


async def test_a_dag_without_end_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "BITSWAP_DAG_DEPTH_MAX", 20)
    async with ends(tmp_path, "a", "b") as (_, (a, b)):
        block = b"leaf"
        cid = cid_of(RAW, block)
        await a.shelf.store.put(cid, block)
        for _ in range(30):
            block = directory_block([Entry(cid, 0, 0, str(n)) for n in range(3)])
            cid = cid_of(DAG_PB, block)
            await a.shelf.store.put(cid, block)
        with pytest.raises(FetchFailed, match="too deep"):
            await b.fetch(cid)


async def test_a_dag_that_repeats_itself_is_walked_once(tmp_path: Path) -> None:
    async with ends(tmp_path, "a", "b") as (_, (a, b)):
        block = b"leaf"
        cid = cid_of(RAW, block)
        await a.shelf.store.put(cid, block)
        for _ in range(40):  # 3**40 ways down
            block = directory_block([Entry(cid, 0, 0, str(n)) for n in range(3)])
            cid = cid_of(DAG_PB, block)
            await a.shelf.store.put(cid, block)
        await b.fetch(cid)
        assert b.bitswap.counters["bitswap_blocks_received"] == 41


async def test_a_full_store_ends_a_fetch_in_words(tmp_path: Path) -> None:
    async with ends(tmp_path, "a", "b") as (_, (a, b)):
        added = await a.shelf.content.add_bytes(BIG)
        b.shelf.store.quota_bytes = 2_000_000
        with pytest.raises(StorageFullError):
            await b.fetch(added.cid)


# -- serving --------------------------------------------------------------------------------


async def test_a_private_block_is_answered_as_one_that_is_not_here(tmp_path: Path) -> None:
    async with ends(tmp_path, "a") as (network, (a,)), puppet(network, a) as stranger:
        secret = (await a.shelf.content.add_bytes(b"secret")).cid
        a.shelf.private.add(secret)
        for is_have in (True, False):
            for cid in (secret, cid_of(RAW, b"nowhere")):
                heard = len(stranger.heard)
                await stranger.ask(a, *wants(cid, is_have=is_have))
                said = (await stranger.until(heard + 1))[-1]
                assert (said.blocks, said.presences) == ([], [(cid, False)])
        assert a.bitswap.counters["bitswap_blocks_sent"] == 0


async def test_have_and_block_and_the_form_in_which_it_was_asked(tmp_path: Path) -> None:
    async with ends(tmp_path, "a") as (network, (a,)), puppet(network, a) as asker:
        added = await a.shelf.content.add_bytes(BIG)
        await asker.ask(a, want(added.cid, is_have=True))
        assert (await asker.until(1))[0].presences == [(added.cid, True)]
        version_0 = cid_bytes(added.cid)[2:]
        await asker.ask(a, Want(version_0, send_dont_have=True))
        block = (await asker.until(2))[1].blocks[0]
        assert block.cid == added.cid
        assert a.bitswap._server.wants_of(asker.id) == 0


async def test_what_is_asked_for_twice_before_it_is_answered_has_one_answer(tmp_path: Path) -> None:
    async with ends(tmp_path, "a") as (network, (a,)), puppet(network, a) as asker:
        here = (await a.shelf.content.add_bytes(b"here")).cid
        gone = cid_of(RAW, b"nowhere")
        await asker.ask(a, *wants(here, gone, is_have=True), *wants(here, gone))
        heard = await asker.until(2)
        await asker.ask(a, want(cid_of(RAW, b"the next")))
        await asker.until(3)
        assert [(m.presences, len(m.blocks)) for m in heard[:2]] == [([(gone, False)], 0), ([], 1)]


async def test_a_want_is_met_when_its_block_becomes_public(tmp_path: Path) -> None:
    async with ends(tmp_path, "a") as (network, (a,)), puppet(network, a) as asker:
        added = await a.shelf.content.add_bytes(b"later")
        a.shelf.private.add(added.cid)
        await asker.ask(a, want(added.cid))
        await asker.until(1)
        a.shelf.private.clear()
        a.bitswap.on_more_public()
        assert (await asker.until(2))[1].blocks[0].data == b"later"


async def test_a_want_that_was_taken_back_is_not_met(tmp_path: Path) -> None:
    async with ends(tmp_path, "a") as (network, (a,)), puppet(network, a) as asker:
        added = await a.shelf.content.add_bytes(b"later")
        a.shelf.private.add(added.cid)
        for taken_back in ([want(added.cid, is_cancel=True)], []):
            await asker.ask(a, want(added.cid))
            with trio.fail_after(5):
                while a.bitswap._server.wants_of(asker.id) != 1:
                    await _settled()
            await asker.say(a, encode_message(taken_back, is_full=not taken_back))
            with trio.fail_after(5):
                while a.bitswap._server.wants_of(asker.id) != 0:
                    await _settled()
        a.shelf.private.clear()
        a.bitswap.on_more_public()
        await _settled()
        assert not any(message.blocks for message in asker.heard)


async def test_a_store_that_does_not_answer_ends_no_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with ends(tmp_path, "a") as (network, (a,)), puppet(network, a) as asker:
        added = await a.shelf.content.add_bytes(b"some")
        for error in (StoreUnavailable("Kubo is away"), OSError("a disk that fails")):

            async def away(cids: object, error: Exception = error) -> set[str]:
                raise error

            with monkeypatch.context() as patched:
                patched.setattr(a.shelf, "among", away)
                lost = a.bitswap.counters["bitswap_answers_lost"]
                await asker.ask(a, want(added.cid))
                with trio.fail_after(10):
                    while a.bitswap.counters["bitswap_answers_lost"] == lost:
                        await _settled()
        await asker.ask(a, want(added.cid))
        assert (await asker.until(1))[0].blocks[0].data == b"some"


async def test_wants_of_a_peer_are_bounded(tmp_path: Path) -> None:
    async with ends(tmp_path, "a") as (network, (a,)), puppet(network, a) as asker:
        many = [cid_of(RAW, b"%d" % n) for n in range(BITSWAP_WANTS_PER_PEER_MAX + 300)]
        await asker.ask(a, *wants(*many))
        with trio.fail_after(10):
            while a.bitswap.counters["bitswap_wants_refused"] != 300:
                await _settled()
        assert a.bitswap._server.wants_of(asker.id) == BITSWAP_WANTS_PER_PEER_MAX


async def test_peers_whose_wants_are_kept_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pairio_node.bitswap.server.BITSWAP_PEERS_MAX", 2)
    async with (
        ends(tmp_path, "a") as (network, (a,)),
        puppet(network, a, "p1") as first,
        puppet(network, a, "p2") as second,
        puppet(network, a, "p3") as third,
    ):
        for asker in (first, second, third):
            await asker.ask(a, *wants(cid_of(RAW, b"nowhere")))
            await asker.until(1)
        assert [a.bitswap._server.wants_of(p.id) for p in (first, second, third)] == [0, 1, 1]


@pytest.mark.parametrize(
    "said",
    [
        b"\xff\xff\xff\xff\xff\xff",
        b"\x08" + b"\xff" * 8,
        encode_message(wants(cid_of(RAW, b"x"))) + b"\x03abc",
        (BITSWAP_WANTS_SIZE_BYTES_MAX + 1).to_bytes(3, "little") + b"\x01",
    ],
)
async def test_garbage_resets_its_stream_and_is_counted(said: bytes, tmp_path: Path) -> None:
    async with ends(tmp_path, "a") as (network, (a,)), puppet(network, a) as mallory:
        stream = await mallory.open(a)
        await stream.send(said)
        with pytest.raises(TransportError), trio.fail_after(5):
            await stream.receive_exactly(1)
        assert a.bitswap.counters["bitswap_messages_refused"] == 1
        added = await a.shelf.content.add_bytes(b"still here")
        await mallory.ask(a, want(added.cid))
        with trio.fail_after(5):
            while not any(message.blocks for message in mallory.heard):
                await _settled()


async def test_streams_of_a_peer_are_bounded(tmp_path: Path) -> None:
    async with ends(tmp_path, "a") as (network, (a,)), puppet(network, a) as mallory:
        for _ in range(BITSWAP_STREAMS_PER_PEER_MAX):
            await mallory.open(a)
        await _settled()
        more = await mallory.open(a)
        with pytest.raises(TransportError), trio.fail_after(5):
            await more.receive_exactly(1)
        assert a.bitswap.counters["bitswap_streams_refused"] == 1


async def test_a_peer_that_does_not_read_holds_up_nobody(tmp_path: Path) -> None:
    async with (
        ends(tmp_path, "a", "b") as (network, (a, b)),
        puppet(network, a, "deaf") as deaf,
    ):

        async def hear_nothing(stream: object) -> None:
            await trio.sleep_forever()

        deaf.transport.set_stream_handler("/ipfs/bitswap/1.2.0", hear_nothing)
        added = await a.shelf.content.add_bytes(BIG)
        blocks, _ = await a.shelf.content.walk(added.cid)
        await deaf.ask(a, *wants(*blocks))
        await _settled()
        await b.fetch(added.cid, a.id)
        assert not await b.shelf.content.missing(added.cid)
