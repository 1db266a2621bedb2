"""Real bugs of stock kernels are found on a kernel that has them, and not on a fixed one.

The rows are in stock_bugs.toml, the results in docs/measurements/DETECTION.md. RMAPD_VM_KERNELS
names the kernels, of bugs.toml too: RMAPD_VM_KERNELS="6.12.43 6.1" pytest -s -k "#8".
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.vm.stock_bugs import Bug, as_expected, rows, walk
from tests.workloads.stopped_walk import MANY

KERNELS = (os.environ.get("RMAPD_VM_KERNELS") or "6.1").split()


def asked_for() -> Iterator[tuple[Bug, str]]:
    for bug in rows():
        for kernel in (*bug.bad, *bug.good):
            if bug.workload and kernel in KERNELS:
                yield bug, kernel


def second_walks_of_hugetlbfs(report: dict[str, Any], bad: bool) -> None:
    """unmap_and_move_huge_page() of a bad kernel takes i_mmap_rwsem again with the folio locked."""
    walks = [
        p
        for p in report["protocols"]
        if p["function"] == "rmap_walk_file"
        and "hugetlb" in p["context"]
        and "remove_migration" in p["context"]
    ]
    assert sum(one["count"] for one in walks) >= 60, "the path was walked"
    assert {one["violates"] == ["L1"] for one in walks} == {bad}
    checks = report["invariants"]["L1"]["checks"]
    assert checks["violated"] == (sum(one["count"] for one in walks) if bad else 0)
    for violation in report["violations"]:
        assert violation["summary"] == "i_mmap_rwsem of hugetlb is taken with the folio locked"
        assert any(frame.startswith("migrate_pages") for frame in violation["stack"])


def merges_of_moved_vmas(report: dict[str, Any], bad: bool) -> None:
    """Five moves on each of four sides; on a fixed kernel those there and those back hold."""
    checks = report["invariants"]["V5"]["checks"]
    assert checks["violated"] == (20 if bad else 0)
    assert checks["holds"] >= 20
    for violation in report["violations"]:
        assert "follows=missing" in violation["protocol"]


def removals_from_hugetlbfs(report: dict[str, Any], bad: bool) -> None:
    """A bad kernel is found by what it does wrong each time, and by what a race makes of it.

    A removal is one run and one check, and a second one where the folio was unmapped for it: more
    checks than runs show that there were such unmaps.
    """
    checks = report["invariants"]["R3"]["checks"]
    assert checks["holds"] > 50, "the path was walked"
    runs = report["overhead"]["hooks"]["mm_filemap_delete_from_page_cache"]["runs"]
    assert checks["holds"] + checks["violated"] > runs + 10, "folios were unmapped for that"
    assert bad or checks["unverifiable"] <= report["lost"]["missed_runs"]
    wrong = {v["signature"] for v in report["violations"] if v["invariant"] == "R3"}
    kinds = ("it is still mapped", "it was unmapped before it was locked")
    found = {f"R3 violated __filemap_remove_folio hugetlb folio: {kind}" for kind in kinds}
    assert wrong == (found if bad else set())


def moves_to_taken_places(report: dict[str, Any], bad: bool) -> None:
    """Each of five rounds moves a page there and back: only the way back meets the merge."""
    checks = report["invariants"]["V7"]["checks"]
    assert (checks["violated"], checks["unverifiable"]) == (5 if bad else 0, 0)
    assert checks["holds"] >= (5 if bad else 10)
    for violation in (v for v in report["violations"] if v["invariant"] == "V7"):
        assert violation["signature"] == "V7 violated move_page_tables level=PTE"
        assert any(line.startswith("move_vma") for line in violation["stack"])
        assert violation["evidence"]["folio_now"]["kind"] == "anon", "it is the breakpoint's page"
        before = [step["function"] for step in violation["trail"]]
        assert "copy_vma" in before, "the merge that the destination was mapped by"


def kept(report: dict[str, Any], bad: bool, word: str) -> None:
    """Each of five rounds does once what a bad kernel does wrong."""
    checks = report["invariants"]["V6"]["checks"]
    assert checks["violated"] == (5 if bad else 0)
    assert checks["holds"] >= 5
    assert all(word in violation["protocol"] for violation in report["violations"])


def entries_left_behind(report: dict[str, Any], bad: bool) -> None:
    """256 entries are left behind at once: the first verdict does not wait for the others'.

    None keeps the checker from its ticks.
    """
    checks = report["invariants"]["M1"]["checks"]
    assert checks["holds"] > (0 if bad else MANY), "others moved, and their entries were removed"
    assert (checks["suspect"], checks["unverifiable"]) == (0, 0)
    assert checks["violated"] == (256 if bad else 0)
    assert report["overhead"]["longest_tick_gap_seconds"] < 2
    for violation in report["violations"]:
        assert "migrate_pages level=PTE reason=MR_SYSCALL" in violation["signature"]


MORE: dict[int, Callable[[dict[str, Any], bool], None]] = {
    4: second_walks_of_hugetlbfs,
    8: removals_from_hugetlbfs,
    12: merges_of_moved_vmas,
    22: moves_to_taken_places,
    29: entries_left_behind,
    30: functools.partial(kept, word="kept=range"),
    31: functools.partial(kept, word="kept=uffd"),
}
"""What else must be true of the report of a row."""


@pytest.mark.parametrize(
    ("bug", "kernel"),
    [*asked_for()],
    ids=lambda one: f"#{one.number}" if isinstance(one, Bug) else one,
)
def test_bug_is_found_on_a_kernel_that_has_it_and_nothing_on_a_fixed_one(
    bug: Bug, kernel: str
) -> None:
    bad = kernel in bug.bad
    outcome, report, result = walk(bug, kernel)
    print(outcome)
    assert as_expected(bug, outcome), outcome
    assert ("exit 3" in result.output) is bool(outcome.found), result.output
    assert all(report["invariants"][one]["coverage"] != "none" for one in bug.found)
    lost = {loss for loss, count in report["lost"].items() if count}
    assert lost <= {"missed_runs"}, "lazily preempting kernels leave out a run now and then"
    main = [v for v in report["violations"] if v["invariant"] == bug.found[0]]
    assert {violation["verdict"] for violation in main} == ({"violated"} if bad else set())
    assert {violation["function"] for violation in main} == ({bug.function} if bad else set())
    if bug.number in MORE:
        MORE[bug.number](report, bad)
    assert not bug.within or all(found.seconds < bug.within for found in outcome.found.values())
