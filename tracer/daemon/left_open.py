"""What a span of time left open: migration entries with neither a removal nor a verdict yet."""

from __future__ import annotations

from dataclasses import dataclass

from tracer.daemon.session import Session


@dataclass(frozen=True)
class LeftOpen:
    """The number of entries, and the age of the oldest in seconds."""

    entries: int = 0
    oldest_seconds: float = 0.0


def left_open(session: Session, since_ns: int, until_ns: int) -> LeftOpen:
    """Return the entries that were inserted in this time and are open now.

    An entry that is in no row and in no case may be of any time, and counts.
    """
    open_cases, now = session.checker.open_cases, session.clock()
    outstanding = session.outstanding()  # before the rows: what is removed meanwhile is in none
    rows = session.probes.tables.ledger.rows() if outstanding else []
    held = [row for _, row, _ in open_cases.cases.values() if row]
    inserted = {row.key: row for row in (*held, *rows) if since_ns <= row.first_ns <= until_ns}
    found = sum(
        row is None and since_ns <= case.opened_ns <= until_ns
        for case, row, _ in open_cases.cases.values()
    )
    nowhere = max(0, outstanding - sum(row.count for row in rows) - open_cases.held())
    oldest = min((row.first_ns for row in inserted.values()), default=now)
    entries = sum(row.count for row in inserted.values()) + found + nowhere
    return LeftOpen(entries, (now - oldest) / 1e9)
