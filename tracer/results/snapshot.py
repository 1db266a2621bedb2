"""What the daemon knows at one moment, immutable: the scrape, the status line and the report read this and nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from tracer.attach.plan import PlannedHook
from tracer.bpf.programs import RunStatistics
from tracer.invariants.base import Coverage, Invariant
from tracer.invariants.verdict import Tally, Verdict, Violation
from tracer.results.protocols import LockNesting, ProtocolVerdict
from tracer.tables.histogram import Histogram


@dataclass(frozen=True)
class StoreState:
    """For metrics and log. reason: why it cannot be written now; unwritten: findings that are counted in memory only;
    seconds: spent writing; forgotten: signatures dropped for size or age."""

    path: str = ""
    reason: str = ""
    unwritten: int = 0
    writes: int = 0
    failures: int = 0
    seconds: float = 0.0
    forgotten: int = 0


@dataclass(frozen=True)
class Snapshot:
    """times in seconds, taken_seconds since the epoch; counts since the gate opened. rest: findings beyond the bound on signatures.

    required: invariants that must be checkable; ended_early: why the run was cut short, in a sentence.
    entries: recorded migration entries whose removal was not seen, by M1's verdict on them. At every moment, recorded and copied entries
    are those removed, those in `entries`, and those outstanding."""

    kernel: str
    fidelity: str
    gate_open: bool
    running_seconds: float
    hooks: tuple[PlannedHook, ...]
    invariants: Mapping[str, Invariant]
    coverage: Mapping[str, tuple[Coverage, str]]
    checks: Mapping[tuple[str, Verdict], int]
    violations: Mapping[str, Violation]
    statistics: Mapping[str, RunStatistics] = field(default_factory=dict)
    histograms: Mapping[str, Histogram] = field(default_factory=dict)
    window_times: Mapping[str, Histogram] = field(default_factory=dict)
    windows_unsampled: Mapping[str, int] = field(default_factory=dict)
    lock_waits: Mapping[str, Histogram] = field(default_factory=dict)
    lock_holds: Mapping[str, Histogram] = field(default_factory=dict)
    protocols: tuple[ProtocolVerdict, ...] = ()
    lock_graph: tuple[LockNesting, ...] = ()
    unreadable: int = 0
    counters: Mapping[str, int] = field(default_factory=dict)
    entries: Mapping[Verdict, int] = field(default_factory=dict)
    outstanding: int = 0
    oldest_entry_seconds: float = 0.0
    oracle: Mapping[str, int] = field(default_factory=dict)
    oracle_reason: str = ""
    otlp: Mapping[str, int] = field(default_factory=dict)
    user_seconds: float = 0.0
    peak_rss_bytes: int = 0
    taken_seconds: float = 0.0
    cpus: int = 1
    fidelity_changes: Mapping[str, int] = field(default_factory=dict)
    rest: Mapping[tuple[str, Verdict], int] = field(default_factory=dict)
    store: StoreState | None = None
    required: tuple[str, ...] = ()
    age_limit_seconds: float = 10.0
    ended_early: str = ""

    @property
    def lost(self) -> dict[str, int]:
        """Events lost, by book."""
        c = self.counters
        return {
            "evidence": c.get("EVIDENCE_LOST", 0),
            "protocols": c.get("PROTOCOLS_LOST", 0)
            + c.get("WINDOWS_LOST", 0)
            + c.get("WINDOWS_UNCLOSED", 0),
            "unreadable": self.unreadable,
            "ledger": c.get("LEDGER_LOST", 0) + c.get("MIGRATIONS_LOST", 0),
            "locks": c.get("LOCKS_LOST", 0),
            "mms": c.get("MMS_LOST", 0),
            "missed_runs": sum(s.missed for s in self.statistics.values()),
        }

    @property
    def decided(self) -> dict[str, int]:
        """Recorded migration entries that were not seen removed, by what became of them."""
        words = {Verdict.HOLDS: "cleared"}
        return {
            words.get(verdict, verdict.value): self.entries.get(verdict, 0) for verdict in Verdict
        }

    def total(self, verdict: Verdict) -> int:
        return sum(count for (_, found), count in self.checks.items() if found is verdict)

    def checked(self, invariant: str, verdict: Verdict) -> int:
        return self.checks.get((invariant, verdict), 0)


OF_THE_LEDGER = tuple(
    "mm_migrate_pages_start mm_migrate_pages set_migration_pte set_migration_pmd remove_migration_pte remove_migration_pmd".split()
    + "first_walk second_walk thp_split freeze".split()
)
"""Hooks whose missed run may leave an entry in the ledger that is long gone, or give it another's removal."""


def checks(
    tally: Tally,
    counters: Mapping[str, int],
    statistics: Mapping[str, RunStatistics],
    ruled: Iterable[str] = (),
) -> dict[tuple[str, Verdict], int]:
    """All checks: those the kernel settled by itself, and those that were judged here. ruled: invariants that windows are judged by."""

    def missed(*hooks: str) -> int:
        return sum(statistics[name].missed for name in hooks if name in statistics)

    lost = counters["LEDGER_LOST"] + missed("set_migration_pte", "set_migration_pmd")
    out = dict(tally.checks)
    for invariant, verdict, count in (
        ("M1", Verdict.HOLDS, counters["M1_HOLDS"]),
        ("M1", Verdict.UNVERIFIABLE, counters["M1_UNVERIFIABLE"] + lost),
        ("M4", Verdict.HOLDS, counters["M4_HOLDS"]),
        ("M4", Verdict.UNVERIFIABLE, lost),
        ("M2", Verdict.HOLDS, counters["M2_HOLDS"]),
        (
            "M2",
            Verdict.VIOLATED,
            max(0, counters["M2_VIOLATED"] - tally.checks["M2", Verdict.VIOLATED]),
        ),
        ("M2", Verdict.UNVERIFIABLE, missed("first_walk") + counters["M2_UNVERIFIABLE"]),
        ("M3", Verdict.HOLDS, counters["M3_HOLDS"]),
        (
            "M3",
            Verdict.VIOLATED,
            max(0, counters["M3_VIOLATED"] - tally.checks["M3", Verdict.VIOLATED]),
        ),
        ("M3", Verdict.UNVERIFIABLE, missed("second_walk")),
        ("M5", Verdict.HOLDS, counters["M5_HOLDS"]),
        ("M5", Verdict.UNVERIFIABLE, lost if "first_walk" in statistics else 0),
        ("L2", Verdict.HOLDS, counters["NESTED_HOLDS"]),
        ("L2", Verdict.UNVERIFIABLE, counters["LOCKS_LOST"]),
    ):
        out[invariant, verdict] = out.get((invariant, verdict), 0) + count
    for invariant in ruled:
        lost = counters["PROTOCOLS_LOST"] + counters["WINDOWS_LOST"]
        out[invariant, Verdict.UNVERIFIABLE] = out.get((invariant, Verdict.UNVERIFIABLE), 0) + lost
    return out
