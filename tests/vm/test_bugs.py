"""Real bugs of stock kernels are found on the vulnerable kernel and not on the fixed one.

The workloads execute the faulty path without a crash. docs/measurements/DETECTION.md has the
numbers. tests/vm/bugs.toml has the vulnerable kernels. Run these tests with the fixed kernels of
the ladder: RMAPD_VM_KERNELS="6.12 6.18".
"""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

from tests.vm.guest import run

KERNELS = (os.environ.get("RMAPD_VM_KERNELS") or "6.1").split()


def pair(vulnerable: str, fixed: str) -> list[tuple[str, bool]]:
    """Return (kernel, whether it has the bug) twice if RMAPD_VM_KERNELS has the fixed kernel."""
    return [(vulnerable, True), (fixed, False)] if fixed in KERNELS else []


def seen(kernel: str, workload: str, nodes: int) -> dict[str, Any]:
    """Return the report of a run under the workload, in which nothing may be lost."""
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
    return report


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


@pytest.mark.parametrize(("kernel", "vulnerable"), [*pair("7.2.6", "7.3"), *pair("6.18.5", "7.3")])
def test_mremap_beside_the_same_userfaultfd_violates_v6_on_the_vulnerable_kernel_only(
    kernel: str, vulnerable: bool
) -> None:
    """mm/vma: avoid broken uffd merge on mremap. The neighbour never moved, and loses its own."""
    report = seen(kernel, "uffd_beside", 1)
    check_v6(report, "move_vma", "kept=uffd", 5 if vulnerable else 0)


@pytest.mark.parametrize(("kernel", "vulnerable"), pair("6.18.5", "7.2"))
def test_mseal_over_a_merge_violates_v6_on_the_vulnerable_kernel_only(
    kernel: str, vulnerable: bool
) -> None:
    """CVE-2026-23416: vma_modify() is asked for a range that begins before its VMA."""
    report = seen(kernel, "seal_merge", 1)
    check_v6(report, "vma_modify", "kept=range", 5 if vulnerable else 0)


def check_v6(report: dict[str, Any], function: str, word: str, times: int) -> None:
    """Check that V6 was violated by this function this many times, and nothing else was."""
    one = report["invariants"]["V6"]
    assert one["coverage"] == "full"
    assert one["checks"]["violated"] == times
    assert one["checks"]["holds"] >= 5
    assert {v["invariant"] for v in report["violations"]} == ({"V6"} if times else set())
    for violation in report["violations"]:
        assert (violation["function"], violation["verdict"]) == (function, "violated")
        assert word in violation["protocol"]
