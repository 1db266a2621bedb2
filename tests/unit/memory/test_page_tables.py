"""The page-table oracle over synthetic page tables: single walks, the list of mms, and sweeps."""

from __future__ import annotations

from tests.support.world import PAGE, World, swap_entry

ADDR = 0x7F0000000000


def test_walk_returns_kind_and_level_of_each_entry() -> None:
    world = World()
    mm = world.new_mm()
    world.map_page(mm, ADDR)
    world.put(world.slot(mm, ADDR + PAGE), swap_entry(3, 12345))
    world.put(world.slot(mm, ADDR + 512 * PAGE, level=2), 1024 << 12 | 0xE7)
    world.put(world.slot(mm, ADDR + 2 * PAGE), 0x8000000000000100)  # PROT_NONE
    (us,) = [m for m in world.oracle.mms() if m.mm == mm.at]
    addresses = [ADDR, ADDR + PAGE, ADDR + 512 * PAGE, ADDR + 2 * PAGE, ADDR + 3 * PAGE, 0x1000]
    answers = world.oracle.ask([(us, addr) for addr in addresses])
    found = [(a.found.removeprefix("FOUND_"), a.level) for a in answers]
    assert found[:4] == [("PRESENT", 1), ("OTHER", 1), ("PRESENT", 2), ("PRESENT", 1)]
    assert [kind for kind, _ in found[4:]] == ["NOTHING", "NOTHING"]


def test_walk_of_mm_that_is_gone_finds_no_entry() -> None:
    world = World()
    mm = world.new_mm()
    world.map_page(mm, ADDR)
    (us,) = [m for m in world.oracle.mms() if m.mm == mm.at]
    world.exit(mm)
    (answer,) = world.oracle.ask([(us, ADDR)])
    assert answer.found == "FOUND_NOTHING"
    bad = type(us)(1, 0x10, 1)
    (answer,) = world.oracle.ask([(bad, ADDR)])
    assert answer.found == "FOUND_UNREADABLE"


def test_exiting_mm_is_listed_until_exit_mmap() -> None:
    world = World()
    mm = world.new_mm()
    task = world.tasks.pop(mm.tgid)[0]
    assert mm.at not in {m.mm for m in world.oracle.mms()}
    world.become(mm.tgid)
    world.fire("sched_process_exit", task, 1)
    assert [(m.comm, m.id) for m in world.oracle.mms() if m.mm == mm.at] == [
        ("(exiting)", mm.number)
    ]
    world.fire("exit_mmap", mm.at)
    assert mm.at not in {m.mm for m in world.oracle.mms()}


def test_sweep_without_room_is_split_and_completes() -> None:
    world = World(UPPERS=64)
    mms = [world.new_mm() for _ in range(16)]
    for n, mm in enumerate(mms):
        for place in range(4):
            world.map_page(mm, ADDR + place * (1 << 30))
        if n == 7:
            world.native.maps["entry_types"].update(
                bytes([30, 0, 0, 0]), bytes([1, 0, 0, 0, 0, 0, 0, 0])
            )
            world.put(world.slot(mm, ADDR + PAGE), swap_entry(30, 44))
    sweep = world.oracle.sweep(world.oracle.mms())
    assert sweep.complete
    assert [(answer.mm.id, answer.addr) for answer in sweep.answers] == [
        (mms[7].number, ADDR + PAGE)
    ]


def test_sweep_of_mm_larger_than_its_maps_is_incomplete() -> None:
    world = World(UPPERS=4)
    mm = world.new_mm()
    for place in range(6):
        world.map_page(mm, ADDR + place * (1 << 30))
    assert not world.oracle.sweep(world.oracle.mms()).complete


def test_unreadable_table_does_not_hide_entries_of_next_table() -> None:
    """One run searches two leaves: the first is unreadable, the second holds the entry."""
    world = World()
    mm = world.new_mm()
    world.map_page(mm, ADDR)
    world.map_page(mm, ADDR + 512 * PAGE)
    world.native.maps["entry_types"].update(bytes([30, 0, 0, 0]), bytes([1, 0, 0, 0, 0, 0, 0, 0]))
    world.put(world.slot(mm, ADDR + 512 * PAGE), swap_entry(30, 44))
    world.put(world.slot(mm, ADDR, level=2), 0x3FFFFFFFF000 | 0x67)
    answers = world.oracle.sweep(world.oracle.mms()).answers
    assert [answer.addr for answer in answers] == [ADDR + 512 * PAGE]


def test_sweep_that_finds_more_tables_than_exist_gives_up() -> None:
    """Seen with thousands of short-lived processes: a sweep opened 7.2 million tables.

    It took ten minutes, in which the daemon did not react to SIGTERM.
    """
    world = World()
    mms = [world.new_mm() for _ in range(20)]
    migration = world.start(77)
    for mm in mms:
        pfn = world.map_page(mm, ADDR)
        world.unmap_folio(migration, pfn)
        world.remap_folio(migration, pfn)
    found = world.oracle.mms()
    assert world.oracle.sweep(found).complete
    world.page_tables = -1_000
    given_up = world.oracle.sweep(found)
    assert not given_up.complete
    assert given_up.tables < world.oracle.sweep(found[:1]).tables + 4 * len(mms)
