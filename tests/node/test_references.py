"""Content by reference: nothing is copied, nothing wrong is ever served, and a change is told."""

import json
import os
import random
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from pairio_node.blocks import BlockMissing, Content, DiskBlockStore, FetchFailed
from pairio_node.blocks.reference_db import GOOD, RootRow
from pairio_node.blocks.references import Referenced, References
from pairio_node.blocks.referencing import ReferencingStore
from pairio_node.errors import StorageFullError, UserError
from pairio_node.runner import Runners, RunOutcome, RunSpec
from pairio_node.transport import MemoryNetwork
from pairio_protocol.cid import RAW, parse_cid
from tests.node.node_lab import InstantRunner, LabNode, app_directory, running, until

MIB = 2**20


class Lab:
    """A store with referenced files, a store for comparison, and what was told of changes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.home = path / "home"
        self.home.mkdir(exist_ok=True)
        self.disk = DiskBlockStore(self.home / "blocks", 2**30)
        self.references = References(self.home / "references.db", self.disk, self.home)
        self.content = Content(ReferencingStore(self.disk, self.references))
        self.changed: list[RootRow] = []
        self.references.on_changed = self.changed.append

    async def add(self, path: Path, on_bytes: Callable[[int], None] = lambda _: None) -> Referenced:
        return await self.references.add(path, on_bytes)

    async def copied(self, path: Path) -> str:
        """The CID that the same file or folder has when it is copied."""
        content = Content(DiskBlockStore(self.path / "compared", 2**30))
        add = content.add_directory if path.is_dir() else content.add_file
        return (await add(path)).cid

    async def read(self, cid: str) -> bytes:
        return b"".join([chunk async for chunk in self.content.read(cid)])

    async def leaves(self, cid: str) -> list[str]:
        here, _ = await self.content.walk(cid)
        return [block for block in here if parse_cid(block).codec == RAW]


@contextmanager
def lab(path: Path) -> Iterator[Lab]:
    made = Lab(path)
    with closing(made.references):
        yield made


def _file(path: Path, size: int, seed: int = 7) -> Path:
    path.write_bytes(random.Random(seed).randbytes(size))
    return path


@pytest.mark.parametrize("size", [0, 1, MIB, MIB + 1, 17 * MIB + 3])
async def test_a_file_has_the_cid_of_its_copy_and_no_copy(size: int, tmp_path: Path) -> None:
    with lab(tmp_path) as here:
        file = _file(tmp_path / "data.bin", size)
        told: list[int] = []
        added = await here.add(file, told.append)
        assert (added.cid, added.size_bytes) == (await here.copied(file), size)
        assert sum(told) == size
        assert here.disk.used_bytes < 4096, "inner nodes only"
        assert await here.read(added.cid) == file.read_bytes()
        assert await here.content.missing(added.cid) == []
        assert here.references.roots() == {added.cid}


async def test_a_change_that_cannot_be_noted_is_looked_at_again(tmp_path: Path) -> None:
    with lab(tmp_path) as here:
        file = _file(tmp_path / "data.bin", 3)
        added = await here.add(file)
        db = here.references._db._db
        _file(file, 4)
        db.execute("pragma query_only = on")  # writing fails, as on a full disk
        here.references._looked.clear()
        assert not await here.content.has(added.cid)
        with pytest.raises(BlockMissing):
            await here.read(added.cid)
        with pytest.raises(StorageFullError, match="cannot note what is referenced"):
            await here.add(file)
        assert here.changed == []
        db.execute("pragma query_only = off")
        assert not await here.content.has(added.cid)
        assert [root.cid for root in here.changed] == [added.cid]
        assert await here.read((await here.add(file)).cid) == file.read_bytes()


async def test_a_damaged_list_is_a_list_that_knows_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Runs ask it for their inputs: no reason to end the node."""
    with lab(tmp_path) as here:
        file = _file(tmp_path / "data.bin", 3)
        added = await here.add(file)
        assert here.references.unchanged_path(added.cid) == file
        here.references._db._db.executescript("drop table leaves; drop table files")
        here.references._looked.clear()
        assert here.references.unchanged_path(added.cid) is None
        assert not here.references.has(added.cid)
        here.references._db._db.executescript("drop table roots")
        assert here.references.unchanged_path(added.cid) is None
        with pytest.raises(BlockMissing):
            here.references.read_sync(added.cid)
        assert here.references.roots() == {added.cid}, "a collection takes nothing for damage"
        assert caplog.text.count("cannot be used") == 1
        with pytest.raises(UserError, match=r"references\.db cannot be used") as caught:
            await here.add(file)
        assert "move it away" in str(caught.value.hint)


async def test_a_folder_too(tmp_path: Path) -> None:
    with lab(tmp_path) as here:
        top = tmp_path / "f"
        (top / "a" / "empty").mkdir(parents=True)
        for name in ("a/b", "a-b", "z", "a/\n'", "a.b"):
            _file(top / name, 2 * MIB if name == "z" else 5)
        added = await here.add(top)
        assert added.cid == await here.copied(top)
        await here.content.export(added.cid, tmp_path / "out")
        assert (tmp_path / "out" / "z").read_bytes() == (top / "z").read_bytes()
        assert here.disk.used_bytes < 4096
        assert here.references.unchanged_path(added.cid) == top
        (top / "new").touch()
        assert here.references.unchanged_path(added.cid) is None, "a file more"
        (top / "new").unlink()
        assert here.references.unchanged_path(added.cid) == top
        (top / "a" / "empty").rmdir()
        assert here.references.unchanged_path(added.cid) is None, "a folder less"


async def test_what_is_as_it_was_is_not_read_again(tmp_path: Path) -> None:
    with lab(tmp_path) as here:
        file = _file(tmp_path / "data.bin", 3 * MIB)
        first = await here.add(file)
        assert first.was_hashed
    with lab(tmp_path) as here:  # the node was started again

        def never(_: int) -> None:
            raise AssertionError("it was read again")

        again = await here.add(file, never)
        assert (again.cid, again.was_hashed, again.before) == (first.cid, False, "")
        for block in here.disk.stored_sync():  # somebody emptied the store
            here.disk.delete_sync(block.cid)
        anew = await here.add(file)
        assert (anew.cid, anew.was_hashed) == (first.cid, True)
        assert await here.read(first.cid) == file.read_bytes()


def _append(file: Path) -> None:
    with file.open("ab") as opened:
        opened.write(b"more")


def _overwrite(file: Path) -> None:
    with file.open("r+b") as opened:
        opened.seek(MIB + 5)
        opened.write(b"other")


def _overwrite_and_hide(file: Path) -> None:
    before = file.stat()
    _overwrite(file)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def _replace(file: Path) -> None:
    before = file.stat()
    other = file.with_name("other")
    other.write_bytes(file.read_bytes()[:-1] + b"!")
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.rename(file)


@pytest.mark.parametrize("change", [_append, _overwrite, _overwrite_and_hide, _replace])
async def test_a_changed_file_is_never_served_and_hashed_again_when_it_is_added(
    change: Callable[[Path], None], tmp_path: Path
) -> None:
    with lab(tmp_path) as here:
        file = _file(tmp_path / "data.bin", 3 * MIB)
        before = file.read_bytes()
        first = await here.add(file)
        leaves = await here.leaves(first.cid)
        change(file)
        served = []
        for leaf in [*leaves, *reversed(leaves)]:
            try:
                served.append(await here.content.store.get(leaf))
            except BlockMissing:
                continue
        assert all(data in before for data in served)
        assert [root.path for root in here.changed] == [str(file)], "told once"
        assert here.references.unchanged_path(first.cid) is None
        assert here.references.roots() == frozenset()
        assert await here.content.missing(first.cid) != []
        again = await here.add(file)
        assert (again.was_hashed, again.before) == (True, first.cid)
        assert await here.read(again.cid) == file.read_bytes()


async def test_a_touched_file_is_hashed_again_and_is_the_same(tmp_path: Path) -> None:
    with lab(tmp_path) as here:
        file = _file(tmp_path / "data.bin", MIB)
        first = await here.add(file)
        os.utime(file)
        assert here.references.unchanged_path(first.cid) is None
        again = await here.add(file)
        assert (again.cid, again.was_hashed, again.before) == (first.cid, True, "")


async def test_a_disk_that_is_away_for_a_while_is_no_change(tmp_path: Path) -> None:
    with lab(tmp_path) as here:
        (tmp_path / "disk").mkdir()
        file = _file(tmp_path / "disk" / "data.bin", 2 * MIB)
        added = await here.add(file)
        (tmp_path / "disk").rename(tmp_path / "away")
        with pytest.raises(BlockMissing):
            await here.read(added.cid)
        assert here.references.unchanged_path(added.cid) is None
        (tmp_path / "away").rename(tmp_path / "disk")
        assert len(await here.read(added.cid)) == 2 * MIB
        assert here.changed == []


async def test_a_file_that_is_written_to_meanwhile_is_refused(tmp_path: Path) -> None:
    with lab(tmp_path) as here:
        file = _file(tmp_path / "data.bin", 20 * MIB)
        with pytest.raises(UserError, match="changed while it was read"):
            await here.add(file, lambda _: _append(file))
        assert here.references.all() == []
        assert (await here.add(file)).was_hashed


async def test_what_was_being_hashed_when_the_node_ended_is_forgotten(tmp_path: Path) -> None:
    file = _file(tmp_path / "data.bin", 20 * MIB)
    with lab(tmp_path) as here, trio.CancelScope() as scope:
        await here.add(file, lambda _: scope.cancel())
    assert scope.cancelled_caught
    with lab(tmp_path) as here:
        here.references._db.begin("/x", False, 1)  # as a crash leaves it
    with lab(tmp_path) as here:
        assert here.references.all() == []


async def test_links_and_devices(tmp_path: Path) -> None:
    with lab(tmp_path) as here:
        file = _file(tmp_path / "data.bin", 10)
        (tmp_path / "link").symlink_to(file)
        added = await here.add(tmp_path / "link")
        assert [root.path for root in here.references.all()] == [str(file)], "where it leads"
        (tmp_path / "link").unlink()
        (tmp_path / "link").symlink_to("/etc/passwd")
        assert await here.read(added.cid) == file.read_bytes()

        folder = tmp_path / "f"
        folder.mkdir()
        (folder / "link").symlink_to(file)
        os.mkfifo(tmp_path / "pipe")
        for path, said in (
            (folder, "is a symbolic link"),
            (tmp_path / "pipe", "is neither file nor folder"),
            (Path("/dev/null"), "is neither file nor folder"),
            (tmp_path / "nothing", "No such file"),
            (here.home, "own home"),
            (here.home / "blocks", "own home"),
            (tmp_path, "own home"),
        ):
            with pytest.raises(UserError, match=said):
                await here.add(path)
        file.unlink()
        file.symlink_to("/etc/passwd")  # the path leads elsewhere now
        with pytest.raises(BlockMissing):
            await here.read(added.cid)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 3 * MIB), st.binary(min_size=1, max_size=3), st.booleans()),
        max_size=4,
    ),
    st.integers(0, 3 * MIB + 1),
)
def test_after_any_writes_a_block_is_right_or_not_there(
    writes: list[tuple[int, bytes, bool]], length: int
) -> None:
    async def check(path: Path) -> None:
        with lab(path) as here:
            file = _file(path / "data.bin", 2 * MIB + 9)
            added = await here.add(file)
            leaves = {
                cid: await here.content.store.get(cid) for cid in await here.leaves(added.cid)
            }
            was = file.stat()
            with file.open("r+b") as opened:
                for at, data, _ in writes:
                    opened.seek(at)
                    opened.write(data)
                if length % 2:
                    opened.truncate(length)
            if any(hide for _, _, hide in writes):
                os.utime(file, ns=(was.st_atime_ns, was.st_mtime_ns))
            for cid, data in leaves.items():
                try:
                    assert await here.content.store.get(cid) == data
                except BlockMissing:
                    continue
            again = await here.add(file)
            is_hidden = here.references.all()[0].state == GOOD and not again.was_hashed
            if not is_hidden:
                assert await here.read(again.cid) == file.read_bytes()

    with tempfile.TemporaryDirectory() as folder:
        trio.run(check, Path(folder))


# -- with a node ---------------------------------------------------------------------------------


async def _added(node: Any, path: Path) -> dict[str, Any]:
    with trio.fail_after(60):
        answer: dict[str, Any] = await node.referenced.add(str(path), 60)
    assert answer["state"] == "done"
    return answer


async def test_members_get_it_block_by_block_until_it_changes(tmp_path: Path) -> None:
    network = MemoryNetwork()
    async with (
        running(network, tmp_path / "holder", compute=False) as holder,
        running(network, tmp_path / "reader", holder, compute=False) as reader,
    ):
        service = (await holder.services.create("lab"))["serviceId"]
        await holder.admins.grant("lab", reader.peer_id, ["submit"], "reader")
        await until(lambda: reader.services.all(), "the reader is in")
        file = _file(tmp_path / "data.bin", 3 * MIB)
        added = await _added(holder, file)
        with pytest.raises(FetchFailed):
            await reader.exchange.fetch(service, added["cid"], [holder.peer_id])
        assert await holder.contents.share(service, added["cid"])
        await reader.exchange.fetch(service, added["cid"], [holder.peer_id])
        got = b"".join([chunk async for chunk in reader.content.read(added["cid"])])
        assert got == file.read_bytes()

        other = _file(tmp_path / "other.bin", 3 * MIB, seed=5)
        added = await _added(holder, other)
        assert await holder.contents.share(service, added["cid"])
        said: list[str] = []
        holder.say = said.append
        _append(other)
        with pytest.raises(FetchFailed):
            await reader.exchange.fetch(service, added["cid"], [holder.peer_id])
        await until(lambda: said, "the owner is told")
        assert f"{other} is not as it was" in said[0]
        assert f"content {added['cid']} is gone" in said[0]
        assert not await holder.contents.share(service, added["cid"])


async def test_the_cache_keeps_what_a_reference_needs_as_long_as_it_holds(tmp_path: Path) -> None:
    async with running(MemoryNetwork(), tmp_path / "node", compute=False) as node:
        file = _file(tmp_path / "data.bin", 2 * MIB)
        added = await _added(node, file)
        gone = (await node.content.add_bytes(bytes(MIB))).cid
        await until(lambda: not node.blocks.in_use.all(), "nothing is under way")
        done = await node.cache.gc(everything=True, dry=False)
        assert done["freedBytes"] == MIB
        assert not node.blocks.has(gone)
        assert b"".join([c async for c in node.content.read(added["cid"])]) == file.read_bytes()
        _append(file)
        await node.referenced.all()
        await node.cache.gc(everything=True, dry=False)
        assert not node.blocks.has(added["cid"])


async def test_the_owner_sees_adds_and_forgets(tmp_path: Path) -> None:
    async with running(MemoryNetwork(), tmp_path / "node", compute=False) as node:
        file = _file(tmp_path / "data.bin", 40 * MIB)
        answer = await node.referenced.add(str(file), 0)
        assert answer["state"] == "hashing"
        added = await _added(node, file)
        assert (added["size"], added["before"], added["dependents"]) == (40 * MIB, None, [])
        assert [(r["cid"], r["state"]) for r in await node.referenced.all()] == [
            (added["cid"], "good")
        ]
        _append(file)
        assert [r["state"] for r in await node.referenced.all()] == ["changed"]
        again = await _added(node, file)
        assert again["before"] == added["cid"]
        with pytest.raises(UserError, match="no absolute path"):
            await node.referenced.add("data.bin", 0)
        with pytest.raises(UserError, match="No such file"):
            await node.referenced.add(str(tmp_path / "nothing"), 60)
        assert await node.referenced.remove(str(file)) == [again["cid"]]
        assert await node.referenced.all() == []
        with pytest.raises(UserError, match="is not referenced"):
            await node.referenced.remove(str(file))


class BoundRunner(InstantRunner):
    """Notes where the input of a job lies, and changes it while the job runs if told so."""

    def __init__(self) -> None:
        super().__init__()
        self.read: list[Path] = []
        self.changes = 0

    async def run(self, spec: RunSpec, cancel: trio.Event) -> RunOutcome:
        path = spec.inputs[0].path
        self.read.append(path)
        if self.changes:
            self.changes -= 1
            before = path.read_bytes()
            path.write_bytes(b"changed")
            path.write_bytes(before)  # the bytes are the same again: its time is not
        return await super().run(spec, cancel)


async def _submitted(node: LabNode, name: str, cid: str) -> dict[str, Any]:
    definition = {
        "appName": "greeter",
        "processorName": "greet",
        "inputFiles": [{"name": "data", "url": f"ipfs://{cid}"}],
        "outputFiles": [{"name": "output"}],
        "parameters": [{"name": "name", "value": name}],
    }
    with trio.fail_after(60):
        return await node.jobs.submit({"jobDefinition": definition})


async def test_a_job_reads_the_file_itself_and_a_change_meanwhile_is_no_result(
    tmp_path: Path,
) -> None:
    async with running(MemoryNetwork(), tmp_path / "node", allow_process=("greeter",)) as node:
        runner = BoundRunner()
        node.runners = Runners([runner], allow_process=("greeter",))
        app = app_directory(tmp_path / "app")
        spec = json.loads((app / "spec.json").read_text())
        spec["processors"][0]["inputs"] = [{"name": "data"}]
        (app / "spec.json").write_text(json.dumps(spec))
        await node.services.create("lab")
        await node.services.install_app("lab", str(app), None)
        file = _file(tmp_path / "data.bin", 2 * MIB)
        added = await _added(node, file)
        job = await _submitted(node, "Ada", added["cid"])
        job = await node.jobs.wait(job["requestId"], None, 60)
        assert (job["status"], runner.read) == ("completed", [file])

        runner.changes = 1
        job = await _submitted(node, "Bob", added["cid"])

        def first() -> dict[str, Any]:
            attempts: list[dict[str, Any]] = node.jobs.one(job["requestId"], None)["attempts"]
            return attempts[0] if attempts else {"ended": None}

        await until(lambda: first()["ended"], "the attempt is over")
        assert first()["ended"] == "infra"
        assert "changed meanwhile" in first()["reason"]
        await _added(node, file)  # it is as it was, says its hash
        job = await node.jobs.wait(job["requestId"], None, 60)
        assert job["status"] == "completed"

        runner.isolation = "none"
        job = await _submitted(node, "Cyd", added["cid"])
        assert (await node.jobs.wait(job["requestId"], None, 60))["status"] == "completed"
        assert runner.read[-1].is_relative_to(tmp_path / "node" / "jobs"), "no sandbox: a copy"
