"""What a disk may do to the blocks of a node's home, running or not."""

import sqlite3
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

__all__ = [
    "block_data",
    "lose_blocks",
    "lose_marks",
    "marks_on_blocks",
    "services_with_marks",
    "tamper",
]


def lose_blocks(home: Path, cids: Iterable[str] | None = None) -> None:
    """Have blocks gone, all or these, but not the marks on them."""
    lost = None if cids is None else set(cids)
    for file in (home / "blocks").glob("*/baf*"):
        if lost is None or file.name in lost:
            file.unlink()
    with closing(_open(home)) as db, db:
        if lost is None:
            db.execute("delete from blocks")
        else:
            db.executemany("delete from blocks where cid = ?", ((cid,) for cid in lost))


def lose_marks(home: Path) -> None:
    """Have nothing held for any service any more."""
    with closing(_open(home)) as db, db:
        db.execute("delete from marks")


def tamper(home: Path, cid: str, data: bytes) -> None:
    """Have other bytes in a block."""
    for file in (home / "blocks").glob(f"*/{cid}"):
        file.write_bytes(data)
    with closing(_open(home)) as db, db:
        db.execute("update blocks set data = ? where cid = ?", (data, cid))


def block_data(home: Path) -> list[bytes]:
    """Return the bytes of all blocks."""
    files = [file.read_bytes() for file in (home / "blocks").glob("*/baf*")]
    with closing(_open(home)) as db:
        return [*files, *(bytes(data) for (data,) in db.execute("select data from blocks"))]


def marks_on_blocks(home: Path) -> int:
    """Return how many blocks are here and held for somebody."""
    here = {file.name for file in (home / "blocks").glob("*/baf*")}
    with closing(_open(home)) as db:
        here |= {cid for (cid,) in db.execute("select cid from blocks")}
        return sum(cid in here for (cid,) in db.execute("select distinct cid from marks"))


def services_with_marks(home: Path) -> set[str]:
    """Return for whom anything is held."""
    with closing(_open(home)) as db:
        return {service for (service,) in db.execute("select distinct service from marks")}


def _open(home: Path) -> sqlite3.Connection:
    return sqlite3.connect(home / "blocks" / "small.db", timeout=10)
