"""Small blocks, and the marks that say for which services blocks are held: a SQLite file.

A block of a few bytes as a file of its own costs a file, a name and a sync for each; here all that
came since the last `settle_sync` is one transaction. Until then it is in memory, where it is found
as well, and a crash takes it: nobody was told that it is kept. What a transaction holds is there
whole or not at all, names, bytes and marks together.

What a transaction of `node.db` speaks of need not wait for one here: the new blocks that are few go
into that transaction as well (`to_carry`), and settle a moment later. Then they are in both for a
while, and a start takes what it finds there back (`take_back`).

Two connections, each used by any thread under a lock: one writes, so that nobody who reads waits
for a sync. A disk that is full or fails is told to whoever puts or settles; what is here can be
read, listed and deleted all the same.
"""

import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from pairio_node.blocks.base import StoredBlock
from pairio_node.blocks.changes import WAITING_BYTES_MAX, Carried, Changes, joined
from pairio_node.errors import StorageFullError, UserError

__all__ = ["SMALL_SIZE_BYTES_MAX", "BlockDb"]

#: A larger block is a file: SQLite is slower than the file system from about here on.
SMALL_SIZE_BYTES_MAX: Final = 64 * 1024
#: Rows read or deleted in one go: others wait for so long, and a full disk still has room for it.
_ROWS_AT_ONCE: Final = 200
#: Free pages that are given back to the disk in one go, which takes some 10 ms.
_PAGES_AT_ONCE: Final = 500

_HINT: Final = (
    "if the disk is full or not writable, mend that; else move the file away and start again:"
    " members send what they still have"
)

_SCHEMA = """
create table if not exists blocks (
    cid text primary key, used_unix_s real not null, data blob not null) strict;
create table if not exists marks (
    cid text not null, service text not null,
    primary key (cid, service)) strict, without rowid;
"""


class BlockDb:
    """The file at `path`. Everything here takes little more than microseconds, but for what says
    that it waits for the disk: that is for threads."""

    def __init__(self, path: Path) -> None:
        """Open or make it; raises UserError when it cannot be used."""
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
            path.chmod(0o600)
            self._writer, self._reader = _connected(path), _connected(path)
            query = "select coalesce(sum(length(data)), 0) from blocks"
            self._used_bytes = int(self._reader.execute(query).fetchone()[0])
            self._reader.execute("select count(*) from marks").fetchone()
        except (sqlite3.Error, OSError) as error:
            raise UserError(
                f"the small blocks in {path} cannot be used: {error}",
                hint=_HINT,
                code="corrupt_home",
            ) from None
        #: Where it lies.
        self.path = path
        #: Something was deleted: room may be given back to the disk.
        self.has_free_pages = True
        self._lock = threading.Lock()  # of what waits, and of the reader
        self._writing = threading.Lock()
        self._waiting, self._written = Changes(), Changes()

    def close(self) -> None:
        """Write what waits and close the file; waits for the disk."""
        with suppress(StorageFullError):  # nobody was told of what is lost
            self._settle(also_times=True)
        with self._writing, self._lock:
            self._close()

    def __del__(self) -> None:
        self._close()

    def _close(self) -> None:
        for name in ("_writer", "_reader"):
            if hasattr(self, name):
                getattr(self, name).close()

    @property
    def used_bytes(self) -> int:
        """How much the blocks take."""
        return self._used_bytes

    @property
    def waits(self) -> bool:
        """Say whether there is something in memory that a crash would take."""
        return self._waiting.matters()

    @property
    def is_due(self) -> bool:
        """Say whether much waits, or anything for long."""
        with self._lock:
            return self._waiting.is_much() or self._waiting.is_late()

    # -- blocks ---------------------------------------------------------------------------

    def has(self, cid: str) -> bool:
        """Say whether a block is here."""
        with self._lock:
            return self._size(cid) is not None

    def read(self, cid: str) -> bytes | None:
        """Return a block; None when it is not here. Raises OSError when it cannot be read."""
        with self._lock:
            for changes in (self._waiting, self._written):
                if cid in changes.blocks:
                    return changes.blocks[cid][0]
                if cid in changes.gone:
                    return None
            row = self._row("select data from blocks where cid = ?", cid)
        return None if row is None else bytes(row[0])

    def put(self, cid: str, data: bytes) -> bool:
        """Add a block, which was checked, used now; say whether it is new. It is kept for good when
        `settle_sync` has returned. Whoever can wait calls `relieve_sync` before, which bounds what
        is in memory."""
        now_unix_s = time.time()
        with self._lock:
            is_new = self._size(cid) is None
            if is_new:
                self._begin()
                self._waiting.blocks[cid] = data, now_unix_s
                self._waiting.size_bytes += len(data)
                self._used_bytes += len(data)
            else:
                self._waiting.used[cid] = now_unix_s
        return is_new

    def touch(self, cid: str, used_unix_s: float | None = None) -> bool:
        """Note that a block was used now, or then; False when it is not here."""
        with self._lock:
            is_here = self._size(cid) is not None
            if is_here:
                self._waiting.used[cid] = time.time() if used_unix_s is None else used_unix_s
        return is_here

    def delete(self, cid: str) -> bool:
        """Remove a block; False when it is not here. A crash may bring it back. Never waits for the
        disk."""
        with self._lock:
            size_bytes = self._size(cid)
            if size_bytes is None:
                return False
            self._begin()
            self._used_bytes -= size_bytes
            waiting = self._waiting.blocks.pop(cid, None)
            self._waiting.size_bytes -= len(waiting[0]) if waiting else 0
            self._waiting.used.pop(cid, None)
            self._waiting.gone.add(cid)
        return True

    def listed(self) -> Iterator[StoredBlock]:
        """List the blocks; one that comes or goes meanwhile may be listed or not. Raises OSError
        when they cannot be read."""
        with self._lock:
            changes = joined(self._written, self._waiting)
        for cid, (data, used_unix_s) in changes.blocks.items():
            yield StoredBlock(cid, len(data), changes.used.get(cid, used_unix_s))
        for cid, size_bytes, used_unix_s in self._listed(
            "cid, length(data), used_unix_s", "blocks"
        ):
            if cid not in changes.gone and cid not in changes.blocks:
                used_unix_s = changes.used.get(cid, used_unix_s)
                yield StoredBlock(cid, size_bytes, min(used_unix_s, time.time()))

    def _begin(self) -> None:
        """Something is to wait; the time counts from the first."""
        if not self._waiting.matters():
            self._waiting.since_s = time.monotonic()

    def _size(self, cid: str) -> int | None:
        for changes in (self._waiting, self._written):
            if cid in changes.blocks:
                return len(changes.blocks[cid][0])
            if cid in changes.gone:
                return None
        try:
            row = self._row("select length(data) from blocks where cid = ?", cid)
        except OSError:
            return None  # fetched again, if it can be had
        return None if row is None else int(row[0])

    def _listed(self, columns: str, table: str) -> Iterator[Any]:
        """Read a table in order of its CIDs, a little at a time; each CID is the first column."""
        query = f"select {columns} from {table} where cid > ? order by cid limit {_ROWS_AT_ONCE}"
        after = ""
        while True:
            try:
                with self._lock:
                    rows = self._reader.execute(query, (after,)).fetchall()
            except sqlite3.Error as error:
                raise OSError(f"the small blocks in {self.path} cannot be read: {error}") from None
            yield from rows
            if len(rows) < _ROWS_AT_ONCE:
                return
            after = rows[-1][0]

    def _row(self, query: str, *given: object) -> Any:
        try:
            found = self._reader.execute(query, given).fetchone()
        except sqlite3.Error as error:
            raise OSError(f"the small blocks cannot be read: {error}") from None
        return found

    # -- marks ----------------------------------------------------------------------------

    def is_marked(self, service: str, cid: str) -> bool:
        """Say whether a block is held for a service."""
        with self._lock:
            return self._has_mark(service, cid)

    def mark(self, service: str, cid: str) -> None:
        """Hold a block for a service, also one that is not here yet; the rest as for `put`."""
        with self._lock:
            if not self._has_mark(service, cid):
                self._begin()
                self._waiting.marks.setdefault(cid, set()).add(service)

    def unmark(self, cid: str) -> None:
        """Hold a block for no service any more."""
        with self._lock:
            self._begin()
            self._waiting.marks.pop(cid, None)
            self._waiting.unmarked.add(cid)

    def _has_mark(self, service: str, cid: str) -> bool:
        for changes in (self._waiting, self._written):
            if service in changes.marks.get(cid, ()):
                return True
            if cid in changes.unmarked:
                return False
        try:
            query = "select 1 from marks where cid = ? and service = ?"
            return self._row(query, cid, service) is not None
        except OSError:
            return False

    def marked(self) -> Iterator[str]:
        """List what is held for any service. Raises OSError when that cannot be read."""
        with self._lock:
            changes = joined(self._written, self._waiting)
        yield from changes.marks
        for (cid,) in self._listed("distinct cid", "marks"):
            if cid not in changes.unmarked and cid not in changes.marks:
                yield cid

    # -- along with another transaction ---------------------------------------------------

    def to_carry(self) -> list[Carried] | None:
        """Return what waits and is to go into another database's transaction, which is about to be
        made; None when that is not for it, and `settle_sync` is to come first."""
        with self._lock:
            return None if self._written.matters() else self._waiting.to_carry()

    def note_carried(self, rows: Sequence[Carried]) -> None:
        """They are in the other database, until they are settled here and removed there."""
        with self._lock:
            waiting = self._waiting  # else they were settled meanwhile
            waiting.carried |= {row[:2] for row in rows if row[0] in waiting.blocks}

    def take_back(self, rows: Sequence[Carried]) -> None:
        """Take what the other database has of before a crash."""
        for cid, service, data in rows:
            if service:
                self.mark(service, cid)
            else:
                self.put(cid, data)

    # -- the disk -------------------------------------------------------------------------

    def relieve_sync(self) -> None:
        """Wait for the disk when much or anything for long waits in memory, in a thread. Raises
        StorageFullError."""
        if self.is_due:
            self.settle_sync()

    def settle_sync(self) -> None:
        """Return when all that came before is kept for good, in a thread; times of use may follow
        later. Who comes while another is at it waits, and then mostly finds nothing left to do.

        Raises:
            StorageFullError: the disk fails. All is here still, and tried again by the next call.
        """
        self._settle(also_times=False)

    def _settle(self, *, also_times: bool) -> None:
        with self._writing:
            with self._lock:
                if not (self._waiting.matters() or also_times or self._waiting.is_much()):
                    return
                self._written, self._waiting = self._waiting, Changes()
            try:
                self._write(self._written)
            except BaseException as error:
                with self._lock:
                    self._waiting = joined(self._written, self._waiting)
                    self._written = Changes()
                if isinstance(error, sqlite3.Error):
                    words = f"cannot store small blocks in {self.path}: {error}"
                    raise StorageFullError(words, hint=_HINT) from None
                raise
            with self._lock:
                self._written = Changes()

    def give_back_sync(self) -> None:
        """Give some of the room that deleted blocks took back to the disk, in a thread."""
        with self._writing, suppress(sqlite3.Error):  # on a disk that fails, some other time
            # `execute` takes one step of it.
            self._writer.executescript(f"pragma incremental_vacuum({_PAGES_AT_ONCE})")
            left = self._writer.execute("pragma freelist_count").fetchone()[0]
            self.has_free_pages = left > 0

    def _write(self, changes: Changes) -> None:
        """Write changes; a crash in between leaves some of what was to go."""
        for table, cids in (("marks", changes.unmarked), ("blocks", changes.gone)):  # marks first
            for some in _parts(cids):
                with self._transaction() as db:
                    db.executemany(f"delete from {table} where cid = ?", some)
                self.has_free_pages = True
        with self._transaction() as db:
            rows = ((cid, used, data) for cid, (data, used) in changes.blocks.items())
            db.executemany("insert or replace into blocks values (?, ?, ?)", rows)
            used = ((used, cid) for cid, used in changes.used.items())
            db.executemany("update blocks set used_unix_s = ? where cid = ?", used)
            held = ((cid, service) for cid, held in changes.marks.items() for service in held)
            db.executemany("insert or ignore into marks values (?, ?)", held)

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        db = self._writer
        try:
            db.execute("begin immediate")
            yield db
            db.execute("commit")
        except BaseException:
            if db.in_transaction:
                db.execute("rollback")
            raise


def _connected(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    try:
        db.execute("pragma auto_vacuum = incremental")  # before there is a table
        db.execute("pragma journal_mode = wal")
        db.execute(f"pragma journal_size_limit = {2 * WAITING_BYTES_MAX}")
        db.execute("pragma synchronous = full")
        db.execute("pragma busy_timeout = 5000")
        db.executescript(_SCHEMA)
    except BaseException:
        db.close()
        raise
    return db


def _parts(cids: set[str]) -> Iterator[list[tuple[str]]]:
    rows = [(cid,) for cid in cids]
    return (rows[start : start + _ROWS_AT_ONCE] for start in range(0, len(rows), _ROWS_AT_ONCE))
