"""When open cases are looked at: often enough to be decided soon, at a bounded share of a CPU."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.model_kernel import PAGE, ModelKernel
from tracer.checking.cases import OpenCases
from tracer.invariants.migration_entries import LOOK_GAP_NS, LOOKS
from tracer.tables.mm import Mm

ADDR = 0x7F0000000000
FIRST_LOOKS = LOOKS + 1
MS = 1_000_000


@pytest.mark.parametrize(
    ("wall_ns", "cpu_ns", "pause_ns"),
    [(1000 * MS, 0, LOOK_GAP_NS), (1000 * MS, 10 * MS, 500 * MS), (10 * MS, 10 * MS, 500 * MS)],
)
def test_next_look_waits_for_fifty_times_its_cpu_time(
    wall_ns: int, cpu_ns: int, pause_ns: int
) -> None:
    """Seen on 6.18 at load 4: a look of 48 ms of CPU time took 336 ms, and the pause after it was
    50 times that, 16.5 s; another pause was 59 s. Looks at the first address of a migration follow
    each other at once, and all their pauses come after them."""
    model = ModelKernel()
    pfn = model.map_page(model.new_mm(), ADDR + PAGE)
    migration = model.start(77)
    model.unmap_folio(migration, pfn)
    model.lock(pfn, True)
    rows = model.tables.ledger.rows()
    now, cpu = 0, 0

    class Slow:
        """The model's oracle, in which a list of mms takes long."""

        def __getattr__(self, name: str) -> object:
            return getattr(model.oracle, name)

        def mms(self) -> list[Mm]:
            nonlocal now, cpu
            now, cpu = now + wall_ns, cpu + cpu_ns
            return model.oracle.mms()

    slow: Any = Slow()
    cases = OpenCases(
        model.tables.ledger, slow, model.page_format, 10**12, 0, lambda: now, lambda: cpu
    )
    cases.open("M1", rows)
    pauses = list[int]()
    for _ in range(FIRST_LOOKS + 2):
        cases.work()
        due = cases.due_ns()
        assert due is not None
        pauses.append(due - now)
        now = due
    at_once = [LOOK_GAP_NS] * (FIRST_LOOKS - 1)
    after = max(LOOK_GAP_NS, FIRST_LOOKS * 50 * cpu_ns)
    assert pauses == [*at_once, after, pause_ns, pause_ns]
