"""V7: what a merge has mapped where mremap() moves page tables to is found at the mremap itself.

CVE-2025-38207 is fixed in 6.16 and in no 6.1 or 6.12.
"""

from __future__ import annotations

import json

import pytest

from tests.vm.guest import run
from tracer.invariants.catalogue import discover
from tracer.report.explain import as_text
from tracer.report.find_violation import ExplainedViolation

ROUNDS = 5
COMMAND = (
    "rmapd exec --report $OUT/r.json --"
    f" python -m tests.workloads.uprobe_merge {ROUNDS}; echo exit $?"
)


@pytest.mark.parametrize("kernel", ["6.1", "6.12.43"])
def test_breakpoint_that_a_move_overwrites_is_found_at_the_move(kernel: str) -> None:
    """Each round moves a page there and back: only the way back meets the merge."""
    result = run(kernel, COMMAND, expect_bug=True, label="moves", timeout=900)
    assert "exit 3" in result.output, result.output
    report = json.loads((result.folder / "r.json").read_text())
    found = report["invariants"]["V7"]
    assert found["coverage"] == "full"
    assert found["checks"]["violated"] == ROUNDS
    assert found["checks"]["holds"] >= ROUNDS
    assert not found["checks"]["unverifiable"]
    (violation,) = [one for one in report["violations"] if one["invariant"] == "V7"]
    assert violation["signature"] == "V7 violated move_page_tables level=PTE"
    assert violation["task"]["comm"] == "python"
    assert any(line.startswith("move_vma") for line in violation["stack"])
    evidence = violation["evidence"]
    vma = evidence["vma_now"]
    assert int(vma["vm_start"], 16) <= int(evidence["addr"], 16) < int(vma["vm_end"], 16)
    assert evidence["folio_now"]["kind"] == "anon", "the breakpoint's page is anonymous"
    before = [step["function"] for step in violation["trail"]]
    assert "copy_vma" in before, "the merge that the destination was mapped by"
    print(as_text(ExplainedViolation(violation, report), discover()["V7"]))


def test_kernel_with_the_fix_moves_to_empty_places() -> None:
    result = run("6.18", COMMAND, label="moves", timeout=900)
    assert "exit 0" in result.output, result.output
    report = json.loads((result.folder / "r.json").read_text())
    found = report["invariants"]["V7"]
    assert found["coverage"] == "full"
    assert found["checks"]["holds"] >= 2 * ROUNDS
    assert not found["checks"]["violated"] + found["checks"]["unverifiable"]
    assert not report["violations"]
