"""The page-table oracle over synthetic page tables: single walks, the list of mms, and sweeps."""

from __future__ import annotations

import pytest

from tests.support.model_kernel import PAGE, ModelKernel, SimMm, swap_entry
from tracer.tables.mm import Mm

ADDR = 0x7F0000000000


def test_walk_returns_kind_and_level_of_each_entry() -> None:
    model = ModelKernel()
    mm = model.new_mm()
    model.map_page(mm, ADDR)
    model.put(model.slot(mm, ADDR + PAGE), swap_entry(3, 12345))
    model.put(model.slot(mm, ADDR + 512 * PAGE, level=2), 1024 << 12 | 0xE7)
    model.put(model.slot(mm, ADDR + 2 * PAGE), 0x8000000000000100)  # PROT_NONE
    (us,) = [m for m in model.oracle.mms() if m.mm == mm.at]
    addresses = [ADDR, ADDR + PAGE, ADDR + 512 * PAGE, ADDR + 2 * PAGE, ADDR + 3 * PAGE, 0x1000]
    answers = model.oracle.ask([(us, addr) for addr in addresses])
    found = [(a.found.removeprefix("FOUND_"), a.level) for a in answers]
    assert found[:4] == [("PRESENT", 1), ("OTHER", 1), ("PRESENT", 2), ("PRESENT", 1)]
    assert [kind for kind, _ in found[4:]] == ["NOTHING", "NOTHING"]


def test_walk_of_unreadable_page_table_is_reported() -> None:
    model = ModelKernel()
    mm = model.new_mm()
    model.set_mm(mm, pgd=0x10)
    (us,) = [m for m in model.oracle.mms() if m.mm == mm.at]
    (answer,) = model.oracle.ask([(us, ADDR)])
    assert answer.found == "FOUND_UNREADABLE"


@pytest.mark.parametrize("level", [1, 2])
def test_table_behind_the_end_of_ram_is_not_read(level: int) -> None:
    """What was a page table may lead anywhere, also to the registers of a device."""
    model = ModelKernel()
    model.native.maps["entry_types"].update(bytes([30, 0, 0, 0]), bytes([1, *bytes(7)]))
    mm = model.new_mm()
    slot = model.slot(mm, ADDR)
    model.put(slot, swap_entry(30, 44))
    (us,) = [m for m in model.oracle.mms() if m.mm == mm.at]
    table = model.slot(mm, ADDR, level) // PAGE * PAGE
    for end, expected in ((table + PAGE, "FOUND_MIGRATION"), (table, "FOUND_UNREADABLE")):
        model.memory_end = end - model.page_offset
        found = model.oracle.sweep([us]).answers
        (answer,) = model.oracle.ask([(us, ADDR)])
        inside = level == 2 and slot >= end  # the last-level table lies behind this end, too
        assert answer.found == ("FOUND_UNREADABLE" if inside else expected)
        assert bool(found) == (answer.found == "FOUND_MIGRATION")


def exits_unseen(model: ModelKernel) -> tuple[SimMm, Mm]:
    """A task exits and the gate closes before exit_mmap(): its tables still have the entry."""
    model.native.maps["entry_types"].update(bytes([30, 0, 0, 0]), bytes([1, *bytes(7)]))
    mm = model.new_mm()
    model.put(model.slot(mm, ADDR), swap_entry(30, 44))
    task = model.tasks.pop(mm.tgid)[0]
    model.become(mm.tgid)
    model.fire("sched_process_exit", task, 1)
    model.tables.params.set(gate=0)
    model.fire("exit_mmap", mm.at)
    (listed,) = [m for m in model.oracle.mms() if m.mm == mm.at]
    return mm, listed


@pytest.mark.parametrize("then", [{"count": 0}, {"number": 99}, {"pgd": 0x10}])
def test_entry_in_tables_of_freed_or_reused_mm_is_not_believed(then: dict[str, int]) -> None:
    """Sweeps of freed mms on 6.18 showed entries that looked left behind (docs/KERNELS.md)."""
    model = ModelKernel()
    mm, listed = exits_unseen(model)
    (before,) = model.oracle.ask([(listed, ADDR)])
    assert before.migration
    model.set_mm(mm, **then)
    assert mm.at not in {m.mm for m in model.oracle.mms()}
    (answer,) = model.oracle.ask([(listed, ADDR)])
    assert (answer.found, answer.migration) == ("FOUND_MM_GONE", False)
    assert model.oracle.sweep([listed]).answers == ()


def test_exiting_mm_is_listed_until_exit_mmap() -> None:
    model = ModelKernel()
    mm = model.new_mm()
    task = model.tasks.pop(mm.tgid)[0]
    assert mm.at not in {m.mm for m in model.oracle.mms()}
    model.become(mm.tgid)
    model.fire("sched_process_exit", task, 1)
    assert [(m.comm, m.id) for m in model.oracle.mms() if m.mm == mm.at] == [
        ("(exiting)", mm.number)
    ]
    model.fire("exit_mmap", mm.at)
    assert mm.at not in {m.mm for m in model.oracle.mms()}


def test_sweep_without_room_is_split_and_completes() -> None:
    model = ModelKernel(UPPERS=64)
    mms = [model.new_mm() for _ in range(16)]
    for n, mm in enumerate(mms):
        for place in range(4):
            model.map_page(mm, ADDR + place * (1 << 30))
        if n == 7:
            model.native.maps["entry_types"].update(
                bytes([30, 0, 0, 0]), bytes([1, 0, 0, 0, 0, 0, 0, 0])
            )
            model.put(model.slot(mm, ADDR + PAGE), swap_entry(30, 44))
    sweep = model.oracle.sweep(model.oracle.mms())
    assert sweep.complete
    assert [(answer.mm.id, answer.addr) for answer in sweep.answers] == [
        (mms[7].number, ADDR + PAGE)
    ]


def test_sweep_of_a_huge_mm_needs_room_for_one_table_of_each_level() -> None:
    """Thirteen tables of tables: all of them would not fit."""
    model = ModelKernel(UPPERS=8)
    mm = model.new_mm()
    model.native.maps["entry_types"].update(bytes([30, 0, 0, 0]), bytes([1, *bytes(7)]))
    addresses = [place * (512 << 30) + PAGE for place in range(1, 7)]
    for addr in addresses:
        model.put(model.slot(mm, addr), swap_entry(30, 44))
    sweep = model.oracle.sweep(model.oracle.mms())
    assert sweep.complete
    assert sorted(answer.addr for answer in sweep.answers) == addresses


def test_sweep_of_mm_larger_than_its_maps_is_incomplete() -> None:
    model = ModelKernel(UPPERS=4)
    mm = model.new_mm()
    for place in range(6):
        model.map_page(mm, ADDR + place * (1 << 30))
    assert not model.oracle.sweep(model.oracle.mms()).complete


def test_unreadable_table_does_not_hide_entries_of_next_table() -> None:
    """One run searches two leaves: the first is unreadable, the second holds the entry."""
    model = ModelKernel()
    mm = model.new_mm()
    model.map_page(mm, ADDR)
    model.map_page(mm, ADDR + 512 * PAGE)
    model.native.maps["entry_types"].update(bytes([30, 0, 0, 0]), bytes([1, 0, 0, 0, 0, 0, 0, 0]))
    model.put(model.slot(mm, ADDR + 512 * PAGE), swap_entry(30, 44))
    model.put(model.slot(mm, ADDR, level=2), 0x3FFFFFFFF000 | 0x67)
    answers = model.oracle.sweep(model.oracle.mms()).answers
    assert [answer.addr for answer in answers] == [ADDR + 512 * PAGE]


def test_sweep_that_finds_more_tables_than_exist_gives_up() -> None:
    """Seen with thousands of short-lived processes: a sweep opened 7.2 million tables.

    It took ten minutes, in which the daemon did not react to SIGTERM.
    """
    model = ModelKernel()
    mms = [model.new_mm() for _ in range(20)]
    migration = model.start(77)
    for mm in mms:
        pfn = model.map_page(mm, ADDR)
        model.unmap_folio(migration, pfn)
        model.remap_folio(migration, pfn)
    found = model.oracle.mms()
    assert model.oracle.sweep(found).complete
    model.page_tables = -1_000
    given_up = model.oracle.sweep(found)
    assert not given_up.complete
    assert given_up.tables < model.oracle.sweep(found[:1]).tables + 4 * len(mms)
