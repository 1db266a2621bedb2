"""M2, M3 and M5: what the rmap walks of a migration find locked, and where the second goes."""

from __future__ import annotations

from tracer.invariants.base import CheckCounters, EventReport, Invariant, Loss, UnbrokenRuns
from tracer.invariants.migration_entries import LEDGER_LOSS
from tracer.invariants.verdict import Ruling, Verdict

_MIGRATE_DEVICE = (
    "migrate_vma_*() (device memory) inserts in mm/migrate_device.c, without a tracepoint and"
    " without try_to_migrate_one()."
)
_SPLITS = {
    "freeze": "a freezing THP split is not seen",
    "thp_split": "THP splits have no beginning and no end: their visits are not recorded",
}

_ALONE = "tracepoints alone: the VMA and the mm of an entry are not known"

INSERTED_UNLOCKED = Invariant(
    id="M2",
    title="inserted under the page lock",
    claim="When a migration entry is inserted, its folio is locked.",
    stated=(
        "try_to_migrate(), mm/rmap.c: caller must hold the folio lock; pfn_swap_entry_to_page(),"
        " include/linux/swapops.h"
    ),
    not_violations="None known.",
    confirmed=(
        "By the hook itself: PG_locked is read where set_migration_pte fires, under the page-table"
        " lock, after the entry is set; for a frozen PMD when its split returns, once for its 512"
        " entries. Where try_to_migrate_one() cannot be hooked the entry names its page, and"
        " PG_locked of the page's folio is read."
    ),
    blind_spots=(
        "PG_locked has no owner: another task's lock looks the same. With the hook on"
        " try_to_migrate_one() an unlocked folio is proof only where the entry is at the address of"
        " the visit. Elsewhere (inside a large folio, or where a visit was not seen) it is"
        " unverifiable. "
    )
    + _MIGRATE_DEVICE,
    needs=("first_walk|oracle", "set_migration_pte", "mm_migrate_pages_start"),
    lacking={"first_walk": _ALONE, "set_migration_pmd": "PMD entries are not seen", **_SPLITS},
    counters=CheckCounters(
        holds=("M2_HOLDS",), violated=("M2_VIOLATED",), unverifiable=("M2_UNVERIFIABLE",)
    ),
    events=(
        EventReport(
            "INSERTED_UNLOCKED",
            "try_to_migrate_one",
            "a migration entry is inserted at {where}, and folio {folio:#x} is not locked",
        ),
    ),
    losses=(Loss("ledger", missed_runs=("first_walk|set_migration_pte",)),),
)

REMOVED_UNLOCKED = Invariant(
    id="M3",
    title="removed under the page lock",
    claim="While remove_migration_ptes() walks, the source and the destination folio are locked.",
    stated=(
        "remove_migration_ptes(), mm/migrate.c: both are unlocked only afterwards, in"
        " migrate_folio_move() and migrate_folio_undo_src(); after a split, remap_page() runs"
        " before the new folios are unlocked, mm/huge_memory.c"
    ),
    not_violations="None known.",
    confirmed=(
        "By the hook itself: PG_locked of both is read at each VMA that the walk visits. Where"
        " remove_migration_pte() cannot be hooked, its tracepoint has the new entry, and PG_locked"
        " of the destination is read."
    ),
    blind_spots=(
        "PG_locked has no owner: another task's lock looks the same. A walk that visits no VMA is"
        " not seen."
    ),
    needs=("second_walk|oracle", "second_walk|remove_migration_pte"),
    lacking={
        "second_walk": _ALONE + ", nor the source folio, nor a visit that restores no entry",
        "second_walk|remove_migration_pmd": "PMD entries are not seen",
    },
    counters=CheckCounters(
        holds=("M3_HOLDS",), violated=("M3_VIOLATED",), unverifiable=("M3_UNVERIFIABLE",)
    ),
    events=(
        EventReport(
            "REMOVED_UNLOCKED",
            "remove_migration_pte",
            "remove_migration_ptes() visits {where}, and folio {folio:#x} is not locked",
        ),
    ),
    losses=(Loss("ledger", missed_runs=("second_walk|remove_migration_pte",)),),
)

PASSED_OVER = Invariant(
    id="M5",
    title="the second walk visits what the first walk visited",
    claim=(
        "Every VMA in which the first rmap walk left an entry, and which still maps that range, is"
        " visited by the second walk."
    ),
    stated=(
        "rmap_walk_anon(), rmap_walk_file(), mm/rmap.c: both walks go by the same interval tree,"
        " under its lock"
    ),
    not_violations="VMAs that were unmapped, and entries that are in no page table any more.",
    confirmed=(
        "An entry that the second walk removes where it was inserted, or where a fork copied it,"
        " holds. For an entry that M1 proves to be left behind, the visits of the second walk in"
        " that mm at that address are looked up: that there was none is the proof."
    ),
    blind_spots=(
        "Unverifiable are: an entry that was moved, copied, or is inside a large folio, if so many"
        " visits came since the migration began that one there may have aged out of its map"
        " (maps.visit_rows); an entry whose folio the walk visited elsewhere in that mm (it was"
        " moved meanwhile, or the page is mapped twice); any entry if the kernel missed runs of the"
        " second walk's program. "
    )
    + _MIGRATE_DEVICE,
    needs=(
        "first_walk",
        "second_walk",
        "set_migration_pte",
        "remove_migration_pte",
        "mm_migrate_pages_start",
    ),
    lacking={
        "walk": "no page-table oracle: a VMA that is passed over is not proven",
        **_SPLITS,
    },
    counters=CheckCounters(holds=("M5_HOLDS",)),
    losses=(LEDGER_LOSS,),
    unbroken=UnbrokenRuns("ledger", ("second_walk",), "the second walk"),
)

INVARIANTS = (INSERTED_UNLOCKED, REMOVED_UNLOCKED, PASSED_OVER)


def rule(visited: bool | None) -> Ruling:
    """Rule on M5 for one entry that is proven to be left behind.

    visited: by the second walk; None: not known.
    """
    if visited is None:
        return Ruling(Verdict.UNVERIFIABLE, "the visits of the second walk are not known")
    if visited:
        return Ruling(
            Verdict.HOLDS, "the second walk visited it and did not restore it", proven=True
        )
    return Ruling(
        Verdict.VIOLATED,
        "the second walk did not visit a VMA in which the first walk left an entry",
        proven=True,
    )
