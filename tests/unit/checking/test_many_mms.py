"""A desk on a machine with more mms than it can ask about every address: the sweep finds what it did not ask for."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.support.court import Court
from tests.support.world import PAGE, World
from tracer.checking import cases
from tracer.invariants.verdict import Verdict
from tracer.memory.entries import FoundEntry
from tracer.tables.mm import Mm

ADDR = 0x7F0000000000


def test_questions_are_bounded_and_nothing_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Was 1,024 addresses in 9,720 mms at once: ten million questions and 1.5 GB, while the daemon was to end."""
    monkeypatch.setattr(cases, "_MOST_QUESTIONS", 12)
    world = World()
    mms = [world.new_mm() for _ in range(8)]
    migration = world.start(77)
    for n, mm in enumerate(mms):
        pfn = world.map_page(mm, ADDR + n * PAGE)
        world.unmap_folio(migration, pfn)
        world.remap_folio(migration, pfn, skip=1)
        if n % 2:
            world.zap(mm, ADDR + n * PAGE)
    world.end(migration)
    court, asked = Court(world), list[int]()
    ask = world.oracle.ask

    def counted(questions: Sequence[tuple[Mm, int]]) -> list[FoundEntry]:
        asked.append(len(questions))
        return ask(questions)

    monkeypatch.setattr(world.oracle, "ask", counted)
    court.end()
    checks = court.checks()
    assert (
        checks["M1", Verdict.VIOLATED],
        checks["M1", Verdict.HOLDS],
        checks["M1", Verdict.SUSPECT],
    ) == (4, 4, 0)
    assert max(asked) <= 12
