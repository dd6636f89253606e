"""Content between real nodes: crashes of either side cost what had not come, and nothing else."""

import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.block_files import marks_on_blocks
from tests.integration.content.lab import BenchNode, found, sha256_of
from tests.integration.waiting import until

pytestmark = pytest.mark.integration
SIZE_MIB = 192
_WAIT_S = 60.0


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[tuple[str, list[BenchNode]]]:
    service, made = found(tmp_path, "a b fetcher")
    try:
        yield service, made
    finally:
        for node in made:
            node.end()


def _received(node: BenchNode) -> int:
    return int(node.call("GET", "status")["blocks"]["blocks_received"])


def _begin(node: BenchNode, *command: object) -> threading.Thread:
    def tell() -> None:
        try:
            node.tell(*command)
        except (OSError, ValueError, RuntimeError):
            return  # it was killed meanwhile: that is the test

    thread = threading.Thread(target=tell)
    thread.start()
    until("a part has come", lambda: _received(node) > 4 and marks_on_blocks(node.home), _WAIT_S)
    return thread


@pytest.mark.timeout(400)
def test_killed_fetcher_and_killed_holder_lose_only_what_had_not_come(
    nodes: tuple[str, list[BenchNode]], tmp_path: Path
) -> None:
    service, (a, b, fetcher) = nodes
    file = tmp_path / "file"
    file.write_bytes(random.Random(7).randbytes(SIZE_MIB * 2**20))
    cid = a.tell("add", service, str(file))["cid"]
    assert b.tell("add", service, str(file))["cid"] == cid

    telling = _begin(fetcher, "fetch", service, cid, [a.peer])
    fetcher.kill()
    telling.join()
    whole = SIZE_MIB + 1
    here = marks_on_blocks(fetcher.home)  # but what came in the last moment
    assert 0 < here < whole, "the kill came too late to show anything"

    fetcher.start()
    until("it is back", lambda: fetcher.is_in_with(2), _WAIT_S)
    telling = _begin(fetcher, "fetch", service, cid, [a.peer, b.peer])
    a.kill()
    telling.join()
    fetcher.tell("fetch", service, cid, [b.peer])
    assert _received(fetcher) == whole - here, "what was here came again"
    fetcher.tell("export", service, cid, str(tmp_path / "copy"))
    assert sha256_of(tmp_path / "copy") == sha256_of(file)
