"""M1 and M4: entries that are in the ledger for too long, judged by what the page tables hold."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from tracer.invariants.base import CheckCounters, Invariant, Loss, UnbrokenRuns
from tracer.invariants.verdict import Verdict
from tracer.memory.entries import FoundEntry, Place

LOOKS = 3
"""How often an entry must be seen with its page unlocked, in fresh walks of a freshly listed mm, to
be proven."""
LOOK_GAP_NS = 5_000_000
"""Time between two looks that count."""

_NO_VISITS = (
    "the visits of the rmap walks are not seen: entries of several mms at one address share a row"
)
_LACKING = {
    "oracle": "no page-table oracle: an entry that is left over stays a suspect",
    "walk": "no page-table oracle: an entry that is left over stays a suspect",
    "tasks": "no BPF task iterator: the oracle cannot list the mms",
    "fork|mmap_lock_acquire_returned": (
        "forks are not seen: a copy that fork() made and the second walk missed goes unnoticed"
    ),
    "sched_process_exit": "exiting mms are not seen",
    "exit_mmap": "exiting mms are not seen",
    "set_migration_pmd": "PMD entries are not recorded",
    "first_walk": _NO_VISITS,
    "second_walk": _NO_VISITS,
    "freeze": (
        "a THP split that freezes a PMD inserts without a tracepoint: only the periodic scan finds"
        " entries that it leaves"
    ),
    "thp_split": (
        "THP splits have no beginning and no end: entries that they leave are looked for after one"
        " second"
    ),
}

LEDGER_HOOKS = (
    "mm_migrate_pages_start",
    "mm_migrate_pages",
    "set_migration_pte",
    "set_migration_pmd",
    "remove_migration_pte",
    "remove_migration_pmd",
    "first_walk",
    "second_walk",
    "thp_split",
    "freeze",
)
"""Hooks whose missed run may leave a row for an entry that is long gone, or give it another entry's
removal."""

LEDGER_LOSS = Loss(
    "ledger",
    counters=("LEDGER_LOST",),
    missed_runs=("set_migration_pte", "set_migration_pmd"),
)
"""Insertions that are in no row."""

LATE, LATE_UNCERTAIN = "M4_LATE", "M4_AGE_UNKNOWN"
"""Counters of removals after the age limit. The checker classifies them when it reads them
(checking/late_removals.py)."""

LEFT_BEHIND = Invariant(
    id="M1",
    title="no migration entry is left behind",
    claim="When the migration of a folio has ended, no page table holds a migration entry for it.",
    stated=(
        "pfn_swap_entry_to_page(), include/linux/swapops.h: BUG_ON(is_migration_entry(entry) &&"
        " !PageLocked(p)); a debug-only warning from 6.19 (93976a20345b)"
    ),
    not_violations=(
        "Entries that munmap(), exit, truncation or MADV_DONTNEED zapped meanwhile; entries that"
        " mremap() moved and the second walk found at their new address; copies that fork() made"
        " and the second walk found too; PMD entries that were split into PTE entries; removals"
        " without an insertion after a THP split that froze its PMD."
    ),
    confirmed=(
        "By three looks at the page table, 5 ms or more apart: the entry is there and its page is"
        " not locked. An entry that is not at its address is searched for in all page tables before"
        " it counts as gone."
    ),
    blind_spots=(
        "An entry that mremap() moves between two page tables during the sweep; a copy made by a"
        " fork that shared its fork window with another fork in the same instant; an entry that"
        " mremap() moves to where another entry of its page was proven and zapped since the last"
        " sweep, and one that is left behind there anew; migrate_vma_*() (device memory), which"
        " inserts without a tracepoint: only the periodic scan finds entries that it leaves."
    ),
    needs=(
        "mm_migrate_pages_start",
        "mm_migrate_pages",
        "set_migration_pte",
        "remove_migration_pte",
    ),
    lacking=_LACKING,
    every_entry=True,
    counters=CheckCounters(holds=("M1_HOLDS",), unverifiable=("M1_UNVERIFIABLE",)),
    losses=(LEDGER_LOSS,),
)

TOO_OLD = Invariant(
    id="M4",
    title="no migration entry is older than its age limit",
    claim="A migration entry is gone within max_entry_age_seconds (10 s) of its insertion.",
    stated=(
        "mm/migrate.c: from migrate_folio_unmap() to migrate_folio_move() the folio is locked, and"
        " every fault on its entries waits"
    ),
    not_violations=(
        "Entries that are in no page table any more. An old entry whose page is still locked is a"
        " slow migration: a suspect. Time in which the checker did not run is no part of an age: a"
        " host that stops a virtual machine makes all of its entries old."
    ),
    confirmed=(
        "The page table holds the entry and its page is not locked: violated. Its page is locked,"
        " or the entry was removed after the age limit: suspect."
    ),
    blind_spots="As for M1.",
    needs=("set_migration_pte", "remove_migration_pte"),
    lacking=_LACKING,
    every_entry=True,
    counters=CheckCounters(holds=("M4_HOLDS",)),
    losses=(LEDGER_LOSS,),
    unbroken=UnbrokenRuns("migration", LEDGER_HOOKS, "insertions, removals or migrations"),
)

INVARIANTS = (LEFT_BEHIND, TOO_OLD)


@dataclass(frozen=True)
class Look:
    """Consecutive looks at one entry.

    count: looks that found it without a break. free: how many of the last of these found its page
    unlocked. time_ns: of the last.
    """

    count: int
    free: int
    time_ns: int


Home = tuple[int | None, tuple[int, int] | None]
"""An address, or any; (size, number) of a block of pages, or any."""


@dataclass
class Case:
    """One suspected row: `count` entries (0: of no row, found by a sweep).

    pfns: where its page may be found by a sweep (a PMD entry may have been split). left: how many
    pages' worth of entries may still be in some page table: all at first, then what the last sweep
    found. While fewer are met, one may be elsewhere.
    """

    invariant: str
    addr: int
    pfns: range
    count: int
    opened_ns: int
    level: int = 1
    left: int = field(init=False)
    just_swept: bool = False
    sweep_complete: bool = True
    looks: dict[Place, Look] = field(default_factory=dict)
    standing: set[Place] = field(default_factory=set)
    gone: set[Place] = field(default_factory=set)
    answers: tuple[FoundEntry, ...] = ()
    first_look_ns: int | None = None

    def __post_init__(self) -> None:
        self.left = self.size

    @property
    def size(self) -> int:
        """Pages' worth of entries that were recorded."""
        return max(1, self.count) * len(self.pfns)

    @property
    def homes(self) -> tuple[Home, Home, Home]:
        """Where its entries may be: its page at its address, its page, its address."""
        page = len(self.pfns), self.pfns.start // len(self.pfns)
        return (self.addr, page), (None, page), (self.addr, None)

    def lacks(self, answers: Iterable[FoundEntry]) -> bool:
        """Whether entries must be looked for elsewhere.

        Fewer were found than may be left, or the last sweep did not search everywhere.
        """
        first_look = not (self.looks or self.gone)
        return (
            not self.sweep_complete
            or pages(a for a in answers if first_look or a.left_behind or a.place in self.standing)
            < self.left
        )

    def swept(self, answers: Sequence[FoundEntry], complete: bool) -> None:
        """Take in what a sweep found of its entries.

        They are looked at again where it found them; the others are gone.
        """
        self.left = pages(a for a in answers if a.left_behind)
        self.answers += tuple(answers)
        self.just_swept, self.sweep_complete = True, complete

    @property
    def nearly_decided(self) -> bool:
        """Whether the next look may decide: it has to be in all mms, as forks copy entries."""
        return any(look.count >= LOOKS - 1 for look in self.looks.values())

    @property
    def persistent(self) -> bool:
        """Whether an entry was met in LOOKS looks without a break."""
        return any(
            self.looks[a.place].count >= LOOKS for a in self.answers if a.place in self.looks
        )


def homes(answer: FoundEntry) -> tuple[list[Home], list[Home], list[Home]]:
    """Return the Case.homes that an entry belongs to: as a PTE's, or as part of a PMD's."""
    whole = answer.table_entries
    frames = (1, answer.pfn), (whole, answer.pfn // whole)
    return (
        [(answer.addr, page) for page in frames],
        [(None, page) for page in frames],
        [(answer.addr, None)] if answer.migration else [],
    )


def pages(answers: Iterable[FoundEntry]) -> int:
    """Return how many pages the entries stand for."""
    return sum(answer.table_entries if answer.level == 2 else 1 for answer in answers)


@dataclass(frozen=True)
class CaseDecision:
    """How a case ended. proven: the entries that are left behind, for `violated`."""

    verdict: Verdict
    reason: str
    proven: tuple[FoundEntry, ...] = ()


def _look(case: Case, answers: Sequence[FoundEntry], now_ns: int) -> None:
    """Count the looks at which each entry was met without a break.

    A place that was empty once belongs to another migration from then on.
    """
    looks = {}
    for answer in answers:
        last = case.looks.get(answer.place, Look(0, 0, now_ns - LOOK_GAP_NS))
        counts = now_ns - last.time_ns >= LOOK_GAP_NS
        free = (last.free + counts) if answer.left_behind else 0
        looks[answer.place] = Look(last.count + counts, free, now_ns if counts else last.time_ns)
    if case.first_look_ns is None:
        case.first_look_ns = now_ns
    first_look = not (case.looks or case.gone)
    case.gone |= set(case.looks) - set(looks)
    if first_look or case.just_swept:
        case.standing |= set(looks) - case.gone
    case.standing &= set(looks)
    case.looks, case.just_swept = looks, False


def judge(
    case: Case, answers: Sequence[FoundEntry], now_ns: int, patience_ns: int
) -> CaseDecision | None:
    """Decide a case from the migration entries found now; None: look again later.

    The same entry with its page unlocked in LOOKS looks is proof. Nothing anywhere, in a sweep that
    began after the migration ended, is the other proof; a case that lacks entries waits for that
    sweep, whatever else it has. Entries with a locked page belong to other migrations that are
    under way, unless they were there from the first look on (pages that move to and fro meet the
    same addresses and page frames again: seen on 6.1 with two nodes).

    Anything between waits, and is a suspect when patience_ns have passed since the first look: a
    case may have waited for that, and what stood there in the meantime is not known.
    """
    _look(case, answers, now_ns)
    ours = [a for a in answers if a.left_behind or a.place in case.standing]
    case.answers = tuple(ours)
    case.left = max(case.left, pages(a for a in ours if a.left_behind))
    if pages(ours) < case.left:
        return (
            None  # one may have moved: gone means gone in a sweep that began after it was last seen
        )
    proven = tuple(a for a in ours if case.looks[a.place].free >= LOOKS)
    late = case.first_look_ns is not None and now_ns - case.first_look_ns >= patience_ns
    nearly = any(0 < case.looks[a.place].free < LOOKS for a in ours)  # proven soon, or locked again
    if proven and (len(proven) == len(ours) or (late and not nearly)):
        return CaseDecision(
            Verdict.VIOLATED,
            "a migration entry is in the page table and its page is not locked",
            proven,
        )
    if ours:
        return _persistent(case, ours) if late and not proven and not nearly else None
    if (
        not case.sweep_complete
    ):  # an mm that died under the sweep leads it astray: the next one may see everything
        return (
            CaseDecision(
                Verdict.UNVERIFIABLE,
                "not at its address, and no sweep could search every page table",
            )
            if late
            else None
        )
    return CaseDecision(
        Verdict.HOLDS, "no page table holds it any more: zapped, or moved and removed"
    )


def _persistent(case: Case, ours: Sequence[FoundEntry]) -> CaseDecision | None:
    """Return a suspect for what was met in LOOKS looks without a break, and None for less."""
    if not case.persistent:
        return None
    if not any(answer.migration for answer in ours):
        return CaseDecision(
            Verdict.SUSPECT,
            "an entry for this page is there, of a swap type that was never seen inserted",
        )
    return CaseDecision(
        Verdict.SUSPECT, "a migration entry is in the page table and its page stayed locked"
    )
