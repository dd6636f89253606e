"""Which blocks are parts of files that lie elsewhere on this machine: a SQLite file of its own.

It is an index of the owner's disk, not of what anybody agreed on: losing it means hashing again.
One connection, used by any thread under a lock; everything here takes microseconds, or little more.
"""

import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple

from pairio_node.errors import StorageFullError, UserError

__all__ = [
    "CHANGED",
    "GOOD",
    "FileRow",
    "LeafRow",
    "ListDamagedError",
    "ReferenceDb",
    "RootRow",
    "Stat",
]

#: States of a root: all its files are as they were; one is not; still being hashed.
GOOD: Final = 0
CHANGED: Final = 1
_HASHING: Final = 2

_SCHEMA = """
create table if not exists roots (
    id integer primary key, path text not null, cid text not null, is_folder integer not null,
    size integer not null, names text not null, added_unix_ms integer not null,
    state integer not null) strict;
create table if not exists files (
    id integer primary key, root integer not null references roots (id) on delete cascade,
    path text not null, size integer not null, mtime_ns integer not null,
    inode integer not null) strict;
create table if not exists leaves (
    cid text not null, file integer not null references files (id) on delete cascade,
    start integer not null, size integer not null,
    primary key (cid, file, start)) strict, without rowid;
create index if not exists files_by_root on files (root);
create index if not exists leaves_by_file on leaves (file);
create index if not exists roots_by_cid on roots (cid);
"""


class ListDamagedError(UserError):
    """The file is no database any more, or the disk does not give it."""


class Stat(NamedTuple):
    """What tells whether a file is the one that was hashed, without reading it."""

    size: int
    mtime_ns: int
    inode: int

    @staticmethod
    def of(found: os.stat_result) -> "Stat":
        """Return that of a file."""
        return Stat(found.st_size, found.st_mtime_ns, found.st_ino)


class RootRow(NamedTuple):
    """A file or folder that somebody added. `names` is a digest of a folder's entries."""

    id: int
    path: str
    cid: str
    is_folder: bool
    size: int
    names: str
    added_unix_ms: int
    state: int


class FileRow(NamedTuple):
    """A file below a root, as it was when it was hashed."""

    id: int
    root: int
    path: str
    stat: Stat


class LeafRow(NamedTuple):
    """Where the bytes of a block lie."""

    file: FileRow
    start: int
    size: int


class ReferenceDb:
    """The tables. Roots that were being hashed when the node ended are forgotten at once."""

    def __init__(self, path: Path) -> None:
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._db.execute("pragma journal_mode = wal")
            self._db.execute("pragma synchronous = normal")
            self._db.execute("pragma foreign_keys = on")
            self._db.executescript(_SCHEMA)
            self._db.execute("delete from roots where state = ?", (_HASHING,))
        except (sqlite3.Error, OSError) as error:
            raise _unusable(path, error) from None
        self._path = path
        self._lock = threading.Lock()

    def close(self) -> None:
        """Close the database."""
        self._db.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                self._db.execute("begin immediate")
                yield self._db
                self._db.execute("commit")
            except BaseException as error:
                with suppress(sqlite3.Error):  # the disk may fail again; what counts is `error`
                    if self._db.in_transaction:
                        self._db.execute("rollback")
                if isinstance(error, sqlite3.Error):
                    raise StorageFullError(f"cannot note what is referenced: {error}") from None
                raise

    def _rows(self, query: str, given: tuple[object, ...] = ()) -> list[tuple[object, ...]]:
        try:
            with self._lock:
                return self._db.execute(query, given).fetchall()
        except sqlite3.Error as error:
            raise _unusable(self._path, error) from None

    # -- writing --------------------------------------------------------------------------

    def begin(self, path: str, is_folder: bool, unix_ms: int) -> int:
        """Begin a root; it counts when it is finished. Returns its id."""
        with self._transaction() as db:
            given = (path, is_folder, unix_ms, _HASHING)
            return int(
                db.execute(
                    "insert into roots (path, cid, is_folder, size, names, added_unix_ms, state)"
                    " values (?, '', ?, 0, '', ?, ?)",
                    given,
                ).lastrowid
                or 0
            )

    def add_file(self, root: int, path: str, stat: Stat) -> int:
        """Add a file of a root; returns its id."""
        with self._transaction() as db:
            query = "insert into files (root, path, size, mtime_ns, inode)"
            done = db.execute(f"{query} values (?, ?, ?, ?, ?)", (root, path, *stat))
            return int(done.lastrowid or 0)

    def add_leaves(self, file: int, leaves: Iterable[tuple[str, int, int]]) -> None:
        """Add (CID, start, size) of blocks of a file."""
        with self._transaction() as db:
            rows = ((cid, file, start, size) for cid, start, size in leaves)
            db.executemany("insert or ignore into leaves values (?, ?, ?, ?)", rows)

    def finish(self, root: int, cid: str, size: int, names: str) -> None:
        """A root is whole: it counts, and takes the place of an earlier one of its path."""
        with self._transaction() as db:
            same = "(select path from roots where id = ?)"
            db.execute(f"delete from roots where id <> ? and path = {same}", (root, root))
            query = "update roots set cid = ?, size = ?, names = ?, state = ? where id = ?"
            db.execute(query, (cid, size, names, GOOD, root))

    def set_state(self, root: int, state: int) -> None:
        """Note that a root's files are as they were (GOOD), or not (CHANGED)."""
        with self._transaction() as db:
            db.execute("update roots set state = ? where id = ?", (state, root))

    def remove(self, root: int) -> None:
        """Forget a root."""
        with self._transaction() as db:
            db.execute("delete from roots where id = ?", (root,))

    # -- reading: raises ListDamagedError -------------------------------------------------------

    def roots(self, *, path: str | None = None, cid: str | None = None) -> list[RootRow]:
        """Return roots that are whole, oldest first: all, those of a path, or of a CID."""
        query, given = "select * from roots where state <> ?", [_HASHING]
        for name, value in (("path", path), ("cid", cid)):
            if value is not None:
                query += f" and {name} = ?"
                given.append(value)  # type: ignore[arg-type]
        rows = self._rows(f"{query} order by id", tuple(given))
        return [RootRow(*row)._replace(is_folder=bool(row[3])) for row in rows]  # type: ignore[arg-type]

    def files(self, root: int) -> list[FileRow]:
        """Return the files of a root."""
        query = "select id, root, path, size, mtime_ns, inode from files where root = ?"
        return [_file(row) for row in self._rows(query, (root,))]

    def leaves(self, cid: str) -> list[LeafRow]:
        """Return where a block lies in files that are as they were, as far as is known."""
        query = (
            "select files.id, root, files.path, files.size, mtime_ns, inode, start,"
            " leaves.size from leaves join files on leaves.file = files.id"
            " join roots on files.root = roots.id where leaves.cid = ? and state = ?"
        )
        rows = self._rows(query, (cid, GOOD))
        return [LeafRow(_file(row[:6]), row[6], row[7]) for row in rows]  # type: ignore[arg-type]


def _unusable(path: Path, error: Exception) -> ListDamagedError:
    return ListDamagedError(
        f"the list of referenced files {path} cannot be used: {error}",
        hint="move it away and start again; then add the files again",
        code="corrupt_home",
    )


def _file(row: tuple[object, ...]) -> FileRow:
    return FileRow(row[0], row[1], row[2], Stat(*row[3:6]))  # type: ignore[arg-type]
