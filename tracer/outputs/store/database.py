"""The store's file: opened, migrated, set aside where it is broken, written, kept within its bounds. What is written when is store.py's."""

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

_BUSY_MS = 50  # nobody else writes; a person with sqlite3 might
_CHECKPOINT_PAGES = 256  # of WAL, then it is written back
_LEAST_PAGES = 64
_NEARLY_FULL = 0.9
_TURNS = 12  # of forgetting some, at most, at a time
_BROKEN = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_PRAGMAS = (
    "journal_mode = WAL",
    "synchronous = NORMAL",
    f"wal_autocheckpoint = {_CHECKPOINT_PAGES}",
    f"journal_size_limit = {_CHECKPOINT_PAGES * 4096}",
    "temp_store = MEMORY",
)

_MORE = "UPDATE signature SET count = count + ?, last_seen = max(last_seen, ?), last_run = ? WHERE number = ?"
_SIGNATURE = """INSERT INTO signature (signature, id, invariant, verdict, function, first_seen, last_seen, count, first_run, last_run)
VALUES (:signature, :id, :invariant, :verdict, :function, :first_seen, :last_seen, :more, :run, :run)
ON CONFLICT (signature) DO UPDATE SET count = count + excluded.count, last_seen = max(last_seen, excluded.last_seen),
last_run = excluded.last_run RETURNING number, first_run"""
_EVIDENCE = """INSERT INTO evidence VALUES (:number, :evidence) ON CONFLICT DO UPDATE SET evidence = excluded.evidence
WHERE :first OR (json_array_length(evidence, '$.stack') = 0 AND json_array_length(excluded.evidence, '$.stack') > 0)"""
_HOUR = "INSERT INTO hour VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET count = count + excluded.count"
_REST = "INSERT INTO rest VALUES ('over', ?, ?, ?) ON CONFLICT DO UPDATE SET count = count + excluded.count"
_RUN = """INSERT INTO run VALUES (:id, :kernel, :rmapd, :started, :written, :ended, :report)
ON CONFLICT (id) DO UPDATE SET written = excluded.written, ended = excluded.ended, report = excluded.report"""
_OTHER_RUNS = "DELETE FROM run WHERE id IN (SELECT id FROM run WHERE id != ? ORDER BY started DESC LIMIT -1 OFFSET 1)"
_LONGEST_AGO = "number IN (SELECT number FROM signature ORDER BY last_seen LIMIT 1 + (SELECT count(*) / 10 FROM signature))"


class Foreign(RmapdError):
    """A file that is not ours to write: another program's database, or a newer rmapd's."""


def code(error: BaseException) -> int:
    """The primary result code of sqlite3.h, 0 for an error that has none."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def is_broken(error: sqlite3.Error) -> bool:
    """The file's content is no database, or no whole one."""
    return code(error) in _BROKEN


def set_aside(path: Path, why: str) -> Path:
    """Rename a broken database, and what belongs to it, out of the way."""
    stamp = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    aside = path.with_name(f"{path.name}.broken-{stamp}")
    for end in (
        "-wal",
        "-shm",
        "",
    ):  # the file itself last: with another's WAL beside it a new one would be broken, too
        if (part := Path(f"{path}{end}")).exists():
            part.rename(f"{aside}{end}")
    log.error("the store %s is broken (%s): set aside as %s, a new one is begun", path, why, aside)
    return aside


class Database:
    """An open store. All methods may raise sqlite3.Error."""

    def __init__(self, path: Path, most_bytes: int) -> None:
        os.close(
            os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        )  # evidence has kernel addresses
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
        """The store at `path`, whole and of this schema; one that is broken is set aside first."""
        try:
            return cls(path, most_bytes)
        except sqlite3.Error as error:
            if not is_broken(error):
                raise
            set_aside(path, str(error))
        return cls(path, most_bytes)

    def close(self) -> None:
        self._sql.close()

    def _identity(self) -> tuple[int, int]:
        found = self._path.stat()
        return found.st_dev, found.st_ino

    @property
    def gone(self) -> bool:
        """Whether somebody removed or replaced the file: what is written now would be seen by nobody."""
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
            raise Foreign(
                f"{self._path} is no store of rmapd",
                why="it is another program's database",
                hint="--store with another file",
            )
        if version > len(MIGRATIONS):
            why = f"its schema is {version}, this rmapd knows {len(MIGRATIONS)}"
            raise Foreign(
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
        for number, statements in enumerate(
            MIGRATIONS[version:], version + 1
        ):  # a kill between two leaves the older schema whole
            with self.transaction():
                for statement in statements:
                    self._sql.execute(statement)
                self._sql.execute(f"PRAGMA application_id = {APPLICATION}")
                self._sql.execute(f"PRAGMA user_version = {number}")

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing; sqlite3's own context manager begins no transaction."""
        self._sql.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._sql.execute("COMMIT")
        finally:
            if self._sql.in_transaction:
                self._sql.execute("ROLLBACK")

    def more(self, rows: Sequence[tuple[int, str, str, int]]) -> bool:
        """Repeats: (more, last_seen, run, number) each; False where a row is not there any more."""
        return not rows or self._sql.executemany(_MORE, rows).rowcount == len(rows)

    def put(self, given: Mapping[str, Any]) -> int:
        """A signature with its evidence. A row of an earlier run goes on, with the evidence that it has, if that has a stack."""
        ((number, first_run),) = self._sql.execute(_SIGNATURE, given).fetchall()
        self._sql.execute(
            _EVIDENCE,
            {"number": number, "evidence": given["evidence"], "first": first_run == given["run"]},
        )
        return int(number)

    def put_hours(self, rows: Iterable[tuple[int, str, int]]) -> None:
        """(number, hour, count) each."""
        self._sql.executemany(_HOUR, rows)

    def put_rest(self, rest: Mapping[tuple[str, str], int]) -> None:
        self._sql.executemany(_REST, [(*key, count) for key, count in rest.items()])

    def put_run(self, run: Mapping[str, Any]) -> None:
        with self.transaction():
            self._sql.execute(_RUN, run)

    def _bound(self) -> None:
        """No page beyond most_bytes: SQLITE_FULL instead. SQLite does not go below what there is."""
        self._sql.execute(
            f"PRAGMA max_page_count = {max(_LEAST_PAGES, self._most_bytes // self._pragma('page_size'))}"
        )

    @property
    def nearly_full(self) -> bool:
        used = self._pragma("page_count") - self._pragma("freelist_count")
        return used >= _NEARLY_FULL * max(
            _LEAST_PAGES, self._most_bytes // self._pragma("page_size")
        )

    def forget_old(self, before: str, run: str) -> int:
        """Drop hours, runs and signatures from before this time (ISO 8601), but not this run; how many signatures."""
        with self.transaction():
            self._sql.execute("DELETE FROM hour WHERE hour < ?", (before,))
            self._sql.execute("DELETE FROM run WHERE written < ? AND id != ?", (before, run))
            return self._forget("aged", "last_seen < ?", (before,))

    def make_room(self, run: str) -> int:
        """While there is little: drop runs but for this one and the last, then, a tenth at a time, the signatures that were not met for
        longest; how many signatures."""
        forgotten = 0
        for _ in range(_TURNS):
            if not self.nearly_full:
                break
            with self.transaction():
                runs = self._sql.execute(_OTHER_RUNS, (run,)).rowcount
                forgotten += 0 if runs else self._forget("room", _LONGEST_AGO)
            self._sql.execute("PRAGMA incremental_vacuum").fetchall()
            self._bound()
        return forgotten

    def _forget(self, why: str, which: str, values: Iterable[str] = ()) -> int:
        """The counts of what is forgotten go to `rest`: no finding is lost with its row."""
        self._sql.execute(
            f"INSERT INTO rest SELECT '{why}', invariant, verdict, sum(count) FROM signature "  # noqa: S608
            f"WHERE {which} GROUP BY invariant, verdict ON CONFLICT DO UPDATE SET count = count + excluded.count",
            tuple(values),
        )
        for table in ("hour", "evidence"):
            of_these = f"number IN (SELECT number FROM signature WHERE {which})"  # noqa: S608
            self._sql.execute(f"DELETE FROM {table} WHERE {of_these}", tuple(values))  # noqa: S608
        return self._sql.execute(f"DELETE FROM signature WHERE {which}", tuple(values)).rowcount  # noqa: S608
