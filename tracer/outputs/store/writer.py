"""Write findings and runs to the store, so that they outlive the daemon.

The checking thread writes new counts once a second, in one transaction. Counts stay in memory
until they are written: a full or broken disk costs a message, and the counts follow as soon as
the store can be written again.
"""

from __future__ import annotations

import datetime
import json
import logging
import sqlite3
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import tracer
from tracer.errors import RmapdError, Temporary, passes
from tracer.invariants.verdict import Finding, Verdict, Violation
from tracer.outputs.store.database import (
    Database,
    ForeignDatabase,
    code,
    is_broken,
    is_full,
    set_aside,
)
from tracer.results.json_form import iso, violation_json
from tracer.results.snapshot import StoreState

log = logging.getLogger("rmapd")

_RETRY_SECONDS = 5.0
_TIDY_SECONDS = 60.0
_MOST_HOURS = 48
"""Hours of a signature that are kept while the store cannot be written: older counts are written as
of the oldest of these."""
_PASSING = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_NOMEM)


class Store:
    """The writer of one run's findings.

    Call keep() when there may be new findings, keep_run() from time to time, close() at the end.
    No method raises because of the file.

    path: of the file, which may get most_bytes and keeps rows for most_days. must: raise an
    RmapdError now if the file cannot be opened. run, counted, rest: of a run that another process
    began: its id, and the counts that the file already has. booted: Unix time of the kernel's boot:
    state has the violations that earlier runs have stored since then. clock: Unix seconds.
    monotonic: monotonic seconds.
    """

    def __init__(
        self,
        path: Path,
        kernel: str,
        most_bytes: int,
        most_days: float,
        *,
        must: bool = False,
        run: str = "",
        counted: Mapping[str, int] | None = None,
        rest: Iterable[tuple[str, str, int]] = (),
        booted: float = 0.0,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.path, self.run = path, run or uuid.uuid4().hex[:16]
        self._most_bytes, self._most_seconds, self._clock, self._monotonic = (
            most_bytes,
            most_days * 86400,
            clock,
            monotonic,
        )
        self._kernel, self._started = kernel, iso(clock())
        self._database: Database | None = None
        self._violations: dict[str, Violation] = {}
        self._evidence: dict[str, Finding] = {}  # as last written
        self._numbers: dict[str, int] = {}  # of the rows, by signature
        self._changed: set[str] = set()
        # Findings of this run by signature: all, and those that are in the file.
        self._counted, self._written = Counter(counted or {}), Counter(counted or {})
        self._hours: defaultdict[str, Counter[str]] = defaultdict(Counter)  # not written yet
        known = {(invariant, str(verdict)): count for invariant, verdict, count in rest}
        self._rest, self._rest_written = Counter(known), Counter(known)
        self._run: dict[str, Any] | None = None  # not written yet
        self._reason, self._next_try, self._next_tidy = "", 0.0, 0.0
        self._writes = self._failures = self._deleted = 0
        self._seconds = 0.0
        self._booted = booted
        self._violated_since: dict[str, float] | None = None  # not read yet
        try:
            self._database = self._opened()
        except (sqlite3.Error, OSError, ForeignDatabase) as error:
            if must and isinstance(error, ForeignDatabase):
                raise
            if must and not is_full(error, path):
                kind = Temporary if code(error) in _PASSING or passes(error) else RmapdError
                hint = "a folder that exists, and that the user of rmapd run can write"
                raise kind(f"cannot write the store {path}", why=str(error), hint=hint) from error
            self._trouble(str(error))

    @property
    def state(self) -> StoreState:
        """The state of the store for a snapshot."""
        unwritten = (self._counted - self._written).total() + (
            self._rest - self._rest_written
        ).total()
        return StoreState(
            str(self.path),
            self._reason,
            unwritten,
            self._writes,
            self._failures,
            self._seconds,
            self._deleted,
            self._violated_since or {},
        )

    def keep(
        self, violations: Iterable[Violation], rest: Mapping[tuple[str, Verdict], int]
    ) -> None:
        """Take over the counts of all violations, and write what is new.

        rest: findings without a signature of their own, by invariant and verdict.
        """
        for violation in violations:
            signature = violation.first.signature
            more = violation.count - self._counted[signature]
            if more or self._evidence.get(signature) is not violation.first:
                self._counted[signature] += more
                hours = self._hours[signature]
                hours[_hour(violation.last_seen)] += more
                if len(hours) > _MOST_HOURS:
                    oldest, next_hour, *_ = sorted(hours)
                    hours[next_hour] += hours.pop(oldest)
                self._violations[signature] = violation
                self._changed.add(signature)
        self._rest = Counter(
            {(invariant, verdict.value): count for (invariant, verdict), count in rest.items()}
        )
        self.write()

    def keep_run(self, report: dict[str, Any], *, ended: bool = False) -> None:
        """Write the report of the run as it is now; ended: the run ends now.

        Violations have rows of their own: the stored report has them without evidence, stack and
        trail.
        """
        short = [
            violation | {"evidence": {}, "stack": [], "trail": []}
            for violation in report["violations"]
        ]
        now = iso(self._clock())
        run = {
            "id": self.run,
            "kernel": self._kernel,
            "rmapd": tracer.__version__,
            "started": self._started,
            "written": now,
        }
        self._run = run | {
            "ended": now if ended else None,
            "report": json.dumps(report | {"violations": short}, ensure_ascii=False),
        }
        self.write()

    def write(self) -> None:
        """Write what is new; after a failure do so only every five seconds."""
        new = self._changed or self._run or self._rest != self._rest_written
        if not new or (self._reason and self._monotonic() < self._next_try):
            return
        begin = time.perf_counter()
        try:
            database = self._open()
            try:
                self._write_findings(database)
            except LookupError:  # rows were deleted by someone else: insert all that changed
                self._numbers.clear()
                self._write_findings(database)
            if self._run:
                database.put_run(self._run)
                self._run = None
            self._tidy(database)
        except sqlite3.Error as error:
            self._failed(error)
        except (OSError, ForeignDatabase) as error:
            self._trouble(str(error))
        else:
            self._writes += 1
            if self._reason:
                log.info(
                    "the store %s can be written again; all counts of the meantime are in it",
                    self.path,
                )
                self._reason = ""
        self._seconds += time.perf_counter() - begin

    def close(self) -> None:
        """Try once more to write what is new, and close the file."""
        self._next_try = 0.0
        self.write()
        if not self._database:  # the first try met a broken file and set it aside
            self.write()
        if self._reason:
            log.error(
                "the store %s lacks %d findings at the end of the run: %s",
                self.path,
                self.state.unwritten,
                self._reason,
            )
        self._drop()

    def _drop(self) -> None:
        if self._database:
            self._database.close()
        self._database = None

    def _open(self) -> Database:
        """Open the file; if it was removed or replaced, write all counts of this run again."""
        if self._database and self._database.gone:
            self._drop()
            self._write_all_again()
        if not self._database:
            self._database = self._opened()
        return self._database

    def _opened(self) -> Database:
        """Open the file, and read once since when this boot is known to be violated."""
        database = Database.opened(self.path, self._most_bytes)
        if self._violated_since is None:
            self._violated_since = {
                name: datetime.datetime.fromisoformat(first).timestamp()
                for name, first in database.violated_since(iso(self._booted)).items()
            }
        return database

    def _write_all_again(self) -> None:
        """Mark everything of this run as not written: the file that had it is gone."""
        self._written.clear()
        self._rest_written.clear()
        self._evidence.clear()
        self._numbers.clear()
        self._changed = set(self._violations)

    def _write_findings(self, database: Database) -> None:
        """Write new counts; evidence only if it is new or was completed."""
        rest = self._rest - self._rest_written
        if not self._changed and not rest:
            return
        numbers = dict(self._numbers)
        more = {
            signature: self._counted[signature] - self._written[signature]
            for signature in self._changed
        }
        known = {
            name
            for name in self._changed
            if name in numbers and self._evidence.get(name) is self._violations[name].first
        }
        with database.transaction():
            repeats = [
                (more[name], iso(self._violations[name].last_seen), self.run, numbers[name])
                for name in known
            ]
            if not database.add_counts(repeats):
                raise LookupError
            for name in self._changed - known:
                numbers[name] = self._put(database, self._violations[name], more[name])
            hours = self._hours.items()
            database.put_hours(
                (numbers[name], hour, count)
                for name, each in hours
                for hour, count in each.items()
                if count
            )
            database.put_rest(rest)
        self._numbers = numbers
        self._evidence |= {
            signature: self._violations[signature].first for signature in self._changed
        }
        self._written |= self._counted
        self._rest_written = self._rest
        self._hours.clear()
        self._changed.clear()

    def _put(self, database: Database, violation: Violation, more: int) -> int:
        row = violation_json(violation)
        columns = {
            key: row[key]
            for key in (
                "id",
                "invariant",
                "verdict",
                "function",
                "signature",
                "first_seen",
                "last_seen",
            )
        }
        return database.put(
            columns
            | {"more": more, "run": self.run, "evidence": json.dumps(row, ensure_ascii=False)}
        )

    def _tidy(self, database: Database) -> None:
        """Delete rows for age or size, once a minute."""
        if self._monotonic() < self._next_tidy:
            return
        self._next_tidy = self._monotonic() + _TIDY_SECONDS
        self._count_deleted(
            database.delete_old(iso(self._clock() - self._most_seconds), self.run),
            "older than store_days",
        )
        self._count_deleted(database.make_room(self.run), "over store_bytes")

    def _count_deleted(self, signatures: int, why: str) -> None:
        self._deleted += signatures
        if signatures:
            self._numbers.clear()
            log.warning(
                "the store %s: deleted %d signatures (%s); their counts are kept",
                self.path,
                signatures,
                why,
            )

    def _failed(self, error: sqlite3.Error) -> None:
        if is_broken(error):
            self._drop()
            self._write_all_again()
            try:
                set_aside(self.path, str(error))
            except OSError as refused:
                self._trouble(f"{error}; it cannot be renamed: {refused}")
            return
        if code(error) == sqlite3.SQLITE_FULL and self._database:
            try:  # our own limit may be reached, not that of the disk
                self._count_deleted(self._database.make_room(self.run), "over store_bytes")
            except sqlite3.Error as again:
                error = again
        self._trouble(str(error))

    def _trouble(self, reason: str) -> None:
        self._failures += 1
        self._next_try = self._monotonic() + _RETRY_SECONDS
        if not self._reason:
            log.error(
                "the store %s cannot be written (%s): counts stay in memory until it can be",
                self.path,
                reason,
            )
        self._reason = reason


def _hour(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds // 3600 * 3600, datetime.UTC).strftime(
        "%Y-%m-%dT%H:%M:%SZ"
    )
