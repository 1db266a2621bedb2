"""Read a store without writing to it, also while the daemon runs."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import stat
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tracer.errors import RmapdError, Temporary, of_os, passes
from tracer.outputs.store.schema import APPLICATION, MIGRATIONS

_WAIT_SECONDS = 5.0
_PASSING = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_FULL)


@dataclass(frozen=True)
class StoreContents:
    """The content of a store, the latest rows last.

    violations: as json_form.violation_json(), with "hours" ({"2026-01-01T00:00:00Z": count}) and
    "runs" (the ids of the first and the last one). runs: id, kernel, started, written, ended (None
    if it still runs or was killed), rmapd, report (as json_form.as_json(), violations without
    evidence). rest: the number of findings without a row of their own, by (why, invariant,
    verdict).
    """

    path: Path
    violations: list[dict[str, Any]]
    runs: list[dict[str, Any]]
    rest: Counter[tuple[str, str, str]]

    def run_of(self, violation: dict[str, Any]) -> dict[str, Any] | None:
        """Return the last run that saw a violation, or None if that run was deleted."""
        return next((run for run in self.runs if run["id"] == violation["runs"]["last"]), None)


def read(path: Path) -> StoreContents:
    """Read a store.

    RmapdError if there is none or if it cannot be read; Temporary if a later attempt may succeed.
    """
    try:
        is_file = stat.S_ISREG(path.stat().st_mode)
        if is_file:
            path.open("rb").close()
    except FileNotFoundError:
        is_file = False
    except OSError as error:
        raise of_os(
            error, f"cannot read the store {path}", "sudo, or the user that rmapd run becomes"
        ) from error
    if not is_file:
        raise RmapdError(
            f"there is no store {path}",
            why="rmapd run writes it",
            hint="--store FILE, or the key `store` of the configuration",
        )
    try:
        with _open(path) as database:
            _check(database, path)
            return StoreContents(path, _violations(database), _runs(database), _rest(database))
    except (sqlite3.Error, OSError, ValueError, RecursionError) as error:
        if passes(error) or getattr(error, "sqlite_errorcode", 0) & 0xFF in _PASSING:
            raise Temporary(
                f"cannot read the store {path} now", why=str(error), hint="the same again later"
            ) from error
        hint = "rmapd run sets a broken store aside and begins a new one"
        raise RmapdError(f"cannot read the store {path}", why=str(error), hint=hint) from error


@contextlib.contextmanager
def _open(path: Path) -> Iterator[sqlite3.Connection]:
    """Open a store read-only in one transaction, so that concurrent writes are not seen."""
    with contextlib.ExitStack() as stack:
        database = stack.enter_context(contextlib.closing(connect(path)))
        try:
            database.execute("BEGIN")
            database.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        except sqlite3.OperationalError:  # the folder is not writable: WAL needs its -shm file
            database.close()
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="rmapd-store-"))
            copy = Path(folder, "copy.db")
            for end in ("", "-wal"):
                if (original := Path(f"{path}{end}")).exists():
                    Path(f"{copy}{end}").write_bytes(original.read_bytes())
            database = stack.enter_context(contextlib.closing(connect(copy)))
            database.execute("BEGIN")
        yield database


def connect(path: Path) -> sqlite3.Connection:
    """Open a database read-only."""
    database = sqlite3.connect(
        f"file:{quote(str(path))}?mode=ro", uri=True, timeout=_WAIT_SECONDS, isolation_level=None
    )
    database.row_factory = sqlite3.Row
    return database


def _check(database: sqlite3.Connection, path: Path) -> None:
    (application,), (version,) = (
        database.execute("PRAGMA application_id").fetchone(),
        database.execute("PRAGMA user_version").fetchone(),
    )
    if application != APPLICATION:
        raise RmapdError(
            f"{path} is no store of rmapd",
            why="it is another program's database",
            hint="the FILE of rmapd run --store",
        )
    if version > len(MIGRATIONS):
        why = f"its schema is {version}, this rmapd knows {len(MIGRATIONS)}"
        raise RmapdError(
            f"the store {path} was written by a newer rmapd", why=why, hint="that rmapd"
        )
    if version < len(MIGRATIONS):
        raise RmapdError(
            f"the store {path} was written by an older rmapd",
            why=f"its schema is {version}",
            hint="rmapd run takes it over",
        )


def _violations(database: sqlite3.Connection) -> list[dict[str, Any]]:
    hours: defaultdict[int, dict[str, int]] = defaultdict(dict)
    for number, hour, count in database.execute(
        "SELECT number, hour, count FROM hour ORDER BY number, hour"
    ):
        hours[number][hour] = count
    found = []
    for row in database.execute(
        "SELECT * FROM signature JOIN evidence USING (number) ORDER BY last_seen"
    ):
        now = {key: row[key] for key in ("first_seen", "last_seen", "count")}
        runs = {"first": row["first_run"], "last": row["last_run"]}
        found.append(
            json.loads(row["evidence"]) | now | {"hours": hours[row["number"]], "runs": runs}
        )
    return found


def _runs(database: sqlite3.Connection) -> list[dict[str, Any]]:
    rows = database.execute(
        "SELECT id, kernel, started, written, ended, rmapd, report FROM run ORDER BY started"
    )
    return [dict(row) | {"report": json.loads(row["report"])} for row in rows]


def _rest(database: sqlite3.Connection) -> Counter[tuple[str, str, str]]:
    rows = database.execute("SELECT why, invariant, verdict, count FROM rest")
    return Counter({(why, invariant, verdict): count for why, invariant, verdict, count in rows})
