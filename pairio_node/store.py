"""The database: what must survive a crash. SQLite, WAL, synchronous=FULL, one writer.

A commit is one transaction; `Writer` puts everything that waits into the next one (group commit).
"""

import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Final, Protocol

import trio

from pairio_node.blocks.changes import Carried
from pairio_node.errors import StorageFullError, UserError

__all__ = ["Beside", "CommitRows", "Snapshot", "Store", "StoreError", "Writer"]

log = logging.getLogger("pairio.store")

#: What was carried along is settled beside after this time.
_SETTLE_S: Final = 0.05
#: A disk that failed then is tried again after this time.
_AGAIN_S: Final = 1.0

_MIGRATIONS = (
    """
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
    """,
    """
    create table answers (
        service text not null, request text primary key, result text not null) strict;
    """,
    """
    alter table segments add column kept integer not null default 0;
    create table dropped_logs (
        service text not null, author text not null, boot blob not null, height integer not null,
        forked integer not null, dropped_unix_ms integer not null,
        primary key (service, author, boot)) strict;
    """,
    """
    create table notes (
        kind text not null, name text not null, data blob not null,
        primary key (kind, name)) strict;
    """,
    """
    create table carried (
        cid text not null, service text not null, data blob not null,
        primary key (cid, service)) strict, without rowid;
    """,
)

_SegmentRow = tuple[bytes, str, str, bytes, int, bytes, int]
#: service, author, boot, height, forked, when
_DroppedRow = tuple[str, str, bytes, int, int, int]
_HEIGHTS = ("height", "forked", "dropped_unix_ms")


class StoreError(Exception):
    """A transaction failed and was rolled back; says why."""


@dataclass(frozen=True)
class CommitRows:
    """The rows of one commit, as the tables have them. `kept` are segments that stand alone; of a
    dropped log's segments only those with the hashes beside it stay, as kept ones (None: all)."""

    services: tuple[tuple[str, str, int, int], ...] = ()
    changes: tuple[tuple[str, str, int, bytes], ...] = ()
    segments: tuple[_SegmentRow, ...] = ()
    answers: tuple[tuple[str, str, str], ...] = ()
    peers: tuple[tuple[str, str, int], ...] = ()
    kept: tuple[_SegmentRow, ...] = ()
    dropped: tuple[tuple[_DroppedRow, tuple[bytes, ...] | None], ...] = ()
    notes: tuple[tuple[str, str, bytes], ...] = ()  # wishes, choices; without data: removed
    forgotten: tuple[str, ...] = ()  # services whose changes go


@dataclass(frozen=True)
class Snapshot:
    """What the disk held at start, in the order in which it is to be taken."""

    services: tuple[tuple[str, str, bool], ...]
    changes: tuple[tuple[str, bytes], ...]
    segments: tuple[bytes, ...]
    answers: tuple[tuple[str, str, str], ...]
    peers: tuple[tuple[str, tuple[str, ...]], ...]
    kept: tuple[bytes, ...] = ()
    dropped: tuple[_DroppedRow, ...] = ()
    notes: tuple[tuple[str, str, bytes], ...] = ()


class Store:
    """The connection. `commit` is called by one thread at a time."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    @staticmethod
    def open(path: Path) -> "Store":
        """Open or make the database.

        Raises:
            UserError: corrupt, made by a newer version, or not writable; nothing is changed then.
        """
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
            path.chmod(0o600)  # before its companions are made, which get the same mode
            db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            try:
                _prepare(db, path)
            except BaseException:
                db.close()
                raise
        except (sqlite3.Error, OSError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(
                f"the database {path} cannot be used: {reason}",
                hint="if the disk is full or not writable, mend that; else move it away and start"
                " again: members send what they still have",
                code="corrupt_home",
            ) from None
        return Store(db)

    def load(self) -> Snapshot:
        """Return everything; order: services, changes by seq, segments by log and seq."""
        db = self._db
        services = db.execute("select service, petname, taken_up from services").fetchall()
        changes = db.execute("select service, data from changes order by service, seq, rowid")
        in_order = "from segments where kept = ? order by service, author, boot, first_seq"
        segments = db.execute(f"select data {in_order}", (0,))
        kept = db.execute(f"select data {in_order}", (1,))
        dropped = db.execute("select * from dropped_logs")
        answers = db.execute("select service, request, result from answers")
        notes = db.execute("select kind, name, data from notes order by rowid")
        peers = db.execute("select peer, addresses from known_peers order by heard_unix_ms desc")
        return Snapshot(
            tuple((s, p, bool(t)) for s, p, t in services),
            tuple(changes.fetchall()),
            tuple(data for (data,) in segments),
            tuple(answers.fetchall()),
            tuple((peer, tuple(text.split())) for peer, text in peers.fetchmany(256)),
            tuple(data for (data,) in kept),
            tuple(dropped.fetchall()),
            tuple(notes.fetchall()),
        )

    def carried(self) -> list[Carried]:
        """Return what was carried along and is not known to be settled; blocks first."""
        return self._db.execute("select * from carried order by service").fetchall()

    def commit(self, rows: CommitRows, carried: Sequence[Carried] = ()) -> None:
        """Write all rows in one transaction, or none and raise StoreError."""
        with self._transaction() as db:
            self._insert("insert or replace into carried values (?, ?, ?)", carried)
            for service in rows.forgotten:
                db.execute("delete from changes where service = ?", (service,))
                db.execute("delete from services where service = ?", (service,))
            self._insert("insert or replace into services values (?, ?, ?, ?)", rows.services)
            self._insert("insert or replace into changes values (?, ?, ?, ?)", rows.changes)
            segment = "insert into segments values (?, ?, ?, ?, ?, ?, ?, {}) on conflict do {}"
            # One that stood alone until the rest of its log came stands in the log from now on.
            self._insert(segment.format(0, "update set kept = 0"), rows.segments)
            self._insert(segment.format(1, "nothing"), rows.kept)
            for note in rows.notes:
                self._note(note)
            for log, kept in rows.dropped:
                self._drop(log, kept)
            self._insert("insert or ignore into answers values (?, ?, ?)", rows.answers)
            self._insert("insert or replace into known_peers values (?, ?, ?)", rows.peers)

    def drop_carried(self) -> None:
        """What was carried along is settled beside. Raises StoreError; then it is still here."""
        with self._transaction() as db:
            db.execute("delete from carried")

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        db = self._db
        try:
            db.execute("begin immediate")
            yield db
            db.execute("commit")
        except (sqlite3.Error, OverflowError, UnicodeError) as error:  # full; values it cannot hold
            if db.in_transaction:
                db.execute("rollback")
            raise StoreError(str(error)) from None

    def _insert(self, statement: str, rows: Sequence[tuple[Any, ...]]) -> None:
        if rows:  # each statement lets go of the interpreter, and has to get it back
            self._db.executemany(statement, rows)

    def _note(self, note: tuple[str, str, bytes]) -> None:
        if note[2]:
            self._db.execute("insert or replace into notes values (?, ?, ?)", note)
        else:
            self._db.execute("delete from notes where kind = ? and name = ?", note[:2])

    def _drop(self, log: _DroppedRow, kept: tuple[bytes, ...] | None) -> None:
        db = self._db
        highest = ", ".join(f"{c} = max({c}, excluded.{c})" for c in _HEIGHTS)
        db.execute(
            "insert into dropped_logs values (?, ?, ?, ?, ?, ?)"
            f" on conflict (service, author, boot) do update set {highest}",
            log,
        )
        if kept is None:
            return
        db.executemany("update segments set kept = 1 where hash = ?", ((h,) for h in kept))
        which = "service = ? and author = ? and boot = ? and kept = 0"
        db.execute(f"delete from segments where {which}", log[:3])

    def close(self) -> None:
        """Close the database."""
        self._db.close()


def _prepare(db: sqlite3.Connection, path: Path) -> None:
    """Check the database and bring it to this version's schema."""
    db.execute("pragma journal_mode = wal")
    db.execute("pragma synchronous = full")
    db.execute("pragma busy_timeout = 5000")
    version = db.execute("pragma user_version").fetchone()[0]
    if db.execute("pragma quick_check(1)").fetchone()[0] != "ok":
        raise sqlite3.DatabaseError("the integrity check failed")
    if version > len(_MIGRATIONS):
        raise UserError(
            f"the database {path} was made by a newer pairio (schema {version};"
            f" this one knows {len(_MIGRATIONS)})",
            hint="update pairio",
        )
    for number, script in enumerate(_MIGRATIONS[version:], version + 1):
        db.executescript(f"begin; {script} pragma user_version = {number}; commit;")


def _united(several: Sequence[CommitRows]) -> CommitRows:
    names = [field.name for field in fields(CommitRows)]
    return CommitRows(
        **{n: tuple(row for rows in several for row in getattr(rows, n)) for n in names}
    )


_Job = tuple[CommitRows, Callable[[Exception | None], None]]


class Beside(Protocol):
    """A database of what transactions speak of: the content of results (`BlockDb`). Here it is
    asked in the writer's thread."""

    def to_carry(self) -> Sequence[Carried] | None:
        """Return what is to go into the next transaction; None: `settle_sync` comes before it."""

    def note_carried(self, rows: Sequence[Carried]) -> None:
        """They are on the disk with a transaction."""

    def settle_sync(self) -> None:
        """Put all that came on the disk. Raises StorageFullError."""


#: What the loop tells the writer: a job; None: stop; a number: it has heard of that failure.
_Word = _Job | int | None


def _jobs(group: Sequence[_Word]) -> list[_Job]:
    return [job for job in group if isinstance(job, tuple)]


class Writer:
    """Group commit: one thread writes whatever waits, in one transaction.

    No timer for a group: what arrives during a commit is the next one. When one fails, so does all
    that was queued before the loop has heard of it: nothing gets on the disk whose beginning did
    not. What transactions speak of and is `beside` is on the disk when they are: a few small blocks
    in the transaction itself, so that nobody waits for two syncs, all else before it. Soon after,
    the former are settled beside and go from here. `has_carried`: some are here, which a crash left
    and `beside` has again.
    """

    def __init__(
        self, store: Store, beside: Beside | None = None, *, has_carried: bool = False
    ) -> None:
        self._store = store
        self._beside = beside
        #: When what was carried is to be settled; None: there is nothing.
        self._settle_at_s = time.monotonic() if has_carried else None
        self._queue: SimpleQueue[_Word] = SimpleQueue()
        self._failures = 0
        self._failure: Exception | None = None  # the newest, until the loop has heard of it
        self._token = trio.lowlevel.current_trio_token()
        self._thread = threading.Thread(target=self._run, name="pairio-writer", daemon=True)
        self._thread.start()

    def submit(self, rows: CommitRows, on_done: Callable[[Exception | None], None]) -> None:
        """Queue rows; `on_done` is called in the loop when they are on disk, or with the error."""
        self._queue.put((rows, on_done))

    def stop(self) -> None:
        """Write what waits and end the thread (blocks for that long)."""
        self._queue.put(None)
        self._thread.join(10)

    def _run(self) -> None:
        stopping = False
        while not stopping:
            group = self._next()
            stopping = None in group
            if self._failure is not None:
                group = self._refuse(group, self._failure)
            self._write(_jobs(group))
            if self._settle_at_s is not None and (stopping or self._settles_in_s() == 0):
                self._settle()

    def _next(self) -> list[_Word]:
        """Return what waits; nothing when it is time to settle before something comes."""
        group: list[_Word]
        try:
            group = [self._queue.get(timeout=self._settles_in_s())]
        except Empty:
            return []
        while not self._queue.empty():
            group.append(self._queue.get())
        return group

    def _settles_in_s(self) -> float | None:
        return None if self._settle_at_s is None else max(0, self._settle_at_s - time.monotonic())

    def _refuse(self, group: list[_Word], failure: Exception) -> list[_Word]:
        """Fail what was queued before the loop has heard of the failure; return what came after."""
        heard = group.index(self._failures) if self._failures in group else len(group)
        if heard < len(group):
            self._failure = None
        self._tell(_jobs(group[:heard]), failure)
        return group[heard:]

    def _write(self, jobs: list[_Job]) -> None:
        if not jobs:
            return
        rows = jobs[0][0] if len(jobs) == 1 else _united([rows for rows, _ in jobs])
        error: Exception | None = None
        try:
            self._commit(rows)
        except Exception as failure:
            if not isinstance(failure, StoreError | StorageFullError):
                log.exception("a transaction failed as none should")
            self._failures += 1
            self._failure = error = failure
        self._tell(jobs, error)

    def _tell(self, jobs: list[_Job], error: Exception | None) -> None:
        with suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self._told, jobs, error, self._failures)

    def _told(self, jobs: list[_Job], error: Exception | None, failures: int) -> None:
        """In the loop: tell those whose jobs these were. What they queue then counts again."""
        if error is not None:
            self._queue.put(failures)
        for _, on_done in jobs:
            on_done(error)

    def _commit(self, rows: CommitRows) -> None:
        beside = self._beside
        carried = beside.to_carry() if beside is not None else []
        if beside is not None and carried is None:
            beside.settle_sync()
        self._store.commit(rows, carried or ())
        if beside is not None and carried:
            beside.note_carried(carried)
            if self._settle_at_s is None:
                self._settle_at_s = time.monotonic() + _SETTLE_S

    def _settle(self) -> None:
        """Settle what was carried. On a disk that fails it stays here, where it is safe."""
        assert self._beside is not None
        try:
            self._beside.settle_sync()
            self._store.drop_carried()
            self._settle_at_s = None
        except (StoreError, StorageFullError):
            self._settle_at_s = time.monotonic() + _AGAIN_S
