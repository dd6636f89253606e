"""What is read here and no member has, asked of Bitswap peers; and what is never asked of them.
And files that lie with their owner, served from where they are."""

import os
from collections.abc import Sequence
from pathlib import Path

import pytest
import trio

from pairio_node.blocks import FetchFailed
from pairio_node.errors import NotFoundError
from pairio_node.transport import MemoryNetwork
from pairio_protocol.cid import RAW, cid_of
from tests.block_files import block_data, lose_blocks
from tests.node.node_lab import LabNode, running, until
from tests.node.test_gateway import Gateway
from tests.node.test_publishing import Lab, lab

MIB = 2**20


async def _meet(reader: LabNode, holder: LabNode) -> None:
    await reader.transport.reach(holder.peer_id, holder.transport.addresses())


def _folder(path: Path) -> Path:
    (path / "sub").mkdir(parents=True)
    (path / "sub" / "big.bin").write_bytes(b"".join(bytes([n]) * MIB for n in range(10)))
    (path / "other.txt").write_bytes(b"other")
    return path


async def test_a_range_in_a_folder_comes_from_a_bitswap_peer_and_nothing_else(
    tmp_path: Path,
) -> None:
    async with lab(tmp_path) as here:
        added = await here.stranger.content.add_directory(_folder(tmp_path / "f"))
        await here.stranger.publishing.publish(added.cid, None)
        web = Gateway(here.member)
        with trio.fail_after(60):
            assert (await web.named(added.cid, "f", "/other.txt")).status == 404
            await _meet(here.member, here.stranger)
            span = f"bytes={3 * MIB - 1}-{3 * MIB}"
            got = await web.named(added.cid, "f", "/sub/big.bin", range=span)
            assert (got.status, got.body) == (206, b"\x02\x03")
            assert here.member.bitswap is not None
            assert here.member.bitswap.counters["bitswap_blocks_received"] == 5
            assert b"other.txt" in (await web.named(added.cid, "f")).body
            whole = await web.named(added.cid, "f", "/sub/big.bin")
        assert len(whole.body) == 10 * MIB
        service = here.job["serviceId"]
        assert not await here.member.contents.of(service).has(added.cid), (
            "no service has it by that"
        )


async def test_what_is_not_public_there_does_not_come(tmp_path: Path) -> None:
    async with lab(tmp_path) as here:
        added = await here.stranger.content.add_bytes(b"the stranger's own")
        await _meet(here.member, here.stranger)
        with trio.fail_after(60):
            got = await Gateway(here.member).named(added.cid, "f")
        assert (got.status, b"is not here" in got.body) == (404, True)


async def test_a_peer_that_is_silent_costs_a_bounded_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pairio_node.serving._FETCH_S", 0.3)
    async with lab(tmp_path) as here:
        await _meet(here.member, here.stranger)

        async def never(*_: object, **__: object) -> int:
            await trio.sleep_forever()
            return 0

        monkeypatch.setattr(here.member.bitswap, "fetch_blocks", never)
        with trio.fail_after(20):
            got = await Gateway(here.member).named(cid_of(RAW, b"nowhere"), "f")
        assert got.status == 404


async def test_an_output_of_members_only_is_asked_of_members_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with lab(tmp_path) as here:
        await _meet(here.member, here.stranger)
        asked: list[str] = []

        async def noting(cids: Sequence[str]) -> None:
            asked.extend(cids)

        monkeypatch.setattr(here.member.outside, "fetch_blocks", noting)
        names = [here.output, str(here.job["consoleOutputCid"])]
        names += [app["bundle"] for app in here.member.services.apps("lab")]
        assert all(names) and len(names) == 3
        for node in (here.admin, here.worker, here.member):
            lose_blocks(node.home.path)
        web = Gateway(here.member)
        with trio.fail_after(60):
            for cid in names:
                assert (await web.named(cid, "x")).status == 404
                assert (await web.named(cid, "x", "/inner")).status == 404
        assert asked == []
        unknown = cid_of(RAW, b"of nobody here")
        assert (await web.named(unknown, "x")).status == 404
        assert asked == [unknown]
        await here.admin.publishing.set_results("lab", True)
        await until(
            lambda: here.member.core.membership.folded(here.job["serviceId"]).has_public_results,
            "the member knows",
        )
        assert (await web.named(here.output, "x")).status == 404
        assert asked == [unknown, here.output]


# -- by reference ----------------------------------------------------------------------------


async def _published(here: Lab, path: Path) -> str:
    with trio.fail_after(30):
        added = await here.worker.references.add(path, lambda _: None)
        await here.worker.publishing.publish(added.cid, None)
    return added.cid


async def test_a_published_file_is_served_from_where_it_lies(tmp_path: Path) -> None:
    async with lab(tmp_path) as here:
        path = tmp_path / "rec.nwb"
        path.write_bytes(os.urandom(3 * MIB + 5))
        with trio.fail_after(30):
            private = await here.worker.references.add(path, lambda _: None)
        assert await here.is_hidden(private.cid), "nothing is public unasked"
        used = here.worker.blocks.used_bytes
        cid = await _published(here, path)
        await here.read(cid)
        read = b"".join([chunk async for chunk in here.stranger.content.read(cid)])
        assert read == path.read_bytes()
        assert here.worker.blocks.used_bytes == used, "it was not copied"
        await here.worker.publishing.unpublish(cid)
        assert not await here.worker.publishing.blocks.among([cid])


async def test_a_published_file_that_changed_is_refused_and_noticed(tmp_path: Path) -> None:
    said: list[str] = []
    async with lab(tmp_path) as here:
        here.worker.say = said.append
        assert here.worker._nursery is not None
        here.worker.referenced.begin(here.worker._nursery)
        path = tmp_path / "rec.nwb"
        path.write_bytes(bytes(MIB) + b"x" * MIB)
        cid = await _published(here, path)
        before = path.stat()
        with path.open("r+b") as file:  # as it was, to whoever looks at size and time alone
            file.seek(MIB + 7)
            file.write(b"SECRET")
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        with pytest.raises(FetchFailed):
            await here.read(cid)
        assert not any(b"SECRET" in data for data in block_data(here.stranger.home.path))
        await until(lambda: said, "the owner is told")
        assert "is not as it was" in said[0]
        part = cid_of(RAW, bytes(MIB))  # as it was, of a file that is not
        lose_blocks(here.stranger.home.path, [part])
        assert await here.is_hidden(part)


async def test_a_published_folder_shows_what_was_in_it_and_no_more(tmp_path: Path) -> None:
    async with lab(tmp_path) as here:
        cid = await _published(here, _folder(tmp_path / "f"))
        (tmp_path / "f" / "later.txt").write_bytes(b"came later")
        await here.read(cid)
        names = [e.name for e in await here.stranger.content.entries(cid)]
        assert names == ["other.txt", "sub"]
        assert await here.is_hidden(cid_of(RAW, b"came later"))
        with pytest.raises(NotFoundError):
            await here.stranger.files.look(cid, ["later.txt"], cid)


async def test_a_member_alone_knows_a_file_that_was_not_published(tmp_path: Path) -> None:
    async with running(MemoryNetwork(), tmp_path / "node", compute=False) as node:
        path = tmp_path / "f.bin"
        path.write_bytes(b"x" * 100)
        added = await node.references.add(path, lambda _: None)
        assert not await node.publishing.blocks.among([added.cid])
