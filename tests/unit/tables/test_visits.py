"""The VMAs that the second walk visited."""

from __future__ import annotations

from tests.support.model_kernel import ModelKernel
from tests.support.native import LAYOUTS
from tracer.tables.ledger import Row, Visited

MM, AT, FOLIO = 5, 0x2000, 0xF000


def test_row_that_was_taken_out_of_ledger_keeps_its_visits() -> None:
    """Ledger.take() leaves no keys, but a case of such a row is decided like any other."""
    visited = {MM: Visited(MM, 1, 0xAA, 0x1000, 0x9000, FOLIO, AT, 0)}
    row = Row(b"", 7, 7, 42, AT, 1, 8, 1, 1, keys=(), visited=visited)
    model = ModelKernel()
    visits = model.tables.visits
    assert visits.was_visited(row, MM, AT, since=0) is False
    assert not visits.folios(row)
    key = LAYOUTS.structs["visit_key"].pack(start_ns=row.start_ns, mm=MM, at=AT, tid=row.tid)
    model.native.maps["visits"].update(key, LAYOUTS.structs["visit"].pack(folio=FOLIO))
    assert visits.was_visited(row, MM, AT, since=0) is True
    assert visits.folios(row) == {(MM, FOLIO)}


def test_folios_are_those_of_one_migration() -> None:
    model = ModelKernel()
    key, value = LAYOUTS.structs["visit_key"], LAYOUTS.structs["visit"]
    for start_ns, tid, mm in ((42, 7, MM), (42, 8, 6), (43, 7, 6), (9, 7, 42)):
        packed = key.pack(start_ns=start_ns, mm=mm, at=AT, tid=tid)
        model.native.maps["visits"].update(packed, value.pack(folio=FOLIO + mm))
    row = Row(b"", 7, 7, 42, AT, 1, 8, 1, 1)
    assert model.tables.visits.folios(row) == {(MM, FOLIO + MM)}
