"""How many checks there were by verdict: settled by probes, and decided by the checker."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping

from tracer.invariants.base import Invariant
from tracer.invariants.verdict import Verdict

FIRST_WALKS = ("emptied", "pinned", "ksm", "anon", "file")
"""What a first rmap walk left: FIRST_WALKS_* of `enum counter`."""

Checks = Mapping[tuple[str, Verdict], int]
"""(invariant, verdict) -> checks."""


def all_checks(
    invariants: Iterable[Invariant],
    covered: Collection[str],
    decided: Checks,
    counters: Mapping[str, int],
    missed_runs: Mapping[str, int],
) -> dict[tuple[str, Verdict], int]:
    """Add the probes' counters and losses to what the checker decided, as invariants declare.

    covered: invariants that had coverage when the gate opened; a loss costs the others nothing. It
    stays the same for a run, or a count could fall. decided: by the checker (Tally.checks).
    missed_runs: hook -> runs that the kernel missed.
    """
    found = Counter(decided)
    for one in invariants:
        recorded = decided.get((one.id, Verdict.VIOLATED), 0)
        for verdict, count in one.settled(counters, recorded).items():
            found[one.id, verdict] += count
        if one.id in covered:
            found[one.id, Verdict.UNVERIFIABLE] += one.lost(counters, missed_runs)
    return {which: count for which, count in found.items() if count}


_TABLES: Mapping[str, tuple[str, ...]] = {
    "evidence": ("EVIDENCE_LOST",),
    "protocols": ("PROTOCOLS_LOST", "WINDOWS_LOST", "WINDOWS_UNCLOSED"),
    "ledger": ("LEDGER_LOST", "MIGRATIONS_LOST"),
    "locks": ("LOCKS_LOST",),
    "mms": ("MMS_LOST",),
}
"""The key of `lost` in reports -> counters of events that could not be recorded."""


def lost_events(
    invariants: Iterable[Invariant], counters: Mapping[str, int], unreadable: int, missed_runs: int
) -> dict[str, int]:
    """Count the events that were lost, by what overflowed.

    Invariants may declare tables of their own. unreadable: windows whose protocol cannot be
    decoded. missed_runs: of all programs.
    """
    tables = dict(_TABLES)
    for loss in (loss for one in invariants for loss in one.losses):
        tables[loss.table] = tuple(dict.fromkeys((*tables.get(loss.table, ()), *loss.counters)))
    found = {
        table: sum(counters.get(name, 0) for name in names)
        for table, names in tables.items()
        if names
    }
    return found | {"unreadable": unreadable, "missed_runs": missed_runs}
