"""Outputs that are open: a file like any other, of which only what is read comes."""

import io
import os
import zipfile
from collections.abc import Iterator
from typing import Any

import anyio
import anyio.to_thread
import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pairio.client import AsyncClient, Client
from pairio.client._async_job import AsyncPairioJob
from pairio.client._reader import CHUNK_BYTES, CHUNKS_MAX, open_content
from pairio.client._sync_job import PairioJob
from pairio.errors import NodeNotRunning, PairioError, RequestRefused
from tests.sdk.fake_node import REQUEST_ID, Asked, FakeNode, Raw, job, ranged

PATH = f"/jobs/{REQUEST_ID}/outputs/output"
MIB = 2**20


@pytest.fixture
def node() -> Iterator[FakeNode]:
    with FakeNode() as fake:
        yield fake


@pytest.fixture
def client(node: FakeNode) -> Iterator[Client]:
    with Client(node.url, node.token, reconnect_s=5) as made:
        yield made


def opened(client: Client, path: str | None = None) -> io.BufferedReader:
    return PairioJob(client, job()).outputs["output"].open(path)


def serve(node: FakeNode, data: bytes) -> None:
    node.on("GET", PATH, lambda asked: ranged(asked, data))


def asked_bytes(node: FakeNode) -> int:
    total = 0
    for asked in node.calls("GET", PATH):
        first, _, last = asked.range.removeprefix("bytes=").partition("-")
        total += int(last) + 1 - int(first)
    return total


def test_only_what_is_read_is_asked_for(node: FakeNode, client: Client) -> None:
    data = os.urandom(50 * MIB + 5)
    serve(node, data)
    with opened(client) as file:
        assert file.seek(-7, io.SEEK_END) == len(data) - 7
        assert file.read() == data[-7:]
        file.seek(20 * MIB - 3)
        assert file.read(6) == data[20 * MIB - 3 : 20 * MIB + 3]
        assert (file.tell(), file.seekable(), file.writable()) == (20 * MIB + 3, True, False)
    assert asked_bytes(node) <= 6 * MIB
    assert len(node.calls("GET", PATH)) <= 6


def test_what_was_read_is_kept_within_a_bound(node: FakeNode, client: Client) -> None:
    data = bytes(40 * MIB)
    serve(node, data)
    with opened(client) as file:
        for _ in range(50):
            file.seek(3 * MIB)
            file.read(100)
        assert len(node.calls("GET", PATH)) == 2
        file.seek(0)
        while file.read(MIB):
            pass
        assert len(node.calls("GET", PATH)) <= 42
        raw: Any = file.raw
        assert len(raw._chunks) <= CHUNKS_MAX
        assert sum(map(len, raw._chunks.values())) <= CHUNKS_MAX * CHUNK_BYTES
    assert not raw._chunks


@given(
    st.binary(max_size=300),
    st.lists(
        st.tuples(st.sampled_from([0, 1, 2]), st.integers(-50, 350), st.integers(-1, 400)),
        max_size=20,
    ),
)
@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_it_reads_as_a_file_on_disk_does(
    client: Client, node: FakeNode, data: bytes, moves: list[tuple[int, int, int]]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pairio.client._reader.CHUNK_BYTES", 16)
        patch.setattr("pairio.client._reader.CHUNKS_MAX", 3)
        patch.setattr("pairio.client._reader._BUFFER_BYTES", 8)
        serve(node, data)
        like = io.BytesIO(data)
        with opened(client) as file:
            for whence, offset, size in moves:
                base = (0, like.tell(), len(data))[whence]
                if base + offset < 0:
                    continue
                assert file.seek(offset, whence) == like.seek(offset, whence)
                assert file.read(size) == like.read(size)
                assert file.tell() == like.tell()


def test_h5py_reads_a_part_of_a_large_file(node: FakeNode, client: Client) -> None:
    made = io.BytesIO()
    values = np.random.default_rng(1).integers(0, 9, (64, 128 * 1024), dtype="int64")
    with h5py.File(made, "w") as file:
        file.create_dataset("x", data=values, chunks=(1, 128 * 1024))
    serve(node, made.getvalue())
    assert len(made.getvalue()) > 60 * MIB
    with opened(client) as output, h5py.File(output, "r") as file:
        assert file["x"].shape == (64, 128 * 1024)
        assert (file["x"][40] == values[40]).all()
    assert asked_bytes(node) <= 8 * MIB


def test_text_and_archives_are_read_from_it(node: FakeNode, client: Client) -> None:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr("big", os.urandom(10 * MIB))
        archive.writestr("small.csv", "a,b\n1,ü\n")
    serve(node, made.getvalue())
    with opened(client) as output, zipfile.ZipFile(output) as archive:
        text = io.TextIOWrapper(archive.open("small.csv"), "utf-8")
        assert text.read() == "a,b\n1,ü\n"
        text.close()
    assert asked_bytes(node) <= 4 * MIB
    serve(node, b"one\ntwo\n")
    with opened(client) as output:
        assert list(output) == [b"one\n", b"two\n"]


def test_a_file_in_a_folder_is_opened(node: FakeNode, client: Client) -> None:
    serve(node, b"inside")
    with opened(client, "a/b.txt") as file:
        assert file.read() == b"inside"
    assert {asked.query["path"] for asked in node.calls("GET", PATH)} == {"a/b.txt"}


def test_an_empty_file_is_opened(node: FakeNode, client: Client) -> None:
    serve(node, b"")
    with opened(client) as file:
        assert (file.read(), file.seek(0, io.SEEK_END)) == (b"", 0)


def test_what_cannot_be_read_is_said_at_once(node: FakeNode, client: Client) -> None:
    node.refuse("GET", PATH, 409, "'output' is a folder", "path=A/B names what lies in it")
    with pytest.raises(RequestRefused, match="is a folder"):
        opened(client)
    node.on("GET", PATH, Raw(b"x" * 100))
    with pytest.raises(RequestRefused, match="no part"):
        opened(client)


def test_other_content_in_its_place_is_no_part_of_it(node: FakeNode, client: Client) -> None:
    data = bytes(5 * MIB)
    serve(node, data)
    with opened(client) as file:
        file.read(10)
        node.on("GET", PATH, lambda asked: ranged(asked, data, '"another"'))
        file.seek(3 * MIB)
        with pytest.raises(PairioError, match="another one"):
            file.read(10)


def test_a_node_that_breaks_off_is_asked_again(node: FakeNode, client: Client) -> None:
    data = os.urandom(3 * MIB)
    count = [0]

    def answer(asked: Asked) -> Raw:
        count[0] += 1
        whole = ranged(asked, data)
        return Raw(whole.body, 206, 1000, whole.headers) if count[0] in (2, 3) else whole

    node.on("GET", PATH, answer)
    with opened(client) as file:
        assert file.read() == data
    assert count[0] == 5


def test_a_node_that_stays_away_is_said(node: FakeNode) -> None:
    from pairio._http import Api

    serve(node, bytes(3 * MIB))
    file = open_content(Api(node.url, node.token), f"/api/v1{PATH}", {}, 0)
    node.on("GET", PATH, Raw(b"x" * 10, 206, 5))
    file.seek(2 * MIB)
    with pytest.raises(NodeNotRunning, match="in the middle"):
        file.read(1)
    file.close()
    with pytest.raises(ValueError, match="closed"):
        file.read(1)


async def test_the_async_client_opens_it_too(node: FakeNode) -> None:
    data = os.urandom(4 * MIB)
    serve(node, data)
    async with AsyncClient(node.url, node.token) as client:
        with await AsyncPairioJob(client, job()).outputs["output"].open() as file:
            await anyio.to_thread.run_sync(file.seek, -5, io.SEEK_END)
            assert await anyio.to_thread.run_sync(file.read) == data[-5:]
    assert asked_bytes(node) <= 2 * MIB
