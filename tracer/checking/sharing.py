"""Which open case each entry belongs to that a look at the page tables found."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Collection, Iterable, Mapping
from itertools import product

from tracer.invariants.migration_entries import Case, Home, homes, pages
from tracer.memory.entries import FoundEntry, Place

_BY_PAGE, _BY_ADDRESS, _RANKS = 1, 2, 3
"""Ranks in Case.homes."""

Key = tuple[str, bytes]
"""(invariant, ledger key)"""


def share_out(
    cases: Mapping[Key, Case],
    found: Iterable[FoundEntry],
    proven: Collection[tuple[str, Place]],
    asked: Collection[Key],
) -> dict[Key, list[FoundEntry]]:
    """Assign each found entry to at most one case.

    asked: the cases that were looked for. The others get nothing.

    The order is: a case of the same page and address, of the same page, of the same address.

    A case that has met fewer entries than were recorded takes more, so an entry that no case names
    leaves some case short, and that case is swept for. An entry of another page at a case's address
    comes last: one row may stand for entries of several pages, but names one. Where that page is a
    case's that was not asked for, the entry may be that case's, moved here, and is left to it.
    Cases of rows come before cases that a sweep opened. An entry that was proven once belongs to no
    case any more.
    """
    owned: dict[Key, list[FoundEntry]] = {key: [] for key in cases}
    room = {key: case.size for key, case in cases.items()}
    others = set[tuple[str, Home]]()
    queues: defaultdict[tuple[str, bool, int], dict[Home, deque[Key]]] = defaultdict(dict)
    for key, case in cases.items():
        if key not in asked:
            others.add((case.invariant, case.homes[1]))
            continue
        for rank, home in enumerate(case.homes):
            queues[case.invariant, case.count > 0, rank].setdefault(home, deque()).append(key)

    def give(answer: FoundEntry, queue: deque[Key]) -> bool:
        while queue and room[queue[0]] <= 0 and answer.addr != cases[queue[0]].addr:
            queue.popleft()
        if queue:
            owned[queue[0]].append(answer)
            room[queue[0]] -= pages([answer])
        return bool(queue)

    def is_of_others(invariant: str, answer: FoundEntry) -> bool:
        return any((invariant, home) in others for home in homes(answer)[_BY_PAGE])

    distinct = sorted(
        {(a.mm.mm, a.addr): a for a in found}.values(),
        key=lambda a: (not a.left_behind, a.place),
    )
    for invariant in {invariant for invariant, _ in cases}:
        loose = [a for a in distinct if (invariant, a.place) not in proven]
        for of_row, rank in product((True, False), range(_RANKS)):
            at = queues[invariant, of_row, rank]
            loose = [
                a
                for a in loose
                if (rank == _BY_ADDRESS and is_of_others(invariant, a))
                or not any(give(a, at[home]) for home in homes(a)[rank] if home in at)
            ]
    return owned
