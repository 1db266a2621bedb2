"""The store: its rows, its limits, and its file when that is broken, locked or removed."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest

from tests.support.snapshots import FINDING, snapshot
from tracer.errors import RmapdError
from tracer.invariants.verdict import Finding, Tally, Verdict, Violation
from tracer.outputs.store import reader as stored
from tracer.outputs.store import schema
from tracer.outputs.store.database import Database
from tracer.outputs.store.writer import Store
from tracer.results.json_form import as_json, violation_json

T0 = 1_767_225_600.0  # 2026-01-01T00:00:00Z
KILLS = int(os.environ.get("RMAPD_KILLS", "40"))
MIB = 1 << 20


class Clock:
    """A clock for both Unix and monotonic time."""

    def __init__(self) -> None:
        self.now = T0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "rmapd.db"


def store(
    path: Path, clock: Clock, most_bytes: int = 64 * MIB, days: float = 90, must: bool = True
) -> Store:
    return Store(path, "6.1-test", most_bytes, days, must=must, clock=clock, monotonic=clock)


def finding(n: int = 0, stack: tuple[str, ...] = ("do_brk_flags+0x1",), size: int = 10) -> Finding:
    return Finding(
        "L3",
        Verdict.VIOLATED,
        "do_brk_flags",
        f"shape {n}",
        "s",
        {"pid": n},
        stack,
        {"blob": "x" * size},
    )


def counts(path: Path) -> dict[str, int]:
    return {
        violation["signature"]: violation["count"] for violation in stored.read(path).violations
    }


def test_stored_violation_equals_that_of_a_report(path: Path, clock: Clock) -> None:
    one, violation = store(path, clock), Violation(FINDING, T0, T0 + 1)
    one.keep([violation], {})
    one.keep_run(as_json(snapshot(), ["rmapd", "run"], 0))
    found = stored.read(path)
    (kept,) = found.violations
    assert {key: kept[key] for key in violation_json(violation)} == violation_json(violation)
    assert kept["hours"] == {"2026-01-01T00:00:00Z": 1}
    (run,) = found.runs
    assert (run["kernel"], run["ended"], run["report"]["kernel"]) == ("6.1-test", None, "6.1-test")
    assert run["report"]["violations"][0]["id"] == FINDING.id
    assert found.run_of(kept) == run
    one.keep_run(as_json(snapshot(), ["rmapd", "run"], 0), ended=True)
    one.close()
    assert stored.read(path).runs[0]["ended"]
    assert path.stat().st_mode & 0o777 == 0o600


def test_signature_of_earlier_run_is_continued(path: Path, clock: Clock) -> None:
    for run in range(3):
        one, tally = store(path, clock), Tally()
        for _ in range(5):
            clock.now += 1800
            tally.record(FINDING, clock.now)
            one.keep(tally.violations.values(), {})
        one.close()
        (kept,) = stored.read(path).violations
        assert kept["count"] == 5 * (run + 1)
        assert sum(kept["hours"].values()) == kept["count"]
        assert kept["first_seen"] == "2026-01-01T00:30:00.000000Z"
        assert (kept["runs"]["first"] == one.run) == (run == 0)
        assert kept["runs"]["last"] == one.run
    assert len(kept["hours"]) == 8


def test_next_run_of_the_same_boot_knows_since_when_an_invariant_is_violated(
    path: Path, clock: Clock
) -> None:
    """A restart of the daemon does not clear the alert, and a reboot does."""
    suspect = Finding("M4", Verdict.SUSPECT, "f", "s", "t")
    for seconds, seen in ((0, (finding(1),)), (3600, (finding(1), finding(2), suspect))):
        clock.now, tally = T0 + seconds, Tally()
        for one in seen:
            tally.record(one, clock.now)
        before = store(path, clock)
        before.keep(tally.violations.values(), {})
        before.close()
    for booted, expected in (
        (T0 - 1, {"L3": T0}),
        (T0 + 1, {"L3": T0 + 3600}),  # a defect of an earlier boot that came again in this one
        (T0 + 3601, {}),
    ):
        after = Store(path, "6.1-test", 64 * MIB, 90, booted=booted, clock=clock, monotonic=clock)
        assert after.state.violated_since == expected
        after.close()


def test_million_repeats_are_one_row(path: Path, clock: Clock) -> None:
    one, tally = store(path, clock), Tally()
    for n in range(1_000_000):
        tally.record(FINDING, clock.now)
        if n % 10_000 == 0:
            clock.now += 1
            one.keep(tally.violations.values(), tally.rest)
    one.keep(tally.violations.values(), tally.rest)
    one.close()
    (kept,) = stored.read(path).violations
    assert (kept["count"], kept["hours"]) == (1_000_000, {"2026-01-01T00:00:00Z": 1_000_000})
    assert path.stat().st_size < 100_000


def test_similar_defects_have_different_rows(path: Path, clock: Clock) -> None:
    tally = Tally()
    for n in range(300):
        tally.record(finding(n % 150), clock.now)
    one = store(path, clock)
    one.keep(tally.violations.values(), tally.rest)
    assert counts(path) == {finding(n).signature: 2 for n in range(150)}


def test_findings_beyond_a_thousand_signatures_are_counted(path: Path, clock: Clock) -> None:
    one, tally = store(path, clock), Tally(most_signatures=10)
    for n in range(25):
        tally.record(finding(n), clock.now, 2)
        one.keep(tally.violations.values(), tally.rest)
    found = stored.read(path)
    assert len(found.violations) == 10
    assert found.rest == {("over", "L3", "violated"): 30}
    assert (
        sum(counts(path).values()) + found.rest.total()
        == tally.checks["L3", Verdict.VIOLATED]
        == 50
    )


def test_completed_evidence_replaces_incomplete_evidence(path: Path, clock: Clock) -> None:
    one, violation = store(path, clock), Violation(finding(stack=()), T0, T0)
    one.keep([violation], {})
    violation.first = finding(stack=("late+0x1",))
    one.keep([violation], {})
    assert stored.read(path).violations[0]["stack"] == ["late+0x1"]
    assert counts(path) == {finding().signature: 1}
    two = store(path, clock)
    two.keep([Violation(finding(stack=("other+0x1",)), T0, T0)], {})
    assert stored.read(path).violations[0]["stack"] == ["late+0x1"], "the first sighting's stays"


def break_header(path: Path) -> None:
    path.write_bytes(b"this is no database at all" * 500)


def break_page(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    for at in range(4096, len(raw), 4096):
        raw[at : at + 64] = os.urandom(64)
    path.write_bytes(raw)


@pytest.mark.parametrize("damage", [break_header, break_page, lambda path: os.truncate(path, 5000)])
def test_broken_file_is_renamed_and_new_one_is_started(
    path: Path, clock: Clock, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    one = store(path, clock)
    one.keep([Violation(finding(), T0, T0)], {})
    one.close()
    damage(path)
    with pytest.raises(RmapdError, match=r"cannot read the store|no store of rmapd"):
        stored.read(path)
    two = store(path, clock)
    two.keep([Violation(finding(1), T0, T0)], {})
    assert counts(path) == {finding(1).signature: 1}
    assert len(list(path.parent.glob("rmapd.db.broken-2*"))) == 1
    assert "is broken" in caplog.text


def test_file_that_breaks_during_run_loses_only_earlier_runs(path: Path, clock: Clock) -> None:
    one, violation = store(path, clock), Violation(finding(), T0, T0, 7)
    one.keep([violation], {})
    with sqlite3.connect(path) as other:
        other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    other.close()
    break_page(path)
    for _ in range(3):
        violation.count += 1
        clock.now += 6
        one.keep([violation], {})
    assert counts(path) == {finding().signature: 10}
    assert list(path.parent.glob("rmapd.db.broken-*"))


def test_removed_file_is_created_again(path: Path, clock: Clock) -> None:
    one, violation = store(path, clock), Violation(finding(), T0, T0, 7)
    one.keep([violation], {})
    path.unlink()
    violation.count += 1
    one.keep([violation], {})
    assert counts(path) == {finding().signature: 8}


def test_deleted_row_is_inserted_again(path: Path, clock: Clock) -> None:
    one, tally = store(path, clock), Tally()
    for n in range(6):
        tally.record(finding(n % 3), clock.now)
        one.keep(tally.violations.values(), tally.rest)
    with sqlite3.connect(path) as other:
        other.execute("DELETE FROM signature WHERE signature = ?", (finding(1).signature,))
    other.close()
    for n in range(3):
        tally.record(finding(n), clock.now)
    one.keep(tally.violations.values(), tally.rest)
    assert counts(path) == {
        finding(0).signature: 3,
        finding(1).signature: 1,
        finding(2).signature: 3,
    }


def test_locked_store_is_written_later(
    path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    one, violation = store(path, clock), Violation(finding(), T0, T0, 1)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    for _ in range(20):
        violation.count += 1
        clock.now += 1
        one.keep([violation], {})
    assert one.state.unwritten == 21
    assert "locked" in one.state.reason
    assert one.state.failures <= 5, "tried again every few seconds, not every tick"
    other.execute("ROLLBACK")
    other.close()
    clock.now += 6
    one.keep([violation], {})
    assert (counts(path), one.state.unwritten, one.state.reason) == (
        {finding().signature: 21},
        0,
        "",
    )
    assert caplog.text.count("cannot be written") == 1


def test_hours_of_a_store_that_cannot_be_written_are_bounded(path: Path, clock: Clock) -> None:
    one, tally = store(path, clock), Tally()
    with sqlite3.connect(path) as other:
        other.execute("BEGIN EXCLUSIVE")
        for _ in range(60):
            clock.now += 3600
            tally.record(FINDING, clock.now)
            one.keep(tally.violations.values(), {})
        assert one.state.unwritten == 60
    other.close()
    one.close()
    (kept,) = stored.read(path).violations
    assert (kept["count"], sum(kept["hours"].values()), len(kept["hours"])) == (60, 60, 48)
    assert kept["hours"]["2026-01-01T13:00:00Z"] == 13


def test_old_signatures_and_runs_are_deleted_and_counts_kept(path: Path, clock: Clock) -> None:
    one = store(path, clock, days=10)
    one.keep([Violation(finding(), clock.now, clock.now, 5)], {})
    one.keep_run(as_json(snapshot(), ["rmapd", "run"], 0), ended=True)
    one.close()
    clock.now += 11 * 86400
    two = store(path, clock, days=10)
    two.keep([Violation(finding(1), clock.now, clock.now, 3)], {})
    found = stored.read(path)
    assert counts(path) == {finding(1).signature: 3}
    assert found.rest == {("aged", "L3", "violated"): 5}
    assert not found.runs


def test_store_stays_within_store_bytes(path: Path, clock: Clock) -> None:
    one, tally = store(path, clock, most_bytes=MIB), Tally()
    for n in range(400):
        clock.now += 70
        tally.record(finding(n, size=10_000), clock.now)
        one.keep(tally.violations.values(), tally.rest)
    found = stored.read(path)
    assert path.stat().st_size <= MIB
    assert one.state.forgotten > 0
    assert one.state.unwritten == 0
    assert sum(counts(path).values()) + found.rest.total() == 400
    assert finding(399).signature in counts(path)


def older(monkeypatch: pytest.MonkeyPatch, path: Path, clock: Clock) -> None:
    store(path, clock).keep([Violation(finding(), T0, T0, 4)], {})
    step = ("ALTER TABLE run ADD COLUMN machine TEXT",)
    for module in ("tracer.outputs.store.database", "tracer.outputs.store.reader"):
        monkeypatch.setattr(f"{module}.MIGRATIONS", (*schema.MIGRATIONS, step))


def test_older_store_is_migrated_and_continued(
    monkeypatch: pytest.MonkeyPatch, path: Path, clock: Clock
) -> None:
    older(monkeypatch, path, clock)
    with pytest.raises(RmapdError, match="written by an older rmapd"):
        stored.read(path)
    store(path, clock).keep([], {})
    assert counts(path) == {finding().signature: 4}
    monkeypatch.undo()
    with pytest.raises(RmapdError, match="written by a newer rmapd"):
        stored.read(path)
    with pytest.raises(RmapdError, match="written by a newer rmapd"):
        store(path, clock)
    assert not list(path.parent.glob("*.broken-*"))


def test_rows_of_first_schema_survive_migration(
    monkeypatch: pytest.MonkeyPatch, path: Path, clock: Clock
) -> None:
    """Version 1 had the evidence in the signature's row."""
    violation = Violation(finding(), T0, T0, 4)
    with sqlite3.connect(path, isolation_level=None) as old:
        for statement in (
            *schema.MIGRATIONS[0],
            f"PRAGMA application_id = {schema.APPLICATION}",
            "PRAGMA user_version = 1",
        ):
            old.execute(statement)
        row = violation_json(violation)
        columns = [
            row[name]
            for name in (
                "signature",
                "id",
                "invariant",
                "verdict",
                "function",
                "first_seen",
                "last_seen",
                "count",
            )
        ]
        old.execute(
            "INSERT INTO signature VALUES (1, ?, ?, ?, ?, ?, ?, ?, ?, 'run', 'run', ?)",
            (*columns, json.dumps(row)),
        )
    old.close()
    store(path, clock).keep([Violation(finding(), T0, T0, 3)], {})
    (kept,) = stored.read(path).violations
    assert kept["count"] == 7
    assert kept["evidence"] == row["evidence"]


def test_database_of_another_program_is_not_changed(path: Path, clock: Clock) -> None:
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE theirs (x)")
    other.close()
    before = path.read_bytes()
    with pytest.raises(RmapdError, match="another program's database"):
        store(path, clock)
    store(path, clock, must=False).keep([Violation(finding(), T0, T0)], {})
    assert path.read_bytes() == before
    with pytest.raises(RmapdError, match="no store of rmapd"):
        stored.read(path)


def test_missing_store_and_missing_folder_are_errors(tmp_path: Path, clock: Clock) -> None:
    with pytest.raises(RmapdError, match="there is no store"):
        stored.read(tmp_path / "none.db")
    with pytest.raises(RmapdError, match="cannot write the store"):
        store(tmp_path / "no/folder.db", clock)
    one = store(tmp_path / "no/folder.db", clock, must=False)
    one.keep([Violation(finding(), T0, T0, 4)], {})
    assert (one.state.unwritten, bool(one.state.reason)) == (4, True)
    (tmp_path / "no").mkdir()
    clock.now += 6
    one.keep([], {})
    assert counts(tmp_path / "no/folder.db") == {finding().signature: 4}


@pytest.mark.parametrize(("free", "waits"), [(0, True), (1, False)])
def test_store_on_a_full_disk_is_written_once_there_is_room(
    path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch, free: int, waits: bool
) -> None:
    """Where the file exists, SQLite has no room for its shared memory: an I/O error, not FULL."""
    before = store(path, clock)
    before.keep([Violation(finding(1), T0, T0)], {})
    before.close()

    def refused(*_: object) -> NoReturn:
        error = sqlite3.OperationalError("disk I/O error")
        error.sqlite_errorcode = sqlite3.SQLITE_IOERR_SHMSIZE
        raise error

    with monkeypatch.context() as full:
        full.setattr(Database, "opened", refused)
        full.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=free))
        if not waits:
            with pytest.raises(RmapdError, match="disk I/O error"):
                store(path, clock)
            return
        one = store(path, clock)
        assert (one.state.reason, one.state.violated_since) == ("disk I/O error", {})
    clock.now += 6
    one.keep([Violation(finding(2), T0, T0)], {})
    assert (one.state.reason, one.state.violated_since) == ("", {"L3": T0})
    assert set(counts(path)) == {finding(1).signature, finding(2).signature}


def test_reader_without_write_access_to_folder_reads_copy(
    path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = store(path, clock)
    one.keep([Violation(finding(), T0, T0, 4)], {})
    connect = stored.connect

    class Unwilling:
        def execute(self, _sql: str) -> None:
            raise sqlite3.OperationalError("unable to open database file")

        def close(self) -> None: ...

    monkeypatch.setattr(stored, "connect", lambda at: Unwilling() if at == path else connect(at))
    assert counts(path) == {finding().signature: 4}


def pour(path: Path, out: int, report: dict[str, Any]) -> None:
    """Write findings for ever, and print the counts that should be in the file."""
    one, tally, n = Store(path, "6.1-test", 64 * MIB, 90), Tally(), 0
    while True:
        for _ in range(100):
            tally.record(finding(n % 20, size=3000), time.time())
            n += 1
        one.keep(tally.violations.values(), tally.rest)
        if n % 700 == 0:
            one.keep_run(report)
        os.write(out, f"{n if not one.state.unwritten else 0}\n".encode())


@pytest.fixture
def dice() -> random.Random:
    return random.Random(int(os.environ.get("RMAPD_SEED", "5")))


def test_store_is_readable_and_counts_never_fall_after_kill(
    path: Path, dice: random.Random
) -> None:
    """A quarter of the kills hit while the store is opened, the others while it is written."""
    before, report = Counter[str](), as_json(snapshot(), ["rmapd", "run"], 0)
    for kill in range(KILLS):
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            os.close(reader)
            try:
                pour(path, writer, report)
            finally:
                os._exit(1)
        os.close(writer)
        with os.fdopen(reader) as stream:
            for _ in range(dice.randint(1, 4) if kill % 4 else 0):
                stream.readline()
            time.sleep(dice.uniform(0, 0.03))
            os.kill(child, signal.SIGKILL)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
            believed = max((int(line) for line in stream.read().split()), default=0)
        try:
            now = Counter(counts(path))
        except RmapdError:
            assert not before, "a store that was begun can always be read"
            continue
        assert all(now[signature] >= count for signature, count in before.items())
        assert now.total() - before.total() >= believed
        before = now
    assert before.total() > 100 * KILLS
    assert not list(path.parent.glob("*.broken-*"))
