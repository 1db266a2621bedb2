"""Eleven faults in the state of a sleeping process, each found, named and explained by the audit.

docs/measurements/DETECTION.md has the table that this prints. The module is built against Debian's
headers of each kernel and loaded in the guest only. The audit may use 5 % of a CPU here, since an
emulated kernel is slow. RMAPD_VM_KERNELS names the kernels (default 6.1).
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.vm.faults import found_during, reported, seconds
from tests.vm.guest import run
from tests.vm.modules import built
from tests.workloads.state_faults import FAULTS
from tracer.invariants.catalogue import discover
from tracer.report.explain import as_text
from tracer.report.find_violation import ExplainedViolation

KERNELS = (os.environ.get("RMAPD_VM_KERNELS") or "6.1").split()
SECONDS = {"6.1-arm64": 20}
"""For which each fault stays; 6 where none is named. A pass of the audit takes 5 s there."""
AGAIN = "count_off"
"""Has a run of its own: `vma_missing` has the same signature, and a report has one row of it."""
NAMED: dict[str, dict[str, tuple[set[str], set[str]]]] = {
    "gap_large": {"V4": ({"NODE_GAP_OF_PARENT"}, {"NODE_GAP_SLOT", "NODE_GAP"})},
    "gap_small": {"V4": ({"NODE_GAP_OF_PARENT"}, {"NODE_GAP_SLOT", "NODE_GAP"})},
    "pivot_off": {"V3": ({"VMA_RANGE"}, set())},
    "parent_stale": {"V4": ({"NODE_PARENT"}, set())},
    "vma_missing": {"V3": ({"MAP_COUNT"}, set()), "V4": ({"NODE_TWO_EMPTY"}, set())},
    "count_off": {"V3": ({"MAP_COUNT"}, set())},
    "chain_outside": {"R2": ({"INTERVAL_NO_CHILD", "anon_vma"}, {"INTERVAL_SUBTREE"})},
    "subtree_end": {"R2": ({"INTERVAL_SUBTREE", "anon_vma"}, set())},
    "file_missing": {"R2": ({"INTERVAL_NO_CHILD", "i_mmap"}, {"INTERVAL_SUBTREE"})},
    "anon_unchained": {"V3": ({"VMA_ANON_VMA"}, set())},
    "index_off": {"R4": ({"PAGE_INDEX"}, set())},
}
"""Fault -> {invariant: (problems and tree that it must name, problems that it may name)}."""


def named(violation: dict[str, Any]) -> set[str]:
    """Return the problems and the tree of a signature."""
    words = violation["signature"].split()
    parts = [word.partition("=")[2] for word in words if word.startswith(("problems=", "tree="))]
    return {name for part in parts for name in part.split("+")}


def check(kernel: str, fault: dict[str, Any], report: dict[str, Any]) -> None:
    """Check what was found while a fault was there, and print its rows of the matrix."""
    own = found_during(fault, report)
    expected = NAMED[fault["name"]]
    assert {v["invariant"] for v in own} == {*expected}, (fault, own)
    assert len(own) == len(expected), "one signature each"
    for violation in own:
        must, may = expected[violation["invariant"]]
        assert must <= named(violation) <= must | may, violation["signature"]
        assert violation["verdict"] == "violated"
        evidence = violation["evidence"]
        assert evidence["confirmed"] == "seen in 3 looks that no writer disturbed"
        text = as_text(ExplainedViolation(violation, report), discover()[violation["invariant"]])
        for part in ("Wrong state", "Maple tree", "From the root, as mt_dump() prints it"):
            assert part in text
        assert all(problem in text for one in evidence["wrong"] for problem in one["problems"])
        if "PAGE_INDEX" in must:
            assert evidence["folio_now"]["kind"] == "anon"
        # An anon_vma's tree and pages are shared with the children that the process forked.
        if not must & {"anon_vma", "PAGE_INDEX"}:
            assert violation["task"]["pid"] == fault["pid"]
        print(
            f"| {kernel} | `{fault['name']}` | {violation['invariant']} violated "
            f"| {seconds(violation) - fault['made']:.2f} s "
            f"| {violation['summary'].partition(': ')[2]} |"
        )


@pytest.mark.parametrize("kernel", KERNELS)
def test_each_fault_in_state_is_found_and_nothing_else_is_accused(
    kernel: str, tmp_path: Path
) -> None:
    module = built(kernel, "rmapd_state", tmp_path)
    stay = SECONDS.get(kernel, 6)
    groups = ([name for name in FAULTS if name != AGAIN], [AGAIN])
    audits = "; ".join(
        f"rmapd exec --config $OUT/rmapd.toml --report $OUT/{n}.json --"
        f" python -m tests.workloads.state_faults {stay} {' '.join(group)}; echo exit $?"
        for n, group in enumerate(groups)
    )
    result = run(
        kernel,
        f"echo audit_budget = 0.05 > $OUT/rmapd.toml; insmod {module} && {{ {audits}; }}",
        append="rmapd_faults=guest",
        label="state-faults",
        timeout=1500,
        readable=[tmp_path],
    )
    assert result.output.count("exit 3") == len(groups), result.output
    faults = {fault["name"]: fault for fault in reported(result)}
    assert {*faults} == {*FAULTS}
    for n, group in enumerate(groups):
        report = json.loads((result.folder / f"{n}.json").read_text())
        for name in group:
            check(kernel, faults[name], report)
        explained = sum(len(found_during(faults[name], report)) for name in group)
        assert explained == len(report["violations"]), "violations that no fault explains"
        checks = [report["invariants"][name]["checks"] for name in ("V3", "V4", "R2", "R4")]
        assert sum(each["holds"] for each in checks) > 10_000
        assert not any(each["suspect"] or each["unverifiable"] for each in checks)
        assert not any(n for loss, n in report["lost"].items() if loss != "missed_runs")
