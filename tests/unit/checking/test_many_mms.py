"""A machine with more mms than every address can be looked up in.

The sweep finds the entries that were not looked up.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.support.checker_rig import CheckerRig
from tests.support.model_kernel import PAGE, ModelKernel
from tracer.checking import cases
from tracer.invariants.verdict import Verdict
from tracer.memory.entries import FoundEntry
from tracer.tables.mm import Mm

ADDR = 0x7F0000000000


def test_looks_are_bounded_and_no_entry_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Was 1,024 addresses in 9,720 mms at once: ten million questions and 1.5 GB, while the daemon
    was to end."""
    monkeypatch.setattr(cases, "_MOST_QUESTIONS", 12)
    model = ModelKernel()
    mms = [model.new_mm() for _ in range(8)]
    migration = model.start(77)
    for n, mm in enumerate(mms):
        pfn = model.map_page(mm, ADDR + n * PAGE)
        model.unmap_folio(migration, pfn)
        model.remap_folio(migration, pfn, skip=1)
        if n % 2:
            model.zap(mm, ADDR + n * PAGE)
    model.end(migration)
    checker, asked = CheckerRig(model), list[int]()
    ask = model.oracle.ask

    def counted(questions: Sequence[tuple[Mm, int]]) -> list[FoundEntry]:
        asked.append(len(questions))
        return ask(questions)

    monkeypatch.setattr(model.oracle, "ask", counted)
    checker.end()
    checks = checker.checks()
    assert (
        checks["M1", Verdict.VIOLATED],
        checks["M1", Verdict.HOLDS],
        checks["M1", Verdict.SUSPECT],
    ) == (4, 4, 0)
    assert max(asked) <= 12
