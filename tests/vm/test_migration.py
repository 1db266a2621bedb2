"""Migration entries are checked on full kernels: all hooks attach and the oracle is calibrated.

PMD and hugetlb entries are included. RMAPD_VM_KERNELS names the kernels (default 6.1). virtme-ng's
guests have five-level page tables (QEMU's max CPU).
"""

from __future__ import annotations

import json
import os
import shutil
from typing import Any

import pytest

from tests.vm.guest import Result, run
from tracer.invariants.catalogue import discover

FULL = list(discover())
KERNELS = (os.environ.get("RMAPD_VM_KERNELS") or "6.1").split()
PREEMPT = ("6.18", "7.2", "7.3")
"""Lazy preemption leaves out runs of programs (docs/KERNELS.md): some checks are unverifiable."""


@pytest.fixture(scope="module", params=KERNELS)
def kernel(request: pytest.FixtureRequest) -> str:
    missing = [tool for tool in ("qemu-system-x86_64", "dpkg-deb") if not shutil.which(tool)]
    if missing and os.environ.get("RMAPD_REQUIRE_KERNEL") != "1":
        pytest.skip(f"no {', '.join(missing)}")
    return str(request.param)


def report(result: Result, name: str) -> dict[str, Any]:
    assert (result.folder / name).exists(), result.output
    found: dict[str, Any] = json.loads((result.folder / name).read_text())
    return found


def nothing_wrong(found: dict[str, Any], kernel: str) -> None:
    """No entry is accused and only runs are lost, which explain the unverifiable checks."""
    checks, lost = found["invariants"]["M1"]["checks"], dict(found["lost"])
    missed = lost.pop("missed_runs")
    assert set(lost.values()) == {0}
    assert not missed or kernel in PREEMPT
    assert (checks["violated"], checks["suspect"]) == (0, 0)
    assert not checks["unverifiable"] or missed


def test_migration_of_small_pages_holds_with_full_coverage(kernel: str) -> None:
    command = (
        "rmapd doctor --format json > $OUT/doctor.json && "
        "rmapd exec --require M1,M4,L2 --report $OUT/r.json -- "
        "python tests/workloads/migrate.py 8000 96; echo exit $?; "
        "grep -ow la57 /proc/cpuinfo | head -1"
    )
    result = run(kernel, command, label="small")
    assert "exit 0" in result.output, result.output
    doctor = json.loads((result.folder / "doctor.json").read_text())
    everywhere = [
        hook["state"]
        for hook in doctor["hooks"].values()
        if hook["probe_object"] in ("migration", "ledger", "mmap_lock", "page_tables")
    ]
    assert set(everywhere) <= {"attached", "substituted"}
    without = {"V6": "none"} if doctor["hooks"]["vma_modify"]["state"] == "missing" else {}
    assert {name: doctor["invariants"][name]["coverage"] for name in FULL} == (
        dict.fromkeys(FULL, "full") | without
    )
    assert doctor["capabilities"]["page-table oracle"] == "calibrated"
    levels = "5" if "la57" in result.output else "4"
    assert doctor["capabilities"]["page tables"] == f"{levels} levels, pages of 4 KiB"
    found = report(result, "r.json")
    checks = found["invariants"]["M1"]["checks"]
    assert checks["holds"] >= 4000, checks
    nothing_wrong(found, kernel)


def test_each_migration_entry_of_five_stressors_has_a_verdict(kernel: str) -> None:
    """tests/live/test_accounting.py tests the same with tracepoints alone."""
    result = run(
        kernel,
        "rmapd exec --report $OUT/r.json -- tests/workloads/five_stressors.sh 40; echo exit $?",
        label="five",
    )
    assert "exit 0" in result.output, result.output
    found = report(result, "r.json")
    migration, checks = found["migration"], found["invariants"]["M1"]["checks"]
    recorded = migration["entries_recorded"] + migration["entries_copied"]
    judged = sum(
        migration[f"entries_{verdict}"]
        for verdict in ("cleared", "violated", "suspect", "unverifiable")
    )
    assert recorded >= 5_000, migration
    assert (recorded, migration["outstanding"]) == (migration["entries_removed"] + judged, 0)
    assert sum(checks.values()) >= recorded
    assert (checks["violated"], checks["suspect"], found["lost"]["ledger"]) == (0, 0, 0)
    assert not checks["unverifiable"] or (kernel in PREEMPT and found["lost"]["missed_runs"])


def test_migration_of_huge_pages_between_two_nodes_holds(kernel: str) -> None:
    result = run(
        kernel,
        "rmapd exec --report $OUT/r.json -- python tests/workloads/numa.py 20",
        nodes=2,
        label="huge",
    )
    assert result.code == 0, result.output
    found = report(result, "r.json")
    hooks, checks = found["overhead"]["hooks"], found["invariants"]["M1"]["checks"]
    assert hooks["set_migration_pmd"]["runs"] >= 100
    assert hooks["remove_migration_pmd"]["runs"] == hooks["set_migration_pmd"]["runs"]
    assert "transparent, 2048 kB: moved 160 pages in 20 rounds; {}" in result.output
    assert "hugetlb, 2048 kB: moved 80 pages in 20 rounds; {}" in result.output
    assert checks["holds"] >= 200
    nothing_wrong(found, kernel)
