"""Real bugs of stock kernels are found on the vulnerable kernel and not on the fixed one.

The workloads execute the faulty path without a crash. docs/measurements/DETECTION.md has the
numbers. tests/vm/bugs.toml has the vulnerable kernels. Run these tests with the fixed kernels of
the ladder: RMAPD_VM_KERNELS="6.12 6.18".
"""

from __future__ import annotations

import datetime
import json
import os
import re
from typing import Any

import pytest

from tests.vm.guest import run
from tests.workloads.stopped_walk import MANY

KERNELS = (os.environ.get("RMAPD_VM_KERNELS") or "6.1").split()


def pair(vulnerable: str, fixed: str) -> list[tuple[str, bool]]:
    """Return (kernel, whether it has the bug) twice if RMAPD_VM_KERNELS has the fixed kernel."""
    return [(vulnerable, True), (fixed, False)] if fixed in KERNELS else []


def seen(kernel: str, workload: str, nodes: int) -> dict[str, Any]:
    """Return the report of a run under the workload, in which nothing may be lost."""
    return seen_with_output(kernel, workload, nodes)[0]


def seen_with_output(kernel: str, workload: str, nodes: int) -> tuple[dict[str, Any], str]:
    """Return the report of such a run, and what the workload printed."""
    command = (
        f"rmapd exec --report $OUT/r.json -- python -m tests.workloads.{workload}; echo exit $?"
    )
    result = run(kernel, command, nodes=nodes, label=workload)
    assert (result.folder / "r.json").exists(), result.output
    report: dict[str, Any] = json.loads((result.folder / "r.json").read_text())
    assert ("exit 3" in result.output) is bool(report["violations"]), result.output
    for violation in report["violations"]:
        print(
            f"\n{report['kernel']}: {violation['verdict']} ×{violation['count']} "
            f"{violation['summary']}: {violation['protocol']}"
        )
    assert not {loss: count for loss, count in report["lost"].items() if count}
    return report, result.output


@pytest.mark.parametrize(("kernel", "vulnerable"), pair("6.12.57", "6.12"))
def test_hugetlb_migration_violates_l1_on_the_vulnerable_kernel_only(
    kernel: str, vulnerable: bool
) -> None:
    """CVE-2026-23097: i_mmap_rwsem is taken with the folio locked.

    unmap_and_move_huge_page() releases i_mmap_rwsem before its second walk, which takes it again.
    """
    report = seen(kernel, "numa", 2)
    walks = [
        p
        for p in report["protocols"]
        if p["function"] == "rmap_walk_file"
        and "hugetlb" in p["context"]
        and "remove_migration" in p["context"]
    ]
    assert sum(walk["count"] for walk in walks) >= 60, "the path was walked"
    assert {walk["violates"] == ["L1"] for walk in walks} == {vulnerable}
    assert {v["invariant"] for v in report["violations"]} == ({"L1"} if vulnerable else set())
    for violation in report["violations"]:
        assert (violation["function"], violation["verdict"]) == ("rmap_walk_file", "violated")
        assert violation["summary"] == "i_mmap_rwsem of hugetlb is taken with the folio locked"
        assert any(frame.startswith("migrate_pages") for frame in violation["stack"])
    checks = report["invariants"]["L1"]["checks"]
    assert checks["violated"] == (sum(walk["count"] for walk in walks) if vulnerable else 0)


@pytest.mark.parametrize(("kernel", "vulnerable"), pair("6.17.13", "6.18"))
def test_mremap_beside_an_untouched_neighbour_violates_v5_on_the_vulnerable_kernel_only(
    kernel: str, vulnerable: bool
) -> None:
    """CVE-2026-23077: the VMA that copy_vma() merges with its neighbour has no anon_vma."""
    report = seen(kernel, "beside", 1)
    checks = report["invariants"]["V5"]["checks"]
    assert {v["invariant"] for v in report["violations"]} == ({"V5"} if vulnerable else set())
    assert checks["violated"] == (5 if vulnerable else 0)
    assert checks["holds"] >= 5, "the moves there, and on a fixed kernel those back"
    for violation in report["violations"]:
        assert (violation["function"], violation["verdict"]) == ("copy_vma", "violated")
        assert "follows=missing" in violation["protocol"]
        assert violation["summary"] == "the VMA took over pages of an anon_vma and has none"


NO_FIX = [("6.1.170", True)] if "6.1" in KERNELS else []


@pytest.mark.parametrize(("kernel", "vulnerable"), [*NO_FIX, *pair("7.2.6", "7.3")])
def test_walk_that_stops_at_another_huge_page_violates_m1_within_seconds(
    kernel: str, vulnerable: bool
) -> None:
    """mm/page_vma_mapped: continue past nonmatching huge PMDs.

    256 entries are left behind at once. The first verdict does not wait for those on the others,
    and none keeps the checker from its ticks.
    """
    report, output = seen_with_output(kernel, "stopped_walk", 2)
    struck = re.search(r"struck (\S+) (\d+) entries", output)
    assert bool(struck) is vulnerable, output
    gap = report["overhead"]["longest_tick_gap_seconds"]
    print(f"{kernel}: longest gap between two ticks {gap} s; {output}")
    checks = report["invariants"]["M1"]["checks"]
    assert checks["holds"] > MANY, "the other pages moved, and their entries were removed"
    assert gap < 2
    assert {v["invariant"] for v in report["violations"]} == ({"M1"} if vulnerable else set())
    assert (checks["suspect"], checks["unverifiable"]) == (0, 0)
    if not struck:
        return
    (violation,) = report["violations"]
    at = datetime.datetime.fromisoformat(violation["first_seen"]).timestamp()
    print(f"{kernel}: {at - float(struck[1]):.2f} s from the strike to the verdict")
    assert at - float(struck[1]) < 10
    assert violation["verdict"] == "violated"
    assert violation["count"] == checks["violated"] == int(struck[2]) == 256
    assert violation["protocol"].startswith("level=PTE reason=MR_SYSCALL")
