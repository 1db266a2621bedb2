"""The daemon's judging loop over a World: the real desk, books, oracle and monitor, with the world's clock."""

from __future__ import annotations

from tests.support.world import World
from tracer.session import pfn
from tracer.snapshot import checks
from tracer.suspects import Desk, Judged
from tracer.verdict import Tally, Verdict


class Court:
    def __init__(self, world: World, oracle: bool = True) -> None:
        self.world, self.tally = world, Tally()
        self.judged: list[Judged] = []
        bits = 34 if world.levels == 4 else 40
        self.desk = Desk(world.books, world.oracle if oracle else None, lambda e: pfn(e, bits), 10**10, 60 * 10**9, lambda: world.now)

    def hear(self) -> None:
        """Read events, open cases, work once."""
        for raw in self.world.native.events():
            event = self.world.books.event(raw)
            if event.kind != "ORDER_REVERSED":
                rows = self.world.books.ledger()
                self.desk.open("M1", [r for r in rows if (r.tid, r.start_ns) == (event.tid, event.start_ns)], event)
        self._take(self.desk.work())

    def _take(self, judged: list[Judged]) -> None:
        self.judged += judged
        for one in judged:
            self.tally.add(one.case.invariant, one.decision.verdict, max(1, one.case.count))

    def close(self, patrol: bool = True) -> None:
        """The end of a run: everything left is judged, as Session.stop() does."""
        self.hear()
        self.desk.open("M1", self.world.books.ledger())
        if patrol:
            self.desk.patrol(now=True)
        for _ in range(20):
            self.world.tick(10_000_000)
            self._take(self.desk.work(hurry=True))
        self._take(self.desk.finish())

    def checks(self) -> dict[tuple[str, Verdict], int]:
        return checks(self.tally, self.world.books.counters(), {})

    def proven(self) -> set[tuple[int, int]]:
        """(mm number, address) of every entry that some verdict `violated` names."""
        return {(a.mm.id, a.addr) for one in self.judged if one.decision.verdict is Verdict.VIOLATED for a in one.decision.proven}
