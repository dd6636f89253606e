"""An app's folder on the node that runs it: fetched, unpacked once, whole on the disk."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from pairio_node.blocks import DiskBlockStore, ScopedContent
from pairio_node.preparation import Preparation


@dataclass
class _Exchange:
    """Has everything, but for `slow` only when `go_on` is set."""

    slow: str = ""
    go_on: trio.Event = field(default_factory=trio.Event)
    fetched: list[str] = field(default_factory=list)

    async def fetch(self, service: str, cid: str, *_: Any, **__: Any) -> None:
        self.fetched.append(cid)
        if cid == self.slow:
            await self.go_on.wait()


async def _apps(tmp_path: Path, *names: str) -> tuple[ScopedContent, list[str]]:
    contents = ScopedContent(DiskBlockStore(tmp_path / "blocks", 2**30), tmp_path / "held")
    cids = []
    for name in names:
        (tmp_path / name / "more").mkdir(parents=True)
        (tmp_path / name / "main.py").write_text(f"print({name!r})\n")
        (tmp_path / name / "more" / "data").write_text("data")
        cids.append((await contents.everything.add_directory(tmp_path / name)).cid)
    return contents, cids


def _preparation(contents: ScopedContent, exchange: _Exchange, apps: Path) -> Preparation:
    nothing: Any = None
    return Preparation(
        contents,
        exchange,  # type: ignore[arg-type]
        apps,
        nothing,
        0,
        outside=nothing,
        used=lambda _: None,
        bindable=nothing,
        secrets_of=nothing,
        bounds=nothing,
    )


def _run_of(bundle: str) -> Any:
    return SimpleNamespace(service="svc", bundle=bundle, holders=())


async def test_one_that_comes_slowly_holds_up_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents, (slow, quick) = await _apps(tmp_path, "slow", "quick")
    monkeypatch.setattr(contents, "of", lambda _: contents.everything)
    exchange = _Exchange(slow)
    preparation = _preparation(contents, exchange, tmp_path / "apps")
    found: list[Path] = []

    async def bundle(cid: str) -> None:
        found.append(await preparation._bundle(_run_of(cid)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(bundle, slow)
        nursery.start_soon(bundle, slow)
        await wait_all_tasks_blocked()
        with trio.fail_after(10):
            await bundle(quick)
        assert [path.name for path in found] == [quick]
        exchange.go_on.set()
    assert [path.name for path in found] == [quick, slow, slow]
    assert sorted(exchange.fetched) == sorted([slow, quick]), "once each"


async def test_it_has_its_name_when_all_of_it_is_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents, (app,) = await _apps(tmp_path, "app")
    monkeypatch.setattr(contents, "of", lambda _: contents.everything)
    synced: set[str] = set()
    fsync = os.fsync

    def noted(fd: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{fd}"))
        if path.is_relative_to(tmp_path / "apps"):
            assert not (tmp_path / "apps" / app).exists()
            synced.add(path.relative_to(tmp_path / "apps" / f"{app}.part").as_posix())
        fsync(fd)

    monkeypatch.setattr(os, "fsync", noted)
    path = await _preparation(contents, _Exchange(), tmp_path / "apps")._bundle(_run_of(app))
    assert synced == {".", "main.py", "more", "more/data"}
    assert (path / "more" / "data").read_text() == "data"
