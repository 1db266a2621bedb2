"""Golden protocols: what kernels do and did, in text, and how each invariant rules on it.

The seed's three hunks come first.
"""

from __future__ import annotations

import pytest

from tests.support.native import LAYOUTS, ROOT
from tests.support.violations import VIOLATING
from tracer.invariants.catalogue import discover
from tracer.invariants.lock_order import LockGraph
from tracer.invariants.verdict import Ruling
from tracer.protocol.codec import Encoding
from tracer.protocol.text import parse

KNOWN = discover()
ENCODING = Encoding(LAYOUTS)
JUDGED = [name for name, invariant in KNOWN.items() if invariant.judge]
SHORT = {"holds": "+", "violated": "!", "suspect": "?", "unverifiable": "~"}


def ruling(invariant: str, line: str) -> Ruling | None:
    judge = KNOWN[invariant].judge
    assert judge
    return judge(parse(line))


def rulings(line: str) -> str:
    """As `L1+ L3! …`: + holds, ! violated, ? suspect, ~ unverifiable; what does not apply is left
    out."""
    found = ((invariant, ruling(invariant, line)) for invariant in JUDGED)
    return " ".join(f"{invariant}{SHORT[each.verdict]}" for invariant, each in found if each)


SEED = [
    # 1. vma_expand() imports next's anon_vma and did not lock it: "I believe there's a case it
    # misses"
    (
        "vma_expand[anon=imported moved mmap:w ok follows]  anon_vma_clone() commit(mmap:w anon:-)",
        "L3+ L5! V1+ V2! V5+",
    ),
    (
        (
            "vma_expand[anon=imported moved mmap:w ok follows]  anon_vma_clone() anon↓w {anon-}*"
            " commit(mmap:w anon:w) {anon+}* anon↑w"
        ),
        "L1+ L3+ L4+ L5+ V1+ V2+ V5+",
    ),
    # 2. the anon_vma rwsem was taken before i_mmap_rwsem: "you can't change the lock ordering just
    # because it looks nicer"
    (
        (
            "vma_expand[file anon moved mmap:w ok]  anon↓w anon- i_mmap↓w file- commit(mmap:w"
            " i_mmap:w anon:w) file+ i_mmap↑w anon+ anon↑w"
        ),
        "L1! L3+ L4+ L5+ V1+ V2+",
    ),
    (
        (
            "vma_expand[file anon moved mmap:w ok]  i_mmap↓w anon↓w anon- file- commit(mmap:w"
            " i_mmap:w anon:w) file+ anon+ anon↑w i_mmap↑w"
        ),
        "L1+ L3+ L4+ L5+ V1+ V2+",
    ),
    # 3. do_brk_flags() returned -ENOMEM with the anon_vma locked: "at the very least we must unlock
    # if locked"
    ("do_brk_flags[anon moved mmap:w] -ENOMEM  anon↓w anon- → [mmap:w anon:w]", "L1+ L3! L4+"),
    (
        "do_brk_flags[anon moved mmap:w ok]  anon↓w anon- commit(mmap:w anon:w) anon+ anon↑w",
        "L1+ L3+ L4+ L5+ V1+ V2+",
    ),
]

LEGAL = [
    (
        (
            "__split_vma[file anon moved mmap:w ok]  anon_vma_clone() i_mmap↓w file+ anon↓w anon-"
            " file- file+ commit(mmap:w vma:w i_mmap:w anon:w) anon+ anon↑w i_mmap↑w"
        ),
        "L1+ L3+ L4+ L5+ V1+ V2+",
    ),
    ("__split_vma[file mmap:w] -ENOMEM  anon_vma_clone()", "L3+"),
    ("__split_vma[file anon moved mmap:w ok]  anon_vma_clone() __vma_adjust()", "L3+ V1+"),
    ("vma_expand[anon moved mmap:w ok]  commit_merge()", "L3+ V1+"),
    ("do_brk_flags[mmap:w ok]  commit(mmap:w vma:-)", "L3+ V1+"),
    # a rmap walker on another CPU reads while the window waits for the lock, or has it already
    (
        (
            "vma_shrink[file anon moved mmap:w anon:r ok]  i_mmap↓w anon↓w anon- file-"
            " commit(mmap:w i_mmap:w anon:w) file+ anon+ anon↑w i_mmap↑w → [mmap:w]"
        ),
        "L1+ L3+ L4+ L5+ V1+ V2+",
    ),
    (
        "expand_downwards[anon moved mmap:r ok]  anon↓w anon- commit(mmap:r anon:w) anon+ anon↑w",
        "L1+ L3+ L4+ L5~ V1+ V2+",
    ),
    (
        "expand_downwards[anon moved mmap:w ok]  anon↓w anon- commit(mmap:w anon:w) anon+ anon↑w",
        "L1+ L3+ L4+ L5+ V1+ V2+",
    ),
    (
        "mm_take_all_locks[mmap:w]  {i_mmap2↓w}* {anon2↓w}* {other↓w}* → [mmap:w i_mmap:w anon:w]",
        "L1+ L3+",
    ),
    ("mm_take_all_locks[mmap:w] -EINTR  {i_mmap↓w}* mm_drop_all_locks()", "L1+ L3+"),
    ("mm_drop_all_locks[mmap:w i_mmap:w anon:w]  anon↑w {i_mmap↑w}* → [mmap:w]", "L3+"),
    (
        "dup_mmap[]  mmap↓wk mmap2↓w {anon_vma_fork() i_mmap↓w file+ i_mmap↑w}* mmap2↑w mmap↑w",
        "L1+ L3+ L4+",
    ),
    (
        "collapse_huge_page[anon mmap:r]  mmap↑r mmap↓r mmap↑r mmap↓w anon↓w anon↑w mmap↑w → []",
        "L1+ L3+",
    ),
    ("__anon_vma_prepare[mmap:r]  anon↓w anon+ anon↑w", "L1+ L3+ L4+"),
    ("__anon_vma_prepare[mmap:r]  anon+(new)", "L4+"),
    (
        (
            "copy_vma[file anon mmap:w ok follows]  anon_vma_clone() i_mmap↓w file+ commit(mmap:w"
            " i_mmap:w anon:-) i_mmap↑w"
        ),
        "L1+ L3+ L4+ V1+ V5+",
    ),
    ("copy_vma[anon mmap:w] -NULL", "L3+"),
    ("rmap_walk_anon[folio:locked try_to_migrate]  anon↓r? {visit(r)}* anon↑r", "L3+ L6+"),
    ("rmap_walk_anon[folio:locked try_to_migrate anon:r]  anon↓r visit(r) anon↑r", "L1+ L3+ L6+"),
    ("rmap_walk_anon[locked folio:locked remove_migration anon:w]  {visit(w)}*", "L3+ L6+"),
    ("rmap_walk_anon[referenced]  anon↓r? visit(r) anon↑r", "L3+ L6+"),
    ("rmap_walk_file[folio:locked mkclean]  i_mmap↓r i_mmap↑r", "L1+ L3+"),
    ("rmap_walk_file[other_walker]  i_mmap↓r visit(r) i_mmap↑r", "L1+ L3+ L6+"),
    ("rmap_walk_file[folio:locked remove_migration]  i_mmap↓r? visit(r) i_mmap↑r", "L3+ L6+"),
    ("rmap_walk_file[hugetlb locked folio:locked remove_migration i_mmap:r]  {visit(r)}*", "L6+"),
    (
        (
            "rmap_walk_ksm[folio:locked remove_migration]  {anon↓r visit(r) anon↑r anon2↓r visit(r)"
            " anon2↑r}*"
        ),
        "L1+ L3+ L6+",
    ),
    ("outside[]  anon+(new)", "L4+"),
    ("unlink_anon_vmas[anon]  anon↓w {anon-}* anon↑w", "L1+ L3+ L4+"),
    ("mm_drop_all_locks[]", ""),
]

BROKEN = [
    ("vma_shrink[moved mmap:w anon:r]  i_mmap↓w i_mmap↑w → [mmap:w anon:w]", "L1+ L3!"),
    # CVE-2026-23097: the second walk of a hugetlb folio takes i_mmap_rwsem with the folio locked
    (
        "rmap_walk_file[hugetlb folio:locked remove_migration]  i_mmap↓r visit(r) i_mmap↑r",
        "L1! L3+ L6+",
    ),
    (
        "rmap_walk_file[hugetlb folio:locked remove_migration]  i_mmap↓r? visit(r) i_mmap↑r",
        "L1! L3+ L6+",
    ),
    # CVE-2026-23077: copy_vma() returns a VMA without anon_vma
    ("copy_vma[anon mmap:w ok follows=missing]", "L3+ V1+ V5!"),
    ("copy_vma[anon mmap:w ok follows=other]", "L3+ V1+ V5!"),
    # CVE-2026-23416: mseal() asks vma_modify() for a range that begins before its VMA
    ("vma_modify[mmap:w kept=range]", "L3+ V6!"),
    # mremap_userfaultfd_prep() ends the userfaultfd of a neighbour that never moved
    ("move_vma[anon mmap:w kept=uffd]  copy_vma() move_page_tables()", "L3+ V6!"),
    ("move_vma[anon mmap:w kept]  copy_vma() move_page_tables()", "L3+ V6+"),
    ("vma_merge[mmap:w kept=policy] -NULL", "L3+ V6!"),
    ("__split_vma[mmap:w ok kept=flags]", "L3+ V1+ V6!"),
    ("vma_merge_new_range[mmap:w kept=file]", "L3+ V6!"),
    ("vma_merge_new_range[mmap:w kept=name]", "L3+ V6!"),
    ("vma_merge_new_range[mmap:w] -NULL", "L3+"),
    ("vma_expand[anon=imported moved mmap:w geometry=overlap]  commit_merge()", "L3+ V1!"),
    ("__vma_adjust[mmap:w geometry=not_as_asked] -ENOMEM", "L3+"),
    ("unlink_file_vma[file]  anon↓w mmap↓w mmap↑w anon↑w", "L1! L3+"),
    ("move_page_tables[anon mmap:w]  anon↓w anon2↓w anon2↑w anon↑w", "L1! L3+"),
    ("move_page_tables[anon mmap:w]  anon↓w anon2↓w? anon2↑w anon↑w", "L1+ L3+"),
    ("unlink_anon_vmas[anon]  {anon2↓w anon-}*", "L1! L3? L4+"),
    ("retract_page_tables[i_mmap:r]  i_rwsem↓w i_rwsem↑w", "L1? L3+"),
    ("retract_page_tables[]  i_mmap↓r → [i_mmap:r]", "L1+ L3?"),
    ("retract_page_tables[i_mmap:r]  i_mmap↑r → []", "L3?"),
    ("retract_page_tables[]  i_mmap↓w", "L1+ L3~"),
    ("retract_page_tables[]  i_mmap↓r", "L1+ L3~"),
    ("retract_page_tables[]  other↓r", "L3?"),
    ("retract_page_tables[]  other↑r", "L3~"),
    ("retract_page_tables[]  other↓w other↑r", "L3~"),
    ("retract_page_tables[]  other↓w other⇓ other↑r", "L3+"),
    ("dup_mmap[mmap:w]  mmap↑w → []", "L3!"),
    ("dup_mmap[mmap:w]  mmap⇓ → [mmap:r]", "L3!"),
    ("outside[]  anon-(r)", "L4!"),
    ("outside[]  file+(-)", "L4!"),
    ("outside[]  file+(x)", "L4!"),
    (
        "vma_shrink[file moved mmap:w ok]  i_mmap↓w commit(mmap:w i_mmap:w) file- file+ i_mmap↑w",
        "L1+ L3+ L4+ L5+ V1+ V2!",
    ),
    (
        "vma_shrink[file moved mmap:w ok]  i_mmap↓w file- commit(mmap:w i_mmap:w) i_mmap↑w",
        "L1+ L3+ L4+ L5+ V1+ V2!",
    ),
    ("vma_shrink[moved mmap:r ok]  commit(mmap:r vma:-)", "L5! V1+"),
    ("rmap_walk_anon[folio:locked try_to_migrate]  visit(-)", "L6!"),
    ("rmap_walk_anon[folio:locked try_to_migrate]  anon↓r visit(x) anon↑r", "L1+ L3+ L6!"),
    ("rmap_walk_anon[folio:locked try_to_migrate anon:r]  visit(r)", "L6~"),
    ("rmap_walk_anon[try_to_unmap]  anon↓r visit(r) anon↑r", "L1+ L3+ L6!"),
    ("rmap_walk_file[referenced]  i_mmap↓r visit(r) i_mmap↑r", "L1+ L3+ L6!"),
]

LOSSY = [
    (
        (
            "vma_expand[file anon moved mmap:w]  anon↓w ? i_mmap↓w file- commit(mmap:w) i_mmap↑w"
            " anon↑w"
        ),
        "L1~ L3~ L4+ L5+ V2~",
    ),
    (
        "vma_expand[anon moved mmap:w]  anon↓w ? anon-(r) commit(mmap:w anon:-) → [mmap:w anon:w]",
        "L1~ L3! L4! L5! V2~",
    ),
    ("vma_expand[anon moved mmap:w]  anon↓w anon- commit(mmap:w anon:w) …", "L1~ L3~ L4~ L5~ V2~"),
    (
        "vma_expand[file anon moved mmap:w]  anon↓w i_mmap↓w commit(mmap:w anon:-) …",
        "L1! L3~ L4~ L5! V2!",
    ),
    ("rmap_walk_anon[folio:locked try_to_migrate]  anon↓r visit(r) …", "L1~ L3~ L4~ L6~"),
]


@pytest.mark.parametrize(("line", "expected"), SEED + LEGAL + BROKEN + LOSSY)
def test_golden_protocols_are_ruled_on_as_written(line: str, expected: str) -> None:
    assert rulings(line) == expected
    ENCODING.encode(parse(line))


@pytest.mark.parametrize(
    ("invariant", "line", "reason", "proven"),
    [
        ("L5", SEED[0][0], "the boundary changes with the anon_vma rwsem not held", True),
        ("L1", SEED[2][0], "i_mmap_rwsem is taken with the anon_vma rwsem held", False),
        ("L3", SEED[4][0], "returns an error with the anon_vma rwsem held for write", True),
        (
            "L3",
            "retract_page_tables[]  i_mmap↓r",
            "i_mmap_rwsem: the steps do not add up: an event is missing, or another task took the"
            " lock for read, too",
            False,
        ),
        (
            "L3",
            "retract_page_tables[]  i_mmap↓w",
            "i_mmap_rwsem: the steps do not add up, so an event is missing",
            False,
        ),
        (
            "L1",
            "dup_mmap[]  i_mmap↓w i_mmap2↓r",
            "another i_mmap_rwsem is taken with one held already",
            False,
        ),
        (
            "L4",
            "outside[]  anon-(r)",
            "a VMA leaves the anon tree with the anon_vma rwsem only read-held",
            True,
        ),
        (
            "L6",
            "rmap_walk_file[try_to_unmap]  visit(r)",
            "the try_to_unmap walk runs with the folio not locked",
            True,
        ),
    ],
)
def test_reasons_name_what_is_wrong_and_whether_it_is_proven(
    invariant: str, line: str, reason: str, proven: bool
) -> None:
    found = ruling(invariant, line)
    assert found
    assert (found.reason, found.proven) == (reason, proven)


def test_every_rule_on_protocols_has_a_violation_for_the_live_tests() -> None:
    """Live tests and benchmarks have a daemon judge these (tests/support/violations.py)."""
    assert list(VIOLATING) == JUDGED
    for name, line in VIOLATING.items():
        assert f"{name}!" in rulings(line.format("")), name


def test_a_cycle_of_classes_is_found_whichever_direction_comes_last() -> None:
    graph = LockGraph()
    forth, back = (
        parse("vma_expand[]  i_mmap↓w anon↓w anon↑w i_mmap↑w"),
        parse("vma_shrink[]  anon↓w i_mmap↓w i_mmap↑w anon↑w"),
    )
    assert graph.add(parse("vma_expand[mmap:w]  other↓w i_mmap2↓w? anon↓w")) == ()
    assert graph.add(parse("vma_expand[]  anon↓w anon↑w")) is None
    assert graph.add(forth) == ()
    assert graph.add(back) == (("anon", "i_mmap"), ("i_mmap", "anon"))
    assert graph.add(parse("move_page_tables[]  anon↓w i_mmap↓w")) == (
        ("anon", "i_mmap"),
        ("i_mmap", "anon"),
    )
    assert graph.add(parse("copy_vma[]  i_mmap↓w anon↓w")) == (), "the way that was there before"
    assert graph.first["anon", "i_mmap"] == back


def test_a_longer_cycle_begins_with_the_same_edge() -> None:
    graph = LockGraph()
    assert graph.add(parse("vma_shrink[]  vma↓w i_mmap↓w")) == ()
    assert graph.add(parse("vma_shrink[]  i_mmap↓w anon↓w")) == ()
    assert graph.add(parse("vma_shrink[anon:w]  vma↓w")) == (
        ("anon", "vma"),
        ("vma", "i_mmap"),
        ("i_mmap", "anon"),
    )


def test_the_graph_leaves_out_trylocks_lost_events_and_hugetlb() -> None:
    graph = LockGraph()
    assert graph.add(parse("vma_shrink[]  anon↓w i_mmap↓w? i_mmap↑w")) is None
    assert graph.add(parse("vma_shrink[]  anon↓w ? i_mmap↓w")) is None
    graph.add(parse("vma_shrink[hugetlb]  i_mmap↓w vma↓w"))
    assert graph.add(parse("vma_shrink[]  vma↓w i_mmap↓w")) == ()
    assert set(graph.first) == {("hugetlb_i_mmap", "vma"), ("vma", "i_mmap")}


def test_the_page_for_readers_of_a_violation_is_in_the_notation() -> None:
    lines = [
        line
        for line in (ROOT / "docs/PROTOCOLS.md").read_text().splitlines()
        if line.startswith("    ")
    ]
    assert [rulings(line) for line in lines] == [
        "L1+ L3+ L4+ L5+ V1+ V2+",
        "L3+ L5! V2!",
        "L1! L3+",
        "L1+ L3! L4+",
        "L3+ V1+ V5!",
        "L1! L3+ L6+",
        "L3+ V6!",
    ]
