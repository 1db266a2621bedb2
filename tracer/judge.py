"""The judge: takes what the books report, keeps the desk busy, counts verdicts and keeps findings. No kernel, no clock of its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Iterable, Mapping
from functools import partial

from tracer.answer import Answer, Place
from tracer.books import Books, Event, Row, Visited
from tracer.docket import Docket
from tracer.findings import Findings
from tracer.monitors import second_walk
from tracer.suspects import Desk, Judged, entry_pfn
from tracer.verdict import Finding, Ruling, Tally, Verdict

_SPLIT_NS = 1_000_000_000  # a THP split takes milliseconds; its rows have no end event


class Judge:
    """Fed by read_events() at a wake-up, tick() once a second, work() whenever the desk is due, and close() at the end.
    count_protocols() before its tally is read."""

    def __init__(
        self,
        books: Books,
        desk: Desk,
        findings: Findings,
        welcome_ns: int,
        clock: Callable[[], int],
        checked: Container[str] = ("M1", "M4", "M5"),
        docket: Docket | None = None,
        missed: Callable[[], int] = lambda: 0,
        missed_orders: Callable[[], int] = lambda: 0,
        missed_visits: Callable[[], int] = lambda: 0,
    ) -> None:
        self.tally, self.desk, self.new_findings = Tally(), desk, list[Finding]()
        self._books, self._findings, self._welcome_ns, self._clock = books, findings, welcome_ns, clock
        self._asked_late: set[bytes] = set()
        self._checked, self._docket = checked, docket
        self._missed, self._missed_orders, self._missed_visits = missed, missed_orders, missed_visits

    def change(self, welcome_ns: int, patrol_ns: int) -> None:
        """From now on other times."""
        self._welcome_ns = welcome_ns
        self.desk.change(welcome_ns, patrol_ns)

    def _open(self, invariant: str, rows: Iterable[Row], event: Event | None = None) -> None:
        """Without coverage there is no case: where removals are not seen, everything would look left over."""
        if invariant in self._checked:
            self.desk.open(invariant, rows, event)

    def read_events(self, ring: Iterable[bytes]) -> None:
        """Open a case for every row that an ended migration left."""
        ended = []
        for raw in ring:
            event = self._books.event(raw)
            if event.kind == "ORDER_REVERSED":
                self._record_order(event)
            elif event.kind == "PROTOCOL_NEW":
                if self._docket:
                    self._docket.hear(event, raw)
            elif event.kind in ("INSERTED_UNLOCKED", "REMOVED_UNLOCKED"):
                self._record(self._evident(partial(self._findings.unlocked, event)))
            else:
                ended.append(event)
        if self._docket and self._docket.pressing:
            self._count(whole=False)
        rows = self._books.ledger() if ended else []
        for event in ended:
            self._open("M1", [row for row in rows if (row.tid, row.start_ns) == (event.tid, event.start_ns)], event)

    def _record_order(self, event: Event) -> None:
        """Where releases were missed, two locks look nested that never were."""
        if self._missed_orders():
            self.tally.add("L2", Verdict.UNVERIFIABLE)
        else:
            self._record(self._findings.order(event))

    def count_protocols(self) -> None:
        """Bring the whole protocol table before the rulings: what is new, and how often what is known."""
        self._count(whole=True)

    def tick(self) -> None:
        """Once a second: what is not well in the protocol table, and what is late in the ledger."""
        self._count(whole=False)
        if self._docket:
            self._docket.tick()
        self.look_for_late()

    def _count(self, *, whole: bool) -> None:
        if self._docket:
            now = time.time()
            self.new_findings += self._docket.work(self.tally, self._books.counters(), self._missed(), now, whole=whole)

    def look_for_late(self) -> None:
        """The timer's part: rows whose migration ended without waking us, and rows past their welcome."""
        if not self.outstanding(self._books.counters()):
            self._asked_late.clear()
            return
        now = self._clock()
        for row in self._books.ledger():
            age = now - row.first_ns
            if not self._running(row) and age > _SPLIT_NS:
                self._open("M1", [row])
            elif age > self._welcome_ns and row.key not in self._asked_late:
                self._asked_late.add(row.key)
                self._open("M4", [row])

    def _running(self, row: Row) -> bool:
        return bool(row.start_ns) and self._books.migration_start(row.tid) == row.start_ns

    def work(self, *, hurry: bool = False) -> None:
        self._take(self.desk.work(hurry=hurry))

    def close(self, seconds: float, sleep: Callable[[float], None] = time.sleep) -> None:
        """With the gate closed: judge what is left, search everything once more, decide within this time."""
        self.count_protocols()
        rows = self._books.ledger()
        running = [row for row in rows if self._running(row)]
        self._open("M1", [row for row in rows if row not in running])
        self.desk.patrol(now=True)
        end = self._clock() + int(seconds * 1e9)
        while self.desk.cases and self._clock() < end:
            self.work(hurry=True)
            sleep(0.006)
        self._take(self.desk.finish())
        for invariant in ("M1", "M4"):
            if invariant in self._checked:  # their removal was not waited for, or the end of their migration was missed
                self.tally.add(invariant, Verdict.UNVERIFIABLE, sum(row.count for row in running))

    def _take(self, decided: Iterable[Judged]) -> None:
        for judged in decided:
            case, verdict = judged.case, judged.decision.verdict
            if verdict in (Verdict.HOLDS, Verdict.UNVERIFIABLE):
                self._settled(judged)
                continue
            proven = max(1, len(judged.decision.proven) if verdict is Verdict.VIOLATED else case.count)
            self._record(self._evident(partial(self._findings.entry, judged, self._second_walk(judged))), proven)
            if case.count > proven:
                gone = Verdict.HOLDS if case.sweep_complete else Verdict.UNVERIFIABLE
                self.tally.add(case.invariant, gone, case.count - proven)

    def _second_walk(self, judged: Judged) -> dict[Place, Ruling]:
        """M5 of each entry that is left behind: the first walk was there, was the second?"""
        if "M5" not in self._checked or judged.case.invariant != "M1" or judged.decision.verdict is not Verdict.VIOLATED:
            return {}
        rulings = {}
        for answer in judged.decision.proven:
            visited = self._was_visited(judged, answer)
            if visited is False and self._missed_visits():
                visited = None  # it may be one of those that the kernel left out
            ruling = rulings[answer.place] = second_walk.rule(visited)
            if judged.row and ruling.verdict is Verdict.VIOLATED:
                self._record(self._evident(partial(self._findings.passed_over, judged, judged.row, answer, ruling)))
            else:
                self.tally.add("M5", ruling.verdict)
        return rulings

    def _left_by(self, row: Row, answer: Answer) -> list[Visited]:
        """What the first walk of this row's migration left of this page, in the mm of the answer first."""
        pages = 512 if row.level == 2 else 1
        of_page = [v for v in row.visited.values() if 0 <= answer.pfn - entry_pfn(v.entry, self.desk.levels) < pages]
        return sorted(of_page, key=lambda visited: visited.mm != answer.mm.mm)

    def _was_visited(self, judged: Judged, answer: Answer) -> bool | None:
        """At its place now, or where it was: mremap moves it, and where a walk meets its folio, before the second walk or after it.
        A visit at a place that it was moved to may have been of another mapping of the folio, which stood there before."""
        row, event = judged.row, judged.event
        left = self._left_by(row, answer) if row else []
        if row is None or not left:
            return None
        known = left[0]
        visited = self._was_visited_there(row, known, answer, event.b if event else None)
        # moved away, visited there and moved back; or another mapping of the folio: nobody can tell
        return None if visited is False and self._books.was_visited_elsewhere(row, answer.mm.mm, known.folio) else visited

    def _was_visited_there(self, row: Row, known: Visited, answer: Answer, since: int | None) -> bool | None:
        if known.mm == answer.mm.mm and known.visits is not None and answer.addr == row.addr:
            return known.visits > 0
        places = {answer.addr, row.addr, known.at, known.at + answer.addr - row.addr}
        found = [self._books.was_visited(row, answer.mm.mm, at, since) for at in places]
        moved = known.mm == answer.mm.mm and answer.addr != row.addr
        if moved and known.visits:
            return True
        return None if None in found or (moved and True in found) else True in found

    def _settled(self, judged: Judged) -> None:
        """An entry that is gone holds for both; an M4 case leaves its row to M1, and is asked again after another welcome."""
        if judged.case.invariant == "M1":
            for invariant in ("M1", "M4"):
                self.tally.add(invariant, judged.decision.verdict, judged.case.count)
        elif judged.row:
            self._asked_late.discard(judged.row.key)

    def _evident(self, make: Callable[..., Finding]) -> Finding:
        """With evidence where its signature is new: a million of one kind are a million look-ups, not as many readings of the recorder."""
        bare = make(bare=True)
        return bare if bare.signature in self.tally.violations else make()

    def _record(self, finding: Finding, count: int = 1) -> None:
        if self.tally.record(finding, time.time(), count):
            self.new_findings.append(finding)

    def outstanding(self, counters: Mapping[str, int]) -> int:
        """Entries booked and neither removed nor judged."""
        booked = counters["ENTRIES_BOOKED"] + counters["ENTRIES_COPIED"]
        return max(0, booked - counters["ENTRIES_REMOVED"] - self.desk.settled)
