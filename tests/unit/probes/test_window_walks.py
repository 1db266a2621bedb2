"""rmap walks as windows: their lock, the folio lock, the walker and each visited VMA."""

from __future__ import annotations

import pytest

from tests.support.box import FENTRY, KPROBE, Box, box

each_method = pytest.mark.parametrize("methods", [FENTRY, KPROBE], ids=["fentry", "kprobe"])
ANON, KSM = 1, 3  # PAGE_MAPPING_ANON, PAGE_MAPPING_KSM


def visits(b: Box, name: str) -> tuple[int, int]:
    """(walks, VMAs visited)"""
    found = b.tables.histograms.read()[name]
    return found.count, found.sum_ns


@each_method
def test_anon_walk_records_its_lock_and_its_visits(methods: tuple[str, str]) -> None:
    b = box(methods)
    anon = b.anon_vma()
    folio, vma, lock = (
        b.folio(anon | ANON, locked=True),
        b.vma(0x1000, 0x3000, anon=anon),
        b.anon_lock(anon),
    )
    for times in (0, 1, 3):
        with b.call("rmap_walk_anon", folio, 0, 0):
            b.down(lock, write=False)
            for _ in range(times):
                b.touch("try_to_migrate_one", folio, vma.at, 0x1000, 0)
            b.up(lock, write=False)
    assert b.seen() == {
        "rmap_walk_anon[anon folio:locked]  anon↓r anon↑r": 1,
        "rmap_walk_anon[anon folio:locked try_to_migrate]  anon↓r visit(r) anon↑r": 1,
        "rmap_walk_anon[anon folio:locked try_to_migrate]  anon↓r {visit(r)}* anon↑r": 1,
    }
    assert visits(b, "HIST_WALK_ANON") == (3, 4)


@pytest.mark.parametrize(
    ("held", "owner"), [("free", "-"), ("read", "r"), ("write", "w"), ("other", "x")]
)
def test_visit_records_the_state_of_the_lock(held: str, owner: str) -> None:
    b = box()
    mapping = b.mapping()
    folio, vma = b.folio(mapping), b.vma(0x1000, 0x3000, mapping=mapping)
    if held != "free":
        b.held(b.file_lock(mapping), write=held != "read", by=0x5000 if held == "other" else 0)
    with b.call("rmap_walk_file", folio, 0, 1):
        b.touch("remove_migration_pte", folio, vma.at, 0x1000, 0)
    state = f" i_mmap:{owner}" if owner in "rw" else ""
    assert b.seen() == {f"rmap_walk_file[file locked remove_migration{state}]  visit({owner})": 1}


def test_walk_that_visits_a_hugetlb_vma_is_marked_hugetlb() -> None:
    b = box()
    mapping = b.mapping()
    folio, vma = (
        b.folio(mapping, locked=True),
        b.vma(0x200000, 0x400000, mapping=mapping, flags=0x400000),
    )
    with b.call("rmap_walk_file", folio, 0, 0):
        b.down(b.file_lock(mapping), write=False)
        b.touch("remove_migration_pte", folio, vma.at, 0x200000, 0)
        b.up(b.file_lock(mapping), write=False)
    assert b.seen() == {
        "rmap_walk_file[file hugetlb folio:locked remove_migration]  i_mmap↓r visit(r) i_mmap↑r": 1
    }


def test_locked_argument_of_a_walk_is_read_as_one_byte() -> None:
    b = box()
    with b.call("rmap_walk_file", b.folio(b.mapping()), 0, 0xDEAD00):
        pass
    assert b.seen() == {"rmap_walk_file[file]": 1}


def test_ksm_walk_records_the_lock_of_each_visited_vma() -> None:
    b = box()
    first, second = b.anon_vma(), b.anon_vma()
    folio = b.folio(0x4000 | KSM)
    with b.call("rmap_walk_ksm", folio, 0):
        for anon, held in ((first, True), (second, False)):
            if held:
                b.down(b.anon_lock(anon), write=False)
            b.touch("folio_referenced_one", folio, b.vma(0x1000, 0x3000, anon=anon).at, 0x1000, 0)
            if held:
                b.up(b.anon_lock(anon), write=False)
    assert b.seen() == {"rmap_walk_ksm[referenced]  anon↓r visit(r) anon↑r visit(-)": 1}
    assert visits(b, "HIST_WALK_KSM") == (1, 2)


def test_walk_called_by_try_to_migrate_is_an_inner_window() -> None:
    b = box()
    anon = b.anon_vma()
    folio, vma = b.folio(anon | ANON, locked=True), b.vma(0x1000, 0x3000, anon=anon)
    with b.call("try_to_migrate", folio, 0):
        with b.call("rmap_walk_anon", folio, 0, 0):
            b.touch("try_to_migrate_one", folio, vma.at, 0x1000, 0)
        b.touch("try_to_migrate_one", folio, vma.at, 0x1000, 0)
    assert b.seen() == {
        "try_to_migrate[folio:locked]  rmap_walk_anon()": 1,
        "rmap_walk_anon[anon folio:locked try_to_migrate]  visit(-)": 1,
    }


def test_visit_outside_of_walks_is_ignored() -> None:
    b = box()
    vma = b.vma(0x1000, 0x3000)
    b.touch("try_to_migrate_one", 0, vma.at, 0x1000, 0)
    with b.call("expand_downwards", vma.at, 0x1000):
        b.touch("try_to_migrate_one", 0, vma.at, 0x1000, 0)
    assert b.seen() == {"expand_downwards[ok]": 1}


def test_walk_of_a_folio_without_mapping_is_recorded_without_a_lock() -> None:
    b = box()
    for folio in (b.folio(0), 0):
        with b.call("rmap_walk_anon", folio, 0, 0):
            b.touch("try_to_migrate_one", folio, b.vma(0x1000, 0x3000).at, 0x1000, 0)
    assert b.seen() == {"rmap_walk_anon[try_to_migrate]  visit(-)": 2}


def test_flight_of_a_walk_has_the_folio_and_no_stack() -> None:
    b = box()
    anon = b.anon_vma()
    folio = b.folio(anon | ANON)
    with b.call("rmap_walk_anon", folio, 0, 0):
        pass
    (flight,) = b.tables.flight_recorder.flights()
    assert (flight.row.folio, flight.row.stack, flight.row.anon, flight.row.mm) == (
        folio,
        -1,
        b.anon_lock(anon),
        0,
    )
