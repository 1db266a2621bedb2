"""M5: whether the second rmap walk of a migration visited the VMA of an entry left behind."""

from __future__ import annotations

from collections.abc import Callable

from tracer.checking.cases import DecidedCase
from tracer.checking.missed_runs import MissedRuns
from tracer.invariants.migration_walks import rule
from tracer.invariants.verdict import Ruling
from tracer.machine.page_format import PageFormat
from tracer.memory.entries import FoundEntry, Place
from tracer.tables.ledger import Row, Visited
from tracer.tables.visits import Visits


class SecondWalks:
    """Rules on entries that are proven to be left behind, from the recorded visits.

    missed: of the second walk's program. page_format: of page tables. clock: CLOCK_MONOTONIC in
    nanoseconds.
    """

    def __init__(
        self, visits: Visits, missed: MissedRuns, page_format: PageFormat, clock: Callable[[], int]
    ) -> None:
        self._visits, self._missed, self._page_format, self._clock = (
            visits,
            missed,
            page_format,
            clock,
        )
        self._known: tuple[tuple[int, int, bool], frozenset[tuple[int, int]]] | None = None

    def rulings(self, decided: DecidedCase) -> dict[Place, Ruling]:
        """Return a ruling for each entry that the case proved to be left behind, by its place."""
        return {answer.place: self._ruling(decided, answer) for answer in decided.decision.proven}

    def _ruling(self, decided: DecidedCase, answer: FoundEntry) -> Ruling:
        visited = self._was_visited(decided, answer)
        if visited is False and self._may_have_missed(decided):
            visited = None
        return rule(visited)

    def _may_have_missed(self, decided: DecidedCase) -> bool:
        """Whether a run of the second walk's program may have been missed in this migration."""
        row, event = decided.row, decided.event
        since = (row.start_ns or row.first_ns) if row else 0
        return self._missed.during(since, event.time_ns if event else self._clock())

    def _left_by(self, row: Row, answer: FoundEntry) -> list[Visited]:
        """Return what the first walk of this row's migration left of this page.

        Visits in the mm of the answer come first.
        """
        pages = self._page_format.pages(row.level)
        of_page = [
            visited
            for visited in row.visited.values()
            if 0 <= answer.pfn - self._page_format.entry_pfn(visited.entry) < pages
        ]
        return sorted(of_page, key=lambda visited: visited.mm != answer.mm.mm)

    def _was_visited(self, decided: DecidedCase, answer: FoundEntry) -> bool | None:
        """Whether the second walk came to where the entry is, or was.

        mremap may move an entry before the second walk or after it, so a visit counts at its
        address now, at the address where it was inserted, and where a walk would meet its folio.
        None where that proves nothing: a visit at an address that the entry was moved to may have
        been of another mapping of the folio, which stood there before.
        """
        row, event = decided.row, decided.event
        left = self._left_by(row, answer) if row else []
        if row is None or not left:
            return None
        known = left[0]
        visited = self._was_visited_there(row, known, answer, event.visits if event else None)
        # moved away, visited there and moved back, or another mapping of the folio: the visits
        # cannot tell these apart
        elsewhere = visited is False and (answer.mm.mm, known.folio) in self._folios(row)
        return None if elsewhere else visited

    def _folios(self, row: Row) -> frozenset[tuple[int, int]]:
        """Return the folios that the second walk of this row's migration visited.

        They are read once for the many entries that one migration may leave: it has ended, and
        makes no more visits.
        """
        migration = row.start_ns, row.tid, row.frozen
        if not row.start_ns or self._known is None or self._known[0] != migration:
            self._known = migration, self._visits.folios(row)
        return self._known[1]

    def _was_visited_there(
        self, row: Row, known: Visited, answer: FoundEntry, since: int | None
    ) -> bool | None:
        if known.mm == answer.mm.mm and known.visits is not None and answer.addr == row.addr:
            return known.visits > 0
        places = {answer.addr, row.addr, known.at, known.at + answer.addr - row.addr}
        found = [self._visits.was_visited(row, answer.mm.mm, at, since) for at in places]
        moved = known.mm == answer.mm.mm and answer.addr != row.addr
        if moved and known.visits:
            return True
        return None if None in found or (moved and True in found) else True in found
