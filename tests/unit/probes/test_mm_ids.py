"""Ids of mms on a kernel that has none of its own: given once, and never to two mms."""

from __future__ import annotations

import struct

from tests.support.btf_blob import kernel_types
from tests.support.model_kernel import MIGRATION_READ, ModelKernel
from tests.support.native import LAYOUTS

TYPES = kernel_types(mm_ids=False)
ADDRESS = 0x7F0000000000


def listed(model: ModelKernel) -> dict[int, int]:
    return {one.mm: one.id for one in model.oracle.mms()}


def test_mm_keeps_its_id_and_each_has_another() -> None:
    model = ModelKernel(types=TYPES)
    mms = [model.new_mm() for _ in range(3)]
    first = listed(model)
    model.tick()
    assert listed(model) == first
    assert len({first[mm.at] for mm in mms}) == 3
    assert 0 not in first.values()


def test_mm_at_the_address_of_another_has_a_new_id() -> None:
    model = ModelKernel(types=TYPES)
    mm = model.new_mm()
    before = listed(model)[mm.at]
    model.exit(mm)
    model.reuse(mm)
    assert listed(model)[mm.at] not in (0, before)


def test_entry_of_an_mm_is_not_asked_for_in_another_at_its_address() -> None:
    model = ModelKernel(types=TYPES)
    model.native.maps["entry_types"].update(bytes([MIGRATION_READ, 0, 0, 0]), bytes([1, *bytes(7)]))
    mm = model.new_mm()
    model.put(model.slot(mm, ADDRESS), model.form.swap(MIGRATION_READ, 5))
    (old,) = model.oracle.mms()
    assert model.oracle.ask([(old, ADDRESS)])[0].migration
    model.exit(mm)
    model.reuse(mm)
    listed(model)
    assert model.oracle.ask([(old, ADDRESS)])[0].found == "FOUND_MM_GONE"


def test_mm_without_users_gets_no_id() -> None:
    """It may be freed, and the next one at its address would inherit the id."""
    model = ModelKernel(types=TYPES)
    mm = model.new_mm()
    model.set_field("mm_struct.mm_users.counter", mm.at, 0)
    assert listed(model)[mm.at] == 0


def test_locks_without_room_for_ids_are_counted_and_make_no_order() -> None:
    model = ModelKernel(types=TYPES, MM_ROWS=1)
    outer, inner = model.new_mm(), model.new_mm()
    model.become(77)
    for mm in (outer, inner):
        model.lock_mm(mm)
    assert list(model.native.maps["lock_order"].items()) == []
    assert model.tables.counters.read()["LOCKS_LOST"] == 1


def test_order_of_locks_is_recorded_by_ids() -> None:
    model = ModelKernel(types=TYPES)
    outer, inner = model.new_mm(), model.new_mm()
    model.become(77)
    for mm in (outer, inner):
        model.lock_mm(mm)
    ids = listed(model)
    ((key, _),) = model.native.maps["lock_order"].items()
    found = LAYOUTS.structs["order_key"].unpack(key)
    assert (found.outer, found.inner) == (ids[outer.at], ids[inner.at])
    assert struct.calcsize("<QQ") == len(key)
