"""Small blocks and marks in their database, against a model; homes of earlier versions."""

import sqlite3
import stat
import threading
from contextlib import suppress
from pathlib import Path

import pytest
import trio
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from pairio_node.blocks import BlockCorrupt, DiskBlockStore, ScopedContent, changes
from pairio_node.blocks.block_db import BlockDb
from pairio_node.blocks.changes import Carried, Changes
from pairio_node.errors import StorageFullError, UserError
from pairio_protocol.cid import RAW, cid_of
from tests.block_files import block_data, services_with_marks

DATA = [bytes([n]) * (n + 1) for n in range(4)]
CIDS = [cid_of(RAW, data) for data in DATA]
SERVICES = ["a", "b"]
which = st.sampled_from(range(4))


class Machine(RuleBasedStateMachine):
    """What is asked of a database in any order; a crash keeps what was settled, or is in the other
    database, and may bring back what has gone since."""

    path: Path

    def __init__(self) -> None:
        super().__init__()
        for file in self.path.parent.glob("small.db*"):
            file.unlink()
        self.db = BlockDb(self.path)
        self.blocks: dict[str, tuple[bytes, float]] = {}
        self.marks: set[tuple[str, str]] = set()
        self.other: dict[tuple[str, str], Carried] = {}
        self.keep()

    def keep(self) -> None:
        """All that is here is kept from now on."""
        self.kept = set(self.blocks), set(self.marks)

    @rule(n=which)
    def put(self, n: int) -> None:
        assert self.db.put(CIDS[n], DATA[n]) == (CIDS[n] not in self.blocks)
        self.blocks[CIDS[n]] = DATA[n], 0.0

    @rule(n=which, when=st.integers(1, 1000))
    def touch(self, n: int, when: int) -> None:
        assert self.db.touch(CIDS[n], when) == (CIDS[n] in self.blocks)
        if CIDS[n] in self.blocks:
            self.blocks[CIDS[n]] = DATA[n], when

    @rule(n=which)
    def delete(self, n: int) -> None:
        assert self.db.delete(CIDS[n]) == (self.blocks.pop(CIDS[n], None) is not None)

    @rule(n=which, service=st.sampled_from(SERVICES))
    def mark(self, n: int, service: str) -> None:
        self.db.mark(service, CIDS[n])
        self.marks.add((CIDS[n], service))

    @rule(n=which)
    def unmark(self, n: int) -> None:
        self.db.unmark(CIDS[n])
        self.marks = {mark for mark in self.marks if mark[0] != CIDS[n]}

    @rule()
    def settle(self) -> None:
        self.db.settle_sync()
        self.keep()

    @rule(commits=st.booleans(), settles=st.booleans())
    def commit(self, commits: bool, settles: bool) -> None:
        """The other database has a transaction, or fails; somebody may settle meanwhile."""
        carried = self.db.to_carry()
        if carried is None:
            self.db.settle_sync()
            self.keep()
        elif commits:
            self.other |= {row[:2]: row for row in carried}
            if settles:
                self.db.settle_sync()
            self.db.note_carried(carried)
            self.keep()

    @rule()
    def settle_what_was_carried(self) -> None:
        self.settle()
        self.other.clear()

    @rule()
    def fail(self) -> None:
        """The disk is full for a moment."""
        self.db._writer.execute("pragma query_only = on")
        with suppress(StorageFullError):
            self.db.settle_sync()
        self.db._writer.execute("pragma query_only = off")

    @rule()
    def restart(self) -> None:
        self.settle_what_was_carried()
        self.db.close()
        self.db = BlockDb(self.path)

    @rule()
    def crash(self) -> None:
        """What was not kept is gone; what has gone since may be back, a mark not without its
        block."""
        carried = sorted(self.other.values(), key=lambda row: row[1])
        self.db.__del__()
        self.db = BlockDb(self.path)
        was_here = {cid for cid in CIDS if self.db.has(cid)}
        had_marks = {(c, s) for c in CIDS for s in SERVICES if self.db.is_marked(s, c)}
        self.db.take_back(carried)
        blocks = {cid for cid in CIDS if self.db.has(cid)}
        marks = {(c, s) for c in CIDS for s in SERVICES if self.db.is_marked(s, c)}
        assert self.kept[0] & set(self.blocks) <= blocks <= was_here | {c for c, _, _ in carried}
        assert self.kept[1] & self.marks <= marks
        assert {cid for cid, _ in marks - had_marks} <= blocks
        self.blocks = {cid: (DATA[CIDS.index(cid)], 0.0) for cid in blocks}  # times may be older
        self.marks = marks

    @invariant()
    def all_is_as_it_was_told(self) -> None:
        for cid, data in zip(CIDS, DATA, strict=True):
            here = cid in self.blocks
            assert (self.db.has(cid), self.db.read(cid)) == (here, data if here else None)
            for service in SERVICES:
                assert self.db.is_marked(service, cid) == ((cid, service) in self.marks)
        assert self.db.used_bytes == sum(len(data) for data, _ in self.blocks.values())

    @rule()
    def lists(self) -> None:
        listed = {cid: (size, used) for cid, size, used in self.db.listed()}
        assert set(listed) == set(self.blocks)
        for cid, (data, used) in self.blocks.items():
            assert listed[cid][0] == len(data)
            assert not used or listed[cid][1] == used
        assert sorted(self.db.marked()) == sorted({cid for cid, _ in self.marks})

    def teardown(self) -> None:
        self.db.close()


def test_all_is_here_that_came_and_did_not_go_and_a_crash_keeps_what_was_settled(
    tmp_path: Path,
) -> None:
    machine = type("OfThisTest", (Machine,), {"path": tmp_path / "small.db"})
    run_state_machine_as_test(machine, settings=settings(max_examples=40))


def test_what_waits_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes, "_WAITING_ROWS_MAX", 10)
    monkeypatch.setattr(changes, "WAITING_BYTES_MAX", 1000)
    store = DiskBlockStore(tmp_path / "blocks", 2**20)
    for number in range(30):
        store.put_sync(cid_of(RAW, b"%d" % number), b"%d" % number)
        assert len(store.db._waiting.blocks) <= 10 + 1
    assert len(block_data(tmp_path)) >= 19
    for number in range(10):
        store.put_sync(cid_of(RAW, bytes([number]) * 400), bytes([number]) * 400)
        assert store.db._waiting.size_bytes <= 1000 + 400
    store.settle_sync()
    store.db._writer.execute("pragma query_only = on")  # the disk fails
    for number in range(10, 20):
        with suppress(StorageFullError):
            store.put_sync(cid_of(RAW, bytes([number]) * 400), bytes([number]) * 400)
    assert store.db._waiting.size_bytes <= 1000 + 400
    store.db._writer.execute("pragma query_only = off")
    monkeypatch.setattr(changes, "_WAITING_S_MAX", 0.0)
    store.put_sync(cid_of(RAW, b"late"), b"late")
    store.put_sync(cid_of(RAW, b"later"), b"later")
    assert len(store.db._waiting.blocks) == 1, "while more comes, nothing waits for long"


def test_on_a_disk_that_is_full_all_can_be_listed_and_deleted(tmp_path: Path) -> None:
    store = DiskBlockStore(tmp_path / "blocks", 2**20)
    contents = ScopedContent(store, tmp_path / "held")
    view, large = contents.of(cid_of(RAW, b"a service")).store, bytes(100_000)
    cid = cid_of(RAW, large)
    view.put_sync(cid, large)
    for number in range(3):
        view.put_sync(CIDS[number], DATA[number])
    store.settle_sync()
    store.db._writer.execute("pragma query_only = on")
    view.put_sync(CIDS[3], DATA[3])
    with pytest.raises(StorageFullError, match=r"small\.db: attempt to write") as caught:
        store.settle_sync()
    assert caught.value.hint
    assert {block.cid for block in store.stored_sync()} == {cid, *CIDS} == set(store.db.marked())
    contents.unmark_sync([cid, CIDS[0]])
    assert contents.delete_sync(cid) and contents.delete_sync(CIDS[0])
    assert not (tmp_path / "blocks" / cid[-2:] / cid).exists()
    assert {block.cid for block in store.stored_sync()} == set(CIDS[1:]) == set(store.db.marked())
    store.db.give_back_sync()
    store.db._writer.execute("pragma query_only = off")
    store.settle_sync()
    assert sorted(block_data(tmp_path)) == DATA[1:]


def test_whatever_ends_a_transaction_what_was_to_be_written_is_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    db = BlockDb(tmp_path / "small.db")
    db.put(CIDS[0], DATA[0])

    def ends(_: Changes) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(db, "_write", ends)
        with pytest.raises(MemoryError):
            db.settle_sync()
    db.settle_sync()
    assert [block.cid for block in db.listed()] == [CIDS[0]] and not db.waits


def test_readers_do_not_wait_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    db = BlockDb(tmp_path / "small.db")
    db.put(CIDS[0], DATA[0])
    writing, go_on = threading.Event(), threading.Event()
    write = db._write

    def slow(what: Changes) -> None:
        writing.set()
        assert go_on.wait(60)
        write(what)

    monkeypatch.setattr(db, "_write", slow)
    thread = threading.Thread(target=db.settle_sync)
    thread.start()
    assert writing.wait(60)
    assert db.has(CIDS[0]) and db.read(CIDS[0]) == DATA[0] and db.read(CIDS[1]) is None
    db.put(CIDS[1], DATA[1])
    assert db.delete(CIDS[0]) and not db.has(CIDS[0])
    go_on.set()
    thread.join()
    assert not db.has(CIDS[0]) and db.has(CIDS[1])
    db.settle_sync()
    assert [block.cid for block in db.listed()] == [CIDS[1]]


async def test_a_few_bytes_are_added_at_once_and_wait_for_who_settles_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = DiskBlockStore(tmp_path / "blocks", 1000)
    contents = ScopedContent(store, tmp_path / "held")
    content = contents.of(CIDS[0])
    texts = {"console": b"Hello", "empty": b""}
    monkeypatch.setattr(changes, "_WAITING_S_MAX", 3600.0)
    with monkeypatch.context() as patch:
        patch.setattr(trio.to_thread, "run_sync", None)
        added = await content.add_all({}, texts, settle=False)
    assert store.db.waits and block_data(tmp_path) == []
    assert {name: one.size_bytes for name, one in added.items()} == {"console": 5, "empty": 0}
    assert added == await content.add_all({}, texts) and not store.db.waits
    assert sorted(block_data(tmp_path)) == [b"", b"Hello"]
    with pytest.raises(StorageFullError, match="2000 more do not fit"):
        await content.add_all({}, {"console": bytes(2000)}, settle=False)
    store.quota_bytes = 2**20
    for data in (bytes(20_000), bytes(200_000)):  # a thread hashes them
        await content.add_all({}, {"console": data}, settle=False)
        assert not store.db.waits
    monkeypatch.setattr(changes, "_WAITING_ROWS_MAX", 0)
    assert content.store.put_at_once(CIDS[1], DATA[1])
    assert not content.store.put_at_once(CIDS[2], DATA[2]), "much waits already"
    assert not content.store.has(CIDS[2])
    with pytest.raises(BlockCorrupt):
        content.store.put_at_once(CIDS[3], DATA[2])


def test_what_goes_gives_its_room_back(tmp_path: Path) -> None:
    store = DiskBlockStore(tmp_path / "blocks", 2**30)
    blocks = {cid_of(RAW, d): d for d in (n.to_bytes(2, "big") * 30_000 for n in range(300))}
    for cid, data in blocks.items():
        store.put_sync(cid, data)
    store.settle_sync()
    for cid in blocks:
        assert store.delete_sync(cid)
    store.settle_sync()
    for _ in range(100):
        store.db.give_back_sync()
    assert not store.db.has_free_pages
    store.db.close()
    assert sum(file.stat().st_size for file in (tmp_path / "blocks").iterdir()) < 1_000_000


def test_it_is_the_owners_alone_and_a_broken_one_is_told(tmp_path: Path) -> None:
    db = BlockDb(tmp_path / "small.db")
    db.put(CIDS[0], DATA[0])
    db.settle_sync()
    files = list(tmp_path.iterdir())
    assert len(files) > 1 and {stat.S_IMODE(f.stat().st_mode) for f in files} == {0o600}
    db.close()
    (tmp_path / "small.db").write_bytes(b"no database" * 1000)
    with pytest.raises(UserError, match="cannot be used: file is not a database") as caught:
        BlockDb(tmp_path / "small.db")
    assert caught.value.code == "corrupt_home" and "start again" in str(caught.value.hint)


def test_a_home_of_an_earlier_version_keeps_its_blocks_and_marks(tmp_path: Path) -> None:
    service, other = cid_of(RAW, b"a service"), cid_of(RAW, b"another")
    for cid, data in zip(CIDS, DATA, strict=True):
        for file, content in (
            (tmp_path / "blocks" / cid[-2:] / cid, data),
            (tmp_path / "held" / service / cid[-2:] / cid, b""),
        ):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
    for stray in ((service, "xx", ".DS_Store"), ("none", "xx", CIDS[0]), (service, "xx", "\udcff")):
        (tmp_path / "held").joinpath(*stray).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "held").joinpath(*stray).touch()
    contents = ScopedContent(DiskBlockStore(tmp_path / "blocks", 2**20), tmp_path / "held")
    assert set(contents.store.db.marked()) == set(CIDS)
    view, others = contents.of(service).store, contents.of(other).store
    assert not (tmp_path / "held").exists() and services_with_marks(tmp_path) == {service}
    assert [view.read_sync(cid) for cid in CIDS] == DATA and not any(map(others.has, CIDS))
    assert {block.cid for block in contents.store.stored_sync()} == set(CIDS)
    used_bytes = contents.store.used_bytes
    view.put_sync(CIDS[0], DATA[0])
    assert contents.store.used_bytes == used_bytes == sum(map(len, DATA))
    for cid in CIDS:
        assert contents.delete_sync(cid)
    assert contents.store.used_bytes == 0 and not any(map(view.has, CIDS))
    contents.store.settle_sync()
    with sqlite3.connect(tmp_path / "blocks" / "small.db") as db:
        assert db.execute("select count(*) from marks").fetchone() == (0,)
