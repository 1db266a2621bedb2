"""The database file of the store: open it, migrate it, write rows, limit its size.

writer.py decides what is written, and when.
"""

from __future__ import annotations

import contextlib
import datetime
import logging
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tracer.errors import RmapdError
from tracer.outputs.store.schema import APPLICATION, MIGRATIONS

log = logging.getLogger("rmapd")

_BUSY_MS = 50
"""How long to wait for a lock: only a person with sqlite3 could hold one."""
_CHECKPOINT_PAGES = 256
"""Pages of WAL after which it is written back."""
_MIN_PAGES = 64
_NEARLY_FULL = 0.9
_MOST_ROUNDS = 12
"""Rounds of deletion in one call of make_room()."""
_BROKEN = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_PRAGMAS = (
    "journal_mode = WAL",
    "synchronous = NORMAL",
    f"wal_autocheckpoint = {_CHECKPOINT_PAGES}",
    f"journal_size_limit = {_CHECKPOINT_PAGES * 4096}",
    "temp_store = MEMORY",
)

_ADD_COUNT = """UPDATE signature SET count = count + ?, last_seen = max(last_seen, ?), last_run = ?
WHERE number = ?"""
_SIGNATURE = """INSERT INTO signature (signature, id, invariant, verdict, function, first_seen,
last_seen, count, first_run, last_run)
VALUES (:signature, :id, :invariant, :verdict, :function, :first_seen, :last_seen, :more, :run,
:run)
ON CONFLICT (signature) DO UPDATE SET count = count + excluded.count,
last_seen = max(last_seen, excluded.last_seen), last_run = excluded.last_run
RETURNING number, first_run"""
_EVIDENCE = """INSERT INTO evidence VALUES (:number, :evidence)
ON CONFLICT DO UPDATE SET evidence = excluded.evidence
WHERE :first OR (json_array_length(evidence, '$.stack') = 0
AND json_array_length(excluded.evidence, '$.stack') > 0)"""
_HOUR = "INSERT INTO hour VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET count = count + excluded.count"
_REST = """INSERT INTO rest VALUES ('over', ?, ?, ?)
ON CONFLICT DO UPDATE SET count = count + excluded.count"""
_RUN = """INSERT INTO run VALUES (:id, :kernel, :rmapd, :started, :written, :ended, :report)
ON CONFLICT (id) DO UPDATE SET written = excluded.written, ended = excluded.ended,
report = excluded.report"""
_VIOLATED_SINCE = """SELECT invariant,
min(CASE WHEN first_seen >= :since THEN first_seen ELSE last_seen END) FROM signature
WHERE verdict = 'violated' AND last_seen >= :since GROUP BY invariant"""
_OTHER_RUNS = """DELETE FROM run
WHERE id IN (SELECT id FROM run WHERE id != ? ORDER BY started DESC LIMIT -1 OFFSET 1)"""
_OLDEST_TENTH = """number IN (SELECT number FROM signature ORDER BY last_seen
LIMIT 1 + (SELECT count(*) / 10 FROM signature))"""


class ForeignDatabase(RmapdError):
    """The file is another program's database, or the store of a newer rmapd."""


def code(error: BaseException) -> int:
    """Return the primary result code of sqlite3.h, or 0 for an error that has none."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def is_full(error: BaseException, path: Path) -> bool:
    """Return whether the disk of this file has no room.

    Where the file exists, the first that does not fit is the file of shared memory beside it.
    """
    if code(error) == sqlite3.SQLITE_IOERR:
        try:
            return os.statvfs(path.parent).f_bavail == 0
        except OSError:
            return False
    return code(error) == sqlite3.SQLITE_FULL


def is_broken(error: sqlite3.Error) -> bool:
    """Return whether the file is no database or a damaged one."""
    return code(error) in _BROKEN


def set_aside(path: Path, why: str) -> Path:
    """Rename a broken database and its WAL; why: for the log. Returns the new path."""
    stamp = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    aside = path.with_name(f"{path.name}.broken-{stamp}")
    # The file itself comes last: a new database next to the WAL of another one would break too.
    for end in ("-wal", "-shm", ""):
        if (part := Path(f"{path}{end}")).exists():
            part.rename(f"{aside}{end}")
    log.error("the store %s is broken (%s): renamed it to %s, starting a new one", path, why, aside)
    return aside


class Database:
    """An open store of at most most_bytes. All methods may raise sqlite3.Error."""

    def __init__(self, path: Path, most_bytes: int) -> None:
        # Evidence has kernel addresses: other users must not read the file.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        self._path, self._most_bytes = path, most_bytes
        self._sql = sqlite3.connect(path, timeout=_BUSY_MS / 1000, isolation_level=None)
        try:
            self._prepare()
            self._bound()
            self._file = self._identity()
        except BaseException:
            self._sql.close()
            raise

    @classmethod
    def opened(cls, path: Path, most_bytes: int) -> Database:
        """Open the store at `path` and migrate it; a broken one is set aside first."""
        try:
            return cls(path, most_bytes)
        except sqlite3.Error as error:
            if not is_broken(error):
                raise
            set_aside(path, str(error))
        return cls(path, most_bytes)

    def close(self) -> None:
        """Close the file."""
        self._sql.close()

    def _identity(self) -> tuple[int, int]:
        found = self._path.stat()
        return found.st_dev, found.st_ino

    @property
    def gone(self) -> bool:
        """Whether the file was removed or replaced, so that writes would be lost."""
        try:
            return self._identity() != self._file
        except FileNotFoundError:
            return True

    def _pragma(self, name: str) -> int:
        return int(self._sql.execute(f"PRAGMA {name}").fetchone()[0])

    def _prepare(self) -> None:
        version, tables = (
            self._pragma("user_version"),
            self._sql.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0],
        )
        if tables and self._pragma("application_id") != APPLICATION:
            raise ForeignDatabase(
                f"{self._path} is no store of rmapd",
                why="it is another program's database",
                hint="--store with another file",
            )
        if version > len(MIGRATIONS):
            why = f"its schema is {version}, this rmapd knows {len(MIGRATIONS)}"
            raise ForeignDatabase(
                f"the store {self._path} was written by a newer rmapd",
                why=why,
                hint="--store with another file",
            )
        if not tables:
            self._sql.execute("PRAGMA auto_vacuum = INCREMENTAL")
        for pragma in _PRAGMAS:
            self._sql.execute(f"PRAGMA {pragma}")
        (found,) = self._sql.execute("PRAGMA quick_check(1)").fetchone()
        if found != "ok":
            error = sqlite3.DatabaseError(found)
            error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
            raise error
        # A migration is one transaction: if it is interrupted, the older schema stays intact.
        for number, statements in enumerate(MIGRATIONS[version:], version + 1):
            with self.transaction():
                for statement in statements:
                    self._sql.execute(statement)
                self._sql.execute(f"PRAGMA application_id = {APPLICATION}")
                self._sql.execute(f"PRAGMA user_version = {number}")

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Run a block in a transaction; the connection's own context manager begins none."""
        self._sql.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._sql.execute("COMMIT")
        finally:
            if self._sql.in_transaction:
                self._sql.execute("ROLLBACK")

    def add_counts(self, rows: Sequence[tuple[int, str, str, int]]) -> bool:
        """Add repeats, (more, last_seen, run, number) each; False if a row no longer exists."""
        return not rows or self._sql.executemany(_ADD_COUNT, rows).rowcount == len(rows)

    def put(self, given: Mapping[str, Any]) -> int:
        """Insert a signature with its evidence, or add to its row; returns the row's number.

        Evidence of an earlier run is kept if it has a stack.
        """
        ((number, first_run),) = self._sql.execute(_SIGNATURE, given).fetchall()
        self._sql.execute(
            _EVIDENCE,
            {"number": number, "evidence": given["evidence"], "first": first_run == given["run"]},
        )
        return int(number)

    def put_hours(self, rows: Iterable[tuple[int, str, int]]) -> None:
        """Add to the counts per hour, (number, hour, count) each."""
        self._sql.executemany(_HOUR, rows)

    def put_rest(self, rest: Mapping[tuple[str, str], int]) -> None:
        """Add findings without a signature of their own, by (invariant, verdict)."""
        self._sql.executemany(_REST, [(*key, count) for key, count in rest.items()])

    def violated_since(self, since: str) -> dict[str, str]:
        """Return the invariants violated from `since` on, with the time of the first violation.

        Times are ISO 8601. A defect that is older than `since` counts from when it was last seen.
        """
        return dict(self._sql.execute(_VIOLATED_SINCE, {"since": since}).fetchall())

    def put_run(self, run: Mapping[str, Any]) -> None:
        """Insert or update the row of a run."""
        with self.transaction():
            self._sql.execute(_RUN, run)

    def _bound(self) -> None:
        """Limit the file to most_bytes: SQLite then fails with SQLITE_FULL."""
        self._sql.execute(f"PRAGMA max_page_count = {self._most_pages()}")

    def _most_pages(self) -> int:
        return max(_MIN_PAGES, self._most_bytes // self._pragma("page_size"))

    @property
    def nearly_full(self) -> bool:
        """Whether 90 % of the allowed pages are in use."""
        used = self._pragma("page_count") - self._pragma("freelist_count")
        return used >= _NEARLY_FULL * self._most_pages()

    def delete_old(self, before: str, run: str) -> int:
        """Delete hours, signatures and runs other than `run` that are older than `before`.

        before: ISO 8601. Returns the number of signatures.
        """
        with self.transaction():
            self._sql.execute("DELETE FROM hour WHERE hour < ?", (before,))
            self._sql.execute("DELETE FROM run WHERE written < ? AND id != ?", (before, run))
            return self._delete_signatures("aged", "last_seen < ?", (before,))

    def make_room(self, run: str) -> int:
        """While the store is nearly full, delete rows; returns the number of signatures.

        All runs but `run` and the one before it are deleted first, then the least recently seen
        signatures, a tenth at a time.
        """
        deleted = 0
        for _ in range(_MOST_ROUNDS):
            if not self.nearly_full:
                break
            with self.transaction():
                runs = self._sql.execute(_OTHER_RUNS, (run,)).rowcount
                deleted += 0 if runs else self._delete_signatures("room", _OLDEST_TENTH)
            self._sql.execute("PRAGMA incremental_vacuum").fetchall()
            self._bound()
        return deleted

    def _delete_signatures(self, why: str, which: str, values: Iterable[str] = ()) -> int:
        """Delete signatures and add their counts to `rest`, so that no finding is lost."""
        self._sql.execute(
            f"INSERT INTO rest SELECT '{why}', invariant, verdict, sum(count) FROM signature "  # noqa: S608
            f"WHERE {which} GROUP BY invariant, verdict "
            "ON CONFLICT DO UPDATE SET count = count + excluded.count",
            tuple(values),
        )
        for table in ("hour", "evidence"):
            of_these = f"number IN (SELECT number FROM signature WHERE {which})"  # noqa: S608
            self._sql.execute(f"DELETE FROM {table} WHERE {of_these}", tuple(values))  # noqa: S608
        delete = f"DELETE FROM signature WHERE {which}"  # noqa: S608
        return self._sql.execute(delete, tuple(values)).rowcount
