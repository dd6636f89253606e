"""The block store in a real Kubo: same CIDs, what is stored stays, and a daemon that is away."""

import hashlib
import json
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from pairio_node.blocks import (
    BlockCorrupt,
    BlockMissing,
    Content,
    DiskBlockStore,
    ScopedContent,
    StoreUnavailable,
)
from pairio_node.blocks.kubo import CLIENTS_MAX, KuboApi, KuboError, Provider
from pairio_node.blocks.kubo_store import KuboBlockStore
from pairio_node.blocks.unixfs import Entry, directory_block, parse_node
from pairio_node.errors import StorageFullError, UserError
from pairio_node.ipfs import Kubo as IpfsKubo
from pairio_node.ipfs_settings import parse_ipfs
from pairio_protocol.cid import DAG_CBOR, RAW, cid_of
from pairio_protocol.documents import encode
from tests.integration.kubo import Kubo, StartKubo
from tests.integration.waiting import until_so

pytestmark = pytest.mark.integration
PEER = "12D3KooWtest"
SERVICE = cid_of(DAG_CBOR, b"service")
VECTORS = json.loads(
    (Path(__file__).parents[2] / "protocol" / "vectors" / "unixfs.json").read_text()
)["files"]
#: unixfs-v1-2025, spelled out: a daemon's defaults are not relied on.
ADD = (
    "add?quieter=true&cid-version=1&raw-leaves=true&chunker=size-1048576&max-file-links=1024"
    "&hash=sha2-256&pin=false&trickle=false"
)


@pytest.fixture(scope="module")
def kubo(start_kubo_once: StartKubo) -> Kubo:
    return start_kubo_once("shared")


def _store(kubo: Kubo, home: Path, quota_bytes: int = 2**34, **settings: str) -> KuboBlockStore:
    api = KuboApi(parse_ipfs({"api": kubo.url, **settings}))
    return KuboBlockStore(api, PEER, home / "kubo", quota_bytes)


def _made(make: list[Any]) -> bytes:
    kind, value = make
    if kind == "text":
        return str(value).encode()
    return bytes(value) if kind == "zero" else bytes((7 * i) % 251 for i in range(value))


def _added(kubo: Kubo, data: bytes) -> str:
    return str(json.loads(kubo.rpc(ADD, data))["Hash"])


def _collect(kubo: Kubo) -> int:
    return len(kubo.cli("repo", "gc", "--quiet").stdout.splitlines())


# -- the same names ---------------------------------------------------------------------------


async def test_vectors_and_random_files_have_one_cid_in_kubo_on_disk_and_by_ipfs_add(
    kubo: Kubo, tmp_path: Path
) -> None:
    there, here = Content(_store(kubo, tmp_path)), Content(DiskBlockStore(tmp_path / "b", 2**30))
    chunk = 2**20
    sizes = (0, 1, chunk - 1, chunk, chunk + 1, 3 * chunk + 17)
    files = [_made(v["make"]) for v in VECTORS] + [os.urandom(size) for size in sizes]
    for number, data in enumerate(files):
        added = await there.add_bytes(data)
        assert added == await here.add_bytes(data)
        assert added.cid == _added(kubo, data)
        if number < len(VECTORS):
            assert added.cid == VECTORS[number]["cid"]
        assert b"".join([piece async for piece in there.read(added.cid)]) == data


async def test_300_mb_stream_through_with_little_memory(kubo: Kubo, tmp_path: Path) -> None:
    content, digest, size = Content(_store(kubo, tmp_path)), hashlib.sha256(), 300 * 10**6
    path = tmp_path / "large"
    with path.open("wb") as file:
        for start in range(0, size, 10**6):
            file.write(os.urandom(min(10**6, size - start)))
    added = await content.add_file(path)
    said = kubo.cli(
        *("add", "--quieter", "--cid-version=1", "--raw-leaves", "--chunker=size-1048576"),
        *("--max-file-links=1024", "--only-hash", str(path)),
    )
    assert added == (said.stdout.decode().strip(), size)
    read = 0
    async for piece in content.read(added.cid):
        digest.update(piece)
        read += len(piece)
    with path.open("rb") as file:
        assert (read, digest.digest()) == (size, hashlib.file_digest(file, "sha256").digest())


async def test_folders_deep_ones_and_odd_names_have_one_cid(kubo: Kubo, tmp_path: Path) -> None:
    top = tmp_path / "folder"
    names = ["a", "b c", "ä", "日本語", "-x", ".hidden", "a.b", "A", "\N{PILE OF POO}", "x" * 200]
    for name in names:
        (top / "odd" / name).mkdir(parents=True)
        (top / "odd" / name / f"{name}.txt"[:200]).write_text(name)
    deep = top.joinpath(*map(str, range(40)))
    deep.mkdir(parents=True)
    (deep / "leaf").write_bytes(os.urandom(3 * 2**20))
    (top / "empty").mkdir()
    there, here = Content(_store(kubo, tmp_path)), Content(DiskBlockStore(tmp_path / "b", 2**30))
    added = await there.add_directory(top)
    assert added == await here.add_directory(top)
    said = kubo.cli(
        *("add", "--quieter", "--recursive", "--hidden", "--cid-version=1", "--raw-leaves"),
        *("--chunker=size-1048576", "--max-file-links=1024", "--only-hash", str(top)),
    )
    assert said.stdout.decode().split()[-1] == added.cid
    out = tmp_path / "out"
    await there.export(added.cid, out)
    left = {p.relative_to(top): p.is_file() and p.read_bytes() for p in top.rglob("*")}
    assert {p.relative_to(out): p.is_file() and p.read_bytes() for p in out.rglob("*")} == left


def _names_for(size_bytes: int) -> list[str]:
    """Return names of empty files whose folder takes exactly so many bytes."""
    names, leaf = [f"{number:05}" for number in range(5346)], cid_of(RAW, b"")
    for pad in range(1, 200):
        tried = [*names, "y" * pad]
        left = size_bytes - len(directory_block([Entry(leaf, 0, 0, name) for name in tried]))
        if 50 < left < 120:
            return [*tried, "z" * (left - 44)]  # 44: the rest of a link
    raise AssertionError(size_bytes)


def _of_2025(start_kubo: StartKubo) -> Kubo:
    kubo = start_kubo()
    kubo.cli("config", "profile", "apply", "unixfs-v1-2025")
    kubo.stop()
    kubo.start()  # it reads the profile at its start
    return kubo


async def test_a_folder_is_sharded_where_kubo_shards_it_and_read_both_ways(
    start_kubo: StartKubo, tmp_path: Path
) -> None:
    """unixfs-v1-2025 shards a folder whose block is larger than 256 KiB."""
    kubo = _of_2025(start_kubo)
    top = tmp_path / "many"
    top.mkdir()
    names = _names_for(256 * 1024)
    for name in names:
        (top / name).touch()
    content, wanted = Content(DiskBlockStore(tmp_path / "b", 2**30)), []
    for is_sharded in (False, True):
        added = await content.add_directory(top)
        said = kubo.cli("add", "--quieter", "--recursive", "--hidden", str(top))
        assert said.stdout.decode().split()[-1] == added.cid
        root = parse_node(added.cid, kubo.rpc(f"block/get?arg={added.cid}"))
        assert (root.fanout > 0) == is_sharded
        wanted = sorted(p.name for p in top.iterdir())
        assert sorted(e.name for e in await content.entries(added.cid)) == wanted
        if not is_sharded:
            (top / names[-1]).rename(top / (names[-1] + "z"))  # a byte more
    listed = kubo.cli("ls", "--size=false", added.cid).stdout.decode().splitlines()
    assert sorted(line.partition(" ")[2].strip() for line in listed) == wanted


async def test_a_folder_of_any_size_has_one_cid(start_kubo: StartKubo, tmp_path: Path) -> None:
    kubo = _of_2025(start_kubo)
    content = Content(DiskBlockStore(tmp_path / "b", 2**30))
    for count in (3, 20_000):
        top = tmp_path / str(count)
        (top / "below").mkdir(parents=True)
        for number in range(count):
            (top / "below" / f"{number}-ä b").write_bytes(str(number % 7).encode())
        added = await content.add_directory(top)
        flags = ("--quieter", "--recursive", "--cid-version=1", "--raw-leaves")
        said = kubo.cli("add", *flags, str(top))
        assert said.stdout.decode().split()[-1] == added.cid


# -- what is stored stays ----------------------------------------------------------------------


async def test_blocks_survive_the_daemons_collection_and_nothing_is_pinned(
    start_kubo: StartKubo, tmp_path: Path
) -> None:
    kubo = start_kubo()
    before = kubo.cli("pin", "ls", "--quiet").stdout
    store = _store(kubo, tmp_path)
    whole = await Content(store).add_bytes(os.urandom(3 * 2**20))
    _collect(kubo)  # at once: an add that has returned is safe
    assert (await Content(store).missing(whole.cid)) == []
    document = encode({"type": "test", "v": 1, "text": "x" * 1000})
    leaf = os.urandom(1000)  # of a file that is not here whole
    blocks = {cid_of(DAG_CBOR, document): document, cid_of(RAW, leaf): leaf}
    for cid, data in blocks.items():
        await store.put(cid, data)
    await trio.to_thread.run_sync(store.settle_sync)
    unkept = _added(kubo, b"somebody else's")
    assert _collect(kubo) > 0
    assert not store.api.block_size(unkept)
    assert (await Content(store).missing(whole.cid)) == []
    for cid, data in blocks.items():
        assert await store.get(cid) == data
    assert kubo.cli("pin", "ls", "--quiet").stdout == before


async def test_links_hold_after_a_crash_of_the_daemon_whenever_it_collects(
    start_kubo: StartKubo, tmp_path: Path
) -> None:
    """Changes of MFS that are not written would cost the daemon its MFS: it would not start."""
    kubo = start_kubo()
    store = _store(kubo, tmp_path)
    datas = [os.urandom(100) for _ in range(250)]
    for number, data in enumerate(datas):
        await store.put(cid_of(RAW, data), data)
        if number % 100 == 99:
            await trio.to_thread.run_sync(store.settle_sync)
            _collect(kubo)
    await trio.to_thread.run_sync(store.settle_sync)
    _collect(kubo)
    kubo.kill()
    kubo.start()
    _collect(kubo)
    for data in datas:
        assert await store.get(cid_of(RAW, data)) == data
    assert len(store.api.list_files("/pairio/blocks")) == 1


async def test_what_a_collection_took_before_it_was_linked_is_said_to_be_lost(
    start_kubo: StartKubo, tmp_path: Path
) -> None:
    kubo = start_kubo()
    store = _store(kubo, tmp_path)
    await store.put(cid_of(RAW, b"x"), b"x")
    _collect(kubo)
    with pytest.raises(StoreUnavailable, match="collected blocks while they were put"):
        await trio.to_thread.run_sync(store.settle_sync)
    assert (store.used_bytes, list(store.stored_sync())) == (0, [])
    assert not await trio.to_thread.run_sync(store.has, cid_of(RAW, b"x"))


async def test_deleted_blocks_are_the_daemons_to_collect_and_others_content_is_left(
    start_kubo: StartKubo, tmp_path: Path
) -> None:
    kubo = start_kubo()
    store = _store(kubo, tmp_path)
    mine, pinned = b"mine", b"pinned by its owner"
    kubo.rpc(ADD.replace("pin=false", "pin=true"), pinned)
    for data in (mine, pinned):
        await store.put(cid_of(RAW, data), data)
    await trio.to_thread.run_sync(store.settle_sync)
    assert store.used_bytes == len(mine) + len(pinned)
    assert {b.cid for b in store.stored_sync()} == {cid_of(RAW, mine), cid_of(RAW, pinned)}
    with store.in_use.working():
        assert await trio.to_thread.run_sync(store.has, cid_of(RAW, mine))
        assert not await trio.to_thread.run_sync(store.delete_sync, cid_of(RAW, mine))
    for data in (mine, pinned):
        store.in_use = type(store.in_use)()  # as if that work were long over
        assert await trio.to_thread.run_sync(store.delete_sync, cid_of(RAW, data))
    assert (store.used_bytes, list(store.stored_sync())) == (0, [])
    await trio.to_thread.run_sync(store.settle_sync)
    _collect(kubo)
    assert store.api.block_size(cid_of(RAW, mine)) is None
    assert store.api.block_size(cid_of(RAW, pinned)) == len(pinned)


async def test_content_that_was_found_in_the_daemon_is_kept_from_then_on(
    start_kubo: StartKubo, tmp_path: Path
) -> None:
    kubo = start_kubo()
    store = _store(kubo, tmp_path)
    cid = _added(kubo, os.urandom(2 * 2**20))
    assert await Content(store).missing(cid) == []
    await trio.to_thread.run_sync(store.settle_sync)
    _collect(kubo)
    assert await Content(store).missing(cid) == []
    assert 2 * 2**20 < store.used_bytes < 2 * 2**20 + 1000


async def test_a_home_that_lost_its_notes_finds_its_blocks_again(
    start_kubo: StartKubo, tmp_path: Path
) -> None:
    kubo = start_kubo()
    before = _store(kubo, tmp_path / "first")
    await Content(before).add_bytes(os.urandom(3 * 2**20))
    again = _store(kubo, tmp_path / "second")
    assert again.used_bytes == before.used_bytes
    assert {b[:2] for b in again.stored_sync()} == {b[:2] for b in before.stored_sync()}


async def test_what_a_crash_left_without_links_is_linked_by_the_next_start(
    start_kubo: StartKubo, tmp_path: Path
) -> None:
    kubo = start_kubo()
    before = _store(kubo, tmp_path)
    await before.put(cid_of(RAW, b"x"), b"x")  # and no settle: it crashed
    kubo.cli("files", "rm", "-r", "/pairio")  # and its owner tidied up
    again = _store(kubo, tmp_path)
    await trio.to_thread.run_sync(again.settle_sync)
    _collect(kubo)
    assert await again.get(cid_of(RAW, b"x")) == b"x"


async def test_views_of_services_keep_apart_over_kubo_too(kubo: Kubo, tmp_path: Path) -> None:
    contents = ScopedContent(_store(kubo, tmp_path), tmp_path / "held")
    other = cid_of(DAG_CBOR, b"other")
    added = await contents.of(SERVICE).add_bytes(b"for one service only")
    assert await contents.of(SERVICE).store.get(added.cid) == b"for one service only"
    with pytest.raises(BlockMissing):
        await contents.of(other).store.get(added.cid)
    assert await contents.of(other).missing(added.cid) == [added.cid]
    assert await contents.share(other, added.cid)
    assert await contents.of(other).missing(added.cid) == []


async def test_wrong_bytes_and_a_full_quota_are_refused(kubo: Kubo, tmp_path: Path) -> None:
    store = _store(kubo, tmp_path / "small", quota_bytes=1)
    with pytest.raises(BlockCorrupt):
        await store.put(cid_of(RAW, b"x"), b"y")
    with pytest.raises(StorageFullError, match="in the Kubo daemon; 20 more do not fit"):
        await store.put(cid_of(RAW, b"z" * 20), b"z" * 20)


# -- a daemon that is away ---------------------------------------------------------------------


@pytest.fixture
async def watched(
    start_kubo: StartKubo, tmp_path: Path
) -> AsyncIterator[tuple[Kubo, KuboBlockStore, list[str]]]:
    kubo = start_kubo()
    store, said = _store(kubo, tmp_path), list[str]()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.watch, said.append)
        yield kubo, store, said
        nursery.cancel_scope.cancel()


async def test_a_daemon_that_dies_is_said_to_be_gone_and_taken_up_when_it_is_back(
    watched: tuple[Kubo, KuboBlockStore, list[str]],
) -> None:
    kubo, store, said = watched
    data = os.urandom(2000)
    cid = cid_of(RAW, data)
    await store.put(cid, data)
    await until_so(lambda: not store._changed)
    kubo.kill()
    began = time.monotonic()
    with pytest.raises(
        StoreUnavailable, match=r"cannot be reached \(connection (refused|reset|aborted)"
    ) as gone:
        await store.get(cid)
    assert isinstance(gone.value, BlockMissing)
    with pytest.raises(StoreUnavailable):
        await store.put(cid_of(RAW, b"new"), b"new")
    with pytest.raises(StoreUnavailable):
        await Content(store).missing(cid)
    assert time.monotonic() - began < 10
    await until_so(lambda: said)
    assert "Content is missing here until it is back" in said[0]
    assert (store.status()["reachable"], "cannot be reached" in store.status()["error"]) == (
        False,
        True,
    )
    kubo.start()
    await until_so(lambda: len(said) == 2)
    assert said[1].endswith("is back")
    assert store.status()["reachable"]
    assert await store.get(cid) == data


async def test_a_daemon_that_hangs_costs_its_time_and_no_more_threads(
    watched: tuple[Kubo, KuboBlockStore, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    kubo, store, _ = watched
    defaults = KuboApi.call.__kwdefaults__ or {}
    monkeypatch.setitem(defaults, "timeout_s", 2.0)
    cid = cid_of(RAW, b"x")
    await store.put(cid, b"x")
    before, longest = threading.active_count(), 0.0
    os.kill(kubo.process_id, signal.SIGSTOP)
    try:
        with trio.move_on_after(0.2) as scope:
            await store.get(cid)
        assert scope.cancelled_caught  # whoever does not want to wait need not

        async def ask() -> None:
            with pytest.raises(StoreUnavailable):
                await store.get(cid)

        async with trio.open_nursery() as nursery:
            for _ in range(40):
                nursery.start_soon(ask)
            while nursery.child_tasks:
                since = trio.current_time()
                await trio.sleep(0.01)
                longest = max(longest, trio.current_time() - since)
                assert threading.active_count() <= before + CLIENTS_MAX + 4
        assert longest < 1.0  # the loop went on
    finally:
        os.kill(kubo.process_id, signal.SIGCONT)
    await until_so(lambda: store.status()["reachable"])
    assert await store.get(cid) == b"x"


async def test_another_daemon_at_the_address_is_not_taken_for_the_same(
    start_kubo: StartKubo, tmp_path: Path
) -> None:
    kubo = start_kubo()
    store = _store(kubo, tmp_path)
    kubo.stop()
    other = start_kubo("other", Addresses={"API": kubo.api, "Swarm": [], "Gateway": ""})
    assert other.api == kubo.api
    store.api.expect(store.daemon)
    with pytest.raises(StoreUnavailable, match="another Kubo daemon answers"):
        await store.put(cid_of(RAW, b"x"), b"x")


async def test_providers_are_asked_for_within_bounds_and_none_are_known_to_a_daemon_that_is_away(
    start_kubo: StartKubo, tmp_path: Path
) -> None:
    kubo, asker = start_kubo("holder"), start_kubo("asker")
    asker.connect(kubo)
    cid = _added(kubo, b"wanted")
    settings = parse_ipfs(asker.url)
    store = KuboBlockStore(KuboApi(settings), PEER, tmp_path / "kubo", 2**30)
    ours = IpfsKubo(settings, store)
    assert await ours.find_providers(cid) == []
    store_there = _store(kubo, tmp_path / "there")
    await trio.to_thread.run_sync(store_there.api.provide, cid, 10.0)
    found: list[Provider] = []
    with trio.fail_after(60):
        while not found:
            found = await ours.find_providers(cid, count=1, timeout_s=2.0)
    assert [p.peer for p in found] == [kubo.peer_id]
    asker.kill()
    assert await ours.find_providers(cid) == []


# -- the way in --------------------------------------------------------------------------------


async def test_a_unix_socket_and_a_bearer_token(start_kubo: StartKubo, tmp_path: Path) -> None:
    secret = "a-secret-token"
    rules = {"pairio": {"AuthSecret": f"bearer:{secret}", "AllowedPaths": ["/api/v0"]}}
    kubo = start_kubo(API={"Authorizations": rules, "HTTPHeaders": {}})
    address = {"api": kubo.url}
    with pytest.raises(KuboError, match="refuses this node") as refused:
        KuboApi(parse_ipfs(address)).check()
    assert "token_file" in str(refused.value.hint)
    token = tmp_path / "token"
    token.write_text(f"{secret}\n")
    token.chmod(0o644)
    with pytest.raises(UserError, match="others on this machine can read"):
        KuboApi(parse_ipfs({**address, "token_file": str(token)}))
    token.chmod(0o600)
    store = _store(kubo, tmp_path, token_file=str(token))
    await store.put(cid_of(RAW, b"x"), b"x")
    token.write_text("another")
    with pytest.raises(KuboError, match="refuses this node") as refused:
        _store(kubo, tmp_path, token_file=str(token))
    assert secret not in str(refused.value) + str(refused.value.hint) + repr(store.api)


async def test_an_api_on_a_unix_socket(start_kubo: StartKubo, tmp_path: Path) -> None:
    socket = f"/unix{tmp_path}/api.sock"
    kubo = start_kubo(Addresses={"API": socket, "Swarm": ["/ip4/127.0.0.1/tcp/0"], "Gateway": ""})
    api = KuboApi(parse_ipfs(kubo.api))
    store = KuboBlockStore(api, PEER, tmp_path / "kubo", 2**30)
    added = await Content(store).add_bytes(os.urandom(2 * 2**20))
    assert await Content(store).missing(added.cid) == []


@pytest.fixture
def not_kubo() -> Iterator[tuple[str, list[bytes]]]:
    """A server that answers every request with one of `answers`, the last one again and again."""
    from http.server import BaseHTTPRequestHandler, HTTPServer

    answers = [b'{"Version": "0.41.0"}']

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = answers.pop(0) if len(answers) > 1 else answers[0]
            self.send_response(302 if body == b"elsewhere" else 200)
            if body == b"elsewhere":
                self.send_header("Location", "http://127.0.0.1:9/")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", answers
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    ("answer", "words", "code"),
    [
        (b'{"Version": "0.41.0"}', "is 0.41.0; 0.42 is the least", "ipfs_too_old"),
        (b"<html>", "is no Kubo daemon", "ipfs_not_kubo"),
        (b'{"name": "?"}', "is no Kubo daemon", "ipfs_not_kubo"),
        (b"elsewhere", "cannot be reached", "store_down"),
    ],
)
def test_who_answers_must_be_a_new_kubo(
    not_kubo: tuple[str, list[bytes]], answer: bytes, words: str, code: str
) -> None:
    url, answers = not_kubo
    answers[:] = [answer]
    with pytest.raises(UserError, match=words) as refused:
        KuboApi(parse_ipfs(url)).check()
    assert refused.value.code == code


def test_a_daemon_that_stores_something_else_is_found_out(
    not_kubo: tuple[str, list[bytes]],
) -> None:
    url, answers = not_kubo
    api = KuboApi(parse_ipfs(url))
    answers[:] = [json.dumps({"Key": cid_of(RAW, b"other"), "Size": 1}).encode()]
    with pytest.raises(BlockCorrupt, match="stored another block"):
        api.put_block(cid_of(RAW, b"x"), b"x")
    assert api.block_size(cid_of(RAW, b"x")) is None


async def test_bytes_of_another_block_are_not_given_out(
    kubo: Kubo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = _store(kubo, tmp_path)
    monkeypatch.setattr(store.api, "read_block", lambda _: b"rotten")
    with pytest.raises(BlockMissing, match="other bytes"):
        await store.get(cid_of(RAW, b"x"))


def test_unixfs_blocks_that_kubo_makes_are_read(kubo: Kubo, tmp_path: Path) -> None:
    """With other settings too: 174 links, dag-pb leaves."""
    data = os.urandom(200 * 1000)
    said = kubo.rpc("add?quieter=true&cid-version=1&raw-leaves=false&chunker=size-1000", data)
    cid = json.loads(said)["Hash"]

    async def read() -> bytes:
        content = Content(_store(kubo, tmp_path))
        return b"".join([piece async for piece in content.read(cid)])

    assert trio.run(read) == data
