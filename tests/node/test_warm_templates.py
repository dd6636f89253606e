"""What is tried as a warm worker and cannot be one leaves nothing behind in its host."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pairio_node.runner.zygote import templates
from pairio_node.runner.zygote.templates import NodeGone, Refused, Sandbox, Single, Zygote

#: What stands for a sandbox: the numbers of its descriptors come last.
_ENDS = "import os, sys; os.read(int(sys.argv[2]), 65536)"
_ASKS = """
import os, sys
os.read(int(sys.argv[2]), 65536)
os.write(int(sys.argv[2]), b'{"ready": true, "asks": "off"}')
os.read(int(sys.argv[2]), 1)
"""
_WAITS = "import os, sys; os.read(int(sys.argv[2]), 65536); os.read(int(sys.argv[2]), 1)"


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The node's end of a host's channel; it says nothing."""
    channel_fd, node_fd = os.pipe()
    monkeypatch.setattr(templates, "CHANNEL_FD", channel_fd)
    with open(node_fd, "wb") as node:
        yield node.fileno()
    os.close(channel_fd)


@pytest.fixture(autouse=True)
def _all_end(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What was started has ended with it, too."""
    started: list[Sandbox] = []

    class Noted(Sandbox):
        def __init__(self, *parts: Any) -> None:
            super().__init__(*parts)
            started.append(self)

    monkeypatch.setattr(templates, "Sandbox", Noted)
    yield
    for sandbox in started:
        sandbox._process.wait(20)


def config(*argv: str) -> dict[str, Any]:
    part = {"argv": list(argv), "environment": {}, "files": [], "user": 0, "filter": ""}
    said = {"script": "", "middle": "", "strict": "", "shm_bytes": 0, "pydantic": False}
    return {**said, "import_s": 30.0, "zygote": part, "single": part}


def python(program: str) -> dict[str, Any]:
    return config(sys.executable, "-I", "-S", "-c", program)


def opened() -> set[str]:
    """Return what this process has open, by number; the folder that is listed is not among it."""
    return {fd for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")}


@pytest.mark.parametrize("program", [_ENDS, _ASKS])
def test_a_zygote_that_is_refused_leaves_no_descriptor(node: int, program: str) -> None:
    before = opened()
    with pytest.raises(Refused):
        Zygote(python(program))
    assert opened() == before


def test_a_zygote_that_cannot_be_started_leaves_no_descriptor(node: int) -> None:
    before = opened()
    with pytest.raises(OSError, match="no such program"):
        Zygote(config("/no such program"))
    assert opened() == before


def test_a_zygote_whose_node_goes_leaves_no_descriptor(
    node: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone_fd, end_fd = os.pipe()
    os.close(end_fd)
    monkeypatch.setattr(templates, "CHANNEL_FD", gone_fd)
    before = opened()
    with pytest.raises(NodeGone):
        Zygote(python(_WAITS))
    assert opened() == before
    os.close(gone_fd)


def test_a_worker_that_cannot_be_started_leaves_neither_descriptor_nor_folder(
    tmp_path: Path,
) -> None:
    before = opened()
    with pytest.raises(OSError, match="no such program"):
        Single(config("/no such program"), tmp_path / "0")
    assert opened() == before
    assert list(tmp_path.iterdir()) == []


def test_a_worker_that_cannot_be_told_what_it_is_leaves_nothing_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: object, **__: object) -> None:
        raise BrokenPipeError("it has ended")

    monkeypatch.setattr(templates, "_configure", gone)
    before = opened()
    with pytest.raises(BrokenPipeError):
        Single(python(_WAITS), tmp_path / "0")
    assert opened() == before
    assert list(tmp_path.iterdir()) == []


def test_a_worker_whose_folder_cannot_be_made_whole_leaves_none_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(templates, "make_tmp", full)
    with pytest.raises(OSError, match="no space"):
        Single(python(_WAITS), tmp_path / "0")
    assert list(tmp_path.iterdir()) == []
