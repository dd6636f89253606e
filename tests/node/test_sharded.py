"""Sharded folders are folders everywhere: added, read by path, listed, fetched, exported."""

import json
from pathlib import Path
from urllib.parse import quote

import pytest
import trio

from pairio_node.blocks import Content, DiskBlockStore
from pairio_node.blocks.references import References
from pairio_node.blocks.referencing import ReferencingStore
from pairio_node.blocks.unixfs import Entry, UnixfsError, parse_node
from pairio_node.errors import NotFoundError, UserError
from pairio_node.folders import build_folder
from pairio_node.runner import RunOutcome, RunSpec
from pairio_node.transport import MemoryNetwork
from pairio_protocol import shards
from pairio_protocol.cid import DAG_PB, RAW, cid_of
from pairio_protocol.limits import FOLDER_ENTRIES_MAX
from tests.node.node_lab import three, until
from tests.node.test_cars import cut_off, exported, imported, verified
from tests.node.test_gateway import Gateway, gateway, two
from tests.protocol.test_shards import chain, file, shard

NAMES = [*(f"{i:04}.txt" for i in range(600)), "a b", "ä日本語", "00", "FFx"]


@pytest.fixture(autouse=True)
def small_folders_are_sharded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "DIRECTORY_SIZE_BYTES_MAX", 4096)


def many(path: Path) -> Path:
    """A folder that is sharded, in a folder that is not; one of its entries is a folder."""
    folder = path / "top" / "many"
    folder.mkdir(parents=True)
    for name in NAMES:
        (folder / name).write_bytes(name.encode())
    (folder / "big.bin").write_bytes(bytes(2**20 + 1))
    (folder / "sub").mkdir()
    (folder / "sub" / "x").write_bytes(b"deep")
    return path / "top"


def tree(top: Path) -> dict[str, bytes | None]:
    found = ((p.relative_to(top).as_posix(), p) for p in top.rglob("*"))
    return {name: p.read_bytes() if p.is_file() else None for name, p in found}


def _content(path: Path) -> Content:
    return Content(DiskBlockStore(path / "blocks", 2**30))


async def test_what_goes_in_comes_out(tmp_path: Path) -> None:
    content, top = _content(tmp_path), many(tmp_path)
    added = await content.add_directory(top)
    assert added.size_bytes == sum(len(data or b"") for data in tree(top).values())
    here, missing = await content.walk(added.cid)
    nodes = [parse_node(cid, await content.store.get(cid)) for cid in here]
    assert missing == [] and sum(node.fanout > 0 for node in nodes) > 1
    written = await content.export(added.cid, tmp_path / "out")
    assert (written, tree(tmp_path / "out")) == (added.size_bytes, tree(top))


async def test_put_together_and_by_reference_it_is_the_same(tmp_path: Path) -> None:
    content, top = _content(tmp_path), many(tmp_path)
    added = await content.add_directory(top)
    files = [p for p in top.rglob("*") if p.is_file()]
    named = [(p.relative_to(top).as_posix(), (await content.add_file(p)).cid) for p in files]
    assert await build_folder(content, named) == added
    store = DiskBlockStore(tmp_path / "other", 2**30)
    references = References(tmp_path / "references.db", store, tmp_path / "home")
    referenced = await references.add(top, lambda _: None)
    assert referenced.cid == added.cid
    own = Content(ReferencingStore(store, references))
    assert await own.missing(added.cid) == []
    assert await trio.to_thread.run_sync(references.unchanged_path, added.cid) == top
    references.close()


async def test_the_gateway_lists_it_and_finds_what_is_in_it(tmp_path: Path) -> None:
    async with gateway(tmp_path) as (web, node):
        added = await node.content.add_directory(many(tmp_path))
        for name in NAMES[::97] + NAMES[-4:]:
            got = await web.named(added.cid, "f", f"/many/{quote(name)}")
            assert (got.status, got.body) == (200, name.encode())
        assert (await web.named(added.cid, "f", "/many/sub/x")).body == b"deep"
        assert (await web.named(added.cid, "f", "/many/none")).status == 404
        page = await web.named(added.cid, "f", "/many")
        assert (page.status, page.body.count(b"<tr>")) == (200, len(NAMES) + 3)  # `..` too
        listing = await web.get(f"{web.url(added.cid, 'f', '/many')}&format=json")
        entries = json.loads(listing.body)["entries"]
        assert [e["name"] for e in entries] == sorted([*NAMES, "big.bin", "sub"])
        kinds = {e["name"]: (e["type"], e["size"]) for e in entries}
        assert kinds["big.bin"] == ("file", 2**20 + 1)
        assert (kinds["sub"][0], kinds["00"]) == ("folder", ("file", 2))


async def test_of_one_at_a_member_only_the_way_to_a_name_is_fetched(tmp_path: Path) -> None:
    async with two(tmp_path) as (holder, reader, service):
        added = await holder.content.add_directory(many(tmp_path))
        assert await holder.contents.share(service, added.cid)
        with trio.fail_after(60):
            got = await Gateway(reader).named(added.cid, "f", "/many/0007.txt")
        assert got.body == b"0007.txt"
        assert reader.exchange.counters["blocks_received"] <= 6
        await reader.exchange.fetch(service, added.cid, [holder.peer_id])
        await reader.contents.of(service).export(added.cid, tmp_path / "out")
        assert tree(tmp_path / "out") == tree(tmp_path / "top")


async def test_a_listing_of_one_at_a_member_fetches_its_shards_and_no_files(tmp_path: Path) -> None:
    async with two(tmp_path) as (holder, reader, service):
        added = await holder.content.add_directory(many(tmp_path))
        assert await holder.contents.share(service, added.cid)
        with trio.fail_after(60):
            assert len(
                await reader.files.entries((await reader.files.look(added.cid, ["many"])).cid)
            )
        (many_of,) = await reader.content.entries(added.cid)
        assert len(await reader.content.entries(many_of.cid)) == len(NAMES) + 2
        assert (await reader.content.has(cid_of(RAW, b"00"))) is False


async def test_an_output_is_verified_exported_and_imported(tmp_path: Path) -> None:
    network = MemoryNetwork()
    async with three(network, tmp_path) as (admin, worker, guest):
        run = worker.runner.run

        async def folder(spec: RunSpec, cancel: trio.Event) -> RunOutcome:
            outcome = await run(spec, cancel)
            outcome.outputs["output"] = many(spec.work_dir / "out") / "many"
            return outcome

        worker.runner.run = folder  # type: ignore[method-assign]
        cut_off(network, guest, admin, worker)
        await until(lambda: not guest.transport.connected(), "cut off")
        job = await admin.done(await admin.greet("Ada"))
        cid = job["outputFileResults"][0]["cid"]
        assert parse_node(cid, await admin.content.store.get(cid)).fanout == 256
        assert all(step["ok"] for step in await verified(admin, job["jobId"]))
        assert (await imported(guest, await exported(admin, job["jobId"])))["results"][0]["counts"]
        assert all(step["ok"] for step in await verified(guest, job["jobId"], offline=True))
        await guest.content.export(cid, tmp_path / "got")
        assert tree(tmp_path / "got") == tree(many(tmp_path) / "many")


# -- what others may have made ---------------------------------------------------------------


async def _put(content: Content, blocks: dict[str, bytes]) -> None:
    for cid, data in blocks.items():
        await content.store.put(cid, data)


async def test_a_name_that_leaves_the_folder_is_not_written(tmp_path: Path) -> None:
    content = _content(tmp_path)
    await content.store.put(cid_of(RAW, b"x"), b"x")
    for number, name in enumerate(("../out", "..", "a/b")):
        root, blocks = chain(name, 1, file(name))
        await _put(content, blocks)
        with pytest.raises(UnixfsError, match="a folder with the name"):
            await content.export(root, tmp_path / str(number))
    assert [p.name for p in tmp_path.rglob("out")] == []


async def test_shards_that_cannot_be_are_refused_in_words(tmp_path: Path) -> None:
    """A thousand ways down to one name: nobody walks them, nobody waits for them."""
    below, blocks = chain("a", 1, file("a"))
    for _ in range(7):
        block = shard([Entry(below, 0, 0, f"{place:02X}") for place in range(256)], 2**256 - 1)
        below = cid_of(DAG_PB, block)
        blocks[below] = block
    async with gateway(tmp_path) as (_, node):
        await _put(node.content, blocks)
        with trio.fail_after(20):
            with pytest.raises(UserError, match="cannot be shown"):
                await node.files.entries(below)
            with pytest.raises(UserError):
                await node.files.look(below, ["a"])
            assert (await node.files.look(below, [])).is_folder
        assert len(blocks) < 10 < FOLDER_ENTRIES_MAX


async def test_a_way_that_leads_to_a_file_is_no_way(tmp_path: Path) -> None:
    async with gateway(tmp_path) as (_, node):
        await node.content.store.put(cid_of(RAW, b"x"), b"x")
        root, blocks = chain("a", 1, Entry(cid_of(RAW, b"x"), 0, 0))
        await _put(node.content, blocks)
        for name in ("a", "b"):
            with pytest.raises((UserError, NotFoundError)):
                await node.files.look(root, [name])
