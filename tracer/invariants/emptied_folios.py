"""R1: a migration moves a folio only after its first rmap walk has emptied it."""

from __future__ import annotations

from tracer.invariants.base import CheckCounters, EventReport, Invariant, Loss
from tracer.invariants.verdict import Verdict

_SUMMARY = "an entry at {where} is replaced by a mapping of the new folio, and the old folio"

EMPTIED = Invariant(
    id="R1",
    title="the first walk empties the folio",
    claim=(
        "A folio is moved only if try_to_migrate() has left it without a mapping: while the second"
        " walk maps the new folio, the old one is not mapped."
    ),
    stated=(
        "migrate_folio_unmap() and unmap_and_move_huge_page(), mm/migrate.c, and"
        " migrate_device_unmap(), mm/migrate_device.c, go on only if folio_mapped() is false; both"
        " folios stay locked until remove_migration_ptes() has returned"
    ),
    not_violations=(
        "A folio that is still mapped after try_to_migrate(): it is put back, and migrated later or"
        " not at all. An anonymous page that may be pinned keeps its mapping"
        " (folio_try_share_anon_rmap_pte()), the stack that exec() is moving is left out"
        " (invalid_migration_vma()), and a walk can miss what is mapped, moved or unmapped"
        " meanwhile. These are counted by kind of folio, and not judged"
        " (rmapd_first_walks_total)."
    ),
    confirmed=(
        "By the hook on the second walk: it gets both folios, and the mapcount of the old one is"
        " read at each VMA. By tracepoints alone the old folio is the page of the entry that was"
        " recorded at this address. That it is the same entry is not proven, so one that is mapped"
        " is suspect."
    ),
    blind_spots=(
        "A folio that was moved, and that the second walk finds in no VMA. Large folios before 6.3,"
        " where each page has a mapcount of its own."
    ),
    needs=(
        "second_walk|oracle",
        "second_walk|set_migration_pte",
        "second_walk|remove_migration_pte",
    ),
    lacking={
        "second_walk": (
            "tracepoints alone: a moved folio that is still mapped is suspect, and an address at"
            " which a migration inserted entries of two pages is left out"
        ),
        "second_walk|remove_migration_pmd": "PMD entries are not seen",
        "empty_folio": (
            "a first walk that inserts no entry is not counted, and that of a THP split neither"
        ),
    },
    counters=CheckCounters(
        holds=("R1_HOLDS",), violated=("R1_VIOLATED",), unverifiable=("R1_UNVERIFIABLE",)
    ),
    events=(
        EventReport(
            "MOVED_MAPPED", "remove_migration_pte", _SUMMARY + " {folio:#x} is still mapped"
        ),
        EventReport(
            "MOVED_PERHAPS",
            "remove_migration_pte",
            _SUMMARY + ", {folio:#x} as far as tracepoints show, is still mapped",
            verdict=Verdict.SUSPECT,
        ),
    ),
    losses=(Loss("ledger", missed_runs=("second_walk|remove_migration_pte",)),),
)

INVARIANTS = (EMPTIED,)
