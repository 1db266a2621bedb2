"""The store's tables. A change is a further migration, never an edit of one that was released: user_version counts them.

`signature` has a row per defect, `evidence` report.violation_json() of its first sighting; for what changes, the columns are the truth.
It is a table of its own, or each repeat would write all of it again.
`hour` has its findings per hour, `rest` those that have no row of their own: too many signatures, or forgotten for size or age.
`run` has a row per run of the daemon, `report` being report.as_json() as it was last written, with the violations in short.
"""

from __future__ import annotations

APPLICATION = 0x726D6170  # PRAGMA application_id: "rmap"

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        "CREATE TABLE run (id TEXT PRIMARY KEY, kernel TEXT NOT NULL, rmapd TEXT NOT NULL, started TEXT NOT NULL, written TEXT NOT NULL, "
        "ended TEXT, report TEXT NOT NULL)",
        "CREATE TABLE signature (number INTEGER PRIMARY KEY, signature TEXT NOT NULL UNIQUE, id TEXT NOT NULL, invariant TEXT NOT NULL, "
        "verdict TEXT NOT NULL, function TEXT NOT NULL, first_seen TEXT NOT NULL, last_seen TEXT NOT NULL, count INTEGER NOT NULL, "
        "first_run TEXT NOT NULL, last_run TEXT NOT NULL, evidence TEXT NOT NULL)",
        "CREATE INDEX signature_id ON signature (id)",
        "CREATE INDEX signature_last_seen ON signature (last_seen)",
        "CREATE TABLE hour (number INTEGER NOT NULL REFERENCES signature, hour TEXT NOT NULL, count INTEGER NOT NULL, "
        "PRIMARY KEY (number, hour)) WITHOUT ROWID",
        "CREATE TABLE rest (why TEXT NOT NULL, invariant TEXT NOT NULL, verdict TEXT NOT NULL, count INTEGER NOT NULL, "
        "PRIMARY KEY (why, invariant, verdict)) WITHOUT ROWID",
    ),
    (  # a repeat writes its row anew, and with it all that the row has
        "CREATE TABLE evidence (number INTEGER PRIMARY KEY REFERENCES signature, evidence TEXT NOT NULL)",
        "INSERT INTO evidence SELECT number, evidence FROM signature",
        "ALTER TABLE signature DROP COLUMN evidence",
        "DROP INDEX signature_last_seen",
    ),
)
"""The statements that lead from one version to the next."""
