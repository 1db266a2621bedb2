"""The tables of the store.

To change a table, append a migration; never edit one that was released. user_version counts them.

- signature: a row per defect. Its columns are newer than the same members of `evidence`.
- evidence: json_form.violation_json() of the first sighting. It is a table of its own, because a
  repeat rewrites the row of `signature`.
- hour: the findings of a signature per hour.
- rest: findings without a row of their own, beyond the limit on signatures or deleted for size or
  age.
- run: a row per run of the daemon, with json_form.as_json() as it was last written; violations are
  without evidence.
"""

from __future__ import annotations

APPLICATION = 0x726D6170  # PRAGMA application_id: "rmap"

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        "CREATE TABLE run (id TEXT PRIMARY KEY, kernel TEXT NOT NULL, rmapd TEXT NOT NULL, "
        "started TEXT NOT NULL, written TEXT NOT NULL, ended TEXT, report TEXT NOT NULL)",
        "CREATE TABLE signature (number INTEGER PRIMARY KEY, signature TEXT NOT NULL UNIQUE, "
        "id TEXT NOT NULL, invariant TEXT NOT NULL, verdict TEXT NOT NULL, function TEXT NOT NULL, "
        "first_seen TEXT NOT NULL, last_seen TEXT NOT NULL, count INTEGER NOT NULL, "
        "first_run TEXT NOT NULL, last_run TEXT NOT NULL, evidence TEXT NOT NULL)",
        "CREATE INDEX signature_id ON signature (id)",
        "CREATE INDEX signature_last_seen ON signature (last_seen)",
        "CREATE TABLE hour (number INTEGER NOT NULL REFERENCES signature, hour TEXT NOT NULL, "
        "count INTEGER NOT NULL, PRIMARY KEY (number, hour)) WITHOUT ROWID",
        "CREATE TABLE rest (why TEXT NOT NULL, invariant TEXT NOT NULL, verdict TEXT NOT NULL, "
        "count INTEGER NOT NULL, PRIMARY KEY (why, invariant, verdict)) WITHOUT ROWID",
    ),
    (  # a repeat rewrites its whole row: keep the evidence out of it
        "CREATE TABLE evidence "
        "(number INTEGER PRIMARY KEY REFERENCES signature, evidence TEXT NOT NULL)",
        "INSERT INTO evidence SELECT number, evidence FROM signature",
        "ALTER TABLE signature DROP COLUMN evidence",
        "DROP INDEX signature_last_seen",
    ),
)
"""The statements that migrate each version of the schema to the next."""
