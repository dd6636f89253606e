"""The database: what was committed is there, what was not is not, and old files are read."""

import sqlite3
import stat
import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing

from pairio_node.blocks.block_db import BlockDb
from pairio_node.blocks.changes import Carried
from pairio_node.errors import StorageFullError, UserError
from pairio_node.store import CommitRows, Store, StoreError, Writer
from pairio_protocol.cid import RAW, cid_of

SEGMENT = (b"h" * 32, "svc", "author", b"b" * 16, 0, b"data", 1)


def _segment(
    number: int, boot: bytes = b"b" * 16, size: int = 4
) -> tuple[bytes, str, str, bytes, int, bytes, int]:
    data = number.to_bytes(4, "big") + bytes(size - 4)
    return (boot[:1] + number.to_bytes(31, "big"), "svc", "author", boot, number, data, 1)


def _version(path: Path) -> int:
    db = sqlite3.connect(path)
    try:
        version = db.execute("pragma user_version").fetchone()[0]
        assert isinstance(version, int)
        return version
    finally:
        db.close()


def test_what_was_committed_is_there_after_a_restart(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "node.db")
    rows = CommitRows(
        services=(("svc", "lab", 1, 3),),
        changes=(("svc", "bafy1", 1, b"change"),),
        segments=(SEGMENT,),
        answers=(("svc", "request", "result"),),
        peers=(("12D3", "/ip4/1.2.3.4/tcp/1 /ip4/5.6.7.8/tcp/2", 9),),
    )
    store.commit(rows)
    store.close()
    again = Store.open(tmp_path / "node.db")
    found = again.load()
    again.close()
    assert found.services == (("svc", "lab", True),)
    assert found.changes == (("svc", b"change"),)
    assert found.segments == (b"data",)
    assert found.answers == (("svc", "request", "result"),)
    assert found.peers == (("12D3", ("/ip4/1.2.3.4/tcp/1", "/ip4/5.6.7.8/tcp/2")),)


def test_it_is_loaded_in_the_order_in_which_it_is_to_be_taken(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "node.db")
    store.commit(
        CommitRows(
            changes=(("svc", "c3", 3, b"3"), ("svc", "c1", 1, b"1"), ("svc", "c2", 2, b"2")),
            segments=tuple(
                _segment(n, boot) for n in (7, 2, 300) for boot in (b"z" * 16, b"a" * 16)
            ),
            peers=(("old", "/a", 1), ("new", "/b", 3), ("middle", "/c", 2)),
        )
    )
    found = store.load()
    store.close()
    assert [data for _, data in found.changes] == [b"1", b"2", b"3"]
    by_seq = [n.to_bytes(4, "big") for n in (2, 7, 300)]
    assert list(found.segments) == by_seq + by_seq, "log by log"
    assert [peer for peer, _ in found.peers] == ["new", "middle", "old"]


def test_a_service_is_replaced_and_a_segment_never(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "node.db")
    store.commit(CommitRows(services=(("svc", "lab", 0, 1),), segments=(SEGMENT,)))
    other = (*SEGMENT[:5], b"other", 2)
    store.commit(CommitRows(services=(("svc", "lab", 1, 2),), segments=(other,)))
    found = store.load()
    store.close()
    assert found.services == (("svc", "lab", True),)
    assert found.segments == (b"data",)


@pytest.mark.parametrize(
    "bad",
    [
        (b"h" * 32, "svc", "author", b"b" * 16, "no number", b"data", 1),
        (b"h" * 32, "svc", "author", b"b" * 16, 2**70, b"data", 1),
        (b"h" * 32, "svc", "lone surrogate \ud800", b"b" * 16, 0, b"data", 1),
    ],
    ids=["type", "range", "text"],
)
def test_a_commit_that_fails_keeps_nothing(
    bad: tuple[bytes, str, str, bytes, int, bytes, int], tmp_path: Path
) -> None:
    store = Store.open(tmp_path / "node.db")
    with pytest.raises(StoreError):
        store.commit(CommitRows(changes=(("svc", "c", 1, b"c"),), segments=(_segment(1), bad)))
    assert (store.load().changes, store.load().segments) == ((), ())
    store.commit(CommitRows(segments=(_segment(1),)))  # and the next one works
    assert len(store.load().segments) == 1
    store.close()


def test_a_full_disk_is_an_error_and_what_was_there_stays(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "node.db")
    store.commit(CommitRows(segments=(_segment(1),)))
    pages = store._db.execute("pragma page_count").fetchone()[0]
    store._db.execute(f"pragma max_page_count = {pages + 2}")
    with pytest.raises(StoreError, match="database or disk is full"):
        store.commit(CommitRows(segments=(_segment(2), _segment(3, size=100_000))))
    store.close()
    again = Store.open(tmp_path / "node.db")
    assert again.load().segments == (_segment(1)[5],)
    again.close()


# -- files of other versions, and broken ones -------------------------------------------------

_VERSION_1 = """
    create table services (
        service text primary key, petname text not null, taken_up integer not null,
        epoch integer not null) strict;
    create table changes (
        service text not null, cid text not null, seq integer not null, data blob not null,
        primary key (service, cid)) strict;
    create table segments (
        hash blob primary key, service text not null, author text not null, boot blob not null,
        first_seq integer not null, data blob not null, arrived_unix_ms integer not null) strict;
    create index segments_by_log on segments (service, author, boot, first_seq);
    create table known_peers (
        peer text primary key, addresses text not null, heard_unix_ms integer not null) strict;
    pragma user_version = 1;
"""


def test_a_database_of_version_1_is_brought_up_to_date_with_all_it_holds(tmp_path: Path) -> None:
    path = tmp_path / "node.db"
    db = sqlite3.connect(path)
    db.executescript(_VERSION_1)
    db.execute("insert into services values ('svc', 'lab', 1, 4)")
    db.execute("insert into segments values (?, ?, ?, ?, ?, ?, ?)", SEGMENT)
    db.commit()
    db.close()
    store = Store.open(path)
    store.commit(CommitRows(answers=(("svc", "request", "result"),)))
    found = store.load()
    store.close()
    assert found.services == (("svc", "lab", True),)
    assert found.segments == (b"data",)
    assert found.answers == (("svc", "request", "result"),)
    assert _version(path) > 1
    Store.open(path).close()  # and once more: nothing is left to do


def test_a_database_of_a_newer_version_is_refused_in_words_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "node.db"
    Store.open(path).close()
    db = sqlite3.connect(path)
    db.execute("pragma user_version = 99")
    db.close()
    with pytest.raises(UserError, match="made by a newer pairio") as caught:
        Store.open(path)
    assert "schema 99" in caught.value.message
    assert caught.value.hint == "update pairio"
    assert _version(path) == 99


def test_a_migration_that_fails_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "node.db"
    db = sqlite3.connect(path)
    db.executescript(_VERSION_1)
    db.execute("create table answers (other text)")  # in the way of the next migration
    db.close()
    with pytest.raises(UserError, match="cannot be used: table answers already exists"):
        Store.open(path)
    assert _version(path) == 1


def test_a_corrupt_database_is_named_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "node.db"
    path.write_bytes(b"garbage" * 1000)
    with pytest.raises(UserError, match="cannot be used: file is not a database") as caught:
        Store.open(path)
    assert str(path) in caught.value.message
    assert caught.value.code == "corrupt_home"
    assert path.read_bytes() == b"garbage" * 1000


def test_damage_inside_of_a_database_is_found_at_once(tmp_path: Path) -> None:
    path = tmp_path / "node.db"
    store = Store.open(path)
    store.commit(CommitRows(segments=tuple(_segment(n, size=2000) for n in range(100))))
    store.close()
    data = bytearray(path.read_bytes())
    data[8192 : len(data) - 4096] = bytes(len(data) - 4096 - 8192)
    path.write_bytes(data)
    with pytest.raises(UserError, match="cannot be used"):
        Store.open(path)


def test_a_place_that_holds_no_file_is_an_error_in_words(tmp_path: Path) -> None:
    (tmp_path / "node.db").mkdir()
    with pytest.raises(UserError, match="cannot be used: Is a directory"):
        Store.open(tmp_path / "node.db")


def test_only_the_owner_may_read_it(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "node.db")
    store.commit(CommitRows(segments=(SEGMENT,)))
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in tmp_path.iterdir()}
    store.close()
    assert modes == {"node.db": 0o600, "node.db-wal": 0o600, "node.db-shm": 0o600}


# -- group commit -----------------------------------------------------------------------------


class _SlowStore(Store):
    """Counts its transactions; the first one waits."""

    def __init__(self, store: Store) -> None:
        super().__init__(store._db)
        self.go_on = threading.Event()
        self.begun = threading.Event()
        self.groups: list[int] = []

    def commit(self, rows: CommitRows, carried: Sequence[Carried] = ()) -> None:
        self.begun.set()
        self.go_on.wait(10)
        self.groups.append(len(rows.segments))
        super().commit(rows, carried)


async def test_what_comes_during_a_commit_is_the_next_group(tmp_path: Path) -> None:
    store = _SlowStore(Store.open(tmp_path / "node.db"))
    writer = Writer(store)
    done: list[int] = []
    all_done = trio.Event()

    def on_done(number: int, error: Exception | None) -> None:
        assert error is None
        done.append(number)
        if len(done) == 51:
            all_done.set()

    writer.submit(CommitRows(segments=(_segment(0),)), partial(on_done, 0))
    await trio.to_thread.run_sync(store.begun.wait, 10)
    for n in range(1, 51):
        writer.submit(CommitRows(segments=(_segment(n),)), partial(on_done, n))
    assert done == [], "nobody is told before it is on disk"
    store.go_on.set()
    with trio.fail_after(10):
        await all_done.wait()
    writer.stop()
    assert store.groups == [1, 50]
    assert done == list(range(51)), "in order"
    assert len(store.load().segments) == 51
    store.close()


class _Failing(_SlowStore):
    """Fails with what `errors` names, transaction by transaction."""

    def __init__(self, store: Store, *errors: Exception | None) -> None:
        super().__init__(store)
        self.errors = list(errors)

    def commit(self, rows: CommitRows, carried: Sequence[Carried] = ()) -> None:
        self.begun.set()
        self.go_on.wait(10)
        error = self.errors.pop(0) if self.errors else None
        if error is not None:
            raise error
        Store.commit(self, rows, carried)


async def test_what_was_queued_before_a_failure_was_heard_of_fails_as_well(tmp_path: Path) -> None:
    """Else a small commit gets on a disk that is nearly full without the large one before it."""
    full = StoreError("database or disk is full")
    store = _Failing(Store.open(tmp_path / "node.db"), full, None, full)
    writer = Writer(store)
    told: list[tuple[int, str]] = []
    heard = trio.Event()

    def on_done(number: int, error: Exception | None) -> None:
        told.append((number, str(error or "")))
        if number == 0:  # the loop has heard: from now on it counts anew
            for later in (3, 4):
                writer.submit(CommitRows(segments=(_segment(later),)), partial(on_done, later))
        if number == 4:
            heard.set()

    writer.submit(CommitRows(segments=(_segment(0),)), partial(on_done, 0))
    await trio.to_thread.run_sync(store.begun.wait, 10)
    for number in (1, 2):
        writer.submit(CommitRows(segments=(_segment(number),)), partial(on_done, number))
    store.go_on.set()
    with trio.fail_after(10):
        await heard.wait()
    assert [number for number, _ in told] == [0, 1, 2, 3, 4], "in order"
    assert [number for number, error in told if error] == [0, 1, 2]
    assert await _committed(writer, 5) == str(full), "one that fails by itself"
    assert await _committed(writer, 6) == "", "and what is asked after that goes through"
    writer.stop()
    assert store.load().segments == tuple(_segment(number)[5] for number in (3, 4, 6))
    store.close()


async def test_whatever_ends_a_transaction_is_told_and_the_next_one_is_tried(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = _Failing(Store.open(tmp_path / "node.db"), OSError(5, "Input/output error"))
    store.go_on.set()
    writer = Writer(store)
    assert "Input/output error" in await _committed(writer, 0)
    assert "failed as none should" in caplog.text
    assert await _committed(writer, 1) == ""
    writer.stop()
    store.close()


class _FullDisk(BlockDb):
    """Small blocks that cannot be settled while the disk is full."""

    is_full = True

    def settle_sync(self) -> None:
        if self.is_full:
            raise StorageFullError("no room for small blocks")
        super().settle_sync()


async def _committed(writer: Writer, number: int) -> str:
    """Have a segment committed; return what its caller is told."""
    said: list[str] = []
    told = trio.Event()

    def on_done(error: Exception | None) -> None:
        said.append(str(error or ""))
        told.set()

    writer.submit(CommitRows(segments=(_segment(number),)), on_done)
    with trio.fail_after(10):
        await told.wait()
    return said[0]


async def _settled(store: Store, blocks: BlockDb) -> None:
    """Return when nothing is left of what was carried."""
    with trio.fail_after(10):
        while blocks.waits or store.carried():
            await trio.lowlevel.checkpoint()


BLOCK = b"what a result speaks of"
CID = cid_of(RAW, BLOCK)


async def test_a_few_small_blocks_are_kept_with_the_transaction_that_speaks_of_them(
    tmp_path: Path,
) -> None:
    store, blocks = Store.open(tmp_path / "node.db"), _FullDisk(tmp_path / "small.db")
    writer = Writer(store, blocks)
    blocks.put(CID, BLOCK)
    blocks.mark("svc", CID)
    assert await _committed(writer, 0) == "" and blocks.waits
    assert store.carried() == [(CID, "", BLOCK), (CID, "svc", b"")]
    assert await _committed(writer, 1) == "" and blocks.to_carry() == [], "once is enough"
    after = BlockDb(tmp_path / "small.db")  # as after a crash
    assert not after.has(CID)
    after.take_back(store.carried())
    assert after.read(CID) == BLOCK and after.is_marked("svc", CID)
    blocks.is_full = False
    writer.stop()
    assert store.carried() == [] and not blocks.waits
    assert BlockDb(tmp_path / "small.db").read(CID) == BLOCK
    store.close()


async def test_what_was_carried_settles_soon_also_while_more_comes(tmp_path: Path) -> None:
    store, blocks = Store.open(tmp_path / "node.db"), BlockDb(tmp_path / "small.db")
    writer = Writer(store, blocks)
    blocks.put(CID, BLOCK)
    assert await _committed(writer, 0) == ""
    await _settled(store, blocks)  # nothing else comes
    blocks.put(cid_of(RAW, b"0"), b"0")
    number = 1
    with trio.fail_after(10):
        while blocks.waits or store.carried():
            assert await _committed(writer, number) == ""
            number += 1
    assert number > 1
    writer.stop()
    store.close()


async def test_what_was_carried_goes_also_when_others_have_settled_it(tmp_path: Path) -> None:
    store, blocks = Store.open(tmp_path / "node.db"), BlockDb(tmp_path / "small.db")
    writer = Writer(store, blocks)
    most = 0
    for number in range(100):
        data = b"%d" % number
        blocks.put(cid_of(RAW, data), data)
        assert await _committed(writer, number) == ""
        await trio.to_thread.run_sync(blocks.settle_sync)
        most = max(most, len(store.carried()))
        await trio.testing.wait_all_tasks_blocked(0.002)
    assert most < 60, "those of a moment, though there never was a pause"
    writer.stop()
    assert store.carried() == []
    store.close()


async def test_a_stop_settles_though_the_disk_has_just_failed(tmp_path: Path) -> None:
    store, blocks = Store.open(tmp_path / "node.db"), _FullDisk(tmp_path / "small.db")
    store.commit(CommitRows(), [(CID, "", BLOCK)])
    tried = threading.Event()

    def fails() -> None:
        tried.set()
        raise StorageFullError("no room")

    blocks.take_back(store.carried())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "settle_sync", fails)
        writer = Writer(store, blocks, has_carried=True)
        await trio.to_thread.run_sync(tried.wait, 10)
    blocks.is_full = False
    writer.stop()
    assert store.carried() == [] and BlockDb(tmp_path / "small.db").has(CID)
    store.close()


async def test_what_a_crash_left_settles_at_the_next_start(tmp_path: Path) -> None:
    store, blocks = Store.open(tmp_path / "node.db"), BlockDb(tmp_path / "small.db")
    store.commit(CommitRows(), [(CID, "", BLOCK), (CID, "svc", b"")])
    blocks.take_back(store.carried())
    writer = Writer(store, blocks, has_carried=True)
    await _settled(store, blocks)
    assert BlockDb(tmp_path / "small.db").is_marked("svc", CID)
    writer.stop()
    store.close()


@pytest.mark.parametrize("what", ["many blocks", "many bytes", "a mark on a block elsewhere"])
async def test_all_else_that_a_transaction_speaks_of_comes_first_or_it_does_not_come(
    tmp_path: Path, what: str
) -> None:
    store, blocks = Store.open(tmp_path / "node.db"), _FullDisk(tmp_path / "small.db")
    writer = Writer(store, blocks)
    if what == "a mark on a block elsewhere":
        blocks.mark("svc", CID)
    for number in range(300 if what == "many blocks" else 0):
        blocks.put(cid_of(RAW, b"%d" % number), b"%d" % number)
    for number in range(10 if what == "many bytes" else 0):
        data = bytes([number]) * 30_000
        blocks.put(cid_of(RAW, data), data)
    assert await _committed(writer, 0) == "no room for small blocks"
    assert store.load().segments == () and store.carried() == []
    blocks.is_full = False
    assert await _committed(writer, 1) == ""
    assert len(store.load().segments) == 1 and store.carried() == [] and not blocks.waits
    writer.stop()
    store.close()


async def test_a_transaction_that_failed_takes_what_it_carried_the_next_time(
    tmp_path: Path,
) -> None:
    store, blocks = Store.open(tmp_path / "node.db"), BlockDb(tmp_path / "small.db")
    writer = Writer(store, blocks)
    blocks.put(CID, BLOCK)
    store._db.execute("pragma query_only = on")
    assert "attempt to write" in await _committed(writer, 0)
    store._db.execute("pragma query_only = off")
    assert blocks.to_carry() == [(CID, "", BLOCK)]
    assert await _committed(writer, 1) == ""
    assert blocks.to_carry() == [] and blocks.has(CID)
    writer.stop()
    store.close()


async def test_everybody_in_a_group_that_failed_is_told_so(tmp_path: Path) -> None:
    store = _SlowStore(Store.open(tmp_path / "node.db"))
    writer = Writer(store)
    errors: list[Exception | None] = []
    told = trio.Event()

    def on_done(error: Exception | None) -> None:
        errors.append(error)
        if len(errors) == 4:
            told.set()

    writer.submit(CommitRows(segments=(_segment(0),)), on_done)
    await trio.to_thread.run_sync(store.begun.wait, 10)
    bad = (*_segment(2)[:4], 2**70, b"data", 1)
    for segment in (_segment(1), bad, _segment(3)):
        writer.submit(CommitRows(segments=(segment,)), on_done)
    store.go_on.set()
    with trio.fail_after(10):
        await told.wait()
    assert [type(error) for error in errors] == [type(None), *[StoreError] * 3]
    assert len(store.load().segments) == 1
    writer.submit(CommitRows(segments=(_segment(4),)), on_done)
    writer.stop()  # writes what waits
    assert len(store.load().segments) == 2
    store.close()


def test_notes_are_kept_changed_and_removed_and_forgotten_services_go(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "node.db")
    store.commit(
        CommitRows(
            services=(("svc", "lab", 0, 0), ("other", "x", 1, 0)),
            changes=(("svc", "c0", 0, b"0"), ("other", "d0", 0, b"d")),
            notes=(("own wish", "svc join", b"1"), ("choice", "svc", b"declined")),
        )
    )
    store.commit(CommitRows(notes=(("own wish", "svc join", b"2"),)))
    assert set(store.load().notes) == {
        ("own wish", "svc join", b"2"),
        ("choice", "svc", b"declined"),
    }
    store.commit(CommitRows(notes=(("own wish", "svc join", b""),), forgotten=("svc",)))
    found = store.load()
    store.close()
    assert found.notes == (("choice", "svc", b"declined"),)
    assert found.services == (("other", "x", True),)
    assert found.changes == (("other", b"d"),)
