"""The database forgets a dropped log but for what is kept, and remembers that it was here."""

from pathlib import Path

from pairio_node.store import CommitRows, Store


def _segment(boot: bytes, number: int) -> tuple[bytes, str, str, bytes, int, bytes, int]:
    data = boot[:1] + b"%d" % number
    return (data.rjust(32, b"."), "svc", "author", boot, number, data, 0)


OLD, NEW, ELSE = (bytes([n]) * 16 for n in (65, 66, 67))


def test_a_dropped_log_leaves_what_is_kept_and_its_name(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "node.db")
    mine = [_segment(OLD, n) for n in range(3)]
    store.commit(CommitRows(segments=(*mine, _segment(NEW, 0))))
    row = ("svc", "author", OLD, 3, 0, 1_000)
    store.commit(CommitRows(dropped=((row, (mine[1][0],)),)))
    snapshot = store.load()
    store.close()
    assert snapshot.segments == (b"B0",)
    assert snapshot.kept == (b"A1",)
    assert snapshot.dropped == (row,)


def test_a_kept_segment_stands_alone(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "node.db")
    store.commit(CommitRows(kept=(_segment(ELSE, 7),)))
    store.commit(CommitRows(kept=(_segment(ELSE, 7),)))  # again: once
    snapshot = store.load()
    store.close()
    assert (snapshot.segments, snapshot.kept) == ((), (b"C7",))


def test_a_drop_that_had_to_wait_takes_nothing_back(tmp_path: Path) -> None:
    """The commit of the drop failed (a full disk); what came later of that log is written first."""
    store = Store.open(tmp_path / "node.db")
    mine = [_segment(OLD, n) for n in range(3)]
    store.commit(CommitRows(segments=tuple(mine)))
    higher = ("svc", "author", OLD, 4, 0, 2_000)
    store.commit(CommitRows(kept=(_segment(OLD, 3),), dropped=((higher, None),)))
    store.commit(CommitRows(dropped=((("svc", "author", OLD, 3, 0, 1_000), (mine[1][0],)),)))
    snapshot = store.load()
    store.close()
    assert (snapshot.segments, snapshot.kept) == ((), (b"A1", b"A3"))
    assert snapshot.dropped == (higher,)
